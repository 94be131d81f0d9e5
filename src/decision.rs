//! What a limiter answers.

use crate::clock::Tick;
#[cfg(feature = "tokio")]
use crate::math::micros;
use std::time::Duration;

/// What a limiter answers: whether these units may go now, later or never, and how things
/// stand with the key afterwards.
///
/// One flat value for every algorithm and every store. In a set of limits, the numbers are
/// those of the set as a whole: what remains under all of them, until when any of them holds.
/// [`binding`](Self::binding) and [`limit`](Self::limit) tell of the one that holds most.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{Limiter, ManualClock, Quota, Tick, TokenBucket};
///
/// let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
/// let limiter = Limiter::with_clock(TokenBucket::new(Quota::per_second(10)), clock);
///
/// let decision = limiter.check_n("alice", 10);
/// assert!(decision.is_allowed());
/// assert_eq!(decision.remaining(), 0);
///
/// let decision = limiter.check("alice");
/// assert!(!decision.is_allowed());
/// assert_eq!(decision.retry_after(), Some(Duration::from_millis(100)));
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[must_use = "a decision must be looked at: it may be a refusal"]
#[non_exhaustive]
pub struct Decision {
    pub(crate) decided_at: Tick,
    pub(crate) outcome: Outcome,
    pub(crate) granted: u64,
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    pub(crate) reset_after_micros: u64,
    pub(crate) next_after_micros: Option<u64>,
    pub(crate) binding: usize,
}

/// The verdict of a [`Decision`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub enum Outcome {
    /// Admitted: go now.
    Allowed,
    /// Admitted and charged: go when this much time has passed. Of the
    /// crate's own algorithms, only a [`LeakyBucket`](crate::LeakyBucket) says so.
    Delayed(Duration),
    /// Refused, and nothing charged: asking again after this much time succeeds, unless
    /// somebody else takes the units first; asking a microsecond earlier does not.
    Denied(Duration),
    /// Refused, and nothing charged: the cost is above the capacity, so no wait will do.
    Never,
}

impl Outcome {
    pub(crate) const fn admits(self) -> bool {
        matches!(self, Self::Allowed | Self::Delayed(_))
    }
}

impl Decision {
    /// The same, moved to where the compiler knows nothing of it. Where a call that is seldom made
    /// returns a decision in the place of one that is made inline, both would have to be whole in
    /// memory, where the call puts it; after this, nothing is computed inline that nobody looks at.
    #[inline(always)]
    pub(crate) fn apart(self) -> Self {
        // Two parts are of the first place: of one alone, the compiler would make both the same again
        // (38 instructions more for a check).
        let Self { decided_at, outcome, granted, limit, remaining, binding, .. } =
            std::hint::black_box(self);
        let Self { reset_after_micros, next_after_micros, .. } = self;
        Self {
            decided_at,
            outcome,
            granted,
            limit,
            remaining,
            reset_after_micros,
            next_after_micros,
            binding,
        }
    }

    /// The same for somebody to whom no unit can be given before `retry_after`.
    #[cfg(feature = "tokio")]
    pub(crate) fn refused(self, retry_after: Duration) -> Self {
        Self {
            outcome: Outcome::Denied(retry_after),
            granted: 0,
            remaining: 0,
            next_after_micros: Some(micros(retry_after)),
            ..self
        }
    }

    /// The answer to a caller whose time is over, whatever there is by now.
    #[cfg(feature = "tokio")]
    pub(crate) fn missed(self) -> Self {
        match self.outcome {
            Outcome::Denied(_) | Outcome::Never => self,
            Outcome::Allowed | Outcome::Delayed(_) => self.refused(Duration::from_micros(1)),
        }
    }

    /// The same, where it is a refusal, for somebody to whom asking any sooner is no use.
    #[cfg(all(feature = "memory", feature = "tokio"))]
    pub(crate) fn denied_for_at_least(self, retry_after: Duration) -> Self {
        let outcome = match self.outcome {
            Outcome::Denied(wait) => Outcome::Denied(wait.max(retry_after)),
            outcome => outcome,
        };
        Self { outcome, ..self }
    }

    /// The same decision as seen from `now`, an instant before the one that it was made at: every
    /// wait in it is longer by the difference.
    #[cfg(feature = "memory")]
    pub(crate) fn seen_from(self, now: Tick) -> Self {
        let earlier = self.decided_at.micros_since(now);
        let from_now = |after: Duration| after + Duration::from_micros(earlier);
        Self {
            decided_at: now,
            outcome: match self.outcome {
                Outcome::Delayed(delay) => Outcome::Delayed(from_now(delay)),
                Outcome::Denied(wait) => Outcome::Denied(from_now(wait)),
                outcome @ (Outcome::Allowed | Outcome::Never) => outcome,
            },
            reset_after_micros: match self.reset_after_micros {
                0 => 0,
                micros => micros + earlier,
            },
            next_after_micros: self.next_after_micros.map(|micros| micros + earlier),
            ..self
        }
    }

    /// When the decision was made, by the clock that the limiter goes by: in Redis the server's,
    /// unless `Redis::client_time` is set. Every wait and delay counts from
    /// here, so an absolute time is this instant and a wait.
    ///
    /// ```
    /// use tollgate::{FixedWindow, Limiter, ManualClock, Quota, Tick};
    ///
    /// let clock = ManualClock::new(Tick::from_micros(1_800_000_007_000_000));
    /// let limiter = Limiter::with_clock(FixedWindow::new(Quota::per_minute(60)), clock);
    /// let decision = limiter.check("alice");
    /// let reset_micros = u64::try_from(decision.reset_after().as_micros())?;
    /// let reset_at = decision.decided_at().saturating_add(reset_micros);
    /// assert_eq!(reset_at.as_micros() / 1_000_000, 1_800_000_060); // the minute's end, in Unix time
    /// # Ok::<(), std::num::TryFromIntError>(())
    /// ```
    #[must_use]
    pub const fn decided_at(&self) -> Tick {
        self.decided_at
    }

    /// The verdict.
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the units were admitted, now or after [`delay`](Self::delay).
    ///
    /// What asks for nothing (a debit, a refund, a reset, a cost of 0) is always admitted, even
    /// in debt: look at [`remaining`](Self::remaining) there.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        self.outcome.admits()
    }

    /// How long the admitted must hold back before they go; zero where they may go at once.
    #[must_use]
    pub const fn delay(&self) -> Duration {
        match self.outcome {
            Outcome::Delayed(delay) => delay,
            _ => Duration::ZERO,
        }
    }

    /// How long to wait before asking again; `None` unless
    /// [`Denied`](Outcome::Denied).
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.outcome {
            Outcome::Denied(retry_after) => Some(retry_after),
            _ => None,
        }
    }

    /// Units taken by this very call: all, some ([`take_up_to`](crate::Limiter::take_up_to))
    /// or none. For a debit or a settlement, those that were to be charged, also where a debt stops
    /// at the highest there can be.
    #[must_use]
    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// The most units that the [binding](Self::binding) limit ever holds.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Units that can be taken now, after this call; rounded down.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Time until the key's state expires; zero if it has.
    #[must_use]
    pub const fn reset_after(&self) -> Duration {
        Duration::from_micros(self.reset_after_micros)
    }

    /// Time until one more unit than [`remaining`](Self::remaining) can be taken; `None` where
    /// nothing is missing.
    #[must_use]
    pub const fn next_after(&self) -> Option<Duration> {
        match self.next_after_micros {
            Some(micros) => Some(Duration::from_micros(micros)),
            None => None,
        }
    }

    /// Which limit of a set binds, counted from 0 in the order in which they were given; 0
    /// where there is one limit only.
    ///
    /// On a refusal that is the one with the longest wait, otherwise the one with the fewest
    /// units left; the first of equals.
    /// [`Policy::name`](crate::Policy::name) tells what it is called.
    #[must_use]
    pub const fn binding(&self) -> usize {
        self.binding
    }
}
