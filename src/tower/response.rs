use super::future::Failed;
use super::headers::{RateLimitFields, RateLimitValues, retry_after_seconds, set_retry_after};
use super::key::KeyError;
use crate::algorithm::Description;
use crate::decision::Decision;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use std::sync::Arc;

/// A request that is refused, and why.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub struct Refusal<'a> {
    /// The limiter's decision: [`Denied`](crate::Outcome::Denied) or
    /// [`Never`](crate::Outcome::Never).
    pub decision: Decision,
    /// The name of the limit that refuses, as it stands in the `RateLimit` field: the limit's
    /// own; `default` for a single limit without one.
    pub policy: &'a str,
}

/// Makes the answer to a request that is refused.
///
/// A closure is one. Whatever it returns, the layer adds `Retry-After` and the `RateLimit`
/// fields, and puts the decision into the response's extensions.
///
/// ```
/// use http::{Response, StatusCode};
/// use tollgate::tower::{Refusal, Refuse};
///
/// fn assert_refuse<B, R: Refuse<B>>(_: &R) {}
///
/// assert_refuse::<String, _>(&|refusal: &Refusal<'_>| {
///     let mut response = Response::new(format!("slow down: {}", refusal.policy));
///     *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
///     response
/// });
/// ```
pub trait Refuse<B> {
    /// The answer.
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B>;
}

impl<F, B> Refuse<B> for F
where
    F: Fn(&Refusal<'_>) -> Response<B>,
{
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        self(refusal)
    }
}

/// 429 Too Many Requests with a line of text; the default.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlainText;

impl<B: From<String>> Refuse<B> for PlainText {
    fn refuse(&self, refusal: &Refusal<'_>) -> Response<B> {
        let text = match retry_after_seconds(&refusal.decision) {
            Some(seconds) => format!("Too many requests: retry after {seconds} s.\n"),
            None => "This request costs more than its limit ever allows.\n".to_owned(),
        };
        plain_text(StatusCode::TOO_MANY_REQUESTS, text)
    }
}

/// What a layer's answers say of its limiter.
#[derive(Clone, Debug)]
pub(super) struct Answers<R> {
    fields: Arc<RateLimitFields>,
    refusal: R,
}

impl<R> Answers<R> {
    pub(super) fn new(limits: &[Description], refusal: R) -> Self {
        Self { fields: Arc::new(RateLimitFields::new(limits)), refusal }
    }

    pub(super) fn with_refusal<R2>(self, refusal: R2) -> Answers<R2> {
        Answers { fields: self.fields, refusal }
    }

    /// What becomes of a request once it is decided on, or could not be: it is passed on, and the
    /// fields are for its answer; or it is answered here.
    pub(super) fn judge<ReqBody, ResBody>(
        &self,
        decided: Result<Decision, Failed<Response<ResBody>>>,
        request: Request<ReqBody>,
    ) -> Verdict<ReqBody, ResBody>
    where
        R: Refuse<ResBody>,
    {
        match decided {
            Ok(decision) => self.admit(decision, request),
            Err(Some(answer)) => Verdict::Answer(answer),
            Err(None) => Verdict::PassOn(request, None),
        }
    }

    fn admit<ReqBody, ResBody>(
        &self,
        decision: Decision,
        mut request: Request<ReqBody>,
    ) -> Verdict<ReqBody, ResBody>
    where
        R: Refuse<ResBody>,
    {
        let fields = self.fields.values(&decision);
        if decision.is_allowed() {
            request.extensions_mut().insert(decision);
            return Verdict::PassOn(request, Some(fields));
        }
        let refusal = Refusal { decision, policy: self.fields.name(&decision) };
        let mut response = self.refusal.refuse(&refusal);
        set_retry_after(&decision, response.headers_mut());
        fields.append_to(response.headers_mut());
        response.extensions_mut().insert(decision);
        Verdict::Answer(response)
    }
}

pub(super) enum Verdict<ReqBody, ResBody> {
    PassOn(Request<ReqBody>, Option<RateLimitValues>),
    Answer(Response<ResBody>),
}

/// The answer to a request whose key cannot be told.
pub(super) fn keyless<B: From<String>>(error: &KeyError) -> Response<B> {
    plain_text(error.status(), format!("{error}\n"))
}

pub(super) fn plain_text<B: From<String>>(status: StatusCode, text: String) -> Response<B> {
    let mut response = Response::new(B::from(text));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
