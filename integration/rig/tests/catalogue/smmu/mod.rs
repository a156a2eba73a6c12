//! The contract on machines with SMMUs, and what only those have.

use hv_rig::Rig;
use hv_smmu::Smmu;

#[path = "../entries.rs"]
mod entries;
#[path = "../faults.rs"]
mod faults;
#[path = "../flushes.rs"]
mod flushes;
#[path = "../guests.rs"]
mod guests;
#[path = "../lending.rs"]
mod lending;
#[path = "../ownership.rs"]
mod ownership;
#[path = "../sizes.rs"]
mod sizes;
#[path = "../stand.rs"]
mod stand;
#[path = "../timeouts.rs"]
mod timeouts;
#[path = "../units.rs"]
mod units;

mod answers;
mod device_tlbs;
mod interrupts;
mod leaves;
mod only;

/// The backend.
pub(crate) type Backend = Smmu<Rig>;
