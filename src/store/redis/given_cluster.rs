//! A connection to a cluster that the caller has made.

use super::cluster::{Address, Patience, may_be_sent_again, redirect};
use super::connection::{asking, only};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::SingleNodeRoutingInfo;
use redis::{Cmd, ErrorKind, RedisError, RedisResult, RetryMethod, Value};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

pub(super) struct GivenCluster {
    connection: ClusterConnection,
    /// Nodes that the connection does not know, and since when that is known.
    unknown: Mutex<HashMap<Address, Instant>>,
}

/// Until a node that the connection does not know is asked for again, as it then makes all its
/// connections anew.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

impl GivenCluster {
    pub(super) fn new(connection: ClusterConnection) -> Self {
        Self { connection, unknown: Mutex::default() }
    }

    pub(super) async fn send(&self, command: &Cmd, deadline: Instant) -> RedisResult<Value> {
        let mut patience = Patience::until(deadline);
        let mut answer = self.ask(command).await;
        loop {
            let Err(error) = &answer else { return answer };
            if !may_be_sent_again(error) || !patience.wait().await {
                return answer;
            }
            answer = match (error.retry_method(), redirect(error, "")) {
                (RetryMethod::AskRedirect, Some(address)) => self.ask_node(address, command).await,
                // The connection learns by such errors which slots are where.
                _ => self.ask(command).await,
            };
        }
    }

    async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(&mut self.connection.clone()).await
    }

    /// Sends a command to the node that a key is moving to.
    async fn ask_node(&self, address: Address, command: &Cmd) -> RedisResult<Value> {
        let (host, port) = address.clone();
        if self.unknown().contains_key(&address) {
            let what = "the connection does not know the node that a slot moves to";
            let kind = ErrorKind::ClusterConnectionNotFound;
            return Err(RedisError::from((kind, what, format!("{host}:{port}"))));
        }
        let node = SingleNodeRoutingInfo::ByAddress { host, port };
        let mut connection = self.connection.clone();
        let answers = connection.route_pipeline(asking(command), 1, 1, node).await;
        if let Err(error) = &answers
            && error.kind() == ErrorKind::ClusterConnectionNotFound
        {
            self.unknown().insert(address, Instant::now());
        }
        only(answers?)
    }

    fn unknown(&self) -> MutexGuard<'_, HashMap<Address, Instant>> {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.retain(|_, since| since.elapsed() < UNKNOWN_FOR);
        unknown
    }
}
