use http::{Request, StatusCode};
use std::borrow::Cow;

/// Tells whose request it is.
///
/// A closure from the request to a key is one, where the key is owned and there always is one. A
/// closure cannot refuse: an `Option` or a `Result` that it returns *is* the key, and all requests
/// without one share a budget. For requests to be answered instead, take [`ApiKey`](super::ApiKey), or write
/// [`extract`](Self::extract) as for [`KeyError`].
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

/// A request whose key cannot be told, and how to answer it.
///
/// ```
/// use http::{Request, StatusCode};
/// use tollgate::tower::{KeyError, KeyExtractor};
///
/// /// The API key. Who sends none is answered 401.
/// #[derive(Clone)]
/// struct ApiKey;
///
/// impl<B> KeyExtractor<B> for ApiKey {
///     type Key = http::HeaderValue;
///
///     fn extract(&self, request: &Request<B>) -> Result<Self::Key, KeyError> {
///         let key = request.headers().get("x-api-key").cloned();
///         key.ok_or_else(|| KeyError::new(StatusCode::UNAUTHORIZED, "x-api-key is missing"))
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct KeyError {
    status: StatusCode,
    text: Cow<'static, str>,
}

impl KeyError {
    /// Answers the request with this status and this text; it is not passed on.
    pub fn new(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into() }
    }

    /// The status of the answer.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The text of the answer.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// It is the server that must be mended, not the client.
    pub(super) fn unknown_peer() -> Self {
        let text = "the peer's address is not known: in axum, with tollgate's feature `axum`, \
                    serve the router with into_make_service_with_connect_info::<SocketAddr>(); \
                    elsewhere, put the peer's SocketAddr into the request's extensions";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

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
/// new one. A layer knows the route where it is added by
/// [`Router::route_layer`](axum::Router::route_layer) or [`Router::layer`](axum::Router::layer).
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
