//! What the layer tells of its work, where the features `metrics` and `tracing` are on.

#![cfg_attr(
    not(all(feature = "metrics", feature = "tracing")),
    allow(unused_variables, reason = "there is nobody to tell")
)]

use super::key::KeyError;
use crate::decision::{Decision, Outcome};
use std::fmt::Display;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;
#[cfg(feature = "tracing")]
use std::time::Duration;
#[cfg(feature = "tracing")]
use tokio::time::Instant;

/// What is told of one limit's decisions.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    limit: Box<str>,
    /// Each made when it first counts: from then on, a request is counted without allocating.
    #[cfg(feature = "metrics")]
    counters: [OnceLock<metrics::Key>; OUTCOMES.len()],
}

#[cfg(any(feature = "metrics", feature = "tracing"))]
const OUTCOMES: [&str; 4] = ["allowed", "delayed", "denied", "never"];

impl Observer {
    pub(super) fn new(limit: String) -> Self {
        Self {
            limit: limit.into(),
            #[cfg(feature = "metrics")]
            counters: Default::default(),
        }
    }

    pub(super) fn limit(&self) -> &str {
        &self.limit
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
                let policy = metrics::Label::new("policy", self.limit.to_string());
                let outcome = metrics::Label::from_static_parts("outcome", OUTCOMES[outcome]);
                metrics::Key::from_parts("tollgate_requests_total", vec![policy, outcome])
            });
            recorder.register_counter(counter, &METADATA).increment(1);
        });
        #[cfg(feature = "tracing")]
        if !decision.is_allowed() {
            let retry_after = decision.retry_after();
            tracing::debug!(
                policy = self.limit(),
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

/// Reports that nobody could decide on a request: counts it as `tollgate_store_errors_total`, and
/// logs a warning.
pub(super) fn failed(error: &impl Display, alarm: &Alarm) {
    #[cfg(feature = "metrics")]
    metrics::counter!("tollgate_store_errors_total").increment(1);
    #[cfg(feature = "tracing")]
    if let Some(requests) = alarm.due() {
        tracing::warn!(%error, requests, "the rate limit cannot be checked");
    }
}

/// Reports that a request has no key: counts it as `tollgate_key_errors_total`, by the status of its
/// answer, and logs an error if the operator can mend it.
pub(super) fn keyless(error: &KeyError, alarm: &Alarm) {
    #[cfg(feature = "metrics")]
    metrics::counter!("tollgate_key_errors_total", "status" => error.status().as_str().to_owned())
        .increment(1);
    #[cfg(feature = "tracing")]
    if let Some(advice) = error.advice()
        && let Some(requests) = alarm.due()
    {
        tracing::error!(advice, requests, "a request has no key to be limited by");
    }
}

/// Limits what is logged of one kind of failure to a line a second.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    #[cfg(feature = "tracing")]
    state: parking_lot::Mutex<(Option<Instant>, u64)>,
}

#[cfg(feature = "tracing")]
impl Alarm {
    /// Counts a failure. Returns how many there were since the last line, this one included, if a
    /// line is due.
    fn due(&self) -> Option<u64> {
        let (logged_at, failures) = &mut *self.state.lock();
        *failures += 1;
        let now = Instant::now();
        if logged_at.is_some_and(|logged_at| now.duration_since(logged_at) < ALARM_PERIOD) {
            return None;
        }
        *logged_at = Some(now);
        Some(std::mem::take(failures))
    }
}

#[cfg(feature = "tracing")]
const ALARM_PERIOD: Duration = Duration::from_secs(1);
