//! PCI functions: configuration space as far as a driver of IOMMUs looks, and who may send.

use hv_core::PciAddress;
use hv_iommu::FunctionKind;

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
/// The capability for translation requests (ATS, id 15, version 1), and where its registers are: capability below,
/// control above.
const ATS: u32 = 1 << 16 | 0x0f;
const ATS_REGISTERS: u16 = 0x104;
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

/// Where the capability of PASIDs is behind that for translation requests, and what leads there. Alone it is the first.
const EXTENDED_SECOND: u16 = 0x110;
const TO_SECOND: u32 = (EXTENDED_SECOND as u32) << 20;
/// The capability of endpoints that have PASIDs: id 0x1b, version 1, the last (PCI Express Base, "PASID Extended
/// Capability").
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
            (EXTENDED, _) if self.ats.is_some() => match self.pasids {
                Some(_) => ATS | TO_SECOND,
                None => ATS,
            },
            (ATS_REGISTERS, _) if self.ats.is_some() => u32::from(self.ats.unwrap_or(0)) << 16,
            (HEADER, Some(_)) => 1 << 16,
            (at, None) if self.pasids_at() == Some(at) => PASID_HEADER,
            (at, None) if self.pasids_at().map(|from| from + PASIDS) == Some(at) => {
                self.pasids.map_or(0, Pasids::register)
            }
            (BUSES, Some(buses)) => {
                let primary = u32::from(self.address.bus());
                primary | u32::from(buses.secondary) << 8 | u32::from(buses.subordinate) << 16
            }
            _ => 0,
        }
    }

    /// Where its capability of PASIDs is.
    fn pasids_at(&self) -> Option<u16> {
        let alone = self.ats.is_none();
        self.pasids
            .map(|_| if alone { EXTENDED } else { EXTENDED_SECOND })
    }

    /// Whether it was told to ask for translations.
    pub(crate) fn asks(&self) -> bool {
        self.ats.is_some_and(|control| control & ATS_ENABLE != 0)
    }

    /// Writes configuration space; only the command and the ATS control register, and the switch of PASIDs, take
    /// anything.
    pub(crate) fn write(&mut self, offset: u16, value: u32) {
        if self.present && offset == COMMAND {
            // The upper half is the status register, in which ones clear.
            self.command = value & 0xffff;
        }
        if self.present
            && offset == ATS_REGISTERS
            && let Some(control) = &mut self.ats
        {
            *control = (value >> 16) as u16 & (ATS_ENABLE | 0x1f);
        }
        if self.present
            && self.pasids_at().map(|from| from + PASIDS) == Some(offset)
            && let Some(pasids) = &mut self.pasids
        {
            pasids.on = value & PASID_ENABLE != 0;
        }
    }
}
