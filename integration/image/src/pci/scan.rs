//! Enumeration: every function of a segment, found from the root and through bridges.

use alloc::vec::Vec;

use hv_core::platform::PciConfig;
use hv_core::{PciAddress, Segment};

use super::{Function, Header};

/// Which buses of a segment were visited: a bridge that points back must not make a loop.
struct Visited([bool; 256]);

impl Visited {
    /// Marks the bus; whether it was new.
    fn enter(&mut self, bus: u8) -> bool {
        match self.0.get_mut(usize::from(bus)) {
            Some(seen) => !core::mem::replace(seen, true),
            None => false,
        }
    }
}

/// All functions of `segment` on `buses`, ascending by address.
///
/// Buses are visited from the first one through bridges. Then the remaining buses of the range are
/// tried one by one: a root bus that no bridge leads to is still a place that DMA can come from.
pub fn scan(
    config: &impl PciConfig,
    segment: Segment,
    buses: core::ops::RangeInclusive<u8>,
) -> Vec<Function> {
    let mut visited = Visited([false; 256]);
    let mut functions = Vec::new();
    let mut pending = Vec::new();
    for root in buses.clone() {
        pending.push(root);
        while let Some(bus) = pending.pop() {
            if !buses.contains(&bus) || !visited.enter(bus) {
                continue;
            }
            let found = functions_of(config, segment, bus);
            pending.extend(found.iter().filter_map(|function| match function.header {
                // Bus 0 is never behind a bridge: firmware left this one without a number.
                Header::Bridge { secondary: 0, .. } => None,
                Header::Bridge { secondary, .. } => Some(secondary),
                _ => None,
            }));
            functions.extend(found);
        }
    }
    functions.sort_unstable_by_key(|function| function.address);
    functions
}

/// All functions on one bus.
pub(super) fn functions_of(config: &impl PciConfig, segment: Segment, bus: u8) -> Vec<Function> {
    let mut functions = Vec::new();
    for device in 0..32u8 {
        for number in 0..8u8 {
            let requester = u16::from_be_bytes([bus, device << 3 | number]);
            let address = PciAddress::from_requester(segment, requester);
            let Some(function) = Function::read(config, address) else {
                // A device has function 0 or none at all; further functions may have gaps.
                if number == 0 {
                    break;
                }
                continue;
            };
            functions.push(function);
            if number == 0 && !function.multi_function {
                break;
            }
        }
    }
    functions
}

/// Stops every function that is not a bridge from starting transactions, and gives the number of
/// those that could.
///
/// Bridges keep theirs: it is what lets transactions of the functions behind them pass once those
/// are allowed again.
pub fn clear_bus_mastering(config: &impl PciConfig, functions: &[Function]) -> usize {
    let mut cleared = 0;
    for function in functions {
        let bridge = matches!(function.header, Header::Bridge { .. });
        if !bridge && function.bus_mastering(config) {
            function.set_bus_mastering(config, false);
            cleared += 1;
        }
    }
    cleared
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeBus;
    use super::super::{Class, spec};
    use super::*;

    fn at(bus: u8, device: u8, function: u8) -> PciAddress {
        PciAddress::new(Segment(0), bus, device, function).unwrap()
    }

    fn found(bus: &FakeBus) -> Vec<PciAddress> {
        scan(bus, Segment(0), 0..=255)
            .iter()
            .map(|function| function.address)
            .collect()
    }

    #[test]
    fn bridges_are_followed_and_order_is_by_address() {
        let bus = FakeBus::new();
        bus.add_bridge(at(0, 1, 0), 2, 3);
        bus.add(at(0, 9, 0), Class::NVME);
        bus.add_bridge(at(2, 0, 0), 3, 3);
        bus.add(at(3, 0, 0), Class::NVME);
        assert_eq!(
            found(&bus),
            [at(0, 1, 0), at(0, 9, 0), at(2, 0, 0), at(3, 0, 0)]
        );
    }

    #[test]
    fn functions_beyond_zero_need_the_multi_function_bit() {
        let bus = FakeBus::new();
        bus.add(at(0, 1, 0), Class::NVME);
        bus.add(at(0, 1, 3), Class::NVME);
        assert_eq!(found(&bus), [at(0, 1, 0)]);
        bus.set(
            at(0, 1, 0),
            spec::HEADER,
            u32::from(spec::HEADER_MULTI_FUNCTION) << 16,
        );
        assert_eq!(found(&bus), [at(0, 1, 0), at(0, 1, 3)]);
    }

    #[test]
    fn bridges_in_a_ring_and_peer_root_buses_end() {
        let bus = FakeBus::new();
        bus.add_bridge(at(0, 1, 0), 1, 1);
        bus.add_bridge(at(1, 1, 0), 1, 0);
        bus.add_bridge(at(1, 2, 0), 0, 0);
        bus.add(at(0x80, 0, 0), Class::NVME);
        assert_eq!(
            found(&bus),
            [at(0, 1, 0), at(1, 1, 0), at(1, 2, 0), at(0x80, 0, 0)]
        );
    }

    #[test]
    fn bus_mastering_is_cleared_on_all_but_bridges() {
        let bus = FakeBus::new();
        bus.add_bridge(at(0, 1, 0), 1, 1);
        bus.add(at(1, 0, 0), Class::NVME);
        bus.add(at(1, 1, 0), Class::NVME);
        bus.set(at(0, 1, 0), spec::COMMAND_STATUS, 7);
        bus.set(at(1, 0, 0), spec::COMMAND_STATUS, 7);
        bus.set(at(1, 1, 0), spec::COMMAND_STATUS, 3);
        let functions = scan(&bus, Segment(0), 0..=255);
        assert_eq!(clear_bus_mastering(&bus, &functions), 1);
        let mastering: Vec<bool> = functions.iter().map(|f| f.bus_mastering(&bus)).collect();
        assert_eq!(mastering, [true, false, false]);
    }
}
