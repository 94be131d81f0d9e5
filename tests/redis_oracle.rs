//! The store in Redis against the store in process, field by field.

mod common;

use common::redis::InRedis;
use common::{InProcess, Subject, cases, jumping_trace, policy};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn redis_decides_as_the_process_does(policy in policy(), trace in jumping_trace(200)) {
        let mut in_process = InProcess::with_policy(policy.clone());
        let mut in_redis = InRedis::with_policy(policy.clone());
        for (step, &(now, operation)) in trace.iter().enumerate() {
            prop_assert_eq!(
                in_redis.decide(now, "k", operation),
                in_process.decide(now, "k", operation),
                "{} at step {}: {:?} at {}", policy, step, operation, now
            );
        }
    }
}
