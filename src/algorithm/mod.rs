//! The algorithms: pure maths over a small state, with the time passed in.

mod all;
mod bucket;
mod entries;
mod fixed_window;
mod leaky_bucket;
mod origin;
mod packed;
#[cfg(feature = "redis")]
mod scripted;
#[cfg(feature = "serde")]
mod serde;
mod sliding_log;
mod sliding_window_counter;
mod token_bucket;

pub use all::All;
pub use bucket::BucketState;
pub use fixed_window::{FixedWindow, FixedWindowState};
pub use leaky_bucket::LeakyBucket;
pub(crate) use origin::Hold;
pub use origin::{Origin, Receipt};
#[cfg(feature = "redis")]
pub(crate) use scripted::{MAX_NUMBER, push_name, push_number};
#[cfg(feature = "redis")]
pub use scripted::{Script, ScriptCall, Scripted, StoredState};
pub use sliding_log::{SlidingLog, SlidingLogState};
pub use sliding_window_counter::{SlidingWindowCounter, SlidingWindowCounterState};
pub use token_bucket::TokenBucket;

use crate::clock::Tick;
use crate::math::{Divisor, mul_div_ceil};
use crate::policy::Name;
use std::cmp::Reverse;
use std::time::Duration;

/// A way of limiting: what is kept for a key, and how it reads at an instant.
///
/// Implement it to bring an algorithm of your own; everything that a limiter does (check, peek,
/// partial takes, debts, refunds, sets, expiry of idle keys) is derived from these functions.
/// `examples/own_algorithm.rs` shows one, in process and in Redis: what must be written, and nothing that
/// has a default here.
///
/// Rules that an implementation keeps, and the five of this crate are tested for:
///
/// - Reading changes nothing, so a refusal costs nothing: only what takes units or gives them back
///   writes, and [`admit`](Self::admit) only if it takes some.
/// - A wait is exact: what had to wait is ready when it has passed, and not a tick before. Every
///   wait, delay and expiry counts from `now`, also if that is before the state was last written.
/// - Rounding is towards refusing: rooms down, waits up.
/// - Time that goes backwards stands still: a state that was written at an instant reads, at
///   any earlier one, as it does at that instant. Only a fresh state has no instant.
pub trait Algorithm: Send + Sync {
    /// What is kept for each key. The default is the state of a key that was never seen before:
    /// nothing is used, and no instant is known. Neither its `default` nor its `drop` may panic: a
    /// store that is moving states would lose others with it.
    type State: Clone + Default + Send + Sync;

    /// The most units that can ever be taken at once; at least 1.
    fn limit(&self) -> u64;

    /// Units that can be taken now; at most [`limit`](Self::limit).
    fn room(&self, state: &Self::State, now: Tick) -> u64;

    /// How long until `n` units, 1 or more, can be taken, if nobody else takes any.
    fn wait(&self, state: &Self::State, n: u64, now: Tick) -> Wait;

    /// Records that `n` units, 1 or more, are taken, whether there is room for them or not.
    fn take(&self, state: &mut Self::State, n: u64, now: Tick);

    /// Takes `n` units, as [`take`](Self::take) does, that go at this `departure`, which in a set
    /// may be that of another limit. An algorithm that keeps a queue sees to it that what comes
    /// behind them keeps its distance.
    #[inline]
    fn take_to_go(&self, state: &mut Self::State, n: u64, now: Tick, departure: Departure) {
        let _ = departure;
        self.take(state, n, now);
    }

    /// Records that `n` units, 1 or more, were not used after all; never beyond a fresh state. If
    /// it is known when they were taken (`origin`), they are given back only if they still count,
    /// and to the window that they were taken from; otherwise to the present one. If there is
    /// nothing to give back, the state does not change. If nothing stays used, the state still holds
    /// the instant at which it was written.
    fn give_back(&self, state: &mut Self::State, n: u64, origin: Option<Origin<'_>>, now: Tick);

    /// Microseconds until this state says nothing that a fresh one would not say, if nothing
    /// more is taken; 0 if that is so already. From then on, and not before, it may be
    /// dropped: also not before the instant at which it was written, if the clock has gone back.
    fn fresh_after(&self, state: &Self::State, now: Tick) -> u64;

    /// When units that are taken now may go: at once, except for algorithms that keep a queue.
    #[inline]
    fn departure(&self, _state: &Self::State, _now: Tick) -> Departure {
        Departure::AT_ONCE
    }

    /// The instant that the state reads as at `now`: `now`, or where the clock has gone back since
    /// then, the one at which the state was written. To be told by an algorithm that keeps it: units that
    /// are reserved are taken to be taken at that instant, and so given back to its window.
    fn instant(&self, _state: &Self::State, now: Tick) -> Tick {
        now
    }

    /// Units that were taken beyond the limit and still count; 0 where there is room. To be told by
    /// an algorithm that can be in debt, as any can whose [`take`](Self::take) counts what there was no
    /// room for: without it, settlements may leave a debt of more than one limit.
    fn debt(&self, _state: &Self::State, _now: Tick) -> u64 {
        0
    }

    /// Records `n` units, 1 or more, as [`take`](Self::take) does, but only as many as leave a debt
    /// of no more than the [`limit`](Self::limit).
    fn overdraw(&self, state: &mut Self::State, n: u64, now: Tick) {
        let most = self.limit().saturating_add(self.room(state, now));
        let n = n.min(most.saturating_sub(self.debt(state, now)));
        if n > 0 {
            self.take(state, n, now);
        }
    }

    /// Whether this algorithm can have written the state, at `latest` or before: asked of states
    /// that come from outside of the program, as from a snapshot. A state that was written later
    /// would stand still until then. To be written anew if the algorithm panics on states of other
    /// limits, or if [`instant`](Self::instant) is not the one at which the state was written.
    fn fits(&self, state: &Self::State, latest: Tick) -> bool {
        self.instant(state, latest) <= latest
    }

    /// Adds what [`fresh_after`](Self::fresh_after) tells of each limit, in order. There is nothing
    /// to do here for an algorithm that is a single limit.
    fn each_fresh_after(&self, state: &Self::State, now: Tick, told: &mut Vec<u64>) {
        told.push(self.fresh_after(state, now));
    }

    /// Takes `n` units if there is room for them, and otherwise none, which leaves the state as it
    /// was. Returns what [`wait`](Self::wait) and [`departure`](Self::departure) return before, and what
    /// [`standing`](Self::standing) returns after. To be written anew only where it is cheaper to do all
    /// this together.
    #[inline]
    fn admit(&self, state: &mut Self::State, n: u64, now: Tick) -> Admission {
        Admission::by_parts(self, state, n, now)
    }

    /// How things stand: the [`room`](Self::room), the [`wait`](Self::wait) for one unit more than
    /// there is room for, and [`fresh_after`](Self::fresh_after).
    #[inline]
    fn standing(&self, state: &Self::State, now: Tick) -> Standing {
        let room = self.room(state, now);
        let next = if room < self.limit() { self.wait(state, room + 1, now) } else { Wait::Ready };
        let next_after = match next {
            Wait::After(micros) => Some(micros),
            Wait::Ready | Wait::Never => None,
        };
        Standing { room, next_after, fresh_after: self.fresh_after(state, now) }
    }

    /// Makes of a state that was written under `old` limits one in which the same part of these is
    /// used, rounded up, as if it had been taken now.
    fn scale(&self, old: &Self, state: &mut Self::State, now: Tick)
    where
        Self: Sized,
    {
        let used = old.limit() - old.room(state, now) + old.debt(state, now);
        let used = mul_div_ceil(used, self.limit(), Divisor::new(old.limit()));
        let instant = old.instant(state, now);
        let mut scaled = Self::State::default();
        if used > 0 {
            self.take(&mut scaled, used, instant);
        }
        *state = scaled;
    }

    /// Forgives what is used beyond the limit, so that as much is used as can be without a
    /// [`debt`](Self::debt).
    fn forgive(&self, state: &mut Self::State, now: Tick) {
        match self.debt(state, now) {
            0 => {}
            debt => self.give_back(state, debt, None, now),
        }
    }

    /// Which limit of a set binds when `n` units are wanted, 0 for none. There is nothing to do
    /// here for an algorithm that is a single limit.
    fn binding(&self, state: &Self::State, n: u64, now: Tick) -> Binding {
        Binding {
            index: 0,
            limit: self.limit(),
            wait: if n == 0 { Wait::Ready } else { self.wait(state, n, now) },
            room: self.room(state, now),
        }
    }

    /// How many limits this is: 1, except for a set.
    fn limit_count(&self) -> usize {
        1
    }

    /// What to call the limit, or each of the [`limit_count`](Self::limit_count) limits of a
    /// set, in [`Binding::index`]'s order.
    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: None }]
    }
}

/// How long until units can be taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wait {
    /// They can be taken now.
    Ready,
    /// They can be taken after so many microseconds, at least 1.
    After(u64),
    /// They exceed the limit, and no wait will do.
    Never,
}

/// What became of units that were asked for: see [`Algorithm::admit`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Admission {
    /// How long until they can be taken. If that is [`Ready`](Wait::Ready), they have been.
    pub wait: Wait,
    /// For how many microseconds units that have been taken must hold back before they go.
    pub delay: u64,
    /// How things stand afterwards.
    pub standing: Standing,
}

impl Admission {
    /// What [`Algorithm::admit`] is made of where it is not written anew.
    #[inline]
    pub(crate) fn by_parts<A>(algorithm: &A, state: &mut A::State, n: u64, now: Tick) -> Self
    where
        A: Algorithm + ?Sized,
    {
        let (wait, departure) = foretell(algorithm, state, n, algorithm.room(state, now), now);
        if wait == Wait::Ready && n > 0 {
            algorithm.take_to_go(state, n, now, departure);
        }
        Self { wait, delay: departure.delay, standing: algorithm.standing(state, now) }
    }
}

/// How long until `n` units can be taken where there are `room`, and when they may go then.
#[inline]
pub(crate) fn foretell<A>(
    algorithm: &A,
    state: &A::State,
    n: u64,
    room: u64,
    now: Tick,
) -> (Wait, Departure)
where
    A: Algorithm + ?Sized,
{
    let wait = if n <= room { Wait::Ready } else { algorithm.wait(state, n, now) };
    let goes = wait == Wait::Ready && n > 0;
    (wait, if goes { algorithm.departure(state, now) } else { Departure::AT_ONCE })
}

/// When units may go that are taken: see [`Algorithm::departure`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Departure {
    /// After how many microseconds.
    pub delay: u64,
    /// The rate of the queue that they go from: so many units in so many microseconds.
    pub rate: (u64, u64),
}

impl Departure {
    /// Without a queue.
    pub const AT_ONCE: Self = Self { delay: 0, rate: (1, 0) };

    /// The later one.
    #[must_use]
    pub(crate) fn later(self, other: Self) -> Self {
        if other.delay > self.delay { other } else { self }
    }
}

/// How things stand with a key: see [`Algorithm::standing`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Units that can be taken now.
    pub room: u64,
    /// Microseconds until there is room for one unit more; `None` where nothing is missing.
    pub next_after: Option<u64>,
    /// Microseconds until the state says nothing any more.
    pub fresh_after: u64,
}

impl Standing {
    /// With a key whose state says nothing.
    #[inline]
    pub(crate) const fn fresh(limit: u64) -> Self {
        Self { room: limit, next_after: None, fresh_after: 0 }
    }
}

/// One limit of a set, as it stands: see [`Decision::binding`](crate::Decision::binding).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Its place in the set, counted from 0.
    pub index: usize,
    /// The most units that it ever holds.
    pub limit: u64,
    /// How long it has to wait for the units that are wanted.
    pub wait: Wait,
    /// Units that it could give now.
    pub room: u64,
}

impl Binding {
    /// The same, in a set in which so many limits come `before` it.
    fn behind(self, before: usize) -> Self {
        Self { index: before + self.index, ..self }
    }

    /// The one that holds more: the longer wait, then the fewer units; the first of equals.
    pub(crate) fn stricter(self, other: Self) -> Self {
        let holds = |limit: &Self| (limit.wait, Reverse(limit.room));
        if holds(&other) > holds(&self) { other } else { self }
    }
}

/// What can be told of a limit without asking it for anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Description {
    /// What it is called, where it has a name.
    pub name: Option<Name>,
    /// The most units that it ever holds.
    pub limit: u64,
    /// The time in which it passes that many units, where it is a whole number of
    /// microseconds.
    pub window: Option<Duration>,
}
