use super::Store;
use crate::algorithm::Algorithm;
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::Decision;
use crate::operation::Operation;
use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::hash::{BuildHasher, Hash};
use std::sync::LazyLock;

/// The states of any number of keys, in this process.
///
/// Keys are not kept. A state is found by a 64-bit fingerprint of its key, under a seed that
/// is drawn at random for each store: of a million keys in use at one time, the odds that any
/// two share a budget are about 3 in 100 million. The hash (foldhash) is not a cryptographic
/// one: it keeps apart keys that are chosen without knowing the seed.
///
/// There is no background thread. When a shard of the store is full, the states that say
/// nothing any more (an idle key's, once all that it took has come back) make room for new
/// ones, and only if that frees too little the shard grows: memory follows the keys that are
/// in use.
#[derive(Debug)]
pub struct Memory<T, C = MonotonicClock> {
    shards: Box<[Mutex<Shard<T>>]>,
    hasher: SeedableRandomState,
    clock: C,
}

#[derive(Debug)]
struct Shard<T> {
    states: HashTable<Entry<T>>,
    /// The latest instant at which states were dropped. They are fresh from there on, but need
    /// not be so at an earlier one: for keys without a state, time has come that far.
    dropped_at: Tick,
}

#[derive(Debug)]
struct Entry<T> {
    fingerprint: u64,
    state: T,
}

/// From the operating system's source of randomness.
fn random_seed() -> u64 {
    std::hash::RandomState::new().hash_one(())
}

static SHARED_SEED: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(random_seed()));

impl<T, C: Clock> Memory<T, C> {
    /// A store without any state, that takes its time from `clock`.
    #[must_use]
    pub fn new(clock: C) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (threads * 8).next_power_of_two();
        let shard = || Shard { states: HashTable::new(), dropped_at: Tick::default() };
        Self {
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            hasher: SeedableRandomState::with_seed(random_seed(), &SHARED_SEED),
            clock,
        }
    }

    pub(crate) fn apply<A, K>(&self, algorithm: &A, key: &K, operation: Operation) -> Decision
    where
        A: Algorithm<State = T>,
        K: Hash + ?Sized,
    {
        let fingerprint = self.hasher.hash_one(key);
        let mut shard = self.shard(fingerprint).lock();
        // Read under the lock, so that one key's decisions see time in their own order.
        let now = self.now();
        if let Some(entry) = shard.states.find_mut(fingerprint, |e| e.fingerprint == fingerprint) {
            return operation.apply(algorithm, &mut entry.state, now);
        }
        let now = now.max(shard.dropped_at);
        let mut state = algorithm.fresh();
        let decision = operation.apply(algorithm, &mut state, now);
        if decision.reset_after_micros > 0 {
            if shard.states.len() == shard.states.capacity() {
                shard.drop_fresh(algorithm, now);
            }
            let entry = Entry { fingerprint, state };
            shard.states.insert_unique(fingerprint, entry, |e| e.fingerprint);
        }
        decision
    }

    fn now(&self) -> Tick {
        self.clock.now().min(Tick::MAX)
    }

    /// The table inside uses a fingerprint's lowest and highest bits, so the shard is chosen by
    /// bits from its middle.
    fn shard(&self, fingerprint: u64) -> &Mutex<Shard<T>> {
        let middle = usize::try_from((fingerprint >> 32) & 0xffff).expect("16 bits");
        &self.shards[middle & (self.shards.len() - 1)]
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().states.len()).sum()
    }

    pub(crate) fn shrink_to_fit<A: Algorithm<State = T>>(&self, algorithm: &A) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.drop_fresh(algorithm, self.now());
            shard.states.shrink_to_fit(|entry| entry.fingerprint);
        }
    }
}

impl<T> Shard<T> {
    fn drop_fresh<A: Algorithm<State = T>>(&mut self, algorithm: &A, now: Tick) {
        self.states.retain(|entry| algorithm.fresh_after(&entry.state, now) > 0);
        self.dropped_at = now.max(self.dropped_at);
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
        operation: Operation,
    ) -> impl Future<Output = Result<Decision, Infallible>> + Send {
        ready(Ok(self.apply(algorithm, key, operation)))
    }

    fn decide_now(
        &self,
        algorithm: &A,
        key: &K,
        operation: Operation,
    ) -> Option<Result<Decision, Infallible>> {
        Some(Ok(self.apply(algorithm, key, operation)))
    }
}
