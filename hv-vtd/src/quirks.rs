//! What machine this is, where that decides what its units are trusted with.

use hv_core::platform::PciConfig;
use hv_iommu::PciFunction;

use crate::spec::pci::{CLASS_HOST_BRIDGE, CONFIG_CLASS, CONFIG_VENDOR};
use crate::spec::quirks::NO_LIVE_RESIZE;

/// Whether the page size of a mapping may change while devices use it: yes, unless a host bridge is of a
/// processor that is known for trouble.
pub(crate) fn live_resize<C: PciConfig>(config: &C, functions: &[PciFunction]) -> bool {
    functions.iter().all(|function| {
        let class = config.config_read32(function.address, CONFIG_CLASS) >> 16;
        let id = config.config_read32(function.address, CONFIG_VENDOR);
        class != CLASS_HOST_BRIDGE || !NO_LIVE_RESIZE.contains(&id)
    })
}
