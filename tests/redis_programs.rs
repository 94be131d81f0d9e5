//! The programs on Redis: several servers, and replays.

mod common;

use common::program::{Server, replay, run};
use common::redis::SHARED;
use common::redis_server as redis;
use common::{cases, each_algorithm};
use proptest::prelude::*;

#[test]
fn two_servers_admit_what_one_limit_allows() {
    let said = run("shared_limit", &[&SHARED.url()]);
    assert!(said.contains("together: 50 of the 50 that are allowed"), "{said}");
}

async fn count_served(servers: &[&Server], requests: usize) -> usize {
    let client = reqwest::Client::new();
    let mut served = 0;
    for n in 0..requests {
        let answer = client.get(servers[n % servers.len()].url("/")).send().await.unwrap();
        served += usize::from(answer.status() == 200);
    }
    served
}

#[tokio::test]
async fn servers_on_one_redis_share_a_limit() {
    let redis = redis::Server::start(&[]);
    let url = redis.url();
    let options = ["--policy", "token_bucket 7/h", "--redis", &url];
    let servers = [Server::start(&options), Server::start(&options), Server::start(&options)];
    assert_eq!(count_served(&servers.each_ref(), 30).await, 7);
}

/// With a limit by name in Redis, also for a policy of several limits; and without, one they all share.
#[tokio::test]
async fn servers_of_different_names_share_nothing() {
    let redis = redis::Server::start(&[]);
    let url = redis.url();
    for policy in ["token_bucket 7/h", "token_bucket 7/h; fixed_window 9/h"] {
        let options = ["--policy", policy, "--redis", &url];
        let named = |name| Server::start(&[&options[..], &["--name", name]].concat());
        let servers = [named("a"), named("b"), Server::start(&options), named("default")];
        let [a, b, unnamed, default] = servers.each_ref();
        assert_eq!(count_served(&[a], 10).await, 7, "{policy}");
        assert_eq!(count_served(&[b], 10).await, 7, "{policy}");
        assert_eq!(count_served(&[unnamed, default], 10).await, 7, "{policy}");
    }
}

/// Whatever a client writes: an API key of 390 kB, or a path of 20 kB.
#[tokio::test]
async fn requests_leave_little_in_redis() {
    let redis = redis::Server::start(&[]);
    let url = redis.url();
    let start = |key| Server::start(&["--policy", "1/h", "--key", key, "--redis", &url]);
    let servers = [start("header:x-api-key"), start("path")];
    let client = reqwest::Client::new();
    for n in 0..20 {
        let by_key = client.get(servers[0].url("/"));
        let by_key = by_key.header("x-api-key", format!("{}{n}", "k".repeat(390_000)));
        let by_path = client.get(servers[1].url(&format!("/u/{}{n}", "p".repeat(20_000))));
        for request in [by_key, by_path] {
            let [first, second] = [request.try_clone().unwrap(), request];
            assert_eq!(first.send().await.unwrap().status(), 200);
            assert_eq!(second.send().await.unwrap().status(), 429);
        }
    }
    let keys = redis.cli(&["--scan"]);
    assert_eq!(keys.lines().count(), 40);
    assert!(keys.lines().all(|key| key.len() <= 128), "{keys}");
}

#[tokio::test]
async fn servers_on_one_cluster_share_a_limit() {
    let cluster = redis::Cluster::start();
    let urls = cluster.urls().join(",");
    let options = ["--policy", "token_bucket 7/h", "--key", "path", "--redis-cluster", &urls];
    let servers = [Server::start(&options), Server::start(&options)];
    assert_eq!(count_served(&servers.each_ref(), 20).await, 7);
}

#[tokio::test]
async fn without_its_redis_a_server_does_as_it_was_told() {
    for (choice, status) in [("open", 200), ("closed", 503)] {
        let redis = redis::Server::start(&[]);
        let options = ["--policy", "7/h", "--redis", &redis.url(), "--on-store-error", choice];
        let server = Server::start(&options);
        assert_eq!(reqwest::get(server.url("/")).await.unwrap().status(), 200);
        redis.kill();
        for _ in 0..5 {
            let answer = reqwest::get(server.url("/")).await.unwrap();
            assert_eq!(answer.status(), status);
            let retry_after = answer.headers().get("retry-after");
            assert_eq!(retry_after.is_some_and(|value| value == "1"), status == 503);
            assert!(answer.headers().get("ratelimit").is_none());
        }
    }
}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn replays_are_the_same_in_redis(
        steps in prop::collection::vec((0_u64..400_000, 0..3, 0_u64..6, 0..6_usize), 1..200),
        policy in 0..6_usize,
        prefix in "[a-z]{12}",
    ) {
        let policy = &each_algorithm("7/1300ms")[policy];
        let mut now = 0;
        let trace: String = steps
            .into_iter()
            .map(|(pause, key, cost, op)| {
                now += pause;
                let ops = ["check", "check", "take_up_to", "peek", "refund", "debit"];
                format!("{now} k{key} {cost} {}\n", ops[op])
            })
            .collect();
        let in_process = replay(&["--policy", policy], &trace);
        let url = SHARED.url();
        let store = ["--store", &url, "--prefix", &prefix, "--min-ttl", "60"];
        let in_redis = replay(&[&["--policy", policy], &store[..]].concat(), &trace);
        prop_assert_eq!(in_redis.stderr, b"");
        prop_assert_eq!(
            String::from_utf8(in_redis.stdout).unwrap(),
            String::from_utf8(in_process.stdout).unwrap()
        );
    }
}

#[test]
fn a_redis_that_is_not_there_ends_a_program_with_a_clear_error() {
    let url = format!("redis://127.0.0.1:{}/", redis::free_port());
    let output = replay(&["--policy", "7/h", "--store", &url], "0 k 1\n");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: Redis cannot be reached"), "{said}");
}
