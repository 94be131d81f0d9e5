//! What a request asks for: the method of HTTP, or that of gRPC.

use super::key::{KeyError, KeyExtractor};
use http::{Method, Request};
use std::sync::Arc;

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

/// The method of gRPC that a request calls, one of those that you list.
///
/// Each of them has a budget. All other calls share one, so a client that invents methods opens
/// no budget. A call is one request to the layer, and costs one unit, however many messages its
/// stream has.
///
/// ```
/// use http::Request;
/// use tollgate::tower::{GrpcMethod, KeyExtractor};
///
/// let method = GrpcMethod::of(["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]);
/// let key = |path: &str| method.extract(&Request::post(path).body(()).unwrap()).unwrap();
/// assert_ne!(key("/grpc.health.v1.Health/Check"), key("/grpc.health.v1.Health/Watch"));
/// assert_eq!(key("/grpc.health.v1.Health/A"), key("/grpc.health.v1.Health/B"));
/// ```
#[derive(Clone, Debug)]
pub struct GrpcMethod(Arc<[Arc<str>]>);

impl GrpcMethod {
    /// Lists the methods that have a budget each, as requests have them in their paths:
    /// `/package.Service/Method`.
    ///
    /// # Panics
    ///
    /// Panics if a method is not of that form.
    ///
    /// ```
    /// use tollgate::tower::{GrpcMethod, PeerIp};
    ///
    /// // For each peer, a budget for `Check` and one for all the rest.
    /// let key = (PeerIp, GrpcMethod::of(["/grpc.health.v1.Health/Check"]));
    /// # let _ = key;
    /// ```
    pub fn of<M: Into<Arc<str>>>(methods: impl IntoIterator<Item = M>) -> Self {
        let methods: Arc<[Arc<str>]> = methods.into_iter().map(Into::into).collect();
        for method in &*methods {
            let parts = method.strip_prefix('/').and_then(|method| method.split_once('/'));
            let is_method = parts.is_some_and(|(service, method)| {
                !service.is_empty() && !method.is_empty() && !method.contains('/')
            });
            assert!(is_method, "a method of gRPC is /package.Service/Method, not {method:?}");
        }
        Self(methods)
    }
}

impl<B> KeyExtractor<B> for GrpcMethod {
    type Key = ListedMethod;

    fn extract(&self, request: &Request<B>) -> Result<ListedMethod, KeyError> {
        let path = request.uri().path();
        Ok(ListedMethod(self.0.iter().find(|method| ***method == *path).cloned()))
    }
}

/// A method of gRPC that [`GrpcMethod`] lists, or none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListedMethod(Option<Arc<str>>);

impl ListedMethod {
    /// The method's path, such as `/grpc.health.v1.Health/Check`; `None` if it is not listed.
    ///
    /// ```
    /// use http::Request;
    /// use tollgate::tower::{GrpcMethod, KeyExtractor};
    ///
    /// let method = GrpcMethod::of(["/grpc.health.v1.Health/Check"]);
    /// let request = Request::post("/grpc.health.v1.Health/Check").body(())?;
    /// assert_eq!(method.extract(&request)?.path(), Some("/grpc.health.v1.Health/Check"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// A method's name; nothing stands for all the others, as no method has an empty name.
#[cfg(feature = "redis")]
mod in_redis {
    use super::{ListedMethod, RegisteredMethod};
    use crate::store::RedisKey;

    impl RedisKey for RegisteredMethod {
        fn write_to(&self, key: &mut Vec<u8>) {
            self.name().unwrap_or_default().write_to(key);
        }
    }

    impl RedisKey for ListedMethod {
        fn write_to(&self, key: &mut Vec<u8>) {
            self.path().unwrap_or_default().write_to(key);
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

    #[test]
    fn listed_methods_are_keys_and_all_others_share_one() {
        let listed = ["/a.A/X", "/a.A/Y", "/B/X"];
        let method = GrpcMethod::of(listed);
        let key = |path: &str| method.extract(&request("POST", path)).unwrap();
        for path in listed {
            assert_eq!(key(path).path(), Some(path));
            assert_eq!(key(&format!("{path}?query")).path(), Some(path), "as a router has it");
        }
        for other in ["/a.A/Z", "/a.A/x", "/a.A/X/", "//a.A/X", "/a.A/%58", "/a.A/X%20", "/", "*"] {
            assert_eq!(key(other).path(), None, "{other}");
        }
        assert_eq!(GrpcMethod::of(listed.map(str::to_owned)).extract(&request("POST", "/B/X")), {
            Ok(key("/B/X"))
        });
    }

    #[test]
    fn methods_of_another_form_are_not_listed() {
        for method in ["a.A/X", "/a.A", "/a.A/", "//X", "", "/", "/a.A/X/", "/a.A/X/Y"] {
            let listed = std::panic::catch_unwind(|| GrpcMethod::of([method]));
            assert!(listed.is_err(), "{method}");
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
        let method = GrpcMethod::of(["/a.A/X"]);
        for (http, path, expected) in
            [("GET", "/a.A/X", ["GET", "/a.A/X"]), ("GET0", "/a.A/0", ["", ""])]
        {
            let request = request(http, path);
            assert_eq!(written(&RequestMethod.extract(&request).unwrap()), expected[0]);
            assert_eq!(written(&method.extract(&request).unwrap()), expected[1]);
        }
    }
}
