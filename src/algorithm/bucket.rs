//! What the token bucket and the leaky bucket share: a level that falls steadily to zero.
//!
//! The level is the number of units *used*: taken and not yet regained. A token bucket holds
//! `capacity - level` tokens; a leaky bucket's queue is `level` long.

use super::{Admission, Departure, Origin, Standing, Wait};
use crate::clock::Tick;
use crate::error::{Error, Kind};
use crate::math::{Divisor, MAX_UNITS, gcd, mul_div_ceil, mul_div_floor};
use crate::quota::Quota;
use std::fmt;
use std::time::Duration;

/// What a [`TokenBucket`](super::TokenBucket) or a [`LeakyBucket`](super::LeakyBucket) keeps
/// for a key: units used, and since when they are being regained.
///
/// It holds whole numbers only, and no setting of the bucket, so it can be read under another
/// quota. No fraction of a unit is ever lost: the time moves only by spans in which a whole
/// number of units is regained exactly.
///
/// It takes 16 bytes.
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash)]
pub struct BucketState {
    /// From the highest bit on: [`Level::since`] in 53 bits, the upper 10 of the long number,
    /// and whether the short number is the delay.
    since_and_long: u64,
    /// The lower 35 bits of the long number, and the short one in 29.
    long_and_short: u64,
}

/// What a [`BucketState`] says: of the units used and the delay from `since` to `last`, which is not
/// earlier, one in 45 bits and the other in 29.
#[derive(Copy, Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Level {
    /// Units used at the instant `since`.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::units"))]
    used: u64,
    since: Tick,
    /// When this was written; earlier instants read as this one.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::instant"))]
    last: Tick,
}

/// The delay is the long number, unless more units are used than the short one can count.
const LONGEST_SHORT: u64 = (1 << SHORT_BITS) - 1;
const SHORT_BITS: u32 = 29;
/// The longest delay that a state can hold, in 45 bits; no bucket's is longer.
#[cfg(any(feature = "redis", feature = "serde"))]
const LONGEST_DELAY: u64 = (1 << 45) - 1;
/// Of the long number, in the second word.
const LOW_BITS: u32 = 64 - SHORT_BITS;

impl BucketState {
    #[inline]
    fn level(self) -> Level {
        let since = Tick::from_stored(self.since_and_long >> 11);
        let long =
            (self.since_and_long >> 1 & 0x3ff) << LOW_BITS | self.long_and_short >> SHORT_BITS;
        let short = self.long_and_short & LONGEST_SHORT;
        let (used, delay) =
            if self.since_and_long & 1 == 0 { (short, long) } else { (long, short) };
        Level { used, since, last: since.plus(delay) }
    }

    /// The units taken, and when this was written.
    pub(crate) fn consumed(self) -> (u64, Tick) {
        let level = self.level();
        (level.used, level.last)
    }

    #[inline]
    const fn of(since: Tick, short: u64, long: u64, short_is_delay: bool) -> Self {
        debug_assert!(short <= LONGEST_SHORT && long <= MAX_UNITS, "they have so many bits");
        Self {
            since_and_long: since.as_micros() << 11 | long >> LOW_BITS << 1 | short_is_delay as u64,
            long_and_short: long << SHORT_BITS | short,
        }
    }
}

impl From<Level> for BucketState {
    #[inline]
    fn from(Level { used, since, last }: Level) -> Self {
        let delay = last.as_micros() - since.as_micros();
        if used <= LONGEST_SHORT {
            return Self::of(since, used, delay, false);
        }
        // A delay of more than 9 minutes is then taken to be so long: where the clock goes back,
        // time stands still at an earlier instant than it was. Lua does so too.
        Self::of(since, delay.min(LONGEST_SHORT), used, true)
    }
}

impl fmt::Debug for BucketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.level().fmt(f)
    }
}

/// A level falling by `units` every `ticks`, in lowest terms.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    quota: Quota,
    units: Divisor,
    ticks: Divisor,
    capacity: u64,
    /// The level that takes fifty years to fall, and the highest that a debt can bring about.
    max_used: u64,
}

/// Fifty years of 365 days, in ticks.
const FIFTY_YEARS: u64 = 50 * 365 * 86_400 * 1_000_000;

impl Bucket {
    pub(super) const fn new(quota: Quota) -> Self {
        let divisor = gcd(quota.count(), quota.period_micros());
        let units = Divisor::new(quota.count() / divisor);
        let ticks = Divisor::new(quota.period_micros() / divisor);
        let in_fifty_years = mul_div_floor(FIFTY_YEARS, units.get(), ticks);
        Self {
            quota,
            units,
            ticks,
            capacity: quota.count(),
            max_used: if in_fifty_years < MAX_UNITS { in_fifty_years } else { MAX_UNITS },
        }
    }

    /// The same rate with another capacity, where that is in range.
    pub(super) const fn with_capacity(self, capacity: u64) -> Option<Self> {
        if capacity >= 1 && capacity <= Quota::MAX_COUNT && capacity <= self.max_used {
            Some(Self { capacity, ..self })
        } else {
            None
        }
    }

    /// The same, with an error in which the capacity is called `what`.
    pub(super) fn try_with_capacity(self, what: &'static str, count: u64) -> Result<Self, Error> {
        self.with_capacity(count).ok_or_else(|| match count {
            1..=Quota::MAX_COUNT => Kind::Refill { what, count, quota: self.quota }.into(),
            _ => Kind::Count { what, count }.into(),
        })
    }

    pub(super) const fn quota(&self) -> Quota {
        self.quota
    }

    #[inline]
    pub(super) const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The time in which a whole capacity is regained, where it is a whole number of ticks.
    pub(super) fn window(&self) -> Option<Duration> {
        let wide = u128::from(self.capacity) * u128::from(self.ticks.get());
        let units = u128::from(self.units.get());
        let exact = wide.is_multiple_of(units).then_some(wide / units)?;
        Some(Duration::from_micros(u64::try_from(exact).ok()?))
    }

    #[inline]
    pub(super) fn room(&self, state: &BucketState, now: Tick) -> u64 {
        self.capacity.saturating_sub(self.used(state, now))
    }

    /// The level now, rounded up.
    #[inline]
    fn used(&self, state: &BucketState, now: Tick) -> u64 {
        let (level, regained) = self.at(self.level(state), now);
        level.used - regained
    }

    /// What the state says under this quota, which may not be the one that it was written under.
    #[inline]
    fn level(&self, state: &BucketState) -> Level {
        let level = state.level();
        Level { used: level.used.min(self.max_used), ..level }
    }

    #[inline]
    pub(super) fn wait(&self, state: &BucketState, n: u64, now: Tick) -> Wait {
        if n > self.capacity {
            return Wait::Never;
        }
        match self.falls_after(state, self.capacity - n, now) {
            0 => Wait::Ready,
            micros => Wait::After(micros),
        }
    }

    /// Ticks until the level is at most `allowed`.
    #[inline]
    fn falls_after(&self, state: &BucketState, allowed: u64, now: Tick) -> u64 {
        let level = self.level(state);
        let falls = self.ticks_for(level.used.saturating_sub(allowed));
        level.since.plus(falls).micros_from(now, level.last)
    }

    /// The time in which `units` are regained, rounded up.
    #[inline]
    fn ticks_for(&self, units: u64) -> u64 {
        if self.units.get() == 1 {
            return units.saturating_mul(self.ticks.get());
        }
        mul_div_ceil(units, self.ticks.get(), self.units)
    }

    /// Ticks until nothing is used any more, and time has come to where the state was written.
    #[inline]
    pub(super) fn fresh_after(&self, state: &BucketState, now: Tick) -> u64 {
        let level = self.level(state);
        level.since.plus(self.ticks_for(level.used)).max(level.last).micros_since(now)
    }

    #[inline]
    pub(super) fn take(&self, state: &mut BucketState, n: u64, now: Tick) {
        let (level, _) = self.at(self.level(state), now);
        let used = level.used.saturating_add(n).min(self.max_used);
        *state = Level { used, ..level }.into();
    }

    /// When a queue has let go all that is in it.
    #[inline]
    pub(super) fn departure(&self, state: &BucketState, now: Tick) -> Departure {
        let rate = (self.units.get(), self.ticks.get());
        Departure { delay: self.falls_after(state, 0, now), rate }
    }

    /// Joins a queue behind all that is in it. If another queue of a set is the longer one, though
    /// it is faster, this one's place is when the units go: the next ones are to keep its distance.
    pub(super) fn join(&self, state: &mut BucketState, n: u64, now: Tick, departure: Departure) {
        let (mut level, _) = self.at(self.level(state), now);
        let goes_at = now.plus(departure.delay);
        let (units, ticks) = departure.rate;
        let wide = |a: u64, b: u64| u128::from(a) * u128::from(b);
        if level.since.plus(self.ticks_for(level.used)) < goes_at
            && wide(self.ticks.get(), units) > wide(ticks, self.units.get())
        {
            let ahead = goes_at.micros_since(level.since);
            level.used = mul_div_ceil(ahead, self.units.get(), self.ticks);
        }
        level.used = level.used.saturating_add(n).min(self.max_used);
        *state = level.into();
    }

    /// Takes `n` units if there is room, and tells what `wait`, `fresh_after` and `room` would tell
    /// one by one, from one look at the state. In a queue, units are delayed until
    /// all that was in it before has left.
    #[inline(always)]
    pub(super) fn admit(
        &self,
        state: &mut BucketState,
        n: u64,
        now: Tick,
        is_queue: bool,
    ) -> Admission {
        let (level, regained) = self.at(self.level(state), now);
        // What has passed of the span in which the next units are regained.
        let elapsed = level.last.as_micros() - level.since.as_micros();
        // From the caller's now, which may be before the state was last written.
        let behind = level.last.as_micros() - now.as_micros();
        let ticks_until = |used: u64| self.ticks_for(used) - elapsed + behind;
        let used = level.used - regained;
        let room = self.capacity.saturating_sub(used);
        let wait = if n <= room {
            Wait::Ready
        } else if n <= self.capacity {
            Wait::After(ticks_until(level.used - (self.capacity - n)))
        } else {
            Wait::Never
        };
        let taken = if n <= room { n } else { 0 };
        let waits = is_queue && taken > 0 && level.used > 0;
        let delay = if waits { ticks_until(level.used) } else { 0 };
        let used = (level.used + taken).min(self.max_used);
        if taken > 0 {
            *state = Level { used, ..level }.into();
        }
        let standing = if used == 0 {
            Standing { fresh_after: behind, ..Standing::fresh(self.capacity) }
        } else {
            // Not what was there less what is taken: a level stops at the highest.
            let room = self.capacity.saturating_sub(used - regained);
            let next = used - (self.capacity - (room + 1));
            Standing { room, next_after: Some(ticks_until(next)), fresh_after: ticks_until(used) }
        };
        Admission { wait, delay, standing }
    }

    #[inline]
    pub(super) fn instant(state: &BucketState, now: Tick) -> Tick {
        now.max(state.level().last)
    }

    #[inline]
    pub(super) fn debt(&self, state: &BucketState, now: Tick) -> u64 {
        self.used(state, now).saturating_sub(self.capacity)
    }

    /// What came back while these units were held, and would have been lost without them, from when
    /// the bucket would have been fresh, is not given back too: others may have used it.
    #[inline]
    pub(super) fn give_back(
        &self,
        state: &mut BucketState,
        n: u64,
        origin: Option<Origin<'_>>,
        now: Tick,
    ) {
        let level = self.level(state);
        if self.at(level, now).0.used == 0 {
            return;
        }
        let last = now.max(level.last);
        let lost = origin.map_or(0, |origin| last.micros_since(origin.fresh_at()));
        if lost < self.ticks_for(n) {
            *state = self.at(self.without(level, n, lost, last), now).0.into();
        }
    }

    /// Gives up `n` of the units of a place in a queue. Departures have been promised to all that
    /// is behind it, so only the last place is there to be taken again; any other leaks unused. A
    /// unit stays where the departure may have been.
    pub(super) fn leave(
        &self,
        state: &mut BucketState,
        n: u64,
        origin: Option<Origin<'_>>,
        now: Tick,
    ) {
        let Some(origin) = origin else { return };
        let level = self.level(state);
        let at = |used: u64| level.since.plus(self.ticks_for(used));
        let is_last = at(level.used) == origin.held_until()
            && level.used >= origin.units()
            && at(level.used - origin.units()) == origin.fresh_at();
        let has_left = now.max(level.last) > origin.leaves_at();
        let n = n.min(origin.units() - u64::from(has_left));
        if at(level.used).micros_from(now, level.last) == 0 || !is_last || n == 0 {
            return;
        }
        let (level, _) = self.at(level, now);
        let level = Level { used: level.used.saturating_sub(n), ..level };
        *state = self.at(level, now).0.into();
    }

    /// The level without `n` of the units, and without what was regained in so many ticks.
    fn without(&self, level: Level, n: u64, ticks: u64, now: Tick) -> Level {
        let since = level.since.plus(ticks);
        // As a number of spans later as it takes to be in the past.
        let spans = since.micros_since(now).div_ceil(self.ticks.get());
        let used =
            level.used.saturating_add(spans.saturating_mul(self.units.get())).saturating_sub(n);
        let used = used.min(self.max_used);
        let since = since.as_micros().saturating_sub(spans * self.ticks.get());
        Level { used, since: Tick::from_stored(since), ..level }
    }

    /// The same level, told from as late an instant as whole numbers allow, and the whole units
    /// regained since then, which are fewer than are used.
    #[inline]
    fn at(&self, level: Level, now: Tick) -> (Level, u64) {
        let last = now.max(level.last);
        let elapsed = last.as_micros() - level.since.as_micros();
        let (used, rest) = if elapsed < self.ticks.get() {
            (level.used, elapsed)
        } else {
            let (spans, rest) = self.ticks.div_rem(elapsed);
            (level.used.saturating_sub(spans.saturating_mul(self.units.get())), rest)
        };
        let regained = match self.units.get() {
            1 => 0,
            units => mul_div_floor(rest, units, self.ticks),
        };
        if used <= regained {
            return (Level { used: 0, since: last, last }, 0);
        }
        (Level { used, since: Tick::from_stored(last.as_micros() - rest), last }, regained)
    }
}

#[cfg(feature = "serde")]
mod written {
    use super::{BucketState, LONGEST_DELAY, Level};
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    impl Serialize for BucketState {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.level().serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for BucketState {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let level = Level::deserialize(deserializer)?;
            if level.since > level.last || level.last.micros_since(level.since) > LONGEST_DELAY {
                return Err(D::Error::custom("a bucket's instants are too far apart"));
            }
            Ok(level.into())
        }
    }
}

#[cfg(feature = "redis")]
mod in_redis {
    use super::{Bucket, BucketState, LONGEST_DELAY, Level};
    use crate::algorithm::{Script, ScriptCall, StoredState};
    use crate::clock::Tick;
    use crate::math::MAX_UNITS;

    const SCRIPT: Script = Script::new("bucket", include_str!("bucket.lua"));

    impl Bucket {
        pub(in crate::algorithm) fn script(&self, call: &mut ScriptCall) {
            self.script_of(SCRIPT, call);
        }

        pub(in crate::algorithm) fn script_of(&self, script: Script, call: &mut ScriptCall) {
            call.limit(script, &[self.units.get(), self.ticks.get(), self.capacity, self.max_used]);
        }
    }

    impl BucketState {
        pub(in crate::algorithm) fn read(stored: &mut StoredState<'_>) -> Option<Self> {
            let used = stored.number()?;
            let since = Tick::from_micros(stored.number()?);
            let last = Tick::from_micros(stored.number()?).max(since);
            let level = Level { used: used.min(MAX_UNITS), since, last };
            (last.micros_since(since) <= LONGEST_DELAY).then(|| level.into())
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::algorithm::push_number;

        fn read(used: u64, since: u64, last: u64) -> Option<BucketState> {
            let mut bytes = Vec::new();
            for number in [used, since, last] {
                push_number(&mut bytes, number);
            }
            BucketState::read(&mut StoredState(&bytes))
        }

        #[test]
        fn a_delay_that_no_bucket_has_cannot_be_read() {
            for used in [1, 1 << 40] {
                assert!(read(used, 7, 7 + LONGEST_DELAY).is_some());
                assert_eq!(read(used, 7, 8 + LONGEST_DELAY), None);
                assert_eq!(read(used, 0, Tick::MAX.as_micros()), None);
            }
            assert_eq!(
                read(1, 7, 7 + LONGEST_DELAY).unwrap().consumed().1.as_micros(),
                7 + LONGEST_DELAY
            );
        }
    }
}
