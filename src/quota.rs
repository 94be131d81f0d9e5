//! How much, per how long.

use crate::error::{Error, Kind};
use std::fmt;
use std::time::Duration;

/// A number of units per period of time: 100 per minute, 90,000 per day, 1 per 2 seconds.
///
/// What a unit is, is yours: a request, a byte, a token of a language model.
///
/// - count: 1 to 10^13 units ([`Quota::MAX_COUNT`]);
/// - period: whole milliseconds, 1 ms to 400 days ([`Quota::MAX_PERIOD`]).
///
/// Within these, every rate is kept exactly: 999,983 per day is 999,983 a day, not a rounded
/// number of nanoseconds for each.
///
/// ```
/// use std::time::Duration;
/// use tollgate::Quota;
///
/// const API: Quota = Quota::per_minute(100); // a wrong number would not compile
/// assert_eq!(API.to_string(), "100/min");
///
/// let slow = Quota::new(1, Duration::from_secs(2))?; // from run-time values
/// assert_eq!(slow.to_string(), "1/2s");
/// # Ok::<(), tollgate::Error>(())
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    count: u64,
    period_micros: u64,
}

/// The units of time of the policy text, longest first, with their milliseconds.
pub(crate) const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

const MICROS_PER_MILLI: u64 = 1_000;

impl Quota {
    /// The largest count: 10^13.
    pub const MAX_COUNT: u64 = 10_000_000_000_000;

    /// The longest period: 400 days.
    pub const MAX_PERIOD: Duration = Duration::from_secs(400 * 86_400);

    /// `count` units per second.
    ///
    /// # Panics
    ///
    /// Where `count` is 0 or more than [`Quota::MAX_COUNT`]: in a `const`, when compiled. For
    /// numbers that are known only at run time there is [`Quota::new`].
    #[must_use]
    pub const fn per_second(count: u64) -> Self {
        Self::per(count, 1_000)
    }

    /// `count` units per minute.
    ///
    /// # Panics
    ///
    /// As [`Quota::per_second`].
    #[must_use]
    pub const fn per_minute(count: u64) -> Self {
        Self::per(count, 60_000)
    }

    /// `count` units per hour.
    ///
    /// # Panics
    ///
    /// As [`Quota::per_second`].
    #[must_use]
    pub const fn per_hour(count: u64) -> Self {
        Self::per(count, 3_600_000)
    }

    /// `count` units per day of 24 hours.
    ///
    /// # Panics
    ///
    /// As [`Quota::per_second`].
    #[must_use]
    pub const fn per_day(count: u64) -> Self {
        Self::per(count, 86_400_000)
    }

    const fn per(count: u64, period_millis: u64) -> Self {
        assert!(
            count >= 1 && count <= Self::MAX_COUNT,
            "a quota's count must be 1 to 10000000000000"
        );
        Self { count, period_micros: period_millis * MICROS_PER_MILLI }
    }

    /// `count` units per `period`.
    ///
    /// # Errors
    ///
    /// Where `count` is 0 or more than [`Quota::MAX_COUNT`], or where `period` is 0, longer
    /// than [`Quota::MAX_PERIOD`], or not a whole number of milliseconds.
    pub fn new(count: u64, period: Duration) -> Result<Self, Error> {
        if !(1..=Self::MAX_COUNT).contains(&count) {
            return Err(Kind::Count { what: "a quota's count", count }.into());
        }
        let whole_millis = period.subsec_nanos().is_multiple_of(1_000_000);
        if period.is_zero() || period > Self::MAX_PERIOD || !whole_millis {
            return Err(Kind::Period { period }.into());
        }
        let period_millis = period.as_secs() * 1_000 + u64::from(period.subsec_millis());
        Ok(Self::per(count, period_millis))
    }

    /// Units per period.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The period.
    #[must_use]
    pub const fn period(&self) -> Duration {
        Duration::from_micros(self.period_micros)
    }

    /// The period in ticks.
    pub(crate) const fn period_micros(&self) -> u64 {
        self.period_micros
    }
}

/// Writes `count/period` in the longest unit of time that divides it: `100/min`, `1/2s`.
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period_millis = self.period_micros / MICROS_PER_MILLI;
        for (unit, unit_millis) in TIME_UNITS {
            if period_millis.is_multiple_of(unit_millis) {
                return match period_millis / unit_millis {
                    1 => write!(f, "{}/{unit}", self.count),
                    n => write!(f, "{}/{n}{unit}", self.count),
                };
            }
        }
        unreachable!("every period is a whole number of milliseconds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_quotas_are_refused_with_what_to_change() {
        let second = Duration::from_secs(1);
        let table = [
            (0, second, "a quota's count must be 1 to 10000000000000, not 0"),
            (
                Quota::MAX_COUNT + 1,
                second,
                "a quota's count must be 1 to 10000000000000, not 10000000000001",
            ),
            (
                1,
                Duration::ZERO,
                "a quota's period must be a whole number of milliseconds, 1 ms to 400 days, not 0ns",
            ),
            (
                1,
                Duration::from_micros(1_500),
                "a quota's period must be a whole number of milliseconds, 1 ms to 400 days, not 1.5ms",
            ),
            (
                1,
                Quota::MAX_PERIOD + second,
                "a quota's period must be a whole number of milliseconds, 1 ms to 400 days, not 34560001s",
            ),
        ];
        for (count, period, text) in table {
            assert_eq!(Quota::new(count, period).unwrap_err().to_string(), text);
        }
        assert!(Quota::new(Quota::MAX_COUNT, Quota::MAX_PERIOD).is_ok());
        assert!(Quota::new(1, Duration::MAX).is_err());
    }

    #[test]
    #[should_panic(expected = "a quota's count must be")]
    fn zero_per_second_panics() {
        let _ = Quota::per_second(0);
    }

    #[test]
    fn quotas_are_shown_in_the_longest_unit() {
        let show =
            |count, millis| Quota::new(count, Duration::from_millis(millis)).unwrap().to_string();
        assert_eq!(show(1, 1), "1/ms");
        assert_eq!(show(3, 1_500), "3/1500ms");
        assert_eq!(show(100, 60_000), "100/min");
        assert_eq!(show(7, 90 * 60_000), "7/90min");
        assert_eq!(show(5, 86_400_000 * 400), "5/400d");
    }
}
