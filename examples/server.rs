//! A guarded axum server.
//!
//! ```text
//! cargo run --release --features axum --example server -- \
//!     [--listen 127.0.0.1:3000] [--policy POLICY] [--key peer|global|path|header:NAME] \
//!     [--trust CIDR ... | --hops N] [--forwarded HEADER] [--ipv6-prefix N] \
//!     [--name NAME] [--headers STYLE] [--wait MS] [--cost-header NAME] \
//!     [--redis URL | --redis-cluster URL,URL,...] [--on-store-error open|closed]
//! ```
//!
//! `--help` tells what each does.
//!
//! With `--redis` (and `--features axum,redis`, or `redis-cluster` for a cluster) all servers with one
//! `--name` on one Redis share the limit.
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
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use std::error::Error;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::num::{IntErrorKind, ParseIntError};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tollgate::tower::{
    ApiKey, ClientIp, FailClosed, FailOpen, HeaderStyle, KeyError, KeyExtractor, KeyOr,
    MatchedRoute, OnStoreError, RateLimitLayer, Route, Trust, Undecided,
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

    /// Whose budget a request is charged to: peer (the client's address), global, path (however it
    /// is spelled; what takes no route shares one) or header:NAME.
    #[arg(long, value_name = "KEY", default_value = "peer")]
    key: KeyBy,

    /// Networks of reverse proxies that may say whose request it is; may be given again.
    #[arg(long, value_name = "CIDR", value_parser = network, group = "proxies")]
    trust: Vec<IpNet>,

    /// How many reverse proxies are in front, whatever their addresses. Where the header has one
    /// address only, there is nothing to count: any peer is believed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..), group = "proxies")]
    hops: Option<u8>,

    /// The header in which the proxies say it: x-forwarded-for, forwarded, or another with one
    /// address. It goes with --trust or --hops.
    #[arg(long, value_name = "HEADER", default_value = "x-forwarded-for", requires = "proxies")]
    forwarded: HeaderName,

    /// How many bits of an IPv6 address tell one client from another.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    ipv6_prefix: u8,

    /// The limiter's name in Redis, "default" without it: servers with one name share a limit. A
    /// policy of one limit is also called so in the answers.
    #[arg(long)]
    name: Option<String>,

    /// The fields of the answers.
    #[arg(long, value_name = "STYLE", default_value = "draft-11")]
    headers: Style,

    /// Hold requests back for so many milliseconds at most, instead of refusing them.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    wait: u64,

    /// A request header with the units that a request costs; 1 without it.
    #[arg(long, value_name = "NAME")]
    cost_header: Option<HeaderName>,

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

impl<E: Display, B> OnStoreError<E, B> for Fail {
    fn on_store_error(&self, error: &E) -> Undecided<B> {
        report(error);
        match self {
            Self::Open => FailOpen.on_store_error(error),
            Self::Closed => FailClosed.on_store_error(error),
        }
    }
}

/// Prints an error, at most one a second: while Redis fails, each request has one.
fn report(error: &impl Display) {
    static REPORTED_AT: Mutex<Option<Instant>> = Mutex::new(None);
    let mut reported_at = REPORTED_AT.lock().expect("nothing panics here");
    if reported_at.is_none_or(|reported_at| reported_at.elapsed() >= Duration::from_secs(1)) {
        *reported_at = Some(Instant::now());
        eprintln!("{error}");
    }
}

#[derive(Copy, Clone, ValueEnum)]
enum Style {
    #[value(name = "draft-11")]
    Draft11,
    #[value(name = "draft-7")]
    Draft7,
    #[value(name = "draft-6")]
    Draft6,
    LegacyEpoch,
    LegacyDelta,
    None,
}

impl From<Style> for HeaderStyle {
    fn from(style: Style) -> Self {
        match style {
            Style::Draft11 => Self::Draft11,
            Style::Draft7 => Self::Draft7,
            Style::Draft6 => Self::Draft6,
            Style::LegacyEpoch => Self::LegacyEpoch,
            Style::LegacyDelta => Self::LegacyDelta,
            Style::None => Self::None,
        }
    }
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into()));
    network.map_err(|_| "expected an address or a network, such as 10.0.0.0/8".to_owned())
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

/// An enum, so that no path or header can pass for an address. A path is told by the route that it
/// takes and by what it says once it is decoded; all that takes none says nothing.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Global,
    Path(Route, Vec<u8>),
    Header(HeaderValue),
}

#[cfg(feature = "redis")]
impl tollgate::RedisKey for Key {
    fn write_to(&self, key: &mut Vec<u8>) {
        match self {
            Self::Address(address) => ("address", address).write_to(key),
            Self::Global => "global".write_to(key),
            Self::Path(route, path) => ("path", route, &path[..]).write_to(key),
            Self::Header(value) => ("header", value.as_bytes()).write_to(key),
        }
    }
}

/// Whose request it is, by the kind of key and by the address.
#[derive(Clone)]
struct ServerKey {
    by: KeyBy,
    client: ClientIp,
}

impl ServerKey {
    fn new(args: &Args) -> Self {
        let trust = match args.hops {
            Some(hops) => Trust::hops(hops.into()),
            None => Trust::proxies(args.trust.clone()),
        };
        let client = match args.forwarded.as_str() {
            _ if args.hops.is_none() && args.trust.is_empty() => ClientIp::peer(),
            "x-forwarded-for" => ClientIp::x_forwarded_for(trust),
            "forwarded" => ClientIp::forwarded(trust),
            _ => ClientIp::header(args.forwarded.clone(), trust),
        };
        Self { by: args.key.clone(), client: client.ipv6_prefix(args.ipv6_prefix) }
    }
}

impl<B> KeyExtractor<B> for ServerKey {
    type Key = Key;

    fn extract(&self, request: &Request<B>) -> Result<Key, KeyError> {
        let address = || self.client.extract(request).map(Key::Address);
        match &self.by {
            KeyBy::Peer => address(),
            KeyBy::Global => Ok(Key::Global),
            KeyBy::Path => {
                let route = MatchedRoute.extract(request)?;
                let path = route.path().map(|_| percent_decode_str(request.uri().path()).collect());
                Ok(Key::Path(route, path.unwrap_or_default()))
            }
            // A request without the header shares the budget of its address.
            KeyBy::Header(name) => {
                let key = ApiKey::header(name.clone()).or(self.client.clone()).extract(request)?;
                Ok(match key {
                    KeyOr::Key(value) => Key::Header(value),
                    KeyOr::Missing(address) => Key::Address(address),
                })
            }
        }
    }
}

/// The units that the header of this name tells; 1 where it tells none. A number too large is the
/// largest.
fn cost<B>(request: &Request<B>, name: Option<&HeaderName>) -> u64 {
    let value = name.and_then(|name| request.headers().get(name)?.to_str().ok());
    value.map_or(1, |value| {
        value.parse().unwrap_or_else(|error: ParseIntError| match error.kind() {
            IntErrorKind::PosOverflow => u64::MAX,
            _ => 1,
        })
    })
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
    let mut policy = args.policy.clone();
    let is_in_redis = args.redis.is_some() || !args.redis_cluster.is_empty();
    if let Some(name) = &args.name {
        match policy.limits() {
            [limit] => policy = limit.clone().named(name)?.into(),
            _ if is_in_redis => {}
            _ => {
                return Err(
                    "--name is for Redis, or a policy of one limit: write \"NAME: ...\" in it"
                        .into(),
                );
            }
        }
    }
    if !is_in_redis {
        return Ok(BoxRateLimiter::new(Limiter::new(policy)));
    }
    #[cfg(feature = "redis")]
    if let Some(redis) = connect(args).await? {
        let name = args.name.as_deref().unwrap_or("default");
        return Ok(BoxRateLimiter::new(redis.limiter(name, policy)?));
    }
    Err("this server was built without that: add --features redis-cluster".into())
}

/// Connects to the Redis that the arguments name, unless it is one that this server cannot speak to.
#[cfg(feature = "redis")]
async fn connect(args: &Args) -> Result<Option<tollgate::Redis>, tollgate::Error> {
    if let Some(url) = &args.redis {
        return Ok(Some(tollgate::Redis::connect(url).await?));
    }
    #[cfg(feature = "redis-cluster")]
    {
        let nodes: Vec<&str> = args.redis_cluster.iter().map(String::as_str).collect();
        Ok(Some(tollgate::Redis::connect_cluster(&nodes).await?))
    }
    #[cfg(not(feature = "redis-cluster"))]
    Ok(None)
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
        .key(ServerKey::new(&args))
        .cost(move |request: &axum::extract::Request| cost(request, args.cost_header.as_ref()))
        .on_store_error(args.on_store_error)
        .headers(args.headers.into())
        .wait(Duration::from_millis(args.wait));
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
