//! A way to a cluster of Redis servers that finds back by itself.

use super::connection::{CONNECTION_TIMEOUT, Server, is_of_command, server_info};
use super::key::slot_of;
use crate::limiter::OnDrop;
use redis::{
    Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, RetryMethod,
    ServerErrorKind, Value,
};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, mem};
use tokio::time::{Instant, sleep, timeout};

/// Until a command that no node has run is sent again for the second time; then twice as long, and
/// so on. The first time it is sent at once.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Bounds how often and how long a command is sent again.
pub(super) struct Patience {
    pause: Duration,
    deadline: Instant,
}

impl Patience {
    pub(super) const fn until(deadline: Instant) -> Self {
        Self { pause: Duration::ZERO, deadline }
    }

    /// Waits until the next try; false where that would be too late.
    pub(super) async fn wait(&mut self) -> bool {
        if Instant::now() + self.pause >= self.deadline {
            return false;
        }
        if !self.pause.is_zero() {
            sleep(self.pause).await;
        }
        self.pause = (2 * self.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        true
    }
}

/// Whether a node has refused to run a command that may be run later, or by another node. What is
/// lost with a connection may have been run, and is left to the caller.
pub(super) fn may_be_sent_again(error: &RedisError) -> bool {
    matches!(
        error.retry_method(),
        RetryMethod::AskRedirect
            | RetryMethod::MovedRedirect
            | RetryMethod::RefreshSlotsAndRetry
            | RetryMethod::ReconnectFromInitialConnections
            | RetryMethod::WaitAndRetry
    )
}

/// Whether another node may have the slot by now, or this one's address. Not while a slot moves (ASK,
/// TRYAGAIN): it still has its owner.
fn tells_of_change(error: &RedisError) -> bool {
    use ServerErrorKind::{ClusterDown, Moved};
    matches!(error.kind(), ErrorKind::Server(Moved | ClusterDown)) || !is_of_command(error)
}

/// The nodes, and which slots they own.
///
/// The `redis` crate's connection to a cluster is not used, as it does not find a node that owns no
/// slots yet, and as it waits for itself for ever if it learns that a slot has moved while dozens of
/// calls are under way: some of them then hold what it wants to lock, and are not polled meanwhile.
pub(super) struct Cluster {
    /// Where the nodes are that were told first.
    first: Vec<Address>,
    /// How to connect to a node, but for its address.
    info: ConnectionInfo,
    map: Mutex<Map>,
    /// When it was last asked which slots are where.
    asked: Mutex<Instant>,
}

#[derive(Default)]
struct Map {
    owners: HashMap<u16, Arc<Node>>,
    /// Those that own slots, their replicas, and those that slots have begun to move to since.
    nodes: HashMap<Address, Arc<Node>>,
}

/// A host and a port.
pub(super) type Address = (String, u16);

struct Node {
    host: String,
    server: Server,
}

/// As often as it is asked which slots are where.
const ASKING_INTERVAL: Duration = Duration::from_millis(500);

impl Cluster {
    /// Connects to one of the nodes, and learns of the others.
    pub(super) async fn connect(urls: &[&str]) -> RedisResult<Arc<Self>> {
        let infos = urls.iter().map(|url| server_info(url)).collect::<RedisResult<Vec<_>>>()?;
        let first = infos.iter().map(address_of).collect::<RedisResult<_>>()?;
        let none = || RedisError::from((ErrorKind::InvalidClientConfig, "no address of a node"));
        let info = infos.into_iter().next().ok_or_else(none)?;
        let (map, asked) = (Mutex::default(), Mutex::new(Instant::now()));
        let cluster = Self { first, info, map, asked };
        cluster.learn().await?;
        Ok(Arc::new(cluster))
    }

    /// Sends a command for a key, again and again where no node has run it. When it is too late for
    /// another try, the answer is the last error.
    pub(super) async fn send(
        self: &Arc<Self>,
        command: &Cmd,
        key: &[u8],
        deadline: Instant,
    ) -> RedisResult<Value> {
        let slot = slot_of(key);
        let mut patience = Patience::until(deadline);
        let mut node = self.owner(slot)?;
        let mut asking = false;
        loop {
            let answer = self.ask(&node, command, asking).await;
            let Err(error) = &answer else { return answer };
            if !may_be_sent_again(error) || !patience.wait().await {
                return answer;
            }
            let Some(address) = redirect(error, &node.host) else {
                (node, asking) = (self.owner(slot)?, false);
                continue;
            };
            asking = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Ask));
            node = self.node(address)?;
            if !asking {
                self.map().owners.insert(slot, Arc::clone(&node));
            }
        }
    }

    /// Some errors tell of a change, and so may a call that is not answered at all.
    async fn ask(self: &Arc<Self>, node: &Node, command: &Cmd, asking: bool) -> RedisResult<Value> {
        let unanswered = OnDrop(|| self.learn_soon());
        let answer = if asking {
            node.server.send_asking(command).await
        } else {
            node.server.send(command).await
        };
        match &answer {
            Err(error) if tells_of_change(error) => drop(unanswered),
            _ => mem::forget(unanswered),
        }
        answer
    }

    /// The owner of a slot; where nobody is known to own it, any node, which will tell who does.
    fn owner(&self, slot: u16) -> RedisResult<Arc<Node>> {
        let map = self.map();
        let node = map.owners.get(&slot).or_else(|| map.nodes.values().next());
        node.cloned().ok_or_else(no_node)
    }

    /// The node at an address. If it is new, it will be connected to when it is asked.
    fn node(&self, address: Address) -> RedisResult<Arc<Node>> {
        let mut map = self.map();
        if let Some(node) = map.nodes.get(&address) {
            return Ok(Arc::clone(node));
        }
        let (host, port) = address.clone();
        let info = self.info.clone().set_addr(at(self.info.addr(), host.clone(), port));
        let node = Arc::new(Node { host, server: Server::new(info)? });
        map.nodes.insert(address, Arc::clone(&node));
        Ok(node)
    }

    /// Learns which slots are where in a task of its own, unless that was begun just now.
    fn learn_soon(self: &Arc<Self>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.elapsed() < ASKING_INTERVAL {
            return;
        }
        // There is no runtime where a call is dropped after it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        *asked = Instant::now();
        let cluster = Arc::clone(self);
        runtime.spawn(async move { cluster.learn().await });
    }

    /// Learns which slots are where, from the first node that tells. After one that is known, those that
    /// were told first are asked, as all the others may be gone.
    async fn learn(&self) -> RedisResult<()> {
        // Not the same ones each time, as they may not answer.
        let random = RandomState::new();
        let mut known: Vec<Address> = self.map().nodes.keys().cloned().collect();
        known.retain(|address| !self.first.contains(address));
        known.sort_by_cached_key(|address| random.hash_one(address));
        let mut first = self.first.clone();
        first.sort_by_cached_key(|address| random.hash_one(address));
        let (one, others) = known.split_at(known.len().min(1));
        let mut last = Err(no_node());
        for address in one.iter().chain(&first).chain(others) {
            last = self.learn_from(address).await;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    async fn learn_from(&self, address: &Address) -> RedisResult<()> {
        let node = self.node(address.clone())?;
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let slots = timeout(CONNECTION_TIMEOUT, node.server.send(&command)).await;
        let slots = slots.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let mut map = Map::default();
        for Range { slots, master, replicas } in ranges(&slots, &node.host).ok_or_else(no_node)? {
            if let Some(address) = master {
                let master = self.node(address.clone())?;
                map.owners.extend(slots.map(|slot| (slot, Arc::clone(&master))));
                map.nodes.insert(address, master);
            }
            for address in replicas {
                map.nodes.insert(address.clone(), self.node(address)?);
            }
        }
        if map.owners.is_empty() {
            return Err(no_node());
        }
        // It takes a while to drop so many, and nobody should wait for that.
        let before = mem::replace(&mut *self.map(), map);
        drop(before);
        Ok(())
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_node() -> RedisError {
    (ErrorKind::ClusterConnectionNotFound, "no node is known that owns slots").into()
}

/// Another address, to be reached in the same way.
fn at(like: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            let (insecure, tls_params) = (*insecure, tls_params.clone());
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

fn address_of(info: &ConnectionInfo) -> RedisResult<Address> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Ok((host.clone(), *port))
        }
        _ => {
            let what = "the nodes of a cluster tell each other's addresses by hosts and ports";
            Err((ErrorKind::InvalidClientConfig, what).into())
        }
    }
}

/// The address of the node that an error tells to ask instead, if it tells one.
pub(super) fn redirect(error: &RedisError, own_host: &str) -> Option<Address> {
    let (address, _) = error.redirect_node()?;
    named(address, own_host)
}

/// The address that a node names: without a host, it is the node's own. None where the host is not
/// known.
fn named(address: &str, own_host: &str) -> Option<Address> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.trim_matches(['[', ']']) {
        "" => own_host,
        UNKNOWN => return None,
        host => host,
    };
    Some((host.to_owned(), port.parse().ok()?))
}

/// The host of a node that has none of the kind that the cluster is to tell.
const UNKNOWN: &str = "?";

/// Slots, and the nodes that have them, where they can be reached.
struct Range {
    slots: std::ops::RangeInclusive<u16>,
    master: Option<Address>,
    replicas: Vec<Address>,
}

/// Reads the answer to `CLUSTER SLOTS`.
fn ranges(answer: &Value, own_host: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    let read = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(start), Value::Int(end), nodes @ ..] = parts.as_slice() else {
            return None;
        };
        let slots = u16::try_from(*start).ok()?..=u16::try_from(*end).ok()?;
        let mut nodes = nodes.iter().map(|node| node_of_range(node, own_host));
        let master = nodes.next().flatten();
        Some(Range { slots, master, replicas: nodes.flatten().collect() })
    };
    ranges.iter().map(read).collect()
}

fn node_of_range(node: &Value, own_host: &str) -> Option<Address> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), more @ ..] = parts.as_slice() else { return None };
    let host = match text(host)? {
        // After the node's id there is what else is known of it.
        UNKNOWN => more.get(1)?.as_map_iter()?.find_map(|(name, value)| {
            let is_address = text(name) == Some("ip");
            text(value).filter(|_| is_address)
        })?,
        host => host,
    };
    let host = if host.is_empty() { own_host } else { host };
    Some((host.to_owned(), u16::try_from(*port).ok()?))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Nil => Some(""),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".into())])
    }

    fn range(start: i64, end: i64, nodes: &[Value]) -> Value {
        Value::Array([&[Value::Int(start), Value::Int(end)], nodes].concat())
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn a_node_without_a_host_has_that_of_the_node_that_tells() {
        let named = node(bulk("other"), 7_001);
        let [empty, none] = [bulk(""), Value::Nil].map(|host| node(host, 7_002));
        let answer = [range(0, 9, &[named, empty]), range(10, 16_383, &[none])];
        let read = ranges(&Value::Array(answer.into()), "own").unwrap();
        let [other, own] = [("other", 7_001), ("own", 7_002)]
            .map(|(host, port): (&str, u16)| (host.to_owned(), port));
        assert_eq!(read[0].slots, 0..=9);
        assert_eq!(read[0].master, Some(other));
        assert_eq!(read[0].replicas, std::slice::from_ref(&own));
        assert_eq!(read[1].slots, 10..=16_383);
        assert_eq!(read[1].master, Some(own.clone()));
        assert_eq!(super::named(":7002", "own"), Some(own));
        for address in ["2001:db8::1:7", "[2001:db8::1]:7"] {
            assert_eq!(super::named(address, "own"), Some(("2001:db8::1".to_owned(), 7)));
        }
    }

    #[test]
    fn a_node_whose_host_is_not_known_has_its_address_or_none() {
        let unknown = |more: Value| Value::Array(vec![bulk("?"), Value::Int(7), bulk("id"), more]);
        let known = [(bulk("hostname"), bulk("")), (bulk("ip"), bulk("127.0.0.1"))];
        let flat = known.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect();
        let own = Value::Map(vec![(bulk("ip"), bulk(""))]);
        for (more, host) in [
            (Value::Map(known.into()), "127.0.0.1"),
            (Value::Array(flat), "127.0.0.1"),
            (own, "own"),
        ] {
            assert_eq!(node_of_range(&unknown(more), "own"), Some((host.to_owned(), 7)));
        }
        // A replica is not taken for the master.
        let nodes = [unknown(Value::Array(vec![])), node(bulk("replica"), 8)];
        let read = ranges(&Value::Array(vec![range(0, 9, &nodes)]), "own").unwrap();
        assert_eq!(read[0].master, None);
        assert_eq!(read[0].replicas, [("replica".to_owned(), 8)]);
        assert_eq!(super::named("?:7", "own"), None);
    }

    #[test]
    fn what_is_no_map_of_slots_is_not_read() {
        for answer in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(-1, 9, &[node(bulk("host"), 7_000)])]),
            Value::Array(vec![range(0, 70_000, &[node(bulk("host"), 7_000)])]),
        ] {
            assert!(ranges(&answer, "own").is_none(), "{answer:?}");
        }
        for no_node in [node(bulk("host"), 70_000), bulk("host")] {
            assert_eq!(node_of_range(&no_node, "own"), None, "{no_node:?}");
        }
    }
}
