//! A decision beside those of other crates, in the same run and in turn, as the machine's speed
//! changes; the longest pauses while keys come in; a flood of keys against a cap. See README.md.
//!
//! `cargo bench --bench peers`, or with a word of a line's name behind `--` for those lines only.

#[path = "common/in_turn.rs"]
mod in_turn;

use governor::RateLimiter as Governor;
use in_turn::{compare, is_wanted, print_head, stride};
use std::hash::{BuildHasher, Hash, RandomState};
use std::hint::black_box;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use tollgate::{Clock, CoarseClock, Limiter, MonotonicClock, Quota, TokenBucket};

/// So slow that what is taken within a run does not come back, and so large that it is there.
const SLOW: Quota = Quota::per_hour(1_000);
const LARGE: u64 = 100_000_000;
/// Once the first unit has been taken, nothing is allowed.
const MEAN: Quota = Quota::per_day(1);

fn generous() -> TokenBucket {
    TokenBucket::new(SLOW).burst(LARGE)
}

fn governors_generous() -> governor::Quota {
    governor::Quota::per_second(NonZeroU32::new(1_000_000_000).unwrap())
}

fn governors_mean() -> governor::Quota {
    governor::Quota::with_period(Duration::from_secs(86_400)).unwrap()
}

fn direct() {
    let ours = Limiter::direct(generous());
    let coarse = CoarseClock::start(Duration::from_millis(1)).unwrap();
    let with_coarse_clock = Limiter::direct_with_clock(generous(), coarse);
    let governor = Governor::direct(governors_generous());
    let leaky = leaky_bucket::RateLimiter::builder().max(1 << 40).initial(1 << 40).build();
    let ratelimit = ratelimit::Ratelimiter::builder(1_000_000_000)
        .max_tokens(1 << 40)
        .initial_available(1 << 40)
        .build()
        .unwrap();
    compare(
        "direct",
        &[1, 2],
        &[
            ("tollgate", &|_, n| (0..n).for_each(|_| assert!(ours.check().is_allowed()))),
            ("tollgate, coarse clock", &|_, n| {
                (0..n).for_each(|_| assert!(with_coarse_clock.check().is_allowed()));
            }),
            ("leaky-bucket", &|_, n| (0..n).for_each(|_| assert!(leaky.try_acquire(1)))),
            ("ratelimit", &|_, n| (0..n).for_each(|_| assert!(ratelimit.try_wait().is_ok()))),
            ("governor", &|_, n| (0..n).for_each(|_| assert!(governor.check().is_ok()))),
        ],
    );
}

/// Keys of any type; `name` is theirs.
fn keyed<K: Hash + Eq + Clone + Sync + Send>(name: &str, keys: &[K]) {
    let ours = Limiter::new(generous());
    let coarse = CoarseClock::start(Duration::from_millis(1)).unwrap();
    let with_coarse_clock = Limiter::with_clock(generous(), coarse);
    let governor = Governor::keyed(governors_generous());
    compare(
        &format!("{} {name}", keys.len()),
        &[1, 2],
        &[
            ("tollgate", &|thread, n| {
                stride(keys.len(), thread, n, |key| {
                    assert!(ours.check(black_box(&keys[key])).is_allowed());
                });
            }),
            ("tollgate, coarse clock", &|thread, n| {
                stride(keys.len(), thread, n, |key| {
                    assert!(with_coarse_clock.check(black_box(&keys[key])).is_allowed());
                });
            }),
            ("governor", &|thread, n| {
                stride(keys.len(), thread, n, |key| {
                    assert!(governor.check_key(black_box(&keys[key])).is_ok());
                });
            }),
        ],
    );
}

fn denied(keys: usize) {
    let ours = Limiter::new(TokenBucket::new(MEAN));
    let governor = Governor::keyed(governors_mean());
    for key in 0..keys {
        assert!(ours.check(&key).is_allowed());
        assert!(governor.check_key(&key).is_ok());
    }
    compare(
        &format!("{keys} u64, denied"),
        &[1, 2],
        &[
            ("tollgate", &|thread, n| {
                stride(keys, thread, n, |key| assert!(!ours.check(black_box(&key)).is_allowed()));
            }),
            ("governor", &|thread, n| {
                stride(keys, thread, n, |key| {
                    assert!(governor.check_key(black_box(&key)).is_err());
                });
            }),
        ],
    );
}

/// How long single decisions take while so many keys come in, beside what reading the time twice
/// takes.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_arithmetic,
    reason = "statistics"
)]
fn stalls(keys: u64) {
    let ours = Limiter::new(generous());
    let governor = Governor::keyed(governors_generous());
    type Ask<'a> = &'a dyn Fn(u64);
    let works: [(&str, Ask<'_>); 3] = [
        ("nothing", &|_| {}),
        ("tollgate", &|key| assert!(ours.check(black_box(&key)).is_allowed())),
        ("governor", &|key| assert!(governor.check_key(black_box(&key)).is_ok())),
    ];
    for (name, ask) in works {
        let mut nanos: Vec<u32> = Vec::with_capacity(usize::try_from(keys).unwrap());
        for key in 0..keys {
            let began = Instant::now();
            ask(key);
            nanos.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        nanos.sort_unstable();
        let at = |share: f64| f64::from(nanos[(share * (nanos.len() - 1) as f64) as usize]) / 1e3;
        println!(
            "| {keys} new keys | {name} | median {:.2} us, 99.9 % {:.2}, 99.99 % {:.2}, most {:.2} |",
            at(0.5),
            at(0.999),
            at(0.999_9),
            at(1.0)
        );
    }
}

/// Random keys against a cap, beside as many known keys.
fn flood(cap: usize) {
    let known = Limiter::new(generous());
    let capped = Limiter::new(TokenBucket::new(Quota::per_minute(10))).max_keys(cap);
    let random = |thread: u64, n: u64, ask: &dyn Fn(u64)| {
        let mut key = RandomState::new().hash_one(thread);
        for _ in 0..n {
            key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(thread * 2 + 1);
            ask(key);
        }
    };
    compare(
        &format!("a flood of keys at a cap of {cap}"),
        &[1, 2],
        &[
            ("new keys", &|thread, n| {
                random(thread, n, &|key| {
                    let _ = black_box(capped.check(black_box(&key)));
                });
            }),
            ("known keys", &|thread, n| {
                stride(cap, thread, n, |key| assert!(known.check(black_box(&key)).is_allowed()));
            }),
        ],
    );
    assert!(capped.len() <= cap);
}

fn main() {
    print_head();
    let clock = MonotonicClock::default();
    let governors = governor::clock::QuantaClock::default();
    compare(
        "the clock alone",
        &[1, 2],
        &[
            ("tollgate", &|_, n| (0..n).for_each(|_| _ = black_box(clock.now()))),
            ("governor", &|_, n| {
                use governor::clock::Clock;
                (0..n).for_each(|_| _ = black_box(governors.now()));
            }),
        ],
    );
    direct();
    for count in [1_000, 10_000, 100_000, 1_000_000, 10_000_000] {
        keyed("u64", &(0..count).collect::<Vec<u64>>());
    }
    keyed("String", &(0..100_000).map(|n| format!("{n:016}")).collect::<Vec<String>>());
    let address = |n: u128| IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | n << 64));
    keyed("IpAddr", &(0..100_000).map(address).collect::<Vec<IpAddr>>());
    denied(100_000);
    flood(100_000);
    if is_wanted("stalls") {
        stalls(5_000_000);
    }
}
