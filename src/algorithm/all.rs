use super::{Algorithm, Binding, Departure, Description, Origin, Wait};
use crate::clock::Tick;
use std::cmp::Reverse;

/// Several limits on one key, all or nothing: 10 a minute *and* 1,000 a day.
///
/// A set of limits is an algorithm like any other. Units are taken from all of its limits or
/// from none; it waits as long as the slowest of them, and
/// [`Decision::binding`](crate::Decision::binding) names the limit that holds.
///
/// Sets known when compiling are pairs (nest them for more); a list that is known at run time
/// is an `All<Vec<_>>`, most often inside a [`Policy`](crate::Policy).
///
/// ```
/// use tollgate::{All, FixedWindow, Limiter, Quota, TokenBucket};
///
/// let limiter = Limiter::new(All((
///     TokenBucket::new(Quota::per_minute(10)),
///     FixedWindow::new(Quota::per_day(1000)),
/// )));
/// assert!(limiter.check_n("alice", 10).is_allowed());
/// let refused = limiter.check("alice");
/// assert!(!refused.is_allowed());
/// assert_eq!(refused.binding(), 0); // the 10 a minute; the day's 990 are untouched
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct All<T>(pub T);

impl<A: Algorithm, B: Algorithm> Algorithm for All<(A, B)> {
    type State = (A::State, B::State);

    fn limit(&self) -> u64 {
        self.0.0.limit().min(self.0.1.limit())
    }

    fn room(&self, state: &Self::State, now: Tick) -> u64 {
        self.0.0.room(&state.0, now).min(self.0.1.room(&state.1, now))
    }

    fn wait(&self, state: &Self::State, n: u64, now: Tick) -> Wait {
        self.0.0.wait(&state.0, n, now).max(self.0.1.wait(&state.1, n, now))
    }

    fn take(&self, state: &mut Self::State, n: u64, now: Tick) {
        self.0.0.take(&mut state.0, n, now);
        self.0.1.take(&mut state.1, n, now);
    }

    fn take_to_go(&self, state: &mut Self::State, n: u64, now: Tick, departure: Departure) {
        self.0.0.take_to_go(&mut state.0, n, now, departure);
        self.0.1.take_to_go(&mut state.1, n, now, departure);
    }

    fn forgive(&self, state: &mut Self::State, now: Tick) {
        self.0.0.forgive(&mut state.0, now);
        self.0.1.forgive(&mut state.1, now);
    }

    fn give_back(&self, state: &mut Self::State, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        let [first, second] = Origin::split(origin, self.0.0.limit_count());
        self.0.0.give_back(&mut state.0, n, first, now);
        self.0.1.give_back(&mut state.1, n, second, now);
    }

    /// The earliest: what is given back from there on is found in each limit.
    fn instant(&self, state: &Self::State, now: Tick) -> Tick {
        self.0.0.instant(&state.0, now).min(self.0.1.instant(&state.1, now))
    }

    fn debt(&self, state: &Self::State, now: Tick) -> u64 {
        self.0.0.debt(&state.0, now).max(self.0.1.debt(&state.1, now))
    }

    fn overdraw(&self, state: &mut Self::State, n: u64, now: Tick) {
        self.0.0.overdraw(&mut state.0, n, now);
        self.0.1.overdraw(&mut state.1, n, now);
    }

    fn fits(&self, state: &Self::State, latest: Tick) -> bool {
        self.0.0.fits(&state.0, latest) && self.0.1.fits(&state.1, latest)
    }

    fn each_fresh_after(&self, state: &Self::State, now: Tick, told: &mut Vec<u64>) {
        self.0.0.each_fresh_after(&state.0, now, told);
        self.0.1.each_fresh_after(&state.1, now, told);
    }

    fn scale(&self, old: &Self, state: &mut Self::State, now: Tick) {
        self.0.0.scale(&old.0.0, &mut state.0, now);
        self.0.1.scale(&old.0.1, &mut state.1, now);
    }

    fn fresh_after(&self, state: &Self::State, now: Tick) -> u64 {
        self.0.0.fresh_after(&state.0, now).max(self.0.1.fresh_after(&state.1, now))
    }

    fn departure(&self, state: &Self::State, now: Tick) -> Departure {
        self.0.0.departure(&state.0, now).later(self.0.1.departure(&state.1, now))
    }

    fn binding(&self, state: &Self::State, n: u64, now: Tick) -> Binding {
        let first = self.0.0.binding(&state.0, n, now);
        let second = self.0.1.binding(&state.1, n, now);
        first.stricter(second.behind(self.0.0.limit_count()))
    }

    fn limit_count(&self) -> usize {
        self.0.0.limit_count() + self.0.1.limit_count()
    }

    fn describe(&self) -> Vec<Description> {
        let mut limits = self.0.0.describe();
        limits.extend(self.0.1.describe());
        limits
    }
}

/// The state of a list of another length counts as strictly as it can: for each limit, the one of
/// its states that leaves the least room.
///
/// # Panics
///
/// An empty list limits nothing, and a limiter by it panics; a [`Policy`](crate::Policy) is
/// never empty.
impl<A: Algorithm> Algorithm for All<Vec<A>> {
    /// Nothing yet, or a state for each limit.
    type State = Box<[A::State]>;

    fn limit(&self) -> u64 {
        self.0.iter().map(A::limit).min().expect(NOT_EMPTY)
    }

    fn room(&self, state: &Self::State, now: Tick) -> u64 {
        self.join(state, now, |limit, state| limit.room(state, now), u64::min)
    }

    fn wait(&self, state: &Self::State, n: u64, now: Tick) -> Wait {
        self.join(state, now, |limit, state| limit.wait(state, n, now), Wait::max)
    }

    fn take(&self, state: &mut Self::State, n: u64, now: Tick) {
        self.states(state, now).for_each(|(limit, state)| limit.take(state, n, now));
    }

    fn take_to_go(&self, state: &mut Self::State, n: u64, now: Tick, departure: Departure) {
        let states = self.states(state, now);
        states.for_each(|(limit, state)| limit.take_to_go(state, n, now, departure));
    }

    fn forgive(&self, state: &mut Self::State, now: Tick) {
        self.states(state, now).for_each(|(limit, state)| limit.forgive(state, now));
    }

    fn overdraw(&self, state: &mut Self::State, n: u64, now: Tick) {
        self.states(state, now).for_each(|(limit, state)| limit.overdraw(state, n, now));
    }

    fn give_back(
        &self,
        state: &mut Self::State,
        n: u64,
        mut origin: Option<Origin<'_>>,
        now: Tick,
    ) {
        if state.is_empty() {
            return;
        }
        for (limit, state) in self.states(state, now) {
            let [of_limit, of_others] = Origin::split(origin, limit.limit_count());
            limit.give_back(state, n, of_limit, now);
            origin = of_others;
        }
    }

    fn instant(&self, state: &Self::State, now: Tick) -> Tick {
        self.join(state, now, |limit, state| limit.instant(state, now), Tick::min)
    }

    fn debt(&self, state: &Self::State, now: Tick) -> u64 {
        self.join(state, now, |limit, state| limit.debt(state, now), u64::max)
    }

    fn fits(&self, state: &Self::State, latest: Tick) -> bool {
        self.has_length_of(state)
            && self.0.iter().zip(state).all(|(limit, state)| limit.fits(state, latest))
    }

    fn each_fresh_after(&self, state: &Self::State, now: Tick, told: &mut Vec<u64>) {
        let tell = |limit: &A, state: &A::State| limit.each_fresh_after(state, now, told);
        self.join(state, now, tell, |(), ()| ());
    }

    /// Limit by limit, where there are as many.
    fn scale(&self, old: &Self, state: &mut Self::State, now: Tick) {
        if self.0.len() == old.0.len() && !state.is_empty() {
            for ((limit, state), old) in self.states(state, now).zip(&old.0) {
                limit.scale(old, state, now);
            }
        }
    }

    fn fresh_after(&self, state: &Self::State, now: Tick) -> u64 {
        self.join(state, now, |limit, state| limit.fresh_after(state, now), u64::max)
    }

    fn departure(&self, state: &Self::State, now: Tick) -> Departure {
        self.join(state, now, |limit, state| limit.departure(state, now), Departure::later)
    }

    fn binding(&self, state: &Self::State, n: u64, now: Tick) -> Binding {
        let mut before = 0;
        let binding = |limit: &A, state: &A::State| {
            let binding = limit.binding(state, n, now).behind(before);
            before += limit.limit_count();
            binding
        };
        self.join(state, now, binding, Binding::stricter)
    }

    fn limit_count(&self) -> usize {
        self.0.iter().map(A::limit_count).sum()
    }

    fn describe(&self) -> Vec<Description> {
        self.0.iter().flat_map(A::describe).collect()
    }
}

const NOT_EMPTY: &str = "a set has at least one limit";

impl<A: Algorithm> All<Vec<A>> {
    /// What `tell` tells of each limit, joined.
    fn join<R>(
        &self,
        state: &[A::State],
        now: Tick,
        mut tell: impl FnMut(&A, &A::State) -> R,
        join: impl FnMut(R, R) -> R,
    ) -> R {
        let (fresh, has_length) = (A::State::default(), self.has_length_of(state));
        let told = self.0.iter().enumerate().map(|(index, limit)| {
            let state = if has_length { state.get(index) } else { strictest(limit, state, now) };
            tell(limit, state.unwrap_or(&fresh))
        });
        told.reduce(join).expect(NOT_EMPTY)
    }

    /// As many times this state as there are limits.
    pub(crate) fn each(&self, state: &A::State) -> Box<[A::State]> {
        self.0.iter().map(|_| state.clone()).collect()
    }

    /// Each limit with its state.
    fn states<'s>(
        &self,
        state: &'s mut Box<[A::State]>,
        now: Tick,
    ) -> impl Iterator<Item = (&A, &'s mut A::State)> {
        if state.is_empty() {
            *state = self.each(&A::State::default());
        } else if !self.has_length_of(state) {
            *state = self.own(state, now);
        }
        self.0.iter().zip(state)
    }

    /// The states of a list of another length, read by each limit of this one.
    #[cold]
    fn own(&self, states: &[A::State], now: Tick) -> Box<[A::State]> {
        let strictest = |limit| strictest(limit, states, now).cloned().unwrap_or_default();
        self.0.iter().map(strictest).collect()
    }

    fn has_length_of(&self, state: &[A::State]) -> bool {
        state.is_empty() || state.len() == self.0.len()
    }
}

/// Of the states of a list of another length, the one that leaves the least room.
#[cold]
fn strictest<'s, A: Algorithm>(
    limit: &A,
    states: &'s [A::State],
    now: Tick,
) -> Option<&'s A::State> {
    let used = |state: &&A::State| (Reverse(limit.room(state, now)), limit.debt(state, now));
    states.iter().max_by_key(used)
}
