//! The layer in the stacks that servers and clients are made of.

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use axum::routing::{get, post};
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ORIGIN, RETRY_AFTER,
};
use http::{HeaderName, Method, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tollgate::tower::{ApiKey, HeaderStyle, RateLimitLayer, is_preflight};
use tollgate::{
    Decision, Describe, Description, Limiter, Operation, Policy, RateLimiter, TokioClock,
};
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::trace::TraceLayer;

fn limiter(policy: &str) -> Limiter<Policy> {
    Limiter::new(policy.parse().unwrap())
}

fn request() -> Request {
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 1], 4711))));
    request
}

/// The statuses and texts of so many answers.
async fn ask<S, B>(service: S, count: usize) -> Vec<(u16, String)>
where
    S: Service<Request, Response = http::Response<B>, Error: Debug> + Clone,
    B: HttpBody<Data = Bytes, Error: Debug>,
{
    let mut answers = Vec::new();
    for _ in 0..count {
        let answer = service.clone().oneshot(request()).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        answers.push((status, String::from_utf8(body.to_vec()).unwrap()));
    }
    answers
}

async fn hello<B>(_: http::Request<B>) -> Result<Response, Infallible> {
    Ok(Response::new(Body::from("hello")))
}

/// One builder with the layers that servers commonly have, in every order.
#[tokio::test]
async fn any_order_of_layers_limits() {
    let ours = || RateLimitLayer::new(limiter("1/h")).any_body();
    let (trace, zip) = (TraceLayer::new_for_http, CompressionLayer::new);
    let bound = || RequestBodyLimitLayer::new(1_000);
    macro_rules! all_limit {
        ($($($layer:ident)+),+ $(,)?) => {$(
            let service = ServiceBuilder::new()$(.layer($layer()))+.service(service_fn(hello));
            let answers = ask(service, 2).await;
            assert_eq!(answers[0], (200, "hello".to_owned()), stringify!($($layer)+));
            assert_eq!(answers[1].0, 429, stringify!($($layer)+));
            assert!(answers[1].1.contains("Quota exceeded"), stringify!($($layer)+));
        )+};
    }
    all_limit!(
        ours trace bound zip, ours trace zip bound, ours bound trace zip, ours bound zip trace,
        ours zip trace bound, ours zip bound trace, trace ours bound zip, trace ours zip bound,
        bound ours trace zip, bound ours zip trace, zip ours trace bound, zip ours bound trace,
        trace bound ours zip, trace zip ours bound, bound trace ours zip, bound zip ours trace,
        zip trace ours bound, zip bound ours trace, trace bound zip ours, trace zip bound ours,
        bound trace zip ours, bound zip trace ours, zip trace bound ours, zip bound trace ours,
        ours ours,
    );
}

/// A limit asked in front of CORS, or behind it: what a browser sees.
#[tokio::test]
async fn preflights_are_free_and_denials_are_readable_by_pages() {
    let cors = || {
        CorsLayer::new()
            .allow_origin(["https://app.example".parse().unwrap()])
            .allow_headers([HeaderName::from_static("x-api-key")])
            .expose_headers([
                RETRY_AFTER,
                HeaderName::from_static("ratelimit"),
                HeaderName::from_static("ratelimit-policy"),
            ])
    };
    let ours = || RateLimitLayer::new(limiter("1/h"));
    let app = Router::new().route("/", get(|| async { "hello" }));
    // `Router::layer`: the last one is the outermost.
    let cors_outside = app.clone().layer(ours()).layer(cors());
    let cors_inside = app.clone().layer(cors()).layer(ours().exempt(is_preflight));
    let charged = app.layer(cors()).layer(ours());

    let preflight = || {
        let mut request = request();
        *request.method_mut() = Method::OPTIONS;
        let headers = request.headers_mut();
        headers.insert(ORIGIN, "https://app.example".parse().unwrap());
        headers.insert("access-control-request-method", "GET".parse().unwrap());
        headers.insert("access-control-request-headers", "x-api-key".parse().unwrap());
        request
    };
    let from_page = || {
        let mut request = request();
        request.headers_mut().insert(ORIGIN, "https://app.example".parse().unwrap());
        request
    };
    for (app, readable) in [(&cors_outside, true), (&cors_inside, false)] {
        for _ in 0..5 {
            let answer = app.clone().oneshot(preflight()).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["access-control-allow-headers"], "x-api-key");
        }
        let served = app.clone().oneshot(from_page()).await.unwrap();
        assert_eq!(served.status(), 200);
        assert!(served.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        let denied = app.clone().oneshot(from_page()).await.unwrap();
        assert_eq!(denied.status(), 429);
        assert_eq!(denied.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), readable);
        if readable {
            let exposed = denied.headers()[ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
            assert_eq!(exposed, "retry-after,ratelimit,ratelimit-policy");
        }
    }
    assert_eq!(charged.clone().oneshot(preflight()).await.unwrap().status(), 200);
    assert_eq!(charged.oneshot(preflight()).await.unwrap().status(), 429);
}

#[test]
fn only_a_preflight_is_one() {
    let table = [
        ("OPTIONS", &["origin", "access-control-request-method"][..], true),
        ("OPTIONS", &["origin"], false),
        ("OPTIONS", &["access-control-request-method"], false),
        ("OPTIONS", &[], false),
        ("GET", &["origin", "access-control-request-method"], false),
        ("POST", &["origin", "access-control-request-method"], false),
    ];
    for (method, names, expected) in table {
        let mut request = http::Request::builder().method(method);
        for name in names {
            request = request.header(*name, "x");
        }
        assert_eq!(is_preflight(&request.body(()).unwrap()), expected, "{method} {names:?}");
    }
}

async fn serve(_: http::Request<()>) -> Result<http::Response<String>, Infallible> {
    Ok(http::Response::new(String::new()))
}

fn path(request: &http::Request<()>) -> String {
    request.uri().path().to_owned()
}

fn to(path: &str) -> http::Request<()> {
    http::Request::get(path).body(()).unwrap()
}

/// Requests that the layer holds back take nothing of the service's capacity.
#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_their_turn_hold_no_permit_of_the_service() {
    let policy: Policy = "token_bucket 1/s burst 1".parse().unwrap();
    let limiter = Limiter::with_clock(policy, TokioClock::start());
    let service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(limiter).key(path).wait(Duration::from_secs(10)))
        .layer(ConcurrencyLimitLayer::new(4))
        .service(service_fn(serve));
    let start = Instant::now();
    let mut waiting = JoinSet::new();
    for _ in 0..6 {
        let answer = service.clone().oneshot(to("/busy"));
        waiting.spawn(async move { (answer.await.unwrap().status(), start.elapsed().as_secs()) });
        tokio::task::yield_now().await;
    }
    let other = service.oneshot(to("/other")).await.unwrap();
    assert_eq!((other.status(), start.elapsed()), (StatusCode::OK, Duration::ZERO));
    let mut answers = waiting.join_all().await;
    answers.sort();
    assert_eq!(answers, [0, 1, 2, 3, 4, 5].map(|second| (StatusCode::OK, second)));
}

/// What `service` answers once it is ready, which it is at once if nobody holds its permit.
async fn answer_at_once<S>(service: &mut S, path: &str) -> StatusCode
where
    S: Service<http::Request<()>, Response = http::Response<String>, Error: Debug>,
{
    let ready = timeout(Duration::from_secs(1), service.ready()).await.expect("a permit is free");
    ready.unwrap().call(to(path)).await.unwrap().status()
}

/// A request that the layer answers itself leaves the service to others, also if the clone of the
/// service that was asked goes on to live.
#[tokio::test(start_paused = true)]
async fn a_denied_request_holds_no_permit_of_the_service() {
    let one_at_a_time = || ConcurrencyLimitLayer::new(1);
    let cost = |request: &http::Request<_>| 1 + u64::from(path(request) == "/a");
    let layer = RateLimitLayer::new(limiter("1/h")).key(path).cost(cost);
    let never = ServiceBuilder::new().layer(layer).layer(one_at_a_time());
    let mut never = never.service(service_fn(serve));
    let layer = RateLimitLayer::new(limiter("1/h")).key(path);
    let denied = ServiceBuilder::new().layer(layer).layer(one_at_a_time());
    let mut denied = denied.service(service_fn(serve));
    let layer = RateLimitLayer::new(limiter("1/h")).key(ApiKey::bearer());
    let keyless = ServiceBuilder::new().layer(layer).layer(one_at_a_time());
    let mut keyless = keyless.service(service_fn(serve));

    let mut other = never.clone();
    assert_eq!(answer_at_once(&mut never, "/a").await, 429);
    assert_eq!(answer_at_once(&mut other, "/b").await, 200);
    let mut other = denied.clone();
    assert_eq!(answer_at_once(&mut denied, "/a").await, 200);
    assert_eq!(answer_at_once(&mut denied, "/a").await, 429);
    assert_eq!(answer_at_once(&mut other, "/b").await, 200);
    let mut other = keyless.clone();
    assert_eq!(answer_at_once(&mut keyless, "/a").await, 401);
    assert_eq!(answer_at_once(&mut other, "/a").await, 401);
}

/// A limiter whose store answers for "/slow" after an hour.
struct SlowStore(Limiter<Policy>);

impl Describe for SlowStore {
    fn describe(&self) -> Vec<Description> {
        self.0.describe()
    }
}

impl RateLimiter<String> for SlowStore {
    type Error = Infallible;

    async fn decide(&self, key: &String, operation: Operation<'_>) -> Result<Decision, Infallible> {
        let hours = u64::from(key == "/slow");
        tokio::time::sleep(Duration::from_secs(3_600 * hours)).await;
        Ok(self.0.decide(key, operation))
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_store_hold_no_permit_of_the_service() {
    let service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(SlowStore(limiter("100/s"))).key(path))
        .layer(ConcurrencyLimitLayer::new(4))
        .service(service_fn(serve));
    let start = Instant::now();
    let mut waiting = JoinSet::new();
    for _ in 0..6 {
        waiting.spawn(service.clone().oneshot(to("/slow")));
        tokio::task::yield_now().await;
    }
    let other = service.oneshot(to("/other")).await.unwrap();
    assert_eq!((other.status(), start.elapsed()), (StatusCode::OK, Duration::ZERO));
    assert!(waiting.join_all().await.into_iter().all(|answer| answer.unwrap().status() == 200));
}

/// Ready once, and then broken.
#[derive(Clone)]
struct ReadyOnce(Arc<AtomicUsize>);

impl Service<http::Request<()>> for ReadyOnce {
    type Response = http::Response<String>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err("broken")),
        }
    }

    fn call(&mut self, _: http::Request<()>) -> Self::Future {
        ready(Ok(http::Response::new(String::new())))
    }
}

/// A service that was let go and is not ready again is never called: its error is the answer. A
/// denial does not ask whether it is.
#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_again_is_not_called() {
    let store = SlowStore(limiter("1/h"));
    let asked = Arc::new(AtomicUsize::new(0));
    let service = RateLimitLayer::new(store).key(path).layer(ReadyOnce(Arc::clone(&asked)));
    assert_eq!(service.clone().oneshot(to("/a")).await.unwrap_err(), "broken");
    assert_eq!(asked.swap(0, Ordering::Relaxed), 2);
    assert_eq!(service.oneshot(to("/a")).await.unwrap().status(), 429);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// A client that asks before it sends a body learns that it is denied, and sends nothing.
#[tokio::test]
async fn a_denied_upload_that_asks_first_is_answered_before_it_is_sent() {
    let app = Router::new().route("/", post(|body: Bytes| async move { body.len().to_string() }));
    let app = app.layer(RateLimitLayer::new(limiter("1/h")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    for expected in ["HTTP/1.1 100 Continue", "HTTP/1.1 429 Too Many Requests"] {
        let mut client = TcpStream::connect(address).await.unwrap();
        let head =
            "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9000000\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let mut line = String::new();
        BufReader::new(&mut client).read_line(&mut line).await.unwrap();
        assert_eq!(line.trim_end(), expected);
    }
}

/// A client of hyper, whose body (`Incoming`) no text can become.
#[tokio::test]
async fn a_client_is_limited_before_it_sends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let app = Router::new().route("/", get(|| async { "hello" }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let layer = RateLimitLayer::new(limiter("1/h"))
        .key(|request: &Request| request.uri().host().map(str::to_owned))
        .headers(HeaderStyle::None)
        .any_body();
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let client = ServiceBuilder::new().layer(layer).service(client);
    for (status, begin) in [(200, "hello"), (429, "{\"type\":")] {
        let request = http::Request::get(&url).body(Body::empty()).unwrap();
        let answer = client.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), status);
        let body = answer.into_body();
        let (hint, is_empty) = (body.size_hint().exact(), body.is_end_stream());
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!((hint, is_empty), (Some(bytes.len() as u64), false));
        assert!(bytes.starts_with(begin.as_bytes()), "{bytes:?}");
    }
}
