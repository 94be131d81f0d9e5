//! What would this limit have done to that traffic?
//!
//! ```text
//! cargo run --release --example replay -- --policy POLICY [--epoch MICROS] [--summary] \
//!     [--store memory|redis://...] [--prefix PREFIX] [--min-ttl SECONDS] < trace
//! ```
//!
//! A line of the trace is `MICROS KEY COST [OP]`: microseconds from the start (they may go
//! backwards), a key, a number of units, and one of `check` (the default), `peek`,
//! `take_up_to`, `debit`, `refund`, `reset`. Blank lines and lines that begin with `#` are
//! passed over. A line that is none of these ends the run with its number, exit code 2.
//!
//! A line of the output is a decision as a JSON object; durations are in microseconds.
//!
//! With `--store redis://...` (and `--features redis`) the decisions are made in Redis, on the
//! same times. What is stored there stays until it expires, and is found by the next replay of
//! the same algorithms and keys: a `--prefix` keeps them apart. It expires by Redis' own clock:
//! where a replay takes longer than its trace, give `--min-ttl`.

use clap::Parser;
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::process::ExitCode;
use std::time::Duration;
use tollgate::{
    BoxRateLimiter, Decision, Limiter, ManualClock, Name, Operation, Outcome, Policy, RateLimiter,
    Tick,
};

/// Runs a trace of requests through a policy and prints each decision.
#[derive(Parser)]
struct Args {
    /// The limits, such as "100/minute" or "burst: token_bucket 10/s; fixed_window 5000/day".
    #[arg(long)]
    policy: Policy,

    /// The instant of MICROS 0, in microseconds since the Unix epoch.
    #[arg(long, value_name = "MICROS", default_value_t = 1_800_000_000_000_000)]
    epoch: u64,

    /// Print totals for each key instead of each decision.
    #[arg(long)]
    summary: bool,

    /// Where the states are: memory, or the URL of a Redis server.
    #[arg(long, default_value = "memory")]
    store: String,

    /// What the keys in Redis begin with.
    #[arg(long, default_value = "tollgate")]
    prefix: String,

    /// How long a key in Redis lives at least.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    min_ttl: u64,
}

/// The limiter, in memory or in Redis, on the time of the trace.
async fn limiter(args: &Args, clock: ManualClock) -> Result<BoxRateLimiter<str>, Box<dyn Error>> {
    let policy = args.policy.clone();
    if args.store == "memory" {
        return Ok(BoxRateLimiter::new(Limiter::with_clock(policy, clock)));
    }
    #[cfg(feature = "redis")]
    {
        let redis = tollgate::Redis::connect(&args.store)
            .await?
            .prefix(&args.prefix)
            .min_ttl(Duration::from_secs(args.min_ttl))
            .timeout(Duration::from_secs(5))
            .client_time(clock);
        Ok(BoxRateLimiter::new(redis.limiter("replay", policy)?))
    }
    #[cfg(not(feature = "redis"))]
    Err("this replay was built without Redis: add --features redis".into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let clock = ManualClock::new(Tick::from_micros(args.epoch));
    let limiter = limiter(args, clock.clone()).await?;
    let is_set = args.policy.limits().len() > 1;
    let mut totals: BTreeMap<String, Totals> = BTreeMap::new();

    let mut input = BufReader::new(io::stdin().lock());
    let mut output = BufWriter::new(io::stdout().lock());
    let mut line = Vec::new();
    for number in 1.. {
        // Whoever pipes in a line at a time sees each answer at once.
        if !input.buffer().contains(&b'\n') {
            output.flush()?;
        }
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let request = str::from_utf8(&line)
            .map_err(|_| "not UTF-8".to_owned())
            .and_then(|line| Request::parse(line, args.epoch))
            .map_err(|wrong| format!("line {number}: {wrong}"))?;
        let Some(request) = request else { continue };

        clock.set(request.now);
        let decision = limiter.decide(request.key, request.operation).await;
        let decision = decision.map_err(|error| format!("line {number}: {error}"))?;
        if args.summary {
            match totals.get_mut(request.key) {
                Some(totals) => totals.add(&request, &decision),
                None => totals.entry(request.key.to_owned()).or_default().add(&request, &decision),
            }
        } else {
            let binding = is_set.then(|| args.policy.name(&decision));
            let report = Report::new(&request, &decision, binding.as_ref().map(Name::as_str));
            write_line(&mut output, &report)?;
        }
    }
    for (key, totals) in &totals {
        write_line(&mut output, &KeyTotals { key, totals })?;
    }
    output.flush()?;
    Ok(())
}

fn write_line(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, value)?;
    output.write_all(b"\n")
}

/// A line of the trace.
struct Request<'l> {
    micros: u64,
    now: Tick,
    key: &'l str,
    cost: u64,
    op: &'static str,
    operation: Operation<'static>,
}

impl<'l> Request<'l> {
    /// `None` where the line is to be passed over.
    fn parse(line: &'l str, epoch: u64) -> Result<Option<Self>, String> {
        let mut words = line.split_whitespace();
        let Some(micros) = words.next().filter(|word| !word.starts_with('#')) else {
            return Ok(None);
        };
        let micros = number("MICROS", micros)?;
        let now = epoch.checked_add(micros).filter(|&now| now <= Tick::MAX.as_micros());
        let now = now.ok_or_else(|| format!("MICROS {micros} lies after the year 2191"))?;
        let key = words.next().ok_or("expected MICROS KEY COST [OP], found no KEY")?;
        let cost = words.next().ok_or("expected MICROS KEY COST [OP], found no COST")?;
        let cost = number("COST", cost)?;
        let (op, operation) = match words.next().unwrap_or("check") {
            "check" => ("check", Operation::Check(cost)),
            "peek" => ("peek", Operation::Peek(cost)),
            "take_up_to" => ("take_up_to", Operation::TakeUpTo(cost)),
            "debit" => ("debit", Operation::Debit(cost)),
            "refund" => ("refund", Operation::Refund(cost)),
            "reset" => ("reset", Operation::Reset),
            other => {
                let expected = "check, peek, take_up_to, debit, refund or reset";
                return Err(format!("expected OP to be {expected}, found {other:?}"));
            }
        };
        match words.next() {
            None => {
                Ok(Some(Self { micros, now: Tick::from_micros(now), key, cost, op, operation }))
            }
            Some(more) => Err(format!("expected the end of the line after OP, found {more:?}")),
        }
    }
}

fn number(what: &str, word: &str) -> Result<u64, String> {
    let digits = word.bytes().all(|b| b.is_ascii_digit());
    word.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| format!("expected {what} to be a whole number, found {word:?}"))
}

/// A line of the output.
#[derive(Serialize)]
struct Report<'r> {
    t: u64,
    key: &'r str,
    op: &'r str,
    cost: u64,
    outcome: &'static str,
    granted: u64,
    limit: u64,
    remaining: u64,
    delay_us: u128,
    retry_after_us: Option<u128>,
    reset_after_us: u128,
    next_after_us: Option<u128>,
    /// The limit that binds, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    binding: Option<&'r str>,
}

impl<'r> Report<'r> {
    fn new(request: &Request<'r>, decision: &Decision, binding: Option<&'r str>) -> Self {
        Self {
            t: request.micros,
            key: request.key,
            op: request.op,
            cost: request.cost,
            outcome: outcome(decision),
            granted: decision.granted(),
            limit: decision.limit(),
            remaining: decision.remaining(),
            delay_us: decision.delay().as_micros(),
            retry_after_us: decision.retry_after().as_ref().map(Duration::as_micros),
            reset_after_us: decision.reset_after().as_micros(),
            next_after_us: decision.next_after().as_ref().map(Duration::as_micros),
            binding,
        }
    }
}

fn outcome(decision: &Decision) -> &'static str {
    match decision.outcome() {
        Outcome::Allowed => "allowed",
        Outcome::Delayed(_) => "delayed",
        Outcome::Denied(_) => "denied",
        Outcome::Never => "never",
        other => unreachable!("{other:?} is not an outcome of this version"),
    }
}

/// What became of one key's requests. A peek is counted, but asks for no units.
#[derive(Default, Serialize)]
struct Totals {
    decisions: u64,
    allowed: u64,
    delayed: u64,
    denied: u64,
    never: u64,
    units_granted: u128,
    units_refused: u128,
}

#[derive(Serialize)]
struct KeyTotals<'t> {
    key: &'t str,
    #[serde(flatten)]
    totals: &'t Totals,
}

impl Totals {
    fn add(&mut self, request: &Request<'_>, decision: &Decision) {
        self.decisions += 1;
        let count = match decision.outcome() {
            Outcome::Allowed => &mut self.allowed,
            Outcome::Delayed(_) => &mut self.delayed,
            Outcome::Denied(_) => &mut self.denied,
            _ => &mut self.never,
        };
        *count += 1;
        self.units_granted += u128::from(decision.granted());
        if let Operation::Check(asked) | Operation::TakeUpTo(asked) = request.operation {
            self.units_refused += u128::from(asked - decision.granted());
        }
    }
}
