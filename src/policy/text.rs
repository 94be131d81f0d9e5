//! Policies from texts, and back.

use super::{AnyAlgorithm, Limit, Name, Policy};
use crate::algorithm::{
    Algorithm, FixedWindow, LeakyBucket, SlidingLog, SlidingWindowCounter, TokenBucket,
};
use crate::error::{Error, Kind, WrongText};
use crate::quota::Quota;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (mut limits, mut spans) = (Vec::new(), Vec::new());
        let mut start = 0;
        for part in text.split(';') {
            let end = start + part.len();
            limits.push(Parser { text, at: start, end }.limit()?);
            spans.push(end - part.trim_start().len()..end);
            start = end + 1;
        }
        Self::all(limits).map_err(|error| match error.0 {
            Kind::SameName { index, .. } => {
                let span = spans.swap_remove(index);
                Kind::Text(WrongText::new(text, span, error.to_string())).into()
            }
            _ => error,
        })
    }
}

impl FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Parser { text, at: 0, end: text.len() }.limit()
    }
}

/// Reads `COUNT/[N]UNIT`, as in a policy's text.
impl FromStr for Quota {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parser = Parser { text, at: 0, end: text.len() };
        let quota = parser.quota()?;
        parser.finish("the end of the quota")?;
        Ok(quota)
    }
}

pub(super) const ALGORITHMS: &str =
    "token_bucket, leaky_bucket, fixed_window, sliding_log or sliding_window_counter";

/// Reads one limit of a text: the bytes from `at` to `end`.
struct Parser<'t> {
    text: &'t str,
    at: usize,
    end: usize,
}

/// What an algorithm is made with, apart from the quota.
#[derive(Default)]
struct Options {
    /// The `burst` or the `capacity`, with its place in the text.
    size: Option<(Range<usize>, u64)>,
    nodelay: bool,
}

impl<'t> Parser<'t> {
    fn limit(mut self) -> Result<Limit, Error> {
        let name = self.name()?;
        let algorithm = self.algorithm()?;
        let quota = self.quota()?;
        let options = self.options(algorithm)?;
        let algorithm = options.build(algorithm, quota).map_err(|error| {
            let span = options.size.map_or(self.here(), |(span, _)| span);
            self.wrong(span, error.to_string())
        })?;
        Ok(Limit::new(name, algorithm))
    }

    /// `[ ALGORITHM ]`: one of [`ALGORITHM_NAMES`].
    fn algorithm(&mut self) -> Result<&'t str, Error> {
        match self.word() {
            (_, "") => Ok(DEFAULT_ALGORITHM),
            (_, name) if ALGORITHM_NAMES.contains(&name) => Ok(name),
            (span, _) => {
                Err(self.wrong(span, format!("expected an algorithm ({ALGORITHMS}) or a count")))
            }
        }
    }

    /// `[ OPTION ... ]`, and the end of the limit.
    fn options(&mut self, algorithm: &str) -> Result<Options, Error> {
        let mut options = Options::default();
        loop {
            let (span, option) = self.word();
            let repeated = match (algorithm, option) {
                (_, "") => break,
                ("token_bucket", "burst") => {
                    options.size.replace(self.number("a number of tokens")?).is_some()
                }
                ("leaky_bucket", "capacity") => {
                    options.size.replace(self.number("a number of units")?).is_some()
                }
                ("leaky_bucket", "nodelay") => std::mem::replace(&mut options.nodelay, true),
                _ => {
                    let expected = match algorithm {
                        "token_bucket" => "\"burst COUNT\" or the end of the limit",
                        "leaky_bucket" => "\"capacity COUNT\", \"nodelay\" or the end of the limit",
                        _ => "the end of the limit",
                    };
                    return Err(self.wrong(span, format!("expected {expected} for {algorithm}")));
                }
            };
            if repeated {
                return Err(self.wrong(span, "expected each option once".to_owned()));
            }
        }
        self.finish("an option or the end of the limit")?;
        Ok(options)
    }

    /// `[ NAME ":" ]`
    fn name(&mut self) -> Result<Option<Name>, Error> {
        self.skip_space();
        let Some((given, _)) = self.rest().split_once(':') else {
            return Ok(None);
        };
        let span = self.at..self.at + given.trim_end().len();
        let name =
            Name::new(given.trim_end()).map_err(|error| self.wrong(span, error.to_string()))?;
        self.at += given.len() + 1;
        Ok(Some(name))
    }

    /// `COUNT "/" [ N ] UNIT`
    fn quota(&mut self) -> Result<Quota, Error> {
        let (count_span, count) = self.number("a count, as in \"100/min\"")?;
        self.skip_space();
        if !self.rest().starts_with('/') {
            let here = self.here();
            return Err(self.wrong(here, "expected \"/\" and a period, as in \"100/min\"".into()));
        }
        self.at += 1;
        self.skip_space();
        let (n_span, n) = match self.rest().starts_with(|c: char| c.is_ascii_digit()) {
            true => self.number("a number")?,
            false => (self.at..self.at, 1),
        };
        let (unit_span, unit) = self.word();
        let unit_millis = match unit {
            "ms" => 1,
            "s" | "sec" | "second" | "seconds" => 1_000,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hour" | "hours" => 3_600_000,
            "d" | "day" | "days" => 86_400_000,
            _ => {
                let span = if unit.is_empty() { self.here() } else { unit_span };
                let expected = "expected a unit of time (ms, s, min, h or d)".to_owned();
                return Err(self.wrong(span, expected));
            }
        };
        let period = Duration::from_millis(n.saturating_mul(unit_millis));
        let span = match Quota::new(1, period) {
            Ok(_) => count_span,
            Err(_) => n_span.start..unit_span.end,
        };
        Quota::new(count, period).map_err(|error| self.wrong(span, error.to_string()))
    }

    fn number(&mut self, expected: &str) -> Result<(Range<usize>, u64), Error> {
        self.skip_space();
        let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
        let span = self.at..self.at + digits;
        if digits == 0 {
            let here = self.here();
            return Err(self.wrong(here, format!("expected {expected}")));
        }
        self.at = span.end;
        match self.text[span.clone()].parse() {
            Ok(number) => Ok((span, number)),
            Err(_) => {
                Err(self.wrong(span, format!("expected a number up to {}", Quota::MAX_COUNT)))
            }
        }
    }

    /// The letters and underscores that follow; none where something else follows.
    fn word(&mut self) -> (Range<usize>, &'t str) {
        self.skip_space();
        let is_letter = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
        let start = self.at;
        self.at += self.rest().bytes().take_while(is_letter).count();
        (start..self.at, &self.text[start..self.at])
    }

    fn finish(&mut self, expected: &str) -> Result<(), Error> {
        self.skip_space();
        if self.rest().is_empty() {
            return Ok(());
        }
        let here = self.here();
        Err(self.wrong(here, format!("expected {expected}")))
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..self.end]
    }

    fn skip_space(&mut self) {
        self.at = self.end - self.rest().trim_start().len();
    }

    /// What is found where something else was expected: all up to the next space.
    fn here(&self) -> Range<usize> {
        let found = self.rest().split(char::is_whitespace).next().unwrap_or_default();
        self.at..self.at + found.len()
    }

    fn wrong(&self, span: Range<usize>, message: String) -> Error {
        Kind::Text(WrongText::new(self.text, span, message)).into()
    }
}

pub(super) const DEFAULT_ALGORITHM: &str = "token_bucket";

pub(super) const ALGORITHM_NAMES: [&str; 5] =
    ["token_bucket", "leaky_bucket", "fixed_window", "sliding_log", "sliding_window_counter"];

impl Options {
    /// `algorithm` is one of [`ALGORITHM_NAMES`].
    fn build(&self, algorithm: &str, quota: Quota) -> Result<AnyAlgorithm, Error> {
        let size = self.size.as_ref().map_or(quota.count(), |(_, size)| *size);
        Ok(match algorithm {
            "token_bucket" => AnyAlgorithm::TokenBucket(TokenBucket::new(quota).try_burst(size)?),
            "leaky_bucket" => {
                let bucket = LeakyBucket::new(quota).try_capacity(size)?;
                AnyAlgorithm::LeakyBucket(if self.nodelay { bucket.nodelay() } else { bucket })
            }
            "fixed_window" => AnyAlgorithm::FixedWindow(FixedWindow::new(quota)),
            "sliding_log" => AnyAlgorithm::SlidingLog(SlidingLog::new(quota)),
            _ => AnyAlgorithm::SlidingWindowCounter(SlidingWindowCounter::new(quota)),
        })
    }
}

/// Writes the text that reads as this policy.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, limit) in self.limits().iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            limit.fmt(f)?;
        }
        Ok(())
    }
}

/// Writes the text that reads as this limit.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        match &self.algorithm {
            AnyAlgorithm::TokenBucket(a) if a.limit() == a.quota().count() => a.quota().fmt(f),
            AnyAlgorithm::TokenBucket(a) => {
                write!(f, "token_bucket {} burst {}", a.quota(), a.limit())
            }
            AnyAlgorithm::LeakyBucket(a) => {
                write!(f, "leaky_bucket {}", a.quota())?;
                let capacity = a.limit();
                if capacity != a.quota().count() {
                    write!(f, " capacity {capacity}")?;
                }
                f.write_str(if a.is_nodelay() { " nodelay" } else { "" })
            }
            AnyAlgorithm::FixedWindow(a) => write!(f, "fixed_window {}", a.quota()),
            AnyAlgorithm::SlidingLog(a) => write!(f, "sliding_log {}", a.quota()),
            AnyAlgorithm::SlidingWindowCounter(a) => {
                write!(f, "sliding_window_counter {}", a.quota())
            }
        }
    }
}
