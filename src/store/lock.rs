use super::backoff::attempt_until_done;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// A lock of one byte that is held for nanoseconds: it is taken by one atomic instruction and
/// given back by a plain store.
///
/// It has cache lines of its own (two, as processors fetch them in pairs), so that threads that
/// take different locks do not meet.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Lock<T>(SpinMutex<T>);

pub(super) type LockGuard<'a, T> = SpinMutexGuard<'a, T>;

impl<T> Lock<T> {
    #[inline]
    pub(super) fn lock(&self) -> LockGuard<'_, T> {
        match self.0.try_lock() {
            Some(guard) => guard,
            None => self.lock_when_free(),
        }
    }

    #[cold]
    fn lock_when_free(&self) -> LockGuard<'_, T> {
        attempt_until_done(|| self.0.try_lock())
    }
}
