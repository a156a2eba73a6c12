//! Bus mastering during bring-up: off everywhere, bridges too, before anything else.

use hv_core::PciAddress;
use hv_core::fault::Fault;
use hv_core::platform::PciConfig;
use hv_iommu::PciFunction;
use log::info;

use crate::error::BringUpError;
use crate::spec::pci::{
    CLASS_HOST_BRIDGE, CLASS_ISA_BRIDGE, COMMAND_BUS_MASTER, COMMAND_HALF, CONFIG_CLASS,
    CONFIG_COMMAND,
};

/// Turns bus mastering off for every function but those that stay on, and looks whether it went off.
///
/// Host bridges stand for the CPU and ISA bridges for the chipset; both may have the bit fixed at
/// one. Once translation is on, they reach no more than any other function that is not bound.
pub(crate) fn turn_off<C: PciConfig>(
    config: &C,
    functions: &[PciFunction],
    stays: impl Fn(&PciFunction) -> bool,
) -> Result<(), BringUpError> {
    for (index, function) in functions.iter().enumerate() {
        if stays(function) {
            info!(
                "VT-d: {function} goes on mastering the bus: firmware uses it, or what is behind it"
            );
            continue;
        }
        let function = function.address;
        if Fault::KeepBusMastering.is_on() && index + 1 == functions.len() {
            continue;
        }
        let command = config.config_read32(function, CONFIG_COMMAND);
        if command == u32::MAX {
            // Gone, or never there: it masters nothing.
            continue;
        }
        write_command(config, function, command & !COMMAND_BUS_MASTER);
        let after = config.config_read32(function, CONFIG_COMMAND);
        if after & COMMAND_BUS_MASTER == 0 {
            continue;
        }
        let class = config.config_read32(function, CONFIG_CLASS) >> 16;
        if matches!(class, CLASS_HOST_BRIDGE | CLASS_ISA_BRIDGE) {
            info!("VT-d: {function}: bus mastering of a host or ISA bridge is fixed at on");
            continue;
        }
        return Err(BringUpError::BusMaster {
            function,
            command: after as u16,
        });
    }
    Ok(())
}

/// Writes the command half. Ones in the status half would clear what is noted there.
fn write_command<C: PciConfig>(config: &C, function: PciAddress, command: u32) {
    config.config_write32(function, CONFIG_COMMAND, command & COMMAND_HALF);
}
