//! A guarded axum server.
//!
//! ```text
//! cargo run --release --features axum --example server -- \
//!     [--listen 127.0.0.1:3000] [--policy POLICY] [--key peer|global|path|header:NAME] \
//!     [--redis URL | --redis-cluster URL,URL,...] [--on-store-error open|closed]
//! ```
//!
//! With `--redis` (and `--features axum,redis-cluster`) all servers on one Redis share the limit.
//!
//! | route | |
//! |---|---|
//! | `GET /` | says hello |
//! | `GET /u/{id}` | says hello to one of many |
//! | `POST /echo` | returns the body |
//! | `GET /hits` | how often the handlers above ran; not limited |
//!
//! It speaks HTTP/1.1 and HTTP/2 (without TLS, by prior knowledge).

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, Request};
use axum::routing::{get, post};
use axum::{Router, serve};
use clap::{Parser, ValueEnum};
use std::error::Error;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tollgate::tower::{
    FailClosed, FailOpen, KeyError, KeyExtractor, OnStoreError, PeerIp, RateLimitLayer, Undecided,
};
use tollgate::{BoxRateLimiter, Limiter, Policy};

/// A guarded server: every client gets what the policy allows, and 429 beyond that.
#[derive(Parser)]
struct Args {
    /// The address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,

    /// What each key may do, such as "100/minute" or "10/s; fixed_window 5000/day".
    #[arg(long, default_value = "token_bucket 1/2s burst 3")]
    policy: Policy,

    /// Whose budget a request is charged to: peer, global, path or header:NAME.
    #[arg(long, value_name = "KEY", default_value = "peer")]
    key: KeyBy,

    /// Share the limit with all servers on this Redis, such as redis://127.0.0.1/.
    #[arg(long, value_name = "URL", conflicts_with = "redis_cluster")]
    redis: Option<String>,

    /// Share the limit with all servers on the Redis Cluster of these nodes.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    redis_cluster: Vec<String>,

    /// What to do with requests while Redis fails: pass them on, or answer 503.
    #[arg(long, value_name = "CHOICE", default_value = "closed")]
    on_store_error: Fail,
}

#[derive(Copy, Clone, ValueEnum)]
enum Fail {
    Open,
    Closed,
}

impl<E: Display, B: From<String>> OnStoreError<E, B> for Fail {
    fn on_store_error(&self, error: &E) -> Undecided<B> {
        eprintln!("{error}");
        match self {
            Self::Open => FailOpen.on_store_error(error),
            Self::Closed => FailClosed.on_store_error(error),
        }
    }
}

#[derive(Clone)]
enum KeyBy {
    Peer,
    Global,
    Path,
    Header(HeaderName),
}

impl FromStr for KeyBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("header:")) {
            ("peer", _) => Ok(Self::Peer),
            ("global", _) => Ok(Self::Global),
            ("path", _) => Ok(Self::Path),
            (_, Some(name)) => match name.parse() {
                Ok(name) => Ok(Self::Header(name)),
                Err(_) => Err(format!("{name:?} cannot be the name of a header")),
            },
            _ => Err("expected peer, global, path or header:NAME".to_owned()),
        }
    }
}

/// An enum, so that no path or header can pass for an address.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Peer(IpAddr),
    Global,
    Path(String),
    Header(HeaderValue),
}

#[cfg(feature = "redis")]
impl tollgate::RedisKey for Key {
    fn write_to(&self, key: &mut Vec<u8>) {
        match self {
            Self::Peer(address) => ("peer", address).write_to(key),
            Self::Global => "global".write_to(key),
            Self::Path(path) => ("path", path).write_to(key),
            Self::Header(value) => ("header", value.as_bytes()).write_to(key),
        }
    }
}

impl<B> KeyExtractor<B> for KeyBy {
    type Key = Key;

    fn extract(&self, request: &Request<B>) -> Result<Key, KeyError> {
        let peer = || PeerIp.extract(request).map(Key::Peer);
        match self {
            Self::Peer => peer(),
            Self::Global => Ok(Key::Global),
            Self::Path => Ok(Key::Path(request.uri().path().to_owned())),
            // Who sends no such header shares the budget of its address.
            Self::Header(name) => {
                request.headers().get(name).cloned().map(Key::Header).map_or_else(peer, Ok)
            }
        }
    }
}

/// How often the guarded handlers ran.
#[derive(Clone, Default)]
struct Hits(Arc<AtomicU64>);

impl Hits {
    fn count<T>(&self, answer: T) -> T {
        self.0.fetch_add(1, Ordering::Relaxed);
        answer
    }
}

/// The limiter, in this process or in Redis.
async fn limiter(args: &Args) -> Result<BoxRateLimiter<Key>, Box<dyn Error>> {
    let policy = args.policy.clone();
    if args.redis.is_none() && args.redis_cluster.is_empty() {
        return Ok(BoxRateLimiter::new(Limiter::new(policy)));
    }
    #[cfg(feature = "redis-cluster")]
    {
        let nodes: Vec<&str> = args.redis_cluster.iter().map(String::as_str).collect();
        let store = match &args.redis {
            Some(url) => tollgate::Redis::connect(url).await?,
            None => tollgate::Redis::connect_cluster(&nodes).await?,
        };
        Ok(BoxRateLimiter::new(Limiter::with_store(policy, store)))
    }
    #[cfg(not(feature = "redis-cluster"))]
    Err("this server was built without Redis: add --features redis-cluster".into())
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let limit = RateLimitLayer::new(limiter(&args).await?)
        .key(args.key)
        .on_store_error(args.on_store_error);
    let app = Router::new()
        .route("/", get(hello))
        .route("/u/{id}", get(hello_user))
        .route("/echo", post(echo))
        .layer(limit)
        // Added after the layer, and so not limited.
        .route("/hits", get(hits))
        .with_state(Hits::default());

    let listener = TcpListener::bind(args.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

async fn hello(State(hits): State<Hits>) -> &'static str {
    hits.count("hello\n")
}

async fn hello_user(State(hits): State<Hits>, Path(id): Path<String>) -> String {
    hits.count(format!("hello {id}\n"))
}

async fn echo(State(hits): State<Hits>, body: Bytes) -> Bytes {
    hits.count(body)
}

async fn hits(State(hits): State<Hits>) -> String {
    hits.0.load(Ordering::Relaxed).to_string()
}
