//! The examples as programs: built when a test needs them, and stopped with it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

/// Where the examples are, by their names.
///
/// They are built as `cargo test` builds them, so that a run of all tests finds them built.
static BUILT: LazyLock<BTreeMap<String, PathBuf>> = LazyLock::new(|| {
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo tells this test of its package would make build scripts run again.
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .args(["test", "--no-run", "--quiet", "--all-features"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "the examples must compile");
    let messages = str::from_utf8(&built.stdout).unwrap().lines();
    let messages = messages.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    messages
        .filter(|message| message["target"]["kind"] == serde_json::json!(["example"]))
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
});

fn example(name: &str) -> &Path {
    BUILT.get(name).unwrap_or_else(|| panic!("there is no example {name}"))
}

/// Runs an example to its end, and returns what it prints.
pub fn run(name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(example(name));
    let output = command.args(arguments).stderr(Stdio::inherit()).output();
    let output = output.expect("the example runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Runs an example that refuses its arguments, and returns what it says of them.
pub fn refused(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(example(name)).args(arguments).output().expect("the example runs");
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

/// `examples/server.rs`, running.
pub struct Server {
    process: Child,
    url: String,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(example("server"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim_end().strip_prefix("listening on ");
        let url = url.unwrap_or_else(|| panic!("the server said {line:?}")).to_owned();
        Self { process, url }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().expect("the server runs until it is stopped");
        self.process.wait().expect("a stopped server ends");
    }
}

/// `examples/replay.rs`, running: its input and outputs are pipes.
pub fn start_replay(arguments: &[&str]) -> Child {
    Command::new(example("replay"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("replay starts")
}

/// Runs `examples/replay.rs` on a trace.
pub fn replay(arguments: &[&str], trace: &str) -> Output {
    let mut process = start_replay(arguments);
    let mut input = process.stdin.take().unwrap();
    let trace = trace.to_owned();
    // It may end at a bad line before it has read all.
    let writer = std::thread::spawn(move || drop(input.write_all(trace.as_bytes())));
    let output = process.wait_with_output().expect("replay ends");
    writer.join().unwrap();
    output
}
