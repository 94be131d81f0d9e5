//! The store in Redis, on a server that the tests of a process share.

use super::redis_server::Server;
use super::{Subject, parse};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tollgate::{Decision, Limiter, ManualClock, Operation, Policy, RateLimiter, Redis, Tick};

/// One server for all tests of a process that do no harm to it.
pub static SHARED: LazyLock<Server> = LazyLock::new(|| Server::start(&[]));

/// Starts one test of this suite in a process of its own; what it prints is piped.
pub fn in_own_process(test: &str, environment: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test runs itself")
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// A limiter's name that no other test uses.
pub fn name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One connection for all subjects; its calls may take long on a machine that is busy.
static STORE: LazyLock<Redis> = LazyLock::new(|| {
    let store = RUNTIME.block_on(Redis::connect(&SHARED.url())).unwrap();
    store.timeout(Duration::from_secs(60))
});

/// The store in Redis, with the instants told to it.
pub struct InRedis {
    clock: ManualClock,
    limiter: Limiter<Policy, Redis>,
    name: String,
}

impl InRedis {
    pub fn with_policy(policy: Policy) -> Self {
        Self::with_name(policy, name())
    }

    /// The same key by another policy.
    pub fn under(&self, policy: Policy) -> Self {
        Self::with_name(policy, self.name.clone())
    }

    fn with_name(policy: Policy, name: String) -> Self {
        let clock = ManualClock::new(Tick::from_micros(0));
        let store = STORE.clone().client_time(clock.clone()).min_ttl(Duration::from_secs(600));
        Self { clock, limiter: store.limiter(&name, policy).unwrap(), name }
    }
}

impl Subject for InRedis {
    fn new(policy: &str) -> Self {
        Self::with_policy(parse(policy))
    }

    fn decide(&mut self, micros: u64, key: &str, operation: Operation) -> Decision {
        self.clock.set(Tick::from_micros(micros));
        RUNTIME.block_on(self.limiter.decide(key, operation)).unwrap()
    }

    fn pause(&mut self, micros: u64, key: &str, duration: Duration) {
        self.clock.set(Tick::from_micros(micros));
        self.limiter.pause(key, duration);
    }

    fn keys(&self) -> usize {
        let pattern = format!("tollgate:2:{}:*", self.name);
        SHARED.cli(&["--scan", "--pattern", &pattern]).lines().count()
    }

    /// Each takes a round trip.
    fn affordable(decisions: u64) -> u64 {
        decisions.min(2_000)
    }
}
