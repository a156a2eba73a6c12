//! The numbers of domains.

use core::fmt;
use core::sync::atomic::AtomicU64 as MachineU64;

use hv_core::sync::Ordering;

/// A domain's number, unique among all subsystems of the program; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DomainUid(u64);

/// The next number. One counter for the whole program, not one per subsystem: else a receipt of one
/// subsystem would open pending values of another. The machine's own atomic, not a modelled one.
static NEXT_UID: MachineU64 = MachineU64::new(1);

impl DomainUid {
    /// The domain through which nobody reaches memory: the same one everywhere.
    pub const BLOCKED: Self = Self(0);

    /// A number that no other domain ever has.
    pub(crate) fn fresh() -> Self {
        // ORDERING: Relaxed, only uniqueness counts.
        Self(NEXT_UID.fetch_add(1, Ordering::Relaxed))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DomainUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.0)
    }
}
