use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many threads can look at a value without meeting.
pub(super) const LOCKS: usize = 8;

/// A number for each thread, counted from 0 on.
#[inline]
pub(super) fn thread_number() -> usize {
    THIS.with(|this| match this.get() {
        UNKNOWN => {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let number = NEXT.fetch_add(1, Relaxed);
            this.set(number);
            number
        }
        number => number,
    })
}

const UNKNOWN: usize = usize::MAX;

thread_local! {
    static THIS: Cell<usize> = const { Cell::new(UNKNOWN) };
}
