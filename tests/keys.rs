//! Keys of requests, driven by real clients: peers' addresses in each way that a server leaves
//! them, API keys and methods in each spelling.

use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected, MockConnectInfo};
use axum::routing::get;
use axum::serve::IncomingStream;
use http::{Extensions, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Client;
use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpListener;
use tollgate::tower::{ApiKey, ClientIp, PeerIp, RateLimitLayer, RequestMethod, Trust};
use tollgate::{Limiter, Policy};

/// One request an hour for each key.
fn limiter() -> Limiter<Policy> {
    Limiter::new("token_bucket 1/h".parse::<Policy>().unwrap())
}

fn hello() -> Router {
    Router::new().route("/", get(async || "hello"))
}

/// Where the server listens, such as `http://127.0.0.1:4711`.
async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn http1() -> Client {
    Client::builder().http1_only().build().unwrap()
}

/// Without TLS, by prior knowledge.
fn http2() -> Client {
    Client::builder().http2_prior_knowledge().build().unwrap()
}

/// The status of the answer to a GET with these lines of a header.
async fn get_with(client: &Client, url: &str, header: &str, lines: &[&[u8]]) -> StatusCode {
    let mut request = client.get(url);
    for line in lines {
        request = request.header(header, HeaderValue::from_bytes(line).unwrap());
    }
    request.send().await.unwrap().status()
}

#[cfg(unix)]
mod unix {
    use super::*;
    use tempfile::TempDir;
    use tokio::net::UnixListener;

    /// A client of a server on a unix socket, in a directory that goes with the value.
    fn start(key: ClientIp) -> (TempDir, Client) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let app = hello().layer(RateLimitLayer::new(limiter()).key(key));
        tokio::spawn(async { axum::serve(listener, app).await });
        (directory, Client::builder().unix_socket(path).build().unwrap())
    }

    async fn ask(client: &Client, header: &str, lines: &[&str]) -> StatusCode {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        get_with(client, "http://localhost/", header, &lines).await
    }

    /// By a number of proxies, the header alone says whose request it is.
    #[tokio::test]
    async fn behind_a_proxy_on_a_unix_socket_the_header_is_enough() {
        // (where the address stands, lines of the first client, of the second, of none)
        let real_ip = HeaderName::from_static("x-real-ip");
        let table: [(_, _, _, _, &[&str]); 4] = [
            (
                ClientIp::x_forwarded_for(Trust::hops(1)),
                "x-forwarded-for",
                "1.1.1.1, 192.0.2.1",
                "1.1.1.1, 192.0.2.2",
                &["", "unknown", "192.0.2.1, unix:"],
            ),
            (
                ClientIp::x_forwarded_for(Trust::hops(2)),
                "x-forwarded-for",
                "192.0.2.1, 10.0.0.1",
                "192.0.2.2, 10.0.0.1",
                &["10.0.0.1", ""],
            ),
            (
                ClientIp::forwarded(Trust::hops(1)),
                "forwarded",
                "for=192.0.2.1",
                "for=192.0.2.2",
                &["for=unknown", "proto=http"],
            ),
            (
                ClientIp::header(real_ip, Trust::hops(1)),
                "x-real-ip",
                "192.0.2.1",
                "192.0.2.2",
                &["", "unix:"],
            ),
        ];
        for (key, header, first, second, none) in table {
            let (_directory, client) = start(key);
            for line in [first, second] {
                assert_eq!(ask(&client, header, &[line]).await, 200, "{header}: {line}");
                assert_eq!(ask(&client, header, &[line]).await, 429, "{header}: {line}");
            }
            assert_eq!(ask(&client, header, &[]).await, 500, "{header}");
            for line in none {
                assert_eq!(ask(&client, header, &[line]).await, 500, "{header}: {line}");
            }
        }
    }

    /// By the proxies' addresses, the peer's is needed, and a closure gives it.
    #[tokio::test]
    async fn on_a_unix_socket_a_closure_gives_the_proxy_an_address() {
        let trust = || Trust::proxies(["127.0.0.1/32".parse().unwrap()]);
        let (_directory, client) = start(ClientIp::x_forwarded_for(trust()));
        assert_eq!(ask(&client, "x-forwarded-for", &["192.0.2.1"]).await, 500);

        let proxy = |_: &Extensions| Some(IpAddr::from([127, 0, 0, 1]));
        let (_directory, client) = start(ClientIp::x_forwarded_for(trust()).peer_from(proxy));
        for (line, expected) in [("192.0.2.1", 200), ("192.0.2.1", 429), ("192.0.2.2", 200)] {
            assert_eq!(ask(&client, "x-forwarded-for", &[line]).await, expected, "{line}");
        }
    }
}

#[tokio::test]
async fn the_address_that_a_test_mocks_is_the_peers() {
    let (listener, url) = listen().await;
    let limit = RateLimitLayer::new(limiter());
    let first = MockConnectInfo(SocketAddr::from(([192, 0, 2, 1], 4711)));
    let second = MockConnectInfo(SocketAddr::from(([192, 0, 2, 2], 4711)));
    let app = Router::new()
        .nest("/1", hello().layer(limit.clone()).layer(first))
        .nest("/2", hello().layer(limit).layer(second));
    tokio::spawn(async { axum::serve(listener, app).await });
    for (path, expected) in [("/1", 200), ("/1", 429), ("/2", 200), ("/2", 429)] {
        let response = http1().get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
    }
}

/// As a listener gives it that reads the address from the PROXY protocol, say.
#[derive(Clone)]
struct Connection {
    client: IpAddr,
}

impl Connected<IncomingStream<'_, TcpListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self { client: stream.remote_addr().ip() }
    }
}

#[tokio::test]
async fn a_closure_finds_the_peer_in_a_type_of_the_users() {
    let of_connection = |extensions: &Extensions| {
        extensions.get::<ConnectInfo<Connection>>().map(|connection| connection.0.client)
    };
    let table =
        [(ClientIp::peer(), [500, 500]), (ClientIp::peer().peer_from(of_connection), [200, 429])];
    for (key, expected) in table {
        let (listener, url) = listen().await;
        let app = hello()
            .layer(RateLimitLayer::new(limiter()).key(key))
            .into_make_service_with_connect_info::<Connection>();
        tokio::spawn(async { axum::serve(listener, app).await });
        for expected in expected {
            assert_eq!(http1().get(&url).send().await.unwrap().status(), expected);
        }
    }
}

/// HTTP/1.1 takes blanks from around a value, HTTP/2 does not.
#[tokio::test]
async fn blanks_around_an_api_key_open_no_budget() {
    let spellings: [&[u8]; 6] = [b"17", b" 17", b"17 ", b"\t17", b"17\t", b" \t 17\t \t"];
    let bearer: Vec<_> = spellings.iter().map(|key| [&b" \tBearer "[..], key].concat()).collect();
    let by_header = ApiKey::header(HeaderName::from_static("x-api-key"));
    let table: [(_, _, Vec<&[u8]>); 2] = [
        (by_header, "x-api-key", spellings.to_vec()),
        (ApiKey::bearer(), "authorization", bearer.iter().map(Vec::as_slice).collect()),
    ];
    for (key, header, spellings) in table {
        let (listener, url) = listen().await;
        let app = hello().layer(RateLimitLayer::new(limiter()).key(key));
        tokio::spawn(async { axum::serve(listener, app).await });
        for (version, client) in [(2, http2()), (1, http1())] {
            for (n, spelling) in spellings.iter().enumerate() {
                let expected = if version == 2 && n == 0 { 200 } else { 429 };
                let status = get_with(&client, &url, header, &[spelling]).await;
                assert_eq!(status, expected, "{header} {spelling:?}, HTTP/{version}");
            }
            for blank in [&b""[..], b" ", b" \t "] {
                let status = get_with(&client, &url, header, &[blank]).await;
                assert_eq!(status, 401, "{header} {blank:?}, HTTP/{version}");
            }
        }
    }
}

#[tokio::test]
async fn invented_methods_share_a_budget() {
    let (listener, url) = listen().await;
    let app = Router::new()
        .fallback(async || "hello")
        .layer(RateLimitLayer::new(limiter()).key((PeerIp, RequestMethod)))
        .into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async { axum::serve(listener, app).await });
    let (client, mut served) = (http1(), Vec::new());
    let invented: Vec<_> = (0..30).map(|n| format!("GET{n}")).collect();
    let registered = ["GET", "POST", "PROPFIND", "get", "GET"].map(str::to_owned);
    for method in invented.into_iter().chain(registered) {
        let request = client.request(Method::from_bytes(method.as_bytes()).unwrap(), &url);
        if request.send().await.unwrap().status() == 200 {
            served.push(method);
        }
    }
    assert_eq!(served, ["GET0", "GET", "POST", "PROPFIND"]);
}
