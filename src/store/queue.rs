//! Those who wait for units, first come, first served.

use crate::algorithm::{Algorithm, Receipt};
use crate::clock::Tick;
use crate::decision::{Decision, Outcome};
use crate::limiter::{Limits, OnDrop};
use crate::math::micros;
use crate::operation::Operation;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
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
    /// How things will stand when all of them have gone; unknown after a change that was not
    /// foreseen.
    behind: Option<Behind<T>>,
}

struct Waiter {
    ticket: u64,
    units: u64,
    turn: Arc<Notify>,
}

#[derive(Clone)]
struct Behind<T> {
    state: T,
    at: Tick,
}

/// A timer may be so late: then units count as taken when they could have been, so that no rate is
/// lost to its resolution of a millisecond.
const TIMER_LATENESS_MICROS: u64 = 2_000;

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

    /// Tells whoever waits for a key that its units have changed otherwise than by going.
    pub(super) fn changed(&self, fingerprint: u64) {
        if self.is_empty() {
            return;
        }
        if let Some(mut queue) = self.by_key().get_mut(&fingerprint) {
            queue.changed();
        }
    }

    /// Takes a waiter out of its queue, if it is still there, and the queue out of the table, if it
    /// was the last.
    fn leave(&self, fingerprint: u64, ticket: u64) {
        if let Entry::Occupied(mut entry) = self.by_key().entry(fingerprint) {
            let queue = entry.get_mut();
            if let Ok(index) = queue.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
                queue.waiters.remove(index);
                queue.behind = None;
                if index == 0 {
                    queue.wake_first();
                }
            }
            if queue.waiters.is_empty() {
                entry.remove();
                self.len.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl<T> fmt::Debug for Queues<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T> Queue<T> {
    fn changed(&mut self) {
        self.behind = None;
        self.wake_first();
    }

    fn wake_first(&self) {
        if let Some(first) = self.waiters.front() {
            first.turn.notify_one();
        }
    }
}

impl<T: Clone> Queue<T> {
    /// How things will stand when all that wait have gone.
    fn behind<A: Algorithm<State = T>>(
        &mut self,
        algorithm: &A,
        state: impl FnOnce() -> T,
        now: Tick,
    ) -> &mut Behind<T> {
        self.behind.get_or_insert_with(|| {
            let mut behind = Behind { state: state(), at: now };
            for waiter in &self.waiters {
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
        // Beyond the end of time, or long before the state's own.
        algorithm.take(&mut self.state, n, self.at);
        Some(self.at)
    }
}

/// One wait is exact, unless the clock has gone back and stands still.
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
        store.queues().changed(fingerprint);
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
    let mut queue = store.queues().by_key().get_mut(&fingerprint)?;
    let now = store.now();
    Some(match operation {
        Operation::Check(n @ 1..)
        | Operation::Peek(n @ 1..)
        | Operation::TakeUpTo(n @ 1..)
        | Operation::Reserve(n @ 1.., _) => {
            let n = if matches!(operation, Operation::TakeUpTo(_)) { 1 } else { n };
            refused(store, algorithm, fingerprint, &mut queue, n, now)
        }
        Operation::Check(_)
        | Operation::Peek(_)
        | Operation::TakeUpTo(_)
        | Operation::Reserve(..) => store.apply_at(algorithm, fingerprint, operation, || now),
        Operation::Debit(_) | Operation::Refund(_) | Operation::Reset | Operation::Settle(..) => {
            let decision = store.apply_at(algorithm, fingerprint, operation, || now);
            queue.changed();
            decision
        }
    })
}

/// The units that there are, and that there will be, are for those who wait.
fn refused<S, A>(
    store: &S,
    algorithm: &A,
    fingerprint: u64,
    queue: &mut Queue<A::State>,
    n: u64,
    now: Tick,
) -> Decision
where
    S: Queued<A>,
    A: Algorithm,
{
    let standing = store.apply_at(algorithm, fingerprint, Operation::Peek(n), || now);
    if standing.outcome == Outcome::Never {
        return standing;
    }
    let behind = queue.behind(algorithm, || store.state(fingerprint), now);
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
    let receipt = Receipt::new();
    let asked = Asked { fingerprint, n, receipt: &receipt };
    // Limits are looked up before a queue is locked, never within.
    let entered = limits.with(key, |algorithm| enter(store, algorithm, &asked, deadline));
    let decision = match entered {
        Ok(decision) => decision,
        Err(place) => {
            let queues = store.queues();
            let _leave = OnDrop(|| queues.leave(fingerprint, place.ticket));
            loop {
                let next =
                    limits.with(key, |algorithm| serve(store, algorithm, &asked, place.ticket));
                let wait = match next {
                    Next::Gone(decision) => break decision,
                    Next::NotYet(wait) => wait,
                };
                let now = Instant::now();
                let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
                let mut is_late = wait.zip(left).is_some_and(|(wait, left)| wait > left);
                match wait.map(|wait| now + wait.min(LONGEST_SLEEP)).or(deadline) {
                    _ if is_late => {}
                    None => place.turn.notified().await,
                    Some(until) => {
                        let woken = timeout_at(until, place.turn.notified()).await;
                        is_late = wait.is_none() && woken.is_err();
                    }
                }
                if is_late {
                    queues.leave(fingerprint, place.ticket);
                    let peek = Operation::Peek(n);
                    let peeked =
                        limits.with(key, |algorithm| apply(store, algorithm, fingerprint, peek));
                    break match peeked.outcome {
                        Outcome::Denied(_) | Outcome::Never => peeked,
                        _ => peeked.refused(Duration::from_micros(1)),
                    };
                }
            }
        }
    };
    let Outcome::Delayed(delay) = decision.outcome else { return decision };
    // A leaky bucket's queue: the place in it is given back by whoever does not wait.
    let give_back = OnDrop(|| {
        let settle = Operation::Settle(0, &receipt);
        let _ = limits.with(key, |algorithm| apply(store, algorithm, fingerprint, settle));
    });
    let turn = Instant::now() + delay;
    let peek = Operation::Peek(0);
    let standing = || limits.with(key, |algorithm| apply(store, algorithm, fingerprint, peek));
    if let Some(late) = deadline.map(|deadline| turn.saturating_duration_since(deadline))
        && !late.is_zero()
    {
        drop(give_back);
        return standing().refused(late);
    }
    sleep(delay).await;
    mem::forget(give_back);
    Decision { granted: decision.granted, ..standing() }
}

/// What somebody waits for.
struct Asked<'r> {
    fingerprint: u64,
    n: u64,
    receipt: &'r Receipt,
}

impl Asked<'_> {
    fn take<S: Queued<A>, A: Algorithm>(&self, store: &S, algorithm: &A, at: Tick) -> Decision {
        store.apply_at(algorithm, self.fingerprint, Operation::Reserve(self.n, self.receipt), || at)
    }
}

/// A place in a queue.
struct Place {
    ticket: u64,
    turn: Arc<Notify>,
}

/// Decides at once where nobody waits and the units are there, or where waiting is no use;
/// otherwise returns a place in the queue.
fn enter<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked<'_>,
    deadline: Option<Instant>,
) -> Result<Decision, Place> {
    let &Asked { fingerprint, n, .. } = asked;
    let queues = store.queues();
    let longest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let entry = queues.by_key().entry(fingerprint);
    let now = store.now();
    if n == 0 {
        return Ok(asked.take(store, algorithm, now));
    }
    // What a queue of an algorithm's own adds to the wait counts too.
    let lateness = |go_at: Option<Tick>| {
        let wait = Duration::from_micros(go_at.map_or(0, |go_at| go_at.micros_since(now)));
        longest.and_then(|longest| wait.checked_sub(longest)).filter(|late| !late.is_zero())
    };
    let place = |queue: &mut Queue<A::State>| {
        let ticket = queues.next_ticket.fetch_add(1, Relaxed);
        let turn = Arc::new(Notify::new());
        queue.waiters.push_back(Waiter { ticket, units: n, turn: Arc::clone(&turn) });
        Err(Place { ticket, turn })
    };
    match entry {
        Entry::Vacant(entry) => {
            let decision = asked.take(store, algorithm, now);
            match decision.outcome {
                Outcome::Denied(_) if queues.max_waiters > 0 => {
                    let mut behind = Behind { state: store.state(fingerprint), at: now };
                    if let Some(late) = lateness(behind.take(algorithm, n)) {
                        return Ok(decision.denied_for_at_least(late));
                    }
                    queues.len.fetch_add(1, Relaxed);
                    let queue =
                        Queue { waiters: VecDeque::new(), served_until: now, behind: Some(behind) };
                    place(entry.insert(queue).value_mut())
                }
                _ => Ok(decision),
            }
        }
        Entry::Occupied(mut entry) => {
            let queue = entry.get_mut();
            let refused = refused(store, algorithm, fingerprint, queue, n, now);
            match refused.outcome {
                Outcome::Denied(_) if queue.waiters.len() < queues.max_waiters => {
                    let behind = queue.behind(algorithm, || store.state(fingerprint), now);
                    let mut after = behind.clone();
                    if let Some(late) = lateness(after.take(algorithm, n)) {
                        return Ok(refused.denied_for_at_least(late));
                    }
                    *behind = after;
                    place(queue)
                }
                _ => Ok(refused),
            }
        }
    }
}

/// After so long the first one looks again, as limits may have been replaced.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What becomes of a waiter.
enum Next {
    /// It has left the queue, with this decision.
    Gone(Decision),
    /// It is to look again when it is woken, or after so long, where that is known.
    NotYet(Option<Duration>),
}

/// Lets a waiter go, if it is the first one and there are units for it.
fn serve<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked<'_>,
    ticket: u64,
) -> Next {
    let queues = store.queues();
    let Entry::Occupied(mut entry) = queues.by_key().entry(asked.fingerprint) else {
        unreachable!("a queue is there while somebody waits in it");
    };
    let queue = entry.get_mut();
    if queue.waiters.front().is_none_or(|first| first.ticket != ticket) {
        return Next::NotYet(None);
    }
    let now = store.now();
    let earliest = Tick::from_micros(now.as_micros().saturating_sub(TIMER_LATENESS_MICROS));
    let foreseen = queue.served_until;
    let mut at = foreseen.max(earliest).min(now);
    if at != foreseen {
        queue.behind = None;
    }
    loop {
        let decision = asked.take(store, algorithm, at);
        let Outcome::Denied(wait) = decision.outcome else {
            queue.served_until = at;
            queue.waiters.pop_front();
            queue.wake_first();
            if queue.waiters.is_empty() {
                entry.remove();
                queues.len.fetch_sub(1, Relaxed);
            }
            return Next::Gone(decision);
        };
        at = at.saturating_add(micros(wait));
        if at > now {
            queue.served_until = at;
            return Next::NotYet(Some(Duration::from_micros(at.micros_since(now))));
        }
    }
}
