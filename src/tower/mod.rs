//! Middleware that guards a [`tower`](https://docs.rs/tower) HTTP service with a limiter.
//!
//! [`RateLimitLayer`] asks a limiter for one unit before each request. A request that is allowed goes
//! on to the service, with the [`Decision`](crate::Decision) in its extensions. One that is denied is
//! answered 429 Too Many Requests, and the service never sees it. Both kinds of answer carry
//!
//! - `RateLimit-Policy` and `RateLimit`, as in
//!   [draft-ietf-httpapi-ratelimit-headers-11](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/),
//!   appended to any that the service sets itself. `r` is what remains and `t` the seconds until
//!   there is one more, rounded up; on a denial, the seconds after which the same request passes,
//!   if it ever does.
//!   Both are of the moment of the decision: a handler that takes three seconds does not change
//!   them. A single limit without a name is called `default` there. [`HeaderStyle`] has the older
//!   fields;
//! - on a denial, `Retry-After` in whole seconds, rounded up and never 0: a client that sleeps
//!   exactly so long gets through. A request that can never pass, because it costs more than the
//!   limit holds, has none.
//!
//! A denial has `Cache-Control: no-store` and a body of `application/problem+json`
//! ([`ProblemJson`]). [`refusal`](RateLimitLayer::refusal) sets another one. Whatever a request says
//! of itself, it gets no answer that means success unless it is passed on. Only a layer that is
//! [marked as one of gRPC](#grpc), or a [`Refuse`] of your own that says so, answers 200.
//!
//! A [`LeakyBucket`](crate::LeakyBucket) allows requests and returns when they should go. The layer
//! passes them on at once. Let the handler sleep for the [`delay`](crate::Decision::delay) of its
//! decision, let the layer [`wait`](RateLimitLayer::wait), or say `nodelay` in the policy.
//!
//! # In axum
//!
#![cfg_attr(all(feature = "axum", feature = "memory"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "axum", feature = "memory")), doc = "```ignore")]
//! use axum::{Router, routing::get};
//! use std::net::SocketAddr;
//! use tollgate::{Limiter, Quota, TokenBucket, tower::RateLimitLayer};
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)).burst(20));
//! let app = Router::new()
//!     .route("/", get(|| async { "hello\n" }))
//!     .layer(RateLimitLayer::new(limiter)); // a budget for each address
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! // Without the addresses of its clients, the layer answers every request 500.
//! axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
//! # }
//! ```
//!
//! # Whose request is it?
//!
//! By default the peer's, by the address of its socket: see [`PeerIp`]. Headers that a client
//! can write are not looked at. [`key`](RateLimitLayer::key) takes anything else:
//!
//! | key | | the limiter's key |
//! |---|---|---|
//! | [`PeerIp`] (default) | the address of the peer | `IpAddr` |
//! | [`ClientIp`] | the address of the client behind proxies that you trust | `IpAddr` |
//! | [`ApiKey`] | a header or a bearer token, with a rule for when it is missing | [`KeyOr`] |
//! | `MatchedRoute` | the route of axum's router, which a path spelled otherwise does not evade | `Route` |
//! | [`RequestMethod`] | the method; those that are not registered share a budget | [`RegisteredMethod`] |
//! | [`GrpcMethod`] | the method of gRPC, of those that you list; all others share a budget | [`ListedMethod`] |
//! | a tuple of these | each combination has a budget | a tuple |
//! | a closure | any key | what it returns, `Option` or not |
//! | a [`KeyExtractor`] of your own | any key, or an answer to the request | its `Key` |
//!
//! The last column matters if you call the limiter yourself, to [`peek`](crate::Limiter::peek) or
//! [`reset`](crate::Limiter::reset) a key: a key of another type is another key.
//!
//! # Everything at once
//!
//! A limit for each address outside, one for each API key inside, an own answer to refused
//! requests, and a handler that looks at the decision:
//!
#![cfg_attr(all(feature = "axum", feature = "memory"), doc = "```")]
#![cfg_attr(not(all(feature = "axum", feature = "memory")), doc = "```ignore")]
//! # use axum::http::HeaderValue;
//! use axum::http::Request;
//! use axum::response::{IntoResponse, Response};
//! use axum::{Extension, Router, routing::get};
//! use tollgate::tower::{Refusal, RateLimitLayer};
//! use tollgate::{Decision, Limiter, Policy};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let by_address: Policy = "addresses: token_bucket 100/s".parse()?;
//! let by_key: Policy = "keys: sliding_log 2/min".parse()?;
//!
//! let app: Router = Router::new()
//!     // There is no decision on a request that is exempt, or passed on while a store fails.
//!     .route("/", get(async |decision: Option<Extension<Decision>>| match decision {
//!         Some(Extension(decision)) => format!("{} left", decision.remaining()),
//!         None => "not limited".to_owned(),
//!     }))
//!     .layer(
//!         RateLimitLayer::new(Limiter::new(by_key))
//!             // Types are needed in closures; the key must be owned. All without one share a
//!             // budget. (`ApiKey` does this with a rule of your choice.)
//!             .key(|request: &Request<_>| request.headers().get("x-api-key").cloned())
//!             .refusal(|refusal: &Refusal<'_>| -> Response {
//!                 (refusal.status, format!("{}\n", refusal.detail())).into_response()
//!             }),
//!     )
//!     .layer(RateLimitLayer::new(Limiter::new(by_address))); // added last, so outermost
//!
//! # use tower::ServiceExt;
//! # let ask = async || {
//! #     let mut request = Request::new(axum::body::Body::empty());
//! #     request.headers_mut().insert("x-api-key", HeaderValue::from_static("a"));
//! #     request.extensions_mut().insert("192.0.2.1:1".parse::<std::net::SocketAddr>().unwrap());
//! #     app.clone().oneshot(request).await.unwrap()
//! # };
//! # assert_eq!(ask().await.status(), 200);
//! # assert_eq!(ask().await.status(), 200);
//! # let refused = ask().await;
//! # assert_eq!(refused.status(), 429);
//! # assert_eq!(refused.headers().get_all("ratelimit").iter().count(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! Of stacked layers, the outer asks first. What it refuses costs the inner one nothing; what
//! the inner one refuses has been charged outside. Each appends its own members to the fields of
//! draft 11, so give each limit a name. The handler finds the decision of the innermost layer that made one.
//! Limits on the *same* key belong into one [`Policy`](crate::Policy) instead: it charges all or none.
//!
//! # With other layers
//!
//! The layer's own answers have the body of the service below it. Axum's body and
//! `http-body-util`'s `Full` can hold them. Around other layers that change the body, such as
//! `TraceLayer`, `CompressionLayer` or `RequestBodyLimitLayer` in one `ServiceBuilder`, end the layer
//! with [`any_body`](RateLimitLayer::any_body).
//!
//! A decision in memory is made at once, by the service that is ready. If the layer has to wait for
//! a store, or holds a request back, it lets go of the inner service and makes it ready again
//! afterwards, so that a waiting request holds no permit of a `ConcurrencyLimit`.
//!
//! **CORS**: put `CorsLayer` outside: in calls of `Router::layer` after this layer, in a
//! `ServiceBuilder` before it. It answers preflights before they are charged, and lets pages read
//! denials; what else a page may read, it lists:
//!
//! ```text
//! router
//!     .layer(RateLimitLayer::new(limiter))
//!     .layer(CorsLayer::new().allow_origin(origins).expose_headers([
//!         RETRY_AFTER,
//!         WWW_AUTHENTICATE,
//!         HeaderName::from_static("ratelimit"),
//!         HeaderName::from_static("ratelimit-policy"),
//!     ]))
//! ```
//!
//! In the other order, `.exempt(is_preflight)` keeps preflights free ([`is_preflight`]), but a page
//! cannot read a denial.
//!
//! **Uploads**: a denial does not read the request's body. On HTTP/1.1, hyper closes the connection
//! if much is left unread, and a client that is still sending may see a reset instead of the 429. A
//! client that
//! sends `Expect: 100-continue` is answered before it sends the body, HTTP/2 resets the stream alone,
//! and a reverse proxy that buffers requests (nginx does) reads it all.
//!
//! **Gateways** that ask a service whether a request may pass (nginx's `auth_request`, Traefik's
//! ForwardAuth) judge by the status. nginx takes 401 and 403 for a denial and answers 500 to its
//! client for 429, so set the status by a closure there:
//! `.refusal(|_: &Refusal<'_>| StatusCode::FORBIDDEN.into_response())`.
//!
//! # gRPC
//!
//! `.refusal(`[`Grpc`]`)` marks a layer as one around services of gRPC. Denials are then
//! `RESOURCE_EXHAUSTED` with `grpc-retry-pushback-ms`. Nothing in a request makes a layer do so by
//! itself. A server of both gRPC and HTTP gives each router a layer of its own.
//!
#![cfg_attr(all(feature = "memory", feature = "tonic"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "memory", feature = "tonic")), doc = "```ignore")]
//! use tollgate::tower::{Grpc, GrpcMethod, PeerIp, RateLimitLayer};
//! use tollgate::{Limiter, Policy};
//! use tonic::transport::Server;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // For each address, 100 calls a second of each method that is listed, and of all others.
//! let limiter = Limiter::new("calls: 100/s".parse::<Policy>()?);
//! let methods = GrpcMethod::of(["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]);
//! let layer = RateLimitLayer::new(limiter).key((PeerIp, methods)).refusal(Grpc);
//!
//! let (_, health) = tonic_health::server::health_reporter();
//! Server::builder().layer(layer).add_service(health).serve("127.0.0.1:3000".parse()?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A call is charged once, when it begins: a stream is one call. For other limits for some methods,
//! take [`choosing`](RateLimitLayer::choosing); for one service of several, `tonic`'s
//! `LayerExt::named_layer`.
//!
//! # Observing it
//!
//! With the feature `metrics`, requests are counted as `tollgate_requests_total` by limit and
//! outcome, those without a key as `tollgate_key_errors_total` by status, and those that the store
//! failed to decide as `tollgate_store_errors_total`. With `tracing`, denials are events of level
//! debug. A failing store is a warning, and a key that the server is not set up to know an error with
//! what to do about it: both at most once a second for a layer, when one happens, with the number of
//! such `requests` since the last line.
//!
//! Answers, counts and events have the names of the limits: write `"login: 5/hour"`.
//!
//! # Around a client
//!
//! A client that is such a service keeps to somebody else's limit by the same layer, with
//! [`wait`](RateLimitLayer::wait). In `examples/outbound.rs` it is `hyper-util`'s; `reqwest`'s takes
//! requests of its own, and needs a function around it:
//!
//! ```text
//! let limit = LeakyBucket::new(Quota::per_second(5)).capacity(100);
//! let limiter = Arc::new(Limiter::new(limit));
//! let layer = RateLimitLayer::shared(Arc::clone(&limiter))
//!     .key(|request: &http::Request<_>| host(request.uri()))
//!     .headers(HeaderStyle::None)
//!     .wait(Duration::from_secs(20));
//! let client = ServiceBuilder::new().layer(layer).service_fn(move |request| {
//!     let (client, limiter, host) = (client.clone(), Arc::clone(&limiter), host(request.uri()));
//!     async move {
//!         let response = client.execute(reqwest::Request::try_from(request)?).await?;
//!         if let Some(wait) = retry_after(response.status(), response.headers(), LONGEST) {
//!             limiter.pause(&host, wait); // one 429 stops all calls to its host
//!         }
//!         Ok::<_, reqwest::Error>(http::Response::<reqwest::Body>::from(response))
//!     }
//! });
//!
//! fn host(uri: &http::Uri) -> String {
//!     uri.host().unwrap_or_default().to_owned()
//! }
//! ```
//!
//! The layer itself answers 429 if a request would wait for too long. If the upstream denies one all
//! the same, its answer says when to ask again: [`retry_after`](crate::retry_after).

mod any_body;
mod api_key;
mod client_ip;
mod failure;
mod future;
mod headers;
mod key;
mod layer;
mod method;
mod nat64;
mod observe;
mod peer;
mod question;
mod refusal;
mod response;
mod service;

pub use any_body::{AnyBody, ResponseBody, WithResponseBody, WithResponseBodyFuture};
pub use api_key::{ApiKey, KeyOr, MissingKey};
pub use client_ip::{ClientIp, PeerIp, Trust};
/// A network of addresses, of the crate `ipnet`: what [`Trust::proxies`] takes.
pub use ipnet::IpNet;
/// A network of IPv6 addresses, of the crate `ipnet`: what [`ClientIp::nat64_prefixes`] takes.
pub use ipnet::Ipv6Net;

pub use failure::{FailClosed, FailOpen, NeverFails, OnStoreError, Undecided};
pub use future::ResponseFuture;
pub use headers::HeaderStyle;
pub use key::{KeyError, KeyExtractor, Shared};
#[cfg(feature = "axum")]
pub use key::{MatchedRoute, Route};
pub use layer::RateLimitLayer;
pub use method::{GrpcMethod, ListedMethod, RegisteredMethod, RequestMethod};
pub use question::{
    Ask, Asked, FromRequest, NoneExempt, OneLimiter, OneUnit, Question, is_preflight,
};
pub use refusal::{Grpc, PlainText, ProblemJson, Refusal, Refuse};
pub use service::RateLimit;
