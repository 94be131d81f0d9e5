//! Whose address it is: the peer's, or that of the client behind proxies.

use super::api_key::only_line;
use super::key::{KeyError, KeyExtractor};
use super::{nat64, peer};
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Request};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The address of the peer at the other end of the connection; the default.
///
/// It is found in the request's extensions, where a server leaves it:
///
/// - axum's `ConnectInfo<SocketAddr>` and `MockConnectInfo<SocketAddr>` (feature `axum`);
/// - tonic's `TcpConnectInfo`, alone or in a `TlsConnectInfo` (feature `tonic`);
/// - a [`SocketAddr`](std::net::SocketAddr), from any other.
///
/// A request without one of them is answered 500; for other types, use [`ClientIp::peer_from`]. No
/// header is looked at, so no client can choose its key. Behind a reverse proxy all requests come
/// from the proxy, and [`ClientIp`] is right.
///
/// An IPv4 address is one key, however it arrives: as itself, mapped (`::ffff:203.0.113.7`), or
/// behind a translator with a well-known prefix (`64:ff9b::203.0.113.7`, or
/// `::ffff:0:203.0.113.7`). Of other IPv6 addresses the first 64 bits count: a client commonly has
/// all that follow. For another number of bits, or a prefix of your own translator, use
/// [`ClientIp::peer`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerIp;

impl<B> KeyExtractor<B> for PeerIp {
    type Key = IpAddr;

    fn extract(&self, request: &Request<B>) -> Result<IpAddr, KeyError> {
        let peer = peer::address(request.extensions()).ok_or_else(KeyError::unknown_peer)?;
        Ok(network(nat64::untranslated(peer.to_canonical(), &[]), DEFAULT_IPV6_PREFIX))
    }
}

const DEFAULT_IPV6_PREFIX: u8 = 64;

/// What is one client as far as its address tells: of a canonical IPv6 address, so many bits.
fn network(address: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match address {
        IpAddr::V6(v6) => {
            let mask = u128::MAX << (128 - u32::from(ipv6_prefix));
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The address of the client behind your own reverse proxies, as a header tells it.
///
/// A client can write any header, so a header counts only as far as a proxy of yours has written
/// it: [`Trust`] says which proxies those are, or how many. There is one header, the one that
/// *your* proxies set; a second one to fall back to would be the client's choice.
///
/// ```
/// use http::Request;
/// use std::net::SocketAddr;
/// use tollgate::tower::{ClientIp, KeyExtractor, Trust};
///
/// // Our load balancers are in 10.0.0.0/8.
/// let client = ClientIp::x_forwarded_for(Trust::proxies(["10.0.0.0/8".parse()?]));
///
/// let mut request = Request::new(());
/// request.extensions_mut().insert(SocketAddr::from(([10, 1, 2, 3], 4321)));
/// // What the client says of itself comes first, what the proxy has seen comes last.
/// request.headers_mut().insert("x-forwarded-for", "1.1.1.1, 203.0.113.7".parse()?);
/// assert_eq!(client.extract(&request)?.to_string(), "203.0.113.7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// From the right, the first address that is not a trusted proxy's is the client's. Something
/// that is no address (`unknown`, an obfuscated identifier, an empty place) ends the way there:
/// then it is the last trusted proxy's. If there is no header, if all its addresses (or the
/// nearest 64) are trusted, or if the peer itself is not, it is the peer's.
///
/// The peer's address is found as by [`PeerIp`], or by [`peer_from`](Self::peer_from). With
/// [`Trust::hops`], a header with enough addresses needs no peer, so a server on a unix socket
/// needs nothing else. A request that needs the peer's address, if that is not known, is answered
/// 500.
///
/// An IPv4 address is one key, however it arrives: as itself, mapped, or behind a translator with
/// a well-known prefix or one of [`nat64_prefixes`](Self::nat64_prefixes). Of other IPv6 addresses
/// the first 64 bits count, unless [`ipv6_prefix`](Self::ipv6_prefix) says otherwise.
#[derive(Clone, Debug)]
pub struct ClientIp {
    source: Source,
    trust: Trust,
    peer_from: PeerFrom,
    nat64_prefixes: Option<Arc<[Ipv6Net]>>,
    ipv6_prefix: u8,
}

/// How the peer's address is found.
#[derive(Clone)]
enum PeerFrom {
    KnownTypes,
    Closure(Arc<FindPeer>),
}

type FindPeer = dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync;

impl fmt::Debug for PeerFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KnownTypes => "KnownTypes",
            Self::Closure(_) => "Closure",
        })
    }
}

#[derive(Clone, Debug)]
enum Source {
    Peer,
    /// A list of addresses, each added by the next proxy.
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
    /// One address.
    Single(HeaderName),
}

/// Which proxies may say whose request it is.
///
/// Their addresses count as they arrive: a mapped IPv4 address (`::ffff:10.0.0.1`) is the IPv4
/// address, but one behind a translator (`64:ff9b::10.0.0.1`) is an IPv6 address here.
#[derive(Clone, Debug)]
pub struct Trust(Trusted);

#[derive(Clone, Debug)]
enum Trusted {
    Networks(Arc<[IpNet]>),
    Hops(usize),
}

impl Trust {
    /// Proxies whose addresses are in these networks, such as `"10.0.0.0/8".parse()?`; one address
    /// is a network too, `"127.0.0.1/32"`. A network of IPv4 addresses that are written as IPv6
    /// ones (`::ffff:10.0.0.0/104`) is that of the IPv4 addresses.
    ///
    /// ```
    /// use tollgate::tower::{IpNet, Trust};
    ///
    /// let networks: Result<Vec<IpNet>, _> =
    ///     ["10.0.0.0/8", "2001:db8::/32"].iter().map(|network| network.parse()).collect();
    /// let trust = Trust::proxies(networks?);
    /// # let _ = trust;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn proxies(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(Trusted::Networks(networks.into_iter().map(canonical).collect()))
    }

    /// So many proxies, one behind the other, whatever their addresses: for servers that can be
    /// reached through them only. The peer is the first of them. Its address is not asked for if
    /// the header has as many addresses, so the server can listen on a unix socket.
    ///
    /// # Panics
    ///
    /// Panics if `count` is 0: then there is no proxy, and [`PeerIp`](super::PeerIp) is right.
    #[must_use]
    pub fn hops(count: usize) -> Self {
        assert!(count > 0, "without a proxy, take the peer's address: PeerIp");
        Self(Trusted::Hops(count))
    }
}

fn includes(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// As the addresses that are looked for in it: those of `::ffff:0:0/96` are IPv4 ones.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(v4, prefix)| Ipv4Net::new(v4, prefix).ok()).map_or(network, IpNet::V4)
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Trusted proxies in a row, at most, where their number is not known.
const MAX_HOPS: usize = 64;

impl ClientIp {
    /// The peer's, whatever headers say: as [`PeerIp`], for another
    /// [`ipv6_prefix`](Self::ipv6_prefix), [`nat64_prefixes`](Self::nat64_prefixes) or
    /// [`peer_from`](Self::peer_from).
    #[must_use]
    pub fn peer() -> Self {
        Self::new(Source::Peer, Trust::proxies([]))
    }

    const fn new(source: Source, trust: Trust) -> Self {
        let peer_from = PeerFrom::KnownTypes;
        let ipv6_prefix = DEFAULT_IPV6_PREFIX;
        Self { source, trust, peer_from, nat64_prefixes: None, ipv6_prefix }
    }

    /// As `X-Forwarded-For` tells it: a list to which each proxy adds its own peer.
    #[must_use]
    pub const fn x_forwarded_for(trust: Trust) -> Self {
        Self::new(Source::XForwardedFor, trust)
    }

    /// As `Forwarded` tells it ([RFC 7239](https://www.rfc-editor.org/rfc/rfc7239)), by `for=`.
    #[must_use]
    pub const fn forwarded(trust: Trust) -> Self {
        Self::new(Source::Forwarded, trust)
    }

    /// As a header with one address tells it, such as `CF-Connecting-IP` or `X-Real-IP`. A
    /// request in which it is there twice, or is no address, is the peer's.
    ///
    /// There is nothing to count in it: by [`Trust::hops`], whatever the number, each peer is
    /// believed.
    ///
    /// ```
    /// use http::{HeaderName, Request};
    /// use std::net::SocketAddr;
    /// use tollgate::tower::{ClientIp, KeyExtractor, Trust};
    ///
    /// let trust = Trust::proxies(["10.0.0.0/8".parse()?]);
    /// let client = ClientIp::header(HeaderName::from_static("x-real-ip"), trust);
    ///
    /// let mut request = Request::new(());
    /// request.extensions_mut().insert(SocketAddr::from(([10, 1, 2, 3], 4321)));
    /// request.headers_mut().insert("x-real-ip", "203.0.113.7".parse()?);
    /// assert_eq!(client.extract(&request)?.to_string(), "203.0.113.7");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn header(name: HeaderName, trust: Trust) -> Self {
        Self::new(Source::Single(name), trust)
    }

    /// Finds the peer's address by a closure, instead of where [`PeerIp`] finds it: for servers
    /// that leave it in a type of their own, or for unix sockets. If the closure returns `None`,
    /// the address is not known.
    ///
    /// ```
    /// use http::{Extensions, Request};
    /// use std::net::IpAddr;
    /// use tollgate::tower::{ClientIp, KeyExtractor};
    ///
    /// /// What our listener knows of a connection.
    /// #[derive(Clone)]
    /// struct Connection {
    ///     peer: IpAddr,
    /// }
    ///
    /// let client = ClientIp::peer()
    ///     .peer_from(|extensions: &Extensions| Some(extensions.get::<Connection>()?.peer));
    ///
    /// let mut request = Request::new(());
    /// assert!(client.extract(&request).is_err());
    /// request.extensions_mut().insert(Connection { peer: "203.0.113.7".parse()? });
    /// assert_eq!(client.extract(&request)?.to_string(), "203.0.113.7");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn peer_from<F>(self, peer: F) -> Self
    where
        F: Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static,
    {
        Self { peer_from: PeerFrom::Closure(Arc::new(peer)), ..self }
    }

    /// Sets the prefixes of your own translators from IPv4 to IPv6 (NAT64, SIIT), besides the
    /// well-known `64:ff9b::/96` and `::ffff:0:0:0/96`. An address in one of them is the IPv4
    /// address in it, by [RFC 6052, section 2.2]; in several, that of the longest prefix.
    ///
    /// List only prefixes that nothing but a translator uses: all addresses in them with the same
    /// IPv4 address are one client.
    ///
    /// ```
    /// use http::Request;
    /// use std::net::SocketAddr;
    /// use tollgate::tower::{ClientIp, KeyExtractor};
    ///
    /// let client = ClientIp::peer().nat64_prefixes(["2001:db8:64::/96".parse()?]);
    /// let mut request = Request::new(());
    /// request.extensions_mut().insert("[2001:db8:64::203.0.113.7]:4321".parse::<SocketAddr>()?);
    /// assert_eq!(client.extract(&request)?.to_string(), "203.0.113.7");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if a prefix has another length than 32, 40, 48, 56, 64 or 96 bits.
    ///
    /// [RFC 6052, section 2.2]: https://www.rfc-editor.org/rfc/rfc6052#section-2.2
    #[must_use]
    pub fn nat64_prefixes(self, prefixes: impl IntoIterator<Item = Ipv6Net>) -> Self {
        let prefixes: Arc<[Ipv6Net]> = prefixes.into_iter().collect();
        for prefix in &*prefixes {
            let is_length = nat64::LENGTHS.contains(&prefix.prefix_len());
            assert!(is_length, "a NAT64 prefix has 32, 40, 48, 56, 64 or 96 bits, unlike {prefix}");
        }
        Self { nat64_prefixes: Some(prefixes), ..self }
    }

    /// Sets how many bits of an IPv6 address count, 1 to 128: 64 by default; 56 or 48 if clients
    /// are given networks of that size.
    ///
    /// # Panics
    ///
    /// Panics if `bits` is out of range.
    #[must_use]
    pub fn ipv6_prefix(self, bits: u8) -> Self {
        assert!((1..=128).contains(&bits), "an IPv6 prefix has 1 to 128 bits, not {bits}");
        Self { ipv6_prefix: bits, ..self }
    }

    /// The client's address as it arrived, but canonical.
    fn address(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        if let Trusted::Networks(networks) = &self.trust.0 {
            let peer = self.peer_address(extensions)?;
            if !includes(networks, peer) {
                return Some(peer);
            }
        }
        let found = match &self.source {
            Source::Peer => None,
            Source::XForwardedFor => {
                let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
                self.walk(lines.flat_map(x_forwarded_for))
            }
            Source::Forwarded => {
                let lines = headers.get_all(FORWARDED).iter().rev();
                self.walk(lines.flat_map(forwarded))
            }
            Source::Single(name) => {
                let line = only_line(headers, name);
                line.and_then(|line| node(line.to_str().ok()?.trim()))
            }
        };
        found.or_else(|| self.peer_address(extensions))
    }

    fn peer_address(&self, extensions: &Extensions) -> Option<IpAddr> {
        let peer = match &self.peer_from {
            PeerFrom::KnownTypes => peer::address(extensions),
            PeerFrom::Closure(find) => find(extensions),
        };
        Some(peer?.to_canonical())
    }

    /// Follows the addresses from the nearest on, where `None` stands for what is none. The result
    /// is `None` if it is the peer's.
    fn walk(&self, hops: impl Iterator<Item = Option<IpAddr>>) -> Option<IpAddr> {
        let mut last = None;
        let max_hops = match self.trust.0 {
            Trusted::Networks(_) => MAX_HOPS,
            Trusted::Hops(count) => count,
        };
        for (index, hop) in hops.take(max_hops).enumerate() {
            let Some(address) = hop else { return last };
            let is_client = match &self.trust.0 {
                Trusted::Networks(networks) => !includes(networks, address),
                Trusted::Hops(count) => index + 1 == *count,
            };
            if is_client {
                return hop;
            }
            last = hop;
        }
        None
    }
}

impl<B> KeyExtractor<B> for ClientIp {
    type Key = IpAddr;

    fn extract(&self, request: &Request<B>) -> Result<IpAddr, KeyError> {
        let address = self.address(request.headers(), request.extensions());
        let own = self.nat64_prefixes.as_deref().unwrap_or_default();
        let address = nat64::untranslated(address.ok_or_else(KeyError::unknown_peer)?, own);
        Ok(network(address, self.ipv6_prefix))
    }
}

/// The addresses of a line, from the right.
fn x_forwarded_for(line: &HeaderValue) -> impl Iterator<Item = Option<IpAddr>> {
    // A line that is not ASCII has places, but no addresses.
    line.as_bytes()
        .rsplit(|byte| *byte == b',')
        .map(|place| node(str::from_utf8(place).ok()?.trim()))
}

/// An address as proxies write it: with or without a port, an IPv6 one with brackets or without.
fn node(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port_is_one = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        let address: Ipv6Addr = address.parse().ok().filter(|_| port_is_one)?;
        return Some(IpAddr::V6(address).to_canonical());
    }
    let address = match text.rsplit_once(':') {
        Some((address, port)) if !address.contains(':') && is_port(port) => address,
        _ => text,
    };
    Some(address.parse::<IpAddr>().ok()?.to_canonical())
}

/// A number, or what RFC 7239 allows in its place.
fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(is_obfuscated),
        None => (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()),
    }
}

const fn is_obfuscated(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// The addresses of a `Forwarded` line, from the right: what a client has written on the left can
/// not change how the proxies' elements read.
fn forwarded(line: &HeaderValue) -> impl Iterator<Item = Option<IpAddr>> {
    FromRight { rest: Some(line.as_bytes()), separator: b',' }.map(forwarded_for)
}

/// The parts of a text between separators that are in no quoted string, from the right.
struct FromRight<'t> {
    rest: Option<&'t [u8]>,
    separator: u8,
}

impl<'t> Iterator for FromRight<'t> {
    type Item = &'t [u8];

    fn next(&mut self) -> Option<&'t [u8]> {
        let rest = self.rest?;
        let mut quoted = false;
        for (place, &byte) in rest.iter().enumerate().rev() {
            if byte == b'"' && !is_escaped(rest, place) {
                quoted = !quoted;
            } else if byte == self.separator && !quoted {
                self.rest = Some(&rest[..place]);
                return Some(&rest[place + 1..]);
            }
        }
        self.rest = None;
        Some(rest)
    }
}

fn is_escaped(text: &[u8], place: usize) -> bool {
    text[..place].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The address after `for=` in one element; `None` where there is not exactly one.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    let pairs = FromRight { rest: Some(element), separator: b';' }.map(<[u8]>::trim_ascii);
    // A pair may be left out: "for=192.0.2.1;;proto=http;".
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
        if name.eq_ignore_ascii_case(b"for") && found.replace(&value[1..]).is_some() {
            return None;
        }
    }
    let value = str::from_utf8(found?).ok()?;
    match value.strip_prefix('"') {
        Some(quoted) => node(&unescaped(quoted.strip_suffix('"')?)?),
        // Colons and brackets must be quoted.
        None => value.parse().ok().filter(IpAddr::is_ipv4),
    }
}

/// What stands in a quoted string; `None` where its closing quote is escaped.
fn unescaped(quoted: &str) -> Option<String> {
    let mut characters = quoted.chars();
    let mut text = String::with_capacity(quoted.len());
    while let Some(character) = characters.next() {
        text.push(if character == '\\' { characters.next()? } else { character });
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn client<V: AsRef<[u8]>>(source: &ClientIp, peer: &str, lines: &[(&str, V)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_ref()).unwrap());
        }
        let mut request = Request::new(());
        *request.headers_mut() = headers;
        request.extensions_mut().insert(SocketAddr::new(peer.parse().unwrap(), 4711));
        source.clone().ipv6_prefix(128).extract(&request).unwrap().to_string()
    }

    fn proxies() -> Trust {
        Trust::proxies(["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()])
    }

    #[test]
    fn addresses_of_one_client_are_one_key() {
        let table = [
            ("203.0.113.7", 64, "203.0.113.7"),
            ("::ffff:203.0.113.7", 64, "203.0.113.7"),
            ("::ffff:203.0.113.7", 8, "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::"),
            ("2001:db8:1:ff02:3:4:5:6", 56, "2001:db8:1:ff00::"),
            ("2001:db8:1:2:3:4:5:6", 48, "2001:db8:1::"),
            ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
            ("::1", 64, "::"),
        ];
        for (address, bits, key) in table {
            let mut request = Request::new(());
            let peer = SocketAddr::new(address.parse().unwrap(), 1);
            request.extensions_mut().insert(peer);
            let found = ClientIp::peer().ipv6_prefix(bits).extract(&request).unwrap();
            assert_eq!(found.to_string(), key);
            if bits == 64 {
                assert_eq!(PeerIp.extract(&request).unwrap(), found);
            }
        }
    }

    /// The key of `address`, wherever it stands.
    fn anywhere(address: &str, with: impl Fn(ClientIp) -> ClientIp) -> String {
        let bracketed = if address.contains(':') { format!("[{address}]") } else { address.into() };
        let element = format!("for=\"{bracketed}:4711\"");
        let at = |source, peer, lines: &[(&str, &str)]| client(&with(source), peer, lines);
        let hop = || Trust::hops(1);
        let real_ip = ClientIp::header(HeaderName::from_static("x-real-ip"), hop());
        let by_proxies = ClientIp::x_forwarded_for(proxies());
        let found = [
            at(ClientIp::peer(), address, &[]),
            at(by_proxies, "10.0.0.1", &[("x-forwarded-for", address)]),
            at(ClientIp::x_forwarded_for(hop()), "10.0.0.1", &[("x-forwarded-for", &bracketed)]),
            at(ClientIp::forwarded(hop()), "10.0.0.1", &[("forwarded", &element)]),
            at(real_ip, "10.0.0.1", &[("x-real-ip", address)]),
        ];
        assert!(found.iter().all(|key| *key == found[0]), "{address}: {found:?}");
        found[0].clone()
    }

    #[test]
    fn an_ipv4_client_is_one_key_however_it_arrives() {
        let own = ["2001:dead:64::/96", "2001:dead:65::/48", "2001:dead:65:cb00::/64"];
        let own = own.map(|prefix| prefix.parse::<Ipv6Net>().unwrap());
        // (as it arrives, its key by well-known prefixes, its key by those three besides)
        let table = [
            ("203.0.113.7", "203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7", "203.0.113.7"),
            ("64:ff9b::203.0.113.7", "203.0.113.7", "203.0.113.7"),
            ("64:ff9b::203.0.113.8", "203.0.113.8", "203.0.113.8"),
            ("64:ff9b::cb00:7107", "203.0.113.7", "203.0.113.7"),
            ("::ffff:0:203.0.113.7", "203.0.113.7", "203.0.113.7"),
            ("::ffff:0:203.0.113.8", "203.0.113.8", "203.0.113.8"),
            ("64:ff9b::1:203.0.113.7", "64:ff9b::1:cb00:7107", "64:ff9b::1:cb00:7107"),
            ("64:ff9b:1::203.0.113.7", "64:ff9b:1::cb00:7107", "64:ff9b:1::cb00:7107"),
            ("::203.0.113.7", "::cb00:7107", "::cb00:7107"),
            ("2001:dead:64::203.0.113.7", "2001:dead:64::cb00:7107", "203.0.113.7"),
            ("2001:dead:65:cb01:71:700::", "2001:dead:65:cb01:71:700::", "203.1.113.7"),
            ("2001:dead:65:cb01:71:700::1", "2001:dead:65:cb01:71:700:0:1", "203.1.113.7"),
            ("2001:dead:65:cb00:71:700::", "2001:dead:65:cb00:71:700::", "113.7.0.0"),
        ];
        for (address, by_default, by_own) in table {
            assert_eq!(anywhere(address, |source| source), by_default);
            assert_eq!(anywhere(address, |source| source.nat64_prefixes(own)), by_own, "{address}");
        }
        let mut request = Request::new(());
        let peer: IpAddr = "64:ff9b::203.0.113.7".parse().unwrap();
        request.extensions_mut().insert(SocketAddr::new(peer, 1));
        assert_eq!(PeerIp.extract(&request).unwrap().to_string(), "203.0.113.7");
    }

    #[test]
    fn nat64_prefixes_have_the_lengths_of_the_rfc() {
        for length in 0..=128 {
            let prefix = Ipv6Net::new("2001:dead::".parse().unwrap(), length).unwrap();
            let set = std::panic::catch_unwind(|| ClientIp::peer().nat64_prefixes([prefix]));
            assert_eq!(set.is_ok(), [32, 40, 48, 56, 64, 96].contains(&length), "{length}");
        }
    }

    #[test]
    fn a_closure_finds_the_peer_and_nothing_else_does() {
        let mut request = Request::new(());
        request.extensions_mut().insert(SocketAddr::from(([192, 0, 2, 1], 1)));
        let by_address = ClientIp::peer().peer_from(|extensions| extensions.get().copied());
        assert_eq!(by_address.extract(&request), Err(KeyError::unknown_peer()));
        request.extensions_mut().insert("::ffff:192.0.2.2".parse::<IpAddr>().unwrap());
        assert_eq!(by_address.extract(&request).unwrap().to_string(), "192.0.2.2");
        assert_eq!(PeerIp.extract(&request).unwrap().to_string(), "192.0.2.1");
        assert!(format!("{by_address:?}").contains("peer_from: Closure"), "{by_address:?}");
    }

    /// By hops, the peer's address is needed only if the header has too few.
    #[test]
    fn without_the_peers_address_the_header_must_have_enough() {
        let unknown = KeyError::unknown_peer();
        assert_eq!(PeerIp.extract(&Request::new(())), Err(unknown.clone()));
        let (hops, name) = (Trust::hops, HeaderName::from_static("x-real-ip"));
        let table = [
            (ClientIp::x_forwarded_for(hops(1)), "x-forwarded-for", "1.1.1.1, 192.0.2.1", true),
            (ClientIp::x_forwarded_for(hops(2)), "x-forwarded-for", "192.0.2.1, 10.0.0.1", true),
            (ClientIp::x_forwarded_for(hops(2)), "x-forwarded-for", "unknown, 192.0.2.1", true),
            (ClientIp::x_forwarded_for(hops(2)), "x-forwarded-for", "192.0.2.1", false),
            (ClientIp::x_forwarded_for(hops(1)), "x-forwarded-for", "192.0.2.1, unknown", false),
            (ClientIp::x_forwarded_for(hops(1)), "x-forwarded-for", "", false),
            (ClientIp::x_forwarded_for(hops(1)), "host", "192.0.2.1", false),
            (ClientIp::x_forwarded_for(proxies()), "x-forwarded-for", "192.0.2.1", false),
            (ClientIp::forwarded(hops(1)), "forwarded", "for=192.0.2.1", true),
            (ClientIp::forwarded(hops(2)), "forwarded", "for=192.0.2.1", false),
            (ClientIp::header(name.clone(), hops(1)), "x-real-ip", "192.0.2.1", true),
            (ClientIp::header(name.clone(), hops(1)), "x-real-ip", "unknown", false),
            (ClientIp::header(name, proxies()), "x-real-ip", "192.0.2.1", false),
            (ClientIp::peer(), "x-forwarded-for", "192.0.2.1", false),
        ];
        for (source, header, line, enough) in table {
            let request = Request::builder().header(header, line).body(()).unwrap();
            let expected = if enough { Ok([192, 0, 2, 1].into()) } else { Err(unknown.clone()) };
            assert_eq!(source.extract(&request), expected, "{source:?} {line}");
        }
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right_as_far_as_it_is_trusted() {
        let source = ClientIp::x_forwarded_for(proxies());
        // (peer, lines, whose it is)
        let table: &[(&str, &[&str], &str)] = &[
            ("203.0.113.9", &["1.1.1.1"], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.7", "10.0.0.2,10.0.0.3"], "203.0.113.7"),
            ("10.0.0.1", &["10.0.0.2, 10.0.0.3"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["1.1.1.1,, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["1.1.1.1, "], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1", ""], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.7:4711"], "203.0.113.7"),
            ("10.0.0.1", &["203.0.113.7:"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.7:x"], "10.0.0.1"),
            ("10.0.0.1", &["[2001:dead::7]:4711"], "2001:dead::7"),
            ("10.0.0.1", &["[2001:dead::7]"], "2001:dead::7"),
            ("10.0.0.1", &["2001:dead::7"], "2001:dead::7"),
            ("10.0.0.1", &["fe80::1%eth0"], "10.0.0.1"),
            ("10.0.0.1", &["[2001:dead::7"], "10.0.0.1"),
            ("10.0.0.1", &["[203.0.113.7]"], "10.0.0.1"),
            ("10.0.0.1", &["\"203.0.113.7\""], "10.0.0.1"),
            ("10.0.0.1", &["::ffff:203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["203.0.113.7, ::ffff:10.0.0.2"], "203.0.113.7"),
            ("::ffff:10.0.0.1", &["203.0.113.7"], "203.0.113.7"),
            ("2001:db8::1", &["203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.07"], "10.0.0.1"),
            ("10.0.0.1", &["é, 203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["203.0.113.7, é"], "10.0.0.1"),
        ];
        for (peer, lines, expected) in table {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(client(&source, peer, &lines), *expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn hops_are_counted_from_the_right() {
        let table = [
            (1, "1.1.1.1, 203.0.113.7", "203.0.113.7"),
            (2, "1.1.1.1, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
            (3, "203.0.113.7, 10.0.0.2", "10.0.0.1"),
            (2, "1.1.1.1, unknown, 10.0.0.2", "10.0.0.2"),
            (1, "unknown", "10.0.0.1"),
        ];
        for (hops, line, expected) in table {
            let source = ClientIp::x_forwarded_for(Trust::hops(hops));
            let lines = [("x-forwarded-for", line)];
            assert_eq!(client(&source, "10.0.0.1", &lines), expected, "{hops} {line}");
        }
    }

    #[test]
    fn forwarded_is_read_from_the_right_as_far_as_it_is_trusted() {
        let source = ClientIp::forwarded(proxies());
        let table = [
            ("for=203.0.113.7", "203.0.113.7"),
            ("for=1.1.1.1, for=203.0.113.7;proto=http;by=10.0.0.1", "203.0.113.7"),
            ("FOR=203.0.113.7, for=10.0.0.2", "203.0.113.7"),
            ("for=\"203.0.113.7:4711\"", "203.0.113.7"),
            ("for=\"[2001:dead::7]:4711\"", "2001:dead::7"),
            ("for=\"[2001:dead::7]:_x\"", "2001:dead::7"),
            ("for=2001:dead::7", "10.0.0.1"),
            ("for=203.0.113.7:4711", "10.0.0.1"),
            ("for=unknown", "10.0.0.1"),
            ("for=1.1.1.1, for=_hidden, for=10.0.0.2", "10.0.0.2"),
            ("proto=http", "10.0.0.1"),
            ("for=1.1.1.1;for=203.0.113.7", "10.0.0.1"),
            ("host=\"a, for=1.1.1.1\";for=203.0.113.7", "203.0.113.7"),
            ("host=\"a\\\", for=1.1.1.1\";for=203.0.113.7", "203.0.113.7"),
            // A client's quote that is left open swallows nothing of the proxy's.
            ("for=\"1.1.1.1, for=203.0.113.7", "203.0.113.7"),
            ("for=\"1.1.1.1, for=\"203.0.113.7\"", "203.0.113.7"),
            ("for=1.1.1.1, nonsense", "10.0.0.1"),
            ("", "10.0.0.1"),
            // Pairs may be left out, characters may be escaped.
            ("for=203.0.113.7;proto=https;", "203.0.113.7"),
            (";for=203.0.113.7; ;proto=https", "203.0.113.7"),
            ("for=1.1.1.1, ;", "10.0.0.1"),
            (r#"for="203.0.113\.7""#, "203.0.113.7"),
            (r#"for="\[2001:dead::\7]:4711""#, "2001:dead::7"),
            (r#"for="203.0.113\\.7""#, "10.0.0.1"),
            (r#"for="203.0.113.7\""#, "10.0.0.1"),
        ];
        for (line, expected) in table {
            assert_eq!(client(&source, "10.0.0.1", &[("forwarded", line)]), expected, "{line}");
        }
        let bytes: [(&[u8], _); 3] = [
            (b"for=203.0.113.7;host=\"\xff\"", "203.0.113.7"),
            (b"host=\"\\\xff\";for=203.0.113.7", "203.0.113.7"),
            (b"for=\"203.0.113.7\xff\"", "10.0.0.1"),
        ];
        for (line, expected) in bytes {
            assert_eq!(client(&source, "10.0.0.1", &[("forwarded", line)]), expected, "{line:?}");
        }
    }

    #[test]
    fn networks_of_mapped_addresses_are_those_of_the_addresses() {
        // (network, peer, whether it is trusted)
        let table = [
            ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1", true),
            ("::ffff:10.0.0.0/104", "10.0.0.1", true),
            ("::ffff:10.0.0.0/104", "11.0.0.1", false),
            ("::ffff:10.0.0.1/128", "10.0.0.1", true),
            ("::ffff:10.0.0.1/128", "10.0.0.2", false),
            ("::ffff:0:0/96", "10.0.0.1", true),
            ("::ffff:0:0/96", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            // As they arrive, not as the IPv4 address that a translator has had.
            ("10.0.0.0/8", "64:ff9b::10.0.0.1", false),
            ("64:ff9b::10.0.0.0/104", "64:ff9b::10.0.0.1", true),
            ("64:ff9b::10.0.0.0/104", "10.0.0.1", false),
        ];
        for (network, peer, trusted) in table {
            let trust = Trust::proxies([network.parse().unwrap()]);
            let Trusted::Networks(networks) = &trust.0 else { panic!("{trust:?}") };
            let peer: IpAddr = peer.parse().unwrap();
            assert_eq!(includes(networks, peer.to_canonical()), trusted, "{network} {peer}");
        }
    }

    /// Of trusted addresses, no more than a bound; of a number of hops, all.
    #[test]
    fn the_way_is_as_long_as_it_is_said_to_be() {
        let line = |hops: usize| format!("203.0.113.7{}", ", 10.0.0.2".repeat(hops - 1));
        let found = |trust: Trust, hops: usize| {
            let source = ClientIp::x_forwarded_for(trust);
            client(&source, "10.0.0.1", &[("x-forwarded-for", line(hops))])
        };
        for hops in [1, 64, 65, 1_000] {
            assert_eq!(found(Trust::hops(hops), hops), "203.0.113.7", "{hops}");
        }
        assert_eq!(found(proxies(), MAX_HOPS), "203.0.113.7");
        assert_eq!(found(proxies(), MAX_HOPS + 1), "10.0.0.1");
    }

    #[test]
    fn headers_of_one_address_must_be_one() {
        let source = ClientIp::header(HeaderName::from_static("cf-connecting-ip"), proxies());
        let one = ("cf-connecting-ip", "203.0.113.7");
        assert_eq!(client(&source, "10.0.0.1", &[one]), "203.0.113.7");
        assert_eq!(client(&source, "198.51.100.1", &[one]), "198.51.100.1");
        assert_eq!(client(&source, "10.0.0.1", &[one, one]), "10.0.0.1");
        assert_eq!(
            client(&source, "10.0.0.1", &[("cf-connecting-ip", "1.1.1.1, 2.2.2.2")]),
            "10.0.0.1"
        );
        assert_eq!(client::<&str>(&source, "10.0.0.1", &[]), "10.0.0.1");
    }
}
