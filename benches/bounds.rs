//! How long one question takes when a state is as large as it gets: each line builds the state anew,
//! asks once, and does so several times. See README.md.
//!
//! `cargo bench --bench bounds`

use std::hint::black_box;
use std::time::{Duration, Instant};
use tollgate::{Algorithm, Operation, Quota, Receipt, SlidingLog, SlidingLogState, Tick};

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
fn line(name: &str, build: impl Fn() -> Log, ask: impl Fn(&mut Log)) {
    let mut words = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    if !words.all(|word| name.contains(&word)) {
        return;
    }
    let mut times: [Duration; RUNS] = std::array::from_fn(|_| {
        let mut log = build();
        let began = Instant::now();
        ask(&mut log);
        began.elapsed()
    });
    times.sort_unstable();
    let [median, least, most] = [times[RUNS / 2], times[0], times[RUNS - 1]];
    println!("| {name} | {median:.1?} ({least:.1?} to {most:.1?}) |");
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
}
