//! Bus mastering during bring-up: off everywhere, bridges too, before anything else.

use hv_core::PciAddress;
use hv_core::fault::Fault;
use hv_core::platform::PciConfig;
use log::info;
use thiserror::Error;

use crate::cxl_cache::stop_caching;
use crate::device_tlb::stop_leftover;
use crate::spec::{CLASS, CLASS_HOST_BRIDGE, CLASS_ISA_BRIDGE, COMMAND, COMMAND_BUS_MASTER};
use crate::topology::PciFunction;

/// A function goes on reaching memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StaysOn {
    /// It goes on mastering the bus.
    #[error("{function}: expected bus mastering to go off, found command register {command:#06x}")]
    BusMastering {
        /// The function.
        function: PciAddress,
        /// Its command register.
        command: u16,
    },
    /// It goes on keeping memory in a cache of its own, at which no unit looks.
    #[error(
        "{function}: expected its cache of memory (CXL.cache) to go off, found CXL control register {control:#06x}: have \
         firmware leave it off, and unlocked"
    )]
    CxlCache {
        /// The function.
        function: PciAddress,
        /// Its CXL control register.
        control: u16,
    },
}

/// Turns bus mastering off for every function but those that stay on, and looks whether it went off: what a backend
/// does before its units are brought up. They ask for no translations from then on either, and keep no memory in caches
/// of their own (CXL.cache).
///
/// Host bridges stand for the CPU and ISA bridges for the chipset; both may have the bit fixed at
/// one. Once translation is on, they reach no more than any other function that is not bound.
///
/// # Errors
/// [`StaysOn`] names the first function that goes on. Those before it are off.
pub fn turn_off_bus_mastering<C: PciConfig>(
    config: &C,
    functions: &[PciFunction],
    stays: impl Fn(&PciFunction) -> bool,
) -> Result<(), StaysOn> {
    for (index, function) in functions.iter().enumerate() {
        if stays(function) {
            info!("{function} goes on mastering the bus: firmware uses it, or what is behind it");
            continue;
        }
        let function = function.address;
        if Fault::KeepBusMastering.is_on() && index + 1 == functions.len() {
            continue;
        }
        let command = config.config_read32(function, COMMAND);
        if command == u32::MAX {
            // Gone, or never there: it masters nothing.
            continue;
        }
        // No entry lets it; with it on the function's requests would be refused later.
        stop_leftover(config, function);
        stop_caching(config, function)
            .map_err(|control| StaysOn::CxlCache { function, control })?;
        // The upper half is the status register, whose bits are cleared by writing 1: write 0 there.
        let off = command as u16 & !COMMAND_BUS_MASTER;
        config.config_write32(function, COMMAND, off.into());
        let after = config.config_read32(function, COMMAND) as u16;
        if after & COMMAND_BUS_MASTER == 0 {
            continue;
        }
        let class = config.config_read32(function, CLASS) >> 16;
        if matches!(class, CLASS_HOST_BRIDGE | CLASS_ISA_BRIDGE) {
            info!("{function}: bus mastering of a host or ISA bridge is fixed at on");
            continue;
        }
        return Err(StaysOn::BusMastering {
            function,
            command: after,
        });
    }
    Ok(())
}
