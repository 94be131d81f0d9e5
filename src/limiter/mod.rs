//! The limiter: an algorithm, and the store that it decides on.

#[cfg(feature = "tokio")]
mod acquire;
#[cfg(feature = "memory")]
mod exceptions;
#[cfg(feature = "memory")]
mod in_process;
#[cfg(feature = "redis")]
mod in_redis;
mod limits;
mod live;
mod per_key;
mod reservation;

#[cfg(feature = "tokio")]
pub use acquire::Acquire;
#[cfg(any(all(feature = "memory", feature = "tokio"), feature = "redis-cluster"))]
pub(crate) use acquire::OnDrop;
#[cfg(feature = "tokio")]
use acquire::Patience;
#[cfg(all(feature = "memory", feature = "tokio"))]
pub(crate) use acquire::{TIMER_LATENESS, TIMER_LATENESS_MICROS};
#[cfg(feature = "memory")]
pub use exceptions::Exceptions;
pub use limits::{Limits, Source, StoreFor, Uniform};
pub use live::{Carry, Live};
pub use per_key::PerKey;
pub use reservation::{Immediate, Reservation};

use crate::algorithm::{Algorithm, Description};
use crate::decision::Decision;
use crate::operation::Operation;
use crate::store::Store;
use std::future::Future;
use std::sync::Arc;
#[cfg(feature = "tokio")]
use std::time::Duration;

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
        operation: Operation<'_>,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send;

    /// Does `operation` for `key` if that needs no waiting; `None` where nothing was done and
    /// [`decide`](Self::decide) must be awaited.
    fn decide_now(
        &self,
        _key: &K,
        _operation: Operation<'_>,
    ) -> Option<Result<Decision, Self::Error>> {
        None
    }

    /// The limits that hold for `key` now, where they are not the same for all keys and for ever;
    /// `None` where they are what [`describe`](Describe::describe) tells.
    fn describe_for(&self, _key: &K) -> Option<Vec<Description>> {
        None
    }

    /// Does `operation` for `key` without anybody waiting for it: what a value that is dropped can
    /// still do. Unless a limiter does more, what cannot be done [at once](Self::decide_now) is not
    /// done.
    fn decide_later(&self, key: &K, operation: Operation<'_>) {
        let _ = self.decide_now(key, operation);
    }

    /// Waits for `n` units, no longer than `longest` if that is given: what
    /// [`acquire`](Self::acquire) does.
    #[cfg(feature = "tokio")]
    fn acquire_within(
        &self,
        key: &K,
        n: u64,
        longest: Option<Duration>,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send
    where
        K: Sync,
    {
        acquire::ask_again(self, key, n, longest, || Duration::ZERO)
    }

    /// Waits for one unit.
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")] {
    /// # use std::time::Duration;
    /// use tollgate::{Quota, RateLimiter, Redis, TokenBucket};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tollgate::Error> {
    /// let redis = Redis::connect("redis://127.0.0.1/").await?;
    /// let limiter = redis.limiter("outbound", TokenBucket::new(Quota::per_second(10)))?;
    /// let decision = limiter.acquire("alice").within(Duration::from_secs(1)).await?;
    /// # Ok(())
    /// # }
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    fn acquire<'a>(&'a self, key: &'a K) -> Acquire<'a, K, Self, Result<Decision, Self::Error>>
    where
        Self: Sized,
    {
        self.acquire_n(key, 1)
    }

    /// Waits for `n` units.
    #[cfg(feature = "tokio")]
    fn acquire_n<'a>(
        &'a self,
        key: &'a K,
        n: u64,
    ) -> Acquire<'a, K, Self, Result<Decision, Self::Error>>
    where
        Self: Sized,
    {
        Acquire { limiter: self, key, n, patience: Patience::Endless, answer: |decided| decided }
    }

    /// Takes `n` units as an estimate, if there are so many, to be [settled](Reservation::settle)
    /// when the true cost is known. For one that is moved elsewhere, see [`Reservation::take`].
    fn reserve<'a>(
        &'a self,
        key: &'a K,
        n: u64,
    ) -> impl Future<Output = Result<Reservation<&'a Self, &'a K>, Self::Error>> + Send
    where
        Self: Sized,
        K: Sync,
    {
        Reservation::take(self, key, n)
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

    /// Tells whether [`check`](Self::check) would admit, and how things stand, and takes nothing.
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

    /// Charges `n` units, whether they are there or not: see [`Operation::Debit`].
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
    /// The limits, in the order that [`Decision::binding`] counts in; at least one, unless they
    /// differ from key to key.
    fn describe(&self) -> Vec<Description>;
}

/// Decides by one algorithm, with its states in one store.
///
/// Most are made by `Limiter::new`. Others: `direct`, without keys; `live`, with limits that can be
/// replaced; `per_key`, with other limits for some keys; `restore`, from a snapshot; `with_store`,
/// for a store that you name; and `Redis::limiter`, for states in Redis.
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
pub struct Limiter<L: Source, S = DefaultStore<L>> {
    limits: L,
    store: S,
}

/// What is kept for a key.
#[cfg(feature = "memory")]
type State<L> = <<L as Source>::Algorithm as Algorithm>::State;

#[cfg(feature = "memory")]
type DefaultStore<L> = crate::store::Memory<State<L>>;

/// Without a store in the crate, a limiter's type must name one.
#[cfg(not(feature = "memory"))]
type DefaultStore<L> = std::marker::PhantomData<L>;

impl<L: Source, S> Limiter<L, S> {
    /// A limiter that decides by an algorithm, or another source of `limits`, on the states in
    /// `store`, of the crate's or your own. (On Redis, `Redis::limiter` makes one.) Limits that differ from key to key do not compile with a
    /// [`Memory`](crate::Memory), which would forget states too early:
    ///
    /// ```compile_fail,E0277
    /// use tollgate::{Limiter, Memory, MonotonicClock, PerKey, Quota, TokenBucket};
    ///
    /// static FREE: TokenBucket = TokenBucket::new(Quota::per_hour(10));
    /// let limits = PerKey::new(|_: &str| &FREE);
    /// let limiter = Limiter::with_store(limits, Memory::new(MonotonicClock::default()));
    /// ```
    pub const fn with_store(limits: L, store: S) -> Self
    where
        S: StoreFor<L>,
    {
        Self { limits, store }
    }
}

impl<A: Algorithm, S> Limiter<A, S> {
    /// The algorithm.
    pub const fn algorithm(&self) -> &A {
        &self.limits
    }
}

impl<A: Algorithm, S> Limiter<Live<A>, S> {
    /// The limits that hold now.
    pub fn algorithm(&self) -> Arc<A> {
        self.limits.get()
    }

    /// Replaces the limits, from the next decision on. What is used stays used: see
    /// [`Carry::AsIs`]. In a [`Policy`](crate::Policy) of several limits give each a name, as those without one
    /// whose numbers change are known by their order only.
    ///
    /// In Redis, other instances may still decide by the old limits for a while, and a limit of
    /// another algorithm starts anew; a [`Policy`](crate::Policy) in process carries on there too.
    pub fn replace(&self, algorithm: A) {
        self.limits.replace(algorithm, |_, _| ());
    }
}

impl<L: Source, S: Send + Sync> Describe for Limiter<L, S> {
    fn describe(&self) -> Vec<Description> {
        self.limits.describe()
    }
}

impl<L, S, K> RateLimiter<K> for Limiter<L, S>
where
    L: Limits<K>,
    S: Store<L::Algorithm, K>,
    K: Sync + ?Sized,
{
    type Error = S::Error;

    async fn decide(&self, key: &K, operation: Operation<'_>) -> Result<Decision, Self::Error> {
        // At once if it can be, as limits are not replaced meanwhile then.
        if let Some(decided) = self.decide_now(key, operation) {
            return decided;
        }
        self.store.decide(&self.limits.get(key), key, operation).await
    }

    fn decide_now(
        &self,
        key: &K,
        operation: Operation<'_>,
    ) -> Option<Result<Decision, Self::Error>> {
        self.store.decide_now(&self.limits, key, operation)
    }

    fn decide_later(&self, key: &K, operation: Operation<'_>) {
        self.store.decide_later(&self.limits, key, operation);
    }

    #[cfg(feature = "tokio")]
    async fn acquire_within(
        &self,
        key: &K,
        n: u64,
        longest: Option<Duration>,
    ) -> Result<Decision, Self::Error> {
        let deadline = acquire::deadline_after(longest);
        match self.store.acquire_in_turn(&self.limits, key, n, deadline) {
            Some(turn) => Ok(turn.await),
            None => {
                let paused_for = || self.store.paused_for(key);
                acquire::ask_again(self, key, n, longest, paused_for).await
            }
        }
    }

    fn describe_for(&self, key: &K) -> Option<Vec<Description>> {
        self.limits.describe_for(key)
    }
}
