//! Stage-2 descriptors of VMSAv8-64, the roots of their tables, and what may change into what.
//!
//! Source: Linux `io-pgtable-arm.c` for positions, start levels and concatenation, Xen `smmu-v3` for the 4 KiB
//! granule, pKVM. Linux alone cites DDI 0487 for when tables have to be concatenated. A descriptor without
//! [`VALID`] faults, whatever else it holds.

use static_assertions::const_assert_eq;

/// The descriptor is valid (bit 0).
pub const VALID: u64 = 1 << 0;
/// With [`VALID`]: a table above the last level, a page in it (bit 1). Without this bit a block above the last
/// level; at the last level a valid descriptor without it is reserved, and faults.
pub const TABLE_OR_PAGE: u64 = 1 << 1;

/// MemAttr (bits 5:2) of a leaf, without S2FWB: normal memory, write-back. The weaker of this and of what the
/// device sent holds, so that the device's own choice stands.
pub const WRITE_BACK: u64 = 0xf << 2;
/// MemAttr (bits 4:2) of a leaf, with S2FWB: normal memory, write-back, whatever the device or a first stage says (IHI
/// 0070, 5.2 S2FWB and 13.1.6; the code from the table of 3.23.1). Bit 5 is reserved then. A PCI device's No_snoop
/// comes after it, and gets past the caches all the same (13.6.1.1).
pub const FORCED_WRITE_BACK: u64 = 6 << 2;
/// MemAttr (bits 5:2, or 4:2 with S2FWB) of a leaf: device memory, whose writes are acknowledged early, neither gathered
/// nor reordered (Device-nGnRE). With S2FWB too: the codes below 4 are device types. Linux maps doorbells so.
pub const DEVICE: u64 = 1 << 2;
/// S2AP of a leaf: devices may read (bit 6).
pub const READ: u64 = 1 << 6;
/// S2AP\[1\] of a leaf: devices may write (bit 7). With [`DIRTY_MODIFIER`], that they did.
pub const WRITE: u64 = 1 << 7;
/// SH of a leaf (bits 9:8): outer shareable.
pub const OUTER_SHAREABLE: u64 = 2 << 8;
/// SH of a leaf (bits 9:8): inner shareable.
pub const INNER_SHAREABLE: u64 = 3 << 8;
/// AF of a leaf (bit 10). Clear, an access faults, unless the stream table says otherwise.
pub const ACCESSED: u64 = 1 << 10;
/// nT of a block (bit 16): its translation is not kept in a way that conflicts with others, where BBML is 1; no access
/// faults for it (IHI 0070, 3.21.1.2). Units of BBML 2 ignore it. Not used, see `change`.
pub const NO_TRANSLATION_KEPT: u64 = 1 << 16;
/// DBM of a leaf (bit 51): it is for writing, and hardware sets [`WRITE`], atomically, before it lets the first write
/// through, where the stream table has it do so (S2HD). It never clears either, and sets nothing without this bit (IHI
/// 0070, 3.13.3.1).
pub const DIRTY_MODIFIER: u64 = 1 << 51;
/// Contiguous (bit 52): the leaf is one of an aligned group that is one run with the same attributes. Not used, see `Vmsa`.
pub const CONTIGUOUS: u64 = 1 << 52;
/// XN\[1\] of a leaf (bit 54), with XN\[0\] clear: nothing is executed from it, with and without XNX.
pub const EXECUTE_NEVER: u64 = 1 << 54;

/// Bits that hardware ignores in leaves and links and software may use (bits 58:55).
pub const SOFTWARE: u64 = 0xf << 55;
/// Bit 63, which hardware ignores, and which is left alone.
pub const IGNORED: u64 = 1 << 63;
/// XN\[0\] of a leaf (bit 53): of no effect alone without XNX.
pub const EXECUTE_NEVER_LOW: u64 = 1 << 53;
/// Ours, in a leaf, or in what is left of one: somebody wrote through it, or through one that it took the place of. A leaf
/// that is for reading alone, or was made so, cannot say it by [`WRITE`].
pub const WRITTEN: u64 = 1 << 55;
/// Ours, in a leaf; in a descriptor that is not valid: this was one, its address waits for a receipt.
pub const K: u64 = 1 << 56;
/// Ours, in a link: the word reached the memory that a walker reads that does not snoop.
pub const WB: u64 = 1 << 57;
/// Ours: in a link, that a reclaimer looks whether its table is empty; in a descriptor that is not valid, that the
/// table at its address was empty and was unlinked.
pub const F: u64 = 1 << 58;

/// Output addresses stand in leaves and links as they are below this bit.
pub const IN_PLACE_BITS: u32 = 48;

/// Whether there are longer ones, of up to [`LONG_BITS`]: with pages of 64 KiB. Their bits 51:48 stand in bits 15:12 of leaves
/// and links, which have no other use there (Linux `io-pgtable-arm.c`, `paddr_to_iopte` and `iopte_to_paddr`).
pub const fn has_long(page_shift: u32) -> bool {
    page_shift == 16
}

/// Output addresses end below this bit where they are [long](has_long).
pub const LONG_BITS: u32 = 52;

/// By how many bits lower the upper bits of a long address stand than where they belong.
const FOLDED_BY: u32 = IN_PLACE_BITS - 12;
/// Where they stand (bits 15:12).
const FOLDED: u64 = 0xf << 12;

/// Output addresses end below this bit.
pub const fn address_bits(page_shift: u32) -> u32 {
    match has_long(page_shift) {
        true => LONG_BITS,
        false => IN_PLACE_BITS,
    }
}

/// The bits of a leaf or a link that tell its output address: bits 47 down to the granule's shift, and 15:12 of long ones.
pub const fn address(page_shift: u32) -> u64 {
    let folded = if has_long(page_shift) { FOLDED } else { 0 };
    in_place(page_shift) | folded
}

/// Those that stand where they belong.
const fn in_place(page_shift: u32) -> u64 {
    (1 << IN_PLACE_BITS) - (1 << page_shift)
}

/// An address as leaves and links tell it.
#[inline(always)]
pub const fn fold(page_shift: u32, address: u64) -> u64 {
    match has_long(page_shift) {
        true => address & in_place(page_shift) | address >> FOLDED_BY & FOLDED,
        false => address & in_place(page_shift),
    }
}

/// The address that a leaf or a link tells.
#[inline(always)]
pub const fn unfold(page_shift: u32, word: u64) -> u64 {
    match has_long(page_shift) {
        true => word & in_place(page_shift) | (word & FOLDED) << FOLDED_BY,
        false => word & in_place(page_shift),
    }
}

/// How many tables may stand side by side as one root, as a power of two.
pub const MAX_ROOT_TABLES_LOG2: u8 = 4;

/// SL0 of the stream table entry (2 bits), or `None` where the granule has no such start. `level` is counted from
/// the leaves, whose level is 1: architectural level 3.
///
/// With 4 KiB pages a start at architectural level 2 is 0, at 1 is 1, at 0 is 2; with the others level 3 is 0, 2 is
/// 1, 1 is 2. (16 KiB pages starting at level 0 need at least 48 bits of address, where two tables of level 1 are
/// mandatory.)
pub const fn start_level(page_shift: u32, level: u8) -> Option<u8> {
    match (page_shift, level) {
        (12, 2..=4) => Some(level - 2),
        (14 | 16, 1..=3) => Some(level - 1),
        _ => None,
    }
}

/// S2TG of the stream table entry (2 bits): the granule.
pub const fn granule(page_shift: u32) -> Option<u8> {
    match page_shift {
        12 => Some(0),
        16 => Some(1),
        14 => Some(2),
        _ => None,
    }
}

/// S2T0SZ of the stream table entry (6 bits), for input addresses of this many bits: 16 at the least, or 12 where
/// addresses are [long](has_long) (IHI 0070, 5.2).
pub const fn t0sz(page_shift: u32, input_bits: u8) -> Option<u8> {
    let least = 64 - address_bits(page_shift) as u8;
    match 64_u8.checked_sub(input_bits) {
        Some(size) if size >= least && size <= 39 => Some(size),
        _ => None,
    }
}

const_assert_eq!((K | WB | F | WRITTEN) & !SOFTWARE, 0);
const_assert_eq!((K | WB | F) & WRITTEN, 0);
const_assert_eq!(
    (READ | WRITE | ACCESSED | CONTIGUOUS | EXECUTE_NEVER) & SOFTWARE,
    0
);
const_assert_eq!(address(12) & (SOFTWARE | DIRTY_MODIFIER | 0xfff), 0);
const_assert_eq!(address(16) & (SOFTWARE | DIRTY_MODIFIER | 0xfff), 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_bits_match_an_independent_table() {
        let table = [
            (VALID, 0x1),
            (TABLE_OR_PAGE, 0x2),
            (WRITE_BACK, 0x3c),
            (FORCED_WRITE_BACK, 0x18),
            (DEVICE, 0x4),
            (READ, 0x40),
            (WRITE, 0x80),
            (OUTER_SHAREABLE, 0x200),
            (INNER_SHAREABLE, 0x300),
            (ACCESSED, 0x400),
            (NO_TRANSLATION_KEPT, 0x1_0000),
            (DIRTY_MODIFIER, 0x0008_0000_0000_0000),
            (CONTIGUOUS, 0x0010_0000_0000_0000),
            (EXECUTE_NEVER, 0x0040_0000_0000_0000),
            (WRITTEN, 0x0080_0000_0000_0000),
            (K, 0x0100_0000_0000_0000),
            (WB, 0x0200_0000_0000_0000),
            (F, 0x0400_0000_0000_0000),
            (SOFTWARE, 0x0780_0000_0000_0000),
            (IGNORED, 0x8000_0000_0000_0000),
            (EXECUTE_NEVER_LOW, 0x0020_0000_0000_0000),
            (address(12), 0x0000_ffff_ffff_f000),
            (address(14), 0x0000_ffff_ffff_c000),
            (address(16), 0x0000_ffff_ffff_f000),
        ];
        for (ours, literal) in table {
            assert_eq!(ours, literal);
        }
    }

    #[test]
    fn long_addresses_stand_in_words_as_linux_has_them() {
        let table = [
            (16, 0x000a_1234_5678_0000, 0x0000_1234_5678_a000),
            (16, 0x000f_ffff_ffff_0000, 0x0000_ffff_ffff_f000),
            (16, 0x0001_0000_0000_0000, 0x0000_0000_0000_1000),
            (16, 0x0000_0000_0001_0000, 0x0000_0000_0001_0000),
            (12, 0x0000_1234_5678_9000, 0x0000_1234_5678_9000),
            (14, 0x0000_1234_5678_c000, 0x0000_1234_5678_c000),
        ];
        for (shift, address, word) in table {
            assert_eq!(fold(shift, address), word, "{address:#x}");
            assert_eq!(unfold(shift, word), address, "{word:#x}");
            // What else is in a word says nothing of it.
            let beside = !super::address(shift);
            assert_eq!(unfold(shift, word | beside), address);
            // `(pte | pte >> 36) & 47:12`, and back `(pa | pa << 36) & 51:16`.
            let linux = (address | address >> 36) & 0x0000_ffff_ffff_f000;
            assert!(shift != 16 || linux == word);
            let back = (word | word << 36) & 0x000f_ffff_ffff_0000;
            assert!(shift != 16 || back == address);
        }
    }

    #[test]
    fn fields_of_the_stream_table_entry_are_those_of_linux() {
        // io-pgtable-arm: 4 KiB `~(level + 1) & 3`, the others `~level & 3`, by architectural level.
        for (shift, number) in (2..=4)
            .map(|n| (12, n))
            .chain((1..=3).flat_map(|n| [(14, n), (16, n)]))
        {
            let architectural = 4 - i32::from(number);
            let linux = match shift {
                12 => !(architectural + 1) & 3,
                _ => !architectural & 3,
            };
            assert_eq!(
                start_level(shift, number).map(i32::from),
                Some(linux),
                "{shift} {number}"
            );
        }
        assert_eq!(
            start_level(12, 1),
            None,
            "4 KiB pages start at level 2 at the lowest"
        );
        assert_eq!(start_level(12, 5), None);
        assert_eq!(start_level(14, 4), None);
        assert_eq!(
            [12, 14, 16, 13].map(granule),
            [Some(0), Some(2), Some(1), None]
        );
        assert_eq!(
            [39, 48, 25, 24, 49, 65].map(|bits| t0sz(12, bits)),
            [Some(25), Some(16), Some(39), None, None, None]
        );
        assert_eq!([14, 16].map(|shift| t0sz(shift, 52)), [None, Some(12)]);
        assert_eq!([49, 53].map(|bits| t0sz(16, bits)), [Some(15), None]);
    }
}
