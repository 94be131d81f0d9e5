//! The layer around a server of gRPC, driven by a client of gRPC.

use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tollgate::tower::{Grpc, RateLimitLayer};
use tollgate::{Limiter, Policy};
use tonic::Code;
use tonic::transport::server::TcpConnectInfo;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// The address of a health service behind a limit for each peer.
async fn start(policy: &str) -> String {
    let policy: Policy = policy.parse().unwrap();
    let layer = RateLimitLayer::new(Limiter::new(policy))
        .key(|request: &http::Request<tonic::body::Body>| {
            let peer: Option<&TcpConnectInfo> = request.extensions().get();
            peer.and_then(|peer| peer.remote_addr()).map(|peer| peer.ip())
        })
        .refusal(Grpc);
    let (_, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().layer(layer).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    url
}

async fn connect(url: &str) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(url.to_owned()).unwrap().connect().await.unwrap())
}

#[tokio::test]
async fn a_client_of_grpc_is_told_that_it_is_too_much_and_for_how_long() {
    let url = start("api: token_bucket 1/h burst 2").await;
    for connection in 0..2 {
        let mut client = connect(&url).await;
        for n in 0..3 {
            let answer = client.check(HealthCheckRequest::default()).await;
            if connection == 0 && n < 2 {
                let answer = answer.unwrap();
                let fields = answer.metadata().get("ratelimit").unwrap().to_str().unwrap();
                assert!(fields.starts_with(&format!("\"api\";r={}", 1 - n)), "{fields}");
                continue;
            }
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().starts_with("Too many requests: retry after"), "{status}");
            let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
            let pushback: u64 = pushback.to_str().unwrap().parse().unwrap();
            assert!((3_500_000..=3_600_000).contains(&pushback), "{pushback}");
        }
    }
}

#[tokio::test]
async fn a_client_of_grpc_that_waits_as_told_gets_through() {
    let url = start("token_bucket 5/s burst 1").await;
    let mut client = connect(&url).await;
    let mut refused = 0;
    for _ in 0..5 {
        while let Err(status) = client.check(HealthCheckRequest::default()).await {
            refused += 1;
            let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
            let millis = pushback.to_str().unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
    assert!((1..=6).contains(&refused), "{refused}");
}
