//! Keys that are paused: one 429 of a server stops all tasks that call it.

mod common;

use common::{InProcess, MIDNIGHT, SECOND, Subject, cases, each_algorithm, micros, parse};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, advance, sleep};
use tollgate::{
    Decision, Direct, Limiter, Live, ManualClock, Memory, Operation, Outcome, PerKey, Policy,
    PolicyState, Receipt, Tick, TieredMemory, TokioClock,
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn denied(micros: u64) -> Outcome {
    Outcome::Denied(Duration::from_micros(micros))
}

/// The other limiters in memory.
macro_rules! subject {
    ($name:ident, $limiter:ty, $new:expr, $decide:expr, $pause:expr) => {
        struct $name(ManualClock, $limiter);

        impl Subject for $name {
            fn new(policy: &str) -> Self {
                let clock = ManualClock::new(Tick::from_micros(0));
                Self(clock.clone(), $new(parse(policy), clock))
            }

            fn keys(&self) -> usize {
                unreachable!("nobody asks")
            }

            fn decide(&mut self, micros: u64, key: &str, operation: Operation) -> Decision {
                self.0.set(Tick::from_micros(micros));
                $decide(&self.1, key, operation)
            }

            fn pause(&mut self, micros: u64, key: &str, duration: Duration) {
                self.0.set(Tick::from_micros(micros));
                $pause(&self.1, key, duration);
            }
        }
    };
}

type LiveLimiter = Limiter<Live<Policy>, Memory<PolicyState, ManualClock>>;
type Limits = Box<dyn Fn(&str) -> Arc<Policy> + Send + Sync>;
type PerKeyLimiter = Limiter<PerKey<Policy, Limits>, TieredMemory<PolicyState, ManualClock>>;
type DirectLimiter = Limiter<Policy, Direct<PolicyState, ManualClock>>;

subject!(
    InLive,
    LiveLimiter,
    |policy, clock| Limiter::with_store(Live::new(policy), Memory::new(clock)),
    |limiter: &LiveLimiter, key: &str, operation| limiter.decide(key, operation),
    |limiter: &LiveLimiter, key: &str, duration| limiter.pause(key, duration)
);

subject!(
    InPerKey,
    PerKeyLimiter,
    |policy, clock| {
        let policy = Arc::new(policy);
        let limits: Limits = Box::new(move |_: &str| Arc::clone(&policy));
        Limiter::with_store(PerKey::new(limits), TieredMemory::new(clock))
    },
    |limiter: &PerKeyLimiter, key: &str, operation| limiter.decide(key, operation),
    |limiter: &PerKeyLimiter, key: &str, duration| limiter.pause(key, duration)
);

subject!(
    InDirect,
    DirectLimiter,
    Limiter::direct_with_clock,
    |limiter: &DirectLimiter, _: &str, operation| limiter.decide(operation),
    |limiter: &DirectLimiter, _: &str, duration| limiter.pause(duration)
);

macro_rules! on_each_limiter {
    ($($table:ident),* $(,)?) => {
        common::on_each_store! { $($table),* }

        mod in_other_limiters {
            $(
                mod $table {
                    use super::super::*;

                    #[test]
                    fn live() {
                        super::super::$table::<InLive>();
                    }

                    #[test]
                    fn per_key() {
                        super::super::$table::<InPerKey>();
                    }

                    #[test]
                    fn direct() {
                        super::super::$table::<InDirect>();
                    }
                }
            )*
        }
    };
}

on_each_limiter! {
    units_are_denied_until_the_end,
    a_pause_is_never_shortened,
    a_reset_ends_it,
    what_takes_nothing_goes_on,
    a_pause_may_last_for_ever,
    nothing_is_charged_meanwhile,
}

fn units_are_denied_until_the_end<S: Subject>() {
    let receipt = Receipt::new();
    // (micros, operation, outcome)
    let table = [
        (0, Operation::Check(1), denied(10 * SECOND)),
        (0, Operation::Check(2), denied(10 * SECOND)),
        (0, Operation::Peek(1), denied(10 * SECOND)),
        (0, Operation::TakeUpTo(1), denied(10 * SECOND)),
        (0, Operation::TakeUpTo(9), denied(10 * SECOND)),
        (0, Operation::Reserve(1, &receipt), denied(10 * SECOND)),
        (0, Operation::Check(0), Outcome::Allowed),
        (0, Operation::Peek(0), Outcome::Allowed),
        (0, Operation::TakeUpTo(0), Outcome::Allowed),
        (0, Operation::Check(3), Outcome::Never),
        (0, Operation::Peek(3), Outcome::Never),
        (4 * SECOND, Operation::Check(1), denied(6 * SECOND)),
        (10 * SECOND - 1, Operation::Check(1), denied(1)),
        (10 * SECOND, Operation::Peek(1), Outcome::Allowed),
        (10 * SECOND, Operation::Check(1), Outcome::Allowed),
    ];
    for policy in each_algorithm("2/s") {
        let mut subject = S::new(&policy);
        subject.pause(MIDNIGHT, "k", seconds(10));
        for (at, operation, outcome) in table {
            let decision = subject.decide(MIDNIGHT + at, "k", operation);
            assert_eq!(decision.outcome(), outcome, "{policy}: {operation:?} after {at}");
            assert_eq!(decision.decided_at(), Tick::from_micros(MIDNIGHT + at));
            if let Outcome::Denied(wait) = outcome {
                assert_eq!(decision.granted(), 0);
                assert_eq!(decision.remaining(), 0);
                assert_eq!(decision.next_after(), Some(wait));
                assert_eq!(decision.reset_after(), wait);
            }
        }
        // As if no pause had been.
        let decision = subject.decide(MIDNIGHT + 10 * SECOND, "k", Operation::Peek(1));
        assert_eq!(decision.remaining(), 1, "{policy}");
    }
}

fn a_pause_is_never_shortened<S: Subject>() {
    let mut subject = S::new("token_bucket 1/s burst 2");
    // (at, duration, denied for)
    let table = [
        (0, seconds(0), None),
        (0, seconds(10), Some(10_000_000)),
        (1, seconds(5), Some(9_000_000)),
        (1, seconds(0), Some(9_000_000)),
        (1, seconds(20), Some(20_000_000)),
        (20, Duration::from_nanos(1_000_001_001), Some(1_000_002)),
        (30, Duration::from_nanos(1), Some(1)),
    ];
    for (at, duration, left) in table {
        subject.pause(MIDNIGHT + at * SECOND, "k", duration);
        let decision = subject.decide(MIDNIGHT + at * SECOND, "k", Operation::Peek(1));
        assert_eq!(decision.retry_after().map(micros), left, "{duration:?} at {at}");
    }
}

fn a_reset_ends_it<S: Subject>() {
    let mut subject = S::new("token_bucket 1/s burst 2");
    assert!(subject.check(MIDNIGHT, "k", 2).is_allowed());
    subject.pause(MIDNIGHT, "k", seconds(10));
    assert_eq!(subject.decide(MIDNIGHT, "k", Operation::Reset).remaining(), 2);
    assert!(subject.check(MIDNIGHT, "k", 2).is_allowed());
    subject.pause(MIDNIGHT, "k", seconds(1));
    assert_eq!(subject.check(MIDNIGHT, "k", 1).outcome(), denied(SECOND));
}

fn what_takes_nothing_goes_on<S: Subject>() {
    let mut subject = S::new("fixed_window 10/h");
    let receipt = Receipt::new();
    assert!(subject.decide(MIDNIGHT, "k", Operation::Reserve(4, &receipt)).is_allowed());
    subject.pause(MIDNIGHT, "k", seconds(10));
    let table = [
        (Operation::Debit(3), 3),
        (Operation::Refund(1), 4),
        (Operation::Settle(2, &receipt), 6),
        (Operation::Check(0), 6),
    ];
    for (operation, remaining) in table {
        let decision = subject.decide(MIDNIGHT + SECOND, "k", operation);
        assert!(decision.is_allowed());
        assert_eq!(decision.remaining(), remaining, "{operation:?}");
        assert_eq!(subject.check(MIDNIGHT + SECOND, "k", 1).outcome(), denied(9 * SECOND));
    }
    assert_eq!(subject.check(MIDNIGHT + 10 * SECOND, "k", 1).remaining(), 5);
}

fn a_pause_may_last_for_ever<S: Subject>() {
    for policy in each_algorithm("2/s") {
        let mut subject = S::new(&policy);
        subject.pause(MIDNIGHT, "k", Duration::MAX);
        let decision = subject.check(MIDNIGHT + SECOND, "k", 1);
        assert!(decision.retry_after() > Some(seconds(86_400 * 365 * 100)), "{policy}");
        let _ = subject.decide(MIDNIGHT + SECOND, "k", Operation::Debit(2));
        assert!(!subject.check(MIDNIGHT + SECOND, "k", 2).is_allowed(), "{policy}");
        let _ = subject.decide(MIDNIGHT + SECOND, "k", Operation::Reset);
        assert!(subject.check(MIDNIGHT + SECOND, "k", 1).is_allowed(), "{policy}");
    }
}

fn nothing_is_charged_meanwhile<S: Subject>() {
    let mut subject = S::new("token_bucket 1/s burst 5");
    assert!(subject.check(MIDNIGHT, "k", 5).is_allowed());
    subject.pause(MIDNIGHT, "k", seconds(3));
    for at in 0..3 {
        assert!(!subject.check(MIDNIGHT + at * SECOND, "k", 1).is_allowed());
    }
    // Three have come back meanwhile.
    assert_eq!(subject.check(MIDNIGHT + 3 * SECOND, "k", 1).remaining(), 2);
}

#[test]
fn in_memory_the_wait_of_the_limit_counts_too() {
    let mut subject = InProcess::new("token_bucket 1/s burst 5");
    assert!(subject.check(MIDNIGHT, "k", 5).is_allowed());
    subject.pause(MIDNIGHT, "k", seconds(2));
    for (n, wait) in [(1, 2), (2, 2), (3, 3), (5, 5)] {
        let denied = subject.check(MIDNIGHT, "k", n);
        assert_eq!(denied.retry_after(), Some(seconds(wait)), "{n}");
        assert_eq!(denied.next_after(), Some(seconds(2)));
    }
}

#[test]
fn other_keys_are_not_paused() {
    let mut subject = InProcess::new("token_bucket 1/s burst 5");
    subject.pause(MIDNIGHT, "k", seconds(2));
    assert!(subject.check(MIDNIGHT, "l", 5).is_allowed());
    assert!(!subject.check(MIDNIGHT, "k", 1).is_allowed());
    assert_eq!(subject.keys(), 1);
}

#[test]
fn limiters_on_one_tiered_store_share_a_pause() {
    let store = TieredMemory::new(ManualClock::new(Tick::from_micros(MIDNIGHT)));
    let [free, pro] =
        ["10/h", "1000/h"].map(|policy| Limiter::with_store(parse(policy), store.clone()));
    free.pause("k", seconds(10));
    assert_eq!(pro.check("k").outcome(), denied(10 * SECOND));
}

#[derive(Clone, Debug)]
enum Step {
    Pause(u64),
    Check(u64),
    TakeUpTo(u64),
    Peek(u64),
    Debit(u64),
    Refund(u64),
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let units = || 0_u64..7;
    let step = prop_oneof![
        2 => (0_u64..3_000).prop_map(Step::Pause),
        4 => units().prop_map(Step::Check),
        1 => units().prop_map(Step::TakeUpTo),
        1 => units().prop_map(Step::Peek),
        1 => units().prop_map(Step::Debit),
        1 => units().prop_map(Step::Refund),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec((0_u64..900, step), 1..60)
}

proptest! {
    #![proptest_config(cases(2_000))]

    /// The model is the same limiter without pauses, and the end of the present one.
    #[test]
    fn a_paused_limiter_is_one_that_is_not_asked(
        algorithm in 0_usize..6,
        steps in steps(),
    ) {
        let policy = &each_algorithm("5/s")[algorithm];
        let [mut paused, mut model] = [(); 2].map(|()| InProcess::new(policy));
        let (mut now, mut until) = (MIDNIGHT, 0);
        for (after, step) in steps {
            now += after * 1_000;
            let (operation, n) = match step {
                Step::Pause(millis) => {
                    paused.pause(now, "k", Duration::from_millis(millis));
                    until = until.max(now + millis * 1_000);
                    continue;
                }
                Step::Check(n) => (Operation::Check(n), n),
                Step::TakeUpTo(n) => (Operation::TakeUpTo(n), n.min(1)),
                Step::Peek(n) => (Operation::Peek(n), n),
                Step::Debit(n) => (Operation::Debit(n), 0),
                Step::Refund(n) => (Operation::Refund(n), 0),
                Step::Reset => {
                    until = 0;
                    (Operation::Reset, 0)
                }
            };
            let decision = paused.decide(now, "k", operation);
            if n == 0 || until <= now {
                prop_assert_eq!(decision, model.decide(now, "k", operation));
                continue;
            }
            let expected = match model.decide(now, "k", Operation::Peek(n)).outcome() {
                Outcome::Never => Outcome::Never,
                Outcome::Denied(wait) => denied(micros(wait).max(until - now)),
                _ => denied(until - now),
            };
            prop_assert_eq!(decision.outcome(), expected, "{:?}", operation);
            prop_assert_eq!(decision.granted(), 0);
        }
    }
}

type Waited = Limiter<Policy, Memory<PolicyState, TokioClock>>;

fn limiter(policy: &str) -> Arc<Waited> {
    let clock = TokioClock::start_at(Tick::from_micros(MIDNIGHT));
    Arc::new(Limiter::with_clock(parse(policy), clock))
}

/// (name, when it went, how), in the order in which they went.
type Gone = Arc<Mutex<Vec<(u64, Duration, bool)>>>;

/// Tasks that wait for units: (name, units, longest).
async fn wait(
    limiter: &Arc<Waited>,
    waiters: &[(u64, u64, Option<Duration>)],
) -> (JoinSet<()>, Gone) {
    let (mut tasks, gone, start) = (JoinSet::new(), Gone::default(), Instant::now());
    for &(name, n, longest) in waiters {
        let (limiter, gone) = (Arc::clone(limiter), Arc::clone(&gone));
        tasks.spawn(async move {
            let acquire = limiter.acquire_n("k", n);
            let decision = match longest {
                Some(longest) => acquire.within(longest).await,
                None => acquire.await,
            };
            gone.lock().unwrap().push((name, start.elapsed(), decision.is_allowed()));
        });
        yield_now().await;
    }
    (tasks, gone)
}

/// Those who wait when a pause begins, at 50 ms, go in their order and at the rate of the limit.
#[tokio::test(start_paused = true)]
async fn who_waits_goes_in_order_after_the_pause() {
    let table: [(&str, &[u64]); 4] = [
        ("token_bucket 10/s burst 1", &[0, 1_050, 1_150, 1_250]),
        ("leaky_bucket 10/s capacity 10", &[0, 1_050, 1_150, 1_250]),
        // What has flowed in meanwhile is there at once.
        ("token_bucket 10/s burst 2", &[0, 0, 1_050, 1_050, 1_150]),
        ("fixed_window 1/s", &[0, 1_050, 2_000, 3_000]),
    ];
    for (policy, instants) in table {
        let limiter = limiter(policy);
        let waiters: Vec<_> = (0..instants.len() as u64).map(|name| (name, 1, None)).collect();
        let (tasks, gone) = wait(&limiter, &waiters).await;
        sleep(millis(50)).await;
        limiter.pause("k", seconds(1));
        tasks.join_all().await;
        let expected: Vec<_> = (0..).zip(instants).map(|(n, at)| (n, millis(*at), true)).collect();
        assert_eq!(*gone.lock().unwrap(), expected, "{policy}");
        assert!(limiter.decide("k", Operation::Check(0)).is_allowed());
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_passed_over_because_of_a_long_pause() {
    for policy in ["token_bucket 10/s burst 1", "leaky_bucket 10/s capacity 10"] {
        let limiter = limiter(policy);
        let (tasks, gone) = wait(&limiter, &[(0, 1, None), (1, 1, None), (2, 1, None)]).await;
        limiter.pause("k", seconds(60));
        sleep(seconds(30)).await;
        // While it lasts it is made longer.
        limiter.pause("k", seconds(60));
        let (others, later) = wait(&limiter, &[(3, 1, None)]).await;
        tasks.join_all().await;
        others.join_all().await;
        let expected = [(0, 0), (1, 90_000), (2, 90_100)].map(|(n, at)| (n, millis(at), true));
        assert_eq!(*gone.lock().unwrap(), expected, "{policy}");
        assert_eq!(*later.lock().unwrap(), [(3, millis(60_200), true)], "{policy}");
    }
}

/// A caller that cannot wait until the end is denied by its deadline at the latest.
#[tokio::test(start_paused = true)]
async fn a_pause_beyond_a_deadline_is_told() {
    for policy in ["token_bucket 10/s burst 1", "leaky_bucket 10/s capacity 10"] {
        let limiter = limiter(policy);
        let longest = Some(seconds(2));
        let waiters =
            [(0, 1, None), (1, 1, longest), (2, 1, longest), (3, 1, longest), (4, 1, None)];
        let (tasks, gone) = wait(&limiter, &waiters).await;
        limiter.pause("k", seconds(10));
        tasks.join_all().await;
        let gone = gone.lock().unwrap();
        let find = |name| *gone.iter().find(|(found, ..)| *found == name).unwrap();
        assert_eq!(find(0), (0, Duration::ZERO, true));
        assert_eq!(find(1), (1, Duration::ZERO, false), "{policy}");
        for name in [2, 3] {
            let (_, at, allowed) = find(name);
            assert!(!allowed && at <= seconds(2), "{policy}: {gone:?}");
        }
        assert_eq!(find(4), (4, seconds(10), true), "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_during_a_pause_waits_for_its_end() {
    let limiter = limiter("token_bucket 10/s burst 1");
    limiter.pause("k", seconds(10));
    let start = Instant::now();
    let late = limiter.acquire("k").within(seconds(9)).await;
    assert_eq!((late.outcome(), start.elapsed()), (denied(10 * SECOND), Duration::ZERO));
    assert_eq!(limiter.acquire_n("k", 2).await.outcome(), Outcome::Never);
    assert!(limiter.acquire_n("k", 0).await.is_allowed());
    assert_eq!(start.elapsed(), Duration::ZERO);
    let (tasks, gone) = wait(&limiter, &[(0, 1, Some(seconds(10))), (1, 1, None)]).await;
    // A check comes behind the waiters.
    assert_eq!(limiter.check("k").retry_after(), Some(millis(10_200)));
    assert_eq!(limiter.peek("k").retry_after(), Some(millis(10_200)));
    tasks.join_all().await;
    assert_eq!(*gone.lock().unwrap(), [(0, millis(10_000), true), (1, millis(10_100), true)]);
}

#[tokio::test(start_paused = true)]
async fn a_reset_lets_waiters_go() {
    let limiter = limiter("token_bucket 10/s burst 1");
    let (tasks, gone) = wait(&limiter, &[(0, 1, None), (1, 1, None), (2, 1, None)]).await;
    limiter.pause("k", seconds(3600));
    sleep(seconds(5)).await;
    let _ = limiter.reset("k");
    tasks.join_all().await;
    let expected = [(0, 0), (1, 5_000), (2, 5_100)].map(|(n, at)| (n, millis(at), true));
    assert_eq!(*gone.lock().unwrap(), expected);
}

/// Also if so many wait that no answer looks at all of them.
#[tokio::test(start_paused = true)]
async fn a_stated_wait_is_never_shorter_than_the_pause() {
    let limiter = limiter("token_bucket 100/s burst 1");
    let waiters: Vec<_> = (0..1_000).map(|name| (name, 1, None)).collect();
    let (_tasks, _) = wait(&limiter, &waiters).await;
    for pause in (60..70).map(seconds) {
        assert!(!limiter.check("k").is_allowed());
        limiter.pause("k", pause);
        let wait = limiter.check("k").retry_after().unwrap();
        assert!(wait >= pause, "{wait:?}, {pause:?}");
    }
}

/// Of those with a departure in the queue of a leaky bucket, one goes away during the pause.
#[tokio::test(start_paused = true)]
async fn who_goes_away_during_a_pause_takes_nothing() {
    let limiter = limiter("leaky_bucket 10/s capacity 10");
    let (first, gone) = wait(&limiter, &[(0, 1, None), (1, 1, None)]).await;
    let (dropped, _) = wait(&limiter, &[(2, 1, None)]).await;
    let (last, later) = wait(&limiter, &[(3, 1, None)]).await;
    limiter.pause("k", seconds(1));
    yield_now().await;
    drop(dropped);
    first.join_all().await;
    last.join_all().await;
    assert_eq!(*gone.lock().unwrap(), [(0, millis(0), true), (1, millis(1_000), true)]);
    assert_eq!(*later.lock().unwrap(), [(3, millis(1_100), true)]);
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_nothing_is_left_of_it() {
    let limiter = limiter("token_bucket 10/s burst 1");
    limiter.pause("k", seconds(1));
    advance(seconds(1)).await;
    let start = Instant::now();
    for _ in 0..3 {
        assert!(limiter.acquire("k").await.is_allowed());
    }
    assert_eq!(start.elapsed(), millis(200));
}

#[cfg(feature = "redis")]
mod of_a_process {
    use super::*;
    use common::redis::{SHARED, name};
    use tollgate::{RateLimiter, Redis};

    async fn redis() -> Redis {
        Redis::connect(&SHARED.url()).await.unwrap().timeout(seconds(60))
    }

    #[tokio::test]
    async fn the_server_is_not_asked_and_others_do_not_know() {
        let [redis, other] = [redis().await, redis().await];
        let clone = redis.clone();
        // No server is there to be asked.
        let nowhere = Redis::connect_lazy("redis://127.0.0.1:1/").unwrap();
        let name = name();
        let limiter = |redis: Redis| redis.limiter(&name, parse("token_bucket 10/s burst 5"));
        let [limiter, clone, other, nowhere] =
            [redis, clone, other, nowhere].map(|redis| limiter(redis).unwrap());
        for limiter in [&limiter, &nowhere] {
            limiter.pause("k", seconds(3600));
            let denied = limiter.check("k").await.unwrap();
            assert!(denied.retry_after() > Some(seconds(3000)));
        }
        assert!(nowhere.check("l").await.is_err());
        assert!(!clone.check("k").await.unwrap().is_allowed());
        assert!(other.check("k").await.unwrap().is_allowed());
        assert!(limiter.check("l").await.unwrap().is_allowed());
        assert!(limiter.reset("k").await.unwrap().is_allowed());
        assert!(clone.check("k").await.unwrap().is_allowed());
    }

    #[tokio::test]
    async fn a_pause_is_of_the_key_whatever_the_limits() {
        let limiter = redis().await.limiter(&name(), parse("token_bucket 10/h")).unwrap();
        let others = ["token_bucket 9/h", "fixed_window 10/h", "a: 10/h; b: sliding_log 30/d"];
        limiter.pause("k", seconds(3600));
        for others in others.map(parse) {
            let denied = limiter.check_with(&others, "k").await.unwrap();
            assert!(denied.retry_after() > Some(seconds(3000)));
        }
        let reset = Operation::Reset;
        assert!(limiter.decide_with(&parse(others[1]), "k", reset).await.is_ok());
        assert!(limiter.check("k").await.unwrap().is_allowed());
    }

    #[tokio::test]
    async fn a_pause_by_one_clock_is_none_by_another() {
        let (redis, name) = (redis().await, name());
        let clock = ManualClock::new(Tick::from_micros(1_000_000_000_000_000));
        let manual = redis.clone().client_time(clock);
        let limiters = [redis, manual].map(|redis| redis.limiter(&name, parse("10/h")).unwrap());
        for (n, key) in ["a", "b"].into_iter().enumerate() {
            limiters[n].pause(key, seconds(3600));
            let wait = limiters[n].check(key).await.unwrap().retry_after();
            assert!(wait > Some(seconds(3000)) && wait <= Some(seconds(3600)), "{wait:?}");
            assert!(limiters[1 - n].check(key).await.unwrap().is_allowed());
            assert!(!limiters[n].check(key).await.unwrap().is_allowed());
        }
    }

    #[tokio::test]
    async fn who_waits_asks_again_after_it() {
        for policy in ["token_bucket 10/s burst 2", "leaky_bucket 10/s capacity 10"] {
            let limiter = redis().await.limiter(&name(), parse(policy));
            let limiter = Arc::new(limiter.unwrap());
            for _ in 0..2 {
                assert!(limiter.acquire("k").await.unwrap().is_allowed());
            }
            // These wait for units, or for their departures.
            let mut tasks = JoinSet::new();
            for _ in 0..2 {
                let limiter = Arc::clone(&limiter);
                tasks.spawn(async move {
                    assert!(limiter.acquire("k").await.unwrap().is_allowed());
                    Instant::now()
                });
            }
            sleep(millis(10)).await;
            let paused_at = Instant::now();
            limiter.pause("k", millis(700));
            let late = limiter.acquire("k").within(millis(100)).await.unwrap();
            assert!(!late.is_allowed());
            for went_at in tasks.join_all().await {
                // If this machine is slow, they have gone before.
                assert!(went_at < paused_at || went_at >= paused_at + millis(700), "{policy}");
            }
        }
    }
}
