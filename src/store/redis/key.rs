use sha2::{Digest, Sha256};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::LazyLock;

/// What can be a key in Redis: how its bytes are written behind the prefix.
///
/// Strings, bytes, whole numbers and addresses are, as they are written; so are tuples of them, as
/// `a:b`, where a `:` within a part is `%3A` and a `%` is `%25`. Of a type of your own, write what
/// makes it up. Two keys of a limiter that differ must not write the same bytes: `"1"` and `1`
/// do, as do `"a:b"` and `("a", "b")`, so do not mix types.
///
/// A key of more than 128 bytes, as it is written here, is stored by its SHA-256: as `%sha256=` with
/// 64 hexadecimal digits. So is a key that begins with `%sha256=`, which no other key can pass for.
/// A hash tag of a cluster in such a key does not count. Shorter keys are readable on the server. If they
/// are secrets, write a hash.
///
/// ```
/// use std::net::IpAddr;
/// use tollgate::RedisKey;
///
/// enum Client {
///     User(u64),
///     Address(IpAddr),
/// }
///
/// impl RedisKey for Client {
///     fn write_to(&self, key: &mut Vec<u8>) {
///         match self {
///             Self::User(id) => ("user", id).write_to(key),
///             Self::Address(address) => ("address", address).write_to(key),
///         }
///     }
/// }
///
/// let mut key = Vec::new();
/// Client::User(17).write_to(&mut key);
/// assert_eq!(key, b"user:17");
/// ```
pub trait RedisKey {
    /// Appends the bytes of this key.
    fn write_to(&self, key: &mut Vec<u8>);
}

macro_rules! by_bytes {
    ($($type:ty),*) => {$(
        impl RedisKey for $type {
            fn write_to(&self, key: &mut Vec<u8>) {
                key.extend_from_slice(self.as_ref());
            }
        }
    )*};
}

macro_rules! by_display {
    ($($type:ty),*) => {$(
        impl RedisKey for $type {
            fn write_to(&self, key: &mut Vec<u8>) {
                write!(key, "{self}").expect("a Vec takes it");
            }
        }
    )*};
}

macro_rules! by_reference {
    ($($type:ty),*) => {$(
        impl<K: RedisKey + ?Sized> RedisKey for $type {
            fn write_to(&self, key: &mut Vec<u8>) {
                (**self).write_to(key);
            }
        }
    )*};
}

/// The parts stand one after the other, with `:` between them; a `:` within a part is written
/// `%3A`, and a `%` is `%25`. So no two tuples write the same bytes.
macro_rules! by_parts {
    ($($type:ident $index:tt),+) => {
        impl<$($type: RedisKey),+> RedisKey for ($($type,)+) {
            fn write_to(&self, key: &mut Vec<u8>) {
                $(
                    if $index > 0 {
                        key.push(b':');
                    }
                    let start = key.len();
                    self.$index.write_to(key);
                    escape(key, start);
                )+
            }
        }
    };
}

by_bytes!(str, String, [u8], Vec<u8>);
by_display!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);
by_display!(IpAddr, Ipv4Addr, Ipv6Addr);
by_reference!(&K, Box<K>, Arc<K>);
by_parts!(A 0);
by_parts!(A 0, B 1);
by_parts!(A 0, B 1, C 2);
by_parts!(A 0, B 1, C 2, D 3);

/// Nothing is `none`; something is a part behind `some`.
impl<K: RedisKey> RedisKey for Option<K> {
    fn write_to(&self, key: &mut Vec<u8>) {
        match self {
            None => "none".write_to(key),
            Some(inner) => ("some", inner).write_to(key),
        }
    }
}

/// The one key of a limiter without keys.
impl RedisKey for () {
    fn write_to(&self, _key: &mut Vec<u8>) {}
}

impl<const N: usize> RedisKey for [u8; N] {
    fn write_to(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(self);
    }
}

fn escape(key: &mut Vec<u8>, start: usize) {
    if !key[start..].iter().any(|byte| matches!(byte, b':' | b'%')) {
        return;
    }
    let part = key.split_off(start);
    for byte in part {
        match byte {
            b':' => key.extend_from_slice(b"%3A"),
            b'%' => key.extend_from_slice(b"%25"),
            _ => key.push(byte),
        }
    }
}

/// The longest key, or id of a request, that is stored as it is written, in bytes.
const MAX_WRITTEN: usize = 128;

/// What is stored for a longer one begins with this, and nothing else does. It has no `:`, so that it
/// stays one part of what it is stored in, and no `{`, which would choose a slot of a cluster.
const HASHED: &[u8] = b"%sha256=";

/// Bounds what was written from `start` on, as clients choose it: what is too long, or begins as a
/// hash does, becomes its hash.
fn bound(key: &mut Vec<u8>, start: usize) {
    let written = &key[start..];
    if written.len() <= MAX_WRITTEN && !written.starts_with(HASHED) {
        return;
    }
    let hash = Sha256::digest(written);
    key.truncate(start);
    key.extend_from_slice(HASHED);
    for byte in hash {
        write!(key, "{byte:02x}").expect("a Vec takes it");
    }
    key.shrink_to_fit();
}

/// The key that holds a state, with this in front of the caller's own.
pub(super) fn of_state<K: RedisKey + ?Sized>(head: &str, key: &K) -> Vec<u8> {
    let mut state = Vec::with_capacity(head.len() + 32);
    state.extend_from_slice(head.as_bytes());
    state.push(b':');
    let start = state.len();
    key.write_to(&mut state);
    bound(&mut state, start);
    state
}

/// The key that remembers a request. It has the prefix of the key that it is about, and lies in the
/// same slot of a cluster, by the same hash tag, or by one that is made.
pub(super) fn of_request(prefix: &str, key: &[u8], id: &str) -> Vec<u8> {
    let mut request = [prefix.as_bytes(), b":request:"].concat();
    if hashed_part(key) != key {
        request.extend_from_slice(key);
    } else if key.iter().any(|byte| matches!(byte, b'{' | b'}')) {
        // No tag can hold the key.
        let tag = NUMBERS[usize::from(slot(key))].to_string();
        request.extend([b"{", tag.as_bytes(), b"}", key].concat());
    } else {
        request.extend([b"{", key, b"}"].concat());
    }
    request.push(b':');
    let start = request.len();
    (id,).write_to(&mut request);
    bound(&mut request, start);
    request
}

/// For each slot, a number that lies in it. Found once, as clients choose keys.
static NUMBERS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut numbers = vec![None; usize::from(SLOTS)];
    let mut left = numbers.len();
    for number in 0.. {
        let place = &mut numbers[usize::from(slot(number.to_string().as_bytes()))];
        if place.is_none() {
            *place = Some(number);
            left -= 1;
        }
        if left == 0 {
            break;
        }
    }
    numbers.into_iter().flatten().collect()
});

const SLOTS: u16 = 16_384;

/// The slot of a key in a cluster.
#[cfg(feature = "redis-cluster")]
pub(super) fn slot_of(key: &[u8]) -> u16 {
    slot(hashed_part(key))
}

/// What a cluster tells the slot of a key by: its hash tag, or all of it.
fn hashed_part(key: &[u8]) -> &[u8] {
    let tagged = key.iter().position(|&byte| byte == b'{').map(|open| &key[open + 1..]);
    let tag = tagged.and_then(|rest| {
        let length = rest.iter().position(|&byte| byte == b'}')?;
        (length > 0).then(|| &rest[..length])
    });
    tag.unwrap_or(key)
}

/// The slot of bytes that all count: their CRC-16 (XMODEM), of which 14 bits count.
fn slot(bytes: &[u8]) -> u16 {
    let crc = bytes.iter().fold(0_u16, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
        })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(key: &(impl RedisKey + ?Sized)) -> String {
        let mut bytes = Vec::new();
        key.write_to(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn keys_are_readable_and_no_two_are_the_same() {
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let table = [
            (written("alice"), "alice"),
            (written("a:b"), "a:b"),
            (written(&17_u64), "17"),
            (written(&-1), "-1"),
            (written(&address), "2001:db8::1"),
            (written(&(address, "/u/1")), "2001%3Adb8%3A%3A1:/u/1"),
            (written(&("a:b", "c")), "a%3Ab:c"),
            (written(&("a", "b:c")), "a:b%3Ac"),
            (written(&("a", ("b", "c"))), "a:b%3Ac"),
            (written(&("a", "b", "c")), "a:b:c"),
            (written(&("a%3Ab", "c")), "a%253Ab:c"),
            (written(&()), ""),
            (written(&Some("none")), "some:none"),
            (written(&None::<&str>), "none"),
        ];
        for (key, expected) in table {
            assert_eq!(key, expected);
        }
    }

    fn stored(key: &(impl RedisKey + ?Sized)) -> Vec<u8> {
        let key = of_state("tollgate:1:bucket", key);
        key.strip_prefix(b"tollgate:1:bucket:").unwrap().into()
    }

    /// With the hashes that `sha256sum` prints.
    #[test]
    fn long_keys_are_stored_by_their_hashes() {
        let [a127, a128, a129] = [127, 128, 129].map(|length| "a".repeat(length));
        let long = "k".repeat(390_000);
        let hash = |digits: &str| [HASHED, digits.as_bytes()].concat();
        let table = [
            (stored(&a127), a127.clone().into_bytes()),
            (stored(&a128), a128.clone().into_bytes()),
            (
                stored(&a129),
                hash("c12cb024a2e5551cca0e08fce8f1c5e314555cc3fef6329ee994a3db752166ae"),
            ),
            (
                stored(&long),
                hash("f6c2f30d12a911d0a26a0764ccdc8ff5bc4212e2a6715a92741dbe2b27b4f833"),
            ),
            (stored("%sha256"), b"%sha256".into()),
            (
                stored("%sha256="),
                hash("f6d7faa7159f388b16ff2dcbf5d2e91a888e3d739a4a19c5732256cdb6fe6a16"),
            ),
            (stored("%SHA256="), b"%SHA256=".into()),
            (stored(" %sha256="), b" %sha256=".into()),
            (stored(&("%sha256=", "b")), b"%25sha256=:b".into()),
            // What counts is the length as it is written.
            (
                stored(&("a".repeat(64), "b".repeat(63))),
                format!("{}:{}", "a".repeat(64), "b".repeat(63)).into(),
            ),
            (
                stored(&(a127.as_str(), "b")),
                hash("6ff6fc6082932699501298c8b0eff136a03229ed26ca2fc7679c9e9115b4ae92"),
            ),
            (
                stored(&("%".repeat(50), "b")),
                hash("e84e5b2fd6599f85c8d4f6fe902cb8e12fe4c97636619af90d0b8886404b5884"),
            ),
            (stored(&[0xff; 128]), vec![0xff; 128]),
            (
                stored(&[0xff; 129]),
                hash("c458df9bcd770f7a870b3bf6fa4c6f7c19d03c5015e40b0d8dbede68a0764e54"),
            ),
        ];
        for (key, expected) in table {
            assert_eq!(key, expected, "{}", String::from_utf8_lossy(&key));
        }
    }

    /// Neither the hash of another key, nor a beginning that both have, makes two keys one.
    #[test]
    fn no_two_keys_are_stored_as_one() {
        let token = |signature: char| format!("{}.{signature}", "eyJhbGciOiJIUzI1NiJ9".repeat(40));
        let mut keys: Vec<Vec<u8>> = [token('a'), token('b')].map(String::into_bytes).into();
        keys.extend((0..300).map(|length| vec![b'a'; length]));
        keys.extend([b"%sha256=".to_vec(), b"%sha256=%sha256=".to_vec()]);
        // What is stored for each, taken for a key, and that again.
        for _ in 0..3 {
            keys.extend(keys.clone().iter().map(|key| stored(&key[..])));
            keys.sort();
            keys.dedup();
        }
        let seen: std::collections::HashSet<_> = keys.iter().map(|key| stored(&key[..])).collect();
        assert_eq!(seen.len(), keys.len());
        assert!(seen.iter().all(|key| key.len() <= MAX_WRITTEN));
    }

    #[test]
    fn requests_lie_in_the_slots_of_their_keys_and_no_two_are_the_same() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        let prefixes = ["tollgate", "{all}", "a:{b}:c"];
        let long = ["{tag}", "}{"].map(|part| part.repeat(200));
        let keys = ["k", "", "x}", "a{}b", "a{b", "}{", "{}{k}", "a{b}", "a{b}:request:7", "{{k}}"];
        let keys = keys.into_iter().chain(long.iter().map(String::as_str));
        let ids = ["7", "8:7", "{k}", "}", "", &long[0], &long[1]];
        let mut seen = std::collections::HashSet::new();
        for prefix in prefixes {
            for key in keys.clone() {
                let state = of_state(&format!("{prefix}:1:bucket"), key);
                assert!(seen.insert(state.clone()));
                for id in ids {
                    let request = of_request(prefix, &state, id);
                    assert!(request.starts_with(prefix.as_bytes()));
                    assert!(request.len() < 350, "{}", request.len());
                    let slots = [&request, &state].map(|key| slot(hashed_part(key)));
                    assert_eq!(slots[0], slots[1], "{key} {id}");
                    assert!(seen.insert(request), "{key} {id}");
                }
            }
        }
        let request = of_request("tollgate", b"tollgate:1:bucket:alice", "6f1c");
        assert_eq!(request, b"tollgate:request:{tollgate:1:bucket:alice}:6f1c");
    }
}
