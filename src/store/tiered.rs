use super::memory::Memory;
#[cfg(feature = "tokio")]
use super::queue::{self, Queued, Queues};
#[cfg(feature = "serde")]
use super::snapshot::Snapshot;
use super::{InProcess, Store};
use crate::algorithm::{
    Admission, Algorithm, Binding, Departure, Description, Origin, Standing, Wait,
};
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::Decision;
#[cfg(feature = "serde")]
use crate::error::Error;
use crate::limiter::{Limits, Source, StoreFor};
use crate::operation::Operation;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::hash::Hash;
use std::sync::Arc;
#[cfg(feature = "tokio")]
use tokio::time::Instant;

/// The states of any number of keys in this process, for limits that differ from key to key or
/// from call to call. Its clones are one store.
///
/// It is a [`Memory`] that notes, for each key, until when its state says something under the limits
/// that it was taken by, so that no other limits can drop it: 8 bytes more a key.
///
/// ```
/// use tollgate::{Limiter, Policy, TieredMemory};
///
/// let store = TieredMemory::default();
/// let free: Policy = "10/hour".parse()?;
/// let pro: Policy = "1000/hour".parse()?;
/// let free = Limiter::with_store(free, store.clone());
/// let pro = Limiter::with_store(pro, store.clone());
///
/// assert!(free.check_n("alice", 10).is_allowed());
/// assert!(!free.check("alice").is_allowed());
/// // Alice pays: what she has used stays used.
/// assert_eq!(pro.check("alice").remaining(), 989);
/// # Ok::<(), tollgate::Error>(())
/// ```
#[derive(Debug)]
pub struct TieredMemory<T, C = MonotonicClock>(Arc<Shared<T, C>>);

#[derive(Debug)]
struct Shared<T, C> {
    memory: Memory<Dated<T>, C>,
    #[cfg(feature = "tokio")]
    queues: Queues<T>,
}

impl<T: Default, C: Clock> TieredMemory<T, C> {
    /// A store without any state, that takes its time from `clock`.
    #[must_use]
    pub fn new(clock: C) -> Self {
        Self::of(Memory::new(clock))
    }

    fn of(memory: Memory<Dated<T>, C>) -> Self {
        Self(Arc::new(Shared {
            memory,
            #[cfg(feature = "tokio")]
            queues: Queues::new(),
        }))
    }
}

impl<T: Clone + Default, C: Clock> TieredMemory<T, C> {
    /// A store for no more than so many keys at a time: see
    /// [`Limiter::max_keys`](crate::Limiter::max_keys). The budget that further keys share is one for
    /// all tiers: what a key of a large limit takes from it counts for those of small ones too. Keep a
    /// clone of the store to [reset](Self::reset_shared) it.
    ///
    /// # Panics
    ///
    /// If `keys` is 0.
    #[must_use]
    pub fn with_max_keys(clock: C, keys: usize) -> Self
    where
        T: Send + Sync,
    {
        Self::of(Memory::new(clock).max_keys(keys))
    }
}

impl<T: Clone + Default + Send + Sync, C: Clock> TieredMemory<T, C> {
    /// Drops the states that say nothing any more and gives the memory back: see
    /// [`Limiter::shrink_to_fit`](crate::Limiter::shrink_to_fit).
    pub fn shrink_to_fit(&self) {
        for shard in 0..self.0.memory.shard_count() {
            self.0.memory.shrink(shard, |state, now| state.fresh_after(now) > 0);
        }
        self.0.memory.shrink_shared(|state, now| state.fresh_after(now) > 0);
        #[cfg(feature = "tokio")]
        self.0.queues.shrink_to_fit(self.0.memory.now());
    }

    /// Resets the budget that all keys without a place share: see
    /// [`Limiter::reset_shared`](crate::Limiter::reset_shared).
    pub fn reset_shared(&self) {
        self.0.memory.reset_shared();
    }
}

#[cfg(feature = "serde")]
impl<T: Clone + Default + Send, C: Clock> TieredMemory<T, C> {
    /// All that is used, so that it can be [restored](Self::restore) after a restart: see
    /// [`Limiter::snapshot`](crate::Limiter::snapshot).
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<Dated<T>> {
        self.0.memory.snapshot(|state, now| state.fresh_after(now) > 0)
    }

    /// A store in which as much is used as there was when the snapshot was taken: see
    /// [`Limiter::restore`](crate::Limiter::restore). Which limits it will be asked for is not known
    /// here: they must be able to read the states.
    ///
    /// ```
    /// use tollgate::{Limiter, MonotonicClock, Policy, TieredMemory};
    ///
    /// let store = TieredMemory::default();
    /// let limiter = Limiter::with_store("10/hour".parse::<Policy>()?, store.clone());
    /// assert!(limiter.check_n("alice", 10).is_allowed());
    /// let text = serde_json::to_string(&store.snapshot())?;
    ///
    /// let snapshot = serde_json::from_str(&text)?;
    /// let store = TieredMemory::restore(MonotonicClock::default(), snapshot)?;
    /// let limiter = Limiter::with_store("10/hour".parse::<Policy>()?, store);
    /// assert!(!limiter.check("alice").is_allowed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Limiter::restore`](crate::Limiter::restore), but nothing is known of the states: one
    /// that was written by other limits is not noticed, nor one that was written later than the
    /// clock, whose key stands still until then.
    pub fn restore(clock: C, snapshot: Snapshot<Dated<T>>) -> Result<Self, Error> {
        Ok(Self::of(Memory::restore(clock, snapshot)?))
    }

    /// The same for no more than so many keys at a time: see
    /// [`Limiter::max_keys`](crate::Limiter::max_keys).
    ///
    /// # Errors
    ///
    /// As [`restore`](Self::restore).
    ///
    /// # Panics
    ///
    /// Where `keys` is 0.
    pub fn restore_with_max_keys(
        clock: C,
        keys: usize,
        snapshot: Snapshot<Dated<T>>,
    ) -> Result<Self, Error> {
        Ok(Self::of(Memory::restore(clock, snapshot)?.max_keys(keys)))
    }
}

impl<T: Default> Default for TieredMemory<T> {
    fn default() -> Self {
        Self::new(MonotonicClock::default())
    }
}

impl<T, C> Clone for TieredMemory<T, C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone + Default + Send + Sync, C: Clock> InProcess for TieredMemory<T, C> {
    type State = T;

    fn apply<L, K>(&self, limits: &L, key: &K, operation: Operation<'_>) -> Decision
    where
        L: Limits<K>,
        L::Algorithm: Algorithm<State = T>,
        K: Hash + ?Sized,
    {
        #[cfg(feature = "tokio")]
        return queue::apply(self, limits, key, self.0.memory.fingerprint(key), operation);
        #[cfg(not(feature = "tokio"))]
        limits.with(key, |algorithm| self.0.memory.apply(&Dating(algorithm), key, operation))
    }

    fn len(&self) -> usize {
        self.0.memory.len()
    }
}

impl<L, C> StoreFor<L> for TieredMemory<<L::Algorithm as Algorithm>::State, C> where L: Source {}

impl<A, C, K> Store<A, K> for TieredMemory<A::State, C>
where
    A: Algorithm,
    C: Clock,
    K: Hash + ?Sized,
{
    type Error = Infallible;

    fn decide(
        &self,
        algorithm: &A,
        key: &K,
        operation: Operation<'_>,
    ) -> impl Future<Output = Result<Decision, Infallible>> + Send {
        ready(Ok(self.apply(algorithm, key, operation)))
    }

    fn decide_now<L>(
        &self,
        limits: &L,
        key: &K,
        operation: Operation<'_>,
    ) -> Option<Result<Decision, Infallible>>
    where
        L: Limits<K, Algorithm = A>,
    {
        Some(Ok(self.apply(limits, key, operation)))
    }

    #[cfg(feature = "tokio")]
    fn acquire_in_turn<L>(
        &self,
        limits: &L,
        key: &K,
        n: u64,
        deadline: Option<Instant>,
    ) -> Option<impl Future<Output = Decision> + Send>
    where
        L: Limits<K, Algorithm = A>,
        K: Sync,
    {
        let fingerprint = self.0.memory.fingerprint(key);
        Some(queue::acquire(self, limits, key, fingerprint, n, deadline))
    }
}

#[cfg(feature = "tokio")]
impl<A: Algorithm, C: Clock> Queued<A> for TieredMemory<A::State, C> {
    fn now(&self) -> Tick {
        self.0.memory.now()
    }

    fn fingerprint<K: Hash + ?Sized>(&self, key: &K) -> u64 {
        self.0.memory.fingerprint(key)
    }

    fn state(&self, fingerprint: u64) -> A::State {
        self.0.memory.state(fingerprint).state
    }

    fn apply_at(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: impl FnOnce() -> Tick,
    ) -> Decision {
        self.0.memory.apply_at(&Dating(algorithm), fingerprint, operation, now)
    }

    fn queues(&self) -> &Queues<A::State> {
        &self.0.queues
    }
}

/// What a [`TieredMemory`] keeps for a key: a state, and the instant from which on it says nothing.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dated<T> {
    state: T,
    fresh_at: Tick,
}

impl<T> Dated<T> {
    fn fresh_after(&self, now: Tick) -> u64 {
        self.fresh_at.micros_since(now)
    }

    /// Changes the state, and dates it if that has taken units. Should the algorithm panic, the state
    /// is kept for long.
    fn change<A, R>(
        &mut self,
        algorithm: &A,
        now: Tick,
        change: impl FnOnce(&A, &mut T) -> R,
        has_taken: impl FnOnce(&R) -> bool,
    ) -> R
    where
        A: Algorithm<State = T>,
    {
        let before = self.fresh_at;
        self.fresh_at = before.max(now.plus(LONG_MICROS));
        let result = change(algorithm, &mut self.state);
        self.fresh_at = if has_taken(&result) {
            before.max(now.plus(algorithm.fresh_after(&self.state, now)))
        } else {
            before
        };
        result
    }
}

/// 400 days, the longest period of a quota.
const LONG_MICROS: u64 = 400 * 86_400 * 1_000_000;

/// The same algorithm, on states that are dated. For a key that is asked for by several limits in
/// turn, the latest date holds.
struct Dating<'a, A>(&'a A);

impl<A: Algorithm> Algorithm for Dating<'_, A> {
    type State = Dated<A::State>;

    fn limit(&self) -> u64 {
        self.0.limit()
    }

    fn room(&self, dated: &Self::State, now: Tick) -> u64 {
        self.0.room(&dated.state, now)
    }

    fn wait(&self, dated: &Self::State, n: u64, now: Tick) -> Wait {
        self.0.wait(&dated.state, n, now)
    }

    fn take(&self, dated: &mut Self::State, n: u64, now: Tick) {
        dated.change(self.0, now, |limits, state| limits.take(state, n, now), |()| true);
    }

    fn take_to_go(&self, dated: &mut Self::State, n: u64, now: Tick, departure: Departure) {
        let take = |limits: &A, state: &mut A::State| limits.take_to_go(state, n, now, departure);
        dated.change(self.0, now, take, |()| true);
    }

    fn forgive(&self, dated: &mut Self::State, now: Tick) {
        // For a key that begins with it: its limits need not be those that it was dated by.
        dated.fresh_at = Tick::default();
        dated.change(self.0, now, |limits, state| limits.forgive(state, now), |()| true);
    }

    fn admit(&self, dated: &mut Self::State, n: u64, now: Tick) -> Admission {
        let admit = |limits: &A, state: &mut A::State| limits.admit(state, n, now);
        dated.change(self.0, now, admit, |admission| n > 0 && admission.wait == Wait::Ready)
    }

    fn standing(&self, dated: &Self::State, now: Tick) -> Standing {
        self.0.standing(&dated.state, now)
    }

    fn give_back(&self, dated: &mut Self::State, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        self.0.give_back(&mut dated.state, n, origin, now);
    }

    fn instant(&self, dated: &Self::State, now: Tick) -> Tick {
        self.0.instant(&dated.state, now)
    }

    fn debt(&self, dated: &Self::State, now: Tick) -> u64 {
        self.0.debt(&dated.state, now)
    }

    fn overdraw(&self, dated: &mut Self::State, n: u64, now: Tick) {
        dated.change(self.0, now, |limits, state| limits.overdraw(state, n, now), |()| true);
    }

    fn each_fresh_after(&self, dated: &Self::State, now: Tick, told: &mut Vec<u64>) {
        self.0.each_fresh_after(&dated.state, now, told);
    }

    fn fresh_after(&self, dated: &Self::State, now: Tick) -> u64 {
        dated.fresh_after(now)
    }

    fn departure(&self, dated: &Self::State, now: Tick) -> Departure {
        self.0.departure(&dated.state, now)
    }

    fn binding(&self, dated: &Self::State, n: u64, now: Tick) -> Binding {
        self.0.binding(&dated.state, n, now)
    }

    fn limit_count(&self) -> usize {
        self.0.limit_count()
    }

    fn describe(&self) -> Vec<Description> {
        self.0.describe()
    }
}
