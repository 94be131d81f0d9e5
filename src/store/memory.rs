use super::key_hasher::KeyHasher;
use super::lock::Lock;
#[cfg(feature = "tokio")]
use super::queue::{self, Queued, Queues};
#[cfg(feature = "serde")]
use super::snapshot::Snapshot;
use super::table::Table;
use super::{InProcess, States, Store};
use crate::algorithm::Algorithm;
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::{Decision, Outcome};
#[cfg(feature = "serde")]
use crate::error::{Error, Kind};
#[cfg(feature = "tokio")]
use crate::limiter::Limits;
use crate::operation::Operation;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
#[cfg(feature = "tokio")]
use tokio::time::Instant;

/// The states of any number of keys, in this process.
///
/// Keys are not kept. A state is found by a 64-bit fingerprint of its key, under a seed that
/// is drawn at random for each store: of a million keys in use at one time, the odds that any
/// two share a budget are about 3 in 100 million. The hash (foldhash) is not a cryptographic
/// one: it keeps apart keys that are chosen without knowing the seed.
///
/// There is no background thread. The states are in small tables; when one of them is full, the
/// states in it that say nothing any more (an idle key's, once all that it took has come back)
/// make room for new ones, and only if that frees too little it grows: memory follows the keys
/// that are in use. With a bucket or a fixed window, a key takes 27 to 31 bytes.
#[derive(Debug)]
pub struct Memory<T, C = MonotonicClock> {
    shards: Box<[Lock<Shard<T>>]>,
    hasher: KeyHasher,
    clock: C,
    cap: Option<Cap<T>>,
    #[cfg(feature = "tokio")]
    queues: Queues<T>,
}

#[derive(Debug)]
struct Shard<T> {
    /// One or more, which the lowest bits of a fingerprint choose from: see [`table`](Self::table).
    tables: Vec<Table<T>>,
    /// The largest power of two of tables.
    round: usize,
    len: usize,
    /// The latest instant at which states were dropped. They are fresh from there on, but need
    /// not be so at an earlier one: for keys without a state, time has come that far.
    dropped_at: Tick,
    /// When room was last looked for.
    looked_at: Tick,
}

/// What becomes of keys beyond a number of them.
#[derive(Debug)]
struct Cap<T> {
    max_keys: usize,
    keys: AtomicUsize,
    /// The one state of all keys that there is no room for.
    shared: Lock<T>,
}

/// An empty shard takes 168 bytes.
const MAX_SHARDS: usize = 512;

fn empty_shards<T: Default>(count: usize, dropped_at: Tick) -> Box<[Lock<Shard<T>>]> {
    (0..count).map(|_| Lock::new(Shard::new(dropped_at))).collect()
}

impl<T: Default, C: Clock> Memory<T, C> {
    /// A store without any state, that takes its time from `clock`.
    #[must_use]
    pub fn new(clock: C) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (threads * 32).next_power_of_two().min(MAX_SHARDS);
        let shards = empty_shards(shards, Tick::default());
        Self {
            shards,
            hasher: KeyHasher::random(),
            clock,
            cap: None,
            #[cfg(feature = "tokio")]
            queues: Queues::new(),
        }
    }

    /// A fingerprint's lowest bits choose the table within the shard, its highest ones the place
    /// within the table.
    #[inline]
    fn shard(&self, fingerprint: u64) -> &Lock<Shard<T>> {
        let middle = (fingerprint >> 16 & 0xffff) as usize;
        &self.shards[middle & (self.shards.len() - 1)]
    }

    /// Puts in the state of a key that has none; returns whether it had none.
    #[must_use]
    fn put(&self, fingerprint: u64, state: T) -> bool {
        let mut shard = self.shard(fingerprint).lock();
        let is_new = shard.table(fingerprint).get_mut(fingerprint).is_none();
        if is_new {
            shard.insert(fingerprint, state, Tick::default(), |_| true);
        }
        is_new
    }
}

impl<T: Clone + Default, C: Clock> Memory<T, C> {
    /// The same store for no more than so many keys at a time: see
    /// [`Limiter::max_keys`](crate::Limiter::max_keys).
    ///
    /// # Panics
    ///
    /// Where `keys` is 0.
    #[must_use]
    pub fn max_keys(self, keys: usize) -> Self {
        assert!(keys > 0, "a store must be for one key at least");
        let len = AtomicUsize::new(self.len_now());
        let shared = self.cap.map(|cap| cap.shared).unwrap_or_default();
        let cap = Cap { max_keys: keys, keys: len, shared };
        // Room is looked for in one table: where there are few keys, that should be most of them.
        let shards = (keys / KEYS_PER_TABLE).next_power_of_two().min(self.shards.len());
        let dropped_at = self.shards.iter().map(|shard| shard.lock().dropped_at).max();
        let shards = empty_shards(shards, dropped_at.unwrap_or_default());
        let store = Self {
            shards,
            cap: Some(cap),
            hasher: self.hasher,
            clock: self.clock,
            #[cfg(feature = "tokio")]
            queues: self.queues,
        };
        for shard in &self.shards {
            for (fingerprint, state) in shard.lock().tables.drain(..).flat_map(Table::into_states) {
                assert!(store.put(fingerprint, state), "a key has one state");
            }
        }
        store
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn max_waiters(self, waiters: usize) -> Self {
        Self { queues: self.queues.with_max_waiters(waiters), ..self }
    }

    #[inline]
    pub(super) fn fingerprint<K: Hash + ?Sized>(&self, key: &K) -> u64 {
        self.hasher.hash(key).min(Table::<T>::MAX_FINGERPRINT)
    }

    #[cfg(feature = "tokio")]
    pub(super) fn now(&self) -> Tick {
        self.clock.now()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn state(&self, fingerprint: u64) -> T {
        let mut shard = self.shard(fingerprint).lock();
        match (shard.table(fingerprint).get_mut(fingerprint), &self.cap) {
            (Some(state), _) => state.clone(),
            (None, Some(cap)) => cap.shared.lock().clone(),
            (None, None) => T::default(),
        }
    }

    #[inline]
    pub(super) fn apply_at<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: Tick,
    ) -> Decision {
        let mut shard = self.shard(fingerprint).lock();
        if let Some(state) = shard.table(fingerprint).get_mut(fingerprint) {
            return operation.apply(algorithm, state, now);
        }
        self.apply_to_new(algorithm, fingerprint, operation, now, &mut shard)
    }

    /// For a key that has no state.
    #[inline(never)]
    fn apply_to_new<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: Tick,
        shard: &mut Shard<T>,
    ) -> Decision {
        let now = now.min(Tick::MAX).max(shard.dropped_at);
        let keep = |state: &T| algorithm.fresh_after(state, now) > 0;
        let mut state = match &self.cap {
            None => T::default(),
            Some(cap) if cap.reserve(shard, |shard| shard.make_room(fingerprint, now, keep)) => {
                cap.shared.lock().clone()
            }
            Some(cap) => {
                // A reset of one key must not be one of all: it tells how they stand.
                let operation = match operation {
                    Operation::Reset => Operation::Refund(0),
                    other => other,
                };
                return operation.apply(algorithm, &mut cap.shared.lock(), now);
            }
        };
        let decision = operation.apply(algorithm, &mut state, now);
        let before = shard.len;
        // What is refused keeps nothing, unless the shared state is the reason: then the key
        // regains units of its own from here on.
        let denied = matches!(decision.outcome, Outcome::Denied(_));
        if decision.granted > 0 || denied && !matches!(operation, Operation::Peek(_)) {
            shard.insert(fingerprint, state, now, keep);
        }
        if let Some(cap) = &self.cap {
            cap.recount(before + 1, shard.len);
        }
        decision
    }

    fn len_now(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len).sum()
    }

    /// Drops the states that are not to `keep`, and gives the memory back.
    pub(crate) fn shrink(&self, keep: impl Fn(&T, Tick) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let now = self.clock.now().min(Tick::MAX).max(shard.dropped_at);
            let before = shard.len;
            shard.shrink(now, |state| keep(state, now));
            if let Some(cap) = &self.cap {
                cap.recount(before, shard.len);
            }
        }
    }
}

#[cfg(feature = "serde")]
impl<T: Clone + Default, C: Clock> Memory<T, C> {
    /// The states that are to be kept.
    pub(crate) fn snapshot(&self, keep: impl Fn(&T, Tick) -> bool) -> Snapshot<T> {
        let mut states = Vec::with_capacity(self.len_now());
        let mut dropped_at = Tick::default();
        for shard in &self.shards {
            let shard = shard.lock();
            let now = self.clock.now().min(Tick::MAX).max(shard.dropped_at);
            let kept_before = states.len();
            for (fingerprint, state) in shard.tables.iter().flat_map(Table::iter) {
                if keep(state, now) {
                    states.push((fingerprint, state.clone()));
                }
            }
            let drops_any = states.len() - kept_before < shard.len;
            dropped_at = dropped_at.max(if drops_any { now } else { shard.dropped_at });
        }
        // After the states: what a key has taken here, before it got a place, is here or there.
        let shared = self.cap.as_ref().map(|cap| cap.shared.lock().clone());
        Snapshot::new(&self.hasher, dropped_at, shared, states)
    }

    /// A store of these states. Where the old one had a cap, keys without a state start with the
    /// shared state, as if this one had the highest.
    pub(crate) fn restore(clock: C, snapshot: Snapshot<T>) -> Result<Self, Error> {
        let hasher = snapshot.hasher()?;
        let Snapshot { dropped_at, shared, states, .. } = snapshot;
        let keys = AtomicUsize::new(states.len());
        let with_cap = |shared| Cap { max_keys: usize::MAX, keys, shared: Lock::new(shared) };
        let store = Self { hasher, cap: shared.map(with_cap), ..Self::new(clock) };
        for shard in &store.shards {
            shard.lock().dropped_at = dropped_at.min(Tick::MAX);
        }
        for (fingerprint, state) in states {
            if fingerprint > Table::<T>::MAX_FINGERPRINT || !store.put(fingerprint, state) {
                return Err(Kind::Snapshot("its fingerprints are not those of a store").into());
            }
        }
        Ok(store)
    }
}

impl<T: Clone + Default + Send + Sync, C: Clock> InProcess for Memory<T, C> {
    type State = T;

    #[inline]
    fn apply<A, K>(&self, algorithm: &A, key: &K, operation: Operation<'_>) -> Decision
    where
        A: Algorithm<State = T>,
        K: Hash + ?Sized,
    {
        let fingerprint = self.fingerprint(key);
        #[cfg(feature = "tokio")]
        return queue::apply(self, algorithm, fingerprint, operation);
        #[cfg(not(feature = "tokio"))]
        self.apply_at(algorithm, fingerprint, operation, self.clock.now())
    }

    fn len(&self) -> usize {
        self.len_now()
    }
}

#[cfg(feature = "tokio")]
impl<A: Algorithm, C: Clock> Queued<A> for Memory<A::State, C> {
    fn now(&self) -> Tick {
        self.now()
    }

    fn state(&self, fingerprint: u64) -> A::State {
        self.state(fingerprint)
    }

    fn apply_at(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: Tick,
    ) -> Decision {
        self.apply_at(algorithm, fingerprint, operation, now)
    }

    fn queues(&self) -> &Queues<A::State> {
        &self.queues
    }
}

impl<T: Clone + Default + Send + Sync, C: Clock> States for Memory<T, C> {
    type State = T;

    fn change_each(&self, mut change: impl FnMut(&mut T, Tick)) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let now = self.clock.now().min(Tick::MAX).max(shard.dropped_at);
            shard.tables.iter_mut().for_each(|table| table.each_mut(|state| change(state, now)));
        }
        if let Some(cap) = &self.cap {
            change(&mut cap.shared.lock(), self.clock.now().min(Tick::MAX));
        }
    }
}

impl<T: Default> Cap<T> {
    /// Whether there is a place for one key more, which is then taken; otherwise it is looked for
    /// once more when the shard has been asked to `make_room`.
    fn reserve(&self, shard: &mut Shard<T>, make_room: impl FnOnce(&mut Shard<T>)) -> bool {
        let take = |keys: usize| (keys < self.max_keys).then_some(keys + 1);
        let taken = || self.keys.fetch_update(Relaxed, Relaxed, take).is_ok();
        taken() || {
            let before = shard.len;
            make_room(shard);
            self.recount(before, shard.len);
            taken()
        }
    }

    fn recount(&self, before: usize, after: usize) {
        if before != after {
            self.keys.fetch_add(after.wrapping_sub(before), Relaxed);
        }
    }
}

/// A shard has so many tables that each holds about as many keys, up to twice as many: few enough
/// to build one anew within microseconds.
const KEYS_PER_TABLE: usize = 128;

/// When there is no room for new keys, looking for it takes no longer than deciding on them.
const MICROS_BETWEEN_SWEEPS: u64 = 1_000;

impl<T: Default> Shard<T> {
    fn new(dropped_at: Tick) -> Self {
        Self {
            tables: vec![Table::default()],
            round: 1,
            len: 0,
            dropped_at,
            looked_at: Tick::default(),
        }
    }

    /// The table of a key. There are a power of two of them, and some more into which the first of
    /// those have been split in their order (linear hashing, after
    /// [Litwin](https://dl.acm.org/doi/10.5555/1286887.1286911)).
    #[inline]
    fn table(&mut self, fingerprint: u64) -> &mut Table<T> {
        let bits = (fingerprint & 0xffff) as usize & (2 * self.round - 1);
        let index = if bits < self.tables.len() { bits } else { bits - self.round };
        &mut self.tables[index]
    }

    fn insert(&mut self, fingerprint: u64, state: T, now: Tick, keep: impl Fn(&T) -> bool) {
        if self.len >= self.tables.len() * KEYS_PER_TABLE && self.round < 1 << 16 {
            let next = self.tables.len() - self.round;
            let apart = self.tables[next].split(self.round as u64);
            self.tables.push(apart);
            if self.tables.len() == 2 * self.round {
                self.round *= 2;
            }
        }
        self.len += 1;
        if let Some(dropped) = self.table(fingerprint).insert(fingerprint, state, keep) {
            self.dropped(dropped, now);
        }
    }

    /// Drops what says nothing any more from one table, if that was not done just now.
    fn make_room(&mut self, fingerprint: u64, now: Tick, keep: impl Fn(&T) -> bool) {
        if now.micros_since(self.looked_at) >= MICROS_BETWEEN_SWEEPS {
            self.looked_at = now;
            let dropped = self.table(fingerprint).sweep(keep);
            self.dropped(dropped, now);
        }
    }

    fn shrink(&mut self, now: Tick, keep: impl Fn(&T) -> bool) {
        let mut dropped = 0;
        for table in &mut self.tables {
            dropped += table.sweep(&keep);
            table.shrink_to_fit();
        }
        self.dropped(dropped, now);
        if self.len == 0 {
            *self = Self::new(self.dropped_at);
        }
    }

    fn dropped(&mut self, states: usize, now: Tick) {
        self.len -= states;
        if states > 0 {
            self.dropped_at = now;
        }
    }
}

impl<A, C, K> Store<A, K> for Memory<A::State, C>
where
    A: Algorithm,
    C: Clock,
    K: Hash + ?Sized,
{
    type Error = Infallible;

    fn decide(
        &self,
        algorithm: &A,
        key: &K,
        operation: Operation<'_>,
    ) -> impl Future<Output = Result<Decision, Infallible>> + Send {
        ready(Ok(self.apply(algorithm, key, operation)))
    }

    fn decide_now(
        &self,
        algorithm: &A,
        key: &K,
        operation: Operation<'_>,
    ) -> Option<Result<Decision, Infallible>> {
        Some(Ok(self.apply(algorithm, key, operation)))
    }

    #[cfg(feature = "tokio")]
    fn acquire_in_turn<L>(
        &self,
        limits: &L,
        key: &K,
        n: u64,
        deadline: Option<Instant>,
    ) -> Option<impl Future<Output = Decision> + Send>
    where
        L: Limits<K, Algorithm = A>,
        K: Sync,
    {
        Some(queue::acquire(self, limits, key, self.fingerprint(key), n, deadline))
    }
}
