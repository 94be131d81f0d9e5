//! Estimates that are settled, in process. `redis_oracle.rs` holds Redis to the same.

mod common;

use common::{HOUR, MIDNIGHT, MINUTE, SECOND, cases, each_algorithm, parse};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use tollgate::{
    Limiter, ManualClock, Memory, Operation, Outcome, Policy, PolicyState, Receipt, Reservation,
    Tick,
};

type Limits = Limiter<Policy, Memory<PolicyState, ManualClock>>;

fn limiter(policy: &str) -> (Limits, ManualClock) {
    let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
    (Limiter::with_clock(parse(policy), clock.clone()), clock)
}

/// What becomes of a reservation.
#[derive(Clone, Copy, Debug)]
enum End {
    Settled(u64),
    Dropped,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![3 => (0_u64..40).prop_map(End::Settled), 1 => Just(End::Dropped)]
}

proptest! {
    #![proptest_config(cases(500))]

    /// In any order, while no time passes: what is charged is the sum of the true costs. (In a queue,
    /// only the last place is given up: see `queue.rs`.)
    #[test]
    fn the_sum_of_the_true_costs_is_charged(
        reservations in prop::collection::vec((1_u64..30, end()), 1..40),
        order in any::<prop::sample::Index>(),
        kind in prop::sample::select(vec![0, 2, 3, 4, 5_usize]),
    ) {
        let policy = format!("{}; fixed_window 2000/day", each_algorithm("1000/h")[kind]);
        let (limiter, _clock) = limiter(&policy);
        let (mut held, mut cost) = (Vec::new(), 0);
        for (index, &(estimate, end)) in reservations.iter().enumerate() {
            let reservation = limiter.reserve("k", estimate);
            prop_assert!(reservation.decision().is_allowed());
            held.push((reservation, end));
            // Some end before others begin.
            if index % 3 == 0 {
                let (reservation, end) = held.swap_remove(order.index(held.len()));
                cost += finish(reservation, end);
            }
        }
        while !held.is_empty() {
            let (reservation, end) = held.swap_remove(order.index(held.len()));
            cost += finish(reservation, end);
        }
        prop_assert_eq!(limiter.peek("k").remaining(), 1_000_u64.saturating_sub(cost));
        let _ = limiter.refund("k", 500);
        prop_assert_eq!(limiter.peek("k").remaining(), 1_000 - cost.saturating_sub(500));
    }
}

fn finish(reservation: Reservation<&Limits, &str>, end: End) -> u64 {
    match end {
        End::Settled(cost) => {
            let _ = reservation.settle_now(cost);
            cost
        }
        End::Dropped => 0,
    }
}

/// Reserve 10 of 10, wait, let others take so many, and give back: (policy, waited, taken, left).
#[test]
fn units_go_back_to_where_they_came_from() {
    let table = [
        // A bucket that was full would have stayed so: what came back meanwhile is not given twice.
        ("token_bucket 10/10s", 0, 0, 10),
        ("token_bucket 10/10s", 4 * SECOND, 0, 10),
        ("token_bucket 10/10s", 4 * SECOND, 4, 6),
        ("token_bucket 10/10s", 4 * SECOND + 1, 4, 6),
        ("token_bucket 10/10s", 20 * SECOND, 10, 0),
        ("leaky_bucket 10/10s nodelay", 4 * SECOND, 4, 6),
        // All that had not left yet by the time that others joined the queue leaks out.
        ("leaky_bucket 10/10s", 4 * SECOND, 4, 0),
        ("leaky_bucket 10/10s", 4 * SECOND, 0, 10),
        ("leaky_bucket 10/10s", 0, 0, 10),
        // A window that is over gets nothing back, and the next one is not given what is not its own.
        ("fixed_window 10/min", 59 * SECOND, 0, 10),
        ("fixed_window 10/min", MINUTE, 3, 7),
        ("sliding_window_counter 10/min", 30 * SECOND, 0, 10),
        ("sliding_window_counter 10/min", MINUTE, 0, 10),
        ("sliding_window_counter 10/min", 90 * SECOND, 5, 5),
        ("sliding_window_counter 10/min", 2 * MINUTE, 5, 5),
        ("sliding_log 10/min", 59 * SECOND, 0, 10),
        ("sliding_log 10/min", MINUTE, 3, 7),
        ("token_bucket 10/10s; fixed_window 100/d", 4 * SECOND, 4, 6),
    ];
    for (policy, waited, taken, left) in table {
        let (limiter, clock) = limiter(policy);
        let reservation = limiter.reserve("k", 10);
        assert!(reservation.decision().is_allowed());
        clock.set(Tick::from_micros(MIDNIGHT + waited));
        assert_eq!(limiter.check_n("k", taken).granted(), taken, "{policy} after {waited}");
        drop(reservation);
        assert_eq!(limiter.peek("k").remaining(), left, "{policy} after {waited}");
    }
}

/// In a log, the units of that instant: those of others stay as long as they must.
#[test]
fn a_log_gives_back_the_units_of_the_reservation() {
    let (limiter, clock) = limiter("sliding_log 10/min");
    let first = limiter.reserve("k", 4);
    clock.set(Tick::from_micros(MIDNIGHT + 10 * SECOND));
    assert!(limiter.check_n("k", 3).is_allowed());
    clock.set(Tick::from_micros(MIDNIGHT + 20 * SECOND));
    let last = limiter.reserve("k", 3);
    assert_eq!(first.settle_now(1).remaining(), 3);
    drop(last);
    assert_eq!(limiter.peek("k").remaining(), 6);
    // At 60 s the one unit of the first expires, at 70 s the three of the second.
    for (after, left) in [(60, 7), (69, 7), (70, 10)] {
        clock.set(Tick::from_micros(MIDNIGHT + after * SECOND));
        assert_eq!(limiter.peek("k").remaining(), left, "{after} s");
    }
}

/// Others use what flows back into a busy bucket; what is returned comes on top of that.
#[test]
fn a_busy_bucket_gets_back_all_of_it() {
    let (limiter, clock) = limiter("token_bucket 60/min");
    assert!(limiter.check_n("k", 50).is_allowed());
    let reservation = limiter.reserve("k", 10);
    clock.set(Tick::from_micros(MIDNIGHT + 20 * SECOND));
    assert!(limiter.check_n("k", 20).is_allowed());
    assert_eq!(reservation.settle_now(2).remaining(), 8);
}

#[test]
fn a_settlement_leaves_a_debt_of_one_limit_and_no_more() {
    let table = [
        ("token_bucket 10/min", 120_000_000),
        ("leaky_bucket 10/min", 120_000_000),
        ("fixed_window 10/h", HOUR),
        ("sliding_log 10/min", MINUTE),
        ("sliding_window_counter 10/min", 2 * MINUTE),
    ];
    for (policy, reset_after) in table {
        let (limiter, _clock) = limiter(policy);
        let reservation = limiter.reserve("k", 5);
        let after = reservation.settle_now(1_000_000);
        assert_eq!(after.reset_after().as_micros(), u128::from(reset_after), "{policy}");
        if policy.starts_with("leaky") {
            continue; // a queue takes no refund
        }
        // The first gave back 10 of debt: all but one are used.
        let _ = limiter.refund("k", 11);
        assert_eq!(limiter.peek("k").remaining(), 1, "{policy}");
    }
    // Each limit of a set has its own bound.
    let (limiter, _clock) = limiter("token_bucket 10/min; fixed_window 1000/d");
    let _ = limiter.reserve("k", 5).settle_now(700);
    let _ = limiter.refund("k", 10);
    assert_eq!(limiter.peek("k").remaining(), 0);
    let (limiter, clock) = self::limiter("token_bucket 10/min; fixed_window 1000/d");
    let _ = limiter.reserve("k", 5).settle_now(700);
    clock.set(Tick::from_micros(MIDNIGHT + HOUR));
    assert_eq!(limiter.decide("k", Operation::Debit(299)).binding(), 0);
    clock.set(Tick::from_micros(MIDNIGHT + 2 * HOUR));
    assert_eq!(limiter.peek("k").remaining(), 1);
}

#[test]
fn what_was_refused_holds_nothing_and_may_be_charged_all_the_same() {
    let (limiter, _clock) = limiter("token_bucket 10/min");
    assert!(limiter.check_n("k", 8).is_allowed());
    let refused = limiter.reserve("k", 3);
    assert!(matches!(refused.decision().outcome(), Outcome::Denied(_)));
    drop(refused);
    assert_eq!(limiter.peek("k").remaining(), 2);
    assert_eq!(limiter.reserve("k", 3).settle_now(1).remaining(), 1);
    let receipt = Receipt::new();
    assert_eq!(limiter.decide("k", Operation::Reserve(11, &receipt)).outcome(), Outcome::Never);
    assert_eq!((receipt.units(), receipt.origin().is_none()), (0, true));
}

/// A bucket in so deep a debt that what it gets back, and what would have come back anyway, go past the
/// deepest.
#[test]
fn a_debt_outlasts_what_is_given_back() {
    let (limiter, clock) = limiter("token_bucket 999999937/s burst 2000000000");
    assert!(limiter.check_n("k", 100_000_000).is_allowed());
    let reservation = limiter.reserve("k", 950_000_000);
    clock.set(Tick::from_micros(MIDNIGHT + SECOND));
    let debt = limiter.debit("k", u64::MAX).reset_after();
    drop(reservation);
    let left = limiter.peek("k").reset_after();
    assert!(left + Duration::from_secs(2) > debt, "{left:?} of {debt:?}");
}

/// Of two threads, the one that has read the clock earlier may decide later.
#[test]
fn units_of_a_clock_that_stands_still_go_back_to_their_window() {
    for policy in each_algorithm("10/min") {
        let (limiter, clock) = limiter(&format!("{policy}; fixed_window 1000/d"));
        clock.set(Tick::from_micros(MIDNIGHT + MINUTE));
        assert!(limiter.check("k").is_allowed());
        clock.set(Tick::from_micros(MIDNIGHT + MINUTE - 1));
        let reservation = limiter.reserve("k", 8);
        clock.set(Tick::from_micros(MIDNIGHT + MINUTE));
        drop(reservation);
        assert_eq!(limiter.peek("k").remaining(), 9, "{policy}");
    }
}

/// Of a set, also where not all of its limits were written as late.
#[test]
fn units_of_a_clock_that_stands_still_go_back_to_a_log_beside_others() {
    for log in ["sliding_log 10/min", "sliding_window_counter 10/min"] {
        let (limiter, clock) = limiter(&format!("{log}; fixed_window 1000/d"));
        let at = |micros| clock.set(Tick::from_micros(MIDNIGHT + micros));
        at(HOUR - 3 * MINUTE);
        assert!(limiter.check("k").is_allowed());
        at(HOUR);
        let first = limiter.reserve("k", 3);
        at(HOUR - 1);
        drop(first);
        let second = limiter.reserve("k", 8);
        at(HOUR);
        drop(second);
        assert_eq!(limiter.peek("k").remaining(), 10, "{log}");
    }
}

#[tokio::test]
async fn reservations_move_into_tasks_and_through_the_trait() {
    use tollgate::RateLimiter as _;

    let (limiter, _clock) = limiter("token_bucket 10/min");
    let limiter = Arc::new(limiter);
    let reservation = Reservation::take_now(Arc::clone(&limiter), String::from("k"), 10);
    tokio::spawn(async move { drop(reservation) }).await.unwrap();
    assert_eq!(limiter.peek("k").remaining(), 10);
    let reservation = Reservation::take(&*limiter, "k", 10).await.unwrap();
    assert_eq!(reservation.settle(7).await.unwrap().remaining(), 3);

    let direct = Limiter::direct(parse("token_bucket 10/min"));
    assert_eq!(direct.reserve(5).settle_now(1).remaining(), 9);
    drop(direct.reserve(5));
    assert_eq!(direct.peek().remaining(), 9);
    let boxed = tollgate::BoxRateLimiter::<()>::new(direct);
    drop(boxed.reserve(&(), 5).await.unwrap());
    assert_eq!(boxed.peek(&()).await.unwrap().remaining(), 9);
}

/// Generic code may reserve in a task of its own.
#[tokio::test]
async fn a_generic_limiter_reserves_in_a_task() {
    async fn in_a_task<L>(limiter: Arc<L>) -> u64
    where
        L: tollgate::RateLimiter<str, Error: Send> + 'static,
    {
        let task = tokio::spawn(async move {
            let Ok(reservation) = limiter.reserve("k", 10).await else { unreachable!() };
            let Ok(after) = reservation.settle(3).await else { unreachable!() };
            after.remaining()
        });
        task.await.unwrap()
    }
    let (limiter, _clock) = limiter("token_bucket 10/min");
    assert_eq!(in_a_task(Arc::new(limiter)).await, 7);
}

/// The effect is in the call: the await only waits.
#[test]
fn a_settlement_that_is_never_awaited_counts() {
    let (limiter, _clock) = limiter("token_bucket 100/min");
    let settled = limiter.reserve("k", 100).settle(80);
    assert_eq!(limiter.peek("k").remaining(), 20);
    drop(settled);
    assert_eq!(limiter.peek("k").remaining(), 20);
}

#[tokio::test]
async fn a_settlement_that_loses_a_race_counts() {
    let (limiter, _clock) = limiter("token_bucket 100/min");
    let boxed = tollgate::BoxRateLimiter::<str>::new(limiter);
    let reservation = tollgate::RateLimiter::reserve(&boxed, "k", 100).await.unwrap();
    tokio::select! {
        biased;
        () = async {} => {}
        _ = reservation.settle(80) => unreachable!("the other one is first"),
    }
    assert_eq!(tollgate::RateLimiter::peek(&boxed, "k").await.unwrap().remaining(), 20);
}

/// (estimate, spent, then left of 100), and what a settlement says comes before what was spent.
#[test]
fn a_reservation_that_is_dropped_settles_what_was_spent() {
    let table: [(u64, &[u64], u64); 5] = [
        (40, &[], 100),
        (40, &[10, 20], 70),
        (40, &[40], 60),
        (40, &[30, 25], 45),
        (40, &[0], 100),
    ];
    for (estimate, spent, left) in table {
        let (limiter, _clock) = limiter("token_bucket 100/min");
        let mut reservation = limiter.reserve("k", estimate);
        spent.iter().for_each(|n| reservation.spend(*n));
        assert_eq!(reservation.spent(), spent.iter().sum::<u64>());
        assert_eq!(limiter.peek("k").remaining(), 60);
        drop(reservation);
        assert_eq!(limiter.peek("k").remaining(), left, "{spent:?}");
        let mut reservation = limiter.reserve("k", estimate.min(left));
        reservation.spend(7);
        assert_eq!(reservation.settle_now(3).remaining(), left - 3, "{spent:?}");
    }
    // What was denied is charged, if it was spent all the same.
    let (limiter, _clock) = limiter("token_bucket 100/min");
    let mut denied = limiter.reserve("k", 101);
    assert!(!denied.decision().is_allowed());
    denied.spend(9);
    drop(denied);
    assert_eq!(limiter.peek("k").remaining(), 91);
}
