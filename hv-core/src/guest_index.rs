//! Numbers that a guest chose, used as an index: the one place where they are checked.

#![cfg_attr(
    target_arch = "aarch64",
    expect(unsafe_code, reason = "a speculation barrier is an instruction")
)]

use core::hint::black_box;

/// `wanted` as an index into something with `length` entries, or `None` when it is none.
///
/// A CPU that guesses that the check passes, and goes on with a number out of bounds, would load from wherever
/// the guest pointed it (bounds check bypass). So the index is also cut to the bounds by arithmetic that the
/// check's outcome does not enter: a guess goes on with index 0. Where the architecture says that even such
/// arithmetic may be guessed, a barrier follows.
#[inline]
pub fn guest_index(wanted: u32, length: usize) -> Option<usize> {
    let index = usize::try_from(wanted).ok()?;
    if index >= length {
        return None;
    }
    // Opaque, so that the compiler does not use what the check proved to leave the mask out.
    Some(cut(black_box(index), black_box(length)))
}

/// `index` where it is below `length`, else 0, without a branch.
#[inline]
fn cut(index: usize, length: usize) -> usize {
    // Lengths of things in memory are below half of the range, so the difference is negative exactly when the
    // index is below; an index above half of the range is not.
    let below = index.wrapping_sub(length) & !index;
    let mask = (below.cast_signed() >> (usize::BITS - 1)).cast_unsigned();
    let index = black_box(index & mask);
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: CSDB (`HINT #20`, Arm ARM C6.2) changes no register and no memory; where it is not
        // implemented it is a no-op.
        unsafe { core::arch::asm!("hint #20", options(nostack, preserves_flags)) };
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows: bc20.
    #[test]
    fn the_check_and_the_mask_agree() {
        for length in [0_usize, 1, 2, 63, 64, 1 << 16] {
            for wanted in [0_u32, 1, 62, 63, 64, 65535, 65536, u32::MAX - 1, u32::MAX] {
                let inside = (wanted as usize) < length;
                let expected = inside.then_some(wanted as usize);
                assert_eq!(guest_index(wanted, length), expected);
                // What a wrong guess would go on with.
                assert_eq!(cut(wanted as usize, length), expected.unwrap_or(0));
            }
        }
        assert_eq!(cut(usize::MAX, 4), 0);
        assert_eq!(cut(isize::MAX as usize + 1, 4), 0);
    }
}
