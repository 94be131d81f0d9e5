use super::Store;
use crate::algorithm::Algorithm;
use crate::clock::{Clock, MonotonicClock};
use crate::decision::Decision;
use crate::operation::Operation;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::{Future, ready};

/// One state, for all callers alike: what [`Limiter::direct`](crate::Limiter::direct) uses.
#[derive(Debug)]
pub struct Direct<T, C = MonotonicClock> {
    state: Mutex<T>,
    clock: C,
}

impl<T, C: Clock> Direct<T, C> {
    /// A state of `algorithm`, in which nothing is taken yet.
    #[must_use]
    pub fn new<A: Algorithm<State = T>>(algorithm: &A, clock: C) -> Self {
        Self { state: Mutex::new(algorithm.fresh()), clock }
    }

    pub(crate) fn apply<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        operation: Operation,
    ) -> Decision {
        let mut state = self.state.lock();
        operation.apply(algorithm, &mut state, self.clock.now())
    }
}

impl<A: Algorithm, C: Clock> Store<A, ()> for Direct<A::State, C> {
    type Error = Infallible;

    fn decide(
        &self,
        algorithm: &A,
        (): &(),
        operation: Operation,
    ) -> impl Future<Output = Result<Decision, Infallible>> + Send {
        ready(Ok(self.apply(algorithm, operation)))
    }

    fn decide_now(
        &self,
        algorithm: &A,
        (): &(),
        operation: Operation,
    ) -> Option<Result<Decision, Infallible>> {
        Some(Ok(self.apply(algorithm, operation)))
    }
}
