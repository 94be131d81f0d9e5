//! The peer's address, wherever a server leaves it.

#[cfg(feature = "axum")]
use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
use http::Extensions;
use std::net::{IpAddr, SocketAddr};
#[cfg(feature = "tonic")]
use tonic::transport::server::{Connected, TcpConnectInfo};

/// `TlsConnectInfo<TcpConnectInfo>`, which tonic exports only along with a cryptographic library.
/// Which one that is must stay the user's choice.
#[cfg(feature = "tonic")]
type OverTls = <tokio_rustls::server::TlsStream<tokio::net::TcpStream> as Connected>::ConnectInfo;

/// The peer's address, if axum, tonic or a plain [`SocketAddr`] has left it in a request's
/// extensions.
pub(super) fn address(extensions: &Extensions) -> Option<IpAddr> {
    Some(socket(extensions)?.ip())
}

fn socket(extensions: &Extensions) -> Option<SocketAddr> {
    #[cfg(feature = "axum")]
    if let Some(ConnectInfo(peer)) = extensions.get() {
        return Some(*peer);
    }
    if let Some(peer) = extensions.get() {
        return Some(*peer);
    }
    #[cfg(feature = "tonic")]
    if let Some(peer) = tonic(extensions) {
        return Some(peer);
    }
    // Behind all that is real, as in axum.
    #[cfg(feature = "axum")]
    if let Some(MockConnectInfo(peer)) = extensions.get() {
        return Some(*peer);
    }
    None
}

#[cfg(feature = "tonic")]
fn tonic(extensions: &Extensions) -> Option<SocketAddr> {
    let over_tls = || extensions.get().map(OverTls::get_ref);
    extensions.get::<TcpConnectInfo>().or_else(over_tls)?.remote_addr()
}
