//! Everything a limiter can be asked, derived once for every algorithm.

use crate::algorithm::{Admission, Algorithm, Departure, Hold, Receipt, Standing, Wait, foretell};
use crate::clock::Tick;
use crate::decision::{Decision, Outcome};
use std::time::Duration;

/// What a limiter is asked to do for a key. Every method of every limiter is one of these.
///
/// ```
/// use tollgate::{Operation, Quota, SlidingLog, SlidingLogState, Tick};
///
/// // No store and no clock: an algorithm, a state, and an instant.
/// let log = SlidingLog::new(Quota::per_minute(2));
/// let now = Tick::from_micros(1_800_000_000_000_000);
/// let mut state = SlidingLogState::default();
/// assert!(Operation::Check(2).apply(&log, &mut state, now).is_allowed());
/// assert!(!Operation::Check(1).apply(&log, &mut state, now).is_allowed());
/// ```
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub enum Operation<'r> {
    /// Take so many units, all or none. 0 asks without taking.
    Check(u64),
    /// Tell what [`Check`](Self::Check) would say, and take nothing.
    Peek(u64),
    /// Take as many units as there are, up to so many. Refused only where there is not one.
    TakeUpTo(u64),
    /// Charge so many units whether they are there or not. What was not there is a debt: a bucket
    /// works it off before anything is allowed again, in a window or a log it counts as long as
    /// any other units do. In a log, all units beyond twice the limit count from the latest charge
    /// on.
    Debit(u64),
    /// Give back so many units, never more than were taken, and in an algorithm with windows
    /// only into the present one. The queue of a [`LeakyBucket`](crate::LeakyBucket) takes none back:
    /// it has promised its departures. If there is nothing to give back, nothing changes, not even
    /// the time.
    Refund(u64),
    /// Forget all that was taken.
    Reset,
    /// Take so many units as [`Check`](Self::Check) does, and note in the receipt when it was, so that
    /// the true cost can be settled later. What would be delayed by more than the receipt's
    /// [longest delay](Receipt::longest_delay) is denied: the same call is in time after that wait.
    Reserve(u64, &'r Receipt),
    /// Correct what was taken with the receipt so that it is this cost in all: charge what is
    /// missing, or give back what is too much, to where it was taken from. What is missing may leave
    /// a debt of one limit, and no more. The first settlement of a receipt counts, and no other.
    Settle(u64, &'r Receipt),
}

impl Operation<'_> {
    /// Decides by `algorithm` for the key with this `state`, at `now`, and records in the
    /// state what was taken.
    ///
    /// This is the one place where decisions are made. A refusal leaves the state as it was.
    #[inline(always)]
    pub fn apply<A: Algorithm>(self, algorithm: &A, state: &mut A::State, now: Tick) -> Decision {
        match self {
            Self::Check(n) => check(algorithm, state, n, now),
            _ => self.apply_out_of_line(algorithm, state, now).apart(),
        }
    }

    /// The same, for where not even a check need be fast.
    #[inline(never)]
    pub(crate) fn apply_out_of_line<A: Algorithm>(
        self,
        algorithm: &A,
        state: &mut A::State,
        now: Tick,
    ) -> Decision {
        match self {
            Self::Check(n) => return check(algorithm, state, n, now),
            Self::Peek(n) => return peek(algorithm, state, n, now),
            Self::TakeUpTo(n) => {
                let room = algorithm.room(state, now);
                let available = n.min(room);
                let asked = if n == 0 { 0 } else { available.max(1) };
                let foretold = foretell(algorithm, state, asked, room, now);
                if available > 0 {
                    algorithm.take_to_go(state, available, now, foretold.1);
                }
                return conclude(algorithm, state, verdict(foretold), asked, available, now);
            }
            Self::Debit(n) => {
                if n > 0 {
                    algorithm.take(state, n, now);
                }
                return conclude(algorithm, state, Outcome::Allowed, 0, n, now);
            }
            Self::Reserve(n, receipt) => return reserve(algorithm, state, n, receipt, now),
            Self::Refund(0) => {}
            Self::Refund(n) => algorithm.give_back(state, n, None, now),
            Self::Reset => *state = A::State::default(),
            Self::Settle(_, receipt) if receipt.is_settled() => {}
            Self::Settle(cost, receipt) => {
                receipt.set_settled();
                let (missing, excess) =
                    (cost.saturating_sub(receipt.units()), receipt.units().saturating_sub(cost));
                if missing > 0 {
                    algorithm.overdraw(state, missing, now);
                    return conclude(algorithm, state, Outcome::Allowed, 0, missing, now);
                } else if excess > 0 {
                    algorithm.give_back(state, excess, receipt.origin(), now);
                }
            }
        }
        conclude(algorithm, state, Outcome::Allowed, 0, 0, now)
    }
}

/// A check that notes in the receipt what it has taken, and takes nothing that would be delayed for
/// longer than the receipt allows.
fn reserve<A: Algorithm>(
    algorithm: &A,
    state: &mut A::State,
    n: u64,
    receipt: &Receipt,
    now: Tick,
) -> Decision {
    let (wait, departure) = foretell(algorithm, state, n, algorithm.room(state, now), now);
    // Also where units are missing: when they are there, the queue still ends when it does now.
    let delay = if n > 0 { algorithm.departure(state, now).delay } else { 0 };
    let late_by = delay.saturating_sub(receipt.longest_delay_micros());
    receipt.set_late_by(late_by);
    let outcome = match wait {
        Wait::Ready if late_by > 0 => Outcome::Denied(Duration::from_micros(late_by)),
        Wait::After(micros) => Outcome::Denied(Duration::from_micros(micros.max(late_by))),
        Wait::Ready | Wait::Never => verdict((wait, departure)),
    };
    let granted = if outcome.admits() { n } else { 0 };
    if granted > 0 {
        let taken_at = algorithm.instant(state, now);
        let [mut before, mut after] = [Vec::new(), Vec::new()];
        algorithm.each_fresh_after(state, now, &mut before);
        algorithm.take_to_go(state, n, now, departure);
        algorithm.each_fresh_after(state, now, &mut after);
        let limits = before.into_iter().zip(after).map(|(before, after)| Hold {
            fresh_at: now.plus(before).max(taken_at),
            until: now.plus(after),
        });
        let leaves_at = now.plus(departure.delay).max(taken_at);
        receipt.set(granted, taken_at, leaves_at, limits.collect());
    }
    conclude(algorithm, state, outcome, n, granted, now)
}

/// It is a part of each caller's code, so that what a caller does not look at is not computed.
#[inline(always)]
fn check<A: Algorithm>(algorithm: &A, state: &mut A::State, n: u64, now: Tick) -> Decision {
    let Admission { wait, delay, standing } = algorithm.admit(state, n, now);
    let outcome = outcome(wait, delay);
    let granted = if outcome.admits() { n } else { 0 };
    tell(algorithm, state, outcome, n, granted, standing, now)
}

/// What a check of `n` units would be answered, without taking any: for one that is refused, its answer.
pub(crate) fn peek<A: Algorithm>(algorithm: &A, state: &A::State, n: u64, now: Tick) -> Decision {
    let outcome = outlook(algorithm, state, n, now);
    tell(algorithm, state, outcome, n, 0, algorithm.standing(state, now), now)
}

/// The outcome of a check of `n` units, without taking any.
pub(crate) fn outlook<A: Algorithm>(algorithm: &A, state: &A::State, n: u64, now: Tick) -> Outcome {
    verdict(foretell(algorithm, state, n, algorithm.room(state, now), now))
}

/// The decision, with how things stand after what was granted has been taken.
fn conclude<A: Algorithm>(
    algorithm: &A,
    state: &A::State,
    outcome: Outcome,
    asked: u64,
    granted: u64,
    now: Tick,
) -> Decision {
    let standing = algorithm.standing(state, now);
    tell(algorithm, state, outcome, asked, granted, standing, now)
}

#[inline(always)]
fn tell<A: Algorithm>(
    algorithm: &A,
    state: &A::State,
    outcome: Outcome,
    asked: u64,
    granted: u64,
    standing: Standing,
    now: Tick,
) -> Decision {
    let (limit, binding) = if algorithm.limit_count() == 1 {
        (algorithm.limit(), 0)
    } else {
        let wanted = if outcome.admits() { 0 } else { asked };
        let binding = algorithm.binding(state, wanted, now);
        (binding.limit, binding.index)
    };
    Decision {
        decided_at: now,
        outcome,
        granted,
        limit,
        remaining: standing.room,
        reset_after_micros: standing.fresh_after,
        next_after_micros: standing.next_after,
        binding,
    }
}

#[inline]
const fn verdict((wait, departure): (Wait, Departure)) -> Outcome {
    outcome(wait, departure.delay)
}

#[inline]
const fn outcome(wait: Wait, delay: u64) -> Outcome {
    match (wait, delay) {
        (Wait::Ready, 0) => Outcome::Allowed,
        (Wait::Ready, micros) => Outcome::Delayed(Duration::from_micros(micros)),
        (Wait::After(micros), _) => Outcome::Denied(Duration::from_micros(micros)),
        (Wait::Never, _) => Outcome::Never,
    }
}
