//! What becomes of requests once they are decided on.

use super::failure::{OnStoreError, Undecided};
use super::future::Decided;
use super::headers::{Format, RateLimitFields, RateLimitValues, set_retry_after};
use super::key::KeyError;
use super::observe::{self, Alarm};
use super::refusal::{Refusal, Refuse, with_error_status};
use crate::decision::Decision;
use http::header::{CACHE_CONTROL, HeaderValue, WWW_AUTHENTICATE};
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
    alarms: Arc<Alarms>,
}

/// Shared by all services of a layer.
#[derive(Debug, Default)]
struct Alarms {
    store: Alarm,
    key: Alarm,
}

impl<R, F> Answers<R, F> {
    pub(super) fn new(
        format: Format,
        fields: Arc<[RateLimitFields]>,
        refusal: R,
        on_store_error: F,
    ) -> Self {
        Self { format, fields, refusal, on_store_error, alarms: Arc::default() }
    }

    pub(super) fn with_refusal<R2>(self, refusal: R2) -> Answers<R2, F> {
        let Self { format, fields, on_store_error, alarms, .. } = self;
        Answers { format, fields, refusal, on_store_error, alarms }
    }

    pub(super) fn with_choice<F2>(self, on_store_error: F2) -> Answers<R, F2> {
        let Self { format, fields, refusal, alarms, .. } = self;
        Answers { format, fields, refusal, on_store_error, alarms }
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
                observe::failed(&error, &self.alarms.store);
                let status = StatusCode::SERVICE_UNAVAILABLE;
                match self.on_store_error.on_store_error(&error) {
                    Undecided::PassOn => Verdict::PassOn(None),
                    Undecided::Unavailable => {
                        let text = "The rate limit cannot be checked: retry after 1 s.";
                        let refusal = refusal(status, text, request);
                        Verdict::Answer(self.refuse(&Refusal { store_failed: true, ..refusal }))
                    }
                    Undecided::Answer(response) => {
                        Verdict::Answer(with_error_status(response, status))
                    }
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
        let mut response = self.refuse(&Refusal {
            decision: Some(decision),
            limit: Some(observer.limit()),
            ..refusal(StatusCode::TOO_MANY_REQUESTS, "", request)
        });
        values.append_to(response.headers_mut());
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
        observe::keyless(error, &self.alarms.key);
        let mut response = self.refuse(&refusal(error.status(), error.text(), request));
        if let Some(challenge) = error.challenge() {
            response.headers_mut().append(WWW_AUTHENTICATE, challenge.clone());
        }
        response
    }

    fn refuse<ResBody>(&self, refusal: &Refusal<'_>) -> Response<ResBody>
    where
        R: Refuse<ResBody>,
    {
        let mut response = self.refusal.refuse(refusal);
        let headers = response.headers_mut();
        if let Some(wait) = refusal.retry_after() {
            set_retry_after(wait, headers);
        }
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }
}

/// A request that no limit denies.
fn refusal<'a, B>(status: StatusCode, text: &'a str, request: &'a Request<B>) -> Refusal<'a> {
    let (method, headers) = (request.method(), request.headers());
    Refusal { status, decision: None, limit: None, method, headers, text, store_failed: false }
}

pub(super) enum Verdict<ResBody> {
    /// The request is passed on, and the fields are for its answer.
    PassOn(Option<RateLimitValues>),
    Answer(Response<ResBody>),
}
