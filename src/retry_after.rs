//! When a server that refused a request wants to be asked again.

use http::StatusCode;
use http::header::{DATE, HeaderMap, RETRY_AFTER};
use std::time::{Duration, SystemTime};

/// Returns how long a server that refused a request wants its client to wait, from the status and
/// the headers of its answer; `None` if it did not refuse or none of its fields can be read.
///
/// Answers of 429, 503 and 403 count. The first of these fields that can be read holds:
///
/// | field | value |
/// |---|---|
/// | `Retry-After` | seconds, or a date |
/// | `RateLimit` | as in versions 11 and 07 of the draft |
/// | `RateLimit-Reset` | seconds, a duration such as `6m0s`, or a Unix time in seconds or milliseconds |
/// | `X-RateLimit-Reset-After`, `X-RateLimit-Reset`, `X-Rate-Limit-Reset` | the same |
/// | `X-RateLimit-Reset-Requests`, `X-RateLimit-Reset-Tokens` | the same; the later one of the two |
///
/// Seconds may have a fraction. All fields but `Retry-After` count only if nothing remains by the
/// field that goes with them, such as `X-RateLimit-Remaining`; if that one is missing, a 429 or a
/// 503 means that nothing remains, and a 403 does not. So a 403 counts if it has a `Retry-After` or
/// says that nothing remains, as GitHub's do.
///
/// A date or a Unix time counts from the answer's own `Date`, if it has one, so a client whose clock
/// is wrong waits as long as others. One that has passed is a wait of zero.
///
/// The wait is rounded up to whole milliseconds, as timers have them, and is at most `longest`: a
/// mistake of the server must not stop a client for years. Zero and `None` are no reason to ask
/// again at once: wait for a second, say.
///
/// The types are those of the `http` crate, so the answers of reqwest, hyper and axum can be read.
///
/// ```
/// use http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER};
/// use std::time::Duration;
/// use tollgate::retry_after;
///
/// let mut headers = HeaderMap::new();
/// headers.insert(RETRY_AFTER, HeaderValue::from_static("120"));
/// let [minute, hour] = [60, 3600].map(Duration::from_secs);
/// assert_eq!(retry_after(StatusCode::TOO_MANY_REQUESTS, &headers, hour), Some(minute * 2));
/// assert_eq!(retry_after(StatusCode::TOO_MANY_REQUESTS, &headers, minute), Some(minute));
/// assert_eq!(retry_after(StatusCode::OK, &headers, minute), None);
/// ```
#[must_use]
pub fn retry_after(status: StatusCode, headers: &HeaderMap, longest: Duration) -> Option<Duration> {
    let is_limited = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => true,
        StatusCode::FORBIDDEN => false,
        _ => return None,
    };
    let answer = Answer { headers, is_limited };
    let wait = answer.by_retry_after().or_else(|| answer.by_ratelimit()).or_else(|| {
        let longest = |resets: &[[&str; 2]]| {
            resets.iter().filter_map(|[remaining, reset]| answer.by_reset(remaining, reset)).max()
        };
        RESETS.iter().find_map(|resets| longest(resets))
    });
    wait.map(|wait| rounded_up(wait).min(longest))
}

/// The fields for what remains and when there is more, in the order in which they are looked for.
const RESETS: [&[[&str; 2]]; 5] = [
    &[["ratelimit-remaining", "ratelimit-reset"]],
    &[["x-ratelimit-remaining", "x-ratelimit-reset-after"]],
    &[["x-ratelimit-remaining", "x-ratelimit-reset"]],
    &[["x-rate-limit-remaining", "x-rate-limit-reset"]],
    &[
        ["x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
        ["x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    ],
];

struct Answer<'a> {
    headers: &'a HeaderMap,
    /// Whether the status says that nothing remains.
    is_limited: bool,
}

impl<'a> Answer<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        // UTF-8, as Go writes microseconds by a letter that is not of ASCII.
        Some(str::from_utf8(self.headers.get(name)?.as_bytes()).ok()?.trim())
    }

    /// How long it is until then, by the server's clock if it is known.
    fn until(&self, then: SystemTime) -> Duration {
        let date = self.text(DATE.as_str()).and_then(|date| httpdate::parse_http_date(date).ok());
        then.duration_since(date.unwrap_or_else(SystemTime::now)).unwrap_or_default()
    }

    fn by_retry_after(&self) -> Option<Duration> {
        let text = self.text(RETRY_AFTER.as_str())?;
        seconds(text).or_else(|| Some(self.until(httpdate::parse_http_date(text).ok()?)))
    }

    /// The longest wait of those policies that have nothing left.
    fn by_ratelimit(&self) -> Option<Duration> {
        let lines = self.headers.get_all("ratelimit").iter().filter_map(|line| line.to_str().ok());
        let mut longest = None;
        for line in lines {
            // Draft 7 is one list of keys, draft 11 a list of names with parameters.
            let draft_7 = parameter(line, ',', "remaining").zip(parameter(line, ',', "reset"));
            let draft_11 = outside_quotes(line, ',')
                .map(|member| parameter(member, ';', "r").zip(parameter(member, ';', "t")));
            for (remaining, wait) in draft_11.chain([draft_7]).flatten() {
                if is_nothing(remaining) {
                    longest = longest.max(seconds(wait));
                }
            }
        }
        longest
    }

    fn by_reset(&self, remaining: &str, reset: &str) -> Option<Duration> {
        if !self.text(remaining).map_or(self.is_limited, is_nothing) {
            return None;
        }
        let text = self.text(reset)?;
        let Some(reset) = seconds(text) else { return duration(text) };
        // A wait of thirty years or more is a Unix time. One in milliseconds, read as seconds, would
        // be in a year beyond 5000.
        let since_epoch = match reset.as_secs() {
            ..1_000_000_000 => return Some(reset),
            1_000_000_000..100_000_000_000 => reset,
            _ => reset / 1_000,
        };
        // What is beyond the end of time is a long way off.
        Some(SystemTime::UNIX_EPOCH.checked_add(since_epoch).map_or(reset, |at| self.until(at)))
    }
}

/// Whether there is not one unit. Below zero there is none either.
fn is_nothing(remaining: &str) -> bool {
    let (is_negative, units) = match remaining.strip_prefix('-') {
        Some(units) => (true, units),
        None => (false, remaining),
    };
    seconds(units).is_some_and(|units| is_negative || units < Duration::from_secs(1))
}

/// Digits, which may have a fraction: no sign and no exponent.
fn seconds(text: &str) -> Option<Duration> {
    decimal(text, SECOND).map(of_nanos)
}

/// A duration as Go writes it, such as `1h2m3.5s` or `120ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut nanos = 0_u128;
    let mut rest = text;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let unit = match unit {
            "h" => 3_600 * SECOND,
            "m" => 60 * SECOND,
            "s" => SECOND,
            "ms" => MILLISECOND,
            "us" | "µs" | "μs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        nanos = nanos.saturating_add(decimal(number, unit)?);
        if behind.is_empty() {
            return Some(of_nanos(nanos));
        }
        rest = behind;
    }
}

/// In nanoseconds.
const SECOND: u128 = 1_000_000_000;
const MILLISECOND: u128 = 1_000_000;

/// So many digits are no number that a server would mean.
const MOST_DIGITS: usize = 40;

/// So many units of so many nanoseconds each, rounded up.
fn decimal(text: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if text.len() > MOST_DIGITS || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    // More than fits is a very long time all the same.
    let mut nanos = whole.parse().unwrap_or(u128::MAX).saturating_mul(unit);
    let (counted, beyond) = fraction.split_at(fraction.len().min(18));
    let parts = counted.parse::<u128>().ok()? * unit;
    nanos = nanos.saturating_add(parts.div_ceil(10_u128.pow(u32::try_from(counted.len()).ok()?)));
    Some(nanos.saturating_add(u128::from(beyond.bytes().any(|digit| digit != b'0'))))
}

fn of_nanos(nanos: u128) -> Duration {
    let seconds = u64::try_from(nanos / SECOND).unwrap_or(u64::MAX / 4);
    let nanos = u64::try_from(nanos % SECOND).unwrap_or_default();
    Duration::from_secs(seconds.min(u64::MAX / 4)) + Duration::from_nanos(nanos)
}

fn rounded_up(wait: Duration) -> Duration {
    let millis = wait.as_nanos().div_ceil(MILLISECOND);
    of_nanos(millis * MILLISECOND)
}

/// The value of `key=value` in a list of them.
fn parameter<'t>(text: &'t str, separator: char, key: &str) -> Option<&'t str> {
    outside_quotes(text, separator)
        .find_map(|part| part.trim().strip_prefix(key)?.strip_prefix('='))
}

/// The parts between the separators that are in no quoted string.
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        if escaped {
            escaped = false;
            return false;
        }
        escaped = quoted && character == '\\';
        quoted ^= character == '"';
        character == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    const YEAR: u64 = 31_536_000_000;

    /// In milliseconds.
    fn read(status: u16, lines: &[(&str, &str)]) -> Option<u128> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        retry_after(status, &headers, Duration::from_millis(YEAR)).map(|wait| wait.as_millis())
    }

    fn assert_reads(status: u16, lines: &[(&str, &str)], millis: Option<u64>) {
        assert_eq!(read(status, lines), millis.map(u128::from), "{status} {lines:?}");
    }

    #[test]
    fn numbers_are_never_rounded_down_and_nonsense_is_no_number() {
        // (text, milliseconds as Retry-After, as a reset)
        let table: &[(&str, Option<u64>, Option<u64>)] = &[
            ("7", Some(7_000), Some(7_000)),
            ("0", Some(0), Some(0)),
            ("007", Some(7_000), Some(7_000)),
            ("2.0", Some(2_000), Some(2_000)),
            ("0.5", Some(500), Some(500)),
            ("65.1234", Some(65_124), Some(65_124)),
            ("0.3333333333333333333", Some(334), Some(334)),
            ("0.0000000000000000000001", Some(1), Some(1)),
            (" 7 ", Some(7_000), Some(7_000)),
            ("999999999", Some(YEAR), Some(YEAR)),
            ("99999999999999999999999", Some(YEAR), Some(YEAR)),
            ("9999999999999999999999999999999999999999", Some(YEAR), Some(YEAR)),
            ("6m0s", None, Some(360_000)),
            ("850µs", None, Some(1)),
            ("1s", None, Some(1_000)),
            ("1m", None, Some(60_000)),
            ("1h2m3.5s", None, Some(3_723_500)),
            ("2m59.56s", None, Some(179_560)),
            ("120ms", None, Some(120)),
            ("1us", None, Some(1)),
            ("1ns", None, Some(1)),
            ("0s", None, Some(0)),
            ("9999999999999999999999999h", None, Some(YEAR)),
            ("2000000000s", None, Some(YEAR)),
            ("", None, None),
            ("-7", None, None),
            ("+7", None, None),
            ("-0.5", None, None),
            (".5", None, None),
            ("5.", None, None),
            ("1.2.3", None, None),
            ("0,5", None, None),
            ("1e5", None, None),
            ("NaN", None, None),
            ("inf", None, None),
            ("0x10", None, None),
            ("1_000", None, None),
            ("5, 5", None, None),
            ("soon", None, None),
            ("s", None, None),
            ("5d", None, None),
            ("5sm", None, None),
            ("5s6", None, None),
            ("-6m0s", None, None),
            ("1.5.5s", None, None),
            ("99999999999999999999999999999999999999999", None, None),
            ("2026-11-28T13:00:00Z", None, None),
        ];
        for &(text, retry_after, reset) in table {
            assert_reads(429, &[("retry-after", text)], retry_after);
            assert_reads(429, &[("x-ratelimit-reset", text)], reset);
        }
    }

    #[test]
    fn answers_are_read_in_every_style() {
        let remaining = |units| ("x-ratelimit-remaining", units);
        let after = ("retry-after", "7");
        let reset = ("x-ratelimit-reset", "5");
        // (status, lines, milliseconds)
        type Lines<'l> = &'l [(&'l str, &'l str)];
        let table: &[(u16, Lines<'_>, Option<u64>)] = &[
            (429, &[after], Some(7_000)),
            (503, &[after], Some(7_000)),
            (403, &[after], Some(7_000)),
            (200, &[after], None),
            (401, &[after], None),
            (500, &[after], None),
            (429, &[], None),
            (403, &[], None),
            (403, &[remaining("0"), reset], Some(5_000)),
            (403, &[remaining("4"), reset], None),
            (403, &[reset], None),
            (403, &[("ratelimit", "\"a\";r=0;t=9")], Some(9_000)),
            (403, &[("ratelimit", "\"a\";r=4;t=9")], None),
            (429, &[after, ("ratelimit", "\"a\";r=0;t=9")], Some(7_000)),
            (429, &[("retry-after", "soon"), ("ratelimit", "\"a\";r=0;t=9")], Some(9_000)),
            (429, &[("ratelimit", "\"a\";r=0;t=9")], Some(9_000)),
            (429, &[("ratelimit", "\"a\";r=0;t=2.5")], Some(2_500)),
            (429, &[("ratelimit", "\"a\";r=0.0;t=9")], Some(9_000)),
            (429, &[("ratelimit", "\"a\";r=3;t=9")], None),
            (429, &[("ratelimit", "\"a\";r=0")], None),
            (429, &[("ratelimit", "\"a\";r=0;t=9, \"b\";r=0;t=20, \"c\";r=1;t=99")], Some(20_000)),
            (429, &[("ratelimit", "\"a\";r=0;t=9"), ("ratelimit", "\"b\";r=0;t=8")], Some(9_000)),
            (429, &[("ratelimit", "\"a;r=0;t=5, \\\" b\";r=0;t=9")], Some(9_000)),
            (429, &[("ratelimit", "\"\\")], None),
            (429, &[("ratelimit", "limit=100, remaining=0, reset=5")], Some(5_000)),
            (429, &[("ratelimit", "limit=100, remaining=0.0, reset=2.5")], Some(2_500)),
            (429, &[("ratelimit", "limit=100, remaining=9, reset=5")], None),
            (429, &[("ratelimit-remaining", "0"), ("ratelimit-reset", "5")], Some(5_000)),
            (429, &[remaining("0"), reset], Some(5_000)),
            (429, &[remaining("0.0"), reset], Some(5_000)),
            (429, &[remaining("0.9"), reset], Some(5_000)),
            (429, &[remaining("1.0"), reset], None),
            (429, &[remaining("none"), reset], None),
            (429, &[reset], Some(5_000)),
            (
                429,
                &[remaining("0"), ("x-ratelimit-reset-after", "1.25"), ("x-ratelimit-reset", "9")],
                Some(1_250),
            ),
            (429, &[("x-rate-limit-remaining", "0"), ("x-rate-limit-reset", "5")], Some(5_000)),
            (
                429,
                &[
                    ("x-ratelimit-remaining-requests", "0"),
                    ("x-ratelimit-reset-requests", "1s"),
                    ("x-ratelimit-remaining-tokens", "0"),
                    ("x-ratelimit-reset-tokens", "6m0s"),
                ],
                Some(360_000),
            ),
            (
                429,
                &[
                    ("x-ratelimit-remaining-requests", "0"),
                    ("x-ratelimit-reset-requests", "120ms"),
                    ("x-ratelimit-remaining-tokens", "149984"),
                    ("x-ratelimit-reset-tokens", "6m0s"),
                ],
                Some(120),
            ),
        ];
        for &(status, lines, millis) in table {
            assert_reads(status, lines, millis);
        }
    }

    /// The `Date` is that of a server whose clock differs from this machine's by years.
    #[test]
    fn instants_are_judged_by_the_date_of_the_answer() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let later = ("date", "Mon, 28 Nov 2033 13:00:00 GMT"); // 2016795600 in Unix time
        let until = |text| ("retry-after", text);
        let reset = |text| ("x-ratelimit-reset", text);
        // (lines, milliseconds)
        let table = [
            ([date, until("Sun, 06 Nov 1994 08:50:14 GMT")], 37_000),
            ([date, until("Sunday, 06-Nov-94 08:50:14 GMT")], 37_000),
            ([date, until("Sun Nov  6 08:50:14 1994")], 37_000),
            ([date, until("Sun, 06 Nov 1994 08:49:37 GMT")], 0),
            ([date, until("Sun, 06 Nov 1994 08:49:36 GMT")], 0),
            ([date, until("Sat, 06 Nov 2094 08:49:37 GMT")], YEAR),
            ([date, until("37")], 37_000),
            ([later, reset("2016795637")], 37_000),
            ([later, reset("2016795637.25")], 37_250),
            ([later, reset("2016795637250")], 37_250),
            ([later, reset("2016795637250.5")], 37_251),
            ([later, reset("2016795599")], 0),
            ([later, reset("2016795599000")], 0),
            ([later, reset("37")], 37_000),
            ([later, reset("99999999999")], YEAR),
            ([later, reset("100000000000")], 0),
        ];
        for (lines, millis) in table {
            assert_reads(429, &lines, Some(millis));
        }
    }

    #[test]
    fn without_a_date_instants_are_judged_by_the_clock() {
        let in_a_minute = SystemTime::now() + Duration::from_secs(60);
        let epoch = in_a_minute.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let texts = [
            ("retry-after", httpdate::fmt_http_date(in_a_minute)),
            ("x-ratelimit-reset", epoch.as_secs().to_string()),
            ("x-ratelimit-reset", epoch.as_millis().to_string()),
        ];
        for (name, text) in &texts {
            for date in [None, Some(("date", "no date"))] {
                let lines: Vec<_> = date.into_iter().chain([(*name, text.as_str())]).collect();
                let millis = read(429, &lines).unwrap();
                assert!((30_000..=60_000).contains(&millis), "{lines:?}: {millis}");
            }
        }
    }
}
