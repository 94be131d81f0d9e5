//! A part of a store: many small tables, one more at a time.

use super::table::{Found, Place, Table};
use crate::clock::Tick;
#[cfg(feature = "serde")]
use std::ops::Range;

/// The states of the keys of one shard, by their fingerprints.
///
/// The tables are a power of two, and some more into which the first of those have been split in their
/// order (linear hashing, after [Litwin](https://dl.acm.org/doi/10.5555/1286887.1286911)). The lowest
/// bits of a fingerprint choose between them; the lowest of all also tells a table's even or odd
/// number, so the tables need not keep it.
pub(super) struct Shard<T> {
    tables: Vec<Table<T>>,
    /// The bits that choose between the tables, when each of the first power of two is split.
    mask: usize,
    len: usize,
    /// How many keys have come in so far.
    insertions: u64,
    /// The latest instant at which states were dropped. They are fresh from there on, but need
    /// not be so at an earlier one: for keys without a state, time has come that far.
    pub(super) dropped_at: Tick,
    /// When room was last looked for.
    looked_at: Tick,
}

/// A shard has so many tables that each holds about as many keys, up to twice as many: few enough
/// to build one anew within microseconds.
pub(super) const KEYS_PER_TABLE: usize = 256;

/// The lowest 16 bits of a fingerprint choose the table.
const MAX_TABLES: usize = 1 << 16;

/// When there is no room for new keys, looking for it takes no longer than deciding on them.
const MICROS_BETWEEN_SWEEPS: u64 = 1_000;

/// Whether no table becomes much fuller than random fingerprints make it, in one shard, or in two,
/// four and so on, which these bits choose: what is done in a table takes time by how full it is.
#[cfg(feature = "serde")]
pub(super) fn are_spread(fingerprints: Vec<u64>, mut shard_bits: Range<u32>) -> bool {
    are_spread_in_one(&fingerprints)
        && shard_bits.next().is_none_or(|bit| {
            let is_of_one = |fingerprint: &u64| fingerprint >> bit & 1 == 1;
            let halves: (Vec<u64>, Vec<u64>) = fingerprints.into_iter().partition(is_of_one);
            are_spread(halves.0, shard_bits.clone()) && are_spread(halves.1, shard_bits)
        })
}

/// The tables of a shard have less than twice [`KEYS_PER_TABLE`] on average. Of random keys, more
/// than twice that average come together in one of them once in 10^75 times.
#[cfg(feature = "serde")]
#[allow(clippy::cast_possible_truncation, reason = "the lowest bits are all that is needed")]
fn are_spread_in_one(fingerprints: &[u64]) -> bool {
    let tables = 1 << (fingerprints.len() / KEYS_PER_TABLE).clamp(1, MAX_TABLES).ilog2();
    let most = 2 * (2 * KEYS_PER_TABLE).max(fingerprints.len() / tables);
    let mut lens = vec![0; tables];
    fingerprints.iter().all(|fingerprint| {
        let len = &mut lens[*fingerprint as usize & (tables - 1)];
        *len += 1;
        *len <= most
    })
}

/// A fingerprint without its lowest bit.
#[inline]
const fn tag(fingerprint: u64) -> u64 {
    fingerprint & !1
}

impl<T> Shard<T> {
    /// Of the fingerprints of keys, the largest.
    pub(super) const MAX_FINGERPRINT: u64 = Table::<T>::MAX_TAG | 1;

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Where this is what it was, no key has a state that had none.
    pub(super) const fn insertions(&self) -> u64 {
        self.insertions
    }

    #[inline(always)]
    fn table_index(&self, fingerprint: u64) -> usize {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the lowest bits are all that is needed"
        )]
        let bits = fingerprint as usize;
        let (index, index_if_whole) = (bits & self.mask, bits & (self.mask >> 1));
        // Which of them a processor could foresee for half of the keys only.
        let is_split = index < self.tables.len();
        std::hint::select_unpredictable(is_split, index, index_if_whole)
    }

    #[inline(always)]
    fn table(&self, fingerprint: u64) -> &Table<T> {
        &self.tables[self.table_index(fingerprint)]
    }

    /// Where the state of a key is looked for first.
    #[inline(always)]
    pub(super) fn find(&self, fingerprint: u64) -> Place<'_, T> {
        self.table(fingerprint).find(tag(fingerprint))
    }

    /// The state of a key.
    pub(super) fn lock_soon(&self, fingerprint: u64) -> Found<'_, T> {
        self.table(fingerprint).lock_soon(tag(fingerprint))
    }

    /// Whether it is too early to look for room again.
    pub(super) const fn has_been_searched(&self, now: Tick) -> bool {
        now.micros_since(self.looked_at) < MICROS_BETWEEN_SWEEPS
    }
}

impl<T: Default> Shard<T> {
    pub(super) fn new(dropped_at: Tick) -> Self {
        Self {
            tables: vec![Table::default(), Table::default()],
            mask: 0b11,
            len: 0,
            insertions: 0,
            dropped_at,
            looked_at: Tick::default(),
        }
    }

    /// Puts in the state of a key that has none. If its table is full, the states that are not to
    /// `keep` at `now` are dropped. Should `keep` panic, nothing has changed.
    pub(super) fn insert(
        &mut self,
        fingerprint: u64,
        state: T,
        now: Tick,
        keep: impl Fn(&T) -> bool,
    ) {
        let count = self.tables.len();
        if self.len >= count * KEYS_PER_TABLE && count < MAX_TABLES {
            let whole = self.mask >> 1;
            let apart = self.tables[count & whole].split(whole as u64 + 1);
            self.tables.push(apart);
            if count == self.mask {
                self.mask = 2 * self.mask + 1;
            }
        }
        let index = self.table_index(fingerprint);
        let dropped = self.tables[index].insert(tag(fingerprint), state, keep);
        self.len += 1;
        self.insertions += 1;
        self.dropped(dropped, now);
    }

    /// Drops what says nothing any more from a key's table and the one beside it, if that was not done
    /// just now.
    pub(super) fn make_room(&mut self, fingerprint: u64, now: Tick, keep: impl Fn(&T) -> bool) {
        if self.has_been_searched(now) {
            return;
        }
        self.looked_at = now;
        let index = self.table_index(fingerprint);
        let both = [index, index ^ 1];
        let expired = both.map(|index| Some(self.tables.get_mut(index)?.expired(&keep)));
        let dropped = both.into_iter().zip(&expired).filter_map(|(index, expired)| {
            Some(self.tables.get_mut(index)?.drop_in(expired.as_ref()?))
        });
        let dropped = dropped.sum();
        self.dropped(dropped, now);
    }

    /// Drops the states that are not to `keep`, and gives the memory back.
    pub(super) fn shrink(&mut self, now: Tick, keep: impl Fn(&T) -> bool) {
        let expired: Vec<_> = self.tables.iter_mut().map(|table| table.expired(&keep)).collect();
        let mut dropped = 0;
        for (table, expired) in self.tables.iter_mut().zip(&expired) {
            dropped += table.drop_in(expired);
            table.shrink_to_fit();
        }
        self.dropped(dropped, now);
        if self.len == 0 {
            *self = Self { insertions: self.insertions, ..Self::new(self.dropped_at) };
        }
    }

    fn dropped(&mut self, states: usize, now: Tick) {
        self.len -= states;
        if states > 0 {
            self.dropped_at = now;
        }
    }

    /// Each state, behind its key's fingerprint.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let tables = self.tables.iter_mut().enumerate();
        tables.flat_map(|(index, table)| {
            table.iter_mut().map(move |(tag, state)| (tag | (index & 1) as u64, state))
        })
    }

    /// Each state, behind its key's fingerprint.
    pub(super) fn into_states(self) -> impl Iterator<Item = (u64, T)> {
        let tables = self.tables.into_iter().enumerate();
        tables.flat_map(|(index, table)| {
            table.into_states().map(move |(tag, state)| (tag | (index & 1) as u64, state))
        })
    }
}
