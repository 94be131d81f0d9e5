//! A way to a Redis server, or to a cluster of them, that finds back by itself.

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisError,
    RedisResult, ServerErrorKind, Value,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone)]
pub(super) enum Connection {
    /// A server whose address is known.
    Server(Arc<Server>),
    /// A manager that the caller has made.
    Given(ConnectionManager),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

/// One connection serves all callers: it sends their commands in pipelines by itself, and more
/// connections are slower.
pub(super) struct Server {
    client: Client,
    manager: Mutex<Numbered>,
}

struct Numbered {
    manager: ConnectionManager,
    number: u64,
    since: Instant,
}

/// As often as a connection that works is given up for another.
const REPLACEMENT_INTERVAL: Duration = Duration::from_millis(50);

/// The connection attempt goes on while calls time out.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Where the other side does not even acknowledge that long, the connection is dead.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that wait for their turn to be written; each is a caller of its own.
const PIPELINE_BUFFER: usize = 1_024;

impl Connection {
    /// Does not connect yet.
    pub(super) fn to_server(address: &str) -> RedisResult<Self> {
        let info = address.into_connection_info()?;
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            provide_cryptography();
        }
        let mut settings = info.redis_settings().clone();
        if !address.contains("protocol=") {
            // The newer protocol tells of a connection that is closed while it is idle.
            settings = settings.set_protocol(ProtocolVersion::RESP3);
        }
        #[cfg(target_os = "linux")]
        let info = {
            let tcp = info.tcp_settings().clone();
            info.set_tcp_settings(tcp.set_user_timeout(UNACKNOWLEDGED_TIMEOUT))
        };
        let client = Client::open(info.set_redis_settings(settings))?;
        let manager = lazy_manager(&client)?;
        Ok(Self::Server(Arc::new(Server {
            client,
            manager: Mutex::new(Numbered { manager, number: 0, since: Instant::now() }),
        })))
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) async fn to_cluster(addresses: &[&str]) -> RedisResult<Self> {
        if addresses.iter().any(|address| address.starts_with("rediss")) {
            provide_cryptography();
        }
        let client = redis::cluster::ClusterClient::builder(addresses.iter().copied())
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(CONNECTION_TIMEOUT)
            .overall_response_timeout(None)
            .min_retry_wait(5)
            .max_retry_wait(50)
            .build()?;
        Ok(Self::Cluster(client.get_async_connection().await?))
    }

    pub(super) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(server) => {
                let (mut manager, number) = server.manager();
                let answer = command.query_async(&mut manager).await;
                if answer.as_ref().is_err_and(is_wrong_server) {
                    server.replace(number)?;
                }
                answer
            }
            Self::Given(manager) => command.query_async(&mut manager.clone()).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => command.query_async(&mut cluster.clone()).await,
        }
    }
}

/// For TLS, unless the program has chosen a provider itself.
fn provide_cryptography() {
    // The error tells that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Whether another connection to the same address may do better, though this one works: the
/// server is no master any more, or did not let us in when it was asked.
fn is_wrong_server(error: &RedisError) -> bool {
    use ServerErrorKind::{MasterDown, NoPerm, ReadOnly};
    matches!(
        error.kind(),
        ErrorKind::Server(ReadOnly | MasterDown | NoPerm) | ErrorKind::AuthenticationFailed
    ) || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

impl Server {
    fn manager(&self) -> (ConnectionManager, u64) {
        let current = self.lock();
        (current.manager.clone(), current.number)
    }

    /// Puts a new manager in the place of the one of this number, if that is still there.
    fn replace(&self, number: u64) -> RedisResult<()> {
        let mut current = self.lock();
        if current.number == number && current.since.elapsed() >= REPLACEMENT_INTERVAL {
            let manager = lazy_manager(&self.client)?;
            *current = Numbered { manager, number: number + 1, since: Instant::now() };
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Numbered> {
        self.manager.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lazy_manager(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECTION_TIMEOUT))
        // Each call has a timeout of its own.
        .set_response_timeout(None)
        .set_number_of_retries(1)
        .set_min_delay(Duration::from_millis(5))
        .set_max_delay(Duration::from_millis(50))
        .set_pipeline_buffer_size(PIPELINE_BUFFER);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}
