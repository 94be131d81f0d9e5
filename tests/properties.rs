//! What holds for any policy and any history.

mod common;

use common::{
    InProcess, Subject, cases, forward_trace, jumping_trace, micros, operation, policy, set_of,
};
use proptest::prelude::*;
use std::time::Duration;
use tollgate::{Algorithm, All, Decision, Limit, Limiter, ManualClock, Operation, Outcome, Tick};

fn run(subject: &mut InProcess, trace: &[(u64, Operation<'static>)]) -> Vec<Decision> {
    trace.iter().map(|&(now, operation)| subject.decide(now, "k", operation)).collect()
}

fn is_queue(limit: &Limit) -> bool {
    let text = limit.to_string();
    text.contains("leaky_bucket") && !text.contains("nodelay")
}

fn is_write(operation: Operation, decision: &Decision) -> bool {
    match operation {
        Operation::Check(_) | Operation::TakeUpTo(_) => decision.granted() > 0,
        Operation::Peek(_) => false,
        _ => true,
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    /// Denied one tick before it, allowed at it: for each cost, and for the unit after those
    /// that remain.
    #[test]
    fn waits_are_exact(policy in policy(), trace in forward_trace(40), cost in 1_u64..200) {
        let mut subject = InProcess::with_policy(policy);
        run(&mut subject, &trace);
        let now = trace.last().unwrap().0;
        let mut waits = Vec::new();
        let peek = subject.decide(now, "k", Operation::Peek(cost));
        if let Outcome::Denied(wait) = peek.outcome() {
            waits.push((cost, micros(wait)));
        }
        if let Some(wait) = peek.next_after() {
            waits.push((peek.remaining() + 1, micros(wait)));
        }
        for (cost, wait) in waits {
            prop_assert!(wait > 0);
            let before = subject.decide(now + wait - 1, "k", Operation::Peek(cost));
            prop_assert_eq!(before.retry_after().map(micros), Some(1));
            let at = subject.decide(now + wait, "k", Operation::Peek(cost));
            prop_assert!(at.is_allowed(), "{:?} after {}", at, wait);
        }
    }

    /// Once the time has passed after which a state says nothing, dropping it changes no later
    /// decision; a tick before, it does.
    #[test]
    fn a_state_may_be_dropped_when_it_is_fresh_and_not_before(
        policy in policy(),
        trace in forward_trace(40),
        later in prop::collection::vec((0_u64..1_000_000, operation()), 1..20),
    ) {
        let mut old = InProcess::with_policy(policy.clone());
        let reset_after = micros(run(&mut old, &trace).last().unwrap().reset_after());
        let fresh_at = trace.last().unwrap().0 + reset_after;
        if reset_after > 0 {
            let before = old.decide(fresh_at - 1, "k", Operation::Peek(1));
            prop_assert_eq!(micros(before.reset_after()), 1);
        }
        let mut new = InProcess::with_policy(policy);
        let mut now = fresh_at;
        for (pause, operation) in later {
            prop_assert_eq!(
                old.decide(now, "k", operation),
                new.decide(now, "k", operation),
                "{:?} at {}", operation, now
            );
            now += pause;
        }
    }

    /// A history without its refusals and peeks is the same history.
    #[test]
    fn refusals_and_peeks_leave_no_trace(policy in policy(), trace in jumping_trace(60)) {
        let mut all = InProcess::with_policy(policy.clone());
        let decisions = run(&mut all, &trace);
        let mut writes = InProcess::with_policy(policy);
        for (&(now, operation), decision) in trace.iter().zip(&decisions) {
            if is_write(operation, decision) {
                prop_assert_eq!(writes.decide(now, "k", operation), *decision);
            }
        }
    }

    /// A peek says what the check says.
    #[test]
    fn a_peek_foretells_the_check(policy in policy(), trace in jumping_trace(40), n in 0_u64..50) {
        let mut subject = InProcess::with_policy(policy.clone());
        run(&mut subject, &trace);
        let now = trace.last().unwrap().0;
        let peek = subject.decide(now, "k", Operation::Peek(n));
        let check = subject.decide(now, "k", Operation::Check(n));
        prop_assert_eq!(peek.outcome(), check.outcome());
        let left = peek.remaining() - check.granted();
        // Of two queues, units may go from the longer one, though it is faster: then the place in the
        // slower one is when they go.
        let queues = policy.limits().iter().filter(|limit| is_queue(limit)).count();
        prop_assert!(check.remaining() == left || queues > 1 && check.remaining() < left);
    }

    /// Time that goes backwards stands still: asking earlier than the last take is the same as
    /// asking at that take's instant, and every wait is longer by as much as it is earlier.
    #[test]
    fn going_back_is_standing_still(policy in policy(), trace in jumping_trace(60)) {
        let mut jumping = InProcess::with_policy(policy.clone());
        let mut standing = InProcess::with_policy(policy);
        let mut last = 0;
        for (now, operation) in trace {
            // A reset remembers no time, and a refund does if it gives anything back.
            if matches!(operation, Operation::Refund(_) | Operation::Reset) {
                continue;
            }
            let decision = jumping.decide(now, "k", operation);
            let at_last = standing.decide(now.max(last), "k", operation);
            let earlier = Duration::from_micros(last.saturating_sub(now));
            let later = |wait: Duration| if wait.is_zero() { wait } else { wait + earlier };
            prop_assert_eq!(decision.decided_at(), Tick::from_micros(now));
            prop_assert_eq!(decision.is_allowed(), at_last.is_allowed());
            prop_assert_eq!(decision.retry_after(), at_last.retry_after().map(later));
            prop_assert_eq!(decision.delay(), later(at_last.delay()));
            prop_assert_eq!(decision.reset_after(), at_last.reset_after() + earlier);
            prop_assert_eq!(decision.next_after(), at_last.next_after().map(later));
            let counts = |d: &Decision| (d.granted(), d.limit(), d.remaining(), d.binding());
            prop_assert_eq!(counts(&decision), counts(&at_last));
            if decision.granted() > 0 {
                last = now.max(last);
            }
        }
    }

    /// In no window of the log's length more than its limit.
    #[test]
    fn the_log_never_exceeds_its_limit(
        count in 1_u64..30,
        millis in 1_u64..5_000,
        trace in jumping_trace(80),
    ) {
        let mut log = InProcess::new(&format!("sliding_log {count}/{millis}ms"));
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for &(now, operation) in &trace {
            let (Operation::Check(_) | Operation::TakeUpTo(_)) = operation else { continue };
            let granted = log.decide(now, "k", operation).granted();
            if granted > 0 {
                // Before the last take, the clock stands still.
                taken.push((taken.last().map_or(now, |&(last, _)| last.max(now)), granted));
            }
        }
        for &(end, _) in &taken {
            let window = (end + 1).saturating_sub(millis * 1_000)..=end;
            let units: u64 =
                taken.iter().filter(|(at, _)| window.contains(at)).map(|(_, n)| n).sum();
            prop_assert!(units <= count, "{} in {:?}", units, window);
        }
    }

    /// A bucket passes at most its capacity and what has flowed since.
    #[test]
    fn a_bucket_never_exceeds_its_rate(
        count in 1_u64..1_000,
        millis in 1_u64..5_000,
        burst in 1_u64..50,
        trace in forward_trace(80),
    ) {
        let mut bucket = InProcess::new(&format!("token_bucket {count}/{millis}ms burst {burst}"));
        let mut granted = 0;
        for &(now, operation) in &trace {
            let (Operation::Check(_) | Operation::TakeUpTo(_)) = operation else { continue };
            granted += u128::from(bucket.decide(now, "k", operation).granted());
            let elapsed = u128::from(now - trace[0].0);
            let flowed = elapsed * u128::from(count) / u128::from(millis * 1_000);
            prop_assert!(granted <= u128::from(burst) + flowed);
        }
    }

    /// Pairs in pairs are the same set as a list.
    #[test]
    fn pairs_decide_as_lists(
        policy in set_of(3),
        trace in jumping_trace(40),
    ) {
        let [a, b, c] = policy.limits() else { unreachable!() };
        let clock = ManualClock::new(Tick::from_micros(0));
        let pairs = All((a.clone(), All((b.clone(), c.clone()))));
        let pairs = Limiter::with_clock(pairs, clock.clone());
        prop_assert_eq!(pairs.algorithm().describe().len(), 3);
        let mut list = InProcess::with_policy(policy);
        for (now, operation) in trace {
            clock.set(Tick::from_micros(now));
            prop_assert_eq!(pairs.decide("k", operation), list.decide(now, "k", operation));
        }
    }

    /// The text of a policy reads as that policy.
    #[test]
    fn texts_round_trip(policy in policy()) {
        prop_assert_eq!(policy.to_string().parse::<tollgate::Policy>().unwrap(), policy);
    }

    /// Whatever is written where a policy is expected, the answer is a policy or an error that
    /// points into the text.
    #[test]
    fn any_text_is_read_or_refused(text in "[ a-z_0-9:;/é]{0,40}|.{0,30}") {
        match text.parse::<tollgate::Policy>() {
            Ok(policy) => prop_assert_eq!(policy.to_string().parse::<tollgate::Policy>().unwrap(), policy),
            Err(error) => if let Some(span) = error.span() {
                prop_assert!(text.get(span).is_some());
            },
        }
    }
}
