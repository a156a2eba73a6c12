//! Bus numbers, BARs and bridge windows, for machines whose firmware left them to us.

use hv_core::platform::PciConfig;
use hv_core::{PciAddress, PhysAddr, Segment};
use thiserror::Error;

use super::bar::size;
use super::function::change_command;
use super::scan::functions_of;
use super::spec::{
    BAR_COUNT, BAR_IO, BAR_WIDTH_64, BAR_WIDTH_MASK, BAR0, BRIDGE_BAR_COUNT, BRIDGE_BUSES,
    BRIDGE_IO, BRIDGE_IO_CLOSED, BRIDGE_MEMORY, BRIDGE_PREFETCHABLE, BRIDGE_WINDOW_BYTES,
    BRIDGE_WINDOW_CLOSED, COMMAND_BUS_MASTER, COMMAND_IO, COMMAND_MEMORY,
};
use super::{Function, Header};

/// How many bridges may lie behind one another.
const MAX_DEPTH: u8 = 8;

/// The addresses below 4 GiB that functions can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first that is not given yet.
    next: u64,
    /// The end.
    end: u64,
}

impl Window {
    /// `bytes` bytes from `start`, as far as they are below 4 GiB.
    pub fn new(start: PhysAddr, bytes: u64) -> Self {
        let start = start.as_u64();
        Self {
            next: start,
            end: start.saturating_add(bytes).min(1 << 32),
        }
    }

    /// Takes an aligned run; `None` when there is none left.
    fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(align)?;
        let next = start.checked_add(bytes)?;
        if next > self.end {
            return None;
        }
        self.next = next;
        Some(start)
    }
}

/// A host's functions do not all get what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AssignError {
    /// There are more buses than the host decodes.
    #[error("no bus number is left for what is behind the bridge {bridge}")]
    NoBus {
        /// The bridge.
        bridge: PciAddress,
    },
    /// Bridges are nested too deeply.
    #[error("the bridge {bridge} is behind more than {MAX_DEPTH} others")]
    TooDeep {
        /// The bridge.
        bridge: PciAddress,
    },
    /// The host's window is full.
    #[error(
        "no room is left in the host's memory window for {bytes:#x} bytes of {function}: give the machine fewer devices with \
         such registers, or a host with a larger window below 4 GiB (\"ranges\" of its node)"
    )]
    NoRoom {
        /// The function.
        function: PciAddress,
        /// What it needs.
        bytes: u64,
    },
}

/// Gives every bridge of the host its bus numbers and its window, and every memory BAR an address in `window`.
///
/// Functions decode memory afterwards. Endpoints start no transactions of their own, but bridges let those of others
/// pass. I/O BARs get nothing.
///
/// # Errors
/// [`AssignError`]; what was assigned until then stays.
pub fn assign(
    config: &impl PciConfig,
    segment: Segment,
    buses: core::ops::RangeInclusive<u8>,
    window: &mut Window,
) -> Result<(), AssignError> {
    let mut host = Host {
        config,
        segment,
        last_bus: *buses.end(),
        next_bus: Some(*buses.start()),
    };
    let root = host.number();
    match root {
        Some(root) => host.bus(root, 0, window),
        None => Ok(()),
    }
}

struct Host<'c, C> {
    config: &'c C,
    segment: Segment,
    last_bus: u8,
    next_bus: Option<u8>,
}

impl<C: PciConfig> Host<'_, C> {
    /// The next bus number.
    fn number(&mut self) -> Option<u8> {
        let bus = self.next_bus.filter(|bus| *bus <= self.last_bus)?;
        self.next_bus = bus.checked_add(1);
        Some(bus)
    }

    fn bus(&mut self, bus: u8, depth: u8, window: &mut Window) -> Result<(), AssignError> {
        for function in functions_of(self.config, self.segment, bus) {
            let bridge = matches!(function.header, Header::Bridge { .. });
            change_command(self.config, function.address, |command| {
                command & !(COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER)
            });
            self.bars(&function, bridge, window)?;
            let mut on = COMMAND_MEMORY;
            if bridge {
                self.bridge(&function, depth, window)?;
                on |= COMMAND_BUS_MASTER;
            }
            change_command(self.config, function.address, |command| command | on);
        }
        Ok(())
    }

    fn bars(
        &self,
        function: &Function,
        bridge: bool,
        window: &mut Window,
    ) -> Result<(), AssignError> {
        let address = function.address;
        let count = match (bridge, function.header) {
            (true, _) => BRIDGE_BAR_COUNT,
            (false, Header::Endpoint) => BAR_COUNT,
            (false, _) => 0,
        };
        let mut index = 0;
        while index < count {
            let at = BAR0 + 4 * u16::from(index);
            let low = self.config.config_read32(address, at);
            let memory = low & BAR_IO == 0;
            let wide = memory && low & BAR_WIDTH_MASK == BAR_WIDTH_64 && index + 1 < count;
            index += if wide { 2 } else { 1 };
            if !memory {
                continue;
            }
            let Some(bytes) = size(self.config, address, at, wide) else {
                continue;
            };
            let no_room = AssignError::NoRoom {
                function: address,
                bytes,
            };
            let place = window.take(bytes, bytes).ok_or(no_room)?;
            // The window ends below 4 GiB.
            self.config.config_write32(address, at, place as u32);
            if wide {
                self.config.config_write32(address, at + 4, 0);
            }
        }
        Ok(())
    }

    /// Numbers what is behind a bridge, and opens the bridge's window as far as that needs it.
    fn bridge(
        &mut self,
        function: &Function,
        depth: u8,
        window: &mut Window,
    ) -> Result<(), AssignError> {
        let bridge = function.address;
        if depth == MAX_DEPTH {
            return Err(AssignError::TooDeep { bridge });
        }
        let secondary = self.number().ok_or(AssignError::NoBus { bridge })?;
        let write = |at, word| self.config.config_write32(bridge, at, word);
        // Everything from there on leads behind it while that is looked at.
        write(
            BRIDGE_BUSES,
            u32::from_le_bytes([bridge.bus(), secondary, self.last_bus, 0]),
        );
        write(BRIDGE_IO, BRIDGE_IO_CLOSED);
        write(BRIDGE_PREFETCHABLE, BRIDGE_WINDOW_CLOSED);
        let no_room = AssignError::NoRoom {
            function: bridge,
            bytes: BRIDGE_WINDOW_BYTES,
        };
        let start = window.take(0, BRIDGE_WINDOW_BYTES).ok_or(no_room)?;
        self.bus(secondary, depth + 1, window)?;
        let end = window.take(0, BRIDGE_WINDOW_BYTES).ok_or(no_room)?;
        let memory = match end.checked_sub(BRIDGE_WINDOW_BYTES) {
            Some(last) if end > start => {
                // Bits 31:20 of an address in the upper twelve bits of each half.
                let field = |address: u64| (address / BRIDGE_WINDOW_BYTES) as u32 & 0xfff;
                field(start) << 4 | field(last) << 20
            }
            _ => BRIDGE_WINDOW_CLOSED,
        };
        let subordinate = match self.next_bus {
            Some(next) => next.wrapping_sub(1),
            None => u8::MAX,
        };
        let write = |at, word| self.config.config_write32(bridge, at, word);
        write(BRIDGE_MEMORY, memory);
        write(
            BRIDGE_BUSES,
            u32::from_le_bytes([bridge.bus(), secondary, subordinate, 0]),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeBus;
    use super::super::{Class, memory_bar, scan};
    use super::*;

    fn at(bus: u8, device: u8) -> PciAddress {
        PciAddress::new(Segment(0), bus, device, 0).unwrap()
    }

    /// An NVMe drive with an unassigned 64-bit BAR of 16 KiB.
    fn nvme(bus: &FakeBus, address: PciAddress) {
        bus.add(address, Class::NVME);
        bus.set(address, BAR0, BAR_WIDTH_64);
        bus.set_writable(address, BAR0, 0xffff_c000);
        for register in 2..6 {
            bus.set_writable(address, BAR0 + 4 * register, 0);
        }
    }

    fn bridge(bus: &FakeBus, address: PciAddress) {
        bus.add_bridge(address, 0, 0);
        bus.set_writable(address, BAR0, 0xffff_f000);
        bus.set_writable(address, BAR0 + 4, 0);
    }

    fn window() -> Window {
        Window::new(PhysAddr::new(0x1000_0000), 0x100_0000)
    }

    #[test]
    fn what_is_behind_a_bridge_is_numbered_and_reached_through_its_window() {
        let bus = FakeBus::new();
        nvme(&bus, at(0, 3));
        bridge(&bus, at(0, 4));
        nvme(&bus, at(1, 0));
        assign(&bus, Segment(0), 0..=255, &mut window()).unwrap();
        let functions = scan(&bus, Segment(0), 0..=255);
        let found: Vec<_> = functions.iter().map(|function| function.address).collect();
        assert_eq!(found, [at(0, 3), at(0, 4), at(1, 0)]);
        assert_eq!(
            functions[1].header,
            Header::Bridge {
                secondary: 1,
                subordinate: 1
            }
        );
        let first = memory_bar(&bus, &functions[0], 0).unwrap();
        assert_eq!(first.address, PhysAddr::new(0x1000_0000));
        assert_eq!(first.bytes, 0x4000);
        let behind = memory_bar(&bus, &functions[2], 0).unwrap();
        assert_eq!(behind.address, PhysAddr::new(0x1010_0000));
        assert_eq!(bus.config_read32(at(0, 4), BAR0), 0x1000_4000);
        assert_eq!(bus.config_read32(at(0, 4), BRIDGE_MEMORY), 0x1010_1010);
        let mastering: Vec<_> = functions.iter().map(|f| f.bus_mastering(&bus)).collect();
        assert_eq!(mastering, [false, true, false]);
    }

    #[test]
    fn a_bridge_with_nothing_behind_it_lets_nothing_through() {
        let bus = FakeBus::new();
        bridge(&bus, at(0, 4));
        assign(&bus, Segment(0), 0..=255, &mut window()).unwrap();
        let memory = bus.config_read32(at(0, 4), BRIDGE_MEMORY);
        assert_eq!(memory, BRIDGE_WINDOW_CLOSED);
    }

    #[test]
    fn too_little_of_anything_is_named() {
        let bus = FakeBus::new();
        nvme(&bus, at(0, 3));
        let mut small = Window::new(PhysAddr::new(0x1000_0000), 0x3fff);
        assert_eq!(
            assign(&bus, Segment(0), 0..=255, &mut small),
            Err(AssignError::NoRoom {
                function: at(0, 3),
                bytes: 0x4000
            })
        );
        bridge(&bus, at(0, 4));
        assert_eq!(
            assign(&bus, Segment(0), 0..=0, &mut window()),
            Err(AssignError::NoBus { bridge: at(0, 4) })
        );
    }

    #[test]
    fn bridges_that_go_on_for_ever_end() {
        let bus = FakeBus::new();
        for number in 0..12 {
            bridge(&bus, at(number, 0));
        }
        assert!(matches!(
            assign(&bus, Segment(0), 0..=255, &mut window()),
            Err(AssignError::TooDeep { .. })
        ));
    }
}
