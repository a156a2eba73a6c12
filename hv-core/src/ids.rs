//! Identities: CPUs, VMs, PCI segments, functions and processes behind them.

use core::fmt;
use core::num::{NonZeroU16, NonZeroU32};

use thiserror::Error;

/// A CPU, numbered from 0 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(u32);

impl CpuId {
    /// The CPU with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number, for use as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

/// A guest. Zero is not a guest: that is the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(NonZeroU16);

impl VmId {
    /// The guest with this number, or `None` for zero.
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vm{}", self.0)
    }
}

/// A process address space id: what tells the requests of one PCI function apart.
///
/// 1 to 2^20 - 1 (PCI Express base specification, PASID TLP prefix). 0 is left out: units use it for
/// requests that carry none, which follow the function's own binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(NonZeroU32);

impl Pasid {
    /// How many bits it has.
    pub const BITS: u8 = 20;

    /// The PASID with this number, or `None` for zero and from 2^20 on.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(valid) if number < 1 << Self::BITS => Some(Self(valid)),
            _ => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pasid {:#x}", self.0)
    }
}

/// A PCI segment group: a set of 256 buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Segment(pub u16);

/// A number of a PCI address is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("device {device} (at most 31) or function {function} (at most 7) is out of range")]
pub struct PciAddressError {
    /// The device number that was given.
    pub device: u8,
    /// The function number that was given.
    pub function: u8,
}

/// A PCI function: segment, bus, device (0 to 31) and function (0 to 7).
///
/// Bus, device and function together are the requester id that it puts on its transactions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    segment: Segment,
    requester: u16,
}

impl PciAddress {
    /// The function at this place.
    ///
    /// # Errors
    /// [`PciAddressError`] for a device above 31 or a function above 7.
    pub const fn new(
        segment: Segment,
        bus: u8,
        device: u8,
        function: u8,
    ) -> Result<Self, PciAddressError> {
        if device > 31 || function > 7 {
            return Err(PciAddressError { device, function });
        }
        let requester = (bus as u16) << 8 | (device as u16) << 3 | function as u16;
        Ok(Self { segment, requester })
    }

    /// The function with this 16-bit requester id (bus 15:8, device 7:3, function 2:0).
    pub const fn from_requester(segment: Segment, requester: u16) -> Self {
        Self { segment, requester }
    }

    /// The segment.
    pub const fn segment(self) -> Segment {
        self.segment
    }

    /// The 16-bit requester id.
    pub const fn requester(self) -> u16 {
        self.requester
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.requester >> 8) as u8
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        (self.requester >> 3) as u8 & 31
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.requester as u8 & 7
    }

    /// Device and function in one byte: the index into a per-bus table.
    pub const fn devfn(self) -> u8 {
        self.requester as u8
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.segment.0,
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasids_have_twenty_bits_and_are_not_zero() {
        assert_eq!(Pasid::new(0), None);
        assert_eq!(Pasid::new(1).map(Pasid::get), Some(1));
        assert_eq!(Pasid::new(0xf_ffff).map(Pasid::get), Some(0xf_ffff));
        assert_eq!(Pasid::new(0x10_0000), None);
        assert_eq!(Pasid::new(u32::MAX), None);
    }

    #[test]
    fn pci_addresses_round_trip() {
        let address = PciAddress::new(Segment(1), 0x3a, 0x1f, 7).unwrap();
        assert_eq!(std::format!("{address}"), "0001:3a:1f.7");
        assert_eq!(
            PciAddress::from_requester(Segment(1), address.requester()),
            address
        );
        assert_eq!(address.devfn(), 0xff);
        assert!(PciAddress::new(Segment(0), 0, 32, 0).is_err());
        assert!(PciAddress::new(Segment(0), 0, 0, 8).is_err());
    }
}
