//! The store in Redis against the store in process, field by field.

mod common;

use common::redis::{InRedis, SHARED};
use common::{
    InProcess, MIDNIGHT, Subject, cases, debts, jumping_trace, micros, operation, parse, pause,
    policy, units, versions,
};
use proptest::prelude::*;
use tollgate::{Algorithm, Limiter, ManualClock, Operation, Policy, Receipt, Tick, TieredMemory};

/// Debts beyond all numbers: the second is not recorded, but when it was is.
#[test]
fn a_log_that_is_full_of_debts_still_knows_the_time() {
    for policy in ["sliding_log 3/min", "sliding_log 3/min; sliding_log 100/h"] {
        let mut in_process = InProcess::with_policy(parse(policy));
        let mut in_redis = InRedis::with_policy(parse(policy));
        let huge = Operation::Debit(u64::MAX);
        let table = [
            (0, huge),
            (800, huge),
            (900, huge),
            (850, Operation::Check(0)),
            (950, Operation::Refund(1)),
            (990, huge),
            (1_000, huge),
            (970, Operation::Peek(1)),
            (60_000_950, Operation::Check(1)),
            (60_001_000, Operation::Check(2)),
        ];
        for (at, operation) in table {
            let now = common::MIDNIGHT + at;
            let theirs = in_process.decide(now, "k", operation);
            assert_eq!(in_redis.decide(now, "k", operation), theirs, "{policy}: {at}");
        }
    }
}

/// How the time of a step is told: as in the trace, or exactly when something comes about that the
/// last decision announced, or a microsecond before.
#[derive(Clone, Copy, Debug)]
enum When {
    AsTraced,
    Next(u64),
    Reset(u64),
}

fn when() -> impl Strategy<Value = When> {
    prop_oneof![
        6 => Just(When::AsTraced),
        2 => (0_u64..2).prop_map(When::Next),
        1 => (0_u64..2).prop_map(When::Reset),
    ]
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn redis_decides_as_the_process_does(
        policy in policy(),
        trace in jumping_trace(200),
        whens in prop::collection::vec(when(), 200),
    ) {
        let mut in_process = InProcess::with_policy(policy.clone());
        let mut in_redis = InRedis::with_policy(policy.clone());
        // The trace's times, and how far its exact steps have led away from them.
        let (mut now, mut led, mut last) = (0, 0, None);
        for (step, (&(traced, operation), when)) in trace.iter().zip(whens).enumerate() {
            now = match (when, last) {
                (When::Next(early), Some((Some(next), _))) => now + (next - early),
                (When::Reset(early), Some((_, reset @ 1..))) => now + (reset - early),
                _ => traced + led,
            };
            led = now - traced.min(now);
            let ours = in_redis.decide(now, "k", operation);
            let theirs = in_process.decide(now, "k", operation);
            last = Some((theirs.next_after().map(micros), micros(theirs.reset_after())));
            prop_assert_eq!(
                ours, theirs,
                "{} at step {}: {:?} at {}", policy, step, operation, now
            );
        }
    }
}

proptest! {
    #![proptest_config(cases(500))]

    /// On a key of its own, and in a set.
    #[test]
    fn a_log_in_debt_decides_as_in_process(
        count in 1_u64..6,
        other in prop::sample::select(vec!["", "; sliding_log 9/h", "; token_bucket 9/min"]),
        trace in debts(120),
    ) {
        let policy = parse(&format!("sliding_log {count}/min{other}"));
        let mut in_process = InProcess::with_policy(policy.clone());
        let mut in_redis = InRedis::with_policy(policy.clone());
        for (step, &(now, operation)) in trace.iter().enumerate() {
            prop_assert_eq!(
                in_redis.decide(now, "k", operation), in_process.decide(now, "k", operation),
                "{} at step {}: {:?} at {}", policy, step, operation, now
            );
        }
    }
}

/// A step of a history in which costs are settled and limits are replaced.
#[derive(Clone, Debug)]
enum Step {
    Do(Operation<'static>),
    Reserve(u64),
    /// One of the receipts so far, by its place.
    Settle(prop::sample::Index, u64),
    /// One of the policies.
    Replace(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => operation().prop_map(Step::Do),
        3 => units().prop_map(Step::Reserve),
        3 => (any::<prop::sample::Index>(), units()).prop_map(|(n, cost)| Step::Settle(n, cost)),
        1 => (0..3_usize).prop_map(Step::Replace),
    ]
}

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn redis_settles_and_changes_limits_as_the_process_does(
        policies in versions(),
        steps in prop::collection::vec((pause(), 0..6, step()), 1..120),
    ) {
        let clock = ManualClock::new(Tick::from_micros(0));
        let in_process = TieredMemory::new(clock.clone());
        let in_process = Limiter::with_store(policies[0].clone(), in_process);
        let first = InRedis::with_policy(policies[0].clone());
        let mut in_redis: Vec<InRedis> =
            policies.iter().map(|policy| first.under(policy.clone())).collect();
        let (mut now, mut version) = (MIDNIGHT, 0);
        let mut receipts: Vec<[Receipt; 2]> = Vec::new();
        for (index, (pause, direction, step)) in steps.into_iter().enumerate() {
            now = if direction == 0 { now - pause } else { now + pause };
            let described = format!("{} at step {index}: {step:?} at {now}", policies[version]);
            let new = [Receipt::new(), Receipt::new()];
            let [ours, theirs] = match step {
                Step::Do(operation) => [operation; 2],
                Step::Reserve(n) => new.each_ref().map(|receipt| Operation::Reserve(n, receipt)),
                Step::Settle(of, cost) if !receipts.is_empty() => {
                    let receipts = of.get(&receipts).each_ref();
                    receipts.map(|receipt| Operation::Settle(cost, receipt))
                }
                Step::Settle(..) => continue,
                Step::Replace(to) => {
                    version = to;
                    continue;
                }
            };
            clock.set(Tick::from_micros(now));
            let theirs = in_process.decide_with(&policies[version], "k", theirs);
            let ours = in_redis[version].decide(now, "k", ours);
            prop_assert_eq!(ours, theirs, "{}", described);
            receipts.push(new);
        }
    }
}

/// Quotas and costs so large and odd that products go far beyond the whole numbers of a double.
fn large_limit() -> impl Strategy<Value = (Policy, u64)> {
    let count = 1_000_000_000_u64..10_000_000_000_000;
    (count, 1_000_000_u64..34_000_000_000, 0..6).prop_map(|(count, millis, kind)| {
        let quota = format!("{count}/{millis}ms");
        let text = match kind {
            0 => format!("token_bucket {quota}"),
            1 => format!("token_bucket {quota} burst {}", count / 3 + 1),
            2 => format!("leaky_bucket {quota}"),
            3 => format!("fixed_window {quota}"),
            4 => format!("sliding_log {quota}"),
            _ => format!("sliding_window_counter {quota}"),
        };
        (parse(&text), millis)
    })
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn large_numbers_are_exact(
        (policy, millis) in large_limit(),
        steps in prop::collection::vec((0_u64..1_000, 0_u64..12, 0_u64..1_000_003), 1..60),
    ) {
        let mut in_process = InProcess::with_policy(policy.clone());
        let mut in_redis = InRedis::with_policy(policy.clone());
        let limit = policy.limits()[0].limit();
        let (mut now, mut next) = (common::MIDNIGHT, None);
        for (step, (share, kind, odd)) in steps.into_iter().enumerate() {
            now = match (kind, next) {
                (0..4, Some(next)) => now + next,
                _ => now + millis * odd / 1_000 * (odd % 3),
            };
            let n = limit / 1_000 * share + odd;
            let operation = match kind % 6 {
                0 => Operation::TakeUpTo(n),
                1 => Operation::Debit(n),
                2 => Operation::Refund(n / 7),
                _ => Operation::Check(n),
            };
            let theirs = in_process.decide(now, "k", operation);
            next = theirs.retry_after().or(theirs.next_after()).map(micros);
            prop_assert_eq!(
                in_redis.decide(now, "k", operation), theirs,
                "{} at step {}: {:?} at {}", policy, step, operation, now
            );
        }
    }
}

proptest! {
    #![proptest_config(cases(500))]

    /// The scripts' division by itself, over all that it is said to be exact for, with quotients
    /// up to 2^53.
    #[test]
    fn the_scripts_divide_exactly(
        (a, b, m) in (0_u64..1 << 53, 1_u64..1 << 45, 1_u64..1 << 45),
        (a_bits, b_bits, m_bits) in (0..53_u32, 0..45_u32, 0..45_u32),
        near in 0_u64..3,
    ) {
        let (a, b, m) = (a >> a_bits, (b >> b_bits).max(1), (m >> m_bits).max(1));
        // Near a whole quotient, where rounding would show.
        let a = if near == 0 { a } else { (a / m * m).saturating_sub(near - 1) };
        let wide = u128::from(a) * u128::from(b);
        prop_assume!(wide / u128::from(m) < 1 << 53);

        let driver = include_str!("../src/store/redis/driver.lua");
        let begin = driver.split("--@ ").find(|section| section.starts_with("begin\n")).unwrap();
        let ask = "local n = function(i) return tonumber(ARGV[i]) end \
                   local q, r = mul_div(n(2), n(3), n(4)) return string.format('%.0f %.0f', q, r)";
        let script = format!("{}\n{ask}", begin.trim_start_matches("begin\n"));
        let [a, b, divisor] = [a, b, m].map(|number| number.to_string());
        let answer = SHARED.cli(&["EVAL", &script, "1", "k", "numbers", &a, &b, &divisor]);
        let m = u128::from(m);
        prop_assert_eq!(answer, format!("{} {}", wide / m, wide % m), "{} * {} / {}", a, b, m);
    }
}
