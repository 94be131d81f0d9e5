//! Whose call it is, and which method it calls, asked of a server of tonic.

use http::Request;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tollgate::tower::{Grpc, GrpcMethod, KeyExtractor, PeerIp, RateLimitLayer};
use tollgate::{Limiter, Policy};
use tonic::body::Body;
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
};
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::HealthReporter;
use tower::{Service, ServiceExt};

/// How a server takes its connections.
enum Connections {
    Tcp,
    Tls(ServerTlsConfig),
    /// TLS that tonic knows nothing of.
    OwnTls(TlsAcceptor),
}

/// The address of a health service behind one unit an hour and key, and what reports the health.
async fn start<E>(key: E, connections: Connections) -> (String, HealthReporter)
where
    E: KeyExtractor<Body, Key: Hash + Eq + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    let limiter = Limiter::new("token_bucket 1/h".parse::<Policy>().unwrap());
    let layer = RateLimitLayer::new(limiter).key(key).refusal(Grpc);
    let (reporter, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if matches!(connections, Connections::Tcp) { "http" } else { "https" };
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let incoming = TcpListenerStream::new(listener);
    let mut server = Server::builder();
    if let Connections::Tls(tls) = &connections {
        server = server.tls_config(tls.clone()).unwrap();
    }
    let server = server.layer(layer).add_service(health);
    if let Connections::OwnTls(acceptor) = connections {
        let incoming = incoming.then(move |tcp| {
            let acceptor = acceptor.clone();
            async move { acceptor.accept(tcp?).await }
        });
        tokio::spawn(server.serve_with_incoming(incoming));
    } else {
        tokio::spawn(server.serve_with_incoming(incoming));
    }
    (url, reporter)
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint::from_shared(url.to_owned()).unwrap()
}

/// Each address has a budget, over each kind of connection.
#[tokio::test]
async fn the_peer_of_a_call_is_known_over_tcp_and_over_tls() {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let identity = Identity::from_pem(signed.cert.pem(), signed.signing_key.serialize_pem());
    let key = PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut own = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    own.alpn_protocols = vec![b"h2".to_vec()];
    let table = [
        Connections::Tcp,
        Connections::Tls(ServerTlsConfig::new().identity(identity)),
        Connections::OwnTls(TlsAcceptor::from(Arc::new(own))),
    ];
    for connections in table {
        let (url, _reporter) = start(PeerIp, connections).await;
        for client in [1, 2] {
            let mut endpoint =
                endpoint(&url).local_address(Some(IpAddr::from([127, 0, 0, client])));
            if url.starts_with("https") {
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(signed.cert.pem()))
                    .domain_name("localhost");
                endpoint = endpoint.tls_config(tls).unwrap();
            }
            for call in 0..3 {
                let mut client = HealthClient::new(endpoint.connect().await.unwrap());
                let code = match client.check(HealthCheckRequest::default()).await {
                    Ok(_) => Code::Ok,
                    Err(status) => status.code(),
                };
                let expected = if call == 0 { Code::Ok } else { Code::ResourceExhausted };
                assert_eq!(code, expected, "{url} {call}");
            }
        }
    }
}

async fn connect(url: &str) -> HealthClient<Channel> {
    HealthClient::new(endpoint(url).connect().await.unwrap())
}

/// What the layer answers to a call that is too much.
fn assert_exhausted(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"), "{status}");
}

/// A unary call and a stream cost a unit each, however long the stream is.
#[tokio::test]
async fn each_listed_method_has_a_budget_and_a_stream_is_one_call() {
    let methods = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];
    let (url, reporter) = start((PeerIp, GrpcMethod::of(methods)), Connections::Tcp).await;
    let mut client = connect(&url).await;
    let request = HealthCheckRequest::default;

    let mut stream = client.watch(request()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().status, 1);
    let changes = [(ServingStatus::NotServing, 2), (ServingStatus::Serving, 1)];
    for (status, number) in changes.into_iter().cycle().take(4) {
        reporter.set_service_status("", status).await;
        assert_eq!(stream.message().await.unwrap().unwrap().status, number);
    }
    assert_exhausted(&client.watch(request()).await.unwrap_err());

    client.check(request()).await.unwrap();
    assert_exhausted(&client.check(request()).await.unwrap_err());

    reporter.set_service_status("", ServingStatus::NotServing).await;
    assert!(stream.message().await.unwrap().is_some(), "what was allowed goes on");
}

/// The `grpc-status` of a call of any method.
async fn call(url: &str, path: &str) -> Code {
    let mut channel = endpoint(url).connect().await.unwrap();
    let request = Request::post(path).header("content-type", "application/grpc");
    let request = request.body(Body::empty()).unwrap();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    Status::from_header_map(response.headers()).unwrap().code()
}

#[tokio::test]
async fn invented_methods_share_a_budget() {
    let (url, _reporter) =
        start(GrpcMethod::of(["/grpc.health.v1.Health/Check"]), Connections::Tcp).await;
    // The service knows none of these: the first call comes as far as it, and no other.
    assert_eq!(call(&url, "/grpc.health.v1.Health/Check0").await, Code::Unimplemented);
    for n in 1..10 {
        let path = format!("/grpc.health.v1.Health/Check{n}");
        assert_eq!(call(&url, &path).await, Code::ResourceExhausted);
    }
    assert_eq!(call(&url, "/grpc.health.v1.Health/Watch").await, Code::ResourceExhausted);
    let mut client = connect(&url).await;
    client.check(HealthCheckRequest::default()).await.unwrap();
    assert_exhausted(&client.check(HealthCheckRequest::default()).await.unwrap_err());
}
