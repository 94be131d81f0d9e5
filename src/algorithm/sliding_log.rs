use super::packed::Packed;
use super::{Algorithm, Description, Origin, Wait};
use crate::clock::Tick;
use crate::math::MAX_UNITS;
use crate::quota::Quota;

/// Every unit remembered: in no span of the quota's period do more than its count pass.
///
/// The one algorithm that is exact in this sense, at the price of 2 to 8 bytes for each instant at
/// which units were taken within the last period (16 in Redis). A unit stops counting exactly one
/// period after it was taken.
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
    /// The instant of the first entry.
    first: Tick,
    /// The entries before the newest: of each the time to the next one, and its units.
    older: Packed,
    /// Of 0 units where there is no entry.
    newest: Entry,
    /// The units of all entries.
    total: u64,
    /// When this was written; earlier instants read as this one.
    last: Tick,
}

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Entry {
    taken_at: Tick,
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::units"))]
    units: u64,
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

    /// When units no longer count that were taken then.
    fn expiry(&self, taken_at: Tick) -> Tick {
        taken_at.plus(self.0.period_micros())
    }

    /// Units taken within the window that ends now.
    fn used(&self, state: &SlidingLogState, now: Tick) -> u64 {
        let now = now.max(state.last);
        if self.expiry(state.newest.taken_at) <= now {
            return 0;
        }
        let expired = state.entries().take_while(|entry| self.expiry(entry.taken_at) <= now);
        state.total - expired.map(|entry| entry.units).sum::<u64>()
    }

    /// Forgets the entries that have expired.
    fn advance(&self, state: &mut SlidingLogState, now: Tick) {
        state.last = now.max(state.last);
        while state.total > 0 && self.expiry(state.first) <= state.last {
            state.forget_first();
        }
        state.older.shrink();
    }
}

impl SlidingLogState {
    /// The units taken, and when this was written.
    pub(crate) const fn consumed(&self) -> (u64, Tick) {
        (self.total, self.last)
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let mut taken_at = self.first;
        let older = self.older.iter().map(move |(to_next, units)| {
            let entry = Entry { taken_at, units };
            taken_at = taken_at.plus(to_next);
            entry
        });
        older.chain((self.newest.units > 0).then_some(self.newest))
    }

    fn forget_first(&mut self) {
        let (to_next, units) = self.older.pop_front().unwrap_or((0, self.newest.units));
        self.first = self.first.plus(to_next);
        self.total -= units;
        if self.total == 0 {
            self.newest.units = 0;
        }
    }

    fn forget_newest(&mut self) -> Entry {
        let forgotten = self.newest;
        let (to_next, units) = self.older.pop_back().unwrap_or_default();
        let taken_at = self.newest.taken_at.as_micros() - to_next;
        self.newest = Entry { taken_at: Tick::from_micros(taken_at), units };
        self.total -= forgotten.units;
        forgotten
    }

    fn forget_newest_units(&mut self, n: u64) {
        let mut left = n;
        while left >= self.newest.units && self.total > 0 {
            left -= self.forget_newest().units;
        }
        if self.total > 0 {
            self.newest.units -= left;
            self.total -= left;
        }
    }

    /// Forgets units of the first entry that is not older than that, then of the next ones.
    fn forget_units_since(&mut self, instant: Tick, n: u64) {
        let mut later = Vec::new();
        while self.total > 0 && self.newest.taken_at >= instant {
            later.push(self.forget_newest());
        }
        let mut left = n;
        while let Some(Entry { taken_at, units }) = later.pop() {
            let forgotten = left.min(units);
            left -= forgotten;
            if units > forgotten {
                self.push(Entry { taken_at, units: units - forgotten });
            }
        }
    }

    /// Adds an entry that is not older than the newest one; its units are not 0.
    fn push(&mut self, entry: Entry) {
        if self.total == 0 {
            self.first = entry.taken_at;
            self.newest = entry;
        } else if self.newest.taken_at == entry.taken_at {
            self.newest.units += entry.units;
        } else {
            self.older
                .push_back(entry.taken_at.micros_since(self.newest.taken_at), self.newest.units);
            self.newest = entry;
        }
        self.total += entry.units;
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
        // The entry with which enough units expire; those behind it do not matter.
        let mut left = state.total;
        let decisive = state.entries().take_while(|entry| {
            let is_missing = left > allowed;
            left -= entry.units;
            is_missing
        });
        let ready = decisive.last().map(|entry| self.expiry(entry.taken_at)).unwrap_or_default();
        match ready.micros_from(now, state.last) {
            0 => Wait::Ready,
            micros => Wait::After(micros),
        }
    }

    fn take(&self, state: &mut SlidingLogState, n: u64, now: Tick) {
        self.advance(state, now);
        let units = n.min(MAX_UNITS - state.total);
        if units > 0 {
            state.push(Entry { taken_at: state.last, units });
        }
    }

    fn instant(&self, state: &SlidingLogState, now: Tick) -> Tick {
        now.max(state.last)
    }

    /// Without an origin, the newest units are given back first; with one, those of that instant and,
    /// as the clock may have stood still, later ones.
    fn give_back(
        &self,
        state: &mut SlidingLogState,
        n: u64,
        origin: Option<Origin<'_>>,
        now: Tick,
    ) {
        let has_some = |origin: Origin<'_>| {
            let taken_at = origin.taken_at();
            self.expiry(taken_at) > now.max(state.last) && taken_at <= state.newest.taken_at
        };
        if self.used(state, now) == 0 || !origin.is_none_or(has_some) {
            return;
        }
        self.advance(state, now);
        match origin {
            None => state.forget_newest_units(n),
            Some(origin) => state.forget_units_since(origin.taken_at(), n),
        }
        if state.total == 0 {
            *state = SlidingLogState { last: state.last, ..SlidingLogState::default() };
        }
    }

    fn debt(&self, state: &SlidingLogState, now: Tick) -> u64 {
        self.used(state, now).saturating_sub(self.0.count())
    }

    fn fresh_after(&self, state: &SlidingLogState, now: Tick) -> u64 {
        let expiry =
            if state.total > 0 { self.expiry(state.newest.taken_at) } else { Tick::default() };
        expiry.max(state.last).micros_since(now)
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: Some(self.0.period()) }]
    }
}

#[cfg(feature = "serde")]
mod written {
    use super::{Entry, SlidingLogState};
    use crate::clock::Tick;
    use crate::math::MAX_UNITS;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Log {
        entries: Vec<Entry>,
        #[serde(deserialize_with = "crate::algorithm::serde::instant")]
        last: Tick,
    }

    impl Serialize for SlidingLogState {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            Log { entries: self.entries().collect(), last: self.last }.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for SlidingLogState {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let Log { entries, last } = Log::deserialize(deserializer)?;
            let mut state = Self { last, ..Self::default() };
            for entry in entries {
                let in_order = (state.newest.taken_at..=last).contains(&entry.taken_at);
                if !in_order || entry.units == 0 || entry.units > MAX_UNITS - state.total {
                    return Err(D::Error::custom("a log's entries are out of order or too many"));
                }
                state.push(entry);
            }
            Ok(state)
        }
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
        let mut state = SlidingLogState { last, ..SlidingLogState::default() };
        for _ in 0..stored.short_number()? {
            let taken_at = Tick::from_micros(stored.number()?);
            let units = stored.number()?.checked_sub(state.total)?;
            if units > 0 {
                state.push(Entry { taken_at, units });
            }
        }
        Some(state)
    }
}
