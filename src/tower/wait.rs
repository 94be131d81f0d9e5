//! Requests that wait for their turn.

use crate::decision::{Decision, Outcome};
use crate::limiter::RateLimiter;
use crate::operation::Operation;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Asks for `cost` units, and waits for them for as long as `longest` if they come within that
/// time; what would take longer is refused at once, and charged nothing.
pub(super) async fn decide<K, L: RateLimiter<K>>(
    limiter: &L,
    key: &K,
    cost: u64,
    longest: Duration,
) -> Result<Decision, L::Error> {
    let start = Instant::now();
    loop {
        let decision = limiter.decide(key, Operation::Check(cost)).await?;
        let left = longest.saturating_sub(start.elapsed());
        match decision.outcome() {
            Outcome::Delayed(delay) if delay <= left => {
                sleep(delay).await;
                return Ok(decision);
            }
            Outcome::Delayed(delay) => {
                // Its turn is too late: it does not stay in the queue.
                let after = limiter.decide(key, Operation::Refund(cost)).await?;
                return Ok(after.refused(delay - left));
            }
            Outcome::Denied(wait) if wait <= left => sleep(wait).await,
            Outcome::Allowed | Outcome::Denied(_) | Outcome::Never => return Ok(decision),
        }
    }
}
