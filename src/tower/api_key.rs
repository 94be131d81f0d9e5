//! The key that a client has been given, in a header.

use super::key::{KeyError, KeyExtractor, Shared};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};

/// The API key that a request brings along in a header.
///
/// Blanks and tabs around the key are not a part of it, in HTTP/2 as in HTTP/1.1. A request
/// without a key is answered 401 Unauthorized, unless [`or`](Self::or) or
/// [`or_shared`](Self::or_shared) say otherwise.
///
/// Each key has a budget and takes memory, whether or not you have given it out: a client that
/// makes up a key for each request is never limited by it. So verify keys before this limit, or
/// put a limit by address ([`PeerIp`](super::PeerIp) or [`ClientIp`](super::ClientIp)) before it,
/// in an outer layer.
///
/// In Redis, the key is a part of what the state is stored under, and can be read. If that is a
/// concern, use a closure that hashes it.
///
/// ```
/// use http::{HeaderName, Request};
/// use tollgate::tower::{ApiKey, KeyExtractor};
///
/// let api_key = ApiKey::header(HeaderName::from_static("x-api-key")).or_shared();
/// let mut request = Request::new(());
/// let without = api_key.extract(&request)?;
/// request.headers_mut().insert("x-api-key", "17".parse()?);
/// assert_ne!(api_key.extract(&request)?, without);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ApiKey<M = MissingKey> {
    source: Source,
    missing: M,
}

#[derive(Clone, Debug)]
enum Source {
    Header(HeaderName),
    /// `Authorization: Bearer ...`, RFC 6750.
    Bearer,
}

impl ApiKey {
    /// The value of the header `name`, which must be there once and not be empty:
    /// `HeaderName::from_static("x-api-key")`.
    ///
    /// The 401 for a request without it has `WWW-Authenticate: ApiKey header="x-api-key"`.
    #[must_use]
    pub const fn header(name: HeaderName) -> Self {
        Self { source: Source::Header(name), missing: MissingKey }
    }

    /// The token of `Authorization: Bearer ...`
    /// ([RFC 6750](https://www.rfc-editor.org/rfc/rfc6750)).
    ///
    /// The 401 for a request without it has `WWW-Authenticate: Bearer realm="api"`.
    #[must_use]
    pub const fn bearer() -> Self {
        Self { source: Source::Bearer, missing: MissingKey }
    }
}

impl<M> ApiKey<M> {
    /// Charges a request without a key to what `extractor` finds: to its address, by
    /// [`PeerIp`](super::PeerIp), say. If `extractor` answers 401 without a challenge, the answer
    /// has the one for this key.
    #[must_use]
    pub fn or<E>(self, extractor: E) -> ApiKey<E> {
        ApiKey { source: self.source, missing: extractor }
    }

    /// Charges all requests without a key to one budget.
    #[must_use]
    pub fn or_shared(self) -> ApiKey<Shared> {
        self.or(Shared)
    }

    fn value<B>(&self, request: &Request<B>) -> Option<HeaderValue> {
        let name = match &self.source {
            Source::Header(name) => name,
            Source::Bearer => &header::AUTHORIZATION,
        };
        let only = only_line(request.headers(), name)?;
        let value = trimmed(only.as_bytes());
        let key = match &self.source {
            Source::Header(_) => value,
            Source::Bearer => {
                let (scheme, token) = value.split_at_checked("bearer ".len())?;
                scheme.eq_ignore_ascii_case(b"bearer ").then(|| trimmed(token))?
            }
        };
        match key.len() {
            0 => None,
            // Shared with the request, not copied.
            length if length == only.len() => Some(only.clone()),
            _ => HeaderValue::from_bytes(key).ok(),
        }
    }

    /// How to send a key.
    fn challenge(&self) -> HeaderValue {
        match &self.source {
            Source::Header(name) => HeaderValue::from_str(&format!("ApiKey header=\"{name}\""))
                .expect("a header's name is a token, which needs no escapes in quotes"),
            Source::Bearer => HeaderValue::from_static("Bearer realm=\"api\""),
        }
    }
}

/// Without the blanks and tabs around it, as HTTP/1.1 takes a value from its line.
fn trimmed(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = value.iter().position(|byte| !is_blank(byte)) else { return &[] };
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

/// The value of a header that is there exactly once.
pub(super) fn only_line<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

impl<B, M: KeyExtractor<B>> KeyExtractor<B> for ApiKey<M> {
    type Key = KeyOr<M::Key>;

    fn extract(&self, request: &Request<B>) -> Result<Self::Key, KeyError> {
        match self.value(request) {
            Some(key) => Ok(KeyOr::Key(key)),
            None => {
                let missing = self.missing.extract(request);
                missing.map(KeyOr::Missing).map_err(|e| e.or_challenge(|| self.challenge()))
            }
        }
    }
}

/// What [`ApiKey`] finds: a key, or what takes its place. No key can pass for the latter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyOr<K> {
    /// The API key.
    Key(HeaderValue),
    /// What a request without one is charged to.
    Missing(K),
}

/// Answers requests without an API key: 401 Unauthorized, with the challenge of [`ApiKey`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MissingKey;

impl<B> KeyExtractor<B> for MissingKey {
    type Key = ();

    fn extract(&self, _request: &Request<B>) -> Result<(), KeyError> {
        Err(KeyError::new(
            StatusCode::UNAUTHORIZED,
            "an API key is missing, or is not sent as it should be",
        ))
    }
}

#[cfg(feature = "redis")]
mod in_redis {
    use super::{HeaderValue, KeyOr};
    use crate::store::RedisKey;

    impl RedisKey for HeaderValue {
        fn write_to(&self, key: &mut Vec<u8>) {
            self.as_bytes().write_to(key);
        }
    }

    impl<K: RedisKey> RedisKey for KeyOr<K> {
        fn write_to(&self, key: &mut Vec<u8>) {
            match self {
                Self::Key(value) => ("key", value).write_to(key),
                Self::Missing(other) => ("", other).write_to(key),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, lines: &[&[u8]]) -> Request<()> {
        let name: HeaderName = name.parse().unwrap();
        let mut request = Request::new(());
        for line in lines {
            request.headers_mut().append(&name, HeaderValue::from_bytes(line).unwrap());
        }
        request
    }

    /// Lines of the header, and the key.
    type Row = (&'static [&'static [u8]], Option<&'static [u8]>);

    #[test]
    fn an_api_key_is_there_once_and_says_something() {
        let by_header: [Row; 11] = [
            (&[b"17"], Some(b"17")),
            (&[b"a b"], Some(b"a b")),
            (&[b" 17"], Some(b"17")),
            (&[b"\t17"], Some(b"17")),
            (&[b"17 \t "], Some(b"17")),
            (&[b"\t a\t b\t"], Some(b"a\t b")),
            (&[b" \xa017\xff "], Some(b"\xa017\xff")),
            (&[], None),
            (&[b""], None),
            (&[b" \t "], None),
            (&[b"17", b"17"], None),
        ];
        let bearer: [Row; 13] = [
            (&[b"Bearer 17"], Some(b"17")),
            (&[b"bEARER   17"], Some(b"17")),
            (&[b" \tBearer 17\t "], Some(b"17")),
            (&[b"Bearer \t17"], Some(b"17")),
            (&[b"Bearer 1 7"], Some(b"1 7")),
            (&[b"Bearer"], None),
            (&[b"Bearer "], None),
            (&[b"Bearer   "], None),
            (&[b"Bearer17"], None),
            (&[b"Bearers 17"], None),
            (&[b"Basic 17"], None),
            (&[b"17"], None),
            (&[b"Bearer 17", b"Bearer 18"], None),
        ];
        let header = ApiKey::header(HeaderName::from_static("x-api-key"));
        let by_header = by_header.map(|(lines, key)| (&header, "x-api-key", lines, key));
        let token = ApiKey::bearer();
        let by_bearer = bearer.map(|(lines, key)| (&token, "authorization", lines, key));
        for (source, name, lines, expected) in by_header.into_iter().chain(by_bearer) {
            let found = source.extract(&request(name, lines));
            let expected = expected.map(|key| KeyOr::Key(HeaderValue::from_bytes(key).unwrap()));
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{name} {lines:?}");
            let Err(error) = found else { continue };
            assert_eq!(error.status(), StatusCode::UNAUTHORIZED);
        }
    }

    #[test]
    fn a_401_says_how_to_send_a_key() {
        let header = |name: &str| ApiKey::header(name.parse().unwrap());
        let challenge = |error: KeyError| {
            assert_eq!(error.status(), StatusCode::UNAUTHORIZED);
            error.challenge().unwrap().to_str().unwrap().to_owned()
        };
        let without = request("host", &[]);
        let of = |key: ApiKey| challenge(key.extract(&without).unwrap_err());
        assert_eq!(of(ApiKey::bearer()), "Bearer realm=\"api\"");
        assert_eq!(of(header("X-Api-Key")), r#"ApiKey header="x-api-key""#);
        // All that can stand in a header's name.
        let mut odd = 0;
        for byte in 0..=u8::MAX {
            let Ok(name) = HeaderName::from_bytes(&[byte]) else { continue };
            odd += u32::from(!byte.is_ascii_alphanumeric());
            let quoted = of(ApiKey::header(name));
            let name = quoted.strip_prefix("ApiKey header=\"").unwrap().strip_suffix('"').unwrap();
            assert!(!name.contains(['"', '\\', ' ']), "{quoted}");
        }
        assert_eq!(odd, 15, "the signs of a token");
        // The last of several keys says it.
        let error = header("x-api-key").or(ApiKey::bearer()).extract(&without).unwrap_err();
        assert_eq!(challenge(error), "Bearer realm=\"api\"");
    }
}
