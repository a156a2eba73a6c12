//! The contract on machines whose SMMUs have first stages alone, but for what needs a second one: guests.

use hv_rig::Rig;
use hv_smmu::Smmu;

#[path = "../entries.rs"]
mod entries;
#[path = "../faults.rs"]
mod faults;
#[path = "../flushes.rs"]
mod flushes;
#[path = "../kept.rs"]
mod kept;
#[path = "../lending.rs"]
mod lending;
#[path = "../messages.rs"]
mod messages;
#[path = "../ownership.rs"]
mod ownership;
#[path = "../regions.rs"]
mod regions;
#[path = "../sizes.rs"]
mod sizes;
#[path = "../stand.rs"]
mod stand;
#[path = "../timeouts.rs"]
mod timeouts;
#[path = "../units.rs"]
mod units;

/// The machine, without second stages.
pub(crate) fn suited(mut machine: hv_rig::Machine) -> hv_rig::Machine {
    for unit in &mut machine.units {
        let identity = unit.smmu().unwrap();
        (identity.first_stage, identity.second_stage) = (true, false);
    }
    machine
}

/// Whether firmware leaves units translating.
pub(crate) const LEFT_ON: bool = true;

/// The backend.
pub(crate) type Backend = Smmu<Rig>;
