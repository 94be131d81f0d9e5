//! A hash table for states: nearly full, and built anew in small steps.

use super::prefetch::prefetch_three_lines_to_write;
use super::slot::{Slot, SlotGuard};
use std::iter::repeat_n;
use wide::{CmpEq, i8x16};

/// States by their tag, in the order of the tags, which are even numbers.
///
/// Each state lies at the place that its tag has in proportion, or as soon behind it as the order
/// allows: linear probing in order, after
/// [Amble and Knuth](https://doi.org/10.1093/comjnl/17.2.135). So the table can be more than nine
/// tenths full, a search for what is not there ends at the first larger tag, and the table grows by a
/// seventh at a time.
///
/// How far behind, no processor can foresee. So what is there is found by its mark, without a branch:
/// sixteen of them are compared at once.
pub(super) struct Table<T> {
    slots: Box<[Slot<T>]>,
    /// The mark of what is at each place, and as many more as are looked at behind the last one.
    marks: Box<[i8]>,
    /// How many of the places are in proportion to tags; the others are behind them.
    homes: u32,
    len: u32,
}

/// The tag of a vacant place, which no key has: the largest of all.
const VACANT: u64 = u64::MAX - 1;

const MARKS_AT_ONCE: usize = 16;

/// States that are looked at before all are swept: where a tenth are not to be kept, they tell in 29 of 30
/// cases.
const SAMPLES: usize = 32;

impl<T: Default> Default for Slot<T> {
    fn default() -> Self {
        Self::new(VACANT, T::default())
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Box::default(), marks: Box::default(), homes: 0, len: 0 }
    }
}

/// Bits of a tag that do not say where it is in proportion, nor in which table of which shard.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "eight bits of it are wanted")]
const fn mark(tag: u64) -> i8 {
    (tag >> 24) as i8
}

/// The place that `tag` has in proportion.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the product's upper half is below `homes`")]
const fn home(tag: u64, homes: u32) -> usize {
    (((tag >> 32) * homes as u64) >> 32) as usize
}

impl<T> Table<T> {
    pub(super) const MAX_TAG: u64 = VACANT - 2;

    /// Where the state with this tag, which is at most [`MAX_TAG`](Self::MAX_TAG), is looked for
    /// first.
    #[inline(always)]
    pub(super) fn find(&self, tag: u64) -> Place<'_, T> {
        let home = home(tag, self.homes);
        // It is there, or not far behind.
        prefetch_three_lines_to_write(self.slots.as_ptr().wrapping_add(home));
        Place { table: self, home, tag }
    }

    /// The state with this tag.
    pub(super) fn lock_soon(&self, tag: u64) -> Found<'_, T> {
        // A word is its slot's tag or, while that is locked, one more.
        let mut behind = self.slots[home(tag, self.homes)..].iter();
        match behind.find(|slot| slot.word() >= tag) {
            Some(slot) if slot.word() - tag <= 1 => {
                slot.lock_soon(tag).map_or(Found::Busy, Found::State)
            }
            _ => Found::Nothing,
        }
    }
}

/// What there is for a key.
pub(super) enum Found<'a, T> {
    State(SlotGuard<'a, T>),
    /// A state that others keep locked. To wait for it, a lock that is held meanwhile is given back
    /// first, so that nobody else waits for both.
    Busy,
    Nothing,
}

/// Where a state is, if it is there.
pub(super) struct Place<'a, T> {
    table: &'a Table<T>,
    /// The first place that it can be in.
    home: usize,
    tag: u64,
}

impl<'a, T> Place<'a, T> {
    /// The state, if it is the first with its mark, and not far behind its home, and nobody has it: as
    /// 99 of 100 are.
    #[inline(always)]
    pub(super) fn try_lock(&self) -> Option<SlotGuard<'a, T>> {
        let Table { slots, marks, .. } = self.table;
        let marks = marks.get(self.home..self.home + MARKS_AT_ONCE)?.try_into().ok()?;
        let same = i8x16::new(marks).cmp_eq(i8x16::splat(mark(self.tag))).move_mask();
        let first = self.home + std::num::NonZero::new(same)?.trailing_zeros() as usize;
        slots.get(first)?.try_lock(self.tag)
    }
}

impl<T: Default> Table<T> {
    /// Each state, behind its tag.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let taken = self.slots.iter_mut().filter_map(|slot| {
            let tag = slot.tag();
            (tag != VACANT).then_some((tag, slot))
        });
        taken.map(|(tag, slot)| (tag, slot.get_mut()))
    }

    /// Puts in the state with a tag that has none. Where there is no room, the states that are not
    /// to `keep` are dropped, unless they are few; returns how many.
    pub(super) fn insert(&mut self, tag: u64, state: T, keep: impl Fn(&T) -> bool) -> usize {
        let Err(slot) = self.put(Slot::new(tag, state)) else { return 0 };
        // Where keys only come in, there is nothing to sweep. Tags say nothing of a state, so the first
        // ones tell of all.
        let drops_any = !self.iter_mut().take(SAMPLES).all(|(_, state)| keep(state));
        let dropped = if drops_any { self.sweep(keep) } else { 0 };
        // So much room that the next sweep is as many keys away as this one has cost.
        let wanted = homes_for(self.len + 1);
        let homes = if wanted < self.homes / 4 { self.homes / 2 } else { wanted.max(self.homes) };
        let end_is_taken = self.slots.last_mut().is_none_or(|slot| slot.tag() != VACANT);
        if homes != self.homes || end_is_taken {
            self.resize(homes);
        }
        assert!(self.put(slot).is_ok(), "there is room");
        dropped
    }

    /// Puts a slot into its place, and moves those behind it up to the next vacant place.
    fn put(&mut self, mut slot: Slot<T>) -> Result<(), Slot<T>> {
        if self.len * 13 >= self.homes * 12 {
            return Err(slot);
        }
        let tag = slot.tag();
        let home = home(tag, self.homes);
        let mut behind = self.slots[home..].iter_mut();
        let Some(before) = behind.position(|other| other.tag() > tag) else { return Err(slot) };
        let first = home + before;
        let mut behind = self.slots[first..].iter_mut();
        let Some(moved) = behind.position(|slot| slot.tag() == VACANT) else { return Err(slot) };
        for place in &mut self.slots[first..=first + moved] {
            std::mem::swap(place, &mut slot);
        }
        self.marks.copy_within(first..first + moved, first + 1);
        self.marks[first] = mark(tag);
        self.len += 1;
        Ok(())
    }

    /// Drops the states that are not to `keep`; returns how many.
    pub(super) fn sweep(&mut self, keep: impl Fn(&T) -> bool) -> usize {
        let expired = self.expired(keep);
        self.drop_in(&expired)
    }

    /// The places of the states that are not to `keep`. All are asked before anything moves: `keep`
    /// calls the algorithm, which may panic.
    pub(super) fn expired(&mut self, keep: impl Fn(&T) -> bool) -> Places {
        let mut expired = Places::default();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.tag() != VACANT && !keep(slot.get_mut()) {
                expired.insert(index);
            }
        }
        expired
    }

    /// Drops the states in these places; returns how many.
    pub(super) fn drop_in(&mut self, expired: &Places) -> usize {
        let (mut dropped, mut end) = (0, 0);
        for index in 0..self.slots.len() {
            let tag = self.slots[index].tag();
            if tag == VACANT {
                continue;
            }
            let to = home(tag, self.homes).max(end);
            if expired.contains(index) {
                self.slots[index] = Slot::default();
                self.len -= 1;
                dropped += 1;
                continue;
            }
            if to != index {
                self.slots[to] = std::mem::take(&mut self.slots[index]);
                self.marks[to] = mark(tag);
            }
            end = to + 1;
        }
        dropped
    }

    fn resize(&mut self, homes: u32) {
        let mut table = Builder::new(homes);
        std::mem::take(self).taken().for_each(|slot| table.push(slot));
        *self = table.finish();
    }

    fn taken(self) -> impl Iterator<Item = Slot<T>> {
        self.slots.into_iter().filter_map(|mut slot| (slot.tag() != VACANT).then_some(slot))
    }

    /// Each state, behind its tag.
    pub(super) fn into_states(self) -> impl Iterator<Item = (u64, T)> {
        self.taken().map(|mut slot| (slot.tag(), slot.into_state()))
    }

    /// Parts with the states that have this `bit` in their tags.
    pub(super) fn split(&mut self, bit: u64) -> Self {
        let mut lens = [0, 0];
        self.iter_mut().for_each(|(tag, _)| lens[usize::from(tag & bit != 0)] += 1);
        let [mut left, mut apart] = lens.map(|len| Builder::new(homes_for(len)));
        for mut slot in std::mem::take(self).taken() {
            if slot.tag() & bit == 0 { left.push(slot) } else { apart.push(slot) }
        }
        *self = left.finish();
        apart.finish()
    }

    /// Gives back what room it does not need.
    pub(super) fn shrink_to_fit(&mut self) {
        if self.len == 0 {
            *self = Self::default();
        } else {
            self.resize(homes_for(self.len));
        }
    }
}

/// A set of places: without memory of its own, unless a table is larger than it is meant to be.
#[derive(Default)]
pub(super) struct Places {
    first: [u64; 16],
    others: Vec<usize>,
}

impl Places {
    /// Adds a place that lies behind all those in it.
    fn insert(&mut self, place: usize) {
        match self.first.get_mut(place / 64) {
            Some(word) => *word |= 1 << (place % 64),
            None => self.others.push(place),
        }
    }

    fn contains(&self, place: usize) -> bool {
        match self.first.get(place / 64) {
            Some(word) => word >> (place % 64) & 1 == 1,
            None => self.others.binary_search(&place).is_ok(),
        }
    }
}

/// A table that is built of slots in the order of their tags.
struct Builder<T> {
    slots: Vec<Slot<T>>,
    homes: u32,
    len: u32,
}

impl<T: Default> Builder<T> {
    fn new(homes: u32) -> Self {
        Self { slots: Vec::with_capacity(places_for(homes)), homes, len: 0 }
    }

    fn push(&mut self, mut slot: Slot<T>) {
        let home = home(slot.tag(), self.homes);
        if self.slots.len() < home {
            self.slots.resize_with(home, Slot::default);
        }
        self.slots.push(slot);
        self.len += 1;
    }

    /// The table; its last place is vacant.
    fn finish(self) -> Table<T> {
        let Self { mut slots, homes, len } = self;
        let places = places_for(homes).max(slots.len() + 1);
        slots.reserve_exact(places - slots.len());
        slots.resize_with(places, Slot::default);
        let marks = slots.iter_mut().map(|slot| mark(slot.tag()));
        let marks = marks.chain(repeat_n(0, MARKS_AT_ONCE - 1)).collect();
        Table { slots: slots.into_boxed_slice(), marks, homes, len }
    }
}

/// Places with those behind the last one in proportion.
const fn places_for(homes: u32) -> usize {
    (homes + homes.div_ceil(32)) as usize
}

/// Places in proportion for so many keys: four fifths of them will be taken.
const fn homes_for(len: u32) -> u32 {
    (len * 5 / 4 + 1).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const MAX_TAG: u64 = Table::<u64>::MAX_TAG;

    /// A small generator (Knuth's MMIX), with its better bits on both ends.
    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((*seed ^ (*seed >> 32)) & !1).min(MAX_TAG)
    }

    #[test]
    fn a_set_of_places_has_those_that_were_put_in() {
        let mut places = Places::default();
        let put_in = |place: &usize| place % 7 == 3 || (1_020..1_030).contains(place);
        (0..2_000).filter(put_in).for_each(|place| places.insert(place));
        assert!(
            (0..3_000).all(|place| places.contains(place) == (place < 2_000 && put_in(&place)))
        );
    }

    fn lock(table: &Table<u64>, tag: u64) -> Option<SlotGuard<'_, u64>> {
        match table.lock_soon(tag) {
            Found::State(state) => Some(state),
            Found::Nothing => None,
            Found::Busy => panic!("nobody has it"),
        }
    }

    fn contents(table: &mut Table<u64>) -> Vec<(u64, u64)> {
        table.iter_mut().map(|(tag, state)| (tag, *state)).collect()
    }

    fn get_mut(table: &mut Table<u64>, tag: u64) -> Option<&mut u64> {
        for (slot, told) in table.slots.iter_mut().zip(&table.marks) {
            let tag = slot.tag();
            assert!(tag == VACANT || *told == mark(tag));
        }
        let is_found = lock(table, tag).is_some();
        let state = table.iter_mut().find(|(other, _)| *other == tag);
        assert_eq!(is_found, state.is_some());
        state.map(|(_, state)| state)
    }

    /// Against a tree, with every kind of step.
    #[test]
    fn it_holds_what_it_was_given_in_order() {
        let (seeds, steps) = if cfg!(miri) { (4, 300) } else { (200_u64, 3_000) };
        for seed in 0..seeds {
            let mut random = {
                let mut seed = seed;
                move || random(&mut seed)
            };
            // Tags spread out, or close together at either end.
            let spread: fn(u64) -> u64 = match seed % 4 {
                0 => |n| n >> 54 & !1,
                1 => |n| MAX_TAG - (n >> 54 & !1),
                _ => |n| n,
            };
            let (mut table, mut tree) = (Table::default(), BTreeMap::new());
            for step in 0..steps {
                let tag = spread(random());
                assert_eq!(get_mut(&mut table, tag), tree.get_mut(&tag));
                if !tree.contains_key(&tag) {
                    let state = random() % 8;
                    let keep = |state: &u64| !state.is_multiple_of(4);
                    let dropped = table.insert(tag, state, keep);
                    if dropped > 0 {
                        let before = tree.len();
                        tree.retain(|_, state| keep(state));
                        assert_eq!(dropped, before - tree.len());
                    }
                    tree.insert(tag, state);
                }
                if let Some(state) = get_mut(&mut table, tag) {
                    *state += 1;
                    *tree.get_mut(&tag).unwrap() += 1;
                }
                if step % 100 == 99 {
                    let keep = |state: &u64| !state.is_multiple_of(3);
                    let before = tree.len();
                    tree.retain(|_, state| keep(state));
                    assert_eq!(table.sweep(keep), before - tree.len());
                }
                if step % (steps / 3) == steps / 3 - 1 {
                    let mut apart = table.split(1 << 7);
                    assert!(contents(&mut apart).iter().all(|(key, _)| key & (1 << 7) != 0));
                    for (tag, state) in contents(&mut apart) {
                        assert_eq!(tree.remove(&tag), Some(state));
                    }
                }
                assert_eq!(table.len as usize, tree.len());
            }
            assert_eq!(contents(&mut table), tree.into_iter().collect::<Vec<_>>());
            table.sweep(|_| false);
            table.shrink_to_fit();
            assert!(table.slots.is_empty());
        }
    }

    #[test]
    fn it_is_at_least_three_quarters_full() {
        let (mut seed, mut table) = (1, Table::default());
        for len in 1..if cfg!(miri) { 400 } else { 2_000 } {
            let _ = table.insert(random(&mut seed), (), |()| true);
            let places = table.slots.len();
            assert!(len < 256 || len * 4 > places * 3, "{len} of {places}");
        }
    }

    /// With as many keys as a shard's tables have.
    #[test]
    fn nearly_all_is_found_by_its_mark() {
        let (mut seed, mut asked, mut found) = (1, 0, 0);
        let (tables, keys) = if cfg!(miri) { (1, 64) } else { (50, 512) };
        for _ in 0..tables {
            let (mut table, mut tags) = (Table::default(), Vec::new());
            for _ in 0..keys {
                tags.push(random(&mut seed));
                let _ = table.insert(tags[tags.len() - 1], (), |()| true);
                asked += tags.len();
                found += tags.iter().filter(|tag| table.find(**tag).try_lock().is_some()).count();
            }
        }
        assert!(found * 50 >= asked * 49, "{found} of {asked}");
    }

    fn table_of(state: u64) -> Table<u64> {
        let mut table = Table::default();
        assert_eq!(table.insert(42, state, |_| true), 0);
        table
    }

    /// For Miri, as nothing else can tell that one reference makes another invalid.
    #[test]
    fn a_locked_state_can_be_looked_at_twice_at_once() {
        let table = table_of(7);
        let state = lock(&table, 42).unwrap();
        let (first, second) = (&*state, &*state);
        assert_eq!(first, second);
    }

    #[test]
    fn a_panic_unlocks_a_state() {
        let table = table_of(7);
        let panics = || {
            *lock(&table, 42).unwrap() += 1;
            let _state = lock(&table, 42);
            panic!("while it is locked");
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(*lock(&table, 42).unwrap(), 8);
    }
}
