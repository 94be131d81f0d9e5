//! The layer around a service whose body cannot be made of a text.

use super::layer::RateLimitLayer;
use super::service::RateLimit;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// A [`RateLimitLayer`] that works around a service with any body:
/// [`any_body`](RateLimitLayer::any_body) makes it.
#[derive(Clone, Debug)]
pub struct AnyBody<L>(pub(super) L);

impl<S, L, Q, R, F> Layer<S> for AnyBody<RateLimitLayer<L, Q, R, F>>
where
    Q: Clone,
    R: Clone,
    F: Clone,
{
    type Service = RateLimit<WithResponseBody<S>, L, Q, R, F>;

    fn layer(&self, inner: S) -> Self::Service {
        self.0.layer(WithResponseBody(inner))
    }
}

/// A service whose responses have a [`ResponseBody`].
#[derive(Clone, Debug)]
pub struct WithResponseBody<S>(S);

impl<S, ReqBody, B> Service<Request<ReqBody>> for WithResponseBody<S>
where
    S: Service<Request<ReqBody>, Response = Response<B>>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = WithResponseBodyFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        WithResponseBodyFuture { serving: self.0.call(request) }
    }
}

pin_project! {
    /// The response of a [`WithResponseBody`].
    pub struct WithResponseBodyFuture<F> {
        #[pin]
        serving: F,
    }
}

impl<F, B, E> Future for WithResponseBodyFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().serving.poll(cx))?;
        Poll::Ready(Ok(response.map(|body| ResponseBody { kind: Kind::Inner { body } })))
    }
}

pin_project! {
    /// The body of a response: the inner service's, or a text of the layer's own.
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::tower::ResponseBody;
    ///
    /// let response: Response<ResponseBody<()>> = Response::new("slow down\n".to_owned().into());
    /// # let _ = response;
    /// ```
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    #[derive(Debug)]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Text { text: String },
    }
}

impl<B> From<String> for ResponseBody<B> {
    fn from(text: String) -> Self {
        Self { kind: Kind::Text { text } }
    }
}

impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        String::new().into()
    }
}

impl<B: Body<Data: From<String>>> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().kind.project() {
            KindProjection::Inner { body } => body.poll_frame(cx),
            KindProjection::Text { text } if text.is_empty() => Poll::Ready(None),
            KindProjection::Text { text } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(text).into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Text { text } => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Text { text } => SizeHint::with_exact(text.len() as u64),
        }
    }
}
