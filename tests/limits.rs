//! Limits that differ from key to key, from call to call, and in time.

mod common;

use common::{DAY, MIDNIGHT, MINUTE, SECOND, each_algorithm, micros, parse};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tollgate::{
    All, BucketState, Carry, Clock, Decision, Exceptions, FixedWindow, Immediate, Limiter, Live,
    ManualClock, Memory, MonotonicClock, Operation, Outcome, PerKey, Policy, PolicyState, Quota,
    RateLimiter, Reservation, SlidingLog, Tick, TieredMemory, TokenBucket,
};

fn clock() -> ManualClock {
    ManualClock::new(Tick::from_micros(MIDNIGHT))
}

type LiveLimits = Limiter<Live<Policy>, Memory<PolicyState, ManualClock>>;

fn live(policy: &str, clock: &ManualClock) -> LiveLimits {
    Limiter::with_store(Live::new(parse(policy)), Memory::new(clock.clone()))
}

/// 60 of 100 used, then another limit: (policy, what is left as is, in proportion).
#[test]
fn what_was_used_stays_used() {
    for from in each_algorithm("100/min").into_iter().chain(["100/min; 1000/d".into()]) {
        for to in each_algorithm("200/min").into_iter().chain(["200/min; 2000/d".into()]) {
            let limits = [(to.clone(), 140, 80), (to.replace("200", "20"), 0, 8)];
            for (to, as_is, in_proportion) in limits {
                let of_one_shape = from.contains(';') == to.contains(';');
                let in_proportion = if of_one_shape { in_proportion } else { as_is };
                let table = [(Carry::AsIs, as_is), (Carry::InProportion, in_proportion)];
                for (carry, left) in table {
                    let limiter = live(&from, &clock());
                    assert_eq!(limiter.check_n("k", 60).remaining(), 40, "{from}");
                    limiter.replace_with(parse(&to), carry);
                    assert_eq!(limiter.peek("k").remaining(), left, "{from} to {to}, {carry:?}");
                    limiter.replace_with(parse(&to), Carry::Reset);
                    let limit = limiter.peek("k").limit();
                    assert_eq!(limiter.peek("k").remaining(), limit, "{from} to {to}");
                }
            }
        }
    }
}

/// A limit of the same name is the same, or without names one of the same text, wherever it is in the set:
/// (old limits, of which 1,000 are used, new ones, what is left of each).
#[test]
fn a_limit_is_known_by_its_label() {
    let table: [(&str, &str, &[u64]); 10] = [
        ("a: 2000/h; b: fixed_window 5000/d", "b: fixed_window 5000/d; a: 2000/h", &[4_000, 1_000]),
        ("a: 2000/h; b: fixed_window 5000/d", "b: sliding_log 6000/d; a: 1000/h", &[5_000, 0]),
        ("2000/h; fixed_window 5000/d", "fixed_window 5000/d; 2000/h", &[4_000, 1_000]),
        // One that is added starts afresh, where it is clear that it is no old one.
        ("fixed_window 5000/d", "token_bucket 10/s; fixed_window 5000/d", &[10, 4_000]),
        ("a: 2000/h; b: 5000/d", "c: 100/s; b: 5000/d; a: 2000/h", &[100, 4_000, 1_000]),
        ("2000/h; fixed_window 5000/d", "fixed_window 5000/d", &[4_000]),
        // What is not known otherwise is known by its place,
        ("2000/h; fixed_window 5000/d", "3000/h; fixed_window 5000/d", &[2_000, 4_000]),
        ("a: 2000/h; b: 5000/d", "b: 6000/d; c: 3000/h", &[5_000, 2_000]),
        // or not at all: then as much as was used of any counts for each.
        ("2000/h", "3000/h; 6000/d", &[2_000, 5_000]),
        ("2000/h; 5000/d", "3000/h", &[2_000]),
    ];
    let now = Tick::from_micros(MIDNIGHT);
    for (old, new, left) in table {
        let (old, new) = (parse(old), parse(new));
        let mut state = PolicyState::default();
        assert!(Operation::Check(1_000).apply(&old, &mut state, now).is_allowed());
        let least = left.iter().min().copied();
        assert_eq!(Some(Operation::Peek(0).apply(&new, &mut state, now).remaining()), least);
        let _ = Operation::Debit(1).apply(&new, &mut state, now);
        for (limit, &left) in new.limits().iter().zip(left) {
            let limit = Policy::from(limit.clone());
            let peeked = Operation::Peek(0).apply(&limit, &mut state, now);
            assert_eq!(peeked.remaining(), left.saturating_sub(1), "{old} to {new}: {limit}");
        }
    }
}

/// In proportion too: half of each is used.
#[test]
fn a_limit_is_scaled_by_the_one_of_its_label() {
    let clock = clock();
    let limiter = live("a: token_bucket 10/s; b: fixed_window 1000/d", &clock);
    for _ in 0..100 {
        assert!(limiter.check_n("k", 5).is_allowed());
        clock.advance(Duration::from_millis(500));
    }
    limiter
        .replace_with(parse("b: fixed_window 2000/d; a: token_bucket 20/s"), Carry::InProportion);
    assert_eq!(limiter.peek("k").remaining(), 20);
    assert_eq!(limiter.take_up_to("k", 20).granted(), 20);
    clock.advance(Duration::from_secs(1));
    limiter.replace(parse("b: fixed_window 2000/d"));
    assert_eq!(limiter.peek("k").remaining(), 980);
}

/// What is used of the day's limit must not be taken for the other one's, as that one says nothing.
#[test]
fn a_limit_that_is_fresh_again_is_still_known_by_its_label() {
    for carry in [Carry::AsIs, Carry::InProportion] {
        let clock = clock();
        let limiter = live("a: token_bucket 10/s; b: fixed_window 100/d", &clock);
        assert!(limiter.check_n("k", 5).is_allowed());
        clock.advance(Duration::from_secs(1));
        limiter.replace_with(parse("a: token_bucket 20/s; b: fixed_window 100/d"), carry);
        limiter.replace(parse("c: fixed_window 200/d; a: token_bucket 20/s"));
        assert_eq!(limiter.peek("k").remaining(), 20, "{carry:?}");
        assert_eq!(limiter.take_up_to("k", 20).granted(), 20);
        clock.advance(Duration::from_secs(1));
        limiter.replace(parse("c: fixed_window 200/d"));
        assert_eq!(limiter.peek("k").remaining(), 175, "{carry:?}");
    }
}

#[test]
fn what_comes_back_comes_back_under_the_new_limits() {
    let clock = clock();
    for to in each_algorithm("20/min") {
        clock.set(Tick::from_micros(MIDNIGHT));
        let limiter = live("token_bucket 100/min", &clock);
        assert!(limiter.check_n("k", 60).is_allowed());
        limiter.replace(parse(&to));
        assert_eq!(*limiter.algorithm(), parse(&to));
        assert!(!limiter.check("k").is_allowed(), "{to}");
        // A wait under new limits is as exact as any.
        let wait = micros(limiter.peek("k").retry_after().unwrap());
        clock.set(Tick::from_micros(MIDNIGHT + wait - 1));
        assert!(!limiter.check("k").is_allowed(), "{to}");
        clock.set(Tick::from_micros(MIDNIGHT + wait));
        assert!(limiter.check("k").is_allowed(), "{to}");
        clock.set(Tick::from_micros(MIDNIGHT + 5 * MINUTE));
        assert_eq!(limiter.peek("k").remaining(), 20, "{to}");
    }
}

/// Threads that take all they get while limits are replaced: never more than the largest of them.
#[test]
fn a_burst_of_replacements_mints_nothing() {
    for kind in 0..6 {
        let [small, large] = ["100/h", "300/h"].map(|quota| each_algorithm(quota)[kind].clone());
        let limiter = Arc::new(live(&small, &clock()));
        let (stop, granted) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        granted.fetch_add(limiter.take_up_to("k", 3).granted(), Relaxed);
                    }
                });
            }
            for _ in 0..2_000 {
                limiter.replace(parse(&large));
                limiter.replace_with(parse(&small), Carry::AsIs);
            }
            limiter.replace(parse(&large));
            std::thread::sleep(Duration::from_millis(5));
            stop.store(true, Relaxed);
        });
        assert_eq!(granted.load(Relaxed), 300, "{small}");
    }
}

/// In proportion, up and down: rounding never mints.
#[test]
fn replacements_in_proportion_mint_nothing() {
    for policy in each_algorithm("997/h") {
        let limiter = live(&policy, &clock());
        let mut granted = 0;
        for n in [13, 7, 997, 101, 3, 997].into_iter().cycle().take(600) {
            limiter
                .replace_with(parse(&policy.replace("997", &n.to_string())), Carry::InProportion);
            let before = limiter.peek("k").remaining();
            if n == 997 {
                granted += limiter.take_up_to("k", 1).granted();
                assert!(granted + limiter.peek("k").remaining() <= 997, "{policy}");
            }
            assert!(before <= n, "{policy}");
        }
    }
}

/// What stands still stands still in proportion, too.
#[test]
fn replacements_while_the_clock_is_back_mint_nothing() {
    for policy in each_algorithm("100/h") {
        let clock = clock();
        let limiter = live(&policy, &clock);
        assert!(limiter.check_n("k", 100).is_allowed());
        clock.set(Tick::from_micros(MIDNIGHT - DAY));
        limiter.replace_with(parse(&policy), Carry::InProportion);
        clock.set(Tick::from_micros(MIDNIGHT));
        assert_eq!(limiter.peek("k").remaining(), 0, "{policy}");
    }
}

#[test]
fn limits_without_keys_can_be_replaced_too() {
    let limiter = Limiter::direct_with_clock(Live::new(parse("100/min")), clock());
    assert_eq!(limiter.check_n(60).remaining(), 40);
    limiter.replace_with(parse("200/min"), Carry::InProportion);
    assert_eq!(limiter.check_n(0).remaining(), 80);
    limiter.replace(parse("token_bucket 100/min"));
    assert_eq!(limiter.peek().remaining(), 0);
}

#[test]
fn other_algorithms_than_policies_can_be_replaced_too() {
    let new = |n| All((TokenBucket::new(Quota::per_hour(n)), FixedWindow::new(Quota::per_day(n))));
    let limiter = Limiter::live(new(100));
    assert_eq!(limiter.check_n("k", 60).remaining(), 40);
    limiter.replace_with(new(200), Carry::InProportion);
    limiter.shrink_to_fit();
    assert_eq!(limiter.peek("k").remaining(), 80);
}

/// The sweep for keys of one tier leaves those of another alone.
#[test]
fn a_tier_does_not_drop_the_keys_of_another() {
    let clock = clock();
    let store = TieredMemory::new(clock.clone());
    let daily = Limiter::with_store(parse("fixed_window 10/d"), store.clone());
    let fast = Limiter::with_store(parse("fixed_window 10/s"), store.clone());
    for key in 0..1_000 {
        assert!(daily.check_n(&("daily", key), 10).is_allowed());
    }
    for second in 1..20 {
        clock.set(Tick::from_micros(MIDNIGHT + second * SECOND));
        for key in 0..1_000 {
            assert!(fast.check_n(&("fast", second, key), 10).is_allowed());
        }
    }
    assert!(fast.len() < 8_000, "{}", fast.len());
    store.shrink_to_fit();
    assert_eq!(fast.len(), 2_000);
    for key in 0..1_000 {
        assert!(!daily.check(&("daily", key)).is_allowed());
    }
    clock.set(Tick::from_micros(MIDNIGHT + DAY));
    store.shrink_to_fit();
    assert!(daily.is_empty());
}

/// A state that was written under a clock that has gone back since is not dropped before its time.
#[test]
fn a_tiers_date_is_not_moved_back_by_the_clock() {
    let clock = clock();
    let store = TieredMemory::new(clock.clone());
    let limiter = Limiter::with_store(parse("token_bucket 10/10s"), store.clone());
    clock.set(Tick::from_micros(MIDNIGHT + 100 * SECOND));
    assert!(limiter.check_n("k", 5).is_allowed());
    clock.set(Tick::from_micros(MIDNIGHT));
    assert!(limiter.check_n("k", 5).is_allowed());
    clock.set(Tick::from_micros(MIDNIGHT + 109 * SECOND));
    store.shrink_to_fit();
    assert_eq!((limiter.len(), limiter.peek("k").remaining()), (1, 9));
    clock.set(Tick::from_micros(MIDNIGHT + 110 * SECOND));
    store.shrink_to_fit();
    assert!(limiter.is_empty());
}

#[test]
fn the_number_of_keys_can_be_bounded() {
    let store = TieredMemory::with_max_keys(clock(), 100);
    let limiter = Limiter::with_store(parse("fixed_window 1/d"), store);
    let admitted = (0..1_000).filter(|key| limiter.check(key).is_allowed()).count();
    assert!((100..=101).contains(&admitted), "{admitted}");
    assert_eq!(limiter.len(), 100);
}

#[test]
fn each_call_may_bring_its_own_limits() {
    let store = TieredMemory::new(clock());
    let limiter = Limiter::with_store(parse("10/h"), store);
    assert_eq!(limiter.check_n("k", 10).remaining(), 0);
    assert_eq!(limiter.check_with(&parse("fixed_window 100/h"), "k").remaining(), 89);
    let debit = limiter.decide_with(&parse("1000/h"), "k", Operation::Debit(100));
    assert_eq!(debit.remaining(), 889);
    assert!(!limiter.check("k").is_allowed());
}

#[tokio::test]
async fn a_closure_tells_the_limits_of_each_key() {
    static TIERS: [SlidingLog; 2] =
        [SlidingLog::new(Quota::per_hour(2)), SlidingLog::new(Quota::per_hour(5))];
    let tier = |user: &u64| &TIERS[usize::try_from(*user).unwrap() % 2];
    let limiter = Limiter::per_key(tier);
    for user in 0..100_u64 {
        let admitted = (0..9).filter(|_| limiter.check(&user).is_allowed()).count();
        assert_eq!(admitted, if user % 2 == 0 { 2 } else { 5 });
        assert_eq!(
            limiter.describe_for(&user).unwrap()[0].limit,
            TIERS[(user % 2) as usize].quota().count()
        );
    }
    async fn generic<L: RateLimiter<u64>>(limiter: &L) -> bool {
        limiter.check(&1_001).await.is_ok_and(|decision| decision.limit() == 5)
    }
    assert!(generic(&limiter).await);
    let clock = clock();
    let own = Limiter::with_store(PerKey::new(tier), TieredMemory::new(clock.clone()));
    assert_eq!(own.check(&0).remaining(), 1);
    clock.advance(Duration::from_secs(3_600));
    assert_eq!(own.peek(&0).remaining(), 2);
}

#[tokio::test]
async fn exceptions_are_blocked_or_exempt() {
    let clock = clock();
    let limiter = Limiter::with_clock(parse("fixed_window 2/d"), clock.clone());
    let limiter: Exceptions<String, _, _> = Exceptions::with_clock(limiter, clock.clone());
    limiter.exempt("probe".to_owned());
    limiter.block("mallory".to_owned(), Duration::from_secs(60));

    let check = |key: &str, n| limiter.decide_at_once(key, Operation::Check(n));
    for _ in 0..5 {
        let decision = check("probe", 3);
        assert_eq!((decision.outcome(), decision.granted()), (Outcome::Allowed, 3));
        assert_eq!((decision.limit(), decision.remaining()), (2, 2));
    }
    let refused = check("mallory", 1);
    assert_eq!(refused.outcome(), Outcome::Denied(Duration::from_secs(60)));
    assert_eq!((refused.limit(), refused.remaining()), (2, 0));
    assert!(!limiter.decide("mallory", Operation::Peek(1)).await.unwrap().is_allowed());
    assert!(check("mallory", 0).is_allowed());
    assert!(check("bob", 1).is_allowed());
    clock.advance(Duration::from_micros(59_999_999));
    assert!(!check("mallory", 1).is_allowed());
    clock.advance(Duration::from_micros(1));
    assert_eq!(check("mallory", 1).remaining(), 1);

    let reservation = Reservation::take_now(&limiter, "probe", 2);
    assert_eq!(reservation.settle_now(500).limit(), 2);
    assert_eq!(limiter.limiter().peek("probe").remaining(), 2);

    // Exempt comes first; neither list charges anything.
    limiter.block("probe".to_owned(), Duration::MAX);
    assert!(check("probe", 1).is_allowed());
    limiter.no_exception("probe");
    assert_eq!(check("probe", 2).remaining(), 0);
    assert_eq!(limiter.limiter().peek("probe").remaining(), 0);
    limiter.block("eve".to_owned(), Duration::MAX);
    clock.advance(Duration::from_secs(86_400 * 365));
    assert!(!check("eve", 1).is_allowed());
}

/// Of a set, the limit that allows least.
/// Spent or not, and dropped or settled.
#[test]
fn what_an_exempt_key_spends_is_not_charged() {
    let limiter = Limiter::with_clock(parse("token_bucket 100/h"), clock());
    let limiter: Exceptions<String, _> = Exceptions::new(limiter);
    limiter.exempt("probe".to_owned());
    let mut dropped = tollgate::Reservation::take_now(&limiter, "probe", 40);
    dropped.spend(30);
    drop(dropped);
    let _ = tollgate::Reservation::take_now(&limiter, "probe", 40).settle_now(30);
    assert_eq!(limiter.limiter().peek("probe").remaining(), 100);
}

#[test]
fn an_exception_names_the_limit_whose_numbers_it_tells() {
    let limiter = Limiter::new(parse("hourly: fixed_window 1000/h; burst: fixed_window 10/s"));
    let limiter: Exceptions<String, _> = Exceptions::new(limiter);
    limiter.block("mallory".to_owned(), Duration::from_secs(60));
    limiter.exempt("probe".to_owned());
    for key in ["mallory", "probe"] {
        let decision = limiter.decide_at_once(key, Operation::Check(1));
        assert_eq!(decision.limit(), 10);
        assert_eq!(limiter.limiter().algorithm().name(&decision).as_str(), "burst");
    }
}

/// 64 blocked keys that no longer are make room for others.
#[test]
fn who_is_no_longer_blocked_is_forgotten() {
    let clock = clock();
    let limiter = Limiter::with_clock(parse("2/d"), clock.clone());
    let limiter: Exceptions<u64, _, _> = Exceptions::with_clock(limiter, clock.clone());
    for key in 0..100_000 {
        limiter.block(key, Duration::from_millis(1));
        clock.advance(Duration::from_micros(100));
    }
    assert!(format!("{limiter:?}").len() < 100_000);
}

#[tokio::test]
async fn those_who_wait_are_exceptions_too() {
    let limiter = Limiter::new(parse("token_bucket 1/d"));
    let limiter: Exceptions<String, _> = Exceptions::new(limiter);
    limiter.exempt("probe".to_owned());
    limiter.block("mallory".to_owned(), Duration::from_secs(60));
    for _ in 0..3 {
        assert!(limiter.acquire("probe").await.unwrap().is_allowed());
    }
    assert!(!limiter.acquire("mallory").await.unwrap().is_allowed());
    assert!(MonotonicClock::default().now() > Tick::from_micros(MIDNIGHT / 2));
}

/// Its level stops at fifty years, here a little below what the capacity and the units that have
/// come back make together.
#[test]
fn a_bucket_as_large_as_can_be_tells_what_a_peek_tells() {
    let bucket = TokenBucket::new(Quota::per_day(7)).burst(127_750);
    let mut state = BucketState::default();
    let start = Tick::from_micros(MIDNIGHT);
    assert!(Operation::Check(127_740).apply(&bucket, &mut state, start).is_allowed());
    let later = start.saturating_add(DAY / 2);
    let checked = Operation::Check(13).apply(&bucket, &mut state, later);
    let peeked = Operation::Peek(1).apply(&bucket, &mut state, later);
    assert_eq!(checked.granted(), 13);
    let numbers =
        |decision: Decision| (decision.remaining(), decision.next_after(), decision.reset_after());
    assert_eq!(numbers(checked), numbers(peeked));
}

#[test]
fn a_refusal_leaves_the_state_of_another_policy_alone() {
    let start = Tick::from_micros(MIDNIGHT);
    let other = ["token_bucket 10/s", "sliding_log 10/min", "10/s; 20/min"];
    for (old, new) in other.into_iter().flat_map(|old| other.map(|new| (old, new))) {
        let [old, new]: [Policy; 2] = [old, new].map(|text| text.parse().unwrap());
        let mut state = PolicyState::default();
        assert!(Operation::Check(9).apply(&old, &mut state, start).is_allowed());
        let before = format!("{state:?}");
        assert!(!Operation::Check(9).apply(&new, &mut state, start).is_allowed());
        assert_eq!(format!("{state:?}"), before, "{old} {new}");
    }
}

/// Under a cap, what keys without a place have used too.
#[test]
fn the_shared_budget_is_carried_like_any_other() {
    for (carry, left) in [(Carry::AsIs, 0), (Carry::InProportion, 8), (Carry::Reset, 20)] {
        let limiter = live("token_bucket 100/h", &clock()).max_keys(1);
        assert!(limiter.check("alice").is_allowed());
        assert_eq!(limiter.check_n("mallory", 60).remaining(), 40);
        limiter.replace_with(parse("token_bucket 20/h"), carry);
        assert_eq!(limiter.peek("trudy").remaining(), left, "{carry:?}");
    }
}

/// Of more units than a slower limit works off in that time.
#[test]
fn a_debt_of_replaced_limits_ends_within_fifty_years() {
    for slow in ["token_bucket 1/d", "leaky_bucket 1/d", "leaky_bucket 1/d nodelay"] {
        let clock = clock();
        let limiter = live("token_bucket 1000000/s", &clock);
        let _ = limiter.debit("k", 1_000_000_000_000);
        limiter.replace(parse(slow));
        let fifty_years = 50 * 365 * DAY;
        assert_eq!(micros(limiter.peek("k").reset_after()), fifty_years, "{slow}");
        clock.advance(Duration::from_micros(fifty_years));
        assert_eq!(limiter.peek("k").remaining(), 1, "{slow}");
    }
}
