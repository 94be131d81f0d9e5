//! The `RateLimit` fields of draft-ietf-httpapi-ratelimit-headers-11: structured fields
//! (RFC 9651), lists of a quoted name with parameters each.

use crate::algorithm::Description;
use crate::decision::Decision;
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use std::fmt::{self, Write};
use std::time::Duration;

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The largest integer of a structured field: 15 digits.
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// The fields that a limiter's answers carry, as far as they are always the same.
#[derive(Clone, Debug)]
pub(super) struct RateLimitFields {
    policy: HeaderValue,
    /// In the order of [`Decision::binding`].
    names: Box<[String]>,
}

impl RateLimitFields {
    pub(super) fn new(limits: &[Description]) -> Self {
        let names: Box<[String]> = limits
            .iter()
            .enumerate()
            .map(|(index, limit)| match &limit.name {
                Some(name) => name.to_string(),
                None if limits.len() == 1 => "default".to_owned(),
                None => format!("limit-{}", index + 1),
            })
            .collect();
        let mut text = String::new();
        for (name, limit) in names.iter().zip(limits) {
            let separator = if text.is_empty() { "" } else { ", " };
            let q = limit.limit.min(MAX_INTEGER);
            append(&mut text, format_args!("{separator}{};q={q}", Quoted(name)));
            if let Some(w) = limit.window.and_then(whole_seconds) {
                append(&mut text, format_args!(";w={w}"));
            }
        }
        Self { policy: header_value(&text), names }
    }

    /// The name of the limit that binds.
    pub(super) fn name(&self, decision: &Decision) -> &str {
        &self.names[decision.binding()]
    }

    /// The fields for one decision.
    pub(super) fn values(&self, decision: &Decision) -> RateLimitValues {
        let r = decision.remaining().min(MAX_INTEGER);
        let mut text = String::with_capacity(48);
        append(&mut text, format_args!("{};r={r}", Quoted(self.name(decision))));
        if let Some(next_after) = decision.next_after() {
            append(&mut text, format_args!(";t={}", seconds_rounded_up(next_after)));
        }
        RateLimitValues { policy: self.policy.clone(), state: header_value(&text) }
    }
}

/// The values of the fields for one decision.
#[derive(Debug)]
pub(super) struct RateLimitValues {
    policy: HeaderValue,
    state: HeaderValue,
}

impl RateLimitValues {
    /// Adds the fields to those that are there already.
    pub(super) fn append_to(self, headers: &mut HeaderMap) {
        headers.append(RATELIMIT_POLICY, self.policy);
        headers.append(RATELIMIT, self.state);
    }
}

/// Whole seconds after which to ask again, at least 1; `None` where waiting does not help.
pub(super) fn retry_after_seconds(decision: &Decision) -> Option<u64> {
    Some(seconds_rounded_up(decision.retry_after()?).max(1))
}

/// Sets `Retry-After` (RFC 9110) where waiting helps: digits only.
pub(super) fn set_retry_after(decision: &Decision, headers: &mut HeaderMap) {
    if let Some(seconds) = retry_after_seconds(decision) {
        headers.insert(RETRY_AFTER, seconds.into());
    }
}

fn seconds_rounded_up(duration: Duration) -> u64 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    seconds.min(MAX_INTEGER)
}

fn whole_seconds(duration: Duration) -> Option<u64> {
    let whole = duration.subsec_nanos() == 0 && duration.as_secs() > 0;
    whole.then_some(duration.as_secs().min(MAX_INTEGER))
}

/// A structured field's string.
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

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("names are printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, Outcome, Policy};

    fn policy_field(policy: &str) -> String {
        let policy: Policy = policy.parse().unwrap();
        RateLimitFields::new(&policy.describe()).policy.to_str().unwrap().to_owned()
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
            assert_eq!(policy_field(policy), field);
        }
    }

    #[test]
    fn numbers_stay_within_what_a_structured_field_can_hold() {
        let limits = [Description { name: None, limit: u64::MAX, window: None }];
        let fields = RateLimitFields::new(&limits);
        assert_eq!(fields.policy, r#""default";q=999999999999999"#);
    }

    #[test]
    fn seconds_are_rounded_up_and_retry_after_is_never_0() {
        let table = [(1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2), (58_000_000, 58)];
        for (micros, seconds) in table {
            let decision = Decision {
                outcome: Outcome::Denied(Duration::from_micros(micros)),
                granted: 0,
                limit: 1,
                remaining: 0,
                reset_after_micros: micros,
                next_after_micros: Some(micros),
                binding: 0,
            };
            let mut headers = HeaderMap::new();
            set_retry_after(&decision, &mut headers);
            assert_eq!(headers[RETRY_AFTER], seconds.to_string());
        }
    }
}
