use http::{Extensions, Request};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Tells whose request it is.
///
/// A closure from the request to a key is one:
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
    /// Where there is none; the request is then answered with the error's status, and not
    /// passed on.
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

/// A request whose key cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The server does not say who the peer is: answered 500 Internal Server Error, because
    /// it is the server that must be mended.
    #[error(
        "the peer's address is not known: serve the router with \
         into_make_service_with_connect_info::<SocketAddr>(), or put the peer's SocketAddr into \
         the request's extensions"
    )]
    UnknownPeer,
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
        let peer = peer(request.extensions()).ok_or(KeyError::UnknownPeer)?;
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
