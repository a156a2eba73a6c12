//! What has gone wrong with a unit and was put right: for who decides whether to go on with it.

use crate::backend::{Backend, UnitIndex};
use crate::system::Iommu;

/// What has gone wrong with a unit since it was brought up, without an error of anything but a flush or a binding. Each is
/// in the log as well: at its first time, its second, its fourth, and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitTroubles {
    /// Commands that the unit called illegal, and that it was made to read once more.
    pub commands_read_again: u64,
    /// Those of them that it refused then too: what they were for was not done
    /// ([`UnitError::Refused`](crate::UnitError::Refused)).
    pub commands_refused: u64,
    /// Times that the unit stood at what a device did not answer, and each device answered when it was asked alone
    /// (ATS). Everybody behind the unit waits for as long as the bus gives a device each time.
    pub answered_alone: u64,
    /// Records of requests that wait for an answer, of a unit whose requests wait for none: they were told as faults, and not
    /// answered.
    pub false_stalls: u64,
}

impl<B: Backend> Iommu<B> {
    /// What has gone wrong with a unit and was put right. `None` where there is no such unit.
    pub fn unit_troubles(&self, unit: UnitIndex) -> Option<UnitTroubles> {
        let backend = &self.0.backend;
        (unit.index() < backend.unit_count()).then(|| backend.troubles(unit))
    }
}
