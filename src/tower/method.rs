//! What a request asks for: its method.

use super::key::{KeyError, KeyExtractor};
use http::{Method, Request};

/// The method of a request: GET and POST have a budget each.
///
/// Clients can invent methods, so only those of the [IANA HTTP Method Registry] are keys. All
/// others share one budget.
///
/// ```
/// use http::Request;
/// use tollgate::tower::{KeyExtractor, RequestMethod};
///
/// let key = |method: &str| {
///     let request = Request::builder().method(method).body(()).unwrap();
///     RequestMethod.extract(&request).unwrap()
/// };
/// assert_ne!(key("GET"), key("POST"));
/// assert_eq!(key("GET1"), key("GET2"));
/// ```
///
/// [IANA HTTP Method Registry]: https://www.iana.org/assignments/http-methods/
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RequestMethod;

impl<B> KeyExtractor<B> for RequestMethod {
    type Key = RegisteredMethod;

    fn extract(&self, request: &Request<B>) -> Result<RegisteredMethod, KeyError> {
        Ok(RegisteredMethod::of(request.method()))
    }
}

/// A registered method that [`RequestMethod`] has found, or none.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegisteredMethod(Option<&'static str>);

impl RegisteredMethod {
    fn of(method: &Method) -> Self {
        Self(REGISTERED.binary_search(&method.as_str()).ok().map(|place| REGISTERED[place]))
    }

    /// The method's name, such as `GET`; `None` if the method is not registered.
    ///
    /// ```
    /// use http::Request;
    /// use tollgate::tower::{KeyExtractor, RequestMethod};
    ///
    /// let request = Request::get("/").body(())?;
    /// assert_eq!(RequestMethod.extract(&request)?.name(), Some("GET"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn name(&self) -> Option<&'static str> {
        self.0
    }
}

/// The IANA HTTP Method Registry, sorted.
const REGISTERED: [&str; 41] = [
    "*",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// A method's name; nothing stands for all the others, as no method has an empty name.
#[cfg(feature = "redis")]
mod in_redis {
    use super::RegisteredMethod;
    use crate::store::RedisKey;

    impl RedisKey for RegisteredMethod {
        fn write_to(&self, key: &mut Vec<u8>) {
            self.name().unwrap_or_default().write_to(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str) -> Request<()> {
        Request::builder().method(method).uri(path).body(()).unwrap()
    }

    #[test]
    fn registered_methods_are_keys_and_all_others_share_one() {
        let key = |method: &str| RequestMethod.extract(&request(method, "/")).unwrap();
        assert!(REGISTERED.is_sorted());
        for method in REGISTERED {
            assert_eq!(key(method).name(), Some(method));
        }
        for invented in ["GET0", "get", "GE", "XGET", "AAA", "~", &"A".repeat(1_000)] {
            assert_eq!(key(invented).name(), None, "{invented}");
            assert_eq!(key(invented), key("INVENTED"));
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn in_redis_only_known_methods_are_written() {
        use crate::store::RedisKey;

        let written = |key: &dyn RedisKey| {
            let mut bytes = Vec::new();
            key.write_to(&mut bytes);
            String::from_utf8(bytes).unwrap()
        };
        for (http, expected) in [("GET", "GET"), ("GET0", "")] {
            let key = RequestMethod.extract(&request(http, "/")).unwrap();
            assert_eq!(written(&key), expected);
        }
    }
}
