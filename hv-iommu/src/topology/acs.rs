//! What a function does so that requests to its neighbours pass the IOMMU: access control services.

use core::fmt;

use crate::spec::{
    ACS_COMPLETION_REDIRECT, ACS_DIRECT_TRANSLATED, ACS_EGRESS_CONTROL, ACS_REQUEST_REDIRECT,
    ACS_SOURCE_VALIDATION, ACS_TRANSLATION_BLOCKING, ACS_UPSTREAM_FORWARDING,
};

/// What isolation takes: ids are checked, requests and completions between peers go up and through the
/// IOMMU, and none that came from below turns round on its way.
const WANTED: u16 = ACS_SOURCE_VALIDATION
    | ACS_REQUEST_REDIRECT
    | ACS_COMPLETION_REDIRECT
    | ACS_UPSTREAM_FORWARDING;

/// The access control (ACS) of a function: what it has and what of that is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessControl(Option<Registers>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    capability: u16,
    control: u16,
}

impl AccessControl {
    /// The function has no such capability.
    pub const NONE: Self = Self(None);

    /// As the capability and control registers of the function's ACS capability say.
    pub const fn from_registers(capability: u16, control: u16) -> Self {
        Self(Some(Registers {
            capability,
            control,
        }))
    }

    /// The control register that isolates best: all on that isolates and that the function has, all off that
    /// lets peers through. For the embedder to write before it gives the function's facts.
    pub const fn isolating(capability: u16, control: u16) -> u16 {
        (control | capability & WANTED) & !(ACS_DIRECT_TRANSLATED | ACS_EGRESS_CONTROL)
    }

    /// What counts of a change of the control register: bits that isolate and are off now, ways past the IOMMU that
    /// are open now. `None` if it isolates as before.
    pub(crate) const fn change(then: u16, now: u16) -> Option<(u16, u16)> {
        let lost = then & !now & (WANTED | ACS_TRANSLATION_BLOCKING);
        let opened = now & !then & (ACS_DIRECT_TRANSLATED | ACS_EGRESS_CONTROL);
        if lost == 0 && opened == 0 {
            None
        } else {
            Some((lost, opened))
        }
    }

    /// This, with such a change.
    pub(crate) const fn changed(self, (lost, opened): (u16, u16)) -> Self {
        match self.0 {
            None => self,
            Some(Registers {
                capability,
                control,
            }) => Self::from_registers(capability, control & !lost | opened),
        }
    }

    /// Whether a port of a switch sends everything up: it has all of the controls (a downstream port must)
    /// and they are on.
    pub(super) const fn isolates_switch(self) -> bool {
        match self.0 {
            None => false,
            Some(Registers { control, .. }) => {
                control & WANTED == WANTED && !has_way_round(control)
            }
        }
    }

    /// Whether any other function sends everything up. What such a function has no control for it does not do
    /// (it is required only of functions that can reach peers), so that counts as isolated; so does Linux's
    /// `pci_acs_flags_enabled`.
    pub(super) const fn isolates(self) -> bool {
        match self.0 {
            None => false,
            Some(Registers {
                capability,
                control,
            }) => {
                let wanted = WANTED & capability;
                control & wanted == wanted && !has_way_round(control)
            }
        }
    }
}

impl fmt::Display for AccessControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(Registers {
                capability,
                control,
            }) => write!(f, "{control:#06x} of {capability:#06x}"),
        }
    }
}

/// Whether a control opens a direct way to peers: for requests that carry translated addresses, unless those
/// are blocked, or by a table of its own.
const fn has_way_round(control: u16) -> bool {
    let direct = control & ACS_DIRECT_TRANSLATED != 0 && control & ACS_TRANSLATION_BLOCKING == 0;
    direct || control & ACS_EGRESS_CONTROL != 0
}
