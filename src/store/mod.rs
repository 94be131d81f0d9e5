//! Where the states of keys live.

#[cfg(feature = "memory")]
mod backoff;
#[cfg(feature = "memory")]
mod bit;
#[cfg(feature = "memory")]
mod direct;
#[cfg(feature = "memory")]
mod key_hasher;
#[cfg(feature = "memory")]
mod lock;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "memory")]
mod prefetch;
#[cfg(all(feature = "memory", feature = "tokio"))]
mod queue;
#[cfg(feature = "memory")]
mod read_mostly;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "memory")]
mod shard;
#[cfg(feature = "memory")]
mod slot;
#[cfg(all(feature = "memory", feature = "serde"))]
mod snapshot;
#[cfg(feature = "memory")]
mod sync;
#[cfg(feature = "memory")]
mod table;
#[cfg(feature = "memory")]
mod thread_number;
#[cfg(feature = "memory")]
mod tiered;

#[cfg(feature = "memory")]
pub use direct::Direct;
#[cfg(feature = "memory")]
pub use memory::Memory;
#[cfg(all(feature = "memory", feature = "tokio"))]
pub(crate) use queue::Queued;
#[cfg(feature = "redis")]
pub use redis::{Redis, RedisKey};
#[cfg(all(feature = "memory", feature = "serde"))]
pub use snapshot::Snapshot;
#[cfg(feature = "memory")]
pub use tiered::{Dated, TieredMemory};

use crate::algorithm::Algorithm;
#[cfg(feature = "memory")]
use crate::clock::Tick;
use crate::decision::Decision;
use crate::limiter::Limits;
use crate::operation::Operation;
use std::future::Future;
#[cfg(feature = "memory")]
use std::hash::Hash;
#[cfg(feature = "tokio")]
use std::time::Duration;
#[cfg(feature = "tokio")]
use tokio::time::Instant;

/// Keeps a state for each key of type `K`, and lets an algorithm decide on it, one call at a
/// time for each key.
///
/// A store knows no algorithm and an algorithm knows no store: this one function is all that
/// stands between them.
pub trait Store<A: Algorithm, K: ?Sized>: Send + Sync {
    /// Why a decision could not be made. A refusal is not an error.
    type Error;

    /// Does `operation` for `key`.
    ///
    /// # Errors
    ///
    /// Where the store cannot be asked, or does not answer.
    fn decide(
        &self,
        algorithm: &A,
        key: &K,
        operation: Operation<'_>,
    ) -> impl Future<Output = Result<Decision, Self::Error>> + Send;

    /// Does `operation` for `key` by the limits that hold for it, if that needs no waiting, as in a
    /// store in memory; `None` if nothing was done and [`decide`](Self::decide) must be awaited.
    fn decide_now<L>(
        &self,
        _limits: &L,
        _key: &K,
        _operation: Operation<'_>,
    ) -> Option<Result<Decision, Self::Error>>
    where
        L: Limits<K, Algorithm = A>,
    {
        None
    }

    /// Does `operation` for `key` in the background: called from `Drop`.
    fn decide_later<L>(&self, limits: &L, key: &K, operation: Operation<'_>)
    where
        L: Limits<K, Algorithm = A>,
    {
        let _ = self.decide_now(limits, key, operation);
    }

    /// Waits for `n` units behind all who came before; `None` where the store keeps no queues, and
    /// must be asked again and again.
    #[cfg(feature = "tokio")]
    fn acquire_in_turn<L>(
        &self,
        _limits: &L,
        _key: &K,
        _n: u64,
        _deadline: Option<Instant>,
    ) -> Option<impl Future<Output = Decision> + Send>
    where
        L: Limits<K, Algorithm = A>,
        K: Sync,
    {
        None::<std::future::Pending<Decision>>
    }

    /// For how long from now on `key` is paused, in a store that keeps no queues but has pauses;
    /// otherwise zero.
    #[cfg(feature = "tokio")]
    fn paused_for(&self, _key: &K) -> Duration {
        Duration::ZERO
    }
}

/// A store in process of the states of one limit: [`Memory`] and [`Direct`].
#[cfg(feature = "memory")]
pub trait States: Send + Sync {
    /// What is kept for a key.
    type State;

    /// Changes each state, one after the other.
    fn change_each(&self, change: impl FnMut(&mut Self::State, Tick));
}

/// A store of states by key that decides at once: [`Memory`] and [`TieredMemory`].
#[cfg(feature = "memory")]
#[allow(clippy::len_without_is_empty, reason = "a limiter asks for the length alone")]
pub trait InProcess: Send + Sync {
    /// What is kept for a key.
    type State;

    /// Does `operation` for `key` by the limits that hold for it.
    fn apply<L, K>(&self, limits: &L, key: &K, operation: Operation<'_>) -> Decision
    where
        L: Limits<K>,
        L::Algorithm: Algorithm<State = Self::State>,
        K: Hash + ?Sized;

    /// How many keys' states are in memory, those included that say nothing any more and have not
    /// been dropped yet.
    fn len(&self) -> usize;
}
