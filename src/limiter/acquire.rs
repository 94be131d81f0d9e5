//! Waiting for units.

use super::RateLimiter;
use crate::algorithm::Receipt;
use crate::decision::{Decision, Outcome};
use crate::math::micros;
use crate::operation::Operation;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::time::Duration;
use std::{fmt, mem};
use tokio::time::{Instant, sleep, timeout_at};

/// Waits for units of a key: `limiter.acquire("alice").await`.
///
/// What it returns is allowed, unless that is no use: a cost above the limit is
/// [`Never`](Outcome::Never), and with a deadline, what would come later is
/// [`Denied`](Outcome::Denied) at once and charged nothing, with the wait that it would have taken,
/// those before it included; for a [`LeakyBucket`](crate::LeakyBucket) that delays, with the time
/// after which the same deadline, as long from then, would do. A key that is
/// [blocked](crate::Exceptions) is denied at once; one that is [paused](crate::Limiter::pause) is
/// waited for until the pause ends, and then for its units.
///
/// **In memory** the callers that wait for one key are served in the order in which they came, each
/// when there are units for it, and no other caller takes any units of that key as long as one
/// waits. There is one exception: keys beyond [`max_keys`](crate::Limiter::max_keys) share one
/// budget but have no common queue, so of two such keys one may take the units that the other waits
/// for. The number of waiters is bounded, for one key
/// ([`max_waiters_per_key`](crate::Limiter::max_waiters_per_key)) and for all keys together
/// ([`max_waiters`](crate::Limiter::max_waiters)); a caller beyond a bound is denied at once, with the
/// wait that a check would state. If a debit, a pause or limits that were replaced put the units of a
/// waiter beyond its deadline, it is denied: the first one at once, any other by its deadline at the
/// latest. Until then it counts in the stated waits. A cost above the new limit is
/// [`Never`](Outcome::Never).
///
/// Limiters on one [`TieredMemory`](crate::TieredMemory) share the queue of a key. While a caller
/// waits by the limits of one, a caller by other limits waits behind it, and the waits that are stated
/// to it are guesses, as it knows its own limits only.
///
/// A decision on a key that many wait for does not take longer than another. After a waiter has
/// left, or units were charged or given back, the stated waits behind more than 16 waiters may be
/// those from before the change, until there was an answer for every 16 waiters or 32 µs have passed
/// for each.
///
/// **Elsewhere**, as in Redis, it asks, sleeps for as long as it is told and up to a tenth longer,
/// and asks again, 20 times at most; then it is denied. Of several that wait, any may come first.
///
/// A [`LeakyBucket`](crate::LeakyBucket)'s delay is waited for too. If it would end after the
/// deadline, no place in that queue is taken.
///
/// With a deadline it does not begin to ask for units any later than then. What it has asked for may
/// have been taken, so it waits for the answer, which may come later than the deadline by as much as
/// the store may take: in Redis its timeout.
///
/// Dropping the future leaves the queue, and gives up the place in a leaky bucket's: the last place is
/// taken again, any other leaks unused, as departures have been promised behind it. (In Redis, what
/// is being asked for at that moment may be charged all the same.) A future that was polled once
/// keeps its place in the queue until its deadline, and at most for a second after its units are
/// there: then it is passed over, and denied when it is polled at last.
///
/// Sleeping is up to tokio's timer, which is exact to a millisecond. So that no rate is lost to that,
/// units count as taken when they could have been, up to 2 ms ago: departures may be so much closer
/// together than limits of a few milliseconds allow. If limits are replaced, waiters notice within a
/// second; until then, waits that are stated to others are partly those of the old limits. In tests
/// with tokio's time paused, give the limiter a [`TokioClock`](crate::TokioClock).
///
/// ```
/// # use std::time::Duration;
/// use tollgate::{Limiter, Outcome, Quota, TokenBucket};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limiter = Limiter::new(TokenBucket::new(Quota::per_second(100)).burst(1));
/// for _ in 0..3 {
///     assert!(limiter.acquire("alice").await.is_allowed()); // 10 ms from each other
/// }
/// let decision = limiter.acquire("alice").within(Duration::from_millis(2)).await;
/// assert!(matches!(decision.outcome(), Outcome::Denied(_)));
/// # }
/// ```
#[must_use = "nothing is taken until it is awaited"]
pub struct Acquire<'a, K: ?Sized, L: RateLimiter<K>, O> {
    pub(super) limiter: &'a L,
    pub(super) key: &'a K,
    pub(super) n: u64,
    pub(super) patience: Patience,
    pub(super) answer: fn(Result<Decision, L::Error>) -> O,
}

/// For how long to wait.
#[derive(Copy, Clone, Debug)]
pub(super) enum Patience {
    Endless,
    Within(Duration),
    Until(Instant),
}

impl<K: ?Sized, L: RateLimiter<K>, O> Acquire<'_, K, L, O> {
    /// Waits no longer than until `deadline`, by [tokio's clock](tokio::time::Instant), and for the
    /// answer to what it has asked for by then. If it is first polled after the deadline, it is
    /// denied and takes nothing.
    pub fn until(self, deadline: Instant) -> Self {
        Self { patience: Patience::Until(deadline), ..self }
    }

    /// Waits no longer than `longest` from when it is first polled; see [`until`](Self::until). With
    /// zero it takes what is there, and never waits.
    pub fn within(self, longest: Duration) -> Self {
        Self { patience: Patience::Within(longest), ..self }
    }
}

impl<'a, K, L, O> IntoFuture for Acquire<'a, K, L, O>
where
    K: Sync + ?Sized,
    L: RateLimiter<K>,
    O: 'a,
{
    type Output = O;
    type IntoFuture = Pin<Box<dyn Future<Output = O> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { limiter, key, n, patience, answer } = self;
        Box::pin(async move {
            let longest = match patience {
                Patience::Endless => None,
                Patience::Within(longest) => Some(longest),
                Patience::Until(deadline) => {
                    match deadline.checked_duration_since(Instant::now()) {
                        Some(left) => Some(left),
                        None => {
                            let peeked = limiter.decide(key, Operation::Peek(n)).await;
                            return answer(peeked.map(Decision::missed));
                        }
                    }
                }
            };
            answer(limiter.acquire_within(key, n, longest).await)
        })
    }
}

impl<K: ?Sized, L: RateLimiter<K>, O> fmt::Debug for Acquire<'_, K, L, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("n", &self.n)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

const MAX_ATTEMPTS: u32 = 20;

/// A timer may be so late.
pub(crate) const TIMER_LATENESS: Duration = Duration::from_micros(TIMER_LATENESS_MICROS);
pub(crate) const TIMER_LATENESS_MICROS: u64 = 2_000;

/// Asks, sleeps and asks again. `paused_for` returns for how long the key is paused.
pub(super) async fn ask_again<K, L>(
    limiter: &L,
    key: &K,
    n: u64,
    longest: Option<Duration>,
    paused_for: impl Fn() -> Duration + Send,
) -> Result<Decision, L::Error>
where
    K: Sync + ?Sized,
    L: RateLimiter<K> + ?Sized,
{
    let deadline = deadline_after(longest);
    for attempt in 1.. {
        if deadline.is_some_and(|deadline| deadline + TIMER_LATENESS < Instant::now()) {
            return Ok(limiter.decide(key, Operation::Peek(n)).await?.missed());
        }
        let left =
            deadline.map_or(Duration::MAX, |deadline| deadline - Instant::now().min(deadline));
        let receipt = Receipt::new().longest_delay(left);
        let decision = limiter.decide(key, Operation::Reserve(n, &receipt)).await?;
        if let (Outcome::Denied(_), Some(late)) = (decision.outcome, receipt.late_by()) {
            return Ok(decision.refused(late));
        }
        match decision.outcome {
            Outcome::Delayed(delay) => {
                // The place in the queue is given up if this is dropped.
                let give_back =
                    OnDrop(|| limiter.decide_later(key, Operation::Settle(0, &receipt)));
                sleep(delay).await;
                let paused_for = paused_for();
                if !paused_for.is_zero() {
                    // The departure has passed, and another one is asked for after the pause.
                    if attempt < MAX_ATTEMPTS {
                        continue;
                    }
                    return Ok(decision.refused(paused_for));
                }
                // If it cannot be told in time how things stand by now, it may go all the same.
                let peek = limiter.decide(key, Operation::Peek(0));
                let standing = match deadline {
                    Some(deadline) => timeout_at(deadline, peek).await.ok(),
                    None => Some(peek.await),
                };
                mem::forget(give_back);
                let standing = standing.and_then(Result::ok);
                let standing =
                    standing.unwrap_or(Decision { outcome: Outcome::Allowed, ..decision });
                return Ok(Decision { granted: decision.granted, ..standing });
            }
            Outcome::Denied(wait) if wait <= left && attempt < MAX_ATTEMPTS => {
                sleep((wait + jitter(wait)).min(left)).await;
            }
            _ => return Ok(decision),
        }
    }
    unreachable!("the attempts are bounded")
}

/// When a wait that begins now is over, if it ever is.
pub(crate) fn deadline_after(longest: Option<Duration>) -> Option<Instant> {
    longest.and_then(|longest| Instant::now().checked_add(longest))
}

/// Up to a tenth of `wait`, so that not all who were told the same ask again together.
fn jitter(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1_000;
    let micros = micros(wait) / 10_000;
    Duration::from_micros(micros.saturating_mul(random))
}

/// Does something when it is dropped.
pub(crate) struct OnDrop<F: Fn()>(pub(crate) F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
