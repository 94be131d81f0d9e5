use super::{Algorithm, Description, Origin, Wait};
use crate::clock::Tick;
use crate::math::{Divisor, MAX_UNITS};
use crate::quota::Quota;

/// A counter that starts anew with every window: the quota's count in each period.
///
/// Windows are aligned to the Unix epoch: those of a minute begin with the clock's minute, those
/// of a day at midnight UTC. It is the cheapest of the algorithms and the coarsest: a client
/// that spends one window's units at its end and the next one's at its beginning passes twice
/// the limit within a moment.
///
/// ```
/// use tollgate::{FixedWindow, Limiter, ManualClock, Quota, Tick};
///
/// let clock = ManualClock::new(Tick::from_micros(59_900_000)); // 100 ms to the full minute
/// let limiter = Limiter::with_clock(FixedWindow::new(Quota::per_minute(100)), clock.clone());
/// assert!(limiter.check_n("alice", 100).is_allowed());
/// clock.set(Tick::from_micros(60_100_000)); // 200 ms later
/// assert!(limiter.check_n("alice", 100).is_allowed());
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct FixedWindow {
    quota: Quota,
    period_micros: Divisor,
}

/// What a [`FixedWindow`] keeps for a key: the units of a window, and when the last of them
/// were counted. The window is the one around that instant.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FixedWindowState {
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::units"))]
    count: u64,
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::instant"))]
    last: Tick,
}

impl FixedWindowState {
    /// The units taken, and when this was written.
    pub(crate) const fn consumed(&self) -> (u64, Tick) {
        (self.count, self.last)
    }
}

impl FixedWindow {
    /// The quota's count in each of the quota's periods.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self { quota, period_micros: Divisor::new(quota.period_micros()) }
    }

    /// The count and the window's length.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.quota
    }

    /// The units of the present window.
    #[inline]
    fn count(&self, state: &FixedWindowState, now: Tick) -> u64 {
        let window = now.window_start(self.period_micros);
        if state.last >= window { state.count } else { 0 }
    }

    /// Ticks until the window ends that the state is read in.
    #[inline]
    fn left(&self, state: &FixedWindowState, now: Tick) -> u64 {
        let window = now.max(state.last).window_start(self.period_micros);
        window.plus(self.period_micros.get()).micros_since(now)
    }
}

impl Algorithm for FixedWindow {
    type State = FixedWindowState;

    #[inline]
    fn limit(&self) -> u64 {
        self.quota.count()
    }

    #[inline]
    fn room(&self, state: &FixedWindowState, now: Tick) -> u64 {
        self.quota.count().saturating_sub(self.count(state, now))
    }

    #[inline]
    fn wait(&self, state: &FixedWindowState, n: u64, now: Tick) -> Wait {
        if n > self.quota.count() {
            Wait::Never
        } else if n <= self.room(state, now) {
            Wait::Ready
        } else {
            Wait::After(self.left(state, now))
        }
    }

    #[inline]
    fn take(&self, state: &mut FixedWindowState, n: u64, now: Tick) {
        let count = self.count(state, now).saturating_add(n).min(MAX_UNITS);
        *state = FixedWindowState { count, last: now.max(state.last) };
    }

    #[inline]
    fn give_back(
        &self,
        state: &mut FixedWindowState,
        n: u64,
        origin: Option<Origin<'_>>,
        now: Tick,
    ) {
        let last = now.max(state.last);
        let window = last.window_start(self.period_micros);
        let count = self.count(state, now);
        if count > 0 && origin.is_none_or(|origin| origin.taken_at() >= window) {
            *state = FixedWindowState { count: count.saturating_sub(n), last };
        }
    }

    fn instant(&self, state: &FixedWindowState, now: Tick) -> Tick {
        now.max(state.last)
    }

    #[inline]
    fn debt(&self, state: &FixedWindowState, now: Tick) -> u64 {
        self.count(state, now).saturating_sub(self.quota.count())
    }

    #[inline]
    fn fresh_after(&self, state: &FixedWindowState, now: Tick) -> u64 {
        if self.count(state, now) > 0 {
            return self.left(state, now);
        }
        state.last.micros_since(now)
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: Some(self.quota.period()) }]
    }
}

#[cfg(feature = "redis")]
impl super::Scripted for FixedWindow {
    fn script(&self, call: &mut super::ScriptCall) {
        const SCRIPT: super::Script =
            super::Script::new("fixed_window", include_str!("fixed_window.lua"));
        call.limit(SCRIPT, &[self.quota.count(), self.period_micros.get()]);
    }

    fn read_state(&self, stored: &mut super::StoredState<'_>) -> Option<FixedWindowState> {
        let count = stored.number()?;
        Some(FixedWindowState { count, last: Tick::from_micros(stored.number()?) })
    }
}
