//! A forged `forwarded`: see `forged.rs`.

#![no_main]

mod forged;

use libfuzzer_sys::fuzz_target;
use tollgate::tower::ClientIp;

fuzz_target!(|value: &[u8]| forged::hold(
    "forwarded",
    ClientIp::forwarded,
    "for=203.0.113.7",
    value
));
