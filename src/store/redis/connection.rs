//! A way to a Redis server, or to a cluster of them, that finds back by itself.

#[cfg(feature = "redis-cluster")]
use super::cluster::Cluster;
#[cfg(feature = "redis-cluster")]
use super::given_cluster::GivenCluster;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisError, RedisResult, ServerErrorKind, Value,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

#[derive(Clone)]
pub(super) enum Connection {
    /// A server whose address is known.
    Server(Arc<Server>),
    /// A manager that the caller has made.
    Given(ConnectionManager),
    #[cfg(feature = "redis-cluster")]
    Cluster(Arc<Cluster>),
    #[cfg(feature = "redis-cluster")]
    GivenCluster(Arc<GivenCluster>),
}

/// One connection serves all callers: it sends their commands in pipelines by itself, and more
/// connections are slower.
pub(super) struct Server {
    client: Client,
    /// None until the first command.
    manager: Mutex<Option<Numbered>>,
}

struct Numbered {
    manager: ConnectionManager,
    number: u64,
    since: Instant,
    /// When the first of the commands was sent that were sent since the last answer, or since the attempt
    /// to connect is over.
    unanswered_since: Option<Instant>,
    /// Goes on while calls time out.
    attempt: JoinHandle<()>,
    /// Closed when the runtime that it was made on is gone.
    runtime: oneshot::Sender<()>,
}

impl Numbered {
    fn new(client: &Client, number: u64) -> RedisResult<Self> {
        let manager = lazy_manager(client)?;
        let mut connecting = manager.clone();
        let attempt = tokio::spawn(async move {
            let ping = redis::cmd("PING");
            // Whoever asks is told of the error.
            let _ = timeout(LONGEST_SILENCE, ping.exec_async(&mut connecting)).await;
        });
        let (runtime, end) = oneshot::channel();
        tokio::spawn(end);
        let since = Instant::now();
        Ok(Self { manager, number, since, unanswered_since: None, attempt, runtime })
    }

    /// Whether nothing is to be hoped from it. A runtime takes its connections with it, and to wait for
    /// an attempt to connect that was begun on it would be a panic.
    fn is_lost(&self) -> bool {
        self.runtime.is_closed()
            || self.unanswered_since.is_some_and(|since| since.elapsed() >= LONGEST_SILENCE)
    }
}

/// As often as a connection that works is given up for another.
const REPLACEMENT_INTERVAL: Duration = Duration::from_millis(50);

/// A connection on which nothing is answered for so long is given up for another: it may lead through
/// something that has forgotten it.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// A try to connect may take so long; there are two of them.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Where the other side does not even acknowledge that long, the connection is dead.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that wait for their turn to be written; each is a caller of its own.
const PIPELINE_BUFFER: usize = 1_024;

impl Connection {
    /// Does not connect yet.
    pub(super) fn to_server(address: &str) -> RedisResult<Self> {
        Ok(Self::Server(Arc::new(Server::new(server_info(address)?)?)))
    }

    /// Sends a command that is about a key.
    #[cfg_attr(
        not(feature = "redis-cluster"),
        expect(unused_variables, reason = "what a cluster is asked by")
    )]
    pub(super) async fn send(
        &self,
        command: &Cmd,
        key: &[u8],
        deadline: Instant,
    ) -> RedisResult<Value> {
        match self {
            Self::Server(server) => server.send(command).await,
            Self::Given(manager) => command.query_async(&mut manager.clone()).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster.send(command, key, deadline).await,
            #[cfg(feature = "redis-cluster")]
            Self::GivenCluster(cluster) => cluster.send(command, deadline).await,
        }
    }
}

/// A command for a slot that is not the node's yet.
#[cfg(feature = "redis-cluster")]
pub(super) fn asking(command: &Cmd) -> redis::Pipeline {
    let mut asking = redis::pipe();
    asking.cmd("ASKING").add_command(command.clone());
    asking
}

/// The answer to the command itself.
#[cfg(feature = "redis-cluster")]
pub(super) fn only(mut answers: Vec<Value>) -> RedisResult<Value> {
    let none = || RedisError::from((ErrorKind::Parse, "no answer to a command"));
    answers.pop().ok_or_else(none)?.extract_error()
}

/// How to connect to the server at `address`.
pub(super) fn server_info(address: &str) -> RedisResult<ConnectionInfo> {
    let info = address.into_connection_info()?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        provide_cryptography();
    }
    let mut settings = info.redis_settings().clone();
    if !address.contains("protocol=") {
        // The newer protocol tells of a connection that is closed while it is idle.
        settings = settings.set_protocol(ProtocolVersion::RESP3);
    }
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp_settings()))
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
    /// Does not connect yet.
    pub(super) fn new(info: ConnectionInfo) -> RedisResult<Self> {
        Ok(Self { client: Client::open(info)?, manager: Mutex::default() })
    }

    pub(super) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        let (mut manager, number) = self.manager()?;
        let answer = command.query_async(&mut manager).await;
        self.heed(answer, manager, number).await
    }

    /// Sends a command for a slot that is moving to this server.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn send_asking(&self, command: &Cmd) -> RedisResult<Value> {
        let (mut manager, number) = self.manager()?;
        let answers = manager.send_packed_commands(&asking(command), 1, 1).await;
        self.heed(answers.and_then(only), manager, number).await
    }

    /// The manager to send a command by, and its number.
    fn manager(&self) -> RedisResult<(ConnectionManager, u64)> {
        let mut manager = self.lock();
        let current = match manager.take() {
            Some(current) if !current.is_lost() => current,
            lost => Numbered::new(&self.client, lost.map_or(0, |lost| lost.number + 1))?,
        };
        let current = manager.insert(current);
        if current.attempt.is_finished() {
            current.unanswered_since.get_or_insert_with(Instant::now);
        }
        Ok((current.manager.clone(), current.number))
    }

    /// Gives up the manager that an answer comes from, if that tells that it is of no more use.
    async fn heed(
        &self,
        answer: RedisResult<Value>,
        mut manager: ConnectionManager,
        number: u64,
    ) -> RedisResult<Value> {
        self.is_answered(number);
        if let Err(error) = &answer
            && !error.is_io_error()
            && !is_of_command(error)
            && (is_no_master(error) || is_of_connection(error, &mut manager).await)
        {
            self.replace(number)?;
        }
        answer
    }

    fn is_answered(&self, number: u64) {
        if let Some(current) = &mut *self.lock()
            && current.number == number
        {
            current.unanswered_since = None;
        }
    }

    /// Puts a new manager in the place of the one of this number, if that is still there.
    fn replace(&self, number: u64) -> RedisResult<()> {
        if let Some(current) = &mut *self.lock()
            && current.number == number
            && current.since.elapsed() >= REPLACEMENT_INTERVAL
        {
            *current = Numbered::new(&self.client, number + 1)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Numbered>> {
        self.manager.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error is about a script, a key or the memory that it takes. Then it is no error that was
/// answered when the connection was made, as what is sent then (HELLO, AUTH, SELECT) has none of these:
/// the connection works, and another one would be answered the same.
pub(super) fn is_of_command(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, CrossSlot, Moved, NoPerm, NoScript, TryAgain};
    match error.kind() {
        ErrorKind::Server(NoScript | Moved | Ask | TryAgain | CrossSlot | ClusterDown) => true,
        // It may also be HELLO or SELECT that is not permitted.
        ErrorKind::Server(NoPerm) => error.detail().is_some_and(|detail| {
            ["'eval", "access a key", "access one of the keys"]
                .iter()
                .any(|of_script| detail.contains(of_script))
        }),
        ErrorKind::Extension => matches!(error.code(), Some("OOM" | "WRONGTYPE")),
        _ => false,
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
