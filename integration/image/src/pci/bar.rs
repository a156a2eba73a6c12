//! Base address registers: where a function's registers are, as firmware placed them.

use hv_core::platform::PciConfig;
use hv_core::{PageCount, PageSize, PciAddress, PhysAddr, PhysRange};
use thiserror::Error;

use super::function::change_command;
use super::spec::{
    BAR_COUNT, BAR_IO, BAR_MEMORY_FLAGS, BAR_WIDTH_64, BAR_WIDTH_MASK, BAR0, COMMAND_IO,
    COMMAND_MEMORY,
};
use super::{Function, Header};

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number, 0 to 5.
    pub index: u8,
    /// First byte.
    pub address: PhysAddr,
    /// Length in bytes, a power of two.
    pub bytes: u64,
}

impl Bar {
    /// The BAR as whole pages, or `None` when it is smaller than a page or not aligned to one.
    pub fn pages(&self) -> Option<PhysRange> {
        let pages = PageCount::new(self.bytes / PageSize::Size4K.bytes())?;
        PhysRange::new(self.address, pages).ok()
    }
}

/// A memory BAR cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BarError {
    /// The function has no such register.
    #[error("{address} has no BAR {index}")]
    NoSuchBar {
        /// The function.
        address: PciAddress,
        /// The number that was asked for.
        index: u8,
    },
    /// The BAR is in I/O space, not implemented, or of a reserved kind.
    #[error("BAR {index} of {address} is {found:#010x}, which is no memory BAR")]
    NotMemory {
        /// The function.
        address: PciAddress,
        /// The BAR's number.
        index: u8,
        /// The register as it reads.
        found: u32,
    },
    /// Firmware gave it no address.
    #[error("firmware assigned no address to BAR {index} of {address}")]
    Unassigned {
        /// The function.
        address: PciAddress,
        /// The BAR's number.
        index: u8,
    },
}

/// Reads and sizes memory BAR `index` of a plain function, and switches memory decoding on.
///
/// Sizing writes ones into the register while decoding is off, and puts the address back.
///
/// # Errors
/// [`BarError`] when the BAR is missing, not memory, or was given no address.
pub fn memory_bar(
    config: &impl PciConfig,
    function: &Function,
    index: u8,
) -> Result<Bar, BarError> {
    let address = function.address;
    let no_such_bar = BarError::NoSuchBar { address, index };
    if function.header != Header::Endpoint || index >= BAR_COUNT {
        return Err(no_such_bar);
    }
    let low_at = BAR0 + 4 * u16::from(index);
    let low = config.config_read32(address, low_at);
    let not_memory = BarError::NotMemory {
        address,
        index,
        found: low,
    };
    if low & BAR_IO != 0 {
        return Err(not_memory);
    }
    let wide = match low & BAR_WIDTH_MASK {
        0 => false,
        BAR_WIDTH_64 if index + 1 < BAR_COUNT => true,
        _ => return Err(not_memory),
    };
    let high_at = low_at + 4;
    let high = if wide {
        config.config_read32(address, high_at)
    } else {
        0
    };
    let base = join(high, low) & !BAR_MEMORY_FLAGS;

    let decoding = COMMAND_IO | COMMAND_MEMORY;
    let command = change_command(config, address, |command| command & !decoding);
    let size = size(config, address, low_at, wide);
    change_command(config, address, |_| command | COMMAND_MEMORY);
    let bytes = size.ok_or(not_memory)?;
    if base == 0 {
        return Err(BarError::Unassigned { address, index });
    }
    Ok(Bar {
        index,
        address: PhysAddr::new(base),
        bytes,
    })
}

/// The bytes that a memory BAR decodes, `None` if it is not implemented. Writes ones into it and puts back what was
/// there; the function must not decode memory meanwhile.
pub(super) fn size(
    config: &impl PciConfig,
    address: PciAddress,
    low_at: u16,
    wide: bool,
) -> Option<u64> {
    let ones = |at| {
        let before = config.config_read32(address, at);
        config.config_write32(address, at, u32::MAX);
        let settable = config.config_read32(address, at);
        config.config_write32(address, at, before);
        settable
    };
    let size_low = ones(low_at);
    let size_high = if wide { ones(low_at + 4) } else { u32::MAX };
    if join(0, size_low) & !BAR_MEMORY_FLAGS == 0 && (!wide || size_high == 0) {
        return None;
    }
    // The lowest address bit that could be set is the size.
    let settable = join(size_high, size_low) & !BAR_MEMORY_FLAGS;
    Some(1 << settable.trailing_zeros())
}

pub(super) fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeBus;
    use super::super::{Class, spec};
    use super::*;
    use hv_core::Segment;

    fn nvme(bus: &FakeBus) -> Function {
        let address = PciAddress::new(Segment(0), 0, 3, 0).unwrap();
        bus.add(address, Class::NVME);
        Function::read(bus, address).unwrap()
    }

    #[test]
    fn a_64_bit_bar_is_sized_and_left_as_it_was() {
        let bus = FakeBus::new();
        let function = nvme(&bus);
        let address = function.address;
        bus.set(address, BAR0, 0xfebd_0004);
        bus.set(address, BAR0 + 4, 1);
        bus.set_writable(address, BAR0, 0xffff_c000);
        let bar = memory_bar(&bus, &function, 0).unwrap();
        assert_eq!(
            bar,
            Bar {
                index: 0,
                address: PhysAddr::new(0x1_febd_0000),
                bytes: 0x4000
            }
        );
        assert_eq!(bar.pages().unwrap().pages().get(), 4);
        assert_eq!(bus.config_read32(address, BAR0), 0xfebd_0004);
        assert_eq!(bus.config_read32(address, BAR0 + 4), 1);
        assert_eq!(
            bus.config_read32(address, spec::COMMAND_STATUS),
            COMMAND_MEMORY
        );
    }

    #[test]
    fn bars_that_are_no_memory_are_refused() {
        let bus = FakeBus::new();
        let function = nvme(&bus);
        let address = function.address;
        bus.set(address, BAR0, 0xc001);
        assert!(matches!(
            memory_bar(&bus, &function, 0),
            Err(BarError::NotMemory { .. })
        ));
        bus.set(address, BAR0 + 4, 0);
        bus.set_writable(address, BAR0 + 4, 0);
        assert!(matches!(
            memory_bar(&bus, &function, 1),
            Err(BarError::NotMemory { .. })
        ));
        bus.set_writable(address, BAR0 + 8, 0xffff_f000);
        assert!(matches!(
            memory_bar(&bus, &function, 2),
            Err(BarError::Unassigned { .. })
        ));
        bus.set(address, BAR0 + 20, 0x4);
        assert!(matches!(
            memory_bar(&bus, &function, 5),
            Err(BarError::NotMemory { .. })
        ));
        assert!(matches!(
            memory_bar(&bus, &function, 6),
            Err(BarError::NoSuchBar { .. })
        ));
    }
}
