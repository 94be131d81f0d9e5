//! The answers to requests that the layer does not pass on.

use super::headers::retry_after_seconds;
use crate::decision::Decision;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::Duration;

/// A request that the layer answers itself, and why.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub struct Refusal<'a> {
    /// The status of the answer: 429 if a limit denies the request, 503 if the store fails, or that
    /// of the [`KeyError`](super::KeyError) if the request has no key.
    pub status: StatusCode,
    /// The limiter's decision, [`Denied`](crate::Outcome::Denied) or
    /// [`Never`](crate::Outcome::Never), if a limit denies the request.
    pub decision: Option<Decision>,
    /// The name of the limit that denies the request, as in the `RateLimit` field: the limit's own,
    /// or `default` for a single limit without one.
    pub limit: Option<&'a str>,
    /// The method of the request.
    pub method: &'a Method,
    /// The header fields of the request.
    pub headers: &'a HeaderMap,
    /// Why, if no limit denies the request.
    pub(super) text: &'a str,
    pub(super) store_failed: bool,
}

impl Refusal<'_> {
    /// The reason in a sentence, in English, for the client.
    #[must_use]
    pub fn detail(&self) -> Cow<'_, str> {
        match self.decision {
            None => self.text.into(),
            Some(decision) => match decision.retry_after().map(retry_after_seconds) {
                Some(seconds) => format!("Too many requests: retry after {seconds} s.").into(),
                None => "This request costs more than its limit ever allows.".into(),
            },
        }
    }

    /// How long the client should wait, unrounded; `None` if waiting does not help. `Retry-After`
    /// is this in whole seconds, rounded up.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.decision {
            Some(decision) => decision.retry_after(),
            None => self.store_failed.then_some(STORE_RETRY_AFTER),
        }
    }
}

/// When a client should try again after the store has failed.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Makes the answers to requests that the layer does not pass on.
///
/// [`ProblemJson`], [`PlainText`] and [`Grpc`] do. So does a closure from the refusal to a response:
/// if it sets no status, or one that means success, the answer has the status of the refusal. An
/// implementation of this trait is sent as it is, so it must set one; so is an answer of gRPC.
///
/// The layer adds to every answer `Retry-After` if waiting helps, and `Cache-Control: no-store`
/// unless the answer has a `Cache-Control`; to a denial the fields of its
/// [`HeaderStyle`](super::HeaderStyle), and the decision to the response's extensions; and to an
/// answer for a missing key its [challenge](super::KeyError::challenge).
///
/// ```
/// use http::Response;
/// use tollgate::tower::{Refusal, Refuse};
///
/// fn assert_refuse<B, R: Refuse<B>>(_: &R) {}
///
/// assert_refuse::<String, _>(&|refusal: &Refusal<'_>| {
///     Response::new(format!("slow down: {}\n", refusal.detail()))
/// });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer with a body of type `{B}`",
    label = "this layer wraps a service with another body than its own answers can have",
    note = "around layers that change the body, such as `TraceLayer`, `CompressionLayer` or \
            `RequestBodyLimitLayer`, and around clients: add `.any_body()` at the end of the layer",
    note = "around a server of gRPC, such as tonic's: `.refusal(Grpc)`",
    note = "a refusal of your own that fits any of them is \
            `fn deny<B: From<String>>(refusal: &Refusal<'_>) -> Response<B>`"
)]
pub trait Refuse<B> {
    /// Returns the answer to the request.
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B>;
}

#[diagnostic::do_not_recommend]
impl<F, B> Refuse<B> for F
where
    F: Fn(&Refusal<'_>) -> Response<B>,
{
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        with_error_status(self(refusal), refusal.status)
    }
}

/// The response, with `status` if its own means success: a gateway must not take it for consent. An
/// answer of gRPC has its status elsewhere.
pub(super) fn with_error_status<B>(mut response: Response<B>, status: StatusCode) -> Response<B> {
    let is_consent = response.status().is_success() || response.status().is_informational();
    if is_consent && !response.headers().contains_key(GRPC_STATUS) {
        *response.status_mut() = status;
    }
    response
}

/// 429 Too Many Requests with `application/problem+json`
/// ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)); the default.
///
/// ```text
/// {"type":"https://iana.org/assignments/http-problem-types#quota-exceeded",
///  "title":"Quota exceeded","status":429,
///  "detail":"Too many requests: retry after 2 s.","violated-policies":["default"]}
/// ```
///
/// If the cost is above what the limit ever holds, `detail` says so, and there is no `Retry-After`.
/// Answers for a missing key or a failing store have no `type`, and the status's own name as their
/// `title`. The answer to a HEAD has no body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProblemJson {
    problem_type: Cow<'static, str>,
}

impl ProblemJson {
    /// Sets another `type` of problem, a URI.
    ///
    /// # Panics
    ///
    /// Panics if `uri` is not of printable ASCII.
    pub fn with_type(uri: impl Into<Cow<'static, str>>) -> Self {
        let problem_type = uri.into();
        let printable = problem_type.bytes().all(|byte| byte.is_ascii_graphic());
        assert!(printable, "a problem's type must be a URI, not {problem_type:?}");
        Self { problem_type }
    }
}

impl Default for ProblemJson {
    fn default() -> Self {
        Self::with_type("https://iana.org/assignments/http-problem-types#quota-exceeded")
    }
}

#[diagnostic::do_not_recommend]
impl<B: From<String>> Refuse<B> for ProblemJson {
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        let status = refusal.status.as_str();
        let detail = refusal.detail();
        let detail = Json(&detail);
        let body = match refusal.limit {
            Some(limit) => format!(
                "{{\"type\":{},\"title\":\"Quota exceeded\",\"status\":{status},\
                 \"detail\":{detail},\"violated-policies\":[{}]}}",
                Json(&self.problem_type),
                Json(limit),
            ),
            None => {
                let title = Json(refusal.status.canonical_reason().unwrap_or(status));
                format!("{{\"title\":{title},\"status\":{status},\"detail\":{detail}}}")
            }
        };
        respond(refusal, "application/problem+json", body)
    }
}

/// 429 Too Many Requests with a line of text. The answer to a HEAD has no body.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlainText;

#[diagnostic::do_not_recommend]
impl<B: From<String>> Refuse<B> for PlainText {
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        respond(refusal, "text/plain; charset=utf-8", format!("{}\n", refusal.detail()))
    }
}

/// A status of gRPC in the headers of an HTTP 200, without a body ("trailers-only"): marks a layer
/// as one around services of gRPC, as in `.refusal(Grpc)`.
///
/// | refused because | `grpc-status` |
/// |---|---|
/// | a limit denies the call | 8, `RESOURCE_EXHAUSTED` |
/// | the key is missing: 401, 403, another 4xx | 16 `UNAUTHENTICATED`, 7 `PERMISSION_DENIED`, 3 `INVALID_ARGUMENT` |
/// | the store fails | 14, `UNAVAILABLE` |
/// | the server is not set up as the key needs | 13, `INTERNAL` |
///
/// `grpc-retry-pushback-ms` has the milliseconds to wait, or -1 if waiting does not help. Calls of
/// gRPC-Web are answered with their own content type.
///
/// Whatever a request says of itself, **every request to such a layer** is answered so: 200 is no
/// consent only for a client that reads `grpc-status`. Do not mark a layer whose answers a gateway
/// judges by their status (`auth_request`, ForwardAuth), and give the HTTP routes of a server that
/// has both a layer of their own.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grpc;

#[diagnostic::do_not_recommend]
impl<B: Default> Refuse<B> for Grpc {
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        let code = match refusal.status {
            StatusCode::TOO_MANY_REQUESTS => "8",      // RESOURCE_EXHAUSTED
            StatusCode::UNAUTHORIZED => "16",          // UNAUTHENTICATED
            StatusCode::FORBIDDEN => "7",              // PERMISSION_DENIED
            StatusCode::SERVICE_UNAVAILABLE => "14",   // UNAVAILABLE
            status if status.is_client_error() => "3", // INVALID_ARGUMENT
            _ => "13",                                 // INTERNAL
        };
        let pushback = match refusal.retry_after() {
            Some(wait) => {
                let millis = wait.as_micros().div_ceil(1_000);
                Some(HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)))
            }
            None => refusal.decision.map(|_| HeaderValue::from_static("-1")),
        };
        let mut response = Response::new(B::default());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, grpc_content_type(refusal.headers));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(code));
        headers.insert(GRPC_MESSAGE, percent_encoded(&refusal.detail()));
        if let Some(pushback) = pushback {
            headers.insert(GRPC_RETRY_PUSHBACK, pushback);
        }
        response
    }
}

/// A string of JSON.
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                control if control.is_control() => write!(f, "\\u{:04x}", u32::from(control))?,
                other => f.write_char(other)?,
            }
        }
        f.write_char('"')
    }
}

/// An answer with a body, which is left out if the request is a HEAD.
fn respond<B: From<String>>(
    refusal: &Refusal<'_>,
    content_type: &'static str,
    body: String,
) -> Response<B> {
    // The length is that of the answer to a GET.
    let length = HeaderValue::from(body.len());
    let body = if refusal.method == Method::HEAD { String::new() } else { body };
    let mut response = Response::new(B::from(body));
    *response.status_mut() = refusal.status;
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The call's own: `application/grpc`, `application/grpc-web+proto` and the like.
fn grpc_content_type(headers: &HeaderMap) -> HeaderValue {
    const GRPC: &[u8] = b"application/grpc";
    let is_grpc = |value: &&HeaderValue| {
        let begin = value.as_bytes().get(..GRPC.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(GRPC))
    };
    let own = headers.get(CONTENT_TYPE).filter(is_grpc);
    own.cloned().unwrap_or(HeaderValue::from_static("application/grpc"))
}

/// As gRPC writes messages: printable ASCII but `%` stands for itself.
fn percent_encoded(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    HeaderValue::from_str(&encoded).expect("printable ASCII")
}
