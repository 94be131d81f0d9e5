//! A state that is locked by a bit of the number that it is found by.

use super::backoff::attempt_for_a_while;
use super::sync::{AtomicU64, MutPtr, Ordering, UnsafeCell};
use std::ops::{Deref, DerefMut};

/// A state, behind an even number that tells whose it is: its tag. The tag's lowest bit is the lock
/// on the state, so that whoever has found it has the lock's cache line already, and needs no other.
pub(super) struct Slot<T> {
    word: AtomicU64,
    state: UnsafeCell<T>,
}

/// Set while the state is locked.
const LOCKED: u64 = 1;

// SAFETY: a shared slot gives its state to one thread at a time: to the one that holds the lock, which
// is taken with acquire and given back with release. So a state goes from thread to thread, which
// `Send` allows, and is never shared between them.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Slot<T> {}

impl<T> Slot<T> {
    pub(super) fn new(tag: u64, state: T) -> Self {
        debug_assert!(tag & LOCKED == 0, "a tag is even");
        Self { word: AtomicU64::new(tag), state: UnsafeCell::new(state) }
    }

    /// The tag, or one more while the state is locked.
    #[inline]
    pub(super) fn word(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    /// The tag, where nobody can hold the lock.
    pub(super) fn tag(&mut self) -> u64 {
        self.word()
    }

    /// Locks the state of a slot with this `tag`, unless others keep it locked.
    pub(super) fn lock_soon(&self, tag: u64) -> Option<SlotGuard<'_, T>> {
        debug_assert!(self.word() | LOCKED == tag | LOCKED, "a shared slot keeps its tag");
        self.try_lock(tag).or_else(|| attempt_for_a_while(|| self.try_lock(tag)))
    }

    /// Locks the state, if the slot has this `tag` and is not locked.
    #[inline(always)]
    pub(super) fn try_lock(&self, tag: u64) -> Option<SlotGuard<'_, T>> {
        debug_assert!(tag & LOCKED == 0, "a tag is even");
        let locked = tag | LOCKED;
        self.word.compare_exchange(tag, locked, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(SlotGuard { state: self.state.get_mut(), _unlock: Unlock { word: &self.word, tag } })
    }

    /// The state, of a slot that is not shared.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) fn get_mut(&mut self) -> &mut T {
        // SAFETY: the slot is borrowed mutably for as long as the state is.
        self.state.get_mut().with(|state| unsafe { &mut *state })
    }

    pub(super) fn into_state(self) -> T {
        self.state.into_inner()
    }
}

/// The state of a locked slot, which is unlocked when this is dropped.
pub(super) struct SlotGuard<'a, T> {
    state: MutPtr<T>,
    _unlock: Unlock<'a>,
}

impl<T> Deref for SlotGuard<'_, T> {
    type Target = T;

    #[inline]
    #[allow(unsafe_code)]
    fn deref(&self) -> &T {
        // SAFETY: as for the other one, but that this reference may be shared, and so is not made of
        // one that may not.
        self.state.with(|state| unsafe { &*state })
    }
}

impl<T> DerefMut for SlotGuard<'_, T> {
    #[inline]
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the slot is locked, and borrowed, for as long as the guard is there; who has not
        // locked it has no reference to the state, and this one borrows the guard mutably.
        unsafe { self.state.deref() }
    }
}

struct Unlock<'a> {
    word: &'a AtomicU64,
    tag: u64,
}

impl Drop for Unlock<'_> {
    #[inline]
    fn drop(&mut self) {
        self.word.store(self.tag, Ordering::Release);
    }
}
