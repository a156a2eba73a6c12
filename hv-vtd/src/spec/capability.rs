//! What a unit can do: the capability registers CAP and ECAP.
//!
//! Source: Linux `iommu.h` (`cap_*`, `ecap_*`), VirtualBox `iommu-intel.h` and EDK2 `Vtd.h`.
//! Fields keep the manual's names; each says what a set bit means.

use bitfield_struct::bitfield;

/// The capability register.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// 2^(4 + 2 ND) domain ids; 7 is reserved (bits 2:0).
    #[bits(3)]
    pub nd: u8,
    /// Has an advanced fault log (bit 3).
    pub afl: bool,
    /// Needs write buffer flushes (bit 4).
    pub rwbf: bool,
    /// Has a protected low memory region (bit 5).
    pub plmr: bool,
    /// Has a protected high memory region (bit 6).
    pub phmr: bool,
    /// Caches entries that are not present (bit 7).
    pub cm: bool,
    /// Second-stage depths: [`SAGAW_3_LEVELS`] and its neighbours (bits 12:8).
    #[bits(5)]
    pub sagaw: u8,
    #[bits(3)]
    __: u8,
    /// Width of the addresses of devices, minus one (bits 21:16).
    #[bits(6)]
    pub mgaw: u8,
    /// Zero-length reads of write-only pages are allowed (bit 22).
    pub zlr: bool,
    __: bool,
    /// Offset of the fault records, in 16 bytes (bits 33:24).
    #[bits(10)]
    pub fro: u16,
    /// Second-stage large pages: bit 0 for 2 MiB, bit 1 for 1 GiB (bits 37:34).
    #[bits(4)]
    pub sslps: u8,
    __: bool,
    /// Invalidates page ranges, not only whole domains (bit 39).
    pub psi: bool,
    /// Number of fault records, minus one (bits 47:40).
    pub nfr: u8,
    /// Largest address mask of a page range invalidation (bits 53:48).
    #[bits(6)]
    pub mamv: u8,
    /// Drains writes at an invalidation (bit 54).
    pub dwd: bool,
    /// Drains reads at an invalidation (bit 55).
    pub drd: bool,
    /// First-stage 1 GiB pages (bit 56).
    pub fs1gp: bool,
    #[bits(2)]
    __: u8,
    /// Posted interrupts (bit 59).
    pub pi: bool,
    /// First-stage 5-level tables (bit 60).
    pub fs5lp: bool,
    /// Enhanced commands (bit 61; Linux only).
    pub ecmds: bool,
    /// Taking the interrupt table pointer flushes the interrupt cache (bit 62).
    pub esirtps: bool,
    /// Taking the root table pointer flushes all translation caches (bit 63).
    pub esrtps: bool,
}

/// SAGAW: 39-bit addresses by 3-level tables.
pub const SAGAW_3_LEVELS: u8 = 1 << 1;
/// SAGAW: 48-bit addresses by 4-level tables.
pub const SAGAW_4_LEVELS: u8 = 1 << 2;
/// SAGAW: 57-bit addresses by 5-level tables.
pub const SAGAW_5_LEVELS: u8 = 1 << 3;
/// SSLPS: 2 MiB pages.
pub const SSLPS_2M: u8 = 1 << 0;
/// SSLPS: 1 GiB pages.
pub const SSLPS_1G: u8 = 1 << 1;
/// ND: the one value that is reserved.
pub const ND_RESERVED: u8 = 7;

impl Cap {
    /// How many domain ids there are, or `None` for the reserved value of ND.
    pub const fn domain_ids(self) -> Option<u32> {
        let nd = self.nd();
        if nd == ND_RESERVED {
            return None;
        }
        Some(1 << (4 + 2 * nd as u32))
    }

    /// Byte offset of the first fault record.
    pub const fn fault_records(self) -> u32 {
        self.fro() as u32 * 16
    }

    /// How many fault records there are, 1 to 256.
    pub const fn fault_record_count(self) -> u32 {
        self.nfr() as u32 + 1
    }

    /// Significant bits of an address that a device may send, 1 to 64.
    pub const fn guest_address_bits(self) -> u8 {
        self.mgaw() + 1
    }
}

/// The extended capability register.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ecap {
    /// Reads its tables through the CPU's caches (bit 0).
    pub c: bool,
    /// Queued invalidation (bit 1).
    pub qi: bool,
    /// Device TLBs (bit 2).
    pub dt: bool,
    /// Interrupt remapping (bit 3).
    pub ir: bool,
    /// 32-bit interrupt destinations (bit 4).
    pub eim: bool,
    __: bool,
    /// Pass-through (bit 6).
    pub pt: bool,
    /// Snoop control (bit 7).
    pub sc: bool,
    /// Offset of the IOTLB registers, in 16 bytes (bits 17:8).
    #[bits(10)]
    pub iro: u16,
    #[bits(2)]
    __: u8,
    /// Largest mask of an interrupt index invalidation (bits 23:20).
    #[bits(4)]
    pub mhmv: u8,
    __: bool,
    /// Memory types in entries (bit 25).
    pub mts: bool,
    /// Nested translation (bit 26).
    pub nest: bool,
    #[bits(2)]
    __: u8,
    /// Page requests (bit 29).
    pub prs: bool,
    /// Execute requests (bit 30).
    pub ers: bool,
    /// Supervisor requests (bit 31).
    pub srs: bool,
    #[bits(1)]
    __: u8,
    /// No-write flag (bit 33).
    pub nwfs: bool,
    /// Extended accessed flags (bit 34).
    pub eafs: bool,
    /// PASID bits, minus one (bits 39:35).
    #[bits(5)]
    pub pss: u8,
    /// PASIDs (bit 40).
    pub pasid: bool,
    /// Device TLB invalidations name the physical function (bit 41).
    pub dit: bool,
    /// Waits may drain page requests (bit 42).
    pub pds: bool,
    /// Scalable mode (bit 43).
    pub smts: bool,
    /// Virtual commands (bit 44).
    pub vcs: bool,
    /// Second-stage accessed and dirty bits (bit 45).
    pub ssads: bool,
    /// Second stage in scalable mode (bit 46).
    pub ssts: bool,
    /// First stage in scalable mode (bit 47).
    pub fsts: bool,
    /// Page walks in scalable mode snoop (bit 48).
    pub smpwcs: bool,
    /// RID_PASID is honoured (bit 49).
    pub rps: bool,
    __: bool,
    /// Performance monitoring (bit 51).
    pub pms: bool,
    /// Abort-DMA mode (bit 52).
    pub adms: bool,
    /// RID_PRIV (bit 53).
    pub rprivs: bool,
    #[bits(10)]
    __: u16,
}

impl Ecap {
    /// Byte offset of the pair of IOTLB registers.
    pub const fn iotlb_registers(self) -> u32 {
        self.iro() as u32 * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_bits_match_an_independent_table() {
        let table: [(u64, Cap); 24] = [
            (0x7, Cap::new().with_nd(7)),
            (1 << 3, Cap::new().with_afl(true)),
            (1 << 4, Cap::new().with_rwbf(true)),
            (1 << 5, Cap::new().with_plmr(true)),
            (1 << 6, Cap::new().with_phmr(true)),
            (1 << 7, Cap::new().with_cm(true)),
            (0x1f00, Cap::new().with_sagaw(0x1f)),
            (0x3f_0000, Cap::new().with_mgaw(0x3f)),
            (1 << 22, Cap::new().with_zlr(true)),
            (0x3_ff00_0000, Cap::new().with_fro(0x3ff)),
            (0x3c_0000_0000, Cap::new().with_sslps(0xf)),
            (1 << 39, Cap::new().with_psi(true)),
            (0xff << 40, Cap::new().with_nfr(0xff)),
            (0x3f << 48, Cap::new().with_mamv(0x3f)),
            (1 << 54, Cap::new().with_dwd(true)),
            (1 << 55, Cap::new().with_drd(true)),
            (1 << 56, Cap::new().with_fs1gp(true)),
            (1 << 59, Cap::new().with_pi(true)),
            (1 << 60, Cap::new().with_fs5lp(true)),
            (1 << 61, Cap::new().with_ecmds(true)),
            (1 << 62, Cap::new().with_esirtps(true)),
            (1 << 63, Cap::new().with_esrtps(true)),
            (1 << 9, Cap::new().with_sagaw(SAGAW_3_LEVELS)),
            (1 << 35, Cap::new().with_sslps(SSLPS_1G)),
        ];
        for (word, cap) in table {
            assert_eq!(cap.into_bits(), word, "{cap:?}");
        }
    }

    #[test]
    fn ecap_bits_match_an_independent_table() {
        let table: [(u64, Ecap); 33] = [
            (1, Ecap::new().with_c(true)),
            (1 << 1, Ecap::new().with_qi(true)),
            (1 << 2, Ecap::new().with_dt(true)),
            (1 << 3, Ecap::new().with_ir(true)),
            (1 << 4, Ecap::new().with_eim(true)),
            (1 << 6, Ecap::new().with_pt(true)),
            (1 << 7, Ecap::new().with_sc(true)),
            (0x3ff00, Ecap::new().with_iro(0x3ff)),
            (0xf0_0000, Ecap::new().with_mhmv(0xf)),
            (1 << 25, Ecap::new().with_mts(true)),
            (1 << 26, Ecap::new().with_nest(true)),
            (1 << 29, Ecap::new().with_prs(true)),
            (1 << 30, Ecap::new().with_ers(true)),
            (1 << 31, Ecap::new().with_srs(true)),
            (1 << 33, Ecap::new().with_nwfs(true)),
            (1 << 34, Ecap::new().with_eafs(true)),
            (0x1f << 35, Ecap::new().with_pss(0x1f)),
            (1 << 40, Ecap::new().with_pasid(true)),
            (1 << 41, Ecap::new().with_dit(true)),
            (1 << 42, Ecap::new().with_pds(true)),
            (1 << 43, Ecap::new().with_smts(true)),
            (1 << 44, Ecap::new().with_vcs(true)),
            (1 << 45, Ecap::new().with_ssads(true)),
            (1 << 46, Ecap::new().with_ssts(true)),
            (1 << 47, Ecap::new().with_fsts(true)),
            (1 << 48, Ecap::new().with_smpwcs(true)),
            (1 << 49, Ecap::new().with_rps(true)),
            (1 << 51, Ecap::new().with_pms(true)),
            (1 << 52, Ecap::new().with_adms(true)),
            (1 << 53, Ecap::new().with_rprivs(true)),
            (0xf00, Ecap::new().with_iro(0xf)),
            (0x2, Ecap::from_bits(0x2)),
            (0, Ecap::new()),
        ];
        for (word, ecap) in table {
            assert_eq!(ecap.into_bits(), word, "{ecap:?}");
        }
    }

    #[test]
    fn a_register_pair_read_from_an_emulator_decodes_as_it_documents() {
        // QEMU 10, intel-iommu with default options.
        let cap = Cap::from_bits(0x00d2_008c_222f_0606);
        assert_eq!(cap.domain_ids(), Some(65536));
        assert_eq!(cap.sagaw(), SAGAW_3_LEVELS | SAGAW_4_LEVELS);
        assert_eq!(cap.guest_address_bits(), 48);
        assert_eq!(cap.fault_records(), 0x220);
        assert_eq!(cap.fault_record_count(), 1);
        assert_eq!(cap.sslps(), SSLPS_2M | SSLPS_1G);
        assert_eq!(cap.mamv(), 18);
        assert!(cap.psi() && cap.drd() && cap.dwd());
        assert!(!cap.zlr() && !cap.cm() && !cap.rwbf() && !cap.esrtps());
        let ecap = Ecap::from_bits(0x00f0_0f4a);
        assert_eq!(ecap.iotlb_registers(), 0xf0);
        assert!(ecap.qi() && ecap.ir() && ecap.pt() && !ecap.c() && !ecap.sc() && !ecap.dt());
        assert_eq!(Cap::new().with_nd(ND_RESERVED).domain_ids(), None);
        assert_eq!(Cap::new().domain_ids(), Some(16));
    }
}
