//! Times things in turn, round after round, as the machine's speed changes.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_arithmetic,
    reason = "statistics"
)]

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;
const OPERATIONS: u64 = 500_000;

/// Does so many operations on the thread of this number, and tells how long they took.
pub type Work<'a> = &'a (dyn Fn(u64, u64) -> Duration + Sync);

/// How long so many operations take, with so many threads at once: their mean.
pub fn time(threads: u64, operations: u64, work: Work<'_>) -> Duration {
    let start = Barrier::new(usize::try_from(threads).unwrap());
    let elapsed: Duration = thread::scope(|scope| {
        let run = |thread| {
            let start = &start;
            move || {
                start.wait();
                work(thread, operations)
            }
        };
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    elapsed / u32::try_from(threads).unwrap()
}

/// How long it takes to do something so many times.
pub fn repeat(times: u64, mut ask: impl FnMut()) -> Duration {
    let began = Instant::now();
    (0..times).for_each(|_| ask());
    began.elapsed()
}

/// How long it takes to ask about so many keys, each drawn at random from `count` of them. As in a
/// server, which has just read its request, the keys are at hand: some hundreds are made at a time,
/// by `make` of their number, and what that takes does not count.
pub fn uniform<K: Clone + Default>(
    count: u64,
    operations: u64,
    make: impl Fn(&mut K, u64),
    mut ask: impl FnMut(&K),
) -> Duration {
    const AT_HAND: u64 = 500;
    let mut random = RandomState::new().hash_one(count) | 1;
    let mut keys = vec![K::default(); AT_HAND as usize];
    let mut elapsed = Duration::ZERO;
    for _ in 0..operations.div_ceil(AT_HAND) {
        for key in &mut keys {
            // Marsaglia's xorshift.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            make(key, ((random >> 32) * count) >> 32);
        }
        let began = Instant::now();
        keys.iter().for_each(|key| ask(black_box(key)));
        elapsed += began.elapsed();
    }
    elapsed
}

/// The same for keys that are their numbers.
pub fn uniform_numbers(count: u64, operations: u64, ask: impl FnMut(&u64)) -> Duration {
    uniform(count, operations, |key, number| *key = number, ask)
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
