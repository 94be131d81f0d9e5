use super::any_body::AnyBody;
use super::client_ip::PeerIp;
use super::failure::NeverFails;
use super::headers::{Format, HeaderStyle, RateLimitFields};
use super::key::KeyError;
use super::question::{Ask, Asked, NoneExempt, OneUnit};
use super::refusal::ProblemJson;
use super::response::Answers;
use super::service::RateLimit;
use crate::limiter::Describe;
use std::sync::Arc;
use std::time::Duration;
use tower_layer::Layer;

/// Guards services with a limiter: see the [module](super) for what it does.
///
/// The limiter is in the layer, and every service that the layer makes asks this one: it holds
/// across connections, for each of which axum makes a service anew.
///
/// `L` is the limiter, `Q` tells what to ask about a request, `R` makes the answer to one that is
/// refused, and `F` says what to do where the limiter's store fails.
#[derive(Debug)]
pub struct RateLimitLayer<L, Q = Ask, R = ProblemJson, F = NeverFails> {
    pub(super) limiters: Arc<[Arc<L>]>,
    pub(super) question: Q,
    pub(super) answers: Answers<R, F>,
    pub(super) longest_wait: Option<Duration>,
}

impl<L: Describe> RateLimitLayer<L> {
    /// A layer that asks `limiter` for one unit, by the address of the peer, [`PeerIp`].
    ///
    /// A limiter without keys ([`Limiter::direct`](crate::Limiter)) goes with
    /// `.key(|_: &Request<_>| ())`. One whose store can fail, such as Redis, needs a choice:
    /// [`on_store_error`](Self::on_store_error); without it, the layer does not compile around a
    /// service.
    pub fn new(limiter: L) -> Self {
        Self::shared(Arc::new(limiter))
    }

    /// The same, with a limiter that is asked elsewhere too, and so is in an [`Arc`].
    pub fn shared(limiter: Arc<L>) -> Self {
        Self::of([limiter].into(), Ask::default())
    }
}

impl<L: Describe, T> RateLimitLayer<L, Ask<PeerIp, OneUnit, NoneExempt, T>> {
    /// A layer that chooses for each request which of the `limiters` to ask, by a closure from
    /// the request to its place in the list, counted from 0: a limit for each tier of customers,
    /// say.
    ///
    /// They are of one type: for different algorithms, make each a [`Policy`](crate::Policy). They
    /// count apart from each other, unless they share a store
    /// ([`TieredMemory`](crate::TieredMemory), or one name on Redis): then a customer who
    /// changes the tier keeps what is used. Limits that hold together, on the same key, are one
    /// [`Policy`](crate::Policy). Where there is no limiter of that place, the request is answered
    /// 500.
    ///
    /// ```
    /// use http::Request;
    /// use tollgate::tower::RateLimitLayer;
    /// use tollgate::{Limiter, Policy};
    ///
    /// # #[cfg(feature = "memory")] {
    /// let free = Limiter::new("free: token_bucket 10/min".parse::<Policy>()?);
    /// let pro = Limiter::new("pro: sliding_log 1000/min".parse::<Policy>()?);
    /// let layer = RateLimitLayer::choosing([free, pro], |request: &Request<()>| {
    ///     usize::from(request.headers().contains_key("x-pro"))
    /// });
    /// # let _ = layer;
    /// # }
    /// # Ok::<(), tollgate::Error>(())
    /// ```
    pub fn choosing(limiters: impl IntoIterator<Item = L>, choice: T) -> Self {
        let ask = Ask { key: PeerIp, cost: OneUnit, exempt: NoneExempt, choice };
        Self::of(limiters.into_iter().map(Arc::new).collect(), ask)
    }

    fn of(limiters: Arc<[Arc<L>]>, question: Ask<PeerIp, OneUnit, NoneExempt, T>) -> Self {
        let format = Format::default();
        let fields = fields(&limiters, &format);
        let answers = Answers::new(format, fields, ProblemJson::default(), NeverFails);
        Self { limiters, question, answers, longest_wait: None }
    }
}

fn fields<L: Describe>(limiters: &[Arc<L>], format: &Format) -> Arc<[RateLimitFields]> {
    limiters.iter().map(|limiter| RateLimitFields::new(&limiter.describe(), format)).collect()
}

impl<L, E, C, X, T, R, F> RateLimitLayer<L, Ask<E, C, X, T>, R, F> {
    /// The same, with the key of a request told by `extractor`: a closure from `&Request<_>`
    /// to any key of the limiter's, or a [`KeyExtractor`](super::KeyExtractor).
    #[must_use]
    pub fn key<E2>(self, extractor: E2) -> RateLimitLayer<L, Ask<E2, C, X, T>, R, F> {
        self.with_question(|Ask { cost, exempt, choice, .. }| Ask {
            key: extractor,
            cost,
            exempt,
            choice,
        })
    }

    /// The same, with the units that a request costs told by `cost`: a closure from
    /// `&Request<_>` to a `u64`. A cost of 0 is always admitted.
    ///
    /// The type of the request is written as `&http::Request<_>`, which fits any stack.
    ///
    /// ```
    /// use http::Request;
    /// # use tollgate::tower::RateLimitLayer;
    /// # use tollgate::{Limiter, Quota, TokenBucket};
    /// # #[cfg(feature = "memory")] {
    /// # let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)));
    /// let layer = RateLimitLayer::new(limiter)
    ///     .cost(|request: &Request<()>| if request.uri().path() == "/search" { 5 } else { 1 })
    ///     .exempt(|request: &Request<()>| request.uri().path() == "/health");
    /// # let _ = layer;
    /// # }
    /// ```
    #[must_use]
    pub fn cost<C2>(self, cost: C2) -> RateLimitLayer<L, Ask<E, C2, X, T>, R, F> {
        self.with_question(|Ask { key, exempt, choice, .. }| Ask { key, cost, exempt, choice })
    }

    /// The same, with requests that are passed on without being asked about: those for which
    /// `exempt`, a closure from `&Request<_>`, returns `true`. They get no decision from this
    /// layer; that of an outer one stays in their extensions. Where there is none, a handler in
    /// axum that takes an `Extension<Decision>` answers 500: take an `Option` of it.
    #[must_use]
    pub fn exempt<X2>(self, exempt: X2) -> RateLimitLayer<L, Ask<E, C, X2, T>, R, F> {
        self.with_question(|Ask { key, cost, choice, .. }| Ask { key, cost, exempt, choice })
    }
}

impl<L, Q, R, F> RateLimitLayer<L, Q, R, F> {
    /// Sets how the layer answers the requests that it does not pass on:
    /// [`ProblemJson`](super::ProblemJson) unless set, [`PlainText`](super::PlainText),
    /// [`Grpc`](super::Grpc) for services of gRPC, a closure from [`&Refusal`](super::Refusal) to a
    /// response, whose types must be written out, or a [`Refuse`](super::Refuse) of your own.
    ///
    /// It makes the answers to requests that a limit denies (429), that have no key (401, or as the
    /// [`KeyError`](super::KeyError) says) and that come while the store fails (503). If a closure
    /// leaves the status at 200, it becomes that one.
    ///
    /// ```
    /// use http::{HeaderValue, Response, header::CONTENT_TYPE};
    /// use tollgate::tower::{RateLimitLayer, Refusal};
    /// # use tollgate::{Limiter, Quota, TokenBucket};
    ///
    /// /// For any service whose body is made of a `String`, as axum's is, and for any other with
    /// /// [`any_body`](RateLimitLayer::any_body).
    /// fn as_json<B: From<String>>(refusal: &Refusal<'_>) -> Response<B> {
    ///     let body = format!(r#"{{"error": "{}"}}"#, refusal.status);
    ///     let mut response = Response::new(body.into());
    ///     let json = HeaderValue::from_static("application/json");
    ///     response.headers_mut().insert(CONTENT_TYPE, json);
    ///     response
    /// }
    ///
    /// # #[cfg(feature = "memory")] {
    /// # let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)));
    /// let layer = RateLimitLayer::new(limiter).refusal(as_json);
    /// # let serve = async |_: http::Request<()>| Ok::<_, ()>(Response::new(String::new()));
    /// # let service = tower::ServiceBuilder::new().layer(layer).service_fn(serve);
    /// # fn assert_service<S: tower::Service<http::Request<()>>>(_: S) {}
    /// # assert_service(service);
    /// # }
    /// ```
    #[must_use]
    pub fn refusal<R2>(self, refusal: R2) -> RateLimitLayer<L, Q, R2, F> {
        self.with_answers(|answers| answers.with_refusal(refusal))
    }

    /// The same, with this choice for requests that nobody can decide on because the limiter's
    /// store fails: [`FailOpen`](super::FailOpen), [`FailClosed`](super::FailClosed), or an
    /// [`OnStoreError`](super::OnStoreError), such as a closure from the error, whose type must be
    /// written out: `|error: &tollgate::Error| ...`.
    ///
    /// One choice holds for all limiters of the layer: limits of which one fails open and another
    /// fails closed are two layers.
    ///
    /// With the feature `metrics` such requests are counted (`tollgate_store_errors_total`). With
    /// `tracing`, a warning has the error and the number of such requests, at most once a second.
    #[must_use]
    pub fn on_store_error<F2>(self, choice: F2) -> RateLimitLayer<L, Q, R, F2> {
        self.with_answers(|answers| answers.with_choice(choice))
    }

    /// The same, with requests held back until it is their turn, where that comes within
    /// `longest`; what would come later is refused at once. A zero does not hold back anything.
    ///
    /// Requests of one key wait in the order in which they come, as those who
    /// [`Acquire`](crate::Acquire) do; in Redis, of several that wait any may come first.
    ///
    /// This is also how to keep to somebody else's limit: see
    /// [around a client](super#around-a-client).
    #[must_use]
    pub fn wait(self, longest: Duration) -> Self {
        let longest_wait = Some(longest).filter(|longest| !longest.is_zero());
        Self { longest_wait, ..self }
    }

    /// Makes the layer work around a service with any body: layers of `tower-http` that change the
    /// body, or a client of `hyper`. Call it last. Around a server of gRPC set
    /// [`Grpc`](super::Grpc) instead.
    ///
    /// Without it, the layer's own answers have the body of the service, which must then be one that
    /// is made of a `String`, such as axum's. With it, the response's body is a
    /// [`ResponseBody`](super::ResponseBody).
    ///
    /// ```
    /// use http::{Request, Response};
    /// use tollgate::tower::RateLimitLayer;
    /// use tollgate::{Limiter, Quota, TokenBucket};
    /// use tower::{ServiceBuilder, service_fn};
    ///
    /// /// A body that no text can become.
    /// struct Stream;
    ///
    /// # #[cfg(feature = "memory")] {
    /// let limiter = Limiter::new(TokenBucket::new(Quota::per_second(10)));
    /// let service = ServiceBuilder::new()
    ///     .layer(RateLimitLayer::new(limiter).any_body())
    ///     .service(service_fn(async |_: Request<()>| Ok::<_, ()>(Response::new(Stream))));
    /// # fn assert_service<S: tower::Service<Request<()>>>(_: S) {}
    /// # assert_service(service);
    /// # }
    /// ```
    #[must_use]
    pub fn any_body(self) -> AnyBody<Self> {
        AnyBody(self)
    }
}

impl<L, Q, R, F> RateLimitLayer<L, Q, R, F> {
    fn with_question<Q2>(self, change: impl FnOnce(Q) -> Q2) -> RateLimitLayer<L, Q2, R, F> {
        let Self { limiters, question, answers, longest_wait } = self;
        RateLimitLayer { limiters, question: change(question), answers, longest_wait }
    }

    fn with_answers<R2, F2>(
        self,
        change: impl FnOnce(Answers<R, F>) -> Answers<R2, F2>,
    ) -> RateLimitLayer<L, Q, R2, F2> {
        let Self { limiters, question, answers, longest_wait } = self;
        RateLimitLayer { limiters, question, answers: change(answers), longest_wait }
    }

    /// The same question, if there is a limiter to put it to.
    pub(super) fn known<K>(&self, asked: Option<Asked<K>>) -> Result<Option<Asked<K>>, KeyError> {
        match &asked {
            Some(asked) if asked.limiter >= self.limiters.len() => {
                Err(KeyError::internal(format!(
                    "RateLimitLayer::choosing was told to ask limiter {} of {}, counted from 0",
                    asked.limiter,
                    self.limiters.len()
                )))
            }
            _ => Ok(asked),
        }
    }
}

impl<L: Describe, Q, R, F> RateLimitLayer<L, Q, R, F> {
    /// The same, with the answers' fields in this style.
    #[must_use]
    pub fn headers(self, style: HeaderStyle) -> Self {
        self.with_format(|format| format.style = style)
    }

    /// The same, with this as the unit of what the limits count, where it is not requests:
    /// `"content-bytes"`, `"concurrent-requests"`, or one of your own. Answers in the default
    /// [`HeaderStyle`] tell it, as `qu` in `RateLimit-Policy`; it is for
    /// [`cost`](Self::cost) to say how many such units a request takes.
    ///
    /// ```
    /// use http::{Request, header::CONTENT_LENGTH};
    /// use tollgate::tower::RateLimitLayer;
    /// use tollgate::{Limiter, Policy};
    ///
    /// /// A body that is sent in chunks does not tell its length, and costs nothing here: answer such a
    /// /// request by 411 (Length Required), or charge what is read of it.
    /// fn content_length<B>(request: &Request<B>) -> u64 {
    ///     let length = request.headers().get(CONTENT_LENGTH);
    ///     length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
    /// }
    ///
    /// # #[cfg(feature = "memory")] {
    /// let limiter = Limiter::new("ingress: token_bucket 65535/10s".parse::<Policy>()?);
    /// // RateLimit-Policy: "ingress";q=65535;qu="content-bytes";w=10
    /// let layer = RateLimitLayer::new(limiter)
    ///     .cost(|request: &Request<()>| content_length(request))
    ///     .quota_unit("content-bytes");
    /// # let _ = layer;
    /// # }
    /// # Ok::<(), tollgate::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Where `unit` is not of printable ASCII: it is a structured field's string.
    #[must_use]
    pub fn quota_unit(self, unit: &str) -> Self {
        self.with_format(|format| format.set_quota_unit(unit))
    }

    fn with_format(self, change: impl FnOnce(&mut Format)) -> Self {
        let Self { limiters, question, mut answers, longest_wait } = self;
        change(&mut answers.format);
        answers.fields = fields(&limiters, &answers.format);
        Self { limiters, question, answers, longest_wait }
    }
}

impl<L, Q: Clone, R: Clone, F: Clone> Clone for RateLimitLayer<L, Q, R, F> {
    fn clone(&self) -> Self {
        Self {
            limiters: Arc::clone(&self.limiters),
            question: self.question.clone(),
            answers: self.answers.clone(),
            longest_wait: self.longest_wait,
        }
    }
}

impl<S, L, Q: Clone, R: Clone, F: Clone> Layer<S> for RateLimitLayer<L, Q, R, F> {
    type Service = RateLimit<S, L, Q, R, F>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, layer: self.clone() }
    }
}
