//! Machines with what a test, a drill or a life needs of every unit.

use super::{Machine, UnitModel};

impl Machine {
    /// APIC ids of more than eight bits on each VT-d unit, with what that takes.
    pub fn set_wide_apic_ids(&mut self) {
        for known in self.units.iter_mut().filter_map(UnitModel::vtd) {
            (known.ecap.ir, known.ecap.eim) = (true, true);
            known.cap.pi = false;
        }
    }

    /// A second stage on each SMMU.
    pub fn set_second_stages(&mut self) {
        for identity in self.units.iter_mut().filter_map(UnitModel::smmu) {
            identity.second_stage = true;
        }
    }

    /// All granules on each SMMU.
    pub fn set_large_granules(&mut self) {
        for identity in self.units.iter_mut().filter_map(UnitModel::smmu) {
            identity.large_granules = (true, true);
        }
    }

    /// Memory at addresses of more than 48 bits, and SMMUs that reach it, with second stages and all granules.
    pub fn set_high_memory(&mut self) {
        self.high_memory = true;
        self.set_second_stages();
        self.set_large_granules();
        for identity in self.units.iter_mut().filter_map(UnitModel::smmu) {
            identity.oas = 6;
        }
    }

    /// Both stages on each SMMU, so that guests have first stages of their own.
    pub fn set_nesting(&mut self) {
        for identity in self.units.iter_mut().filter_map(UnitModel::smmu) {
            (identity.first_stage, identity.second_stage) = (true, true);
        }
    }
}
