//! When the pauses of keys end, so that none is kept for long after that.

use crate::clock::Tick;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(super) struct Pauses {
    /// The end of the first one, in microseconds; `u64::MAX` if there is none.
    first_end: AtomicU64,
    ends: Mutex<BTreeSet<(Tick, u64)>>,
}

impl Pauses {
    pub(super) const fn new() -> Self {
        Self { first_end: AtomicU64::new(u64::MAX), ends: Mutex::new(BTreeSet::new()) }
    }

    /// Notes that the pause of a key ends then, and not at `old_end`.
    pub(super) fn note(&self, fingerprint: u64, old_end: Tick, end: Option<Tick>) {
        let mut ends = self.ends.lock();
        ends.remove(&(old_end, fingerprint));
        ends.extend(end.map(|end| (end, fingerprint)));
        self.set_first_end(&ends);
    }

    /// A key whose pause has ended, and when; each once.
    pub(super) fn next_ended(&self, now: impl FnOnce() -> Tick) -> Option<(Tick, u64)> {
        let first_end = self.first_end.load(Relaxed);
        if first_end == u64::MAX || now().as_micros() < first_end {
            return None;
        }
        let mut ends = self.ends.lock();
        let ended = ends.first().filter(|(end, _)| end.as_micros() <= first_end).copied();
        if let Some(ended) = &ended {
            ends.remove(ended);
        }
        self.set_first_end(&ends);
        ended
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ends.lock().len()
    }

    fn set_first_end(&self, ends: &BTreeSet<(Tick, u64)>) {
        let first_end = ends.first().map_or(u64::MAX, |(end, _)| end.as_micros());
        self.first_end.store(first_end, Relaxed);
    }
}
