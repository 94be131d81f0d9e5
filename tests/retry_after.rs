//! Answers of a server on the network, read by a client on it.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Router, routing::get};
use reqwest::Client;
use std::time::Duration;
use tokio::net::TcpListener;
use tollgate::tower::{HeaderStyle, RateLimitLayer};
use tollgate::{Limiter, Quota, TokenBucket, retry_after};

const HOUR: Duration = Duration::from_secs(3_600);

/// A server with a path for each style, where the second request is refused for an hour; its address.
async fn server() -> String {
    let route = |style, without_retry_after| {
        let limiter = Limiter::new(TokenBucket::new(Quota::per_hour(1)).burst(1));
        let layer = RateLimitLayer::new(limiter).key(|_: &Request| ()).headers(style);
        let remove = move |request: Request, next: Next| async move {
            let mut response: Response = next.run(request).await;
            if without_retry_after {
                response.headers_mut().remove("retry-after");
            }
            response
        };
        get(|| async { "hello\n" }).layer(layer).layer(from_fn(remove))
    };
    let mut app = Router::new();
    for (index, style) in STYLES.into_iter().enumerate() {
        app = app.route(&format!("/{index}/whole"), route(style, false));
        app = app.route(&format!("/{index}/fields"), route(style, true));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

const STYLES: [HeaderStyle; 6] = [
    HeaderStyle::Draft11,
    HeaderStyle::Draft7,
    HeaderStyle::Draft6,
    HeaderStyle::LegacyEpoch,
    HeaderStyle::LegacyDelta,
    HeaderStyle::None,
];

#[tokio::test]
async fn what_the_layer_writes_in_any_style_is_read_back() {
    let server = server().await;
    let client = Client::new();
    for (index, style) in STYLES.into_iter().enumerate() {
        for fields in ["whole", "fields"] {
            let url = format!("{server}/{index}/{fields}");
            let response = client.get(&url).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(retry_after(response.status(), response.headers(), HOUR * 2), None);
            let response = client.get(&url).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            let read = retry_after(response.status(), response.headers(), HOUR * 2);
            if (style, fields) == (HeaderStyle::None, "fields") {
                assert_eq!(read, None);
                continue;
            }
            // The `Date` that a Unix time is judged by is of whole seconds.
            let wait = read.unwrap();
            assert!(
                HOUR / 2 < wait && wait <= HOUR + Duration::from_secs(1),
                "{style:?}: {wait:?}"
            );
            let longest = Duration::from_secs(10);
            assert_eq!(retry_after(response.status(), response.headers(), longest), Some(longest));
        }
    }
}
