//! What the layer tells `metrics` and `tracing`.

#[path = "common/broken.rs"]
mod broken;

use broken::Broken;
use http::{Request, Response, StatusCode};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tollgate::tower::{ApiKey, FailClosed, FailOpen, RateLimitLayer};
use tollgate::{LeakyBucket, Limiter, Policy, Quota};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

async fn inner(_: Request<()>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(String::new()))
}

/// Each request's answer, of one that costs what it is told.
fn ask(limiter: &Arc<Limiter<Policy>>, costs: &[u64]) -> Vec<StatusCode> {
    let ask = |&cost: &u64| {
        let layer = RateLimitLayer::shared(Arc::clone(limiter))
            .key(|_: &Request<()>| "k")
            .cost(move |_: &Request<()>| cost);
        let service = ServiceBuilder::new().layer(layer).service(service_fn(inner));
        futures_now(service.oneshot(Request::new(()))).status()
    };
    costs.iter().map(ask).collect()
}

fn futures_now<T>(future: impl Future<Output = Result<T, Infallible>>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let Ok(answer) = runtime.block_on(future);
    answer
}

/// One at a time: a place in the code that is first met where nobody listens may stay silent.
static TURN: Mutex<()> = Mutex::new(());

/// Every counter, by its name and labels.
fn counted(work: impl FnOnce()) -> BTreeMap<String, u64> {
    let _turn = TURN.lock().unwrap();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, work);
    let counters = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
        let labels = key.key().labels().map(|label| format!(" {}={}", label.key(), label.value()));
        let name = format!("{}{}", key.key().name(), labels.collect::<String>());
        let DebugValue::Counter(count) = value else { panic!("{name} is no counter") };
        (name, count)
    });
    counters.collect()
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is written of the events.
fn told(work: impl FnOnce()) -> String {
    let _turn = TURN.lock().unwrap();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn set() -> Arc<Limiter<Policy>> {
    Arc::new(Limiter::new(set_of_two()))
}

fn set_of_two() -> Policy {
    "few: fixed_window 3/d; many: fixed_window 5/d".parse().unwrap()
}

#[test]
fn decisions_are_counted_by_limit_and_outcome() {
    let counts = counted(|| {
        assert_eq!(ask(&set(), &[1, 1, 1, 1, 2, 4]), [200, 200, 200, 429, 429, 429]);
        let queue = LeakyBucket::new(Quota::per_second(10));
        let queue = Arc::new(Limiter::new(Policy::from(queue)));
        assert_eq!(ask(&queue, &[1, 1]), [200, 200]);
    });
    let expected = [
        ("tollgate_requests_total policy=default outcome=allowed", 1),
        ("tollgate_requests_total policy=default outcome=delayed", 1),
        ("tollgate_requests_total policy=few outcome=allowed", 3),
        ("tollgate_requests_total policy=few outcome=denied", 2),
        ("tollgate_requests_total policy=few outcome=never", 1),
    ];
    assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)).into());
}

#[test]
fn a_failing_store_is_counted_and_logged() {
    let ask_broken = || {
        let layer = || RateLimitLayer::new(Broken("out of order")).key(|_: &Request<()>| "k");
        let open = ServiceBuilder::new().layer(layer().on_store_error(FailOpen));
        let open = open.service(service_fn(inner)).oneshot(Request::new(()));
        assert_eq!(futures_now(open).status(), StatusCode::OK);
        let closed = ServiceBuilder::new().layer(layer().on_store_error(FailClosed));
        let closed = closed.service(service_fn(inner)).oneshot(Request::new(()));
        assert_eq!(futures_now(closed).status(), StatusCode::SERVICE_UNAVAILABLE);
    };
    assert_eq!(counted(ask_broken), [("tollgate_store_errors_total".to_owned(), 2)].into());
    let told = told(ask_broken);
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.lines().all(|line| line.contains(" WARN ")), "{told}");
    let line = "the rate limit cannot be checked error=out of order requests=1";
    assert!(told.contains(line), "{told}");
}

/// Asks so many times at once, and again a second later, each time by another clone of the service.
fn ask_again_and_again<S>(service: S, times: usize)
where
    S: Service<Request<()>, Error: std::fmt::Debug> + Clone,
{
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
        for _ in 0..2 {
            for _ in 0..times {
                service.clone().oneshot(Request::new(())).await.unwrap();
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    });
}

#[test]
fn a_store_that_fails_all_requests_is_logged_once_a_second() {
    let flood = || {
        let layer = RateLimitLayer::new(Broken("out of order")).key(|_: &Request<()>| "k");
        let layer = ServiceBuilder::new().layer(layer.on_store_error(FailClosed));
        ask_again_and_again(layer.service(service_fn(inner)), 1_000);
    };
    assert_eq!(counted(flood), [("tollgate_store_errors_total".to_owned(), 2_000)].into());
    let told = told(flood);
    let requests = told.lines().map(|line| line.rsplit('=').next().unwrap());
    assert_eq!(requests.collect::<Vec<_>>(), ["1", "1000"], "{told}");
}

#[test]
fn a_key_that_the_server_cannot_know_is_logged_with_what_to_do() {
    let flood = || {
        let layer = ServiceBuilder::new().layer(RateLimitLayer::new(Limiter::new(set_of_two())));
        ask_again_and_again(layer.service(service_fn(inner)), 1_000);
    };
    let counts = [("tollgate_key_errors_total status=500".to_owned(), 2_000)];
    assert_eq!(counted(flood), counts.into());
    let told = told(flood);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    for (line, requests) in lines.iter().zip([1, 1_000]) {
        assert!(line.contains(" ERROR "), "{told}");
        assert!(line.contains("into_make_service_with_connect_info"), "{told}");
        assert!(line.ends_with(&format!("requests={requests}")), "{told}");
    }
}

/// A client that leaves its key out is its own affair: it is counted, and not logged.
#[test]
fn a_key_that_the_client_leaves_out_is_counted() {
    let flood = || {
        let layer = RateLimitLayer::new(Limiter::new(set_of_two())).key(ApiKey::bearer());
        let layer = ServiceBuilder::new().layer(layer);
        ask_again_and_again(layer.service(service_fn(inner)), 10);
    };
    assert_eq!(counted(flood), [("tollgate_key_errors_total status=401".to_owned(), 20)].into());
    assert_eq!(told(flood), "");
}

#[test]
fn refusals_are_told_of_and_nothing_else() {
    let told = told(|| {
        ask(&set(), &[1, 1, 1, 1]);
    });
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("DEBUG"), "{told}");
    assert!(told.contains("refused policy=\"few\" outcome=\"denied\" retry_after=Some("), "{told}");
}
