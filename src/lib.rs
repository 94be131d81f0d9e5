#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]
//! Rate limiting that does not surprise.
//!
//! A [`Limiter`] decides, for a key and a cost, whether a request may go now, later or never.
//!
#![cfg_attr(feature = "memory", doc = "```")]
#![cfg_attr(not(feature = "memory"), doc = "```ignore")]
//! use tollgate::{Limiter, Quota, TokenBucket};
//!
//! // 10 requests a second for each user, and up to 20 at once.
//! let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)).burst(20));
//!
//! let decision = limiter.check("alice");
//! if decision.is_allowed() {
//!     println!("served; {} more at once", decision.remaining());
//! } else {
//!     println!("try again in {:?}", decision.retry_after());
//! }
//! ```
//!
//! - **Exact.** Whole numbers only: no rate is rounded, no remainder dropped, no wait cut
//!   short. Sleeping exactly the stated wait succeeds; a microsecond less does not.
//! - **Refusals are free.** A refused request changes nothing, whatever it asked for.
//! - **One decision for all.** Every algorithm answers the same flat [`Decision`], so that
//!   changing the algorithm changes one line.
//! - **Memory follows the active keys.** No background thread, nothing to sweep.
//!
//! # Which algorithm?
//!
//! | algorithm | most in any minute at 100/min | memory for a key | burst | best for |
//! |---|---|---|---|---|
//! | [`TokenBucket`] | 199: the burst and what flows in | 16 bytes | up to `burst`, then steady | APIs: a client that keeps to the rate is never denied |
//! | [`LeakyBucket`] | 100, evenly spaced | 16 bytes | none: allowed requests carry a delay | feeding something that must not see bursts |
//! | [`FixedWindow`] | 200, across a boundary | 16 bytes | a whole limit at any time in the window | quotas a day, "resets at midnight" |
//! | [`SlidingLog`] | 100 | 72 bytes, and 2 to 8 for each instant | a whole limit at once | low limits that must hold: logins, payments |
//! | [`SlidingWindowCounter`] | 199: 100 at the end of a window, then steady requests | 32 bytes | a whole limit at once | large limits at a low price; below about 20 per window use another one |
//!
//! `tests/tables.rs` holds a greedy client against the second column. A text without an algorithm,
//! such as `"100/min"`, is a token bucket.
//!
//! (To each key, the store adds 8 bytes of fingerprint and a tenth to a quarter for growth. A
//! [`Policy`] takes 40 bytes for any of them but the log.)
//!
//! What that means at a limit of 100 a minute, for a client that sends 100 requests at 11:00:58
//! and 100 more at 11:01:01, three seconds later:
//!
//! | algorithm | of the first 100 | of the second 100 |
//! |---|---|---|
//! | fixed window | 100 | **100**: the boundary at 11:01:00 gave it a new window |
//! | token bucket | 100 | 5: what three seconds refill |
//! | sliding-window counter | 100 | 1: the last window still counts 59/60 of its 100 |
//! | sliding log | 100 | 0 |
//!
//! Several limits hold at once in a set, all or nothing: [`All`]. A [`Policy`] is chosen at run
//! time, from a text such as `"10/s; daily: fixed_window 5000/day"`. An algorithm of your own
//! is one [`Algorithm`] away.
//!
//! # What can be asked
//!
//! | method | what it does |
//! |---|---|
//! | `check`, `check_n` | take 1 or `n` units, all or nothing |
//! | `peek` | tell what `check` would say |
//! | `take_up_to` | take as many as there are, up to `n` |
//! | `debit` | charge what turned out to be the cost, into debt if need be |
//! | `refund` | give back what was not used |
//! | `reset` | forget all that was taken |
//! | `reserve` | take an estimate, to be settled when the true cost is known: [`Reservation`] |
//! | `pause` | give out no units of a key for a time, after a 429 of its server (feature `tokio`) |
//! | `acquire`, `acquire_n` | wait for units, in turn, with or without a deadline (feature `tokio`) |
//!
//! # Limits that are not always the same
//!
//! | what | how |
//! |---|---|
//! | tiers: other limits for some keys | [`Limiter::per_key`], or limiters on one [`TieredMemory`] |
//! | limits that are told with the call | [`Limiter::check_with`], on a [`TieredMemory`] or Redis |
//! | limits that are replaced while they are in use | [`Limiter::live`] |
//! | keys that are blocked for a time, or exempt | [`Exceptions`] |
//! | budgets that survive a restart | `Limiter::snapshot` (feature `serde`) |
//!
//! # In a web server
//!
//! With the `axum` feature (or `tower` alone), `tower::RateLimitLayer` guards a service and
//! answers 429 as the standards say.
//!
//! # Shared by many instances
//!
//! With the `redis` feature, `Redis::connect(url).await?.limiter("name", algorithm)?` keeps the
//! states in Redis: the same algorithms, with the same decisions, each by one script call.
//! Its decisions are awaited, through the trait [`RateLimiter`]; there is no sync form of them.
//!
//! # Time
//!
//! A limiter reads its clock once for each decision: by default a [`MonotonicClock`],
//! which follows the wall clock and never goes back. Tests bring a [`ManualClock`]. A clock that goes backwards
//! is taken to stand still: nothing is minted, whatever it does. (A reset also forgets the time.)
//! Every wait counts from the clock's present time, and a decision carries the instant that it was
//! made at: [`Decision::decided_at`].
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `memory` (default) | the store in process: `Limiter::new` |
//! | `tower` | the middleware, for any `tower` HTTP service |
//! | `axum` | the middleware finds the peer's address where axum leaves it |
//! | `tonic` | the middleware finds the peer's address where tonic leaves it |
//! | `tokio` | waiting for units: `acquire` |
//! | `http` | for clients: when a server that refused wants to be asked again, `retry_after` |
//! | `redis` | the store in Redis or Valkey: `Redis::connect` |
//! | `redis-cluster` | the same in a Redis Cluster: `Redis::connect_cluster` |
//! | `metrics` | counts of the middleware's decisions, and of its store's failures |
//! | `tracing` | events of its refusals and of its store's failures |
//! | `serde` | quotas and policies in configuration files; a store in process that outlives it: `Limiter::snapshot` |

/// The README's examples.
#[cfg(all(doctest, feature = "axum", feature = "memory", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;

mod algorithm;
mod boxed;
mod clock;
mod decision;
mod error;
mod limiter;
mod math;
mod operation;
mod policy;
mod quota;
#[cfg(feature = "http")]
mod retry_after;
mod store;
#[cfg(feature = "tower")]
pub mod tower;

pub use algorithm::{
    Admission, Algorithm, All, Binding, BucketState, Departure, Description, FixedWindow,
    FixedWindowState, LeakyBucket, Origin, Receipt, SlidingLog, SlidingLogState,
    SlidingWindowCounter, SlidingWindowCounterState, Standing, TokenBucket, Wait,
};
#[cfg(feature = "redis")]
pub use algorithm::{Script, ScriptCall, Scripted, StoredState};
pub use boxed::BoxRateLimiter;
#[cfg(feature = "tokio")]
pub use clock::TokioClock;
pub use clock::{Clock, ManualClock, Tick};
#[cfg(feature = "memory")]
pub use clock::{CoarseClock, MonotonicClock};
pub use decision::{Decision, Outcome};
pub use error::Error;
#[cfg(feature = "tokio")]
pub use limiter::Acquire;
#[cfg(feature = "memory")]
pub use limiter::Exceptions;
pub use limiter::{
    Carry, Describe, Immediate, Limiter, Limits, Live, PerKey, RateLimiter, Reservation, Source,
    StoreFor, Uniform,
};
pub use operation::Operation;
pub use policy::{Limit, LimitState, Name, Policy, PolicyState};
pub use quota::Quota;
#[cfg(feature = "http")]
pub use retry_after::retry_after;
#[cfg(all(feature = "memory", feature = "serde"))]
pub use store::Snapshot;
pub use store::Store;
#[cfg(feature = "memory")]
pub use store::{Dated, Direct, InProcess, Memory, States, TieredMemory};
#[cfg(feature = "redis")]
pub use store::{Redis, RedisKey};
