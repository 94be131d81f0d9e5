//! The states of a store, to be written down and restored.

use super::key_hasher::KeyHasher;
use crate::algorithm::Algorithm;
use crate::clock::Tick;
use crate::error::{Error, Kind};
use serde::de::{Deserialize, Deserializer, Error as _};
use std::fmt;

/// The states of a store in process, so that a restart does not hand everybody a fresh budget: from
/// [`Limiter::snapshot`](crate::Limiter::snapshot) to
/// [`Limiter::restore`](crate::Limiter::restore), or from and to a
/// [`TieredMemory`](crate::TieredMemory).
///
/// `serde` writes it in any format that has whole numbers up to 2^64 - 1 and reads it again. (TOML
/// does not promise them, but the crate `toml` 1 has them.) It holds no keys, but the seed that
/// they are hashed under, so it is to be kept as a secret: whoever reads it can find keys that share
/// a budget, and test for any key whether it was in use; whoever writes it sets everybody's budget.
///
/// It has no checksum: one in which a number was changed, or from which keys are missing, may be
/// restored as it stands.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct Snapshot<T> {
    #[serde(deserialize_with = "known_format")]
    format: u32,
    seeds: [u64; 2],
    /// What [`KeyHasher::check`] tells under these seeds.
    check: u64,
    pub(super) dropped_at: Tick,
    /// Of a store with a cap, the state of all keys that there was no room for.
    pub(super) shared: Option<T>,
    /// Behind the fingerprints of their keys.
    pub(super) states: Vec<(u64, T)>,
}

/// Changes with what a snapshot holds, the states included.
const FORMAT: u32 = 1;

fn known_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        FORMAT => Ok(FORMAT),
        other => Err(D::Error::custom(format_args!(
            "a snapshot of format {other}, where {FORMAT} is the one that is known"
        ))),
    }
}

/// How far a clock may have been set back since a snapshot was taken.
const SET_BACK_MICROS: u64 = 3_600_000_000;
const TOO_LATE: &str = "it was taken more than an hour later than this program's clock";

const fn latest(now: Tick) -> Tick {
    now.saturating_add(SET_BACK_MICROS)
}

pub(super) fn refuse<R>(reason: &'static str) -> Result<R, Error> {
    Err(Kind::Snapshot(reason).into())
}

impl<T> Snapshot<T> {
    pub(super) fn new(
        hasher: &KeyHasher,
        dropped_at: Tick,
        shared: Option<T>,
        states: Vec<(u64, T)>,
    ) -> Self {
        let (seeds, check) = (hasher.seeds(), hasher.check());
        Self { format: FORMAT, seeds, check, dropped_at, shared, states }
    }

    /// What hashes keys as the old store did.
    pub(super) fn hasher(&self) -> Result<KeyHasher, Error> {
        let hasher = KeyHasher::with_seeds(self.seeds);
        if hasher.check() == self.check {
            return Ok(hasher);
        }
        refuse(
            "it is damaged, or was taken by a program that hashes keys otherwise, on another kind of \
             machine or with other versions of its libraries",
        )
    }

    /// Refuses states that `algorithm` does not write, or has not written by `now`.
    pub(crate) fn check_states<A>(&self, algorithm: &A, now: Tick) -> Result<(), Error>
    where
        A: Algorithm<State = T>,
    {
        let states = || self.shared.iter().chain(self.states.iter().map(|(_, state)| state));
        let fit = |latest| states().all(|state| algorithm.fits(state, latest));
        if !fit(Tick::MAX) {
            return refuse("its states are those of another set of limits");
        }
        if fit(latest(now)) { Ok(()) } else { refuse(TOO_LATE) }
    }

    /// Refuses to have dropped states later than `now`: keys without a state would stand still
    /// until then.
    pub(super) fn check_dropped_at(&self, now: Tick) -> Result<(), Error> {
        if self.dropped_at <= latest(now) { Ok(()) } else { refuse(TOO_LATE) }
    }

    /// How many keys have a state in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether no key has a state in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }
}

/// How many keys: neither the seeds nor the states.
impl<T> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("len", &self.len()).finish_non_exhaustive()
    }
}
