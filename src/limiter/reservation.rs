use super::RateLimiter;
use crate::algorithm::Receipt;
use crate::decision::Decision;
use crate::operation::Operation;
use std::fmt;
use std::future::Future;
use std::ops::Deref;

/// Units that are taken as an estimate, to be [settled](Self::settle) when the true cost is known.
///
/// A reservation that is dropped settles what was [spent](Self::spend) and gives back the rest, also
/// if the request is cancelled or panics. Report what something costs as it goes, or settle with the
/// estimate once it is under way: what is neither spent nor settled is free.
///
/// Units are given back to where they were taken from; those that no longer count there are given to
/// nobody. The queue of a [`LeakyBucket`](crate::LeakyBucket) has promised departures to all behind a
/// place, so only the last place is taken again. Denied units are not held (see
/// [`decision`](Self::decision)): settling such a reservation charges the whole cost.
///
/// A [`reset`](crate::RateLimiter::reset) of the key, and limits that are replaced
/// [in proportion or anew](crate::Carry), do not know of reservations: what is given back afterwards
/// comes out of what others have taken since.
///
/// In process, `limiter.reserve(key, n)` makes one, and it is settled by
/// [`settle_now`](Self::settle_now):
///
/// ```
/// use tollgate::{Limiter, Quota, TokenBucket};
///
/// let tokens = Limiter::new(TokenBucket::new(Quota::per_minute(90_000)));
/// let reservation = tokens.reserve("tenant", 2_000);
/// if reservation.decision().is_allowed() {
///     // ... ask the language model: it takes 2,600 tokens ...
///     let after = reservation.settle_now(2_600);
///     assert_eq!(after.remaining(), 87_400);
/// }
/// ```
///
/// In Redis, and wherever a decision is awaited, it is `limiter.reserve(key, n).await?` (of the trait
/// [`RateLimiter`]) and [`settle(cost).await?`](Self::settle). A call that fails on its way is then
/// repeated, and counts once. What is dropped is given back by a task of tokio's, if there is a
/// runtime.
///
/// `P` and `Q` point to the limiter and the key: references, or, to move a reservation into a task
/// or a response body, an `Arc<Limiter<..>>` and a `String`, or a `Box` of a number: see
/// [`take`](Self::take) and [`take_now`](Self::take_now).
#[must_use = "a reservation that is dropped gives back what was not spent"]
pub struct Reservation<P, Q>
where
    P: Deref<Target: RateLimiter<Q::Target>>,
    Q: Deref,
{
    limiter: P,
    key: Q,
    receipt: Receipt,
    decision: Decision,
    /// What is still to be settled when this is dropped.
    unsettled: Option<u64>,
}

impl<P, Q> Reservation<P, Q>
where
    P: Deref<Target: RateLimiter<Q::Target>>,
    Q: Deref,
{
    /// Takes `n` units for `key`, if there are so many.
    ///
    /// # Errors
    ///
    /// Where the limiter could not decide.
    pub async fn take(
        limiter: P,
        key: Q,
        n: u64,
    ) -> Result<Self, <P::Target as RateLimiter<Q::Target>>::Error> {
        let receipt = Receipt::new();
        let decision = limiter.decide(&key, Operation::Reserve(n, &receipt)).await?;
        Ok(Self { limiter, key, receipt, decision, unsettled: Some(0) })
    }

    /// What the limiter answered.
    pub const fn decision(&self) -> Decision {
        self.decision
    }

    /// Notes that `n` units have been used. Nothing is sent to a store: what was spent is settled if the
    /// reservation is dropped. More than was reserved is charged then as [`settle`](Self::settle) does,
    /// and so is what was spent although it had been denied.
    ///
    /// ```
    /// use tollgate::{Limiter, Quota, TokenBucket};
    ///
    /// let tokens = Limiter::new(TokenBucket::new(Quota::per_minute(90_000)));
    /// let mut reservation = tokens.reserve("tenant", 4_000);
    /// for chunk_tokens in [1_500, 2_400] {
    ///     reservation.spend(chunk_tokens); // as the answer is streamed
    /// }
    /// assert_eq!(reservation.spent(), 3_900);
    /// drop(reservation); // the client has hung up
    /// assert_eq!(tokens.peek("tenant").remaining(), 86_100);
    /// ```
    pub const fn spend(&mut self, n: u64) {
        if let Some(spent) = &mut self.unsettled {
            *spent = spent.saturating_add(n);
        }
    }

    /// The units that were [spent](Self::spend) so far.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.unsettled.unwrap_or_default()
    }

    /// Corrects what was taken, so that it is `cost` in all, whatever was [spent](Self::spend):
    /// charges what is missing, which may leave a debt of one limit and no more, or gives back what
    /// is too much.
    ///
    /// A limiter in memory has settled when this returns. Any other settles once the future is
    /// polled or dropped; awaiting it only waits for the answer.
    ///
    /// # Errors
    ///
    /// Fails if the limiter cannot decide. Nothing is given back then.
    pub fn settle(
        mut self,
        cost: u64,
    ) -> impl Future<Output = Result<Decision, <P::Target as RateLimiter<Q::Target>>::Error>> {
        self.unsettled = None;
        let settled = self.limiter.decide_now(&self.key, Operation::Settle(cost, &self.receipt));
        if settled.is_none() {
            // Dropped before it is answered, it is settled in the background.
            self.unsettled = Some(cost);
        }
        async move {
            let mut this = self;
            if let Some(settled) = settled {
                return settled;
            }
            let settle = Operation::Settle(cost, &this.receipt);
            let settled = this.limiter.decide(&this.key, settle).await;
            this.unsettled = None;
            settled
        }
    }
}

impl<P, Q> Reservation<P, Q>
where
    P: Deref<Target: Immediate<Q::Target>>,
    Q: Deref,
{
    /// Takes `n` units for `key`, if there are so many, from a limiter in process.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tollgate::{Limiter, Quota, Reservation, TokenBucket};
    ///
    /// let tokens = Arc::new(Limiter::new(TokenBucket::new(Quota::per_minute(90_000))));
    /// let key = String::from("tenant");
    /// let reservation = Reservation::take_now(Arc::clone(&tokens), key, 2_000);
    /// let task = std::thread::spawn(move || reservation.settle_now(500));
    /// assert_eq!(task.join().unwrap().remaining(), 89_500);
    /// ```
    pub fn take_now(limiter: P, key: Q, n: u64) -> Self {
        let receipt = Receipt::new();
        let decision = limiter.decide_at_once(&key, Operation::Reserve(n, &receipt));
        Self { limiter, key, receipt, decision, unsettled: Some(0) }
    }

    /// As [`settle`](Self::settle), of a limiter in process.
    pub fn settle_now(mut self, cost: u64) -> Decision {
        self.unsettled = None;
        self.limiter.decide_at_once(&self.key, Operation::Settle(cost, &self.receipt))
    }
}

impl<P, Q> Drop for Reservation<P, Q>
where
    P: Deref<Target: RateLimiter<Q::Target>>,
    Q: Deref,
{
    fn drop(&mut self) {
        if let Some(cost) = self.unsettled
            && cost != self.receipt.units()
        {
            self.limiter.decide_later(&self.key, Operation::Settle(cost, &self.receipt));
        }
    }
}

impl<P, Q> fmt::Debug for Reservation<P, Q>
where
    P: Deref<Target: RateLimiter<Q::Target>>,
    Q: Deref,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("decision", &self.decision).finish_non_exhaustive()
    }
}

/// A limiter that decides at once: one in process.
///
/// ```
/// use tollgate::{Exceptions, Immediate, Limiter, Quota, TokenBucket};
///
/// let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)));
/// let limiter: Exceptions<String, _> = Exceptions::new(limiter);
/// assert!(limiter.check_now("alice", 1).is_allowed());
/// ```
pub trait Immediate<K: ?Sized>: RateLimiter<K> {
    /// Does `operation` for `key`.
    fn decide_at_once(&self, key: &K, operation: Operation<'_>) -> Decision;

    /// Takes `n` units, if there are so many.
    fn check_now(&self, key: &K, n: u64) -> Decision {
        self.decide_at_once(key, Operation::Check(n))
    }
}
