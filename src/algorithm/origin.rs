//! When units were taken that are given back.

use crate::clock::Tick;
use std::sync::OnceLock;

/// When units were taken that are given back, and how each limit stood then: see
/// [`Algorithm::give_back`](super::Algorithm::give_back).
#[derive(Copy, Clone, Debug)]
pub struct Origin<'r> {
    taken_at: Tick,
    fresh_after: &'r [u64],
}

impl<'r> Origin<'r> {
    /// When they were taken.
    #[must_use]
    pub const fn taken_at(&self) -> Tick {
        self.taken_at
    }

    /// When the limit would have been fresh if they had not been.
    #[must_use]
    pub fn fresh_at(&self) -> Tick {
        self.taken_at.saturating_add(self.fresh_after.first().copied().unwrap_or_default())
    }

    /// Of each limit, microseconds from then on.
    #[cfg(feature = "redis")]
    pub(crate) const fn fresh_after(&self) -> &'r [u64] {
        self.fresh_after
    }

    /// The same for the first so many limits, and for those behind them.
    pub(super) fn split(origin: Option<Self>, limits: usize) -> [Option<Self>; 2] {
        let parts = origin.map(|Self { taken_at, fresh_after }| {
            let (first, others) = fresh_after.split_at(limits.min(fresh_after.len()));
            [first, others].map(|fresh_after| Self { taken_at, fresh_after })
        });
        parts.map_or([None, None], |parts| parts.map(Some))
    }
}

/// What [`Operation::Reserve`](crate::Operation::Reserve) has taken, for
/// [`Operation::Settle`](crate::Operation::Settle).
#[derive(Debug, Default)]
pub struct Receipt(OnceLock<Taken>);

#[derive(Debug)]
struct Taken {
    units: u64,
    at: Tick,
    /// Of each limit, as it was before.
    fresh_after: Vec<u64>,
}

impl Receipt {
    /// A receipt for nothing so far.
    #[must_use]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The units that were taken; 0 where they were refused.
    #[must_use]
    pub fn units(&self) -> u64 {
        self.0.get().map_or(0, |taken| taken.units)
    }

    /// When they were taken, if they were.
    #[must_use]
    pub fn origin(&self) -> Option<Origin<'_>> {
        let taken = self.0.get()?;
        Some(Origin { taken_at: taken.at, fresh_after: &taken.fresh_after })
    }

    /// Only the first time counts.
    pub(crate) fn set(&self, units: u64, at: Tick, fresh_after: Vec<u64>) {
        let _ = self.0.set(Taken { units, at, fresh_after });
    }
}
