use super::client_ip::PeerIp;
use super::failure::NeverFails;
use super::response::{Answers, PlainText};
use super::service::RateLimit;
use crate::limiter::Describe;
use std::sync::Arc;
use tower_layer::Layer;

/// Guards services with a limiter: see the [module](super) for what it does.
///
/// The limiter is in the layer, and every service that the layer makes asks this one: it holds
/// across connections, for each of which axum makes a service anew.
///
/// `L` is the limiter, `E` tells the key of a request, `R` makes the answer to one that is
/// refused, and `F` says what to do where the limiter's store fails.
#[derive(Debug)]
pub struct RateLimitLayer<L, E = PeerIp, R = PlainText, F = NeverFails> {
    pub(super) limiter: Arc<L>,
    pub(super) extractor: E,
    pub(super) answers: Answers<R>,
    pub(super) on_store_error: F,
}

impl<L: Describe> RateLimitLayer<L> {
    /// A layer that asks `limiter` by the address of the peer, [`PeerIp`].
    ///
    /// A limiter without keys ([`Limiter::direct`](crate::Limiter)) goes with
    /// `.key(|_: &Request<_>| ())`. One whose store can fail, such as Redis, needs a choice:
    /// [`on_store_error`](Self::on_store_error); without it, the layer does not make a service.
    pub fn new(limiter: L) -> Self {
        Self::shared(Arc::new(limiter))
    }

    /// The same, with a limiter that is asked elsewhere too, and so is in an [`Arc`].
    pub fn shared(limiter: Arc<L>) -> Self {
        let answers = Answers::new(&limiter.describe(), PlainText);
        Self { limiter, extractor: PeerIp, answers, on_store_error: NeverFails }
    }
}

impl<L, E, R, F> RateLimitLayer<L, E, R, F> {
    /// The same, with the key of a request told by `extractor`: a closure from `&Request<_>`
    /// to any key of the limiter's, or a [`KeyExtractor`](super::KeyExtractor).
    #[must_use]
    pub fn key<E2>(self, extractor: E2) -> RateLimitLayer<L, E2, R, F> {
        let Self { limiter, answers, on_store_error, .. } = self;
        RateLimitLayer { limiter, extractor, answers, on_store_error }
    }

    /// The same, with refused requests answered by `refusal`: a closure from
    /// [`&Refusal`](super::Refusal) to a response, or a [`Refuse`](super::Refuse).
    #[must_use]
    pub fn refusal<R2>(self, refusal: R2) -> RateLimitLayer<L, E, R2, F> {
        let Self { limiter, extractor, answers, on_store_error } = self;
        let answers = answers.with_refusal(refusal);
        RateLimitLayer { limiter, extractor, answers, on_store_error }
    }

    /// The same, with this choice for requests that nobody can decide on because the limiter's
    /// store fails: [`FailOpen`](super::FailOpen), [`FailClosed`](super::FailClosed), or an
    /// [`OnStoreError`](super::OnStoreError), such as a closure from the error.
    #[must_use]
    pub fn on_store_error<F2>(self, choice: F2) -> RateLimitLayer<L, E, R, F2> {
        let Self { limiter, extractor, answers, .. } = self;
        RateLimitLayer { limiter, extractor, answers, on_store_error: choice }
    }
}

impl<L, E: Clone, R: Clone, F: Clone> Clone for RateLimitLayer<L, E, R, F> {
    fn clone(&self) -> Self {
        Self {
            limiter: Arc::clone(&self.limiter),
            extractor: self.extractor.clone(),
            answers: self.answers.clone(),
            on_store_error: self.on_store_error.clone(),
        }
    }
}

impl<S, L, E: Clone, R: Clone, F: Clone> Layer<S> for RateLimitLayer<L, E, R, F> {
    type Service = RateLimit<S, L, E, R, F>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, layer: self.clone() }
    }
}
