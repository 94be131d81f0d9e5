//! Whole-number arithmetic that neither wraps nor loses a remainder.

/// The most units that any state counts: 2^45 - 1, above every limit, and so far below 2^53 (the
/// end of the whole numbers of a double) that sums and long divisions stay there too.
pub(crate) const MAX_UNITS: u64 = (1 << 45) - 1;

/// `a * b / m`, rounded down; `u64::MAX` where the result is larger than that.
#[inline]
pub(crate) const fn mul_div_floor(a: u64, b: u64, m: u64) -> u64 {
    match a.checked_mul(b) {
        Some(product) => product / m,
        None => saturate(a as u128 * b as u128 / m as u128),
    }
}

/// `a * b / m`, rounded up; `u64::MAX` where the result is larger than that.
#[inline]
pub(crate) const fn mul_div_ceil(a: u64, b: u64, m: u64) -> u64 {
    match a.checked_mul(b) {
        Some(product) => product.div_ceil(m),
        None => saturate((a as u128 * b as u128).div_ceil(m as u128)),
    }
}

#[cold]
#[allow(clippy::cast_possible_truncation, reason = "compared first")]
const fn saturate(wide: u128) -> u64 {
    if wide > u64::MAX as u128 { u64::MAX } else { wide as u64 }
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
            assert_eq!(mul_div_floor(a, b, m), floor, "{a} * {b} / {m}");
            assert_eq!(mul_div_ceil(a, b, m), ceil, "{a} * {b} / {m}");
        }
    }

    #[test]
    fn common_divisors() {
        assert_eq!(gcd(12, 18), 6);
        assert_eq!(gcd(999_983, 86_400_000_000), 1);
        assert_eq!(gcd(7_000_000, 1_000_000), 1_000_000);
    }
}
