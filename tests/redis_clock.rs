//! The clock of a Redis server, stepped while limits hold.

#![cfg(target_os = "linux")]

mod common;

use common::redis_server::{Server, free_port};
use common::{each_algorithm, parse};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tollgate::{Decision, Limiter, Policy, RateLimiter, Redis};

/// A server whose clock can be stepped.
struct Stepped {
    server: Server,
    step: PathBuf,
    _directory: TempDir,
}

impl Stepped {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let library = directory.path().join("stepped_clock.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redis/stepped_clock.c");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O2", source, "-o"]).arg(&library);
        let compiled = compile.status().expect("a C compiler, as Rust's linker is one");
        assert!(compiled.success());
        let step = directory.path().join("step");
        std::fs::write(&step, 0_i64.to_le_bytes()).unwrap();
        let environment = [("LD_PRELOAD", library.as_path()), ("STEPPED_CLOCK", step.as_path())];
        let server = Server::start_on(free_port(), &[], &environment);
        Self { server, step, _directory: directory }
    }

    /// Where the clock stands, compared to the true one.
    fn step_to(&self, seconds: i64) {
        let before = self.seconds();
        let previous = i64::from_le_bytes(std::fs::read(&self.step).unwrap().try_into().unwrap());
        // In place: the server may read it at any time, and must not find it empty.
        let mut file = OpenOptions::new().write(true).open(&self.step).unwrap();
        file.write_all(&(seconds * 1_000_000).to_le_bytes()).unwrap();
        let stepped = self.seconds() - before;
        assert!(stepped.abs_diff(seconds - previous / 1_000_000) <= 1, "the clock steps");
    }

    fn seconds(&self) -> i64 {
        self.server.cli(&["TIME"]).lines().next().unwrap().parse().unwrap()
    }
}

async fn limiter(server: &Stepped, policy: &str) -> Limiter<Policy, Redis> {
    let store = Redis::connect(&server.server.url()).await.unwrap();
    store.timeout(Duration::from_secs(5)).limiter("stepped", parse(policy)).unwrap()
}

async fn check(limiter: &Limiter<Policy, Redis>) -> Decision {
    limiter.check("k").await.unwrap()
}

/// Ten an hour: of the algorithms, only the counter may make one wait longer than the period,
/// by as long as it takes the last window to give one unit back.
#[tokio::test]
async fn a_step_back_mints_nothing_and_blocks_nobody_for_longer_than_the_period() {
    let server = Stepped::start();
    for policy in
        each_algorithm("10/h").into_iter().chain(["sliding_window_counter 10/h; 10/h".into()])
    {
        let limiter = limiter(&server, &policy).await;
        server.step_to(0);
        for _ in 0..10 {
            assert!(check(&limiter).await.is_allowed(), "{policy}");
        }
        for back in [-1, -3_000, -3_601, -50_000, -86_400 * 40] {
            server.step_to(back);
            let refused = check(&limiter).await;
            assert!(!refused.is_allowed(), "{policy} at {back}");
            let wait = refused.retry_after().unwrap();
            let longest = if policy.contains("counter") {
                Duration::from_secs(3_960)
            } else {
                Duration::from_secs(3_600)
            };
            assert!(wait <= longest, "{policy} at {back}: {wait:?}");
            assert_eq!(refused.remaining(), 0, "{policy} at {back}");
            // And the key stays no longer than its state says something.
            let key = server.server.cli(&["--scan"]);
            let ttl: u128 = server.server.cli(&["PTTL", &key]).parse().unwrap();
            let fresh = refused.reset_after().as_millis();
            assert!(ttl + 5_000 >= fresh && ttl < fresh + fresh / 10 + 1_000, "{ttl} {fresh}");
        }
        // From there on, it is the stepped clock that counts: after the wait it goes on.
        let wait = check(&limiter).await.retry_after().unwrap();
        let wait = i64::try_from(wait.as_secs()).unwrap();
        server.step_to(-86_400 * 40 + wait - 5);
        assert!(!check(&limiter).await.is_allowed(), "{policy}");
        server.step_to(-86_400 * 40 + wait + 5);
        assert!(check(&limiter).await.is_allowed(), "{policy}");
        server.server.cli(&["FLUSHALL"]);
    }
}

/// Asking again and again while the clock is thrown about by up to a minute: no more than the steps
/// forward account for. Windows that are aligned to the clock begin anew each time that it passes
/// a minute, also one that it has passed before.
#[tokio::test]
async fn steps_to_and_fro_mint_no_more_than_the_steps_forward() {
    let server = Stepped::start();
    for policy in each_algorithm("10/min") {
        let limiter = limiter(&server, &policy).await;
        server.step_to(0);
        let start = server.seconds();
        let (mut now, mut admitted, mut forward) = (0, 0, 0);
        let (mut minute, mut minutes_passed) = (start / 60, 0);
        // Between any two steps, either way, and any two decisions.
        let mut watch = || {
            let previous = std::mem::replace(&mut minute, server.seconds() / 60);
            minutes_passed += (minute - previous).max(0);
        };
        for n in 0..60_i64 {
            let next = now + [5, -20, 3, -1, 7, 2, -4][usize::try_from(n % 7).unwrap()];
            forward += (next - now).max(0);
            now = next;
            watch();
            server.step_to(now);
            for _ in 0..4 {
                watch();
                admitted += i64::from(check(&limiter).await.is_allowed());
                watch();
            }
        }
        let real = server.seconds() - now - start;
        let aligned = policy.contains("window");
        let minutes = if aligned { minutes_passed + 1 } else { (forward + real) / 60 + 2 };
        assert!(admitted <= 10 * minutes, "{policy}: {admitted} in {forward} s");
        server.server.cli(&["FLUSHALL"]);
    }
}

/// Where the clock went back, the script is called again: only the call that decides publishes.
#[tokio::test]
async fn a_refusal_after_a_step_back_is_published_once() {
    let server = Stepped::start();
    for policy in
        each_algorithm("10/h").into_iter().chain(["sliding_window_counter 10/h; 10/h".into()])
    {
        let store = Redis::connect(&server.server.url()).await.unwrap();
        let store = store.timeout(Duration::from_secs(5)).publish_refusals("refusals", 100);
        let limiter = store.unwrap().limiter("stepped", parse(&policy)).unwrap();
        server.step_to(0);
        assert!(limiter.check_n("k", 10).await.unwrap().is_allowed(), "{policy}");
        for (published, back) in [-1_000, -2_000, -90_000].into_iter().enumerate() {
            assert_eq!(server.server.cli(&["XLEN", "refusals"]), published.to_string(), "{policy}");
            server.step_to(back);
            let refused = match back {
                -2_000 => limiter.take_up_to("k", 3).await,
                _ => limiter.check("k").await,
            };
            assert!(!refused.unwrap().is_allowed(), "{policy} at {back}");
        }
        assert_eq!(server.server.cli(&["XLEN", "refusals"]), "3", "{policy}");
        server.server.cli(&["FLUSHALL"]);
    }
}
