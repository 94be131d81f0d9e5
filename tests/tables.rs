//! Tables of instants: what each algorithm must say, when, whatever store it runs on.

mod common;

use common::{DAY, HOUR, MIDNIGHT, MINUTE, SECOND, Subject, each_algorithm, micros};
use std::time::Duration;
use tollgate::{Decision, Operation, Outcome, Policy};

common::on_each_store! {
    refusals_are_free,
    one_a_minute_is_one,
    a_cost_above_the_capacity_is_never_allowed_and_takes_nothing,
    rates_are_exact,
    rates_are_exact_when_polled_at_every_tick,
    polling_without_taking_loses_nothing,
    what_a_boundary_lets_through,
    the_sliding_window_counter_weights_the_previous_window,
    the_sliding_window_counter_counts_the_current_window_in_full,
    the_leaky_bucket_spaces_departures,
    the_meter_admits_what_the_queue_admits_but_at_once,
    a_set_names_the_limit_that_refuses_and_charges_no_other,
    a_set_is_charged_all_or_nothing,
    a_clock_that_goes_back_an_hour_and_forward_again_mints_nothing,
    a_token_bucket_stands_still_while_the_clock_is_back,
    with_very_many_units_used_a_clock_that_goes_back_still_mints_nothing,
    debts_are_worked_off_and_refunds_stop_at_fresh,
    a_log_keeps_debts_beyond_twice_its_limit_at_the_last_charge,
    a_refund_stays_in_the_present_window,
    the_largest_debts_neither_wrap_nor_vanish,
    a_cost_of_nothing_asks_without_taking,
    waits_count_from_the_askers_now,
    a_decision_carries_its_instant,
    a_clock_to_and_fro_with_refunds_mints_nothing,
    a_refund_that_finds_nothing_changes_nothing,
    a_limit_without_an_algorithm_denies_nobody_who_keeps_to_the_rate,
    the_worst_case_in_any_window_is_what_the_docs_say,
    the_end_of_time_stands_still,
}

/// How many of `n` single units are admitted at one instant.
fn admitted(subject: &mut impl Subject, now: u64, n: u64) -> u64 {
    (0..n).filter(|_| subject.check(now, "k", 1).is_allowed()).count() as u64
}

/// 11:00:00 on some day.
const ELEVEN: u64 = MIDNIGHT + 11 * HOUR;

fn refusals_are_free<S: Subject>() {
    for policy in each_algorithm("10/min") {
        let mut subject = S::new(&policy);
        let table = [(8, true, 2), (5, false, 2), (1, true, 1)];
        for (cost, allowed, remaining) in table {
            let decision = subject.check(MIDNIGHT, "k", cost);
            assert_eq!(
                (decision.is_allowed(), decision.remaining()),
                (allowed, remaining),
                "{policy}: {cost}"
            );
        }
    }
}

fn one_a_minute_is_one<S: Subject>() {
    for policy in each_algorithm("1/60s") {
        let mut subject = S::new(&policy);
        let allowed =
            (0..1_000).filter(|micros| subject.check(MIDNIGHT + micros, "k", 1).is_allowed());
        assert_eq!(allowed.count(), 1, "{policy}");
    }
}

/// The wait for this many units, in ticks, lies beyond 64 bits.
fn a_cost_above_the_capacity_is_never_allowed_and_takes_nothing<S: Subject>() {
    let mut subject = S::new("token_bucket 1/h burst 2");
    for cost in [5_124_097, 3, u64::MAX] {
        let decision = subject.check(MIDNIGHT, "k", cost);
        assert_eq!(decision.outcome(), Outcome::Never);
        assert_eq!(decision.remaining(), 2);
        assert_eq!(decision.retry_after(), None);
    }
    assert_eq!(subject.keys(), 0, "a refusal keeps nothing");
    assert_eq!(subject.check(MIDNIGHT, "k", 2).remaining(), 0);
}

/// Asks for all there is, at the first instant at which there is any, or every `step` ticks
/// where that is longer.
fn drain<S: Subject>(quota: &str, step: u64, span: u64) -> u64 {
    let mut subject = S::new(&format!("token_bucket {quota}"));
    let (mut now, mut granted) = (MIDNIGHT, 0);
    let step = step.max((span / S::affordable(span)) | 1);
    while now <= MIDNIGHT + span {
        let decision = subject.decide(now, "k", Operation::TakeUpTo(u64::MAX));
        granted += decision.granted();
        now += micros(decision.next_after().unwrap()).max(step);
    }
    let last = subject.decide(MIDNIGHT + span, "k", Operation::TakeUpTo(u64::MAX));
    granted + last.granted()
}

fn rates_are_exact<S: Subject>() {
    for n in [1, 3, 7, 999_983, 1_000_001, 7_000_000, 300_000_000, 999_999_937] {
        // Steps of primes, so that polls fall between all units.
        for step in [997, 10_007, 333_323] {
            assert_eq!(
                drain::<S>(&format!("{n}/s"), step, 100 * SECOND),
                n * 100 + n,
                "{n}/s, {step}"
            );
        }
    }
    for step in [86_413, 1_000_003, 7_919_000_001] {
        assert_eq!(drain::<S>("999983/d", step, 30 * DAY), 999_983 * 31, "{step}");
    }
}

/// At every single tick for the rates that are near one unit a tick.
fn rates_are_exact_when_polled_at_every_tick<S: Subject>() {
    for n in [999_983, 1_000_001, 7_000_000, 999_999_937] {
        assert_eq!(drain::<S>(&format!("{n}/s"), 1, 3 * SECOND), n * 3 + n, "{n}/s");
    }
}

/// A unit every 3 1/3 ticks, and polls between them that take nothing.
fn polling_without_taking_loses_nothing<S: Subject>() {
    for step in [1, 2, 3, 5, 7, 11] {
        let mut subject = S::new("token_bucket 299993/s burst 10");
        assert_eq!(admitted(&mut subject, MIDNIGHT, 11), 10);
        let mut now = MIDNIGHT;
        while now + step < MIDNIGHT + 33 {
            now += step;
            assert!(!subject.check(now, "k", 10).is_allowed());
        }
        // 10 units take 33.3341 ticks.
        assert!(!subject.check(MIDNIGHT + 33, "k", 10).is_allowed());
        assert!(subject.check(MIDNIGHT + 34, "k", 10).is_allowed());
    }
}

fn what_a_boundary_lets_through<S: Subject>() {
    let table = [
        ("fixed_window 100/min", 100),
        ("token_bucket 100/min", 5),
        ("sliding_window_counter 100/min", 1),
        ("sliding_log 100/min", 0),
    ];
    for (policy, second) in table {
        let mut subject = S::new(policy);
        assert_eq!(admitted(&mut subject, ELEVEN + 58 * SECOND, 100), 100, "{policy}");
        assert_eq!(admitted(&mut subject, ELEVEN + 61 * SECOND, 100), second, "{policy}");
    }
}

fn the_sliding_window_counter_weights_the_previous_window<S: Subject>() {
    let mut subject = S::new("sliding_window_counter 200/min");
    assert!(subject.check(ELEVEN + 10 * SECOND, "k", 150).is_allowed());
    assert!(subject.check(ELEVEN + 61 * SECOND, "k", 40).is_allowed());
    let decision = subject.decide(ELEVEN + 90 * SECOND, "k", Operation::Peek(1));
    assert_eq!(decision.remaining(), 85);
}

/// Counting the current window by its elapsed share, as some notes have it, would admit ten
/// times the limit in the window's first tenth.
fn the_sliding_window_counter_counts_the_current_window_in_full<S: Subject>() {
    let mut subject = S::new("sliding_window_counter 100/min");
    assert_eq!(admitted(&mut subject, ELEVEN + 6 * SECOND, 1_000), 100);
}

fn the_leaky_bucket_spaces_departures<S: Subject>() {
    let mut subject = S::new("leaky_bucket 5/s capacity 10");
    let decisions: Vec<Decision> = (0..12).map(|_| subject.check(MIDNIGHT, "k", 1)).collect();
    for (place, decision) in (0..).zip(&decisions[..10]) {
        assert!(decision.is_allowed());
        assert_eq!(decision.delay(), Duration::from_millis(200 * place));
    }
    for refused in &decisions[10..] {
        assert_eq!(refused.outcome(), Outcome::Denied(Duration::from_millis(200)));
    }
}

fn the_meter_admits_what_the_queue_admits_but_at_once<S: Subject>() {
    let mut subject = S::new("leaky_bucket 5/s capacity 10 nodelay");
    assert_eq!(admitted(&mut subject, MIDNIGHT, 12), 10);
    assert_eq!(subject.check(MIDNIGHT + 200_000, "k", 1).outcome(), Outcome::Allowed);
}

fn a_set_names_the_limit_that_refuses_and_charges_no_other<S: Subject>() {
    let text = "sliding_window_counter 10/s; sliding_window_counter 1000/h";
    let policy: Policy = text.parse().unwrap();
    let mut subject = S::new(text);
    assert_eq!(admitted(&mut subject, MIDNIGHT, 10), 10);
    for _ in 0..50 {
        let refused = subject.check(MIDNIGHT, "k", 1);
        assert!(!refused.is_allowed());
        assert_eq!(policy.name(&refused).as_str(), "sliding_window_counter 10/s");
        assert_eq!((refused.limit(), refused.remaining()), (10, 0));
    }
    // Ten every two seconds: 1,000 are gone after 198 seconds, and no refusal was among them.
    for n in 1..100 {
        assert_eq!(admitted(&mut subject, MIDNIGHT + n * 2 * SECOND, 10), 10, "{n}");
    }
    let refused = subject.check(MIDNIGHT + 200 * SECOND, "k", 1);
    assert_eq!(policy.name(&refused).as_str(), "sliding_window_counter 1000/h");
    assert_eq!(refused.limit(), 1_000);
}

fn a_set_is_charged_all_or_nothing<S: Subject>() {
    let members = ["token_bucket 7/s burst 9", "sliding_log 100/min", "fixed_window 3000/h"];
    let mut set = S::new(&members.join("; "));
    let mut alone = members.map(|limit| S::new(limit));
    // A small generator (Knuth's MMIX), for a long trace that is always the same.
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut now = MIDNIGHT;
    let (mut admitted, mut refused) = (0, 0);
    let steps = S::affordable(100_000);
    for _ in 0..steps {
        now += random(400_000);
        let n = 1 + random(12);
        let operation = match random(10) {
            0 => Operation::Refund(n),
            1 => Operation::TakeUpTo(n),
            2 => Operation::Debit(n / 4),
            _ => Operation::Check(n),
        };
        let decision = set.decide(now, "k", operation);
        // Each limit by itself is charged what the set granted, and must stand as the set does.
        let charged = match operation {
            Operation::Refund(_) => operation,
            _ => Operation::Debit(decision.granted()),
        };
        let remaining = alone.each_mut().map(|limit| limit.decide(now, "k", charged).remaining());
        assert_eq!(decision.remaining(), *remaining.iter().min().unwrap());
        if decision.is_allowed() { admitted += 1 } else { refused += 1 }
    }
    assert!(admitted > steps / 10 && refused > steps / 10, "{admitted} {refused}");
}

fn a_clock_that_goes_back_an_hour_and_forward_again_mints_nothing<S: Subject>() {
    for quota in ["10/s", "10/h", "10/d"] {
        for policy in each_algorithm(quota) {
            let mut subject = S::new(&policy);
            let noon = MIDNIGHT + 12 * HOUR + 1;
            assert_eq!(admitted(&mut subject, noon, 7), 7, "{policy}");
            assert_eq!(admitted(&mut subject, noon - HOUR, 10), 3, "{policy}");
            assert_eq!(admitted(&mut subject, noon - HOUR + SECOND, 10), 0, "{policy}");
            assert_eq!(admitted(&mut subject, noon, 10), 0, "{policy}");
        }
    }
}

/// As golang/time's table of a clock that jumps back: what stood still goes on from there.
fn a_token_bucket_stands_still_while_the_clock_is_back<S: Subject>() {
    let mut subject = S::new("token_bucket 10/s burst 3");
    let (t0, t1, t2) = (MIDNIGHT, MIDNIGHT + 100_000, MIDNIGHT + 200_000);
    let table =
        [(t1, true), (t0, true), (t0, true), (t0, false), (t1, false), (t2, true), (t2, false)];
    for (step, (now, allowed)) in table.into_iter().enumerate() {
        assert_eq!(subject.check(now, "k", 1).is_allowed(), allowed, "step {step}");
    }
}

/// More than 536,870,911 units of a bucket that regains whole numbers of them rarely: it remembers
/// the instant of its last take to 9 minutes only.
fn with_very_many_units_used_a_clock_that_goes_back_still_mints_nothing<S: Subject>() {
    let mut subject = S::new("token_bucket 999999937/day");
    assert!(subject.check(MIDNIGHT, "k", 999_999_937).is_allowed());
    let at_eleven = subject.check(ELEVEN, "k", 1_000_000);
    assert!(at_eleven.is_allowed());
    for back in [1, MINUTE, HOUR, 10 * HOUR, 11 * HOUR] {
        let earlier = subject.decide(ELEVEN - back, "k", Operation::Peek(1));
        assert!(earlier.remaining() <= at_eleven.remaining());
        assert!(earlier.reset_after() >= at_eleven.reset_after());
    }
    let forward = subject.decide(ELEVEN, "k", Operation::Peek(1));
    assert_eq!(forward.remaining(), at_eleven.remaining());
    assert_eq!(forward.reset_after(), at_eleven.reset_after());
}

fn debts_are_worked_off_and_refunds_stop_at_fresh<S: Subject>() {
    // (policy, then the wait for a unit after a debit of 25)
    let table = [
        ("token_bucket 10/s", 1_600_000),
        ("leaky_bucket 10/s", 1_600_000),
        ("fixed_window 10/s", 1_000_000),
        ("sliding_log 10/s", 1_000_000),
        // Until 9 or fewer of the 25 count: 16/25 of the next window must pass.
        ("sliding_window_counter 10/s", 1_640_000),
    ];
    for (policy, wait) in table {
        let mut subject = S::new(policy);
        let debit = subject.decide(MIDNIGHT, "k", Operation::Debit(25));
        assert_eq!((debit.granted(), debit.remaining()), (25, 0), "{policy}");
        assert_eq!(debit.next_after(), Some(Duration::from_micros(wait)), "{policy}");
        assert!(!subject.check(MIDNIGHT + wait - 1, "k", 1).is_allowed(), "{policy}");
        assert!(subject.check(MIDNIGHT + wait, "k", 1).is_allowed(), "{policy}");

        if policy.starts_with("leaky") {
            continue; // a queue has promised its departures
        }
        let mut subject = S::new(policy);
        assert!(subject.check(MIDNIGHT, "k", 10).is_allowed());
        let refund = subject.decide(MIDNIGHT, "k", Operation::Refund(4));
        assert_eq!((refund.granted(), refund.remaining()), (0, 4), "{policy}");
        let refund = subject.decide(MIDNIGHT, "k", Operation::Refund(u64::MAX));
        assert_eq!((refund.remaining(), refund.next_after()), (10, None), "{policy}");
        assert_eq!(admitted(&mut subject, MIDNIGHT, 20), 10, "{policy}");
    }
}

fn a_log_keeps_debts_beyond_twice_its_limit_at_the_last_charge<S: Subject>() {
    let mut subject = S::new("sliding_log 2/min");
    let (debit, peek) = (Operation::Debit, Operation::Peek(1));
    // (second, operation, the units that are left, the seconds until there is one more)
    let table = [
        (0, debit(3), 0, 60),
        (10, debit(3), 0, 60), // the 4th to the 6th
        (20, debit(1), 0, 60), // from here on, the 5th and the 6th too
        (60, peek, 0, 20),
        (70, peek, 0, 10), // by their own instants, one would be left
        (79, peek, 0, 1),
        (80, peek, 2, 0),
        (90, debit(9), 0, 60),
        (100, debit(1), 0, 60), // 4 stay at 90 s, 6 are of now
        (150, peek, 0, 10),
        (150, Operation::Refund(5), 1, 10), // the newest first
        (160, peek, 2, 0),
    ];
    for (second, operation, left, next) in table {
        let decision = subject.decide(MIDNIGHT + second * SECOND, "k", operation);
        let next_after = decision.next_after().unwrap_or_default();
        assert_eq!((decision.remaining(), next_after.as_secs()), (left, next), "{second} s");
    }
}

fn a_refund_stays_in_the_present_window<S: Subject>() {
    let mut subject = S::new("fixed_window 10/min");
    assert!(subject.check(ELEVEN, "k", 10).is_allowed());
    assert!(subject.check(ELEVEN + MINUTE, "k", 3).is_allowed());
    let refund = subject.decide(ELEVEN + MINUTE, "k", Operation::Refund(10));
    assert_eq!(refund.remaining(), 10);

    let mut subject = S::new("sliding_window_counter 10/min");
    assert!(subject.check(ELEVEN, "k", 10).is_allowed());
    let refund = subject.decide(ELEVEN + MINUTE, "k", Operation::Refund(10));
    assert_eq!(refund.remaining(), 0, "the previous window's units stay taken");
}

/// A debt is the most that a bucket works off in fifty years, so that no wait is absurd and no
/// sum leaves the whole numbers; it is not forgotten before.
fn the_largest_debts_neither_wrap_nor_vanish<S: Subject>() {
    for policy in each_algorithm("10/h") {
        let mut subject = S::new(&policy);
        for _ in 0..3 {
            let debit = subject.decide(MIDNIGHT, "k", Operation::Debit(u64::MAX));
            assert_eq!(debit.remaining(), 0, "{policy}");
        }
        let most = 50 * 365 * DAY;
        let decision = subject.decide(MIDNIGHT, "k", Operation::Peek(1));
        let reset_after = micros(decision.reset_after());
        assert!(reset_after <= most, "{policy}: {reset_after}");
        let fresh = subject.decide(MIDNIGHT + reset_after, "k", Operation::Peek(1));
        assert_eq!(fresh.remaining(), 10, "{policy}");
        let before = subject.decide(MIDNIGHT + reset_after - 1, "k", Operation::Peek(1));
        assert!(before.reset_after() > Duration::ZERO, "{policy}");
    }
}

fn a_cost_of_nothing_asks_without_taking<S: Subject>() {
    for policy in each_algorithm("10/min") {
        let mut subject = S::new(&policy);
        assert!(subject.check(MIDNIGHT, "k", 0).is_allowed());
        assert_eq!(subject.keys(), 0);
        assert!(subject.decide(MIDNIGHT, "k", Operation::Debit(100)).is_allowed());
        for operation in [Operation::Check(0), Operation::Peek(0), Operation::TakeUpTo(0)] {
            let decision = subject.decide(MIDNIGHT, "k", operation);
            assert!(decision.is_allowed(), "{policy}: {operation:?}");
            assert_eq!((decision.granted(), decision.remaining()), (0, 0));
        }
    }
}

fn the_end_of_time_stands_still<S: Subject>() {
    for policy in each_algorithm("10/s") {
        let mut subject = S::new(&policy);
        assert_eq!(admitted(&mut subject, u64::MAX - 5, 20), 10, "{policy}");
        assert_eq!(admitted(&mut subject, u64::MAX, 20), 0, "{policy}");
    }
}

/// The clock of a restored snapshot, or of another host, is an hour behind: a stated wait comes true
/// by the caller's clock.
fn waits_count_from_the_askers_now<S: Subject>() {
    // (policy, the wait for 10 units right after 10 were taken)
    let table = [
        ("token_bucket 10/s burst 10", SECOND),
        ("leaky_bucket 10/s capacity 10 nodelay", SECOND),
        ("leaky_bucket 10/s capacity 10", SECOND),
        ("fixed_window 10/s", SECOND),
        ("sliding_log 10/s", SECOND),
        ("sliding_window_counter 10/s", 2 * SECOND),
        ("a: token_bucket 10/s; b: fixed_window 10/min", MINUTE),
    ];
    for (policy, wait) in table {
        let mut subject = S::new(policy);
        assert!(subject.check(ELEVEN, "k", 10).is_allowed());
        for now in [ELEVEN, ELEVEN - 1, ELEVEN - HOUR, ELEVEN - HOUR + 100_000] {
            let denied = subject.check(now, "k", 10);
            let left = ELEVEN - now + wait;
            assert_eq!(denied.outcome(), Outcome::Denied(Duration::from_micros(left)), "{policy}");
            assert_eq!(micros(denied.reset_after()), left, "{policy}");
            assert!(micros(denied.next_after().unwrap()) > ELEVEN - now, "{policy}");
        }
        assert!(!subject.check(ELEVEN + wait - 1, "k", 10).is_allowed(), "{policy}");
        assert!(subject.check(ELEVEN + wait, "k", 10).is_allowed(), "{policy}");
    }
    let mut queue = S::new("leaky_bucket 10/s capacity 10");
    assert_eq!(queue.check(ELEVEN, "k", 1).delay(), Duration::ZERO);
    let delayed = queue.check(ELEVEN - HOUR, "k", 1).delay();
    assert_eq!(delayed, Duration::from_secs(3_600) + Duration::from_millis(100));
}

fn a_decision_carries_its_instant<S: Subject>() {
    for policy in each_algorithm("60/min") {
        let mut subject = S::new(&policy);
        let operations = [
            Operation::Check(1),
            Operation::Peek(1),
            Operation::TakeUpTo(5),
            Operation::Check(1_000),
            Operation::Debit(70),
            Operation::Check(1),
            Operation::Refund(1),
            Operation::Reset,
        ];
        for (n, operation) in (0..).zip(operations) {
            for now in [ELEVEN + n, ELEVEN + n - 1] {
                let decision = subject.decide(now, "k", operation);
                assert_eq!(decision.decided_at().as_micros(), now, "{policy}: {operation:?}");
            }
        }
    }
    // So an absolute time needs no second look at a clock: the end of the window, exactly.
    let mut subject = S::new("fixed_window 60/min");
    for after in [0, 1, 999_999, 7_000_001, 59_999_999] {
        let decision = subject.check(ELEVEN + after, "k", 1);
        let reset_at = decision.decided_at().as_micros() + micros(decision.reset_after());
        assert_eq!(reset_at, ELEVEN + MINUTE);
    }
}

/// Twenty rounds between an instant and a later one, at which a unit is given back.
fn a_clock_to_and_fro_with_refunds_mints_nothing<S: Subject>() {
    for policy in each_algorithm("10/min") {
        let rounds = |take_late: bool| {
            let mut subject = S::new(&policy);
            (0..20)
                .map(|_| {
                    let mut taken = admitted(&mut subject, ELEVEN, 20);
                    let late = ELEVEN + 100 * SECOND;
                    if take_late {
                        taken += admitted(&mut subject, late, 1);
                    }
                    let _ = subject.decide(late, "k", Operation::Refund(1));
                    taken
                })
                .sum::<u64>()
        };
        // Refunds that find nothing used give nothing back, and leave the time as it is.
        assert_eq!(rounds(false), 10, "{policy}");
        // If one is taken late, time has come that far: ten more, and one for each refund.
        assert!(rounds(true) <= 11 + 10 + 18, "{policy}: {}", rounds(true));
    }
}

fn a_refund_that_finds_nothing_changes_nothing<S: Subject>() {
    for policy in each_algorithm("10/min") {
        let mut refunded = S::new(&policy);
        let mut other = S::new(&policy);
        for subject in [&mut refunded, &mut other] {
            assert!(subject.check(ELEVEN, "k", 10).is_allowed());
        }
        let _ = refunded.decide(ELEVEN + 3 * MINUTE, "k", Operation::Refund(3));
        for now in [ELEVEN, ELEVEN - 1, ELEVEN + 30 * SECOND, ELEVEN + MINUTE, ELEVEN + 90 * SECOND]
        {
            let decisions =
                [&mut refunded, &mut other].map(|s| s.decide(now, "k", Operation::Peek(10)));
            assert_eq!(decisions[0], decisions[1], "{policy} at {now}");
        }
    }
}

/// A client that asks once for each unit, evenly: from 1 in ten seconds to 1,000 a minute.
fn a_limit_without_an_algorithm_denies_nobody_who_keeps_to_the_rate<S: Subject>() {
    for (policy, period) in [
        ("1/10s", 10 * SECOND),
        ("2/10s", 5 * SECOND),
        ("3/10s", 3_333_334),
        ("20/min", 3 * SECOND),
        ("100/min", 600_000),
        ("1000/min", 60_000),
    ] {
        let mut subject = S::new(policy);
        for n in 0..S::affordable(2_000) / 5 {
            assert!(subject.check(ELEVEN + n * period, "k", 1).is_allowed(), "{policy}: {n}");
        }
    }
    let mut subject = S::new("100/min");
    let first = subject.check(ELEVEN, "k", 1);
    assert_eq!((first.remaining(), first.next_after()), (99, Some(Duration::from_millis(600))));
}

/// A client that takes all it can, after a burst at the worst time: the most units that go within a
/// minute, of which the end is not a part. The table in the docs of the crate.
fn the_worst_case_in_any_window_is_what_the_docs_say<S: Subject>() {
    let table = [
        ("token_bucket 100/min", 199),
        ("token_bucket 100/min burst 20", 119),
        ("leaky_bucket 100/min", 100),
        ("leaky_bucket 100/min nodelay", 199),
        ("fixed_window 100/min", 200),
        ("sliding_log 100/min", 100),
        ("sliding_window_counter 100/min", 199),
    ];
    for (policy, worst) in table {
        let mut most = 0;
        // First all at once, at the end of a window or within it; then whatever there is, all the time.
        for burst_at in [MINUTE - 1, MINUTE - 100_000, 30 * SECOND, 0] {
            let mut subject = S::new(policy);
            let mut went: Vec<(u64, u64)> = Vec::new();
            let mut now = ELEVEN + burst_at;
            let end = ELEVEN + 3 * MINUTE;
            while now <= end {
                let decision = subject.decide(now, "k", Operation::TakeUpTo(100));
                if decision.granted() > 0 {
                    went.push((now + micros(decision.delay()), decision.granted()));
                }
                now += decision.retry_after().map_or(0, micros);
            }
            went.sort_unstable();
            for (first, (from, _)) in went.iter().enumerate() {
                let within = went[first..].iter().take_while(|(at, _)| at - from < MINUTE);
                most = most.max(within.map(|(_, units)| units).sum());
            }
        }
        assert_eq!(most, worst, "{policy}");
    }
}
