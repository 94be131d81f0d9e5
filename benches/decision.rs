//! One decision, by each algorithm: without keys, on 100,000 keys, and refused. The clock alone
//! is the floor.
//!
//! `cargo bench --bench decision`

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tollgate::{
    Algorithm, Clock, FixedWindow, LeakyBucket, Limiter, MonotonicClock, Quota, SlidingLog,
    SlidingWindowCounter, TokenBucket,
};

const KEYS: u64 = 100_000;

/// So much that nothing is refused, over so long that no key is fresh again within the run.
const GENEROUS: Quota = Quota::per_day(10_000_000_000);
/// For buckets, the same by their size.
const SLOW: Quota = Quota::per_hour(1_000_000);
const LARGE: u64 = 10_000_000_000;
/// So little that everything is, once the first has been taken.
const MEAN: Quota = Quota::per_day(1);
/// A log remembers each instant: keep it short.
const SHORT: &str = "100/ms";

fn floor(c: &mut Criterion) {
    let clock = MonotonicClock::default();
    c.bench_function("clock alone", |b| b.iter(|| clock.now()));
}

fn decisions<A: Algorithm + Copy>(c: &mut Criterion, name: &str, generous: A, mean: A) {
    let mut group = c.benchmark_group(name);

    let direct = Limiter::direct(generous);
    group.bench_function("direct", |b| b.iter(|| direct.check()));

    let keyed = Limiter::new(generous);
    let mut key = 0;
    group.bench_function("100,000 keys", |b| {
        b.iter(|| {
            // A stride through all keys, each time another.
            key = (key + 61_803) % KEYS;
            keyed.check(black_box(&key))
        });
    });

    let refusing = Limiter::new(mean);
    for key in 0..KEYS {
        assert!(refusing.check(&key).is_allowed());
    }
    group.bench_function("100,000 keys, refused", |b| {
        b.iter(|| {
            key = (key + 61_803) % KEYS;
            refusing.check(black_box(&key))
        });
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
