use super::key::PeerIp;
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
/// refused.
#[derive(Debug)]
pub struct RateLimitLayer<L, E = PeerIp, R = PlainText> {
    pub(super) limiter: Arc<L>,
    pub(super) extractor: E,
    pub(super) answers: Answers<R>,
}

impl<L: Describe> RateLimitLayer<L> {
    /// A layer that asks `limiter` by the address of the peer, [`PeerIp`].
    ///
    /// For now it takes limiters that cannot fail, as those in process:
    /// `RateLimiter<K, Error = Infallible>`. A limiter without keys
    /// ([`Limiter::direct`](crate::Limiter)) goes with `.key(|_: &Request<_>| ())`.
    pub fn new(limiter: L) -> Self {
        Self::shared(Arc::new(limiter))
    }

    /// The same, with a limiter that is asked elsewhere too, and so is in an [`Arc`].
    pub fn shared(limiter: Arc<L>) -> Self {
        let answers = Answers::new(&limiter.describe(), PlainText);
        Self { limiter, extractor: PeerIp, answers }
    }
}

impl<L, E, R> RateLimitLayer<L, E, R> {
    /// The same, with the key of a request told by `extractor`: a closure from `&Request<_>`
    /// to any key of the limiter's, or a [`KeyExtractor`](super::KeyExtractor).
    #[must_use]
    pub fn key<E2>(self, extractor: E2) -> RateLimitLayer<L, E2, R> {
        let Self { limiter, answers, .. } = self;
        RateLimitLayer { limiter, extractor, answers }
    }

    /// The same, with refused requests answered by `refusal`: a closure from
    /// [`&Refusal`](super::Refusal) to a response, or a [`Refuse`](super::Refuse).
    #[must_use]
    pub fn refusal<R2>(self, refusal: R2) -> RateLimitLayer<L, E, R2> {
        let Self { limiter, extractor, answers } = self;
        RateLimitLayer { limiter, extractor, answers: answers.with_refusal(refusal) }
    }
}

impl<L, E: Clone, R: Clone> Clone for RateLimitLayer<L, E, R> {
    fn clone(&self) -> Self {
        Self {
            limiter: Arc::clone(&self.limiter),
            extractor: self.extractor.clone(),
            answers: self.answers.clone(),
        }
    }
}

impl<S, L, E: Clone, R: Clone> Layer<S> for RateLimitLayer<L, E, R> {
    type Service = RateLimit<S, L, E, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, layer: self.clone() }
    }
}
