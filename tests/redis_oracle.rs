//! The store in Redis against the store in process, field by field.

mod common;

use common::redis::InRedis;
use common::{InProcess, Subject, cases, jumping_trace, micros, policy};
use proptest::prelude::*;

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
