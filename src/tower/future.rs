use super::failure::OnStoreError;
use super::headers::RateLimitValues;
use super::refusal::Refuse;
use super::response::{Answers, Verdict};
use crate::algorithm::Description;
use crate::decision::Decision;
use http::{Request, Response};
use pin_project_lite::pin_project;
use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_service::Service;

pin_project! {
    /// The response of a [`RateLimit`](super::RateLimit) service.
    pub struct ResponseFuture<S, ReqBody, R, F, E>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        stage: Stage<S, ReqBody, Answers<R, F>, E, S::Response, S::Future>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, ReqBody, A, E, Answer, Serving> {
        /// The limiter has not decided yet; then `next` tells how to go on.
        Deciding {
            deciding: Deciding<E>,
            next: Option<Next<S, ReqBody, A>>,
        },
        /// The inner service is not ready again yet.
        Readying {
            inner: S,
            request: Option<Request<ReqBody>>,
            fields: Option<RateLimitValues>,
        },
        /// The inner service is at work; the fields are for its answer.
        Serving {
            #[pin]
            serving: Serving,
            fields: Option<RateLimitValues>,
        },
        /// There is an answer without the inner service.
        Answered {
            answer: Option<Answer>,
        },
    }
}

/// Boxed, for a limiter that has to wait for its store, or a request that has to wait for its
/// turn; others decide within the call.
pub(super) type Deciding<E> = Pin<Box<dyn Future<Output = Decided<E>> + Send>>;

/// What was decided, and the limits that it was decided by, where they are not always the same.
pub(super) type Decided<E> = (Result<Decision, E>, Option<Vec<Description>>);

struct Next<S, ReqBody, A> {
    inner: S,
    request: Request<ReqBody>,
    answers: A,
    limiter: usize,
}

impl<S, ReqBody, ResBody, R, F, E> ResponseFuture<S, ReqBody, R, F, E>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    pub(super) fn deciding(
        deciding: Deciding<E>,
        limiter: usize,
        inner: S,
        request: Request<ReqBody>,
        answers: Answers<R, F>,
    ) -> Self {
        let next = Some(Next { inner, request, answers, limiter });
        Self { stage: Stage::Deciding { deciding, next } }
    }

    pub(super) fn decided(
        verdict: Verdict<ResBody>,
        request: Request<ReqBody>,
        inner: &mut S,
    ) -> Self {
        Self { stage: Stage::decided(verdict, request, inner) }
    }
}

impl<S, ReqBody, ResBody, A, E> Stage<S, ReqBody, A, E, Response<ResBody>, S::Future>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    fn decided(verdict: Verdict<ResBody>, request: Request<ReqBody>, inner: &mut S) -> Self {
        match verdict {
            Verdict::PassOn(fields) => Self::Serving { serving: inner.call(request), fields },
            Verdict::Answer(response) => {
                let_go(inner);
                Self::Answered { answer: Some(response) }
            }
        }
    }
}

/// Puts a service that is not ready in the place of one that is and will not be called: that one may
/// hold a permit that others need.
pub(super) fn let_go<S: Clone>(ready: &mut S) {
    *ready = ready.clone();
}

const POLLED_AGAIN: &str = "a future must not be polled after it is done";

impl<S, ReqBody, ResBody, R, F, E> Future for ResponseFuture<S, ReqBody, R, F, E>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    R: Refuse<ResBody>,
    F: OnStoreError<E, ResBody>,
    E: Display,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            match stage.as_mut().project() {
                StageProjection::Deciding { deciding, next } => {
                    let decided = ready!(deciding.as_mut().poll(cx));
                    let Next { inner, mut request, answers, limiter } =
                        next.take().expect(POLLED_AGAIN);
                    let verdict = answers.judge(decided, limiter, &mut request);
                    stage.set(match verdict {
                        Verdict::PassOn(fields) => {
                            Stage::Readying { inner, request: Some(request), fields }
                        }
                        Verdict::Answer(response) => Stage::Answered { answer: Some(response) },
                    });
                }
                StageProjection::Readying { inner, request, fields } => {
                    ready!(inner.poll_ready(cx))?;
                    let request = request.take().expect(POLLED_AGAIN);
                    let (serving, fields) = (inner.call(request), fields.take());
                    stage.set(Stage::Serving { serving, fields });
                }
                StageProjection::Serving { serving, fields } => {
                    let mut response = ready!(serving.poll(cx))?;
                    if let Some(fields) = fields.take() {
                        fields.append_to(response.headers_mut());
                    }
                    return Poll::Ready(Ok(response));
                }
                StageProjection::Answered { answer } => {
                    return Poll::Ready(Ok(answer.take().expect(POLLED_AGAIN)));
                }
            }
        }
    }
}
