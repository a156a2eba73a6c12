//! The contract on machines with VT-d units, and what only those have.

use hv_rig::Rig;
use hv_vtd::Vtd;

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

mod interrupts;
mod only;
mod strangers;

/// The machine, as the contract wants it.
pub(crate) fn suited(machine: hv_rig::Machine) -> hv_rig::Machine {
    machine
}

/// Whether firmware leaves units translating.
pub(crate) const LEFT_ON: bool = false;

/// The backend.
pub(crate) type Backend = Vtd<Rig>;
