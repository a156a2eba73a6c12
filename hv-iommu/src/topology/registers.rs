//! What a function's configuration space says now of what isolation stands on.
//!
//! Read where a function comes in and again after a reset: what the embedder gave is a fact of the past then.

use hv_core::PciAddress;
use hv_core::platform::PciConfig;

use super::{AccessControl, BusRange, PciFunction};
use crate::spec::{
    ACS_REGISTERS, ATS_REGISTERS, BUS_NUMBERS, CAPABILITIES, CAPABILITY_EXPRESS, COMMAND,
    CONTROL_ARI_FORWARDING, CONTROL_VF_ENABLE, CXL_CONTROL, EXPRESS_CONTROL_2, EXTENDED_ACS,
    EXTENDED_DVSEC, EXTENDED_END, EXTENDED_FIRST, EXTENDED_SRIOV, HEADER_END,
    HEADER_MULTI_FUNCTION, HEADER_TYPE, PASID_REGISTERS, SRIOV_CONTROL, SRIOV_COUNT, SRIOV_PLACES,
    STATUS_CAPABILITIES,
};

/// More capabilities than fit into the conventional part, so that a list that leads in circles ends.
const CAPABILITIES_LIMIT: usize = 48;
/// The same for the extended part: the smallest has two words.
const EXTENDED_LIMIT: usize = 480;

/// An access control capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AcsRegisters {
    at: u16,
    pub(crate) capability: u16,
    pub(crate) control: u16,
}

/// Where virtual functions are, while they are switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtualPlaces {
    pub(crate) count: u16,
    /// Offset of the first, and stride.
    pub(crate) places: u32,
}

/// What the registers of a function say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) multi_function: bool,
    /// The buses behind it, of a bridge.
    pub(crate) buses: Option<BusRange>,
    /// Whether it forwards to functions above number 7: its device counts as one of up to 256.
    pub(crate) ari_forwarding: bool,
    pub(crate) acs: Option<AcsRegisters>,
    pub(crate) virtual_places: Option<VirtualPlaces>,
}

impl Registers {
    /// Reads them; `None` when the function does not answer.
    pub(crate) fn read(config: &impl PciConfig, function: &PciFunction) -> Option<Self> {
        let at = function.address;
        let read = |offset: u16| config.config_read32(at, offset);
        let command = read(COMMAND);
        if command == u32::MAX {
            return None;
        }
        let (mut acs, mut virtual_places) = (None, None);
        for (id, place) in extended(config, at) {
            match id {
                EXTENDED_ACS if acs.is_none() => {
                    let (capability, control) = halves(read(place + ACS_REGISTERS));
                    acs = Some(AcsRegisters {
                        at: place + ACS_REGISTERS,
                        capability,
                        control,
                    });
                }
                EXTENDED_SRIOV if virtual_places.is_none() => {
                    let (control, _) = halves(read(place + SRIOV_CONTROL));
                    let (count, _) = halves(read(place + SRIOV_COUNT));
                    let places = read(place + SRIOV_PLACES);
                    let on = control & CONTROL_VF_ENABLE != 0;
                    virtual_places = on.then_some(VirtualPlaces { count, places });
                }
                _ => {}
            }
        }
        let has_list = command >> 16 & u32::from(STATUS_CAPABILITIES) != 0;
        let express = has_list.then(|| express(config, at)).flatten();
        let forwarding = |place: u16| read(place + EXPRESS_CONTROL_2) & CONTROL_ARI_FORWARDING != 0;
        let buses = function.kind.buses().map(|_| {
            let [_, secondary, subordinate, _] = read(BUS_NUMBERS).to_le_bytes();
            BusRange {
                secondary,
                subordinate,
            }
        });
        Some(Self {
            multi_function: read(HEADER_TYPE) & HEADER_MULTI_FUNCTION != 0,
            buses,
            ari_forwarding: express.is_some_and(forwarding),
            acs,
            virtual_places,
        })
    }

    /// Sets again what the function was set to `before` against requests past the IOMMU and is no more. Gives what it
    /// reads then.
    pub(crate) fn set_again(
        self,
        config: &impl PciConfig,
        function: &PciFunction,
        before: &Self,
    ) -> Option<Self> {
        let (Some(now), Some(then)) = (self.acs, before.acs) else {
            return Some(self);
        };
        let wanted = then.control & now.capability;
        if AccessControl::change(then.control, now.control).is_none() || wanted == now.control {
            return Some(self);
        }
        // The lower half is read-only.
        config.config_write32(function.address, now.at, u32::from(wanted) << 16);
        Self::read(config, function)
    }
}

/// Where the capability of PCI Express is.
fn express(config: &impl PciConfig, at: PciAddress) -> Option<u16> {
    let mut next = config.config_read32(at, CAPABILITIES) as u8;
    for _ in 0..CAPABILITIES_LIMIT {
        let place = u16::from(next & !0b11);
        if place < HEADER_END {
            return None;
        }
        let [id, following, ..] = config.config_read32(at, place).to_le_bytes();
        match id {
            CAPABILITY_EXPRESS => return Some(place),
            _ => next = following,
        }
    }
    None
}

/// The extended capabilities of a function, each with its place. Left out are those whose registers would lie beyond the
/// function's configuration space, as its device would have it: there is the next function's.
pub(crate) fn extended(
    config: &impl PciConfig,
    at: PciAddress,
) -> impl Iterator<Item = (u16, u16)> {
    let mut next = EXTENDED_FIRST;
    let step = move || {
        if next < EXTENDED_FIRST {
            return None;
        }
        let (place, word) = (next, config.config_read32(at, next));
        next = (word >> 20) as u16 & !0b11;
        let is_one = word != 0 && word != u32::MAX;
        is_one.then_some((word as u16, place))
    };
    let fits = |(id, place): &(u16, u16)| {
        // The last that anybody looks at.
        let last = match *id {
            EXTENDED_SRIOV => SRIOV_PLACES,
            EXTENDED_DVSEC => CXL_CONTROL,
            _ => ACS_REGISTERS.max(ATS_REGISTERS).max(PASID_REGISTERS),
        };
        place + last < EXTENDED_END
    };
    core::iter::from_fn(step).take(EXTENDED_LIMIT).filter(fits)
}

/// The lower and the upper half of a word.
pub(crate) const fn halves(word: u32) -> (u16, u16) {
    (word as u16, (word >> 16) as u16)
}
