use super::key_hasher::KeyHasher;
#[cfg(feature = "tokio")]
use super::queue::{self, Queued, Queues};
use super::read_mostly::{ReadGuard, ReadMostly};
#[cfg(feature = "serde")]
use super::shard::are_spread;
use super::shard::{KEYS_PER_TABLE, Shard};
#[cfg(feature = "serde")]
use super::snapshot::{Snapshot, refuse};
use super::sync::pause;
use super::table::Found;
use super::{InProcess, States, Store};
use crate::algorithm::Algorithm;
use crate::clock::{Clock, MonotonicClock, Tick};
use crate::decision::{Decision, Outcome};
#[cfg(feature = "serde")]
use crate::error::Error;
use crate::limiter::{Limits, StoreFor, Uniform};
use crate::operation::{Operation, peek};
use std::convert::Infallible;
use std::future::{Future, ready};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{fmt, mem};
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
/// that are in use. With a bucket or a fixed window, a key takes 31 bytes.
pub struct Memory<T, C = MonotonicClock> {
    /// A power of two of them.
    shards: Box<[ReadMostly<Shard<T>>]>,
    shard_mask: usize,
    hasher: KeyHasher,
    clock: C,
    cap: Option<Cap<T>>,
    #[cfg(feature = "tokio")]
    queues: Queues<T>,
}

/// What becomes of keys beyond a number of them.
struct Cap<T> {
    max_keys: usize,
    keys: AtomicUsize,
    /// The budget of all keys that there is no room for. When it is spent, it is only looked at.
    shared: ReadMostly<Shared<T>>,
}

#[derive(Default)]
struct Shared<T> {
    state: T,
    /// Whether anything may have been taken from it.
    is_used: bool,
    /// When a state was dropped that had expired: time has come that far.
    dropped_at: Tick,
}

/// New keys keep others from being decided on within a shard only.
const MIN_SHARDS: usize = 16;
const MAX_SHARDS: usize = 64;

/// Bits of a fingerprint below those that choose the shard.
const SHARD_SHIFT: u32 = 16;

fn most_shards() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    (threads * 8).next_power_of_two().clamp(MIN_SHARDS, MAX_SHARDS)
}

fn empty_shards<T: Default>(count: usize, dropped_at: Tick) -> Box<[ReadMostly<Shard<T>>]> {
    (0..count).map(|_| ReadMostly::new(Shard::new(dropped_at))).collect()
}

impl<T, C> Memory<T, C> {
    fn len_now(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}

/// How many keys it has, and not how they are hashed, nor what they have used.
impl<T, C> fmt::Debug for Memory<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.len_now()).finish_non_exhaustive()
    }
}

impl<T: Default, C: Clock> Memory<T, C> {
    /// A store without any state, that takes its time from `clock`.
    #[must_use]
    pub fn new(clock: C) -> Self {
        let shards = empty_shards(most_shards(), Tick::default());
        Self {
            shard_mask: shards.len() - 1,
            shards,
            hasher: KeyHasher::random(),
            clock,
            cap: None,
            #[cfg(feature = "tokio")]
            queues: Queues::new(),
        }
    }

    /// Bits from the middle of a fingerprint choose the shard; the lowest ones the table there, the
    /// highest ones the place in the table.
    #[inline]
    fn shard(&self, fingerprint: u64) -> &ReadMostly<Shard<T>> {
        &self.shards[(fingerprint >> SHARD_SHIFT) as usize & self.shard_mask]
    }

    /// Puts in the state of a key that has none; returns whether it had none.
    #[must_use]
    fn put(&self, fingerprint: u64, state: T) -> bool {
        self.shard(fingerprint).write(|shard| {
            let is_new = matches!(shard.lock_soon(fingerprint), Found::Nothing);
            if is_new {
                shard.insert(fingerprint, state, Tick::default(), |_| true);
            }
            is_new
        })
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
        let shared = self.cap.map(|cap| cap.shared);
        let shared = shared.unwrap_or_else(|| ReadMostly::new(Shared::default()));
        let cap = Cap { max_keys: keys, keys: len, shared };
        // Room is looked for in two tables: where there are few keys, that should be most of them.
        let shards = (keys / KEYS_PER_TABLE).next_power_of_two().min(most_shards());
        let dropped_at = self.shards.iter().map(|shard| shard.read().dropped_at).max();
        let shards = empty_shards(shards, dropped_at.unwrap_or_default());
        let store = Self {
            shard_mask: shards.len() - 1,
            shards,
            cap: Some(cap),
            hasher: self.hasher,
            clock: self.clock,
            #[cfg(feature = "tokio")]
            queues: self.queues,
        };
        for shard in &self.shards {
            let shard = shard.write(|shard| mem::replace(shard, Shard::new(Tick::default())));
            for (fingerprint, state) in shard.into_states() {
                assert!(store.put(fingerprint, state), "a key has one state");
            }
        }
        store
    }

    #[inline]
    pub(super) fn fingerprint<K: Hash + ?Sized>(&self, key: &K) -> u64 {
        self.hasher.hash(key).min(Shard::<T>::MAX_FINGERPRINT)
    }

    #[cfg(feature = "tokio")]
    pub(super) fn now(&self) -> Tick {
        self.clock.now()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn state(&self, fingerprint: u64) -> T {
        loop {
            let shard = self.shard(fingerprint).read();
            match (shard.lock_soon(fingerprint), &self.cap) {
                (Found::State(state), _) => return state.clone(),
                (Found::Nothing, Some(cap)) => return cap.shared.read().state.clone(),
                (Found::Nothing, None) => return T::default(),
                (Found::Busy, _) => {}
            }
            drop(shard);
            pause();
        }
    }

    #[inline(always)]
    pub(super) fn apply_at<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: impl FnOnce() -> Tick,
    ) -> Decision {
        if let Operation::Settle(_, receipt) = operation
            && receipt.is_of_shared()
            && receipt.units() > 0
            && let Some(cap) = &self.cap
        {
            return cap.apply(algorithm, operation, now()).apart();
        }
        let shard = self.shard(fingerprint).read();
        let place = shard.find(fingerprint);
        // The clock is read while the state is fetched.
        let now = now();
        if let Some(mut state) = place.try_lock() {
            return operation.apply(algorithm, &mut state, now);
        }
        let decision = match operation {
            Operation::Check(n) => self.check_slowly(algorithm, fingerprint, n, now, shard),
            _ => self.apply_slowly(algorithm, fingerprint, operation, now, shard),
        };
        decision.apart()
    }

    /// [`apply_slowly`](Self::apply_slowly), for a check: what it is called with fits into registers, so
    /// that no check need write it to memory.
    #[inline(never)]
    fn check_slowly<'s, A: Algorithm<State = T>>(
        &'s self,
        algorithm: &A,
        fingerprint: u64,
        n: u64,
        now: Tick,
        shard: ReadGuard<'s, Shard<T>>,
    ) -> Decision {
        self.apply_slowly(algorithm, fingerprint, Operation::Check(n), now, shard)
    }

    /// For a key whose state is not found at once, as it has none, or as somebody else has it.
    #[inline(never)]
    fn apply_slowly<'s, A: Algorithm<State = T>>(
        &'s self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: Tick,
        mut shard: ReadGuard<'s, Shard<T>>,
    ) -> Decision {
        let insertions = loop {
            match shard.lock_soon(fingerprint) {
                Found::State(mut state) => {
                    return operation.apply_out_of_line(algorithm, &mut state, now);
                }
                Found::Nothing => {
                    if let Some(told) = self.apply_to_none(algorithm, operation, now, &shard) {
                        return told;
                    }
                    break shard.insertions();
                }
                Found::Busy => {}
            }
            drop(shard);
            pause();
            shard = self.shard(fingerprint).read();
        };
        drop(shard);
        self.shard(fingerprint).write(|shard| {
            // Somebody else may have put it in meanwhile.
            if shard.insertions() != insertions
                && let Found::State(mut state) = shard.lock_soon(fingerprint)
            {
                return operation.apply_out_of_line(algorithm, &mut state, now);
            }
            self.insert(algorithm, fingerprint, operation, now, shard)
        })
    }

    /// For a key that has no state and gets none, as nothing would be kept, or as there is no place for
    /// it: nobody gives it one while the shard is looked at. `None` for other keys.
    fn apply_to_none<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        operation: Operation<'_>,
        now: Tick,
        shard: &Shard<T>,
    ) -> Option<Decision> {
        let is_full = self.cap.as_ref().is_some_and(Cap::is_full);
        let operation = match operation {
            // A reset of one key must not be one of all.
            Operation::Reset => Operation::Refund(0),
            // What was taken from a state that has expired is given back to nobody.
            Operation::Settle(cost, receipt) if cost <= receipt.units() => {
                receipt.set_settled();
                Operation::Refund(0)
            }
            Operation::Refund(_) => operation,
            // A peek says what a check would, which may find a place.
            Operation::Peek(_) if self.cap.is_none() => operation,
            _ if is_full && shard.has_been_searched(now) => operation,
            _ => return None,
        };
        let at = now.max(shard.dropped_at);
        let decision = match &self.cap {
            Some(cap) => cap.apply(algorithm, operation, at),
            None => operation.apply_out_of_line(algorithm, &mut T::default(), at),
        };
        Some(decision.seen_from(now))
    }

    /// For a key that has no state, if something is asked of it that may take units.
    fn insert<A: Algorithm<State = T>>(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: Tick,
        shard: &mut Shard<T>,
    ) -> Decision {
        let at = now.max(shard.dropped_at);
        let keep = |state: &T| algorithm.fresh_after(state, at) > 0;
        let (mut state, at, place) = match &self.cap {
            None => (T::default(), at, None),
            Some(cap) => match cap.reserve(shard, |shard| shard.make_room(fingerprint, at, keep)) {
                Some(place) => {
                    let (state, at) = cap.first_state(algorithm, at);
                    (state, at, Some(place))
                }
                None => return cap.apply(algorithm, operation, at).seen_from(now),
            },
        };
        let decision = operation.apply_out_of_line(algorithm, &mut state, at);
        let before = shard.len();
        // What is refused keeps nothing, unless the shared state is the reason: then the key
        // regains units of its own from here on.
        let denied = matches!(decision.outcome, Outcome::Denied(_));
        if decision.granted > 0 || denied && !matches!(operation, Operation::Peek(_)) {
            shard.insert(fingerprint, state, at, keep);
            if let Some(place) = place {
                place.keep(before + 1 - shard.len());
            }
        }
        decision.seen_from(now)
    }

    /// The present instant, as far as time has come for keys without a state.
    fn now_in(&self, shard: &Shard<T>) -> Tick {
        self.clock.now().max(shard.dropped_at)
    }

    pub(crate) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Drops the states of a shard that are not to `keep`, and gives the memory back.
    pub(crate) fn shrink(&self, shard: usize, keep: impl Fn(&T, Tick) -> bool) {
        self.shards[shard].write(|shard| {
            let now = self.now_in(shard);
            let before = shard.len();
            shard.shrink(now, |state| keep(state, now));
            if let Some(cap) = &self.cap {
                cap.give_up(before - shard.len());
            }
        });
    }

    /// Forgets all that keys without a place have taken, if there is a bound on the keys.
    pub(crate) fn reset_shared(&self) {
        if let Some(cap) = &self.cap {
            cap.shared.write(|shared| shared.state = T::default());
        }
    }

    /// Gives back the memory of queues that have gone.
    #[cfg(feature = "tokio")]
    pub(crate) fn shrink_queues(&self) {
        self.queues.shrink_to_fit(self.clock.now());
    }

    /// Drops the state that keys without a place share, if it is not to `keep`.
    pub(crate) fn shrink_shared(&self, keep: impl Fn(&T, Tick) -> bool) {
        let now = self.clock.now();
        if let Some(cap) = &self.cap {
            cap.shared.write(|shared| shared.expire(now, |state, now| !keep(state, now)));
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
            shard.write(|shard| {
                let now = self.now_in(shard);
                let kept_before = states.len();
                for (fingerprint, state) in shard.iter_mut() {
                    if keep(state, now) {
                        states.push((fingerprint, state.clone()));
                    }
                }
                let drops_any = states.len() - kept_before < shard.len();
                dropped_at = dropped_at.max(if drops_any { now } else { shard.dropped_at });
            });
        }
        // After the states: what a key has taken here, before it got a place, is here or there.
        let shared = self.cap.as_ref().and_then(|cap| {
            let shared = cap.shared.read();
            dropped_at = dropped_at.max(shared.dropped_at);
            let now = self.clock.now().max(shared.dropped_at);
            let is_kept = keep(&shared.state, now);
            if shared.is_used && !is_kept {
                dropped_at = dropped_at.max(now);
            }
            is_kept.then(|| shared.state.clone())
        });
        Snapshot::new(&self.hasher, dropped_at, shared, states)
    }

    /// A store of these states. Where the old one had a cap, keys without a state start with the
    /// shared state, as if this one had the highest.
    pub(crate) fn restore(clock: C, snapshot: Snapshot<T>) -> Result<Self, Error> {
        let hasher = snapshot.hasher()?;
        snapshot.check_dropped_at(clock.now())?;
        let Snapshot { dropped_at, shared, states, .. } = snapshot;
        let keys = AtomicUsize::new(states.len());
        let with_cap = |state| {
            let shared = Shared { state, is_used: true, dropped_at: Tick::default() };
            Cap { max_keys: usize::MAX, keys, shared: ReadMostly::new(shared) }
        };
        let store = Self { hasher, cap: shared.map(with_cap), ..Self::new(clock) };
        for shard in &store.shards {
            shard.write(|shard| shard.dropped_at = dropped_at);
        }
        let fingerprints = states.iter().map(|(fingerprint, _)| *fingerprint).collect();
        if !are_spread(fingerprints, SHARD_SHIFT..SHARD_SHIFT + store.shards.len().ilog2()) {
            return refuse("more of its fingerprints are alike than those of keys can be");
        }
        for (fingerprint, state) in states {
            if fingerprint > Shard::<T>::MAX_FINGERPRINT || !store.put(fingerprint, state) {
                return refuse("its fingerprints are not those of a store");
            }
        }
        Ok(store)
    }
}

impl<T: Clone + Default + Send + Sync, C: Clock> InProcess for Memory<T, C> {
    type State = T;

    #[inline(always)]
    fn apply<L, K>(&self, limits: &L, key: &K, operation: Operation<'_>) -> Decision
    where
        L: Limits<K>,
        L::Algorithm: Algorithm<State = T>,
        K: Hash + ?Sized,
    {
        let fingerprint = self.fingerprint(key);
        #[cfg(feature = "tokio")]
        return queue::apply(self, limits, key, fingerprint, operation);
        #[cfg(not(feature = "tokio"))]
        limits.with(key, |algorithm| {
            self.apply_at(algorithm, fingerprint, operation, || self.clock.now())
        })
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

    fn fingerprint<K: Hash + ?Sized>(&self, key: &K) -> u64 {
        self.fingerprint(key)
    }

    fn state(&self, fingerprint: u64) -> A::State {
        self.state(fingerprint)
    }

    fn apply_at(
        &self,
        algorithm: &A,
        fingerprint: u64,
        operation: Operation<'_>,
        now: impl FnOnce() -> Tick,
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
            shard.write(|shard| {
                let now = self.now_in(shard);
                shard.iter_mut().for_each(|(_, state)| change(state, now));
            });
        }
        if let Some(cap) = &self.cap {
            cap.shared.write(|shared| change(&mut shared.state, self.clock.now()));
        }
    }
}

impl<T: Clone + Default> Cap<T> {
    /// A place for one key more, if there is one; otherwise it is looked for once more when the
    /// shard has been asked to `make_room`.
    fn reserve(
        &self,
        shard: &mut Shard<T>,
        make_room: impl FnOnce(&mut Shard<T>),
    ) -> Option<Reserved<'_>> {
        let take = |keys: usize| (keys < self.max_keys).then_some(keys + 1);
        let taken = || {
            let taken = self.keys.fetch_update(Relaxed, Relaxed, take);
            taken.is_ok().then(|| Reserved(&self.keys))
        };
        taken().or_else(|| {
            let before = shard.len();
            make_room(shard);
            self.give_up(before - shard.len());
            taken()
        })
    }

    fn is_full(&self) -> bool {
        self.keys.load(Relaxed) >= self.max_keys
    }

    /// For a key that there is no place for.
    fn apply<A>(&self, algorithm: &A, operation: Operation<'_>, now: Tick) -> Decision
    where
        A: Algorithm<State = T>,
    {
        if let Operation::Check(n) | Operation::Peek(n) = operation {
            let shared = self.shared.read();
            let told = peek(algorithm, &shared.state, n, now.max(shared.dropped_at));
            if matches!(operation, Operation::Peek(_)) || !told.is_allowed() {
                return told.seen_from(now);
            }
        }
        if let Operation::Reserve(_, receipt) = operation {
            receipt.set_of_shared();
        }
        self.shared.write(|shared| {
            shared.expire(now, |state, now| algorithm.fresh_after(state, now) == 0);
            let at = now.max(shared.dropped_at);
            shared.is_used |= !matches!(operation, Operation::Refund(_));
            operation.apply_out_of_line(algorithm, &mut shared.state, at).seen_from(now)
        })
    }

    /// What a key begins with that gets a place: no more than the shared budget has left, and no
    /// debt, which others have made.
    fn first_state<A>(&self, algorithm: &A, now: Tick) -> (T, Tick)
    where
        A: Algorithm<State = T>,
    {
        let shared = self.shared.read();
        let now = now.max(shared.dropped_at);
        if algorithm.fresh_after(&shared.state, now) == 0 {
            return (T::default(), now);
        }
        let mut state = shared.state.clone();
        algorithm.forgive(&mut state, now);
        (state, now)
    }

    fn give_up(&self, places: usize) {
        if places > 0 {
            self.keys.fetch_sub(places, Relaxed);
        }
    }
}

impl<T: Default> Shared<T> {
    fn expire(&mut self, now: Tick, has_expired: impl FnOnce(&T, Tick) -> bool) {
        let now = now.max(self.dropped_at);
        if self.is_used && has_expired(&self.state, now) {
            *self = Self { state: T::default(), is_used: false, dropped_at: now };
        }
    }
}

/// A place under a cap, given up when this is dropped: no key has it yet.
struct Reserved<'a>(&'a AtomicUsize);

impl Reserved<'_> {
    /// A key has it, in place of so many others.
    fn keep(self, dropped: usize) {
        let Self(keys) = self;
        if dropped > 0 {
            keys.fetch_sub(dropped, Relaxed);
        }
        mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl<L, C> StoreFor<L> for Memory<<L::Algorithm as Algorithm>::State, C> where L: Uniform {}

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

    fn decide_now<L>(
        &self,
        limits: &L,
        key: &K,
        operation: Operation<'_>,
    ) -> Option<Result<Decision, Infallible>>
    where
        L: Limits<K, Algorithm = A>,
    {
        Some(Ok(self.apply(limits, key, operation)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::TokenBucket;
    use crate::clock::ManualClock;
    use crate::quota::Quota;
    use std::thread;

    fn memory<T: Default>() -> Memory<T, ManualClock> {
        Memory::new(ManualClock::new(Tick::from_micros(1_800_000_000_000_000)))
    }

    #[test]
    fn two_stores_do_not_share_their_seed() {
        let [first, second] = [(); 2].map(|()| memory::<()>());
        assert_eq!(first.fingerprint("a"), first.fingerprint("a"));
        assert_ne!(first.fingerprint("a"), second.fingerprint("a"));
    }

    #[test]
    fn of_two_caps_the_last_one_holds() {
        let shards = |caps: &[usize]| {
            let store = caps.iter().fold(memory::<()>(), |store, cap| store.max_keys(*cap));
            store.shard_count()
        };
        assert_eq!(shards(&[10]), 1);
        assert_eq!(shards(&[10, 1_000_000]), shards(&[]));
        assert_eq!(shards(&[1_000_000, 10]), 1);
    }

    /// Small enough for Miri, and with all that is done without a lock of its own: keys are looked up
    /// while tables are split, built anew, swept and counted.
    #[test]
    fn threads_meet_in_the_midst_of_changes() {
        const KEYS: u64 = if cfg!(miri) { 600 } else { 60_000 };
        let store = memory();
        let bucket = TokenBucket::new(Quota::per_hour(2));
        let check = |key| store.apply(&bucket, &key, Operation::Check(1)).granted;
        let granted: u64 = thread::scope(|scope| {
            let ask = || (0..KEYS).flat_map(|key| [key, key / 2]).map(check).sum::<u64>();
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
            for shard in 0..store.shard_count() {
                store.shrink(shard, |state, now| bucket.fresh_after(state, now) > 0);
            }
            store.change_each(|_, _| ());
            assert!(store.len_now() <= usize::try_from(KEYS).unwrap());
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
        });
        assert_eq!(granted, 2 * KEYS);
    }
}
