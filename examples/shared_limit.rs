//! Two servers and one limit: together they admit exactly what it allows.
//!
//! `cargo run --features axum,redis --example shared_limit -- [redis://127.0.0.1/]`

use axum::routing::get;
use axum::{Router, serve};
use std::error::Error;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tollgate::tower::{FailClosed, RateLimitLayer};
use tollgate::{Quota, Redis, SlidingLog};

const LIMIT: u64 = 50;

/// Starts a server with a connection to Redis of its own, and returns its address.
async fn start(redis: &str, name: &str) -> Result<SocketAddr, Box<dyn Error>> {
    let redis = Redis::connect(redis).await?;
    let limiter = redis.limiter(name, SlidingLog::new(Quota::per_hour(LIMIT)))?;
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .layer(RateLimitLayer::new(limiter).on_store_error(FailClosed));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let service = app.into_make_service_with_connect_info::<SocketAddr>();
        serve(listener, service).await.expect("it serves");
    });
    Ok(address)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let redis = std::env::args().nth(1).unwrap_or("redis://127.0.0.1/".to_owned());
    // Limiters of one name share a limit. This name is new each time that the example is run.
    let name = format!("shared_limit_{}", std::process::id());
    let servers = [start(&redis, &name).await?, start(&redis, &name).await?];

    let client = reqwest::Client::new();
    let mut requests = JoinSet::new();
    for n in 0..200 {
        let request = client.get(format!("http://{}/", servers[n % 2]));
        requests.spawn(async move { (n % 2, request.send().await.map(|answer| answer.status())) });
    }
    let mut served = [0, 0];
    for (server, status) in requests.join_all().await {
        match status?.as_u16() {
            200 => served[server] += 1,
            429 => {}
            status => return Err(format!("a server answered {status}").into()),
        }
    }
    println!("of 200 requests, one server served {}, the other {}", served[0], served[1]);
    println!("together: {} of the {LIMIT} that are allowed", served[0] + served[1]);
    Ok(())
}
