//! The files of the crate that synchronise by hand, on loom's atomics, cells and threads.

#![cfg(test)]

mod sync {
    pub(crate) use loom::cell::{ConstPtr, MutPtr, UnsafeCell};
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::thread::yield_now as pause;
}

/// On loom's mutex, whose waiters loom does not run in vain; and a flag beside it, as loom takes a
/// thread that tries the mutex to wait for it.
mod bit {
    use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use loom::sync::{Mutex, MutexGuard};

    pub(crate) struct Bit {
        lock: Mutex<()>,
        is_held: AtomicBool,
    }

    pub(crate) struct Held<'a> {
        is_held: &'a AtomicBool,
        _lock: MutexGuard<'a, ()>,
    }

    impl Bit {
        pub(crate) fn new() -> Self {
            Self { lock: Mutex::new(()), is_held: AtomicBool::new(false) }
        }

        pub(crate) fn is_held(&self) -> bool {
            self.is_held.load(Relaxed)
        }

        pub(crate) fn try_hold(&self) -> Option<Held<'_>> {
            self.lock.try_lock().ok().map(|lock| self.held(lock))
        }

        pub(crate) fn hold(&self) -> Held<'_> {
            self.held(self.lock.lock().unwrap())
        }

        fn held<'a>(&'a self, lock: MutexGuard<'a, ()>) -> Held<'a> {
            self.is_held.store(true, Relaxed);
            Held { is_held: &self.is_held, _lock: lock }
        }
    }

    impl Drop for Held<'_> {
        fn drop(&mut self) {
            self.is_held.store(false, Relaxed);
        }
    }
}

/// The number that a model gives its threads.
mod thread_number {
    use std::cell::Cell;

    pub(crate) const LOCKS: usize = 2;

    loom::thread_local! {
        pub(crate) static THIS: Cell<usize> = Cell::new(0);
    }

    pub(crate) fn thread_number() -> usize {
        THIS.with(Cell::get)
    }

    pub(crate) fn set_thread_number(number: usize) {
        THIS.with(|this| this.set(number));
    }
}

/// In a model nothing is gained by attempts that no other thread runs between.
mod backoff {
    use crate::sync::pause;

    pub(crate) fn attempt_for_a_while<R>(mut attempt: impl FnMut() -> Option<R>) -> Option<R> {
        attempt()
    }

    pub(crate) fn attempt_until_done<R>(mut attempt: impl FnMut() -> Option<R>) -> R {
        loop {
            if let Some(done) = attempt() {
                return done;
            }
            pause();
        }
    }
}

#[path = "../../src/store/read_mostly.rs"]
mod read_mostly;
#[path = "../../src/store/slot.rs"]
mod slot;

mod models;
