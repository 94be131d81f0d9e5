//! A way to a Redis server, or to a cluster of them, that finds back by itself.

#[cfg(feature = "redis-cluster")]
use redis::RetryMethod;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
#[cfg(feature = "redis-cluster")]
use redis::cluster_async::ClusterConnection;
#[cfg(feature = "redis-cluster")]
use redis::cluster_routing::SingleNodeRoutingInfo;
use redis::io::tcp::TcpSettings;
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
    Cluster(ClusterConnection),
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
/// Until a command that no node has run is sent to a cluster again.
#[cfg(feature = "redis-cluster")]
const CLUSTER_RETRY_PAUSE: Duration = Duration::from_millis(10);
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
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp_settings());
        let client = Client::open(info)?;
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
            .tcp_settings(tcp_settings())
            .connection_timeout(CONNECTION_TIMEOUT)
            // Each call has a timeout of its own, and is sent again only by `send_to_cluster`.
            .overall_response_timeout(None)
            .retries(0)
            .build()?;
        Ok(Self::Cluster(client.get_async_connection().await?))
    }

    pub(super) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(server) => server.send(command).await,
            Self::Given(manager) => command.query_async(&mut manager.clone()).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => send_to_cluster(cluster.clone(), command).await,
        }
    }
}

/// Sends a command again where a node has not run it: what is lost with a connection may have been
/// run, and is left to the caller.
#[cfg(feature = "redis-cluster")]
async fn send_to_cluster(mut cluster: ClusterConnection, command: &Cmd) -> RedisResult<Value> {
    let mut answer = command.query_async(&mut cluster).await;
    loop {
        let Err(error) = &answer else { return answer };
        answer = match (error.retry_method(), error.redirect_node()) {
            (RetryMethod::AskRedirect, Some((address, _))) => {
                let address = address.to_owned();
                ask_node(&mut cluster, &address, command).await
            }
            // The connection learns by such errors which slots are where.
            (
                RetryMethod::MovedRedirect
                | RetryMethod::RefreshSlotsAndRetry
                | RetryMethod::ReconnectFromInitialConnections
                | RetryMethod::WaitAndRetry,
                _,
            ) => {
                tokio::time::sleep(CLUSTER_RETRY_PAUSE).await;
                command.query_async(&mut cluster).await
            }
            _ => return answer,
        };
    }
}

/// Sends a command to the node that a key is moving to.
#[cfg(feature = "redis-cluster")]
async fn ask_node(
    cluster: &mut ClusterConnection,
    address: &str,
    command: &Cmd,
) -> RedisResult<Value> {
    let invalid = || RedisError::from((ErrorKind::Parse, "not the address of a node"));
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let port = port.parse().map_err(|_| invalid())?;
    let node = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port };
    let mut asking = redis::pipe();
    asking.cmd("ASKING").add_command(command.clone());
    let mut answers = cluster.route_pipeline(asking, 1, 1, node).await?;
    answers.pop().ok_or_else(invalid)?.extract_error()
}

/// For TLS, unless the program has chosen a provider itself.
fn provide_cryptography() {
    // The error tells that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn tcp_settings() -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(UNACKNOWLEDGED_TIMEOUT);
    settings
}

impl Server {
    async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        let (mut manager, number) = self.manager();
        let answer = command.query_async(&mut manager).await;
        if let Err(error) = &answer
            && !error.is_io_error()
            && (is_no_master(error) || is_of_connection(error, &mut manager).await)
        {
            self.replace(number)?;
        }
        answer
    }

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

/// Whether another connection to the same address may lead to a server that is a master.
fn is_no_master(error: &RedisError) -> bool {
    use ServerErrorKind::{MasterDown, ReadOnly};
    matches!(error.kind(), ErrorKind::Server(ReadOnly | MasterDown))
}

/// Whether all else is answered by the same error: a manager keeps what it was answered when it
/// connected.
async fn is_of_connection(error: &RedisError, manager: &mut ConnectionManager) -> bool {
    let ping: RedisResult<Value> = redis::cmd("PING").query_async(manager).await;
    ping.is_err_and(|answered| answered == *error)
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
