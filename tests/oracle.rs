//! Every algorithm against a model of it that is too plain to be wrong, field by field.

mod common;

use common::model::{Answer, Model, Verdict};
use common::{InProcess, Subject, cases, debts, jumping_trace, micros, one_limit, parse};
use proptest::prelude::*;
use tollgate::{Decision, Operation, Outcome};

fn answer(decision: &Decision) -> Answer {
    Answer {
        verdict: match decision.outcome() {
            Outcome::Allowed => Verdict::Allowed,
            Outcome::Delayed(delay) => Verdict::Delayed(micros(delay)),
            Outcome::Denied(wait) => Verdict::Denied(micros(wait)),
            Outcome::Never => Verdict::Never,
            other => panic!("{other:?}"),
        },
        granted: decision.granted(),
        limit: decision.limit(),
        remaining: decision.remaining(),
        reset_after: micros(decision.reset_after()),
        next_after: decision.next_after().map(micros),
    }
}

/// Debts of more than a bucket works off in fifty years, and counts beyond 2^45, are told
/// elsewhere: 60 debits of 10 units, each worth 9 days, are 15 years.
fn payable(operation: Operation<'static>, is_bucket: bool) -> Operation<'static> {
    match operation {
        Operation::Debit(n) if is_bucket => Operation::Debit(n.min(10)),
        Operation::Debit(n) => Operation::Debit(n.min(2_000)),
        other => other,
    }
}

proptest! {
    #![proptest_config(cases(4_000))]

    #[test]
    fn each_algorithm_decides_as_its_model(
        policy in one_limit(),
        trace in jumping_trace(60),
    ) {
        let is_bucket = policy.to_string().contains("bucket");
        let mut model = Model::new(&policy.limits()[0]);
        let mut subject = InProcess::with_policy(policy.clone());
        for (step, &(now, operation)) in trace.iter().enumerate() {
            let operation = payable(operation, is_bucket);
            let ours = answer(&subject.decide(now, "k", operation));
            prop_assert_eq!(
                ours, model.apply(operation, now),
                "{} at step {}: {:?} at {}", policy, step, operation, now
            );
        }
    }

    #[test]
    fn a_log_in_debt_decides_as_its_model(count in 1_u64..6, trace in debts(80)) {
        let policy = parse(&format!("sliding_log {count}/min"));
        let mut model = Model::new(&policy.limits()[0]);
        let mut subject = InProcess::with_policy(policy);
        for (step, &(now, operation)) in trace.iter().enumerate() {
            let ours = answer(&subject.decide(now, "k", operation));
            prop_assert_eq!(
                ours, model.apply(operation, now),
                "{}/min at step {}: {:?} at {}", count, step, operation, now
            );
        }
    }
}
