use super::lock::Lock;
#[cfg(feature = "tokio")]
use super::queue::{self, Queued, Queues};
use super::{States, Store};
use crate::algorithm::Algorithm;
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::Decision;
use crate::limiter::{Limits, Source, StoreFor};
use crate::operation::Operation;
use std::convert::Infallible;
use std::future::{Future, ready};
#[cfg(feature = "tokio")]
use std::hash::Hash;
#[cfg(feature = "tokio")]
use tokio::time::Instant;

/// One state, for all callers alike: what [`Limiter::direct`](crate::Limiter::direct) uses.
#[derive(Debug)]
pub struct Direct<T, C = MonotonicClock> {
    state: Lock<T>,
    clock: C,
    #[cfg(feature = "tokio")]
    queues: Queues<T>,
}

impl<T: Default, C: Clock> Direct<T, C> {
    /// A state in which nothing is taken yet.
    #[must_use]
    pub fn new(clock: C) -> Self {
        Self {
            state: Lock::default(),
            clock,
            #[cfg(feature = "tokio")]
            queues: Queues::new(),
        }
    }

    #[inline]
    pub(crate) fn apply<L>(&self, limits: &L, operation: Operation<'_>) -> Decision
    where
        L: Limits<()>,
        L::Algorithm: Algorithm<State = T>,
        T: Clone + Send + Sync,
    {
        #[cfg(feature = "tokio")]
        return queue::apply(self, limits, &(), ONE_KEY, operation);
        #[cfg(not(feature = "tokio"))]
        limits.with(&(), |algorithm| self.apply_at(algorithm, operation, self.clock.now()))
    }
}

impl<T, C> Direct<T, C> {
    #[inline(always)]
    fn apply_at<A>(&self, algorithm: &A, operation: Operation<'_>, now: Tick) -> Decision
    where
        A: Algorithm<State = T>,
    {
        operation.apply(algorithm, &mut self.state.lock(), now)
    }
}

/// The fingerprint of the one key.
#[cfg(feature = "tokio")]
const ONE_KEY: u64 = 0;

#[cfg(feature = "tokio")]
impl<A: Algorithm, C: Clock> Queued<A> for Direct<A::State, C> {
    fn now(&self) -> Tick {
        self.clock.now()
    }

    fn fingerprint<K: Hash + ?Sized>(&self, _key: &K) -> u64 {
        ONE_KEY
    }

    fn state(&self, _fingerprint: u64) -> A::State {
        self.state.lock().clone()
    }

    fn apply_at(
        &self,
        algorithm: &A,
        _fingerprint: u64,
        operation: Operation<'_>,
        now: impl FnOnce() -> Tick,
    ) -> Decision {
        self.apply_at(algorithm, operation, now())
    }

    fn queues(&self) -> &Queues<A::State> {
        &self.queues
    }
}

impl<T: Clone + Default + Send + Sync, C: Clock> States for Direct<T, C> {
    type State = T;

    fn change_each(&self, mut change: impl FnMut(&mut T, Tick)) {
        let now = self.clock.now();
        change(&mut self.state.lock(), now);
    }
}

impl<L, C> StoreFor<L> for Direct<<L::Algorithm as Algorithm>::State, C> where L: Source {}

impl<A: Algorithm, C: Clock> Store<A, ()> for Direct<A::State, C> {
    type Error = Infallible;

    fn decide(
        &self,
        algorithm: &A,
        (): &(),
        operation: Operation<'_>,
    ) -> impl Future<Output = Result<Decision, Infallible>> + Send {
        ready(Ok(self.apply(algorithm, operation)))
    }

    fn decide_now<L>(
        &self,
        limits: &L,
        (): &(),
        operation: Operation<'_>,
    ) -> Option<Result<Decision, Infallible>>
    where
        L: Limits<(), Algorithm = A>,
    {
        Some(Ok(self.apply(limits, operation)))
    }

    #[cfg(feature = "tokio")]
    fn acquire_in_turn<L>(
        &self,
        limits: &L,
        key: &(),
        n: u64,
        deadline: Option<Instant>,
    ) -> Option<impl Future<Output = Decision> + Send>
    where
        L: Limits<(), Algorithm = A>,
    {
        Some(queue::acquire(self, limits, key, ONE_KEY, n, deadline))
    }
}
