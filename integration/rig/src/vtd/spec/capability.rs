//! What a VT-d unit says it can do: CAP and ECAP, field by field.

mod check;
mod draw;

pub(crate) use check::check;
pub(crate) use draw::draw;

use super::at;

/// The Capability Register, field by field (VT-d manual, Capability Register).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Domain ids have 4 + 2·`nd` bits; 0 to 6.
    pub nd: u8,
    /// Advanced fault log.
    pub afl: bool,
    /// A write buffer must be flushed.
    pub rwbf: bool,
    /// Protected low memory.
    pub plmr: bool,
    /// Protected high memory.
    pub phmr: bool,
    /// Caching mode: what is not present may be cached.
    pub cm: bool,
    /// Table depths: bit 1 for 3 levels, bit 2 for 4, bit 3 for 5.
    pub sagaw: u8,
    /// Bits of the widest address that is translated; the register has one less.
    pub mgaw: u8,
    /// Zero-length reads of pages that may only be written are allowed.
    pub zlr: bool,
    /// Byte offset of the fault records; the register has a sixteenth.
    pub fro: u16,
    /// Large second-stage pages: bit 0 for 2 MiB, bit 1 for 1 GiB.
    pub sslps: u8,
    /// Invalidation by page.
    pub psi: bool,
    /// Fault records, 1 to 256; the register has one less.
    pub nfr: u16,
    /// The largest address mask of an invalidation by page.
    pub mamv: u8,
    /// Writes can be drained.
    pub dwd: bool,
    /// Reads can be drained.
    pub drd: bool,
    /// First-stage pages of 1 GiB.
    pub fs1gp: bool,
    /// Posted interrupts.
    pub pi: bool,
    /// First-stage tables of 5 levels.
    pub fs5lp: bool,
    /// Setting the interrupt table flushes the interrupt cache.
    pub esirtps: bool,
    /// Setting the root table flushes all caches of translations.
    pub esrtps: bool,
}

impl Cap {
    /// The register, of capabilities that [`check`] accepts.
    pub(crate) fn encode(&self) -> u64 {
        let flag = |set: bool, bit| at(set.into(), bit);
        at(self.nd.into(), 0)
            | flag(self.afl, 3)
            | flag(self.rwbf, 4)
            | flag(self.plmr, 5)
            | flag(self.phmr, 6)
            | flag(self.cm, 7)
            | at(self.sagaw.into(), 8)
            | at(u64::from(self.mgaw) - 1, 16)
            | flag(self.zlr, 22)
            | at(u64::from(self.fro) / 16, 24)
            | at(self.sslps.into(), 34)
            | flag(self.psi, 39)
            | at(u64::from(self.nfr) - 1, 40)
            | at(self.mamv.into(), 48)
            | flag(self.dwd, 54)
            | flag(self.drd, 55)
            | flag(self.fs1gp, 56)
            | flag(self.pi, 59)
            | flag(self.fs5lp, 60)
            | flag(self.esirtps, 62)
            | flag(self.esrtps, 63)
    }
}

/// The Extended Capability Register, as far as legacy mode goes (VT-d manual, Extended Capability
/// Register).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecap {
    /// Walks snoop the processors' caches.
    pub c: bool,
    /// The invalidation queue.
    pub qi: bool,
    /// Device-TLBs.
    pub dt: bool,
    /// Interrupt remapping.
    pub ir: bool,
    /// Extended interrupt mode.
    pub eim: bool,
    /// Pass-through.
    pub pt: bool,
    /// Snoop control: leaves may have SNP.
    pub sc: bool,
    /// Byte offset of IVA and IOTLB; the register has a sixteenth.
    pub iro: u16,
    /// The largest index mask of an interrupt invalidation.
    pub mhmv: u8,
}

impl Ecap {
    /// The register, of capabilities that [`check`] accepts.
    pub(crate) fn encode(&self) -> u64 {
        let flag = |set: bool, bit| at(set.into(), bit);
        flag(self.c, 0)
            | flag(self.qi, 1)
            | flag(self.dt, 2)
            | flag(self.ir, 3)
            | flag(self.eim, 4)
            | flag(self.pt, 6)
            | flag(self.sc, 7)
            | at(u64::from(self.iro) / 16, 8)
            | at(self.mhmv.into(), 20)
    }
}

/// Input bits of the deepest tables that a SAGAW allows: 39, 48 or 57 (VT-d manual, CAP.SAGAW).
const fn widest(sagaw: u8) -> u8 {
    match sagaw {
        0b1000.. => 57,
        0b0100.. => 48,
        _ => 39,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 and 4 levels, 48 bits, 8 records at 0x200, both large pages.
    pub(super) fn plain() -> (Cap, Ecap) {
        let cap = Cap {
            nd: 6,
            afl: false,
            rwbf: false,
            plmr: true,
            phmr: true,
            cm: false,
            sagaw: 0b00110,
            mgaw: 48,
            zlr: true,
            fro: 0x200,
            sslps: 0b11,
            psi: true,
            nfr: 8,
            mamv: 18,
            dwd: true,
            drd: true,
            fs1gp: false,
            pi: false,
            fs5lp: false,
            esirtps: false,
            esrtps: true,
        };
        let ecap = Ecap {
            c: true,
            qi: true,
            dt: false,
            ir: true,
            eim: true,
            pt: true,
            sc: true,
            iro: 0x500,
            mhmv: 15,
        };
        (cap, ecap)
    }

    #[test]
    fn registers_have_each_field_in_its_place() {
        let (mut cap, ecap) = plain();
        assert_eq!(cap.encode(), 0x80d2_078c_206f_0666);
        assert_eq!(ecap.encode(), 0x00f0_50db);
        (cap.afl, cap.rwbf, cap.cm) = (true, true, true);
        (cap.fs1gp, cap.pi, cap.fs5lp, cap.esirtps) = (true, true, true, true);
        assert_eq!(cap.encode(), 0xd9d2_078c_206f_06fe);
        assert_eq!(Ecap { dt: true, ..ecap }.encode(), 0x00f0_50df);
    }
}
