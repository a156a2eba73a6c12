//! What a unit says it is and can do: IDR0 to IDR5, IIDR and AIDR. Abilities that decide what may be said elsewhere are
//! handed out as tokens.
//!
//! Source: Linux `arm-smmu-v3.h` and QEMU `smmuv3-internal.h`; IDR3 other than FWB and RIL is QEMU's alone.

use bitfield_struct::bitfield;

use super::granule::{Granule, OutputSize};

/// Features: stages, formats, ids, queues.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr0 {
    /// Second stages (bit 0).
    pub s2p: bool,
    /// First stages (bit 1).
    pub s1p: bool,
    /// Table formats (bits 3:2), see [`Self::has_aarch64`].
    #[bits(2)]
    pub ttf: u8,
    /// The unit can snoop the CPU's caches (bit 4). Firmware's word wins over this one.
    pub cohacc: bool,
    /// Takes part in invalidations that CPUs broadcast (bit 5).
    pub btm: bool,
    /// Notes accesses (1), and writes (2), in leaves, and accesses in what leads to them too (3) (bits 7:6; IHI 0070, 6.3.1),
    /// see [`Self::writes_dirty`].
    #[bits(2)]
    pub httu: u8,
    /// Dormant hint (bit 8).
    pub dormhint: bool,
    /// The EL2 regime (bit 9).
    pub hyp: bool,
    /// Translation requests of devices (bit 10).
    pub ats: bool,
    /// Of first stages only (bit 11).
    pub ns1ats: bool,
    /// ASIDs have 16 bits (bit 12).
    pub asid16: bool,
    /// Interrupts can be messages (bit 13).
    pub msi: bool,
    /// Wakes CPUs that wait for an event (bit 14).
    pub sev: bool,
    /// Address translation by registers (bit 15).
    pub atos: bool,
    /// Page requests (bit 16).
    pub pri: bool,
    /// VMID wildcards (bit 17).
    pub vmw: bool,
    /// VMIDs have 16 bits (bit 18).
    pub vmid16: bool,
    /// Context descriptors in two levels (bit 19).
    pub cd2l: bool,
    /// Virtual ATOS (bit 20).
    pub vatos: bool,
    /// Byte orders of tables (bits 22:21), see [`Self::has_little_endian`].
    #[bits(2)]
    pub ttendian: u8,
    /// Errors of ATS are recorded (bit 23).
    pub atsrecerr: bool,
    /// Whether faults may stall (bits 25:24), see [`Self::stall_model`].
    #[bits(2)]
    pub stall: u8,
    /// Faults that are not reported end with an abort only (bit 26).
    pub term_model: bool,
    /// Depths of stream tables (bits 28:27), see [`Self::has_two_levels`].
    #[bits(2)]
    pub st_level: u8,
    __: bool,
    /// Realms (bit 30).
    pub rme_impl: bool,
    __: bool,
}

/// TTF: AArch64 tables alone.
pub(super) const TTF_AARCH64: u8 = 2;
/// TTF: AArch32 and AArch64 tables.
const TTF_BOTH: u8 = 3;
/// TTENDIAN: either order.
const TTENDIAN_MIXED: u8 = 0;
/// TTENDIAN: little endian alone.
pub(super) const TTENDIAN_LITTLE: u8 = 2;
/// STALL_MODEL: faults never stall.
pub(super) const STALL_NEVER: u8 = 1;
/// STALL_MODEL: faults always stall.
pub(super) const STALL_FORCED: u8 = 2;
/// ST_LEVEL: linear and two levels.
const ST_LEVEL_TWO: u8 = 1;
/// HTTU: accesses and writes, and from there on.
const HTTU_DIRTY: u8 = 2;

impl Idr0 {
    /// Whether the unit walks the tables of AArch64.
    pub const fn has_aarch64(self) -> bool {
        matches!(self.ttf(), TTF_AARCH64 | TTF_BOTH)
    }

    /// Whether the unit walks the tables of AArch32: input addresses have 40 bits at least then (Linux).
    pub const fn has_aarch32(self) -> bool {
        matches!(self.ttf(), TTF_BOTH)
    }

    /// Whether the unit reads little-endian tables.
    pub const fn has_little_endian(self) -> bool {
        matches!(self.ttendian(), TTENDIAN_MIXED | TTENDIAN_LITTLE)
    }

    /// Whether stream tables may have two levels.
    pub const fn has_two_levels(self) -> bool {
        self.st_level() == ST_LEVEL_TWO
    }

    /// That the unit can note in leaves what devices write.
    pub const fn writes_dirty(self) -> Option<WritesDirty> {
        if self.httu() >= HTTU_DIRTY {
            Some(WritesDirty(()))
        } else {
            None
        }
    }

    /// Whether faults may, cannot or must stall their transaction; `None` for a code that means nothing.
    pub const fn stall_model(self) -> Option<StallModel> {
        match self.stall() {
            0 => Some(StallModel::Optional),
            STALL_NEVER => Some(StallModel::Never),
            STALL_FORCED => Some(StallModel::Forced),
            _ => None,
        }
    }

    /// Significant bits of an ASID.
    pub const fn asid_bits(self) -> u8 {
        if self.asid16() { 16 } else { 8 }
    }

    /// Significant bits of a VMID.
    pub const fn vmid_bits(self) -> u8 {
        if self.vmid16() { 16 } else { 8 }
    }

    /// That devices may ask for translations.
    pub const fn translation_requests(self) -> Option<TranslationRequests> {
        if self.ats() {
            Some(TranslationRequests(()))
        } else {
            None
        }
    }
}

/// Whether a fault may stall its transaction until software answers (IDR0.STALL_MODEL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallModel {
    /// Each configuration says so (0).
    Optional,
    /// No (1).
    Never,
    /// Always (2).
    Forced,
}

impl StallModel {
    /// That a fault ends its transaction; `None` where it must stall.
    pub const fn terminate(self) -> Option<OnFault> {
        match self {
            Self::Optional => Some(OnFault(Answer::Forbidden)),
            Self::Never => Some(OnFault(Answer::Impossible)),
            Self::Forced => None,
        }
    }

    /// That a fault stalls its transaction; `None` where it cannot.
    pub const fn stall(self) -> Option<OnFault> {
        match self {
            Self::Optional | Self::Forced => Some(OnFault(Answer::Stall)),
            Self::Never => None,
        }
    }
}

/// What a fault does to its transaction, as the unit's [`StallModel`] allows: nothing else can be said in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnFault(Answer);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Transactions stall.
    Stall,
    /// They could, and must not: S1STALLD is set.
    Forbidden,
    /// They cannot: S1STALLD stays clear.
    Impossible,
}

impl OnFault {
    /// Whether the transaction waits for software.
    pub const fn stalls(self) -> bool {
        matches!(self.0, Answer::Stall)
    }

    /// Whether S1STALLD has to keep a first stage from stalling.
    pub(super) const fn is_forbidden_to_stall(self) -> bool {
        matches!(self.0, Answer::Forbidden)
    }
}

/// Shows that the unit answers translation requests (IDR0.ATS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationRequests(());

/// Shows that the unit notes accesses and writes in leaves (IDR0.HTTU). Firmware may know better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritesDirty(());

/// Shows that a second stage can force memory types (IDR3.FWB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForcedWriteBack(());

/// Shows that one command may invalidate a range (IDR3.RIL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeInvalidation(());

/// Sizes: ids and queues.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr1 {
    /// Bits of a StreamID (bits 5:0).
    #[bits(6)]
    pub sidsize: u8,
    /// Bits of a substream id (bits 10:6).
    #[bits(5)]
    pub ssidsize: u8,
    /// Log2 of the most entries of the page request queue (bits 15:11).
    #[bits(5)]
    pub priqs: u8,
    /// Of the event queue (bits 20:16).
    #[bits(5)]
    pub eventqs: u8,
    /// Of the command queue (bits 25:21).
    #[bits(5)]
    pub cmdqs: u8,
    /// Permissions of transactions may be overridden (bit 26).
    pub attr_perms_ovr: bool,
    /// Memory types of transactions may be overridden (bit 27).
    pub attr_types_ovr: bool,
    /// Preset addresses are offsets (bit 28).
    pub rel: bool,
    /// The places of queues are fixed (bit 29).
    pub queues_preset: bool,
    /// The place of the stream table is fixed (bit 30).
    pub tables_preset: bool,
    /// More command queues (bit 31).
    pub ecmdq: bool,
}

impl Idr1 {
    /// Whether tables or queues are where the hardware wants them: such units are refused, as by Linux.
    pub const fn is_preset(self) -> bool {
        self.rel() || self.queues_preset() || self.tables_preset()
    }
}

/// Where VATOS registers are.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr2 {
    /// Their page (bits 9:0).
    #[bits(10)]
    pub ba_vatos: u16,
    #[bits(22)]
    __: u32,
}

/// More features: tables and invalidation.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr3 {
    #[bits(2)]
    __: u8,
    /// Hierarchical attributes can be turned off (bit 2).
    pub had: bool,
    /// Page-based hardware attributes (bit 3).
    pub pbha: bool,
    /// Execute permission apart for EL0 and EL1 in second stages (bit 4).
    pub xnx: bool,
    /// PASIDs in responses to page requests (bit 5).
    pub pps: bool,
    __: bool,
    /// Memory partitioning (bit 7).
    pub mpam: bool,
    /// A second stage can force memory types (bit 8), see [`Self::forced_write_back`].
    pub fwb: bool,
    /// Small tables (bit 9).
    pub stt: bool,
    /// Range invalidation (bit 10), see [`Self::range_invalidation`].
    pub ril: bool,
    /// What may change in a live entry (bits 12:11): 0, 1 or 2.
    #[bits(2)]
    pub bbml: u8,
    /// EL0 can be kept from translations (bit 13).
    pub e0pd: bool,
    /// Walks of a first stage through device memory (bit 14).
    pub ptwnnc: bool,
    /// Device permission table (bit 15).
    pub dpt: bool,
    __: u16,
}

impl Idr3 {
    /// That a second stage can force memory types.
    pub const fn forced_write_back(self) -> Option<ForcedWriteBack> {
        if self.fwb() {
            Some(ForcedWriteBack(()))
        } else {
            None
        }
    }

    /// That one command may invalidate a range.
    pub const fn range_invalidation(self) -> Option<RangeInvalidation> {
        if self.ril() {
            Some(RangeInvalidation(()))
        } else {
            None
        }
    }
}

/// Addresses, granules and how much may stall.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Idr5 {
    /// Physical addresses (bits 2:0), see [`Self::output_size`].
    #[bits(3)]
    pub oas: u8,
    __: bool,
    /// 4 KiB granule (bit 4).
    pub gran4k: bool,
    /// 16 KiB granule (bit 5).
    pub gran16k: bool,
    /// 64 KiB granule (bit 6).
    pub gran64k: bool,
    #[bits(3)]
    __: u8,
    /// Virtual addresses (bits 11:10): 0 for 48 bits, 1 for 52, 2 for 56 with descriptors of 128 bits.
    #[bits(2)]
    pub vax: u8,
    #[bits(4)]
    __: u8,
    /// How many transactions may stall at once (bits 31:16).
    pub stall_max: u16,
}

impl Idr5 {
    /// The size of physical addresses; the reserved code counts as the largest that is known (as for CPUs).
    pub const fn output_size(self) -> OutputSize {
        match OutputSize::from_code(self.oas()) {
            Some(size) => size,
            None => OutputSize::Bits52,
        }
    }

    /// Significant bits of the longest address that a first stage's tables of this granule translate: T0SZ is 16 at the least,
    /// and 12 with 64 KiB where VAX says 52 bits or more (IHI 0070, 3.4 and 5.4). The reserved code promises nothing.
    pub const fn input_bits(self, granule: Granule) -> u8 {
        match self.vax() {
            1 | 2 => granule.address_bits(),
            _ => 48,
        }
    }

    /// Whether tables may have this granule.
    pub const fn has_granule(self, granule: Granule) -> bool {
        match granule {
            Granule::Size4K => self.gran4k(),
            Granule::Size16K => self.gran16k(),
            Granule::Size64K => self.gran64k(),
        }
    }
}

/// Who made the unit.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Iidr {
    /// JEP106 code of the maker (bits 11:0), [`IMPLEMENTER_ARM`].
    #[bits(12)]
    pub implementer: u16,
    /// Minor revision (bits 15:12).
    #[bits(4)]
    pub revision: u8,
    /// Major revision (bits 19:16).
    #[bits(4)]
    pub variant: u8,
    /// Product (bits 31:20).
    #[bits(12)]
    pub product: u16,
}

/// IIDR.Implementer: Arm.
pub const IMPLEMENTER_ARM: u16 = 0x43b;

/// Version of the architecture (recalled; QEMU has 1 for SMMUv3.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Aidr {
    /// Minor version: SMMUv3.n (bits 3:0).
    #[bits(4)]
    pub minor: u8,
    /// Major version, 0 (bits 7:4).
    #[bits(4)]
    pub major: u8,
    #[bits(24)]
    __: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_bits_match_an_independent_table() {
        let idr0 = Idr0::new();
        let table = [
            (idr0.with_s2p(true), 0),
            (idr0.with_s1p(true), 1),
            (idr0.with_cohacc(true), 4),
            (idr0.with_btm(true), 5),
            (idr0.with_dormhint(true), 8),
            (idr0.with_hyp(true), 9),
            (idr0.with_ats(true), 10),
            (idr0.with_ns1ats(true), 11),
            (idr0.with_asid16(true), 12),
            (idr0.with_msi(true), 13),
            (idr0.with_sev(true), 14),
            (idr0.with_atos(true), 15),
            (idr0.with_pri(true), 16),
            (idr0.with_vmw(true), 17),
            (idr0.with_vmid16(true), 18),
            (idr0.with_cd2l(true), 19),
            (idr0.with_vatos(true), 20),
            (idr0.with_atsrecerr(true), 23),
            (idr0.with_term_model(true), 26),
            (idr0.with_rme_impl(true), 30),
        ];
        for (ours, bit) in table {
            assert_eq!(ours.into_bits(), 1 << bit);
        }
        let fields = [
            (idr0.with_ttf(3), 0xc),
            (idr0.with_httu(3), 0xc0),
            (idr0.with_ttendian(3), 0x60_0000),
            (idr0.with_stall(3), 0x300_0000),
            (idr0.with_st_level(3), 0x1800_0000),
        ];
        for (ours, literal) in fields {
            assert_eq!(ours.into_bits(), literal);
        }
        let idr1 = Idr1::new();
        let table = [
            (idr1.with_sidsize(0x3f), 0x3f),
            (idr1.with_ssidsize(0x1f), 0x7c0),
            (idr1.with_priqs(0x1f), 0xf800),
            (idr1.with_eventqs(0x1f), 0x1f_0000),
            (idr1.with_cmdqs(0x1f), 0x3e0_0000),
            (idr1.with_attr_perms_ovr(true), 1 << 26),
            (idr1.with_attr_types_ovr(true), 1 << 27),
            (idr1.with_rel(true), 1 << 28),
            (idr1.with_queues_preset(true), 1 << 29),
            (idr1.with_tables_preset(true), 1 << 30),
            (idr1.with_ecmdq(true), 1 << 31),
        ];
        for (ours, literal) in table {
            assert_eq!(ours.into_bits(), literal);
        }
        let idr3 = Idr3::new();
        let table = [
            (idr3.with_had(true), 0x4),
            (idr3.with_pbha(true), 0x8),
            (idr3.with_xnx(true), 0x10),
            (idr3.with_pps(true), 0x20),
            (idr3.with_mpam(true), 0x80),
            (idr3.with_fwb(true), 0x100),
            (idr3.with_stt(true), 0x200),
            (idr3.with_ril(true), 0x400),
            (idr3.with_bbml(3), 0x1800),
            (idr3.with_e0pd(true), 0x2000),
            (idr3.with_ptwnnc(true), 0x4000),
            (idr3.with_dpt(true), 0x8000),
        ];
        for (ours, literal) in table {
            assert_eq!(ours.into_bits(), literal);
        }
        assert_eq!(Idr5::new().with_vax(3).into_bits(), 0xc00);
        assert_eq!(Idr5::new().with_stall_max(0xffff).into_bits(), 0xffff_0000);
    }

    #[test]
    fn a_nested_unit_seen_in_an_emulator_decodes() {
        // QEMU 10, virt with stage=nested.
        let idr0 = Idr0::from_bits(0x0d44_101b);
        assert!(idr0.s1p() && idr0.s2p() && idr0.cohacc());
        assert!(idr0.has_aarch64() && !idr0.has_aarch32() && idr0.has_little_endian());
        assert!(idr0.has_two_levels() && !idr0.cd2l() && !idr0.hyp());
        assert_eq!((idr0.asid_bits(), idr0.vmid_bits()), (16, 16));
        assert_eq!(idr0.stall_model(), Some(StallModel::Never));
        assert_eq!(idr0.translation_requests(), None);
        assert!(idr0.writes_dirty().is_none() && !idr0.msi() && idr0.term_model());
        let idr1 = Idr1::from_bits(0x0273_0010);
        assert_eq!((idr1.sidsize(), idr1.ssidsize()), (16, 0));
        assert_eq!((idr1.cmdqs(), idr1.eventqs(), idr1.priqs()), (19, 19, 0));
        assert!(!idr1.is_preset());
        let idr3 = Idr3::from_bits(0x1414);
        assert!(idr3.range_invalidation().is_some() && idr3.forced_write_back().is_none());
        assert!(idr3.had() && idr3.xnx());
        assert_eq!(idr3.bbml(), 2);
        let idr5 = Idr5::from_bits(0x74);
        assert_eq!(idr5.output_size().bits(), 44);
        for granule in [Granule::Size4K, Granule::Size16K, Granule::Size64K] {
            assert!(idr5.has_granule(granule));
        }
        assert_eq!(Aidr::from_bits(1).minor(), 1);
    }

    #[test]
    fn units_of_one_stage_seen_in_an_emulator_decode() {
        let second = Idr0::from_bits(0x0d44_1019);
        assert!(second.s2p() && !second.s1p());
        let first = Idr0::from_bits(0x0d44_101a);
        assert!(first.s1p() && !first.s2p());
        assert!(!Idr3::from_bits(0x1404).xnx());
    }

    #[test]
    fn what_a_fault_does_is_what_the_unit_can() {
        let may = |model: StallModel| (model.terminate().is_some(), model.stall().is_some());
        assert_eq!(may(StallModel::Optional), (true, true));
        assert_eq!(may(StallModel::Never), (true, false));
        assert_eq!(may(StallModel::Forced), (false, true));
        assert_eq!(Idr0::new().with_stall(3).stall_model(), None);
    }

    #[test]
    fn makers_decode() {
        // MMU-600 r0p2.
        let iidr = Iidr::from_bits(0x4830_243b);
        assert_eq!(iidr.implementer(), IMPLEMENTER_ARM);
        assert_eq!(
            (iidr.product(), iidr.variant(), iidr.revision()),
            (0x483, 0, 2)
        );
    }
}
