//! When a server that refuses wants to be asked again.

use http::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use std::time::{Duration, SystemTime};

/// Reads from an answer when to ask again: for clients of servers that limit them.
///
/// Of 429 and 503, and where an answer tells it, in this order: `Retry-After` (seconds, or a
/// date), `RateLimit` as in drafts 11 and 7, `RateLimit-Reset`, `X-RateLimit-Reset` (seconds
/// from now, or since the epoch). The fields other than `Retry-After` count only where nothing
/// remains. `None` where the answer is another one, or tells nothing that can be read.
///
/// Whatever the server says, it is at most `longest`: a mistake of its clock must not stop a client
/// for years. A time that has passed is zero.
///
/// ```
/// use http::{Response, StatusCode};
/// use std::time::Duration;
/// use tollgate::tower::retry_after;
///
/// let refused = Response::builder()
///     .status(StatusCode::TOO_MANY_REQUESTS)
///     .header("retry-after", "120")
///     .body(())?;
/// let minute = Duration::from_secs(60);
/// assert_eq!(retry_after(&refused, minute * 10), Some(minute * 2));
/// assert_eq!(retry_after(&refused, minute), Some(minute));
/// assert_eq!(retry_after(&Response::new(()), minute), None);
/// # Ok::<(), http::Error>(())
/// ```
#[must_use]
pub fn retry_after<B>(response: &Response<B>, longest: Duration) -> Option<Duration> {
    let refused = matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    let headers = response.headers();
    let now = SystemTime::now();
    let told = refused.then(|| {
        by_retry_after(headers, now)
            .or_else(|| by_ratelimit(headers))
            .or_else(|| by_reset(headers, "ratelimit-remaining", "ratelimit-reset", now))
            .or_else(|| by_reset(headers, "x-ratelimit-remaining", "x-ratelimit-reset", now))
    });
    told.flatten().map(|wait| wait.min(longest))
}

fn by_retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Some(seconds) = seconds(text) {
        return Some(seconds);
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The longest wait of those policies that have nothing left.
fn by_ratelimit(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all("ratelimit").iter().filter_map(|line| line.to_str().ok());
    let mut longest = None;
    for line in lines {
        // Draft 7 is one list of keys, draft 11 a list of names with parameters.
        let draft_7 = parameter(line, ',', "remaining").zip(parameter(line, ',', "reset"));
        let draft_11 = outside_quotes(line, ',')
            .map(|member| parameter(member, ';', "r").zip(parameter(member, ';', "t")));
        for (remaining, wait) in draft_11.chain([draft_7]).flatten() {
            if remaining == "0" {
                longest = longest.max(seconds(wait));
            }
        }
    }
    longest
}

fn by_reset(
    headers: &HeaderMap,
    remaining: &str,
    reset: &str,
    now: SystemTime,
) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if text(remaining).is_some_and(|remaining| remaining.trim() != "0") {
        return None;
    }
    let reset = seconds(text(reset)?.trim())?;
    // Nobody waits for thirty years: that is a time since the epoch.
    const EPOCH: Duration = Duration::from_secs(1_000_000_000);
    if reset < EPOCH {
        return Some(reset);
    }
    let at = SystemTime::UNIX_EPOCH.checked_add(reset)?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Digits only: no sign, no fraction.
fn seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More than fits is a very long time all the same.
    digits.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX / 4)))
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

    #[test]
    fn answers_are_read_in_every_style() {
        let year = 31_536_000;
        let epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let in_a_minute = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let at = (epoch + 60).to_string();
        // (status, lines, least and most seconds told)
        type Lines<'l> = &'l [(&'l str, &'l str)];
        type Told = Option<(u64, u64)>;
        let table: &[(u16, Lines<'_>, Told)] = &[
            (429, &[("retry-after", "7")], Some((7, 7))),
            (503, &[("retry-after", "7")], Some((7, 7))),
            (200, &[("retry-after", "7")], None),
            (429, &[("retry-after", "0")], Some((0, 0))),
            (429, &[("retry-after", "-7")], None),
            (429, &[("retry-after", "1.5")], None),
            (429, &[("retry-after", "")], None),
            (429, &[("retry-after", "99999999999999999999999")], Some((year, year))),
            (429, &[("retry-after", &in_a_minute)], Some((58, 60))),
            (429, &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some((0, 0))),
            (429, &[("retry-after", "7"), ("ratelimit", "\"a\";r=0;t=9")], Some((7, 7))),
            (429, &[("ratelimit", "\"a\";r=0;t=9")], Some((9, 9))),
            (429, &[("ratelimit", "\"a\";r=3;t=9")], None),
            (
                429,
                &[("ratelimit", "\"a\";r=0;t=9, \"b\";r=0;t=20, \"c\";r=1;t=99")],
                Some((20, 20)),
            ),
            (429, &[("ratelimit", "\"a\";r=0;t=9"), ("ratelimit", "\"b\";r=0;t=8")], Some((9, 9))),
            (429, &[("ratelimit", "\"a;r=0;t=5, \\\" b\";r=0;t=9")], Some((9, 9))),
            (429, &[("ratelimit", "limit=100, remaining=0, reset=5")], Some((5, 5))),
            (429, &[("ratelimit", "limit=100, remaining=9, reset=5")], None),
            (429, &[("ratelimit-remaining", "0"), ("ratelimit-reset", "5")], Some((5, 5))),
            (429, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "5")], Some((5, 5))),
            (429, &[("x-ratelimit-reset", &at)], Some((57, 60))),
            (429, &[("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", &at)], None),
            (429, &[("ratelimit", "\"\\")], None),
            (429, &[], None),
        ];
        for (status, lines, expected) in table {
            let mut response = Response::builder().status(*status);
            for (name, value) in *lines {
                response = response.header(*name, *value);
            }
            let told = retry_after(&response.body(()).unwrap(), Duration::from_secs(year));
            let told = told.map(|wait| wait.as_secs());
            let is_right = match (told, expected) {
                (None, None) => true,
                (Some(told), Some((least, most))) => (*least..=*most).contains(&told),
                _ => false,
            };
            assert!(is_right, "{status} {lines:?}: {told:?}, not {expected:?}");
        }
    }
}
