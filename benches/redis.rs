//! What a decision in Redis costs: the server's own time, and decisions a second from one
//! connection, against the least that any script could cost. See README.md.

#[path = "../tests/common/redis_server.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod redis_server;

use criterion::{BenchmarkId, Criterion, Throughput};
use redis::aio::ConnectionManager;
use redis_server::Server;
use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tollgate::{Limiter, ManualClock, Policy, RateLimiter, Redis, Tick};

/// Scripts that do no more than any limiter must.
const FLOORS: [(&str, &str); 4] = [
    ("return 1", "return 1"),
    ("TIME", "redis.call('TIME') return 1"),
    ("TIME+GET", "redis.call('TIME') return redis.call('GET', KEYS[1])"),
    (
        "TIME+GET+SET",
        "redis.call('TIME') redis.call('GET', KEYS[1]) \
         redis.call('SET', KEYS[1], 'abcdefghijklmnopqrstuvwx', 'PX', 1000) return 1",
    ),
];

/// (what, policy, the floor that it is compared to)
const POLICIES: [(&str, &str, &str); 14] = [
    ("token bucket", "token_bucket 1000000/d", "TIME+GET+SET"),
    ("leaky bucket", "leaky_bucket 1000000/d", "TIME+GET+SET"),
    ("fixed window", "fixed_window 1000000/d", "TIME+GET+SET"),
    ("sliding-window counter", "1000000/d", "TIME+GET+SET"),
    ("sliding log, to 10", "sliding_log 10/10ms", "TIME+GET+SET"),
    ("sliding log, to 1,000", "sliding_log 1000/500ms", "TIME+GET+SET"),
    ("sliding log, to 10,000", "sliding_log 10000/5s", "TIME+GET+SET"),
    ("set of three", "token_bucket 1000000/d; 1000000/d; fixed_window 1000000/h", "TIME+GET+SET"),
    ("token bucket, denied", "token_bucket 1/h", "TIME+GET"),
    ("leaky bucket, denied", "leaky_bucket 1/h", "TIME+GET"),
    ("fixed window, denied", "fixed_window 1/h", "TIME+GET"),
    ("sliding-window counter, denied", "1/h", "TIME+GET"),
    ("sliding log, denied", "sliding_log 1/h", "TIME+GET"),
    ("set of three, denied", "token_bucket 1/h; 1/h; fixed_window 5/d", "TIME+GET"),
];

const KEYS: u64 = 1_000;

/// Something to call again and again.
trait Call: Send + Sync + 'static {
    fn call(&self, n: u64) -> impl Future<Output = ()> + Send;
}

struct Floor {
    connection: ConnectionManager,
    sha: String,
}

impl Floor {
    async fn new(server: &Server, script: &str) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = ConnectionManager::new(client).await.unwrap();
        let load = redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async(&mut connection).await;
        Self { connection, sha: load.unwrap() }
    }
}

impl Call for Floor {
    async fn call(&self, n: u64) {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(1).arg(format!("floor:{}", n % KEYS));
        let answer: redis::Value = command.query_async(&mut self.connection.clone()).await.unwrap();
        black_box(answer);
    }
}

struct Ours(Limiter<Policy, Redis>, u64);

impl Ours {
    async fn new(server: &Server, name: &str, policy: &str) -> Self {
        let store = Redis::connect(&server.url()).await.unwrap().timeout(Duration::from_secs(10));
        // A log is as long as its limit on one key only.
        let keys = if policy.contains("log 10") { 10 } else { KEYS };
        let keys = if policy.contains("log 10000") { 1 } else { keys };
        Self(store.limiter(name, policy.parse().unwrap()).unwrap(), keys)
    }
}

impl Call for Ours {
    async fn call(&self, n: u64) {
        let _ = black_box(self.0.check(&(n % self.1)).await.unwrap());
    }
}

/// Calls by so many tasks at once, `calls` in all, and tells how long it took.
async fn run<C: Call>(what: &Arc<C>, tasks: u64, calls: u64) -> Duration {
    let start = Instant::now();
    let tasks = (0..tasks).map(|task| {
        let what = Arc::clone(what);
        tokio::spawn(async move {
            for n in (task..calls).step_by(usize::try_from(tasks).unwrap()) {
                what.call(n).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    start.elapsed()
}

/// Microseconds that the server spent on a call.
async fn server_time<C: Call>(server: &Server, what: &Arc<C>) -> f64 {
    server.cli(&["CONFIG", "RESETSTAT"]);
    run(what, 32, 4_000).await;
    let stats = server.cli(&["INFO", "commandstats"]);
    let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
    let per_call = line.split("usec_per_call=").nth(1).unwrap();
    per_call.split(',').next().unwrap().parse().unwrap()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints the server's time for each policy, and its ratio to the floor: all in turn, many
/// times, as the machine's speed changes.
#[allow(clippy::float_arithmetic, reason = "a report")]
async fn report_server_time(server: &Server) {
    let (mut floors, mut ours) = (Vec::new(), Vec::new());
    for (name, script) in FLOORS {
        floors.push((name, Arc::new(Floor::new(server, script).await), Vec::new()));
    }
    for (name, policy, floor) in POLICIES {
        ours.push((name, floor, Arc::new(Ours::new(server, name, policy).await), Vec::new()));
    }
    for _ in 0..15 {
        for (_, floor, times) in &mut floors {
            times.push(server_time(server, floor).await);
        }
        for (_, _, policy, times) in &mut ours {
            times.push(server_time(server, policy).await);
        }
    }
    println!("server time, us a call: median (least to most), ratio to its floor's median");
    let mut medians = Vec::new();
    for (name, _, times) in &mut floors {
        let median = median(times);
        println!("{name:32} {median:6.2} ({:.2} to {:.2})", times[0], times[times.len() - 1]);
        medians.push((*name, median));
    }
    for (name, floor, _, times) in &mut ours {
        let median = median(times);
        let least = medians.iter().find(|(name, _)| name == floor).unwrap().1;
        let (low, high) = (times[0], times[times.len() - 1]);
        println!("{name:32} {median:6.2} ({low:.2} to {high:.2})  {:.2} x {floor}", median / least);
    }
}

fn report_memory(server: &Server, runtime: &Runtime) {
    server.cli(&["FLUSHALL"]);
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    println!("memory of a key: bytes by MEMORY USAGE");
    for policy in ["token_bucket 9/h", "fixed_window 9/h", "9/h", "sliding_log 10000/h"] {
        let store = runtime.block_on(Redis::connect(&server.url())).unwrap();
        let store = store.client_time(clock.clone()).timeout(Duration::from_secs(10));
        let limiter = store.limiter("m", policy.parse::<Policy>().unwrap()).unwrap();
        let mut events = 0;
        while runtime.block_on(limiter.check("k")).unwrap().is_allowed() {
            events += 1;
            clock.advance(Duration::from_micros(1));
        }
        let key = server.cli(&["--scan"]);
        let bytes = server.cli(&["MEMORY", "USAGE", &key]);
        let length = server.cli(&["STRLEN", &key]);
        println!("{policy:32} {bytes} with {events} events; the string has {length}");
        server.cli(&["FLUSHALL"]);
    }
}

fn throughput<C: Call>(criterion: &mut Criterion, runtime: &Runtime, name: &str, what: &Arc<C>) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1)).sample_size(20);
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    for tasks in [1_u64, 16, 64, 256] {
        group.bench_function(BenchmarkId::new("tasks", tasks), |bencher| {
            bencher.iter_custom(|calls| runtime.block_on(run(what, tasks, calls)));
        });
    }
    group.finish();
}

fn main() {
    let runtime = Runtime::new().unwrap();
    let server = Server::start(&[]);
    runtime.block_on(report_server_time(&server));
    report_memory(&server, &runtime);

    let mut criterion = Criterion::default().configure_from_args();
    let floor = Arc::new(runtime.block_on(Floor::new(&server, "return 1")));
    throughput(&mut criterion, &runtime, "floor: return 1", &floor);
    for (name, policy, _) in [POLICIES[0], POLICIES[3], POLICIES[6], POLICIES[8]] {
        let ours = Arc::new(runtime.block_on(Ours::new(&server, name, policy)));
        throughput(&mut criterion, &runtime, name, &ours);
    }
    criterion.final_summary();
}
