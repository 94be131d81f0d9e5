use http::{HeaderValue, Request, StatusCode};
use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// Tells whose request it is.
///
/// A closure from the request to a key is one, where the key is owned and there always is one. A
/// closure cannot refuse: an `Option` or a `Result` that it returns *is* the key, and all requests
/// without one share a budget. For requests to be answered instead, take
/// [`ApiKey`](super::ApiKey), or write [`extract`](Self::extract) as for [`KeyError`].
///
/// A path is no key: `/users/1` and `/users/%31` are the same to a router, and a budget each. In
/// axum, `MatchedRoute` is right.
///
/// ```
/// # use http::Request;
/// # use tollgate::tower::KeyExtractor;
/// fn assert_extractor<B, E: KeyExtractor<B>>(_: &E) {}
///
/// assert_extractor::<(), _>(&|request: &Request<()>| request.headers().get("x-tenant").cloned());
/// ```
pub trait KeyExtractor<B> {
    /// What the limiter's keys are.
    type Key;

    /// Reads the key from a request.
    ///
    /// # Errors
    ///
    /// Where there is none; the request is then answered as the error says, and not passed
    /// on.
    fn extract(&self, request: &Request<B>) -> Result<Self::Key, KeyError>;
}

impl<F, B, K> KeyExtractor<B> for F
where
    F: Fn(&Request<B>) -> K,
{
    type Key = K;

    fn extract(&self, request: &Request<B>) -> Result<K, KeyError> {
        Ok(self(request))
    }
}

/// A request has no key, and how the layer answers it; it is not passed on.
///
/// ```
/// use http::{HeaderValue, Request};
/// use tollgate::tower::{KeyError, KeyExtractor};
///
/// /// The API key. A request without one is answered 401.
/// #[derive(Clone)]
/// struct ApiKey;
///
/// impl<B> KeyExtractor<B> for ApiKey {
///     type Key = HeaderValue;
///
///     fn extract(&self, request: &Request<B>) -> Result<Self::Key, KeyError> {
///         let key = request.headers().get("x-api-key").cloned();
///         key.ok_or_else(|| {
///             let challenge = HeaderValue::from_static("ApiKey header=\"x-api-key\"");
///             KeyError::unauthorized(challenge, "x-api-key is missing")
///         })
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    status: StatusCode,
    text: Cow<'static, str>,
    challenge: Option<HeaderValue>,
    advice: Option<Cow<'static, str>>,
}

impl KeyError {
    /// Answers the request with a status of 400 or above and a text, which the client sees.
    ///
    /// A status below 400 is no error, and a gateway may take it for a yes. Such a `status` is a
    /// mistake of the program's: the answer is then 500 Internal Server Error. For 401
    /// Unauthorized, use [`unauthorized`](Self::unauthorized).
    ///
    /// ```
    /// use http::StatusCode;
    /// use tollgate::tower::KeyError;
    ///
    /// let error = KeyError::new(StatusCode::FORBIDDEN, "this tenant is suspended");
    /// assert_eq!(error.status(), StatusCode::FORBIDDEN);
    /// assert_eq!(KeyError::new(StatusCode::OK, "").status(), StatusCode::INTERNAL_SERVER_ERROR);
    /// ```
    pub fn new(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        let is_error = status >= StatusCode::BAD_REQUEST;
        let status = if is_error { status } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self { status, text: text.into(), challenge: None, advice: None }
    }

    /// Answers the request with 401 Unauthorized, a text, and `challenge` as its
    /// `WWW-Authenticate` ([RFC 9110, section 11.6.1]): how the client must authenticate.
    ///
    /// ```
    /// use http::HeaderValue;
    /// use tollgate::tower::KeyError;
    ///
    /// let challenge = HeaderValue::from_static("Bearer");
    /// let error = KeyError::unauthorized(challenge.clone(), "a token is missing");
    /// assert_eq!(error.challenge(), Some(&challenge));
    /// ```
    ///
    /// [RFC 9110, section 11.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1
    pub fn unauthorized(challenge: HeaderValue, text: impl Into<Cow<'static, str>>) -> Self {
        Self { challenge: Some(challenge), ..Self::new(StatusCode::UNAUTHORIZED, text) }
    }

    /// Answers the request with 500 Internal Server Error: the server is set up wrongly.
    ///
    /// The client sees a text that says no more than that. `advice` is for the operator.
    ///
    /// ```
    /// use tollgate::tower::KeyError;
    ///
    /// let error = KeyError::internal("add the layer that finds the tenant");
    /// assert_eq!(error.text(), "The server cannot tell whose request this is.");
    /// assert_eq!(error.to_string(), "add the layer that finds the tenant");
    /// ```
    pub fn internal(advice: impl Into<Cow<'static, str>>) -> Self {
        let text = "The server cannot tell whose request this is.";
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, text);
        Self { advice: Some(advice.into()), ..error }
    }

    /// The status of the answer, 400 or above.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The text of the answer, which the client sees.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The `WWW-Authenticate` of the answer.
    #[must_use]
    pub const fn challenge(&self) -> Option<&HeaderValue> {
        self.challenge.as_ref()
    }

    /// What the operator must do, which the client does not see.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    pub(super) fn unknown_peer() -> Self {
        Self::internal(
            "the peer's address is not known: in axum, with tollgate's feature `axum`, serve the \
             router with into_make_service_with_connect_info::<SocketAddr>(), or in a test add the \
             layer MockConnectInfo; in tonic, enable tollgate's feature `tonic`; on a unix socket, \
             count the proxies by ClientIp and Trust::hops, and let them set the header; elsewhere, \
             put the peer's SocketAddr into the request's extensions, or tell ClientIp::peer_from \
             where to find the address",
        )
    }

    /// Adds a challenge to a 401 that has none.
    pub(super) fn or_challenge(mut self, challenge: impl FnOnce() -> HeaderValue) -> Self {
        if self.status == StatusCode::UNAUTHORIZED {
            self.challenge.get_or_insert_with(challenge);
        }
        self
    }
}

/// The advice, or the text if there is none.
impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.advice().unwrap_or(&self.text))
    }
}

impl Error for KeyError {}

/// One budget for all requests.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shared;

impl<B> KeyExtractor<B> for Shared {
    type Key = ();

    fn extract(&self, _request: &Request<B>) -> Result<(), KeyError> {
        Ok(())
    }
}

/// The route of axum's router that a request takes, such as `/users/{id}`.
///
/// All that takes no route shares one budget, so that `//users/1` or `/%75sers/1` is no way to a
/// new one. A layer knows the route if it is added by
/// [`Router::route_layer`](axum::Router::route_layer) or [`Router::layer`](axum::Router::layer). A
/// service that is mounted by `nest_service` has no route outside: add the layer to the router in it.
#[cfg(feature = "axum")]
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MatchedRoute;

#[cfg(feature = "axum")]
impl<B> KeyExtractor<B> for MatchedRoute {
    type Key = Route;

    fn extract(&self, request: &Request<B>) -> Result<Route, KeyError> {
        Ok(Route(request.extensions().get::<axum::extract::MatchedPath>().cloned()))
    }
}

/// A route that [`MatchedRoute`] has found, or none.
#[cfg(feature = "axum")]
#[derive(Clone, Debug)]
pub struct Route(Option<axum::extract::MatchedPath>);

#[cfg(feature = "axum")]
impl Route {
    /// The route's path; `None` where the request took none.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.0.as_ref().map(axum::extract::MatchedPath::as_str)
    }
}

#[cfg(feature = "axum")]
impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        self.path() == other.path()
    }
}

#[cfg(feature = "axum")]
impl Eq for Route {}

#[cfg(feature = "axum")]
impl std::hash::Hash for Route {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.path().hash(state);
    }
}

/// Several at once: a budget for each address *and* route, say.
macro_rules! extract_each {
    ($($extractor:ident $index:tt),+) => {
        impl<Body, $($extractor: KeyExtractor<Body>),+> KeyExtractor<Body> for ($($extractor,)+) {
            type Key = ($($extractor::Key,)+);

            fn extract(&self, request: &Request<Body>) -> Result<Self::Key, KeyError> {
                Ok(($(self.$index.extract(request)?,)+))
            }
        }
    };
}

extract_each!(A 0, B 1);
extract_each!(A 0, B 1, C 2);
extract_each!(A 0, B 1, C 2, D 3);

#[cfg(all(feature = "axum", feature = "redis"))]
impl crate::store::RedisKey for Route {
    fn write_to(&self, key: &mut Vec<u8>) {
        self.path().unwrap_or_default().write_to(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_key_is_never_a_success() {
        for status in (100..1_000).map(|code| StatusCode::from_u16(code).unwrap()) {
            let error = KeyError::new(status, "no key");
            let expected = if status.as_u16() < 400 { 500 } else { status.as_u16() };
            assert_eq!(error.status(), expected, "{status}");
            assert_eq!((error.text(), &*error.to_string()), ("no key", "no key"));
            assert_eq!((error.challenge(), error.advice()), (None, None));
        }
    }

    #[test]
    fn what_the_operator_must_do_is_not_for_the_client() {
        let error = KeyError::unknown_peer();
        assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(error.text(), "The server cannot tell whose request this is.");
        assert_eq!(error.challenge(), None);
        assert_eq!(error.advice(), Some(&*error.to_string()));
        let ways = [
            "into_make_service_with_connect_info",
            "feature `axum`",
            "MockConnectInfo",
            "feature `tonic`",
            "Trust::hops",
            "SocketAddr",
            "ClientIp::peer_from",
        ];
        for way in ways {
            assert!(error.to_string().contains(way), "{way}");
        }
    }

    #[test]
    fn a_401_has_one_challenge() {
        let of = |challenge| HeaderValue::from_static(challenge);
        let with = KeyError::unauthorized(of("Bearer"), "no key");
        assert_eq!((with.status(), with.text()), (StatusCode::UNAUTHORIZED, "no key"));
        assert_eq!((with.to_string().as_str(), with.advice()), ("no key", None));
        // (error, its challenge if another is offered)
        let table = [
            (with, Some("Bearer")),
            (KeyError::new(StatusCode::UNAUTHORIZED, "no key"), Some("Basic")),
            (KeyError::new(StatusCode::FORBIDDEN, "no key"), None),
            (KeyError::internal("add the layer"), None),
        ];
        for (error, expected) in table {
            let error = error.or_challenge(|| of("Basic"));
            assert_eq!(error.challenge(), expected.map(of).as_ref(), "{error:?}");
        }
    }
}
