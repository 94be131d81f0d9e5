//! Waiting, on tokio's clock, which stands still until all tasks wait for it.

mod common;

use common::{MIDNIGHT, each_algorithm, parse};
use proptest::prelude::*;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, advance, sleep, timeout};
use tollgate::{
    BoxRateLimiter, Carry, Decision, Describe, Description, Limiter, Live, ManualClock, Memory,
    Operation, Outcome, Policy, PolicyState, RateLimiter, Tick, TieredMemory, TokioClock,
};

type Limits = Limiter<Policy, Memory<PolicyState, TokioClock>>;

fn limiter(policy: &str) -> Arc<Limits> {
    let clock = TokioClock::start_at(Tick::from_micros(MIDNIGHT));
    Arc::new(Limiter::with_clock(parse(policy), clock))
}

const fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits in a task of its own, which is in the queue when this returns.
async fn spawn(
    tasks: &mut JoinSet<(u64, Duration, Decision)>,
    limiter: &Arc<Limits>,
    name: u64,
    n: u64,
) {
    let (limiter, start) = (Arc::clone(limiter), Instant::now());
    tasks.spawn(async move {
        let decision = limiter.acquire_n("k", n).await;
        (name, start.elapsed(), decision)
    });
    yield_now().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_cannot_be_met_fails_at_once_and_charges_nothing() {
    let limiter = limiter("token_bucket 10/s burst 3");
    assert!(limiter.check_n("k", 2).is_allowed());
    let start = Instant::now();
    let refused = limiter.acquire_n("k", 3).within(millis(100)).await;
    assert_eq!(refused.outcome(), Outcome::Denied(millis(200)));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(limiter.peek("k").remaining(), 1);
    // At the deadline is in time.
    let granted = limiter.acquire_n("k", 3).until(start + millis(200)).await;
    assert_eq!((granted.outcome(), start.elapsed()), (Outcome::Allowed, millis(200)));
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_gives_back_what_it_waited_for() {
    let limiter = limiter("token_bucket 10/s burst 3");
    assert!(limiter.check_n("k", 2).is_allowed());
    let waiting = timeout(millis(100), limiter.acquire_n("k", 3).into_future());
    assert!(waiting.await.is_err());
    assert_eq!(limiter.peek("k").remaining(), 2);
    assert!(limiter.check_n("k", 2).is_allowed());
}

#[tokio::test(start_paused = true)]
async fn a_cost_above_the_limit_fails_at_once_and_a_cost_of_nothing_passes() {
    let limiter = limiter("token_bucket 10/s burst 3");
    assert!(limiter.check_n("k", 3).is_allowed());
    let start = Instant::now();
    assert_eq!(limiter.acquire_n("k", 4).await.outcome(), Outcome::Never);
    assert!(limiter.acquire_n("k", 0).await.is_allowed());
    assert_eq!(start.elapsed(), Duration::ZERO);
    let mut tasks = JoinSet::new();
    spawn(&mut tasks, &limiter, 0, 1).await;
    assert_eq!(limiter.acquire_n("k", 4).await.outcome(), Outcome::Never);
    assert!(limiter.acquire_n("k", 0).await.is_allowed());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// Under a cap, of keys that there is no place for: what others have used is not there for them.
#[tokio::test(start_paused = true)]
async fn a_deadline_behind_others_is_foreseen_from_the_shared_budget() {
    let clock = TokioClock::start_at(Tick::from_micros(MIDNIGHT));
    let policy = parse("token_bucket 10/s burst 3");
    let limiter = Arc::new(Limiter::with_clock(policy, clock).max_keys(1));
    assert!(limiter.check_n("alice", 1).is_allowed());
    assert!(limiter.check_n("mallory", 3).is_allowed());
    let mut tasks = JoinSet::new();
    spawn(&mut tasks, &limiter, 0, 2).await;
    let start = Instant::now();
    let refused = limiter.acquire_n("k", 1).within(millis(250)).await;
    assert_eq!(refused.outcome(), Outcome::Denied(millis(300)));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// (units, done after ms), in the order in which they came.
#[tokio::test(start_paused = true)]
async fn each_goes_in_its_turn() {
    let table: [(&str, &[(u64, u64)]); 7] = [
        ("token_bucket 10/s burst 3", &[(3, 0), (2, 200), (1, 300), (3, 600), (1, 700)]),
        // A large one is not overtaken by small ones that would fit before.
        ("token_bucket 1/s burst 5", &[(4, 0), (5, 4_000), (1, 5_000), (1, 6_000)]),
        ("fixed_window 3/s", &[(2, 0), (2, 1_000), (1, 1_000), (3, 2_000)]),
        ("sliding_log 3/s", &[(2, 0), (1, 0), (2, 1_000), (2, 2_000)]),
        ("leaky_bucket 10/s capacity 2", &[(1, 0), (1, 100), (1, 200), (2, 300), (1, 500)]),
        ("leaky_bucket 10/s capacity 2 nodelay", &[(2, 0), (1, 100), (2, 300)]),
        (
            "token_bucket 10/s burst 5; fixed_window 6/s",
            &[(5, 0), (1, 100), (1, 1_000), (5, 1_100)],
        ),
    ];
    for (policy, waiters) in table {
        let limiter = limiter(policy);
        let mut tasks = JoinSet::new();
        for (name, (n, _)) in (0..).zip(waiters) {
            spawn(&mut tasks, &limiter, name, *n).await;
        }
        let mut went = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (name, after, decision) = done.unwrap();
            assert!(decision.is_allowed(), "{policy}: {decision:?}");
            went.push((name, after.as_millis()));
        }
        let expected = (0..).zip(waiters).map(|(name, (_, after))| (name, u128::from(*after)));
        assert_eq!(went, expected.collect::<Vec<_>>(), "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_units_take_exactly_two_seconds() {
    let limiter = limiter("token_bucket 100/200ms");
    assert!(limiter.check_n("k", 100).is_allowed());
    let (start, mut tasks) = (Instant::now(), JoinSet::new());
    for name in 0..100 {
        spawn(&mut tasks, &limiter, name, 10).await;
    }
    let mut done = 0;
    while let Some(task) = tasks.join_next().await {
        let (name, after, _) = task.unwrap();
        assert_eq!((name, after), (done, millis(20 * (done + 1))));
        done += 1;
    }
    assert_eq!((done, start.elapsed()), (100, millis(2_000)));
}

/// A timer of a millisecond does not slow down a rate of ten in one.
#[tokio::test(start_paused = true)]
async fn rates_above_the_timers_resolution_are_kept() {
    let limiter = limiter("token_bucket 10000/s burst 1");
    let (start, mut tasks) = (Instant::now(), JoinSet::new());
    for name in 0..5_001 {
        spawn(&mut tasks, &limiter, name, 1).await;
    }
    while let Some(task) = tasks.join_next().await {
        assert!(task.unwrap().2.is_allowed());
    }
    assert_eq!(start.elapsed(), millis(500));
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_those_who_wait() {
    let limiter = limiter("token_bucket 10/s burst 3");
    assert!(limiter.check_n("k", 3).is_allowed());
    let mut tasks = JoinSet::new();
    spawn(&mut tasks, &limiter, 0, 2).await;
    sleep(millis(150)).await;
    // One unit is there, and not to be had: the next one behind the queue comes at 300 ms.
    for refused in [limiter.check("k"), limiter.peek("k"), limiter.take_up_to("k", 5)] {
        assert_eq!(refused.outcome(), Outcome::Denied(millis(150)));
        assert_eq!((refused.granted(), refused.remaining()), (0, 0));
        assert_eq!(refused.next_after(), Some(millis(150)));
    }
    assert_eq!(limiter.check_n("k", 3).outcome(), Outcome::Denied(millis(350)));
    assert_eq!(limiter.check_n("k", 4).outcome(), Outcome::Never);
    assert!(limiter.check_n("k", 0).is_allowed());
    assert!(limiter.check("other").is_allowed());
    assert_eq!(tasks.join_next().await.unwrap().unwrap().1, millis(200));
    assert!(!limiter.check("k").is_allowed());
    sleep(millis(100)).await;
    assert!(limiter.check("k").is_allowed());
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_or_is_charged_moves_the_turns() {
    let limiter = limiter("token_bucket 10/s burst 10");
    assert!(limiter.check_n("k", 10).is_allowed());
    let mut tasks = JoinSet::new();
    for name in 0..4 {
        spawn(&mut tasks, &limiter, name, 1).await;
    }
    let mut turn = async || tasks.join_next().await.unwrap().unwrap().1;
    sleep(millis(50)).await;
    let _ = limiter.refund("k", 2);
    assert_eq!((turn().await, turn().await), (millis(50), millis(50)));
    let _ = limiter.debit("k", 5);
    assert_eq!(turn().await, millis(600));
    let _ = limiter.reset("k");
    assert_eq!(turn().await, millis(600));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_denies_at_once() {
    let clock = TokioClock::start();
    let limiter = Limiter::with_clock(parse("token_bucket 1/s"), clock).max_waiters(2);
    let limiter = Arc::new(limiter);
    assert!(limiter.check("k").is_allowed());
    let mut tasks = JoinSet::new();
    for name in 0..2 {
        spawn(&mut tasks, &limiter, name, 1).await;
    }
    let refused = limiter.acquire("k").await;
    assert_eq!(refused.outcome(), Outcome::Denied(Duration::from_secs(3)));
    assert!(limiter.acquire("other").await.is_allowed());
}

/// Where those before it take longer than foreseen, a waiter leaves when its time is over.
#[tokio::test(start_paused = true)]
async fn deadlines_hold_when_things_change() {
    let limiter = limiter("token_bucket 10/s burst 1");
    assert!(limiter.check("k").is_allowed());
    let start = Instant::now();
    let waiters = [1, 2].map(|n| {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move { limiter.acquire("k").within(millis(100 * n)).await })
    });
    yield_now().await;
    let _ = limiter.debit("k", 50);
    for (n, waiter) in (1..).zip(waiters) {
        let decision = waiter.await.unwrap();
        assert!(matches!(decision.outcome(), Outcome::Denied(_)), "{decision:?}");
        assert!(start.elapsed() <= millis(100 * n));
    }
    assert_eq!(limiter.peek("k").retry_after(), Some(millis(5_100) - start.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn without_keys_for_tiers_and_under_limits_that_change() {
    let clock = TokioClock::start();
    let direct = Limiter::direct_with_clock(parse("token_bucket 10/s burst 1"), clock);
    let store = TieredMemory::new(clock);
    let tiered = Limiter::with_store(parse("token_bucket 10/s burst 1"), store);
    let start = Instant::now();
    for n in 0..3 {
        assert!(direct.acquire().await.is_allowed());
        assert_eq!(start.elapsed(), millis(100 * n));
        assert!(tiered.acquire("k").await.is_allowed());
        assert_eq!(start.elapsed(), millis(100 * n));
    }
    let live = Live::new(parse("token_bucket 1/h burst 1"));
    let live = Arc::new(Limiter::with_store(live, Memory::new(clock)));
    assert!(live.check("k").is_allowed());
    let waiting = tokio::spawn({
        let live = Arc::clone(&live);
        async move { live.acquire("k").within(Duration::from_secs(4_000)).await }
    });
    yield_now().await;
    let start = Instant::now();
    live.replace_with(parse("token_bucket 1/s burst 5"), Carry::Reset);
    assert!(waiting.await.unwrap().is_allowed());
    assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
}

/// Waits without end, and a clock that stands still, are foreseen in a few steps.
#[tokio::test(start_paused = true)]
async fn long_queues_beyond_the_end_of_time_are_foreseen_at_once() {
    let limiter = limiter("token_bucket 1/400d burst 40");
    assert!(limiter.check_n("k", 40).is_allowed());
    let mut tasks = JoinSet::new();
    for name in 0..40 {
        spawn(&mut tasks, &limiter, name, 40).await;
    }
    assert!(!limiter.check("k").is_allowed());

    let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
    let limiter = Limiter::with_clock(parse("token_bucket 100000/s burst 1"), clock.clone());
    assert!(limiter.check("k").is_allowed());
    clock.set(Tick::from_micros(MIDNIGHT - 3_600_000_000));
    let refused = limiter.acquire("k").within(millis(0)).await;
    assert!(!refused.is_allowed());
    assert!(timeout(millis(5), limiter.acquire("k").into_future()).await.is_err());
}

/// What a leaky bucket's own queue adds is in time or not, too.
#[tokio::test(start_paused = true)]
async fn a_leaky_buckets_delay_is_foreseen() {
    let limiter = limiter("leaky_bucket 10/s capacity 10");
    assert!(limiter.check_n("k", 10).is_allowed());
    let start = Instant::now();
    let refused = limiter.acquire("k").within(millis(500)).await;
    assert_eq!((refused.is_allowed(), start.elapsed()), (false, Duration::ZERO));
    let granted = limiter.acquire("k").within(millis(1_000)).await;
    assert_eq!((granted.outcome(), start.elapsed()), (Outcome::Allowed, millis(1_000)));
}

/// What a refusal tells is when the same call would be in time, room in the queue or not.
#[tokio::test(start_paused = true)]
async fn a_leaky_buckets_refusal_tells_when_the_deadline_would_do() {
    for (queued, told) in [(2, 300), (3, 500)] {
        let limiter = limiter("leaky_bucket 5/s capacity 3");
        assert!(limiter.check_n("k", queued).is_allowed());
        let ask = async || limiter.acquire("k").within(millis(100)).await;
        assert_eq!(ask().await.outcome(), Outcome::Denied(millis(told)), "{queued}");
        advance(millis(told) - Duration::from_micros(1)).await;
        assert!(!ask().await.is_allowed(), "{queued}");
        advance(Duration::from_micros(1)).await;
        assert!(ask().await.is_allowed(), "{queued}");
    }
}

/// Whoever would have to wait too long has no units, and whoever has waited is told how things stand then.
#[tokio::test(start_paused = true)]
async fn a_leaky_buckets_queue_tells_how_things_stand_when_it_answers() {
    let limiter = limiter("leaky_bucket 1/10s capacity 5");
    assert_eq!(limiter.acquire("k").await.remaining(), 4);
    let held = limiter.acquire("k").await;
    assert_eq!((held.granted(), held.remaining(), held.reset_after()), (1, 4, millis(10_000)));
    assert!(limiter.check("k").is_allowed());
    let refused = limiter.acquire("k").within(millis(15_000)).await;
    assert_eq!(refused.retry_after(), Some(millis(5_000)));
    assert_eq!((refused.remaining(), refused.next_after()), (0, refused.retry_after()));
    // Nothing has to wait for nothing.
    assert_eq!(limiter.check_n("k", 0).outcome(), Outcome::Allowed);
    assert_eq!(limiter.acquire_n("k", 0).await.outcome(), Outcome::Allowed);
}

/// By the trait, as the layer and boxed limiters do.
#[tokio::test(start_paused = true)]
async fn generic_code_waits_in_the_same_queue() {
    async fn wait<L: RateLimiter<str>>(limiter: &L) -> Option<Decision> {
        limiter.acquire_n("k", 2).within(millis(500)).await.ok()
    }
    let limiter = limiter("token_bucket 10/s burst 2");
    let start = Instant::now();
    for n in 0..3 {
        assert!(wait(&*limiter).await.unwrap().is_allowed());
        assert_eq!(start.elapsed(), millis(200 * n));
    }
}

/// A queue far away, which tells how things stand only after a second.
struct Slow(Arc<Limits>);

impl Describe for Slow {
    fn describe(&self) -> Vec<Description> {
        self.0.describe()
    }
}

impl RateLimiter<str> for Slow {
    type Error = Infallible;

    async fn decide(&self, key: &str, operation: Operation<'_>) -> Result<Decision, Infallible> {
        if let Operation::Peek(_) = operation {
            sleep(millis(1_000)).await;
        }
        RateLimiter::decide(&*self.0, key, operation).await
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_goes_by_the_deadline_although_nothing_is_told() {
    let slow = Slow(limiter("leaky_bucket 10/s capacity 5"));
    let start = Instant::now();
    assert!(slow.0.check("k").is_allowed());
    let granted = slow.acquire("k").within(millis(150)).await.unwrap();
    assert_eq!((granted.outcome(), granted.granted()), (Outcome::Allowed, 1));
    assert_eq!(start.elapsed(), millis(150));
    // Its place is kept.
    assert_eq!(slow.0.peek("k").remaining(), 4);
    let granted = slow.acquire("k").await.unwrap();
    assert_eq!((granted.outcome(), granted.remaining()), (Outcome::Allowed, 5));
}

/// 1,000 wait for one key, and some of them give up.
fn crowd() -> impl Strategy<Value = Vec<(u64, Option<u64>)>> {
    let patience = prop_oneof![Just(None), (0_u64..20_000).prop_map(Some)];
    prop::collection::vec((1_u64..4, patience), 1_000)
}

proptest! {
    #![proptest_config(common::cases(30))]

    #[test]
    fn in_a_crowd_nobody_is_stuck_and_nothing_minted_or_lost(crowd in crowd(), kind in 0..6_usize) {
        let policy = &each_algorithm("100/s")[kind];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (granted, elapsed, left) = runtime.block_on(async {
            let limiter = limiter(policy);
            let (start, granted) = (Instant::now(), Arc::new(AtomicU64::new(0)));
            let mut tasks = JoinSet::new();
            for (n, patience) in crowd {
                let (limiter, granted) = (Arc::clone(&limiter), Arc::clone(&granted));
                tasks.spawn(async move {
                    let waiting = limiter.acquire_n("k", n).into_future();
                    let patience = patience.map_or(Duration::MAX, millis);
                    if let Ok(decision) = timeout(patience, waiting).await {
                        assert!(decision.is_allowed());
                        granted.fetch_add(n, SeqCst);
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            let elapsed = start.elapsed();
            let left = limiter.take_up_to("k", u64::MAX).granted();
            advance(Duration::from_secs(2)).await;
            assert_eq!(limiter.peek("k").remaining(), 100);
            (granted.load(SeqCst), elapsed, left)
        });
        let passed = common::micros(elapsed);
        match kind {
            // Buckets: nothing is lost but what flows over; here nothing does while somebody waits.
            0 | 2 => prop_assert!(granted + left <= 100 + passed / 10_000),
            1 => prop_assert!(granted <= 101 + passed / 10_000),
            _ => prop_assert!(granted + left <= 100 * (passed / 1_000_000 + 1)),
        }
        // All of them could be served, had nobody left: so nobody waits longer than that.
        prop_assert!(elapsed <= Duration::from_secs(45), "{:?}", elapsed);
        // The rate is used to the full while somebody waits.
        let fewest = if kind == 5 { 90 } else { 100 } * (passed / 1_000_000).saturating_sub(1);
        prop_assert!(granted >= fewest, "{} in {:?}", granted, elapsed);
    }
}

/// Polls a future once, and leaves it.
fn poll_once<F: Future>(waiting: Pin<&mut F>) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(waiting.poll(&mut context).is_pending());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_past_its_deadline_is_out_of_the_queue_whoever_notices() {
    let limiter = limiter("token_bucket 10/s burst 1");
    assert!(limiter.check("k").is_allowed());
    let mut left = pin!(limiter.acquire("k").within(millis(200)).into_future());
    poll_once(left.as_mut());
    // Until then the unit is the waiter's, and the stated wait comes true.
    assert_eq!(limiter.check("k").outcome(), Outcome::Denied(millis(200)));
    advance(millis(150)).await;
    assert_eq!(limiter.check("k").outcome(), Outcome::Denied(millis(50)));
    advance(millis(50)).await;
    assert!(limiter.check("k").is_allowed());
    advance(Duration::from_secs(3_600)).await;
    assert!(limiter.check("k").is_allowed());
    assert!(!limiter.check("k").is_allowed());
    // Polled at last, it is denied and charged nothing, also when there are units.
    advance(Duration::from_secs(1)).await;
    let denied = left.await;
    assert_eq!((denied.outcome(), denied.granted()), (Outcome::Denied(micros(1)), 0));
    assert_eq!(limiter.peek("k").remaining(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_to_wait_for_one_in_the_middle_past_its_deadline() {
    let limiter = limiter("token_bucket 1/s burst 4");
    assert!(limiter.check_n("k", 4).is_allowed());
    let mut first = pin!(limiter.acquire_n("k", 4).into_future());
    poll_once(first.as_mut());
    let mut left = pin!(limiter.acquire_n("k", 2).within(millis(7_000)).into_future());
    poll_once(left.as_mut());
    let _ = limiter.debit("k", 4);
    advance(millis(6_900)).await;
    assert_eq!(limiter.check("k").outcome(), Outcome::Denied(millis(4_100)));
    advance(millis(200)).await;
    assert_eq!(limiter.check("k").outcome(), Outcome::Denied(millis(1_900)));
    assert!(first.await.is_allowed());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_due_and_not_polled_is_passed_over_after_a_second() {
    for behind in [0, 1] {
        let limiter = limiter("token_bucket 10/s burst 1");
        assert!(limiter.check("k").is_allowed());
        let mut left = pin!(limiter.acquire("k").into_future());
        poll_once(left.as_mut());
        let mut tasks = JoinSet::new();
        for name in 0..behind {
            spawn(&mut tasks, &limiter, name, 1).await;
        }
        // It could have gone after 100 ms, so it is waited for until 1,100 ms.
        advance(millis(400)).await;
        let wait = limiter.check("k").retry_after().unwrap();
        assert_eq!(wait, millis(700 + 100 * behind));
        if behind > 0 {
            sleep(millis(701)).await; // nobody but the second looks
            assert_eq!(limiter.check("k").outcome(), Outcome::Denied(millis(99)));
            advance(millis(99) - micros(1)).await;
        } else {
            advance(wait - micros(1)).await;
        }
        assert!(!limiter.check("k").is_allowed());
        advance(micros(1)).await;
        while let Some(done) = tasks.try_join_next() {
            let (_, after, decision) = done.unwrap();
            assert!(decision.is_allowed());
            assert!(after >= millis(1_100), "{after:?}");
        }
        assert!(limiter.check("k").is_allowed());
        assert!(!left.await.is_allowed());
    }
}

/// A refund makes it due at once, and the second counts from there.
#[tokio::test(start_paused = true)]
async fn a_waiter_is_given_its_second_from_when_its_units_are_there() {
    let limiter = limiter("token_bucket 1/h burst 1");
    assert!(limiter.check("k").is_allowed());
    let mut left = pin!(limiter.acquire("k").into_future());
    poll_once(left.as_mut());
    advance(Duration::from_secs(60)).await;
    let _ = limiter.refund("k", 1);
    advance(millis(999)).await;
    assert_eq!(limiter.check("k").outcome(), Outcome::Denied(millis(1)));
    // In time, it goes.
    assert!(left.await.is_allowed());
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_after_the_deadline_is_denied_and_charged_nothing() {
    async fn holds<L: RateLimiter<str>>(limiter: &L) {
        let past = Instant::now() - millis(1);
        let Ok(denied) = limiter.acquire("k").until(past).await else { unreachable!() };
        assert_eq!((denied.outcome(), denied.granted()), (Outcome::Denied(micros(1)), 0));
        let Ok(never) = limiter.acquire_n("k", 100).until(past).await else { unreachable!() };
        assert_eq!(never.outcome(), Outcome::Never);
        let Ok(peeked) = limiter.peek("k").await else { unreachable!() };
        assert_eq!(peeked.remaining(), 3);
        // At the deadline it is in time, and no time at all is enough for what is there.
        let Ok(allowed) = limiter.acquire("k").until(Instant::now()).await else { unreachable!() };
        assert!(allowed.is_allowed());
        let waiting = limiter.acquire("k").within(Duration::ZERO);
        advance(millis(5)).await;
        let Ok(allowed) = waiting.await else { unreachable!() };
        assert!(allowed.is_allowed());
    }
    for policy in each_algorithm("3/h") {
        if policy == "leaky_bucket 3/h" {
            continue; // the second would be delayed
        }
        holds(&*limiter(&policy)).await;
        holds(&BoxRateLimiter::<str>::new(Arc::into_inner(limiter(&policy)).unwrap())).await;
    }
}

/// What was foreseen for it does not count any more when the key is reset.
#[tokio::test(start_paused = true)]
async fn a_departure_that_was_late_is_counted_in_the_stated_waits() {
    let limiter = limiter("token_bucket 10/s burst 1");
    assert!(limiter.check("k").is_allowed());
    let [mut first, mut second] = [(); 2].map(|()| Box::pin(limiter.acquire("k").into_future()));
    poll_once(first.as_mut());
    poll_once(second.as_mut());
    assert_eq!(limiter.check("k").retry_after(), Some(millis(300)));
    advance(millis(150)).await;
    // It counts from 148 ms, as timers may be late by two.
    assert!(first.await.is_allowed());
    assert_eq!(limiter.check("k").retry_after(), Some(millis(348 - 150)));
}

#[tokio::test(start_paused = true)]
async fn one_that_goes_after_all_is_counted_in_the_stated_waits() {
    let limiter = limiter("token_bucket 10/s burst 4");
    assert!(limiter.check_n("k", 4).is_allowed());
    let mut waiting = [(); 3].map(|()| Box::pin(limiter.acquire("k").into_future()));
    waiting.iter_mut().for_each(|waiting| poll_once(waiting.as_mut()));
    advance(millis(101)).await;
    // As if the first did not go, but the other two, when it is passed over.
    assert_eq!(limiter.check("k").retry_after(), Some(millis(1_100 - 101)));
    let [first, _second, _third] = waiting;
    assert!(first.await.is_allowed());
    advance(millis(100)).await;
    // As if the second did not go, but the third.
    assert_eq!(limiter.check("k").retry_after(), Some(millis(1_200 - 201)));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_was_to_wait_for_an_hour_does_not_hold_up_a_key_that_is_reset() {
    let limiter = limiter("token_bucket 1/h burst 10");
    assert!(limiter.check_n("k", 10).is_allowed());
    let mut left = pin!(limiter.acquire("k").into_future());
    poll_once(left.as_mut());
    advance(Duration::from_secs(1)).await;
    let _ = limiter.reset("k");
    let wait = limiter.check("k").retry_after();
    assert_eq!(wait, Some(micros(1))); // the waiter is expected to go at once
    advance(micros(1)).await;
    assert_eq!(limiter.check("k").retry_after(), Some(Duration::from_secs(1) - micros(1)));
    advance(Duration::from_secs(1) - micros(1)).await;
    assert!(limiter.check("k").is_allowed());
}

/// A waiter is not passed over because the limiter's clock has been set forward: by tokio's clock,
/// which it sleeps by, it was polled just now.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_denies_no_waiter() {
    let clock = ManualClock::new(Tick::from_micros(MIDNIGHT));
    let limiter = Limiter::with_clock(parse("token_bucket 1/s burst 1"), clock.clone());
    assert!(limiter.check("k").is_allowed());
    let mut waiting = pin!(limiter.acquire("k").into_future());
    poll_once(waiting.as_mut());
    clock.advance(Duration::from_secs(3_600));
    assert!(waiting.await.is_allowed());
}

/// A store without queues is asked again and again, though no later than the deadline.
#[tokio::test(start_paused = true)]
async fn whoever_asks_again_and_is_polled_too_late_is_denied_and_charged_nothing() {
    let far_away = Slow(limiter("token_bucket 10/s burst 1"));
    assert!(far_away.0.check("k").is_allowed());
    let mut left = pin!(far_away.acquire("k").within(millis(200)).into_future());
    poll_once(left.as_mut());
    advance(Duration::from_secs(3)).await;
    let Ok(denied) = left.await;
    assert_eq!((denied.is_allowed(), denied.granted()), (false, 0));
    assert_eq!(far_away.0.peek("k").remaining(), 1);
}

/// Refunds and settlements, however many, do not keep a waiter in its place that is not polled.
#[tokio::test(start_paused = true)]
async fn a_waiter_is_given_one_second_whatever_is_given_back() {
    let limiter = limiter("token_bucket 10/s burst 3");
    assert!(limiter.check_n("k", 3).is_allowed());
    let mut left = pin!(limiter.acquire("k").into_future());
    poll_once(left.as_mut());
    for n in 1..=10 {
        advance(millis(100)).await;
        let _ = if n % 2 == 0 { limiter.refund("k", 1) } else { limiter.debit("k", 0) };
        assert!(!limiter.check("k").is_allowed(), "{n}");
    }
    advance(millis(100)).await;
    assert!(limiter.check("k").is_allowed());
    assert!(!left.await.is_allowed());
}

/// However many there are: for a waiter behind them, and for a caller that only looks.
#[tokio::test(start_paused = true)]
async fn a_live_waiter_goes_although_many_before_it_are_not_polled() {
    for left in [1, 2, 5, 20] {
        let limiter = limiter("token_bucket 10/s");
        assert!(limiter.check_n("k", 10).is_allowed());
        let mut waiters: Vec<_> =
            (0..left).map(|_| Box::pin(limiter.acquire("k").into_future())).collect();
        waiters.iter_mut().for_each(|waiter| poll_once(waiter.as_mut()));
        let start = Instant::now();
        assert!(limiter.acquire("k").await.is_allowed());
        let most = Duration::from_secs(left + 1);
        assert!(start.elapsed() <= most, "{left}: {:?}", start.elapsed());
        for waiter in waiters {
            assert!(!waiter.await.is_allowed(), "{left}");
        }
    }
    let limiter = limiter("token_bucket 10/s");
    assert!(limiter.check_n("k", 10).is_allowed());
    let mut waiters: Vec<_> =
        (0..5).map(|_| Box::pin(limiter.acquire("k").into_future())).collect();
    waiters.iter_mut().for_each(|waiter| poll_once(waiter.as_mut()));
    advance(Duration::from_secs(60)).await;
    assert!(limiter.check("k").is_allowed());
}

/// With units missing or not, and with others before it: the same call is in time then, and no sooner.
#[tokio::test(start_paused = true)]
async fn a_leaky_buckets_refusal_is_exact_for_any_cost() {
    for (n, within, told) in [(3, 858, 142), (4, 999, 1), (1, 400, 600), (1, 0, 1_000)] {
        let limiter = limiter("leaky_bucket 4/s");
        assert!(limiter.check_n("k", 4).is_allowed());
        let ask = async || limiter.acquire_n("k", n).within(millis(within)).await;
        assert_eq!(ask().await.outcome(), Outcome::Denied(millis(told)), "{n}, {within}");
        advance(millis(told) - micros(1)).await;
        assert!(!ask().await.is_allowed(), "{n}, {within}");
        advance(micros(1)).await;
        assert!(ask().await.is_allowed(), "{n}, {within}");
    }
}
