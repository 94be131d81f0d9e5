use http::{Extensions, Request, StatusCode};
use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Tells whose request it is.
///
/// A closure from the request to a key is one, where the key is owned and there always is one:
///
/// ```
/// # use http::Request;
/// # use tollgate::tower::KeyExtractor;
/// fn assert_extractor<B, E: KeyExtractor<B>>(_: &E) {}
///
/// assert_extractor::<(), _>(&|request: &Request<()>| request.uri().path().to_owned());
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

    /// It is the server that must be mended, not the client.
    fn unknown_peer() -> Self {
        let text = "the peer's address is not known: serve the router with \
                    into_make_service_with_connect_info::<SocketAddr>(), or put the peer's \
                    SocketAddr into the request's extensions";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

/// The address of the peer at the other end of the connection; the default.
///
/// It is found in the request's extensions, where axum's `ConnectInfo<SocketAddr>` (feature
/// `axum`) or a plain [`SocketAddr`] must be. No header is looked at, so no client can choose
/// its key; behind a reverse proxy all requests come from the proxy.
///
/// An IPv4 address that is written as an IPv6 one (`::ffff:203.0.113.7`) is the IPv4 address.
/// Of other IPv6 addresses the first 64 bits count: a client commonly has all that follow.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerIp;

impl<B> KeyExtractor<B> for PeerIp {
    type Key = IpAddr;

    fn extract(&self, request: &Request<B>) -> Result<IpAddr, KeyError> {
        let peer = peer(request.extensions()).ok_or_else(KeyError::unknown_peer)?;
        Ok(network(peer.ip()))
    }
}

fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    #[cfg(feature = "axum")]
    if let Some(info) = extensions.get::<axum::extract::ConnectInfo<SocketAddr>>() {
        return Some(info.0);
    }
    extensions.get().copied()
}

/// What is one client as far as its address tells.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_client_are_one_key() {
        let table = [
            ("203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::"),
        ];
        for (address, key) in table {
            assert_eq!(network(address.parse().unwrap()), key.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn a_peer_nobody_told_of_is_an_error_that_says_what_to_do() {
        let error = PeerIp.extract(&Request::new(())).unwrap_err();
        assert!(error.to_string().contains("into_make_service_with_connect_info"));
    }
}
