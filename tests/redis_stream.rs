//! The store in Redis, with its refusals published to a stream.

mod common;

use common::redis::{SHARED, name};
use common::redis_server::Server;
use common::{MIDNIGHT, each_algorithm, parse};
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::time::Duration;
use tollgate::{
    Decision, ManualClock, Operation, Quota, RateLimiter, Receipt, Redis, Tick, TokenBucket,
};

const MINUTE: Duration = Duration::from_secs(60);

async fn connect(server: &Server) -> Redis {
    Redis::connect(&server.url()).await.unwrap().timeout(MINUTE)
}

/// Who reads the stream.
struct Watcher(MultiplexedConnection);

type Entry = HashMap<String, Vec<u8>>;

impl Watcher {
    async fn new(server: &Server) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        Self(client.get_multiplexed_async_connection().await.unwrap())
    }

    /// The entries that were added since it was last asked.
    async fn new_entries(&mut self, stream: &str) -> Vec<Entry> {
        let mut read = redis::pipe();
        read.atomic().cmd("XRANGE").arg(stream).arg("-").arg("+");
        read.cmd("XTRIM").arg(stream).arg("MAXLEN").arg(0).ignore();
        let (entries,): (Vec<(String, Entry)>,) = read.query_async(&mut self.0).await.unwrap();
        entries.into_iter().map(|(_, fields)| fields).collect()
    }
}

fn entry(limits: &str, key: &[u8], asked: u64, room: u64) -> Entry {
    let (asked, room) = (asked.to_string(), room.to_string());
    let fields = [("limits", limits.as_bytes()), ("key", key)];
    let numbers = [("asked", asked.as_bytes()), ("room", room.as_bytes())];
    fields.into_iter().chain(numbers).map(|(name, told)| (name.to_owned(), told.into())).collect()
}

/// How many units `operation` asks for, where it is published if it is refused.
fn asked(operation: Operation<'_>) -> Option<u64> {
    match operation {
        Operation::Check(n) | Operation::Reserve(n, _) | Operation::TakeUpTo(n) => Some(n),
        _ => None,
    }
}

/// Policies of ten a day, with what they are called in a key: alone, a log alone among them, and
/// in sets, with names and without.
fn policies() -> Vec<(String, &'static str)> {
    let shapes = ["bucket", "bucket", "bucket", "fixed_window", "sliding_log"];
    let shapes = shapes.into_iter().chain(["sliding_window_counter"]);
    let sets = [
        ("sliding_log 10/d; token_bucket 90/d", "sliding_log+bucket"),
        (
            "token_bucket 50/min; day: sliding_window_counter 10/d",
            "bucket+day=sliding_window_counter",
        ),
        ("day: fixed_window 10/d", "fixed_window"),
    ];
    let sets = sets.map(|(policy, shape)| (policy.to_owned(), shape));
    each_algorithm("10/d").into_iter().zip(shapes).chain(sets).collect()
}

/// All that can be asked, of a key that is fresh, used in part, used up, and in debt: each step is
/// taken with and without publication, and the stream is read after it.
async fn each_refusal_is_published_once(clock: Option<ManualClock>) {
    let mut watcher = Watcher::new(&SHARED).await;
    for (policy, shape) in policies() {
        let store = connect(&SHARED).await;
        let store = match &clock {
            Some(clock) => store.client_time(clock.clone()),
            None => store,
        };
        let (ours, stream) = (name(), name());
        let plain = store.limiter(&name(), parse(&policy)).unwrap();
        let publishing = store.publish_refusals(&stream, 1_000).unwrap();
        let publishing = publishing.limiter(&ours, parse(&policy)).unwrap();
        let kept = [Receipt::new(), Receipt::new()];
        let spare = [Receipt::new(), Receipt::new()];
        let steps = |which: usize| {
            [
                Operation::Peek(11),
                Operation::Check(0),
                Operation::TakeUpTo(0),
                Operation::Refund(3),
                Operation::Check(11),
                Operation::Check(u64::MAX),
                Operation::Reserve(11, &spare[which]),
                Operation::Check(4),
                Operation::Reserve(3, &kept[which]),
                Operation::Check(4),
                Operation::Peek(4),
                Operation::Reserve(5, &spare[which]),
                Operation::TakeUpTo(9),
                Operation::TakeUpTo(9),
                Operation::TakeUpTo(0),
                Operation::Check(0),
                Operation::Check(1),
                Operation::Settle(5, &kept[which]),
                Operation::Debit(7),
                Operation::Check(2),
                Operation::TakeUpTo(2),
                Operation::Check(0),
                Operation::TakeUpTo(0),
                Operation::Peek(1),
                Operation::Refund(1),
                Operation::Reset,
                Operation::Check(1),
            ]
        };
        let mut refusals = 0;
        for (step, (operation, same)) in steps(0).into_iter().zip(steps(1)).enumerate() {
            let described = format!("{policy}, step {step}: {operation:?}");
            let decision = publishing.decide("k", operation).await.unwrap();
            let without = plain.decide("k", same).await.unwrap();
            if clock.is_some() {
                assert_eq!(decision, without, "{described}");
            }
            let numbers = |of: Decision| (of.is_allowed(), of.granted(), of.remaining());
            assert_eq!(numbers(decision), numbers(without), "{described}");
            let refused = asked(operation).filter(|_| !decision.is_allowed());
            let expected = refused.map(|asked| {
                let (limits, asked) =
                    (format!("tollgate:2:{ours}:{shape}"), asked.min((1 << 53) - 1));
                entry(&limits, b"k", asked, decision.remaining())
            });
            let published = watcher.new_entries(&stream).await;
            assert_eq!(published, Vec::from_iter(expected), "{described}");
            refusals += published.len();
            if let Some(clock) = &clock {
                clock.advance(Duration::from_millis(10));
            }
        }
        assert_eq!(refusals, 9, "{policy}");
        let state = format!("tollgate:2:{ours}:{shape}:k");
        assert_eq!(SHARED.cli(&["EXISTS", &state]), "1", "{policy}: limits and key name the state");
    }
}

#[tokio::test]
async fn each_refusal_is_published_once_in_the_servers_time() {
    each_refusal_is_published_once(None).await;
}

#[tokio::test]
async fn each_refusal_is_published_once_in_the_clients_time() {
    each_refusal_is_published_once(Some(ManualClock::new(Tick::from_micros(MIDNIGHT)))).await;
}

#[tokio::test]
async fn published_refusals_do_not_store_their_keys() {
    let server = Server::start(&[]);
    for (policy, _) in policies() {
        let store = connect(&server).await.publish_refusals("refusals", 1_000).unwrap();
        let limiter = store.limiter("l", parse(&policy)).unwrap();
        for key in 0..20_u64 {
            assert!(!limiter.check_n(&key, 11).await.unwrap().is_allowed());
        }
        assert_eq!(server.cli(&["--scan"]), "refusals", "{policy}");
    }
}

/// The server drops whole nodes, of a hundred entries.
#[tokio::test]
async fn a_stream_stays_near_its_length() {
    let stream = name();
    let store = connect(&SHARED).await.publish_refusals(&stream, 500).unwrap();
    let limiter = store.limiter(&name(), TokenBucket::new(Quota::per_hour(1))).unwrap();
    for key in 0..2_000_u64 {
        let _ = limiter.check_n(&key, 2).await.unwrap();
        let full = key > 500 && key % 37 == 0;
        let length: u64 = if full { SHARED.cli(&["XLEN", &stream]).parse().unwrap() } else { 500 };
        assert!((500..=600).contains(&length), "{length} after {key}");
    }
    let newest = Watcher::new(&SHARED).await.new_entries(&stream).await.pop().unwrap();
    assert_eq!(newest["key"], b"1999");
}

#[tokio::test]
async fn keys_are_published_as_they_are_stored() {
    let (ours, stream) = (name(), name());
    let store = connect(&SHARED).await.prefix(&format!("{ours}:%:é"));
    let store = store.publish_refusals(&stream, 1_000).unwrap();
    let limiter = store.limiter("a: b", TokenBucket::new(Quota::per_hour(1)));
    assert!(limiter.is_err());
    let limiter = store.limiter("%a = {b}", TokenBucket::new(Quota::per_hour(1))).unwrap();
    let limits = format!("{ours}:%:é:2:%25a %3D %7Bb%7D:bucket");
    let all: Vec<u8> = (0..=255).collect();
    let mut watcher = Watcher::new(&SHARED).await;
    for key in [&b""[..], b":", b"a:1:bucket:b", b"\xff\x00\r\n%s%", &all[..128], &all[128..]] {
        assert!(!limiter.check_n(key, 2).await.unwrap().is_allowed());
        assert_eq!(watcher.new_entries(&stream).await, [entry(&limits, key, 2, 1)]);
    }
    let _ = limiter.check_n(&("a:b", 7), 2).await.unwrap();
    assert_eq!(watcher.new_entries(&stream).await[0]["key"], b"a%3Ab:7");
    let _ = limiter.check_n(&all[..], 2).await.unwrap();
    // What `sha256sum` prints.
    let hash = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880";
    let expected = entry(&limits, format!("%sha256={hash}").as_bytes(), 2, 1);
    assert_eq!(watcher.new_entries(&stream).await, [expected]);
}

/// A refusal must not become an error, which may let the request through.
#[tokio::test]
async fn a_stream_that_cannot_be_written_changes_no_decision() {
    let harms: [&[&str]; 3] = [
        &["SET", "refusals", "not a stream"],
        &["CONFIG", "SET", "maxmemory", "1"],
        &["ACL", "SETUSER", "default", "-xadd"],
    ];
    for harm in harms {
        let server = Server::start(&[]);
        let store = connect(&server).await;
        for policy in each_algorithm("10/d") {
            let store = store.clone().publish_refusals("refusals", 1_000).unwrap();
            let limiter = store.limiter(&policy, parse(&policy)).unwrap();
            assert!(limiter.check_n("k", 8).await.unwrap().is_allowed());
        }
        assert_eq!(server.cli(harm), "OK");
        for policy in each_algorithm("10/d") {
            let store = store.clone().publish_refusals("refusals", 1_000).unwrap();
            let limiter = store.limiter(&policy, parse(&policy)).unwrap();
            let refused = limiter.check_n("k", 3).await.unwrap();
            assert!(!refused.is_allowed(), "{policy}: {harm:?}");
            assert_eq!(refused.remaining(), 2, "{policy}: {harm:?}");
        }
        if harm[0] == "SET" {
            let commands = server.cli(&["INFO", "commandstats"]);
            let adding = commands.lines().find(|line| line.starts_with("cmdstat_xadd:")).unwrap();
            assert!(adding.contains("failed_calls=6"), "{adding}");
        }
    }
}

/// The stream is among the keys that the call declares.
#[tokio::test]
async fn a_stream_that_a_user_may_not_touch_is_an_error_at_once() {
    let server = Server::start(&[]);
    let user = ["ACL", "SETUSER", "limited", "~tollgate:*", "+@all", ">secret", "on"];
    assert_eq!(server.cli(&user), "OK");
    let url = format!("redis://limited:secret@127.0.0.1:{}/", server.port);
    let store = Redis::connect(&url).await.unwrap().timeout(MINUTE);
    let bucket = TokenBucket::new(Quota::per_hour(10));
    let other = store.clone().publish_refusals("refusals", 1_000).unwrap();
    let error = other.limiter("l", bucket).unwrap().check("k").await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    let own = store.publish_refusals("tollgate:refusals", 1_000).unwrap();
    assert!(own.limiter("l", bucket).unwrap().check("k").await.unwrap().is_allowed());
}

#[tokio::test]
async fn a_stream_has_a_length() {
    let store = connect(&SHARED).await;
    for length in [0, Quota::MAX_COUNT + 1] {
        let error = store.clone().publish_refusals("refusals", length).unwrap_err();
        let expected = format!("a stream's length must be 1 to 10000000000000, not {length}");
        assert_eq!(error.to_string(), expected);
    }
}
