//! What the token bucket and the leaky bucket share: a level that falls steadily to zero.
//!
//! The level is the number of units *used*: taken and not yet regained. A token bucket holds
//! `capacity - level` tokens; a leaky bucket's queue is `level` long.

use super::Wait;
use crate::clock::Tick;
use crate::error::{Error, Kind};
use crate::math::{MAX_UNITS, gcd, mul_div_ceil, mul_div_floor};
use crate::quota::Quota;
use std::time::Duration;

/// What a [`TokenBucket`](super::TokenBucket) or a [`LeakyBucket`](super::LeakyBucket) keeps
/// for a key: units used, and since when they are being regained.
///
/// It holds whole numbers only, and no setting of the bucket, so it can be read under another
/// quota. No fraction of a unit is ever lost: `since` moves only by spans in which a whole
/// number of units is regained exactly.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BucketState {
    /// Units used at the instant `since`.
    used: u64,
    since: Tick,
    /// When this state was written; earlier instants read as this one.
    last: Tick,
}

/// A level falling by `units` every `ticks`, in lowest terms.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    quota: Quota,
    units: u64,
    ticks: u64,
    capacity: u64,
    /// The level that takes fifty years to fall, and the highest that a debt can bring about.
    max_used: u64,
}

/// Fifty years of 365 days, in ticks.
const FIFTY_YEARS: u64 = 50 * 365 * 86_400 * 1_000_000;

impl Bucket {
    pub(super) const fn new(quota: Quota) -> Self {
        let divisor = gcd(quota.count(), quota.period_micros());
        let units = quota.count() / divisor;
        let ticks = quota.period_micros() / divisor;
        let in_fifty_years = mul_div_floor(FIFTY_YEARS, units, ticks);
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

    pub(super) const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The time in which a whole capacity is regained, where it is a whole number of ticks.
    pub(super) fn window(&self) -> Option<Duration> {
        let wide = u128::from(self.capacity) * u128::from(self.ticks);
        let units = u128::from(self.units);
        let exact = wide.is_multiple_of(units).then_some(wide / units)?;
        Some(Duration::from_micros(u64::try_from(exact).ok()?))
    }

    /// Whole units regained from `since` until `now`.
    fn regained(&self, state: &BucketState, now: Tick) -> u64 {
        let elapsed = now.max(state.last).micros_since(state.since);
        mul_div_floor(elapsed, self.units, self.ticks)
    }

    /// The level now, rounded up.
    fn used(&self, state: &BucketState, now: Tick) -> u64 {
        state.used.saturating_sub(self.regained(state, now))
    }

    pub(super) fn room(&self, state: &BucketState, now: Tick) -> u64 {
        self.capacity.saturating_sub(self.used(state, now))
    }

    pub(super) fn wait(&self, state: &BucketState, n: u64, now: Tick) -> Wait {
        if n > self.capacity {
            return Wait::Never;
        }
        let allowed = self.capacity - n;
        match self.falls_to(state, allowed).micros_since(now.max(state.last)) {
            0 => Wait::Ready,
            micros => Wait::After(micros),
        }
    }

    /// The first instant at which the level is at most `level`.
    fn falls_to(&self, state: &BucketState, level: u64) -> Tick {
        let excess = state.used.saturating_sub(level);
        state.since.saturating_add(mul_div_ceil(excess, self.ticks, self.units))
    }

    pub(super) fn take(&self, state: &mut BucketState, n: u64, now: Tick) {
        *state = self.at(state, now);
        state.used = state.used.saturating_add(n).min(self.max_used);
    }

    pub(super) fn give_back(&self, state: &mut BucketState, n: u64, now: Tick) {
        state.used = state.used.saturating_sub(n);
        *state = self.at(state, now);
        if state.used == 0 {
            *state = BucketState::default();
        }
    }

    /// The same level, told from as late an instant as whole numbers allow.
    fn at(&self, state: &BucketState, now: Tick) -> BucketState {
        let now = now.max(state.last);
        if self.regained(state, now) >= state.used {
            return BucketState { used: 0, since: now, last: now };
        }
        let spans = now.micros_since(state.since) / self.ticks;
        BucketState {
            used: state.used - spans * self.units,
            since: state.since.saturating_add(spans * self.ticks),
            last: now,
        }
    }

    /// Ticks until nothing is used any more. For a queue: until all that is in it has left.
    pub(super) fn fresh_after(&self, state: &BucketState, now: Tick) -> u64 {
        self.falls_to(state, 0).micros_since(now.max(state.last))
    }
}

#[cfg(feature = "redis")]
mod in_redis {
    use super::{Bucket, BucketState};
    use crate::algorithm::{Script, ScriptCall, StoredState};
    use crate::clock::Tick;

    const SCRIPT: Script = Script::new("bucket", include_str!("bucket.lua"));

    impl Bucket {
        pub(in crate::algorithm) fn script(&self, call: &mut ScriptCall) {
            call.limit(SCRIPT, &[self.units, self.ticks, self.capacity, self.max_used]);
        }
    }

    impl BucketState {
        pub(in crate::algorithm) fn read(stored: &mut StoredState<'_>) -> Option<Self> {
            let used = stored.number()?;
            let since = Tick::from_micros(stored.number()?);
            let last = Tick::from_micros(stored.number()?);
            Some(Self { used, since, last })
        }
    }
}
