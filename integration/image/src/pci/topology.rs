//! What a function's configuration space says about isolation, and making the most of it.

use hv_core::platform::PciConfig;
use hv_iommu::{AccessControl, BusRange, FunctionKind, PciFunction, PhantomBits, VirtualFunctions};

use super::spec::{
    ACS_REGISTERS, CAPABILITY_PCI_EXPRESS, EXPRESS_DEVICE_CAPABILITIES, EXTENDED_ACS,
    EXTENDED_SRIOV, SRIOV_CONTROL, SRIOV_COUNT, SRIOV_PLACES,
};
use super::{Function, Header, PortType};

/// Has every function send requests to its peers up to the root, as far as it can. Changes what
/// [`Function::topology`] finds, so it comes first.
pub fn isolate(config: &impl PciConfig, functions: &[Function]) {
    for function in functions {
        if let Some(at) = function.extended_capability(config, EXTENDED_ACS) {
            let at = at + ACS_REGISTERS;
            let (capability, control) = halves(config.config_read32(function.address, at));
            let control = AccessControl::isolating(capability, control);
            config.config_write32(function.address, at, u32::from(control) << 16);
        }
    }
}

impl Function {
    /// What it is to the IOMMU crates.
    pub fn topology(&self, config: &impl PciConfig) -> PciFunction {
        let mut facts = PciFunction::new(self.address, self.topology_kind());
        facts.multi_function = self.multi_function;
        let read = |at: u16| config.config_read32(self.address, at);
        if let Some(at) = self.extended_capability(config, EXTENDED_ACS) {
            let (capability, control) = halves(read(at + ACS_REGISTERS));
            facts.access_control = AccessControl::from_registers(capability, control);
        }
        if let Some(at) = self.capability(config, CAPABILITY_PCI_EXPRESS) {
            let word = read(u16::from(at) + EXPRESS_DEVICE_CAPABILITIES);
            facts.phantoms = PhantomBits::from_device_capabilities(word);
        }
        if let Some(at) = self.extended_capability(config, EXTENDED_SRIOV) {
            let (control, _) = halves(read(at + SRIOV_CONTROL));
            let (count, _) = halves(read(at + SRIOV_COUNT));
            let (offset, stride) = halves(read(at + SRIOV_PLACES));
            facts.virtual_functions =
                VirtualFunctions::from_registers(control, count, offset, stride);
        }
        facts
    }

    fn topology_kind(&self) -> FunctionKind {
        let Header::Bridge {
            secondary,
            subordinate,
        } = self.header
        else {
            return match self.port {
                Some(
                    PortType::Endpoint | PortType::LegacyEndpoint | PortType::IntegratedEndpoint,
                ) => FunctionKind::Endpoint,
                _ => FunctionKind::Conventional,
            };
        };
        let buses = match secondary {
            // Firmware gave it no buses: a range that holds none.
            0 => BusRange {
                secondary: u8::MAX,
                subordinate: 0,
            },
            _ => BusRange {
                secondary,
                subordinate,
            },
        };
        match self.port {
            Some(PortType::RootPort) => FunctionKind::RootPort(buses),
            Some(PortType::UpstreamPort) => FunctionKind::UpstreamPort(buses),
            Some(PortType::DownstreamPort) => FunctionKind::DownstreamPort(buses),
            _ => FunctionKind::ConventionalBridge(buses),
        }
    }
}

/// The lower and the upper half of a word.
fn halves(word: u32) -> (u16, u16) {
    (word as u16, (word >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeBus;
    use super::super::{Class, spec};
    use super::*;
    use hv_core::{PciAddress, Segment};

    fn address() -> PciAddress {
        PciAddress::new(Segment(0), 0, 3, 0).unwrap()
    }

    /// Gives the function a PCI Express capability of this port type at 0x40.
    fn express(bus: &FakeBus, port: u32) {
        bus.set(address(), spec::COMMAND_STATUS, spec::STATUS_CAPABILITIES);
        bus.set(address(), spec::CAPABILITIES, 0x40);
        bus.set(address(), 0x40, port << 20 | 0x0010);
    }

    #[test]
    fn ports_are_told_apart_with_their_buses_and_access_control() {
        let bus = FakeBus::new();
        bus.add_bridge(address(), 4, 6);
        let buses = BusRange {
            secondary: 4,
            subordinate: 6,
        };
        let rows = [
            (4, FunctionKind::RootPort(buses)),
            (5, FunctionKind::UpstreamPort(buses)),
            (6, FunctionKind::DownstreamPort(buses)),
            (7, FunctionKind::ConventionalBridge(buses)),
            (8, FunctionKind::ConventionalBridge(buses)),
            (15, FunctionKind::ConventionalBridge(buses)),
        ];
        bus.set(address(), 0x100, 0x0001_000d);
        bus.set(address(), 0x104, 0x0000_005f);
        for (port, kind) in rows {
            express(&bus, port);
            let function = Function::read(&bus, address()).unwrap();
            let facts = function.topology(&bus);
            assert_eq!(facts.kind, kind);
            assert!(!facts.multi_function);
            let off = AccessControl::from_registers(0x5f, 0);
            assert_eq!(facts.access_control, off);
        }
        let function = Function::read(&bus, address()).unwrap();
        isolate(&bus, &[function]);
        assert_eq!(bus.last_write(), Some((address(), 0x104, 0x001d_0000)));
    }

    #[test]
    fn bridges_without_a_port_type_are_conventional_and_may_lead_nowhere() {
        let bus = FakeBus::new();
        bus.add_bridge(address(), 0, 0);
        let function = Function::read(&bus, address()).unwrap();
        let FunctionKind::ConventionalBridge(behind) = function.topology(&bus).kind else {
            panic!("{:?}", function.topology(&bus));
        };
        assert!((0..=255).all(|bus| !behind.contains(bus)));
    }

    #[test]
    fn endpoints_tell_their_phantom_and_virtual_functions() {
        let bus = FakeBus::new();
        bus.add(address(), Class::NVME);
        let function = Function::read(&bus, address()).unwrap();
        let facts = function.topology(&bus);
        assert_eq!(facts.kind, FunctionKind::Conventional);
        assert_eq!(facts.access_control, AccessControl::NONE);

        express(&bus, 0);
        bus.set(address(), 0x44, 0x0000_8fc8 | 1 << 4);
        bus.set(address(), 0x100, 0x0001_0010);
        bus.set(address(), 0x108, 0x0000_0001);
        bus.set(address(), 0x110, 0x0000_0002);
        bus.set(address(), 0x114, 0x0002_0080);
        let function = Function::read(&bus, address()).unwrap();
        let facts = function.topology(&bus);
        assert_eq!(facts.kind, FunctionKind::Endpoint);
        assert_eq!(facts.phantom_ids().count(), 7);
        let ids: Vec<u16> = facts.virtual_ids().map(PciAddress::requester).collect();
        assert_eq!(ids, [0x98, 0x9a]);
        bus.set(address(), 0x108, 0);
        assert_eq!(function.topology(&bus).virtual_functions, None);
    }
}
