use super::limits::{Limits, Source};
use crate::algorithm::{Algorithm, Description};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

/// Limits that a closure tells for each key: see [`Limiter::per_key`](super::Limiter::per_key).
pub struct PerKey<A, F> {
    limits_of: F,
    algorithm: PhantomData<fn() -> A>,
}

impl<A, F> PerKey<A, F> {
    /// Limits that `limits_of` tells: a closure from `&K`, any type of keys, to a pointer to an
    /// algorithm, such as an `Arc<Policy>` or a `&'static TokenBucket`.
    pub const fn new(limits_of: F) -> Self {
        Self { limits_of, algorithm: PhantomData }
    }
}

impl<A: Algorithm, F: Send + Sync> Source for PerKey<A, F> {
    type Algorithm = A;

    fn describe(&self) -> Vec<Description> {
        Vec::new()
    }
}

impl<A, F, K, P> Limits<K> for PerKey<A, F>
where
    A: Algorithm,
    F: Fn(&K) -> P + Send + Sync,
    K: ?Sized,
    P: Deref<Target = A> + Send,
{
    fn with<R>(&self, key: &K, decide: impl FnOnce(&A) -> R) -> R {
        decide(&(self.limits_of)(key))
    }

    fn get(&self, key: &K) -> impl Deref<Target = A> + Send {
        (self.limits_of)(key)
    }

    fn describe_for(&self, key: &K) -> Option<Vec<Description>> {
        Some((self.limits_of)(key).describe())
    }
}

impl<A, F> fmt::Debug for PerKey<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerKey").finish_non_exhaustive()
    }
}
