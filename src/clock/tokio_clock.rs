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
