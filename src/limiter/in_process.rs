#[cfg(feature = "serde")]
use super::Uniform;
#[cfg(feature = "tokio")]
use super::{Acquire, Patience};
use super::{
    Algorithm, Carry, Decision, Immediate, Limiter, Limits, Live, Operation, PerKey, Reservation,
    Source, State,
};
use crate::clock::{Clock, MonotonicClock};
#[cfg(feature = "serde")]
use crate::error::Error;
#[cfg(feature = "tokio")]
use crate::store::Queued;
#[cfg(feature = "serde")]
use crate::store::Snapshot;
use crate::store::{Direct, InProcess, Memory, States, Store, TieredMemory};
#[cfg(feature = "tokio")]
use std::convert::Infallible;
use std::hash::Hash;
use std::ops::Deref;
#[cfg(feature = "tokio")]
use std::time::Duration;

impl<A: Algorithm> Limiter<A, Memory<A::State>> {
    /// A limiter in process, for any number of keys.
    #[must_use]
    pub fn new(algorithm: A) -> Self {
        Self::with_clock(algorithm, MonotonicClock::default())
    }
}

impl<A: Algorithm> Limiter<A, Direct<A::State>> {
    /// A limiter in process without keys: one budget for all callers. As the field of a struct its
    /// type is `Limiter<TokenBucket, Direct<BucketState>>`; with a clock of its own, it is made by
    /// [`direct_with_clock`](Self::direct_with_clock).
    ///
    /// ```
    /// use tollgate::{Limiter, Quota, TokenBucket};
    ///
    /// let limiter = Limiter::direct(TokenBucket::new(Quota::per_second(10)));
    /// assert!(limiter.check().is_allowed());
    /// ```
    #[must_use]
    pub fn direct(algorithm: A) -> Self {
        Self::direct_with_clock(algorithm, MonotonicClock::default())
    }
}

impl<A: Algorithm, C: Clock> Limiter<A, Memory<A::State, C>> {
    /// A limiter in process that takes its time from `clock`.
    #[must_use]
    pub fn with_clock(algorithm: A, clock: C) -> Self {
        Self::with_store(algorithm, Memory::new(clock))
    }
}

/// Of limits that are the same for all keys, or [`Live`].
impl<L: Limits<()>, C: Clock> Limiter<L, Memory<State<L>, C>> {
    /// Drops the states that say nothing any more and gives the memory back: for after a
    /// peak. It is never necessary, and takes time in proportion to the keys in memory.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tollgate::{Limiter, ManualClock, Quota, SlidingLog, Tick};
    /// let clock = ManualClock::new(Tick::from_micros(0));
    /// let limiter = Limiter::with_clock(SlidingLog::new(Quota::per_minute(10)), clock.clone());
    /// assert!(limiter.check("alice").is_allowed());
    /// clock.advance(Duration::from_secs(60));
    /// limiter.shrink_to_fit();
    /// assert!(limiter.is_empty());
    /// ```
    pub fn shrink_to_fit(&self) {
        for shard in 0..self.store.shard_count() {
            // While the limits are not replaced: what says nothing by these may do so by the next.
            self.limits.with(&(), |algorithm| {
                self.store.shrink(shard, |state, now| algorithm.fresh_after(state, now) > 0);
            });
        }
        self.limits.with(&(), |algorithm| {
            self.store.shrink_shared(|state, now| algorithm.fresh_after(state, now) > 0);
        });
        #[cfg(feature = "tokio")]
        self.store.shrink_queues();
    }
}

impl<L: Source, C: Clock> Limiter<L, Memory<State<L>, C>> {
    /// The same limiter for no more than so many keys at a time: a bound on its memory,
    /// whatever keys there are.
    ///
    /// When there are as many, and none of those looked at is idle (two hundred or
    /// more of those near a further key, every millisecond), all further keys together
    /// have the budget of one: what one of them takes or gives back, it takes from all and
    /// gives to all, and a [`reset`](Self::reset) of one changes nothing
    /// ([`reset_shared`](Self::reset_shared) resets that budget). Keys that are in
    /// memory are limited as ever. A key that gets a place later starts with no more than that
    /// one budget has left, and at worst without units: a debt of others is not its own. A
    /// reservation is settled where it was taken from.
    ///
    /// Where there are more keys in memory than that already, they stay there, as no limited one may
    /// be dropped, and so many must become idle before there is a place for another.
    ///
    /// ```
    /// # use tollgate::{FixedWindow, Limiter, ManualClock, Quota, Tick};
    /// # let clock = ManualClock::new(Tick::from_micros(0));
    /// let limiter = Limiter::with_clock(FixedWindow::new(Quota::per_minute(2)), clock).max_keys(1);
    /// assert!(limiter.check("alice").is_allowed());
    /// assert!(limiter.check_n("mallory", 2).is_allowed());
    /// assert!(!limiter.check("trudy").is_allowed()); // mallory has spent it
    /// assert!(limiter.check("alice").is_allowed());
    /// ```
    ///
    /// # Panics
    ///
    /// Where `keys` is 0.
    #[must_use]
    pub fn max_keys(self, keys: usize) -> Self {
        Self { store: self.store.max_keys(keys), ..self }
    }

    /// Resets the budget that all keys without a place share: see [`max_keys`](Self::max_keys).
    /// Without a bound on the keys there is none. A key that has got a place keeps what it has used,
    /// until it is [reset](Self::reset) itself.
    ///
    /// ```
    /// # use tollgate::{FixedWindow, Limiter, ManualClock, Quota, Tick};
    /// # let clock = ManualClock::new(Tick::from_micros(0));
    /// let limiter = Limiter::with_clock(FixedWindow::new(Quota::per_minute(2)), clock).max_keys(1);
    /// assert!(limiter.check("alice").is_allowed());
    /// assert!(limiter.check_n("mallory", 2).is_allowed());
    /// assert!(!limiter.check("trudy").is_allowed());
    /// limiter.reset_shared();
    /// assert!(limiter.check("trudy").is_allowed());
    /// ```
    pub fn reset_shared(&self) {
        self.store.reset_shared();
    }
}

/// Bounds on the callers that [wait](Acquire), for each store in memory. Limiters on one
/// [`TieredMemory`] share them: the last that are set hold.
#[cfg(feature = "tokio")]
impl<L: Source, S: Queued<L::Algorithm>> Limiter<L, S> {
    /// Sets how many callers may wait at a time, for all keys together; 100,000 if not set. A caller
    /// beyond that is denied at once; with 0 no caller waits. A waiter takes about 200 bytes. A
    /// caller that waits for the delay of a [`LeakyBucket`](crate::LeakyBucket) counts too.
    ///
    /// ```
    /// use tollgate::{Limiter, Quota, TokenBucket};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let limiter = Limiter::new(TokenBucket::new(Quota::per_minute(1)).burst(1)).max_waiters(0);
    /// assert!(limiter.acquire("alice").await.is_allowed());
    /// assert!(!limiter.acquire("alice").await.is_allowed());
    /// # }
    /// ```
    #[must_use]
    pub fn max_waiters(self, waiters: usize) -> Self {
        self.store.queues().set_max_waiters(waiters);
        self
    }

    /// Sets how many callers may wait at a time for one key; 10,000 if not set. A caller beyond that
    /// is denied at once. Those that have a place in the queue of a
    /// [`LeakyBucket`](crate::LeakyBucket) already are bounded by its capacity instead.
    ///
    /// ```
    /// use tollgate::{Limiter, Quota, TokenBucket};
    ///
    /// let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10))).max_waiters_per_key(100);
    /// # assert!(limiter.check("alice").is_allowed());
    /// ```
    #[must_use]
    pub fn max_waiters_per_key(self, waiters: usize) -> Self {
        self.store.queues().set_max_waiters_per_key(waiters);
        self
    }
}

/// Pauses, in any store in memory.
#[cfg(feature = "tokio")]
impl<L, S> Limiter<L, S>
where
    L: Source,
    S: InProcess<State = State<L>> + Queued<L::Algorithm>,
{
    /// Gives out no units of `key` for this long from now on, rounded up to a microsecond: one 429
    /// of a server stops all tasks that call it.
    ///
    /// What takes units is denied and charged nothing, until the pause ends or, if that is later,
    /// until the limit itself has the units. Callers that [wait](Acquire) already wait at least until
    /// then, and go in their order, as fast as the limit allows; so do those that wait for a
    /// departure of a [`LeakyBucket`](crate::LeakyBucket), which take new ones. A caller that cannot
    /// go by its deadline is denied, by then at the latest. A departure that a check has stated
    /// stays as stated.
    ///
    /// Units refill meanwhile. A cost of 0 is allowed, a cost above the limit is
    /// [`Never`](crate::Outcome::Never), and debits, refunds and settlements go on. A
    /// [`reset`](Self::reset) ends the pause. Of several pauses the latest end counts, so a shorter
    /// one changes nothing; nor does a duration of zero.
    ///
    /// A pause takes a few hundred bytes until it ends, also for a key beyond
    /// [`max_keys`](Self::max_keys), and is in no snapshot.
    /// Limiters on one [`TieredMemory`] share the pauses of a key.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Limiter, Quota, TokenBucket};
    ///
    /// let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)));
    /// limiter.pause("api.example.com", Duration::from_secs(60));
    /// let denied = limiter.check("api.example.com");
    /// assert!(denied.retry_after() > Some(Duration::from_secs(50)));
    /// assert!(limiter.check("api.example.org").is_allowed());
    /// ```
    ///
    /// A client of servers that limit it, with `retry_after` (feature `http`):
    ///
    #[cfg_attr(feature = "http", doc = "```")]
    #[cfg_attr(not(feature = "http"), doc = "```ignore")]
    /// use http::{Response, StatusCode};
    /// use std::time::Duration;
    /// use tollgate::{Limiter, Quota, TokenBucket, retry_after};
    ///
    /// # async fn send(_host: &str) -> Response<()> { Response::new(()) }
    /// /// Any number of tasks call this.
    /// async fn call(limiter: &Limiter<TokenBucket>, host: &str) -> Response<()> {
    ///     let [second, longest] = [1, 60].map(Duration::from_secs);
    ///     loop {
    ///         let _ = limiter.acquire(host).await;
    ///         let response = send(host).await;
    ///         let wait = retry_after(response.status(), response.headers(), longest);
    ///         if wait.is_none() && response.status() != StatusCode::TOO_MANY_REQUESTS {
    ///             return response;
    ///         }
    ///         limiter.pause(host, wait.unwrap_or(second).max(second));
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)));
    /// # assert_eq!(call(&limiter, "api.example.com").await.status(), 200);
    /// # }
    /// ```
    pub fn pause<K>(&self, key: &K, duration: Duration)
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.store.pause(&self.limits, key, duration);
    }
}

/// What is used, through a restart.
#[cfg(feature = "serde")]
impl<L: Limits<()> + Uniform, C: Clock> Limiter<L, Memory<State<L>, C>> {
    /// All that is used, so that it can be [restored](Self::restore) after a restart, which would
    /// hand everybody a fresh budget otherwise. Of limits that are the same for all keys, or
    /// [`Live`]; for others, see [`TieredMemory::snapshot`].
    ///
    /// Decisions go on meanwhile: the store is copied shard by shard, so of two keys one may be seen
    /// earlier than the other, and what is taken after its key was copied is not in the snapshot.
    /// Those on the keys of a shard wait while that one is copied. A key that says nothing any more, by
    /// the limits that hold when it begins, is left out.
    ///
    /// Write a snapshot where only this program can read it: it tells how keys are
    /// [hashed](Snapshot).
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<State<L>> {
        let algorithm = self.limits.get(&());
        self.store.snapshot(|state, now| algorithm.fresh_after(state, now) > 0)
    }

    /// As [`restore`](Self::restore), with a clock: one that counts from where the old one did.
    ///
    /// # Errors
    ///
    /// As [`restore`](Self::restore).
    pub fn restore_with_clock(
        limits: L,
        clock: C,
        snapshot: Snapshot<State<L>>,
    ) -> Result<Self, Error> {
        limits.with(&(), |algorithm| snapshot.check_states(algorithm, clock.now()))?;
        Ok(Self::with_store(limits, Memory::restore(clock, snapshot)?))
    }
}

#[cfg(feature = "serde")]
impl<L: Limits<()> + Uniform> Limiter<L, Memory<State<L>>> {
    /// A limiter in process in which as much is used as there was when the
    /// [snapshot](Self::snapshot) was taken; what has come back since then by the wall clock is back.
    ///
    /// Limits need not be those of old, but the type of their state must: for limits that may
    /// change, take a [`Policy`](crate::Policy). What is used stays used, as if they were
    /// [replaced](Self::replace); for such as can be, give `Live::new(policy)`. If the old limiter had
    /// a bound on its keys, what was used beyond it stays used too; the bound itself is to be given
    /// again.
    ///
    /// ```
    /// use tollgate::{Limiter, Quota, TokenBucket};
    ///
    /// let bucket = TokenBucket::new(Quota::per_hour(10));
    /// let limiter = Limiter::new(bucket);
    /// assert!(limiter.check_n("alice", 10).is_allowed());
    /// let text = serde_json::to_string(&limiter.snapshot())?;
    ///
    /// // After a restart:
    /// let limiter = Limiter::restore(bucket, serde_json::from_str(&text)?)?.max_keys(1_000_000);
    /// assert!(!limiter.check("alice").is_allowed());
    /// assert!(limiter.check("bob").is_allowed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if this program hashes keys otherwise than the one that took the snapshot (on another
    /// kind of machine, or with other versions of its libraries), if the states do not
    /// [fit](Algorithm::fits) the limits, or if the snapshot is not one that a store has written:
    /// if fingerprints repeat, or more of them are alike than those of keys can be. Fails also if
    /// an instant in it is more than an hour later than the clock, as its limits would stand still
    /// until then; a clock may have been set back by as much.
    ///
    /// A type of keys whose own `Hash` has changed is not noticed: its keys are new ones.
    pub fn restore(limits: L, snapshot: Snapshot<State<L>>) -> Result<Self, Error> {
        Self::restore_with_clock(limits, MonotonicClock::default(), snapshot)
    }
}

impl<A: Algorithm> Limiter<Live<A>, Memory<A::State>> {
    /// A limiter in process whose limits can be [replaced](Self::replace) while it is in use. It is
    /// slower than one whose limits are fixed, by a lock that all of its callers share.
    ///
    /// ```
    /// use tollgate::{Carry, Limiter, Policy};
    ///
    /// let limiter = Limiter::live("100/minute".parse::<Policy>()?);
    /// assert_eq!(limiter.check_n("alice", 60).remaining(), 40);
    /// limiter.replace("200/minute".parse()?);
    /// assert_eq!(limiter.peek("alice").remaining(), 140);
    /// limiter.replace_with("20/minute".parse()?, Carry::InProportion);
    /// assert_eq!(limiter.peek("alice").remaining(), 14);
    /// # Ok::<(), tollgate::Error>(())
    /// ```
    ///
    /// With a clock or a store of your own: `Limiter::with_store(Live::new(policy), store)`.
    #[must_use]
    pub fn live(algorithm: A) -> Self {
        Self::with_store(Live::new(algorithm), Memory::new(MonotonicClock::default()))
    }
}

impl<A, S> Limiter<Live<A>, S>
where
    A: Algorithm,
    S: States<State = A::State>,
{
    /// As [`replace`](Self::replace), with a choice of what becomes of the units that are used. Only
    /// in process: elsewhere, nobody can tell which instances know the new limits already.
    ///
    /// Unless that is [`Carry::AsIs`], it takes time in proportion to the keys in memory, in which
    /// no decision is made.
    pub fn replace_with(&self, algorithm: A, carry: Carry) {
        self.limits.replace(algorithm, |old, new| match carry {
            Carry::AsIs => {}
            Carry::InProportion => self.store.change_each(|state, now| new.scale(old, state, now)),
            Carry::Reset => self.store.change_each(|state, _| *state = A::State::default()),
        });
    }
}

impl<A, F> Limiter<PerKey<A, F>, TieredMemory<A::State>>
where
    A: Algorithm,
    F: Send + Sync,
{
    /// A limiter in process that asks a closure for the limits of each key, so that they may differ:
    /// by tier, say. A key whose limits change keeps what it has used.
    ///
    /// The closure returns a pointer to an algorithm: an `Arc<Policy>`, or a `&'static TokenBucket`
    /// to a `static`. As the field of a struct, with a closure that is boxed, its type is
    /// `Limiter<PerKey<Policy, Box<dyn Fn(&str) -> Arc<Policy> + Send + Sync>>,
    /// TieredMemory<PolicyState>>`.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::Arc;
    /// use tollgate::{Limiter, Policy};
    ///
    /// let free: Arc<Policy> = Arc::new("10/hour".parse()?);
    /// let pro: Arc<Policy> = Arc::new("1000/hour".parse()?);
    /// let tiers = HashMap::from([("alice", pro)]);
    ///
    /// let limiter = Limiter::per_key(move |user: &str| {
    ///     Arc::clone(tiers.get(user).unwrap_or(&free))
    /// });
    /// assert_eq!(limiter.check("alice").limit(), 1000);
    /// assert_eq!(limiter.check("bob").limit(), 10);
    /// # Ok::<(), tollgate::Error>(())
    /// ```
    ///
    /// With a clock or a store of your own: `Limiter::with_store(PerKey::new(closure), store)`.
    #[must_use]
    pub fn per_key<K, P>(limits_of: F) -> Self
    where
        K: ?Sized,
        F: Fn(&K) -> P,
        P: Deref<Target = A>,
    {
        Self::with_store(PerKey::new(limits_of), TieredMemory::default())
    }
}

/// Limits that are told with the call, in the place of the limiter's own.
impl<L: Source, C: Clock> Limiter<L, TieredMemory<State<L>, C>> {
    /// Takes one unit for `key`, if there is one, by other limits than this limiter's. What the key
    /// has used stays used, whatever it was limited by.
    ///
    /// ```
    /// use tollgate::{Limiter, Quota, SlidingLog, TieredMemory};
    ///
    /// let [free, pro] = [10, 1000].map(|count| SlidingLog::new(Quota::per_hour(count)));
    /// let limiter = Limiter::with_store(free, TieredMemory::default());
    /// assert_eq!(limiter.check("alice").remaining(), 9);
    /// assert_eq!(limiter.check_with(&pro, "alice").remaining(), 998);
    /// ```
    pub fn check_with<K: Hash + ?Sized>(&self, limits: &L::Algorithm, key: &K) -> Decision {
        self.decide_with(limits, key, Operation::Check(1))
    }

    /// Does `operation` for `key`, by other limits than this limiter's.
    pub fn decide_with<K: Hash + ?Sized>(
        &self,
        limits: &L::Algorithm,
        key: &K,
        operation: Operation<'_>,
    ) -> Decision {
        self.store.apply(limits, key, operation)
    }
}

/// In process, every decision is made at once and cannot fail. On a key that is in memory
/// none allocates, but for the instants that a log has to keep.
impl<L, S> Limiter<L, S>
where
    L: Source,
    S: InProcess<State = State<L>>,
{
    /// Takes one unit for `key`, if there is one.
    ///
    /// ```
    /// # use tollgate::{Limiter, Quota, SlidingLog};
    /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(2)));
    /// assert_eq!(limiter.check("alice").remaining(), 1);
    /// assert_eq!(limiter.check("alice").remaining(), 0);
    /// assert!(!limiter.check("alice").is_allowed());
    /// assert!(limiter.check("bob").is_allowed());
    /// ```
    #[inline]
    pub fn check<K>(&self, key: &K) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.check_n(key, 1)
    }

    /// Takes `n` units for `key`, if there are so many; otherwise none.
    ///
    /// ```
    /// # use tollgate::{Limiter, Outcome, Quota, SlidingLog};
    /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
    /// assert!(limiter.check_n("alice", 8).is_allowed());
    /// assert!(!limiter.check_n("alice", 5).is_allowed()); // free of charge
    /// assert_eq!(limiter.check_n("alice", 1).remaining(), 1);
    /// assert_eq!(limiter.check_n("alice", 11).outcome(), Outcome::Never);
    /// ```
    #[inline]
    pub fn check_n<K>(&self, key: &K, n: u64) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.decide(key, Operation::Check(n))
    }

    /// Tells whether [`check`](Self::check) would admit, and how things stand, and takes nothing.
    ///
    /// ```
    /// # use tollgate::{Limiter, Quota, SlidingLog};
    /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(1)));
    /// assert!(limiter.peek("alice").is_allowed());
    /// assert_eq!(limiter.peek("alice").remaining(), 1);
    /// ```
    pub fn peek<K>(&self, key: &K) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.decide(key, Operation::Peek(1))
    }

    /// Takes as many units as there are, up to `n`; refused only where there is not one.
    /// [`Decision::granted`] tells how many it took.
    ///
    /// ```
    /// # use tollgate::{Limiter, Quota, SlidingLog};
    /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
    /// assert_eq!(limiter.take_up_to("alice", 7).granted(), 7);
    /// assert_eq!(limiter.take_up_to("alice", 7).granted(), 3);
    /// assert!(!limiter.take_up_to("alice", 7).is_allowed());
    /// ```
    pub fn take_up_to<K>(&self, key: &K, n: u64) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.decide(key, Operation::TakeUpTo(n))
    }

    /// Charges `n` units, whether they are there or not: for costs that are known only
    /// afterwards. What was not there is a debt. It is never refused.
    ///
    /// A bucket works a debt off before anything is allowed again. In a window or a log, units
    /// on top count as long as any others do, and are then forgotten. In a log, though, units beyond
    /// twice the limit count from the latest charge: a debt of 1,000 units at 10 a minute that is
    /// charged again every 50 seconds goes by about 20 units at a time, not all at once.
    ///
    /// A bucket's debt is at most what it works off in fifty years; other algorithms count
    /// up to 2^45 - 1 units.
    ///
    /// ```
    /// # use tollgate::{Limiter, Quota, TokenBucket};
    /// # use std::time::Duration;
    /// let limiter = Limiter::new(TokenBucket::new(Quota::per_minute(10)));
    /// let after = limiter.debit("alice", 15);
    /// assert_eq!(after.remaining(), 0);
    /// assert_eq!(after.next_after(), Some(Duration::from_secs(36))); // 6 units of 6 s
    /// ```
    ///
    /// An estimate, corrected when the true cost is known:
    ///
    /// ```
    /// # use tollgate::{Limiter, Quota, TokenBucket};
    /// let tokens = Limiter::new(TokenBucket::new(Quota::per_minute(90_000)));
    /// let (estimate, actual) = (2_000, 2_600);
    /// if tokens.check_n("tenant", estimate).is_allowed() {
    ///     // ... ask the language model ...
    ///     let after = if actual > estimate {
    ///         tokens.debit("tenant", actual - estimate)
    ///     } else {
    ///         tokens.refund("tenant", estimate - actual)
    ///     };
    ///     assert_eq!(after.remaining(), 87_400);
    /// }
    /// ```
    pub fn debit<K>(&self, key: &K, n: u64) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.decide(key, Operation::Debit(n))
    }

    /// Gives `n` units back: never more than were taken, and in an algorithm with windows
    /// only into the present one; a log takes back the newest first. The queue of a [`LeakyBucket`](crate::LeakyBucket) takes none
    /// back, as it has promised its departures: reserve, and settle or drop the
    /// [`Reservation`], which knows its place.
    ///
    /// ```
    /// # use tollgate::{Limiter, Quota, SlidingLog};
    /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
    /// assert_eq!(limiter.check_n("alice", 8).remaining(), 2);
    /// assert_eq!(limiter.refund("alice", 3).remaining(), 5);
    /// assert_eq!(limiter.refund("alice", 99).remaining(), 10);
    /// ```
    pub fn refund<K>(&self, key: &K, n: u64) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.decide(key, Operation::Refund(n))
    }

    /// Forgets all that was taken.
    ///
    /// ```
    /// # use tollgate::{Limiter, Quota, SlidingLog};
    /// let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(10)));
    /// assert_eq!(limiter.check_n("alice", 10).remaining(), 0);
    /// assert_eq!(limiter.reset("alice").remaining(), 10);
    /// ```
    pub fn reset<K>(&self, key: &K) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.decide(key, Operation::Reset)
    }

    /// Takes `n` units as an estimate, if there are so many, to be
    /// [settled](Reservation::settle_now) when the true cost is known: see [`Reservation`]. For one
    /// that is moved into a task, see [`Reservation::take_now`].
    pub fn reserve<'a, K>(&'a self, key: &'a K, n: u64) -> Reservation<&'a Self, &'a K>
    where
        L: Limits<K>,
        S: Store<L::Algorithm, K>,
        K: Hash + Sync + ?Sized,
    {
        Reservation::take_now(self, key, n)
    }

    /// Waits for one unit: see [`Acquire`].
    #[cfg(feature = "tokio")]
    pub fn acquire<'a, K>(&'a self, key: &'a K) -> Acquire<'a, K, Self, Decision>
    where
        L: Limits<K>,
        S: Store<L::Algorithm, K, Error = Infallible>,
        K: Hash + Sync + ?Sized,
    {
        self.acquire_n(key, 1)
    }

    /// Waits for `n` units: see [`Acquire`].
    #[cfg(feature = "tokio")]
    pub fn acquire_n<'a, K>(&'a self, key: &'a K, n: u64) -> Acquire<'a, K, Self, Decision>
    where
        L: Limits<K>,
        S: Store<L::Algorithm, K, Error = Infallible>,
        K: Hash + Sync + ?Sized,
    {
        Acquire {
            limiter: self,
            key,
            n,
            patience: Patience::Endless,
            answer: |Ok(decision)| decision,
        }
    }

    /// Does `operation` for `key`. All the other methods are this one.
    #[inline(always)]
    pub fn decide<K>(&self, key: &K, operation: Operation<'_>) -> Decision
    where
        L: Limits<K>,
        K: Hash + ?Sized,
    {
        self.store.apply(&self.limits, key, operation)
    }

    /// How many keys' states are in memory, those included that say nothing any more and
    /// have not been dropped yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether no key's state is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<L, S, K> Immediate<K> for Limiter<L, S>
where
    L: Limits<K>,
    S: InProcess<State = State<L>> + Store<L::Algorithm, K>,
    K: Hash + Sync + ?Sized,
{
    fn decide_at_once(&self, key: &K, operation: Operation<'_>) -> Decision {
        self.decide(key, operation)
    }
}

impl<L: Limits<()>, C: Clock> Immediate<()> for Limiter<L, Direct<State<L>, C>> {
    fn decide_at_once(&self, (): &(), operation: Operation<'_>) -> Decision {
        self.decide(operation)
    }
}

/// Without keys: each method does what the one of the same name does for a key.
impl<L: Limits<()>, C: Clock> Limiter<L, Direct<State<L>, C>> {
    /// A limiter without keys that takes its time from `clock`.
    #[must_use]
    pub fn direct_with_clock(limits: L, clock: C) -> Self {
        Self::with_store(limits, Direct::new(clock))
    }

    /// Takes one unit, if there is one.
    #[inline]
    pub fn check(&self) -> Decision {
        self.check_n(1)
    }

    /// Takes `n` units, if there are so many; otherwise none.
    #[inline]
    pub fn check_n(&self, n: u64) -> Decision {
        self.decide(Operation::Check(n))
    }

    /// Tells whether [`check`](Self::check) would admit, and how things stand, and takes nothing.
    pub fn peek(&self) -> Decision {
        self.decide(Operation::Peek(1))
    }

    /// Takes as many units as there are, up to `n`.
    pub fn take_up_to(&self, n: u64) -> Decision {
        self.decide(Operation::TakeUpTo(n))
    }

    /// Charges `n` units, whether they are there or not.
    pub fn debit(&self, n: u64) -> Decision {
        self.decide(Operation::Debit(n))
    }

    /// Gives `n` units back.
    pub fn refund(&self, n: u64) -> Decision {
        self.decide(Operation::Refund(n))
    }

    /// Forgets all that was taken.
    pub fn reset(&self) -> Decision {
        self.decide(Operation::Reset)
    }

    /// Takes `n` units as an estimate, if there are so many, to be
    /// [settled](Reservation::settle_now) when the true cost is known: see [`Reservation`].
    pub fn reserve(&self, n: u64) -> Reservation<&Self, &'static ()> {
        Reservation::take_now(self, &(), n)
    }

    /// Waits for one unit: see [`Acquire`].
    #[cfg(feature = "tokio")]
    pub fn acquire(&self) -> Acquire<'_, (), Self, Decision> {
        self.acquire_n(1)
    }

    /// Waits for `n` units: see [`Acquire`].
    #[cfg(feature = "tokio")]
    pub fn acquire_n(&self, n: u64) -> Acquire<'_, (), Self, Decision> {
        Acquire {
            limiter: self,
            key: &(),
            n,
            patience: Patience::Endless,
            answer: |Ok(decision)| decision,
        }
    }

    /// Gives out no units for this long from now on.
    #[cfg(feature = "tokio")]
    pub fn pause(&self, duration: Duration) {
        self.store.pause(&self.limits, &(), duration);
    }

    /// Does `operation`. All the other methods are this one.
    #[inline(always)]
    pub fn decide(&self, operation: Operation<'_>) -> Decision {
        self.store.apply(&self.limits, operation)
    }
}
