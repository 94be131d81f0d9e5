//! What the layer tells of its work, where the features `metrics` and `tracing` are on.

#![cfg_attr(
    not(all(feature = "metrics", feature = "tracing")),
    allow(unused_variables, reason = "there is nobody to tell")
)]

use crate::decision::{Decision, Outcome};
use std::fmt::Display;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;

/// What is told of one limit's decisions.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    policy: Box<str>,
    /// Each made when it first counts: from then on, a request is counted without allocating.
    #[cfg(feature = "metrics")]
    counters: [OnceLock<metrics::Key>; OUTCOMES.len()],
}

#[cfg(any(feature = "metrics", feature = "tracing"))]
const OUTCOMES: [&str; 4] = ["allowed", "delayed", "denied", "never"];

impl Observer {
    pub(super) fn new(policy: String) -> Self {
        Self {
            policy: policy.into(),
            #[cfg(feature = "metrics")]
            counters: Default::default(),
        }
    }

    pub(super) fn policy(&self) -> &str {
        &self.policy
    }

    /// Counts a request that a limit was asked about: `tollgate_requests_total`, by the limit that
    /// binds and by what came of it.
    pub(super) fn decided(&self, decision: &Decision) {
        let outcome = match decision.outcome() {
            Outcome::Allowed => 0,
            Outcome::Delayed(_) => 1,
            Outcome::Denied(_) => 2,
            Outcome::Never => 3,
        };
        #[cfg(feature = "metrics")]
        metrics::with_recorder(|recorder| {
            let counter = self.counters[outcome].get_or_init(|| {
                let policy = metrics::Label::new("policy", self.policy.to_string());
                let outcome = metrics::Label::from_static_parts("outcome", OUTCOMES[outcome]);
                metrics::Key::from_parts("tollgate_requests_total", vec![policy, outcome])
            });
            recorder.register_counter(counter, &METADATA).increment(1);
        });
        #[cfg(feature = "tracing")]
        if !decision.is_allowed() {
            let retry_after = decision.retry_after();
            tracing::debug!(
                policy = self.policy(),
                outcome = OUTCOMES[outcome],
                ?retry_after,
                "refused"
            );
        }
    }
}

#[cfg(feature = "metrics")]
static METADATA: metrics::Metadata<'_> =
    metrics::Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));

/// Counts a request that nobody could decide on: `tollgate_store_errors_total`.
pub(super) fn failed(error: &impl Display) {
    #[cfg(feature = "metrics")]
    metrics::counter!("tollgate_store_errors_total").increment(1);
    #[cfg(feature = "tracing")]
    tracing::warn!(%error, "the rate limit cannot be checked");
}
