//! When units will be there behind all who wait.

use super::Queue;
use crate::algorithm::Algorithm;
use crate::clock::Tick;
use crate::decision::Outcome;
use crate::math::micros;
use crate::operation::outlook;

/// The state when all waiters of a key have gone, and when that is.
pub(super) struct Forecast<T> {
    state: T,
    pub(super) at: Tick,
    /// Whether the first is taken to be passed over.
    pub(super) without_first: bool,
    /// Whether something has changed since that was not foreseen.
    pub(super) is_stale: bool,
    /// Where the limits are by which it was made: others make another one.
    limits: usize,
    made_at: Tick,
    /// How many answers were asked of it.
    asked: usize,
}

/// A forecast takes time for each waiter. So that no caller can make each answer take that time, a
/// stale one is replaced only after an answer for so many waiters each,
const WAITERS_PER_ANSWER: usize = 16;

/// or when it has been used for so long for each waiter.
const MICROS_PER_WAITER: u64 = 32;

impl<T> Queue<T> {
    /// What there will be when all waiters have gone: the first at once, or if it could have gone
    /// already, not at all but waited for until then; none of them before a pause ends.
    pub(super) fn forecast<A: Algorithm<State = T>>(
        &mut self,
        algorithm: &A,
        state: impl FnOnce() -> T,
        now: Tick,
        first_until: Option<Tick>,
    ) -> &mut Forecast<T> {
        let without_first = first_until.is_some();
        let waiting = self.waiters.len();
        if waiting == 0 {
            self.forecast = None;
        }
        if let Some(forecast) = &mut self.forecast {
            forecast.asked = forecast.asked.saturating_add(1);
            forecast.is_stale |= forecast.without_first != without_first;
            forecast.is_stale |= forecast.limits != address_of(algorithm);
        }
        self.forecast.take_if(|forecast| forecast.is_stale && forecast.is_earned(waiting, now));
        self.forecast.get_or_insert_with(|| {
            let mut forecast = Forecast {
                state: state(),
                at: first_until.unwrap_or(now).max(self.paused_until),
                without_first,
                is_stale: false,
                limits: address_of(algorithm),
                made_at: now,
                asked: 0,
            };
            for waiter in self.waiters.iter().skip(usize::from(without_first)) {
                forecast.take(algorithm, waiter.units);
            }
            forecast
        })
    }
}

fn address_of<A>(algorithm: &A) -> usize {
    std::ptr::from_ref(algorithm).addr()
}

impl<T> Forecast<T> {
    /// Whether it has served for so long that another one can be made, of so many waiters.
    fn is_earned(&self, waiting: usize, now: Tick) -> bool {
        let by_answers = self.asked.saturating_mul(WAITERS_PER_ANSWER);
        let by_time = now.micros_since(self.made_at) / MICROS_PER_WAITER;
        waiting <= by_answers || waiting as u64 <= by_time
    }

    /// When there are `n` units, if nobody else takes any.
    pub(super) fn foresee<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        n: u64,
    ) -> Option<Foreseen> {
        foresee(self.at, |at| outlook(algorithm, &self.state, n, at))
    }

    /// Takes `n` units as soon as they are there, unless they never are.
    pub(super) fn take<A: Algorithm<State = T>>(&mut self, algorithm: &A, n: u64) {
        let Some(Foreseen { at, .. }) = self.foresee(algorithm, n) else { return };
        self.at = at;
        let departure = algorithm.departure(&self.state, at);
        algorithm.take_to_go(&mut self.state, n, at, departure);
    }
}

/// When units are there, and when a caller that takes them then may go.
pub(super) struct Foreseen {
    pub(super) at: Tick,
    pub(super) departure: Tick,
}

/// Asks from `at` on until units are there; `None` if they never are.
pub(super) fn foresee(mut at: Tick, mut ask: impl FnMut(Tick) -> Outcome) -> Option<Foreseen> {
    for _ in 0..MAX_ROUNDS {
        match ask(at) {
            Outcome::Denied(wait) => at = at.saturating_add(micros(wait)),
            Outcome::Never => return None,
            Outcome::Allowed => return Some(Foreseen { at, departure: at }),
            Outcome::Delayed(delay) => {
                return Some(Foreseen { at, departure: at.saturating_add(micros(delay)) });
            }
        }
    }
    // Beyond the end of time.
    Some(Foreseen { at, departure: at })
}

/// One wait is exact; more rounds are needed at the end of time only.
const MAX_ROUNDS: usize = 8;
