//! The key that a client has been given, in a header.

use super::key::{KeyError, KeyExtractor, Shared};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};

/// The API key that a request brings along in a header.
///
/// A request without one is answered 401 Unauthorized, unless [`or`](Self::or) or
/// [`or_shared`](Self::or_shared) say otherwise. Whether the key is one that you have given out is
/// for your authentication to say, before or behind the limit: whoever makes up keys has a budget
/// for each.
///
/// In Redis, the key is a part of what the state is stored under, and in clear: where that is a
/// concern, take a closure that hashes it.
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
    #[must_use]
    pub const fn header(name: HeaderName) -> Self {
        Self { source: Source::Header(name), missing: MissingKey }
    }

    /// The token of `Authorization: Bearer ...`
    /// ([RFC 6750](https://www.rfc-editor.org/rfc/rfc6750)).
    #[must_use]
    pub const fn bearer() -> Self {
        Self { source: Source::Bearer, missing: MissingKey }
    }
}

impl<M> ApiKey<M> {
    /// The same, with a request without a key charged as `extractor` tells: to its address, by
    /// [`PeerIp`](super::PeerIp), say.
    #[must_use]
    pub fn or<E>(self, extractor: E) -> ApiKey<E> {
        ApiKey { source: self.source, missing: extractor }
    }

    /// The same, with one budget for all requests without a key.
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
        let key = match &self.source {
            Source::Header(_) => only.clone(),
            Source::Bearer => {
                let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(())?;
                HeaderValue::from_str(token.trim_start()).ok()?
            }
        };
        Some(key).filter(|key| !key.is_empty())
    }
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
            None => self.missing.extract(request).map(KeyOr::Missing),
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

/// Answers requests without an API key: 401 Unauthorized.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MissingKey;

impl<B> KeyExtractor<B> for MissingKey {
    type Key = ();

    fn extract(&self, _request: &Request<B>) -> Result<(), KeyError> {
        Err(KeyError::new(StatusCode::UNAUTHORIZED, "an API key is missing, or there are several"))
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

    #[test]
    fn an_api_key_is_there_once_and_says_something() {
        let by_header = ApiKey::header(HeaderName::from_static("x-api-key"));
        let table: [(&[&str], Option<&str>); 5] = [
            (&["17"], Some("17")),
            (&["a b"], Some("a b")),
            (&[], None),
            (&[""], None),
            (&["17", "17"], None),
        ];
        let bearer: [(&[&str], Option<&str>); 8] = [
            (&["Bearer 17"], Some("17")),
            (&["bEARER   17"], Some("17")),
            (&["Bearer"], None),
            (&["Bearer "], None),
            (&["Bearer   "], None),
            (&["Basic 17"], None),
            (&["17"], None),
            (&["Bearer 17", "Bearer 18"], None),
        ];
        let by_header = table.map(|(lines, key)| (&by_header, "x-api-key", lines, key));
        let by_bearer = ApiKey::bearer();
        let by_bearer = bearer.map(|(lines, key)| (&by_bearer, "authorization", lines, key));
        for (source, name, lines, expected) in by_header.into_iter().chain(by_bearer) {
            let mut request = Request::new(());
            for line in lines {
                request.headers_mut().append(name, HeaderValue::from_str(line).unwrap());
            }
            let found = source.extract(&request);
            let expected = expected.map(|key| KeyOr::Key(HeaderValue::from_str(key).unwrap()));
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{name} {lines:?}");
            let Err(error) = found else { continue };
            assert_eq!(error.status(), StatusCode::UNAUTHORIZED);
        }
    }
}
