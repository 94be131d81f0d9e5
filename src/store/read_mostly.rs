//! A value that many threads look at, and that changes now and then.

use super::backoff::{attempt_for_a_while, attempt_until_done};
use super::bit::{Bit, Held};
use super::sync::{ConstPtr, UnsafeCell, pause};
use super::thread_number::{LOCKS, set_thread_number, thread_number};
use std::ops::Deref;

/// A value under several locks. To look at it, a thread takes one of them, mostly the same, whose
/// cache line few other threads write; to change it, it takes them all.
///
/// A thread can lose the processor while it holds a lock, for milliseconds. So that nobody waits for
/// that more often than once, no thread looks while another one waits.
pub(super) struct ReadMostly<T> {
    locks: [Bit; LOCKS],
    /// Held by a thread that waits for locks, or has them all.
    is_waited_for: Bit,
    value: UnsafeCell<T>,
}

// SAFETY: a reference to the value is shared by threads that look at it (so `T: Sync`), each under
// one of the locks, or belongs to the one thread that has them all, which may take the value out or
// put another one in (so `T: Send`).
#[allow(unsafe_code)]
unsafe impl<T: Send + Sync> Sync for ReadMostly<T> {}

impl<T> ReadMostly<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            locks: [(); LOCKS].map(|()| Bit::new()),
            is_waited_for: Bit::new(),
            value: UnsafeCell::new(value),
        }
    }

    #[inline(always)]
    pub(super) fn read(&self) -> ReadGuard<'_, T> {
        let held = match self.locks[thread_number()].try_hold() {
            Some(held) if !self.is_waited_for.is_held() => held,
            held => self.hold_any(held),
        };
        ReadGuard { value: self.value.get(), _held: held }
    }

    /// Gives way to a thread that waits, once: so that threads which change the value all the time do
    /// not keep this one from looking. Then takes the first lock that is free, which is this thread's
    /// own from now on: whoever holds the one that was may have lost the processor, or always come at
    /// the same time.
    #[cold]
    #[inline(never)]
    fn hold_any(&self, held: Option<Held<'_>>) -> Held<'_> {
        drop(held);
        if self.is_waited_for.is_held() {
            let is_done = || (!self.is_waited_for.is_held()).then_some(());
            attempt_for_a_while(is_done).unwrap_or_else(pause);
        }
        let first = thread_number();
        let attempt = || {
            (first..first + LOCKS).find_map(|number| {
                let held = self.locks[number % LOCKS].try_hold()?;
                set_thread_number(number % LOCKS);
                Some(held)
            })
        };
        attempt_for_a_while(attempt).unwrap_or_else(|| {
            let _waiting = self.is_waited_for.hold();
            attempt_until_done(attempt)
        })
    }

    #[allow(unsafe_code)]
    pub(super) fn write<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let _waiting = self.is_waited_for.hold();
        let mut held = [const { None }; LOCKS];
        attempt_until_done(|| {
            for (held, lock) in held.iter_mut().zip(&self.locks) {
                if held.is_none() {
                    *held = lock.try_hold();
                }
            }
            held.iter().all(Option::is_some).then_some(())
        });
        let value = self.value.get_mut();
        // SAFETY: all locks are held until `change` is done; everybody else needs one of them for a
        // reference to the value.
        change(unsafe { value.deref() })
    }
}

/// The value, while it is looked at.
pub(super) struct ReadGuard<'a, T> {
    value: ConstPtr<T>,
    _held: Held<'a>,
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
