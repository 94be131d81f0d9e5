//! The fields that tell a client where it stands.

use super::observe::Observer;
use crate::algorithm::Description;
use crate::decision::Decision;
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// In which fields answers tell a client where it stands.
///
/// The `RateLimit` fields are a draft that has changed before, and may again: each version is a
/// style of its own. Of stacked layers, all add to draft 11's fields. In the older styles the fields
/// of the innermost layer stay.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeaderStyle {
    /// [draft-ietf-httpapi-ratelimit-headers-11](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/):
    /// `RateLimit-Policy: "default";q=100;w=60` and `RateLimit: "default";r=50;t=1`, where `t` are
    /// the seconds until there is one more than `r`, rounded up. On a refusal it names the limit
    /// with the longest wait: `r` are the units that all limits of the set still have, and `t`
    /// are the seconds after which the same request passes, as `Retry-After` has them. If it
    /// never passes, `t` are those until there is one more unit.
    #[default]
    Draft11,
    /// Version 07 of the draft: `RateLimit: limit=100, remaining=50, reset=5` and
    /// `RateLimit-Policy: 100;w=60`. `reset` are the seconds until nothing is used any more.
    Draft7,
    /// Version 06 of the draft: `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset` and
    /// `RateLimit-Policy: 100;w=60`.
    Draft6,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining`, and `X-RateLimit-Reset` as the second since
    /// the Unix epoch in which nothing is used any more, as GitHub has it.
    LegacyEpoch,
    /// The same with `X-RateLimit-Reset` as seconds from now.
    LegacyDelta,
    /// None; a refusal still has `Retry-After`.
    None,
}

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Limit, remaining and reset.
static DRAFT_6: [HeaderName; 3] = [
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
];
static LEGACY: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// The largest integer of a structured field: 15 digits.
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// How fields are written, whatever the limits.
#[derive(Clone, Debug, Default)]
pub(super) struct Format {
    pub(super) style: HeaderStyle,
    /// What the quotas count; `None` for requests.
    quota_unit: Option<Arc<str>>,
}

impl Format {
    /// # Panics
    ///
    /// Where `unit` is not of printable ASCII.
    pub(super) fn set_quota_unit(&mut self, unit: &str) {
        let printable = unit.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        assert!(printable, "a quota's unit must be of printable ASCII, not {unit:?}");
        self.quota_unit = (unit != "requests").then(|| unit.into());
    }
}

/// The fields that a limiter's answers carry, as far as they are always the same.
#[derive(Clone, Debug)]
pub(super) struct RateLimitFields {
    style: HeaderStyle,
    policy: Option<HeaderValue>,
    /// At least one, in the order of [`Decision::binding`].
    limits: Box<[Limit]>,
}

#[derive(Clone, Debug)]
struct Limit {
    observer: Observer,
    /// The beginning of its member of `RateLimit`, as far as the number of units that remain; made
    /// when it is first told.
    member: OnceLock<Box<[u8]>>,
}

impl RateLimitFields {
    pub(super) fn new(limits: &[Description], format: &Format) -> Self {
        let mut names: Vec<String> = limits
            .iter()
            .enumerate()
            .map(|(index, limit)| match &limit.name {
                Some(name) => name.to_string(),
                None if limits.len() == 1 => "default".to_owned(),
                None => format!("limit-{}", index + 1),
            })
            .collect();
        if names.is_empty() {
            names.push("default".to_owned());
        }
        let policy = match format.style {
            _ if limits.is_empty() => None,
            HeaderStyle::Draft11 | HeaderStyle::Draft7 | HeaderStyle::Draft6 => {
                Some(policies(limits, &names, format))
            }
            HeaderStyle::LegacyEpoch | HeaderStyle::LegacyDelta | HeaderStyle::None => None,
        };
        let limit = |name| Limit { observer: Observer::new(name), member: OnceLock::new() };
        let limits = names.into_iter().map(limit).collect();
        Self { style: format.style, policy, limits }
    }

    /// Who tells of the limit that binds.
    pub(super) fn observer(&self, decision: &Decision) -> &Observer {
        &self.binding(decision).observer
    }

    /// The limits may have been replaced by fewer since the decision.
    fn binding(&self, decision: &Decision) -> &Limit {
        &self.limits[decision.binding().min(self.limits.len() - 1)]
    }

    fn member(&self, decision: &Decision) -> HeaderValue {
        let Limit { observer, member } = self.binding(decision);
        let begin =
            member.get_or_init(|| format!("{};r=", Quoted(observer.limit())).into_bytes().into());
        let (mut r, mut t) = (itoa::Buffer::new(), itoa::Buffer::new());
        let r = r.format(decision.remaining().min(MAX_INTEGER)).as_bytes();
        let next_after = || decision.next_after().map(seconds_rounded_up);
        let retry_after = decision.retry_after().map(retry_after_seconds);
        let text = match retry_after.or_else(next_after) {
            Some(seconds) => [begin, r, b";t=", t.format(seconds).as_bytes()].concat(),
            None => [begin, r].concat(),
        };
        HeaderValue::try_from(text).expect(PRINTABLE)
    }

    /// The fields for one decision.
    pub(super) fn values(&self, decision: &Decision) -> RateLimitValues {
        let limit = decision.limit().min(MAX_INTEGER);
        let remaining = decision.remaining().min(MAX_INTEGER);
        let reset = seconds_rounded_up(decision.reset_after());
        let state = match self.style {
            HeaderStyle::Draft11 => State::List(self.member(decision)),
            HeaderStyle::Draft7 => {
                let text = format!("limit={limit}, remaining={remaining}, reset={reset}");
                State::One(header_value(text))
            }
            HeaderStyle::Draft6 => State::Three(&DRAFT_6, [limit, remaining, reset]),
            HeaderStyle::LegacyDelta => State::Three(&LEGACY, [limit, remaining, reset]),
            HeaderStyle::LegacyEpoch => {
                let decided_at = Duration::from_micros(decision.decided_at().as_micros());
                let at = seconds_rounded_up(decided_at + decision.reset_after());
                State::Three(&LEGACY, [limit, remaining, at])
            }
            HeaderStyle::None => State::None,
        };
        RateLimitValues { policy: self.policy.clone(), state }
    }
}

/// `RateLimit-Policy`.
fn policies(limits: &[Description], names: &[String], format: &Format) -> HeaderValue {
    let mut text = String::new();
    for (name, limit) in names.iter().zip(limits) {
        let separator = if text.is_empty() { "" } else { ", " };
        let q = limit.limit.min(MAX_INTEGER);
        match format.style {
            HeaderStyle::Draft11 => {
                append(&mut text, format_args!("{separator}{};q={q}", Quoted(name)));
                if let Some(unit) = &format.quota_unit {
                    append(&mut text, format_args!(";qu={}", Quoted(unit)));
                }
            }
            _ => append(&mut text, format_args!("{separator}{q}")),
        }
        if let Some(w) = limit.window.and_then(whole_seconds) {
            append(&mut text, format_args!(";w={w}"));
        }
    }
    header_value(text)
}

/// The values of the fields for one decision.
#[derive(Debug)]
pub(super) struct RateLimitValues {
    policy: Option<HeaderValue>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Members of a list, to which other layers and handlers add theirs.
    List(HeaderValue),
    /// A field that can be there once; what an inner layer or the handler has set stays.
    One(HeaderValue),
    /// Three such fields, which belong together.
    Three(&'static [HeaderName; 3], [u64; 3]),
    None,
}

impl RateLimitValues {
    /// Adds the fields to those that are there already.
    pub(super) fn append_to(self, headers: &mut HeaderMap) {
        match self.state {
            State::List(state) => {
                headers.append(RATELIMIT, state);
            }
            State::One(state) => {
                headers.entry(RATELIMIT).or_insert(state);
            }
            State::Three(names, values) if !names.iter().any(|n| headers.contains_key(n)) => {
                for (name, value) in names.iter().zip(values) {
                    headers.insert(name, value.into());
                }
            }
            State::Three(..) | State::None => {}
        }
        if let Some(policy) = self.policy {
            headers.append(RATELIMIT_POLICY, policy);
        }
    }
}

/// Whole seconds after which to ask again, at least 1.
pub(super) fn retry_after_seconds(wait: Duration) -> u64 {
    seconds_rounded_up(wait).max(1)
}

/// Sets `Retry-After` (RFC 9110): digits only.
pub(super) fn set_retry_after(wait: Duration, headers: &mut HeaderMap) {
    headers.insert(RETRY_AFTER, retry_after_seconds(wait).into());
}

fn seconds_rounded_up(duration: Duration) -> u64 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    seconds.min(MAX_INTEGER)
}

fn whole_seconds(duration: Duration) -> Option<u64> {
    let whole = duration.subsec_nanos() == 0 && duration.as_secs() > 0;
    whole.then_some(duration.as_secs().min(MAX_INTEGER))
}

/// A structured field's string (RFC 9651).
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(character)?;
        }
        f.write_char('"')
    }
}

fn append(text: &mut String, arguments: fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a String cannot fail");
}

const PRINTABLE: &str = "names are printable ASCII";

/// Takes the text over, without a copy.
fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect(PRINTABLE)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "random numbers")]
mod tests {
    use super::*;
    use crate::{Algorithm, Name, Outcome, Policy, Tick};

    fn fields(policy: &str, style: HeaderStyle) -> RateLimitFields {
        let policy: Policy = policy.parse().unwrap();
        RateLimitFields::new(&policy.describe(), &Format { style, ..Format::default() })
    }

    #[test]
    fn policies_are_told_as_the_draft_says() {
        let table = [
            ("100/min", r#""default";q=100;w=60"#),
            ("token_bucket 1/2s burst 3", r#""default";q=3;w=6"#),
            ("token_bucket 3/s burst 10", r#""default";q=10"#),
            ("100/100ms", r#""default";q=100"#),
            (
                "burst: token_bucket 10/s; daily: fixed_window 5000/day",
                r#""burst";q=10;w=1, "daily";q=5000;w=86400"#,
            ),
            ("10/s; 1000/h", r#""10/s";q=10;w=1, "1000/h";q=1000;w=3600"#),
            (r#"a"b\c: 1/s"#, r#""a\"b\\c";q=1;w=1"#),
        ];
        for (policy, field) in table {
            assert_eq!(fields(policy, HeaderStyle::Draft11).policy.unwrap(), field);
        }
        for style in [HeaderStyle::Draft7, HeaderStyle::Draft6] {
            assert_eq!(fields("a: 10/s; b: 100/100ms", style).policy.unwrap(), "10;w=1, 100");
        }
    }

    #[test]
    fn a_unit_other_than_requests_is_told() {
        let table = [
            ("content-bytes", r#""egress";q=65535;qu="content-bytes";w=10"#),
            ("concurrent-requests", r#""egress";q=65535;qu="concurrent-requests";w=10"#),
            (r#"a"b\c"#, r#""egress";q=65535;qu="a\"b\\c";w=10"#),
            ("requests", r#""egress";q=65535;w=10"#),
        ];
        let policy: Policy = "egress: token_bucket 65535/10s".parse().unwrap();
        let mut format = Format::default();
        for (unit, field) in table {
            format.set_quota_unit(unit);
            let fields = RateLimitFields::new(&policy.describe(), &format);
            assert_eq!(fields.policy.unwrap(), field);
        }
        format.set_quota_unit("content-bytes");
        format.style = HeaderStyle::Draft7;
        let fields = RateLimitFields::new(&policy.describe(), &format);
        assert_eq!(fields.policy.unwrap(), "65535;w=10", "older drafts have no place for it");
    }

    #[test]
    #[should_panic(expected = "a quota's unit must be of printable ASCII")]
    fn a_unit_that_would_break_a_header_is_refused() {
        Format::default().set_quota_unit("bytes\r\n");
    }

    fn decision(outcome: Outcome, remaining: u64, micros: u64) -> Decision {
        Decision {
            decided_at: Tick::default(),
            outcome,
            granted: 0,
            limit: 100,
            remaining,
            reset_after_micros: 4 * micros,
            next_after_micros: Some(micros),
            binding: 0,
        }
    }

    fn written(style: HeaderStyle, decision: &Decision) -> Vec<String> {
        let mut headers = HeaderMap::new();
        fields("100/min", style).values(decision).append_to(&mut headers);
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().unwrap())
        };
        let mut lines: Vec<String> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn each_style_tells_the_same_in_its_own_way() {
        let decision = decision(Outcome::Allowed, 50, 1_200_000);
        let table: [(HeaderStyle, &[&str]); 5] = [
            (
                HeaderStyle::Draft11,
                &[r#"ratelimit-policy: "default";q=100;w=60"#, r#"ratelimit: "default";r=50;t=2"#],
            ),
            (
                HeaderStyle::Draft7,
                &["ratelimit-policy: 100;w=60", "ratelimit: limit=100, remaining=50, reset=5"],
            ),
            (
                HeaderStyle::Draft6,
                &[
                    "ratelimit-limit: 100",
                    "ratelimit-policy: 100;w=60",
                    "ratelimit-remaining: 50",
                    "ratelimit-reset: 5",
                ],
            ),
            (
                HeaderStyle::LegacyDelta,
                &["x-ratelimit-limit: 100", "x-ratelimit-remaining: 50", "x-ratelimit-reset: 5"],
            ),
            (HeaderStyle::None, &[]),
        ];
        for (style, lines) in table {
            assert_eq!(written(style, &decision), lines, "{style:?}");
        }
        // From the decision's own instant: no clock is read for it.
        for (decided_at, reset_at) in
            [(0, "5"), (900_000, "6"), (1_800_000_055_000_000, "1800000060")]
        {
            let decision = Decision { decided_at: Tick::from_micros(decided_at), ..decision };
            let lines = written(HeaderStyle::LegacyEpoch, &decision);
            assert_eq!(lines[2], format!("x-ratelimit-reset: {reset_at}"));
        }
    }

    #[test]
    fn what_is_there_already_stays() {
        for style in [
            HeaderStyle::Draft11,
            HeaderStyle::Draft7,
            HeaderStyle::Draft6,
            HeaderStyle::LegacyDelta,
        ] {
            let mut headers = HeaderMap::new();
            let (inner, outer) =
                (decision(Outcome::Allowed, 1, 1), decision(Outcome::Allowed, 2, 1));
            fields("inner: 100/min", style).values(&inner).append_to(&mut headers);
            let before = headers.clone();
            fields("outer: 100/min", style).values(&outer).append_to(&mut headers);
            for (name, value) in &before {
                assert_eq!(headers[name], value, "{style:?}");
            }
            let states = headers.get_all(RATELIMIT).iter().count();
            assert_eq!(states == 2, style == HeaderStyle::Draft11, "{style:?}");
        }
    }

    #[test]
    fn three_fields_are_written_together_or_not_at_all() {
        for (style, names) in [
            (HeaderStyle::Draft6, &DRAFT_6),
            (HeaderStyle::LegacyDelta, &LEGACY),
            (HeaderStyle::LegacyEpoch, &LEGACY),
        ] {
            for own in names {
                let mut headers = HeaderMap::new();
                headers.insert(own, HeaderValue::from_static("77"));
                let decision = decision(Outcome::Allowed, 1, 1);
                fields("100/min", style).values(&decision).append_to(&mut headers);
                let there = names.iter().filter_map(|name| headers.get(name));
                assert_eq!(there.collect::<Vec<_>>(), ["77"], "{style:?} {own}");
            }
        }
    }

    /// Whatever the names and numbers are, what is written is what the reference parser reads and
    /// writes again, byte for byte.
    #[test]
    fn fields_are_written_as_the_reference_writes_them() {
        // A small generator (Knuth's MMIX).
        let mut seed = 11_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> (seed >> 58)
        };
        let printable: Vec<char> = (' '..='~').filter(|c| !matches!(c, ':' | ';')).collect();
        let text = |random: &mut dyn FnMut() -> u64| {
            let letters = 1 + random() % 20;
            let letter = |_| printable[random() as usize % printable.len()];
            (0..letters).map(letter).collect::<String>()
        };
        let written_again = |field: &HeaderValue| {
            let parser = sfv::Parser::new(field.as_bytes());
            let list: sfv::List = parser.parse().expect("a list");
            sfv::FieldType::serialize(&list).expect("it is not empty")
        };
        let mut fields = 0;
        while fields < 100_000 {
            let limits: Vec<Description> = (0..1 + random() % 3)
                .map(|_| Description {
                    name: Name::new(text(&mut random).trim_matches(' ')).ok(),
                    limit: random(),
                    window: Some(Duration::from_micros(random())),
                })
                .collect();
            let mut format = Format::default();
            format.set_quota_unit(&text(&mut random));
            let ours = RateLimitFields::new(&limits, &format);
            let policy = ours.policy.clone().unwrap();
            assert_eq!(written_again(&policy), policy.to_str().unwrap());
            let decision = Decision {
                binding: random() as usize % limits.len(),
                ..decision(Outcome::Allowed, random(), random())
            };
            let State::List(state) = ours.values(&decision).state else { panic!("a list") };
            assert_eq!(written_again(&state), state.to_str().unwrap());
            fields += 2;
        }
    }

    #[test]
    fn numbers_stay_within_what_a_structured_field_can_hold() {
        let limits = [Description { name: None, limit: u64::MAX, window: None }];
        let fields = RateLimitFields::new(&limits, &Format::default());
        assert_eq!(fields.policy.unwrap(), r#""default";q=999999999999999"#);
    }

    #[test]
    fn seconds_are_rounded_up_and_retry_after_is_never_0() {
        let table = [(1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2), (58_000_000, 58)];
        for (micros, seconds) in table {
            let decision = decision(Outcome::Denied(Duration::from_micros(micros)), 0, micros);
            let mut headers = HeaderMap::new();
            set_retry_after(decision.retry_after().unwrap(), &mut headers);
            assert_eq!(headers[RETRY_AFTER], seconds.to_string());
        }
    }
}
