//! What becomes of a caller: at once, or in its turn.

use super::forecast::foresee;
use super::{Counted, PATIENCE, PATIENCE_MICROS, Place, Queue, Queued, Turn, Wakes};
use crate::algorithm::{Algorithm, Receipt};
use crate::clock::Tick;
use crate::decision::{Decision, Outcome};
use crate::limiter::{Limits, OnDrop, TIMER_LATENESS_MICROS};
use crate::math::micros;
use crate::operation::Operation;
use dashmap::mapref::entry::Entry;
use std::mem;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

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

/// Decides behind the waiters for this key; `None`, and nothing is done, if there are none.
#[cold]
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
        return None;
    }
    let (decided, wakes) = limits.with(key, |algorithm| {
        queues.visit(fingerprint, |queue| decide(store, algorithm, fingerprint, queue, operation))
    });
    wakes.run();
    decided.flatten()
}

/// Does `operation` behind the waiters in `queue`; `None` if none of them is waited for any more.
fn decide<S, A>(
    store: &S,
    algorithm: &A,
    fingerprint: u64,
    queue: &mut Queue<A::State>,
    operation: Operation<'_>,
) -> Option<Decision>
where
    S: Queued<A>,
    A: Algorithm,
{
    let now = store.now();
    let turn = queue.pass_over(now, ready_after(store, algorithm, fingerprint))?;
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
    let forecast = queue.forecast(algorithm, || store.state(fingerprint), now, first_until);
    let ready_after = |n| {
        let at = forecast.foresee(algorithm, n).map_or(forecast.at, |foreseen| foreseen.at);
        at.micros_since(now).max(1)
    };
    let refused = standing.refused(Duration::from_micros(ready_after(n)));
    Decision { next_after_micros: Some(ready_after(1)), ..refused }
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
    // Limits are looked up before a queue is locked, never within.
    let queues = store.queues();
    let (entered, wakes) = limits.with(key, |algorithm| enter(store, algorithm, &asked));
    let ((decision, receipt), counted) = match entered {
        Ok(decided) => {
            wakes.run();
            (decided, None)
        }
        Err(place) => {
            let _leave = OnDrop(|| queues.leave(fingerprint, place.ticket, store.now()));
            wakes.run();
            loop {
                let (next, wakes) =
                    limits.with(key, |algorithm| serve(store, algorithm, &asked, place.ticket));
                wakes.run();
                let (wait, look_after, is_missed) = match next {
                    Next::Gone(decided, counted) => break (decided, counted),
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
                    return apply(store, limits, key, fingerprint, Operation::Peek(n)).missed();
                }
            }
        }
    };
    let Outcome::Delayed(delay) = decision.outcome else { return decision };
    // A leaky bucket's queue: a caller that does not wait gives up the place in it.
    let give_back = OnDrop(|| {
        let settle = Operation::Settle(0, &receipt);
        let _ = apply(store, limits, key, fingerprint, settle);
    });
    let Some(_counted) = counted.or_else(|| queues.place(0)) else {
        return decision.refused(delay);
    };
    sleep(delay).await;
    mem::forget(give_back);
    let standing = apply(store, limits, key, fingerprint, Operation::Peek(0));
    Decision { granted: decision.granted, ..standing }
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

/// Decides at once if nobody waits and the units are there, or if waiting is no use; otherwise
/// returns a place in the queue.
fn enter<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
) -> (Result<Decided, Place>, Wakes) {
    let fingerprint = asked.fingerprint;
    let queues = store.queues();
    let entry = queues.by_key().entry(fingerprint);
    // While the queue is locked: tickets are in its order.
    let ticket = queues.next_ticket.fetch_add(1, Relaxed);
    match entry {
        Entry::Vacant(entry) => {
            let now = store.now();
            let entered = enter_empty(store, algorithm, asked, now).map_err(|place| {
                queues.len.fetch_add(1, Relaxed);
                entry.insert(Queue::new(now)).push(place, ticket, asked, now)
            });
            (entered, Wakes::NONE)
        }
        Entry::Occupied(mut entry) => {
            let now = store.now();
            let queue = entry.get_mut();
            let entered = match queue.pass_over(now, ready_after(store, algorithm, fingerprint)) {
                Some(turn) => enter_behind(store, algorithm, asked, queue, now, turn),
                None => {
                    *queue = Queue::new(now);
                    enter_empty(store, algorithm, asked, now)
                }
            };
            let entered = entered.map_err(|place| queue.push(place, ticket, asked, now));
            let wakes = queue.wakes();
            queues.remove_if_empty(entry);
            (entered, wakes)
        }
    }
}

/// [`enter`], behind waiters.
fn enter_behind<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    queue: &mut Queue<A::State>,
    now: Tick,
    turn: Turn,
) -> Result<Decided, Counted> {
    let &Asked { fingerprint, n, .. } = asked;
    if n == 0 {
        return Ok((asked.take(store, algorithm, now).into_decision(), Receipt::new()));
    }
    let first_until = turn.overdue_until(now);
    let refused = refused(store, algorithm, fingerprint, queue, n, now, first_until);
    if refused.outcome == Outcome::Never {
        return Ok((refused, Receipt::new()));
    }
    let Some(place) = store.queues().place(queue.waiters.len()) else {
        return Ok((refused, Receipt::new()));
    };
    let forecast = queue.forecast(algorithm, || store.state(fingerprint), now, first_until);
    let foreseen = forecast.foresee(algorithm, n);
    let departure = foreseen.as_ref().map(|foreseen| foreseen.departure);
    if let Some(late) = asked.lateness(departure, now) {
        // In a queue of the algorithm's own it is the same place that would be in time later.
        let is_delayed = foreseen.is_some_and(|foreseen| foreseen.departure > foreseen.at);
        let denied =
            if is_delayed { refused.refused(late) } else { refused.denied_for_at_least(late) };
        return Ok((denied, Receipt::new()));
    }
    forecast.take(algorithm, n);
    Err(place)
}

/// [`enter`], without waiters.
fn enter_empty<S: Queued<A>, A: Algorithm>(
    store: &S,
    algorithm: &A,
    asked: &Asked,
    now: Tick,
) -> Result<Decided, Counted> {
    let (wait, denied) = match asked.take(store, algorithm, now) {
        Taken::NotYet(wait, denied) => (wait, denied),
        Taken::Decided(decided) => return Ok(decided),
    };
    let peek = |at| store.apply_at(algorithm, asked.fingerprint, Operation::Peek(asked.n), || at);
    let foreseen = foresee(now, |at| peek(at).outcome);
    let late = asked.lateness(foreseen.map(|foreseen| foreseen.departure), now);
    let place = if late.is_none() { store.queues().place(0) } else { None };
    match place {
        Some(place) => Err(place),
        None => Ok((denied.denied_for_at_least(late.unwrap_or(wait)), Receipt::new())),
    }
}

/// After so long the first one looks again, as limits may have been replaced: well before it would be
/// passed over.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// Timers need not be set for longer.
const LONGEST_TIMER: Duration = Duration::from_secs(86_400);

/// What becomes of a waiter.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
enum Next {
    /// It has left the queue, with this decision; it still counts as a waiter while it has this.
    Gone(Decided, Option<Counted>),
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
    let now = store.now();
    let (next, wakes) = store
        .queues()
        .visit(asked.fingerprint, |queue| serve_in(store, algorithm, asked, queue, ticket, now));
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
    let mut at = foreseen.max(earliest).min(now);
    if at != foreseen {
        queue.forecast_is_stale();
    }
    loop {
        match asked.take(store, algorithm, at) {
            Taken::Decided(decided) => {
                queue.served_until = at;
                let counted = queue.remove(0).map(|waiter| waiter.counted);
                let was_foreseen = queue.forecast.as_ref().is_some_and(|f| !f.without_first);
                if !decided.0.is_allowed() || !was_foreseen {
                    queue.forecast_is_stale();
                }
                queue.wake_first(now);
                return Next::Gone(decided, counted);
            }
            Taken::NotYet(wait, _) => {
                queue.forecast_is_stale();
                at = at.saturating_add(micros(wait));
            }
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
