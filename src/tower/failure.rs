use http::Response;
use std::convert::Infallible;

/// Says what becomes of a request that nobody could decide on, because the limiter's store
/// failed.
///
/// [`FailOpen`] and [`FailClosed`] do, and tell nobody but the `metrics` and `tracing` features. So
/// does a closure from the error, with its type written out. To pass requests on and log why:
///
/// ```
/// # use tollgate::tower::{OnStoreError, Undecided};
/// # fn assert_choice<E, B, F: OnStoreError<E, B>>(_: &F) {}
/// # assert_choice::<tollgate::Error, String, _>(
/// &|error: &tollgate::Error| {
///     eprintln!("not limited: {error}");
///     Undecided::PassOn
/// }
/// # );
/// ```
///
/// To answer them in your own way:
///
/// ```
/// use http::{Response, StatusCode};
/// use std::convert::Infallible;
/// use tollgate::tower::{OnStoreError, Undecided};
///
/// fn assert_choice<E, B, F: OnStoreError<E, B>>(_: &F) {}
///
/// assert_choice::<std::io::Error, String, _>(&|error: &std::io::Error| {
///     let mut response = Response::new(format!("not now: {error}"));
///     *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
///     Undecided::Answer(response)
/// });
/// ```
#[diagnostic::on_unimplemented(
    message = "a limiter that can fail with `{E}` needs a choice for when it does",
    label = "say `.on_store_error(FailOpen)`, `.on_store_error(FailClosed)` or \
             `.on_store_error(|error: &{E}| ...)` on the layer"
)]
pub trait OnStoreError<E, B> {
    /// What becomes of the request.
    fn on_store_error(&self, error: &E) -> Undecided<B>;
}

/// What becomes of a request that nobody could decide on.
#[derive(Debug)]
pub enum Undecided<B> {
    /// It goes on to the service, without a decision or `RateLimit` fields of this layer.
    PassOn,
    /// The layer answers 503 Service Unavailable with `Retry-After: 1`, in the form of its refusals.
    Unavailable,
    /// The layer answers so, and adds nothing. A status that means success becomes 503, unless it is
    /// an answer of gRPC (with `grpc-status`).
    Answer(Response<B>),
}

#[diagnostic::do_not_recommend]
impl<F, E, B> OnStoreError<E, B> for F
where
    F: Fn(&E) -> Undecided<B>,
{
    fn on_store_error(&self, error: &E) -> Undecided<B> {
        self(error)
    }
}

/// Passes requests on while the store fails: it is better to serve too many than none.
///
/// Such a request has no [`Decision`](crate::Decision) of this layer in its extensions, and a handler in axum
/// that looks for one takes an `Option<Extension<Decision>>`: with an `Extension<Decision>` it
/// would answer 500.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FailOpen;

impl<E, B> OnStoreError<E, B> for FailOpen {
    fn on_store_error(&self, _error: &E) -> Undecided<B> {
        Undecided::PassOn
    }
}

/// Answers 503 Service Unavailable with `Retry-After: 1` while the store fails: it is better to
/// serve none than too many.
///
/// A request that Redis did not answer in time may still be charged later.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FailClosed;

impl<E, B> OnStoreError<E, B> for FailClosed {
    fn on_store_error(&self, _error: &E) -> Undecided<B> {
        Undecided::Unavailable
    }
}

/// The choice for limiters in process, which cannot fail; the default. A limiter that can needs
/// another: [`RateLimitLayer::on_store_error`](super::RateLimitLayer::on_store_error).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NeverFails;

impl<B> OnStoreError<Infallible, B> for NeverFails {
    fn on_store_error(&self, error: &Infallible) -> Undecided<B> {
        match *error {}
    }
}
