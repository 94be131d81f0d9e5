//! The layer around services of many kinds, without a socket.

#[path = "common/broken.rs"]
mod broken;

use broken::Broken;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use proptest::prelude::*;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tollgate::tower::{
    ApiKey, FailClosed, FailOpen, Grpc, HeaderStyle, KeyError, KeyExtractor, PeerIp, PlainText,
    ProblemJson, RateLimitLayer, Refusal, Undecided,
};
use tollgate::{
    BoxRateLimiter, Decision, Describe, Description, Limiter, ManualClock, Operation, Policy,
    PolicyState, RateLimiter, Tick,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

type Body = Full<Bytes>;

fn limiter(policy: &str) -> Limiter<Policy> {
    Limiter::new(policy.parse().unwrap())
}

fn get(peer: &str) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(peer.parse::<SocketAddr>().unwrap());
    request
}

/// Echoes the decision that it finds in the request's extensions. Panics when it is called
/// without having been ready, as services may.
#[derive(Default)]
struct Strict {
    ready: bool,
}

impl Clone for Strict {
    /// Being ready is of one service, not of its clones.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<()>> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        let decision: Option<&Decision> = request.extensions().get();
        let text = decision.map_or("undecided".to_owned(), |d| format!("{} left", d.remaining()));
        let mut response = Response::new(Full::from(text));
        let own = HeaderValue::from_static("\"inner\";r=7");
        response.headers_mut().insert("ratelimit", own);
        ready(Ok(response))
    }
}

async fn text(response: Response<Body>) -> String {
    use http_body_util::BodyExt;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

fn all<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn decisions_ride_in_the_extensions_and_fields_are_appended() {
    let mut service =
        RateLimitLayer::new(limiter("token_bucket 1/h burst 2")).layer(Strict::default());

    let response = service.ready().await.unwrap().call(get("192.0.2.1:1")).await.unwrap();
    let ratelimit = all(response.headers(), "ratelimit");
    assert_eq!(ratelimit[0], "\"inner\";r=7");
    assert!(ratelimit[1].starts_with("\"default\";r=1;t="));
    assert_eq!(text(response).await, "1 left");

    assert!(service.ready().await.unwrap().call(get("192.0.2.1:2")).await.is_ok());
    let refused = service.ready().await.unwrap().call(get("192.0.2.1:3")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!refused.extensions().get::<Decision>().unwrap().is_allowed());
    let wait = refused.headers()["retry-after"].to_str().unwrap().to_owned();
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    assert_eq!(refused.headers()["cache-control"], "no-store");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text(refused).await).unwrap(),
        serde_json::json!({
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "title": "Quota exceeded",
            "status": 429,
            "detail": format!("Too many requests: retry after {wait} s."),
            "violated-policies": ["default"],
        })
    );

    let other = service.ready().await.unwrap().call(get("192.0.2.2:1")).await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_peer_nobody_told_of_is_an_error_of_the_server() {
    let service = RateLimitLayer::new(limiter("2/h")).layer(Strict::default());
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let text = text(response).await;
    assert!(text.contains("The server cannot tell whose request this is."), "{text}");
}

#[tokio::test]
async fn a_key_that_is_missing_is_answered_as_the_extractor_says() {
    #[derive(Clone)]
    struct ApiKey;

    impl<B> KeyExtractor<B> for ApiKey {
        type Key = HeaderValue;

        fn extract(&self, request: &Request<B>) -> Result<HeaderValue, KeyError> {
            let key = request.headers().get("x-api-key").cloned();
            key.ok_or_else(|| KeyError::new(StatusCode::UNAUTHORIZED, "x-api-key is missing"))
        }
    }

    let service = RateLimitLayer::new(limiter("1/h")).key(ApiKey).layer(Strict::default());
    for _ in 0..3 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(
            text(response).await,
            r#"{"title":"Unauthorized","status":401,"detail":"x-api-key is missing"}"#
        );
    }
    let request = Request::builder().header("x-api-key", "a").body(()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn refusals_are_replaced_by_a_closure_and_still_say_when_to_retry() {
    let layer = RateLimitLayer::new(limiter("strict: token_bucket 1/d"))
        .key(|_: &Request<()>| "everyone")
        .refusal(|refusal: &Refusal<'_>| {
            let mut response = Response::new(Full::from(format!("no: {}", refusal.limit.unwrap())));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
        });
    let service = layer.layer(Strict::default());
    assert_eq!(service.clone().oneshot(Request::new(())).await.unwrap().status(), 200);
    let refused = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(refused.status(), StatusCode::IM_A_TEAPOT);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(text(refused).await, "no: strict");
}

#[tokio::test]
async fn layers_stack_and_an_outer_refusal_charges_no_inner_limit() {
    let inner = Arc::new(limiter("inner: token_bucket 1/h burst 5"));
    let service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(limiter("outer: token_bucket 1/h burst 2")))
        .layer(RateLimitLayer::shared(Arc::clone(&inner)).key(|_: &Request<()>| "all"))
        .service(Strict::default());
    for expected in [200, 200, 429, 429] {
        let response = service.clone().oneshot(get("192.0.2.1:1")).await.unwrap();
        assert_eq!(response.status(), expected);
        let fields = if expected == 200 { 2 } else { 1 };
        assert_eq!(all(response.headers(), "ratelimit-policy").len(), fields);
    }
    assert_eq!(inner.peek("all").remaining(), 3);
}

/// A limiter elsewhere: it takes a while to decide.
struct Slow(Limiter<Policy, tollgate::Memory<PolicyState>>, Arc<AtomicU64>);

impl Describe for Slow {
    fn describe(&self) -> Vec<Description> {
        self.0.describe()
    }
}

impl<K: std::hash::Hash + Sync + ?Sized> RateLimiter<K> for Slow {
    type Error = Infallible;

    async fn decide(&self, key: &K, operation: Operation<'_>) -> Result<Decision, Infallible> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(self.0.decide(key, operation))
    }
}

#[tokio::test]
async fn a_limiter_that_takes_its_time_is_awaited_and_asked_once() {
    let asked = Arc::new(AtomicU64::new(0));
    let slow = Slow(limiter("token_bucket 1/h burst 2"), Arc::clone(&asked));
    let mut service = RateLimitLayer::new(slow).layer(Strict::default());
    for expected in [200, 200, 429] {
        // The service that was ready is called, not a clone of it: `Strict` would panic.
        let response = service.ready().await.unwrap().call(get("192.0.2.1:1")).await.unwrap();
        assert_eq!(response.status(), expected);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn erased_limiters_decide_in_process_and_elsewhere() {
    let asked = Arc::new(AtomicU64::new(0));
    let limiters: [BoxRateLimiter<str>; 2] = [
        BoxRateLimiter::new(limiter("2/h")),
        BoxRateLimiter::new(Slow(limiter("2/h"), Arc::clone(&asked))),
    ];
    for (limiter, in_process) in limiters.iter().zip([true, false]) {
        assert_eq!(limiter.check("a").await.unwrap().remaining(), 1);
        assert_eq!(limiter.clone().check("a").await.unwrap().remaining(), 0);
        assert_eq!(limiter.decide_now("a", Operation::Peek(1)).is_some(), in_process);
        assert_eq!(limiter.describe()[0].limit, 2);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn readiness_is_the_inner_services_and_costs_nothing() {
    #[derive(Clone)]
    struct Busy(Arc<AtomicBool>);

    impl Service<Request<()>> for Busy {
        type Response = Response<Body>;
        type Error = &'static str;
        type Future = Ready<Result<Response<Body>, &'static str>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            match self.0.load(Ordering::Relaxed) {
                true => Poll::Pending,
                false => Poll::Ready(Err("broken")),
            }
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let limiter = Arc::new(limiter("2/h"));
    let busy = Arc::new(AtomicBool::new(true));
    let layer = RateLimitLayer::shared(Arc::clone(&limiter)).key(|_: &Request<()>| "k");
    let mut service = layer.layer(Busy(Arc::clone(&busy)));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(service.poll_ready(&mut cx).is_pending());
    busy.store(false, Ordering::Relaxed);
    assert_eq!(service.poll_ready(&mut cx), Poll::Ready(Err("broken")));
    assert_eq!(limiter.peek("k").remaining(), 2);
}

#[test]
fn services_are_as_free_to_move_as_what_is_inside() {
    fn assert_free<T: Clone + Send + Sync + 'static>(_: &T) {}
    fn assert_send<T: Future + Send>(_: &T) {}
    let mut service = RateLimitLayer::new(limiter("2/h")).key(PeerIp).layer(Strict { ready: true });
    assert_free(&service);
    assert_send(&service.call(get("192.0.2.1:1")));
}

trait Ask: Service<Request<()>, Response = Response<Body>, Error = Infallible> {}
impl<S: Service<Request<()>, Response = Response<Body>, Error = Infallible>> Ask for S {}

/// All that is admitted is used up: the next request is refused.
fn exhausted<R>(refusal: R) -> impl Ask + Clone
where
    R: tollgate::tower::Refuse<Body> + Clone,
{
    let limiter = limiter("api: token_bucket 1/h burst 2");
    assert!(limiter.check_n("k", 2).is_allowed());
    RateLimitLayer::new(limiter)
        .key(|_: &Request<()>| "k")
        .cost(|request: &Request<()>| request.headers().get("x-cost").map_or(1, |_| 3))
        .refusal(refusal)
        .layer(Strict::default())
}

#[tokio::test]
async fn a_head_is_answered_without_a_body() {
    let head = || Request::head("/").body(()).unwrap();
    let problem = exhausted(ProblemJson::default()).oneshot(head()).await.unwrap();
    assert_eq!(problem.status(), 429);
    assert_eq!(problem.headers()["content-type"], "application/problem+json");
    assert_ne!(problem.headers()["content-length"], "0", "what a GET's would be");
    assert_eq!(text(problem).await, "");
    let plain = exhausted(PlainText).oneshot(head()).await.unwrap();
    assert_eq!(plain.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(text(plain).await, "");
}

#[tokio::test]
async fn what_can_never_pass_says_so_and_nothing_of_waiting() {
    let costly = || Request::get("/").header("x-cost", "3").body(()).unwrap();
    let refused = exhausted(PlainText).oneshot(costly()).await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(!refused.headers().contains_key("retry-after"));
    assert_eq!(text(refused).await, "This request costs more than its limit ever allows.\n");
    let typed = ProblemJson::with_type("https://example.com/limits");
    let refused = text(exhausted(typed).oneshot(costly()).await.unwrap()).await;
    let expected = r#"{"type":"https://example.com/limits","title":"Quota exceeded","status":429,"#;
    assert!(refused.starts_with(expected), "{refused}");
    let detail = r#""detail":"This request costs more than its limit ever allows.""#;
    assert!(refused.contains(detail), "{refused}");
}

/// `(content type of the call, content type of the answer)`
const GRPC_TYPES: [(&str, &str); 5] = [
    ("application/grpc", "application/grpc"),
    ("application/grpc-web+proto", "application/grpc-web+proto"),
    ("Application/GRPC+proto", "Application/GRPC+proto"),
    ("application/json", "application/grpc"),
    ("", "application/grpc"),
];

#[tokio::test]
async fn a_layer_that_is_marked_as_grpc_denies_by_a_status_of_grpc() {
    for ((content_type, answered), cost) in GRPC_TYPES.into_iter().flat_map(|t| [(t, 0), (t, 3)]) {
        let call = Request::post("/greeter").header("content-type", content_type);
        let call = if cost == 0 { call } else { call.header("x-cost", cost) };
        let denied = exhausted(Grpc).oneshot(call.body(()).unwrap()).await.unwrap();
        assert_eq!(denied.status(), 200);
        let headers = denied.headers().clone();
        assert_eq!(headers["content-type"], answered);
        assert_eq!(headers["grpc-status"], "8");
        let pushback = headers["grpc-retry-pushback-ms"].to_str().unwrap();
        if cost == 0 {
            let pushback: u64 = pushback.parse().unwrap();
            assert!((3_500_000..=3_600_000).contains(&pushback), "{pushback}");
        } else {
            assert_eq!(pushback, "-1");
        }
        assert!(headers["grpc-message"].to_str().unwrap().contains("request"));
        assert_eq!(text(denied).await, "");
    }
}

#[tokio::test]
async fn a_layer_that_is_marked_as_grpc_rejects_by_a_status_of_grpc() {
    let table = [(401, "16"), (403, "7"), (400, "3"), (422, "3"), (500, "13"), (503, "14")];
    for (status, code) in table {
        let status = StatusCode::from_u16(status).unwrap();
        let layer = RateLimitLayer::new(limiter("1/h")).key(NoKey(status)).refusal(Grpc);
        let service = layer.layer(Strict::default());
        let rejected = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(rejected.status(), 200);
        assert_eq!(rejected.headers()["grpc-status"], code);
        assert!(!rejected.headers().contains_key("grpc-retry-pushback-ms"));
        assert!(!rejected.headers().contains_key("retry-after"), "only a store says when");
    }
}

/// A key that no request has.
#[derive(Copy, Clone)]
struct NoKey(StatusCode);

impl<B> KeyExtractor<B> for NoKey {
    type Key = ();

    fn extract(&self, _: &Request<B>) -> Result<(), KeyError> {
        Err(KeyError::new(self.0, "none"))
    }
}

/// Why a request is not passed on.
#[derive(Copy, Clone, Debug)]
enum Why {
    Denied,
    Never,
    NoKey(StatusCode),
    StoreFails,
    /// The operator's own answer leaves the status at 200.
    StoreFailsAndIsAnswered,
}

impl Why {
    async fn ask<R>(self, refusal: R, request: Request<()>) -> Response<Body>
    where
        R: tollgate::tower::Refuse<Body> + Clone,
    {
        let failing = || RateLimitLayer::new(Broken("broken")).key(|_: &Request<()>| "k");
        let answer = match self {
            Self::Denied => exhausted(refusal).oneshot(request).await,
            Self::Never => {
                let layer = RateLimitLayer::new(limiter("1/h")).key(|_: &Request<()>| "k");
                let layer = layer.cost(|_: &Request<()>| 2).refusal(refusal);
                layer.layer(Strict::default()).oneshot(request).await
            }
            Self::NoKey(status) => {
                let layer = RateLimitLayer::new(limiter("1/h")).key(NoKey(status));
                layer.refusal(refusal).layer(Strict::default()).oneshot(request).await
            }
            Self::StoreFails => {
                let layer = failing().on_store_error(FailClosed).refusal(refusal);
                layer.layer(Strict::default()).oneshot(request).await
            }
            Self::StoreFailsAndIsAnswered => {
                let layer = failing().refusal(refusal);
                let layer = layer.on_store_error(|_: &std::io::Error| {
                    Undecided::Answer(Response::new(Full::from("not now")))
                });
                layer.layer(Strict::default()).oneshot(request).await
            }
        };
        answer.unwrap()
    }
}

fn whys() -> impl Strategy<Value = (Why, u16)> {
    prop_oneof![
        Just((Why::Denied, 429)),
        Just((Why::Never, 429)),
        (100_u16..600).prop_map(|status| {
            let answered = if status < 400 { 500 } else { status };
            (Why::NoKey(StatusCode::from_u16(status).unwrap()), answered)
        }),
        Just((Why::StoreFails, 503)),
        Just((Why::StoreFailsAndIsAnswered, 503)),
    ]
}

/// Requests that say anything of themselves.
fn requests() -> impl Strategy<Value = Request<()>> {
    let method = prop_oneof!["GET|HEAD|POST|OPTIONS|CONNECT|PRI", "[A-Z]{1,9}"];
    let version =
        prop_oneof![Just(Version::HTTP_10), Just(Version::HTTP_11), Just(Version::HTTP_2)];
    let name = "content-type|te|accept|grpc-status|grpc-timeout|upgrade|x-http-method-override|\
                expect|origin|access-control-request-method|status|x-[a-z]{1,5}";
    let value = "application/(grpc|GRPC|grpc-web)[+;a-z]{0,9}|trailers|100-continue|[!-~]{0,20}";
    let headers = prop::collection::vec((name, value), 0..6);
    (method, version, "/[a-z./%?]{0,12}", headers).prop_map(|(method, version, path, headers)| {
        let mut request = Request::builder().method(&*method).version(version).uri(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A gateway lets a request through if the answer means success.
    #[test]
    fn no_request_that_is_not_passed_on_is_answered_by_success(
        request in requests(),
        (why, status) in whys(),
    ) {
        let closure = |_: &Refusal<'_>| Response::new(Full::from("slow down"));
        let answers = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let answers = answers.block_on(async {
            [
                why.ask(ProblemJson::default(), request.clone()).await,
                why.ask(PlainText, request.clone()).await,
                why.ask(closure, request.clone()).await,
            ]
        });
        for answer in answers {
            prop_assert_eq!(answer.status().as_u16(), status, "{:?} {:?}", why, request);
            prop_assert!(!answer.headers().contains_key("grpc-status"));
            let own = matches!(why, Why::StoreFailsAndIsAnswered);
            prop_assert_eq!(answer.headers().contains_key("cache-control"), !own);
        }
    }
}

#[tokio::test]
async fn a_closure_answers_whatever_is_not_passed_on() {
    let teapot = |refusal: &Refusal<'_>| {
        let text = format!("{} {} {:?}", refusal.status, refusal.detail(), refusal.limit);
        let mut response = Response::new(Full::from(text));
        if refusal.headers.contains_key("x-teapot") && refusal.method == Method::GET {
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
        }
        response
    };
    let key = Why::NoKey(StatusCode::PAYMENT_REQUIRED);
    let table = [
        (Why::Never, 429, "429 Too Many Requests This request costs more"),
        (key, 402, "402 Payment Required none None"),
        (Why::StoreFails, 503, "503 Service Unavailable The rate limit cannot be checked"),
    ];
    for (why, status, begin) in table {
        let plain = why.ask(teapot, Request::new(())).await;
        assert_eq!(plain.status(), status);
        let text = text(plain).await;
        assert!(text.starts_with(begin), "{text}");
        let wants_tea = Request::get("/").header("x-teapot", "1").body(()).unwrap();
        assert_eq!(why.ask(teapot, wants_tea).await.status(), 418);
    }
}

#[tokio::test]
async fn requests_cost_what_they_cost_and_the_exempt_nothing() {
    let limiter = Arc::new(limiter("10/h"));
    let service = RateLimitLayer::shared(Arc::clone(&limiter))
        .key(|_: &Request<()>| "k")
        .cost(|request: &Request<()>| request.uri().path().len() as u64)
        .exempt(|request: &Request<()>| request.uri().path() == "/health")
        .layer(Strict::default());
    let ask = async |path: &str| {
        let request = Request::get(path).body(()).unwrap();
        service.clone().oneshot(request).await.unwrap()
    };
    assert_eq!(ask("/four").await.status(), 200);
    assert_eq!(limiter.peek("k").remaining(), 5);
    assert_eq!(ask("/sixsix").await.status(), 429);
    for _ in 0..20 {
        let answer = ask("/health").await;
        assert_eq!(answer.status(), 200);
        assert!(all(answer.headers(), "ratelimit-policy").is_empty());
        assert_eq!(text(answer).await, "undecided");
    }
    assert_eq!(limiter.peek("k").remaining(), 5);
}

/// The limit with the longest wait is named, though another has one more unit sooner.
#[tokio::test]
async fn a_refusal_tells_its_retry_after_as_t() {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let policy: Policy = "a: token_bucket 10/h; b: token_bucket 1/s burst 5".parse().unwrap();
    let service = RateLimitLayer::new(Limiter::with_clock(policy, clock.clone()))
        .key(|_: &Request<()>| "k")
        .cost(|request: &Request<()>| request.uri().path().len() as u64 - 1)
        .layer(Strict::default());
    for (seconds, path, ratelimit, retry_after) in [
        (0, "/four", r#""b";r=1;t=1"#, None),
        (3, "/to", r#""b";r=2;t=1"#, None),
        (0, "/fives", r#""a";r=2;t=357"#, Some("357")),
        (0, "/six", r#""b";r=2;t=1"#, Some("1")),
        (0, "/sixsix", r#""b";r=2;t=1"#, None),
    ] {
        clock.advance(Duration::from_secs(seconds));
        let request = Request::get(path).body(()).unwrap();
        let answer = service.clone().oneshot(request).await.unwrap();
        let headers = answer.headers();
        assert_eq!(all(headers, "ratelimit").last(), Some(&ratelimit), "{path}");
        assert_eq!(all(headers, "retry-after").first().copied(), retry_after, "{path}");
    }
}

/// Whatever the style, and whichever is said first.
#[tokio::test]
async fn the_unit_of_the_quota_is_told() {
    let layer = || RateLimitLayer::new(limiter("egress: token_bucket 65535/10s"));
    for (style, policy) in [
        (HeaderStyle::Draft11, r#""egress";q=65535;qu="content-bytes";w=10"#),
        (HeaderStyle::Draft7, "65535;w=10"),
    ] {
        for layer in [
            layer().quota_unit("content-bytes").headers(style),
            layer().headers(style).quota_unit("content-bytes"),
        ] {
            let layer = layer.cost(|_: &Request<()>| 1_500);
            let answer = layer.layer(Strict::default()).oneshot(get("192.0.2.1:1")).await.unwrap();
            assert_eq!(all(answer.headers(), "ratelimit-policy"), [policy]);
        }
    }
    let live = Limiter::live("egress: token_bucket 65535/10s".parse::<Policy>().unwrap());
    let service = RateLimitLayer::new(live).quota_unit("content-bytes").layer(Strict::default());
    let answer = service.oneshot(get("192.0.2.1:1")).await.unwrap();
    let policy = r#""egress";q=65535;qu="content-bytes";w=10"#;
    assert_eq!(all(answer.headers(), "ratelimit-policy"), [policy]);
}

#[tokio::test]
async fn each_tier_has_its_own_limit_and_tells_it() {
    let tiers = [limiter("free: 1/h"), limiter("pro: 3/h")];
    let service = RateLimitLayer::choosing(tiers, |request: &Request<()>| {
        request.headers().get("x-tier").map_or(0, |tier| tier.to_str().unwrap().parse().unwrap())
    })
    .key(|_: &Request<()>| "k")
    .layer(Strict::default());
    let ask = async |tier: &str| {
        let request = Request::get("/").header("x-tier", tier).body(()).unwrap();
        service.clone().oneshot(request).await.unwrap()
    };
    for (tier, name, admitted) in [("0", "free", 1), ("1", "pro", 3)] {
        for n in 0..5 {
            let answer = ask(tier).await;
            assert_eq!(answer.status(), if n < admitted { 200 } else { 429 }, "{tier} {n}");
            let policies = all(answer.headers(), "ratelimit-policy");
            let ours = format!("\"{name}\";q={admitted};w=3600");
            assert!(policies.contains(&ours.as_str()), "{policies:?}");
        }
    }
    let answer = ask("2").await;
    assert_eq!(answer.status(), 500);
    assert!(!text(answer).await.contains("limiter"), "the client is told nothing of the setup");
}

/// A client that hangs up while it waits in a queue: departures behind it have been promised.
#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_departure_to_be_promised_twice() {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let policy: Policy = "leaky_bucket 1/min capacity 10".parse().unwrap();
    let limiter = Arc::new(Limiter::with_clock(policy, clock));
    let service = RateLimitLayer::shared(Arc::clone(&limiter))
        .key(|_: &Request<()>| "k")
        .wait(Duration::from_secs(3_600))
        .layer(Strict::default());
    assert_eq!(service.clone().oneshot(Request::new(())).await.unwrap().status(), 200);
    let mut waiting: Vec<_> =
        (0..3).map(|_| Box::pin(service.clone().oneshot(Request::new(())))).collect();
    for request in &mut waiting {
        let polled = tokio::time::timeout(Duration::from_millis(1), request).await;
        assert!(polled.is_err(), "it waits for minutes");
    }
    drop(waiting.remove(1));
    assert_eq!(limiter.check("k").delay(), Duration::from_secs(240));
    drop(waiting.pop());
    assert_eq!(limiter.check("k").delay(), Duration::from_secs(300));
}

#[tokio::test]
async fn requests_wait_for_their_turn_up_to_a_bound() {
    let waiting = |policy: &str, longest: u64| {
        RateLimitLayer::new(limiter(policy))
            .key(|_: &Request<()>| "k")
            .wait(Duration::from_millis(longest))
            .layer(Strict::default())
    };
    async fn ask(service: &(impl Ask + Clone)) -> (u16, Duration) {
        let start = std::time::Instant::now();
        let answer = service.clone().oneshot(Request::new(())).await.unwrap();
        (answer.status().as_u16(), start.elapsed())
    }
    for policy in ["token_bucket 20/s burst 1", "leaky_bucket 20/s capacity 5"] {
        let service = waiting(policy, 2_000);
        for n in 0..6 {
            let (status, waited) = ask(&service).await;
            assert_eq!(status, 200, "{policy}");
            assert!(n == 0 || waited > Duration::from_millis(20), "{policy}: {waited:?}");
        }
    }
    for policy in ["token_bucket 1/h", "leaky_bucket 1/h capacity 2"] {
        let service = waiting(policy, 100);
        assert_eq!(ask(&service).await.0, 200);
        for _ in 0..5 {
            let (status, waited) = ask(&service).await;
            assert_eq!(status, 429, "{policy}");
            assert!(waited < Duration::from_millis(90), "what is too late is told at once");
        }
    }
}

#[tokio::test]
async fn a_failing_store_is_met_as_was_chosen() {
    let layer = || RateLimitLayer::new(Broken("broken")).key(|_: &Request<()>| "k");
    let open = layer().on_store_error(FailOpen).layer(Strict::default());
    let answer = open.oneshot(Request::new(())).await.unwrap();
    assert_eq!((answer.status(), all(answer.headers(), "ratelimit").len()), (StatusCode::OK, 1));

    let closed = layer().on_store_error(FailClosed).layer(Strict::default());
    let answer = closed.oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");

    let call = Request::post("/").header("content-type", "application/grpc").body(()).unwrap();
    let closed = layer().on_store_error(FailClosed).refusal(Grpc).layer(Strict::default());
    let answer = closed.oneshot(call).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["grpc-status"], "14");
    assert_eq!(answer.headers()["grpc-retry-pushback-ms"], "1000");

    let own = layer()
        .on_store_error(|error: &std::io::Error| {
            Undecided::Answer(Response::new(Full::from(format!("own: {error}"))))
        })
        .layer(Strict::default());
    assert_eq!(text(own.oneshot(Request::new(())).await.unwrap()).await, "own: broken");
}

/// An operator who answers as gRPC, or sets a status of the own, is taken at the word.
#[tokio::test]
async fn an_answer_of_grpc_keeps_its_status() {
    fn grpc<T>(_: &T) -> Response<Body> {
        let mut response = Response::new(Full::default());
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("8"));
        response
    }
    let denied = exhausted(|refusal: &Refusal<'_>| grpc(refusal)).oneshot(Request::new(()));
    assert_eq!(denied.await.unwrap().status(), 200);
    let failing = RateLimitLayer::new(Broken("broken")).key(|_: &Request<()>| "k");
    let failing = failing.on_store_error(|error: &std::io::Error| Undecided::Answer(grpc(error)));
    let answer = failing.layer(Strict::default()).oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// RFC 9110, section 11.6.1.
#[tokio::test]
async fn a_401_has_a_challenge_whatever_makes_the_answer() {
    async fn ask<M>(key: ApiKey<M>, expected: &str)
    where
        ApiKey<M>: KeyExtractor<(), Key: std::hash::Hash + Send + Sync + 'static> + Clone,
    {
        let own = |_: &Refusal<'_>| Response::new(Full::from("no"));
        let layer = || RateLimitLayer::new(limiter("1/h")).key(key.clone());
        let answers = [
            layer().layer(Strict::default()).oneshot(Request::new(())).await.unwrap(),
            layer().refusal(own).layer(Strict::default()).oneshot(Request::new(())).await.unwrap(),
            layer().refusal(Grpc).layer(Strict::default()).oneshot(Request::new(())).await.unwrap(),
        ];
        for (answer, status) in answers.into_iter().zip([401, 401, 200]) {
            assert_eq!(answer.status(), status);
            assert_eq!(all(answer.headers(), "www-authenticate"), [expected]);
        }
    }
    ask(ApiKey::bearer(), "Bearer realm=\"api\"").await;
    let by_header = ApiKey::header(HeaderName::from_static("x-api-key"));
    ask(by_header, "ApiKey header=\"x-api-key\"").await;
}

/// Limits that differ by key, and limits that are replaced: the fields tell those that hold.
#[tokio::test]
async fn the_fields_tell_the_limits_that_hold_for_the_key() {
    let [free, pro] =
        ["free: fixed_window 2/d", "pro: fixed_window 5/d; pro-hour: sliding_log 4/h"]
            .map(|policy| Arc::new(policy.parse::<Policy>().unwrap()));
    let tiers = move |user: &u64| Arc::clone(if *user < 10 { &free } else { &pro });
    let limiter = Limiter::per_key(tiers);
    let key = |request: &Request<()>| request.uri().path()[1..].parse::<u64>().unwrap();
    let service = RateLimitLayer::new(limiter).key(key).layer(Strict::default());
    let ask = async |user: &str| {
        let mut request = Request::new(());
        *request.uri_mut() = user.parse().unwrap();
        service.clone().oneshot(request).await.unwrap()
    };
    let free = ask("/1").await;
    assert_eq!(all(free.headers(), "ratelimit-policy"), ["\"free\";q=2;w=86400"]);
    assert!(all(free.headers(), "ratelimit")[1].starts_with("\"free\";r=1;t="));
    for left in (0..4).rev() {
        let pro = ask("/11").await;
        let policy = "\"pro\";q=5;w=86400, \"pro-hour\";q=4;w=3600";
        assert_eq!(all(pro.headers(), "ratelimit-policy"), [policy]);
        let ratelimit = format!("\"pro-hour\";r={left};t=");
        assert!(all(pro.headers(), "ratelimit")[1].starts_with(&ratelimit));
    }
    let refused = ask("/11").await;
    assert_eq!(refused.status(), 429);
    assert!(text(refused).await.contains("\"pro-hour\""));

    let live = Arc::new(Limiter::live("old: fixed_window 3/d".parse::<Policy>().unwrap()));
    for layer in [
        RateLimitLayer::shared(Arc::clone(&live)),
        RateLimitLayer::shared(Arc::clone(&live)).wait(Duration::from_millis(1)),
    ] {
        let service = layer.layer(Strict::default());
        live.replace("old: fixed_window 3/d".parse().unwrap());
        let before = service.clone().oneshot(get("192.0.2.1:1")).await.unwrap();
        assert_eq!(all(before.headers(), "ratelimit-policy"), ["\"old\";q=3;w=86400"]);
        live.replace("new: fixed_window 9/d".parse().unwrap());
        let after = service.oneshot(get("192.0.2.1:1")).await.unwrap();
        assert_eq!(all(after.headers(), "ratelimit-policy"), ["\"new\";q=9;w=86400"]);
    }
    assert_eq!(live.peek(&std::net::IpAddr::from([192, 0, 2, 1])).remaining(), 5);
}

/// Requests that wait go in the order in which they came.
#[tokio::test(start_paused = true)]
async fn requests_wait_in_turn() {
    let clock = tollgate::TokioClock::start();
    let limiter =
        Limiter::with_clock("token_bucket 10/s burst 2".parse::<Policy>().unwrap(), clock);
    let service = RateLimitLayer::new(limiter)
        .cost(|request: &Request<()>| request.uri().path().len() as u64 - 1)
        .wait(Duration::from_millis(450))
        .layer(Strict::default());
    let start = tokio::time::Instant::now();
    let mut asked = tokio::task::JoinSet::new();
    for (n, path) in ["/aa", "/aa", "/b", "/cc", "/b"].into_iter().enumerate() {
        let mut request = get("192.0.2.1:1");
        *request.uri_mut() = path.parse().unwrap();
        let answer = service.clone().oneshot(request);
        asked.spawn(async move { (n, answer.await.unwrap().status().as_u16(), start.elapsed()) });
        tokio::task::yield_now().await;
    }
    let mut answers = Vec::new();
    while let Some(answer) = asked.join_next().await {
        let (n, status, after) = answer.unwrap();
        answers.push((n, status, after.as_millis()));
    }
    // The fourth would wait for 500 ms: it is refused at once, and the fifth takes its place.
    assert_eq!(answers, [(0, 200, 0), (3, 429, 0), (1, 200, 200), (2, 200, 300), (4, 200, 400)]);
}
