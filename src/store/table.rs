//! A hash table for states: nearly full, and built anew in small steps.

/// States by the fingerprint of their key, in the order of the fingerprints.
///
/// Each state lies at the place that its fingerprint has in proportion, or as soon behind it as
/// the order allows: linear probing in order, after
/// [Amble and Knuth](https://doi.org/10.1093/comjnl/17.2.135). So the table can be nine tenths
/// full, a search for what is not there ends at the first larger fingerprint, and the table grows
/// by an eighth at a time.
#[derive(Debug)]
pub(super) struct Table<T> {
    places: Box<[Place<T>]>,
    /// How many of the places are in proportion to fingerprints; the others are behind them.
    homes: usize,
    len: usize,
}

#[derive(Debug)]
struct Place<T> {
    fingerprint: u64,
    state: T,
}

/// The fingerprint of a vacant place, which no key has: the largest of all.
const VACANT: u64 = u64::MAX;

impl<T: Default> Default for Place<T> {
    fn default() -> Self {
        Self { fingerprint: VACANT, state: T::default() }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { places: Box::default(), homes: 0, len: 0 }
    }
}

/// The place that `fingerprint` has in proportion.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the product's upper half is below `homes`")]
const fn home(fingerprint: u64, homes: usize) -> usize {
    (((fingerprint >> 32) * homes as u64) >> 32) as usize
}

impl<T: Default> Table<T> {
    pub(super) const MAX_FINGERPRINT: u64 = VACANT - 1;

    /// Where `fingerprint` is, or where it would have to go in.
    #[inline]
    fn search(&self, fingerprint: u64) -> Result<usize, usize> {
        let mut index = home(fingerprint, self.homes);
        while let Some(place) = self.places.get(index) {
            if place.fingerprint >= fingerprint {
                return if place.fingerprint == fingerprint { Ok(index) } else { Err(index) };
            }
            index += 1;
        }
        Err(index)
    }

    /// The state of a key; its fingerprint is at most [`MAX_FINGERPRINT`](Self::MAX_FINGERPRINT).
    #[inline]
    pub(super) fn get_mut(&mut self, fingerprint: u64) -> Option<&mut T> {
        let index = self.search(fingerprint).ok()?;
        Some(&mut self.places[index].state)
    }

    pub(super) fn each_mut(&mut self, mut change: impl FnMut(&mut T)) {
        let taken = self.places.iter_mut().filter(|place| place.fingerprint != VACANT);
        taken.for_each(|place| change(&mut place.state));
    }

    /// Each state, behind its key's fingerprint.
    #[cfg(feature = "serde")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let taken = self.places.iter().filter(|place| place.fingerprint != VACANT);
        taken.map(|place| (place.fingerprint, &place.state))
    }

    /// Each state, behind its key's fingerprint.
    pub(super) fn into_states(self) -> impl Iterator<Item = (u64, T)> {
        self.taken().map(|place| (place.fingerprint, place.state))
    }

    /// Puts in the state of a key that has none. Where there is no room, the states that are not
    /// to `keep` are dropped; returns how many in that case.
    pub(super) fn insert(
        &mut self,
        fingerprint: u64,
        state: T,
        keep: impl Fn(&T) -> bool,
    ) -> Option<usize> {
        let Err(place) = self.put(Place { fingerprint, state }) else { return None };
        let dropped = self.sweep(keep);
        // So much room that the next sweep is as many keys away as this one has cost.
        let wanted = homes_for(self.len + 1);
        let homes = if wanted < self.homes / 4 { self.homes / 2 } else { wanted.max(self.homes) };
        let end_is_taken = self.places.last().is_none_or(|place| place.fingerprint != VACANT);
        if homes != self.homes || end_is_taken {
            self.resize(homes);
        }
        assert!(self.put(place).is_ok(), "there is room");
        Some(dropped)
    }

    /// Puts a key's state into its place, and moves those behind it up to the next vacant place.
    fn put(&mut self, place: Place<T>) -> Result<(), Place<T>> {
        if self.len * 10 >= self.homes * 9 {
            return Err(place);
        }
        let (Ok(index) | Err(index)) = self.search(place.fingerprint);
        let behind = &mut self.places[index..];
        let Some(vacant) = behind.iter().position(|place| place.fingerprint == VACANT) else {
            return Err(place);
        };
        behind[..=vacant].rotate_right(1);
        behind[0] = place;
        self.len += 1;
        Ok(())
    }

    /// Drops the states that are not to `keep`; returns how many.
    pub(super) fn sweep(&mut self, keep: impl Fn(&T) -> bool) -> usize {
        let before = std::mem::take(&mut self.len);
        let mut end = 0;
        for index in 0..self.places.len() {
            let fingerprint = self.places[index].fingerprint;
            if fingerprint == VACANT {
                continue;
            }
            let to = home(fingerprint, self.homes).max(end);
            if !keep(&self.places[index].state) {
                self.places[index] = Place::default();
                continue;
            }
            if to != index {
                self.places[to] = std::mem::take(&mut self.places[index]);
            }
            end = to + 1;
            self.len += 1;
        }
        before - self.len
    }

    fn resize(&mut self, homes: usize) {
        let taken = std::mem::take(self).taken();
        *self = Self::build(homes, taken);
    }

    fn taken(self) -> impl Iterator<Item = Place<T>> {
        self.places.into_iter().filter(|place| place.fingerprint != VACANT)
    }

    /// A table of these places, which are in order; its last place is vacant.
    fn build(homes: usize, taken: impl Iterator<Item = Place<T>>) -> Self {
        let mut places = Vec::with_capacity(homes + homes.div_ceil(32));
        let mut len = 0;
        for place in taken {
            let home = home(place.fingerprint, homes);
            if places.len() < home {
                places.resize_with(home, Place::default);
            }
            places.push(place);
            len += 1;
        }
        let end = places.capacity().max(places.len() + 1);
        places.reserve_exact(end - places.len());
        places.resize_with(end, Place::default);
        Self { places: places.into_boxed_slice(), homes, len }
    }

    /// Parts with the keys that have this `bit` in their fingerprints.
    pub(super) fn split(&mut self, bit: u64) -> Self {
        let all = std::mem::take(self).taken();
        let (apart, left): (Vec<_>, Vec<_>) = all.partition(|place| place.fingerprint & bit != 0);
        let build = |half: Vec<_>| Self::build(homes_for(half.len()), half.into_iter());
        let [left, apart] = [left, apart].map(build);
        *self = left;
        apart
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

/// Places in proportion for so many keys: four fifths of them will be taken.
const fn homes_for(len: usize) -> usize {
    len * 5 / 4 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A small generator (Knuth's MMIX), with its better bits on both ends.
    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*seed ^ (*seed >> 32)).min(VACANT - 1)
    }

    fn contents(table: &Table<u64>) -> Vec<(u64, u64)> {
        let taken = table.places.iter().filter(|place| place.fingerprint != VACANT);
        taken.map(|place| (place.fingerprint, place.state)).collect()
    }

    /// Against a tree, with every kind of step.
    #[test]
    fn it_holds_what_it_was_given_in_order() {
        for seed in 0..200_u64 {
            let mut random = {
                let mut seed = seed;
                move || random(&mut seed)
            };
            // Fingerprints spread out, or close together at either end.
            let spread: fn(u64) -> u64 = match seed % 4 {
                0 => |n| n >> 54,
                1 => |n| VACANT - 1 - (n >> 54),
                _ => |n| n,
            };
            let (mut table, mut tree) = (Table::default(), BTreeMap::new());
            for step in 0..3_000 {
                let fingerprint = spread(random());
                assert_eq!(table.get_mut(fingerprint), tree.get_mut(&fingerprint));
                if !tree.contains_key(&fingerprint) {
                    let state = random() % 8;
                    let keep = |state: &u64| *state > 0;
                    if table.insert(fingerprint, state, keep).is_some() {
                        tree.retain(|_, state| keep(state));
                    }
                    tree.insert(fingerprint, state);
                }
                if let Some(state) = table.get_mut(fingerprint) {
                    *state += 1;
                    *tree.get_mut(&fingerprint).unwrap() += 1;
                }
                if step % 1_000 == 999 {
                    let apart = table.split(1 << 7);
                    assert!(contents(&apart).iter().all(|(key, _)| key & (1 << 7) != 0));
                    for (fingerprint, state) in contents(&apart) {
                        assert_eq!(tree.remove(&fingerprint), Some(state));
                    }
                }
                assert_eq!(table.len, tree.len());
            }
            assert_eq!(contents(&table), tree.into_iter().collect::<Vec<_>>());
            table.sweep(|_| false);
            table.shrink_to_fit();
            assert!(table.places.is_empty());
        }
    }

    #[test]
    fn it_is_at_least_three_quarters_full() {
        let (mut seed, mut table) = (1, Table::default());
        for len in 1..2_000 {
            let _ = table.insert(random(&mut seed), (), |()| true);
            let few = table.places.len() * 3 / 4;
            assert!(len < 256 || table.len > few, "{} of {}", table.len, table.places.len());
        }
    }
}
