//! A word to the processor about what will be looked at.

/// Tells the processor that a value's cache line will be written soon, or one of the two behind it, so that
/// it takes them from other processors while something else is done. The address may be any: nothing
/// is read or written that a program could see.
#[inline(always)]
pub(super) fn prefetch_three_lines_to_write<T>(value: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[allow(unsafe_code)]
    // SAFETY: the instruction changes nothing but caches, at any address. Every x86-64 processor of
    // AMD has it, and Intel's skip over it where they have not. (The standard library's
    // `_mm_prefetch` only gives it to programs for newer ones.)
    unsafe {
        std::arch::asm!(
            "prefetchw [{value}]",
            "prefetchw [{value} + 64]",
            "prefetchw [{value} + 128]",
            value = in(reg) value,
            options(nostack, preserves_flags, readonly),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = value;
}
