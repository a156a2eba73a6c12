//! Bit fields of words, as manuals number them.

/// A field in place: `value` at bit `shift`.
pub(crate) const fn at(value: u64, shift: u32) -> u64 {
    value << shift
}

/// The bits `high` to `low` of a word, both included, where they are.
pub(crate) const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// The field in bits `high` to `low` of a word, both included.
pub(crate) const fn field(word: u64, high: u32, low: u32) -> u64 {
    (word & bits(high, low)) >> low
}

/// The bits of a 64-bit address that a host with addresses this wide does not have.
pub(crate) const fn above(address_bits: u8) -> u64 {
    if address_bits >= 64 {
        0
    } else {
        u64::MAX << address_bits
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
