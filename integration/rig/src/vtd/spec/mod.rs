//! The bits of VT-d as hardware sees them: registers, tables, descriptors, faults, firmware's description.
//!
//! Written from the manual and from what other implementations do, and apart from the driver's own bits:
//! what both have in common is the hardware. Where sources leave something open, the stricter reading
//! stands here.

pub(crate) mod capability;
pub(crate) mod descriptor;
pub(crate) mod dmar;
pub(crate) mod entries;
pub(crate) mod fault;
pub(crate) mod registers;

/// A field in place: `value` at bit `shift`.
const fn at(value: u64, shift: u32) -> u64 {
    value << shift
}

/// The bits `high` to `low` of a word, both included, where they are.
const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// The field in bits `high` to `low` of a word, both included.
const fn field(word: u64, high: u32, low: u32) -> u64 {
    (word & bits(high, low)) >> low
}

/// The bits of a 64-bit address that a host with addresses this wide does not have.
const fn above(host_address_bits: u8) -> u64 {
    if host_address_bits >= 64 {
        0
    } else {
        u64::MAX << host_address_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_their_bit_numbers_say() {
        assert_eq!(bits(63, 0), u64::MAX);
        assert_eq!(bits(11, 4), 0xff0);
        assert_eq!(bits(63, 63), 0x8000_0000_0000_0000);
        assert_eq!(field(0x0123_4567_89ab_cdef, 31, 16), 0x89ab);
        assert_eq!(at(0x12, 16), 0x12_0000);
        assert_eq!(above(64), 0);
        assert_eq!(above(52), 0xfff0_0000_0000_0000);
    }
}
