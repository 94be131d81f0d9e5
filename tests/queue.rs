//! The queue of a leaky bucket: departures are never closer than its rate, whatever is given back.

mod common;

use common::{MIDNIGHT, SECOND, Subject, cases, micros, parse};
use proptest::prelude::*;
use std::future::Future;
use std::task::{Context, Waker};
use std::time::Duration;
use tollgate::{
    BoxRateLimiter, Decision, Limiter, ManualClock, Operation, Outcome, RateLimiter, Receipt, Tick,
    TieredMemory,
};

#[cfg(feature = "redis")]
use common::redis::{InRedis, SHARED, name};
#[cfg(feature = "redis")]
use tollgate::Redis;

common::on_each_store! {
    a_refund_promises_no_departure_twice,
    only_the_last_place_is_given_up,
    a_place_is_kept_by_one_unit_once_it_may_have_left,
    what_would_be_delayed_for_too_long_takes_no_place,
    after_a_reset_a_queue_starts_anew,
    of_two_queues_the_slower_one_keeps_its_distance,
    departures_are_never_closer_than_the_rate,
}

const QUEUE: &str = "leaky_bucket 1/s capacity 10";

fn delay(decision: &Decision) -> u64 {
    assert!(decision.is_allowed(), "{decision:?}");
    micros(decision.delay())
}

fn reserve<'r>(
    subject: &mut impl Subject,
    now: u64,
    n: u64,
    receipt: &'r Receipt,
) -> (u64, &'r Receipt) {
    (delay(&subject.decide(now, "k", Operation::Reserve(n, receipt))), receipt)
}

fn a_refund_promises_no_departure_twice<S: Subject>() {
    let mut subject = S::new(QUEUE);
    for place in 0..3 {
        assert_eq!(delay(&subject.check(MIDNIGHT, "k", 1)), place * SECOND);
    }
    let refund = subject.decide(MIDNIGHT + 100_000, "k", Operation::Refund(1));
    assert_eq!(refund.remaining(), 7);
    assert_eq!(delay(&subject.check(MIDNIGHT + 100_000, "k", 1)), 2_900_000);
}

fn only_the_last_place_is_given_up<S: Subject>() {
    let mut subject = S::new(QUEUE);
    let receipts = [(); 4].map(|()| Receipt::new());
    for (place, receipt) in (0..).zip(&receipts) {
        assert_eq!(reserve(&mut subject, MIDNIGHT, 1, receipt).0, place * SECOND);
    }
    let settle = |subject: &mut S, index: usize, cost| {
        subject.decide(MIDNIGHT, "k", Operation::Settle(cost, &receipts[index])).remaining()
    };
    // One in the middle leaks unused, also when the one behind it has gone.
    assert_eq!(settle(&mut subject, 2, 0), 6);
    assert_eq!(settle(&mut subject, 3, 0), 7);
    let last = Receipt::new();
    assert_eq!(reserve(&mut subject, MIDNIGHT, 4, &last).0, 3 * SECOND);
    // Of the last one, what is too much.
    let left = subject.decide(MIDNIGHT, "k", Operation::Settle(1, &last)).remaining();
    assert_eq!(left, 6);
    assert_eq!(delay(&subject.check(MIDNIGHT, "k", 1)), 4 * SECOND);
}

fn a_place_is_kept_by_one_unit_once_it_may_have_left<S: Subject>() {
    // (asked for, settled after, as this cost, the next delay)
    let table = [
        (5, 0, 0, 0),
        (5, 0, 2, 2 * SECOND),
        (5, 1, 2, 2 * SECOND - 1),
        (5, 1, 0, SECOND - 1),
        (5, 2 * SECOND, 0, 0),
        (5, 2 * SECOND, 3, SECOND),
        (1, 1, 0, SECOND - 1),
    ];
    for (n, after, cost, next) in table {
        let mut subject = S::new(QUEUE);
        let receipt = Receipt::new();
        assert_eq!(reserve(&mut subject, MIDNIGHT, n, &receipt).0, 0);
        let now = MIDNIGHT + after;
        let _ = subject.decide(now, "k", Operation::Settle(cost, &receipt));
        assert_eq!(delay(&subject.check(now, "k", 1)), next, "{n}, {after}, {cost}");
    }
}

fn what_would_be_delayed_for_too_long_takes_no_place<S: Subject>() {
    let mut subject = S::new(QUEUE);
    for place in 0..3 {
        assert_eq!(delay(&subject.check(MIDNIGHT, "k", 1)), place * SECOND);
    }
    let bounded = |micros| Receipt::new().longest_delay(Duration::from_micros(micros));
    let decision = subject.decide(MIDNIGHT, "k", Operation::Reserve(1, &bounded(2_999_999)));
    assert_eq!(decision.outcome(), Outcome::Denied(Duration::from_micros(1)));
    assert_eq!((decision.granted(), decision.remaining()), (0, 7));
    // The stated wait comes true, and no place was taken.
    let (in_time, at) = (bounded(2_999_999), MIDNIGHT + 1);
    assert_eq!(reserve(&mut subject, at, 1, &in_time).0, 2_999_999);
    // A full queue states the wait for room.
    assert_eq!(subject.decide(at, "k", Operation::TakeUpTo(9)).granted(), 6);
    let full = subject.decide(at, "k", Operation::Reserve(1, &Receipt::new()));
    assert_eq!((full.remaining(), full.retry_after()), (0, Some(Duration::from_micros(999_999))));
    // With a bound it states when the same call is in time.
    let full = subject.decide(at, "k", Operation::Reserve(1, &bounded(SECOND)));
    let wait = micros(full.retry_after().unwrap());
    assert_eq!((full.remaining(), wait), (0, 9 * SECOND - 1));
    let again = bounded(SECOND);
    assert!(!subject.decide(at + wait - 1, "k", Operation::Reserve(1, &again)).is_allowed());
    assert_eq!(reserve(&mut subject, at + wait, 1, &again).0, SECOND);
}

fn after_a_reset_a_queue_starts_anew<S: Subject>() {
    let mut subject = S::new(QUEUE);
    assert!(subject.check(MIDNIGHT, "k", 10).is_allowed());
    assert!(!subject.check(MIDNIGHT, "k", 1).is_allowed());
    assert_eq!(subject.decide(MIDNIGHT, "k", Operation::Reset).remaining(), 10);
    assert_eq!(delay(&subject.check(MIDNIGHT, "k", 1)), 0);
}

/// A settlement charges each limit up to a debt of its own size, so the faster queue can be the
/// longer one: then units go when it lets them, and the slower one counts from there.
fn of_two_queues_the_slower_one_keeps_its_distance<S: Subject>() {
    let mut subject = S::new("leaky_bucket 2/s capacity 100; slow: leaky_bucket 1/s capacity 2");
    let receipt = Receipt::new();
    assert_eq!(reserve(&mut subject, MIDNIGHT, 1, &receipt).0, 0);
    let _ = subject.decide(MIDNIGHT, "k", Operation::Settle(1_000, &receipt));
    // Twice 100 units at 2/s, and twice 2 at 1/s.
    let now = MIDNIGHT + 51 * SECOND;
    assert_eq!(delay(&subject.check(now, "k", 1)), 49 * SECOND);
    let denied = subject.check(now, "k", 1);
    let wait = micros(denied.retry_after().unwrap());
    let next = now + wait + delay(&subject.check(now + wait, "k", 1));
    assert!(next >= MIDNIGHT + 101 * SECOND, "{}", next - MIDNIGHT);
}

/// What is done with a queue: how long after the last step, and what.
#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u64),
    TakeUpTo(u64),
    Refund(u64),
    Debit(u64),
    Reserve(u64),
    Settle(prop::sample::Index, u64),
    Drop(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => (1_u64..4).prop_map(Step::Take),
        1 => (1_u64..9).prop_map(Step::TakeUpTo),
        2 => (1_u64..9).prop_map(Step::Refund),
        1 => (1_u64..3).prop_map(Step::Debit),
        5 => (1_u64..5).prop_map(Step::Reserve),
        3 => (index(), 0_u64..7).prop_map(|(of, cost)| Step::Settle(of, cost)),
        3 => index().prop_map(Step::Drop),
    ];
    let pause =
        prop_oneof![4 => Just(0), 2 => 1_u64..3_000, 2 => 1_u64..400_000, 1 => 1..5 * SECOND];
    prop::collection::vec((pause, step), 1..60)
}

/// Units that may go at an instant, and have not been given up.
struct Departure {
    at: u64,
    units: u64,
}

fn departures_are_never_closer_than_the_rate<S: Subject>() {
    // With the slowest rate of a queue in it, in units per 1,000 s, and the longest delay.
    let policies = [
        ("leaky_bucket 2/s capacity 10", 2_000, Some(5 * SECOND)),
        ("leaky_bucket 999/s capacity 30", 999_000, Some(30_030)),
        ("leaky_bucket 7/3s capacity 9", 2_334, Some(3_857_143)),
        ("leaky_bucket 3/s capacity 20; b: token_bucket 4/s burst 9", 3_000, Some(6_666_666)),
        ("leaky_bucket 3/s capacity 20; fixed_window 30/s", 3_000, Some(6_666_666)),
        ("a: leaky_bucket 3/s capacity 20; b: leaky_bucket 7/2s capacity 5", 3_000, None),
        ("a: leaky_bucket 20/s capacity 40; b: leaky_bucket 5/s capacity 3", 5_000, None),
    ];
    let strategy = (0..policies.len(), steps());
    let cases = cases(u32::try_from(S::affordable(2_000) / 20).unwrap());
    let mut runner = proptest::test_runner::TestRunner::new(cases);
    let result = runner.run(&strategy, |(policy, steps)| {
        let (policy, rate, longest) = policies[policy];
        let mut subject = S::new(policy);
        let mut departures: Vec<Departure> = Vec::new();
        let mut held: Vec<(Receipt, Option<usize>)> = Vec::new();
        let mut now = MIDNIGHT;
        for (pause, step) in steps {
            now += pause;
            let receipt = Receipt::new();
            let (operation, settled) = match step {
                Step::Take(n) => (Operation::Check(n), None),
                Step::TakeUpTo(n) => (Operation::TakeUpTo(n), None),
                Step::Refund(n) => (Operation::Refund(n), None),
                Step::Debit(n) => (Operation::Debit(n), None),
                Step::Reserve(n) => (Operation::Reserve(n, &receipt), None),
                Step::Settle(of, _) | Step::Drop(of) if !held.is_empty() => {
                    let cost = if let Step::Settle(_, cost) = step { cost } else { 0 };
                    let (receipt, departure) = of.get(&held);
                    (Operation::Settle(cost, receipt), departure.map(|index| (index, cost)))
                }
                Step::Settle(..) | Step::Drop(_) => continue,
            };
            let decision = subject.decide(now, "k", operation);
            let takes = matches!(step, Step::Take(_) | Step::TakeUpTo(_) | Step::Reserve(_));
            let mut departure = None;
            if takes && decision.granted() > 0 {
                let at = now + delay(&decision);
                if let Some(longest) = longest {
                    prop_assert!(micros(decision.delay()) <= longest, "{decision:?}");
                }
                departure = Some(departures.len());
                departures.push(Departure { at, units: decision.granted() });
            }
            if let Some((index, cost)) = settled {
                let Departure { at, units } = &mut departures[index];
                // What has left has left: only its units are fewer.
                let least = u64::from(*at < now);
                *units = (*units).min(cost.max(least));
            }
            if let Step::Settle(of, _) | Step::Drop(of) = step {
                let index = of.index(held.len());
                held.swap_remove(index);
            }
            if let Step::Reserve(_) = step {
                held.push((receipt, departure));
            }
        }
        let mut left: Vec<_> = departures.into_iter().filter(|d| d.units > 0).collect();
        left.sort_by_key(|departure| departure.at);
        for pair in left.windows(2) {
            let least = pair[0].units * 1_000_000_000 / rate;
            let apart = pair[1].at - pair[0].at;
            prop_assert!(apart >= least, "{apart} < {least} at {}", pair[0].at - MIDNIGHT);
        }
        Ok(())
    });
    result.unwrap();
}

/// Waits, and gives up when it is dropped.
fn polled_once<F: Future>(waiting: F) -> std::pin::Pin<Box<F>> {
    let mut waiting = Box::pin(waiting);
    let mut context = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    waiting
}

#[tokio::test(start_paused = true)]
async fn a_waiter_in_the_middle_that_gives_up_leaves_no_place_to_others() {
    let clock = tollgate::TokioClock::start_at(Tick::from_micros(MIDNIGHT));
    let limiter = Limiter::with_clock(parse(QUEUE), clock);
    assert!(limiter.check("k").is_allowed());
    let [first, second, third] = [(); 3].map(|()| polled_once(limiter.acquire("k").into_future()));
    drop(second);
    assert_eq!(limiter.check("k").delay(), Duration::from_secs(4));
    drop((first, third));
    assert_eq!(limiter.check("k").delay(), Duration::from_secs(5));
    // The last place is taken again.
    drop(polled_once(limiter.acquire("k").into_future()));
    assert_eq!(limiter.check("k").delay(), Duration::from_secs(6));
}

/// A caller that cannot go in time is denied without a place, so it leaves no hole.
#[tokio::test]
async fn whoever_cannot_go_in_time_takes_no_place() {
    async fn holds(limiter: BoxRateLimiter<str>) {
        for place in 0..3 {
            let decision = limiter.check("k").await.unwrap();
            assert_eq!(decision.delay(), Duration::from_secs(place));
        }
        for _ in 0..5 {
            let denied = limiter.acquire("k").within(Duration::from_millis(100)).await.unwrap();
            // The deadline is by another clock, which goes on.
            let late = denied.retry_after().unwrap().as_millis();
            assert!((2_900..3_000).contains(&late), "{denied:?}");
            assert_eq!((denied.granted(), denied.remaining()), (0, 0));
        }
        assert_eq!(limiter.check("k").await.unwrap().delay(), Duration::from_secs(3));
    }
    let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
    holds(BoxRateLimiter::new(Limiter::with_clock(parse(QUEUE), clock.clone()))).await;
    #[cfg(feature = "redis")]
    {
        let store = Redis::connect(&SHARED.url()).await.unwrap();
        let store = store.timeout(Duration::from_secs(60)).client_time(clock);
        holds(BoxRateLimiter::new(store.limiter(&name(), parse(QUEUE)).unwrap())).await;
    }
}

/// By the server's clock, and all at once: each departure by itself, and no hole between them.
#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn callers_whose_deadline_passes_leave_neither_holes_nor_double_departures() {
    let store = Redis::connect(&SHARED.url()).await.unwrap();
    let store = store.timeout(Duration::from_secs(60));
    let policy = parse("leaky_bucket 1/s capacity 1000");
    let limiter = std::sync::Arc::new(store.limiter(&name(), policy).unwrap());
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..60_u64 {
        let limiter = limiter.clone();
        callers.spawn(async move {
            if n % 3 == 0 {
                let decision = limiter.check("k").await.unwrap();
                return Some(decision.decided_at().as_micros() + micros(decision.delay()));
            }
            // Too late, unless it is the first of all.
            let late = limiter.acquire("k").within(Duration::ZERO).await.unwrap();
            late.is_allowed().then(|| late.decided_at().as_micros())
        });
    }
    let mut departures: Vec<u64> = callers.join_all().await.into_iter().flatten().collect();
    departures.sort_unstable();
    assert!((20..=21).contains(&departures.len()));
    for pair in departures.windows(2) {
        assert_eq!(pair[1] - pair[0], SECOND);
    }
}

#[test]
fn a_future_that_was_never_polled_takes_nothing() {
    let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
    let limiter = Limiter::with_clock(parse(QUEUE), clock);
    drop(limiter.acquire("k").into_future());
    assert_eq!(limiter.check("k").delay(), Duration::ZERO);
}

/// Tiers of two rates share a key: 4 at 1/s, of which the last ends at 4 s, and then as many at 2/s, of
/// which the last ends there too.
#[test]
fn a_place_at_another_rate_is_not_taken_for_the_last_one() {
    fn holds(mut decide: impl FnMut(&str, Operation<'_>) -> Decision) {
        let (slow, fast) = (QUEUE, "leaky_bucket 2/s capacity 10");
        let receipt = Receipt::new();
        assert!(decide(slow, Operation::Check(3)).is_allowed());
        assert_eq!(delay(&decide(slow, Operation::Reserve(1, &receipt))), 3 * SECOND);
        for place in 4..8 {
            assert_eq!(delay(&decide(fast, Operation::Check(1))), place * SECOND / 2);
        }
        let _ = decide(fast, Operation::Settle(0, &receipt));
        assert_eq!(delay(&decide(fast, Operation::Check(1))), 4 * SECOND);

        // It began where the last two of five begin now, but ended later.
        let (faster, receipt) = ("leaky_bucket 3/s capacity 10", Receipt::new());
        let _ = decide(slow, Operation::Reset);
        assert!(decide(slow, Operation::Check(1)).is_allowed());
        assert_eq!(delay(&decide(slow, Operation::Reserve(2, &receipt))), SECOND);
        assert_eq!(delay(&decide(slow, Operation::Check(2))), 3 * SECOND);
        let _ = decide(faster, Operation::Settle(0, &receipt));
        assert_eq!(delay(&decide(faster, Operation::Check(1))), 1_666_667);
    }
    let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
    let tiers = Limiter::with_store(parse(QUEUE), TieredMemory::new(clock));
    holds(|policy, operation| tiers.decide_with(&parse(policy), "k", operation));
    #[cfg(feature = "redis")]
    {
        let in_redis = InRedis::new(QUEUE);
        holds(|policy, operation| in_redis.under(parse(policy)).decide(MIDNIGHT, "k", operation));
    }
}
