//! IPv4 addresses in the IPv6 addresses that translators make of them.

use ipnet::Ipv6Net;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `64:ff9b::/96` ([RFC 6052](https://www.rfc-editor.org/rfc/rfc6052)), and `::ffff:0:0:0/96` of
/// IPv4-translated addresses ([RFC 2765](https://www.rfc-editor.org/rfc/rfc2765)).
const WELL_KNOWN: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96),
];

/// The lengths of prefixes before IPv4 addresses, by RFC 6052.
pub(super) const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// The IPv4 address that a translator has made this one of, if the prefix is well known or one of
/// `own`; else the address itself.
pub(super) fn untranslated(address: IpAddr, own: &[Ipv6Net]) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let prefixes = WELL_KNOWN.iter().chain(own).filter(|prefix| prefix.contains(&v6));
    // The longest, as of routes.
    let prefix = prefixes.map(Ipv6Net::prefix_len).max();
    prefix.map_or(address, |length| embedded(v6, length).into())
}

/// RFC 6052, section 2.3: the 32 bits after the prefix, where bits 64 to 71 are left out, but for
/// a prefix of 96 bits.
fn embedded(address: Ipv6Addr, prefix: u8) -> Ipv4Addr {
    const LOWER: u128 = u64::MAX as u128;
    let bits = match (address.to_bits(), prefix) {
        (bits, 96) => bits,
        (bits, _) => (bits & !LOWER) | ((bits << 8) & LOWER),
    };
    let [a, b, c, d, ..] = (bits << prefix).to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_behind_each_length_of_prefix() {
        // The addresses of RFC 6052, section 2.4, for 192.0.2.33.
        let table = [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ];
        let prefixes: Vec<Ipv6Net> = table.iter().map(|(net, _)| net.parse().unwrap()).collect();
        assert_eq!(prefixes.iter().map(Ipv6Net::prefix_len).collect::<Vec<_>>(), LENGTHS);
        for ((_, address), prefix) in table.iter().zip(&prefixes) {
            let address: IpAddr = address.parse().unwrap();
            let found = untranslated(address, std::slice::from_ref(prefix)).to_string();
            assert_eq!(found, "192.0.2.33", "{prefix}");
            assert_eq!(untranslated(address, &[]), address, "{prefix} is nobody's");
        }
    }
}
