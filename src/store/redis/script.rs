//! Composes the Lua that decides by a policy from the sections of its algorithms.

use crate::algorithm::Script;
use crate::error::{Error, Kind};

/// The scripts for one shape of policies: the same algorithms in the same order, whatever their
/// numbers. (Numbers are arguments: a server that holds thousands of scripts becomes slow.)
#[derive(Debug)]
pub(super) struct Scripts {
    algorithms: Box<[Script]>,
    time: Time,
    /// Checks, peeks, partial takes and debits.
    pub(super) take: Source,
    /// Refunds.
    pub(super) give_back: Source,
    pub(super) reset: Source,
}

/// A script's text, and the name by which the server finds it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) text: String,
    pub(super) sha: String,
}

impl Source {
    fn new(text: &str) -> Self {
        let sha = redis::Script::new(text).get_hash().to_owned();
        Self { text: text.to_owned(), sha }
    }
}

/// Whose clock tells the time.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Server,
    Client,
}

const DRIVER: Script = Script::new("driver", include_str!("driver.lua"));

impl Scripts {
    pub(super) fn new(algorithms: &[Script], time: Time) -> Result<Self, Error> {
        Ok(Self {
            algorithms: algorithms.into(),
            time,
            take: Source::new(&compose(algorithms, time, "grant", "take")?),
            give_back: Source::new(&compose(algorithms, time, "refund", "give_back")?),
            reset: Source::new("redis.call('DEL', KEYS[1]) return struct.pack('<dd', 0, 0)"),
        })
    }

    pub(super) fn are_for(&self, algorithms: &[Script], time: Time) -> bool {
        self.time == time && *self.algorithms == *algorithms
    }
}

/// `change` is the driver's section that tells what is to be taken or given back, `record` the
/// algorithms' section that records it.
fn compose(
    algorithms: &[Script],
    time: Time,
    change: &'static str,
    record: &'static str,
) -> Result<String, Error> {
    // A log on a key of its own is neither read nor written as a whole.
    let alone = algorithms.len() == 1 && algorithms[0].section("write_alone").is_some();
    let views = algorithms.iter().any(|algorithm| algorithm.section("view").is_some());
    let parts = Parts { alone, views, change: section(DRIVER, change)?, record };

    let mut text = String::new();
    text += section(DRIVER, "begin")?;
    text += match time {
        Time::Server => section(DRIVER, "server_time")?,
        Time::Client => section(DRIVER, "client_time")?,
    };
    if !alone {
        text += section(DRIVER, "load")?;
    }
    parts.add(algorithms, &mut text)?;
    if !alone {
        text += "if change ~= 0 or moved then\n";
        text += section(DRIVER, "ttl")?;
        text += section(DRIVER, "save")?;
        text += "end\n";
    }
    text += match (views, alone) {
        (false, _) => "local before = stored\n",
        (true, false) => "local before = stored and view\n",
        (true, true) => "local before = view\n",
    };
    text += section(DRIVER, "reply")?;
    Ok(text)
}

struct Parts {
    alone: bool,
    views: bool,
    change: &'static str,
    record: &'static str,
}

impl Parts {
    /// Nests the limits of a set in each other: all of them are read before it is decided in
    /// the innermost, and then all record it, from there outwards. So each limit's variables
    /// are its own, and are still there when it records.
    fn add(&self, algorithms: &[Script], text: &mut String) -> Result<(), Error> {
        let Some((&algorithm, inner)) = algorithms.split_first() else {
            *text += if self.alone { "" } else { section(DRIVER, "check_length")? };
            *text += self.change;
            return Ok(());
        };
        *text += "do\nlocal now, from = clock, pos\n";
        let open = if self.alone { "open_alone" } else { "open" };
        *text += algorithm.section(open).unwrap_or_default();
        *text += section(algorithm, "room")?;
        *text += "if room < available then available = room end\nlocal to = pos - 1\n";
        if inner.is_empty() {
            self.add(inner, text)?;
        } else {
            // A function may have 200 variables at a time; sets have no such limit.
            *text += "local function inner()\n";
            self.add(inner, text)?;
            *text += "end\ninner()\n";
        }
        if self.views {
            let stored = "local seen = stored and string.sub(stored, from, to) or ''\n";
            *text += algorithm.section("view").unwrap_or(stored);
            *text += if inner.is_empty() { "view = seen\n" } else { "view = seen .. view\n" };
        }
        *text += "if change ~= 0 or moved then\nif not moved then\n";
        *text += section(algorithm, self.record)?;
        *text += "end\n";
        *text += section(algorithm, "fresh_after")?;
        *text += "if fresh_after > longest then longest = fresh_after end\n";
        if self.alone {
            *text += section(DRIVER, "ttl")?;
            *text += section(algorithm, "write_alone")?;
        } else {
            *text += section(algorithm, "write")?;
            *text +=
                if inner.is_empty() { "states = state\n" } else { "states = state .. states\n" };
        }
        *text += "end\nend\n";
        Ok(())
    }
}

fn section(script: Script, name: &'static str) -> Result<&'static str, Error> {
    let missing = || Kind::Section { script: script.name(), section: name }.into();
    script.section(name).ok_or_else(missing)
}
