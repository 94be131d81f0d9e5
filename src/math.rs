//! Whole-number arithmetic that neither wraps nor loses a remainder.

use std::time::Duration;

/// The most units that any state counts: 2^45 - 1, above every limit, and so far below 2^53 (the
/// end of the whole numbers of a double) that sums and long divisions stay there too.
pub(crate) const MAX_UNITS: u64 = (1 << 45) - 1;

/// A number to divide by again and again, without the processor's division.
///
/// The quotient by the reciprocal, rounded down, is the quotient or one less
/// ([Granlund and Montgomery](https://gmplib.org/~tege/divcnst-pldi94.pdf)); the remainder tells
/// which.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Divisor {
    value: u64,
    /// `(2^64 - 1) / value`, rounded down.
    reciprocal: u64,
}

impl Divisor {
    /// `value` is at least 1.
    pub(crate) const fn new(value: u64) -> Self {
        Self { value, reciprocal: u64::MAX / value }
    }

    pub(crate) const fn get(self) -> u64 {
        self.value
    }

    /// The quotient, rounded down, and the remainder.
    #[inline]
    pub(crate) const fn div_rem(self, n: u64) -> (u64, u64) {
        if n < self.value {
            return (0, n);
        }
        #[allow(clippy::cast_possible_truncation, reason = "the upper half of 128 bits")]
        let quotient = ((n as u128 * self.reciprocal as u128) >> 64) as u64;
        let rest = n - quotient * self.value;
        if rest >= self.value { (quotient + 1, rest - self.value) } else { (quotient, rest) }
    }
}

/// `a * b / m`, rounded down; `u64::MAX` where the result is larger than that.
#[inline]
pub(crate) const fn mul_div_floor(a: u64, b: u64, m: Divisor) -> u64 {
    match a.checked_mul(b) {
        Some(product) => m.div_rem(product).0,
        None => wide_mul_div(a, b, m).0,
    }
}

/// `a * b / m`, rounded up; `u64::MAX` where the result is larger than that.
#[inline]
pub(crate) const fn mul_div_ceil(a: u64, b: u64, m: Divisor) -> u64 {
    let (quotient, rest) = match a.checked_mul(b) {
        Some(product) => m.div_rem(product),
        None => wide_mul_div(a, b, m),
    };
    quotient.saturating_add((rest > 0) as u64)
}

/// The quotient, at most `u64::MAX`, and the remainder.
///
/// It cannot panic, so that it is left out where nobody looks at what it is needed for.
#[cold]
#[allow(clippy::cast_possible_truncation, reason = "compared first")]
const fn wide_mul_div(a: u64, b: u64, m: Divisor) -> (u64, u64) {
    let (product, m) = (a as u128 * b as u128, m.value as u128);
    match (product.checked_div(m), product.checked_rem(m)) {
        (Some(quotient), Some(rest)) if quotient <= u64::MAX as u128 => {
            (quotient as u64, rest as u64)
        }
        _ => (u64::MAX, 0),
    }
}

/// Whole microseconds, rounded down; `u64::MAX` where there are more.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole microseconds, rounded up; `u64::MAX` if there are more.
#[cfg(any(all(feature = "memory", feature = "tokio"), feature = "redis"))]
pub(crate) fn micros_rounded_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// The greatest common divisor (Euclid); `a` where `b` is 0.
pub(crate) const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_exact_beyond_64_bits() {
        let table = [
            // (a, b, m, floor, ceil)
            (0, 5, 7, 0, 0),
            (1, 5, 7, 0, 1),
            (7, 5, 7, 5, 5),
            (100, 59, 60, 98, 99),
            (u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX),
            (u64::MAX, 3, 2, u64::MAX, u64::MAX),
            (1 << 60, 1 << 10, (1 << 40) + 1, (1 << 30) - 1, 1 << 30),
        ];
        for (a, b, m, floor, ceil) in table {
            assert_eq!(mul_div_floor(a, b, Divisor::new(m)), floor, "{a} * {b} / {m}");
            assert_eq!(mul_div_ceil(a, b, Divisor::new(m)), ceil, "{a} * {b} / {m}");
        }
    }

    #[test]
    fn reciprocals_divide_as_the_processor_does() {
        let powers = (0..64).map(|bits| 1_u64 << bits);
        let near = |n: u64| [n.wrapping_sub(1), n, n.saturating_add(1)];
        let mut numbers: Vec<u64> = powers.flat_map(near).chain([u64::MAX]).collect();
        // A small generator (Knuth's MMIX), of all lengths.
        let mut seed = 7_u64;
        for _ in 0..2_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            numbers.push(seed >> (seed % 64));
        }
        for &divisor in numbers.iter().filter(|&&divisor| divisor > 0) {
            let by = Divisor::new(divisor);
            for &n in &numbers {
                assert_eq!(by.div_rem(n), (n / divisor, n % divisor), "{n} / {divisor}");
            }
        }
    }

    #[test]
    fn common_divisors() {
        assert_eq!(gcd(12, 18), 6);
        assert_eq!(gcd(999_983, 86_400_000_000), 1);
        assert_eq!(gcd(7_000_000, 1_000_000), 1_000_000);
    }
}
