//! Why a machine's SMMUs are not brought up.

use hv_core::platform::RegistersError;
use hv_core::{IovaRange, OutOfMemory, PciAddress, PhysAddr, PhysRange, RangeError};
use hv_iommu::{StaysOn, UnitError, UnitIndex};
use thiserror::Error;

use crate::StreamId;
use crate::coverage::CoverageError;
use crate::regions::RegionsError;
use crate::unit::UnitRefusal;

/// Why discovery or bring-up stopped. Bus mastering may be off everywhere then, and units may abort everything; the
/// frames that they were given are not given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BringUpError {
    /// Some device would go round every unit.
    #[error(transparent)]
    Coverage(#[from] CoverageError),
    /// What firmware reserves cannot be kept.
    #[error(transparent)]
    Regions(#[from] RegionsError),
    /// Firmware goes on using memory with a device that is on this machine.
    #[error(
        "firmware goes on using {memory} with {device} (RMR), and bring-up would stop that: expected no such device, \
         found one; turn it off in the firmware setup, keep it running (`discover_keeping`; the rig's example \
         `keeping` goes that way), or accept by a lenient policy that it stands still until the hypervisor claims it"
    )]
    ReservedRegion {
        /// The memory.
        memory: PhysRange,
        /// The device.
        device: PciAddress,
    },
    /// Firmware goes on using memory with a device that is no PCI function.
    #[error(
        "firmware goes on using {memory} with {stream} of {unit}, which is no PCI function (RMR), and bring-up would \
         stop that: expected PCI functions only; a lenient policy would accept that it stands still"
    )]
    ReservedForOther {
        /// The addresses, which are the memory's.
        memory: IovaRange,
        /// The device's unit.
        unit: UnitIndex,
        /// Its first stream.
        stream: StreamId,
    },
    /// Firmware goes on using memory with streams that are nobody's.
    #[error(
        "firmware goes on using {memory} with {first} to {last} of {unit} (RMR), and bring-up would stop that: expected \
         streams of a listed PCI function, found ones of nobody; list the function whose they are, or accept by a lenient \
         policy that it stands still"
    )]
    ReservedForNobody {
        /// The addresses, which are the memory's.
        memory: IovaRange,
        /// The streams' unit.
        unit: UnitIndex,
        /// The first of them.
        first: StreamId,
        /// The last.
        last: StreamId,
    },
    /// A function's stream has no place in its unit's table: nobody could claim it.
    #[error(
        "{device} is {stream} of {unit}: expected a stream of {bits} bits at most, which the unit's table has room for; a \
         lenient policy would leave it unclaimable"
    )]
    StreamBeyondTable {
        /// The requester.
        device: PciAddress,
        /// Its unit.
        unit: UnitIndex,
        /// Its stream.
        stream: StreamId,
        /// Bits of the streams that there is room for.
        bits: u8,
    },
    /// A unit that firmware left translating cannot go from its tables to others without a gap.
    #[error(
        "{device} is to be kept running, and firmware left {unit} translating, whose stream table changes only while it \
         is off: expected a policy that accepts a moment in which the device is aborted \
         (`FirmwareKept::accepting_gap`), found one that does not"
    )]
    Gap {
        /// The unit.
        unit: UnitIndex,
        /// A device that firmware goes on using behind it.
        device: PciAddress,
    },
    /// Firmware wants memory mapped that is not its own.
    #[error(
        "firmware wants {memory} mapped for {device} (RMR): expected memory that the memory map calls firmware's, \
         found other"
    )]
    RegionNotFirmwares {
        /// The memory.
        memory: PhysRange,
        /// The device.
        device: PciAddress,
    },
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
    /// A function goes on mastering the bus, or reaching memory past it.
    #[error(transparent)]
    BusMaster(#[from] StaysOn),
    /// A register range cannot be formed.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// There was no memory for the list of units, or a queue's bookkeeping.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}
