//! States in Redis, shared by many instances.
//!
//! # What is stored
//!
//! | key | value |
//! |---|---|
//! | `{prefix}:2:{name}:{shape}:{key}` | a state |
//! | `{prefix}:request:{tag}:{id}` | nothing: a request that has been settled (`key::of_request`) |
//! | the name that the caller gives | the stream of refusals |
//!
//! - `2` is [`FORMAT`], the version of all that is stored under the keys that have it.
//! - `name` is the limiter's, and `shape` the algorithms of its limits, in order: `bucket`,
//!   `bucket+sliding_log`, with the limits' names in a set `minute=bucket+day=fixed_window`, and with
//!   the settings of a second limit of one algorithm that has no name `bucket+bucket[5, 60]`. In names,
//!   each of `% : + = [ ] { }` is `%` and two digits, so that behind the prefix a key can be read in
//!   one way only.
//! - `key` is what [`RedisKey`] writes. Above 128 bytes, or if it begins with `%sha256=`, it is
//!   `%sha256=` and its SHA-256. The `id` of a request is bounded in the same way.
//!
//! A state is the states of the limits, one behind the other, as their scripts pack them, and
//! nothing behind those. A log on a key of its own is its entries alone.
//!
//! # What another version stores
//!
//! Versions of the crate with one `FORMAT` share states. They may only add fields behind the limits'
//! states, as a byte that says which fields follow, and then those fields. This version knows none, and
//! fails if it finds any, except that a reset deletes them: it must not decide on a part of what a
//! newer version knows of a key, and never takes a field for a state. A log on a key of its own has no
//! such place, because it is read from its end: to store more with it, give its script another name,
//! which is a part of the key. Any other change of what is stored raises `FORMAT`: the versions before
//! and after it find nothing of each other's, and all budgets begin anew.

#[cfg(feature = "redis-cluster")]
mod cluster;
mod connection;
#[cfg(feature = "redis-cluster")]
mod given_cluster;
mod key;
mod pauses;
mod script;

pub use key::RedisKey;

use super::Store;
use crate::algorithm::{
    MAX_NUMBER, Receipt, ScriptCall, Scripted, StoredState, push_name, push_number,
};
use crate::clock::{Clock, Tick};
use crate::decision::{Decision, Outcome};
use crate::error::{Error, Failure, Kind, StoreFailure};
use crate::limiter::Limits;
use crate::operation::{Operation, peek};
use crate::policy::Name;
use crate::quota::Quota;
#[cfg(feature = "redis-cluster")]
use cluster::Cluster;
use connection::{CONNECTION_TIMEOUT, Connection};
#[cfg(feature = "redis-cluster")]
use given_cluster::GivenCluster;
use pauses::Pauses;
use redis::aio::ConnectionManager;
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use script::{ScriptText, Scripts, Time, Variant};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// States in a Redis server, a Valkey server or a cluster of them: one limit for all the
/// instances that share it.
///
/// A decision is one script call on one key, so it is atomic and takes one round trip. The
/// decisions are those of the memory store, number for number.
///
/// ```no_run
/// use tollgate::{Quota, RateLimiter, Redis, TokenBucket};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), tollgate::Error> {
/// let redis = Redis::connect("redis://127.0.0.1/").await?;
/// let limiter = redis.limiter("api", TokenBucket::new(Quota::per_minute(100)))?;
/// if limiter.check("alice").await?.is_allowed() {
///     // serve her
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Keys
///
/// A state is stored under `{prefix}:2:{name}:{algorithms}:{key}`, such as
/// `tollgate:2:login:bucket:alice`. The name is the [limiter](Self::limiter)'s: limiters of one name
/// share the states of their keys, whatever their quotas, as the tiers of one limit do. Limiters of
/// different names share nothing. Services that share a server have a [`prefix`](Self::prefix)
/// each, or agree on names.
///
/// A limit whose algorithm changes starts anew. In a set, a limit is known by its name, and by its
/// place. Of two limits of one algorithm without names, the second is known by its quota. So name
/// the limits of a set whose quotas may change.
///
/// Each key of a client is an entry in Redis, as long as its limit counts anything. **Put a limit by
/// address in front of keys that nobody has verified**, such as API keys before they are looked up: a
/// client that makes up keys has a budget, and an entry, for each. What a client writes is
/// stored in bounded form: a key of more than 128 bytes is stored by its hash. See [`RedisKey`].
///
/// Every key expires soon after its state has expired under the quota that has written it last. So
/// quotas that share states should have one period, and differ in their counts: a shorter one ends
/// what a longer one would still count. Denials write nothing, unless they are
/// [published](Self::publish_refusals).
///
/// A settlement is remembered under a key such as
/// `tollgate:request:{tollgate:2:login:bucket:alice}:6f1c`, in the slot of the key that it is about. So
/// a user with `~tollgate:*` may touch all keys. A settlement in a [`SlidingLog`](crate::SlidingLog)
/// takes the server longer if the log is long, because entries since then are written anew: with
/// 20,000 entries 1 ms, or 10 ms if all of them are newer.
///
/// A set has at most 64 limits.
///
/// # Time
///
/// It is the server's clock that tells the time, so the instances' clocks do not matter. Where
/// it goes back, the states of the keys that are asked for go back with it: nothing is minted,
/// and nobody waits longer than before. For servers that do not let scripts ask for the time,
/// there is [`client_time`](Self::client_time).
///
/// # Failure
///
/// Whatever happens, a call answers within its [`timeout`](Self::timeout), by a decision or an
/// [`Error`]; what then becomes of the request is for the caller to say. A settlement, which
/// counts once, is tried up to four times, with pauses: it answers within 5.5 times that. The
/// connection is restored by itself, and a server that has lost the script is given it again.
///
/// A call whose answer is lost, or late, may have been charged: the server may even run the script
/// later. It is not repeated, so it is charged at most once; nor is a refund given twice. In a
/// cluster, a call is sent again where a node has not run it, as it is no master of the key, or the
/// cluster is down; as long as there is time, and then that is the error.
///
/// While a slot of a cluster moves, decisions on its keys go on, but nothing in it is settled: that takes
/// two keys, for which the nodes answer `TRYAGAIN`. Where the move takes longer than a settlement is
/// tried, that is the error, and what was reserved stays taken; also where a reservation was dropped.
///
/// What the server loses is free again. So **let it evict nothing** (`maxmemory-policy
/// noeviction`): under any other policy a server that is full may drop the state of a key that has
/// used up its limit. Where it is full and evicts nothing, calls that would take units are
/// errors. And a replica that takes over for its master lacks the charges that it had not been
/// told yet, usually those of some milliseconds: as the server acknowledges before it replicates.
///
/// # Clones
///
/// A clone is the same store, and so is the store of each [limiter](Self::limiter): they share the
/// connection and, by one clock, the [pauses](crate::Limiter::pause). The prefix, timeout, clock and
/// stream of refusals of each may differ.
#[derive(Clone)]
pub struct Redis {
    connection: Connection,
    prefix: Arc<str>,
    /// The limiter's, once it is one's.
    name: Option<Arc<str>>,
    timeout: Duration,
    min_ttl: Duration,
    clock: Option<Arc<dyn Clock>>,
    refusals: Option<Stream>,
    /// A few: one for each sequence of algorithms.
    scripts: Arc<RwLock<Vec<Arc<Scripts>>>>,
    pauses: Arc<Pauses>,
}

/// Where refusals are published.
#[derive(Clone, Debug)]
struct Stream {
    key: Arc<str>,
    max_len: u64,
}

impl Redis {
    /// The prefix of all keys, unless another is set: `tollgate`.
    pub const DEFAULT_PREFIX: &str = "tollgate";

    /// How long a decision may take, unless set otherwise: 100 ms.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);

    /// Connects to the server at `url`, and waits until it answers.
    ///
    /// `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, or
    /// `redis+unix:///path/to.sock[?db=..&user=..&pass=..]`. With `?protocol=resp2`, also what
    /// speaks the older protocol only, such as some proxies.
    ///
    /// # Errors
    ///
    /// Where `url` is none of these, or where the server cannot be reached within 2 seconds or
    /// does not let us in.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let store = Self::connect_lazy(url)?;
        let ping = redis::cmd("PING");
        let deadline = deadline(CONNECTION_TIMEOUT);
        match timeout_at(deadline, store.connection.send(&ping, b"", deadline)).await {
            Ok(Ok(_)) => Ok(store),
            Ok(Err(error)) => Err(failure(&error, CONNECTION_TIMEOUT, None)),
            Err(_) => {
                Err(StoreFailure::new(Failure::TimedOut(CONNECTION_TIMEOUT), None, "").into())
            }
        }
    }

    /// As [`connect`](Self::connect), but connects when it is first asked: for a service that is
    /// to start although Redis is down.
    ///
    /// # Errors
    ///
    /// Where `url` is not one of a Redis server.
    pub fn connect_lazy(url: &str) -> Result<Self, Error> {
        let connection = Connection::to_server(url);
        let connection = connection.map_err(|error| failure(&error, CONNECTION_TIMEOUT, None))?;
        Ok(Self::new(connection))
    }

    /// Connects to the cluster that the servers at `urls`, or one of them, belong to, and asks it
    /// which slots are where. There is no lazy form of it, as nothing can be asked before that.
    ///
    /// All nodes are connected to as the first of `urls` says: with its user, its password, and with
    /// TLS or without.
    ///
    /// # Errors
    ///
    /// Where one of `urls` is not one of a Redis server, or where none of them can be reached, or is
    /// one of a cluster.
    #[cfg(feature = "redis-cluster")]
    pub async fn connect_cluster(urls: &[&str]) -> Result<Self, Error> {
        let cluster = Cluster::connect(urls).await;
        let cluster = cluster.map_err(|error| failure(&error, CONNECTION_TIMEOUT, None))?;
        Ok(Self::new(Connection::Cluster(cluster)))
    }

    /// Uses a connection that you already have.
    ///
    /// It restores itself as its settings say. Where the server that it is connected to becomes
    /// a replica, it stays connected to it; [`connect`](Self::connect) would connect anew.
    #[must_use]
    pub fn from_connection_manager(manager: ConnectionManager) -> Self {
        Self::new(Connection::Given(manager))
    }

    /// Uses a connection to a cluster that you already have. Build it with `retries(0)`, as
    /// [`connect_cluster`](Self::connect_cluster) does: else it sends a call again whose answer is
    /// lost, and that is charged, or refunded, more than once.
    ///
    /// Where you can, let [`connect_cluster`](Self::connect_cluster) connect instead. A connection of
    /// the `redis` crate (1.8) does not find a node that owns no slots, so the first slot that moves to
    /// a new one is out of reach meanwhile; and it may hang for ever when a slot moves while dozens of
    /// calls are under way, which nobody but its maker can mend.
    #[cfg(feature = "redis-cluster")]
    #[must_use]
    pub fn from_cluster_connection(cluster: redis::cluster_async::ClusterConnection) -> Self {
        Self::new(Connection::GivenCluster(Arc::new(GivenCluster::new(cluster))))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            prefix: Self::DEFAULT_PREFIX.into(),
            name: None,
            timeout: Self::DEFAULT_TIMEOUT,
            min_ttl: Duration::ZERO,
            clock: None,
            refusals: None,
            scripts: Arc::default(),
            pauses: Arc::new(Pauses::new()),
        }
    }

    /// The store of the limiters of this name, for a [`Store`] of your own that hands calls on to
    /// it. To make a limiter, call [`limiter`](Self::limiter).
    ///
    /// ```no_run
    /// use tollgate::{Decision, Error, Limiter, Operation, Policy, Redis, Store, StoreFor};
    ///
    /// /// Counts the decisions that fail.
    /// struct Counted(Redis, std::sync::atomic::AtomicU64);
    ///
    /// impl StoreFor<Policy> for Counted {}
    ///
    /// impl Store<Policy, str> for Counted {
    ///     type Error = Error;
    ///
    ///     async fn decide(
    ///         &self,
    ///         policy: &Policy,
    ///         key: &str,
    ///         operation: Operation<'_>,
    ///     ) -> Result<Decision, Error> {
    ///         let decided = self.0.decide(policy, key, operation).await;
    ///         if decided.is_err() {
    ///             self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    ///         }
    ///         decided
    ///     }
    /// }
    ///
    /// let redis = Redis::connect_lazy("redis://127.0.0.1/")?.named("api")?;
    /// let limiter = Limiter::with_store("100/min".parse::<Policy>()?, Counted(redis, 0.into()));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if `name` is empty, too long, or has a character that a name cannot have.
    pub fn named(&self, name: &str) -> Result<Self, Error> {
        let wrong = |_| Kind::Name { what: "a limiter's name", name: name.to_owned() };
        let name = Name::new(name).map_err(wrong)?;
        Ok(Self { name: Some(name.as_str().into()), ..self.clone() })
    }

    /// Sets the prefix of all keys, for services that share a server. If a `{` is in it, it should
    /// hold a whole hash tag, such as `{api}`, which puts all its keys into one slot of a cluster. No
    /// service's prefix should begin with another's and a `:`.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// The same store with another bound on how long a decision, or each try to settle, may take.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The same store, with `clock` instead of the server's: for servers that do not let
    /// scripts ask for the time, for tests, and for replays.
    ///
    /// All instances that share a limit should do the same, and agree on the time: a key is
    /// decided on at the latest of their times. Keys still expire by the server's clock: where
    /// `clock` is slower than that, or stands still, see [`min_ttl`](Self::min_ttl). Pauses are
    /// measured by it too, so this store has its own.
    #[must_use]
    pub fn client_time(self, clock: impl Clock + 'static) -> Self {
        Self { clock: Some(Arc::new(clock)), pauses: Arc::new(Pauses::new()), ..self }
    }

    /// The same store, with keys that live for at least `ttl`, rounded down to milliseconds: for
    /// tests and replays, in which a second may take longer than one.
    #[must_use]
    pub fn min_ttl(self, ttl: Duration) -> Self {
        Self { min_ttl: ttl, ..self }
    }

    /// The same store, which also adds every refusal to the stream `stream` of its server, so that
    /// abuse can be watched in one place, by `XREAD`, for all instances. It is added by the script
    /// that refuses, in the same round trip. The stream is kept to about `max_len` entries, the
    /// newest: a hundred more, as the server drops them by whole nodes.
    ///
    /// ```no_run
    /// use tollgate::{Quota, RateLimiter, Redis, TokenBucket};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tollgate::Error> {
    /// let redis = Redis::connect("redis://127.0.0.1/").await?;
    /// let redis = redis.publish_refusals("refusals", 10_000)?;
    /// let limiter = redis.limiter("login", TokenBucket::new(Quota::per_minute(5)))?;
    /// let _ = limiter.check_n("alice", 6).await?;
    /// // XREVRANGE refusals + - COUNT 1
    /// //   1800057600000-0: limits tollgate:2:login:bucket, key alice, asked 6, room 5
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// | field | tells |
    /// |---|---|
    /// | `limits` | the limiter: the prefix, the format, its name and its algorithms. With a `:` and the `key`, this is the key in Redis that holds the state |
    /// | `key` | what [`RedisKey`] writes, or its hash if that is longer than 128 bytes; all who can read the stream can read it |
    /// | `asked` | the units that were asked for |
    /// | `room` | the units that were there, as in [`Decision::remaining`] |
    ///
    /// The entry's id tells when, by the server's clock, which only goes forward there.
    ///
    /// What takes or reserves units is published where it is refused, whether a wait would do or
    /// not; nothing else is. Who waits is published each time that it asks in vain. The state's
    /// key is not stored for it.
    ///
    /// An entry that cannot be added is lost, and the decision is what it would be without: else a
    /// stream that is broken (something else stored there, no memory left, no permission for
    /// `XADD`) would make errors of refusals, and let them through where a service fails open.
    /// The server counts what failed, at `xadd` in `INFO commandstats`. Only where its user may
    /// not touch the key `stream` at all does it refuse every call that takes units.
    ///
    /// # Errors
    ///
    /// Where the store is connected to a cluster, as one script cannot write to the key's slot and
    /// to the stream's; and where `max_len` is 0 or more than [`Quota::MAX_COUNT`].
    pub fn publish_refusals(self, stream: &str, max_len: u64) -> Result<Self, Error> {
        #[cfg(feature = "redis-cluster")]
        if let Connection::Cluster(_) | Connection::GivenCluster(_) = self.connection {
            return Err(Kind::StreamInCluster { stream: stream.to_owned() }.into());
        }
        if !(1..=Quota::MAX_COUNT).contains(&max_len) {
            return Err(Kind::Count { what: "a stream's length", count: max_len }.into());
        }
        Ok(Self { refusals: Some(Stream { key: stream.into(), max_len }), ..self })
    }

    fn scripts(&self, call: &ScriptCall) -> Result<Arc<Scripts>, Error> {
        let time = if self.clock.is_some() { Time::Client } else { Time::Server };
        let variant = Variant { time, publishes: self.refusals.is_some() };
        let find = |known: &[Arc<Scripts>]| {
            known.iter().find(|scripts| scripts.are_for(&call.limits, variant)).cloned()
        };
        let known = find(&self.scripts.read().unwrap_or_else(PoisonError::into_inner));
        if let Some(scripts) = known {
            return Ok(scripts);
        }
        let new = Arc::new(Scripts::new(&call.limits, variant)?);
        let mut known = self.scripts.write().unwrap_or_else(PoisonError::into_inner);
        // Another call may have been faster.
        Ok(find(&known).unwrap_or_else(|| {
            known.push(Arc::clone(&new));
            new
        }))
    }

    /// Declares what a call does, and on which keys.
    fn declared<'o, A, K>(
        &self,
        algorithm: &A,
        key: &K,
        operation: Operation<'o>,
    ) -> Result<Declared<'o>, Error>
    where
        A: Scripted,
        K: RedisKey + ?Sized,
    {
        let mut limits = ScriptCall::default();
        algorithm.script(&mut limits);
        let head = self.head(&limits.shape)?;
        let mut keys = vec![key::of_state(&head, key)];
        let operation = match operation {
            Operation::Settle(_, receipt) if receipt.is_settled() => Operation::Refund(0),
            // Other limits hold now, from which nothing was taken.
            Operation::Settle(cost, receipt)
                if cost < receipt.units() && !receipt.is_for(&keys[0]) =>
            {
                Operation::Refund(0)
            }
            Operation::Settle(_, receipt) => {
                keys.push(key::of_request(&self.prefix, &keys[0], receipt.request_id()));
                operation
            }
            Operation::Reserve(_, receipt) => {
                receipt.is_for(&keys[0]);
                operation
            }
            operation => operation,
        };
        if let Some(stream) = &self.refusals
            && let Operation::Check(_) | Operation::Reserve(..) | Operation::TakeUpTo(_) = operation
        {
            keys.push(stream.key.as_bytes().into());
        }
        Ok(Declared { operation, limits, keys, head_len: head.len() })
    }

    /// What stands before the `:` and the caller's own key, in the key that holds a state.
    fn head(&self, shape: &str) -> Result<String, Error> {
        let name = self.name.as_ref().ok_or(Kind::NoName)?;
        let mut head = format!("{}:{FORMAT}:", self.prefix);
        push_name(&mut head, name);
        head.push(':');
        head.push_str(shape);
        Ok(head)
    }

    /// What a pause is known by: the limiter's name and the caller's key, whatever the algorithms.
    /// Without a name there is no limiter, and nothing to pause.
    fn pause_key<K: RedisKey + ?Sized>(&self, key: &K) -> Option<Vec<u8>> {
        Some(key::of_state(&self.head("").ok()?, key))
    }

    /// See [`Limiter::pause`](crate::Limiter::pause).
    pub(crate) fn pause<K: RedisKey + ?Sized>(&self, key: &K, duration: Duration) {
        if let Some(key) = self.pause_key(key) {
            self.pauses.pause(key, duration, self.clock.as_deref());
        }
    }

    /// The decision on a key that is paused, if it is; a reset ends the pause.
    fn decide_in_pause<A: Scripted>(
        &self,
        algorithm: &A,
        key: &[u8],
        operation: Operation<'_>,
    ) -> Option<Decision> {
        let n = match operation {
            Operation::Check(n @ 1..)
            | Operation::Peek(n @ 1..)
            | Operation::Reserve(n @ 1.., _) => n,
            Operation::TakeUpTo(1..) => 1,
            Operation::Reset => {
                self.pauses.end(key);
                return None;
            }
            _ => return None,
        };
        let (now, left) = self.pauses.left(key, self.clock.as_deref())?;
        let standing = peek(algorithm, &A::State::default(), n, now);
        Some(match standing.outcome {
            Outcome::Never => standing,
            _ => Decision {
                reset_after_micros: left,
                ..standing.refused(Duration::from_micros(left))
            },
        })
    }

    /// Runs a script, which the server may have to be given again.
    async fn run(
        &self,
        script: &ScriptText,
        keys: &[Vec<u8>],
        numbers: &[u8],
        deadline: Instant,
    ) -> RedisResult<Value> {
        let call = |how: &str, script: &str| -> Cmd {
            let mut command = redis::cmd(how);
            command.arg(script).arg(keys.len()).arg(keys).arg(numbers);
            command
        };
        let send = async |command: Cmd| self.connection.send(&command, &keys[0], deadline).await;
        let answer = send(call("EVALSHA", &script.sha)).await;
        match answer {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                send(call("EVAL", &script.text)).await
            }
            answer => answer,
        }
    }
}

/// What a call does.
struct Declared<'o> {
    operation: Operation<'o>,
    limits: ScriptCall,
    /// The keys that the script uses: the state's, and then a request's or a stream's.
    keys: Vec<Vec<u8>>,
    /// The bytes of the state's key before the `:` and the caller's own.
    head_len: usize,
}

/// When a call that may take so long must have been answered.
fn deadline(timeout: Duration) -> Instant {
    let far_off = Duration::from_secs(86_400 * 365);
    Instant::now() + timeout.min(far_off)
}

/// The version of what is stored, a part of every key: see the top of this module.
const FORMAT: &str = "2";

impl<A, K> Store<A, K> for Redis
where
    A: Scripted,
    K: RedisKey + ?Sized,
{
    type Error = Error;

    fn decide(
        &self,
        algorithm: &A,
        key: &K,
        operation: Operation<'_>,
    ) -> impl Future<Output = Result<Decision, Error>> + Send {
        let declared = self.declared(algorithm, key, operation);
        // Most often nothing is paused.
        let pause_key = if self.pauses.is_empty() { None } else { self.pause_key(key) };
        async move {
            let Declared { operation, limits, keys, head_len } = declared?;
            if let Some(key) = pause_key
                && let Some(decision) = self.decide_in_pause(algorithm, &key, operation)
            {
                return Ok(decision);
            }
            let scripts = self.scripts(&limits)?;
            let call =
                Call { store: self, algorithm, limits, scripts: &scripts, operation, head_len };
            let mut attempts = call.attempts();
            loop {
                attempts -= 1;
                let deadline = deadline(self.timeout);
                let answer = timeout_at(deadline, call.decide(&keys, deadline)).await;
                let timed_out = |_| Err(call.failed(Failure::TimedOut(self.timeout), ""));
                match answer.unwrap_or_else(timed_out) {
                    Err(error) if attempts > 0 && error.may_pass() => {
                        tokio::time::sleep(self.timeout / 2).await;
                    }
                    answer => return answer,
                }
            }
        }
    }

    fn paused_for(&self, key: &K) -> Duration {
        let left = |key: Vec<u8>| self.pauses.left(&key, self.clock.as_deref());
        let left = self.pause_key(key).and_then(left);
        Duration::from_micros(left.map_or(0, |(_, micros)| micros))
    }

    /// By a task of its own, where there is a runtime.
    fn decide_later<L>(&self, limits: &L, key: &K, operation: Operation<'_>)
    where
        L: Limits<K, Algorithm = A>,
    {
        let algorithm = &*limits.get(key);
        let Ok(declared) = self.declared(algorithm, key, operation) else { return };
        let Declared { operation, limits, keys, head_len } = declared;
        let runtime = tokio::runtime::Handle::try_current();
        let (Ok(runtime), Ok(scripts)) = (runtime, self.scripts(&limits)) else { return };
        let call = Call { store: self, algorithm, limits, scripts: &scripts, operation, head_len };
        let (script, numbers) = call.script();
        let script = ScriptText { text: script.text.clone(), sha: script.sha.clone() };
        let store = self.clone();
        let attempts = call.attempts();
        runtime.spawn(async move {
            for _ in 0..attempts {
                let deadline = deadline(store.timeout);
                let reply = store.run(&script, &keys, &numbers, deadline);
                let reply = timeout_at(deadline, reply).await;
                let done = reply.ok().and_then(Result::ok);
                match done.as_ref().map(Reply::read) {
                    Some(Some(Reply { granted: Granted::ClockWentBack, .. })) => {}
                    Some(_) => return,
                    None => tokio::time::sleep(store.timeout / 2).await,
                }
            }
        });
    }
}

const SETTLEMENT_ATTEMPTS: u32 = 4;

/// As the scripts call a check with a longest delay.
const RESERVE: u8 = 4;

/// How long a settlement without a request's id is remembered at least.
const MIN_MEMORY: Duration = Duration::from_secs(60);

/// One decision.
struct Call<'a, A> {
    store: &'a Redis,
    algorithm: &'a A,
    limits: ScriptCall,
    scripts: &'a Scripts,
    operation: Operation<'a>,
    head_len: usize,
}

impl<A: Scripted> Call<'_, A> {
    /// A settlement counts once, so it can be repeated where its answer was lost.
    const fn attempts(&self) -> u32 {
        if matches!(self.operation, Operation::Settle(..)) { SETTLEMENT_ATTEMPTS } else { 1 }
    }

    async fn decide(&self, keys: &[Vec<u8>], deadline: Instant) -> Result<Decision, Error> {
        // A clock that goes back is told once, and then again only if it goes back again.
        for _ in 0..MAX_CLOCK_STEPS {
            let (script, numbers) = self.script();
            let reply = self.store.run(script, keys, &numbers, deadline).await;
            let reply = reply
                .map_err(|error| failure(&error, self.store.timeout, self.store.name.clone()))?;
            match Reply::read(&reply) {
                Some(Reply { granted: Granted::ClockWentBack, .. }) => {}
                Some(Reply { now, granted: Granted::Before, before }) => {
                    if let Operation::Settle(_, receipt) = self.operation {
                        receipt.set_settled();
                    }
                    return self.standing(now, before);
                }
                Some(Reply { now, granted: Granted::Units(granted), before }) => {
                    return self.explain(now, granted, before);
                }
                None => return Err(self.unexpected("it is not of the form of the script's")),
            }
        }
        Err(self.unexpected("the server's clock goes back again and again"))
    }

    /// The script to run now, and the numbers that it reads.
    fn script(&self) -> (&ScriptText, Vec<u8>) {
        let Scripts { take, correct, reset, .. } = self.scripts;
        let (script, code, n) = match self.operation {
            Operation::Peek(n) => (take, 0, n),
            Operation::Reserve(n, receipt) if receipt.longest_delay_micros() < MAX_NUMBER => {
                (take, RESERVE, n)
            }
            Operation::Check(n) | Operation::Reserve(n, _) => (take, 1, n),
            Operation::TakeUpTo(n) => (take, 2, n),
            Operation::Debit(n) => (take, 3, n),
            Operation::Refund(n) => (correct, 0, n),
            Operation::Settle(cost, receipt) => match cost.checked_sub(receipt.units()) {
                None => (correct, 1, receipt.units() - cost),
                Some(missing) => (correct, 2, missing),
            },
            Operation::Reset => (reset, 0, 0),
        };
        let origin = match self.operation {
            Operation::Settle(_, receipt) => receipt.origin(),
            _ => None,
        };
        let mut numbers = vec![code];
        push_number(&mut numbers, n);
        let min_ttl_millis = u64::try_from(self.store.min_ttl.as_millis()).unwrap_or(u64::MAX);
        push_number(&mut numbers, min_ttl_millis);
        if let Some(clock) = &self.store.clock {
            push_number(&mut numbers, clock.now().as_micros());
        }
        if std::ptr::eq(script, correct) {
            let [taken_at, leaves_at, units] = origin.map_or([0; 3], |origin| {
                [origin.taken_at().as_micros(), origin.leaves_at().as_micros(), origin.units()]
            });
            for number in [taken_at, leaves_at, units, self.memory_millis()] {
                push_number(&mut numbers, number);
            }
        }
        numbers.extend_from_slice(&self.limits.numbers);
        if let Operation::Reserve(_, receipt) = self.operation
            && code == RESERVE
        {
            push_number(&mut numbers, receipt.longest_delay_micros());
        }
        for limit in origin.map_or(&[][..], |origin| origin.limits()) {
            push_number(&mut numbers, limit.fresh_at.as_micros());
            push_number(&mut numbers, limit.until.as_micros());
        }
        if let Some(stream) = self.store.refusals.as_ref().filter(|_| std::ptr::eq(script, take)) {
            push_number(&mut numbers, stream.max_len);
            push_number(&mut numbers, self.head_len as u64);
        }
        (script, numbers)
    }

    /// How long a request is remembered: where it has an id of its own, as long as is promised;
    /// else until no attempt can be under way any more.
    fn memory_millis(&self) -> u64 {
        let memory = match self.operation {
            Operation::Settle(_, receipt) if receipt.has_given_id() => Receipt::REQUEST_MEMORY,
            _ => {
                let attempts = self.store.timeout.saturating_mul(2 * SETTLEMENT_ATTEMPTS);
                attempts.clamp(MIN_MEMORY, Receipt::REQUEST_MEMORY)
            }
        };
        u64::try_from(memory.as_millis()).unwrap_or(u64::MAX)
    }

    /// The decision that the script has made, with all its numbers.
    fn explain(&self, now: Tick, granted: u64, before: Option<&[u8]>) -> Result<Decision, Error> {
        let mut state = self.state(before)?;
        let decision = self.operation.apply(self.algorithm, &mut state, now);
        if decision.granted.min(MAX_NUMBER) != granted {
            return Err(self.unexpected("the script and the algorithm do not agree"));
        }
        Ok(decision)
    }

    /// How things stand where all was done before.
    fn standing(&self, now: Tick, before: Option<&[u8]>) -> Result<Decision, Error> {
        Ok(Operation::Refund(0).apply(self.algorithm, &mut self.state(before)?, now))
    }

    fn state(&self, stored: Option<&[u8]>) -> Result<A::State, Error> {
        let Some(bytes) = stored else { return Ok(A::State::default()) };
        let mut stored = StoredState(bytes);
        let state = self.algorithm.read_state(&mut stored);
        let state = state.filter(|_| stored.0.is_empty());
        state.ok_or_else(|| {
            self.unexpected("what is stored is not of these limits, or of another version")
        })
    }

    fn unexpected(&self, detail: &str) -> Error {
        self.failed(Failure::UnexpectedReply, detail)
    }

    fn failed(&self, failure: Failure, detail: &str) -> Error {
        StoreFailure::new(failure, self.store.name.clone(), detail).into()
    }
}

const MAX_CLOCK_STEPS: usize = 3;

/// What a script returns.
struct Reply<'r> {
    now: Tick,
    granted: Granted,
    before: Option<&'r [u8]>,
}

enum Granted {
    Units(u64),
    /// Nothing was decided.
    ClockWentBack,
    /// It was done before.
    Before,
}

impl<'r> Reply<'r> {
    fn read(reply: &'r Value) -> Option<Self> {
        let Value::BulkString(bytes) = reply else { return None };
        let mut bytes = StoredState(bytes);
        let now = Tick::from_micros(bytes.number()?);
        let granted = match bytes.signed()? {
            -1 => Granted::ClockWentBack,
            -2 => Granted::Before,
            units => Granted::Units(units.try_into().ok()?),
        };
        let before = if bytes.0.is_empty() { None } else { Some(bytes.0) };
        Some(Self { now, granted, before })
    }
}

fn failure(error: &RedisError, timeout: Duration, limiter: Option<Arc<str>>) -> Error {
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
    let failure = match error.kind() {
        ErrorKind::Io if error.is_timeout() => Failure::TimedOut(timeout),
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => Failure::Unreachable,
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Failure::UnexpectedReply,
        ErrorKind::InvalidClientConfig => Failure::WrongAddress,
        ErrorKind::Server(
            BusyLoading | ReadOnly | MasterDown | ClusterDown | TryAgain | Moved | Ask,
        ) => Failure::RefusedForNow,
        _ => Failure::Refused,
    };
    // As the server has said it.
    let said = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    StoreFailure::new(failure, limiter, &said).into()
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("prefix", &self.prefix)
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .field("client_time", &self.clock.is_some())
            .field("refusals", &self.refusals)
            .finish_non_exhaustive()
    }
}
