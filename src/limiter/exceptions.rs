use super::{Describe, Immediate, RateLimiter};
use crate::algorithm::Description;
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::{Decision, Outcome};
use crate::math::micros;
use crate::operation::Operation;
use dashmap::{DashMap, DashSet};
use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// A limiter with a list of keys that are blocked for a time, and one of keys that are exempt.
///
/// It goes around any limiter, in process or not, and is one itself: for a layer, say. The lists are
/// of this process, and hold owned keys of type `K`. A key that is in neither list is the limiter's;
/// one that is exempt is always admitted, and charged nothing; one that is blocked is refused until
/// it no longer is, and charged nothing either. Exempt comes first.
///
/// Debits, refunds and resets go to the limiter, whatever the key; so do settlements, but for those of
/// an exempt key that has nothing reserved. Who is waiting already when a key is blocked still gets
/// what it waits for. The lists are forgotten when the process ends.
///
/// In process, [`Immediate::check_now`] needs no `await`.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{Exceptions, Limiter, Quota, RateLimiter, TokenBucket};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limiter = Limiter::new(TokenBucket::new(Quota::per_second(1)));
/// let limiter: Exceptions<String, _> = Exceptions::new(limiter);
/// limiter.exempt("probe".to_owned());
/// limiter.block("mallory".to_owned(), Duration::from_secs(3600));
///
/// for _ in 0..10 {
///     assert!(limiter.check("probe").await.is_ok_and(|decision| decision.is_allowed()));
/// }
/// let Ok(refused) = limiter.check("mallory").await;
/// assert!(refused.retry_after() > Some(Duration::from_secs(3590)));
/// # }
/// ```
#[derive(Debug)]
pub struct Exceptions<K: Eq + Hash, L, C = MonotonicClock> {
    limiter: L,
    exempt: DashSet<K>,
    blocked_until: DashMap<K, Tick>,
    /// With so many blocked keys, those are dropped that no longer are.
    sweep_at: AtomicUsize,
    clock: C,
}

const SMALLEST_SWEEP: usize = 64;

impl<K: Eq + Hash, L> Exceptions<K, L> {
    /// The same limiter without any exceptions so far.
    pub fn new(limiter: L) -> Self {
        Self::with_clock(limiter, MonotonicClock::default())
    }
}

impl<K: Eq + Hash, L, C: Clock> Exceptions<K, L, C> {
    /// The same limiter, with a clock that tells how long keys are blocked.
    pub fn with_clock(limiter: L, clock: C) -> Self {
        Self {
            limiter,
            exempt: DashSet::new(),
            blocked_until: DashMap::new(),
            sweep_at: AtomicUsize::new(SMALLEST_SWEEP),
            clock,
        }
    }

    /// The limiter without exceptions.
    pub const fn limiter(&self) -> &L {
        &self.limiter
    }

    /// Admits whatever is asked for `key`, until [`no_exception`](Self::no_exception).
    pub fn exempt(&self, key: K) {
        self.exempt.insert(key);
    }

    /// Refuses whatever is asked for `key`, from now on for so long; instead of for how long it was
    /// blocked before.
    pub fn block(&self, key: K, duration: Duration) {
        let now = self.clock.now();
        if self.blocked_until.len() >= self.sweep_at.load(Relaxed) {
            self.blocked_until.retain(|_, until| *until > now);
            self.sweep_at.store((2 * self.blocked_until.len()).max(SMALLEST_SWEEP), Relaxed);
        }
        let micros = micros(duration);
        self.blocked_until.insert(key, now.saturating_add(micros));
    }

    /// Takes `key` out of both lists.
    pub fn no_exception<Q: Hash + Eq + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.exempt.remove(key);
        self.blocked_until.remove(key);
    }

    /// The decision on a key that is an exception.
    fn exception<Q>(&self, key: &Q, operation: Operation<'_>) -> Option<Decision>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
        L: RateLimiter<Q>,
    {
        if let Operation::Settle(_, receipt) = operation
            && receipt.units() == 0
            && self.exempt.contains(key)
        {
            return Some(self.admitted(key, 0));
        }
        let (Operation::Check(n @ 1..)
        | Operation::Peek(n @ 1..)
        | Operation::TakeUpTo(n @ 1..)
        | Operation::Reserve(n @ 1.., _)) = operation
        else {
            return None;
        };
        let blocked_for = if self.exempt.contains(key) {
            None
        } else {
            let until = self.blocked_until.get(key).map(|until| *until)?;
            match until.micros_since(self.clock.now()) {
                0 => return None,
                micros => Some(micros),
            }
        };
        let granted = if matches!(operation, Operation::Peek(_)) { 0 } else { n };
        let admitted = self.admitted(key, granted);
        Some(match blocked_for {
            None => admitted,
            Some(micros) => Decision {
                outcome: Outcome::Denied(Duration::from_micros(micros)),
                granted: 0,
                remaining: 0,
                reset_after_micros: micros,
                next_after_micros: Some(micros),
                ..admitted
            },
        })
    }

    fn admitted<Q: ?Sized>(&self, key: &Q, granted: u64) -> Decision
    where
        L: RateLimiter<Q>,
    {
        let limits = self.limiter.describe_for(key).unwrap_or_else(|| self.limiter.describe());
        let limits = limits.iter().map(|limit| limit.limit).enumerate();
        let (binding, limit) = limits.min_by_key(|&(_, limit)| limit).unwrap_or((0, granted));
        Decision {
            decided_at: self.clock.now(),
            outcome: Outcome::Allowed,
            granted,
            limit,
            remaining: limit,
            reset_after_micros: 0,
            next_after_micros: None,
            binding,
        }
    }
}

impl<K, L, C> Describe for Exceptions<K, L, C>
where
    K: Eq + Hash + Send + Sync,
    L: Describe,
    C: Clock,
{
    fn describe(&self) -> Vec<Description> {
        self.limiter.describe()
    }
}

impl<K, L, C, Q> RateLimiter<Q> for Exceptions<K, L, C>
where
    K: Borrow<Q> + Eq + Hash + Send + Sync,
    L: RateLimiter<Q>,
    C: Clock,
    Q: Hash + Eq + Sync + ?Sized,
{
    type Error = L::Error;

    async fn decide(&self, key: &Q, operation: Operation<'_>) -> Result<Decision, L::Error> {
        match self.exception(key, operation) {
            Some(decision) => Ok(decision),
            None => self.limiter.decide(key, operation).await,
        }
    }

    fn decide_now(&self, key: &Q, operation: Operation<'_>) -> Option<Result<Decision, L::Error>> {
        match self.exception(key, operation) {
            Some(decision) => Some(Ok(decision)),
            None => self.limiter.decide_now(key, operation),
        }
    }

    fn decide_later(&self, key: &Q, operation: Operation<'_>) {
        if self.exception(key, operation).is_none() {
            self.limiter.decide_later(key, operation);
        }
    }

    #[cfg(feature = "tokio")]
    async fn acquire_within(
        &self,
        key: &Q,
        n: u64,
        longest: Option<Duration>,
    ) -> Result<Decision, L::Error> {
        match self.exception(key, Operation::Check(n)) {
            Some(decision) => Ok(decision),
            None => self.limiter.acquire_within(key, n, longest).await,
        }
    }

    fn describe_for(&self, key: &Q) -> Option<Vec<Description>> {
        self.limiter.describe_for(key)
    }
}

impl<K, L, C, Q> Immediate<Q> for Exceptions<K, L, C>
where
    K: Borrow<Q> + Eq + Hash + Send + Sync,
    L: Immediate<Q>,
    C: Clock,
    Q: Hash + Eq + Sync + ?Sized,
{
    fn decide_at_once(&self, key: &Q, operation: Operation<'_>) -> Decision {
        let exception = self.exception(key, operation);
        exception.unwrap_or_else(|| self.limiter.decide_at_once(key, operation))
    }
}
