use super::lock::Lock;
use super::{States, Store};
use crate::algorithm::Algorithm;
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::Decision;
use crate::operation::Operation;
use std::convert::Infallible;
use std::future::{Future, ready};

/// One state, for all callers alike: what [`Limiter::direct`](crate::Limiter::direct) uses.
#[derive(Debug)]
pub struct Direct<T, C = MonotonicClock> {
    state: Lock<T>,
    clock: C,
}

impl<T: Default, C: Clock> Direct<T, C> {
    /// A state in which nothing is taken yet.
    #[must_use]
    pub fn new(clock: C) -> Self {
        Self { state: Lock::default(), clock }
    }

    #[inline]
    pub(crate) fn apply<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        operation: Operation<'_>,
    ) -> Decision {
        let now = self.clock.now();
        operation.apply(algorithm, &mut self.state.lock(), now)
    }
}

impl<T: Clone + Default + Send, C: Clock> States for Direct<T, C> {
    type State = T;

    fn change_each(&self, mut change: impl FnMut(&mut T, Tick)) {
        let now = self.clock.now().min(Tick::MAX);
        change(&mut self.state.lock(), now);
    }
}

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

    fn decide_now(
        &self,
        algorithm: &A,
        (): &(),
        operation: Operation<'_>,
    ) -> Option<Result<Decision, Infallible>> {
        Some(Ok(self.apply(algorithm, operation)))
    }
}
