//! Those who wait for units, first come, first served.

use crate::algorithm::{Algorithm, Receipt};
use crate::clock::Tick;
use crate::decision::{Decision, Outcome};
use crate::limiter::{Limits, OnDrop, TIMER_LATENESS, TIMER_LATENESS_MICROS};
use crate::math::micros;
use crate::operation::Operation;
use dashmap::DashMap;
use dashmap::mapref::entry::{Entry, OccupiedEntry, VacantEntry};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, mem};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// A store in process whose keys can be waited for.
pub(super) trait Queued<A: Algorithm>: Sync {
    fn now(&self) -> Tick;

    fn state(&self, fingerprint: u64) -> A::State;

    /// Does `operation`, whoever waits, at the instant that `now` tells when it is needed.
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
pub(super) struct Queues<T> {
    by_key: OnceLock<DashMap<u64, Queue<T>>>,
    /// How many there are.
    len: AtomicUsize,
    next_ticket: AtomicU64,
    max_waiters: usize,
}

const DEFAULT_MAX_WAITERS: usize = 10_000;

/// Each waiter sleeps until those before it have gone, and then until there are units for it.
struct Queue<T> {
    waiters: VecDeque<Waiter>,
    /// The instant up to which units have been given out.
    served_until: Tick,
    /// When the first was last polled or woken, by the one before it or by a change of the units.
    woken_at: Tick,
    /// The same instant by tokio's clock.
    woken_instant: Instant,
    /// No deadline of a waiter is earlier.
    earliest_deadline: Option<Instant>,
    /// How things will stand when all of them have gone; unknown after a change that was not
    /// foreseen.
    behind: Option<Behind<T>>,
}

struct Waiter {
    ticket: u64,
    units: u64,
    deadline: Option<Instant>,
    /// When it looks again at the latest, if it is still polled.
    looks_at: Tick,
    turn: Arc<Notify>,
}

#[derive(Clone)]
struct Behind<T> {
    state: T,
    at: Tick,
    /// Whether the first is taken to be passed over.
    without_first: bool,
}

/// A waiter that could have gone so long ago, and was not polled, is passed over.
const PATIENCE_MICROS: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_micros(PATIENCE_MICROS);

impl<T> Queues<T> {
    pub(super) const fn new() -> Self {
        Self {
            by_key: OnceLock::new(),
            len: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
            max_waiters: DEFAULT_MAX_WAITERS,
        }
    }

    pub(super) fn with_max_waiters(self, max_waiters: usize) -> Self {
        Self { max_waiters, ..self }
    }

    /// Whether nobody waits for any key.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Relaxed) == 0
    }

    fn by_key(&self) -> &DashMap<u64, Queue<T>> {
        self.by_key.get_or_init(DashMap::new)
    }

    /// Tells those who wait for a key that its units have changed otherwise than by going.
    pub(super) fn changed(&self, fingerprint: u64, now: impl FnOnce() -> Tick) {
        if self.is_empty() {
            return;
        }
        if let Some(mut queue) = self.by_key().get_mut(&fingerprint) {
            queue.changed(now());
        }
    }

    /// Takes a waiter out of its queue, if it is still there.
    fn leave(&self, fingerprint: u64, ticket: u64, now: Tick) {
        if let Entry::Occupied(mut entry) = self.by_key().entry(fingerprint) {
            entry.get_mut().leave(ticket, now);
            self.remove_if_empty(entry);
        }
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
    fn changed(&mut self, now: Tick) {
        self.is_alive(now);
        self.forget_foreseen();
    }

    /// After a change of the units: those who look at them look again.
    fn forget_foreseen(&mut self) {
        self.behind = None;
        self.wake_two();
    }

    /// Gives its turn to the first.
    fn wake_first(&mut self, now: Tick) {
        self.is_alive(now);
        self.wake_two();
    }

    /// Wakes the first, which can go or learns when, and the second, which learns until when the
    /// first is waited for.
    fn wake_two(&self) {
        self.waiters.iter().take(2).for_each(|waiter| waiter.turn.notify_one());
    }

    /// The first has been polled, or is to be.
    fn is_alive(&mut self, now: Tick) {
        (self.woken_at, self.woken_instant) = (now, Instant::now());
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    fn leave(&mut self, ticket: u64, now: Tick) {
        let Some(index) = self.position(ticket) else { return };
        self.waiters.remove(index);
        self.behind = None;
        if index == 0 {
            self.wake_first(now);
        }
    }

    fn push(&mut self, ticket: u64, units: u64, deadline: Option<Instant>, now: Tick) -> Place {
        let turn = Arc::new(Notify::new());
        let waiter = Waiter { ticket, units, deadline, looks_at: now, turn: Arc::clone(&turn) };
        self.waiters.push_back(waiter);
        self.earliest_deadline = self.earliest_deadline.into_iter().chain(deadline).min();
        Place { ticket, turn }
    }

    /// Takes out those who are no longer to be waited for: whose deadline is over, and who could
    /// have gone long ago and were not polled. `ready_after` returns how long units are missing from an
    /// instant on. Returns how long the first is waited for; `None` if nobody is left.
    fn pass_over(&mut self, now: Tick, ready_after: impl Fn(u64, Tick) -> u64) -> Option<Turn> {
        let clock = Instant::now();
        let is_over = |deadline: &Instant| *deadline + TIMER_LATENESS < clock;
        if self.earliest_deadline.as_ref().is_some_and(is_over) {
            let (waiting, first) = (self.waiters.len(), self.waiters.front().map(|w| w.ticket));
            self.waiters.retain(|waiter| !waiter.deadline.as_ref().is_some_and(is_over));
            self.earliest_deadline = self.waiters.iter().filter_map(|w| w.deadline).min();
            if self.waiters.len() < waiting {
                self.behind = None;
            }
            if self.waiters.front().map(|w| w.ticket) != first {
                self.wake_first(now);
            }
        }
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
            self.waiters.pop_front();
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

impl<T: Clone> Queue<T> {
    /// How things will stand when all that wait have gone: the first at once, or if it could have
    /// gone already, not at all but waited for until then.
    fn behind<A: Algorithm<State = T>>(
        &mut self,
        algorithm: &A,
        state: impl FnOnce() -> T,
        now: Tick,
        first_until: Option<Tick>,
    ) -> &mut Behind<T> {
        let without_first = first_until.is_some();
        if self.behind.as_ref().is_some_and(|behind| behind.without_first != without_first) {
            self.behind = None;
        }
        self.behind.get_or_insert_with(|| {
            let at = first_until.unwrap_or(now);
            let mut behind = Behind { state: state(), at, without_first };
            for waiter in self.waiters.iter().skip(usize::from(without_first)) {
                behind.take(algorithm, waiter.units);
            }
            behind
        })
    }
}

impl<T: Clone> Behind<T> {
    /// Takes `n` units as soon as they are there, and tells when whoever takes them may go; `None`
    /// where they never are there.
    fn take<A: Algorithm<State = T>>(&mut self, algorithm: &A, n: u64) -> Option<Tick> {
        for _ in 0..MAX_ROUNDS {
            match Operation::Check(n).apply(algorithm, &mut self.state, self.at).outcome {
                Outcome::Denied(wait) => self.at = self.at.saturating_add(micros(wait)),
                Outcome::Never => return None,
                Outcome::Allowed => return Some(self.at),
                Outcome::Delayed(delay) => return Some(self.at.saturating_add(micros(delay))),
            }
        }
        // Beyond the end of time.
        algorithm.take(&mut self.state, n, self.at);
        Some(self.at)
    }
}

/// One wait is exact; more rounds are needed at the end of time only.
const MAX_ROUNDS: usize = 8;

/// Whether those who wait must be told of an operation, even if they came only while it was done.
#[inline]
const fn changes_turns(operation: Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::Debit(_) | Operation::Refund(_) | Operation::Reset | Operation::Settle(..)
    )
}

/// Does `operation`, behind those who wait for this key.
#[inline(always)]
pub(super) fn apply<S, A>(
    store: &S,
    algorithm: &A,
    fingerprint: u64,
    operation: Operation<'_>,
) -> Decision
where
    S: Queued<A>,
    A: Algorithm,
{
    if !store.queues().is_empty()
        && let Some(decision) = apply_behind(store, algorithm, fingerprint, operation)
    {
        return decision.apart();
    }
    let decision = store.apply_at(algorithm, fingerprint, operation, || store.now());
    if changes_turns(operation) {
        store.queues().changed(fingerprint, || store.now());
    }
    decision
}

/// The same where somebody waits; `None` where that is for another key, and nothing is done.
#[cold]
fn apply_behind<S, A>(
    store: &S,
    algorithm: &A,
    fingerprint: u64,
    operation: Operation<'_>,
) -> Option<Decision>
where
    S: Queued<A>,
    A: Algorithm,
{
    let Entry::Occupied(mut entry) = store.queues().by_key().entry(fingerprint) else {
        return None;
    };
    let queue = entry.get_mut();
    let now = store.now();
    let Some(turn) = queue.pass_over(now, ready_after(store, algorithm, fingerprint)) else {
        store.queues().remove_if_empty(entry);
        return None;
    };
    let first_until = turn.overdue_until(now);
    Some(match operation {
        Operation::Check(n @ 1..)
        | Operation::Peek(n @ 1..)
        | Operation::TakeUpTo(n @ 1..)
        | Operation::Reserve(n @ 1.., _) => {
            let n = if matches!(operation, Operation::TakeUpTo(_)) { 1 } else { n };
            refused(store, algorithm, fingerprint, queue, n, now, first_until)
        }
        Operation::Check(_)
        | Operation::Peek(_)
        | Operation::TakeUpTo(_)
        | Operation::Reserve(..) => store.apply_at(algorithm, fingerprint, operation, || now),
        Operation::Debit(_) | Operation::Refund(_) | Operation::Reset | Operation::Settle(..) => {
            let decision = store.apply_at(algorithm, fingerprint, operation, || now);
            // One that could have gone before is waited for no longer because of this.
            match first_until {
                None => queue.changed(now),
                Some(_) => queue.forget_foreseen(),
            }
            decision
        }
    })
}

/// For how long from an instant on so many units are missing, if nobody takes any.
fn ready_after<S, A>(store: &S, algorithm: &A, fingerprint: u64) -> impl Fn(u64, Tick) -> u64
where
    S: Queued<A>,
    A: Algorithm,
{
    move |n, from| {
        let decision = store.apply_at(algorithm, fingerprint, Operation::Peek(n), || from);
        micros(decision.retry_after().unwrap_or_default())
    }
}

/// The units that there are, and that there will be, are for those who wait.
fn refused<S, A>(
    store: &S,
    algorithm: &A,
    fingerprint: u64,
    queue: &mut Queue<A::State>,
    n: u64,
    now: Tick,
    first_until: Option<Tick>,
) -> Decision
where
    S: Queued<A>,
    A: Algorithm,
{
    let standing = store.apply_at(algorithm, fingerprint, Operation::Peek(n), || now);
    if standing.outcome == Outcome::Never {
        return standing;
    }
    let behind = queue.behind(algorithm, || store.state(fingerprint), now, first_until);
    let ready_after = |n| {
        let mut after = behind.clone();
        after.take(algorithm, n);
        after.at.micros_since(now).max(1)
    };
    let refused = standing.refused(Duration::from_micros(ready_after(n)));
    Decision { next_after_micros: Some(ready_after(1)), ..refused }
}

/// Waits for `n` units behind all who came before.
pub(super) async fn acquire<S, A, L, K>(
    store: &S,
    limits: &L,
    key: &K,
    fingerprint: u64,
    n: u64,
    deadline: Option<Instant>,
) -> Decision
where
    S: Queued<A>,
    A: Algorithm,
    L: Limits<K, Algorithm = A>,
    K: Sync + ?Sized,
{
    let asked = Asked { fingerprint, n, deadline };
    // Limits are looked up before a queue is locked, never within.
    let entered = limits.with(key, |algorithm| enter(store, algorithm, &asked));
    let (decision, receipt) = match entered {
        Ok(decided) => decided,
        Err(place) => {
            let queues = store.queues();
            let _leave = OnDrop(|| queues.leave(fingerprint, place.ticket, store.now()));
            loop {
                let next =
                    limits.with(key, |algorithm| serve(store, algorithm, &asked, place.ticket));
                let (wait, look_after, is_missed) = match next {
                    Next::Gone(decided) => break decided,
                    Next::NotYet { wait, look_after } => (wait, look_after, false),
                    Next::Missed => (None, Duration::ZERO, true),
                };
                let mut is_late =
                    is_missed || wait.zip(asked.left()).is_some_and(|(wait, left)| wait > left);
                if !is_late {
                    let look_at = Instant::now() + look_after.min(LONGEST_TIMER);
                    let until = deadline.map_or(look_at, |deadline| deadline.min(look_at));
                    let woken = timeout_at(until, place.turn.notified()).await;
                    let is_over = || deadline.is_some_and(|over| over <= Instant::now());
                    is_late = wait.is_none() && woken.is_err() && is_over();
                }
                if is_late {
                    queues.leave(fingerprint, place.ticket, store.now());
                    let peek = Operation::Peek(n);
                    let peeked =
                        limits.with(key, |algorithm| apply(store, algorithm, fingerprint, peek));
                    return peeked.missed();
                }
            }
        }
    };
    let Outcome::Delayed(delay) = decision.outcome else { return decision };
    // A leaky bucket's queue: who does not wait gives up the place in it.
    let give_back = OnDrop(|| {
        let settle = Operation::Settle(0, &receipt);
        let _ = limits.with(key, |algorithm| apply(store, algorithm, fingerprint, settle));
    });
    sleep(delay).await;
    mem::forget(give_back);
    let peek = Operation::Peek(0);
    let standing = limits.with(key, |algorithm| apply(store, algorithm, fingerprint, peek));
    Decision { granted: decision.granted, ..standing }
}

/// What is waited for.
struct Asked {
    fingerprint: u64,
    n: u64,
    deadline: Option<Instant>,
}

impl Asked {
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// By how much it is too late to go then; `None` if it is in time. What a queue of an algorithm's
    /// own adds to the wait counts too.
    fn lateness(&self, go_at: Option<Tick>, now: Tick) -> Option<Duration> {
        let wait = Duration::from_micros(go_at.map_or(0, |go_at| go_at.micros_since(now)));
        wait.checked_sub(self.left()?).filter(|late| !late.is_zero())
    }

    /// Takes the units, if they are there at `at`; unless a queue of the algorithm's own delays them
    /// for too long.
    fn take<S: Queued<A>, A: Algorithm>(&self, store: &S, algorithm: &A, at: Tick) -> Taken {
        let receipt = Receipt::new().longest_delay(self.left().unwrap_or(Duration::MAX));
        let reserve = Operation::Reserve(self.n, &receipt);
        let decision = store.apply_at(algorithm, self.fingerprint, reserve, || at);
        match (decision.outcome, receipt.late_by()) {
            (Outcome::Denied(_), Some(late)) => Taken::Decided((decision.refused(late), receipt)),
            (Outcome::Denied(wait), None) => Taken::NotYet(wait, decision),
            _ => Taken::Decided((decision, receipt)),
        }
    }
}

enum Taken {
    /// The units are not there.
    NotYet(Duration, Decision),
    Decided(Decided),
}

impl Taken {
    fn into_decision(self) -> Decision {
        match self {
            Self::NotYet(_, decision) | Self::Decided((decision, _)) => decision,
        }
    }
}

type Decided = (Decision, Receipt);

/// A place in a queue.
struct Place {
    ticket: u64,
    turn: Arc<Notify>,
}

/// Decides at once if nobody waits and the units are there, or if waiting is no use; otherwise
/// returns a place in the queue.
fn enter<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
) -> Result<Decided, Place> {
    let &Asked { fingerprint, n, deadline } = asked;
    let queues = store.queues();
    let ticket = queues.next_ticket.fetch_add(1, Relaxed);
    let ready_after = ready_after(store, algorithm, fingerprint);
    let (mut entry, now, turn) = loop {
        let entry = queues.by_key().entry(fingerprint);
        let now = store.now();
        match entry {
            Entry::Vacant(entry) => {
                return enter_first(store, algorithm, asked, entry, ticket, now);
            }
            Entry::Occupied(mut entry) => match entry.get_mut().pass_over(now, &ready_after) {
                Some(turn) => break (entry, now, turn),
                None => queues.remove_if_empty(entry),
            },
        }
    };
    if n == 0 {
        return Ok((asked.take(store, algorithm, now).into_decision(), Receipt::new()));
    }
    let queue = entry.get_mut();
    let first_until = turn.overdue_until(now);
    let refused = refused(store, algorithm, fingerprint, queue, n, now, first_until);
    if refused.outcome == Outcome::Never || queue.waiters.len() >= queues.max_waiters {
        return Ok((refused, Receipt::new()));
    }
    let behind = queue.behind(algorithm, || store.state(fingerprint), now, first_until);
    let mut after = behind.clone();
    let departure = after.take(algorithm, n);
    if let Some(late) = asked.lateness(departure, now) {
        // In a queue of the algorithm's own it is the same place that would be in time later.
        let is_delayed = departure > Some(after.at);
        let denied =
            if is_delayed { refused.refused(late) } else { refused.denied_for_at_least(late) };
        return Ok((denied, Receipt::new()));
    }
    *behind = after;
    Err(queue.push(ticket, n, deadline, now))
}

/// [`enter`], where nobody waits yet.
fn enter_first<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    entry: VacantEntry<'_, u64, Queue<A::State>>,
    ticket: u64,
    now: Tick,
) -> Result<Decided, Place> {
    let &Asked { fingerprint, n, deadline } = asked;
    let queues = store.queues();
    let (wait, denied) = match asked.take(store, algorithm, now) {
        Taken::NotYet(wait, denied) => (wait, denied),
        Taken::Decided(decided) => return Ok(decided),
    };
    let mut behind = Behind { state: store.state(fingerprint), at: now, without_first: false };
    let late = asked.lateness(behind.take(algorithm, n), now);
    if queues.max_waiters == 0 || late.is_some() {
        return Ok((denied.denied_for_at_least(late.unwrap_or(wait)), Receipt::new()));
    }
    let mut queue = Queue {
        waiters: VecDeque::new(),
        served_until: now,
        woken_at: now,
        woken_instant: Instant::now(),
        earliest_deadline: None,
        behind: Some(behind),
    };
    let place = queue.push(ticket, n, deadline, now);
    queues.len.fetch_add(1, Relaxed);
    entry.insert(queue);
    Err(place)
}

/// After so long the first one looks again, as limits may have been replaced: well before it would be
/// passed over.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// Timers need not be set for longer.
const LONGEST_TIMER: Duration = Duration::from_secs(86_400);

/// What becomes of a waiter.
enum Next {
    /// It has left the queue, with this decision.
    Gone(Decided),
    /// It was passed over.
    Missed,
    /// It can go after this `wait`, if that is known, and is to look again when it is woken, or after
    /// so long.
    NotYet { wait: Option<Duration>, look_after: Duration },
}

/// Lets a waiter go, if it is the first one and there are units for it. One that is polled too late
/// has been passed over, or is now.
fn serve<S: Queued<A>, A: Algorithm>(store: &S, algorithm: &A, asked: &Asked, ticket: u64) -> Next {
    let fingerprint = asked.fingerprint;
    let queues = store.queues();
    let now = store.now();
    let Entry::Occupied(mut entry) = queues.by_key().entry(fingerprint) else {
        return Next::Missed;
    };
    let queue = entry.get_mut();
    // The store's clock may have been set forward, or gone on while the timers stood still.
    if queue.position(ticket) == Some(0) && queue.woken_instant.elapsed() < PATIENCE {
        queue.is_alive(now);
    }
    let turn = queue.pass_over(now, ready_after(store, algorithm, fingerprint));
    let next = match (queue.position(ticket), turn) {
        (Some(0), Some(_)) => serve_first(store, algorithm, asked, queue, now),
        // It sees to it that those before it are passed over, a second each, if nobody else does.
        (Some(place), Some(turn)) => {
            let before = PATIENCE_MICROS.saturating_mul(place as u64 - 1);
            let looks_at = turn.until.saturating_add(before);
            queue.waiters[place].looks_at = looks_at;
            let look_after = Duration::from_micros(looks_at.micros_since(now));
            Next::NotYet { wait: None, look_after }
        }
        _ => Next::Missed,
    };
    queues.remove_if_empty(entry);
    next
}

fn serve_first<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    queue: &mut Queue<A::State>,
    now: Tick,
) -> Next {
    // Units count as taken when they could have been, so that no rate is lost to a timer.
    let earliest = Tick::from_micros(now.as_micros().saturating_sub(TIMER_LATENESS_MICROS));
    let foreseen = queue.served_until;
    let mut at = foreseen.max(earliest).min(now);
    if at != foreseen {
        queue.behind = None;
    }
    loop {
        match asked.take(store, algorithm, at) {
            Taken::Decided(decided) => {
                queue.served_until = at;
                queue.waiters.pop_front();
                if !decided.0.is_allowed() || queue.behind.as_ref().is_some_and(|b| b.without_first)
                {
                    queue.behind = None;
                }
                queue.wake_first(now);
                return Next::Gone(decided);
            }
            Taken::NotYet(wait, _) => at = at.saturating_add(micros(wait)),
        }
        if at > now {
            queue.served_until = at;
            queue.is_alive(now);
            let wait = Duration::from_micros(at.micros_since(now));
            let look_after = wait.min(LONGEST_SLEEP);
            if let Some(first) = queue.waiters.front_mut() {
                first.looks_at = now.saturating_add(micros(look_after));
            }
            return Next::NotYet { wait: Some(wait), look_after };
        }
    }
}
