//! Snapshots of the store in process: what is used stays used through a restart.

mod common;

use common::{
    DAY, HOUR, MIDNIGHT, MINUTE, SECOND, cases, each_algorithm, jumping_trace, operation, parse,
    pause, policy,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;
use tollgate::{
    Algorithm, All, Carry, Clock, Dated, Decision, FixedWindow, Limiter, Live, ManualClock, Memory,
    Operation, Policy, PolicyState, Quota, SlidingLog, SlidingWindowCounter, Snapshot, Tick,
    TieredMemory, TokenBucket,
};

type InProcess<A> = Limiter<A, Memory<<A as Algorithm>::State, ManualClock>>;

fn clock(micros: u64) -> ManualClock {
    ManualClock::new(Tick::from_micros(micros))
}

/// As it is after it was written down and read again.
fn reread<T: Serialize + DeserializeOwned>(snapshot: &Snapshot<T>) -> Snapshot<T> {
    serde_json::from_str(&serde_json::to_string(snapshot).unwrap()).unwrap()
}

fn restart<A>(old: &InProcess<A>, micros: u64) -> (ManualClock, InProcess<A>)
where
    A: Algorithm<State: Serialize + DeserializeOwned> + Clone,
{
    let clock = clock(micros);
    let new = Limiter::restore_with_clock(
        old.algorithm().clone(),
        clock.clone(),
        reread(&old.snapshot()),
    );
    (clock, new.unwrap())
}

/// Policies of each kind, with counts on both sides of what a bucket keeps in its short number.
fn policies() -> Vec<Policy> {
    let mut texts = Vec::from(each_algorithm("1000/h"));
    texts.extend(each_algorithm("999999937/d"));
    texts.push("100/min; token_bucket 7/s burst 300; sliding_log 500/h".to_owned());
    texts.iter().map(|text| parse(text)).collect()
}

/// All that can be asked, of odd sizes.
fn operations(n: u64) -> [Operation<'static>; 8] {
    [
        Operation::Peek(1 + n % 2_000),
        Operation::Check(1 + n % 7),
        Operation::TakeUpTo(n % 400),
        Operation::Check(0),
        Operation::Debit(n % 1_900),
        Operation::Refund(n % 50),
        Operation::Check(n % 700_000_000),
        if n.is_multiple_of(9) { Operation::Reset } else { Operation::Peek(1) },
    ]
}

/// A small generator (Knuth's MMIX) of numbers below 2^32.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    *seed >> 32
}

/// Takes units for thousands of keys at odd instants, and returns the latest.
fn use_up<A: Algorithm>(limiter: &InProcess<A>, clock: &ManualClock) -> u64 {
    let (mut seed, mut now) = (11, MIDNIGHT);
    for _ in 0..20_000 {
        now += random(&mut seed) % (SECOND / 5);
        clock.set(Tick::from_micros(now));
        let (key, n) = (random(&mut seed) % 3_000, random(&mut seed));
        let operations = operations(n);
        let _ = limiter.decide(&key, operations[usize::try_from(n % 8).unwrap()]);
    }
    now
}

fn assert_alike<A: Algorithm>(
    [old_clock, new_clock]: [&ManualClock; 2],
    [old, new]: [&InProcess<A>; 2],
    from: u64,
) {
    let mut seed = 5;
    for later in [0, 1, 7 * SECOND + 3, 20 * MINUTE + 1, HOUR, 3 * HOUR, 2 * DAY, 40 * DAY] {
        for clock in [old_clock, new_clock] {
            clock.set(Tick::from_micros(from + later));
        }
        // Some keys were never asked for before.
        for key in (0..3_100_u64).step_by(1 + usize::try_from(later % 3).unwrap()) {
            for operation in operations(random(&mut seed)) {
                let [was, is] = [old, new].map(|limiter| limiter.decide(&key, operation));
                assert_eq!(is, was, "{operation:?} for {key}, {later} later");
            }
        }
    }
}

#[test]
fn a_restored_limiter_decides_as_the_old_one_would_have() {
    for policy in policies() {
        let old_clock = clock(MIDNIGHT);
        let old = Limiter::with_clock(policy, old_clock.clone());
        let now = use_up(&old, &old_clock);
        let (new_clock, new) = restart(&old, now);
        assert!(new.len() > 1_000, "{}", new.len());
        assert_alike([&old_clock, &new_clock], [&old, &new], now + 90 * SECOND);
    }
}

#[test]
fn so_does_one_whose_algorithm_is_chosen_when_compiling() {
    fn assert_restored<A>(algorithm: A)
    where
        A: Algorithm<State: Serialize + DeserializeOwned> + Clone,
    {
        let old_clock = clock(MIDNIGHT);
        let old = Limiter::with_clock(algorithm, old_clock.clone());
        let now = use_up(&old, &old_clock);
        let (new_clock, new) = restart(&old, now);
        assert!(new.len() > 1_000, "{}", new.len());
        assert_alike([&old_clock, &new_clock], [&old, &new], now + SECOND);
    }

    let (hourly, daily) = (Quota::per_hour(1_000), Quota::per_day(2_000));
    assert_restored(TokenBucket::new(hourly));
    assert_restored(FixedWindow::new(hourly));
    assert_restored(SlidingLog::new(hourly));
    assert_restored(SlidingWindowCounter::new(hourly));
    assert_restored(All((TokenBucket::new(hourly), SlidingLog::new(daily))));
    assert_restored(All(vec![SlidingLog::new(hourly), SlidingLog::new(daily)]));
}

/// TOML need not have numbers from 2^63 on; postcard does not say what follows.
#[test]
fn toml_and_postcard_hold_snapshots_too() {
    for policy in policies() {
        let old = Limiter::with_clock(policy.clone(), clock(MIDNIGHT)).max_keys(100);
        assert!((0..200).map(|key| old.check(&key)).filter(Decision::is_allowed).count() > 100);
        let snapshot = old.snapshot();
        let toml = toml::to_string(&snapshot).unwrap();
        let bytes = postcard::to_stdvec(&snapshot).unwrap();
        let reread: [Snapshot<PolicyState>; 2] =
            [toml::from_str(&toml).unwrap(), postcard::from_bytes(&bytes).unwrap()];
        for snapshot in reread {
            let new = Limiter::restore_with_clock(policy.clone(), clock(MIDNIGHT), snapshot);
            let new = new.unwrap().max_keys(100);
            for key in 0..300 {
                assert_eq!(new.peek(&key), old.peek(&key), "{policy}");
            }
        }
    }
}

#[test]
fn a_limited_key_stays_so_to_the_end_of_its_wait_and_an_idle_one_is_left_out() {
    for policy in each_algorithm("10/min") {
        let old_clock = clock(MIDNIGHT);
        let old = Limiter::with_clock(parse(&policy), old_clock.clone());
        assert!(old.check_n("idle", 10).is_allowed(), "{policy}");
        old_clock.advance(Duration::from_secs(120));
        assert_eq!(old.take_up_to("alice", 50).granted(), 10, "{policy}");
        let wait = old.check("alice").retry_after().unwrap();

        let snapshot = old.snapshot();
        assert_eq!((old.len(), snapshot.len(), snapshot.is_empty()), (2, 1, false), "{policy}");
        let (clock, new) = restart(&old, MIDNIGHT + 120 * SECOND);
        assert_eq!(new.peek("idle").remaining(), 10, "{policy}");
        clock.advance(wait - Duration::from_micros(1));
        assert!(!new.check("alice").is_allowed(), "{policy}");
        clock.advance(Duration::from_micros(1));
        assert!(new.check("alice").is_allowed(), "{policy}");
    }
}

/// What was dropped, by the snapshot or before it, has been so at an instant that is known.
#[test]
fn a_clock_that_goes_back_past_a_snapshot_mints_nothing() {
    for policy in each_algorithm("1000/min") {
        for dropped_before in [false, true] {
            let old_clock = clock(MIDNIGHT);
            let old = Limiter::with_clock(parse(&policy), old_clock.clone());
            assert!(old.check_n("alice", 1_000).is_allowed(), "{policy}");
            old_clock.advance(Duration::from_secs(3_600));
            if dropped_before {
                old.shrink_to_fit();
            }
            let (clock, new) = restart(&old, MIDNIGHT);
            assert!(new.is_empty(), "{policy}");
            // As if an hour later: all there is, once.
            assert!(new.check_n("alice", 1_000).is_allowed(), "{policy}");
            clock.set(Tick::from_micros(MIDNIGHT + HOUR));
            assert!(!new.check("alice").is_allowed(), "{policy}");
        }
    }
}

/// A refund is the last that some states remember: it was later than what they count.
#[test]
fn a_clock_that_goes_back_stands_still_in_a_restored_limiter_as_in_the_old_one() {
    for policy in each_algorithm("10/h") {
        let old_clock = clock(MIDNIGHT);
        let old = Limiter::with_clock(parse(&policy), old_clock.clone());
        assert!(old.check_n("alice", 9).is_allowed(), "{policy}");
        old_clock.advance(Duration::from_secs(10));
        assert!(old.refund("alice", 1).is_allowed(), "{policy}");
        let (_, new) = restart(&old, MIDNIGHT);
        old_clock.set(Tick::from_micros(MIDNIGHT));
        assert_eq!(new.peek("alice"), old.peek("alice"), "{policy}");
    }
}

/// A limiter for one key, which has a unit left, where all other keys have used up their budget.
fn full(policy: &str) -> InProcess<Policy> {
    let limiter = Limiter::with_clock(parse(policy), clock(MIDNIGHT)).max_keys(1);
    assert!(limiter.check_n("alice", 999).is_allowed());
    assert_eq!(limiter.take_up_to("mallory", 2_000).granted(), 1_000);
    limiter
}

#[test]
fn what_was_used_beyond_the_cap_stays_used() {
    for policy in each_algorithm("1000/h") {
        for cap in [None, Some(1), Some(100_000)] {
            let (clock, new) = restart(&full(&policy), MIDNIGHT);
            let new = match cap {
                Some(keys) => new.max_keys(keys),
                None => new,
            };
            for stranger in ["mallory", "trudy"] {
                assert!(!new.check(stranger).is_allowed(), "{policy}, {cap:?}");
            }
            assert!(new.check("alice").is_allowed(), "{policy}, {cap:?}");
            assert!(!new.check("alice").is_allowed(), "{policy}, {cap:?}");
            clock.advance(Duration::from_secs(2 * 3_600));
            assert!(new.check_n("trudy", 1_000).is_allowed(), "{policy}, {cap:?}");
            assert!(new.check_n("mallory", 1_000).is_allowed(), "{policy}, {cap:?}");
            // Who has the one place by now is not who shares.
            assert_eq!(new.check("victor").is_allowed(), cap != Some(1), "{policy}, {cap:?}");
        }
    }
}

/// In a store with a cap as in one without.
#[test]
fn where_there_are_more_keys_than_the_cap_all_stay_and_none_is_added() {
    for old_cap in [None, Some(5_000)] {
        let old = Limiter::with_clock(parse("token_bucket 2/h"), clock(MIDNIGHT));
        let old = match old_cap {
            Some(keys) => old.max_keys(keys),
            None => old,
        };
        for key in 0..5_000 {
            assert!(old.check(&key).is_allowed());
        }
        let (clock, new) = restart(&old, MIDNIGHT);
        let new = new.max_keys(300);
        let strangers = 5_000..9_000;
        let granted: u64 = strangers.map(|key| new.take_up_to(&key, 2).granted()).sum();
        assert_eq!((granted, new.len()), (2, 5_000), "one budget for all");
        for key in 0..5_000 {
            assert!(new.check(&key).is_allowed());
            assert!(!new.check(&key).is_allowed());
        }
        clock.advance(Duration::from_secs(2 * 3_600));
        new.shrink_to_fit();
        for key in 0..5_000 {
            let _ = new.check(&key);
        }
        assert_eq!(new.len(), 300);
    }
}

#[test]
fn limits_need_not_be_those_of_old() {
    for [old, new] in [
        ["token_bucket 100/h", "token_bucket 200/h"],
        ["token_bucket 100/h", "sliding_log 200/h"],
        ["sliding_log 100/h", "fixed_window 200/h; 500/d"],
        ["sliding_log 100/h; 100/d", "leaky_bucket 200/h"],
    ] {
        let before = Limiter::with_clock(parse(old), clock(MIDNIGHT));
        assert_eq!(before.check_n("alice", 60).remaining(), 40);
        let snapshot = reread(&before.snapshot());
        let after = Limiter::restore_with_clock(parse(new), clock(MIDNIGHT), snapshot).unwrap();
        assert_eq!(after.peek("alice").remaining(), 140, "from {old} to {new}");
    }
}

#[test]
fn limits_that_can_be_replaced_can_be_restored() {
    let clock = clock(MIDNIGHT);
    let old =
        Limiter::with_store(Live::new(parse("token_bucket 100/h")), Memory::new(clock.clone()));
    assert!(old.check_n("alice", 60).is_allowed());
    let live = Live::new(parse("token_bucket 100/h"));
    let new = Limiter::restore_with_clock(live, clock, reread(&old.snapshot())).unwrap();
    let new = new.max_keys(1);
    assert_eq!(new.peek("alice").remaining(), 40);
    new.replace_with(parse("token_bucket 10/h"), Carry::InProportion);
    assert_eq!(new.peek("alice").remaining(), 4);
}

/// By limits that differ, in a store with and without a cap.
#[test]
fn a_tiered_store_is_restored_with_its_dates() {
    let [hourly, daily]: [Policy; 2] = ["token_bucket 10/h", "sliding_log 10/d"].map(parse);
    for cap in [None, Some(100)] {
        let old_clock = clock(MIDNIGHT);
        let old = TieredMemory::new(old_clock.clone());
        let limiter = Limiter::with_store(hourly.clone(), old.clone());
        assert!(limiter.check_with(&daily, "daily").is_allowed());
        assert!(limiter.check("idle").is_allowed());
        old_clock.advance(Duration::from_secs(7_200));
        assert!(limiter.check_n("hourly", 10).is_allowed());

        let snapshot = reread(&old.snapshot());
        assert_eq!(snapshot.len(), 2);
        let new_clock = clock(MIDNIGHT + 2 * HOUR);
        let new = match cap {
            None => TieredMemory::restore(new_clock.clone(), snapshot),
            Some(keys) => TieredMemory::restore_with_max_keys(new_clock.clone(), keys, snapshot),
        };
        let new = new.unwrap();
        let restored = Limiter::with_store(hourly.clone(), new.clone());
        for clock in [&old_clock, &new_clock] {
            clock.advance(Duration::from_secs(1_800));
        }
        new.shrink_to_fit();
        assert_eq!(restored.len(), 2, "what says something by its own limits is not dropped");
        for key in ["daily", "idle", "hourly"] {
            assert_eq!(restored.peek(key), limiter.peek(key), "{key}");
        }
        for key in ["daily", "hourly"] {
            let [was, is] = [&limiter, &restored].map(|limiter| limiter.check_with(&daily, key));
            assert_eq!(is, was, "{key}");
        }
    }
}

#[test]
fn what_was_used_beyond_the_cap_of_a_tiered_store_stays_used() {
    let clock = clock(MIDNIGHT);
    let old = TieredMemory::with_max_keys(clock.clone(), 1);
    let limiter = Limiter::with_store(parse("token_bucket 10/h"), old.clone());
    assert!(limiter.check("alice").is_allowed());
    assert!(limiter.check_n("mallory", 10).is_allowed());
    let new = TieredMemory::restore_with_max_keys(clock, 1, reread(&old.snapshot())).unwrap();
    let limiter = Limiter::with_store(parse("token_bucket 10/h"), new);
    assert!(!limiter.check("trudy").is_allowed());
    assert_eq!(limiter.peek("alice").remaining(), 9);
}

/// Whoever was limited before it was taken is so afterwards.
#[test]
fn a_snapshot_is_taken_while_decisions_go_on() {
    let limiter = Limiter::with_clock(parse("token_bucket 1/h"), clock(MIDNIGHT)).max_keys(100_000);
    let asked = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for key in 0..60_000_u64 {
                assert!(limiter.check(&key).is_allowed());
                asked.store(key, Ordering::Release);
            }
        });
        loop {
            let before = asked.load(Ordering::Acquire);
            let snapshot = limiter.snapshot();
            let policy = limiter.algorithm().clone();
            let new = Limiter::restore_with_clock(policy, clock(MIDNIGHT), snapshot).unwrap();
            for key in 0..before {
                assert!(!new.check(&key).is_allowed(), "{key} of {before}");
            }
            if before == 59_999 {
                break;
            }
        }
    });
}

/// Whoever replaces limits does not wait for it, and so keeps nobody else from being decided on.
#[test]
fn limits_are_replaced_while_a_snapshot_is_taken() {
    static LIMITER: OnceLock<Limiter<Live<Policy>, Memory<PolicyState, Replacing>>> =
        OnceLock::new();
    static IS_TAKEN: AtomicBool = AtomicBool::new(false);

    /// It is asked in the midst of a snapshot.
    struct Replacing;

    impl Clock for Replacing {
        fn now(&self) -> Tick {
            if IS_TAKEN.swap(false, Ordering::Relaxed) {
                let (done, is_done) = mpsc::channel();
                thread::spawn(move || {
                    LIMITER.get().unwrap().replace(parse("5/h"));
                    done.send(()).unwrap();
                });
                is_done.recv_timeout(Duration::from_secs(10)).expect("it is replaced by then");
            }
            Tick::from_micros(MIDNIGHT)
        }
    }

    let live = Live::new(parse("10/h"));
    let limiter = LIMITER.get_or_init(|| Limiter::with_store(live, Memory::new(Replacing)));
    assert!(limiter.check("alice").is_allowed());
    IS_TAKEN.store(true, Ordering::Relaxed);
    assert_eq!(limiter.snapshot().len(), 1);
    assert!(!IS_TAKEN.load(Ordering::Relaxed));
    assert_eq!(limiter.peek("alice").remaining(), 4);
}

/// A snapshot in which alice and bob have taken units, as JSON.
fn json(policy: &str) -> Value {
    let limiter = Limiter::with_clock(parse(policy), clock(MIDNIGHT));
    for key in ["alice", "bob"] {
        assert!(limiter.check_n(key, 3).is_allowed());
        assert!(limiter.check_n(key, 2).is_allowed());
    }
    serde_json::to_value(limiter.snapshot()).unwrap()
}

fn read(json: Value) -> Result<InProcess<Policy>, String> {
    let snapshot: Snapshot<PolicyState> =
        serde_json::from_value(json).map_err(|error| error.to_string())?;
    Limiter::restore_with_clock(parse("10/h"), clock(MIDNIGHT), snapshot)
        .map_err(|error| error.to_string())
}

#[test]
fn what_this_program_cannot_restore_is_refused_with_a_reason() {
    let hashing = "a snapshot cannot be restored: it is damaged, or was taken by a program that \
                   hashes keys otherwise, on another kind of machine or with other versions of its \
                   libraries";
    let fingerprints = "a snapshot cannot be restored: its fingerprints are not those of a store";
    let table = [
        ("/format", json!(2), "a snapshot of format 2, where 1 is the one that is known"),
        ("/check", json!(1), hashing),
        ("/seeds/0", json!(1), hashing),
        ("/seeds/1", json!(1), hashing),
        ("/states/0/0", json!(u64::MAX), fingerprints),
    ];
    for (place, value, reason) in table {
        let mut json = json("10/h");
        *json.pointer_mut(place).unwrap() = value;
        assert_eq!(read(json).unwrap_err(), reason, "{place}");
    }
    let mut twice = json("10/h");
    let states = twice["states"].as_array_mut().unwrap();
    states.push(states[0].clone());
    assert_eq!(read(twice).unwrap_err(), fingerprints);
    assert!(read(json("10/h")).is_ok());
}

#[test]
fn states_that_no_limiter_writes_are_refused() {
    let late = Tick::MAX.as_micros() + 1;
    let (most, apart) = ((1_u64 << 45) - 1, "a bucket's instants are too far apart");
    let disorder = "a log's entries are out of order or too many";
    let counter = "sliding_window_counter 10/h";
    let entries = |entries: &[(u64, u64)]| -> Value {
        entries.iter().map(|(at, units)| json!({ "taken_at": at, "units": units })).collect()
    };
    let table = [
        ("token_bucket 10/h", "bucket/1/used", json!(most + 1), "more than can be counted"),
        ("token_bucket 10/h", "bucket/1/used", json!(-1), "invalid value"),
        ("token_bucket 10/h", "bucket/1/last", json!(late), "later than any instant"),
        ("token_bucket 10/h", "bucket/1/since", json!(0), apart),
        ("token_bucket 10/h", "bucket/1/since", json!(MIDNIGHT + 1), apart),
        ("token_bucket 10/h", "bucket/1/since", json!(u64::MAX), apart),
        ("fixed_window 10/h", "fixed_window/1/count", json!(most + 1), "more than can be counted"),
        ("fixed_window 10/h", "fixed_window/1/last", json!(late), "later than any instant"),
        (counter, "sliding_window_counter/1/current", json!(u64::MAX), "more than can be counted"),
        (counter, "sliding_window_counter/1/previous", json!(most + 1), "more than can be counted"),
        (counter, "sliding_window_counter/1/start", json!(late), "later than any instant"),
        (counter, "sliding_window_counter/1/last", json!(late), "later than any instant"),
        (counter, "sliding_window_counter/1/start", json!(MIDNIGHT + 1), "after it was written"),
        (counter, "sliding_window_counter/1", json!({}), "missing field"),
        ("sliding_log 10/h", "sliding_log/1/last", json!(late), "later than any instant"),
        ("sliding_log 10/h", "sliding_log/1/last", json!(MIDNIGHT - 1), disorder),
        ("sliding_log 10/h", "sliding_log/1/entries", entries(&[(2, 1), (1, 1)]), disorder),
        ("sliding_log 10/h", "sliding_log/1/entries", entries(&[(MIDNIGHT + 1, 1)]), disorder),
        ("sliding_log 10/h", "sliding_log/1/entries", entries(&[(1, 0)]), disorder),
        ("sliding_log 10/h", "sliding_log/1/entries", entries(&[(1, most), (2, 1)]), disorder),
        ("sliding_log 10/h", "sliding_log/1/entries", entries(&[(1, most + 1)]), "can be counted"),
    ];
    for (policy, place, value, reason) in table {
        let mut json = json(policy);
        *json.pointer_mut(&format!("/states/1/1/one/{place}")).unwrap() = value;
        let error = read(json).unwrap_err();
        assert!(error.contains(reason), "{place}: {error}");
    }
}

#[test]
fn a_list_of_limits_does_not_take_the_states_of_another() {
    let logs = |count| All(vec![SlidingLog::new(Quota::per_hour(10)); count]);
    let restored = |old: usize, new: usize, cap: bool| {
        let old = Limiter::with_clock(logs(old), clock(MIDNIGHT));
        let old = if cap { old.max_keys(1) } else { old };
        assert!(old.check("alice").is_allowed());
        assert!(old.check("bob").is_allowed());
        let mut snapshot = serde_json::to_value(old.snapshot()).unwrap();
        if cap {
            snapshot["states"] = json!([]);
        }
        let snapshot = serde_json::from_value(snapshot).unwrap();
        let new = Limiter::restore_with_clock(logs(new), clock(MIDNIGHT), snapshot);
        new.map(|new| new.peek("bob").remaining()).map_err(|error| error.to_string())
    };
    let other = "a snapshot cannot be restored: its states are those of another set of limits";
    for cap in [false, true] {
        assert_eq!(restored(2, 2, cap), Ok(9));
        assert_eq!(restored(2, 3, cap), Err(other.to_owned()));
        assert_eq!(restored(3, 2, cap), Err(other.to_owned()));
    }
    // In a pair too.
    let pair = |count| All((TokenBucket::new(Quota::per_hour(10)), logs(count)));
    let old = Limiter::with_clock(pair(2), clock(MIDNIGHT));
    assert!(old.check("alice").is_allowed());
    let error = Limiter::restore_with_clock(pair(3), clock(MIDNIGHT), reread(&old.snapshot()));
    assert_eq!(error.unwrap_err().to_string(), other);
}

const ALIKE: &str = "a snapshot cannot be restored: more of its fingerprints are alike than those \
                     of keys can be";

/// Tables in which keys were looked for one after the other, if there were so many keys in one: in
/// a store of as many shards as this machine has, or of one.
#[test]
fn fingerprints_that_are_not_those_of_keys_are_refused() {
    let read = |fingerprints: Vec<u64>| {
        let mut json = json("10/h");
        let state = json["states"][0][1].clone();
        let state = |fingerprint| json!([fingerprint, state]);
        json["states"] = fingerprints.into_iter().map(state).collect();
        read(json).map(|limiter| limiter.len())
    };
    let of_one_table = |n: u64| n << 32;
    let of_one_place = |n: u64| n << 24;
    let in_each_shard = |n: u64| (n << 32) + ((n % 64) << 16);
    let other = |n: u64| (n << 32) + ((1 + n % 15) << 16) + n * 40_503 % 65_536;
    let in_one_shard = |n: u64| if n < 2_000 { (n << 32) + n * 4 } else { other(n) };
    assert_eq!(read((0..1_024).map(of_one_table).collect()), Ok(1_024));
    assert_eq!(read((0..1_025).map(of_one_table).collect()), Err(ALIKE.to_owned()));
    assert_eq!(read((0..3_000).map(of_one_place).collect()), Err(ALIKE.to_owned()));
    assert_eq!(read((0..3_000).map(in_each_shard).collect()), Err(ALIKE.to_owned()));
    assert_eq!(read((0..20_000).map(in_one_shard).collect()), Err(ALIKE.to_owned()));
    assert_eq!(read((2_000..20_000).map(in_one_shard).collect()), Ok(18_000));
}

#[test]
fn those_of_any_number_of_keys_are_restored() {
    for keys in [1, 100, 100_000] {
        for cap in [usize::MAX, 10, 10_000] {
            let old = Limiter::with_clock(parse("1/h"), clock(MIDNIGHT));
            assert!((0..keys).all(|key| old.check(&key).is_allowed()));
            let (_, new) = restart(&old, MIDNIGHT);
            let new = new.max_keys(cap);
            assert_eq!(new.len(), keys);
            assert!((0..keys).all(|key| !new.check(&key).is_allowed()), "{keys}, {cap}");
        }
    }
}

const TOO_LATE: &str = "a snapshot cannot be restored: it was taken more than an hour later than \
                        this program's clock";

/// Sets the instant at `place` to an hour after the clock, which is accepted, and to later ones.
fn assert_refused_if_late(json: &Value, place: &str, read: impl Fn(Value) -> Result<(), String>) {
    for (later, result) in
        [(HOUR, Ok(())), (HOUR + 1, Err(TOO_LATE.to_owned())), (10 * DAY, Err(TOO_LATE.to_owned()))]
    {
        let mut json = json.clone();
        *json.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = json!(MIDNIGHT + later);
        assert_eq!(read(json), result, "{place}, {later} later");
    }
}

#[test]
fn instants_later_than_the_clock_are_refused() {
    assert_refused_if_late(&json("10/h"), "/dropped_at", |json| read(json).map(drop));
    for policy in each_algorithm("10/d") {
        let capped = Limiter::with_clock(parse(&policy), clock(MIDNIGHT)).max_keys(1);
        for key in ["alice", "bob"] {
            assert!(capped.check(key).is_allowed());
        }
        let json = serde_json::to_value(capped.snapshot()).unwrap();
        for place in ["/states/0/1", "/shared"] {
            let state = json.pointer(place).unwrap()["one"].as_object().unwrap();
            let kind = state.keys().next().unwrap();
            let place = format!("{place}/one/{kind}/1/last");
            assert_refused_if_late(&json, &place, |json| read(json).map(drop));
        }
    }
    let set = json("10/h; fixed_window 100/d");
    assert_refused_if_late(&set, "/states/0/1/set/1/fixed_window/1/last", |json| {
        read(json).map(drop)
    });
}

#[test]
fn so_are_those_of_limits_that_are_chosen_when_compiling() {
    let limits = All((
        TokenBucket::new(Quota::per_hour(10)),
        All(vec![SlidingLog::new(Quota::per_hour(10)); 2]),
    ));
    let old = Limiter::with_clock(limits.clone(), clock(MIDNIGHT));
    assert!(old.check("alice").is_allowed());
    let json = serde_json::to_value(old.snapshot()).unwrap();
    for place in ["/states/0/1/0/last", "/states/0/1/1/0/last", "/states/0/1/1/1/last"] {
        assert_refused_if_late(&json, place, |json| {
            let snapshot = serde_json::from_value(json).unwrap();
            let new = Limiter::restore_with_clock(limits.clone(), clock(MIDNIGHT), snapshot);
            new.map(drop).map_err(|error| error.to_string())
        });
    }
}

#[test]
fn a_tiered_store_is_not_of_a_later_instant_than_the_clock() {
    let old = TieredMemory::new(clock(MIDNIGHT));
    assert!(Limiter::with_store(parse("10/h"), old.clone()).check("alice").is_allowed());
    let json = serde_json::to_value(old.snapshot()).unwrap();
    assert_refused_if_late(&json, "/dropped_at", |json| {
        let snapshot: Snapshot<Dated<PolicyState>> = serde_json::from_value(json).unwrap();
        let new = TieredMemory::restore(clock(MIDNIGHT), snapshot);
        new.map(drop).map_err(|error| error.to_string())
    });
}

/// Neither the seeds nor what is found by them.
#[test]
fn a_snapshot_is_shown_by_the_number_of_its_keys() {
    let snapshot: Snapshot<PolicyState> = serde_json::from_value(json("10/h")).unwrap();
    assert_eq!(format!("{snapshot:?}"), "Snapshot { len: 2, .. }");
}

/// All the numbers of a JSON value, in order.
fn numbers(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Number(_) => vec![value],
        Value::Array(values) => values.iter_mut().flat_map(numbers).collect(),
        Value::Object(values) => values.values_mut().flat_map(numbers).collect(),
        _ => Vec::new(),
    }
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u32..64, -1_i64..=1).prop_map(|(bits, near)| (1_u64 << bits).wrapping_add_signed(near)),
        (0_u64..3 * DAY).prop_map(|micros| MIDNIGHT - DAY + micros),
        Just(Tick::MAX.as_micros()),
        Just(u64::MAX),
    ]
}

/// What a snapshot says of states, with some of its numbers replaced by others.
fn corrupt(json: &mut Value, changes: &[(prop::sample::Index, u64)]) {
    for place in ["/dropped_at", "/shared", "/states"] {
        let mut numbers = numbers(json.pointer_mut(place).unwrap());
        for (index, number) in changes {
            if let count @ 1.. = numbers.len() {
                *numbers[index.index(count)] = json!(number);
            }
        }
    }
}

/// Operations, each some time after the one before.
fn later() -> impl Strategy<Value = Vec<(u64, Operation<'static>)>> {
    prop::collection::vec((pause(), operation()), 1..40)
}

proptest! {
    #![proptest_config(cases(2_000))]

    /// Any history, and any later one. Where keys share a table, what is dropped of one keeps
    /// the time of others from going back, sooner or later; so it does not go back for them.
    #[test]
    fn a_restored_limiter_and_the_old_one_decide_alike(
        policy in policy(),
        keys in 1_usize..4,
        before in jumping_trace(60),
        later in later(),
    ) {
        let old_clock = clock(MIDNIGHT);
        let old = Limiter::with_clock(policy, old_clock.clone()).max_keys(100);
        let (mut now, mut latest) = (MIDNIGHT, MIDNIGHT);
        for (n, (at, operation)) in before.into_iter().enumerate() {
            now = if keys == 1 { at } else { at.max(now) };
            latest = latest.max(now);
            old_clock.set(Tick::from_micros(now));
            let _ = old.decide(&(n % keys), operation);
        }
        // A clock that is further back restores nothing.
        now = now.max(latest - HOUR);
        old_clock.set(Tick::from_micros(now));
        let (new_clock, new) = restart(&old, now);
        let new = new.max_keys(100);
        for (n, (pause, operation)) in later.into_iter().enumerate() {
            now += pause;
            for clock in [&old_clock, &new_clock] {
                clock.set(Tick::from_micros(now));
            }
            let [was, is] = [&old, &new].map(|limiter| limiter.decide(&(n % (keys + 1)), operation));
            prop_assert_eq!(is, was, "{:?} at {}", operation, now);
        }
    }

    /// Whatever is in a snapshot is refused, or is a state like others.
    #[test]
    fn a_corrupt_snapshot_is_refused_or_harmless(
        policy in policy(),
        before in jumping_trace(30),
        other in policy(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_number()), 1..3),
        later in later(),
    ) {
        let at = clock(MIDNIGHT);
        let old = Limiter::with_clock(policy, at.clone()).max_keys(2);
        for (n, (now, operation)) in before.into_iter().enumerate() {
            at.set(Tick::from_micros(now));
            let _ = old.decide(&(n % 4), operation);
        }
        let mut json = serde_json::to_value(old.snapshot()).unwrap();
        corrupt(&mut json, &changes);
        let Ok(snapshot) = serde_json::from_value::<Snapshot<PolicyState>>(json) else {
            return Ok(());
        };
        for policy in [old.algorithm(), &other] {
            let snapshot = snapshot.clone();
            let new = Limiter::restore_with_clock(policy.clone(), at.clone(), snapshot);
            let Ok(new) = new else { return Ok(()) };
            for (n, &(pause, operation)) in later.iter().enumerate() {
                at.advance(Duration::from_micros(pause));
                let decision = new.decide(&(n % 5), operation);
                prop_assert!(decision.remaining() <= decision.limit());
                prop_assert!(decision.granted() <= 1 << 45 || matches!(operation, Operation::Debit(_)));
            }
        }
    }

    /// The same of a store that notes dates.
    #[test]
    fn so_is_one_of_a_tiered_store(
        policy in policy(),
        before in jumping_trace(30),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_number()), 1..3),
        later in later(),
    ) {
        let at = clock(MIDNIGHT);
        let store = TieredMemory::with_max_keys(at.clone(), 2);
        let old = Limiter::with_store(policy.clone(), store.clone());
        for (n, (now, operation)) in before.into_iter().enumerate() {
            at.set(Tick::from_micros(now));
            let _ = old.decide(&(n % 4), operation);
        }
        let mut json = serde_json::to_value(store.snapshot()).unwrap();
        corrupt(&mut json, &changes);
        let Ok(snapshot) = serde_json::from_value::<Snapshot<Dated<PolicyState>>>(json) else {
            return Ok(());
        };
        let Ok(store) = TieredMemory::restore(at.clone(), snapshot) else { return Ok(()) };
        let new = Limiter::with_store(policy, store.clone());
        for (n, (pause, operation)) in later.into_iter().enumerate() {
            at.advance(Duration::from_micros(pause));
            let decision = new.decide(&(n % 5), operation);
            prop_assert!(decision.remaining() <= decision.limit());
        }
        store.shrink_to_fit();
    }
}
