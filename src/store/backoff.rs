use super::sync::{spin_loop, yield_now};

const MAX_SPINS: u32 = 128;

/// Attempts something that others are in the way of for nanoseconds: after longer and longer spins, for
/// some microseconds, and then with other threads running in between, in case the one in the way
/// needs the processor.
pub(super) fn attempt_until_done<R>(mut attempt: impl FnMut() -> Option<R>) -> R {
    let mut spins = 8;
    loop {
        if spins < MAX_SPINS {
            (0..spins).for_each(|_| spin_loop());
            spins *= 2;
        } else {
            yield_now();
        }
        if let Some(done) = attempt() {
            return done;
        }
    }
}
