//! Whatever a client writes on the left, it is not its own choice whose request this is: what the
//! trusted proxy adds on the right decides.

#![no_main]

use http::{HeaderValue, Request};
use libfuzzer_sys::fuzz_target;
use std::net::SocketAddr;
use tollgate::tower::{ClientIp, KeyExtractor, Trust};

fn client(lines: &[&[u8]], trust: Trust) -> Option<String> {
    let mut request = Request::new(());
    request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, 1], 4711)));
    for line in lines {
        let line = HeaderValue::from_bytes(line).ok()?;
        request.headers_mut().append("forwarded", line);
    }
    Some(ClientIp::forwarded(trust).extract(&request).unwrap().to_string())
}

fuzz_target!(|forged: &[u8]| {
    let proxies = || Trust::proxies(["10.0.0.0/8".parse().unwrap()]);
    // Alone it may be anything, but never a panic.
    let _ = client(&[forged], proxies());
    let _ = client(&[forged], Trust::hops(2));

    let joined = [forged, b", for=203.0.113.7"].concat();
    for trust in [proxies(), Trust::hops(1)] {
        let Some(found) = client(&[&joined], trust.clone()) else { return };
        assert_eq!(found, "203.0.113.7");
        assert_eq!(client(&[forged, b"for=203.0.113.7"], trust).unwrap(), "203.0.113.7");
    }
});
