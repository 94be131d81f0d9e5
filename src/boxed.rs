//! A limiter whose type is erased.

use crate::algorithm::Description;
use crate::decision::Decision;
use crate::limiter::{Describe, RateLimiter};
use crate::operation::Operation;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "tokio")]
use std::time::Duration;

/// Any [`RateLimiter`] for keys of type `K`, its own type forgotten: for a field or a function
/// that takes limiters of several kinds. Its clones are one limiter.
///
/// A key type with a lifetime in it is one that all keys must have: for borrowed parts, take a
/// `BoxRateLimiter<(String, u64)>`, or `for<'a> RateLimiter<(&'a str, u64)>` without a box.
///
/// In the `tower` layer it always needs a choice for when the store fails (`on_store_error`), as
/// its type does not tell that a limiter in process cannot.
///
/// To choose an *algorithm* at run time there is no need for it: a
/// [`Policy`](crate::Policy) does that.
///
/// ```
/// use tollgate::{BoxRateLimiter, FixedWindow, Limiter, Quota, RateLimiter, SlidingLog};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let limiters: [BoxRateLimiter<str>; 2] = [
///     BoxRateLimiter::new(Limiter::new(SlidingLog::new(Quota::per_minute(10)))),
///     BoxRateLimiter::new(Limiter::new(FixedWindow::new(Quota::per_day(5000)))),
/// ];
/// for limiter in &limiters {
///     assert!(limiter.check("alice").await?.is_allowed());
/// }
/// # Ok(())
/// # }
/// ```
pub struct BoxRateLimiter<K: ?Sized>(Arc<dyn ErasedRateLimiter<K>>);

type BoxError = Box<dyn Error + Send + Sync>;
type BoxFuture<'a> = Pin<Box<dyn Future<Output = Result<Decision, BoxError>> + Send + 'a>>;

trait ErasedRateLimiter<K: ?Sized>: Describe {
    fn decide<'a>(&'a self, key: &'a K, operation: Operation<'a>) -> BoxFuture<'a>;
    fn decide_now(&self, key: &K, operation: Operation<'_>) -> Option<Result<Decision, BoxError>>;
    fn decide_later(&self, key: &K, operation: Operation<'_>);
    #[cfg(feature = "tokio")]
    fn acquire<'a>(&'a self, key: &'a K, n: u64, longest: Option<Duration>) -> BoxFuture<'a>;
    fn describe_for(&self, key: &K) -> Option<Vec<Description>>;
}

impl<K, L> ErasedRateLimiter<K> for L
where
    K: Sync + ?Sized,
    L: RateLimiter<K>,
    L::Error: Into<BoxError>,
{
    fn decide<'a>(&'a self, key: &'a K, operation: Operation<'a>) -> BoxFuture<'a> {
        Box::pin(async move { self.decide(key, operation).await.map_err(Into::into) })
    }

    fn decide_now(&self, key: &K, operation: Operation<'_>) -> Option<Result<Decision, BoxError>> {
        Some(self.decide_now(key, operation)?.map_err(Into::into))
    }

    fn decide_later(&self, key: &K, operation: Operation<'_>) {
        self.decide_later(key, operation);
    }

    #[cfg(feature = "tokio")]
    fn acquire<'a>(&'a self, key: &'a K, n: u64, longest: Option<Duration>) -> BoxFuture<'a> {
        Box::pin(async move { self.acquire_within(key, n, longest).await.map_err(Into::into) })
    }

    fn describe_for(&self, key: &K) -> Option<Vec<Description>> {
        self.describe_for(key)
    }
}

impl<K: Sync + ?Sized> BoxRateLimiter<K> {
    /// Forgets the type of `limiter`.
    pub fn new<L>(limiter: L) -> Self
    where
        L: RateLimiter<K> + 'static,
        L::Error: Into<BoxError>,
    {
        Self(Arc::new(limiter))
    }
}

impl<K: ?Sized> Describe for BoxRateLimiter<K> {
    fn describe(&self) -> Vec<Description> {
        self.0.describe()
    }
}

impl<K: Sync + ?Sized> RateLimiter<K> for BoxRateLimiter<K> {
    type Error = BoxError;

    async fn decide(&self, key: &K, operation: Operation<'_>) -> Result<Decision, BoxError> {
        self.0.decide(key, operation).await
    }

    fn decide_now(&self, key: &K, operation: Operation<'_>) -> Option<Result<Decision, BoxError>> {
        self.0.decide_now(key, operation)
    }

    fn decide_later(&self, key: &K, operation: Operation<'_>) {
        self.0.decide_later(key, operation);
    }

    #[cfg(feature = "tokio")]
    async fn acquire_within(
        &self,
        key: &K,
        n: u64,
        longest: Option<Duration>,
    ) -> Result<Decision, BoxError> {
        self.0.acquire(key, n, longest).await
    }

    fn describe_for(&self, key: &K) -> Option<Vec<Description>> {
        self.0.describe_for(key)
    }
}

impl<K: ?Sized> Clone for BoxRateLimiter<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: ?Sized> fmt::Debug for BoxRateLimiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxRateLimiter").finish_non_exhaustive()
    }
}
