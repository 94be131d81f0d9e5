//! Middleware that guards a [`tower`](https://docs.rs/tower) HTTP service with a limiter.
//!
//! [`RateLimitLayer`] asks a limiter before each request. What is admitted goes on to the
//! service, with the [`Decision`](crate::Decision) in its extensions; what is not is answered
//! 429 Too Many Requests, and the service never sees it. Both kinds of answer carry
//!
//! - `RateLimit-Policy` and `RateLimit`, as in
//!   [draft-ietf-httpapi-ratelimit-headers-11](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/),
//!   appended to any that the service sets itself;
//! - on a refusal, `Retry-After` in whole seconds, rounded up and never 0: a client that sleeps
//!   exactly so long gets through. A cost that can never pass has none.
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
//! // The service must be told its clients' addresses, or every request is answered 500.
//! axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
//! # }
//! ```
//!
//! # Whose request is it?
//!
//! By default the peer's, by the address of its socket: see [`PeerIp`]. Headers that a client
//! can write are not looked at. [`key`](RateLimitLayer::key) takes anything else, as a closure
//! or a [`KeyExtractor`]:
//!
#![cfg_attr(feature = "memory", doc = "```")]
#![cfg_attr(not(feature = "memory"), doc = "```ignore")]
//! # use http::{Request, Response};
//! # use std::convert::Infallible;
//! # use tower::{ServiceBuilder, ServiceExt, service_fn};
//! # use tollgate::{Limiter, Quota, SlidingLog, tower::RateLimitLayer};
//! # #[tokio::main]
//! # async fn main() {
//! let limiter = Limiter::new(SlidingLog::new(Quota::per_minute(1)));
//! let service = ServiceBuilder::new()
//!     // A budget for each path.
//!     .layer(RateLimitLayer::new(limiter).key(|request: &Request<String>| request.uri().path().to_owned()))
//!     .service(service_fn(|_: Request<String>| async {
//!         Ok::<_, Infallible>(Response::new(String::from("hello")))
//!     }));
//!
//! let get = |path: &str| Request::get(path).body(String::new()).unwrap();
//! assert_eq!(service.clone().oneshot(get("/a")).await.unwrap().status(), 200);
//! assert_eq!(service.clone().oneshot(get("/b")).await.unwrap().status(), 200);
//!
//! let refused = service.oneshot(get("/a")).await.unwrap();
//! assert_eq!(refused.status(), 429);
//! assert_eq!(refused.headers()["retry-after"], "60");
//! # }
//! ```

mod future;
mod headers;
mod key;
mod layer;
mod response;
mod service;

pub use future::ResponseFuture;
pub use key::{KeyError, KeyExtractor, PeerIp};
pub use layer::RateLimitLayer;
pub use response::{PlainText, Refusal, Refuse};
pub use service::RateLimit;
