//! Policies, limits and quotas in configuration files.

use super::text::{ALGORITHM_NAMES, ALGORITHMS, DEFAULT_ALGORITHM};
use super::{Limit, Policy};
use crate::quota::Quota;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::fmt::{self, Write};

macro_rules! as_text {
    ($($type:ty),*) => {$(
        /// As its text.
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_text!(Quota, Limit, Policy);

/// From `"100/min"`.
impl<'de> Deserialize<'de> for Quota {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct QuotaText;

        impl Visitor<'_> for QuotaText {
            type Value = Quota;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quota such as \"100/min\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quota, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(QuotaText)
    }
}

/// A limit as a table.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitTable {
    name: Option<String>,
    algorithm: Option<String>,
    quota: Quota,
    burst: Option<u64>,
    capacity: Option<u64>,
    #[serde(default)]
    nodelay: bool,
}

impl LimitTable {
    /// Through the text, which knows what goes with what.
    fn into_limit<E: de::Error>(self) -> Result<Limit, E> {
        let mut text = self.algorithm.unwrap_or_else(|| DEFAULT_ALGORITHM.to_owned());
        if !ALGORITHM_NAMES.contains(&text.as_str()) {
            let expected = format_args!("{text:?}: expected an algorithm ({ALGORITHMS})");
            return Err(E::custom(expected));
        }
        let options = [("burst", self.burst), ("capacity", self.capacity)];
        let write = |text: &mut String| {
            write!(text, " {}", self.quota)?;
            for (option, count) in options {
                if let Some(count) = count {
                    write!(text, " {option} {count}")?;
                }
            }
            text.write_str(if self.nodelay { " nodelay" } else { "" })
        };
        write(&mut text).map_err(E::custom)?;
        let limit: Limit =
            text.parse().map_err(|error| E::custom(format_args!("in {text:?}, {error}")))?;
        match self.name {
            Some(name) => limit.named(&name).map_err(E::custom),
            None => Ok(limit),
        }
    }
}

/// From a text or a table: what both limits and policies are read from.
struct TextOrTable<T>(std::marker::PhantomData<T>);

macro_rules! visit_text_or_table {
    ($type:ty) => {
        fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$type, A::Error> {
            let table = LimitTable::deserialize(MapAccessDeserializer::new(map))?;
            Ok(table.into_limit::<A::Error>()?.into())
        }
    };
}

impl<'de> Visitor<'de> for TextOrTable<Limit> {
    type Value = Limit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a limit, as a text or a table")
    }

    visit_text_or_table!(Limit);
}

impl<'de> Visitor<'de> for TextOrTable<Policy> {
    type Value = Policy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a policy, as a text, a table or a list of limits")
    }

    visit_text_or_table!(Policy);

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Policy, A::Error> {
        let mut limits: Vec<Limit> = Vec::new();
        while let Some(limit) = list.next_element()? {
            limits.push(limit);
        }
        Policy::all(limits).map_err(de::Error::custom)
    }
}

/// A format that is not for humans may not say whether a text or a table follows: it holds a text.
fn text_or_table<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    TextOrTable<T>: Visitor<'de, Value = T>,
{
    let visitor = TextOrTable(std::marker::PhantomData);
    if deserializer.is_human_readable() {
        deserializer.deserialize_any(visitor)
    } else {
        deserializer.deserialize_str(visitor)
    }
}

/// From a text, or in a format for humans from a table.
impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_table(deserializer)
    }
}

/// From a text, or in a format for humans from a table or a list of either.
impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_table(deserializer)
    }
}
