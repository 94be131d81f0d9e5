//! The limiter: an algorithm, and the store that it decides on.

use crate::algorithm::{Algorithm, Description};
use crate::decision::Decision;
use crate::operation::Operation;
use crate::store::Store;
use std::future::Future;

/// Decides for keys of type `K`: what generic code and the `tower` layer use.
///
/// Async in shape, so that it is the same trait for limits in process and limits elsewhere. A
/// limiter in process answers with a future that is ready, and its error cannot happen; where
/// the type is known, [`Limiter`]'s own methods need no `await`. To hand on a limiter that is in
/// an [`Arc`](std::sync::Arc), write `&*arc`.
///
/// ```
/// use tollgate::{Limiter, Quota, RateLimiter, SlidingLog};
///
/// async fn admitted<L: RateLimiter<str>>(limiter: &L, user: &str) -> Result<bool, L::Error> {
///     Ok(limiter.check(user).await?.is_allowed())
/// }
///
/// # #[tokio::main]
/// # async fn main() {
/// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(1)));
/// assert_eq!(admitted(&limiter, "alice").await, Ok(true));
/// assert_eq!(admitted(&limiter, "alice").await, Ok(false));
/// # }
/// ```
pub trait RateLimiter<K: ?Sized>: Describe {
    /// Why a decision could not be made. A refusal is not an error.
    type Error;

    /// Does `operation` for `key`. All the other methods are this one.
    ///
    /// # Errors
    ///
    /// Where the limiter's store cannot be asked, or does not answer.
    fn decide(
        &self,
        key: &K,
        operation: Operation,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send;

    /// Does `operation` for `key` if that needs no waiting; `None` where nothing was done and
    /// [`decide`](Self::decide) must be awaited.
    fn decide_now(&self, _key: &K, _operation: Operation) -> Option<Result<Decision, Self::Error>> {
        None
    }

    /// Takes one unit, if there is one.
    fn check(&self, key: &K) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.check_n(key, 1)
    }

    /// Takes `n` units, if there are so many.
    fn check_n(
        &self,
        key: &K,
        n: u64,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.decide(key, Operation::Check(n))
    }

    /// Tells what [`check`](Self::check) would say, and takes nothing.
    fn peek(&self, key: &K) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.decide(key, Operation::Peek(1))
    }

    /// Takes as many units as there are, up to `n`.
    fn take_up_to(
        &self,
        key: &K,
        n: u64,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.decide(key, Operation::TakeUpTo(n))
    }

    /// Charges `n` units, whether they are there or not.
    fn debit(&self, key: &K, n: u64) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.decide(key, Operation::Debit(n))
    }

    /// Gives `n` units back.
    fn refund(
        &self,
        key: &K,
        n: u64,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.decide(key, Operation::Refund(n))
    }

    /// Forgets all that was taken.
    fn reset(&self, key: &K) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.decide(key, Operation::Reset)
    }
}

/// Tells of the limits that a limiter applies, without asking it for a decision.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a limiter",
    note = "an algorithm or a policy becomes one by `Limiter::new(..)`; for one in an `Arc` there is \
            `RateLimitLayer::shared`, or `&*arc`"
)]
pub trait Describe: Send + Sync {
    /// The limits, in the order that [`Decision::binding`] counts in; at least one.
    fn describe(&self) -> Vec<Description>;
}

/// Decides by one algorithm, with its states in one store.
///
/// ```
/// use tollgate::{Limiter, Quota, TokenBucket};
///
/// let limiter = Limiter::new(TokenBucket::new(Quota::per_minute(100)).burst(20));
/// if limiter.check("alice").is_allowed() {
///     // serve her
/// }
/// ```
///
/// In process, any `Hash` type is a key, borrowed: strings, numbers, addresses, tuples of them.
/// One limiter's keys are one namespace: `"1"` and `1` are two keys, `"a"` and
/// `String::from("a")` one. In Redis, a key is what it writes: see `RedisKey`.
///
/// Share a limiter between threads by reference or in an [`Arc`](std::sync::Arc). As the field
/// of a struct its type is `Limiter<TokenBucket>`, or `Limiter<Policy>` for limits that are
/// read from a text. With a clock of its own, `Limiter<Policy, Memory<PolicyState, C>>`, where
/// `C` may be `Arc<dyn Clock>`.
#[derive(Debug)]
pub struct Limiter<A: Algorithm, S = DefaultStore<A>> {
    algorithm: A,
    store: S,
}

#[cfg(feature = "memory")]
type DefaultStore<A> = crate::store::Memory<<A as Algorithm>::State>;

/// Without a store in the crate, a limiter's type must name one.
#[cfg(not(feature = "memory"))]
type DefaultStore<A> = std::marker::PhantomData<A>;

impl<A: Algorithm, S> Limiter<A, S> {
    /// A limiter that decides by `algorithm` on the states in `store`, of the crate's or your
    /// own.
    pub const fn with_store(algorithm: A, store: S) -> Self {
        Self { algorithm, store }
    }

    /// The algorithm.
    pub const fn algorithm(&self) -> &A {
        &self.algorithm
    }
}

impl<A: Algorithm, S: Send + Sync> Describe for Limiter<A, S> {
    fn describe(&self) -> Vec<Description> {
        self.algorithm.describe()
    }
}

impl<A, S, K> RateLimiter<K> for Limiter<A, S>
where
    A: Algorithm,
    S: Store<A, K>,
    K: ?Sized,
{
    type Error = S::Error;

    fn decide(
        &self,
        key: &K,
        operation: Operation,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send {
        self.store.decide(&self.algorithm, key, operation)
    }

    fn decide_now(&self, key: &K, operation: Operation) -> Option<Result<Decision, Self::Error>> {
        self.store.decide_now(&self.algorithm, key, operation)
    }
}

#[cfg(feature = "memory")]
mod in_process {
    use super::{Algorithm, Decision, Limiter, Operation};
    use crate::clock::{Clock, MonotonicClock};
    use crate::store::{Direct, Memory};
    use std::hash::Hash;

    impl<A: Algorithm> Limiter<A, Memory<A::State>> {
        /// A limiter in process, for any number of keys.
        #[must_use]
        pub fn new(algorithm: A) -> Self {
            Self::with_clock(algorithm, MonotonicClock::default())
        }
    }

    impl<A: Algorithm> Limiter<A, Direct<A::State>> {
        /// A limiter in process without keys: one budget for all callers.
        ///
        /// ```
        /// use tollgate::{Limiter, Quota, TokenBucket};
        ///
        /// let limiter = Limiter::direct(TokenBucket::new(Quota::per_second(10)));
        /// assert!(limiter.check().is_allowed());
        /// ```
        #[must_use]
        pub fn direct(algorithm: A) -> Self {
            Self::direct_with_clock(algorithm, MonotonicClock::default())
        }
    }

    /// In process, every decision is made at once and cannot fail. On a key that is in memory
    /// none allocates, but for the instants that a log has to keep.
    impl<A: Algorithm, C: Clock> Limiter<A, Memory<A::State, C>> {
        /// A limiter in process that takes its time from `clock`.
        #[must_use]
        pub fn with_clock(algorithm: A, clock: C) -> Self {
            Self { algorithm, store: Memory::new(clock) }
        }

        /// The same limiter for no more than so many keys at a time: a bound on its memory,
        /// whatever keys there are.
        ///
        /// When there are as many, and none of those looked at is idle, all further keys together
        /// have the budget of one: what one of them takes or gives back, it takes from all and
        /// gives to all, and a [`reset`](Self::reset) of one changes nothing. Keys that are in
        /// memory are limited as ever. A key that gets a place later starts with no more than that
        /// one budget has left.
        ///
        /// ```
        /// # use tollgate::{FixedWindow, Limiter, ManualClock, Quota, Tick};
        /// # let clock = ManualClock::new(Tick::from_micros(0));
        /// let limiter = Limiter::with_clock(FixedWindow::new(Quota::per_minute(2)), clock).max_keys(1);
        /// assert!(limiter.check("alice").is_allowed());
        /// assert!(limiter.check_n("mallory", 2).is_allowed());
        /// assert!(!limiter.check("trudy").is_allowed()); // mallory has spent it
        /// assert!(limiter.check("alice").is_allowed());
        /// ```
        ///
        /// # Panics
        ///
        /// Where `keys` is 0, and where the limiter was asked for a decision before.
        #[must_use]
        pub fn max_keys(self, keys: usize) -> Self {
            Self { store: self.store.max_keys(keys), ..self }
        }

        /// Takes one unit for `key`, if there is one.
        ///
        /// ```
        /// # use tollgate::{Limiter, Quota, SlidingLog};
        /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(2)));
        /// assert_eq!(limiter.check("alice").remaining(), 1);
        /// assert_eq!(limiter.check("alice").remaining(), 0);
        /// assert!(!limiter.check("alice").is_allowed());
        /// assert!(limiter.check("bob").is_allowed());
        /// ```
        pub fn check<K: Hash + ?Sized>(&self, key: &K) -> Decision {
            self.check_n(key, 1)
        }

        /// Takes `n` units for `key`, if there are so many; otherwise none.
        ///
        /// ```
        /// # use tollgate::{Limiter, Outcome, Quota, SlidingLog};
        /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
        /// assert!(limiter.check_n("alice", 8).is_allowed());
        /// assert!(!limiter.check_n("alice", 5).is_allowed()); // free of charge
        /// assert_eq!(limiter.check_n("alice", 1).remaining(), 1);
        /// assert_eq!(limiter.check_n("alice", 11).outcome(), Outcome::Never);
        /// ```
        pub fn check_n<K: Hash + ?Sized>(&self, key: &K, n: u64) -> Decision {
            self.decide(key, Operation::Check(n))
        }

        /// Tells what [`check`](Self::check) would say, and takes nothing.
        ///
        /// ```
        /// # use tollgate::{Limiter, Quota, SlidingLog};
        /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(1)));
        /// assert!(limiter.peek("alice").is_allowed());
        /// assert_eq!(limiter.peek("alice").remaining(), 1);
        /// ```
        pub fn peek<K: Hash + ?Sized>(&self, key: &K) -> Decision {
            self.decide(key, Operation::Peek(1))
        }

        /// Takes as many units as there are, up to `n`; refused only where there is not one.
        /// [`Decision::granted`] tells how many it took.
        ///
        /// ```
        /// # use tollgate::{Limiter, Quota, SlidingLog};
        /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
        /// assert_eq!(limiter.take_up_to("alice", 7).granted(), 7);
        /// assert_eq!(limiter.take_up_to("alice", 7).granted(), 3);
        /// assert!(!limiter.take_up_to("alice", 7).is_allowed());
        /// ```
        pub fn take_up_to<K: Hash + ?Sized>(&self, key: &K, n: u64) -> Decision {
            self.decide(key, Operation::TakeUpTo(n))
        }

        /// Charges `n` units, whether they are there or not: for costs that are known only
        /// afterwards. What was not there is a debt. It is never refused.
        ///
        /// A bucket works a debt off before anything is allowed again. In a window or a log, units
        /// on top count as long as any others do, and are then forgotten.
        ///
        /// A bucket's debt is at most what it works off in fifty years; other algorithms count
        /// up to 2^45 - 1 units.
        ///
        /// ```
        /// # use tollgate::{Limiter, Quota, TokenBucket};
        /// # use std::time::Duration;
        /// let limiter = Limiter::new(TokenBucket::new(Quota::per_minute(10)));
        /// let after = limiter.debit("alice", 15);
        /// assert_eq!(after.remaining(), 0);
        /// assert_eq!(after.next_after(), Some(Duration::from_secs(36))); // 6 units of 6 s
        /// ```
        ///
        /// An estimate, corrected when the true cost is known:
        ///
        /// ```
        /// # use tollgate::{Limiter, Quota, TokenBucket};
        /// let tokens = Limiter::new(TokenBucket::new(Quota::per_minute(90_000)));
        /// let (estimate, actual) = (2_000, 2_600);
        /// if tokens.check_n("tenant", estimate).is_allowed() {
        ///     // ... ask the language model ...
        ///     let after = if actual > estimate {
        ///         tokens.debit("tenant", actual - estimate)
        ///     } else {
        ///         tokens.refund("tenant", estimate - actual)
        ///     };
        ///     assert_eq!(after.remaining(), 87_400);
        /// }
        /// ```
        pub fn debit<K: Hash + ?Sized>(&self, key: &K, n: u64) -> Decision {
            self.decide(key, Operation::Debit(n))
        }

        /// Gives `n` units back: never more than were taken, and in an algorithm with windows
        /// only into the present one.
        ///
        /// ```
        /// # use tollgate::{Limiter, Quota, SlidingLog};
        /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
        /// assert_eq!(limiter.check_n("alice", 8).remaining(), 2);
        /// assert_eq!(limiter.refund("alice", 3).remaining(), 5);
        /// assert_eq!(limiter.refund("alice", 99).remaining(), 10);
        /// ```
        pub fn refund<K: Hash + ?Sized>(&self, key: &K, n: u64) -> Decision {
            self.decide(key, Operation::Refund(n))
        }

        /// Forgets all that was taken.
        ///
        /// ```
        /// # use tollgate::{Limiter, Quota, SlidingLog};
        /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
        /// assert_eq!(limiter.check_n("alice", 10).remaining(), 0);
        /// assert_eq!(limiter.reset("alice").remaining(), 10);
        /// ```
        pub fn reset<K: Hash + ?Sized>(&self, key: &K) -> Decision {
            self.decide(key, Operation::Reset)
        }

        /// Does `operation` for `key`. All the other methods are this one.
        pub fn decide<K: Hash + ?Sized>(&self, key: &K, operation: Operation) -> Decision {
            self.store.apply(&self.algorithm, key, operation)
        }

        /// How many keys' states are in memory, those included that say nothing any more and
        /// have not been dropped yet.
        #[must_use]
        pub fn len(&self) -> usize {
            self.store.len()
        }

        /// Whether no key's state is in memory.
        #[must_use]
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }

        /// Drops the states that say nothing any more and gives the memory back: for after a
        /// peak. It is never necessary, and takes time in proportion to the keys in memory.
        ///
        /// ```
        /// # use std::time::Duration;
        /// # use tollgate::{Limiter, ManualClock, Quota, SlidingLog, Tick};
        /// let clock = ManualClock::new(Tick::from_micros(0));
        /// let limiter = Limiter::with_clock(SlidingLog::new(Quota::per_minute(10)), clock.clone());
        /// assert!(limiter.check("alice").is_allowed());
        /// clock.advance(Duration::from_secs(60));
        /// limiter.shrink_to_fit();
        /// assert!(limiter.is_empty());
        /// ```
        pub fn shrink_to_fit(&self) {
            self.store.shrink_to_fit(&self.algorithm);
        }
    }

    /// Without keys: each method does what the one of the same name does for a key.
    impl<A: Algorithm, C: Clock> Limiter<A, Direct<A::State, C>> {
        /// A limiter without keys that takes its time from `clock`.
        #[must_use]
        pub fn direct_with_clock(algorithm: A, clock: C) -> Self {
            Self { algorithm, store: Direct::new(clock) }
        }

        /// Takes one unit, if there is one.
        pub fn check(&self) -> Decision {
            self.check_n(1)
        }

        /// Takes `n` units, if there are so many; otherwise none.
        pub fn check_n(&self, n: u64) -> Decision {
            self.decide(Operation::Check(n))
        }

        /// Tells what [`check`](Self::check) would say, and takes nothing.
        pub fn peek(&self) -> Decision {
            self.decide(Operation::Peek(1))
        }

        /// Takes as many units as there are, up to `n`.
        pub fn take_up_to(&self, n: u64) -> Decision {
            self.decide(Operation::TakeUpTo(n))
        }

        /// Charges `n` units, whether they are there or not.
        pub fn debit(&self, n: u64) -> Decision {
            self.decide(Operation::Debit(n))
        }

        /// Gives `n` units back.
        pub fn refund(&self, n: u64) -> Decision {
            self.decide(Operation::Refund(n))
        }

        /// Forgets all that was taken.
        pub fn reset(&self) -> Decision {
            self.decide(Operation::Reset)
        }

        /// Does `operation`. All the other methods are this one.
        pub fn decide(&self, operation: Operation) -> Decision {
            self.store.apply(&self.algorithm, operation)
        }
    }
}
