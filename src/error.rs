//! The one error type.

use crate::quota::Quota;
use std::fmt;
use std::ops::Range;
#[cfg(feature = "redis")]
use std::sync::Arc;
use std::time::Duration;

/// Why something could not be built or done.
///
/// A refusal is not an error: it is a [`Decision`](crate::Decision). Errors are wrong settings
/// and texts, each with what was expected instead, and stores that cannot be asked.
///
/// ```
/// use tollgate::Policy;
///
/// let error = "100/fortnight".parse::<Policy>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "column 5, at \"fortnight\": expected a unit of time (ms, s, min, h or d)",
/// );
/// assert_eq!(error.span(), Some(4..13));
/// ```
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] pub(crate) Kind);

/// The message: what `unwrap` shows.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Error").field(&self.to_string()).finish()
    }
}

impl Error {
    /// The bytes of the policy text that are wrong, where the error is about such a text.
    #[must_use]
    pub fn span(&self) -> Option<Range<usize>> {
        match &self.0 {
            Kind::Text(wrong) => Some(wrong.span.clone()),
            _ => None,
        }
    }
}

/// What went wrong between a store and its server.
#[cfg(feature = "redis")]
impl Error {
    /// Whether the server could not be reached, or the connection to it broke.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.is_failure(|failure| matches!(failure, Failure::Unreachable))
    }

    /// Whether the server did not answer in time. It may have charged the key all the same.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.is_failure(|failure| matches!(failure, Failure::TimedOut(_)))
    }

    /// Whether the server answered that it will not do it: it is a replica, or out of memory,
    /// or has not let us in, or has something else stored at the key, or is in a cluster that is down.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.is_failure(|failure| matches!(failure, Failure::Refused | Failure::RefusedForNow))
    }

    /// Whether the server answered something that no script of this crate would.
    #[must_use]
    pub fn is_unexpected_reply(&self) -> bool {
        self.is_failure(|failure| matches!(failure, Failure::UnexpectedReply))
    }

    /// Whether another try may do: nobody knows if the server has done what it was asked, or it has
    /// not and may do so later.
    pub(crate) fn may_pass(&self) -> bool {
        self.is_unreachable()
            || self.is_timeout()
            || self.is_failure(|failure| matches!(failure, Failure::RefusedForNow))
    }

    fn is_failure(&self, is: impl Fn(&Failure) -> bool) -> bool {
        matches!(&self.0, Kind::Store(store) if is(&store.failure))
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{what} must be 1 to {}, not {count}", Quota::MAX_COUNT)]
    Count { what: &'static str, count: u64 },

    #[error(
        "a quota's period must be a whole number of milliseconds, 1 ms to 400 days, not {period:?}"
    )]
    Period { period: Duration },

    #[error(
        "{what} of {count} at {quota} takes more than fifty years to refill: lower it, or raise the quota"
    )]
    Refill { what: &'static str, count: u64, quota: Quota },

    #[error(
        "{what} must be 1 to 128 printable ASCII characters without ':' and ';', and no space at its ends, not {name:?}"
    )]
    Name { what: &'static str, name: String },

    #[error("two limits of one policy are named {name:?}: give each a name of its own")]
    SameName { name: String, index: usize },

    #[error("a policy needs at least one limit")]
    NoLimit,

    #[error(transparent)]
    Text(WrongText),

    #[cfg(all(feature = "memory", feature = "serde"))]
    #[error("a snapshot cannot be restored: {0}")]
    Snapshot(&'static str),

    #[cfg(feature = "redis")]
    #[error("the script {script:?} has no section {section:?}")]
    Section { script: &'static str, section: &'static str },

    #[cfg(feature = "redis")]
    #[error("a set in Redis has at most {max} limits, not {len}")]
    SetInRedis { max: usize, len: usize },

    #[cfg(feature = "redis")]
    #[error(
        "this Redis store has no name, so its keys could be another limiter's: make the limiter by \
         `redis.limiter(\"name\", limits)`, or give the store a name by `redis.named(\"name\")`"
    )]
    NoName,

    #[cfg(feature = "redis-cluster")]
    #[error(
        "refusals cannot be published from a cluster: its keys lie in many slots, and the stream {stream:?} in one"
    )]
    StreamInCluster { stream: String },

    #[cfg(feature = "redis")]
    #[error(transparent)]
    Store(Box<StoreFailure>),
}

/// A store that could not do what it was asked.
#[cfg(feature = "redis")]
#[derive(Debug)]
pub(crate) struct StoreFailure {
    pub(crate) failure: Failure,
    /// The name of the limiter that it was asked for.
    pub(crate) limiter: Option<Arc<str>>,
    pub(crate) detail: String,
}

#[cfg(feature = "redis")]
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("not the address of a Redis server")]
    WrongAddress,
    #[error("Redis cannot be reached")]
    Unreachable,
    #[error("Redis did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("Redis refused")]
    Refused,
    /// It is loading, or a replica, or slots are moving, or some have no master.
    #[error("Redis refused")]
    RefusedForNow,
    #[error("Redis did not answer as it should")]
    UnexpectedReply,
}

#[cfg(feature = "redis")]
impl StoreFailure {
    pub(crate) fn new(failure: Failure, limiter: Option<Arc<str>>, detail: &str) -> Self {
        Self { failure, limiter, detail: detail.to_owned() }
    }
}

#[cfg(feature = "redis")]
impl From<StoreFailure> for Error {
    fn from(failure: StoreFailure) -> Self {
        Kind::Store(failure.into()).into()
    }
}

#[cfg(feature = "redis")]
impl std::error::Error for StoreFailure {}

#[cfg(feature = "redis")]
impl fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)?;
        if let Some(limiter) = &self.limiter {
            write!(f, " (limiter {limiter:?})")?;
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// What is wrong in a policy's text, and where.
#[derive(Debug, thiserror::Error)]
#[error("column {column}, {place}: {message}")]
pub(crate) struct WrongText {
    pub(crate) span: Range<usize>,
    column: usize,
    place: String,
    message: String,
}

impl WrongText {
    pub(crate) fn new(text: &str, span: Range<usize>, message: String) -> Self {
        let place = match (&text[span.clone()], text[span.start..].chars().next()) {
            ("", None) => "at the end".to_owned(),
            ("", Some(found)) => format!("at {:?}", found.to_string()),
            (found, _) => format!("at {found:?}"),
        };
        let column = text[..span.start].chars().count() + 1;
        Self { span, column, place, message }
    }
}
