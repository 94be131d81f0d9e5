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
type Address = (String, u16);

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
            asking = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Ask));
            let Some((address, _)) = error.redirect_node() else {
                node = self.owner(slot)?;
                continue;
            };
            node = self.node(named(address, &node.host)?)?;
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

    /// Learns which slots are where, from the first node that tells.
    async fn learn(&self) -> RedisResult<()> {
        let mut nodes: Vec<Address> = self.map().nodes.keys().cloned().collect();
        if !nodes.is_empty() {
            // Not the same one each time, as it may not answer.
            #[allow(clippy::cast_possible_truncation, reason = "it is random")]
            let random = RandomState::new().hash_one(()) as usize;
            let length = nodes.len();
            nodes.rotate_left(random % length);
        }
        let mut last = Err(no_node());
        for address in nodes.iter().chain(&self.first) {
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
        let ranges = ranges(&slots, &node.host);
        let ranges = ranges.filter(|ranges| !ranges.is_empty()).ok_or_else(no_node)?;
        let mut map = Map::default();
        for Range { slots, nodes } in ranges {
            let nodes = nodes.into_iter().map(|address| Ok((address.clone(), self.node(address)?)));
            let nodes = nodes.collect::<RedisResult<Vec<_>>>()?;
            if let Some((_, master)) = nodes.first() {
                map.owners.extend(slots.map(|slot| (slot, Arc::clone(master))));
            }
            map.nodes.extend(nodes);
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

/// The address that a node names: without a host, it is the node's own.
pub(super) fn named(address: &str, own_host: &str) -> RedisResult<Address> {
    let invalid = || RedisError::from((ErrorKind::Parse, "not the address of a node"));
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let host = if host.is_empty() { own_host } else { host };
    Ok((host.to_owned(), port.parse().map_err(|_| invalid())?))
}

/// Slots, and the nodes that have them: the master first.
struct Range {
    slots: std::ops::RangeInclusive<u16>,
    nodes: Vec<Address>,
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
        let nodes = nodes.iter().map(|node| node_of_range(node, own_host)).collect::<Option<_>>();
        Some(Range { slots, nodes: nodes? })
    };
    ranges.iter().map(read).collect()
}

fn node_of_range(node: &Value, own_host: &str) -> Option<Address> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = match host {
        Value::BulkString(host) => str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        _ => "",
    };
    let host = if host.is_empty() { own_host } else { host };
    Some((host.to_owned(), u16::try_from(*port).ok()?))
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

    #[test]
    fn a_node_without_a_host_has_that_of_the_node_that_tells() {
        let named = node(Value::BulkString(b"other".into()), 7_001);
        let [empty, none] = [Value::BulkString(vec![]), Value::Nil].map(|host| node(host, 7_002));
        let answer = [range(0, 9, &[named, empty]), range(10, 16_383, &[none])];
        let read = ranges(&Value::Array(answer.into()), "own").unwrap();
        let addresses = [("other", 7_001), ("own", 7_002), ("own", 7_002)];
        let addresses = addresses.map(|(host, port)| (host.to_owned(), port));
        assert_eq!(read[0].slots, 0..=9);
        assert_eq!(read[0].nodes, addresses[..2]);
        assert_eq!(read[1].slots, 10..=16_383);
        assert_eq!(read[1].nodes, addresses[2..]);
        assert_eq!(super::named(":7002", "own").unwrap(), addresses[1]);
        assert_eq!(super::named("2001:db8::1:7", "own").unwrap(), ("2001:db8::1".to_owned(), 7));
    }

    #[test]
    fn what_is_no_map_of_slots_is_not_read() {
        let host = || Value::BulkString(b"host".into());
        for answer in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(-1, 9, &[node(host(), 7_000)])]),
            Value::Array(vec![range(0, 70_000, &[node(host(), 7_000)])]),
            Value::Array(vec![range(0, 9, &[node(host(), 70_000)])]),
            Value::Array(vec![range(0, 9, &[host()])]),
        ] {
            assert!(ranges(&answer, "own").is_none(), "{answer:?}");
        }
    }
}
