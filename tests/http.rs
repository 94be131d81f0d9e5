//! The guarded server, driven by a real client.

mod common;

use common::program::{Server, refused, run};
use reqwest::{Client, Response, StatusCode};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

fn header<'r>(response: &'r Response, name: &str) -> &'r str {
    response.headers().get(name).map_or("none", |value| value.to_str().unwrap())
}

async fn get(client: &Client, url: String) -> Response {
    client.get(url).send().await.unwrap()
}

async fn hits(client: &Client, server: &Server) -> u64 {
    get(client, server.url("/hits")).await.text().await.unwrap().parse().unwrap()
}

fn http1() -> Client {
    Client::builder().http1_only().build().unwrap()
}

fn http2() -> Client {
    Client::builder().http2_prior_knowledge().build().unwrap()
}

#[tokio::test]
async fn a_burst_then_429_with_the_fields_of_the_draft() {
    let server = Server::start(&["--policy", "token_bucket 1/2s burst 3"]);
    let client = http1();
    let table = [
        (200, r#""default";r=2;t=2"#, "none"),
        (200, r#""default";r=1;t=2"#, "none"),
        (200, r#""default";r=0;t=2"#, "none"),
        (429, r#""default";r=0;t=2"#, "2"),
    ];
    let started = Instant::now();
    for (status, ratelimit, retry_after) in table {
        let response = get(&client, server.url("/")).await;
        assert_eq!(response.status(), status);
        assert_eq!(header(&response, "ratelimit-policy"), r#""default";q=3;w=6"#);
        assert_eq!(header(&response, "ratelimit"), ratelimit);
        assert_eq!(header(&response, "retry-after"), retry_after);
    }
    assert_eq!(hits(&client, &server).await, 3, "a refused request does not reach the handler");

    sleep(Duration::from_millis(1_200)).await;
    let response = get(&client, server.url("/")).await;
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        assert_eq!(header(&response, "retry-after"), "1", "at most 800 ms are left");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(get(&client, server.url("/")).await.status(), StatusCode::OK);
    } else {
        assert!(started.elapsed() >= Duration::from_secs(2), "only a slow machine gets here");
    }
}

/// As the README has it.
#[tokio::test]
async fn by_default_the_fourth_request_is_refused() {
    let server = Server::start(&[]);
    let client = http1();
    for (n, expected) in (1..).zip([200, 200, 200, 429]) {
        let response = get(&client, server.url(&format!("/?{n}"))).await;
        assert_eq!(response.status(), expected);
    }
}

#[tokio::test]
async fn refusals_cost_nothing_and_idle_time_refills_no_more_than_the_burst() {
    let server = Server::start(&["--policy", "token_bucket 1/2s burst 3"]);
    let client = http1();
    // How many of `n` are allowed, and how many more units came back meanwhile at the most.
    let ask = async |n: usize| {
        let started = Instant::now();
        let mut allowed = 0;
        for _ in 0..n {
            allowed += u64::from(get(&client, server.url("/")).await.status() == StatusCode::OK);
        }
        (allowed, started.elapsed().as_secs() / 2 + 1)
    };
    let (allowed, came_back) = ask(103).await;
    assert!((3..=2 + came_back).contains(&allowed), "{allowed}");
    sleep(Duration::from_millis(2_050)).await;
    let (allowed, came_back) = ask(20).await;
    assert!((1..=came_back).contains(&allowed), "{allowed}: a hundred refusals cost nothing");
    sleep(Duration::from_secs(10)).await;
    let (allowed, came_back) = ask(20).await;
    assert!((3..=2 + came_back).contains(&allowed), "{allowed}: idle time refills three");
}

/// Exactly the limit, over many connections and over many streams of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_across_connections_and_streams() {
    let policy = ["--policy", "token_bucket 1/min burst 50"];
    for (client, requests) in [(http1(), 1_000), (http2(), 200)] {
        let server = Server::start(&policy);
        let mut tasks = JoinSet::new();
        for _ in 0..requests {
            let (client, url) = (client.clone(), server.url("/u/1"));
            tasks.spawn(async move { get(&client, url).await.status() });
        }
        let statuses = tasks.join_all().await;
        let count = |status| statuses.iter().filter(|&&s| s == status).count();
        assert_eq!(count(StatusCode::OK), 50);
        assert_eq!(count(StatusCode::TOO_MANY_REQUESTS), requests - 50);
        assert_eq!(hits(&client, &server).await, 50);
    }
}

#[tokio::test]
async fn headers_do_not_choose_the_status() {
    let server = Server::start(&["--policy", "token_bucket 1/h burst 1"]);
    assert_eq!(get(&http1(), server.url("/")).await.status(), StatusCode::OK);
    for client in [http1(), http2()] {
        for content_type in ["application/grpc", "application/grpc-web+proto", "text/plain"] {
            let request = client.get(server.url("/")).header("content-type", content_type);
            let denied = request.header("te", "trailers").send().await.unwrap();
            assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS, "{content_type}");
            assert_eq!(header(&denied, "grpc-status"), "none");
        }
    }
    assert_eq!(hits(&http1(), &server).await, 1);
}

#[tokio::test]
async fn headers_do_not_choose_the_key() {
    let server = Server::start(&["--policy", "token_bucket 1/min burst 3"]);
    let client = http1();
    let mut allowed = 0;
    for n in 0..20 {
        let address = format!("198.51.100.{n}");
        let request = client
            .get(server.url("/"))
            .header("x-forwarded-for", &address)
            .header("forwarded", format!("for={address}"))
            .header("x-real-ip", &address)
            .header("cf-connecting-ip", &address);
        allowed += u32::from(request.send().await.unwrap().status() == StatusCode::OK);
    }
    assert_eq!(allowed, 3);
}

#[tokio::test]
async fn each_choice_of_key_has_its_budgets() {
    let client = http1();
    let statuses = async |key: &str, requests: [(&str, &str); 4]| {
        let server = Server::start(&["--policy", "1/h", "--key", key]);
        let mut statuses = [0; 4];
        for ((path, user), status) in requests.into_iter().zip(&mut statuses) {
            let request = client.get(server.url(path)).header("x-user", user);
            *status = request.send().await.unwrap().status().as_u16();
        }
        statuses
    };
    let requests = [("/u/1", "alice"), ("/u/2", "alice"), ("/u/2", "bob"), ("/u/1", "bob")];
    assert_eq!(statuses("peer", requests).await, [200, 429, 429, 429]);
    assert_eq!(statuses("global", requests).await, [200, 429, 429, 429]);
    assert_eq!(statuses("path", requests).await, [200, 200, 429, 429]);
    assert_eq!(statuses("header:x-user", requests).await, [200, 429, 200, 429]);
}

/// Each spelling of a path is the path, and what takes no route shares a budget.
#[tokio::test]
async fn a_path_spelled_otherwise_has_no_budget_of_its_own() {
    let server = Server::start(&["--policy", "1/h", "--key", "path"]);
    let client = http1();
    for (path, status) in [
        ("/u/1", 200),
        ("/u/%31", 429),
        ("/u/1?new", 429),
        ("/u/2", 200),
        ("/u/%32", 429),
        ("/u/%2541", 200),
        ("/u/A", 200),
        ("/u/%41", 429),
        ("/", 200),
        ("/?new", 429),
        ("/nowhere", 404),
        ("/elsewhere", 429),
        ("//u/1", 429),
        ("/%75/1", 429),
        ("/u/1/", 429),
        ("/u/1/2", 429),
    ] {
        assert_eq!(get(&client, server.url(path)).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn of_two_policies_the_exhausted_one_is_named_and_the_other_is_not_charged() {
    let policy = "burst: token_bucket 1/2s burst 3; daily: sliding_log 4/day";
    let server = Server::start(&["--policy", policy, "--cost-header", "x-cost"]);
    let client = http1();
    let both = r#""burst";q=3;w=6, "daily";q=4;w=86400"#;
    let ask_for_two = async || {
        let response = client.get(server.url("/")).header("x-cost", "2").send().await.unwrap();
        assert_eq!(header(&response, "ratelimit-policy"), both);
        let (limit, _) = header(&response, "ratelimit").split_once(";t=").unwrap();
        (response.status().as_u16(), limit.to_owned())
    };
    assert_eq!(ask_for_two().await, (200, r#""burst";r=1"#.to_owned()));
    for _ in 0..10 {
        assert_eq!(ask_for_two().await, (429, r#""burst";r=1"#.to_owned()));
    }
    sleep(Duration::from_millis(4_050)).await;
    // The two that the day has left are still there, and no more.
    assert_eq!(ask_for_two().await, (200, r#""daily";r=0"#.to_owned()));
}

#[tokio::test]
async fn the_routes_answer() {
    let server = Server::start(&["--policy", "100/s"]);
    for client in [http1(), http2()] {
        assert_eq!(get(&client, server.url("/")).await.text().await.unwrap(), "hello\n");
        assert_eq!(get(&client, server.url("/u/7")).await.text().await.unwrap(), "hello 7\n");
        let echo = client.post(server.url("/echo")).body("abc").send().await.unwrap();
        assert_eq!(echo.text().await.unwrap(), "abc");
        let unlimited = get(&client, server.url("/hits")).await;
        assert_eq!(header(&unlimited, "ratelimit"), "none");
    }
    // No handler runs for these.
    let wrong_method = http1().post(server.url("/")).send().await.unwrap();
    assert_eq!(wrong_method.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(get(&http1(), server.url("/nowhere")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(hits(&http1(), &server).await, 6);
}

/// How many of the requests with these headers, told by their number, are served.
async fn served(
    options: &[&str],
    requests: usize,
    headers: impl Fn(usize) -> Vec<(&'static str, String)>,
) -> usize {
    let policy = ["--policy", "token_bucket 1/min burst 3"];
    let server = Server::start(&[&policy, options].concat());
    let client = http1();
    let mut served = 0;
    for n in 0..requests {
        let mut request = client.get(server.url("/"));
        for (name, value) in headers(n) {
            request = request.header(name, value);
        }
        let status = request.send().await.unwrap().status();
        assert!(status == 200 || status == 429, "{status}");
        served += usize::from(status == 200);
    }
    served
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_last_address_it_did_not_write_itself_is_the_key() {
    let trust = ["--trust", "127.0.0.1/32"];
    let forged = |n: usize| vec![("x-forwarded-for", format!("198.51.100.{n}, 203.0.113.7"))];
    assert_eq!(served(&trust, 20, forged).await, 3);
    let several = |n: usize| vec![("x-forwarded-for", format!("203.0.113.{}", n % 2))];
    assert_eq!(served(&trust, 20, several).await, 6);
    let lines = |n: usize| {
        let forged = ("x-forwarded-for", format!("198.51.100.{n}"));
        vec![forged, ("x-forwarded-for", "203.0.113.7".to_owned())]
    };
    assert_eq!(served(&trust, 20, lines).await, 3);
    assert_eq!(served(&["--trust", "10.0.0.0/8"], 20, several).await, 3, "not our proxy");
    let two =
        |n: usize| vec![("x-forwarded-for", format!("1.1.1.{n}, 203.0.113.{}, 10.0.0.1", n % 2))];
    assert_eq!(served(&["--hops", "2"], 20, two).await, 6);
    let mapped = |n: usize| {
        let address = ["203.0.113.7", "::ffff:203.0.113.7", "[::ffff:203.0.113.7]:80"][n % 3];
        vec![("x-forwarded-for", address.to_owned())]
    };
    assert_eq!(served(&trust, 20, mapped).await, 3);
    let rotating = |n: usize| vec![("x-forwarded-for", format!("2001:db8:0:0:{n}::{n}"))];
    assert_eq!(served(&trust, 20, rotating).await, 3, "one /64");
    let wide = |n: usize| vec![("x-forwarded-for", format!("2001:db8:0:{:x}00::1", n % 2))];
    assert_eq!(served(&trust, 20, wide).await, 6);
    let options = ["--trust", "127.0.0.1", "--ipv6-prefix", "48"];
    assert_eq!(served(&options, 20, wide).await, 3);
}

#[tokio::test]
async fn each_deployment_has_its_one_header() {
    let trust = ["--trust", "127.0.0.1/32", "--forwarded"];
    let all = |n: usize| {
        let forged = format!("198.51.100.{n}");
        vec![
            ("x-forwarded-for", forged.clone()),
            ("forwarded", format!("for={forged}, for=\"203.0.113.7:{n}\"")),
            ("cf-connecting-ip", format!("203.0.113.{}", n % 2)),
            ("x-real-ip", forged.clone()),
            ("x-real-ip", forged),
        ]
    };
    assert_eq!(served(&[&trust[..], &["forwarded"]].concat(), 20, all).await, 3);
    assert_eq!(served(&[&trust[..], &["cf-connecting-ip"]].concat(), 20, all).await, 6);
    assert_eq!(served(&[&trust[..], &["x-real-ip"]].concat(), 20, all).await, 3, "there twice");
    assert_eq!(served(&[&trust[..], &["x-forwarded-for"]].concat(), 20, all).await, 20);
}

/// However long the header is, it is answered like any other, and all such requests are the peer's:
/// a way of trusted proxies only is followed as far as the server's bound, and leads nowhere.
#[tokio::test]
async fn monstrous_headers_are_nobodys_key() {
    let trust = ["--trust", "127.0.0.1/32", "--forwarded"];
    let monsters = [
        ",".repeat(10_000),
        "10.0.0.1,".repeat(1_000),
        // 10,000 hops, and the client's own address beyond them.
        format!("203.0.113.7{}", ",127.0.0.1".repeat(10_000)),
        format!("for=203.0.113.7{}", ",for=127.0.0.1".repeat(10_000)),
        format!("{}127.0.0.1", "127.0.0.1, ".repeat(900)),
        "\"".repeat(10_000),
        "\\\"".repeat(5_000),
        "for=\"".repeat(2_000),
        "for=127.0.0.1;".repeat(900),
        "unknown, _hidden, [::1, ::1%eth0, 1.2.3.4:99999999, 1.2.3, \"\"".to_owned(),
    ];
    for header in ["x-forwarded-for", "forwarded", "x-real-ip"] {
        for monster in &monsters {
            let value = monster.clone();
            let name: &'static str = header;
            let headers = move |_: usize| vec![(name, value.clone())];
            let served = served(&[&trust[..], &[header]].concat(), 5, headers).await;
            assert_eq!(served, 3, "{header}: {}", &monster[..monster.len().min(40)]);
        }
    }
    // More than the server reads of headers is for the server to refuse.
    let server = Server::start(&["--policy", "100/min", "--trust", "127.0.0.1/32"]);
    let huge = "1.1.1.1,".repeat(64 * 1024 / 8);
    let request = http1().get(server.url("/")).header("x-forwarded-for", huge);
    let status = request.send().await.unwrap().status();
    assert!(status == 200 || status == 431, "{status}");
}

#[test]
fn flags_that_would_do_nothing_are_refused() {
    // Nobody can listen there, so that what is not refused ends all the same.
    let listen = ["--listen", "192.0.2.1:1"];
    for (options, problem) in [
        (&["--forwarded", "x-real-ip"][..], "--trust <CIDR>|--hops <N>"),
        (&["--trust", "10.0.0.0/8", "--hops", "1"], "cannot be used with"),
    ] {
        let said = refused("server", &[&listen, options].concat());
        assert!(said.contains(problem), "{said}");
    }
}

#[tokio::test]
async fn answers_are_in_the_style_that_is_asked_for() {
    let fields = [
        "ratelimit-policy",
        "ratelimit",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ];
    let n = "none";
    let table = [
        ("draft-11", [r#""api";q=3;w=180"#, r#""api";r=2;t=60"#, n, n, n, n, n, n]),
        ("draft-7", ["3;w=180", "limit=3, remaining=2, reset=60", n, n, n, n, n, n]),
        ("draft-6", ["3;w=180", n, "3", "2", "60", n, n, n]),
        ("legacy-delta", [n, n, n, n, n, "3", "2", "60"]),
        ("none", [n; 8]),
    ];
    for (style, expected) in table {
        let policy = ["--policy", "token_bucket 1/min burst 3", "--name", "api"];
        let server = Server::start(&[&policy[..], &["--headers", style]].concat());
        let response = get(&http1(), server.url("/")).await;
        for (field, expected) in fields.iter().zip(expected) {
            assert_eq!(header(&response, field), expected, "{style}: {field}");
        }
    }
}

#[tokio::test]
async fn refusals_are_problems_that_name_the_policy() {
    let policy = ["--policy", "token_bucket 1/min burst 3", "--name", "api"];
    let server = Server::start(&[&policy[..], &["--cost-header", "x-cost"]].concat());
    let client = http1();
    let ask =
        async |cost: &str| client.get(server.url("/")).header("x-cost", cost).send().await.unwrap();
    assert_eq!(ask("3").await.status(), 200);
    let refused = ask("1").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(header(&refused, "retry-after"), "60");
    assert_eq!(header(&refused, "cache-control"), "no-store");
    assert_eq!(header(&refused, "content-type"), "application/problem+json");
    let problem: serde_json::Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(problem["violated-policies"], serde_json::json!(["api"]));
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["title"], "Quota exceeded");
    assert_eq!(problem["detail"], "Too many requests: retry after 60 s.");
    for cost in ["4", "18446744073709551615", "18446744073709551616"] {
        let never = ask(cost).await;
        assert_eq!((never.status().as_u16(), header(&never, "retry-after")), (429, "none"));
        let problem: serde_json::Value =
            serde_json::from_str(&never.text().await.unwrap()).unwrap();
        assert_eq!(problem["title"], "Quota exceeded");
        assert_eq!(problem["detail"], "This request costs more than its limit ever allows.");
    }
    let head = client.head(server.url("/")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "retry-after")), (429, "60"));
    assert_ne!(header(&head, "content-length"), "0");
    assert_eq!(ask("0").await.status(), 200, "a cost of nothing is free");
}

#[tokio::test]
async fn requests_are_held_back_where_that_is_asked_for() {
    let server = Server::start(&["--policy", "leaky_bucket 10/s capacity 5", "--wait", "2000"]);
    let client = http1();
    let started = Instant::now();
    for _ in 0..6 {
        assert_eq!(get(&client, server.url("/")).await.status(), 200);
    }
    assert!(started.elapsed() >= Duration::from_millis(490), "{:?}", started.elapsed());
    let server = Server::start(&["--policy", "token_bucket 1/h", "--wait", "100"]);
    assert_eq!(get(&client, server.url("/")).await.status(), 200);
    assert_eq!(get(&client, server.url("/")).await.status(), 429);
}

/// `examples/outbound.rs`: a limited client and a limited server.
#[test]
fn a_client_with_the_layer_keeps_to_a_limit() {
    let printed = run("outbound", &[]);
    let (millis, refused) = printed
        .trim_end()
        .strip_prefix("20 requests in ")
        .and_then(|rest| rest.split_once(" ms, "))
        .unwrap_or_else(|| panic!("{printed}"));
    assert_eq!(refused, "0 refused");
    // 19 a second, one at a time.
    assert!(millis.parse::<u64>().unwrap() >= 1_000, "{printed}");
}
