//! One decision, by each algorithm, on one thread and on two at once: without keys, on 100,000
//! keys, and refused. The clock alone is the floor.
//!
//! `cargo bench --bench decision`

#[path = "common/in_turn.rs"]
#[allow(dead_code, reason = "shared with the comparisons")]
mod in_turn;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use in_turn::{Work, repeat, time, uniform_numbers};
use std::hint::black_box;
use std::time::Duration;
use tollgate::{
    Algorithm, Clock, FixedWindow, LeakyBucket, Limiter, MonotonicClock, Quota, SlidingLog,
    SlidingWindowCounter, TokenBucket,
};

const KEYS: u64 = 100_000;

/// So much that nothing is refused, over so long that no key is fresh again within the run.
const GENEROUS: Quota = Quota::per_day(10_000_000_000);
/// For buckets, the same by their size.
const SLOW: Quota = Quota::per_hour(1_000);
const LARGE: u64 = 100_000_000;
/// So little that everything is, once the first has been taken.
const MEAN: Quota = Quota::per_day(1);
/// A log remembers each instant: keep it short.
const SHORT: &str = "100/ms";

fn floor(c: &mut Criterion) {
    let clock = MonotonicClock::default();
    c.bench_function("clock alone", |b| b.iter(|| clock.now()));
}

/// The time of an operation on each of 1 and 2 threads.
fn on_threads(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, work: Work<'_>) {
    for threads in [1, 2] {
        group.bench_function(format!("{name}, {threads} threads"), |b| {
            b.iter_custom(|times| time(threads, times, work));
        });
    }
}

fn decisions<A: Algorithm + Copy>(c: &mut Criterion, name: &str, generous: A, mean: A) {
    let mut group = c.benchmark_group(name);
    group.sample_size(30).measurement_time(Duration::from_secs(3));

    let direct = Limiter::direct(generous);
    on_threads(&mut group, "direct", &|_, n| repeat(n, || _ = black_box(direct.check())));

    let keyed = Limiter::new(generous);
    on_threads(&mut group, "100,000 keys", &|_, n| {
        uniform_numbers(KEYS, n, |key| _ = black_box(keyed.check(key)))
    });

    let refusing = Limiter::new(mean);
    for key in 0..KEYS {
        assert!(refusing.check(&key).is_allowed());
    }
    on_threads(&mut group, "refused", &|_, n| {
        uniform_numbers(KEYS, n, |key| _ = black_box(refusing.check(key)))
    });
    group.finish();
}

fn algorithms(c: &mut Criterion) {
    let short = SHORT.parse().expect("a quota");
    decisions(c, "token_bucket", TokenBucket::new(SLOW).burst(LARGE), TokenBucket::new(MEAN));
    decisions(c, "leaky_bucket", LeakyBucket::new(SLOW).capacity(LARGE), LeakyBucket::new(MEAN));
    decisions(c, "fixed_window", FixedWindow::new(GENEROUS), FixedWindow::new(MEAN));
    decisions(c, "sliding_log", SlidingLog::new(short), SlidingLog::new(MEAN));
    decisions(
        c,
        "sliding_window_counter",
        SlidingWindowCounter::new(GENEROUS),
        SlidingWindowCounter::new(MEAN),
    );
}

criterion_group!(benches, floor, algorithms);
criterion_main!(benches);
