//! An algorithm of your own: a minimum pause between requests, whatever the clock's windows.
//!
//! `cargo run --example own_algorithm`

use std::time::Duration;
use tollgate::{Algorithm, All, Limiter, ManualClock, Quota, SlidingLog, Tick, Wait};

/// One unit, and then a pause.
struct Cooldown {
    pause_micros: u64,
}

/// When the next unit may be taken, and when this was written: an earlier instant, from a clock
/// that went backwards, reads as that one.
#[derive(Default)]
struct Rest {
    until: Tick,
    since: Tick,
}

impl Rest {
    fn left(&self, now: Tick) -> u64 {
        self.until.micros_since(now.max(self.since))
    }
}

impl Cooldown {
    fn new(pause: Duration) -> Self {
        Self { pause_micros: pause.as_micros().try_into().expect("a pause below 500,000 years") }
    }
}

impl Algorithm for Cooldown {
    type State = Rest;

    fn fresh(&self) -> Rest {
        Rest::default()
    }

    fn limit(&self) -> u64 {
        1
    }

    fn room(&self, state: &Rest, now: Tick) -> u64 {
        u64::from(state.left(now) == 0)
    }

    fn wait(&self, state: &Rest, n: u64, now: Tick) -> Wait {
        match (n, state.left(now)) {
            (2.., _) => Wait::Never,
            (_, 0) => Wait::Ready,
            (_, micros) => Wait::After(micros),
        }
    }

    /// Units taken on top, as a debt, each add a pause.
    fn take(&self, state: &mut Rest, n: u64, now: Tick) {
        let pauses = self.pause_micros.saturating_mul(n);
        state.since = now.max(state.since);
        state.until = state.until.max(state.since).saturating_add(pauses);
    }

    fn give_back(&self, state: &mut Rest, n: u64, now: Tick) {
        let pauses = self.pause_micros.saturating_mul(n);
        let left = state.left(now).saturating_sub(pauses);
        state.since = now.max(state.since);
        state.until = state.since.saturating_add(left);
    }

    fn fresh_after(&self, state: &Rest, now: Tick) -> u64 {
        state.left(now)
    }
}

fn main() {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));

    // It is an algorithm like the crate's own: it has a store, partial takes, refunds, and may
    // be part of a set. Here: no two within 200 ms, and no more than 3 in any second.
    let limiter = Limiter::with_clock(
        All((Cooldown::new(Duration::from_millis(200)), SlidingLog::new(Quota::per_second(3)))),
        clock.clone(),
    );
    let names = ["cooldown", "log"];

    for _ in 0..12 {
        let decision = limiter.check("alice");
        let at = clock_millis(&clock);
        match decision.retry_after() {
            None => println!("{at:>5} ms  allowed"),
            Some(wait) => {
                println!("{at:>5} ms  refused by {}: {wait:?}", names[decision.binding()]);
            }
        }
        clock.advance(Duration::from_millis(100));
    }
}

fn clock_millis(clock: &ManualClock) -> u64 {
    use tollgate::Clock;
    clock.now().as_micros() / 1_000 - 1_800_000_000_000
}
