//! What a layer asks a limiter about a request.

use super::client_ip::PeerIp;
use super::key::{KeyError, KeyExtractor};
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{Method, Request};

/// How a layer asks about a request: whose it is, what it costs, whether it is exempt, and which
/// of several limiters to ask. [`RateLimitLayer`](super::RateLimitLayer)'s methods set each.
#[derive(Copy, Clone, Debug, Default)]
pub struct Ask<E = PeerIp, C = OneUnit, X = NoneExempt, T = OneLimiter> {
    pub(super) key: E,
    pub(super) cost: C,
    pub(super) exempt: X,
    pub(super) choice: T,
}

/// One unit for each request; the default.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OneUnit;

/// No request is exempt; the default.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NoneExempt;

/// One limiter for all requests; the default.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OneLimiter;

/// What is asked about one request.
#[derive(Debug)]
pub struct Asked<K> {
    pub(super) key: K,
    pub(super) cost: u64,
    pub(super) limiter: usize,
}

/// Asks about requests with a body of type `B`. [`Ask`] does; there is nothing to implement.
pub trait Question<B>: sealed::Sealed {
    /// What the limiter's keys are.
    type Key;

    /// What to ask; `None` where the request is exempt.
    ///
    /// # Errors
    ///
    /// Where the request has no key.
    fn question(&self, request: &Request<B>) -> Result<Option<Asked<Self::Key>>, KeyError>;
}

mod sealed {
    pub trait Sealed {}
    impl<E, C, X, T> Sealed for super::Ask<E, C, X, T> {}
}

impl<B, E, C, X, T> Question<B> for Ask<E, C, X, T>
where
    E: KeyExtractor<B>,
    C: FromRequest<B, u64>,
    X: FromRequest<B, bool>,
    T: FromRequest<B, usize>,
{
    type Key = E::Key;

    fn question(&self, request: &Request<B>) -> Result<Option<Asked<E::Key>>, KeyError> {
        if self.exempt.read(request) {
            return Ok(None);
        }
        let key = self.key.extract(request)?;
        let (cost, limiter) = (self.cost.read(request), self.choice.read(request));
        Ok(Some(Asked { key, cost, limiter }))
    }
}

/// Returns whether a request is a CORS preflight, by which a browser asks before a page's request:
/// an OPTIONS with `Origin` and `Access-Control-Request-Method`
/// ([Fetch](https://fetch.spec.whatwg.org/#cors-preflight-request)).
///
/// `.exempt(is_preflight)` keeps a limit in front of a CORS layer from charging preflights. Any
/// client can send such a request, so exempt them only if nothing behind the limit does any work for
/// an OPTIONS.
///
/// ```
/// use http::Request;
/// use tollgate::tower::is_preflight;
///
/// let request = Request::options("/")
///     .header("origin", "https://app.example")
///     .header("access-control-request-method", "PUT")
///     .body(())?;
/// assert!(is_preflight(&request));
/// # Ok::<(), http::Error>(())
/// ```
#[must_use]
pub fn is_preflight<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Tells a cost, a choice, or whether a request is exempt: a closure from the request does.
pub trait FromRequest<B, V> {
    /// What it tells.
    fn read(&self, request: &Request<B>) -> V;
}

impl<F, B, V> FromRequest<B, V> for F
where
    F: Fn(&Request<B>) -> V,
{
    fn read(&self, request: &Request<B>) -> V {
        self(request)
    }
}

impl<B> FromRequest<B, u64> for OneUnit {
    fn read(&self, _request: &Request<B>) -> u64 {
        1
    }
}

impl<B> FromRequest<B, bool> for NoneExempt {
    fn read(&self, _request: &Request<B>) -> bool {
        false
    }
}

impl<B> FromRequest<B, usize> for OneLimiter {
    fn read(&self, _request: &Request<B>) -> usize {
        0
    }
}
