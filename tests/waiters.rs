//! What those who wait cost everybody else, on tokio's clock, which stands still.

mod common;

use common::{MIDNIGHT, parse};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;
use tokio::time::advance;
use tollgate::{
    Algorithm, Clock, Decision, Limiter, Live, Memory, Operation, Origin, Outcome, PerKey, Policy,
    PolicyState, Quota, RateLimiter, Receipt, Tick, TieredMemory, TokenBucket, TokioClock, Wait,
};

type Waiting<'a> = Pin<Box<dyn Future<Output = Decision> + Send + 'a>>;

fn clock() -> TokioClock {
    TokioClock::start_at(Tick::from_micros(MIDNIGHT))
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Polls a future that is not ready.
fn poll_once(waiting: &mut Waiting<'_>, waker: &Waker) {
    assert!(waiting.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
}

fn wait<F>(waiting: F) -> Waiting<'static>
where
    F: IntoFuture<Output = Decision, IntoFuture: Send + 'static>,
{
    let mut waiting: Waiting<'static> = Box::pin(waiting.into_future());
    poll_once(&mut waiting, Waker::noop());
    waiting
}

/// Lives as long as the program, so that what waits on it need not borrow.
fn forever<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A bucket that counts what it is asked.
#[derive(Clone)]
struct Counting(TokenBucket, Arc<AtomicU64>);

impl Counting {
    fn counted(&self) -> &TokenBucket {
        self.1.fetch_add(1, Relaxed);
        &self.0
    }
}

impl Algorithm for Counting {
    type State = <TokenBucket as Algorithm>::State;

    fn limit(&self) -> u64 {
        self.0.limit()
    }

    fn room(&self, state: &Self::State, now: Tick) -> u64 {
        self.counted().room(state, now)
    }

    fn wait(&self, state: &Self::State, n: u64, now: Tick) -> Wait {
        self.counted().wait(state, n, now)
    }

    fn take(&self, state: &mut Self::State, n: u64, now: Tick) {
        self.counted().take(state, n, now);
    }

    fn give_back(&self, state: &mut Self::State, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        self.counted().give_back(state, n, origin, now);
    }

    fn fresh_after(&self, state: &Self::State, now: Tick) -> u64 {
        self.counted().fresh_after(state, now)
    }
}

const MANY: usize = 10_000;

type Crowd = Limiter<Counting, Memory<<TokenBucket as Algorithm>::State, TokioClock>>;

/// One unit a second, and `MANY` that wait for one each, no longer than `longest`.
fn crowd(
    longest: impl Fn(usize) -> Option<Duration>,
) -> (&'static Crowd, Vec<Option<Waiting<'static>>>) {
    let bucket = Counting(TokenBucket::new(Quota::per_second(1)).burst(1), Arc::default());
    let limiter = forever(Limiter::with_clock(bucket, clock()));
    assert!(limiter.check("k").is_allowed());
    let waiting = (0..MANY).map(|n| {
        let acquire = limiter.acquire("k");
        Some(match longest(n) {
            Some(longest) => wait(acquire.within(longest)),
            None => wait(acquire),
        })
    });
    (limiter, waiting.collect())
}

fn steps(limiter: &Crowd) -> u64 {
    limiter.algorithm().1.load(Relaxed)
}

/// Steps for each of a thousand denials, with a change before each.
async fn steps_a_denial(limiter: &Crowd, mut change: impl AsyncFnMut(usize)) -> u64 {
    const TIMES: usize = 1_000;
    let mut taken = 0;
    for n in 0..TIMES {
        change(n).await;
        let before = steps(limiter);
        assert!(!limiter.check("k").is_allowed());
        taken += steps(limiter) - before;
    }
    taken / TIMES as u64
}

/// For each waiter of a forecast a few, and a forecast for each 16th of them.
const MOST_STEPS: u64 = 150;

#[tokio::test(start_paused = true)]
async fn no_denial_is_made_long_by_waiters_that_leave() {
    let (limiter, mut waiting) = crowd(|_| None);
    let leave = async |n: usize| drop(waiting[MANY / 2 + n].take());
    let taken = steps_a_denial(limiter, leave).await;
    assert!(taken < MOST_STEPS, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn no_denial_is_made_long_by_units_that_change() {
    let (limiter, _waiting) = crowd(|_| None);
    let change = async |n: usize| {
        let _ = match n % 3 {
            0 => limiter.debit("k", 1),
            1 => limiter.refund("k", 1),
            _ => limiter.reset("k"),
        };
    };
    let taken = steps_a_denial(limiter, change).await;
    assert!(taken < MOST_STEPS, "{taken}");
}

/// Whose deadlines pass one after the other, and who are not polled.
#[tokio::test(start_paused = true)]
async fn no_denial_is_made_long_by_deadlines() {
    let (limiter, _waiting) = crowd(|n| Some(seconds(20_000) + Duration::from_micros(n as u64)));
    let _ = limiter.debit("k", 10_000);
    advance(seconds(20_000) + Duration::from_millis(2)).await;
    let tick = async |_| advance(Duration::from_micros(1)).await;
    let taken = steps_a_denial(limiter, tick).await;
    assert!(taken < MOST_STEPS, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn all_whose_deadlines_are_over_are_out_of_the_queue() {
    for late in [1, 8, 9, 50] {
        let limiter = forever(Limiter::with_clock(parse("token_bucket 1/s"), clock()));
        assert!(limiter.check("k").is_allowed());
        let _first = wait(limiter.acquire("k"));
        let _late: Vec<_> =
            (0..late).map(|_| wait(limiter.acquire("k").within(seconds(60)))).collect();
        let _ = limiter.debit("k", 1_000);
        advance(seconds(61)).await;
        assert_eq!(limiter.check("k").retry_after(), Some(seconds(1_002 - 61)), "{late}");
    }
}

/// By one that comes, as by anybody else.
#[tokio::test(start_paused = true)]
async fn the_next_is_woken_when_the_first_is_passed_over() {
    let limiter = forever(Limiter::with_clock(parse("token_bucket 10/s burst 1"), clock()));
    assert!(limiter.check("k").is_allowed());
    let _first = wait(limiter.acquire("k"));
    let woken = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&woken);
    let waker = Waker::from(Arc::new(Calls(move || {
        counts.fetch_add(1, Relaxed);
    })));
    let mut second = acquire(limiter, "k");
    poll_once(&mut second, &waker);
    advance(Duration::from_millis(1_101)).await;
    let before = woken.load(Relaxed);
    let _third = wait(limiter.acquire("k"));
    assert_eq!(woken.load(Relaxed), before + 1);
}

/// A stated wait that is late becomes exact after enough answers, and after enough time.
#[tokio::test(start_paused = true)]
async fn a_stated_wait_is_exact_again_soon() {
    let (limiter, mut waiting) = crowd(|_| None);
    let stated = || limiter.check("k").retry_after().unwrap();
    let first = MANY as u64 + 1;
    // Those who came have asked often enough.
    drop(waiting.pop());
    assert_eq!(stated(), seconds(first - 1));
    drop(waiting.pop());
    let late = (0..MANY).take_while(|_| stated() == seconds(first - 1)).count();
    assert_eq!(late, MANY / 16 - 1);
    assert_eq!(stated(), seconds(first - 2));
    drop(waiting.pop());
    assert_eq!(stated(), seconds(first - 2));
    advance(Duration::from_millis(320)).await;
    assert_eq!(stated(), seconds(first - 3) - Duration::from_millis(320));
    // A few are never late.
    waiting.truncate(16);
    while stated() > seconds(17) {}
    assert_eq!(stated(), seconds(17) - Duration::from_millis(320));
    drop(waiting.pop());
    assert_eq!(stated(), seconds(16) - Duration::from_millis(320));
}

/// A limiter that is asked for the same things whatever its store and its key.
trait Limited<K: ?Sized>: RateLimiter<K, Error = Infallible> + Send + Sync + 'static {}

impl<K: ?Sized, L: RateLimiter<K, Error = Infallible> + Send + Sync + 'static> Limited<K> for L {}

fn now<K: ?Sized>(limiter: &impl Limited<K>, key: &K, operation: Operation<'_>) -> Decision {
    let Some(Ok(decision)) = limiter.decide_now(key, operation) else { unreachable!() };
    decision
}

fn acquire<K: Sync + ?Sized>(
    limiter: &'static impl Limited<K>,
    key: &'static K,
) -> Waiting<'static> {
    Box::pin(async move {
        let Ok(decision) = limiter.acquire(key).await;
        decision
    })
}

const HOURLY: &str = "token_bucket 1/h burst 1";

type Tiers = PerKey<Policy, fn(&str) -> &'static Policy>;

fn per_key() -> Limiter<Tiers, TieredMemory<PolicyState, TokioClock>> {
    let limits: fn(&str) -> &'static Policy = |_| {
        static LIMITS: OnceLock<Policy> = OnceLock::new();
        LIMITS.get_or_init(|| parse(HOURLY))
    };
    Limiter::with_store(PerKey::new(limits), TieredMemory::new(clock()))
}

fn live() -> &'static Limiter<Live<Policy>, Memory<PolicyState, TokioClock>> {
    forever(Limiter::with_store(Live::new(parse(HOURLY)), Memory::new(clock())))
}

/// Calls a function when it is woken.
struct Calls<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for Calls<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Does something, which must end.
fn ends(does: impl FnOnce() + Send + 'static) {
    let runtime = tokio::runtime::Handle::current();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let _entered = runtime.enter();
        does();
        done.send(()).unwrap();
    });
    ended.recv_timeout(seconds(60)).expect("it ends");
}

/// Whatever wakers do, no lock is in their way.
fn wakers_may_do_anything<K: Sync + ?Sized, L: Limited<K>>(
    limiter: &'static L,
    key: &'static K,
    also: impl Fn() + Copy + Send + Sync + 'static,
) {
    type Third = Arc<Mutex<Option<Waiting<'static>>>>;
    type Woken = Arc<dyn Fn(&Third) + Send + Sync>;
    let drops = |third: &Third| drop(third.lock().unwrap().take());
    let polls = |third: &Third| {
        if let Some(mut waiting) = third.lock().unwrap().take() {
            let _ = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    };
    let asks = move |_: &Third| {
        let _ = now(limiter, key, Operation::Check(1));
        let _ = now(limiter, key, Operation::Debit(1));
        also();
    };
    let wakers: [Woken; 3] = [Arc::new(drops), Arc::new(polls), Arc::new(asks)];
    let changes = [Operation::Refund(1), Operation::Debit(1), Operation::Reset];
    for woken in &wakers {
        for change in changes.map(Some).into_iter().chain([None]) {
            let _ = now(limiter, key, Operation::Reset);
            assert!(now(limiter, key, Operation::Check(1)).is_allowed());
            let mut first = acquire(limiter, key);
            poll_once(&mut first, Waker::noop());
            let third: Third = Arc::default();
            let times = Arc::new(AtomicUsize::new(0));
            let (calls, counted) = (Arc::clone(&third), Arc::clone(&times));
            let woken = Arc::clone(woken);
            let waker = Waker::from(Arc::new(Calls(move || {
                counted.fetch_add(1, Relaxed);
                woken(&calls);
            })));
            let mut second = acquire(limiter, key);
            poll_once(&mut second, &waker);
            let mut last = acquire(limiter, key);
            poll_once(&mut last, Waker::noop());
            *third.lock().unwrap() = Some(last);
            ends(move || match change {
                Some(change) => assert!(now(limiter, key, change).is_allowed()),
                None => drop(first),
            });
            assert_eq!(times.load(Relaxed), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn wakers_may_do_anything_in_each_store() {
    let policy = || parse(HOURLY);
    wakers_may_do_anything(forever(Limiter::with_clock(policy(), clock())), "k", || ());
    wakers_may_do_anything(forever(Limiter::direct_with_clock(policy(), clock())), &(), || ());
    wakers_may_do_anything(forever(per_key()), "k", || ());
    let live = live();
    wakers_may_do_anything(live, "k", || live.replace(parse(HOURLY)));
}

/// A waiter that comes while units are given back or charged notices, as if it had come before.
fn no_change_is_missed(operation: impl Fn(&Receipt) -> Operation<'_>) {
    type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;
    struct Gate(TokioClock, Hook);
    impl Clock for Gate {
        fn now(&self) -> Tick {
            if let Some(hook) = { self.1.lock().unwrap().take() } {
                hook();
            }
            self.0.now()
        }
    }
    let hook = Hook::default();
    let gate = Gate(clock(), Arc::clone(&hook));
    let limiter = forever(Limiter::direct_with_clock(parse(HOURLY), gate));
    let receipt = Receipt::new();
    assert!(limiter.decide(Operation::Reserve(1, &receipt)).is_allowed());
    let woken = Arc::new(AtomicUsize::new(0));
    let waiting = Arc::new(Mutex::new(acquire(limiter, &())));
    let enters = (Arc::clone(&waiting), Arc::clone(&woken));
    *hook.lock().unwrap() = Some(Box::new(move || {
        let (waiting, woken) = enters;
        let waker = Waker::from(Arc::new(Calls(move || {
            woken.fetch_add(1, Relaxed);
        })));
        poll_once(&mut waiting.lock().unwrap(), &waker);
    }));
    let _ = limiter.decide(operation(&receipt));
    assert!(hook.lock().unwrap().is_none());
    assert_eq!(woken.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn no_change_is_missed_by_one_that_comes_meanwhile() {
    no_change_is_missed(|_| Operation::Refund(1));
    no_change_is_missed(|_| Operation::Debit(1));
    no_change_is_missed(|_| Operation::Reset);
    no_change_is_missed(|receipt| Operation::Settle(0, receipt));
}

/// So many wait for each of three keys as can, and for one more.
fn waiters_are_bounded<K: Sync + ?Sized, L: Limited<K>>(
    limiter: L,
    keys: &[&'static K],
    waiters: &[u32],
) {
    let limiter = forever(limiter);
    let mut waiting = Vec::new();
    for (&key, &waiters) in keys.iter().zip(waiters) {
        assert!(now(limiter, key, Operation::Check(1)).is_allowed());
        for _ in 0..waiters {
            waiting.push(acquire(limiter, key));
            poll_once(waiting.last_mut().unwrap(), Waker::noop());
        }
        let refused = acquire(limiter, key).as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(refused) = refused else { panic!("one waits beyond the bound") };
        assert_eq!(refused.outcome(), Outcome::Denied(seconds(3_600) * (waiters + 1)));
    }
    // Who leaves makes room for another key's.
    drop(waiting.swap_remove(0));
    poll_once(&mut acquire(limiter, keys[keys.len() - 1]), Waker::noop());
}

#[tokio::test(start_paused = true)]
async fn waiters_are_bounded_in_each_store() {
    let keys = ["a", "b", "c"];
    let memory = || Limiter::with_clock(parse(HOURLY), clock());
    waiters_are_bounded(memory().max_waiters(5), &keys, &[5, 0, 0]);
    waiters_are_bounded(memory().max_waiters(5).max_waiters_per_key(3), &keys, &[3, 2, 0]);
    waiters_are_bounded(per_key().max_waiters(5).max_waiters_per_key(3), &keys, &[3, 2, 0]);
    let direct = || Limiter::direct_with_clock(parse(HOURLY), clock());
    waiters_are_bounded(direct().max_waiters(2), &[&()], &[2]);
    let live = Limiter::with_store(Live::new(parse(HOURLY)), Memory::new(clock()));
    waiters_are_bounded(live.max_waiters(2), &keys, &[2, 0, 0]);
}

/// A caller that waits for its delay is one of the waiters, until it leaves.
#[tokio::test(start_paused = true)]
async fn a_leaky_buckets_delays_are_bounded_too() {
    let policy = parse("leaky_bucket 1/s capacity 10");
    let limiter = forever(Limiter::with_clock(policy, clock()).max_waiters(2));
    assert!(limiter.acquire("k").await.is_allowed());
    let mut waiting = [(); 2].map(|()| wait(limiter.acquire("k")));
    let refused = limiter.acquire("k").await;
    assert_eq!(refused.outcome(), Outcome::Denied(seconds(3)));
    assert!(limiter.acquire("other").await.is_allowed());
    // It took no place, in the bucket either.
    assert_eq!(limiter.peek("k").remaining(), 7);
    let [first, _] = &mut waiting;
    assert!(first.await.is_allowed());
    drop(wait(limiter.acquire("k")));
}

/// Whose queue is played by its own limits, whoever asked before.
#[tokio::test(start_paused = true)]
async fn callers_by_other_limits_are_told_by_their_own() {
    let store = TieredMemory::new(clock());
    let [free, pro] = ["free: 10/h", "pro: 10/s"].map(parse);
    let free = forever(Limiter::with_store(free, store.clone()));
    let pro = forever(Limiter::with_store(pro, store));
    assert!(free.check_n("k", 10).is_allowed());
    let _waiting = wait(pro.acquire("k"));
    for _ in 0..3 {
        assert!(free.check("k").retry_after() > Some(seconds(300)));
        assert_eq!(pro.check("k").retry_after(), Some(Duration::from_millis(200)));
    }
    let _waiting = wait(pro.acquire("k").within(seconds(1)));
}

/// Units that another key takes from the budget that both share are missing for a waiter.
#[tokio::test(start_paused = true)]
async fn a_stated_wait_follows_a_shared_budget() {
    let limiter = Limiter::with_clock(parse("token_bucket 10/s burst 1"), clock()).max_keys(1);
    let limiter = forever(limiter);
    let _ = limiter.debit("has the place", 1_000);
    assert!(limiter.check("other").is_allowed());
    let mut waiting = wait(limiter.acquire("waits"));
    assert_eq!(limiter.check("waits").retry_after(), Some(Duration::from_millis(200)));
    advance(Duration::from_millis(100)).await;
    assert!(limiter.check("other").is_allowed());
    poll_once(&mut waiting, Waker::noop());
    assert_eq!(limiter.check("waits").retry_after(), Some(Duration::from_millis(200)));
}

/// Threads that come and go at once leave no place taken.
#[test]
fn places_are_free_when_all_have_left() {
    const WAITERS: usize = 400;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
    let bucket = TokenBucket::new(Quota::per_hour(1)).burst(1);
    let limiter = forever(Limiter::new(bucket).max_waiters(WAITERS));
    for key in ["k", "other"] {
        assert!(limiter.check(key).is_allowed());
    }
    for _ in 0..50 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _entered = runtime.enter();
                    let waiting = (0..WAITERS / 4).map(|_| wait(limiter.acquire("k")));
                    drop(waiting.collect::<Vec<_>>());
                });
            }
        });
    }
    let _entered = runtime.enter();
    let _waiting: Vec<_> = (0..WAITERS).map(|_| wait(limiter.acquire("other"))).collect();
}
