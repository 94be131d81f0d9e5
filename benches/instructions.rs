//! How many instructions a decision takes, beside governor's: the same on every run, however busy
//! the machine is. See README.md.
//!
//! `cargo bench --bench instructions`, with valgrind installed.

#[path = "common/in_turn.rs"]
#[allow(dead_code, reason = "shared with the comparisons")]
mod in_turn;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, RateLimiter as Governor};
use in_turn::{repeat, uniform_numbers};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::process::Command;
use tollgate::{BucketState, Direct, Limiter, Quota, TokenBucket};

const KEYS: u64 = 100_000;
const DECISIONS: u64 = 100_000;

/// A name for the command line, and what is to be counted.
const WORKS: [(&str, fn()); 6] = [
    ("nothing", nothing),
    ("tollgate", tollgate),
    ("tollgate_all_numbers", tollgate_all_numbers),
    ("governor", governor),
    ("tollgate_direct", tollgate_direct),
    ("governor_direct", governor_direct),
];

fn bucket() -> TokenBucket {
    TokenBucket::new(Quota::per_hour(1_000)).burst(100_000_000)
}

fn governors() -> governor::Quota {
    governor::Quota::per_second(NonZeroU32::new(1_000_000_000).unwrap())
}

/// Valgrind counts what happens within the functions that are called `counted`.
fn nothing() {
    #[inline(never)]
    fn counted() {
        uniform_numbers(KEYS, DECISIONS, |key| _ = black_box(key));
    }
    counted();
}

fn tollgate() {
    #[inline(never)]
    fn counted(limiter: &Limiter<TokenBucket>) {
        uniform_numbers(KEYS, DECISIONS, |key| assert!(limiter.check(key).is_allowed()));
    }
    counted(&known());
}

fn tollgate_all_numbers() {
    #[inline(never)]
    fn counted(limiter: &Limiter<TokenBucket>) {
        uniform_numbers(KEYS, DECISIONS, |key| _ = black_box(limiter.check(key)));
    }
    counted(&known());
}

fn known() -> Limiter<TokenBucket> {
    let limiter = Limiter::new(bucket());
    (0..KEYS).for_each(|key| assert!(limiter.check(&key).is_allowed()));
    limiter
}

fn governor() {
    #[inline(never)]
    fn counted(limiter: &DefaultKeyedRateLimiter<u64>) {
        uniform_numbers(KEYS, DECISIONS, |key| assert!(limiter.check_key(key).is_ok()));
    }
    let limiter = Governor::keyed(governors());
    (0..KEYS).for_each(|key| assert!(limiter.check_key(&key).is_ok()));
    counted(&limiter);
}

fn tollgate_direct() {
    #[inline(never)]
    fn counted(limiter: &Limiter<TokenBucket, Direct<BucketState>>) {
        repeat(DECISIONS, || assert!(limiter.check().is_allowed()));
    }
    counted(&Limiter::direct(bucket()));
}

fn governor_direct() {
    #[inline(never)]
    fn counted(limiter: &DefaultDirectRateLimiter) {
        repeat(DECISIONS, || assert!(limiter.check().is_ok()));
    }
    counted(&Governor::direct(governors()));
}

/// What valgrind counts in a run of this program that does the work of this name.
fn count(name: &str) -> u64 {
    let this = std::env::current_exe().unwrap();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*::counted"])
        .arg(this)
        .args(["--count", name])
        .output()
        .expect("valgrind is installed (Debian: apt-get install valgrind)");
    let told = String::from_utf8_lossy(&output.stderr);
    let total = told.lines().find_map(|line| line.split_once("Collected : "));
    let Some((_, total)) = total else { panic!("valgrind told of no count: {told}") };
    total.trim().parse().unwrap()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(index) = arguments.iter().position(|argument| argument == "--count") {
        let work = WORKS
            .iter()
            .find(|(name, _)| Some(*name) == arguments.get(index + 1).map(|name| &**name));
        return work.expect("a work of that name").1();
    }
    println!("| | instructions for a decision |\n|---|---|");
    let loop_itself = count("nothing");
    for (name, _) in &WORKS[1..] {
        let loop_itself = if name.ends_with("direct") { 0 } else { loop_itself };
        println!("| {name} | {} |", (count(name) - loop_itself) / DECISIONS);
    }
}
