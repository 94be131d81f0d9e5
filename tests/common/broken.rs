//! A limiter whose store fails whenever it is asked.

use tollgate::{Decision, Describe, Description, Operation, RateLimiter};

/// Fails with this text.
pub struct Broken(pub &'static str);

impl Describe for Broken {
    fn describe(&self) -> Vec<Description> {
        vec![Description { name: None, limit: 1, window: None }]
    }
}

impl<K: Sync + ?Sized> RateLimiter<K> for Broken {
    type Error = std::io::Error;

    async fn decide(&self, _: &K, _: Operation<'_>) -> Result<Decision, std::io::Error> {
        Err(std::io::Error::other(self.0))
    }
}
