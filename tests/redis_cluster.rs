//! The store in a Redis Cluster, while it is changed.

mod common;

use common::parse;
use common::proxy::{Proxy, Upstream};
use common::redis_server::{Cluster, Server, free_cluster_port, free_port};
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tollgate::{Error, Limiter, Operation, Policy, RateLimiter, Receipt, Redis};

const KEYS: usize = 10_000;
const TASKS: usize = 16;
const LIMIT: u64 = 3;

/// Asks for all the keys, round and round, and counts.
struct Load {
    limiter: Limiter<Policy, Redis>,
    admitted: Vec<AtomicU64>,
    errors: std::sync::Mutex<Vec<(Instant, Error)>>,
    stop: AtomicBool,
}

impl Load {
    /// One round: each key once.
    async fn round(self: &Arc<Self>) {
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let load = Arc::clone(self);
            tasks.spawn(async move {
                for key in (task..KEYS).step_by(TASKS) {
                    match load.limiter.check(&key).await {
                        Ok(decision) => {
                            let admitted = u64::from(decision.is_allowed());
                            load.admitted[key].fetch_add(admitted, Ordering::Relaxed);
                        }
                        Err(error) => load.errors.lock().unwrap().push((Instant::now(), error)),
                    }
                }
            });
        }
        tasks.join_all().await;
    }

    async fn until_stopped(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            self.round().await;
        }
    }

    /// Runs `change` while the load goes on, and returns the errors meanwhile.
    async fn during<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce() -> T + Send + 'static,
    ) -> (T, Vec<(Instant, Error)>) {
        self.stop.store(false, Ordering::Relaxed);
        let load = tokio::spawn(Arc::clone(self).until_stopped());
        let changed = tokio::task::spawn_blocking(change).await.unwrap();
        self.stop.store(true, Ordering::Relaxed);
        load.await.unwrap();
        (changed, std::mem::take(&mut self.errors.lock().unwrap()))
    }

    fn admitted(&self, key: usize) -> u64 {
        self.admitted[key].load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_and_masters_fail_over_while_limits_hold() {
    let mut cluster = Cluster::start();
    let urls = cluster.urls();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let store = Redis::connect_cluster(&urls[..2]).await.unwrap();
    let policy = format!("sliding_log {LIMIT}/h; token_bucket 5/h").parse().unwrap();
    let load = Arc::new(Load {
        limiter: store.timeout(Duration::from_secs(2)).limiter("load", policy).unwrap(),
        admitted: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
        errors: std::sync::Mutex::default(),
        stop: AtomicBool::new(false),
    });

    // All slots are reached, and no key is refused yet.
    load.round().await;
    assert!(load.errors.lock().unwrap().is_empty(), "{:?}", load.errors);
    assert!((0..KEYS).all(|key| load.admitted(key) == 1));

    // A tenth of a master's slots go to another one.
    let ids: Vec<(u16, String)> = cluster
        .running()
        .filter(|node| node.cli(&["ROLE"]).starts_with("master"))
        .map(|node| (node.port, node.cli(&["CLUSTER", "MYID"])))
        .collect();
    let reshard = move || {
        let moved = Command::new("redis-cli")
            .args(["--cluster", "reshard", &format!("127.0.0.1:{}", ids[0].0)])
            .args(["--cluster-from", &ids[0].1, "--cluster-to", &ids[1].1])
            .args(["--cluster-slots", "500", "--cluster-yes"])
            .output()
            .unwrap();
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stdout));
    };
    let ((), errors) = load.during(reshard).await;
    assert!(errors.is_empty(), "{} errors: {:?}", errors.len(), errors[0]);
    let over = (0..KEYS).filter(|&key| load.admitted(key) > LIMIT).count();
    assert_eq!(over, 0);

    // A master dies. Its replica has what it had, and takes over.
    let dying = cluster.running().find(|node| node.cli(&["ROLE"]).starts_with("master")).unwrap();
    let keys = dying.cli(&["--scan"]);
    let on_it: BTreeSet<usize> =
        keys.lines().map(|key| key.rsplit(':').next().unwrap().parse().unwrap()).collect();
    assert!(on_it.len() > KEYS / 5, "{}", on_it.len());
    let killed = Instant::now();
    let fail_over = move || {
        cluster.kill_a_master();
        std::thread::sleep(Duration::from_secs(12));
        cluster
    };
    let (_cluster, errors) = load.during(fail_over).await;
    let last = errors.iter().map(|(at, _)| at.duration_since(killed)).max().unwrap_or_default();
    println!("{} errors, the last one {last:?} after the kill", errors.len());
    assert!(last < Duration::from_secs(10), "{last:?}");
    for (_, error) in &errors {
        let of_failover = error.is_unreachable() || error.is_timeout() || error.is_refused();
        assert!(of_failover, "{error}");
    }
    for _ in 0..LIMIT {
        load.round().await;
    }
    assert!(load.errors.lock().unwrap().is_empty());
    for key in 0..KEYS {
        let admitted = load.admitted(key);
        if on_it.contains(&key) {
            // What timed out may have been charged.
            assert!(admitted <= LIMIT, "{key}: {admitted}");
        } else {
            assert_eq!(admitted, LIMIT, "{key}");
        }
    }
}

/// A cluster of one server: what holds of any is told from the connection.
fn lone_node(options: &[&str]) -> Server {
    let options = [&["--cluster-enabled", "yes"], options].concat();
    let node = Server::start_on(free_cluster_port(), &options, &[]);
    let slots: Vec<String> = (0..16_384).map(|slot| slot.to_string()).collect();
    let add = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str));
    assert_eq!(node.cli(&Vec::from_iter(add)), "OK");
    let start = Instant::now();
    while !node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
        assert!(start.elapsed() < Duration::from_secs(20), "the cluster does not settle");
        std::thread::sleep(Duration::from_millis(20));
    }
    node
}

/// A cluster of one server, which is reached through a proxy.
async fn lone_node_behind_a_proxy() -> (Proxy, Server) {
    let proxy = Proxy::start(Upstream::None).await;
    let port = proxy.port.to_string();
    let announced = ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", &port];
    let node = lone_node(&announced);
    proxy.lead_to(Upstream::Server(node.port));
    (proxy, node)
}

#[tokio::test]
async fn a_cluster_publishes_no_refusals() {
    let node = lone_node(&[]);
    let store = Redis::connect_cluster(&[&node.url()]).await.unwrap();
    let error = store.publish_refusals("refusals", 1_000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "refusals cannot be published from a cluster: its keys lie in many slots, \
         and the stream \"refusals\" in one"
    );
}

/// What is lost with a connection may have been charged, and is not sent again.
#[tokio::test]
async fn a_call_whose_answer_is_lost_counts_once() {
    let (proxy, node) = lone_node_behind_a_proxy().await;
    let store = Redis::connect_cluster(&[&proxy.url()]).await.unwrap();
    let store = store.timeout(Duration::from_secs(2));
    let limiter = store.limiter("api", parse("100/d")).unwrap();
    // So the node knows both scripts.
    assert_eq!(limiter.check_n("k", 51).await.unwrap().remaining(), 49);
    assert_eq!(limiter.refund("k", 1).await.unwrap().remaining(), 50);
    for (operation, remaining) in [(Operation::Check(7), 43), (Operation::Refund(9), 52)] {
        proxy.lead_to(Upstream::BreaksOff(node.port));
        let error = limiter.decide("k", operation).await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        proxy.lead_to(Upstream::Server(node.port));
        let start = Instant::now();
        let after = loop {
            match limiter.peek("k").await {
                Ok(after) => break after,
                Err(error) => assert!(start.elapsed() < Duration::from_secs(10), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(after.remaining(), remaining, "{operation:?}");
    }
}

/// A settlement has two keys, which must lie in one slot.
#[tokio::test]
async fn costs_are_settled_whatever_a_key_looks_like() {
    let node = lone_node(&[]);
    let store = Redis::connect_cluster(&[&node.url()]).await.unwrap();
    let store = store.timeout(Duration::from_secs(5));
    for prefix in ["tollgate", "{all}"] {
        let store = store.clone().prefix(prefix);
        let limiter = store.limiter("api", parse("100/d")).unwrap();
        let long = ["k", "a{b}", "}{"].map(|part| part.repeat(100_000));
        let keys = ["k", "", "x}", "a{}b", "a{b", "}{", "a{b}", "{{b}}"];
        for key in keys.into_iter().chain(long.iter().map(String::as_str)) {
            let reservation = limiter.reserve(key, 10).await.unwrap();
            let settled = reservation.settle(2).await.unwrap();
            assert_eq!(settled.remaining(), 98, "{key:.9}");
            // The request's id may be a client's, too.
            let request = Receipt::for_request(key);
            for _ in 0..2 {
                let settle = Operation::Settle(3, &request);
                assert_eq!(limiter.decide(key, settle).await.unwrap().remaining(), 95, "{key:.9}");
            }
        }
    }
}

/// A call is sent again while its cluster is down; when its time is over, that is what it tells.
#[tokio::test]
async fn a_cluster_that_is_down_says_so_and_costs_are_settled_when_it_is_up() {
    let node = lone_node(&[]);
    let store = Redis::connect_cluster(&[&node.url()]).await.unwrap();
    let store = store.timeout(Duration::from_secs(2));
    let limiter = store.limiter("api", parse("100/d")).unwrap();
    let reservation = limiter.reserve("k", 10).await.unwrap();
    assert_eq!(node.cli(&["CLUSTER", "DELSLOTS", "0"]), "OK");
    let start = Instant::now();
    while !node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:fail") {
        assert!(start.elapsed() < Duration::from_secs(20), "the cluster stays up");
    }
    let error = limiter.check("k").await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert!(error.to_string().contains("CLUSTERDOWN"), "{error}");

    let up_again = async {
        // The first try is over by then.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(node.cli(&["CLUSTER", "ADDSLOTS", "0"]), "OK");
    };
    let (settled, ()) = tokio::join!(reservation.settle(2), up_again);
    assert_eq!(settled.unwrap().remaining(), 98);
}

/// A node that owns no slots, in the cluster of `node`.
fn empty_node_beside(node: &Server) -> Server {
    let empty = Server::start_on(free_cluster_port(), &["--cluster-enabled", "yes"], &[]);
    empty.cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string()]);
    let start = Instant::now();
    let know_each_other = |node: &Server| {
        let info = node.cli(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")
    };
    while ![node, &empty].into_iter().all(know_each_other) {
        assert!(start.elapsed() < Duration::from_secs(20), "the nodes do not meet");
        std::thread::sleep(Duration::from_millis(20));
    }
    empty
}

fn connections_received(node: &Server) -> u64 {
    let stats = node.cli(&["INFO", "stats"]);
    let received = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    received.unwrap().trim().parse().unwrap()
}

/// What calls for a key are told until one is decided on, which is before the deadline.
async fn errors_until_answered(
    limiter: &Limiter<Policy, Redis>,
    key: &str,
    deadline: Instant,
) -> Vec<Error> {
    let mut errors = Vec::new();
    while let Err(error) = limiter.check(key).await {
        assert!(Instant::now() < deadline, "{error}");
        errors.push(error);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    errors
}

/// How often a node was asked which slots are where.
fn maps_told(node: &Server) -> u64 {
    let stats = node.cli(&["INFO", "commandstats"]);
    let told = stats.lines().find_map(|line| line.strip_prefix("cmdstat_cluster|slots:calls="));
    told.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

/// A slot without keys that moves from one node to another.
struct Move {
    slot: String,
    source: Server,
    target: Server,
    ids: [String; 2],
}

impl Move {
    /// Of the slot of a key that has this hash tag, from a cluster of one node.
    fn new(tag: &str, source: Server) -> Self {
        let target = empty_node_beside(&source);
        let slot = source.cli(&["CLUSTER", "KEYSLOT", tag]);
        let ids = [&source, &target].map(|node| node.cli(&["CLUSTER", "MYID"]));
        Self { slot, source, target, ids }
    }

    fn begin(&self) {
        let [from, to] = &self.ids;
        assert_eq!(self.target.cli(&["CLUSTER", "SETSLOT", &self.slot, "IMPORTING", from]), "OK");
        assert_eq!(self.source.cli(&["CLUSTER", "SETSLOT", &self.slot, "MIGRATING", to]), "OK");
    }

    fn finish(&self) {
        for node in [&self.target, &self.source] {
            assert_eq!(node.cli(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &self.ids[1]]), "OK");
        }
    }

    /// How many connections the nodes have accepted.
    fn connections(&self) -> u64 {
        [&self.source, &self.target].map(connections_received).iter().sum()
    }
}

/// Many ask at once for what lies in a slot that moves to a node which had none before.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_nodes_first_slot_is_in_reach_while_it_moves() {
    const CALLERS: u64 = 512;
    const CALLS: u64 = 20;
    let moved = Arc::new(Move::new("{moves}", lone_node(&[])));
    let store = Redis::connect_cluster(&[&moved.source.url()]).await.unwrap();
    let store = store.prefix("{moves}").timeout(Duration::from_secs(10));
    let limiter = store.limiter("api", parse("fixed_window 1000000/d")).unwrap();
    let limiter = Arc::new(limiter);
    let all_ask = || {
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let limiter = Arc::clone(&limiter);
            callers.spawn(async move {
                for _ in 0..CALLS {
                    assert!(limiter.check("k").await.unwrap().is_allowed());
                }
            });
        }
        callers
    };
    let charged = async || 1_000_000 - limiter.peek("k").await.unwrap().remaining();
    assert_eq!(charged().await, 0);

    moved.begin();
    let before = moved.connections();
    all_ask().join_all().await;
    assert_eq!(charged().await, CALLERS * CALLS);
    // One of ours, those by which they are counted, and what a busy machine may bring about.
    let opened = moved.connections() - before;
    assert!(opened < 10, "{opened}");

    let asking = all_ask();
    let finishing = Arc::clone(&moved);
    tokio::task::spawn_blocking(move || finishing.finish()).await.unwrap();
    asking.join_all().await;
    all_ask().join_all().await;
    assert_eq!(charged().await, 3 * CALLERS * CALLS);
}

/// A slot with many keys moves for a while, and its owner is the same until then.
#[tokio::test]
async fn while_a_slot_moves_nothing_is_learned_or_connected_anew() {
    let moved = Move::new("{moves}", lone_node(&[]));
    let store = Redis::connect_cluster(&[&moved.source.url()]).await.unwrap();
    let store = store.prefix("{moves}").timeout(Duration::from_secs(5));
    let limiter = store.limiter("api", parse("100/d")).unwrap();
    let reservation = limiter.reserve("stays", 10).await.unwrap();
    moved.begin();
    assert_eq!(limiter.check("k").await.unwrap().remaining(), 99);
    let told = || [&moved.source, &moved.target].map(maps_told);
    let before = (told(), connections_received(&moved.target));

    // The one is answered by ASK; the other, with a key that has not moved and one that is new, by
    // TRYAGAIN.
    let asks = async {
        for left in (39..99).rev() {
            assert_eq!(limiter.check("k").await.unwrap().remaining(), left);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // To ask for both is a connection each.
        assert_eq!((told(), connections_received(&moved.target) - 2), before);
        // The slot moves with its keys.
        let key = moved.source.cli(&["KEYS", "*"]);
        let target = moved.target.port.to_string();
        let migrated = moved.source.cli(&["MIGRATE", "127.0.0.1", &target, &key, "0", "5000"]);
        assert_eq!(migrated, "OK");
        moved.finish();
    };
    let (settled, ()) = tokio::join!(reservation.settle(2), asks);
    assert_eq!(settled.unwrap().remaining(), 98);
}

/// What calls are told while something else has the address of the node that a slot was on, until they
/// find the node that it has moved to.
async fn errors_of_a_stranger(stranger: Upstream) -> Vec<Error> {
    let (proxy, source) = lone_node_behind_a_proxy().await;
    let moved = Move::new("k", source);
    let urls = [proxy.url(), moved.target.url()];
    let store = Redis::connect_cluster(&[&urls[0], &urls[1]]).await.unwrap();
    let store = store.prefix("{k}").timeout(Duration::from_secs(5));
    let limiter = store.limiter("api", parse("100/d")).unwrap();
    assert_eq!(limiter.peek("k").await.unwrap().remaining(), 100);

    moved.finish();
    proxy.lead_to(stranger);
    moved.source.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    // As long as it takes to notice that.
    tokio::time::sleep(Duration::from_millis(100)).await;
    errors_until_answered(&limiter, "k", Instant::now() + Duration::from_secs(10)).await
}

/// As where the node has another password now.
#[tokio::test]
async fn a_node_that_does_not_let_us_in_is_left_for_the_one_that_has_the_slot() {
    for error in errors_of_a_stranger(Upstream::None).await {
        assert!(error.is_refused(), "{error}");
    }
}

/// It has not run what it was sent.
#[tokio::test]
async fn a_replica_is_left_within_the_call() {
    let master = format!("127.0.0.1 {}", free_port());
    let replica = Server::start(&["--replicaof", &master]);
    let errors = errors_of_a_stranger(Upstream::Server(replica.port)).await;
    assert!(errors.is_empty(), "{errors:?}");
}

/// Where the nodes are to tell each other's names, and have none.
#[tokio::test]
async fn nodes_without_names_are_reached_by_their_addresses() {
    let by_name = ["--cluster-preferred-endpoint-type", "hostname"];
    let moved = Move::new("k", lone_node(&by_name));
    let store = Redis::connect_cluster(&[&moved.source.url()]).await.unwrap();
    let store = store.prefix("{k}").timeout(Duration::from_secs(5));
    let limiter = store.limiter("api", parse("100/d")).unwrap();
    assert_eq!(limiter.peek("k").await.unwrap().remaining(), 100);
    // A redirect tells no address.
    moved.finish();
    assert_eq!(limiter.check("k").await.unwrap().remaining(), 99);
}

#[tokio::test]
async fn nodes_that_hang_are_left_for_those_that_do_not() {
    let cluster = Cluster::start();
    let [mut masters, replicas]: [Vec<&Server>; 2] = ["master", "slave"].map(|role| {
        cluster.running().filter(|node| node.cli(&["ROLE"]).starts_with(role)).collect()
    });
    // As a name that leads to some node.
    let proxy = Proxy::start(Upstream::Server(replicas[0].port)).await;
    let store = Redis::connect_cluster(&[&proxy.url()]).await.unwrap();
    let limiter = store.limiter("api", parse("100/d")).unwrap();
    let all_answer = async |within| {
        let deadline = Instant::now() + within;
        let mut errors = 0;
        for key in 0..20 {
            errors += errors_until_answered(&limiter, &key.to_string(), deadline).await.len();
        }
        errors
    };
    all_answer(Duration::from_secs(5)).await;

    // Its replica takes over.
    let hanging = masters.pop().unwrap();
    hanging.hang();
    assert!(all_answer(Duration::from_secs(20)).await > 0);

    // All of them are gone, and the name leads to one that is new.
    masters.into_iter().chain(replicas).for_each(Server::hang);
    let new = lone_node(&[]);
    proxy.lead_to(Upstream::Server(new.port));
    assert!(all_answer(Duration::from_secs(7)).await > 0);
}

/// A connection that was given to us does not find a node that owns no slots.
#[tokio::test]
async fn a_connection_of_ones_own_is_not_broken_by_a_node_that_it_does_not_know() {
    let moved = Move::new("{moves}", lone_node(&[]));
    let client = redis::cluster::ClusterClient::builder([moved.source.url()]).retries(0);
    let connection = client.build().unwrap().get_async_connection().await.unwrap();
    let store = Redis::from_cluster_connection(connection).prefix("{moves}");
    let store = store.timeout(Duration::from_secs(3));
    let limiter = store.limiter("api", parse("100/d")).unwrap();
    let limiter = Arc::new(limiter);
    assert_eq!(limiter.check("k").await.unwrap().remaining(), 99);
    let _ = limiter.reset("k").await.unwrap();

    moved.begin();
    let before = moved.connections();
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let limiter = Arc::clone(&limiter);
        callers.spawn(async move { limiter.check("k").await.unwrap_err() });
    }
    for error in callers.join_all().await {
        assert!(error.is_unreachable() || error.is_refused(), "{error}");
    }
    // Some for each second.
    let opened = moved.connections() - before;
    assert!(opened < 12, "{opened}");
    moved.finish();
    errors_until_answered(&limiter, "k", Instant::now() + Duration::from_secs(10)).await;
}
