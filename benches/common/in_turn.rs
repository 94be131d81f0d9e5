//! Times things in turn, round after round, as the machine's speed changes.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_arithmetic,
    reason = "statistics"
)]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;
const OPERATIONS: u64 = 500_000;

/// Does so many operations on the thread of this number.
pub type Work<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// How long so many operations take, with so many threads at once: their mean.
pub fn time(threads: u64, operations: u64, work: Work<'_>) -> Duration {
    let start = Barrier::new(usize::try_from(threads).unwrap());
    let elapsed: Duration = thread::scope(|scope| {
        let run = |thread| {
            let start = &start;
            move || {
                start.wait();
                let began = Instant::now();
                work(thread, operations);
                began.elapsed()
            }
        };
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    elapsed / u32::try_from(threads).unwrap()
}

/// Through all keys in an order that the caches do not foresee, each thread from elsewhere.
pub fn stride(keys: usize, thread: u64, operations: u64, mut ask: impl FnMut(usize)) {
    let mut key = usize::try_from(thread).unwrap() * keys / 2;
    for _ in 0..operations {
        key = (key + 61_803_399) % keys;
        ask(key);
    }
}

/// The median, the least and the most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

/// Whether a line has all the words of the command line.
pub fn is_wanted(line: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    words.all(|word| line.contains(&word))
}

pub fn print_head() {
    println!("| | | ns (least to most) | more than the last | ratio to it |");
    println!("|---|---|---|---|---|");
}

/// Prints a line for each kind of work, and how it compares to the last one.
pub fn compare(line: &str, threads: &[u64], works: &[(&str, Work<'_>)]) {
    if !is_wanted(line) {
        return;
    }
    for &threads in threads {
        let mut times = vec![Vec::new(); works.len()];
        for round in 0..=ROUNDS {
            for (times, (_, work)) in times.iter_mut().zip(works) {
                let nanos = time(threads, OPERATIONS, *work).as_secs_f64() * 1e9;
                if round > 0 {
                    times.push(nanos / OPERATIONS as f64);
                }
            }
        }
        let reference = times.last().unwrap().clone();
        for (times, (name, _)) in times.into_iter().zip(works) {
            let pairs = || times.iter().zip(&reference);
            let [more, fewest, greatest] =
                spread(pairs().map(|(time, last)| time - last).collect());
            let [ratio, low, high] = spread(pairs().map(|(time, last)| time / last).collect());
            let [median, least, most] = spread(times.clone());
            println!(
                "| {line}, {threads} threads | {name} | {median:.0} ({least:.0} to {most:.0}) \
                 | {more:.0} ({fewest:.0} to {greatest:.0}) | {ratio:.2} ({low:.2} to {high:.2}) |"
            );
        }
    }
}
