//! One PCI function: who it is, what it is, and its capabilities.

use core::fmt;

use hv_core::PciAddress;
use hv_core::platform::PciConfig;

use super::kind;
use super::spec::{
    BRIDGE_BUSES, CAPABILITIES, CAPABILITY_ALIGN_MASK, CAPABILITY_PCI_EXPRESS, CLASS_REVISION,
    COMMAND_BUS_MASTER, COMMAND_MASK, COMMAND_STATUS, EXPRESS_PORT_MASK, EXPRESS_PORT_SHIFT,
    EXTENDED_ALIGN_MASK, EXTENDED_CAPABILITIES, EXTENDED_ID_MASK, EXTENDED_NEXT_SHIFT,
    FIRST_CAPABILITY, HEADER, HEADER_LAYOUT_MASK, HEADER_MULTI_FUNCTION, ID, LAYOUT_BRIDGE,
    LAYOUT_CARDBUS, LAYOUT_ENDPOINT, MAX_CAPABILITIES, MAX_EXTENDED_CAPABILITIES, NO_VENDOR,
    STATUS_CAPABILITIES,
};

/// Vendor and device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who made the function.
    pub vendor: u16,
    /// Which of the vendor's products it is.
    pub device: u16,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// The class code: base class, subclass and programming interface. Printed as six hexadecimal
/// digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Base class.
    pub base: u8,
    /// Subclass.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

impl Class {
    /// NVM Express: mass storage, non-volatile memory, NVMe.
    pub const NVME: Self = Self::new(0x01, 0x08, 0x02);

    /// The class with these three bytes.
    pub const fn new(base: u8, sub: u8, interface: u8) -> Self {
        Self {
            base,
            sub,
            interface,
        }
    }

    /// What a function of this class is, for people.
    pub fn kind(self) -> &'static str {
        kind::name(self)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}", self.base, self.sub, self.interface)
    }
}

/// The layout of a function's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A plain function.
    Endpoint,
    /// A PCI-to-PCI or CardBus bridge, a PCI Express port among them.
    Bridge {
        /// The bus right behind it; 0 if firmware gave it none.
        secondary: u8,
        /// The highest bus behind it.
        subordinate: u8,
    },
    /// Something newer than this code, with its layout number.
    Other(u8),
}

/// The device/port type of the PCI Express capability (PCI Express Base 7.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortType {
    /// An endpoint behind a port.
    Endpoint,
    /// An endpoint with legacy features.
    LegacyEndpoint,
    /// A port of the root complex.
    RootPort,
    /// A switch's port towards the root.
    UpstreamPort,
    /// A switch's port away from the root.
    DownstreamPort,
    /// A bridge from PCI Express to conventional PCI.
    PciBridge,
    /// A bridge from conventional PCI to PCI Express.
    ExpressBridge,
    /// An endpoint inside the root complex.
    IntegratedEndpoint,
    /// Collects errors of integrated endpoints.
    EventCollector,
    /// A value that the specification does not define.
    Unknown(u8),
}

impl PortType {
    fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Endpoint,
            1 => Self::LegacyEndpoint,
            4 => Self::RootPort,
            5 => Self::UpstreamPort,
            6 => Self::DownstreamPort,
            7 => Self::PciBridge,
            8 => Self::ExpressBridge,
            9 => Self::IntegratedEndpoint,
            10 => Self::EventCollector,
            other => Self::Unknown(other),
        }
    }
}

/// A PCI function that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Who it is.
    pub identity: Identity,
    /// What it is.
    pub class: Class,
    /// How its header is laid out.
    pub header: Header,
    /// Whether its device says that it has further functions.
    pub multi_function: bool,
    /// Its PCI Express type; `None` on conventional PCI.
    pub port: Option<PortType>,
}

impl Function {
    /// Reads the function at `address`, or `None` if nothing answers there.
    pub fn read(config: &impl PciConfig, address: PciAddress) -> Option<Self> {
        let [v0, v1, d0, d1] = config.config_read32(address, ID).to_le_bytes();
        let vendor = u16::from_le_bytes([v0, v1]);
        if vendor == NO_VENDOR {
            return None;
        }
        let [_, interface, sub, base] = config.config_read32(address, CLASS_REVISION).to_le_bytes();
        let [_, _, header, _] = config.config_read32(address, HEADER).to_le_bytes();
        let layout = match header & HEADER_LAYOUT_MASK {
            LAYOUT_ENDPOINT => Header::Endpoint,
            LAYOUT_BRIDGE | LAYOUT_CARDBUS => {
                let [_, secondary, subordinate, _] =
                    config.config_read32(address, BRIDGE_BUSES).to_le_bytes();
                Header::Bridge {
                    secondary,
                    subordinate,
                }
            }
            other => Header::Other(other),
        };
        let express = capability(config, address, CAPABILITY_PCI_EXPRESS);
        let port = express.map(|at| {
            let word = config.config_read32(address, at.into());
            PortType::from_bits((word >> EXPRESS_PORT_SHIFT & EXPRESS_PORT_MASK) as u8)
        });
        Some(Self {
            address,
            identity: Identity {
                vendor,
                device: u16::from_le_bytes([d0, d1]),
            },
            class: Class::new(base, sub, interface),
            header: layout,
            multi_function: header & HEADER_MULTI_FUNCTION != 0,
            port,
        })
    }

    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        match (self.class.kind(), self.port) {
            ("PCI bridge", Some(PortType::RootPort)) => "PCIe root port",
            ("PCI bridge", Some(PortType::UpstreamPort)) => "PCIe switch upstream port",
            ("PCI bridge", Some(PortType::DownstreamPort)) => "PCIe switch downstream port",
            (kind, _) => kind::virtio(self.identity).unwrap_or(kind),
        }
    }

    /// Where its capability with this id is in configuration space; `None` if it has none, or the
    /// list is broken.
    pub fn capability(&self, config: &impl PciConfig, id: u8) -> Option<u8> {
        capability(config, self.address, id)
    }

    /// Where its PCI Express extended capability with this id is; `None` if it has none, or the
    /// list is broken.
    pub fn extended_capability(&self, config: &impl PciConfig, id: u16) -> Option<u16> {
        // Conventional functions have 256 bytes only, and may repeat them further up.
        self.port?;
        let mut at = EXTENDED_CAPABILITIES;
        for _ in 0..MAX_EXTENDED_CAPABILITIES {
            let word = config.config_read32(self.address, at);
            if word == 0 || word == u32::MAX {
                return None;
            }
            if word & EXTENDED_ID_MASK == u32::from(id) {
                return Some(at);
            }
            at = (word >> EXTENDED_NEXT_SHIFT) as u16 & EXTENDED_ALIGN_MASK;
            if at < EXTENDED_CAPABILITIES {
                return None;
            }
        }
        None
    }

    /// Whether it may start transactions of its own now.
    pub fn bus_mastering(&self, config: &impl PciConfig) -> bool {
        config.config_read32(self.address, COMMAND_STATUS) & COMMAND_BUS_MASTER != 0
    }

    /// Lets it start transactions of its own, or stops that.
    pub fn set_bus_mastering(&self, config: &impl PciConfig, on: bool) {
        change_command(config, self.address, |command| {
            if on {
                command | COMMAND_BUS_MASTER
            } else {
                command & !COMMAND_BUS_MASTER
            }
        });
    }
}

/// Rewrites the command register and gives its old value. Status bits, which a one would clear, are
/// left alone.
pub(super) fn change_command(
    config: &impl PciConfig,
    address: PciAddress,
    change: impl FnOnce(u32) -> u32,
) -> u32 {
    let command = config.config_read32(address, COMMAND_STATUS) & COMMAND_MASK;
    config.config_write32(address, COMMAND_STATUS, change(command) & COMMAND_MASK);
    command
}

/// Follows the capability list for as long as a list without a loop can be.
fn capability(config: &impl PciConfig, address: PciAddress, id: u8) -> Option<u8> {
    if config.config_read32(address, COMMAND_STATUS) & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let [first, ..] = config.config_read32(address, CAPABILITIES).to_le_bytes();
    let mut at = first & CAPABILITY_ALIGN_MASK;
    for _ in 0..MAX_CAPABILITIES {
        if at < FIRST_CAPABILITY {
            return None;
        }
        let [found, next, ..] = config.config_read32(address, at.into()).to_le_bytes();
        if found == id {
            return Some(at);
        }
        at = next & CAPABILITY_ALIGN_MASK;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeBus;
    use super::*;
    use hv_core::Segment;

    fn address() -> PciAddress {
        PciAddress::new(Segment(0), 0, 3, 0).unwrap()
    }

    #[test]
    fn a_port_is_read_with_its_buses_and_type() {
        let bus = FakeBus::new();
        bus.add_bridge(address(), 4, 6);
        bus.set(address(), COMMAND_STATUS, STATUS_CAPABILITIES);
        bus.set(address(), CAPABILITIES, 0x41);
        bus.set(address(), 0x40, 0x5005);
        bus.set(address(), 0x50, 0x0042_0010);
        let function = Function::read(&bus, address()).unwrap();
        assert_eq!(
            function.header,
            Header::Bridge {
                secondary: 4,
                subordinate: 6
            }
        );
        assert_eq!(function.port, Some(PortType::RootPort));
        assert_eq!(function.kind(), "PCIe root port");
        assert_eq!(function.capability(&bus, 0x05), Some(0x40));
    }

    #[test]
    fn looping_and_stray_capability_lists_end() {
        let bus = FakeBus::new();
        bus.add(address(), Class::NVME);
        bus.set(address(), COMMAND_STATUS, STATUS_CAPABILITIES);
        bus.set(address(), CAPABILITIES, 0x40);
        bus.set(address(), 0x40, 0x4001);
        assert_eq!(Function::read(&bus, address()).unwrap().port, None);
        bus.set(address(), 0x40, 0x0c01);
        assert_eq!(Function::read(&bus, address()).unwrap().port, None);
    }

    #[test]
    fn extended_lists_are_walked_with_a_bound() {
        let bus = FakeBus::new();
        bus.add(address(), Class::NVME);
        bus.set(address(), COMMAND_STATUS, STATUS_CAPABILITIES);
        bus.set(address(), CAPABILITIES, 0x40);
        bus.set(address(), 0x40, 0x0002_0010);
        bus.set(address(), 0x100, 0x1401_0001);
        bus.set(address(), 0x140, 0x1001_000d);
        let function = Function::read(&bus, address()).unwrap();
        assert_eq!(function.extended_capability(&bus, 0x0d), Some(0x140));
        assert_eq!(function.extended_capability(&bus, 0x0f), None);
    }

    #[test]
    fn bus_mastering_leaves_status_bits_alone() {
        let bus = FakeBus::new();
        bus.add(address(), Class::NVME);
        bus.set(address(), COMMAND_STATUS, 0xffff_0003);
        let function = Function::read(&bus, address()).unwrap();
        function.set_bus_mastering(&bus, true);
        assert_eq!(
            bus.last_write(),
            Some((address(), COMMAND_STATUS, 0x0000_0007))
        );
        assert!(function.bus_mastering(&bus));
        function.set_bus_mastering(&bus, false);
        assert!(!function.bus_mastering(&bus));
    }
}
