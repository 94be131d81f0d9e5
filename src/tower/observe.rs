//! What the layer tells of its work, where the features `metrics` and `tracing` are on.

#![cfg_attr(
    not(all(feature = "metrics", feature = "tracing")),
    allow(unused_variables, reason = "there is nobody to tell")
)]

use crate::decision::{Decision, Outcome};
use std::fmt::Display;

/// Counts a request that a limit was asked about: `tollgate_requests_total`, by the limit that
/// binds and by what came of it.
pub(super) fn decided(decision: &Decision, policy: &str) {
    let outcome = match decision.outcome() {
        Outcome::Allowed => "allowed",
        Outcome::Delayed(_) => "delayed",
        Outcome::Denied(_) => "denied",
        Outcome::Never => "never",
    };
    #[cfg(feature = "metrics")]
    metrics::counter!("tollgate_requests_total", "policy" => policy.to_owned(), "outcome" => outcome)
        .increment(1);
    #[cfg(feature = "tracing")]
    if !decision.is_allowed() {
        tracing::debug!(policy, outcome, retry_after = ?decision.retry_after(), "refused");
    }
}

/// Counts a request that nobody could decide on: `tollgate_store_errors_total`.
pub(super) fn failed(error: &impl Display) {
    #[cfg(feature = "metrics")]
    metrics::counter!("tollgate_store_errors_total").increment(1);
    #[cfg(feature = "tracing")]
    tracing::warn!(%error, "the rate limit cannot be checked");
}
