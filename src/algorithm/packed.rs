//! Pairs of numbers, one behind the other, in as few bytes as they need.

/// Pairs that are added at the end and taken from either end, in a quarter more bytes than they
/// need at most.
///
/// A number takes 7 bits a byte, the least ones first, and all bytes but its last have the eighth
/// (LEB128). A pair is its second number, doubled and 1 more, and its first one, doubled; the second
/// is left out if it is 1. So pairs can be read from either end.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    bytes: Box<[u8]>,
    /// The pairs are in the bytes from here,
    start: u32,
    /// to here.
    end: u32,
}

const MORE: u8 = 0x80;
/// The longest pair: two numbers of 64 bits.
const MOST_BYTES: usize = 20;

impl Packed {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start as usize..self.end as usize]
    }

    /// Both numbers are below 2^63.
    pub(super) fn push(&mut self, first: u64, second: u64) {
        if self.bytes.len() - (self.end as usize) < MOST_BYTES {
            self.make_room();
        }
        if second != 1 {
            self.push_number(second << 1 | 1);
        }
        self.push_number(first << 1);
    }

    fn push_number(&mut self, mut number: u64) {
        while number >= u64::from(MORE) {
            self.push_byte(number.to_le_bytes()[0] | MORE);
            number >>= 7;
        }
        self.push_byte(number.to_le_bytes()[0]);
    }

    fn push_byte(&mut self, byte: u8) {
        self.bytes[self.end as usize] = byte;
        self.end += 1;
    }

    /// Moves the pairs to the front if that makes room for many, or else grows by a quarter.
    #[cold]
    fn make_room(&mut self) {
        let length = self.as_slice().len();
        if self.start > 0 && self.bytes.len() >= length + length / 8 + MOST_BYTES {
            self.bytes.copy_within(self.start as usize..self.end as usize, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else {
            self.resize(length + length / 4 + MOST_BYTES);
        }
    }

    fn resize(&mut self, capacity: usize) {
        let mut bytes = vec![0; capacity].into_boxed_slice();
        bytes[..self.as_slice().len()].copy_from_slice(self.as_slice());
        *self = Self { bytes, start: 0, end: self.end - self.start };
    }

    /// Gives memory back if more than three quarters are unused.
    pub(super) fn shrink(&mut self) {
        let needed = self.as_slice().len() + MOST_BYTES;
        if self.bytes.len() > 4 * needed {
            self.resize(needed);
        }
    }

    /// Takes the last pair.
    pub(super) fn pop(&mut self) -> Option<(u64, u64)> {
        let bytes = self.as_slice();
        let mut start = last_number(bytes, bytes.len())?;
        if let Some(before) = last_number(bytes, start)
            && bytes[before] & 1 == 1
        {
            start = before;
        }
        let pair = Pairs(&bytes[start..]).next();
        self.end = self.start + place(start);
        pair
    }

    /// Takes the first pairs, up to those that are left of them.
    pub(super) fn leave(&mut self, left: usize) {
        self.start = self.end - place(left);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a chunk is much shorter")]
const fn place(place: usize) -> u32 {
    place as u32
}

/// Where the number begins that ends before `end`.
fn last_number(bytes: &[u8], end: usize) -> Option<usize> {
    let mut start = end.checked_sub(1)?;
    while start > 0 && bytes[start - 1] & MORE != 0 {
        start -= 1;
    }
    Some(start)
}

/// The pairs in these bytes, from the first one on; those that were not read are left.
#[derive(Clone, Copy)]
pub(super) struct Pairs<'b>(pub(super) &'b [u8]);

impl Iterator for Pairs<'_> {
    type Item = (u64, u64);

    #[inline]
    fn next(&mut self) -> Option<(u64, u64)> {
        let number = self.number()?;
        if number & 1 == 0 {
            return Some((number >> 1, 1));
        }
        Some((self.number()? >> 1, number >> 1))
    }
}

impl Pairs<'_> {
    #[inline]
    fn number(&mut self) -> Option<u64> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & !MORE) << shift;
            if byte < MORE {
                return Some(number);
            }
            shift += 7;
        }
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
                packed.push(first, second);
            }
            assert!(Pairs(packed.as_slice()).eq(pairs.iter().copied()));
            let (front, back) = pairs.split_at(pairs.len() / 3 * round);
            let mut rest = Pairs(packed.as_slice());
            assert!(rest.by_ref().take(front.len()).eq(front.iter().copied()));
            packed.leave(rest.0.len());
            for &pair in back.iter().rev() {
                assert_eq!(packed.pop(), Some(pair));
            }
            assert_eq!((packed.as_slice().len(), packed.pop()), (0, None));
        }
    }

    #[test]
    fn a_single_unit_within_two_minutes_takes_four_bytes() {
        for (micros, length) in [(63, 1), (8_191, 2), (1_048_575, 3), (134_217_727, 4)] {
            let mut packed = Packed::default();
            packed.push(micros, 1);
            assert_eq!(packed.as_slice().len(), length);
            packed.push(micros + 1, 1);
            assert_eq!(packed.as_slice().len(), 2 * length + 1);
        }
    }
}
