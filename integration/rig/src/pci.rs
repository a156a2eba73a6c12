//! PCI functions: configuration space as far as a driver of IOMMUs looks, and who may send.

use hv_core::PciAddress;
use hv_iommu::FunctionKind;

use crate::machine::CxlCacheModel;

/// Offset of vendor and device id.
const ID: u16 = 0x00;
/// Offset of command and status.
pub(crate) const COMMAND: u16 = 0x04;
/// Offset of class and revision.
const CLASS: u16 = 0x08;
/// Offset of the header type.
const HEADER: u16 = 0x0c;
/// Offset of the bus numbers of a bridge.
const BUSES: u16 = 0x18;
/// Offset of the first extended capability.
const EXTENDED: u16 = 0x100;
/// The capability for translation requests (ATS, id 15, version 1), and where its registers are from its beginning:
/// capability below, control above.
const ATS: u32 = 1 << 16 | 0x0f;
const ATS_REGISTERS: u16 = 0x04;
/// The capability that is its vendor's (DVSEC, id 0x23, version 1); vendor and revision and length; which of the vendor's it
/// is, below a register of it (PCI Express Base, "Designated Vendor-Specific Extended Capability"). The one of CXL devices:
/// vendor 0x1e98, id 0; capability above that, then control below status (CXL specification, "PCIe DVSEC for CXL Devices";
/// QEMU `docs` and `include/hw/cxl/cxl_pci.h` have the same places).
const DVSEC: u32 = 1 << 16 | 0x23;
const CXL_HEADER: u16 = 0x04;
const CXL_HEADER_IS: u32 = 0x03c1_1e98;
const CXL_CAPABILITY: u16 = 0x08;
const CXL_CONTROL: u16 = 0x0c;
/// Capability and control: CXL.cache, and what every such device has (CXL.io).
const CXL_CACHE: u16 = 1 << 0;
const CXL_IO: u16 = 1 << 1;
/// Control bit 15: the function may ask. Its low five bits are the size of a translation.
pub(crate) const ATS_ENABLE: u16 = 1 << 15;
/// Command bit 2: the function may send requests.
pub(crate) const BUS_MASTER: u32 = 1 << 2;
/// Class of a bridge between PCI buses, in the upper half of the class register.
const CLASS_BRIDGE: u32 = 0x0604_0000;
/// Class of an Ethernet controller: any endpoint will do.
const CLASS_ENDPOINT: u32 = 0x0200_0000;
/// Class of a host bridge.
const CLASS_HOST: u32 = 0x0600_0000;
/// Vendor and device id of everything on the rig but host bridges.
const IDENTITY: u32 = 0x1234_5678;
/// Vendor and device ids of host bridges of the Sandy Bridge generation, desktop, mobile and server (PCI ID
/// repository): page sizes do not change under a device's eyes there.
pub(crate) const STIFF_BRIDGES: [u32; 4] = [0x0100_8086, 0x0104_8086, 0x0108_8086, 0x3c00_8086];
/// One of a later generation (Q35).
pub(crate) const PLAIN_BRIDGE: u32 = 0x29c0_8086;

/// How far extended capabilities are from each other: those that a function has, one behind the other.
const EXTENDED_BYTES: u16 = 0x20;
/// What leads to the next one is in these bits of its first word.
const NEXT_SHIFT: u32 = 20;
/// The capability of endpoints that have PASIDs: id 0x1b, version 1 (PCI Express Base, "PASID Extended Capability").
const PASID_HEADER: u32 = 0x0001_001b;
/// Its registers, from its beginning: bits of a PASID (12:8), and whether it sends any (16).
const PASIDS: u16 = 0x04;
const PASID_ENABLE: u32 = 1 << 16;

/// A PASID capability. The rig's devices send with PASIDs whatever it says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pasids {
    bits: u8,
    on: bool,
}

impl Pasids {
    /// For PASIDs of so many bits, if there are any.
    pub(crate) fn of(bits: u8) -> Option<Self> {
        (bits != 0).then_some(Self { bits, on: false })
    }

    fn register(self) -> u32 {
        u32::from(self.bits) << 8 | if self.on { PASID_ENABLE } else { 0 }
    }
}

/// A cache of memory at which no unit looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CxlCache {
    model: CxlCacheModel,
    control: u16,
}

impl CxlCache {
    /// As firmware leaves it.
    pub(crate) fn new(model: CxlCacheModel, left_on: bool) -> Self {
        let control = if left_on { CXL_IO | CXL_CACHE } else { CXL_IO };
        Self { model, control }
    }

    /// As it is after a reset of its function.
    pub(crate) fn after_reset(self) -> Self {
        Self::new(self.model, false)
    }

    fn write(&mut self, control: u16) {
        if self.model == CxlCacheModel::Free {
            self.control = control & CXL_CACHE | CXL_IO;
        }
    }
}

/// A function on the rig.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) address: PciAddress,
    pub(crate) kind: FunctionKind,
    /// Vendor and device id of a host bridge; nothing of another function.
    pub(crate) bridge: Option<u32>,
    pub(crate) command: u32,
    /// Its PASID capability, if it has one.
    pub(crate) pasids: Option<Pasids>,
    /// Whether it is plugged in.
    pub(crate) present: bool,
    /// Whether it did not answer when it was told to forget, since it was attached: the driver may cut it off.
    pub(crate) silent: bool,
    /// Whether it sends although its bus master bit is clear, as only a broken device does.
    pub(crate) rogue: bool,
    /// The unit that its requests pass.
    pub(crate) unit: usize,
    /// Whether its root complex lets requests that ask so go past the CPU's caches.
    pub(crate) heeds_no_snoop: bool,
    /// Its ATS control register, of a function that has one.
    pub(crate) ats: Option<u16>,
    /// Its cache at which no unit looks, if it has one.
    pub(crate) cxl_cache: Option<CxlCache>,
    /// The requester ids that its requests may carry.
    pub(crate) requesters: Vec<u16>,
    /// The bridges that its requests pass.
    pub(crate) bridges: Vec<usize>,
}

impl Function {
    /// Whether it does DMA of its own.
    pub(crate) fn is_endpoint(&self) -> bool {
        self.kind.buses().is_none()
    }

    /// Reads configuration space. What is not there reads as all ones.
    pub(crate) fn read(&self, offset: u16) -> u32 {
        if !self.present {
            return u32::MAX;
        }
        match (offset, self.kind.buses()) {
            (ID, _) => self.bridge.unwrap_or(IDENTITY),
            (COMMAND, _) => self.command,
            (CLASS, None) if self.bridge.is_some() => CLASS_HOST,
            (CLASS, None) => CLASS_ENDPOINT,
            (CLASS, Some(_)) => CLASS_BRIDGE,
            (HEADER, Some(_)) => 1 << 16,
            (BUSES, Some(buses)) => {
                let primary = u32::from(self.address.bus());
                primary | u32::from(buses.secondary) << 8 | u32::from(buses.subordinate) << 16
            }
            (at, _) => self.read_extended(at),
        }
    }

    /// The extended capabilities that it has, in order.
    fn extended(&self) -> impl Iterator<Item = u32> {
        // The rig's bridges have no PASIDs.
        let pasids = self.pasids.filter(|_| self.is_endpoint());
        let ats = self.ats.map(|_| ATS);
        let all = [
            ats,
            pasids.map(|_| PASID_HEADER),
            self.cxl_cache.map(|_| DVSEC),
        ];
        all.into_iter().flatten()
    }

    /// Where one of them is.
    fn place(&self, header: u32) -> Option<u16> {
        let number = self.extended().position(|found| found == header)?;
        Some(EXTENDED + number as u16 * EXTENDED_BYTES)
    }

    fn read_extended(&self, at: u16) -> u32 {
        let Some(offset) = at.checked_sub(EXTENDED) else {
            return 0;
        };
        let (number, register) = (offset / EXTENDED_BYTES, offset % EXTENDED_BYTES);
        let mut behind = self.extended().skip(number.into());
        let Some(header) = behind.next() else {
            return 0;
        };
        let next = behind.next().map_or(0, |_| at + EXTENDED_BYTES);
        match (header, register) {
            (header, 0) => header | u32::from(next) << NEXT_SHIFT,
            (ATS, ATS_REGISTERS) => u32::from(self.ats.unwrap_or(0)) << 16,
            (PASID_HEADER, PASIDS) => self.pasids.map_or(0, Pasids::register),
            (DVSEC, CXL_HEADER) => CXL_HEADER_IS,
            (DVSEC, CXL_CAPABILITY) => u32::from(CXL_CACHE | CXL_IO) << 16,
            (DVSEC, CXL_CONTROL) => self.cxl_cache.map_or(0, |cache| cache.control.into()),
            _ => 0,
        }
    }

    /// Whether it keeps memory in a cache at which no unit looks.
    pub(crate) fn caches(&self) -> bool {
        self.cxl_cache
            .is_some_and(|cache| self.present && cache.control & CXL_CACHE != 0)
    }

    /// Whether it was told to ask for translations.
    pub(crate) fn asks(&self) -> bool {
        self.ats.is_some_and(|control| control & ATS_ENABLE != 0)
    }

    /// Writes configuration space; only the command and the ATS control register, the switch of PASIDs, and that of
    /// CXL.cache take anything.
    pub(crate) fn write(&mut self, offset: u16, value: u32) {
        if !self.present {
            return;
        }
        if offset == COMMAND {
            // The upper half is the status register, in which ones clear.
            self.command = value & 0xffff;
        }
        let is = |header, register| self.place(header).map(|at| at + register) == Some(offset);
        let (ats, pasids, cxl) = (
            is(ATS, ATS_REGISTERS),
            is(PASID_HEADER, PASIDS),
            is(DVSEC, CXL_CONTROL),
        );
        if ats && let Some(control) = &mut self.ats {
            *control = (value >> 16) as u16 & (ATS_ENABLE | 0x1f);
        }
        if pasids && let Some(pasids) = &mut self.pasids {
            pasids.on = value & PASID_ENABLE != 0;
        }
        if cxl && let Some(cache) = &mut self.cxl_cache {
            cache.write(value as u16);
        }
    }
}
