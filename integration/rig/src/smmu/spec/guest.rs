//! What a guest's driver of an SMMU writes for its own first stage: entries, contexts, tables, commands.
//!
//! After IHI 0070, 4.3, 4.4, 5.2 and 5.4: the same numbers as hardware reads them by, the other way round.

use crate::bits::at;

/// A stream table entry that leads to 2^`log2` contexts; requests without a substream use that of substream 0.
pub(crate) const fn entry(contexts: u64, log2: u8) -> [u64; 8] {
    let without = if log2 == 0 { 0 } else { 2 };
    // V, Config 101; S1DSS, S1CIR and S1COR write-back.
    let first = 1 | at(0b101, 1) | contexts | at(log2 as u64, 59);
    [first, without | at(1, 2) | at(1, 4), 0, 0, 0, 0, 0, 0]
}

/// The kinds of memory that leaves name (MAIR): 0 written back to from caches, 1 past them.
const KINDS: u64 = 0x44ff;

/// A context: 39 bits of addresses in pages of 4 KiB from a table of level 1, nothing for the upper half.
pub(crate) const fn context(root: u64, asid: u16) -> [u64; 8] {
    // T0SZ, walks write-back and inner shareable, EPD1, V, IPS of 36 bits, AA64, R, A, ASET, ASID.
    let walks = at(1, 8) | at(1, 10) | at(3, 12) | at(1, 30);
    let faults = at(1, 45) | at(1, 46) | at(1, 47);
    let first = 25 | walks | at(1, 31) | at(1, 32) | at(1, 41) | faults | at(asid as u64, 48);
    [first, root, 0, KINDS, 0, 0, 0, 0]
}

/// A link to a table.
pub(crate) const fn link(table: u64) -> u64 {
    table | 0b11
}

/// A page of normal memory for reading and writing, kept for one ASID.
pub(crate) const fn page(to: u64) -> u64 {
    to | at(1, 6) | at(3, 8) | at(1, 10) | at(1, 11) | 0b11
}

/// The same, past the CPU's caches.
pub(crate) const fn page_past_caches(to: u64) -> u64 {
    page(to) | at(1, 2)
}

/// CFGI_CD, of leaves.
pub(crate) const fn forget_context(substream: u32) -> [u64; 2] {
    [0x05 | at(substream as u64, 12), 1]
}

/// CFGI_CD_ALL.
pub(crate) const fn forget_contexts() -> [u64; 2] {
    [0x06, 0]
}

/// TLBI_NH_ALL.
pub(crate) const fn forget_all() -> [u64; 2] {
    [0x10, 0]
}

/// TLBI_NH_ASID.
pub(crate) const fn forget_asid(asid: u16) -> [u64; 2] {
    [0x11 | at(asid as u64, 48), 0]
}

/// TLBI_NH_VA, of leaves.
pub(crate) const fn forget_address(asid: u16, address: u64) -> [u64; 2] {
    [0x12 | at(asid as u64, 48), address | 1]
}

#[cfg(test)]
mod tests {
    use super::super::context::{self, Context, ContextLimits};
    use super::super::stage_one::{self, FirstLimits};
    use super::super::stage_two::{Descriptor, Granule, Memory};
    use super::*;

    #[test]
    fn what_a_guest_writes_is_what_hardware_reads() {
        let limits = ContextLimits {
            always_stalls: false,
            asid_bits: 8,
            address_bits: 36,
            wide: false,
            granules: [12, 0, 0],
            updates: 0,
            stalls: false,
        };
        let read = context::decode(&context(0x1000, 7), &limits, false);
        let Ok(Context::Tables(tables)) = read else {
            panic!("{read:?}");
        };
        assert_eq!(tables.asid, 7);
        assert_eq!(tables.halves[0].unwrap().root, 0x1000);
        let limits = FirstLimits {
            no_table: false,
            long: false,
        };
        let read = |word, level| stage_one::decode(word, level, Granule(12), &limits);
        assert_eq!(read(link(0x2000), 1), Ok(Descriptor::Table { at: 0x2000 }));
        let Ok(Descriptor::Leaf(leaf)) = read(page(0x3000), 3) else {
            panic!("a page");
        };
        assert!(leaf.read && leaf.write && leaf.accessed && !leaf.global);
        let kind = |word| match read(word, 3) {
            Ok(Descriptor::Leaf(leaf)) => leaf.memory,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(page(0x3000)), Memory::Indexed(0));
        assert_eq!(kind(page_past_caches(0x3000)), Memory::Indexed(1));
        assert!(tables.is_cached(0) && !tables.is_cached(1) && !tables.is_device(1));
        assert!(tables.is_device(2) && !tables.is_cached(2));
    }
}
