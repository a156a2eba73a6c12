//! Register offsets, and the bits of the registers that this backend drives.
//!
//! Source of all offsets and bits: Linux `iommu.h` (`DMAR_*_REG`, `DMA_GCMD_*`, `DMA_FSTS_*`), in
//! agreement with VirtualBox `iommu-intel.h` and EDK2 `Vtd.h`.

use bitfield_struct::bitfield;

/// Version, 32 bits.
pub const VER: u32 = 0x00;
/// Capability, 64 bits: [`Cap`](super::capability::Cap).
pub const CAP: u32 = 0x08;
/// Extended capability, 64 bits: [`Ecap`](super::capability::Ecap).
pub const ECAP: u32 = 0x10;
/// Global command, 32 bits, write only.
pub const GCMD: u32 = 0x18;
/// Global status, 32 bits: [`GlobalStatus`].
pub const GSTS: u32 = 0x1c;
/// Root table address, 64 bits. Bits 11:10 zero choose legacy tables.
pub const RTADDR: u32 = 0x20;
/// Fault status, 32 bits: [`FaultStatus`].
pub const FSTS: u32 = 0x34;
/// Fault event control, 32 bits: [`FECTL_MASK`].
pub const FECTL: u32 = 0x38;
/// Fault event data, 32 bits: [`FEDATA_BITS`].
pub const FEDATA: u32 = 0x3c;
/// Fault event address, 32 bits: [`FEADDR_BITS`].
pub const FEADDR: u32 = 0x40;
/// Fault event upper address, 32 bits: [`FEUADDR_BITS`].
pub const FEUADDR: u32 = 0x44;
/// Protected memory enable, 32 bits: [`PMEN_ENABLE`], [`PMEN_STATUS`].
pub const PMEN: u32 = 0x64;
/// Invalidation queue head, 64 bits: a byte offset into the queue.
pub const IQH: u32 = 0x80;
/// Invalidation queue tail, 64 bits: a byte offset into the queue.
pub const IQT: u32 = 0x88;
/// Invalidation queue address, 64 bits. Bits 2:0 are log2 of the size in pages, bit 11 the width
/// of descriptors (0: 128 bits).
pub const IQA: u32 = 0x90;
/// Invalidation queue error record, 64 bits; zero on old hardware.
pub const IQERCD: u32 = 0xb0;

/// The first byte past the registers at fixed offsets that this backend touches.
pub const FIXED_END: u32 = IQERCD + 8;
/// Bytes of the pair of IOTLB registers at ECAP.IRO.
pub const IOTLB_REGISTERS: u32 = 16;

/// The level bits of GSTS that a GCMD write must repeat: all but the one-shot commands
/// (bits 30, 29, 27 and 24). Source: ACRN `vtd.c`, Linux, Intel datasheets.
pub const GCMD_LEVELS: u32 = 0x96ff_ffff;
/// GCMD: translation enable.
pub const GCMD_TE: u32 = 1 << 31;
/// GCMD, one-shot: take the root table pointer.
pub const GCMD_SRTP: u32 = 1 << 30;
/// GCMD, one-shot: flush the write buffer.
pub const GCMD_WBF: u32 = 1 << 27;
/// GCMD: queued invalidation enable.
pub const GCMD_QIE: u32 = 1 << 26;

/// FECTL: the fault interrupt is masked.
pub const FECTL_MASK: u32 = 1 << 31;
/// FEDATA: what an interrupt message says: vector and delivery mode. The upper half is reserved on units with data of 16
/// bits, and no message has more. Source: VirtualBox `VTD_BF_FEDATA_REG_*` (IMD, EIMD).
pub const FEDATA_BITS: u32 = 0xffff;
/// FEADDR: the address of the message but for its two lowest bits. Source: VirtualBox `VTD_BF_FEADDR_REG_MA`.
pub const FEADDR_BITS: u32 = 0xffff_fffc;
/// FEADDR: the message is one of the remappable format, which no interrupt of a unit is: nothing translates what it writes.
/// Source: QEMU `VTD_MSI_ADDR` and its format bit (`VTD_IR_MSI`), Linux `intel_irq_remapping.c` (MSI address, bit 4).
pub const FEADDR_REMAPPABLE: u32 = 1 << 4;
/// FEUADDR: bits 31:8 of the APIC id that the message is for, on units with ECAP.EIM; others have none of it. Source: Xen
/// `dma_msi_set_affinity`.
pub const FEUADDR_BITS: u32 = 0xffff_ff00;
/// PMEN: protected memory regions are on.
pub const PMEN_ENABLE: u32 = 1 << 31;
/// PMEN, read only: protected memory regions are in force.
pub const PMEN_STATUS: u32 = 1;

/// Global status, GSTS.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalStatus {
    #[bits(23)]
    __: u32,
    /// Compatibility format interrupts pass (bit 23).
    pub cfis: bool,
    /// The interrupt table pointer was taken (bit 24).
    pub irtps: bool,
    /// Interrupts are remapped (bit 25).
    pub ires: bool,
    /// The invalidation queue is on (bit 26).
    pub qies: bool,
    /// A write buffer flush is under way (bit 27).
    pub wbfs: bool,
    /// Advanced fault logging is on (bit 28).
    pub afls: bool,
    /// The fault log pointer was taken (bit 29).
    pub fls: bool,
    /// The root table pointer was taken (bit 30).
    pub rtps: bool,
    /// DMA is translated (bit 31).
    pub tes: bool,
}

/// Fault status, FSTS. Bits 0 and 2 to 6 are cleared by writing them as ones.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// A fault was lost because all records were full (bit 0).
    pub pfo: bool,
    /// Some fault record is full (bit 1, read only).
    pub ppf: bool,
    /// The advanced log overflowed (bit 2).
    pub afo: bool,
    /// The advanced log has an entry (bit 3).
    pub apf: bool,
    /// Invalidation queue error: a descriptor was refused and the queue stands (bit 4).
    pub iqe: bool,
    /// An invalidation completion with an error arrived (bit 5).
    pub ice: bool,
    /// A device did not answer an invalidation in time (bit 6).
    pub ite: bool,
    __: bool,
    /// The first full fault record (bits 15:8).
    pub fri: u8,
    __: u16,
}

/// FSTS: everything that is cleared by writing ones.
pub const FSTS_CLEAR: u32 = 0x7d;
/// FSTS: the errors of the invalidation queue (IQE, ICE, ITE).
pub const FSTS_QUEUE_ERRORS: u32 = 0x70;
/// FSTS: a descriptor was refused and the queue stands (IQE).
pub const FSTS_IQE: u32 = 1 << 4;
/// IQERCD: why a descriptor was refused (IQEI, bits 3:0).
pub const IQERCD_IQEI: u64 = 0xf;

/// Whether IQEI says that the unit refuses what stands in a descriptor: 3 an unknown type, 4 reserved bits, 5 its width, 7 what
/// it says of tables, or 0, by units that do not say why. Not so of 1 and 6, a bad tail, and 2, a descriptor that could not
/// be fetched (VirtualBox, IQERCD fields).
pub const fn is_refusal(iqei: u64) -> bool {
    matches!(iqei, 0 | 3 | 4 | 5 | 7)
}

/// FSTS: lost faults (PFO).
pub const FSTS_PFO: u32 = 1;

/// Version, VER: two numbers of four bits.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Version {
    /// Minor number (bits 3:0).
    #[bits(4)]
    pub minor: u8,
    /// Major number (bits 7:4).
    #[bits(4)]
    pub major: u8,
    #[bits(24)]
    __: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_match_an_independent_table() {
        let table = [
            (VER, 0x00),
            (CAP, 0x08),
            (ECAP, 0x10),
            (GCMD, 0x18),
            (GSTS, 0x1c),
            (RTADDR, 0x20),
            (FSTS, 0x34),
            (FECTL, 0x38),
            (FEDATA, 0x3c),
            (FEADDR, 0x40),
            (FEUADDR, 0x44),
            (PMEN, 0x64),
            (IQH, 0x80),
            (IQT, 0x88),
            (IQA, 0x90),
            (IQERCD, 0xb0),
        ];
        for (ours, literal) in table {
            assert_eq!(ours, literal);
        }
        assert_eq!(FIXED_END, 0xb8);
    }

    #[test]
    fn command_bits_match_an_independent_table() {
        assert_eq!(GCMD_TE, 0x8000_0000);
        assert_eq!(GCMD_SRTP, 0x4000_0000);
        assert_eq!(GCMD_WBF, 0x0800_0000);
        assert_eq!(GCMD_QIE, 0x0400_0000);
        assert_eq!(GCMD_LEVELS, !(1 << 30 | 1 << 29 | 1 << 27 | 1 << 24));
    }

    #[test]
    fn status_bits_match_an_independent_table() {
        let table: [(u32, GlobalStatus); 9] = [
            (0x8000_0000, GlobalStatus::new().with_tes(true)),
            (0x4000_0000, GlobalStatus::new().with_rtps(true)),
            (0x2000_0000, GlobalStatus::new().with_fls(true)),
            (0x1000_0000, GlobalStatus::new().with_afls(true)),
            (0x0800_0000, GlobalStatus::new().with_wbfs(true)),
            (0x0400_0000, GlobalStatus::new().with_qies(true)),
            (0x0200_0000, GlobalStatus::new().with_ires(true)),
            (0x0100_0000, GlobalStatus::new().with_irtps(true)),
            (0x0080_0000, GlobalStatus::new().with_cfis(true)),
        ];
        for (word, status) in table {
            assert_eq!(status.into_bits(), word);
        }
    }

    #[test]
    fn fault_status_bits_match_an_independent_table() {
        let table: [(u32, FaultStatus); 8] = [
            (0x01, FaultStatus::new().with_pfo(true)),
            (0x02, FaultStatus::new().with_ppf(true)),
            (0x04, FaultStatus::new().with_afo(true)),
            (0x08, FaultStatus::new().with_apf(true)),
            (0x10, FaultStatus::new().with_iqe(true)),
            (0x20, FaultStatus::new().with_ice(true)),
            (0x40, FaultStatus::new().with_ite(true)),
            (0xab00, FaultStatus::new().with_fri(0xab)),
        ];
        for (word, status) in table {
            assert_eq!(status.into_bits(), word);
        }
        assert_eq!(FSTS_QUEUE_ERRORS, 0x10 | 0x20 | 0x40);
        assert_eq!(FSTS_IQE, FaultStatus::new().with_iqe(true).into_bits());
        let refusals = (0..=IQERCD_IQEI).filter(|code| is_refusal(*code));
        assert!(refusals.eq([0, 3, 4, 5, 7]));
        assert_eq!(FSTS_CLEAR, 0x01 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40);
        assert_eq!(FSTS_PFO, 0x01);
        assert_eq!(Version::from_bits(0x10).major(), 1);
        assert_eq!(Version::from_bits(0x16).minor(), 6);
    }
}
