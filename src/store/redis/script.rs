//! Composes the Lua that decides by a policy from the sections of its algorithms.

use crate::algorithm::Script;
use crate::error::{Error, Kind as ErrorKind};
use std::fmt::Write;

/// The scripts for one shape of policies: the same algorithms in the same order, whatever their
/// numbers. (Numbers are arguments: a server that holds thousands of scripts becomes slow.)
#[derive(Debug)]
pub(super) struct Scripts {
    algorithms: Box<[Script]>,
    variant: Variant,
    /// Checks, peeks, partial takes and debits.
    pub(super) take: ScriptText,
    /// Refunds and settlements.
    pub(super) correct: ScriptText,
    pub(super) reset: ScriptText,
}

/// A script's text, and the name by which the server finds it.
#[derive(Debug)]
pub(super) struct ScriptText {
    pub(super) text: String,
    pub(super) sha: String,
}

impl ScriptText {
    fn new(text: &str) -> Self {
        let sha = redis::Script::new(text).get_hash().to_owned();
        Self { text: text.to_owned(), sha }
    }
}

/// What else the scripts depend on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) time: Time,
    /// Whether refusals are published to a stream.
    pub(super) publishes: bool,
}

/// Whose clock tells the time.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Server,
    Client,
}

/// Lua nests blocks and functions up to 200 deep, of which a limit takes two.
const MAX_LIMITS: usize = 64;

const DRIVER: Script = Script::new("driver", include_str!("driver.lua"));

impl Scripts {
    pub(super) fn new(algorithms: &[Script], variant: Variant) -> Result<Self, Error> {
        if algorithms.len() > MAX_LIMITS {
            return Err(ErrorKind::SetInRedis { max: MAX_LIMITS, len: algorithms.len() }.into());
        }
        Ok(Self {
            algorithms: algorithms.into(),
            variant,
            take: ScriptText::new(&compose(algorithms, variant, Kind::Take)?),
            correct: ScriptText::new(&compose(algorithms, variant, Kind::Correct)?),
            reset: ScriptText::new(&compose_reset(variant.time)?),
        })
    }

    pub(super) fn are_for(&self, algorithms: &[Script], variant: Variant) -> bool {
        let mut pairs = self.algorithms.iter().zip(algorithms);
        self.variant == variant
            && self.algorithms.len() == algorithms.len()
            && pairs.all(|(ours, theirs)| ours.is_same(*theirs))
    }
}

/// What a script does: take units, or correct what was taken.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Kind {
    Take,
    Correct,
}

fn compose(algorithms: &[Script], variant: Variant, kind: Kind) -> Result<String, Error> {
    // A log on a key of its own is neither read nor written as a whole.
    let alone = algorithms.len() == 1 && algorithms[0].section("write_alone").is_some();
    let views = algorithms.iter().any(|algorithm| algorithm.section("view").is_some());
    let parts = Parts { time: variant.time, alone, views, kind };

    let mut text = String::new();
    text += section(DRIVER, "begin")?;
    text += time_section(variant.time)?;
    if kind == Kind::Correct {
        text += section(DRIVER, "taken_at")?;
    }
    if !alone {
        text += section(DRIVER, "load")?;
    }
    parts.add(algorithms, &mut text)?;
    if !alone {
        text += match kind {
            Kind::Take => "if change ~= 0 or moved then\n",
            Kind::Correct => "if touched or moved then\n",
        };
        text += section(DRIVER, "ttl")?;
        text += section(DRIVER, "save")?;
        text += "end\n";
    }
    if kind == Kind::Correct {
        text += section(DRIVER, "remember")?;
    }
    if variant.publishes && kind == Kind::Take {
        text += section(DRIVER, "publish")?;
    }
    text += match (views, alone) {
        (false, _) => "local before = stored\n",
        (true, false) => "local before = stored and view\n",
        (true, true) => "local before = view\n",
    };
    text += section(DRIVER, "reply")?;
    Ok(text)
}

fn compose_reset(time: Time) -> Result<String, Error> {
    Ok(format!("local numbers = ARGV[1]\n{}{}", time_section(time)?, section(DRIVER, "reset")?))
}

fn time_section(time: Time) -> Result<&'static str, Error> {
    section(
        DRIVER,
        match time {
            Time::Server => "server_time",
            Time::Client => "client_time",
        },
    )
}

struct Parts {
    time: Time,
    alone: bool,
    views: bool,
    kind: Kind,
}

impl Parts {
    /// Nests the limits of a set in each other: all of them are read before it is decided in
    /// the innermost, and then all record it, from there outwards. So each limit's variables
    /// are its own, and are still there when it records.
    fn add(&self, algorithms: &[Script], text: &mut String) -> Result<(), Error> {
        let Some((&algorithm, inner)) = algorithms.split_first() else {
            *text += if self.alone { "" } else { section(DRIVER, "check_length")? };
            *text += match self.kind {
                Kind::Take => section(DRIVER, "grant")?,
                Kind::Correct => section(DRIVER, "correct")?,
            };
            return Ok(());
        };
        *text += "do\nlocal now, from = clock, pos\n";
        let open = if self.alone { "open_alone" } else { "open" };
        *text += algorithm.section(open).unwrap_or_default();
        *text += section(algorithm, "room")?;
        *text += algorithm.section("delay").unwrap_or_default();
        *text += "if room < available then available = room end\nlocal to = pos - 1\n";
        if inner.is_empty() {
            self.add(inner, text)?;
        } else {
            // A function may have 200 variables at a time; a set may have more.
            *text += "local function inner()\n";
            self.add(inner, text)?;
            *text += "end\ninner()\n";
        }
        if self.views {
            let stored = "local seen = stored and string.sub(stored, from, to) or ''\n";
            *text += algorithm.section("view").unwrap_or(stored);
            *text += if inner.is_empty() { "view = seen\n" } else { "view = seen .. view\n" };
        }
        *text += "if change ~= 0 or moved then\n";
        if self.kind == Kind::Correct {
            *text += "local untouched = false\n";
        }
        *text += "if not moved then\n";
        self.record(algorithm, inner.len(), text)?;
        *text += "end\n";
        *text += section(algorithm, "fresh_after")?;
        if self.time == Time::Client {
            // From this client's now, which may be before the state was last written.
            *text += "if fresh_after > 0 then fresh_after = fresh_after + now - clock \
                      elseif fresh_after == 0 then keeps = true end\n";
        }
        *text += "if fresh_after > longest then longest = fresh_after end\n";
        if self.alone {
            if self.kind == Kind::Correct {
                *text += "if not untouched then\n";
            }
            *text += section(DRIVER, "ttl")?;
            *text += section(algorithm, "write_alone")?;
            if self.kind == Kind::Correct {
                *text += "end\n";
            }
        } else {
            *text += section(algorithm, "write")?;
            if self.kind == Kind::Correct {
                *text += "if not untouched then touched = true \
                          elseif stored then state = string.sub(stored, from, to) end\n";
            }
            *text +=
                if inner.is_empty() { "states = state\n" } else { "states = state .. states\n" };
        }
        *text += "end\nend\n";
        Ok(())
    }
}

impl Parts {
    /// Records what was decided, in a limit with so many more behind it.
    fn record(&self, algorithm: Script, behind: usize, text: &mut String) -> Result<(), Error> {
        if self.kind == Kind::Take {
            *text += section(algorithm, "take")?;
            return Ok(());
        }
        // A debt of one limit, and no more.
        *text += "if change > 0 then\nlocal n = n\n";
        *text += "if n > limit + room then n = limit + room end\nif n > 0 then\n";
        *text += section(algorithm, "take")?;
        *text += "else\nuntouched = true\nend\nelse\nlocal fresh_at, held_until = taken_at, taken_at\nif taken_at then\n";
        let back = 16 * (behind + 1);
        writeln!(
            text,
            "fresh_at, held_until = struct.unpack('<dd', numbers, #numbers - {back} + 1)"
        )
        .expect("a String takes it");
        *text += "end\n";
        *text += section(algorithm, "give_back")?;
        *text += "end\n";
        Ok(())
    }
}

fn section(script: Script, name: &'static str) -> Result<&'static str, Error> {
    let missing = || ErrorKind::Section { script: script.name(), section: name }.into();
    script.section(name).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{All, ScriptCall, Scripted, SlidingLog, TokenBucket};
    use crate::quota::Quota;

    fn scripts(limits: &impl Scripted, time: Time, publishes: bool) -> Scripts {
        let mut call = ScriptCall::default();
        limits.script(&mut call);
        Scripts::new(&call.limits, Variant { time, publishes }).unwrap()
    }

    fn differ_by_a_section(limits: &impl Scripted) {
        let publish = section(DRIVER, "publish").unwrap();
        for time in [Time::Server, Time::Client] {
            let [plain, publishing] =
                [false, true].map(|publishes| scripts(limits, time, publishes));
            assert_eq!(publishing.take.text.matches(publish).count(), 1);
            assert_eq!(publishing.take.text.replace(publish, ""), plain.take.text);
            assert_eq!(publishing.correct.text, plain.correct.text);
            assert_eq!(publishing.reset.text, plain.reset.text);
        }
    }

    #[test]
    fn scripts_that_publish_differ_by_that_section() {
        let log = SlidingLog::new(Quota::per_hour(9));
        let bucket = TokenBucket::new(Quota::per_hour(9));
        differ_by_a_section(&log);
        differ_by_a_section(&bucket);
        differ_by_a_section(&All((log, bucket)));
    }
}
