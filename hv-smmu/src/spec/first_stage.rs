//! Stage-1 descriptors of VMSAv8-64: what differs from [second stages](super::second_stage), whose other bits they share.
//!
//! Source: Linux `io-pgtable-arm.c` (`ARM_LPAE_PTE_*`, `ARM_LPAE_MAIR_*`), QEMU `smmu-common.c` and `smmu-internal.h`.
//! That hardware ignores bits 58:51 of a link is recalled; second stages have it so in what was read.

use static_assertions::const_assert_eq;

use super::second_stage::{EXECUTE_NEVER, EXECUTE_NEVER_LOW, READ, SOFTWARE, WRITE};

/// AttrIndx (bits 4:2) of a leaf: the byte of [`MEMORY_TYPES`] that says what memory it is.
pub const fn attribute(index: u8) -> u64 {
    (index as u64 & 7) << 2
}

/// AP\[1\] of a leaf (bit 6): unprivileged requests may do what privileged ones may. Without it, they may do nothing.
pub const UNPRIVILEGED: u64 = 1 << 6;
/// AP\[2\] of a leaf (bit 7): nobody may write. There is no bit against reading.
pub const READ_ONLY: u64 = 1 << 7;
/// nG of a leaf (bit 11): cached for one ASID. Without it, for all of them: whatever the stream, the leaf serves.
pub const NOT_GLOBAL: u64 = 1 << 11;
/// PXN and UXN of a leaf (bits 53 and 54): nothing is executed from it.
pub const NEVER_EXECUTED: u64 = EXECUTE_NEVER | EXECUTE_NEVER_LOW;

/// Which byte of [`MEMORY_TYPES`] leaves of memory name.
pub const WRITE_BACK_INDEX: u8 = 0;
/// Which byte of [`MEMORY_TYPES`] leaves of doorbells name.
pub const DEVICE_INDEX: u8 = 1;
/// MAIR of a context descriptor: byte 0 is normal memory, write-back, allocating on reads and writes, inner and outer;
/// byte 1 device memory, early acknowledgement allowed (Device-nGnRE). Leaves name no other.
pub const MEMORY_TYPES: u64 = 0xff << (8 * WRITE_BACK_INDEX) | 0x04 << (8 * DEVICE_INDEX);

/// T0SZ is 39 at the most: input addresses have at least so many bits.
pub const INPUT_BITS_LEAST: u8 = 25;

/// Second stages say what is allowed where these say what is not: with [`UNPRIVILEGED`] always set, the bits of one are
/// those of the other but for this one.
pub const INVERTED: u64 = WRITE;

const_assert_eq!(UNPRIVILEGED, READ);
const_assert_eq!(READ_ONLY, WRITE);
const_assert_eq!(
    (attribute(7) | UNPRIVILEGED | READ_ONLY | NOT_GLOBAL | NEVER_EXECUTED) & SOFTWARE,
    0
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_bits_match_an_independent_table() {
        let table = [
            (attribute(0), 0),
            (attribute(1), 0x4),
            (attribute(7), 0x1c),
            (UNPRIVILEGED, 0x40),
            (READ_ONLY, 0x80),
            (NOT_GLOBAL, 0x800),
            (NEVER_EXECUTED, 0x0060_0000_0000_0000),
            (MEMORY_TYPES, 0x4ff),
        ];
        for (ours, literal) in table {
            assert_eq!(ours, literal);
        }
    }
}
