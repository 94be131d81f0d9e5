//! How long a question takes at worst: when a state is as large as it gets, when thousands wait for
//! the key, when another key of the shard is hot. See README.md.
//!
//! `cargo bench --all-features --bench bounds`

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use tollgate::{
    Algorithm, Limiter, Operation, Quota, Receipt, SlidingLog, SlidingLogState, Tick, TokenBucket,
};

const RUNS: usize = 9;
const MILLION: u64 = 1_000_000;
const HOUR: u64 = 3_600_000_000;
const START: u64 = 1_800_057_600_000_000;

/// A log in which a unit was taken at each of so many instants, evenly within an hour.
struct Log {
    algorithm: SlidingLog,
    state: SlidingLogState,
    /// Of two units each: the first instant's, the middle one's, the last one's.
    receipts: [Receipt; 3],
    now: u64,
}

impl Log {
    /// `spare` units are left.
    fn new(instants: u64, spare: u64) -> Self {
        let mut log = Self::of_limit(instants + 3 + spare);
        for n in 0..instants {
            let place = [0, instants / 2, instants - 1].iter().position(|&place| place == n);
            match place {
                Some(place) => {
                    let receipt = Receipt::new();
                    log.ask(Operation::Reserve(2, &receipt));
                    log.receipts[place] = receipt;
                }
                None => log.ask(Operation::Check(1)),
            }
            log.now += HOUR / instants - 1 - n % 2;
        }
        log
    }

    fn of_limit(limit: u64) -> Self {
        let algorithm = SlidingLog::new(Quota::per_hour(limit));
        Self {
            algorithm,
            state: SlidingLogState::default(),
            receipts: Default::default(),
            now: START,
        }
    }

    /// So many debits of one unit to a limit of ten.
    fn in_debt(debits: u64) -> Self {
        let mut log = Self::of_limit(10);
        for _ in 0..debits {
            log.algorithm.take(&mut log.state, 1, Tick::from_micros(log.now));
            log.now += HOUR / debits - 1;
        }
        log
    }

    fn ask(&mut self, operation: Operation<'_>) {
        let now = Tick::from_micros(self.now);
        let _ = black_box(operation.apply(&self.algorithm, &mut self.state, now));
    }

    fn settle(&mut self, receipt: usize) {
        let now = Tick::from_micros(self.now);
        let settle = Operation::Settle(1, &self.receipts[receipt]);
        let _ = black_box(settle.apply(&self.algorithm, &mut self.state, now));
    }

    fn after(mut self, micros: u64) -> Self {
        self.now += micros;
        self
    }
}

/// Prints how long it takes to ask one question of what is built anew each time.
fn line<T>(name: &str, build: impl Fn() -> T, ask: impl Fn(&mut T)) {
    if is_wanted(name) {
        print(
            name,
            (0..RUNS).map(|_| {
                let mut asked = build();
                let began = Instant::now();
                ask(&mut asked);
                began.elapsed()
            }),
        );
    }
}

fn is_wanted(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    words.all(|word| name.contains(&word))
}

fn print(name: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    let [median, least, most] = [times[times.len() / 2], times[0], times[times.len() - 1]];
    println!("| {name} | {median:.1?} ({least:.1?} to {most:.1?}) |");
}

/// Asks about a key in one shard with hot ones, on which eight threads are busy, for three seconds.
fn beside_hot_keys(hot: u64, is_new: bool) {
    let keys = if hot == 1 { "one hot key" } else { "eight hot keys" };
    let name = format!("{keys}: {} key", if is_new { "a new" } else { "a known" });
    if !is_wanted(&name) {
        return;
    }
    let bucket = TokenBucket::new(Quota::per_second(1_000_000));
    let limiter = Limiter::new(bucket).max_keys(400);
    (0..=hot).for_each(|key| _ = limiter.check(&key));
    let (limiter, is_over) = (&limiter, AtomicBool::new(false));
    thread::scope(|scope| {
        let is_over = &is_over;
        for thread in 0..8 {
            scope.spawn(move || {
                while !is_over.load(Relaxed) {
                    let _ = black_box(limiter.check(&(thread % hot)));
                }
            });
        }
        let (began, mut times) = (Instant::now(), Vec::new());
        while began.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(10));
            let key = if is_new { 1_000 + times.len() as u64 } else { hot };
            let asked_at = Instant::now();
            let _ = black_box(limiter.check(&key));
            times.push(asked_at.elapsed());
        }
        is_over.store(true, Relaxed);
        print(&name, times.into_iter());
    });
}

#[cfg(feature = "tokio")]
mod waiters {
    use super::{RUNS, is_wanted, print};
    use std::future::Future;
    use std::hint::black_box;
    use std::pin::Pin;
    use std::task::{Context, Waker};
    use std::time::{Duration, Instant};
    use tollgate::{Limiter, Policy};

    const WAITERS: usize = 10_000;
    const DENIALS: u32 = 1_000;

    type Waiting<'a> = Vec<Pin<Box<dyn Future<Output = tollgate::Decision> + Send + 'a>>>;

    /// What each of a thousand denials takes, with a change before each that is not timed.
    fn denials(name: &str, policy: &str, change: impl Fn(&Limiter<Policy>, &mut Waiting<'_>)) {
        let name = format!("10,000 wait: denied by {name}");
        if !is_wanted(&name) {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let run = |_| {
            let limiter = Limiter::new(policy.parse::<Policy>().unwrap());
            assert!(limiter.check("k").is_allowed());
            let mut waiting: Waiting<'_> = (0..WAITERS)
                .map(|_| limiter.acquire("k").into_future())
                .map(Box::pin)
                .map(|w| w as _)
                .collect();
            for waiting in &mut waiting {
                assert!(
                    waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
                );
            }
            let mut taken = Duration::ZERO;
            for _ in 0..DENIALS {
                change(&limiter, &mut waiting);
                let began = Instant::now();
                let _ = black_box(limiter.check("k"));
                taken += began.elapsed();
            }
            taken / DENIALS
        };
        print(&name, (0..RUNS / 3).map(run));
    }

    pub fn lines() {
        const ONE: &str = "token_bucket 1/h burst 1";
        const SET: &str = "token_bucket 1/h burst 1; fixed_window 10/h";
        let leaves = |_: &Limiter<Policy>, waiting: &mut Waiting<'_>| {
            drop(waiting.swap_remove(waiting.len() / 2));
        };
        denials("a limit", ONE, |_, _| ());
        denials("a limit, one leaves", ONE, leaves);
        denials("a set of two, one leaves", SET, leaves);
        denials("a limit, a refund", ONE, |limiter, _| _ = limiter.refund("k", 1));
        denials("a limit, a reset", ONE, |limiter, _| _ = limiter.reset("k"));
    }
}

fn main() {
    println!("| | median (least to most) |\n|---|---|");
    let full = || Log::new(MILLION, 0);
    let spare = || Log::new(MILLION, 1_000);
    let half_expired = || Log::new(MILLION, 0).after(HOUR / 2);
    let expired = || Log::new(MILLION, 0).after(HOUR);
    let debt = || Log::in_debt(MILLION);

    line("log: denied 1 unit", full, |log| log.ask(Operation::Check(1)));
    line("log: denied all units", full, |log| log.ask(Operation::Check(MILLION + 3)));
    line("log: peek at 1 unit", full, |log| log.ask(Operation::Peek(1)));
    line("log: peek at half", full, |log| log.ask(Operation::Peek(MILLION / 2)));
    line("log: allowed", spare, |log| log.ask(Operation::Check(1)));
    line("log: peek, half expired", half_expired, |log| log.ask(Operation::Peek(1)));
    line("log: allowed, half expired", half_expired, |log| log.ask(Operation::Check(1)));
    line("log: peek after an idle window", expired, |log| log.ask(Operation::Peek(1)));
    line("log: allowed after an idle window", expired, |log| log.ask(Operation::Check(1)));
    line("log: refund 1", full, |log| log.ask(Operation::Refund(1)));
    line("log: refund half", full, |log| log.ask(Operation::Refund(MILLION / 2)));
    line("log: refund all", full, |log| log.ask(Operation::Refund(u64::MAX)));
    for (index, place) in ["first", "middle", "last"].iter().enumerate() {
        for (name, instants) in [("100,000", MILLION / 10), ("10^6", MILLION)] {
            let full = || Log::new(instants, 0);
            line(&format!("log: settle the {place} of {name}"), full, |log| log.settle(index));
        }
    }
    line("log: settle a charge", full, |log| {
        let settle = Operation::Settle(MILLION, &log.receipts[1]);
        let _ = black_box(settle.apply(&log.algorithm, &mut log.state, Tick::from_micros(log.now)));
    });
    line("log: debit in debt", debt, |log| log.ask(Operation::Debit(1)));
    line("log: denied in debt", debt, |log| log.ask(Operation::Check(1)));
    line("log: forgive", debt, |log| {
        log.algorithm.forgive(&mut log.state, Tick::from_micros(log.now));
    });
    line("log: clone", full, |log| drop(black_box(log.state.clone())));

    for hot in [1, 8] {
        for is_new in [true, false] {
            beside_hot_keys(hot, is_new);
        }
    }
    #[cfg(feature = "tokio")]
    waiters::lines();
}
