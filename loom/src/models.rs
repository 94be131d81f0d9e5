use crate::read_mostly::ReadMostly;
use crate::slot::{Slot, SlotGuard};
use crate::sync::pause;
use crate::thread_number::{THIS, thread_number};
use loom::sync::Arc;
use loom::thread;

const TAG: u64 = 42;

/// On a thread with a number of its own.
fn spawn(number: usize, work: impl FnOnce() + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        THIS.with(|this| this.set(number));
        work();
    })
}

/// Each order in which threads lose the processor up to three times, but where they wait: all orders
/// take too long.
fn three_threads(model: impl Fn() + Send + Sync + 'static) {
    let mut orders = loom::model::Builder::new();
    orders.preemption_bound = Some(3);
    orders.check(model);
}

fn lock(slot: &Slot<u64>) -> SlotGuard<'_, u64> {
    loop {
        if let Some(state) = slot.lock_soon(TAG) {
            return state;
        }
        pause();
    }
}

#[test]
fn a_slot_loses_no_change_of_any_thread() {
    loom::model(|| {
        let slot = Arc::new(Slot::new(TAG, 0));
        let thread = {
            let slot = Arc::clone(&slot);
            spawn(1, move || {
                *lock(&slot) += 1;
                *lock(&slot) += 1;
            })
        };
        *lock(&slot) += 1;
        thread.join().unwrap();
        let mut slot = Arc::try_unwrap(slot).ok().expect("the only one");
        assert_eq!((slot.tag(), *slot.get_mut()), (TAG, 3));
        assert_eq!(slot.into_state(), 3);
    });
}

#[test]
fn a_locked_slot_can_be_found() {
    loom::model(|| {
        let slot = Arc::new(Slot::new(TAG, 0));
        let thread = {
            let slot = Arc::clone(&slot);
            spawn(1, move || drop(lock(&slot)))
        };
        assert!((TAG..=TAG + 1).contains(&slot.word()));
        thread.join().unwrap();
        assert_eq!(slot.word(), TAG);
    });
}

#[test]
fn who_looks_sees_a_change_whole_or_not_at_all() {
    three_threads(|| {
        let value = Arc::new(ReadMostly::new((0, 0)));
        let threads = [0, 1].map(|number| {
            let value = Arc::clone(&value);
            spawn(number, move || {
                let seen = value.read();
                assert_eq!(seen.0, seen.1);
            })
        });
        value.write(|(first, second)| {
            *first += 1;
            *second += 1;
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*value.read(), (1, 1));
    });
}

#[test]
fn of_two_changes_none_is_lost() {
    loom::model(|| {
        let value = Arc::new(ReadMostly::new(0));
        let thread = {
            let value = Arc::clone(&value);
            spawn(1, move || value.write(|value| *value += 1))
        };
        value.write(|value| *value += 1);
        thread.join().unwrap();
        assert_eq!(*value.read(), 2);
    });
}

/// A lock that another holds is left for one that is free.
#[test]
fn threads_of_one_number_look_at_once() {
    loom::model(|| {
        let value = Arc::new(ReadMostly::new(0));
        let seen = value.read();
        let thread = {
            let value = Arc::clone(&value);
            spawn(0, move || {
                assert_eq!(*value.read(), 0);
                assert_eq!(thread_number(), 1);
            })
        };
        thread.join().unwrap();
        drop(seen);
    });
}

/// As in a shard: a slot is changed by those who look at the table that it is in, and moved by one who
/// changes the table. Who finds it locked does not look at the table while it waits.
#[test]
fn a_state_that_is_moved_meanwhile_loses_no_change() {
    three_threads(|| {
        let table = Arc::new(ReadMostly::new(Box::new(Slot::new(TAG, 0))));
        let threads = [0, 1].map(|number| {
            let table = Arc::clone(&table);
            spawn(number, move || {
                let mut looked_at = table.read();
                loop {
                    if let Some(mut state) = looked_at.lock_soon(TAG) {
                        *state += 1;
                        return;
                    }
                    drop(looked_at);
                    pause();
                    looked_at = table.read();
                }
            })
        });
        table.write(|slot| {
            let old = std::mem::replace(slot, Box::new(Slot::new(TAG, 0)));
            **slot = Slot::new(TAG, old.into_state());
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*lock(&table.read()), 2);
    });
}
