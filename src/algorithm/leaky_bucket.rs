use super::bucket::{Bucket, BucketState};
use super::{Admission, Algorithm, Departure, Description, Origin, Wait};
use crate::clock::Tick;
use crate::error::Error;
use crate::quota::Quota;

/// A queue that leaks steadily: who fits in joins it and is told when to go.
///
/// It holds at most `capacity` units (the quota's count, unless
/// [`capacity`](Self::capacity) says otherwise), which leak out at the quota's rate. A request
/// that fits is [`Delayed`](crate::Outcome::Delayed) until all that was in the bucket before it
/// has leaked out, so that departures are evenly spaced and no burst ever leaves. One that does
/// not fit is refused.
/// [Wikipedia](https://en.wikipedia.org/wiki/Leaky_bucket#As_a_queue) has the algorithm.
///
/// It is for the caller to wait: sleep for [`Decision::delay`](crate::Decision::delay), then go; or
/// let `acquire` (feature `tokio`) wait. Callers that wait for no longer than some deadline need a
/// capacity of at least the rate times that long.
///
/// Departures are never closer than the rate, whatever is given back, and no delay is longer than
/// `capacity` takes at that rate. Only the last place in the queue is taken again, if its
/// [`Reservation`](crate::Reservation) is settled or dropped before it has left; any other place
/// leaks unused, and so does a plain refund. (A reset starts anew. If the rate is replaced, what was
/// in the queue counts at the new rate from then on: departures that were promised before stay, and
/// later ones may lie between them.)
///
/// With [`nodelay`](Self::nodelay) whoever fits may go at once: the leaky bucket as a meter,
/// which admits what a [`TokenBucket`](super::TokenBucket) of that burst admits.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{LeakyBucket, Limiter, ManualClock, Quota, Tick};
///
/// let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
/// let limiter = Limiter::with_clock(LeakyBucket::new(Quota::per_second(5)).capacity(3), clock);
/// let delays = [0, 200, 400].map(Duration::from_millis);
/// for delay in delays {
///     assert_eq!(limiter.check("alice").delay(), delay);
/// }
/// assert!(!limiter.check("alice").is_allowed()); // the queue is full
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeakyBucket {
    bucket: Bucket,
    nodelay: bool,
}

impl LeakyBucket {
    /// A queue that holds the quota's count and leaks at the quota's rate.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self { bucket: Bucket::new(quota), nodelay: false }
    }

    /// The same rate, with room for `units`.
    ///
    /// # Panics
    ///
    /// Where [`try_capacity`](Self::try_capacity) would return an error: in a `const`, when
    /// compiled.
    #[must_use]
    pub const fn capacity(self, units: u64) -> Self {
        match self.bucket.with_capacity(units) {
            Some(bucket) => Self { bucket, ..self },
            None => panic!("a capacity must be 1 to 10000000000000, and leak within fifty years"),
        }
    }

    /// The same rate, with room for `units`.
    ///
    /// # Errors
    ///
    /// Where `units` is 0, more than [`Quota::MAX_COUNT`], or so many that the bucket would
    /// take more than fifty years to leak out.
    pub fn try_capacity(self, units: u64) -> Result<Self, Error> {
        Ok(Self { bucket: self.bucket.try_with_capacity("a capacity", units)?, ..self })
    }

    /// Lets whoever fits in go at once.
    #[must_use]
    pub const fn nodelay(self) -> Self {
        Self { nodelay: true, ..self }
    }

    /// The rate at which units leak out.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.bucket.quota()
    }

    /// Whether whoever fits in may go at once.
    #[must_use]
    pub const fn is_nodelay(&self) -> bool {
        self.nodelay
    }
}

impl Algorithm for LeakyBucket {
    type State = BucketState;

    #[inline]
    fn limit(&self) -> u64 {
        self.bucket.capacity()
    }

    #[inline]
    fn room(&self, state: &BucketState, now: Tick) -> u64 {
        self.bucket.room(state, now)
    }

    #[inline]
    fn wait(&self, state: &BucketState, n: u64, now: Tick) -> Wait {
        self.bucket.wait(state, n, now)
    }

    #[inline]
    fn take(&self, state: &mut BucketState, n: u64, now: Tick) {
        self.bucket.take(state, n, now);
    }

    #[inline]
    fn take_to_go(&self, state: &mut BucketState, n: u64, now: Tick, departure: Departure) {
        if self.nodelay {
            self.bucket.take(state, n, now);
        } else {
            self.bucket.join(state, n, now, departure);
        }
    }

    #[inline]
    fn give_back(&self, state: &mut BucketState, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        if self.nodelay {
            self.bucket.give_back(state, n, origin, now);
        } else {
            self.bucket.leave(state, n, origin, now);
        }
    }

    fn forgive(&self, state: &mut BucketState, now: Tick) {
        // The queue itself takes no plain refund.
        self.bucket.give_back(state, self.debt(state, now), None, now);
    }

    #[inline]
    fn instant(&self, state: &BucketState, now: Tick) -> Tick {
        Bucket::instant(state, now)
    }

    #[inline]
    fn debt(&self, state: &BucketState, now: Tick) -> u64 {
        self.bucket.debt(state, now)
    }

    #[inline]
    fn fresh_after(&self, state: &BucketState, now: Tick) -> u64 {
        self.bucket.fresh_after(state, now)
    }

    #[inline]
    fn departure(&self, state: &BucketState, now: Tick) -> Departure {
        if self.nodelay { Departure::AT_ONCE } else { self.bucket.departure(state, now) }
    }

    #[inline(always)]
    fn admit(&self, state: &mut BucketState, n: u64, now: Tick) -> Admission {
        self.bucket.admit(state, n, now, !self.nodelay)
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: self.bucket.window() }]
    }
}

#[cfg(feature = "redis")]
impl super::Scripted for LeakyBucket {
    fn script(&self, call: &mut super::ScriptCall) {
        const QUEUE: super::Script = super::Script::new(
            "bucket",
            concat!(include_str!("queue.lua"), include_str!("bucket.lua")),
        );
        if self.nodelay { self.bucket.script(call) } else { self.bucket.script_of(QUEUE, call) }
    }

    fn read_state(&self, stored: &mut super::StoredState<'_>) -> Option<BucketState> {
        BucketState::read(stored)
    }
}
