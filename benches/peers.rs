//! A decision beside those of other crates, in the same run and in turn, as the machine's speed
//! changes; the longest pauses while keys come in; a flood of keys against a cap. See README.md.
//!
//! `cargo bench --bench peers`, or with a word of a line's name behind `--` for those lines only.

#[path = "common/in_turn.rs"]
mod in_turn;

use governor::RateLimiter as Governor;
use in_turn::{compare, is_wanted, print_head, repeat, uniform, uniform_numbers};
use spin::mutex::SpinMutex;
use std::fmt::Write;
use std::hash::Hash;
use std::hint::{black_box, spin_loop};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use tollgate::{
    BucketState, Clock, CoarseClock, Limiter, MonotonicClock, Operation, Quota, TokenBucket,
};

/// So slow that what is taken within a run does not come back, and no key is dropped; so large that it is
/// there for each of 1,000 keys, and without keys.
const SLOW: Quota = Quota::per_hour(1);
const LARGE: u64 = 400_000;
const FASTER: Quota = Quota::per_hour(1_000);
const LARGER: u64 = 400_000_000;
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
    let generous = || TokenBucket::new(FASTER).burst(LARGER);
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
            ("tollgate", &|_, n| repeat(n, || assert!(ours.check().is_allowed()))),
            ("tollgate, coarse clock", &|_, n| {
                repeat(n, || assert!(with_coarse_clock.check().is_allowed()))
            }),
            ("leaky-bucket", &|_, n| repeat(n, || assert!(leaky.try_acquire(1)))),
            ("ratelimit", &|_, n| repeat(n, || assert!(ratelimit.try_wait().is_ok()))),
            ("governor", &|_, n| repeat(n, || assert!(governor.check().is_ok()))),
        ],
    );
}

/// So many keys of any type, each made of its number, all known already; `name` is the type's.
fn keyed<K: Hash + Eq + Clone + Default + Send + Sync>(
    name: &str,
    count: u64,
    make: impl Fn(&mut K, u64) + Sync,
) {
    let ours = Limiter::new(generous());
    let coarse = CoarseClock::start(Duration::from_millis(1)).unwrap();
    let with_coarse_clock = Limiter::with_clock(generous(), coarse);
    let governor = Governor::keyed(governors_generous());
    let line = format!("{count} {name}");
    if !is_wanted(&line) {
        return;
    }
    // One after the other, so that the memory of each lies together.
    let fill = |ask: &dyn Fn(&K) -> bool| {
        let mut key = K::default();
        for number in 0..count {
            make(&mut key, number);
            assert!(ask(&key));
        }
    };
    fill(&|key| ours.check(key).is_allowed());
    fill(&|key| governor.check_key(key).is_ok());
    fill(&|key| with_coarse_clock.check(key).is_allowed());
    compare(
        &line,
        &[1, 2],
        &[
            ("tollgate", &|_, n| {
                uniform(count, n, &make, |key| assert!(ours.check(key).is_allowed()))
            }),
            ("tollgate, all numbers", &|_, n| {
                uniform(count, n, &make, |key| _ = black_box(ours.check(key)))
            }),
            ("tollgate, coarse clock", &|_, n| {
                uniform(count, n, &make, |key| assert!(with_coarse_clock.check(key).is_allowed()))
            }),
            ("governor", &|_, n| {
                uniform(count, n, &make, |key| assert!(governor.check_key(key).is_ok()))
            }),
        ],
    );
}

/// What no limiter does without: the clock, and each key's state, locked by an atomic beside it. Here it is
/// found by its number: nothing is hashed or searched, and there can be no other keys.
fn floor(count: u64) {
    let (clock, bucket) = (MonotonicClock::default(), generous());
    let states: Vec<_> = (0..count).map(|_| SpinMutex::<_>::new(BucketState::default())).collect();
    let governor = Governor::keyed(governors_generous());
    let ask = |key: &u64| {
        let state = &mut *states[usize::try_from(*key).unwrap()].lock();
        assert!(Operation::Check(1).apply(&bucket, state, clock.now()).is_allowed());
    };
    for key in 0..count {
        ask(&key);
        assert!(governor.check_key(&key).is_ok());
    }
    compare(
        &format!("{count} floor"),
        &[1, 2],
        &[
            ("clock, state and its lock", &|_, n| uniform_numbers(count, n, ask)),
            ("governor", &|_, n| {
                uniform_numbers(count, n, |key| assert!(governor.check_key(key).is_ok()))
            }),
        ],
    );
}

/// An address, with a default.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Address(IpAddr);

impl Default for Address {
    fn default() -> Self {
        Self(Ipv6Addr::UNSPECIFIED.into())
    }
}

fn denied(count: u64) {
    let ours = Limiter::new(TokenBucket::new(MEAN));
    let governor = Governor::keyed(governors_mean());
    for key in 0..count {
        assert!(ours.check(&key).is_allowed());
        assert!(governor.check_key(&key).is_ok());
    }
    compare(
        &format!("{count} u64, denied"),
        &[1, 2],
        &[
            ("tollgate", &|_, n| {
                uniform_numbers(count, n, |key| assert!(!ours.check(key).is_allowed()))
            }),
            ("governor", &|_, n| {
                uniform_numbers(count, n, |key| assert!(governor.check_key(key).is_err()))
            }),
        ],
    );
}

/// How long single decisions take while so many keys come in; beside it, what comes between when
/// nothing is done for as long, which is the machine's part.
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
        ("nothing for half a microsecond", &|_| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_nanos(500) {
                spin_loop();
            }
        }),
        ("tollgate", &|key| assert!(ours.check(black_box(&key)).is_allowed())),
        ("governor", &|key| assert!(governor.check_key(black_box(&key)).is_ok())),
    ];
    for (name, ask) in works {
        // Written once before, so that this memory is there.
        let mut nanos = vec![u32::MAX; usize::try_from(keys).unwrap()];
        for (key, nanos) in (0..).zip(&mut nanos) {
            let began = Instant::now();
            ask(key);
            *nanos = u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX);
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

/// Keys, most of which have not been seen, against a cap, beside as many known keys.
fn flood(cap: usize) {
    const MANY: u64 = 1 << 32;
    let known = Limiter::new(generous());
    let capped = Limiter::new(TokenBucket::new(Quota::per_minute(10))).max_keys(cap);
    let count = cap as u64;
    compare(
        &format!("a flood of keys at a cap of {cap}"),
        &[1, 2],
        &[
            ("new keys", &|_, n| uniform_numbers(MANY, n, |key| _ = black_box(capped.check(key)))),
            ("known keys", &|_, n| {
                uniform_numbers(count, n, |key| assert!(known.check(key).is_allowed()))
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
            ("tollgate", &|_, n| repeat(n, || _ = black_box(clock.now()))),
            ("governor", &|_, n| {
                use governor::clock::Clock;
                repeat(n, || _ = black_box(governors.now()))
            }),
        ],
    );
    direct();
    for count in [1_000, 10_000, 100_000, 1_000_000, 10_000_000] {
        keyed("u64", count, |key: &mut u64, number| *key = number);
    }
    keyed("String", 100_000, |key: &mut String, number| {
        key.clear();
        write!(key, "{number:016}").unwrap();
    });
    keyed("IpAddr", 100_000, |Address(key): &mut Address, number| {
        *key = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number) << 64).into();
    });
    denied(100_000);
    floor(100_000);
    flood(100_000);
    if is_wanted("stalls") {
        stalls(5_000_000);
    }
}
