use super::{Algorithm, Description, Wait};
use crate::clock::Tick;
use crate::math::MAX_UNITS;
use crate::quota::Quota;
use std::collections::VecDeque;

/// Every unit remembered: in no span of the quota's period do more than its count pass.
///
/// The one algorithm that is exact in this sense, at the price of 16 bytes for each instant at
/// which units were taken within the last period. A unit stops counting exactly one period
/// after it was taken.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{Limiter, ManualClock, Quota, SlidingLog, Tick};
///
/// let clock = ManualClock::new(Tick::from_micros(59_000_000));
/// let limiter = Limiter::with_clock(SlidingLog::new(Quota::per_minute(100)), clock.clone());
/// assert!(limiter.check_n("alice", 100).is_allowed());
/// clock.advance(Duration::from_secs(2)); // the clock's next minute, but not a minute later
/// assert_eq!(limiter.check("alice").retry_after(), Some(Duration::from_secs(58)));
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlidingLog(Quota);

/// What a [`SlidingLog`] keeps for a key: the instants at which units were taken, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlidingLogState {
    entries: VecDeque<Entry>,
    /// The [`Entry::total`] before the first entry.
    dropped: u64,
    last: Tick,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    taken_at: Tick,
    /// Units taken up to here, these included, so that the units between any two entries are
    /// one subtraction, and a search halves the log instead of adding it up.
    total: u64,
}

impl SlidingLog {
    /// At most the quota's count in any of the quota's periods.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self(quota)
    }

    /// The count and the window's length.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.0
    }

    /// How many entries, from the first on, lie a whole window or more in the past.
    fn expired(&self, state: &SlidingLogState, now: Tick) -> usize {
        let now = now.max(state.last);
        state.entries.partition_point(|entry| self.expiry(entry) <= now)
    }

    fn expiry(&self, entry: &Entry) -> Tick {
        entry.taken_at.saturating_add(self.0.period_micros())
    }

    /// Units taken within the window that ends now.
    fn used(&self, state: &SlidingLogState, now: Tick) -> u64 {
        state.total() - state.total_before(self.expired(state, now))
    }

    /// Forgets the entries that have expired.
    fn advance(&self, state: &mut SlidingLogState, now: Tick) {
        let expired = self.expired(state, now);
        state.dropped = state.total_before(expired);
        state.entries.drain(..expired);
        state.last = now.max(state.last);
    }
}

impl SlidingLogState {
    fn total(&self) -> u64 {
        self.total_before(self.entries.len())
    }

    /// Units taken before the entry at `index`.
    fn total_before(&self, index: usize) -> u64 {
        match index.checked_sub(1) {
            Some(before) => self.entries[before].total,
            None => self.dropped,
        }
    }

    /// Counts from the first entry on again, so that totals stay far from the end of a `u64`.
    fn rebase(&mut self) {
        for entry in &mut self.entries {
            entry.total -= self.dropped;
        }
        self.dropped = 0;
    }
}

impl Algorithm for SlidingLog {
    type State = SlidingLogState;

    fn limit(&self) -> u64 {
        self.0.count()
    }

    fn room(&self, state: &SlidingLogState, now: Tick) -> u64 {
        self.0.count().saturating_sub(self.used(state, now))
    }

    fn wait(&self, state: &SlidingLogState, n: u64, now: Tick) -> Wait {
        let Some(allowed) = self.0.count().checked_sub(n) else {
            return Wait::Never;
        };
        let Some(excess) = self.used(state, now).checked_sub(allowed).filter(|&excess| excess > 0)
        else {
            return Wait::Ready;
        };
        // The entry with which enough units expire; those behind it do not matter.
        let enough = state.total_before(self.expired(state, now)) + excess;
        let decisive = state.entries.partition_point(|entry| entry.total < enough);
        let ready = self.expiry(&state.entries[decisive]);
        Wait::After(ready.micros_since(now.max(state.last)))
    }

    fn take(&self, state: &mut SlidingLogState, n: u64, now: Tick) {
        let n = n.min(MAX_UNITS - self.used(state, now));
        self.advance(state, now);
        if n == 0 {
            return;
        }
        if state.total() > MAX_UNITS {
            state.rebase();
        }
        let total = state.total() + n;
        match state.entries.back_mut() {
            Some(newest) if newest.taken_at == state.last => newest.total = total,
            _ => state.entries.push_back(Entry { taken_at: state.last, total }),
        }
    }

    /// The newest units are given back first.
    fn give_back(&self, state: &mut SlidingLogState, n: u64, now: Tick) {
        self.advance(state, now);
        let total = state.total().saturating_sub(n).max(state.dropped);
        while state.entries.back().is_some_and(|newest| newest.total > total) {
            let older = state.total_before(state.entries.len() - 1);
            if older < total {
                state.entries.back_mut().expect("there is a newest entry").total = total;
            } else {
                state.entries.pop_back();
            }
        }
        if state.entries.is_empty() {
            *state = Self::State::default();
        }
    }

    fn fresh_after(&self, state: &SlidingLogState, now: Tick) -> u64 {
        let newest = state.entries.back().map(|newest| self.expiry(newest));
        newest.unwrap_or_default().micros_since(now.max(state.last))
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: Some(self.0.period()) }]
    }
}

#[cfg(feature = "redis")]
impl super::Scripted for SlidingLog {
    fn script(&self, call: &mut super::ScriptCall) {
        const SCRIPT: super::Script =
            super::Script::new("sliding_log", include_str!("sliding_log.lua"));
        call.limit(SCRIPT, &[self.0.count(), self.0.period_micros()]);
    }

    fn read_state(&self, stored: &mut super::StoredState<'_>) -> Option<SlidingLogState> {
        let last = Tick::from_micros(stored.number()?);
        let mut entries = VecDeque::new();
        for _ in 0..stored.short_number()? {
            let taken_at = Tick::from_micros(stored.number()?);
            entries.push_back(Entry { taken_at, total: stored.number()? });
        }
        Some(SlidingLogState { entries, dropped: 0, last })
    }
}
