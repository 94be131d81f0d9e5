//! What becomes of requests once they are decided on.

use super::failure::{OnStoreError, Undecided};
use super::future::Decided;
use super::headers::{Format, RateLimitFields, RateLimitValues, set_retry_after};
use super::key::KeyError;
use super::observe;
use super::refusal::{Refusal, Refuse, Rejection, Wanted};
use crate::decision::{Decision, Outcome};
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use std::fmt::Display;
use std::sync::Arc;

/// What a layer's answers are made with: its refusals, and its choice for when the store fails.
#[derive(Clone, Debug)]
pub struct Answers<R, F> {
    pub(super) format: Format,
    /// For each of the limiters.
    pub(super) fields: Arc<[RateLimitFields]>,
    refusal: R,
    on_store_error: F,
}

const GRPC_RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

impl<R, F> Answers<R, F> {
    pub(super) fn new(
        format: Format,
        fields: Arc<[RateLimitFields]>,
        refusal: R,
        on_store_error: F,
    ) -> Self {
        Self { format, fields, refusal, on_store_error }
    }

    pub(super) fn with_refusal<R2>(self, refusal: R2) -> Answers<R2, F> {
        let Self { format, fields, on_store_error, .. } = self;
        Answers { format, fields, refusal, on_store_error }
    }

    pub(super) fn with_choice<F2>(self, on_store_error: F2) -> Answers<R, F2> {
        let Self { format, fields, refusal, .. } = self;
        Answers { format, fields, refusal, on_store_error }
    }

    /// What becomes of a request that a limiter has decided on, or could not: it is passed on, and
    /// the fields are for its answer; or it is answered here.
    pub(super) fn judge<ReqBody, ResBody, E>(
        &self,
        (decided, limits): Decided<E>,
        limiter: usize,
        request: &mut Request<ReqBody>,
    ) -> Verdict<ResBody>
    where
        R: Refuse<ResBody>,
        F: OnStoreError<E, ResBody>,
        E: Display,
    {
        match decided {
            Ok(decision) => match limits {
                None => self.admit(decision, &self.fields[limiter], request),
                Some(limits) => {
                    let fields = RateLimitFields::new(&limits, &self.format);
                    self.admit(decision, &fields, request)
                }
            },
            Err(error) => {
                observe::failed(&error);
                match self.on_store_error.on_store_error(&error) {
                    Undecided::PassOn => Verdict::PassOn(None),
                    Undecided::Unavailable => Verdict::Answer(self.unavailable(request)),
                    Undecided::Answer(response) => Verdict::Answer(response),
                }
            }
        }
    }

    fn admit<ReqBody, ResBody>(
        &self,
        decision: Decision,
        fields: &RateLimitFields,
        request: &mut Request<ReqBody>,
    ) -> Verdict<ResBody>
    where
        R: Refuse<ResBody>,
    {
        let observer = fields.observer(&decision);
        observer.decided(&decision);
        let values = fields.values(&decision);
        if decision.is_allowed() {
            request.extensions_mut().insert(decision);
            return Verdict::PassOn(Some(values));
        }
        let wanted = Wanted::by(request);
        let policy = observer.policy();
        let mut response = self.refusal.refuse(&Refusal { decision, policy, wanted });
        let headers = response.headers_mut();
        set_retry_after(&decision, headers);
        if let Wanted::Grpc(_) = wanted {
            headers.insert(GRPC_RETRY_PUSHBACK, pushback(&decision));
        }
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        values.append_to(headers);
        response.extensions_mut().insert(decision);
        Verdict::Answer(response)
    }

    /// The answer to a request whose key cannot be told.
    pub(super) fn keyless<ReqBody, ResBody>(
        &self,
        error: &KeyError,
        request: &Request<ReqBody>,
    ) -> Response<ResBody>
    where
        R: Refuse<ResBody>,
    {
        let (status, text) = (error.status(), error.text());
        self.refusal.reject(&Rejection { status, text, wanted: Wanted::by(request) })
    }

    fn unavailable<ReqBody, ResBody>(&self, request: &Request<ReqBody>) -> Response<ResBody>
    where
        R: Refuse<ResBody>,
    {
        let wanted = Wanted::by(request);
        let mut response = self.refusal.reject(&Rejection {
            status: StatusCode::SERVICE_UNAVAILABLE,
            text: "The rate limit cannot be checked: retry after 1 s.",
            wanted,
        });
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        if let Wanted::Grpc(_) = wanted {
            headers.insert(GRPC_RETRY_PUSHBACK, HeaderValue::from_static("1000"));
        }
        response
    }
}

/// Milliseconds, rounded up; -1 tells a client of gRPC not to try again.
fn pushback(decision: &Decision) -> HeaderValue {
    match decision.outcome() {
        Outcome::Denied(wait) => {
            let millis = wait.as_micros().div_ceil(1_000);
            HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX))
        }
        _ => HeaderValue::from_static("-1"),
    }
}

pub(super) enum Verdict<ResBody> {
    /// The request is passed on, and the fields are for its answer.
    PassOn(Option<RateLimitValues>),
    Answer(Response<ResBody>),
}
