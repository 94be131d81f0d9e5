//! Calls to somebody else's API that keep to its limit: the layer around a client. Requests wait
//! for their turn. If the API refuses one all the same, as others share its limit, no request is
//! sent to it for as long as it says.
//!
//! `cargo run --features axum --example outbound`

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, Uri};
use axum::{Router, routing::get};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
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

/// So long a client waits if the API does not say how long.
const SECOND: Duration = Duration::from_secs(1);

/// How long the API wants its client to wait: not for ever, and at least a second.
fn told_wait<B>(response: &Response<B>) -> Option<Duration> {
    let longest = Duration::from_secs(10);
    let wait = retry_after(response.status(), response.headers(), longest);
    let is_refused = wait.is_some() || response.status() == StatusCode::TOO_MANY_REQUESTS;
    is_refused.then(|| wait.unwrap_or(SECOND).max(SECOND))
}

/// Whose limit a request comes under.
fn host(uri: &Uri) -> String {
    uri.host().unwrap_or_default().to_owned()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url: Uri = format!("http://{}/", api().await?).parse()?;

    // A queue: each request has a turn of its own. A little slower than is allowed, as on the way
    // two requests may come closer together.
    let ours = Arc::new(Limiter::new(LeakyBucket::new(Quota::per_second(19)).capacity(100)));
    let layer = RateLimitLayer::shared(Arc::clone(&ours))
        .key(|request: &Request<Body>| host(request.uri()))
        .headers(HeaderStyle::None)
        .wait(Duration::from_secs(2)); // who would wait longer is answered 429 at once

    // Within the layer, where the answers are the API's own: one 429 stops all calls to its host.
    let http = Client::builder(TokioExecutor::new()).build_http();
    let client = ServiceBuilder::new().layer(layer).service_fn(move |request: Request<Body>| {
        let (http, ours) = (http.clone(), Arc::clone(&ours));
        async move {
            let host = host(request.uri());
            let response = http.request(request).await?;
            if let Some(wait) = told_wait(&response) {
                ours.pause(&host, wait);
            }
            // The layer's own answers have a text for a body, so the client's get one that can be
            // made of it.
            Ok::<_, hyper_util::client::legacy::Error>(response.map(Body::new))
        }
    });

    let start = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let (client, url) = (client.clone(), url.clone());
        calls.spawn(async move {
            for refused in 0.. {
                let request = Request::get(&url).body(Body::empty()).expect("a URL");
                let response = client.clone().oneshot(request).await?;
                match told_wait(&response) {
                    Some(wait) => sleep(wait).await,
                    None => return Ok(refused),
                }
            }
            unreachable!("it is asked again and again")
        });
    }
    let mut refused = 0;
    while let Some(call) = calls.join_next().await {
        let times: Result<u64, hyper_util::client::legacy::Error> = call?;
        refused += times?;
    }
    println!("20 requests in {} ms, {refused} refused", start.elapsed().as_millis());
    Ok(())
}
