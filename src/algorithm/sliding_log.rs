use super::entries::{Entries, Entry, Found};
use super::{Algorithm, Description, Origin, Wait};
use crate::clock::Tick;
use crate::math::MAX_UNITS;
use crate::quota::Quota;

/// Every unit remembered: in no span of the quota's period do more than its count pass.
///
/// The one algorithm that is exact in this sense, at the price of 2 to 8 bytes for each instant at
/// which units were taken within the last period (16 in Redis), of which there are at most twice
/// the limit and one. A unit stops counting exactly one period after it was taken, but for debts
/// beyond twice the limit: see [`RateLimiter::debit`](crate::RateLimiter::debit).
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
    entries: Entries,
    /// When this was written; earlier instants read as this one.
    last: Tick,
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

    fn has_expired(&self, taken_at: Tick, now: Tick) -> bool {
        self.expiry(taken_at) <= now
    }

    /// Units taken within the window that ends now.
    fn used(&self, SlidingLogState { entries, last }: &SlidingLogState, now: Tick) -> u64 {
        let now = now.max(*last);
        if self.has_expired(entries.newest().taken_at, now) {
            return 0;
        }
        entries.total() - entries.last(|taken_at, _| self.has_expired(taken_at, now)).up_to
    }

    /// Forgets the entries that have expired.
    fn advance(&self, state: &mut SlidingLogState, now: Tick) {
        let now = now.max(state.last);
        state.last = now;
        state.entries.expire(|taken_at| self.has_expired(taken_at, now));
    }
}

impl SlidingLogState {
    /// The units taken, and when this was written.
    pub(crate) const fn consumed(&self) -> (u64, Tick) {
        (self.entries.total(), self.last)
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
        // The entry with which enough units expire.
        let excess = state.entries.total().saturating_sub(allowed);
        let ready = match state.entries.last(|_, before| before < excess) {
            Found { up_to: 0, .. } => Tick::default(),
            Found { taken_at, .. } => self.expiry(taken_at),
        };
        match ready.micros_from(now, state.last) {
            0 => Wait::Ready,
            micros => Wait::After(micros),
        }
    }

    fn take(&self, state: &mut SlidingLogState, n: u64, now: Tick) {
        self.advance(state, now);
        let total = state.entries.total();
        // However many debts there are, a log has no more entries than this many and one.
        let kept = total.min(2 * self.0.count());
        if kept < total {
            state.entries.forget(kept..total);
        }
        let units = n.min(MAX_UNITS - total) + (total - kept);
        state.entries.push(Entry { taken_at: state.last, units });
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
            !self.has_expired(taken_at, now.max(state.last))
                && taken_at <= state.entries.newest().taken_at
        };
        if self.used(state, now) == 0 || !origin.is_none_or(has_some) {
            return;
        }
        self.advance(state, now);
        let total = state.entries.total();
        let from = match origin {
            None => total.saturating_sub(n),
            Some(origin) => state.entries.last(|taken_at, _| taken_at < origin.taken_at()).up_to,
        };
        state.entries.forget(from..total.min(from.saturating_add(n)));
    }

    fn debt(&self, state: &SlidingLogState, now: Tick) -> u64 {
        self.used(state, now).saturating_sub(self.0.count())
    }

    fn fresh_after(&self, state: &SlidingLogState, now: Tick) -> u64 {
        let Entry { taken_at, units } = state.entries.newest();
        let expiry = if units > 0 { self.expiry(taken_at) } else { Tick::default() };
        expiry.max(state.last).micros_since(now)
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: Some(self.0.period()) }]
    }
}

#[cfg(feature = "serde")]
mod written {
    use super::{Entries, Entry, SlidingLogState};
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
            Log { entries: self.entries.iter().collect(), last: self.last }.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for SlidingLogState {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let Log { entries, last } = Log::deserialize(deserializer)?;
            let mut state = Self { entries: Entries::default(), last };
            for entry in entries {
                let in_order = (state.entries.newest().taken_at..=last).contains(&entry.taken_at);
                let most = MAX_UNITS - state.entries.total();
                if !in_order || !(1..=most).contains(&entry.units) {
                    return Err(D::Error::custom("a log's entries are out of order or too many"));
                }
                state.entries.push(entry);
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
        let mut entries = Entries::default();
        for _ in 0..stored.short_number()? {
            let taken_at = Tick::from_micros(stored.number()?);
            let units = stored.number()?.checked_sub(entries.total())?;
            if units > 0 {
                entries.push(Entry { taken_at, units });
            }
        }
        (entries.total() <= MAX_UNITS).then_some(SlidingLogState { entries, last })
    }
}
