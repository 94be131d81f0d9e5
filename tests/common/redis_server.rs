//! Real Redis servers: started when they are needed, and stopped with whoever needs them.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The same, for a node of a cluster: the nodes talk to each other on a port that is 10,000 higher.
pub fn free_cluster_port() -> u16 {
    let is_free =
        |port: &u16| *port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok();
    std::iter::repeat_with(free_port).find(is_free).expect("there is always another port")
}

/// A `redis-server` of its own, with its files in a directory of its own.
///
/// It ends with this value, and also when the process of the test ends in whatever way: its
/// shell waits for the end of a pipe.
pub struct Server {
    shell: Child,
    pub port: u16,
    pub directory: TempDir,
}

impl Server {
    pub fn start(options: &[&str]) -> Self {
        Self::start_on(free_port(), options, &[])
    }

    /// On a port that is told, and with environment variables.
    pub fn start_on(port: u16, options: &[&str], environment: &[(&str, &Path)]) -> Self {
        let directory = TempDir::new().unwrap();
        let shell = Command::new("sh")
            .envs(environment.iter().copied())
            .args(["-c", "\"$@\" & read end; kill -9 $!; wait $!", "sh"])
            .args(["redis-server", "--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir", directory.path().to_str().unwrap()])
            .args(["--logfile", "server.log"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell runs");
        let server = Self { shell, port, directory };
        server.wait();
        server
    }

    fn wait(&self) {
        let start = Instant::now();
        while self.try_cli(&["PING"]).is_none_or(|answer| answer.contains("refused")) {
            let log = self.directory.path().join("server.log");
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "redis-server does not run: is it installed? (scripts/test installs it; or: \
                 apt-get install redis-server, brew install redis)\n{}",
                std::fs::read_to_string(log).unwrap_or_default(),
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs a command by `redis-cli`; an answer with an error is an answer.
    pub fn cli(&self, command: &[&str]) -> String {
        self.try_cli(command).expect("the server answers")
    }

    fn try_cli(&self, command: &[&str]) -> Option<String> {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(command).output();
        let output = output.expect("redis-cli is installed with redis-server");
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim_end().to_owned())
    }

    /// Neither answers nor ends from now on.
    pub fn hang(&self) {
        let info = self.cli(&["INFO", "server"]);
        let process = info.lines().find_map(|line| line.strip_prefix("process_id:"));
        let stop = Command::new("kill").args(["-STOP", process.unwrap()]).status().unwrap();
        assert!(stop.success());
    }

    /// Ends at once, as by a crash.
    pub fn kill(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(mut end) = self.shell.stdin.take() {
            // It may have ended by itself.
            let _ = end.write_all(b"\n");
        }
        self.shell.wait().expect("a shell ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A Redis Cluster of three masters, and a replica of each.
pub struct Cluster {
    pub nodes: Vec<Option<Server>>,
}

impl Cluster {
    pub fn start() -> Self {
        let options =
            ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--appendonly", "no"];
        let nodes: Vec<Server> =
            (0..6).map(|_| Server::start_on(free_cluster_port(), &options, &[])).collect();
        let addresses: Vec<String> =
            nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let create = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&create.stdout);
        assert!(create.status.success(), "{said}");
        let cluster = Self { nodes: nodes.into_iter().map(Some).collect() };
        cluster.wait_until(|info| info.contains("cluster_state:ok"));
        cluster.wait_until_replicated();
        cluster
    }

    fn wait_until(&self, is: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !self.running().all(|node| is(&node.cli(&["CLUSTER", "INFO"]))) {
            assert!(start.elapsed() < Duration::from_secs(60), "the cluster does not settle");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_until_replicated(&self) {
        let start = Instant::now();
        let online = |node: &Server| {
            let info = node.cli(&["INFO", "replication"]);
            info.contains("role:slave") && info.contains("master_link_status:up")
        };
        while self.running().filter(|node| online(node)).count() < 3 {
            assert!(start.elapsed() < Duration::from_secs(60), "the replicas do not follow");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn running(&self) -> impl Iterator<Item = &Server> {
        self.nodes.iter().flatten()
    }

    pub fn urls(&self) -> Vec<String> {
        self.running().map(Server::url).collect()
    }

    /// Kills the first of the masters.
    pub fn kill_a_master(&mut self) {
        let is_master = |node: &Option<Server>| {
            node.as_ref().is_some_and(|node| node.cli(&["ROLE"]).starts_with("master"))
        };
        let master = self.nodes.iter_mut().find(|node| is_master(node)).unwrap();
        master.take().unwrap().kill();
    }
}
