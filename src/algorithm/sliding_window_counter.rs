use super::{Algorithm, Description, Wait};
use crate::clock::Tick;
use crate::math::{MAX_UNITS, mul_div_ceil, mul_div_floor};
use crate::quota::Quota;

/// Two counters that stand in for a sliding window: what nearly always serves, at little cost.
///
/// The units of the last period are estimated as
///
/// ```text
/// previous x (1 - elapsed / window) + current
/// ```
///
/// where `previous` and `current` are the counts of two windows aligned to the Unix epoch, and
/// `elapsed` is how much of the current one has passed: the formula that
/// [Cloudflare published](https://blog.cloudflare.com/counting-things-a-lot-of-different-things/).
/// It is exact where the previous window's units came evenly.
///
/// Units count in full to the end of the window in which they were taken, and then fade over
/// the next one. Whoever spends the limit at once waits until enough has faded: for one more
/// unit a little longer than to the end of the window, for the whole limit up to two periods.
///
/// ```
/// use tollgate::{Limiter, ManualClock, Quota, SlidingWindowCounter, Tick};
///
/// let clock = ManualClock::new(Tick::from_micros(0));
/// let limiter =
///     Limiter::with_clock(SlidingWindowCounter::new(Quota::per_minute(200)), clock.clone());
/// assert!(limiter.check_n("alice", 150).is_allowed());
/// clock.set(Tick::from_micros(90_000_000)); // half of the second minute
/// let decision = limiter.check_n("alice", 40);
/// assert_eq!(decision.remaining(), 200 - (150 / 2 + 40));
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlidingWindowCounter(Quota);

/// What a [`SlidingWindowCounter`] keeps for a key: the counts of two windows that follow each
/// other, where the later one begins, and when its last units were counted.
///
/// The window's length is not in it: under another quota each count is taken to be as late as
/// it can have been, which never lets through more than that quota would have.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlidingWindowCounterState {
    previous: u64,
    current: u64,
    start: Tick,
    last: Tick,
}

impl SlidingWindowCounter {
    /// The quota's count in any of the quota's periods, estimated.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self(quota)
    }

    /// The count and the window's length.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.0
    }

    /// The state as it reads now: `start` is the present window's, `last` is now.
    fn at(&self, state: &SlidingWindowCounterState, now: Tick) -> SlidingWindowCounterState {
        let length = self.0.period_micros();
        let now = now.max(state.last);
        let start = now.window_start(length);
        let mut read = SlidingWindowCounterState { previous: 0, current: 0, start, last: now };
        let latest_previous = state.start.as_micros().checked_sub(1).map(Tick::from_micros);
        for (count, latest) in
            [(state.current, Some(state.last)), (state.previous, latest_previous)]
        {
            let Some(latest) = latest else { continue };
            if latest >= start {
                read.current = read.current.saturating_add(count).min(MAX_UNITS);
            } else if latest.saturating_add(length) >= start {
                read.previous = read.previous.saturating_add(count).min(MAX_UNITS);
            }
        }
        read
    }

    /// The part of `previous` that still counts after `elapsed` of the window, rounded up.
    fn weighted(&self, previous: u64, elapsed: u64) -> u64 {
        let length = self.0.period_micros();
        mul_div_ceil(previous, length - elapsed, length)
    }

    /// How much of a window must pass until at most `allowed` of the `previous` units count.
    fn elapsed_until(&self, previous: u64, allowed: u64) -> u64 {
        if previous <= allowed {
            return 0;
        }
        let length = self.0.period_micros();
        length - mul_div_floor(allowed, length, previous)
    }

    fn room_at(&self, read: &SlidingWindowCounterState) -> u64 {
        let elapsed = read.last.micros_since(read.start);
        let estimate = self.weighted(read.previous, elapsed).saturating_add(read.current);
        self.0.count().saturating_sub(estimate)
    }
}

impl Algorithm for SlidingWindowCounter {
    type State = SlidingWindowCounterState;

    fn fresh(&self) -> SlidingWindowCounterState {
        SlidingWindowCounterState::default()
    }

    fn limit(&self) -> u64 {
        self.0.count()
    }

    fn room(&self, state: &SlidingWindowCounterState, now: Tick) -> u64 {
        self.room_at(&self.at(state, now))
    }

    fn wait(&self, state: &SlidingWindowCounterState, n: u64, now: Tick) -> Wait {
        let Some(allowed) = self.0.count().checked_sub(n) else {
            return Wait::Never;
        };
        let read = self.at(state, now);
        if n <= self.room_at(&read) {
            return Wait::Ready;
        }
        let ready = match allowed.checked_sub(read.current) {
            // As soon as enough of the previous window has slid out.
            Some(allowed) => self.elapsed_until(read.previous, allowed),
            // Not in this window; in the next one its own units are the previous ones.
            None => {
                self.0.period_micros().saturating_add(self.elapsed_until(read.current, allowed))
            }
        };
        Wait::After(read.start.saturating_add(ready).micros_since(read.last))
    }

    fn take(&self, state: &mut SlidingWindowCounterState, n: u64, now: Tick) {
        *state = self.at(state, now);
        state.current = state.current.saturating_add(n).min(MAX_UNITS);
    }

    fn give_back(&self, state: &mut SlidingWindowCounterState, n: u64, now: Tick) {
        *state = self.at(state, now);
        state.current = state.current.saturating_sub(n);
        if (state.previous, state.current) == (0, 0) {
            *state = self.fresh();
        }
    }

    fn fresh_after(&self, state: &SlidingWindowCounterState, now: Tick) -> u64 {
        let read = self.at(state, now);
        let windows = match (read.previous, read.current) {
            (0, 0) => return 0,
            (_, 0) => 1,
            _ => 2,
        };
        let end = read.start.saturating_add(windows * self.0.period_micros());
        end.micros_since(read.last)
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: Some(self.0.period()) }]
    }
}

#[cfg(feature = "redis")]
impl super::Scripted for SlidingWindowCounter {
    fn script(&self, call: &mut super::ScriptCall) {
        const SCRIPT: super::Script = super::Script::new(
            "sliding_window_counter",
            include_str!("sliding_window_counter.lua"),
        );
        call.limit(SCRIPT, &[self.0.count(), self.0.period_micros()]);
    }

    fn read_state(&self, stored: &mut super::StoredState<'_>) -> Option<SlidingWindowCounterState> {
        Some(SlidingWindowCounterState {
            previous: stored.number()?,
            current: stored.number()?,
            start: Tick::from_micros(stored.number()?),
            last: Tick::from_micros(stored.number()?),
        })
    }
}
