use super::Limit;
use crate::error::{Error, Kind};
use std::fmt;

/// What a limit is called: in decisions on sets, in policy texts and in HTTP headers.
///
/// 1 to 128 printable ASCII characters, none of them `:` or `;`, without a space at either end.
///
/// ```
/// use tollgate::Name;
///
/// assert_eq!(Name::new("llm tokens")?.as_str(), "llm tokens");
/// assert!(Name::new("a: b").is_err());
/// # Ok::<(), tollgate::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// Where it is empty, too long, or has a character that a name cannot have.
    pub fn new(name: &str) -> Result<Self, Error> {
        let printable = |b: u8| matches!(b, b' '..=b'~') && b != b':' && b != b';';
        let valid = (1..=128).contains(&name.len())
            && name.bytes().all(printable)
            && name.trim_matches(' ') == name;
        if !valid {
            return Err(Kind::Name { what: "a limit's name", name: name.to_owned() }.into());
        }
        Ok(Self(name.into()))
    }

    /// A limit's text is a valid name: it has fewer characters, and none that names cannot
    /// have.
    pub(super) fn from_text_of(limit: &Limit) -> Self {
        Self(limit.to_string().into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeakyBucket, Quota};

    #[test]
    fn names_that_would_break_a_text_or_a_header_are_refused() {
        for wrong in ["", " a", "a ", "a:b", "a;b", "a\r\nb", "é", &"a".repeat(129)] {
            let error = Name::new(wrong).unwrap_err().to_string();
            assert!(error.ends_with(&format!("not {wrong:?}")), "{error}");
        }
        for right in ["a", "a b", "\"\\", "10/s", &"a".repeat(128)] {
            assert_eq!(Name::new(right).unwrap().as_str(), right);
        }
    }

    #[test]
    fn the_longest_text_of_a_limit_is_a_name() {
        let period = Quota::MAX_PERIOD - std::time::Duration::from_millis(1);
        let quota = Quota::new(Quota::MAX_COUNT, period).unwrap();
        let limit = Limit::from(LeakyBucket::new(quota).capacity(Quota::MAX_COUNT - 1).nodelay());
        assert!(Name::new(limit.label().as_str()).is_ok());
    }
}
