//! A unit of a machine: what it covers and what its registers say.

use hv_core::{PciAddress, Segment};

use crate::driver::Vendor;
use crate::smmu::Identity;
use crate::vtd::{Cap, Ecap};

/// One remapping unit.
#[derive(Clone, Debug)]
pub struct UnitModel {
    /// The PCI segment of its functions.
    pub segment: Segment,
    /// The functions that firmware lists for it; `None` for a unit that takes the rest of its segment.
    pub scopes: Option<Vec<PciAddress>>,
    /// What it is.
    pub registers: UnitRegisters,
}

/// What a unit is: the registers that say so. A machine has units of one vendor.
#[derive(Clone, Copy, Debug)]
pub enum UnitRegisters {
    /// A VT-d remapping unit.
    Vtd(Capabilities),
    /// An SMMUv3.
    Smmu(Identity),
}

/// The capability registers of a VT-d unit.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// The capability register.
    pub cap: Cap,
    /// The extended capability register.
    pub ecap: Ecap,
}

impl UnitModel {
    /// A VT-d unit's registers, to change them.
    pub fn vtd(&mut self) -> Option<&mut Capabilities> {
        match &mut self.registers {
            UnitRegisters::Vtd(capabilities) => Some(capabilities),
            UnitRegisters::Smmu(_) => None,
        }
    }

    /// An SMMU's registers, to change them.
    pub fn smmu(&mut self) -> Option<&mut Identity> {
        match &mut self.registers {
            UnitRegisters::Smmu(identity) => Some(identity),
            UnitRegisters::Vtd(_) => None,
        }
    }

    /// The unit snoops the CPU's caches, or does not.
    pub fn set_coherent(&mut self, coherent: bool) {
        match &mut self.registers {
            UnitRegisters::Vtd(known) => known.ecap.c = coherent,
            UnitRegisters::Smmu(identity) => {
                (identity.coherent, identity.says_coherent) = (coherent, coherent);
            }
        }
    }

    /// The unit has large pages, and their size may change under a device's eyes as far as that is its own matter.
    pub fn set_resizing(&mut self) {
        match &mut self.registers {
            UnitRegisters::Vtd(known) => known.cap.sslps |= 1,
            UnitRegisters::Smmu(identity) => identity.bbml = 2,
        }
    }

    /// The unit has what it takes to have devices snoop whatever they ask for, and so has what is on the way to it.
    pub fn set_snooping(&mut self) {
        match &mut self.registers {
            UnitRegisters::Vtd(known) => known.ecap.sc = true,
            UnitRegisters::Smmu(identity) => {
                (identity.coherent, identity.says_coherent) = (true, true);
                (identity.fwb, identity.canwbs) = (true, true);
            }
        }
    }

    /// The unit's domains have room for 39 address bits at least, and so for the rig's memory at its own addresses. An
    /// SMMU's have anyway, as far as its outputs.
    pub fn widen(&mut self) {
        if let UnitRegisters::Vtd(known) = &mut self.registers {
            known.cap.mgaw = known.cap.mgaw.max(39);
        }
    }

    /// How many faults the unit has room for at most.
    pub fn fault_records(&self) -> usize {
        match &self.registers {
            UnitRegisters::Vtd(known) => known.cap.nfr.into(),
            UnitRegisters::Smmu(identity) => 1 << identity.events,
        }
    }

    /// The unit has room for a few faults: sixteen at most.
    pub fn keep_few_faults(&mut self) {
        if let UnitRegisters::Smmu(identity) = &mut self.registers {
            identity.events = identity.events.min(4);
        }
    }

    /// Whether the unit has first stages alone: nothing for guests.
    pub fn has_first_alone(&self) -> bool {
        match &self.registers {
            UnitRegisters::Vtd(_) => false,
            UnitRegisters::Smmu(identity) => !identity.second_stage,
        }
    }

    /// Whether requests with PASIDs mean something to the unit.
    pub(crate) fn knows_substreams(&self) -> bool {
        match &self.registers {
            UnitRegisters::Vtd(_) => false,
            UnitRegisters::Smmu(identity) => identity.substream_bits != 0,
        }
    }

    pub(super) const fn vendor(&self) -> Vendor {
        match self.registers {
            UnitRegisters::Vtd(_) => Vendor::Vtd,
            UnitRegisters::Smmu(_) => Vendor::Smmu,
        }
    }
}
