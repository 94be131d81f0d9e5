//! What the hand-made locks are made of: the standard library's. The model in `loom/` puts loom's in
//! its place, which has the same interface.

use std::cell;
pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Leaves the processor to others for about a tenth of a millisecond. To yield it would be no way to
/// wait: a thread that yields again and again is left out for seconds by Linux 6.18, and one of
/// real-time priority lets nobody run.
pub(super) fn pause() {
    std::thread::sleep(Duration::from_micros(50));
}

pub(super) struct UnsafeCell<T>(cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(super) const fn get(&self) -> ConstPtr<T> {
        ConstPtr(self.0.get())
    }

    #[inline]
    pub(super) const fn get_mut(&self) -> MutPtr<T> {
        MutPtr(self.0.get())
    }

    pub(super) fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

/// To what is in a cell, for as long as it is looked at.
pub(super) struct ConstPtr<T>(*const T);

impl<T> ConstPtr<T> {
    /// # Safety
    ///
    /// The cell is still there, and nobody changes what is in it.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) const unsafe fn deref(&self) -> &T {
        // SAFETY: as the caller has to see to.
        unsafe { &*self.0 }
    }
}

/// To what is in a cell, for as long as it is changed.
pub(super) struct MutPtr<T>(*mut T);

impl<T> MutPtr<T> {
    #[inline]
    pub(super) fn with<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0)
    }

    /// # Safety
    ///
    /// The cell is still there, and there is no other reference to what is in it.
    #[inline]
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(super) const unsafe fn deref(&self) -> &mut T {
        // SAFETY: as the caller has to see to.
        unsafe { &mut *self.0 }
    }
}
