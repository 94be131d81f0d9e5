//! What the layer allocates, counted by the allocator itself. One test, so that nothing else
//! allocates at the same time.

#[path = "common/counting.rs"]
mod counting;

use counting::CALLS;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request, Response};
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use tollgate::tower::{ApiKey, ClientIp, HeaderStyle, RateLimitLayer, Trust};
use tollgate::{Limiter, Policy};
use tower::{Layer, Service};

/// Answers with a header of its own, as any service does.
#[derive(Clone)]
struct Inner;

impl Service<Request<()>> for Inner {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let mut response = Response::new(String::new());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        ready(Ok(response))
    }
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
    request.headers_mut().insert("x-api-key", HeaderValue::from_static("a"));
    request.extensions_mut().insert(SocketAddr::from(([127, 0, 0, 1], 4711)));
    request
}

/// Allocations for one request, that of the request itself apart.
fn allocations<S>(mut service: S) -> u64
where
    S: Service<Request<()>, Response = Response<String>, Error = Infallible>,
{
    let mut last = 0;
    // The first ones make room for the key.
    for _ in 0..100 {
        let request = request();
        let before = CALLS.load(Relaxed);
        let future = std::pin::pin!(service.call(request));
        let answer = future.poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(response)) = answer else { panic!("nothing is waited for") };
        last = CALLS.load(Relaxed) - before;
        assert_eq!(response.status(), 200);
    }
    last
}

fn limiter(policy: &str) -> Limiter<Policy> {
    Limiter::new(policy.parse().unwrap())
}

#[test]
fn a_request_allocates_what_its_answer_tells() {
    an_allowed_request_allocates_the_decision_and_the_header_values();
    fields_that_nobody_is_told_are_not_made();
}

fn an_allowed_request_allocates_the_decision_and_the_header_values() {
    let bare = allocations(Inner);
    for policy in ["token_bucket 1000000/s", "1000000/s; fixed_window 1000000000/d"] {
        let without = RateLimitLayer::new(limiter(policy)).headers(HeaderStyle::None);
        // The decision, as the extensions of a request box what they hold.
        assert_eq!(allocations(without.layer(Inner)) - bare, 1, "{policy}");
        // And the value of `RateLimit`; that of `RateLimit-Policy` is shared.
        let by_default = RateLimitLayer::new(limiter(policy));
        assert_eq!(allocations(by_default.layer(Inner)) - bare, 2, "{policy}");
        let by_client =
            RateLimitLayer::new(limiter(policy)).key(ClientIp::x_forwarded_for(Trust::hops(1)));
        assert_eq!(allocations(by_client.layer(Inner)) - bare, 2, "{policy}");
        let by_key = RateLimitLayer::new(limiter(policy))
            .key(ApiKey::header(HeaderName::from_static("x-api-key")));
        assert_eq!(allocations(by_key.layer(Inner)) - bare, 2, "{policy}");
    }
}

/// Limits that can be replaced are described anew for each request: of the fields, no more is made
/// than the style tells.
fn fields_that_nobody_is_told_are_not_made() {
    let bare = allocations(Inner);
    for (policy, most) in
        [("token_bucket 1000000/s", 7), ("1000000/s; fixed_window 1000000000/d", 18)]
    {
        let live = Limiter::live(policy.parse::<Policy>().unwrap());
        let without = RateLimitLayer::new(live).headers(HeaderStyle::None);
        let made = allocations(without.layer(Inner)) - bare;
        assert!(made <= most, "{policy}: {made}");
    }
}
