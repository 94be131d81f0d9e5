use super::headers::RateLimitValues;
use super::response::{Answers, Refuse, Verdict};
use crate::decision::Decision;
use http::{Request, Response};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_service::Service;

pin_project! {
    /// The response of a [`RateLimit`](super::RateLimit) service.
    pub struct ResponseFuture<S, ReqBody, R>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        stage: Stage<S, ReqBody, R, S::Response, S::Future>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, ReqBody, R, Answer, F> {
        /// The limiter has not decided yet; then `next` tells how to go on.
        Deciding {
            deciding: Deciding<Answer>,
            next: Option<Next<S, ReqBody, R>>,
        },
        /// The inner service is at work; the fields are for its answer.
        Serving {
            #[pin]
            serving: F,
            fields: Option<RateLimitValues>,
        },
        /// There is an answer without the inner service.
        Answered {
            answer: Option<Answer>,
        },
    }
}

/// Boxed, for a limiter that has to wait for its store; others decide within the call.
type Deciding<Answer> = Pin<Box<dyn Future<Output = Result<Decision, Failed<Answer>>> + Send>>;

/// What is left to do where the limiter's store failed: to give this answer, or to pass the
/// request on.
pub(super) type Failed<Answer> = Option<Answer>;

struct Next<S, ReqBody, R> {
    inner: S,
    request: Request<ReqBody>,
    answers: Answers<R>,
}

impl<S, ReqBody, ResBody, R> ResponseFuture<S, ReqBody, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    pub(super) fn deciding(
        deciding: Deciding<S::Response>,
        inner: S,
        request: Request<ReqBody>,
        answers: Answers<R>,
    ) -> Self {
        let next = Some(Next { inner, request, answers });
        Self { stage: Stage::Deciding { deciding, next } }
    }

    pub(super) fn decided(verdict: Verdict<ReqBody, ResBody>, inner: &mut S) -> Self {
        Self { stage: Stage::decided(verdict, inner) }
    }

    pub(super) fn answered(response: Response<ResBody>) -> Self {
        Self { stage: Stage::Answered { answer: Some(response) } }
    }
}

impl<S, ReqBody, ResBody, R> Stage<S, ReqBody, R, Response<ResBody>, S::Future>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    fn decided(verdict: Verdict<ReqBody, ResBody>, inner: &mut S) -> Self {
        match verdict {
            Verdict::PassOn(request, fields) => {
                Self::Serving { serving: inner.call(request), fields }
            }
            Verdict::Answer(response) => Self::Answered { answer: Some(response) },
        }
    }
}

const POLLED_AGAIN: &str = "a future must not be polled after it is done";

impl<S, ReqBody, ResBody, R> Future for ResponseFuture<S, ReqBody, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    R: Refuse<ResBody>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            match stage.as_mut().project() {
                StageProjection::Deciding { deciding, next } => {
                    let decided = ready!(deciding.as_mut().poll(cx));
                    let Next { mut inner, request, answers } = next.take().expect(POLLED_AGAIN);
                    let verdict = answers.judge(decided, request);
                    stage.set(Stage::decided(verdict, &mut inner));
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
