//! A forged `x-forwarded-for`: see `forged.rs`.

#![no_main]

mod forged;

use libfuzzer_sys::fuzz_target;
use tollgate::tower::ClientIp;

fuzz_target!(|value: &[u8]| forged::hold(
    "x-forwarded-for",
    ClientIp::x_forwarded_for,
    "203.0.113.7",
    value
));
