//! Why a machine's SMMUs are not brought up.

use hv_core::platform::RegistersError;
use hv_core::{OutOfMemory, PhysAddr, RangeError};
use hv_iommu::{BusMasteringStays, UnitError, UnitIndex};
use thiserror::Error;

use crate::unit::UnitRefusal;

/// Why discovery or bring-up stopped. Bus mastering may be off everywhere then, and units may abort everything; the
/// frames that they were given are not given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BringUpError {
    /// Firmware lists more units than can be numbered.
    #[error("expected at most {} units, found {found}", UnitIndex::LIMIT)]
    TooManyUnits {
        /// How many.
        found: usize,
    },
    /// A unit's registers cannot be mapped.
    #[error("{unit}: {why}")]
    Registers {
        /// The unit.
        unit: UnitIndex,
        /// Why not.
        why: RegistersError,
    },
    /// A unit is not one that this version drives.
    #[error("{unit} at {base} is refused: {why}")]
    Refused {
        /// The unit.
        unit: UnitIndex,
        /// Where its registers are.
        base: PhysAddr,
        /// Why.
        why: UnitRefusal,
    },
    /// A unit did not do what was asked, or there was no frame for it.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// A function goes on mastering the bus.
    #[error(transparent)]
    BusMaster(#[from] BusMasteringStays),
    /// A register range cannot be formed.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// There was no memory for the list of units, or a queue's bookkeeping.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}
