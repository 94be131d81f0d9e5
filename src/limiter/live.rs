use super::limits::{Limits, Source, Uniform};
use crate::algorithm::{Algorithm, Description};
use parking_lot::RwLock;
use std::mem;
use std::ops::Deref;
use std::sync::Arc;

/// What becomes of the units that are used, when limits are replaced.
///
/// Units that are held by a [`Reservation`](super::Reservation) are used like any others: where they
/// are changed or forgotten here, it gives back what it has taken all the same.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Carry {
    /// They stay used: of 100 with 60 used, 200 leave 140 and 20 leave none. What was used beyond
    /// the new limit is a debt: see [`Limiter::debit`](super::Limiter::debit). In a
    /// [`Policy`](crate::Policy), a limit is told from others by its name, or else by its text; of those
    /// that have changed, the first stands for the first, if there are as many: to swap two without
    /// names swaps what they have used.
    ///
    /// What says nothing any more under the limits that hold may be forgotten when its place is
    /// needed: after a second of 10 a second, 1,000 a day may be fresh again for some keys. A
    /// [`TieredMemory`](crate::TieredMemory) keeps them as long as the limits that they were
    /// taken by.
    #[default]
    AsIs,
    /// The same part of the new limit is used, rounded up, as if it had been taken now: of 100 with
    /// 60 used, 200 leave 80 and 20 leave 8. Where it is not clear which old limit
    /// of a set a new one stands for, as [`AsIs`](Self::AsIs).
    InProportion,
    /// Nothing is used.
    Reset,
}

/// Limits that can be replaced while they are in use: see [`Limiter::live`](super::Limiter::live).
#[derive(Debug)]
pub struct Live<A>(RwLock<Arc<A>>);

impl<A> Live<A> {
    /// Limits that hold until they are replaced.
    pub fn new(algorithm: A) -> Self {
        Self(RwLock::new(Arc::new(algorithm)))
    }

    /// The limits that hold now.
    pub fn get(&self) -> Arc<A> {
        Arc::clone(&self.0.read())
    }

    /// Puts `new` in the place of the limits, while no decision is being made, and before the next
    /// one does what `carry` does with the old ones and the new ones. Should `carry` panic, the new
    /// limits hold all the same: some states may be theirs already.
    pub(super) fn replace(&self, new: A, carry: impl FnOnce(&A, &A)) {
        let mut current = self.0.write();
        let old = mem::replace(&mut *current, Arc::new(new));
        carry(&old, &current);
    }
}

impl<A: Algorithm> Source for Live<A> {
    type Algorithm = A;

    fn describe(&self) -> Vec<Description> {
        self.get().describe()
    }
}

impl<A: Algorithm> Uniform for Live<A> {}

impl<A: Algorithm, K: ?Sized> Limits<K> for Live<A> {
    fn with<R>(&self, _key: &K, decide: impl FnOnce(&A) -> R) -> R {
        decide(&self.0.read())
    }

    fn get(&self, _key: &K) -> impl Deref<Target = A> + Send {
        Self::get(self)
    }

    fn describe_for(&self, _key: &K) -> Option<Vec<Description>> {
        Some(Source::describe(self))
    }
}
