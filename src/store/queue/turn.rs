//! What becomes of a caller: at once, or in its turn.

use super::forecast::{Foreseen, foresee};
use super::{
    Counted, Departing, PATIENCE, PATIENCE_MICROS, Place, Queue, Queued, Turn, Waiter, Wakes,
};
use crate::algorithm::{Algorithm, Receipt};
use crate::clock::Tick;
use crate::decision::{Decision, Outcome};
use crate::limiter::{Limits, OnDrop, TIMER_LATENESS_MICROS};
use crate::math::{micros, micros_rounded_up};
use crate::operation::Operation;
use dashmap::mapref::entry::Entry;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Whether an operation wakes the waiters, also those that came only while it was done.
#[inline]
const fn changes_turns(operation: Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::Debit(_) | Operation::Refund(_) | Operation::Reset | Operation::Settle(..)
    )
}

/// Does `operation`, behind those who wait for this key.
#[inline(always)]
pub(in crate::store) fn apply<S, A, L, K>(
    store: &S,
    limits: &L,
    key: &K,
    fingerprint: u64,
    operation: Operation<'_>,
) -> Decision
where
    S: Queued<A>,
    A: Algorithm,
    L: Limits<K, Algorithm = A>,
    K: ?Sized,
{
    let queues = store.queues();
    if !queues.is_empty()
        && let Some(decision) = apply_behind(store, limits, key, fingerprint, operation)
    {
        return decision.apart();
    }
    let decision = limits
        .with(key, |algorithm| store.apply_at(algorithm, fingerprint, operation, || store.now()));
    if changes_turns(operation) {
        queues.changed(fingerprint, || store.now());
    }
    decision
}

/// Decides behind the waiters for this key and its pause; `None`, and nothing is done, if there are
/// neither.
#[cold]
#[inline(never)]
fn apply_behind<S, A, L, K>(
    store: &S,
    limits: &L,
    key: &K,
    fingerprint: u64,
    operation: Operation<'_>,
) -> Option<Decision>
where
    S: Queued<A>,
    A: Algorithm,
    L: Limits<K, Algorithm = A>,
    K: ?Sized,
{
    let queues = store.queues();
    if !queues.is_waited_for(fingerprint) {
        queues.end_pauses(|| store.now());
        return None;
    }
    let (decided, wakes) = limits.with(key, |algorithm| {
        let decide =
            |queue: &mut _, now| decide(store, algorithm, fingerprint, queue, operation, now);
        queues.visit(fingerprint, || store.now(), decide)
    });
    wakes.run();
    decided.flatten()
}

/// Does `operation` behind the waiters in `queue`; `None` if none of them is waited for any more, and
/// it is not paused.
fn decide<S, A>(
    store: &S,
    algorithm: &A,
    fingerprint: u64,
    queue: &mut Queue<A::State>,
    operation: Operation<'_>,
    now: Tick,
) -> Option<Decision>
where
    S: Queued<A>,
    A: Algorithm,
{
    let turn = queue.pass_over(now, ready_after(store, algorithm, fingerprint));
    if turn.is_none() && !queue.is_paused(now) {
        return None;
    }
    let first_until = turn.and_then(|turn| turn.overdue_until(now));
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
            if matches!(operation, Operation::Reset) && queue.is_paused(now) {
                store.queues().pauses.note(fingerprint, queue.paused_until, None);
                queue.paused_until = Tick::default();
            }
            let decision = store.apply_at(algorithm, fingerprint, operation, || now);
            // One that could have gone before is waited for no longer because of this.
            match first_until {
                None => queue.changed(now),
                Some(_) => queue.units_have_changed(),
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

/// The units that there are, and that there will be, are for those who wait; and nobody takes any
/// during a pause.
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
    let paused_until = queue.paused_until;
    let ready_at = if queue.waiters.is_empty() {
        let end = paused_until.max(now);
        [n, 1].map(|n| {
            let peek = |at| store.apply_at(algorithm, fingerprint, Operation::Peek(n), || at);
            foresee(end, |at| peek(at).outcome).map_or(end, |foreseen| foreseen.at)
        })
    } else {
        let forecast = queue.forecast(algorithm, || store.state(fingerprint), now, first_until);
        [n, 1].map(|n| forecast.foresee(algorithm, n).map_or(forecast.at, |foreseen| foreseen.at))
    };
    let [after, next_after] = ready_at.map(|at| at.micros_since(now).max(1));
    Decision {
        next_after_micros: Some(next_after),
        reset_after_micros: standing.reset_after_micros.max(paused_until.micros_since(now)),
        ..standing.refused(Duration::from_micros(after))
    }
}

/// Gives out no units of a key for so long from now on, if no longer pause of it is under way. Those
/// that wait for a place in the algorithm's own queue give it up, and wait on in their order.
pub(in crate::store) fn pause<S, A, L, K>(
    store: &S,
    limits: &L,
    key: &K,
    fingerprint: u64,
    duration: Duration,
) where
    S: Queued<A>,
    A: Algorithm,
    L: Limits<K, Algorithm = A>,
    K: ?Sized,
{
    let queues = store.queues();
    let pause = micros_rounded_up(duration);
    if pause == 0 {
        return;
    }
    let wakes = limits.with(key, |algorithm| {
        let mut entry = match queues.by_key().entry(fingerprint) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert_entry(Queue::new(store.now())),
        };
        let now = store.now();
        let until = now.saturating_add(pause);
        let queue = entry.get_mut();
        if until > queue.paused_until {
            queues.pauses.note(fingerprint, queue.paused_until, Some(until));
            queue.pause(until);
            // The last one first: it is only the last place that is taken again.
            while let Some(Departing { mut waiter, receipt, at, .. }) = queue.departing.pop_back() {
                let settle = Operation::Settle(0, &receipt);
                let _ = store.apply_at(algorithm, fingerprint, settle, || now);
                let asleep_for = at.saturating_duration_since(Instant::now());
                waiter.looks_at = now.saturating_add(micros(asleep_for));
                queue.push_front(waiter);
            }
        }
        queues.leave_be(entry, now)
    });
    wakes.run();
    queues.end_pauses(|| store.now());
}

/// Waits for `n` units behind all who came before.
pub(in crate::store) async fn acquire<S, A, L, K>(
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
    let queues = store.queues();
    queues.end_pauses(|| store.now());
    // Limits are looked up before a queue is locked, never within.
    let (entered, wakes) = limits.with(key, |algorithm| enter(store, algorithm, &asked));
    let place = match entered {
        Ok(decision) => {
            wakes.run();
            return decision;
        }
        Err(place) => place,
    };
    let leave = || {
        let (left, wakes) =
            queues.visit(fingerprint, || store.now(), |queue, now| queue.leave(place.ticket, now));
        wakes.run();
        // A leaky bucket's queue: a caller that does not wait gives up the place in it.
        if let Some(receipt) = left.flatten() {
            let settle = Operation::Settle(0, &receipt);
            let _ = apply(store, limits, key, fingerprint, settle);
        }
    };
    let _leave = OnDrop(leave);
    wakes.run();
    loop {
        let (next, wakes) =
            limits.with(key, |algorithm| serve(store, algorithm, &asked, place.ticket));
        wakes.run();
        let (wait, look_after, is_missed) = match next {
            Next::Gone(decision) => return decision,
            Next::Departs(at) => {
                // Unless a pause makes it wait again.
                let _ = timeout_at(at, place.turn.notified()).await;
                continue;
            }
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
            leave();
            return apply(store, limits, key, fingerprint, Operation::Peek(n)).missed();
        }
    }
}

/// What is waited for.
pub(super) struct Asked {
    fingerprint: u64,
    pub(super) n: u64,
    pub(super) deadline: Option<Instant>,
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

/// What becomes of a caller that has come.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
enum Entered {
    Decided(Decision),
    Waits(Counted),
    /// It has a place in a queue of the algorithm's own.
    Departs(Counted, Decided),
}

/// What becomes of a caller that has been decided on: one that is delayed counts as a waiter.
fn entered<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    (decision, receipt): Decided,
    now: Tick,
) -> Entered {
    let Outcome::Delayed(delay) = decision.outcome else { return Entered::Decided(decision) };
    match store.queues().place(0) {
        Some(place) => Entered::Departs(place, (decision, receipt)),
        None => {
            let settle = Operation::Settle(0, &receipt);
            let _ = store.apply_at(algorithm, asked.fingerprint, settle, || now);
            Entered::Decided(decision.refused(delay))
        }
    }
}

impl<T> Queue<T> {
    /// Takes in a caller that waits; returns its place.
    fn take_in(
        &mut self,
        entered: Entered,
        ticket: u64,
        asked: &Asked,
        now: Tick,
    ) -> Result<Decision, Place> {
        let (counted, decided) = match entered {
            Entered::Decided(decision) => return Ok(decision),
            Entered::Waits(counted) => (counted, None),
            Entered::Departs(counted, decided) => (counted, Some(decided)),
        };
        let waiter = Waiter::new(counted, ticket, asked, now);
        let place = waiter.place();
        match decided {
            None => self.push(waiter),
            Some(decided) => _ = self.depart(waiter, decided),
        }
        Err(place)
    }

    /// Lets a waiter go when its delay is over; returns when that is.
    fn depart(&mut self, waiter: Waiter, (decision, receipt): Decided) -> Instant {
        let at = Instant::now() + decision.delay();
        self.departing.push_back(Departing { waiter, decision, receipt, at });
        at
    }
}

/// Decides at once if nobody waits and the units are there, or if waiting is no use; otherwise
/// returns a place in the queue.
fn enter<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
) -> (Result<Decision, Place>, Wakes) {
    let fingerprint = asked.fingerprint;
    let queues = store.queues();
    let entry = queues.by_key().entry(fingerprint);
    // While the queue is locked: tickets are in its order.
    let ticket = queues.next_ticket.fetch_add(1, Relaxed);
    let now = store.now();
    match entry {
        Entry::Vacant(entry) => match enter_empty(store, algorithm, asked, now) {
            Entered::Decided(decision) => (Ok(decision), Wakes::NONE),
            entered => {
                let mut entry = entry.insert_entry(Queue::new(now));
                let entered = entry.get_mut().take_in(entered, ticket, asked, now);
                (entered, queues.leave_be(entry, now))
            }
        },
        Entry::Occupied(mut entry) => {
            let queue = entry.get_mut();
            let turn = queue.pass_over(now, ready_after(store, algorithm, fingerprint));
            if turn.is_none() {
                queue.restart(now);
            }
            let entered = if turn.is_some() || queue.is_paused(now) {
                enter_behind(store, algorithm, asked, queue, now, turn)
            } else {
                enter_empty(store, algorithm, asked, now)
            };
            let entered = queue.take_in(entered, ticket, asked, now);
            (entered, queues.leave_be(entry, now))
        }
    }
}

/// [`enter`], behind waiters or a pause.
fn enter_behind<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    queue: &mut Queue<A::State>,
    now: Tick,
    turn: Option<Turn>,
) -> Entered {
    let &Asked { fingerprint, n, .. } = asked;
    if n == 0 {
        return Entered::Decided(asked.take(store, algorithm, now).into_decision());
    }
    let first_until = turn.and_then(|turn| turn.overdue_until(now));
    let refused = refused(store, algorithm, fingerprint, queue, n, now, first_until);
    if refused.outcome == Outcome::Never {
        return Entered::Decided(refused);
    }
    let Some(place) = store.queues().place(queue.waiters.len()) else {
        return Entered::Decided(refused);
    };
    let forecast = queue.forecast(algorithm, || store.state(fingerprint), now, first_until);
    let foreseen = forecast.foresee(algorithm, n);
    let departure = foreseen.as_ref().map(|foreseen| foreseen.departure);
    if let Some(late) = asked.lateness(departure, now) {
        // In a queue of the algorithm's own it is the same place that would be in time later.
        let is_delayed = foreseen.is_some_and(|foreseen| foreseen.departure > foreseen.at);
        let denied =
            if is_delayed { refused.refused(late) } else { refused.denied_for_at_least(late) };
        return Entered::Decided(denied);
    }
    forecast.take(algorithm, n);
    Entered::Waits(place)
}

/// [`enter`], without waiters and pauses.
fn enter_empty<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    now: Tick,
) -> Entered {
    let (wait, denied) = match asked.take(store, algorithm, now) {
        Taken::NotYet(wait, denied) => (wait, denied),
        Taken::Decided(decided) => return entered(store, algorithm, asked, decided, now),
    };
    let peek = |at| store.apply_at(algorithm, asked.fingerprint, Operation::Peek(asked.n), || at);
    let foreseen = foresee(now, |at| peek(at).outcome);
    let late = asked.lateness(foreseen.map(|foreseen| foreseen.departure), now);
    let place = if late.is_none() { store.queues().place(0) } else { None };
    match place {
        Some(place) => Entered::Waits(place),
        None => Entered::Decided(denied.denied_for_at_least(late.unwrap_or(wait))),
    }
}

/// After so long the first one looks again, as limits may have been replaced: well before it would be
/// passed over.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// Timers need not be set for longer.
const LONGEST_TIMER: Duration = Duration::from_secs(86_400);

/// What becomes of a waiter.
enum Next {
    /// It has left the queue, with this decision.
    Gone(Decision),
    /// It has its units, and can go then.
    Departs(Instant),
    /// It was passed over.
    Missed,
    /// It can go after this `wait`, if that is known, and is to look again when it is woken, or after
    /// so long.
    NotYet { wait: Option<Duration>, look_after: Duration },
}

/// Lets a waiter go, if it is the first one and there are units for it. One that is polled too late
/// has been passed over, or is now.
fn serve<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    ticket: u64,
) -> (Next, Wakes) {
    let serve = |queue: &mut _, now| serve_in(store, algorithm, asked, queue, ticket, now);
    let (next, wakes) = store.queues().visit(asked.fingerprint, || store.now(), serve);
    (next.unwrap_or(Next::Missed), wakes)
}

fn serve_in<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    queue: &mut Queue<A::State>,
    ticket: u64,
    now: Tick,
) -> Next {
    if let Some(index) = queue.departing(ticket) {
        let Departing { at, decision, .. } = &queue.departing[index];
        let (at, granted) = (*at, decision.granted);
        if at > Instant::now() {
            return Next::Departs(at);
        }
        queue.departing.remove(index);
        let peek = Operation::Peek(0);
        let standing = store.apply_at(algorithm, asked.fingerprint, peek, || now);
        return Next::Gone(Decision { granted, ..standing });
    }
    // The store's clock may have been set forward, or gone on while the timers stood still.
    if queue.position(ticket) == Some(0) && queue.woken_instant.elapsed() < PATIENCE {
        queue.is_alive(now);
    }
    let turn = queue.pass_over(now, ready_after(store, algorithm, asked.fingerprint));
    match (queue.position(ticket), turn) {
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
    }
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
    let mut at = foreseen.max(earliest).min(now).max(queue.paused_until);
    if at != foreseen {
        queue.forecast_is_stale();
    }
    if at > now {
        let peek =
            |at| store.apply_at(algorithm, asked.fingerprint, Operation::Peek(asked.n), || at);
        match foresee(at, |at| peek(at).outcome) {
            Some(foreseen) => return queue.first_waits(&foreseen, now),
            // It can never go, and is denied without waiting for the end of the pause.
            None => at = now,
        }
    }
    loop {
        match asked.take(store, algorithm, at) {
            Taken::Decided(decided) => {
                queue.served_until = at;
                let was_foreseen = queue.forecast.as_ref().is_some_and(|f| !f.without_first);
                if !decided.0.is_allowed() || !was_foreseen {
                    queue.forecast_is_stale();
                }
                let first = queue.remove(0);
                queue.wake_first(now);
                return match first {
                    Some(first) if decided.0.delay() > Duration::ZERO => {
                        Next::Departs(queue.depart(first, decided))
                    }
                    _ => Next::Gone(decided.0),
                };
            }
            Taken::NotYet(wait, _) => {
                queue.forecast_is_stale();
                at = at.saturating_add(micros(wait));
            }
        }
        if at > now {
            return queue.first_waits(&Foreseen { at, departure: at }, now);
        }
    }
}

impl<T> Queue<T> {
    /// The first can take its units then, and looks again when it can, or before.
    fn first_waits(&mut self, foreseen: &Foreseen, now: Tick) -> Next {
        self.served_until = foreseen.at;
        self.is_alive(now);
        let after = |at: Tick| Duration::from_micros(at.micros_since(now));
        let look_after = after(foreseen.at).min(LONGEST_SLEEP);
        if let Some(first) = self.waiters.front_mut() {
            first.looks_at = now.saturating_add(micros(look_after));
        }
        Next::NotYet { wait: Some(after(foreseen.departure)), look_after }
    }
}
