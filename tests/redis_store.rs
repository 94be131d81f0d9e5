//! The store in Redis: what is stored, for how long, and by how many at once.

mod common;

use common::redis::{SHARED, in_own_process, name};
use common::redis_server::Server;
use common::{MIDNIGHT, cases, each_algorithm, jumping_trace, micros, parse, policy};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::process::Child;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tollgate::{
    All, Decision, Error, FixedWindow, Limiter, Limits, ManualClock, Operation, Policy, Quota,
    RateLimiter, Receipt, Redis, SlidingLog, Store, StoreFor, Tick, TokenBucket,
};

const MINUTE: Duration = Duration::from_secs(60);

async fn connect(server: &Server) -> Redis {
    Redis::connect(&server.url()).await.unwrap().timeout(MINUTE)
}

/// The milliseconds that a key has left; `None` where there is no key.
fn ttl_millis(server: &Server, key: &str) -> Option<u64> {
    match server.cli(&["PTTL", key]).parse::<i64>().unwrap() {
        -2 => None,
        ttl => Some(ttl.try_into().expect("a key has a TTL")),
    }
}

#[tokio::test]
async fn keys_are_readable_and_end_with_their_states() {
    let server = Server::start(&[]);
    let store = Redis::connect(&server.url()).await.unwrap();
    let bucket = store.limiter("a", TokenBucket::new(Quota::per_minute(60))).unwrap();
    let set = All((FixedWindow::new(Quota::per_day(9)), SlidingLog::new(Quota::per_hour(9))));
    let set = store.prefix("other").limiter("b", set).unwrap();

    assert!(bucket.check("alice").await.unwrap().is_allowed());
    assert!(set.check(&("alice", 7)).await.unwrap().is_allowed());
    let mut keys: Vec<String> = server.cli(&["--scan"]).lines().map(str::to_owned).collect();
    keys.sort();
    assert_eq!(keys, ["other:2:b:fixed_window+sliding_log:alice:7", "tollgate:2:a:bucket:alice"]);

    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(server.cli(&["EXISTS", "tollgate:2:a:bucket:alice"]), "0");
    assert_eq!(bucket.reset("alice").await.unwrap().remaining(), 60);
    let after = set.reset(&("alice", 7)).await.unwrap();
    assert_eq!((after.remaining(), after.reset_after()), (9, Duration::ZERO));
    assert_eq!(server.cli(&["DBSIZE"]), "0");
}

/// As in memory, where each limiter has a store of its own.
#[tokio::test]
async fn limiters_share_a_budget_if_they_have_one_name() {
    let redis = connect(&SHARED).await;
    // What two limiters are called, their limits, and whether the second finds what the first took.
    let [a, b] = ["token_bucket 100/h", "token_bucket 5/h"];
    let unnamed_set = format!("{a}; fixed_window 100/h");
    let named_set = format!("x: {a}; y: fixed_window 100/h");
    let table = [
        (["a", "login"], [a, b], false),
        (["a", "a"], [a, b], true),
        (["a", "A"], [a, a], false),
        (["a", "a=bucket"], [a, a], false),
        (["bucket", "bucket+bucket"], [a, a], false),
        (["%61", "a"], [a, a], false),
        (["{a}", "a"], [a, a], false),
        (["a", "a"], ["x: token_bucket 100/h", "y: token_bucket 5/h"], true),
        (["a", "a"], [&unnamed_set, &unnamed_set], true),
        (["a", "b"], [&named_set, &named_set], false),
        (["a", "a"], [a, "fixed_window 5/h"], false),
        (
            ["a", "a"],
            [
                "x=bucket+y: token_bucket 100/h; z: token_bucket 9/h",
                "x: token_bucket 100/h; y: token_bucket 9/h; z: token_bucket 9/h",
            ],
            false,
        ),
    ];
    for (names, policies, share) in table {
        // A prefix for each row, as the names are what it is about.
        let redis = redis.clone().prefix(&name());
        let limiter = |which: usize| redis.limiter(names[which], parse(policies[which])).unwrap();
        let [first, second] = [limiter(0), limiter(1)];
        let room = second.peek("k").await.unwrap().remaining();
        assert!(first.check_n("k", 2).await.unwrap().is_allowed());
        let left = second.peek("k").await.unwrap().remaining();
        assert_eq!(room - left, if share { 2 } else { 0 }, "{names:?} {policies:?}");
    }
}

#[tokio::test]
async fn a_name_that_is_none_is_an_error() {
    let redis = Redis::connect_lazy("redis://127.0.0.1/").unwrap();
    for wrong in ["", " a", "a ", "a:b", "a;b", "a\r\nb", "\u{e9}", &"a".repeat(129)] {
        let error = redis.limiter(wrong, parse("5/h")).unwrap_err().to_string();
        assert!(error.starts_with("a limiter's name must be 1 to 128 printable ASCII"), "{error}");
        assert!(error.ends_with(&format!("not {wrong:?}")), "{error}");
        assert_eq!(redis.named(wrong).unwrap_err().to_string(), error);
    }
    for right in ["a", "tenant 17", "%{}[]+=", &"a".repeat(128)] {
        assert!(redis.limiter(right, parse("5/h")).is_ok());
    }
}

/// A store of one's own that hands all calls on.
struct Wrapped(Redis);

impl StoreFor<Policy> for Wrapped {}

impl Store<Policy, str> for Wrapped {
    type Error = Error;

    async fn decide(
        &self,
        policy: &Policy,
        key: &str,
        operation: Operation<'_>,
    ) -> Result<Decision, Error> {
        self.0.decide(policy, key, operation).await
    }

    fn decide_later<L>(&self, limits: &L, key: &str, operation: Operation<'_>)
    where
        L: Limits<str, Algorithm = Policy>,
    {
        self.0.decide_later(limits, key, operation);
    }
}

#[tokio::test]
async fn a_store_without_a_name_decides_nothing() {
    let server = Server::start(&[]);
    let redis = connect(&server).await;
    let nameless = Limiter::with_store(parse("5/h"), Wrapped(redis.clone()));
    for operation in [Operation::Peek(1), Operation::Check(1), Operation::Reset] {
        let error = nameless.decide("k", operation).await.unwrap_err();
        assert!(error.to_string().starts_with("this Redis store has no name"), "{error}");
        assert!(!error.is_unreachable() && !error.is_timeout() && !error.is_refused(), "{error}");
        nameless.decide_later("k", operation);
    }
    assert_eq!(server.cli(&["DBSIZE"]), "0");

    let limiter = redis.limiter("a", parse("5/h")).unwrap();
    let named = Limiter::with_store(parse("5/h"), Wrapped(redis.named("a").unwrap()));
    assert!(named.check_n("k", 3).await.unwrap().is_allowed());
    assert_eq!(limiter.peek("k").await.unwrap().remaining(), 2);
}

/// Three hundred keys of 390 kB, which would be 117 MB, each of which is charged, denied, published and
/// settled.
#[tokio::test]
async fn long_keys_are_stored_in_few_bytes() {
    const KEYS: u64 = 300;
    let server = Server::start(&[]);
    let redis = connect(&server).await.publish_refusals("refusals", 1_000).unwrap();
    let limiter = redis.limiter("api", parse("token_bucket 5/d")).unwrap();
    let key = |n: u64| format!("{}{n}", "k".repeat(390_000));
    for n in 0..KEYS {
        let key = key(n);
        let receipt = Receipt::for_request(&format!("{key} again"));
        let _ = limiter.decide(&*key, Operation::Reserve(4, &receipt)).await.unwrap();
        for _ in 0..2 {
            let settled = limiter.decide(&*key, Operation::Settle(2, &receipt)).await.unwrap();
            assert_eq!(settled.remaining(), 3);
        }
        // The same request again, as from another process.
        let again = Receipt::for_request(&format!("{key} again"));
        let settled = limiter.decide(&*key, Operation::Settle(2, &again)).await.unwrap();
        assert_eq!(settled.remaining(), 3);
        assert!(!limiter.check_n(&*key, 4).await.unwrap().is_allowed());
    }
    // Each limit holds, for the second half of the keys as for the first.
    for n in [0, KEYS - 1] {
        assert!(limiter.check_n(&*key(n), 3).await.unwrap().is_allowed());
        assert!(!limiter.check(&*key(n)).await.unwrap().is_allowed());
    }
    let keys = server.cli(&["--scan"]);
    assert_eq!(keys.lines().count(), 2 * usize::try_from(KEYS).unwrap() + 1);
    for key in keys.lines().filter(|key| *key != "refusals") {
        assert!(key.len() <= 250, "{key}");
        let memory: u64 = server.cli(&["MEMORY", "USAGE", key]).parse().unwrap();
        assert!(memory <= 512, "{memory}: {key}");
    }
    let memory: u64 = server.cli(&["MEMORY", "USAGE", "refusals"]).parse().unwrap();
    assert!(memory <= 512 * KEYS, "{memory}");
    // What is published names the state, as ever.
    let entries = server.cli(&["XRANGE", "refusals", "-", "+"]);
    let fields: Vec<&str> = entries.lines().collect();
    let published = fields.chunks(9).map(|entry| format!("{}:{}", entry[2], entry[4]));
    let states: BTreeSet<String> = published.collect();
    let stored = keys.lines().filter(|key| key.starts_with("tollgate:2:api:bucket:"));
    assert_eq!(states, stored.map(str::to_owned).collect());
}

/// Whatever a state of another version holds, and under whichever key of its version it lies.
#[tokio::test]
async fn a_state_of_another_version_is_not_read() {
    let server = Server::start(&[]);
    let redis = connect(&server).await;
    let policies = each_algorithm("10/h").into_iter();
    let policies = policies.chain(["9/s; sliding_log 10/h".into(), "x: 10/h; y: 10/d".into()]);
    for policy in policies {
        let limiter = redis.limiter("a", parse(&policy)).unwrap();
        assert!(limiter.check_n("k", 8).await.unwrap().is_allowed());
        let key = server.cli(&["--scan"]);
        let shape = key.strip_prefix("tollgate:2:a:").unwrap();
        for other in [
            format!("tollgate:1:{shape}"),
            format!("tollgate:1:a:{shape}"),
            format!("tollgate:3:a:{shape}"),
            format!("tollgate:22:a:{shape}"),
        ] {
            assert_eq!(server.cli(&["RENAME", &key, &other]), "OK");
            assert!(limiter.peek("k").await.unwrap().remaining() >= 9, "{policy}: {other}");
            assert!(limiter.check_n("k", 8).await.unwrap().is_allowed(), "{policy}: {other}");
            assert_eq!(server.cli(&["DEL", &other]), "1");
        }
        // A newer version's fields behind the states. (A log on a key of its own has no place for any.)
        if policy.starts_with("sliding_log") {
            server.cli(&["FLUSHALL"]);
            continue;
        }
        let state_len: usize = server.cli(&["STRLEN", &key]).parse().unwrap();
        for fields in [1, 4, 5, 8, 9, 16, 24, 32, 33, 100] {
            assert_eq!(
                server.cli(&["APPEND", &key, &"\x01".repeat(fields)]),
                (state_len + fields).to_string()
            );
            let receipt = Receipt::for_request(&fields.to_string());
            for operation in [
                Operation::Peek(1),
                Operation::Check(1),
                Operation::TakeUpTo(1),
                Operation::Debit(1),
                Operation::Refund(1),
                Operation::Settle(1, &receipt),
            ] {
                let error = limiter.decide("k", operation).await.unwrap_err();
                assert!(error.is_refused(), "{policy}: {operation:?}: {error}");
                assert!(error.to_string().contains("of another version"), "{error}");
            }
            let cut = "redis.call('SET', KEYS[1], string.sub(redis.call('GET', KEYS[1]), 1, ARGV[1]), 'KEEPTTL')";
            let before = server.cli(&["STRLEN", &key]);
            assert_eq!(before, (state_len + fields).to_string(), "{policy}: it is left as it is");
            server.cli(&["EVAL", cut, "1", &key, &state_len.to_string()]);
        }
        assert!(!limiter.check_n("k", 3).await.unwrap().is_allowed(), "{policy}");
        server.cli(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn refused_keys_are_not_stored() {
    let server = Server::start(&[]);
    for (n, policy) in each_algorithm("10/min").iter().enumerate() {
        let limiter = connect(&server).await.limiter(&n.to_string(), parse(policy)).unwrap();
        for key in 0..10_000_u64 / 6 + 1 {
            assert!(!limiter.check_n(&key, 11).await.unwrap().is_allowed());
            assert!(limiter.peek(&key).await.unwrap().is_allowed());
            assert!(limiter.check_n(&key, 0).await.unwrap().is_allowed());
            assert_eq!(limiter.refund(&key, 5).await.unwrap().remaining(), 10);
        }
    }
    assert_eq!(server.cli(&["DBSIZE"]), "0");
}

proptest! {
    #![proptest_config(cases(60))]

    /// In the clients' time, told by the trace: the lower bound holds at all times, the upper
    /// one when the key is written.
    #[test]
    fn keys_live_as_long_as_their_states(policy in policy(), trace in jumping_trace(40)) {
        let runtime = Runtime::new().unwrap();
        let clock = ManualClock::new(Tick::from_micros(0));
        let name = name();
        let store = runtime.block_on(connect(&SHARED)).client_time(clock.clone());
        let limiter = store.limiter(&name, policy.clone()).unwrap();
        let (mut written_at, mut ttl_before) = (0, None::<u64>);
        for (now, operation) in trace {
            clock.set(Tick::from_micros(now));
            let decision = runtime.block_on(limiter.decide("k", operation)).unwrap();
            // A caller that asks earlier than the last writer counts from there.
            let earlier = written_at.max(now) - now;
            let reset_micros = micros(decision.reset_after());
            let fresh_millis = reset_micros.saturating_sub(earlier).div_ceil(1_000);
            let pattern = format!("tollgate:2:{name}:*");
            let key = SHARED.cli(&["--scan", "--pattern", &pattern]);
            let ttl = ttl_millis(&SHARED, &key);
            if fresh_millis > 0 {
                prop_assert!(ttl.is_some_and(|ttl| ttl >= fresh_millis), "{ttl:?} {decision:?}");
            }
            // A refund that finds nothing to give back leaves the expiry, and so does a log that lives
            // long enough: it was written by a client whose clock was behind.
            let is_kept = ttl.zip(ttl_before).is_some_and(|(ttl, before)| before.abs_diff(ttl) < 500);
            let changes = decision.granted() > 0 || matches!(operation, Operation::Refund(1..));
            ttl_before = ttl;
            if changes {
                written_at = written_at.max(now);
            }
            if changes && !is_kept {
                let longest = reset_micros / 1_000 * 11 / 10 + 1_010;
                prop_assert!(ttl.is_none_or(|ttl| ttl < longest), "{ttl:?} {decision:?}");
            }
        }
    }
}

/// In the server's time, as it passes: both bounds hold after every operation.
#[tokio::test]
async fn keys_live_as_long_as_their_states_by_the_servers_clock() {
    let server = Server::start(&[]);
    for policy in each_algorithm("20/2s").into_iter().chain(["10/s; sliding_log 30/4s".into()]) {
        let limiter = connect(&server).await.limiter("l", parse(&policy)).unwrap();
        for n in 0_u64..60 {
            let operation = match n % 7 {
                0 => Operation::Refund(1),
                1 => Operation::TakeUpTo(3),
                2 if n > 40 => Operation::Debit(9),
                _ => Operation::Check(n % 5),
            };
            let decision = limiter.decide("k", operation).await.unwrap();
            let key = server.cli(&["--scan"]);
            let ttl = ttl_millis(&server, &key);
            let fresh = micros(decision.reset_after()) / 1_000;
            // A command line takes some milliseconds.
            let soonest = fresh.saturating_sub(300);
            if soonest > 0 {
                let ttl = ttl.unwrap_or_else(|| panic!("{policy}: no key with {decision:?}"));
                assert!(ttl >= soonest, "{policy}: {ttl} {decision:?}");
            }
            assert!(ttl.is_none_or(|ttl| ttl < fresh + fresh / 10 + 1_000), "{policy}: {ttl:?}");
            tokio::time::sleep(Duration::from_millis(n % 9 * 10)).await;
        }
        server.cli(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn keys_of_one_moment_do_not_expire_together() {
    for policy in each_algorithm("9/400d") {
        let name = name();
        let limiter = connect(&SHARED).await.limiter(&name, parse(&policy)).unwrap();
        for key in 0..20 {
            assert!(limiter.check(&key).await.unwrap().is_allowed());
        }
        let keys = SHARED.cli(&["--scan", "--pattern", &format!("tollgate:2:{name}:*")]);
        let minutes = keys.lines().map(|key| ttl_millis(&SHARED, key).unwrap() / 60_000);
        let minutes: BTreeSet<u64> = minutes.collect();
        assert!(minutes.len() > 10, "{policy}: {minutes:?}");
    }
}

const LIMIT: u64 = 500;

/// Started by the next test, twice at a time: asks with many tasks until all are refused.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_tasks() {
    let Ok(url) = std::env::var("SHARED_URL") else { return };
    for policy in each_algorithm(&format!("{LIMIT}/h")) {
        let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
        let store = Redis::connect(&url).await.unwrap().timeout(MINUTE).client_time(clock);
        let limiter = std::sync::Arc::new(store.limiter(&policy, parse(&policy)).unwrap());
        let mut tasks = JoinSet::new();
        for _ in 0..64 {
            let limiter = std::sync::Arc::clone(&limiter);
            tasks.spawn(async move {
                let mut admitted = 0;
                for _ in 0..LIMIT / 16 {
                    admitted += u64::from((*limiter).check("k").await.unwrap().is_allowed());
                }
                admitted
            });
        }
        let admitted: u64 = tasks.join_all().await.into_iter().sum();
        println!("admitted {admitted} by {policy}");
    }
}

#[test]
fn two_processes_together_admit_exactly_the_limit() {
    let server = Server::start(&[]);
    let url = server.url();
    let processes: Vec<Child> =
        (0..2).map(|_| in_own_process("sixty_four_tasks", &[("SHARED_URL", &url)])).collect();
    let outputs = processes.into_iter().map(|process| {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    });
    let outputs: Vec<String> = outputs.collect();
    for policy in each_algorithm(&format!("{LIMIT}/h")) {
        let admitted = outputs.iter().map(|output| {
            let end = format!(" by {policy}");
            let line = output.lines().find_map(|line| line.strip_suffix(&end)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        });
        assert_eq!(admitted.sum::<u64>(), LIMIT, "{policy}");
    }
}

/// Ten thousand entries, of which thousands expire: the log is searched and cut.
#[tokio::test]
async fn a_long_log_decides_as_in_process() {
    for refund in [0, 1] {
        let policy: Policy = "sliding_log 10000/min".parse().unwrap();
        let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
        let store = connect(&SHARED).await.client_time(clock.clone());
        let in_redis = store.limiter(&name(), policy.clone()).unwrap();
        let in_process = Limiter::with_clock(policy, clock.clone());
        for n in 0..25_000_u64 {
            let pause = if n % 9_000 == 8_999 { 50_000_000 } else { 5_000 + n % 7 };
            clock.advance(Duration::from_micros(pause));
            let operation = match n % 500 {
                17 => Operation::Refund(refund * 700),
                18 => Operation::Check(300),
                19 => Operation::Debit(40),
                _ => Operation::Check(1),
            };
            let decision = in_redis.decide("k", operation).await.unwrap();
            assert_eq!(decision, in_process.decide("k", operation), "{n}");
        }
    }
}

/// Two limits of one algorithm, in two orders, alternating on one key, as in a rolling deploy: no
/// state is read as the other's.
/// At most twice the limit and one entry, of 16 bytes each.
#[tokio::test]
async fn debts_of_a_log_take_few_bytes() {
    let server = Server::start(&[]);
    for (policy, bytes) in
        [("sliding_log 10/h", 16 * 21), ("sliding_log 10/h; sliding_log 5/d", 16 * (21 + 11) + 8)]
    {
        let limiter = connect(&server).await.limiter("l", parse(policy)).unwrap();
        for _ in 0..200 {
            let _ = limiter.debit("k", 1).await.unwrap();
        }
        let key = server.cli(&["--scan"]);
        assert_eq!(server.cli(&["STRLEN", &key]), bytes.to_string(), "{policy}");
        server.cli(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn limits_that_change_places_do_not_change_states() {
    let texts = [
        ["sliding_log 10/min", "sliding_log 3/s"],
        ["minute: sliding_log 10/min", "second: sliding_log 3/s"],
    ];
    for [minute, second] in texts {
        let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
        let store = connect(&SHARED).await.client_time(clock.clone());
        let name = name();
        let order = |text: String| store.limiter(&name, parse(&text)).unwrap();
        let orders = [order(format!("{minute}; {second}")), order(format!("{second}; {minute}"))];
        for limiter in &orders {
            for _ in 0..10 {
                let _ = limiter.check_n("k", 2).await.unwrap();
                clock.advance(Duration::from_secs(1));
            }
            let minute = limiter.check("k").await.unwrap();
            assert!(!minute.is_allowed(), "the minute is used up");
        }
        for limiter in &orders {
            assert!(!limiter.check("k").await.unwrap().is_allowed());
        }
    }
}

/// Lua nests no deeper; what is too much is told, without asking the server.
#[tokio::test]
async fn a_set_has_64_limits_and_no_more() {
    let (store, name) = (connect(&SHARED).await, name());
    for (len, kind) in (0..6).map(|kind| (64, kind)).chain([(65, 0)]) {
        let text = (1..=len).map(|n| each_algorithm(&format!("{n}/min"))[kind].clone());
        let policy = parse(&text.collect::<Vec<_>>().join("; "));
        let limiter = store.limiter(&name, policy).unwrap();
        // Buckets of all kinds have one form, and so one state for each key.
        let key = format!("k{kind}");
        let reserved = limiter.reserve(&*key, 1).await;
        if len > 64 {
            let error = reserved.unwrap_err().to_string();
            assert_eq!(error, "a set in Redis has at most 64 limits, not 65");
        } else {
            // From a queue, the unit has left.
            let left = if kind == 1 { 0 } else { 1 };
            assert_eq!(reserved.unwrap().settle(0).await.unwrap().remaining(), left, "{kind}");
        }
    }
}

/// Two versions of a policy on one key, as in a rolling deploy.
#[tokio::test]
async fn two_versions_of_a_policy_share_a_key() {
    for kind in 0..6 {
        let versions = ["100/h", "300/h"].map(|quota| each_algorithm(quota)[kind].clone());
        let name = name();
        let store = connect(&SHARED).await;
        let [small, large] = versions.map(|version| store.limiter(&name, parse(&version)).unwrap());
        let (mut granted, mut key) = (0, String::new());
        for n in 0..1_000_u64 {
            let limiter = if n % 2 == 0 { &small } else { &large };
            let operation = match n % 10 {
                0 => Operation::TakeUpTo(2),
                1 => Operation::Peek(1),
                _ => Operation::Check(1),
            };
            let decision = match n % 4 {
                3 => small.decide_with(large.algorithm(), "k", operation).await,
                _ => limiter.decide("k", operation).await,
            };
            granted += decision.unwrap().granted();
            if n == 0 {
                key = SHARED.cli(&["--scan", "--pattern", &format!("tollgate:2:{name}:*")]);
            }
            assert!(ttl_millis(&SHARED, &key).is_some_and(|ttl| ttl > 0), "{n}");
        }
        assert!(!small.check_with(small.algorithm(), "k").await.unwrap().is_allowed());
        // What flows in meanwhile is a unit each 12 s.
        assert!((300..=305).contains(&granted), "{granted} with {:?}", large.algorithm());
    }
}

/// Two versions whose periods differ, by the server's clock: a key lives as long as the one says that
/// has written it last, however short the other's period is.
#[tokio::test]
async fn a_version_with_a_longer_period_makes_a_key_live_longer() {
    let server = Server::start(&[]);
    let set = ("9/s; sliding_log 100/2s".to_owned(), "9/d; sliding_log 300/h".to_owned());
    let versions = each_algorithm("100/2s").into_iter().zip(each_algorithm("300/h"));
    for (short, long) in versions.chain([set]) {
        let limiter = connect(&server).await.limiter("l", parse(&short)).unwrap();
        let long = parse(&long);
        for _ in 0..3 {
            let _ = limiter.debit("k", 1).await.unwrap();
            let decision = limiter.decide_with(&long, "k", Operation::Debit(9)).await.unwrap();
            // A command line takes some milliseconds.
            let ttl = ttl_millis(&server, &server.cli(&["--scan"])).unwrap_or_default() + 300;
            assert!(ttl >= micros(decision.reset_after()) / 1_000, "{short}: {ttl} {decision:?}");
        }
        server.cli(&["FLUSHALL"]);
    }
}

#[allow(dead_code, reason = "its main function")]
#[path = "../examples/own_algorithm.rs"]
mod own_algorithm;

proptest! {
    #![proptest_config(cases(200))]

    /// The example of an own algorithm keeps its promise, alone and in a set.
    #[test]
    fn an_own_algorithm_decides_in_redis_as_in_process(trace in jumping_trace(60)) {
        let runtime = Runtime::new().unwrap();
        let cooldown = || own_algorithm::Cooldown::new(Duration::from_millis(200));
        let set = || All((cooldown(), SlidingLog::new(Quota::per_minute(5))));
        let clock = ManualClock::new(Tick::from_micros(0));
        let store = runtime.block_on(connect(&SHARED)).client_time(clock.clone()).min_ttl(MINUTE);
        let name = name();
        let in_redis = (
            store.limiter(&name, cooldown()).unwrap(),
            store.limiter(&name, set()).unwrap(),
        );
        let in_process = (
            Limiter::with_clock(cooldown(), clock.clone()),
            Limiter::with_clock(set(), clock.clone()),
        );
        for (now, operation) in trace {
            // Debts of centuries are not its concern.
            let operation = match operation {
                Operation::Debit(n) => Operation::Debit(n.min(100)),
                other => other,
            };
            clock.set(Tick::from_micros(now));
            let alone = runtime.block_on(in_redis.0.decide("k", operation)).unwrap();
            prop_assert_eq!(alone, in_process.0.decide("k", operation), "{:?} at {}", operation, now);
            let set = runtime.block_on(in_redis.1.decide("k", operation)).unwrap();
            prop_assert_eq!(set, in_process.1.decide("k", operation), "{:?} at {}", operation, now);
        }
    }
}

/// By the clients' clocks, a key whose units were all given back holds its instant for as long as they
/// would have been kept: so a clock that is behind finds no new budget before.
#[tokio::test]
async fn an_emptied_key_lives_on_in_the_clients_time() {
    for policy in each_algorithm("10/min") {
        let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
        let name = name();
        let store = connect(&SHARED).await.client_time(clock.clone());
        let limiter = store.limiter(&name, parse(&policy)).unwrap();
        let receipt = Receipt::new();
        let _ = limiter.decide("k", Operation::Reserve(10, &receipt)).await.unwrap();
        let _ = limiter.decide("k", Operation::Settle(0, &receipt)).await.unwrap();
        let key = SHARED.cli(&["--scan", "--pattern", &format!("tollgate:2:{name}:*")]);
        let ttl = ttl_millis(&SHARED, &key);
        assert!(ttl.is_some_and(|ttl| (50_000..130_000).contains(&ttl)), "{policy}: {ttl:?}");
        // A minute earlier, time stands still, and all there is is there once.
        clock.set(Tick::from_micros(MIDNIGHT - 60_000_000));
        assert!(limiter.check_n("k", 10).await.unwrap().is_allowed(), "{policy}");
        clock.set(Tick::from_micros(MIDNIGHT));
        assert!(!limiter.check("k").await.unwrap().is_allowed(), "{policy}");
        // What a refund finds nothing of leaves no key.
        let _ = limiter.refund("other", 3).await.unwrap();
        let others = SHARED.cli(&["--scan", "--pattern", &format!("tollgate:2:{name}:*:other")]);
        assert_eq!(others, "", "{policy}");
    }
}
