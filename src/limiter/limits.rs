//! Which limits hold: the same for all keys, others for each, or such as are replaced.

use crate::algorithm::{Algorithm, Description};
use std::ops::Deref;

/// Where a [`Limiter`](super::Limiter) has its limits from: an algorithm, which is the same for all
/// keys and for ever, [`Live`](super::Live), which can be replaced, or
/// [`PerKey`](super::PerKey), which is asked for each key.
pub trait Source: Send + Sync {
    /// What the limits are.
    type Algorithm: Algorithm;

    /// The limits, as [`Describe::describe`](super::Describe::describe) tells them; none where they
    /// differ from key to key.
    fn describe(&self) -> Vec<Description>;
}

/// A [`Source`] whose limits are the same for all keys at any one time, so that a
/// [`Memory`](crate::Memory) can hold their states: it drops a key's state by the limits that
/// another key is asked for. A source of your own that implements this promises it.
#[diagnostic::on_unimplemented(
    message = "the limits of `{Self}` may differ from key to key, and a `Memory` would drop states \
               by the limits of other keys",
    label = "these limits need a `TieredMemory`",
    note = "`TieredMemory` takes the place of `Memory`: \
            `Limiter::with_store(limits, TieredMemory::new(clock))`",
    note = "a source of your own with the same limits for all keys says so by \
            `impl tollgate::Uniform for ..`"
)]
pub trait Uniform: Source {}

#[diagnostic::do_not_recommend]
impl<A: Algorithm> Uniform for A {}

/// A store that [`Limiter::with_store`](super::Limiter::with_store) takes for these limits: one that
/// can hold their states (see [`Uniform`]), and holds those of no other limiter unless they are to
/// be shared. A store of your own that keeps a state at least as long as the limits that wrote it need
/// implements it for all.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store for a limiter by `{L}`",
    note = "a limiter on Redis has a name, so that it shares no keys with others: \
            `redis.limiter(\"name\", limits)?`"
)]
pub trait StoreFor<L: Source> {}

/// A [`Source`] for keys of type `K`.
pub trait Limits<K: ?Sized>: Source {
    /// Does something by the limits that hold for `key`. They are not replaced until it is done.
    fn with<R>(&self, key: &K, decide: impl FnOnce(&Self::Algorithm) -> R) -> R;

    /// The limits that hold for `key` now, for a decision that must wait for its store.
    fn get(&self, key: &K) -> impl Deref<Target = Self::Algorithm> + Send;

    /// What [`RateLimiter::describe_for`](super::RateLimiter::describe_for) tells.
    fn describe_for(&self, key: &K) -> Option<Vec<Description>>;
}

impl<A: Algorithm> Source for A {
    type Algorithm = A;

    fn describe(&self) -> Vec<Description> {
        Algorithm::describe(self)
    }
}

impl<A: Algorithm, K: ?Sized> Limits<K> for A {
    #[inline]
    fn with<R>(&self, _key: &K, decide: impl FnOnce(&A) -> R) -> R {
        decide(self)
    }

    #[inline]
    fn get(&self, _key: &K) -> impl Deref<Target = A> + Send {
        self
    }

    fn describe_for(&self, _key: &K) -> Option<Vec<Description>> {
        None
    }
}
