//! The files of the crate that synchronise by hand, on loom's atomics, cells and threads.

#![cfg(test)]

mod sync {
    pub(crate) use loom::cell::{ConstPtr, MutPtr, UnsafeCell};
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::thread::yield_now;

    /// In a model nothing is gained by it.
    pub(crate) fn spin_loop() {}
}

/// In place of the crate's, which is `spin`'s.
mod lock {
    use loom::sync::{Mutex, MutexGuard};

    pub(crate) struct Lock<T>(Mutex<T>);

    pub(crate) type LockGuard<'a, T> = MutexGuard<'a, T>;

    impl<T> Lock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockGuard<'_, T> {
            self.0.lock().unwrap()
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
}

#[path = "../../src/store/backoff.rs"]
mod backoff;
#[path = "../../src/store/read_mostly.rs"]
mod read_mostly;
#[path = "../../src/store/slot.rs"]
mod slot;

mod models;
