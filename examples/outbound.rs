//! Calls to somebody else's API that keep to its limit: the layer around a client. Requests wait
//! for their turn, and the API never has to refuse one.
//!
//! `cargo run --features axum --example outbound`

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::{Router, routing::get};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tollgate::tower::{HeaderStyle, RateLimitLayer};
use tollgate::{LeakyBucket, Limiter, Quota, TokenBucket, retry_after};
use tower::{ServiceBuilder, ServiceExt};

/// What the API allows: 20 requests a second, 2 at once.
const API: TokenBucket = TokenBucket::new(Quota::per_second(20)).burst(2);

/// The API, here in the same process.
async fn api() -> std::io::Result<SocketAddr> {
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .layer(RateLimitLayer::new(Limiter::new(API)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = format!("http://{}/", api().await?);

    // A queue: each request has a turn of its own. A little slower than is allowed, as on the way
    // two requests may come closer together.
    let ours = LeakyBucket::new(Quota::per_second(19)).capacity(100);
    let client = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(Limiter::new(ours))
                .key(|request: &Request<Body>| request.uri().host().map(str::to_owned))
                .headers(HeaderStyle::None)
                .wait(Duration::from_secs(2)), // who would wait longer is answered 429 at once
        )
        // The layer's own answers have a text for a body, so the client's get one that can be made
        // of it.
        .map_response(|response: Response<_>| response.map(Body::new))
        .service(Client::builder(TokioExecutor::new()).build_http());

    let (start, mut refused) = (Instant::now(), 0);
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let call = client.clone().oneshot(Request::get(&url).body(Body::empty())?);
        calls.spawn(call);
    }
    while let Some(response) = calls.join_next().await {
        let response = response??;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            // If others share the API's limit: wait as it says, but not for ever, and for a second
            // if it says nothing.
            refused += 1;
            let [second, longest] = [1, 10].map(Duration::from_secs);
            let wait = retry_after(response.status(), response.headers(), longest);
            sleep(wait.unwrap_or(second).max(second)).await;
        }
    }
    println!("20 requests in {} ms, {refused} refused", start.elapsed().as_millis());
    Ok(())
}
