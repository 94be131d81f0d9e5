use spin::mutex::{SpinMutex, SpinMutexGuard};
use std::hint::spin_loop;
use std::ops::DerefMut;
use std::thread::yield_now;

/// A lock of one byte that is held for nanoseconds: it is taken by one atomic instruction and
/// given back by a plain store. Whoever finds it taken tries again after longer and longer spins, for
/// some microseconds, and then lets other threads run in between, in case the one that holds it needs
/// the processor.
///
/// It has cache lines of its own (two, as processors fetch them in pairs), so that threads that
/// take different locks do not meet.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Lock<T>(SpinMutex<T>);

const MAX_SPINS: u32 = 128;

impl<T> Lock<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    #[inline]
    pub(super) fn lock(&self) -> impl DerefMut<Target = T> {
        match self.0.try_lock() {
            Some(guard) => guard,
            None => self.lock_when_free(),
        }
    }

    #[cold]
    fn lock_when_free(&self) -> SpinMutexGuard<'_, T> {
        let mut spins = 8;
        loop {
            if spins < MAX_SPINS {
                (0..spins).for_each(|_| spin_loop());
                spins *= 2;
            } else {
                yield_now();
            }
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
        }
    }
}
