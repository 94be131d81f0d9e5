//! When units were taken that are given back.

use crate::clock::Tick;
use crate::math::micros;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// When units were taken that are given back, and how each limit stood then: see
/// [`Algorithm::give_back`](super::Algorithm::give_back).
#[derive(Copy, Clone, Debug)]
pub struct Origin<'r> {
    units: u64,
    taken_at: Tick,
    leaves_at: Tick,
    limits: &'r [Hold],
}

/// What units that were taken do to one limit.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Hold {
    /// When the limit would expire without them.
    pub(crate) fresh_at: Tick,
    /// When it expires with them.
    pub(crate) until: Tick,
}

impl<'r> Origin<'r> {
    /// How many they were, those that are not given back included.
    #[must_use]
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// When they were taken.
    #[must_use]
    pub const fn taken_at(&self) -> Tick {
        self.taken_at
    }

    /// When they may go: later than they were taken if a limit keeps a queue.
    #[must_use]
    pub const fn leaves_at(&self) -> Tick {
        self.leaves_at
    }

    /// When the limit would expire if they had not been taken.
    #[must_use]
    pub fn fresh_at(&self) -> Tick {
        self.hold().fresh_at
    }

    /// When the limit expires, as it stood after they were taken.
    #[must_use]
    pub fn held_until(&self) -> Tick {
        self.hold().until
    }

    fn hold(&self) -> Hold {
        let untouched = Hold { fresh_at: self.taken_at, until: self.taken_at };
        self.limits.first().copied().unwrap_or(untouched)
    }

    /// What they do to each limit.
    #[cfg(feature = "redis")]
    pub(crate) const fn limits(&self) -> &'r [Hold] {
        self.limits
    }

    /// What was taken of the first `count` limits, and what of those behind them.
    pub(super) fn split(origin: Option<Self>, count: usize) -> [Option<Self>; 2] {
        let parts = origin.map(|origin| {
            let (first, others) = origin.limits.split_at(count.min(origin.limits.len()));
            [first, others].map(|limits| Self { limits, ..origin })
        });
        parts.map_or([None, None], |parts| parts.map(Some))
    }
}

/// What [`Operation::Reserve`](crate::Operation::Reserve) has taken, for
/// [`Operation::Settle`](crate::Operation::Settle).
///
/// It is for one reservation of one key at one limiter.
///
/// In Redis, what is settled by one receipt counts once, even if the call is repeated because its
/// answer was lost. So does what is settled by receipts of one request, in whatever process, for
/// a [day](Self::REQUEST_MEMORY): give them its id.
///
/// ```no_run
/// # #[cfg(feature = "redis")] {
/// use tollgate::{Operation, Quota, RateLimiter, Receipt, Redis, TokenBucket};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), tollgate::Error> {
/// # let redis = Redis::connect("redis://127.0.0.1/").await?;
/// let tokens = redis.limiter("tokens", TokenBucket::new(Quota::per_minute(90_000)))?;
/// // Charges 2,600, once for this request, however often this is run within a day.
/// let receipt = Receipt::for_request("request 6f1c");
/// tokens.decide("tenant", Operation::Settle(2_600, &receipt)).await?;
/// # Ok(())
/// # }
/// # }
/// ```
#[derive(Debug)]
pub struct Receipt {
    taken: OnceLock<Taken>,
    settled: AtomicBool,
    longest_delay_micros: u64,
    /// By how much the last attempt would have been delayed for too long.
    late_by_micros: AtomicU64,
    /// Whether they were taken from the budget that keys without a place share.
    #[cfg(feature = "memory")]
    is_of_shared: AtomicBool,
    /// The key in Redis that they were taken at.
    #[cfg(feature = "redis")]
    key: OnceLock<Box<[u8]>>,
    /// The id that the request was given.
    request_id: Option<Box<str>>,
    random_id: OnceLock<Box<str>>,
}

#[derive(Debug)]
struct Taken {
    units: u64,
    at: Tick,
    leaves_at: Tick,
    limits: Vec<Hold>,
}

impl Default for Receipt {
    fn default() -> Self {
        Self::new()
    }
}

impl Receipt {
    /// How long Redis remembers that a request has been settled, by the id that it was given: a
    /// day. It takes about 200 bytes there.
    pub const REQUEST_MEMORY: Duration = Duration::from_secs(86_400);

    /// A receipt for nothing so far.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            taken: OnceLock::new(),
            settled: AtomicBool::new(false),
            longest_delay_micros: u64::MAX,
            late_by_micros: AtomicU64::new(0),
            #[cfg(feature = "memory")]
            is_of_shared: AtomicBool::new(false),
            #[cfg(feature = "redis")]
            key: OnceLock::new(),
            request_id: None,
            random_id: OnceLock::new(),
        }
    }

    /// A receipt for the request that is known by this id, which no other request of the same key
    /// has. Redis stores an id of more than 128 bytes by its SHA-256.
    #[must_use]
    pub fn for_request(id: &str) -> Self {
        Self { request_id: Some(Box::from(id)), ..Self::new() }
    }

    /// Denies what a queue would delay by more than `delay`, and takes no place in it then.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{LeakyBucket, Limiter, Operation, Quota, Receipt};
    ///
    /// let limiter = Limiter::new(LeakyBucket::new(Quota::per_second(1)));
    /// let [first, second] = [(); 2].map(|()| Receipt::new().longest_delay(Duration::ZERO));
    /// assert!(limiter.decide("alice", Operation::Reserve(1, &first)).is_allowed());
    /// assert!(!limiter.decide("alice", Operation::Reserve(1, &second)).is_allowed());
    /// ```
    #[must_use]
    pub fn longest_delay(self, delay: Duration) -> Self {
        Self { longest_delay_micros: micros(delay), ..self }
    }

    pub(crate) const fn longest_delay_micros(&self) -> u64 {
        self.longest_delay_micros
    }

    pub(crate) fn set_late_by(&self, micros: u64) {
        self.late_by_micros.store(micros, Relaxed);
    }

    /// By how much the units would have been delayed for too long; `None` if they were taken, or if
    /// it is units that are missing.
    #[cfg(feature = "tokio")]
    pub(crate) fn late_by(&self) -> Option<Duration> {
        match self.late_by_micros.load(Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// The id of the request, or a random one, always the same.
    pub fn request_id(&self) -> &str {
        self.request_id.as_deref().unwrap_or_else(|| {
            self.random_id.get_or_init(|| {
                let [high, low] = [(); 2].map(|()| RandomState::new().hash_one(()));
                format!("{high:016x}{low:016x}").into()
            })
        })
    }

    /// Whether the request's id is not a random one.
    #[cfg(feature = "redis")]
    pub(crate) const fn has_given_id(&self) -> bool {
        self.request_id.is_some()
    }

    /// The units that were taken; 0 where they were refused.
    #[must_use]
    pub fn units(&self) -> u64 {
        self.taken.get().map_or(0, |taken| taken.units)
    }

    /// When they were taken, if they were.
    #[must_use]
    pub fn origin(&self) -> Option<Origin<'_>> {
        let taken = self.taken.get()?;
        Some(Origin {
            units: taken.units,
            taken_at: taken.at,
            leaves_at: taken.leaves_at,
            limits: &taken.limits,
        })
    }

    /// Whether what it is for was taken at this key, or nowhere yet.
    #[cfg(feature = "redis")]
    pub(crate) fn is_for(&self, key: &[u8]) -> bool {
        &**self.key.get_or_init(|| key.into()) == key
    }

    /// Whether it has been settled, which counts once.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Relaxed)
    }

    pub(crate) fn set_settled(&self) {
        self.settled.store(true, Relaxed);
    }

    #[cfg(feature = "memory")]
    pub(crate) fn is_of_shared(&self) -> bool {
        self.is_of_shared.load(Relaxed)
    }

    #[cfg(feature = "memory")]
    pub(crate) fn set_of_shared(&self) {
        self.is_of_shared.store(true, Relaxed);
    }

    /// Only the first time counts.
    pub(crate) fn set(&self, units: u64, at: Tick, leaves_at: Tick, limits: Vec<Hold>) {
        let _ = self.taken.set(Taken { units, at, leaves_at, limits });
    }
}
