//! The layer behind a gateway that asks it whether a request may pass: nginx with `auth_request`.

#[path = "common/broken.rs"]
mod broken;

use axum::Router;
use axum::routing::any;
use broken::Broken;
use http::StatusCode;
use reqwest::{Client, Method};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tollgate::tower::{ApiKey, FailClosed, RateLimitLayer};
use tollgate::{Limiter, Policy};

fn limiter(policy: &str) -> Limiter<Policy> {
    Limiter::new(policy.parse().unwrap())
}

/// What nginx asks: one route for each reason to deny, and one that allows.
async fn start_guard() -> SocketAddr {
    let yes = || any(async || "yes");
    let used_up = limiter("1/h");
    assert!(used_up.check(&()).is_allowed());
    let shared = |_: &axum::extract::Request| ();
    let app = Router::new()
        .route("/allowed", yes().layer(RateLimitLayer::new(limiter("1000/s"))))
        .route("/denied", yes().layer(RateLimitLayer::new(used_up).key(shared)))
        .route("/keyless", yes().layer(RateLimitLayer::new(limiter("1/s")).key(ApiKey::bearer())))
        .route(
            "/failing",
            yes().layer(RateLimitLayer::new(Broken("out of order")).on_store_error(FailClosed)),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// nginx in front of files, each of which only those get whom the guard allows.
struct Nginx {
    process: Child,
    port: u16,
    directory: TempDir,
}

impl Nginx {
    async fn start(guard: SocketAddr) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = TempDir::new().unwrap();
        for name in ["allowed", "denied", "keyless", "failing"] {
            fs::write(directory.path().join(name), "data").unwrap();
        }
        let path = directory.path().display();
        let configuration = format!(
            "daemon off; master_process off; pid {path}/nginx.pid; error_log {path}/error.log;
             events {{}}
             http {{
                 access_log off;
                 client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
                 fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi;
                 scgi_temp_path {path}/scgi;
                 server {{
                     listen 127.0.0.1:{port};
                     root {path};
                     location / {{ auth_request /auth; }}
                     location = /auth {{
                         internal;
                         proxy_pass http://{guard}$request_uri;
                         proxy_pass_request_body off;
                         proxy_set_header Content-Length '';
                     }}
                 }}
             }}"
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let process = Command::new("nginx")
            .args(["-p", directory.path().to_str().unwrap(), "-c", file.to_str().unwrap()])
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx runs: scripts/test installs it; or: apt-get install nginx, brew install nginx");
        let nginx = Self { process, port, directory };
        for _ in 0..1_000 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return nginx;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = fs::read_to_string(nginx.directory.path().join("error.log"));
        panic!("nginx does not listen: {}", log.unwrap_or_default());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_is_denied_gets_through_whatever_the_request_says_of_itself() {
    let nginx = Nginx::start(start_guard().await).await;
    let client = Client::new();
    let ask = async |method: &Method, path: &str, content_type: &str| {
        let url = format!("http://127.0.0.1:{}{path}", nginx.port);
        let request = client.request(method.clone(), url).header("content-type", content_type);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let served = (StatusCode::OK, "data".to_owned());
    assert_eq!(ask(&Method::GET, "/allowed", "text/plain").await, served);
    let types =
        ["application/grpc", "application/grpc-web+proto", "APPLICATION/GRPC", "text/plain"];
    for path in ["/denied", "/keyless", "/failing"] {
        for method in [Method::GET, Method::POST, Method::HEAD, Method::OPTIONS] {
            for content_type in types {
                let (status, text) = ask(&method, path, content_type).await;
                assert!(!status.is_success(), "{method} {path} {content_type}: {status}");
                assert!(!text.contains("data"), "{method} {path} {content_type}: {text}");
            }
        }
    }
    // nginx knows two ways to deny, and takes other answers for a failure.
    assert_eq!(ask(&Method::GET, "/keyless", "application/grpc").await.0, 401);
    assert_eq!(ask(&Method::GET, "/denied", "application/grpc").await.0, 500);
}
