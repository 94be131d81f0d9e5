use super::{Limiter, Source};
use crate::algorithm::Scripted;
use crate::decision::Decision;
use crate::error::Error;
use crate::operation::Operation;
use crate::store::{Redis, RedisKey, Store};

/// Limits that are told with the call, in the place of the limiter's own.
impl<L: Source<Algorithm: Scripted>> Limiter<L, Redis> {
    /// Takes one unit for `key`, if there is one, by other limits than this limiter's. What the key
    /// has used by limits of the same algorithms stays used; others have states of their own.
    ///
    /// ```no_run
    /// use tollgate::{Limiter, Policy, Redis};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tollgate::Error> {
    /// let [free, pro]: [Policy; 2] = ["10/hour".parse()?, "1000/hour".parse()?];
    /// let limiter = Limiter::with_store(free, Redis::connect("redis://127.0.0.1/").await?);
    /// let decision = limiter.check_with(&pro, "alice").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Where Redis could not be asked, or did not answer.
    pub async fn check_with<K: RedisKey + Sync + ?Sized>(
        &self,
        limits: &L::Algorithm,
        key: &K,
    ) -> Result<Decision, Error> {
        self.decide_with(limits, key, Operation::Check(1)).await
    }

    /// Does `operation` for `key`, by other limits than this limiter's.
    ///
    /// # Errors
    ///
    /// Where Redis could not be asked, or did not answer.
    pub async fn decide_with<K: RedisKey + Sync + ?Sized>(
        &self,
        limits: &L::Algorithm,
        key: &K,
        operation: Operation<'_>,
    ) -> Result<Decision, Error> {
        self.store.decide(limits, key, operation).await
    }
}
