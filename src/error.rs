//! The one error type.

use crate::quota::Quota;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// Why something could not be built or done.
///
/// A refusal is not an error: it is a [`Decision`](crate::Decision). Errors are wrong settings
/// and texts, and each says what was expected instead.
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
        "a limit's name must be 1 to 128 printable ASCII characters without ':' and ';', and no space at its ends, not {name:?}"
    )]
    Name { name: String },

    #[error("two limits of one policy are named {name:?}: give each a name of its own")]
    SameName { name: String, index: usize },

    #[error("a policy needs at least one limit")]
    NoLimit,

    #[error(transparent)]
    Text(WrongText),
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
