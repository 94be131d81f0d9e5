use super::sync::{pause, spin_loop};

const MAX_SPINS: u32 = 128;

/// Attempts something that others are in the way of for nanoseconds, after longer and longer spins,
/// for some microseconds.
pub(super) fn attempt_for_a_while<R>(mut attempt: impl FnMut() -> Option<R>) -> Option<R> {
    let mut spins = 8;
    while spins < MAX_SPINS {
        (0..spins).for_each(|_| spin_loop());
        spins *= 2;
        if let Some(done) = attempt() {
            return Some(done);
        }
    }
    None
}

/// The same until it is done, with other threads running in between, in case the one in the way needs
/// the processor.
pub(super) fn attempt_until_done<R>(mut attempt: impl FnMut() -> Option<R>) -> R {
    if let Some(done) = attempt_for_a_while(&mut attempt) {
        return done;
    }
    loop {
        pause();
        if let Some(done) = attempt() {
            return done;
        }
    }
}
