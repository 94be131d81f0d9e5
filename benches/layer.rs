//! What the layer adds to an allowed request: the same service without it, with it, and with what
//! axum's users commonly take.
//!
//! `cargo bench --all-features --bench layer`

#[path = "common/in_turn.rs"]
#[allow(dead_code, reason = "shared with the other comparison")]
mod in_turn;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{Request, Response};
use in_turn::{compare, print_head, repeat};
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tollgate::tower::{HeaderStyle, RateLimitLayer};
use tollgate::{Limiter, Quota, TokenBucket};
use tower::{Layer, Service};
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;

/// Does as little as a service can, which is to set one header.
#[derive(Clone)]
struct Inner;

impl Service<Request<Body>> for Inner {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        black_box(request);
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        ready(Ok(response))
    }
}

fn request() -> Request<Body> {
    let mut request = Request::new(Body::empty());
    let peer = SocketAddr::from(([192, 0, 2, 1], 4711));
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}

/// Polls a future that is done at once.
fn answer<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("nothing is waited for"),
    }
}

/// Answers so many requests, each made and dropped here; tells how long that took.
fn run<S>(service: &S, requests: u64) -> Duration
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone,
    S::Error: std::fmt::Debug,
{
    let mut service = service.clone();
    repeat(requests, || {
        let response = answer(service.call(black_box(request()))).unwrap();
        assert_eq!(black_box(response).status(), 200);
    })
}

fn main() {
    let generous = || Limiter::new(TokenBucket::new(Quota::per_hour(1_000)).burst(100_000_000));
    let ours = RateLimitLayer::new(generous()).layer(Inner);
    let ours_bare = RateLimitLayer::new(generous()).headers(HeaderStyle::None).layer(Inner);
    let config = || {
        let mut config = GovernorConfigBuilder::default();
        config.per_nanosecond(1).burst_size(1_000_000_000);
        config
    };
    let theirs = GovernorLayer::new(Arc::new(config().use_headers().finish().unwrap()));
    let theirs = theirs.layer(Inner);
    let theirs_bare = GovernorLayer::new(Arc::new(config().finish().unwrap())).layer(Inner);
    print_head();
    compare(
        "an allowed request",
        &[1],
        &[
            ("tollgate", &|_, n| run(&ours, n)),
            ("tollgate, without fields", &|_, n| run(&ours_bare, n)),
            ("tower_governor", &|_, n| run(&theirs, n)),
            ("tower_governor, without fields", &|_, n| run(&theirs_bare, n)),
            ("no layer", &|_, n| run(&Inner, n)),
        ],
    );
}
