//! Instants at which units were taken, in a queue that is read and changed in any place.

use super::packed::{Packed, Pairs};
use crate::clock::Tick;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::iter;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

/// Entries in the order of their instants, in chunks of `CHUNK` bytes. A question walks along the
/// chunks and reads one of them. A change empties chunks as a whole and writes at most two anew;
/// empty chunks are at the front until they are freed.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries<const CHUNK: usize = 4_096> {
    /// The full chunks; shared with clones until one of them changes.
    full: Option<Arc<VecDeque<Chunk>>>,
    /// The instant of the first entry behind the full chunks.
    first: Tick,
    /// The entries from there to the newest: of each the time to the next one, and its units.
    open: Packed,
    /// Of 0 units if there is no entry.
    newest: Entry,
    /// The units of all entries.
    total: u64,
}

/// So many empty chunks. To free a chunk takes a hundred times as long as to walk past it, so others
/// are left to later changes.
const FREED_AT_ONCE: usize = 32;

/// Units that were taken at an instant.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Entry {
    pub(super) taken_at: Tick,
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::serde::units"))]
    pub(super) units: u64,
}

#[derive(Clone, Debug)]
struct Chunk {
    /// The instant of the first entry that is left.
    first: Tick,
    /// The units of the entries that are left.
    units: u64,
    /// How many bytes at the front are of entries that have expired.
    expired: usize,
    /// As `open`. The time to the next chunk does not count, as that has its own instant.
    bytes: Arc<[u8]>,
}

/// The entry that was searched, if `up_to` is not 0.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) taken_at: Tick,
    /// Units up to this entry, its own included.
    pub(super) up_to: u64,
}

impl Found {
    /// The last of these for which it holds, behind so many units.
    #[inline]
    fn last(
        before: u64,
        entries: impl Iterator<Item = Entry>,
        holds: impl Fn(Tick, u64) -> bool,
    ) -> Self {
        let mut found = Self { taken_at: Tick::default(), up_to: before };
        for Entry { taken_at, units } in entries {
            if !holds(taken_at, found.up_to) {
                break;
            }
            found = Self { taken_at, up_to: found.up_to + units };
        }
        found
    }
}

impl<const CHUNK: usize> Entries<CHUNK> {
    pub(super) const fn newest(&self) -> Entry {
        self.newest
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> {
        self.chunks().flat_map(Chunk::entries).chain(self.open_entries())
    }

    fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.full.iter().flat_map(|full| full.iter())
    }

    fn open_entries(&self) -> impl Iterator<Item = Entry> {
        let older = entries(self.first, self.open.as_slice());
        older.chain((self.newest.units > 0).then_some(self.newest))
    }

    /// The last entry for which this holds, given its instant and the units before it; it holds for
    /// all older ones too.
    pub(super) fn last(&self, holds: impl Fn(Tick, u64) -> bool) -> Found {
        let mut before = 0;
        if let Some(full) = &self.full {
            let nexts = full.iter().skip(1).map(|chunk| chunk.first).chain([self.first]);
            for (chunk, next) in full.iter().zip(nexts) {
                if !holds(next, before + chunk.units) {
                    return Found::last(before, chunk.entries(), holds);
                }
                before += chunk.units;
            }
        }
        Found::last(before, self.open_entries(), holds)
    }

    /// Adds an entry that is not older than the newest one; its units are not 0.
    pub(super) fn push(&mut self, entry: Entry) {
        self.total += entry.units;
        if self.newest.units == 0 {
            self.first = entry.taken_at;
            self.newest = entry;
        } else if self.newest.taken_at == entry.taken_at {
            self.newest.units += entry.units;
        } else {
            let to_next = entry.taken_at.micros_since(self.newest.taken_at);
            self.open.push(to_next, self.newest.units);
            self.newest = entry;
            if self.open.as_slice().len() >= CHUNK {
                self.close();
            }
        }
    }

    #[cold]
    fn close(&mut self) {
        let full = Arc::make_mut(self.full.get_or_insert_default());
        let before = full.iter().map(|chunk| chunk.units).sum::<u64>();
        if full.len() == full.capacity() {
            full.reserve_exact(1 + full.len() / 4);
        }
        full.push_back(Chunk {
            first: self.first,
            units: self.total - self.newest.units - before,
            expired: 0,
            bytes: mem::take(&mut self.open).as_slice().into(),
        });
        self.first = self.newest.taken_at;
    }

    /// Forgets the oldest entries for whose instants this holds.
    pub(super) fn expire(&mut self, has_expired: impl Fn(Tick) -> bool) {
        self.expire_full(&has_expired);
        let (left, units) = skip(self.open.as_slice(), &mut self.first, &has_expired);
        self.open.leave(left);
        self.total -= units;
        if has_expired(self.newest.taken_at) {
            self.total -= mem::take(&mut self.newest.units);
        }
        self.open.shrink();
    }

    fn expire_full(&mut self, has_expired: impl Fn(Tick) -> bool) {
        let Some(full) = &mut self.full else { return };
        if !has_expired(full[0].first) {
            return;
        }
        let full = Arc::make_mut(full);
        let next = |index| full.get(index).map_or(self.first, |chunk: &Chunk| chunk.first);
        let expired = (1..=full.len()).take_while(|&index| has_expired(next(index))).count();
        self.total -= full.range_mut(..expired).map(Chunk::clear).sum::<u64>();
        if let Some(chunk) = full.get_mut(expired) {
            self.total -= chunk.expire(has_expired);
        }
        let empty = full.iter().take(FREED_AT_ONCE).take_while(|chunk| chunk.units == 0).count();
        full.drain(..empty);
        if full.is_empty() {
            self.full = None;
        }
    }

    /// Forgets the units of these ranks; the oldest unit's is 0.
    pub(super) fn forget(&mut self, ranks: Range<u64>) {
        if ranks.end <= self.chunks().map(|chunk| chunk.units).sum() {
            return self.forget_in_full(&ranks);
        }
        let (mut before, mut later) = (self.total, Vec::new());
        while before > ranks.start && self.newest.units > 0 {
            before -= self.newest.units;
            let forgotten = overlap(before, self.newest.units, &ranks);
            self.newest.units -= forgotten;
            self.total -= forgotten;
            if before > ranks.start || self.newest.units == 0 {
                let left = self.pop();
                if left.units > 0 {
                    later.push(left);
                }
            }
        }
        if before > ranks.start {
            self.forget_in_full(&ranks);
        }
        later.into_iter().rev().for_each(|entry| self.push(entry));
        if self.newest.units == 0 && self.total > 0 {
            self.open_last();
        }
    }

    /// Takes the newest of the entries that are not in full chunks.
    fn pop(&mut self) -> Entry {
        let newest = self.newest;
        let (to_next, units) = self.open.pop().unwrap_or_default();
        let taken_at = Tick::from_stored(newest.taken_at.as_micros() - to_next);
        self.newest = Entry { taken_at, units };
        self.total -= newest.units;
        newest
    }

    fn forget_in_full(&mut self, ranks: &Range<u64>) {
        let Some(full) = &mut self.full else { return };
        let full = Arc::make_mut(full).make_contiguous();
        let (mut before, mut emptied, mut end) = (0, 0, 0);
        for (index, chunk) in full.iter_mut().enumerate() {
            let units = chunk.units;
            let forgotten = overlap(before, units, ranks);
            before += units;
            self.total -= forgotten;
            if forgotten == 0 {
                continue;
            }
            if forgotten < units {
                *chunk = chunk.without(before - units, ranks);
            } else {
                chunk.clear();
                (emptied, end) = (emptied + 1, index + 1);
            }
        }
        full[..end].rotate_right(emptied);
    }

    /// Makes the last full chunk the open one, if that has no entries.
    fn open_last(&mut self) {
        let Some(full) = &mut self.full else { return };
        let full = Arc::make_mut(full);
        let last = full.pop_back();
        if full.is_empty() {
            self.full = None;
        }
        if let Some(chunk) = last {
            self.total -= chunk.units;
            chunk.entries().for_each(|entry| self.push(entry));
        }
    }
}

impl<const CHUNK: usize> PartialEq for Entries<CHUNK> {
    fn eq(&self, other: &Self) -> bool {
        self.total == other.total && self.iter().eq(other.iter())
    }
}

impl<const CHUNK: usize> Eq for Entries<CHUNK> {}

impl<const CHUNK: usize> Hash for Entries<CHUNK> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.total.hash(hasher);
    }
}

impl Chunk {
    fn left(&self) -> &[u8] {
        &self.bytes[self.expired..]
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        entries(self.first, self.left())
    }

    /// Leaves no entries, and returns the units that they had.
    fn clear(&mut self) -> u64 {
        (self.first, self.expired) = (Tick::default(), self.bytes.len());
        mem::take(&mut self.units)
    }

    /// Leaves out the entries at the front for whose instants this holds, and returns their units.
    fn expire(&mut self, has_expired: impl Fn(Tick) -> bool) -> u64 {
        let (left, units) = skip(&self.bytes[self.expired..], &mut self.first, has_expired);
        self.expired = self.bytes.len() - left;
        self.units -= units;
        if self.units == 0 {
            self.clear();
        }
        units
    }

    /// The same without units of these ranks, behind so many units; some are left. What is packed of
    /// the entries before and behind is copied.
    fn without(&self, mut before: u64, ranks: &Range<u64>) -> Self {
        let (left, units) = (self.left(), self.units - overlap(before, self.units, ranks));
        let mut rest = Entries::<{ usize::MAX }> { first: self.first, ..Entries::default() };
        let (mut head, mut tail) = (0, left.len());
        for (start, entry) in places(self.first, left) {
            let forgotten = overlap(before, entry.units, ranks);
            let is_behind = before >= ranks.end;
            before += entry.units;
            if before <= ranks.start {
                (head, rest.newest) = (start, entry);
            } else if forgotten < entry.units {
                rest.push(Entry { units: entry.units - forgotten, ..entry });
            }
            if is_behind {
                tail = start;
                break;
            }
        }
        if tail == left.len() {
            rest.open.push(0, rest.newest.units);
        }
        let bytes = [&left[..head], rest.open.as_slice(), &left[tail..]].concat();
        Self { first: rest.first, units, expired: 0, bytes: bytes.into() }
    }
}

fn entries(first: Tick, bytes: &[u8]) -> impl Iterator<Item = Entry> {
    places(first, bytes).map(|(_, entry)| entry)
}

/// Each entry, and where its bytes begin.
fn places(first: Tick, bytes: &[u8]) -> impl Iterator<Item = (usize, Entry)> {
    let (mut taken_at, mut left) = (first, Pairs(bytes));
    iter::from_fn(move || {
        let start = bytes.len() - left.0.len();
        let (to_next, units) = left.next()?;
        let entry = Entry { taken_at, units };
        taken_at = taken_at.plus(to_next);
        Some((start, entry))
    })
}

/// Moves the first instant behind those for which this holds, and returns how many bytes are left
/// then, and the units before.
fn skip(bytes: &[u8], first: &mut Tick, has_expired: impl Fn(Tick) -> bool) -> (usize, u64) {
    let (mut left, mut skipped) = (Pairs(bytes), 0);
    while has_expired(*first)
        && let Some((to_next, units)) = left.next()
    {
        *first = first.plus(to_next);
        skipped += units;
    }
    (left.0.len(), skipped)
}

/// How many units of an entry or a chunk, behind so many, are of these ranks.
fn overlap(before: u64, units: u64, ranks: &Range<u64>) -> u64 {
    (before + units).min(ranks.end).saturating_sub(before.max(ranks.start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    /// As the entries, in the plainest way.
    #[derive(Clone, Default)]
    struct Plain(Vec<Entry>);

    impl Plain {
        fn push(&mut self, Entry { taken_at, units }: Entry) {
            match self.0.last_mut() {
                Some(last) if last.taken_at == taken_at => last.units += units,
                _ => self.0.push(Entry { taken_at, units }),
            }
        }

        fn forget(&mut self, ranks: Range<u64>) {
            let mut rank = 0;
            for entry in &mut self.0 {
                let units = rank..rank + entry.units;
                rank += entry.units;
                entry.units = units.filter(|rank| !ranks.contains(rank)).count() as u64;
            }
            self.0.retain(|entry| entry.units > 0);
        }

        fn last(&self, holds: impl Fn(Tick, u64) -> bool) -> Found {
            let mut found = Found { taken_at: Tick::default(), up_to: 0 };
            for &Entry { taken_at, units } in &self.0 {
                if holds(taken_at, found.up_to) {
                    found = Found { taken_at, up_to: found.up_to + units };
                }
            }
            found
        }

        fn total(&self) -> u64 {
            self.0.iter().map(|entry| entry.units).sum()
        }
    }

    #[derive(Clone, Debug)]
    enum Change {
        Push(u64, u64),
        /// What is older than this share of the time.
        Expire(u64),
        /// From this share of the units on.
        Forget(u64, u64),
        Clone,
    }

    fn change() -> impl Strategy<Value = Change> {
        let to_next = prop_oneof![1 => Just(0), 4 => 1_u64..300, 1 => 1_u64..100_000];
        let units = prop_oneof![3 => Just(1_u64), 1 => 1_u64..500];
        let few = prop_oneof![2 => 1_u64..4, 1 => 1_u64..2_000];
        prop_oneof![
            20 => (to_next, units).prop_map(|(to_next, units)| Change::Push(to_next, units)),
            1 => (0_u64..=110).prop_map(Change::Expire),
            2 => (0_u64..=100, few).prop_map(|(share, n)| Change::Forget(share, n)),
            1 => Just(Change::Clone),
        ]
    }

    fn at(micros: u64) -> Tick {
        Tick::from_micros(micros)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(1_000)
        })]

        #[test]
        fn entries_are_those_of_a_plain_list(
            changes in prop::collection::vec(change(), 1..400),
        ) {
            let (mut entries, mut plain) = (Entries::<12>::default(), Plain::default());
            let (mut now, mut clones) = (1_000_000, Vec::new());
            for change in changes {
                match change {
                    Change::Push(to_next, units) => {
                        now += to_next;
                        let entry = Entry { taken_at: at(now), units };
                        entries.push(entry);
                        plain.push(entry);
                    }
                    Change::Expire(share) => {
                        let oldest = plain.0.first().map_or(now, |entry| entry.taken_at.as_micros());
                        let expired = at(oldest + (now - oldest) * share / 100);
                        entries.expire(|taken_at| taken_at < expired);
                        plain.0.retain(|entry| entry.taken_at >= expired);
                    }
                    Change::Forget(share, n) => {
                        let start = plain.total() * share / 100;
                        let ranks = start..plain.total().min(start + n);
                        entries.forget(ranks.clone());
                        plain.forget(ranks);
                    }
                    Change::Clone => clones.push((entries.clone(), plain.clone())),
                }
                prop_assert!(entries.iter().eq(plain.0.iter().copied()));
                prop_assert_eq!(entries.total(), plain.total());
                let newest = plain.0.last().copied().unwrap_or_default();
                prop_assert!(entries.newest() == newest || newest.units == entries.newest().units);
                for share in [0, 1, 30, 50, 99, 100] {
                    let rank = plain.total() * share / 100;
                    let taken_at = plain.last(|_, before| before < rank).taken_at;
                    for instant in [taken_at.plus(0), taken_at.plus(1)] {
                        let is_older = |taken_at, _| taken_at < instant;
                        prop_assert_eq!(entries.last(is_older), plain.last(is_older));
                    }
                    let is_within = |_, before| before < rank;
                    prop_assert_eq!(entries.last(is_within), plain.last(is_within));
                }
            }
            for (entries, plain) in clones {
                prop_assert!(entries.iter().eq(plain.0.iter().copied()));
            }
        }
    }

    fn a_million() -> Entries {
        let mut entries = Entries::default();
        (0..1_000_000).for_each(|n| entries.push(Entry { taken_at: at(n * 3_600), units: 2 }));
        entries
    }

    /// How many chunks a log has, and how many of them another has too.
    fn shared(entries: &Entries, other: &Entries) -> (usize, usize) {
        let is_shared =
            |chunk: &&Chunk| other.chunks().any(|other| Arc::ptr_eq(&chunk.bytes, &other.bytes));
        (entries.chunks().count(), entries.chunks().filter(is_shared).count())
    }

    #[test]
    fn a_question_reads_one_chunk_of_a_million_entries() {
        let entries = a_million();
        let pairs = entries.chunks().map(|chunk| chunk.entries().count()).max().unwrap();
        for rank in [0, 1, 1_000, 1_000_000, 1_999_999, 2_000_000] {
            let steps = Cell::new(0);
            let _ = entries.last(|_, before| {
                steps.set(steps.get() + 1);
                before < rank
            });
            assert!(steps.get() <= entries.chunks().count() + pairs + 2, "{rank}: {steps:?}");
        }
    }

    #[test]
    fn a_change_writes_two_chunks_of_a_million_entries() {
        let before = a_million();
        let (chunks, _) = shared(&before, &before);
        assert!(chunks > 700);
        for ranks in [0..1, 1_000_000..1_000_001, 999_999..1_000_003, 500_000..1_500_000] {
            let mut entries = before.clone();
            entries.forget(ranks.clone());
            assert!(shared(&entries, &before).1 >= chunks - 2, "{ranks:?}");
        }
    }

    #[test]
    fn memory_is_freed_by_and_by() {
        let mut entries = a_million();
        let (mut chunks, _) = shared(&entries, &entries);
        while chunks > 0 {
            entries.expire(|_| true);
            let (left, _) = shared(&entries, &entries);
            assert_eq!((left, entries.total()), (chunks.saturating_sub(FREED_AT_ONCE), 0));
            chunks = left;
        }
    }
}
