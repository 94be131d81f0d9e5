//! The waiters for units of each key, first come, first served.

mod forecast;
mod pauses;
mod turn;

pub(super) use turn::{acquire, apply, pause};

use crate::algorithm::{Algorithm, Receipt};
use crate::clock::Tick;
use crate::decision::Decision;
use crate::limiter::{Limits, TIMER_LATENESS, TIMER_LATENESS_MICROS};
use crate::math::micros;
use crate::operation::Operation;
use dashmap::DashMap;
use dashmap::mapref::entry::{Entry, OccupiedEntry};
use forecast::Forecast;
use pauses::Pauses;
use std::collections::{BTreeSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, mem};
use tokio::sync::Notify;
use tokio::time::Instant;
use turn::Asked;

/// A store in process whose keys can be waited for and paused.
pub trait Queued<A: Algorithm>: Sync {
    fn now(&self) -> Tick;

    fn fingerprint<K: Hash + ?Sized>(&self, key: &K) -> u64;

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

    /// See [`Limiter::pause`](crate::Limiter::pause).
    fn pause<L, K>(&self, limits: &L, key: &K, duration: Duration)
    where
        Self: Sized,
        L: Limits<K, Algorithm = A>,
        K: Hash + ?Sized,
    {
        pause(self, limits, key, self.fingerprint(key), duration);
    }
}

/// The queues of a store, one for each key that is waited for or paused.
///
/// A waker may call anything, this store included. So a change of a queue returns the [`Wakes`]
/// that it makes due, and they are run when the queue and the limits are unlocked.
pub struct Queues<T> {
    by_key: OnceLock<DashMap<u64, Queue<T>>>,
    /// How many keys are waited for or paused.
    len: AtomicUsize,
    pauses: Box<Pauses>,
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
    /// Those that have left the waiters with a place in a queue of the algorithm's own, in the same
    /// order.
    departing: VecDeque<Departing>,
    /// No units are given out until then.
    paused_until: Tick,
    /// Whether it is one of [`Queues::len`].
    is_counted: bool,
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
    _counted: Counted,
}

/// A waiter that has its units, and sleeps until it can go.
struct Departing {
    waiter: Waiter,
    decision: Decision,
    receipt: Receipt,
    at: Instant,
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

/// A decision forgets no more pauses than this.
const ENDED_AT_ONCE: usize = 8;

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
            pauses: Box::new(Pauses::new()),
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
    pub(super) fn shrink_to_fit(&self, now: Tick) {
        while self.end_pauses(|| now) {}
        if let Some(by_key) = self.by_key.get() {
            by_key.shrink_to_fit();
        }
    }

    /// Whether no key is waited for or paused.
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

    /// Does something with the queue of a key, if there is one, and removes it if nothing is left in
    /// it.
    fn visit<R>(
        &self,
        fingerprint: u64,
        now: impl FnOnce() -> Tick,
        visit: impl FnOnce(&mut Queue<T>, Tick) -> R,
    ) -> (Option<R>, Wakes) {
        let Entry::Occupied(mut entry) = self.by_key().entry(fingerprint) else {
            return (None, Wakes::NONE);
        };
        let now = now();
        let result = visit(entry.get_mut(), now);
        (Some(result), self.leave_be(entry, now))
    }

    /// Wakes the waiters for a key whose units have changed otherwise than by going.
    pub(super) fn changed(&self, fingerprint: u64, now: impl FnOnce() -> Tick) {
        if !self.is_empty() && self.is_waited_for(fingerprint) {
            self.visit(fingerprint, now, Queue::changed).1.run();
        }
    }

    /// Forgets some of the pauses that have ended; returns whether there may be more of them.
    fn end_pauses(&self, now: impl Fn() -> Tick) -> bool {
        for _ in 0..ENDED_AT_ONCE {
            let Some((end, fingerprint)) = self.pauses.next_ended(&now) else { return false };
            // As of then, even if the clock has gone back: it is looked at once.
            self.visit(fingerprint, || end, |_, _| ()).1.run();
        }
        true
    }

    /// Counts the queue if it is in the way of decisions, and removes it if nothing is left in it.
    fn leave_be(&self, mut entry: OccupiedEntry<'_, u64, Queue<T>>, now: Tick) -> Wakes {
        let queue = entry.get_mut();
        let wakes = queue.wakes();
        let counts = !queue.waiters.is_empty() || queue.is_paused(now);
        let is_left = counts || !queue.departing.is_empty();
        match (mem::replace(&mut queue.is_counted, counts), counts) {
            (false, true) => _ = self.len.fetch_add(1, Relaxed),
            (true, false) => _ = self.len.fetch_sub(1, Relaxed),
            _ => {}
        }
        if !is_left {
            entry.remove();
        }
        wakes
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
            departing: VecDeque::new(),
            paused_until: Tick::default(),
            is_counted: false,
            deadlines: BTreeSet::new(),
            served_until: now,
            woken_at: now,
            woken_instant: Instant::now(),
            forecast: None,
            must_wake: false,
        }
    }

    /// Begins anew, as if nobody had waited before.
    fn restart(&mut self, now: Tick) {
        self.served_until = now;
        self.forecast = None;
        self.is_alive(now);
    }

    fn is_paused(&self, now: Tick) -> bool {
        self.paused_until > now
    }

    /// Gives out no units until then.
    fn pause(&mut self, until: Tick) {
        self.paused_until = until;
        if let Some(forecast) = &mut self.forecast {
            forecast.at = forecast.at.max(until);
        }
        self.units_have_changed();
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

    /// Takes out a waiter; returns what it had taken already.
    fn leave(&mut self, ticket: u64, now: Tick) -> Option<Receipt> {
        if let Some(departing) = self.take_departing(ticket) {
            return Some(departing.receipt);
        }
        let index = self.position(ticket)?;
        self.remove(index);
        self.forecast_is_stale();
        if index == 0 {
            self.wake_first(now);
        }
        None
    }

    fn departing(&self, ticket: u64) -> Option<usize> {
        self.departing.binary_search_by_key(&ticket, |departing| departing.waiter.ticket).ok()
    }

    fn take_departing(&mut self, ticket: u64) -> Option<Departing> {
        self.departing.remove(self.departing(ticket)?)
    }

    fn push(&mut self, waiter: Waiter) {
        self.deadlines.extend(waiter.deadline.map(|deadline| (deadline, waiter.ticket)));
        self.waiters.push_back(waiter);
    }

    fn push_front(&mut self, waiter: Waiter) {
        self.deadlines.extend(waiter.deadline.map(|deadline| (deadline, waiter.ticket)));
        self.waiters.push_front(waiter);
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
            let from = self.woken_at.max(self.paused_until);
            let due = from.saturating_add(ready_after(first.units, from));
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

impl Waiter {
    fn new(counted: Counted, ticket: u64, asked: &Asked, now: Tick) -> Self {
        let &Asked { n: units, deadline, .. } = asked;
        Self { ticket, units, deadline, looks_at: now, turn: Arc::default(), _counted: counted }
    }

    fn place(&self) -> Place {
        Place { ticket: self.ticket, turn: Arc::clone(&self.turn) }
    }
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
    use crate::algorithm::{BucketState, LeakyBucket, TokenBucket};
    use crate::clock::{Clock, ManualClock, MonotonicClock, TokioClock};
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

    /// How many keys have a queue, pauses to end, and whether decisions need not look for a queue.
    fn kept<C: Clock>(store: &Memory<BucketState, C>) -> (usize, usize, bool) {
        let queues = Queued::<TokenBucket>::queues(store);
        (queues.by_key().len(), queues.pauses.len(), queues.is_empty())
    }

    #[test]
    fn pauses_that_have_ended_are_forgotten() {
        let bucket = TokenBucket::new(Quota::per_second(1));
        let clock = ManualClock::new(Tick::from_micros(0));
        let store = Memory::new(clock.clone());
        let check = |key: u64| _ = store.apply(&bucket, &key, Operation::Check(1));
        let pause = |key: u64, seconds| {
            Queued::pause(&store, &bucket, &key, Duration::from_secs(seconds));
        };
        assert_eq!(kept(&store), (0, 0, true));

        // By a decision on the key itself, and by decisions on others.
        for visitor in [1, 2] {
            pause(1, 10);
            check(visitor);
            assert_eq!(kept(&store), (1, 1, false));
            clock.advance(Duration::from_secs(10));
            (0..2).for_each(|_| check(visitor));
            check(3);
            assert_eq!(kept(&store).0, 0, "{visitor}");
            assert!(kept(&store).2);
        }

        // By a reset, and by a longer one in place of a shorter one.
        pause(1, 10);
        let _ = store.apply(&bucket, &1_u64, Operation::Reset);
        assert_eq!(kept(&store), (0, 0, true));
        for seconds in [10, 5, 20, 30] {
            pause(1, seconds);
            assert_eq!(kept(&store), (1, 1, false));
        }
        clock.advance(Duration::from_secs(30));
        check(2);
        assert_eq!(kept(&store), (0, 0, true));

        // A few with each decision, and with each pause.
        (0..1_000).for_each(|key| pause(key, key));
        assert_eq!(kept(&store), (999, 999, false));
        clock.advance(Duration::from_secs(999));
        check(5_000);
        assert_eq!(kept(&store), (991, 991, false));
        (1_000..1_100).for_each(|key| pause(key, 1));
        assert!(kept(&store).0 < 300);
        clock.advance(Duration::from_secs(1));
        (0..100).for_each(|_| check(5_000));
        assert_eq!(kept(&store), (0, 0, true));

        // By callers that wait.
        (0..10).for_each(|key| pause(key, 1));
        clock.advance(Duration::from_secs(1));
        for key in [5_001, 5_002] {
            let acquired = pin!(acquire(&store, &bucket, &key, store.fingerprint(&key), 1, None));
            let _ = acquired.poll(&mut Context::from_waker(Waker::noop()));
        }
        assert_eq!(kept(&store), (0, 0, true));

        // All of them, when memory is given back.
        (0..1_000).for_each(|key| pause(key, 1));
        clock.advance(Duration::from_secs(1));
        store.shrink_queues();
        assert_eq!(kept(&store), (0, 0, true));
    }

    /// One that sleeps until its departure is in nobody's way.
    #[tokio::test(start_paused = true)]
    async fn a_departure_to_come_slows_no_decision() {
        let bucket = LeakyBucket::new(Quota::per_second(1)).capacity(10);
        let clock = TokioClock::start_at(Tick::from_micros(0));
        let store = Memory::new(clock);
        let acquire = || acquire(&store, &bucket, &1, store.fingerprint(&1), 1, None);
        assert!(acquire().await.is_allowed());
        let mut waiting = pin!(acquire());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(kept(&store), (1, 0, true));
        assert!(waiting.await.is_allowed());
        assert_eq!(kept(&store), (0, 0, true));
        let mut waiting = Box::pin(acquire());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(waiting);
        assert_eq!(kept(&store), (0, 0, true));
    }
}
