//! The contract on machines with SMMUs, and what only those have.

use hv_rig::Rig;
use hv_smmu::Smmu;

#[path = "../away.rs"]
mod away;
#[path = "../cached.rs"]
mod cached;
#[path = "../entries.rs"]
mod entries;
#[path = "../faults.rs"]
mod faults;
#[path = "../flushes.rs"]
mod flushes;
#[path = "../guests.rs"]
mod guests;
#[path = "../kept.rs"]
mod kept;
#[path = "../lending.rs"]
mod lending;
#[path = "../messages.rs"]
mod messages;
#[path = "../ownership.rs"]
mod ownership;
#[path = "../refused.rs"]
mod refused;
#[path = "../regions.rs"]
mod regions;
#[path = "../sizes.rs"]
mod sizes;
#[path = "../snooping.rs"]
mod snooping;
#[path = "../stand.rs"]
mod stand;
#[path = "../telling.rs"]
mod telling;
#[path = "../timeouts.rs"]
mod timeouts;
#[path = "../units.rs"]
mod units;

mod alone;
mod answers;
mod astray;
mod device_tlbs;
mod firmware;
mod interrupts;
mod isolation;
mod leaves;
mod loose;
mod nested;
mod only;
mod parts;
mod pasids;
mod patience;
mod quiet;
mod records;
mod silent;
mod switched;
mod taken;
mod undriven;
mod users;
mod waits;
mod waking;

/// The machine, with second stages on each of its units: guests are part of the contract.
pub(crate) fn suited(mut machine: hv_rig::Machine) -> hv_rig::Machine {
    machine.set_second_stages();
    machine
}

/// Whether firmware leaves units translating.
pub(crate) const LEFT_ON: bool = true;

/// The backend.
pub(crate) type Backend = Smmu<Rig>;
