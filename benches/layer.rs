//! What the layer adds to an allowed request: the same service without it, with it, and with what
//! axum's users commonly take.
//!
//! `cargo bench --all-features --bench layer`

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use criterion::{Criterion, criterion_group, criterion_main};
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tollgate::tower::{HeaderStyle, RateLimitLayer};
use tollgate::{Limiter, Quota, TokenBucket};
use tower::{Layer, Service};
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;

/// Does as little as a service can.
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
        ready(Ok(Response::new(Body::empty())))
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

fn run<S>(c: &mut Criterion, name: &str, mut service: S)
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: std::fmt::Debug,
{
    c.bench_function(name, |b| {
        b.iter_batched(
            request,
            |request| {
                let response = answer(service.call(request)).unwrap();
                assert_eq!(response.status(), 200);
                response
            },
            criterion::BatchSize::SmallInput,
        );
    });
}

fn layers(c: &mut Criterion) {
    let generous = || Limiter::new(TokenBucket::new(Quota::per_second(1_000_000_000)));
    run(c, "no layer", Inner);
    run(c, "tollgate", RateLimitLayer::new(generous()).layer(Inner));
    let bare = RateLimitLayer::new(generous()).headers(HeaderStyle::None);
    run(c, "tollgate, without fields", bare.layer(Inner));

    let config = || {
        let mut config = GovernorConfigBuilder::default();
        config.per_nanosecond(1).burst_size(1_000_000_000);
        config
    };
    let plain = GovernorLayer::new(Arc::new(config().finish().unwrap()));
    run(c, "tower_governor, without fields", plain.layer(Inner));
    let fields = GovernorLayer::new(Arc::new(config().use_headers().finish().unwrap()));
    run(c, "tower_governor", fields.layer(Inner));
}

criterion_group!(benches, layers);
criterion_main!(benches);
