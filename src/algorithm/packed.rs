//! Pairs of numbers in a queue, in as few bytes as they need.

use std::collections::VecDeque;

/// A queue of pairs. A number takes 7 bits a byte, the least ones first, and all bytes but its last
/// have the eighth (LEB128). A pair is its second number, doubled and 1 more, and its first one,
/// doubled; the second is left out where it is 1. So pairs can be told apart from either end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Packed(VecDeque<u8>);

const MORE: u8 = 0x80;
/// The longest pair: two numbers of 64 bits.
const MOST_BYTES: usize = 20;

impl Packed {
    /// Both numbers are below 2^63.
    pub(super) fn push_back(&mut self, first: u64, second: u64) {
        if self.0.capacity() - self.0.len() < MOST_BYTES {
            // By a quarter, where a queue would double.
            self.0.reserve_exact(MOST_BYTES + self.0.len() / 4);
        }
        if second != 1 {
            self.push(second << 1 | 1);
        }
        self.push(first << 1);
    }

    /// Gives memory back if more than three quarters are unused.
    pub(super) fn shrink(&mut self) {
        let needed = self.0.len() + MOST_BYTES;
        if self.0.capacity() > 4 * needed {
            self.0.shrink_to(needed);
        }
    }

    fn push(&mut self, mut number: u64) {
        while number >= u64::from(MORE) {
            self.0.push_back(number.to_le_bytes()[0] | MORE);
            number >>= 7;
        }
        self.0.push_back(number.to_le_bytes()[0]);
    }

    pub(super) fn pop_front(&mut self) -> Option<(u64, u64)> {
        let mut bytes = self.0.iter();
        let pair = next_pair(&mut bytes)?;
        let left = bytes.len();
        self.0.drain(..self.0.len() - left);
        Some(pair)
    }

    pub(super) fn pop_back(&mut self) -> Option<(u64, u64)> {
        let mut start = self.last_number(self.0.len())?;
        if let Some(before) = self.last_number(start)
            && self.0[before] & 1 == 1
        {
            start = before;
        }
        let pair = next_pair(&mut self.0.range(start..));
        self.0.truncate(start);
        pair
    }

    /// Where the number begins that ends before `end`.
    fn last_number(&self, end: usize) -> Option<usize> {
        let mut start = end.checked_sub(1)?;
        while start > 0 && self.0[start - 1] & MORE != 0 {
            start -= 1;
        }
        Some(start)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut bytes = self.0.iter();
        std::iter::from_fn(move || next_pair(&mut bytes))
    }
}

fn next_pair<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> Option<(u64, u64)> {
    let number = next_number(bytes)?;
    if number & 1 == 0 {
        return Some((number >> 1, 1));
    }
    Some((next_number(bytes)? >> 1, number >> 1))
}

fn next_number<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = *bytes.next()?;
        number |= u64::from(byte & !MORE) << shift;
        if byte < MORE {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_out_as_they_went_in() {
        let numbers = [0, 1, 2, 63, 64, 127, 128, 8_191, 8_192, 1 << 45, (1 << 63) - 1];
        let pairs = numbers.map(|first| numbers.map(|second| (first, second))).concat();
        let mut packed = Packed::default();
        for round in 0..=3 {
            for &(first, second) in &pairs {
                packed.push_back(first, second);
            }
            assert!(packed.iter().eq(pairs.iter().copied()));
            let (front, back) = pairs.split_at(pairs.len() / 3 * round);
            for &pair in front {
                assert_eq!(packed.pop_front(), Some(pair));
            }
            for &pair in back.iter().rev() {
                assert_eq!(packed.pop_back(), Some(pair));
            }
            assert_eq!((packed.pop_front(), packed.pop_back()), (None, None));
        }
    }

    #[test]
    fn a_single_unit_within_two_minutes_takes_four_bytes() {
        for (micros, bytes) in [(63, 1), (8_191, 2), (1_048_575, 3), (134_217_727, 4)] {
            let mut packed = Packed::default();
            packed.push_back(micros, 1);
            assert_eq!(packed.0.len(), bytes);
            packed.push_back(micros + 1, 1);
            assert_eq!(packed.0.len(), 2 * bytes + 1);
        }
    }
}
