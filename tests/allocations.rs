//! What is allocated, counted by the allocator itself. One test, so that nothing else allocates
//! at the same time.

#[path = "common/counting.rs"]
mod counting;

use counting::{CALLS, LIVE_BYTES, PEAK_BYTES};
use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tollgate::{
    Algorithm, All, FixedWindow, Limiter, Live, ManualClock, Memory, Operation, Policy, Quota,
    SlidingLog, SlidingWindowCounter, Tick, TokenBucket,
};

const KEYS: u64 = 1_000_000;

#[test]
fn memory() {
    decisions_do_not_allocate(TokenBucket::new(Quota::per_second(100)));
    decisions_do_not_allocate(FixedWindow::new(Quota::per_second(100)));
    decisions_do_not_allocate(SlidingWindowCounter::new(Quota::per_second(100)));
    // A log grows with what it has to remember, and not any more after a while.
    decisions_do_not_allocate(SlidingLog::new(Quota::per_second(100)));
    decisions_do_not_allocate(All((
        TokenBucket::new(Quota::per_second(100)),
        FixedWindow::new(Quota::per_hour(1_000)),
    )));
    for policy in ["token_bucket 100/s", "100/s; fixed_window 1000/h"] {
        decisions_do_not_allocate(policy.parse::<Policy>().unwrap());
    }

    reading_the_states_of_limits_that_were_replaced_does_not_allocate();
    reading_the_states_of_a_list_of_another_length_copies_no_log();

    a_key_takes_few_bytes();
    an_event_in_a_log_takes_few_bytes();
    a_log_gives_back_what_a_peak_took();
    a_question_to_a_long_log_allocates_nothing();
    a_settlement_in_a_long_log_writes_a_few_chunks();
    debts_of_a_log_take_few_bytes();
    #[cfg(feature = "tokio")]
    waiters::a_waiter_copies_no_log();
    #[cfg(feature = "tokio")]
    waiters::queues_that_have_gone_give_their_memory_back();
    #[cfg(feature = "tokio")]
    waiters::those_that_have_left_leave_nothing();
    a_million_keys_at_a_cap_take_no_more_than_it();
    idle_keys_make_room(TokenBucket::new(Quota::per_minute(100)));
    idle_keys_make_room(SlidingLog::new(Quota::per_minute(100)));
    idle_keys_make_room("10/s; fixed_window 100/min".parse::<Policy>().unwrap());
}

fn decisions_do_not_allocate<A: Algorithm>(algorithm: A) {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let limiter = Limiter::with_clock(algorithm, clock.clone());
    let key = String::from("alice");
    let ask = |times: u64| {
        for n in 0..times {
            clock.advance(Duration::from_millis(7));
            let _ = black_box(limiter.check_n(key.as_str(), n % 3));
            let _ = black_box(limiter.peek(key.as_str()));
            let _ = black_box(limiter.take_up_to(key.as_str(), 2));
            let _ = black_box(limiter.refund(key.as_str(), 1));
            let _ = black_box(limiter.check_n(key.as_str(), 1_000));
        }
    };
    ask(20_000);
    let before = CALLS.load(Relaxed);
    ask(10_000);
    assert_eq!(CALLS.load(Relaxed) - before, 0, "{}", std::any::type_name::<A>());
}

/// A denial and a peek, until something is taken: logs of thousands of entries are read where they
/// are. For limits that have changed places, or their number, only their places are allocated.
fn reading_the_states_of_limits_that_were_replaced_does_not_allocate() {
    for (old, new, most_calls) in [
        ("sliding_log 5000/h", "sliding_log 4000/h", 0),
        ("sliding_log 5000/h", "fixed_window 4000/h", 0),
        ("fixed_window 5000/h", "sliding_log 4000/h", 0),
        ("sliding_log 5000/h; sliding_log 6000/d", "sliding_log 4000/h; sliding_log 6000/d", 0),
        ("sliding_log 5000/h; sliding_log 6000/d", "sliding_log 4000/h; sliding_log 4500/d", 0),
        ("sliding_log 5000/h; 6000/d", "fixed_window 4000/h; sliding_log 6000/d", 0),
        ("a: sliding_log 5000/h; sliding_log 6000/d", "a: 4000/h; sliding_log 4500/d", 0),
        ("a: sliding_log 5000/h; b: sliding_log 6000/d", "b: 6000/d; a: sliding_log 4000/h", 10),
        ("sliding_log 5000/h; sliding_log 6000/d", "sliding_log 4000/h", 20),
        ("sliding_log 5000/h", "sliding_log 4000/h; sliding_log 6000/d", 20),
    ] {
        let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
        let limiter = Live::new(old.parse::<Policy>().unwrap());
        let limiter = Limiter::with_store(limiter, Memory::new(clock.clone()));
        for _ in 0..5_000 {
            clock.advance(Duration::from_millis(1));
            assert!(limiter.check("alice").is_allowed(), "{old}");
        }
        limiter.replace(new.parse().unwrap());
        let (calls, live) = (CALLS.load(Relaxed), LIVE_BYTES.load(Relaxed));
        PEAK_BYTES.store(live, Relaxed);
        let decisions = [limiter.check_n("alice", 4_000), limiter.peek("alice")];
        let calls = CALLS.load(Relaxed) - calls;
        let bytes = PEAK_BYTES.load(Relaxed) - live;
        assert!(decisions.iter().all(|decision| !decision.is_allowed()), "{old} to {new}");
        assert!(calls <= 2 * most_calls, "{old} to {new}: {calls} allocations");
        assert!(bytes < 100, "{old} to {new}: {bytes} bytes");
    }
}

fn reading_the_states_of_a_list_of_another_length_copies_no_log() {
    let logs = |count| All(vec![SlidingLog::new(Quota::per_hour(5_000)); count]);
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let limiter = Limiter::with_store(Live::new(logs(2)), Memory::new(clock.clone()));
    for _ in 0..5_000 {
        clock.advance(Duration::from_millis(1));
        assert!(limiter.check("alice").is_allowed());
    }
    limiter.replace(logs(3));
    let before = CALLS.load(Relaxed);
    assert!(!limiter.check("alice").is_allowed());
    assert!(!limiter.peek("alice").is_allowed());
    assert_eq!(CALLS.load(Relaxed) - before, 0);
}

/// Of any type, as keys are not kept, and while a million of them come in.
fn a_key_takes_few_bytes() {
    let before = LIVE_BYTES.load(Relaxed);
    PEAK_BYTES.store(before, Relaxed);
    let limiter = Limiter::new(TokenBucket::new(Quota::per_hour(1)).burst(2));
    for key in 1..=KEYS {
        assert!(limiter.check(format!("tenant {key:040}").as_str()).is_allowed());
        if key >= 100_000 && key % 100_000 == 0 {
            let bytes = LIVE_BYTES.load(Relaxed) - before;
            assert!(bytes <= 32 * key, "{bytes} bytes for {key} keys");
        }
    }
    let (live, peak) = (LIVE_BYTES.load(Relaxed) - before, PEAK_BYTES.load(Relaxed) - before);
    println!("a key of a token bucket: {} hundredths of a byte", live * 100 / KEYS);
    assert!(peak * 10 <= live * 11, "{peak} bytes at the peak, {live} at the end");
}

/// Ten thousand within a second, an hour or a day, and as many of several units each.
fn an_event_in_a_log_takes_few_bytes() {
    for (policy, millis, units) in [
        ("sliding_log 10000/s", 1_000, 1),
        ("sliding_log 10000/h", 3_600_000, 1),
        ("sliding_log 10000/d", 86_400_000, 1),
        ("sliding_log 1000000/min", 60_000, 100),
    ] {
        let before = LIVE_BYTES.load(Relaxed);
        let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
        let limiter = Limiter::direct_with_clock(policy.parse::<Policy>().unwrap(), clock.clone());
        for event in 1..=10_000 {
            assert!(limiter.check_n(units).is_allowed(), "{policy}");
            clock.advance(Duration::from_micros(millis / 10 - event % 2));
        }
        let bytes = LIVE_BYTES.load(Relaxed) - before;
        println!("{policy}: {} hundredths of a byte for each of 10,000 events", bytes / 100);
        assert!(bytes <= 8 * 10_000, "{policy}: {bytes} bytes for 10,000 events");
    }
}

/// Of a key that stays in use.
fn a_log_gives_back_what_a_peak_took() {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let limiter = Limiter::with_clock(SlidingLog::new(Quota::per_minute(1_000_000)), clock.clone());
    assert!(limiter.check("alice").is_allowed());
    let before = LIVE_BYTES.load(Relaxed);
    for _ in 0..100_000 {
        clock.advance(Duration::from_micros(100));
        assert!(limiter.check("alice").is_allowed());
    }
    let peak = LIVE_BYTES.load(Relaxed) - before;
    for _ in 0..3 {
        clock.advance(Duration::from_secs(50));
        assert!(limiter.check("alice").is_allowed());
    }
    let left = LIVE_BYTES.load(Relaxed) - before;
    assert!(peak > 100_000 && left < 200, "{left} of {peak} bytes");
}

fn a_question_to_a_long_log_allocates_nothing() {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let limiter =
        Limiter::direct_with_clock(SlidingLog::new(Quota::per_hour(100_000)), clock.clone());
    for _ in 0..100_000 {
        assert!(limiter.check().is_allowed());
        clock.advance(Duration::from_millis(30));
    }
    let before = CALLS.load(Relaxed);
    for minutes in [0, 9, 10, 60] {
        clock.advance(Duration::from_secs(60 * minutes));
        for n in [1, 1_000, 50_000, 100_000] {
            let _ = black_box(limiter.decide(Operation::Peek(n)));
        }
    }
    assert_eq!(CALLS.load(Relaxed), before);
}

fn a_settlement_in_a_long_log_writes_a_few_chunks() {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let limiter =
        Limiter::direct_with_clock(SlidingLog::new(Quota::per_hour(300_000)), clock.clone());
    let mut reservations = Vec::new();
    for n in 0..100_000 {
        clock.advance(Duration::from_millis(30));
        if n % 10_000 == 0 {
            reservations.push(limiter.reserve(2));
        }
        assert!(limiter.check().is_allowed());
    }
    for reservation in reservations {
        let before = LIVE_BYTES.load(Relaxed);
        PEAK_BYTES.store(before, Relaxed);
        let _ = reservation.settle_now(1);
        let bytes = PEAK_BYTES.load(Relaxed) - before;
        assert!(bytes <= 20_000, "{bytes} bytes");
    }
}

fn debts_of_a_log_take_few_bytes() {
    let before = LIVE_BYTES.load(Relaxed);
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let limiter = Limiter::direct_with_clock(SlidingLog::new(Quota::per_minute(10)), clock.clone());
    for _ in 0..100_000 {
        let _ = limiter.debit(1);
        clock.advance(Duration::from_micros(100));
    }
    let bytes = LIVE_BYTES.load(Relaxed) - before;
    assert!(bytes <= 400, "{bytes} bytes for 100,000 debits");
}

#[cfg(feature = "tokio")]
mod waiters {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use tollgate::Acquire;

    fn wait<T>(waiting: &mut (impl Future<Output = T> + Unpin)) {
        let mut context = Context::from_waker(Waker::noop());
        assert!(pin!(waiting).poll(&mut context).is_pending());
    }

    fn in_a_runtime(test: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        test();
    }

    /// Neither the first, nor one behind it, nor a caller that is denied because of them.
    pub(super) fn a_waiter_copies_no_log() {
        in_a_runtime(|| {
            let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
            let log = SlidingLog::new(Quota::per_hour(100_000));
            let limiter = Limiter::with_clock(log, clock.clone());
            for _ in 0..100_000 {
                assert!(limiter.check("alice").is_allowed());
                clock.advance(Duration::from_millis(30));
            }
            let before = LIVE_BYTES.load(Relaxed);
            PEAK_BYTES.store(before, Relaxed);
            let mut waiting = [(); 3].map(|()| limiter.acquire("alice").into_future());
            waiting.iter_mut().for_each(wait);
            let [first, ..] = waiting;
            assert!(!limiter.check_n("alice", 50_000).is_allowed());
            drop(first);
            assert!(!limiter.check("alice").is_allowed());
            let bytes = PEAK_BYTES.load(Relaxed) - before;
            assert!(bytes < 50_000, "{bytes} bytes");
        });
    }

    pub(super) fn those_that_have_left_leave_nothing() {
        in_a_runtime(|| {
            let limiter = Limiter::new(TokenBucket::new(Quota::per_minute(1)).burst(1));
            assert!(limiter.check("alice").is_allowed());
            let mut first = limiter.acquire("alice").into_future();
            wait(&mut first);
            let before = LIVE_BYTES.load(Relaxed);
            for _ in 0..10_000 {
                let hour = Duration::from_secs(3_600);
                wait(&mut limiter.acquire("alice").within(hour).into_future());
            }
            let bytes = LIVE_BYTES.load(Relaxed) - before;
            assert!(bytes < 10_000, "{bytes} bytes");
        });
    }

    pub(super) fn queues_that_have_gone_give_their_memory_back() {
        in_a_runtime(|| {
            let bucket = TokenBucket::new(Quota::per_hour(1)).burst(1);
            let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
            let limiter = Limiter::with_clock(bucket, clock.clone());
            let keys: Vec<u64> = (0..100_000).collect();
            let before = LIVE_BYTES.load(Relaxed);
            for key in &keys {
                assert!(limiter.check(key).is_allowed());
            }
            let mut waiting: Vec<_> =
                keys.iter().map(|key| limiter.acquire(key)).map(Acquire::into_future).collect();
            waiting.iter_mut().for_each(wait);
            drop(waiting);
            clock.advance(Duration::from_secs(3_600));
            limiter.shrink_to_fit();
            let bytes = LIVE_BYTES.load(Relaxed) - before;
            assert!(bytes < 20_000, "{bytes} bytes");
        });
    }
}

fn a_million_keys_at_a_cap_take_no_more_than_it() {
    let before = LIVE_BYTES.load(Relaxed);
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let bucket = TokenBucket::new(Quota::per_hour(1));
    let limiter = Limiter::with_clock(bucket, clock.clone()).max_keys(10_000);
    for key in 0..KEYS {
        let _ = black_box(limiter.check(&key));
        if key % 1_000 == 0 {
            clock.advance(Duration::from_secs(60));
        }
        let bytes = LIVE_BYTES.load(Relaxed) - before;
        assert!(bytes <= 10_000 * 40, "{bytes} bytes at a cap of 10,000 keys");
    }
    assert!((9_000..=10_000).contains(&limiter.len()), "{} keys", limiter.len());
}

/// A million keys used once, then idle for longer than their window: the next million take
/// their place.
fn idle_keys_make_room<A: Algorithm>(algorithm: A) {
    let before = LIVE_BYTES.load(Relaxed);
    let live = || LIVE_BYTES.load(Relaxed) - before;
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let limiter = Limiter::with_clock(algorithm, clock.clone());
    let use_once = |round: u64| {
        for key in 0..KEYS {
            assert!(limiter.check(&(round, key)).is_allowed());
        }
    };
    use_once(0);
    let of_one_million = live();
    assert_eq!(limiter.len(), 1_000_000);
    for round in 1..5 {
        clock.advance(Duration::from_secs(121));
        use_once(round);
        let ratio = live() * 100 / of_one_million;
        assert!(ratio <= 150, "round {round}: {ratio} % of the memory of one million keys");
    }
    clock.advance(Duration::from_secs(121));
    limiter.shrink_to_fit();
    assert!(limiter.is_empty());
    assert!(live() < of_one_million / 100, "{} bytes are left", live());
}
