//! Instants, and where they come from.

use crate::math::{Divisor, micros};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// An instant: whole microseconds since the Unix epoch.
///
/// Every limit is computed on these ticks, in whole numbers, so that a decision depends on
/// nothing but the ticks and costs it was given.
///
/// ```
/// use tollgate::Tick;
///
/// let noon = Tick::from_micros(1_800_000_000_000_000);
/// assert_eq!(noon.saturating_add(250).micros_since(noon), 250);
/// ```
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tick(u64);

impl Tick {
    /// The last instant that limits tell apart: 7 x 10^15 microseconds, in the year 2191.
    ///
    /// A clock that reads later is taken to stand still there. The longest wait from there ends
    /// below 2^53, the end of the whole numbers that a double can count.
    pub const MAX: Self = Self(7_000_000_000_000_000);

    /// The instant that many microseconds after the Unix epoch, at most [`Tick::MAX`].
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        if micros < Self::MAX.0 { Self(micros) } else { Self::MAX }
    }

    /// The same, of a number that was an instant's before.
    pub(crate) const fn from_stored(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The instant `micros` microseconds later, at most [`Tick::MAX`].
    #[must_use]
    pub const fn saturating_add(self, micros: u64) -> Self {
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// The instant `micros` microseconds later, which may lie beyond [`Tick::MAX`]: when a wait ends
    /// is not limited, only when one may ask. No clock returns it.
    #[inline]
    pub(crate) const fn plus(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` until this instant, 0 when `earlier` is later.
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Microseconds from `now` until this instant; 0 if time has come that far for a state that was
    /// last written at `last`, even if the clock has gone back since.
    #[inline]
    pub(crate) const fn micros_from(self, now: Self, last: Self) -> u64 {
        if self.0 <= last.0 { 0 } else { self.0.saturating_sub(now.0) }
    }

    /// The start of the window of `length` microseconds, counted from the epoch, that this
    /// instant lies in.
    pub(crate) const fn window_start(self, length: Divisor) -> Self {
        Self(self.0 - length.div_rem(self.0).1)
    }
}

/// Tells a store what time it is.
///
/// ```
/// use tollgate::{Clock, Tick};
///
/// /// Always the same instant.
/// struct Stopped;
///
/// impl Clock for Stopped {
///     fn now(&self) -> Tick {
///         Tick::from_micros(1_800_000_000_000_000)
///     }
/// }
///
/// assert_eq!(Stopped.now(), Stopped.now());
/// ```
pub trait Clock: Send + Sync {
    /// The present instant. It may go backwards: limits treat that as time standing still.
    ///
    /// A store may ask while it holds a lock, so this must not ask a limiter for anything.
    fn now(&self) -> Tick;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Tick {
        (**self).now()
    }
}

/// A clock for tests: it stands still until it is told to move. Its clones are one clock.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{Limiter, ManualClock, Quota, Tick, TokenBucket};
///
/// let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
/// let limiter = Limiter::with_clock(TokenBucket::new(Quota::per_second(1)), clock.clone());
/// assert!(limiter.check("alice").is_allowed());
/// assert!(!limiter.check("alice").is_allowed());
/// clock.advance(Duration::from_secs(1));
/// assert!(limiter.check("alice").is_allowed());
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock standing at `start`.
    #[must_use]
    pub fn new(start: Tick) -> Self {
        Self(Arc::new(AtomicU64::new(start.as_micros())))
    }

    /// Moves the clock to `now`, forwards or backwards.
    pub fn set(&self, now: Tick) {
        self.0.store(now.as_micros(), Ordering::SeqCst);
    }

    /// Moves the clock forwards by `duration`, rounded down to whole microseconds.
    pub fn advance(&self, duration: Duration) {
        let micros = micros(duration);
        let later = |now: u64| Some(now.saturating_add(micros));
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Tick {
        Tick::from_micros(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(feature = "memory")]
mod coarse;
#[cfg(feature = "memory")]
mod monotonic;
#[cfg(feature = "tokio")]
mod tokio_clock;

#[cfg(feature = "memory")]
pub use coarse::CoarseClock;
#[cfg(feature = "memory")]
pub use monotonic::MonotonicClock;
#[cfg(feature = "tokio")]
pub use tokio_clock::TokioClock;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stop_at_their_maximum_but_waits_may_end_later() {
        assert_eq!(Tick::from_micros(u64::MAX), Tick::MAX);
        assert_eq!(Tick::MAX.saturating_add(7), Tick::MAX);
        assert_eq!(Tick::MAX.plus(7).micros_since(Tick::MAX), 7);
        assert_eq!(Tick::MAX.micros_since(Tick::MAX.plus(7)), 0);
    }

    #[test]
    fn a_manual_clock_misses_no_advance_of_any_thread() {
        let clock = ManualClock::new(Tick::from_micros(0));
        let start = std::sync::Barrier::new(4);
        let advance = || {
            start.wait();
            (0..500_000).for_each(|_| clock.advance(Duration::from_micros(1)));
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(advance);
            }
        });
        assert_eq!(clock.now(), Tick::from_micros(2_000_000));
    }

    #[cfg(feature = "memory")]
    #[test]
    fn a_coarse_clock_follows_the_other_one_and_its_thread_ends() {
        let coarse = CoarseClock::start(Duration::from_millis(1)).unwrap();
        let fine = MonotonicClock::default();
        let start = coarse.now();
        assert!(start <= fine.now());
        while coarse.now().micros_since(start) < 50_000 {
            std::thread::yield_now();
            assert!(coarse.now() <= fine.now());
        }
        let threads = || {
            let names = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
            let names = names.filter_map(|task| std::fs::read(task.path().join("comm")).ok());
            names.filter(|name| name.starts_with(b"tollgate-clock")).count()
        };
        let clone = coarse.clone();
        drop(coarse);
        assert!(clone.now() >= start);
        drop(clone);
        while threads() > 0 {
            std::thread::yield_now();
        }
    }

    #[cfg(feature = "memory")]
    #[test]
    fn a_coarse_clock_is_set_every_microsecond_to_every_second() {
        let start = |nanos| CoarseClock::start(Duration::from_nanos(nanos));
        for nanos in [1_000, 1_000_000_000] {
            assert!(start(nanos).is_ok(), "{nanos}");
        }
        for (nanos, not) in [(0, "0ns"), (999, "999ns"), (1_000_000_001, "1.000000001s")] {
            let error = start(nanos).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
            let message = format!("a clock's resolution must be 1 µs to 1 s, not {not}");
            assert_eq!(error.to_string(), message);
        }
    }

    #[cfg(feature = "memory")]
    #[test]
    fn the_monotonic_clock_reads_the_wall_clock_and_never_goes_back() {
        let wall = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let clock = MonotonicClock::default();
        let first = clock.now();
        assert!(u128::from(first.as_micros()).abs_diff(wall.as_micros()) < 5_000_000);
        let mut last = first;
        for _ in 0..100_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
