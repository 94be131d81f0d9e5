//! What the test suites share: a limiter under a clock that is set by hand.

#![allow(dead_code, reason = "each suite uses a part of it")]

pub mod model;
pub mod program;
#[cfg(feature = "redis")]
pub mod proxy;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
pub mod redis_server;

use proptest::collection::SizeRange;
use proptest::prelude::*;
use std::time::Duration;
use tollgate::{Decision, Limiter, ManualClock, Memory, Operation, Policy, PolicyState, Tick};

/// A round instant: the start of a minute, an hour and a day, 2027-01-16T00:00:00Z.
pub const MIDNIGHT: u64 = 1_800_057_600_000_000;
pub const SECOND: u64 = 1_000_000;
pub const MINUTE: u64 = 60 * SECOND;
pub const HOUR: u64 = 60 * MINUTE;
pub const DAY: u64 = 24 * HOUR;

pub fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap()
}

/// A limiter that is asked at given instants: one for each store.
pub trait Subject {
    fn new(policy: &str) -> Self
    where
        Self: Sized;

    /// How many keys have a state.
    fn keys(&self) -> usize;

    /// How many decisions of so many a test may ask for.
    fn affordable(decisions: u64) -> u64
    where
        Self: Sized,
    {
        decisions
    }

    fn decide(&mut self, micros: u64, key: &str, operation: Operation) -> Decision;

    #[cfg(feature = "tokio")]
    fn pause(&mut self, micros: u64, key: &str, duration: Duration);

    fn check(&mut self, micros: u64, key: &str, n: u64) -> Decision {
        self.decide(micros, key, Operation::Check(n))
    }
}

/// The store in process.
pub struct InProcess {
    clock: ManualClock,
    limiter: Limiter<Policy, Memory<PolicyState, ManualClock>>,
}

impl InProcess {
    pub fn with_policy(policy: Policy) -> Self {
        let clock = ManualClock::new(Tick::from_micros(0));
        Self { limiter: Limiter::with_clock(policy, clock.clone()), clock }
    }
}

impl Subject for InProcess {
    fn new(policy: &str) -> Self {
        Self::with_policy(parse(policy))
    }

    fn keys(&self) -> usize {
        self.limiter.len()
    }

    fn decide(&mut self, micros: u64, key: &str, operation: Operation) -> Decision {
        self.clock.set(Tick::from_micros(micros));
        self.limiter.decide(key, operation)
    }

    #[cfg(feature = "tokio")]
    fn pause(&mut self, micros: u64, key: &str, duration: Duration) {
        self.clock.set(Tick::from_micros(micros));
        self.limiter.pause(key, duration);
    }
}

/// Runs each of the tests, which are generic over a [`Subject`], on every store.
#[allow(unused_macros, reason = "each suite uses a part of it")]
macro_rules! on_each_store {
    ($($table:ident),* $(,)?) => {
        mod in_process {
            $(
                #[test]
                fn $table() {
                    super::$table::<super::common::InProcess>();
                }
            )*
        }

        #[cfg(feature = "redis")]
        mod in_redis {
            $(
                #[test]
                fn $table() {
                    super::$table::<super::common::redis::InRedis>();
                }
            )*
        }
    };
}

#[allow(unused_imports, reason = "each suite uses a part of it")]
pub(crate) use on_each_store;

/// A limit of each of the algorithms, `count` per `period`.
pub fn each_algorithm(quota: &str) -> [String; 6] {
    [
        format!("token_bucket {quota}"),
        format!("leaky_bucket {quota}"),
        format!("leaky_bucket {quota} nodelay"),
        format!("fixed_window {quota}"),
        format!("sliding_log {quota}"),
        format!("sliding_window_counter {quota}"),
    ]
}

/// Small and odd, everyday, and huge numbers.
/// Any, but for what a bucket cannot remember to the tick when the clock goes back (with more than
/// 536,870,911 units used, from 9 minutes on): large counts have short periods.
fn quota() -> impl Strategy<Value = String> {
    let small =
        (prop_oneof![2 => 1_u64..20, 1 => 1_u64..1_000], period(&["ms", "s", "min", "h", "d"]));
    let large = vec![999_983, 1_000_001, 999_999_937, 10_000_000_000_000];
    let large = (prop::sample::select(large), period(&["ms", "s", "min"]));
    prop_oneof![6 => small, 1 => large].prop_map(|(count, period)| format!("{count}/{period}"))
}

fn period(units: &'static [&'static str]) -> impl Strategy<Value = String> {
    (1_u64..9, prop::sample::select(units)).prop_map(|(n, unit)| format!("{n}{unit}"))
}

fn limit() -> impl Strategy<Value = String> {
    (0..KINDS).prop_flat_map(limit_of)
}

const KINDS: usize = 8;

fn limit_of(kind: usize) -> impl Strategy<Value = String> {
    (quota(), prop_oneof![1_u64..30, 1_u64..1_000]).prop_map(move |(quota, capacity)| match kind {
        0 => format!("token_bucket {quota}"),
        1 => format!("token_bucket {quota} burst {capacity}"),
        2 => format!("leaky_bucket {quota}"),
        3 => format!("leaky_bucket {quota} capacity {capacity}"),
        4 => format!("leaky_bucket {quota} capacity {capacity} nodelay"),
        5 => format!("fixed_window {quota}"),
        6 => format!("sliding_log {quota}"),
        _ => format!("sliding_window_counter {quota}"),
    })
}

/// Three policies of the same algorithms with different numbers.
pub fn versions() -> impl Strategy<Value = Vec<Policy>> {
    let kinds = prop_oneof![
        3 => prop::collection::vec(0..KINDS, 1),
        2 => prop::collection::vec(0..KINDS, 2..=3),
    ];
    kinds.prop_flat_map(|kinds| {
        let policy = kinds.into_iter().map(limit_of).collect::<Vec<_>>().prop_map(named);
        prop::collection::vec(policy, 3)
    })
}

fn named(limits: Vec<String>) -> Policy {
    let named = ["a", "b", "c"].iter().zip(limits).map(|(name, limit)| format!("{name}: {limit}"));
    parse(&named.collect::<Vec<_>>().join("; "))
}

/// A policy of one limit.
pub fn one_limit() -> impl Strategy<Value = Policy> {
    limit().prop_map(|text| parse(&text))
}

/// A set of so many limits.
pub fn set_of(limits: impl Into<SizeRange>) -> impl Strategy<Value = Policy> {
    prop::collection::vec(limit(), limits).prop_map(named)
}

/// Any policy: most often one limit, else a set of two or three.
pub fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![3 => one_limit(), 2 => set_of(2..=3)]
}

pub fn parse(text: &str) -> Policy {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// So many cases, times the environment variable `TOLLGATE_CASES_FACTOR` for a longer look.
pub fn cases(cases: u32) -> ProptestConfig {
    let factor = std::env::var("TOLLGATE_CASES_FACTOR").map_or(1, |factor| factor.parse().unwrap());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases * factor) }
}

pub fn units() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0_u64),
        6 => 1_u64..4,
        4 => 1_u64..40,
        1 => 1_u64..2_000,
        1 => prop::sample::select(vec![5_124_097, 999_999_999_999, u64::MAX]),
    ]
}

pub fn operation() -> impl Strategy<Value = Operation<'static>> {
    prop_oneof![
        8 => units().prop_map(Operation::Check),
        1 => units().prop_map(Operation::Peek),
        3 => units().prop_map(Operation::TakeUpTo),
        1 => units().prop_map(Operation::Debit),
        2 => units().prop_map(Operation::Refund),
        1 => Just(Operation::Reset),
    ]
}

/// Microseconds that pass between two operations: none, some odd number, or a round one.
pub fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => Just(0_u64),
        3 => 1_u64..1_000,
        3 => 1_u64..SECOND,
        2 => 1_u64..10 * SECOND,
        2 => (1_u64..100).prop_map(|n| n * SECOND),
        1 => 1_u64..3 * HOUR,
        1 => 1_u64..30 * DAY,
    ]
}

/// Debits, for the most part, of a log that passes a few units a minute.
pub fn debts(length: usize) -> impl Strategy<Value = Vec<(u64, Operation<'static>)>> {
    let operation = prop_oneof![
        6 => (1_u64..6).prop_map(Operation::Debit),
        1 => (1_u64..9).prop_map(Operation::Refund),
        1 => (1_u64..4).prop_map(Operation::Check),
        1 => (1_u64..4).prop_map(Operation::Peek),
    ];
    let pause = prop_oneof![1 => Just(0), 6 => 1..8 * SECOND, 1 => 1..2 * MINUTE];
    prop::collection::vec((pause, 0..8, operation), 1..length).prop_map(|steps| {
        let mut now = MIDNIGHT;
        let at = steps.into_iter().map(|(pause, direction, operation)| {
            now = if direction == 0 { now - pause } else { now + pause };
            (now, operation)
        });
        at.collect()
    })
}

/// Operations, each at its instant; never back in time.
pub fn forward_trace(length: usize) -> impl Strategy<Value = Vec<(u64, Operation<'static>)>> {
    prop::collection::vec((pause(), operation()), 1..length).prop_map(|steps| {
        let mut now = MIDNIGHT;
        let at = steps.into_iter().map(|(pause, operation)| {
            now += pause;
            (now, operation)
        });
        at.collect()
    })
}

/// Operations, each at its instant, with jumps back in time.
pub fn jumping_trace(length: usize) -> impl Strategy<Value = Vec<(u64, Operation<'static>)>> {
    prop::collection::vec((pause(), 0..5, operation()), 1..length).prop_map(|steps| {
        let mut now = MIDNIGHT;
        let at = steps.into_iter().map(|(pause, direction, operation)| {
            now = if direction == 0 { now - pause } else { now + pause };
            (now, operation)
        });
        at.collect()
    })
}
