//! The waiters for units of each key, first come, first served.

mod forecast;
mod turn;

pub(super) use turn::{acquire, apply};

use crate::algorithm::Algorithm;
use crate::clock::Tick;
use crate::decision::Decision;
use crate::limiter::{TIMER_LATENESS, TIMER_LATENESS_MICROS};
use crate::math::micros;
use crate::operation::Operation;
use dashmap::DashMap;
use dashmap::mapref::entry::{Entry, OccupiedEntry};
use forecast::Forecast;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, mem};
use tokio::sync::Notify;
use tokio::time::Instant;
use turn::Asked;

/// A store in process whose keys can be waited for.
pub trait Queued<A: Algorithm>: Sync {
    fn now(&self) -> Tick;

    fn state(&self, fingerprint: u64) -> A::State;

    /// Does `operation` without regard to waiters, at the instant that `now` returns.
    fn apply_at(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: impl FnOnce() -> Tick,
    ) -> Decision;

    fn queues(&self) -> &Queues<A::State>;
}

/// The queues of a store, one for each key that is waited for.
///
/// A waker may call anything, this store included. So a change of a queue returns the [`Wakes`]
/// that it makes due, and they are run when the queue and the limits are unlocked.
pub struct Queues<T> {
    by_key: OnceLock<DashMap<u64, Queue<T>>>,
    /// How many keys are waited for.
    len: AtomicUsize,
    next_ticket: AtomicU64,
    waiters: Arc<AtomicUsize>,
    max_waiters: AtomicUsize,
    max_waiters_per_key: AtomicUsize,
}

const DEFAULT_MAX_WAITERS: usize = 100_000;
const DEFAULT_MAX_WAITERS_PER_KEY: usize = 10_000;

/// Each waiter sleeps until those before it have gone, and then until there are units for it.
struct Queue<T> {
    waiters: VecDeque<Waiter>,
    /// Those of the waiters, in order, with their tickets.
    deadlines: BTreeSet<(Instant, u64)>,
    /// The instant up to which units have been given out.
    served_until: Tick,
    /// When the first was last polled or woken, by the one before it or by a change of the units.
    woken_at: Tick,
    /// The same instant by tokio's clock.
    woken_instant: Instant,
    forecast: Option<Forecast<T>>,
    /// Whether the first two are to be woken.
    must_wake: bool,
}

struct Waiter {
    ticket: u64,
    units: u64,
    deadline: Option<Instant>,
    /// When it looks again at the latest, if it is still polled.
    looks_at: Tick,
    turn: Arc<Notify>,
    counted: Counted,
}

/// One of the waiters for any key.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A place in a queue.
struct Place {
    ticket: u64,
    turn: Arc<Notify>,
}

/// So many late waiters are each searched and taken out of their queue; more take a walk through it.
const SEARCHED: usize = 8;

/// A waiter that could have gone so long ago, and was not polled, is passed over.
const PATIENCE_MICROS: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_micros(PATIENCE_MICROS);

/// The waiters that a change makes due.
#[must_use = "they sleep on unless they are run"]
struct Wakes([Option<Arc<Notify>>; 2]);

impl Wakes {
    const NONE: Self = Self([None, None]);

    /// No lock may be held.
    fn run(self) {
        self.0.into_iter().flatten().for_each(|turn| turn.notify_one());
    }
}

impl<T> Queues<T> {
    pub(super) fn new() -> Self {
        Self {
            by_key: OnceLock::new(),
            len: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
            waiters: Arc::default(),
            max_waiters: AtomicUsize::new(DEFAULT_MAX_WAITERS),
            max_waiters_per_key: AtomicUsize::new(DEFAULT_MAX_WAITERS_PER_KEY),
        }
    }

    pub(crate) fn set_max_waiters(&self, waiters: usize) {
        self.max_waiters.store(waiters, Relaxed);
    }

    pub(crate) fn set_max_waiters_per_key(&self, waiters: usize) {
        self.max_waiters_per_key.store(waiters, Relaxed);
    }

    /// Gives back the memory of queues that have gone.
    pub(super) fn shrink_to_fit(&self) {
        if let Some(by_key) = self.by_key.get() {
            by_key.shrink_to_fit();
        }
    }

    /// Whether nobody waits for any key.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Relaxed) == 0
    }

    fn by_key(&self) -> &DashMap<u64, Queue<T>> {
        self.by_key.get_or_init(DashMap::new)
    }

    fn is_waited_for(&self, fingerprint: u64) -> bool {
        self.by_key().contains_key(&fingerprint)
    }

    /// A place among the waiters for a key, in whose queue so many wait, if there is one.
    fn place(&self, waiting: usize) -> Option<Counted> {
        let max = self.max_waiters.load(Relaxed);
        let add = |waiters: usize| (waiters < max).then_some(waiters + 1);
        let has_place = waiting < self.max_waiters_per_key.load(Relaxed)
            && self.waiters.fetch_update(Relaxed, Relaxed, add).is_ok();
        has_place.then(|| Counted(Arc::clone(&self.waiters)))
    }

    /// Does something with the queue of a key, if there is one, and removes it if it has become
    /// empty.
    fn visit<R>(
        &self,
        fingerprint: u64,
        visit: impl FnOnce(&mut Queue<T>) -> R,
    ) -> (Option<R>, Wakes) {
        let Entry::Occupied(mut entry) = self.by_key().entry(fingerprint) else {
            return (None, Wakes::NONE);
        };
        let result = visit(entry.get_mut());
        let wakes = entry.get_mut().wakes();
        self.remove_if_empty(entry);
        (Some(result), wakes)
    }

    /// Wakes the waiters for a key whose units have changed otherwise than by going.
    pub(super) fn changed(&self, fingerprint: u64, now: impl FnOnce() -> Tick) {
        if !self.is_empty() && self.is_waited_for(fingerprint) {
            self.visit(fingerprint, |queue| queue.changed(now())).1.run();
        }
    }

    /// Takes a waiter out of its queue, if it is still there.
    fn leave(&self, fingerprint: u64, ticket: u64, now: Tick) {
        self.visit(fingerprint, |queue| queue.leave(ticket, now)).1.run();
    }

    fn remove_if_empty(&self, entry: OccupiedEntry<'_, u64, Queue<T>>) {
        if entry.get().waiters.is_empty() {
            entry.remove();
            self.len.fetch_sub(1, Relaxed);
        }
    }
}

impl<T> fmt::Debug for Queues<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T> Queue<T> {
    fn new(now: Tick) -> Self {
        Self {
            waiters: VecDeque::new(),
            deadlines: BTreeSet::new(),
            served_until: now,
            woken_at: now,
            woken_instant: Instant::now(),
            forecast: None,
            must_wake: false,
        }
    }

    fn changed(&mut self, now: Tick) {
        self.is_alive(now);
        self.units_have_changed();
    }

    /// Those who look at the units look again.
    fn units_have_changed(&mut self) {
        self.forecast_is_stale();
        self.must_wake = true;
    }

    fn forecast_is_stale(&mut self) {
        if let Some(forecast) = &mut self.forecast {
            forecast.is_stale = true;
        }
    }

    /// Gives its turn to the first.
    fn wake_first(&mut self, now: Tick) {
        self.is_alive(now);
        self.must_wake = true;
    }

    /// The first, which can go or learns when, and the second, which learns until when the first is
    /// waited for; if they are to be woken.
    fn wakes(&mut self) -> Wakes {
        if !mem::take(&mut self.must_wake) {
            return Wakes::NONE;
        }
        Wakes([0, 1].map(|place| self.waiters.get(place).map(|waiter| Arc::clone(&waiter.turn))))
    }

    /// The first has been polled, or is to be.
    fn is_alive(&mut self, now: Tick) {
        (self.woken_at, self.woken_instant) = (now, Instant::now());
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    fn remove(&mut self, index: usize) -> Option<Waiter> {
        let waiter = self.waiters.remove(index)?;
        if let Some(deadline) = waiter.deadline {
            self.deadlines.remove(&(deadline, waiter.ticket));
        }
        Some(waiter)
    }

    fn leave(&mut self, ticket: u64, now: Tick) {
        let Some(index) = self.position(ticket) else { return };
        self.remove(index);
        self.forecast_is_stale();
        if index == 0 {
            self.wake_first(now);
        }
    }

    fn push(&mut self, place: Counted, ticket: u64, asked: &Asked, now: Tick) -> Place {
        let &Asked { n: units, deadline, .. } = asked;
        let turn = Arc::new(Notify::new());
        self.deadlines.extend(deadline.map(|deadline| (deadline, ticket)));
        self.waiters.push_back(Waiter {
            ticket,
            units,
            deadline,
            looks_at: now,
            turn: Arc::clone(&turn),
            counted: place,
        });
        Place { ticket, turn }
    }

    /// Takes out those whose deadline is over.
    fn pass_over_late(&mut self, now: Tick, clock: Instant) {
        let first = self.waiters.front().map(|waiter| waiter.ticket);
        let is_over = |deadline: Instant| deadline + TIMER_LATENESS < clock;
        let mut late = 0;
        while let Some(&(deadline, ticket)) = self.deadlines.first()
            && is_over(deadline)
        {
            self.deadlines.pop_first();
            late += 1;
            if late <= SEARCHED
                && let Some(index) = self.position(ticket)
            {
                self.waiters.remove(index);
            }
        }
        if late > SEARCHED {
            self.waiters.retain(|waiter| !waiter.deadline.is_some_and(is_over));
        }
        if late > 0 {
            self.forecast_is_stale();
        }
        if self.waiters.front().map(|waiter| waiter.ticket) != first {
            self.wake_first(now);
        }
    }

    /// Takes out those who are no longer to be waited for: whose deadline is over, and who could
    /// have gone long ago and were not polled. `ready_after` returns how long units are missing from
    /// an instant on. Returns how long the first is waited for; `None` if nobody is left.
    fn pass_over(&mut self, now: Tick, ready_after: impl Fn(u64, Tick) -> u64) -> Option<Turn> {
        let clock = Instant::now();
        self.pass_over_late(now, clock);
        while let Some(first) = self.waiters.front() {
            let due = self.woken_at.saturating_add(ready_after(first.units, self.woken_at));
            let patience = match first.deadline {
                None => PATIENCE_MICROS,
                // Timers may be late.
                Some(deadline) => {
                    let left = micros(deadline.saturating_duration_since(clock));
                    let left = left.saturating_add(now.micros_since(due));
                    let left = left.saturating_sub(due.micros_since(now));
                    left.clamp(TIMER_LATENESS_MICROS, PATIENCE_MICROS)
                }
            };
            let until = due.saturating_add(patience);
            if until > now {
                return Some(Turn { due, until });
            }
            self.remove(0);
            self.served_until = now;
            self.changed(now);
            // The next one was to look by then: if it has not, its second began there.
            if let Some(next) = self.waiters.front().filter(|next| next.looks_at <= now) {
                self.woken_at = until.max(next.looks_at);
            }
        }
        None
    }
}

/// When the first waiter can go, and until when it is waited for.
#[derive(Copy, Clone)]
struct Turn {
    due: Tick,
    until: Tick,
}

impl Turn {
    /// Until when it is waited for, if it could have gone already.
    fn overdue_until(self, now: Tick) -> Option<Tick> {
        (self.due < now).then_some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::TokenBucket;
    use crate::clock::MonotonicClock;
    use crate::quota::Quota;
    use crate::store::{InProcess, Memory};
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Waker};
    use std::thread;

    /// A lock that shuts out others would wait for ever here.
    #[tokio::test]
    async fn a_decision_on_another_key_only_looks_whether_it_is_waited_for() {
        let bucket = TokenBucket::new(Quota::per_hour(1)).burst(1);
        let store = Arc::new(Memory::new(MonotonicClock::default()));
        assert!(store.apply(&bucket, &0, Operation::Check(1)).is_allowed());
        let mut waiting = pin!(acquire(&*store, &bucket, &0, store.fingerprint(&0), 1, None));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let queues = Queued::<TokenBucket>::queues(&*store);
        let looked_at: Vec<_> = queues.by_key().iter().collect();
        assert_eq!(looked_at.len(), 1);
        let (done, ended) = mpsc::channel();
        let others = Arc::clone(&store);
        thread::spawn(move || {
            let ask = |key: &i32| others.apply(&bucket, key, Operation::Check(1)).is_allowed();
            done.send((1..1_000).filter(ask).count()).unwrap();
        });
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(999));
    }
}
