use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many threads can look at a value without meeting.
pub(super) const LOCKS: usize = 8;

/// A number below [`LOCKS`] for each thread, dealt out in turn.
#[inline]
pub(super) fn thread_number() -> usize {
    THIS.with(|this| match this.get() {
        number @ 0..LOCKS => number,
        UNKNOWN.. => {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let number = NEXT.fetch_add(1, Relaxed) % LOCKS;
            this.set(number);
            number
        }
    })
}

/// Gives this thread another number.
pub(super) fn set_thread_number(number: usize) {
    THIS.with(|this| this.set(number));
}

const UNKNOWN: usize = LOCKS;

thread_local! {
    static THIS: Cell<usize> = const { Cell::new(UNKNOWN) };
}
