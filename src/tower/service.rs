use super::future::ResponseFuture;
use super::key::KeyExtractor;
use super::layer::RateLimitLayer;
use super::response::{Refuse, keyless};
use crate::limiter::RateLimiter;
use crate::operation::Operation;
use http::{Request, Response};
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_service::Service;

/// A service that is guarded by a limiter; [`RateLimitLayer`] makes it.
///
/// The response and the error are the inner service's: a refusal is a response.
#[derive(Debug)]
pub struct RateLimit<S, L, E, R> {
    pub(super) inner: S,
    pub(super) layer: RateLimitLayer<L, E, R>,
}

impl<S: Clone, L, E: Clone, R: Clone> Clone for RateLimit<S, L, E, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

const ONE_REQUEST: Operation = Operation::Check(1);

impl<S, L, E, R, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S, L, E, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    L: RateLimiter<E::Key, Error = Infallible> + 'static,
    E: KeyExtractor<ReqBody, Key: Send + Sync + 'static> + Clone,
    R: Refuse<ResBody> + Clone,
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
        if let Some(Ok(decision)) = self.layer.limiter.decide_now(&key, ONE_REQUEST) {
            return ResponseFuture::decided(
                self.layer.answers.admit(decision, request),
                &mut self.inner,
            );
        }
        let limiter = Arc::clone(&self.layer.limiter);
        let deciding = Box::pin(async move {
            let Ok(decision) = limiter.decide(&key, ONE_REQUEST).await;
            decision
        });
        // The service that was polled ready is the one to call later.
        let unpolled = self.inner.clone();
        let inner = mem::replace(&mut self.inner, unpolled);
        ResponseFuture::deciding(deciding, inner, request, self.layer.answers.clone())
    }
}
