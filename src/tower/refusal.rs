//! The answers to requests that are not passed on.

use super::headers::retry_after_seconds;
use crate::decision::Decision;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use std::borrow::Cow;
use std::fmt::{self, Write};

/// A request that is refused, and why.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub struct Refusal<'a> {
    /// The limiter's decision: [`Denied`](crate::Outcome::Denied) or
    /// [`Never`](crate::Outcome::Never).
    pub decision: Decision,
    /// The name of the limit that refuses, as it stands in the `RateLimit` field: the limit's
    /// own; `default` for a single limit without one.
    pub policy: &'a str,
    /// What kind of answer the request wants.
    pub wanted: Wanted<'a>,
}

/// A request that is not passed on for another reason than a limit, and why.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub struct Rejection<'a> {
    /// 401 where a key is missing, 503 where the store fails, or another one.
    pub status: StatusCode,
    /// The reason, in a sentence.
    pub text: &'a str,
    /// What kind of answer the request wants.
    pub wanted: Wanted<'a>,
}

/// What kind of answer a request wants.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wanted<'a> {
    /// A status and a body.
    Http,
    /// A status without a body: the request is a HEAD.
    HttpHead,
    /// A status of gRPC, in headers only, with this `Content-Type`: the request's, such as
    /// `application/grpc` or `application/grpc-web+proto`.
    Grpc(&'a HeaderValue),
}

impl<'a> Wanted<'a> {
    pub(super) fn by<B>(request: &'a Request<B>) -> Self {
        const GRPC: &[u8] = b"application/grpc";
        let is_grpc = |value: &&HeaderValue| {
            let begin = value.as_bytes().get(..GRPC.len());
            begin.is_some_and(|begin| begin.eq_ignore_ascii_case(GRPC))
        };
        if let Some(content_type) = request.headers().get(CONTENT_TYPE).filter(is_grpc) {
            Self::Grpc(content_type)
        } else if request.method() == Method::HEAD {
            Self::HttpHead
        } else {
            Self::Http
        }
    }
}

/// Makes the answers to requests that are not passed on.
///
/// [`ProblemJson`], [`PlainText`] and [`GrpcOnly`] do. So does a closure from the refusal to a
/// response; other rejections are then answered by a plain text.
///
/// Whatever it returns, the layer adds to refusals `Retry-After`, `Cache-Control: no-store` and
/// the fields of its [`HeaderStyle`](super::HeaderStyle), and puts the decision into the
/// response's extensions.
///
/// ```
/// use http::{Response, StatusCode};
/// use tollgate::tower::{Refusal, Refuse};
///
/// fn assert_refuse<B, R: Refuse<B>>(_: &R) {}
///
/// assert_refuse::<String, _>(&|refusal: &Refusal<'_>| {
///     let mut response = Response::new(format!("slow down: {}", refusal.policy));
///     *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
///     response
/// });
/// ```
pub trait Refuse<B> {
    /// The answer to a request that a limit refuses.
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B>;

    /// The answer to a request that nobody could decide on.
    fn reject(&self, rejection: &Rejection<'_>) -> Response<B>;
}

impl<F, B: From<String>> Refuse<B> for F
where
    F: Fn(&Refusal<'_>) -> Response<B>,
{
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        self(refusal)
    }

    fn reject(&self, rejection: &Rejection<'_>) -> Response<B> {
        PlainText.reject(rejection)
    }
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
/// Where the cost is above what the limit ever holds, `detail` says so, and there is no
/// `Retry-After`. Other rejections have no `type`, the status's own name as their `title`, and
/// their reason as `detail`.
///
/// A HEAD has the same answer without a body; gRPC has a gRPC status in headers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProblemJson {
    problem_type: Cow<'static, str>,
}

impl ProblemJson {
    /// The same with another `type`, a URI.
    ///
    /// # Panics
    ///
    /// Where `uri` is not of printable ASCII.
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

impl<B: From<String>> Refuse<B> for ProblemJson {
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        respond(refusal.wanted, StatusCode::TOO_MANY_REQUESTS, &reason(refusal), || {
            let body = format!(
                "{{\"type\":{},\"title\":\"Quota exceeded\",\"status\":429,\"detail\":{},\
                 \"violated-policies\":[{}]}}",
                Json(&self.problem_type),
                Json(&reason(refusal)),
                Json(refusal.policy),
            );
            (PROBLEM_JSON, body)
        })
    }

    fn reject(&self, rejection: &Rejection<'_>) -> Response<B> {
        respond(rejection.wanted, rejection.status, rejection.text, || {
            let status = rejection.status.as_str();
            let title = Json(rejection.status.canonical_reason().unwrap_or(status));
            let detail = Json(rejection.text);
            let body = format!("{{\"title\":{title},\"status\":{status},\"detail\":{detail}}}");
            (PROBLEM_JSON, body)
        })
    }
}

/// 429 Too Many Requests with a line of text. A HEAD has no body; gRPC has a gRPC status.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlainText;

impl<B: From<String>> Refuse<B> for PlainText {
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        let reason = reason(refusal);
        let text = || (TEXT_PLAIN, format!("{reason}\n"));
        respond(refusal.wanted, StatusCode::TOO_MANY_REQUESTS, &reason, text)
    }

    fn reject(&self, rejection: &Rejection<'_>) -> Response<B> {
        let text = || (TEXT_PLAIN, format!("{}\n", rejection.text));
        respond(rejection.wanted, rejection.status, rejection.text, text)
    }
}

/// A status of gRPC in headers, without a body, for servers that speak nothing else: it needs
/// no body that is made from a text, which those of `tonic` are not.
///
/// Refused is `RESOURCE_EXHAUSTED`, with the milliseconds to wait in `grpc-retry-pushback-ms`
/// (-1 where waiting does not help).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GrpcOnly;

impl<B: Default> Refuse<B> for GrpcOnly {
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        grpc(refusal.wanted, StatusCode::TOO_MANY_REQUESTS, &reason(refusal), B::default())
    }

    fn reject(&self, rejection: &Rejection<'_>) -> Response<B> {
        grpc(rejection.wanted, rejection.status, rejection.text, B::default())
    }
}

fn reason(refusal: &Refusal<'_>) -> Cow<'static, str> {
    match retry_after_seconds(&refusal.decision) {
        Some(seconds) => format!("Too many requests: retry after {seconds} s.").into(),
        None => "This request costs more than its limit ever allows.".into(),
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

const PROBLEM_JSON: &str = "application/problem+json";
const TEXT_PLAIN: &str = "text/plain; charset=utf-8";

/// The answer as it is wanted; `content` makes the type and the text of a body.
fn respond<B: From<String>>(
    wanted: Wanted<'_>,
    status: StatusCode,
    reason: &str,
    content: impl FnOnce() -> (&'static str, String),
) -> Response<B> {
    if let Wanted::Grpc(_) = wanted {
        return grpc(wanted, status, reason, B::from(String::new()));
    }
    let (content_type, body) = content();
    let length = HeaderValue::from(body.len());
    let body = if wanted == Wanted::HttpHead { String::new() } else { body };
    let mut response = Response::new(B::from(body));
    *response.status_mut() = status;
    // A HEAD is told the length that a GET's body would have.
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A response that ends with its headers ("trailers-only").
fn grpc<B>(wanted: Wanted<'_>, status: StatusCode, reason: &str, empty: B) -> Response<B> {
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS => "8",      // RESOURCE_EXHAUSTED
        StatusCode::UNAUTHORIZED => "16",          // UNAUTHENTICATED
        StatusCode::FORBIDDEN => "7",              // PERMISSION_DENIED
        StatusCode::SERVICE_UNAVAILABLE => "14",   // UNAVAILABLE
        status if status.is_client_error() => "3", // INVALID_ARGUMENT
        _ => "13",                                 // INTERNAL
    };
    let content_type = match wanted {
        Wanted::Grpc(content_type) => content_type.clone(),
        Wanted::Http | Wanted::HttpHead => HeaderValue::from_static("application/grpc"),
    };
    let mut response = Response::new(empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(GRPC_STATUS, HeaderValue::from_static(code));
    headers.insert(GRPC_MESSAGE, percent_encoded(reason));
    response
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
