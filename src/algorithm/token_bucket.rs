use super::bucket::{Bucket, BucketState};
use super::{Admission, Algorithm, Description, Origin, Wait};
use crate::clock::Tick;
use crate::error::Error;
use crate::quota::Quota;

/// A bucket of tokens, refilled steadily: bursts up to its capacity, then the quota's rate.
///
/// It holds at most `burst` tokens (the quota's count, unless [`burst`](Self::burst) says
/// otherwise) and starts full. Every unit taken is a token; tokens come back continuously,
/// quota by period. Over any span, at most `burst + rate x span` units pass.
/// [Wikipedia](https://en.wikipedia.org/wiki/Token_bucket) has the algorithm.
///
/// ```
/// use tollgate::{Limiter, Quota, TokenBucket};
///
/// // 10 a minute, and up to 20 at once after a pause of 2 minutes.
/// let limiter = Limiter::new(TokenBucket::new(Quota::per_minute(10)).burst(20));
/// assert!(limiter.check_n("alice", 20).is_allowed());
/// assert!(!limiter.check("alice").is_allowed());
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenBucket(Bucket);

impl TokenBucket {
    /// A bucket that holds the quota's count and is refilled at the quota's rate.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self(Bucket::new(quota))
    }

    /// The same rate, with room for `tokens`.
    ///
    /// # Panics
    ///
    /// Where [`try_burst`](Self::try_burst) would return an error: in a `const`, when compiled.
    #[must_use]
    pub const fn burst(self, tokens: u64) -> Self {
        match self.0.with_capacity(tokens) {
            Some(bucket) => Self(bucket),
            None => panic!("a burst must be 1 to 10000000000000, and refill within fifty years"),
        }
    }

    /// The same rate, with room for `tokens`.
    ///
    /// # Errors
    ///
    /// Where `tokens` is 0, more than [`Quota::MAX_COUNT`], or so many that the bucket would
    /// take more than fifty years to refill.
    pub fn try_burst(self, tokens: u64) -> Result<Self, Error> {
        Ok(Self(self.0.try_with_capacity("a burst", tokens)?))
    }

    /// The rate at which tokens come back.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.0.quota()
    }
}

impl Algorithm for TokenBucket {
    type State = BucketState;

    #[inline]
    fn limit(&self) -> u64 {
        self.0.capacity()
    }

    #[inline]
    fn room(&self, state: &BucketState, now: Tick) -> u64 {
        self.0.room(state, now)
    }

    #[inline]
    fn wait(&self, state: &BucketState, n: u64, now: Tick) -> Wait {
        self.0.wait(state, n, now)
    }

    #[inline]
    fn take(&self, state: &mut BucketState, n: u64, now: Tick) {
        self.0.take(state, n, now);
    }

    #[inline]
    fn give_back(&self, state: &mut BucketState, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        self.0.give_back(state, n, origin, now);
    }

    #[inline]
    fn instant(&self, state: &BucketState, now: Tick) -> Tick {
        Bucket::instant(state, now)
    }

    #[inline]
    fn debt(&self, state: &BucketState, now: Tick) -> u64 {
        self.0.debt(state, now)
    }

    #[inline]
    fn fresh_after(&self, state: &BucketState, now: Tick) -> u64 {
        self.0.fresh_after(state, now)
    }

    #[inline(always)]
    fn admit(&self, state: &mut BucketState, n: u64, now: Tick) -> Admission {
        self.0.admit(state, n, now, false)
    }

    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: self.limit(), window: self.0.window() }]
    }
}

#[cfg(feature = "redis")]
impl super::Scripted for TokenBucket {
    fn script(&self, call: &mut super::ScriptCall) {
        self.0.script(call);
    }

    fn read_state(&self, stored: &mut super::StoredState<'_>) -> Option<BucketState> {
        BucketState::read(stored)
    }
}
