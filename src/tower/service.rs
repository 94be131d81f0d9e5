use super::failure::OnStoreError;
use super::future::{ResponseFuture, let_go};
use super::layer::RateLimitLayer;
use super::question::{Asked, Question};
use super::refusal::Refuse;
use super::response::Verdict;
use crate::limiter::RateLimiter;
use crate::operation::Operation;
use http::{Request, Response};
use std::fmt::Display;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_service::Service;

/// A service that is guarded by a limiter; [`RateLimitLayer`] makes it.
///
/// The response and the error are the inner service's: a refusal is a response.
#[derive(Debug)]
pub struct RateLimit<S, L, Q, R, F> {
    pub(super) inner: S,
    pub(super) layer: RateLimitLayer<L, Q, R, F>,
}

impl<S: Clone, L, Q: Clone, R: Clone, F: Clone> Clone for RateLimit<S, L, Q, R, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, L, Q, R, F, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S, L, Q, R, F>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    L: RateLimiter<Q::Key, Error: Display + Send> + 'static,
    Q: Question<ReqBody, Key: Send + Sync + 'static> + Clone,
    R: Refuse<ResBody> + Clone,
    F: OnStoreError<L::Error, ResBody> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, R, F, L::Error>;

    /// Ready when the inner service is. No unit is taken here: it may never be called.
    ///
    /// If the layer then answers the request itself, or has to wait for a store or for the request's
    /// turn, it lets go of the inner service that is ready, with any permit that it holds. After a
    /// wait it makes one ready again.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let answers = &self.layer.answers;
        let asked = self.layer.question.question(&request);
        let Asked { key, cost, limiter } = match asked.and_then(|asked| self.layer.known(asked)) {
            Ok(Some(asked)) => asked,
            Ok(None) => {
                return ResponseFuture::decided(Verdict::PassOn(None), request, &mut self.inner);
            }
            Err(error) => {
                let answer = Verdict::Answer(answers.keyless(&error, &request));
                return ResponseFuture::decided(answer, request, &mut self.inner);
            }
        };
        let operation = Operation::Check(cost);
        if self.layer.longest_wait.is_none()
            && let Some(decided) = self.layer.limiters[limiter].decide_now(&key, operation)
        {
            let limits = self.layer.limiters[limiter].describe_for(&key);
            let verdict = answers.judge((decided, limits), limiter, &mut request);
            return ResponseFuture::decided(verdict, request, &mut self.inner);
        }
        let limiters = Arc::clone(&self.layer.limiters);
        let longest_wait = self.layer.longest_wait;
        let deciding = Box::pin(async move {
            let limiter = &*limiters[limiter];
            let decided = match longest_wait {
                None => limiter.decide(&key, operation).await,
                Some(longest) => limiter.acquire_within(&key, cost, Some(longest)).await,
            };
            (decided, limiter.describe_for(&key))
        });
        let_go(&mut self.inner);
        let inner = self.inner.clone();
        ResponseFuture::deciding(deciding, limiter, inner, request, answers.clone())
    }
}
