use super::failure::{OnStoreError, Undecided};
use super::future::{Failed, ResponseFuture};
use super::key::KeyExtractor;
use super::layer::RateLimitLayer;
use super::response::{Refuse, keyless};
use crate::limiter::RateLimiter;
use crate::operation::Operation;
use http::{Request, Response};
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_service::Service;

/// A service that is guarded by a limiter; [`RateLimitLayer`] makes it.
///
/// The response and the error are the inner service's: a refusal is a response.
#[derive(Debug)]
pub struct RateLimit<S, L, E, R, F> {
    pub(super) inner: S,
    pub(super) layer: RateLimitLayer<L, E, R, F>,
}

impl<S: Clone, L, E: Clone, R: Clone, F: Clone> Clone for RateLimit<S, L, E, R, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

const ONE_REQUEST: Operation = Operation::Check(1);

impl<S, L, E, R, F, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S, L, E, R, F>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    L: RateLimiter<E::Key> + 'static,
    E: KeyExtractor<ReqBody, Key: Send + Sync + 'static> + Clone,
    R: Refuse<ResBody> + Clone,
    F: OnStoreError<L::Error, ResBody> + Clone + Send + Sync + 'static,
    ResBody: From<String>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, R>;

    /// Ready when the inner service is. No unit is taken here: it may never be called.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let key = match self.layer.extractor.extract(&request) {
            Ok(key) => key,
            Err(error) => return ResponseFuture::answered(keyless(&error)),
        };
        if let Some(decided) = self.layer.limiter.decide_now(&key, ONE_REQUEST) {
            let decided = decided.map_err(|error| failed(&self.layer.on_store_error, &error));
            let verdict = self.layer.answers.judge(decided, request);
            return ResponseFuture::decided(verdict, &mut self.inner);
        }
        let limiter = Arc::clone(&self.layer.limiter);
        let on_store_error = self.layer.on_store_error.clone();
        let deciding = Box::pin(async move {
            let decided = limiter.decide(&key, ONE_REQUEST).await;
            decided.map_err(|error| failed(&on_store_error, &error))
        });
        // The service that was polled ready is the one to call later.
        let unpolled = self.inner.clone();
        let inner = mem::replace(&mut self.inner, unpolled);
        ResponseFuture::deciding(deciding, inner, request, self.layer.answers.clone())
    }
}

fn failed<E, B>(choice: &impl OnStoreError<E, B>, error: &E) -> Failed<Response<B>> {
    match choice.on_store_error(error) {
        Undecided::PassOn => None,
        Undecided::Answer(response) => Some(response),
    }
}
