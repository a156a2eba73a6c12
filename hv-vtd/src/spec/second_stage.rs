//! Second-stage table entries.
//!
//! Source: Linux `generic_pt` `vtdss.h` and `iommu.h` (`DMA_PTE_*`), Xen `vtd/iommu.h`, VirtualBox
//! `iommu-intel.h`. Not present means R and W both clear; hardware then looks at nothing else.

use static_assertions::const_assert_eq;

/// Devices may read (bit 0). Permissions of all levels are combined by and.
pub const R: u64 = 1 << 0;
/// Devices may write (bit 1).
pub const W: u64 = 1 << 1;
/// A leaf above level 1: 2 MiB at level 2, 1 GiB at level 3 (bit 7). Ignored at level 1.
pub const PS: u64 = 1 << 7;
/// Hardware walked through it (bit 8), where it keeps such bits at all. Source: Linux `generic_pt`
/// `vtdss.h`.
pub const A: u64 = 1 << 8;
/// Hardware wrote through this leaf (bit 9), likewise.
pub const D: u64 = 1 << 9;
/// What devices send through this leaf snoops the processors' caches, also where it asks not to (bit 11). Leaves only,
/// and only on units with ECAP.SC; reserved elsewhere. Source: Linux `vtdss.h`, Xen `vtd/iommu.h`.
pub const SNP: u64 = 1 << 11;
/// The address of a page or table (bits 51:12). Bits from the host address width are reserved.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits that hardware ignores and software may use: 10, 61:52 (Linux `vtdss`; bit 62 is TM and
/// bit 63 is left alone).
pub const SOFTWARE: u64 = 0x3ff0_0000_0000_0400;
/// Ours, in a leaf; in an entry that is not present: this was one, its address waits for a receipt.
pub const K: u64 = 1 << 56;
/// Ours, in a link: the word reached the memory that a non-coherent walker reads.
pub const WB: u64 = 1 << 57;
/// Ours: in a link, that a reclaimer looks whether its table is empty; in an entry that is not present,
/// that the table at its address was empty and was unlinked.
pub const F: u64 = 1 << 58;

/// Writes of devices to these addresses are interrupts and never translated; entries that lead
/// there fault. Source: Linux `IOAPIC_RANGE_START`, Xen, QEMU `VTD_INTERRUPT_ADDR_FIRST`.
pub const INTERRUPT_WINDOW: u64 = 0xfee0_0000;
/// Size of the interrupt window.
pub const INTERRUPT_WINDOW_BYTES: u64 = 0x10_0000;

const_assert_eq!((K | WB | F) & !SOFTWARE, 0);
const_assert_eq!((R | W | PS | A | D | SNP | ADDRESS) & SOFTWARE, 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_bits_match_an_independent_table() {
        let table = [
            (R, 0x1),
            (W, 0x2),
            (PS, 0x80),
            (A, 0x100),
            (D, 0x200),
            (SNP, 0x800),
            (K, 0x0100_0000_0000_0000),
            (WB, 0x0200_0000_0000_0000),
            (F, 0x0400_0000_0000_0000),
            (ADDRESS, (1 << 52) - (1 << 12)),
        ];
        for (ours, literal) in table {
            assert_eq!(ours, literal);
        }
        let software: u64 = (52..=61).chain([10]).map(|bit| 1 << bit).sum();
        assert_eq!(SOFTWARE, software);
        let last = INTERRUPT_WINDOW + INTERRUPT_WINDOW_BYTES - 1;
        assert_eq!(last, 0xfeef_ffff);
    }
}
