//! The store in Redis when things go wrong between here and there, and when they are mended.

mod common;

use common::proxy::{Proxy, Upstream};
use common::redis::in_own_process;
use common::redis_server::{Server, free_port};
use std::path::Path;
use std::time::{Duration, Instant};
use tollgate::{Error, Limiter, Quota, RateLimiter, Redis, SlidingLog, TokenBucket};

type TokenLimiter = Limiter<TokenBucket, Redis>;

fn limiter(store: Redis) -> TokenLimiter {
    store.limiter("api", TokenBucket::new(Quota::per_hour(1_000))).unwrap()
}

async fn connect(server: &Server) -> TokenLimiter {
    // The default timeout is for servers with more than two cores to themselves.
    limiter(Redis::connect(&server.url()).await.unwrap().timeout(Duration::from_secs(2)))
}

async fn admit(limiter: &TokenLimiter) {
    assert!(limiter.check("k").await.unwrap().is_allowed());
}

/// Asks until there is an answer, at most for ten seconds.
async fn recovered(limiter: &TokenLimiter) {
    let start = Instant::now();
    while let Err(error) = limiter.check("k").await {
        assert!(start.elapsed() < Duration::from_secs(10), "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_flushed_script_is_given_again_between_any_two_calls() {
    let server = Server::start(&[]);
    let limiter = connect(&server).await;
    for left in (0..20).rev() {
        assert_eq!(limiter.check("k").await.unwrap().remaining(), 980 + left);
        server.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(limiter.refund("k", 0).await.unwrap().remaining(), 980 + left);
        server.cli(&["SCRIPT", "FLUSH"]);
    }
}

#[tokio::test]
async fn killed_connections_are_restored() {
    let server = Server::start(&[]);
    let limiter = connect(&server).await;
    for _ in 0..20 {
        admit(&limiter).await;
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        // The server tells when it is done; the next decision is made on a new connection.
        tokio::time::sleep(Duration::from_millis(20)).await;
        admit(&limiter).await;
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_an_error_in_time_and_back_when_it_is_back() {
    let port = free_port();
    let server = Server::start_on(port, &[], &[]);
    let limiter = connect(&server).await;
    admit(&limiter).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let tasks_before = tasks();

    server.kill();
    for _ in 0..200 {
        let start = Instant::now();
        let error = limiter.check("k").await.unwrap_err();
        assert!(error.is_unreachable() || error.is_timeout(), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }

    let server = Server::start_on(port, &[], &[]);
    recovered(&limiter).await;
    for _ in 0..10 {
        admit(&limiter).await;
    }
    let start = Instant::now();
    while tasks() > tasks_before {
        assert!(start.elapsed() < Duration::from_secs(10), "{} tasks", tasks());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(server);
}

#[tokio::test]
async fn a_server_that_never_was_is_an_error_in_time() {
    let nowhere = format!("redis://127.0.0.1:{}/", free_port());
    let error = Redis::connect(&nowhere).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    let lazy = limiter(Redis::connect_lazy(&nowhere).unwrap());
    for _ in 0..20 {
        let start = Instant::now();
        let error = lazy.check("k").await.unwrap_err();
        assert!(error.is_unreachable() || error.is_timeout(), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_an_error_in_time_and_its_answers_are_not_mixed_up() {
    let server = Server::start(&[]);
    let limiter = limiter(Redis::connect(&server.url()).await.unwrap());
    admit(&limiter).await;
    // Nobody is answered for 800 ms.
    server.cli(&["CLIENT", "PAUSE", "800", "ALL"]);
    let start = Instant::now();
    let error = limiter.check_n("k", 100).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    assert_eq!(error.to_string(), "Redis did not answer within 100ms (limiter \"api\")");
    recovered(&limiter).await;
    // What timed out was done all the same, as the documentation says.
    let left = limiter.peek("k").await.unwrap().remaining();
    assert!((890..=898).contains(&left), "{left}");
}

#[tokio::test]
async fn a_master_that_became_a_replica_is_left_for_the_new_one() {
    let old = Server::start(&[]);
    let new = Server::start(&[]);
    let proxy = Proxy::start(Upstream::Server(old.port)).await;
    let store = Redis::connect(&proxy.url()).await.unwrap().timeout(Duration::from_secs(2));
    let limiter = limiter(store);
    admit(&limiter).await;

    old.cli(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    let error = limiter.check("k").await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert!(error.to_string().contains("replica"), "{error}");
    // The name now leads to the new master, as a DNS entry would.
    proxy.lead_to(Upstream::Server(new.port));
    recovered(&limiter).await;
    assert_eq!(new.cli(&["EXISTS", "tollgate:2:api:bucket:k"]), "1");
}

/// The error that a connection was answered when it was made is not kept.
#[tokio::test]
async fn what_is_answered_while_connecting_is_not_answered_for_ever() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(Upstream::None).await;
    let store = Redis::connect_lazy(&proxy.url()).unwrap().timeout(Duration::from_secs(2));
    let limiter = limiter(store);
    let error = limiter.check("k").await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert!(error.to_string().contains("no upstream host"), "{error}");
    proxy.lead_to(Upstream::Server(server.port));
    recovered(&limiter).await;
}

/// As where each test has a runtime of its own, and all of them one store.
#[test]
fn a_store_outlives_the_runtime_that_it_was_made_on() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let port = free_port();
    let first = runtime();
    let lazy = || Redis::connect_lazy(&format!("redis://127.0.0.1:{port}/")).unwrap();
    let stores: Vec<Redis> = (0..20).map(|_| lazy()).collect();
    for store in &stores {
        // Less than the pause before it connects again.
        let limiter = limiter(store.clone().timeout(Duration::from_millis(3)));
        let _ = first.block_on(limiter.check("k")).unwrap_err();
    }
    drop(first);

    let second = runtime();
    let limiters = stores.into_iter().map(|store| limiter(store.timeout(Duration::from_secs(2))));
    let limiters: Vec<TokenLimiter> = limiters.collect();
    for limiter in &limiters {
        let error = second.block_on(limiter.check("k")).unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }
    let _server = Server::start_on(port, &[], &[]);
    limiters.iter().for_each(|limiter| second.block_on(recovered(limiter)));
    drop(second);

    // All is well, and goes on.
    let third = runtime();
    limiters.iter().for_each(|limiter| third.block_on(admit(limiter)));
}

/// Each call alone does not wait long enough for it.
#[tokio::test]
async fn a_connection_that_takes_long_is_there_for_the_next_call_however_late() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(Upstream::Late(server.port)).await;
    let store = Redis::connect_lazy(&proxy.url()).unwrap().timeout(Duration::from_millis(500));
    let limiter = limiter(store);
    let error = limiter.check("k").await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    admit(&limiter).await;
}

/// As where something in between has forgotten it.
#[tokio::test]
async fn a_connection_on_which_nothing_is_answered_is_left() {
    let server = Server::start(&[]);
    let proxy = Proxy::start(Upstream::Server(server.port)).await;
    let limiter = limiter(Redis::connect(&proxy.url()).await.unwrap());
    recovered(&limiter).await;
    proxy.lead_to(Upstream::Mute(server.port));
    let error = limiter.check("k").await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    proxy.lead_to(Upstream::Server(server.port));
    recovered(&limiter).await;
}

#[tokio::test]
async fn what_else_is_stored_at_a_key_is_a_clear_error() {
    let server = Server::start(&[]);
    let bucket = connect(&server).await;
    let store = Redis::connect(&server.url()).await.unwrap();
    let log = store.limiter("api", SlidingLog::new(Quota::per_hour(10))).unwrap();
    server.cli(&["HSET", "tollgate:2:api:bucket:k", "a", "b"]);
    server.cli(&["HSET", "tollgate:2:api:sliding_log:k", "a", "b"]);
    for error in [bucket.check("k").await.unwrap_err(), log.check("k").await.unwrap_err()] {
        assert!(error.is_refused(), "{error}");
        assert!(error.to_string().contains("wrong kind of value"), "{error}");
    }
    for other in ["something else", "little", "as long as it takes to be the one or the other"] {
        server.cli(&["SET", "tollgate:2:api:bucket:k", other]);
        server.cli(&["SET", "tollgate:2:api:sliding_log:k", other]);
        for error in [bucket.check("k").await.unwrap_err(), log.check("k").await.unwrap_err()] {
            assert!(error.is_refused() || error.is_unexpected_reply(), "{error}");
            assert!(!error.to_string().contains(other), "{error}");
        }
    }
}

/// EVALSHA answers what EXISTS does.
#[tokio::test]
async fn a_reply_of_another_shape_is_a_clear_error() {
    let renamed = ["--rename-command", "EVALSHA", "", "--rename-command", "EXISTS", "EVALSHA"];
    let server = Server::start(&renamed);
    let error = connect(&server).await.check("k").await.unwrap_err();
    assert!(error.is_unexpected_reply(), "{error}");
    assert_eq!(
        error.to_string(),
        "Redis did not answer as it should (limiter \"api\"): it is not of the \
         form of the script's"
    );
}

#[tokio::test]
async fn a_replica_is_a_clear_error() {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    let limiter = connect(&replica).await;
    for _ in 0..3 {
        let error = limiter.check("k").await.unwrap_err();
        assert!(error.is_refused(), "{error}");
        assert!(error.to_string().to_lowercase().contains("replica"), "{error}");
    }
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    recovered(&limiter).await;
}

#[tokio::test]
async fn no_memory_left_is_a_clear_error_and_refusals_go_on() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]);
    let limiter = connect(&server).await;
    assert!(limiter.check_n("k", 1_000).await.unwrap().is_allowed());
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = limiter.check("other").await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert!(error.to_string().contains("OOM"), "{error}");
    assert!(!limiter.check("k").await.unwrap().is_allowed());
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(limiter.check("other").await.unwrap().is_allowed());
}

/// Whether the connection is of use is asked only where the error does not tell.
#[tokio::test]
async fn errors_of_the_script_itself_cost_no_second_round_trip() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]);
    server.cli(&["ACL", "SETUSER", "api", "on", ">secret", "~tollgate:*", "+@all"]);
    let url = format!("redis://api:secret@127.0.0.1:{}/", server.port);
    let store = Redis::connect(&url).await.unwrap().timeout(Duration::from_secs(2));
    let ours = limiter(store.clone());
    admit(&ours).await;
    server.cli(&["HSET", "tollgate:2:api:bucket:other", "a", "b"]);
    server.cli(&["CONFIG", "RESETSTAT"]);

    server.cli(&["SCRIPT", "FLUSH"]);
    admit(&ours).await;
    let wrong_type = ours.check("other").await.unwrap_err().to_string();
    assert!(wrong_type.contains("WRONGTYPE"), "{wrong_type}");
    let keys = limiter(store.prefix("other")).check("k").await.unwrap_err().to_string();
    assert!(keys.contains("NOPERM"), "{keys}");
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let memory = ours.check("k").await.unwrap_err().to_string();
    assert!(memory.contains("OOM"), "{memory}");
    server.cli(&["ACL", "SETUSER", "api", "-evalsha"]);
    let command = ours.check("k").await.unwrap_err().to_string();
    assert!(command.contains("NOPERM"), "{command}");

    let commands = server.cli(&["INFO", "commandstats"]);
    assert!(commands.contains("cmdstat_evalsha"), "{commands}");
    assert!(!commands.contains("cmdstat_ping"), "{commands}");
}

async fn connect_error(url: &str) -> Error {
    match Redis::connect(url).await {
        Ok(_) => panic!("{url} must not do"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_so_and_let_in_later() {
    let server = Server::start(&[]);
    server.cli(&["ACL", "SETUSER", "api", "on", ">secret", "~tollgate:*", "+@all"]);
    server.cli(&["ACL", "SETUSER", "default", "off"]);
    let url = |user: &str| format!("redis://{user}127.0.0.1:{}/", server.port);
    for wrong in ["", "api:wrong@", "nobody:secret@"] {
        let error = connect_error(&url(wrong)).await;
        assert!(error.is_refused(), "{error}");
        assert!(!error.to_string().contains("wrong"), "no passwords: {error}");
    }
    let store = Redis::connect(&url("api:secret@")).await.unwrap();
    let store = store.timeout(Duration::from_secs(2));
    let permitted = limiter(store.clone());
    assert!(permitted.check("k").await.unwrap().is_allowed());
    let reservation = permitted.reserve("k", 5).await.unwrap();
    assert!(reservation.settle(7).await.unwrap().is_allowed());
    // Permissions hold at once, so the connection is kept.
    let admin = format!("redis://api:secret@127.0.0.1:{}", server.port);
    let connections = || {
        let clients = server.cli(&["-u", &admin, "CLIENT", "LIST"]);
        let ours = clients.lines().filter(|client| client.contains("resp=3"));
        ours.map(|client| client.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = connections();
    assert!(!before.is_empty());
    let stranger = limiter(store.prefix("other"));
    for _ in 0..3 {
        let error = stranger.check("k").await.unwrap_err();
        assert!(error.is_refused(), "{error}");
        assert!(error.to_string().contains("permissions"), "{error}");
        // As long as it takes until a connection may be replaced.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(connections(), before);
    // The connection of one who comes too early is not lost for ever.
    let early = limiter(Redis::connect_lazy(&url("late:secret@")).unwrap());
    assert!(early.check("k").await.unwrap_err().is_refused());
    let add = ["-u", &admin, "ACL", "SETUSER", "late", "on", ">secret", "~*", "+@all"];
    assert!(std::process::Command::new("redis-cli").args(add).status().unwrap().success());
    recovered(&early).await;
}

#[tokio::test]
async fn addresses_that_are_none_are_told() {
    let error = connect_error("http://user:secret@127.0.0.1/").await;
    assert!(error.to_string().starts_with("not the address of a Redis server"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(Redis::connect_lazy("").is_err());
}

#[tokio::test]
async fn tls_to_a_plain_port_is_a_clear_error() {
    let server = Server::start(&[]);
    let start = Instant::now();
    let error = connect_error(&format!("rediss://127.0.0.1:{}/", server.port)).await;
    assert!(error.is_unreachable() || error.is_timeout(), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn unix_sockets_are_addresses() {
    let server = Server::start(&["--unixsocket", "redis.sock"]);
    let socket = server.directory.path().join("redis.sock");
    let url = format!("redis+unix://{}", Path::display(&socket));
    let limiter = limiter(Redis::connect(&url).await.unwrap().timeout(Duration::from_secs(2)));
    assert!(limiter.check("k").await.unwrap().is_allowed());
}

#[tokio::test]
async fn the_older_protocol_will_do() {
    let server = Server::start(&[]);
    let url = format!("{}?protocol=resp2", server.url());
    let limiter = limiter(Redis::connect(&url).await.unwrap().timeout(Duration::from_secs(2)));
    assert!(limiter.check("k").await.unwrap().is_allowed());
    assert!(!server.cli(&["CLIENT", "LIST", "TYPE", "normal"]).contains("resp=3"));
}

#[tokio::test]
async fn a_connection_manager_of_ones_own_will_do() {
    let server = Server::start(&[]);
    let client = redis::Client::open(server.url()).unwrap();
    let manager = redis::aio::ConnectionManager::new(client).await.unwrap();
    let store = Redis::from_connection_manager(manager).timeout(Duration::from_secs(2));
    assert!(limiter(store).check("k").await.unwrap().is_allowed());
}

/// Started by the next test, as the roots that are trusted are a matter of the environment.
#[tokio::test]
async fn tls_client() {
    let Ok(url) = std::env::var("TLS_URL") else { return };
    let store = Redis::connect(&url).await.unwrap().timeout(Duration::from_secs(2));
    assert!(limiter(store).check("k").await.unwrap().is_allowed());
    println!("allowed over TLS");
}

#[tokio::test]
async fn tls_is_spoken_with_servers_that_can_prove_who_they_are() {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = tempfile::TempDir::new().unwrap();
    let certificate = files.path().join("certificate.pem");
    let key = files.path().join("key.pem");
    std::fs::write(&certificate, signed.cert.pem()).unwrap();
    std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let port = free_port().to_string();
    let tls = ["--tls-port", &port, "--tls-cert-file", certificate, "--tls-key-file", key];
    let _server = Server::start(&[&tls[..], &["--tls-auth-clients", "no"]].concat());

    let url = format!("rediss://localhost:{port}/");
    let trusting = [("TLS_URL", url.as_str()), ("SSL_CERT_FILE", certificate)];
    let output = in_own_process("tls_client", &trusting).wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("allowed over TLS"), "{said}");
    // Whom nobody vouches for is not believed.
    let error = connect_error(&url).await;
    assert!(error.is_unreachable(), "{error}");
}
