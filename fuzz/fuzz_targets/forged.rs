//! Whatever a client writes on the left, it is not its own choice whose request this is: what the
//! trusted proxy adds on the right decides.

use http::{HeaderValue, Request};
use std::net::SocketAddr;
use tollgate::tower::{ClientIp, KeyExtractor, Trust};

/// Holds that against a `forged` value of `header`, where the proxy adds `true_element`, which names
/// 203.0.113.7.
pub fn hold(
    header: &'static str,
    source: fn(Trust) -> ClientIp,
    true_element: &str,
    forged: &[u8],
) {
    let client = |lines: &[&[u8]], trust: Trust| {
        let mut request = Request::new(());
        request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, 1], 4711)));
        for line in lines {
            request.headers_mut().append(header, HeaderValue::from_bytes(line).ok()?);
        }
        Some(source(trust).extract(&request).unwrap().to_string())
    };
    let proxies = || Trust::proxies(["10.0.0.0/8".parse().unwrap()]);
    // Alone it may be anything, but never a panic.
    let _ = client(&[forged], proxies());
    let _ = client(&[forged], Trust::hops(2));

    let joined = [forged, b", ", true_element.as_bytes()].concat();
    for trust in [proxies(), Trust::hops(1)] {
        let Some(found) = client(&[&joined], trust.clone()) else { return };
        assert_eq!(found, "203.0.113.7");
        assert_eq!(client(&[forged, true_element.as_bytes()], trust).unwrap(), "203.0.113.7");
    }
}
