//! Following a scope's path through bridges to the function that it means.

use hv_core::platform::PciConfig;
use hv_core::{PciAddress, Segment};
use hv_iommu::BusRange;
use thiserror::Error;

use crate::dmar::{PathStep, Scope, ScopeKind};
use crate::spec::pci as spec;

/// Why a scope's path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unresolved {
    /// A step is no PCI function.
    #[error("expected a device up to 31 and a function up to 7, found {device:02x}.{function}")]
    NotAFunction {
        /// The device number.
        device: u8,
        /// The function number.
        function: u8,
    },
    /// There is nothing where the path expects a bridge.
    #[error("{at}: expected a bridge, found no function")]
    Absent {
        /// Where.
        at: PciAddress,
    },
    /// What is there is not a bridge.
    #[error("{at}: expected a bridge (header type 1), found header type {header:#x}")]
    NotABridge {
        /// Where.
        at: PciAddress,
        /// Its header type without the multi-function bit.
        header: u8,
    },
    /// A bridge has bus numbers that it cannot have.
    #[error("{at}: expected buses above its own, found {secondary:02x} to {subordinate:02x}")]
    BadBuses {
        /// The bridge.
        at: PciAddress,
        /// Its secondary bus.
        secondary: u8,
        /// Its subordinate bus.
        subordinate: u8,
    },
    /// The path is empty.
    #[error("expected a path of one step or more, found none")]
    Empty,
}

/// What a scope means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The function at the end of the path.
    pub(crate) function: PciAddress,
    /// For a bridge scope, what is behind that function.
    pub(crate) buses: Option<BusRange>,
}

/// Follows the path of `scope` in `segment`. Takes one read or two for each step.
pub(crate) fn resolve<C: PciConfig>(
    config: &C,
    segment: Segment,
    scope: &Scope,
) -> Result<Target, Unresolved> {
    let (last, bridges) = scope.path.split_last().ok_or(Unresolved::Empty)?;
    let mut bus = scope.start_bus;
    for &step in bridges {
        let at = function(segment, bus, step)?;
        match header_type(config, at) {
            None => return Err(Unresolved::Absent { at }),
            Some(spec::HEADER_TYPE_BRIDGE) => {}
            Some(header) => return Err(Unresolved::NotABridge { at, header }),
        }
        // Nothing is behind a bridge without bus numbers, so the path cannot go on.
        bus = buses_behind(config, at)?
            .ok_or(Unresolved::BadBuses {
                at,
                secondary: 0,
                subordinate: 0,
            })?
            .secondary;
    }
    let function = function(segment, bus, *last)?;
    // A bridge scope may name a function that is not a bridge (Linux accepts it): it then means
    // that function alone. A function that is not there needs no unit.
    let is_bridge = scope.kind == ScopeKind::Bridge
        && header_type(config, function) == Some(spec::HEADER_TYPE_BRIDGE);
    let buses = if is_bridge {
        buses_behind(config, function)?
    } else {
        None
    };
    Ok(Target { function, buses })
}

fn function(segment: Segment, bus: u8, step: PathStep) -> Result<PciAddress, Unresolved> {
    PciAddress::new(segment, bus, step.device, step.function).map_err(|_| {
        Unresolved::NotAFunction {
            device: step.device,
            function: step.function,
        }
    })
}

/// Whether a function answers at this address.
pub(crate) fn is_present<C: PciConfig>(config: &C, at: PciAddress) -> bool {
    config.config_read32(at, spec::CONFIG_VENDOR) as u16 != spec::VENDOR_NONE
}

/// The header type, or `None` where no function is.
fn header_type<C: PciConfig>(config: &C, at: PciAddress) -> Option<u8> {
    if !is_present(config, at) {
        return None;
    }
    let [_, _, header, _] = config
        .config_read32(at, spec::CONFIG_HEADER_TYPE)
        .to_le_bytes();
    Some(header & spec::HEADER_TYPE)
}

/// The buses behind a bridge, or `None` when none were assigned.
fn buses_behind<C: PciConfig>(config: &C, at: PciAddress) -> Result<Option<BusRange>, Unresolved> {
    let [_, secondary, subordinate, _] = config.config_read32(at, spec::CONFIG_BUSES).to_le_bytes();
    if secondary == 0 {
        return Ok(None);
    }
    if secondary <= at.bus() || subordinate < secondary {
        return Err(Unresolved::BadBuses {
            at,
            secondary,
            subordinate,
        });
    }
    Ok(Some(BusRange {
        secondary,
        subordinate,
    }))
}
