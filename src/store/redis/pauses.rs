//! The keys that this process has paused.

use crate::clock::{Clock, Tick};
use crate::math::{micros, micros_rounded_up};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

pub(super) struct Pauses {
    paused: RwLock<Paused>,
    /// The instant by this machine's clock at which the time of pauses begins. It goes on even if
    /// the clock is set back.
    began: (Instant, Tick),
}

struct Paused {
    until: HashMap<Vec<u8>, Tick>,
    /// With so many keys, those are dropped whose pauses have ended.
    sweep_at: usize,
}

const SMALLEST_SWEEP: usize = 64;

impl Pauses {
    pub(super) fn new() -> Self {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let paused = Paused { until: HashMap::new(), sweep_at: SMALLEST_SWEEP };
        Self {
            paused: RwLock::new(paused),
            began: (Instant::now(), Tick::from_micros(micros(since_epoch))),
        }
    }

    /// By `clock`, if there is one.
    fn now(&self, clock: Option<&dyn Clock>) -> Tick {
        let (instant, began) = self.began;
        clock.map_or_else(|| began.saturating_add(micros(instant.elapsed())), Clock::now)
    }

    pub(super) fn pause(&self, key: Vec<u8>, duration: Duration, clock: Option<&dyn Clock>) {
        let now = self.now(clock);
        let end = now.saturating_add(micros_rounded_up(duration));
        let Paused { until, sweep_at } = &mut *self.paused.write();
        if until.len() >= *sweep_at {
            until.retain(|_, until| *until > now);
            *sweep_at = (2 * until.len()).max(SMALLEST_SWEEP);
        }
        if end > now {
            let until = until.entry(key).or_insert(end);
            *until = end.max(*until);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paused.read().until.is_empty()
    }

    /// The present instant, and for how many microseconds the key is paused from it on; `None` if it
    /// is not.
    pub(super) fn left(&self, key: &[u8], clock: Option<&dyn Clock>) -> Option<(Tick, u64)> {
        let until = *self.paused.read().until.get(key)?;
        let now = self.now(clock);
        let left = until.micros_since(now);
        if left == 0 {
            let mut paused = self.paused.write();
            if paused.until.get(key) == Some(&until) {
                paused.until.remove(key);
            }
            return None;
        }
        Some((now, left))
    }

    pub(super) fn end(&self, key: &[u8]) {
        self.paused.write().until.remove(key);
    }
}
