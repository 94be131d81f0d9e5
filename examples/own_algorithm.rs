//! An algorithm of your own: a minimum pause between requests, whatever the clock's windows.
//!
//! `cargo run --example own_algorithm`, or, to see it decide the same in Redis,
//! `cargo run --features redis --example own_algorithm -- redis://127.0.0.1/`

use std::error::Error;
use std::time::Duration;
use tollgate::{
    Algorithm, All, BoxRateLimiter, Clock, Limiter, ManualClock, Origin, Quota, RateLimiter,
    SlidingLog, Tick, Wait,
};

/// One unit, and then a pause.
pub(crate) struct Cooldown {
    pause_micros: u64,
}

/// When the next unit may be taken, and when this was written: an earlier instant, from a clock
/// that went backwards, reads as that one.
#[derive(Clone, Default)]
pub(crate) struct Rest {
    until: Tick,
    since: Tick,
}

impl Rest {
    /// Microseconds until the next unit. They count from `now`, also if that is before `since`.
    fn left(&self, now: Tick) -> u64 {
        if self.until <= self.since { 0 } else { self.until.micros_since(now) }
    }
}

impl Cooldown {
    pub(crate) fn new(pause: Duration) -> Self {
        Self { pause_micros: pause.as_micros().try_into().expect("a pause below 500,000 years") }
    }
}

impl Algorithm for Cooldown {
    type State = Rest;

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

    fn give_back(&self, state: &mut Rest, n: u64, _: Option<Origin<'_>>, now: Tick) {
        if state.left(now) > 0 {
            let pauses = self.pause_micros.saturating_mul(n);
            let until = state.until.as_micros().saturating_sub(pauses);
            state.since = now.max(state.since);
            state.until = Tick::from_micros(until).max(state.since);
        }
    }

    /// A state that was written later than `now` is kept: time has come that far.
    fn fresh_after(&self, state: &Rest, now: Tick) -> u64 {
        state.until.max(state.since).micros_since(now)
    }

    fn instant(&self, state: &Rest, now: Tick) -> Tick {
        now.max(state.since)
    }
}

/// The same once more for Redis, where the state is two numbers.
#[cfg(feature = "redis")]
mod in_redis {
    use super::{Cooldown, Rest};
    use tollgate::{Script, ScriptCall, Scripted, StoredState, Tick};

    const COOLDOWN: Script = Script::new(
        "cooldown",
        "
--@ room
local pause
local limit = 1
pause, at = struct.unpack('<d', numbers, at)
local rest_until, since = 0, 0
if stored then
  rest_until, since, pos = struct.unpack('<dd', stored, pos)
  if since > now then
    if follow then
      rest_until, since, moved = rest_until - (since - now), now, true
    else
      now = since
    end
  end
end
local room = rest_until > now and 0 or 1

--@ take
if rest_until < now then rest_until = now end
rest_until, since = rest_until + n * pause, now

--@ give_back
if rest_until <= now then untouched = true end
rest_until, since = rest_until - n * pause, now
if rest_until < now then rest_until = now end

--@ fresh_after
local fresh_after = rest_until - now

--@ write
local state = struct.pack('<dd', rest_until, since)
",
    );

    impl Scripted for Cooldown {
        fn script(&self, call: &mut ScriptCall) {
            call.limit(COOLDOWN, &[self.pause_micros]);
        }

        fn read_state(&self, stored: &mut StoredState<'_>) -> Option<Rest> {
            let until = Tick::from_micros(stored.number()?);
            Some(Rest { until, since: Tick::from_micros(stored.number()?) })
        }
    }
}

/// It is an algorithm like the crate's own: it has a store, partial takes, refunds, and may be
/// part of a set. Here: no two within 200 ms, and no more than 3 in any second.
fn limits() -> All<(Cooldown, SlidingLog)> {
    All((Cooldown::new(Duration::from_millis(200)), SlidingLog::new(Quota::per_second(3))))
}

/// In this process, or in the Redis at `url`.
async fn limiter(
    url: Option<String>,
    clock: ManualClock,
) -> Result<BoxRateLimiter<str>, Box<dyn Error>> {
    let Some(url) = url else {
        return Ok(BoxRateLimiter::new(Limiter::with_clock(limits(), clock)));
    };
    #[cfg(feature = "redis")]
    {
        let name = format!("own_algorithm_{}", std::process::id());
        let redis = tollgate::Redis::connect(&url).await?.client_time(clock);
        Ok(BoxRateLimiter::new(redis.limiter(&name, limits())?))
    }
    #[cfg(not(feature = "redis"))]
    Err(format!("built without --features redis, so {url} is no use").into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let start = Tick::from_micros(1_800_000_000_000_000);
    let clock = ManualClock::new(start);
    let limiter = limiter(std::env::args().nth(1), clock.clone()).await?;
    let names = ["cooldown", "log"];
    for _ in 0..12 {
        let decision = limiter.check("alice").await.map_err(|error| error.to_string())?;
        let at = clock.now().micros_since(start) / 1_000;
        match decision.retry_after() {
            None => println!("{at:>5} ms  allowed"),
            Some(wait) => {
                println!("{at:>5} ms  refused by {}: {wait:?}", names[decision.binding()]);
            }
        }
        clock.advance(Duration::from_millis(100));
    }
    Ok(())
}
