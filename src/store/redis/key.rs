use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// What can be a key in Redis: how its bytes are written behind the prefix.
///
/// Strings, bytes, whole numbers and addresses are, as they are written; so are tuples of them, as
/// `a:b`, where a `:` within a part is `%3A` and a `%` is `%25`. Of a type of your own, write what
/// makes it up. Two keys of a limiter that differ must not write the same bytes: `"1"` and `1`
/// do, as do `"a:b"` and `("a", "b")`, so do not mix types.
///
/// Keys can be read by whoever can read the server's. Where they are secrets, write a hash.
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

/// The key that remembers a request: in the same slot of a cluster as the key that it is about, by
/// that one's hash tag, or by the whole of it. (A key with a `}` and without a tag has no such name;
/// in a cluster, the server refuses it.)
pub(super) fn of_request(key: &[u8], id: &str) -> Vec<u8> {
    let is_tagged = key.iter().position(|&byte| byte == b'{').is_some_and(|open| {
        key[open + 1..].iter().position(|&byte| byte == b'}').is_some_and(|length| length > 0)
    });
    let parts: [&[u8]; 4] = if is_tagged {
        [key, b":request:", id.as_bytes(), b""]
    } else {
        [b"{", key, b"}:request:", id.as_bytes()]
    };
    parts.concat()
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
}
