//! A value that many threads look at, and that changes now and then.

use super::lock::{Lock, LockGuard};
use super::sync::{ConstPtr, UnsafeCell};
use super::thread_number::{LOCKS, thread_number};
use std::ops::Deref;

/// A value under several locks. To look at it, a thread takes one of them, always the same, whose cache
/// line few other threads write, or none; to change it, it takes them all.
pub(super) struct ReadMostly<T> {
    locks: [Lock<()>; LOCKS],
    value: UnsafeCell<T>,
}

// SAFETY: a reference to the value is shared by threads that look at it (so `T: Sync`), each under
// one of the locks, or belongs to the one thread that has them all, which may take the value out or
// put another one in (so `T: Send`).
#[allow(unsafe_code)]
unsafe impl<T: Send + Sync> Sync for ReadMostly<T> {}

impl<T> ReadMostly<T> {
    pub(super) fn new(value: T) -> Self {
        Self { locks: [(); LOCKS].map(Lock::new), value: UnsafeCell::new(value) }
    }

    #[inline(always)]
    pub(super) fn read(&self) -> ReadGuard<'_, T> {
        let held = self.locks[thread_number()].lock();
        ReadGuard { value: self.value.get(), _held: held }
    }

    #[allow(unsafe_code)]
    pub(super) fn write<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let _held = self.locks.each_ref().map(Lock::lock);
        let value = self.value.get_mut();
        // SAFETY: all locks are held until `change` is done; everybody else needs one of them for a
        // reference to the value.
        change(unsafe { value.deref() })
    }
}

/// The value, while it is looked at.
pub(super) struct ReadGuard<'a, T> {
    value: ConstPtr<T>,
    _held: LockGuard<'a, ()>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    #[allow(unsafe_code)]
    fn deref(&self) -> &T {
        // SAFETY: the guard borrows the cell and holds one of the locks, so nobody has them all, and
        // nobody changes the value.
        unsafe { self.value.deref() }
    }
}
