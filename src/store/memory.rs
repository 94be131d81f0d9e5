use super::Store;
use crate::algorithm::Algorithm;
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::Decision;
use crate::operation::Operation;
use foldhash::quality::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::hash::{BuildHasher, Hash};

/// The states of any number of keys, in this process.
///
/// Keys are not kept. A state is found by a 64-bit fingerprint of its key, under a seed that
/// is drawn at random for each store: of a million keys in use at one time, the odds that any
/// two share a budget are about 3 in 100 million.
///
/// There is no background thread. When a shard of the store is full, the states that say
/// nothing any more (an idle key's, once all that it took has come back) make room for new
/// ones, and only if that frees too little the shard grows: memory follows the keys that are
/// in use.
#[derive(Debug)]
pub struct Memory<T, C = MonotonicClock> {
    shards: Box<[Mutex<Shard<T>>]>,
    hasher: RandomState,
    clock: C,
}

type Shard<T> = HashTable<Entry<T>>;

#[derive(Debug)]
struct Entry<T> {
    fingerprint: u64,
    state: T,
}

impl<T, C: Clock> Memory<T, C> {
    pub(crate) fn new(clock: C) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (threads * 8).next_power_of_two();
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
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
        let now = self.clock.now();
        if let Some(entry) = shard.find_mut(fingerprint, |e| e.fingerprint == fingerprint) {
            return operation.apply(algorithm, &mut entry.state, now);
        }
        let mut state = algorithm.fresh();
        let decision = operation.apply(algorithm, &mut state, now);
        if algorithm.fresh_after(&state, now) > 0 {
            if shard.len() == shard.capacity() {
                drop_fresh(&mut shard, algorithm, now);
            }
            shard.insert_unique(fingerprint, Entry { fingerprint, state }, |e| e.fingerprint);
        }
        decision
    }

    /// The table inside uses a fingerprint's lowest and highest bits, so the shard is chosen by
    /// bits from its middle.
    fn shard(&self, fingerprint: u64) -> &Mutex<Shard<T>> {
        let middle = usize::try_from((fingerprint >> 32) & 0xffff).unwrap_or_default();
        &self.shards[middle & (self.shards.len() - 1)]
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub(crate) fn shrink_to_fit<A: Algorithm<State = T>>(&self, algorithm: &A) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            drop_fresh(&mut shard, algorithm, self.clock.now());
            shard.shrink_to_fit(|entry| entry.fingerprint);
        }
    }
}

fn drop_fresh<A: Algorithm>(shard: &mut Shard<A::State>, algorithm: &A, now: Tick) {
    shard.retain(|entry| algorithm.fresh_after(&entry.state, now) > 0);
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
