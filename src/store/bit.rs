use super::backoff::attempt_until_done;
use std::sync::atomic::{AtomicBool, Ordering};

/// A lock that guards nothing by itself, in cache lines of its own (two, as processors fetch them in
/// pairs).
#[repr(align(128))]
pub(super) struct Bit(AtomicBool);

impl Bit {
    pub(super) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    #[inline]
    pub(super) fn is_held(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn try_hold(&self) -> Option<Held<'_>> {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Held(self))
    }

    pub(super) fn hold(&self) -> Held<'_> {
        self.try_hold().unwrap_or_else(|| attempt_until_done(|| self.try_hold()))
    }
}

pub(super) struct Held<'a>(&'a Bit);

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}
