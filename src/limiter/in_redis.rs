use super::{Limiter, Source};
use crate::algorithm::Scripted;
use crate::decision::Decision;
use crate::error::Error;
use crate::operation::Operation;
use crate::store::{Redis, RedisKey, Store};
use std::time::Duration;

impl Redis {
    /// Makes a limiter of this name. Limiters of one name and the same algorithms share what their
    /// keys have used, as the tiers of one limit do; limiters of different names never do.
    ///
    /// The name is 1 to 128 printable ASCII characters, as a [`Name`](crate::Name) is. It is in keys
    /// and errors. Answers and events of the layer have the names of the limits, as `"login: 5/hour"`
    /// sets them.
    ///
    /// ```no_run
    /// use tollgate::{Policy, RateLimiter, Redis};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tollgate::Error> {
    /// let redis = Redis::connect("redis://127.0.0.1/").await?;
    /// let api = redis.limiter("api", "api: 100/hour".parse::<Policy>()?)?;
    /// let login = redis.limiter("login", "login: 5/hour".parse::<Policy>()?)?;
    /// if login.check("alice").await?.is_allowed() {
    ///     // Alice has used 1 of her 5 logins, and has all 100 calls of the API.
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A limiter without a name does not compile:
    ///
    /// ```compile_fail,E0277
    /// use tollgate::{Limiter, Quota, Redis, TokenBucket};
    ///
    /// let redis = Redis::connect_lazy("redis://127.0.0.1/").unwrap();
    /// let limiter = Limiter::with_store(TokenBucket::new(Quota::per_hour(5)), redis);
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if `name` is empty, too long, or has a character that a name cannot have.
    pub fn limiter<L>(&self, name: &str, limits: L) -> Result<Limiter<L, Self>, Error>
    where
        L: Source<Algorithm: Scripted>,
    {
        Ok(Limiter { limits, store: self.named(name)? })
    }
}

/// Limits that are told with the call, in the place of the limiter's own.
impl<L: Source<Algorithm: Scripted>> Limiter<L, Redis> {
    /// Takes one unit for `key`, if there is one, by other limits than this limiter's. What the key
    /// has used by limits of the same algorithms stays used; others have states of their own.
    ///
    /// ```no_run
    /// use tollgate::{Policy, Redis};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tollgate::Error> {
    /// let [free, pro]: [Policy; 2] = ["10/hour".parse()?, "1000/hour".parse()?];
    /// let limiter = Redis::connect("redis://127.0.0.1/").await?.limiter("api", free)?;
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

/// Pauses, in Redis.
impl<L: Source<Algorithm: Scripted>> Limiter<L, Redis> {
    /// Gives out no units of `key` in this process for this long from now on, rounded up to a
    /// microsecond: one 429 of a server stops all tasks that call it. Other processes that share the
    /// limit do not know of it: each learns from a 429 of its own.
    ///
    /// What takes units is denied for as long as the pause still lasts, and Redis is not asked: such
    /// denials are in no [stream](Redis::publish_refusals). A
    /// caller that [waits](crate::Acquire) asks again when it is over; one that waits for a departure
    /// of a [`LeakyBucket`](crate::LeakyBucket) that falls into it gives up that departure.
    ///
    /// A cost of 0 is allowed, a cost above the limit is [`Never`](crate::Outcome::Never), and
    /// debits, refunds and settlements go on. A reset ends the pause, even if Redis does not answer
    /// it. Of several pauses the latest end
    /// counts, so a shorter one changes nothing; nor does a duration of zero.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tollgate::{Quota, RateLimiter, Redis, TokenBucket};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tollgate::Error> {
    /// let redis = Redis::connect("redis://127.0.0.1/").await?;
    /// let limiter = redis.limiter("outbound", TokenBucket::new(Quota::per_second(10)))?;
    /// limiter.pause("api.example.com", Duration::from_secs(60));
    /// assert!(!limiter.check("api.example.com").await?.is_allowed());
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause<K: RedisKey + ?Sized>(&self, key: &K, duration: Duration) {
        self.store.pause(key, duration);
    }
}
