use super::{Algorithm, Description, Origin, Wait};
use crate::clock::Tick;
use crate::math::{Divisor, MAX_UNITS, mul_div_ceil, mul_div_floor};
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
/// It is what a sliding window would count, rounded up, where the previous window's units came
/// evenly. Rounding up costs up to one unit in each window: a client that always asks as soon as
/// it may gets 99 of 100 a minute in the long run, 9 of 10, 2 of 3, and of 1 a minute every second
/// one. For limits below about 20 in a window take a [`TokenBucket`](super::TokenBucket) or a
/// [`SlidingLog`](super::SlidingLog).
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
pub struct SlidingWindowCounter {
    quota: Quota,
    period_micros: Divisor,
}

/// What a [`SlidingWindowCounter`] keeps for a key: the counts of two windows that follow each
/// other, where the later one begins, and when its last units were counted.
///
/// The window's length is not in it: under another quota each count is taken to be as late as
/// it can have been, which never lets through more than that quota would have.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(remote = "Self"))]
pub struct SlidingWindowCounterState {
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::units"))]
    previous: u64,
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::units"))]
    current: u64,
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::instant"))]
    start: Tick,
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::instant"))]
    last: Tick,
}

impl SlidingWindowCounterState {
    /// The units taken, and when this was written.
    pub(crate) fn consumed(&self) -> (u64, Tick) {
        (self.previous.saturating_add(self.current), self.last)
    }
}

impl SlidingWindowCounter {
    /// The quota's count in any of the quota's periods, estimated.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self { quota, period_micros: Divisor::new(quota.period_micros()) }
    }

    /// The count and the window's length.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.quota
    }

    /// The state as it reads now: `start` is the present window's, `last` is now.
    #[inline]
    fn at(&self, state: &SlidingWindowCounterState, now: Tick) -> SlidingWindowCounterState {
        let length = self.period_micros.get();
        let now = now.max(state.last);
        let start = now.window_start(self.period_micros);
        let mut read = SlidingWindowCounterState { previous: 0, current: 0, start, last: now };
        let latest_previous = state.start.as_micros().checked_sub(1).map(Tick::from_micros);
        for (count, latest) in
            [(state.current, Some(state.last)), (state.previous, latest_previous)]
        {
            let Some(latest) = latest else { continue };
            if latest >= start {
                read.current = read.current.saturating_add(count).min(MAX_UNITS);
            } else if latest.plus(length) >= start {
                read.previous = read.previous.saturating_add(count).min(MAX_UNITS);
            }
        }
        read
    }

    /// The part of `previous` that still counts after `elapsed` of the window, rounded up.
    #[inline]
    fn weighted(&self, previous: u64, elapsed: u64) -> u64 {
        mul_div_ceil(previous, self.period_micros.get() - elapsed, self.period_micros)
    }

    /// How much of a window must pass until at most `allowed` of the `previous` units count.
    #[inline]
    fn elapsed_until(&self, previous: u64, allowed: u64) -> u64 {
        if previous <= allowed {
            return 0;
        }
        let length = self.period_micros.get();
        length - mul_div_floor(allowed, length, Divisor::new(previous))
    }

    #[inline]
    fn estimate(&self, read: &SlidingWindowCounterState) -> u64 {
        let elapsed = read.last.micros_since(read.start);
        self.weighted(read.previous, elapsed).saturating_add(read.current)
    }

    #[inline]
    fn room_at(&self, read: &SlidingWindowCounterState) -> u64 {
        self.quota.count().saturating_sub(self.estimate(read))
    }
}

impl Algorithm for SlidingWindowCounter {
    type State = SlidingWindowCounterState;

    #[inline]
    fn limit(&self) -> u64 {
        self.quota.count()
    }

    #[inline]
    fn room(&self, state: &SlidingWindowCounterState, now: Tick) -> u64 {
        self.room_at(&self.at(state, now))
    }

    #[inline]
    fn wait(&self, state: &SlidingWindowCounterState, n: u64, now: Tick) -> Wait {
        let Some(allowed) = self.quota.count().checked_sub(n) else {
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
                self.period_micros.get().saturating_add(self.elapsed_until(read.current, allowed))
            }
        };
        Wait::After(read.start.plus(ready).micros_since(now))
    }

    #[inline]
    fn take(&self, state: &mut SlidingWindowCounterState, n: u64, now: Tick) {
        *state = self.at(state, now);
        state.current = state.current.saturating_add(n).min(MAX_UNITS);
    }

    fn instant(&self, state: &SlidingWindowCounterState, now: Tick) -> Tick {
        now.max(state.last)
    }

    #[inline]
    fn debt(&self, state: &SlidingWindowCounterState, now: Tick) -> u64 {
        self.estimate(&self.at(state, now)).saturating_sub(self.quota.count())
    }

    #[inline]
    fn give_back(
        &self,
        state: &mut SlidingWindowCounterState,
        n: u64,
        origin: Option<Origin<'_>>,
        now: Tick,
    ) {
        let mut read = self.at(state, now);
        let taken_at = origin.map_or(read.start, |origin| origin.taken_at());
        let count = if taken_at >= read.start {
            &mut read.current
        } else if taken_at.plus(self.period_micros.get()) >= read.start {
            &mut read.previous
        } else {
            return;
        };
        if *count > 0 {
            *count = count.saturating_sub(n);
            *state = read;
        }
    }

    fn forgive(&self, state: &mut SlidingWindowCounterState, now: Tick) {
        let mut read = self.at(state, now);
        let limit = self.quota.count();
        if self.estimate(&read) > limit {
            let left = self.period_micros.get() - read.last.micros_since(read.start);
            let most = mul_div_floor(limit, self.period_micros.get(), Divisor::new(left));
            read.previous = read.previous.min(most);
            let elapsed = read.last.micros_since(read.start);
            read.current = read.current.min(limit - self.weighted(read.previous, elapsed));
            *state = read;
        }
    }

    #[inline]
    fn fresh_after(&self, state: &SlidingWindowCounterState, now: Tick) -> u64 {
        let read = self.at(state, now);
        let windows = match (read.previous, read.current) {
            (0, 0) => return state.last.micros_since(now),
            (_, 0) => 1,
            _ => 2,
        };
        let end = read.start.plus(windows * self.period_micros.get());
        end.micros_since(now)
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: Some(self.quota.period()) }]
    }
}

#[cfg(feature = "serde")]
mod written {
    use super::SlidingWindowCounterState;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    impl Serialize for SlidingWindowCounterState {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            Self::serialize(self, serializer)
        }
    }

    impl<'de> Deserialize<'de> for SlidingWindowCounterState {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let state = Self::deserialize(deserializer)?;
            if state.start > state.last {
                return Err(D::Error::custom("a counter's window begins after it was written"));
            }
            Ok(state)
        }
    }
}

#[cfg(feature = "redis")]
impl super::Scripted for SlidingWindowCounter {
    fn script(&self, call: &mut super::ScriptCall) {
        const SCRIPT: super::Script = super::Script::new(
            "sliding_window_counter",
            include_str!("sliding_window_counter.lua"),
        );
        call.limit(SCRIPT, &[self.quota.count(), self.period_micros.get()]);
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
