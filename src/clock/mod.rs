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

    /// The instant `micros` microseconds later.
    ///
    /// It may lie beyond [`Tick::MAX`]: when a wait ends is not limited, only when one may ask.
    #[must_use]
    pub const fn saturating_add(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` until this instant, 0 when `earlier` is later.
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
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
pub use monotonic::{CoarseClock, MonotonicClock};

#[cfg(feature = "memory")]
mod monotonic {
    use super::{Clock, Tick, micros};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::sync::{Arc, LazyLock};
    use std::time::{Duration, SystemTime};
    use std::{io, thread};

    /// The wall clock as it was when first asked for, counted on from there by a clock that
    /// never goes backwards (the processor's, by [`quanta`]).
    ///
    /// All of a process's clocks share that one start, so they agree with each other. Later
    /// corrections of the wall clock are not followed: over months, windows that are aligned
    /// to it may drift from it by seconds.
    #[derive(Clone, Debug)]
    pub struct MonotonicClock {
        clock: quanta::Clock,
        /// The instant at which the clock would have counted nothing.
        zero: Tick,
        /// Microseconds for a count of the clock, times 2^64.
        micros_per_count: u64,
    }

    static START: LazyLock<MonotonicClock> = LazyLock::new(|| {
        let clock = quanta::Clock::new();
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        // Rounded down by less than a microsecond in thirty years of nanoseconds.
        let nanos = u128::from(clock.delta_as_nanos(0, 1 << 50));
        let micros_per_count = u64::try_from((nanos << 14) / 1_000).unwrap_or(u64::MAX);
        let counted = micros_of(clock.raw(), micros_per_count);
        let zero = Tick(micros(since_epoch).wrapping_sub(counted));
        MonotonicClock { zero, micros_per_count, clock }
    });

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the upper half of 128 bits")]
    fn micros_of(counts: u64, micros_per_count: u64) -> u64 {
        ((u128::from(counts) * u128::from(micros_per_count)) >> 64) as u64
    }

    impl Default for MonotonicClock {
        fn default() -> Self {
            START.clone()
        }
    }

    impl Clock for MonotonicClock {
        #[inline]
        fn now(&self) -> Tick {
            let counted = micros_of(self.clock.raw(), self.micros_per_count);
            // No process runs for half a million years.
            Tick(self.zero.0.wrapping_add(counted))
        }
    }

    /// A [`MonotonicClock`] that is read every so often by a thread of its own, for where reading
    /// it for each decision is too dear. Its clones are one clock; the thread ends after the last
    /// of them.
    ///
    /// It is late by up to its resolution, and by what the operating system makes the thread wait
    /// on top. Units may come back so much too late, also for those who have slept for as long as
    /// they were told; never too early.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{CoarseClock, Limiter, Quota, TokenBucket};
    ///
    /// let clock = CoarseClock::start(Duration::from_millis(1))?;
    /// let limiter = Limiter::with_clock(TokenBucket::new(Quota::per_second(10)), clock);
    /// assert!(limiter.check("alice").is_allowed());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[derive(Clone, Debug)]
    pub struct CoarseClock(Arc<AtomicU64>);

    impl CoarseClock {
        /// A clock that is set every `resolution`.
        ///
        /// # Errors
        ///
        /// Where no thread can be started.
        pub fn start(resolution: Duration) -> io::Result<Self> {
            let clock = MonotonicClock::default();
            let now = Arc::new(AtomicU64::new(clock.now().as_micros()));
            let set = Arc::downgrade(&now);
            thread::Builder::new().name("tollgate-clock".to_owned()).spawn(move || {
                while let Some(now) = set.upgrade() {
                    now.store(clock.now().as_micros(), Relaxed);
                    drop(now);
                    thread::sleep(resolution);
                }
            })?;
            Ok(Self(now))
        }
    }

    impl Clock for CoarseClock {
        #[inline]
        fn now(&self) -> Tick {
            Tick::from_micros(self.0.load(Relaxed))
        }
    }
}

#[cfg(feature = "tokio")]
pub use in_tokio::TokioClock;

#[cfg(feature = "tokio")]
mod in_tokio {
    use super::{Clock, Tick, micros};
    use std::time::SystemTime;
    use tokio::time::Instant;

    /// Tokio's clock, set by the wall clock when it is made: for tests that pause the time, as those
    /// who wait sleep by that clock. Its clones are one clock.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Limiter, Quota, TokenBucket, TokioClock};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// // in a #[tokio::test(start_paused = true)]
    /// let bucket = TokenBucket::new(Quota::per_hour(1));
    /// let limiter = Limiter::with_clock(bucket, TokioClock::start());
    /// assert!(limiter.check("alice").is_allowed());
    /// tokio::time::advance(Duration::from_secs(3600)).await;
    /// assert!(limiter.check("alice").is_allowed());
    /// # });
    /// ```
    #[derive(Copy, Clone, Debug)]
    pub struct TokioClock {
        start: Instant,
        start_unix: Tick,
    }

    impl TokioClock {
        /// A clock that begins at the present time.
        #[must_use]
        pub fn start() -> Self {
            let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            let micros = micros(since_epoch);
            Self::start_at(Tick::from_micros(micros))
        }

        /// A clock that begins at an instant of your choice.
        #[must_use]
        pub fn start_at(start: Tick) -> Self {
            Self { start: Instant::now(), start_unix: start }
        }
    }

    impl Clock for TokioClock {
        fn now(&self) -> Tick {
            let micros = micros(self.start.elapsed());
            self.start_unix.saturating_add(micros)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stop_at_their_maximum_but_waits_may_end_later() {
        assert_eq!(Tick::from_micros(u64::MAX), Tick::MAX);
        assert_eq!(Tick::MAX.saturating_add(7).micros_since(Tick::MAX), 7);
        assert_eq!(Tick::MAX.micros_since(Tick::MAX.saturating_add(7)), 0);
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
