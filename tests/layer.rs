//! The layer around services of many kinds, without a socket.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tollgate::tower::{KeyError, KeyExtractor, PeerIp, RateLimitLayer, Refusal};
use tollgate::{
    BoxRateLimiter, Decision, Describe, Description, Limiter, Operation, Policy, PolicyState,
    RateLimiter,
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
        let decision: &Decision = request.extensions().get().expect("a decision");
        let mut response = Response::new(Full::from(format!("{} left", decision.remaining())));
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
    assert_eq!(text(refused).await, format!("Too many requests: retry after {wait} s.\n"));

    let other = service.ready().await.unwrap().call(get("192.0.2.2:1")).await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_peer_nobody_told_of_is_an_error_of_the_server() {
    let service = RateLimitLayer::new(limiter("2/h")).layer(Strict::default());
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text(response).await.contains("into_make_service_with_connect_info"));
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
        assert_eq!(text(response).await, "x-api-key is missing\n");
    }
    let request = Request::builder().header("x-api-key", "a").body(()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn refusals_are_replaced_by_a_closure_and_still_say_when_to_retry() {
    let layer = RateLimitLayer::new(limiter("strict: token_bucket 1/d"))
        .key(|_: &Request<()>| "everyone")
        .refusal(|refusal: &Refusal<'_>| {
            let mut response = Response::new(Full::from(format!("no: {}", refusal.policy)));
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

    async fn decide(&self, key: &K, operation: Operation) -> Result<Decision, Infallible> {
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
