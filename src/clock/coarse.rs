use super::{Clock, MonotonicClock, Tick};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use std::{io, thread};

/// A [`MonotonicClock`] that is read every so often by a thread of its own, for where reading
/// it for each decision is too dear. Its clones are one clock; the thread ends after the last
/// of them.
///
/// It is late by up to its resolution, and by what the operating system makes the thread wait
/// on top. Units may come back so much too late, also after a stated wait; never too early. A bucket
/// gives no more than its burst for each step of the clock, and a caller that waits with a deadline
/// of a few steps may be denied although its units would have come in time. Below about 100 µs, a
/// step takes as long as the shortest sleep of the operating system.
///
/// Only the thread that calls `fork` goes on in the child, where this clock stands still: start one
/// after forking.
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

/// Shorter sleeps take up a whole processor; longer ones keep units back, and the thread alive
/// when the clock is dropped.
const RESOLUTIONS: RangeInclusive<Duration> = Duration::from_micros(1)..=Duration::from_secs(1);

impl CoarseClock {
    /// A clock that is set every `resolution`: 1 µs to 1 s.
    ///
    /// # Errors
    ///
    /// Fails with [`InvalidInput`](io::ErrorKind::InvalidInput) if the resolution is out of range,
    /// and if no thread can be started.
    pub fn start(resolution: Duration) -> io::Result<Self> {
        if !RESOLUTIONS.contains(&resolution) {
            let message = format!("a clock's resolution must be 1 µs to 1 s, not {resolution:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
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
