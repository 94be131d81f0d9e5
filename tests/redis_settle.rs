//! Estimates that are settled in Redis: exactly once, whatever happens to the answers.

mod common;

use common::redis::{SHARED, name};
use common::redis_server::Server;
use common::{MIDNIGHT, cases, each_algorithm, parse};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tollgate::{
    Limiter, Live, ManualClock, Operation, Policy, RateLimiter, Receipt, Redis, Reservation, Tick,
};

async fn limiter(server: &Server, policy: &str) -> Limiter<Policy, Redis> {
    let store = Redis::connect(&server.url()).await.unwrap();
    store.timeout(Duration::from_secs(5)).limiter(&name(), parse(policy)).unwrap()
}

proptest! {
    #![proptest_config(cases(60))]

    /// Tasks that reserve, and then settle or drop, all at once. (In a queue, only the last place is
    /// given up: see `queue.rs`.)
    #[test]
    fn the_sum_of_the_true_costs_is_charged(
        reservations in prop::collection::vec((1_u64..30, prop::option::of(0_u64..40)), 1..30),
        kind in prop::sample::select(vec![0, 2, 3, 4, 5_usize]),
    ) {
        let policy = &each_algorithm("10000/d")[kind];
        Runtime::new().unwrap().block_on(async {
            let limiter = Arc::new(limiter(&SHARED, policy).await);
            let mut tasks = tokio::task::JoinSet::new();
            let cost: u64 = reservations.iter().filter_map(|(_, cost)| *cost).sum();
            for (estimate, cost) in reservations {
                let limiter = Arc::clone(&limiter);
                tasks.spawn(async move {
                    let reservation = limiter.reserve("k", estimate).await.unwrap();
                    tokio::task::yield_now().await;
                    if let Some(cost) = cost {
                        let _ = reservation.settle(cost).await.unwrap();
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            let mut left = 0;
            // What is dropped is given back by tasks that nobody waits for.
            for _ in 0..500 {
                left = limiter.peek("k").await.unwrap().remaining();
                if left >= 10_000 - cost {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // In this time, at most a unit of a bucket comes back.
            prop_assert!((10_000 - cost..=10_000 - cost + 1).contains(&left), "{left}, {cost}");
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_request_is_charged_once() {
    for policy in each_algorithm("100/d").into_iter().chain(["10/d; sliding_log 100/d".into()]) {
        let limiter = limiter(&SHARED, &policy).await;
        for n in 1..=3 {
            for _ in 0..3 {
                let receipt = Receipt::for_request(&format!("request {n}"));
                let after = limiter.decide("k", Operation::Settle(2, &receipt)).await.unwrap();
                assert_eq!(after.limit() - after.remaining(), 2 * n, "{policy}");
                assert!(after.is_allowed());
            }
        }
        // Also one whose estimate was exact.
        let exact = Receipt::for_request("exact");
        let _ = limiter.decide("k", Operation::Reserve(1, &exact)).await.unwrap();
        let _ = limiter.decide("k", Operation::Settle(1, &exact)).await.unwrap();
        let again = Receipt::for_request("exact");
        let after = limiter.decide("k", Operation::Settle(1, &again)).await.unwrap();
        assert_eq!(after.limit() - after.remaining(), 7, "{policy}");
        // One receipt, settled again and again: 2 of 3 are given back.
        let receipt = Receipt::new();
        let _ = limiter.decide("k", Operation::Reserve(3, &receipt)).await.unwrap();
        for _ in 0..3 {
            let after = limiter.decide("k", Operation::Settle(1, &receipt)).await.unwrap();
            assert_eq!(after.limit() - after.remaining(), 8, "{policy}");
        }
    }
}

/// For a day by an id that is given; else for as long as a settlement may be repeated.
#[tokio::test]
async fn requests_are_forgotten_when_nobody_can_ask_again() {
    let server = Server::start(&[]);
    let limiter = limiter(&server, "100/d").await;
    let table = [(Receipt::for_request("a:b"), 86_400_000), (Receipt::new(), 60_000)];
    for (receipt, memory) in table {
        let _ = limiter.decide("k", Operation::Settle(2, &receipt)).await.unwrap();
        let key = server.cli(&["--scan", "--pattern", "*:request:*"]);
        let ttl: u64 = server.cli(&["PTTL", &key]).parse().expect("a request is forgotten");
        assert!((memory - 10_000..=memory).contains(&ttl), "{ttl}");
        if receipt.request_id() == "a:b" {
            let about = server.cli(&["--scan", "--pattern", "tollgate:2:*"]);
            assert_eq!(key, format!("tollgate:request:{{{about}}}:a%3Ab"));
        }
        server.cli(&["DEL", &key]);
    }
}

/// Of thousands of entries, only the newest are written anew.
#[tokio::test]
async fn a_long_log_is_settled_as_in_process() {
    let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
    let policy: Policy = "sliding_log 5000/h".parse().unwrap();
    let store = Redis::connect(&SHARED.url()).await.unwrap();
    let store = store.timeout(Duration::from_secs(60)).client_time(clock.clone());
    let in_redis = store.limiter(&name(), policy.clone()).unwrap();
    let in_process = Limiter::with_clock(policy, clock.clone());
    let mut receipts = Vec::new();
    for n in 0..6_000_u64 {
        clock.advance(Duration::from_micros(n % 3 * 100_000));
        let new = [Receipt::new(), Receipt::new()];
        let units = n % 4;
        let ours = in_redis.decide("k", Operation::Reserve(units, &new[0])).await.unwrap();
        assert_eq!(ours, in_process.decide("k", Operation::Reserve(units, &new[1])), "{n}");
        receipts.push(new);
        if n % 97 == 0 {
            let of = [n, n - n.min(5), n / 2, n / 7][usize::try_from(n % 4).unwrap()];
            let [ours, theirs] = &receipts[usize::try_from(of).unwrap()];
            let cost = [0, 1, 2, 7][usize::try_from(n / 97 % 4).unwrap()];
            let ours = in_redis.decide("k", Operation::Settle(cost, ours)).await.unwrap();
            assert_eq!(ours, in_process.decide("k", Operation::Settle(cost, theirs)), "{n}");
        }
    }
}

/// What was taken by other limits is not given back to those that have replaced them.
#[tokio::test]
async fn nothing_is_given_back_to_other_limits() {
    let store = Redis::connect(&SHARED.url()).await.unwrap();
    let limiter = store.limiter(&name(), Live::new(parse("token_bucket 100/d"))).unwrap();
    let reservations = [
        limiter.reserve("k", 50).await.unwrap(),
        limiter.reserve("k", 40).await.unwrap(),
        limiter.reserve("k", 10).await.unwrap(),
    ];
    limiter.replace(parse("fixed_window 100/d; sliding_log 200/d"));
    assert!(limiter.check_n("k", 60).await.unwrap().is_allowed());
    let [less, more, dropped] = reservations;
    assert_eq!(less.settle(5).await.unwrap().remaining(), 40);
    assert_eq!(more.settle(45).await.unwrap().remaining(), 35);
    drop(dropped);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(limiter.peek("k").await.unwrap().remaining(), 35);
}

/// The server runs the first call after its answer was given up, and the repetitions too.
#[tokio::test]
async fn a_settlement_whose_answer_is_late_counts_once() {
    let server = Server::start(&[]);
    let limiter = limiter(&server, "sliding_log 100/d").await;
    let store = Redis::connect(&server.url()).await.unwrap();
    let hasty = store.timeout(Duration::from_millis(100));
    let hasty = hasty.limiter("late", parse("sliding_log 100/d")).unwrap();
    drop(limiter);
    let reservation = hasty.reserve("k", 10).await.unwrap();
    server.cli(&["CLIENT", "PAUSE", "330", "ALL"]);
    let after = reservation.settle(25).await.unwrap();
    assert_eq!(after.remaining(), 75);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hasty.peek("k").await.unwrap().remaining(), 75);

    // Dropped, it is given back once, though that is repeated too.
    let reservation = Reservation::take(&hasty, "k", 10).await.unwrap();
    server.cli(&["CLIENT", "PAUSE", "330", "ALL"]);
    drop(reservation);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(hasty.peek("k").await.unwrap().remaining(), 75);
}

/// Waiting: Redis is asked again, and a place in a leaky bucket's queue is given back.
#[tokio::test]
async fn units_can_be_waited_for() {
    let limiter = limiter(&SHARED, "token_bucket 50/s burst 5").await;
    let start = std::time::Instant::now();
    for _ in 0..15 {
        assert!(limiter.acquire("k").await.unwrap().is_allowed());
    }
    assert!(start.elapsed() >= Duration::from_millis(200));
    let refused = limiter.acquire_n("k", 5).within(Duration::from_millis(10)).await.unwrap();
    assert!(!refused.is_allowed());
    assert!(!limiter.acquire_n("k", 6).await.unwrap().is_allowed());

    let queue = self::limiter(&SHARED, "leaky_bucket 2/s capacity 4").await;
    for _ in 0..2 {
        assert!(queue.acquire("k").await.unwrap().is_allowed());
    }
    let waiting =
        tokio::time::timeout(Duration::from_millis(20), queue.acquire_n("k", 3).into_future());
    assert!(waiting.await.is_err());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(queue.peek("k").await.unwrap().remaining() >= 3);
}

/// Dropped before it is polled, or with units spent: a task settles it.
#[tokio::test]
async fn what_nobody_waits_for_is_settled() {
    let limiter = limiter(&SHARED, "fixed_window 100/d").await;
    drop(limiter.reserve("settled", 100).await.unwrap().settle(80));
    let mut streamed = limiter.reserve("spent", 100).await.unwrap();
    streamed.spend(30);
    streamed.spend(9);
    drop(streamed);
    for (key, left) in [("settled", 20), ("spent", 61)] {
        let mut remaining = 0;
        for _ in 0..500 {
            remaining = limiter.peek(key).await.unwrap().remaining();
            if remaining > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(remaining, left, "{key}");
    }
}
