//! What firmware says about SMMUs and who is behind them, from whichever table it was told.

use alloc::vec::Vec;
use core::fmt;

use hv_core::{OutOfMemory, PhysAddr, PhysRange, Segment};
pub use hv_iommu::InterruptId;
use hv_iommu::{Coherency, ReservedKind, UnitIndex};
use thiserror::Error;

use crate::spec::quirks::Quirks;
use crate::window::IdWindow;
use crate::{DeviceId, StreamId, device_tree, iort};

/// The SMMUs of a machine and what is behind them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Firmware {
    /// The SMMUs, in the order in which [`UnitIndex`] numbers them.
    pub units: Vec<SmmuUnit>,
    /// Interrupt translation services.
    pub services: Vec<MessageServices>,
    /// PCI host bridges.
    pub hosts: Vec<PciHost>,
    /// Devices that are no PCI functions.
    pub devices: Vec<PlatformDevice>,
    /// Memory that firmware goes on using through some streams.
    pub reserved: Vec<ReservedStreams>,
    /// What is wrong with what firmware says.
    pub findings: Vec<FirmwareFinding>,
}

/// One SMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmmuUnit {
    /// Its registers.
    pub registers: PhysRange,
    /// Whether it snoops the CPU's caches. It wins over what IDR0 says.
    pub coherent: bool,
    /// What it notes in leaves; `None` leaves that to IDR0.
    pub leaf_notes: Option<LeafNotes>,
    /// What is done differently for this unit, beside what its IIDR tells.
    pub quirks: Quirks,
    /// Its interrupts.
    pub interrupts: Interrupts,
    /// Who writes its own messages, if its interrupts can be messages.
    pub own_messages: Option<MessageWriter>,
    /// What becomes of a stream's messages.
    pub messages: Vec<Route<ServicesIndex>>,
    /// Its proximity domain.
    pub proximity: Option<u32>,
}

/// What a unit notes in leaves, by firmware's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafNotes {
    /// Nothing.
    Nothing,
    /// That it used them.
    Accesses,
    /// That it used them, and that it wrote.
    Writes,
}

/// The wired interrupts of a unit, by their INTID at the interrupt controller; all the same number where they are one wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interrupts {
    /// There are events.
    pub event: Option<InterruptId>,
    /// There are page requests.
    pub page_request: Option<InterruptId>,
    /// Something is wrong.
    pub global_error: Option<InterruptId>,
    /// A CMD_SYNC is complete.
    pub sync: Option<InterruptId>,
}

/// Which of [`Firmware::services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicesIndex(pub usize);

/// Interrupt translation services that take a device's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageServices {
    /// Whether they know who writes, as an ITS does. What takes messages of anybody, such as a frame of a GICv2m, is in
    /// the list too.
    pub tell_writers_apart: bool,
    /// Their numbers in the MADT, where that is how they are named.
    pub numbers: Vec<u32>,
    /// Their registers, where those are told: by device trees. The IORT names services by number alone, and the MADT has the
    /// rest ([`Firmware::place_services`]).
    pub base: Option<PhysAddr>,
}

impl MessageServices {
    /// Whether some of the services are the same, so that a writer of the one may be a writer of the other.
    pub(crate) fn share(&self, other: &Self) -> bool {
        let mut numbers = self.numbers.iter();
        numbers.any(|number| other.numbers.contains(number))
            || self.base.is_some() && self.base == other.base
    }
}

/// Services that know who writes, and that nobody placed: no domain leads messages to them.
///
/// Its `Display` says what that comes to, and what to do about it; [`Smmu::discover`](crate::Smmu::discover) logs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicesWithoutPlace<'f>(&'f MessageServices);

impl fmt::Display for ServicesWithoutPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupt translation services ")?;
        for (at, number) in self.0.numbers.iter().enumerate() {
            let between = if at == 0 { "" } else { ", " };
            write!(f, "{between}{number}")?;
        }
        f.write_str(match self.0.numbers[..] {
            [_] => {
                " have no place, so devices send them no messages: read the MADT (`madt::parse`) and hand what it says \
                 to `Firmware::place_services` before `discover`"
            }
            _ => {
                " are one group, so devices send them no messages: expected firmware to say which of them takes whose, \
                 as one number each"
            }
        })
    }
}

impl Firmware {
    /// The services, named by number alone, whose place nobody told: the MADT does ([`place_services`](Self::place_services)).
    pub fn services_without_place(&self) -> impl Iterator<Item = ServicesWithoutPlace<'_>> {
        let services = self.services.iter();
        services
            .filter(|one| one.tell_writers_apart && one.base.is_none())
            .map(ServicesWithoutPlace)
    }
}

/// Who writes a message, as its services know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageWriter {
    /// The services.
    pub services: ServicesIndex,
    /// The writer.
    pub device: DeviceId,
}

/// Some ids, what they become and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<T> {
    /// The ids.
    pub window: IdWindow,
    /// Where they go.
    pub to: T,
}

/// Where a requester id goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestTarget {
    /// To an SMMU, as a StreamID.
    Unit(UnitIndex),
    /// To something that is not driven here: an older SMMU, another kind of IOMMU, one that is damaged or off.
    Foreign,
    /// To memory, past every unit.
    Memory,
}

/// What the devices behind a bridge, or a device, may do. What an SMMU can do counts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequesterLimits {
    /// Whether what they send to memory is coherent with the CPU's caches.
    pub coherency: Coherency,
    /// They may ask for translations (ATS).
    pub translation_requests: bool,
    /// They may ask for pages (PRI).
    pub page_requests: bool,
    /// Bits of a PASID or substream id; 0 for none.
    pub pasid_bits: u8,
    /// Bits of an address that they can send; 0 if that is not told.
    pub address_bits: u8,
    /// Their transactions may stall.
    pub may_stall: bool,
    /// What they send to memory is coherent whatever it says, so that asking not to snoop makes no difference.
    pub no_snoop_is_moot: bool,
}

impl RequesterLimits {
    /// Nothing but that, which no limit decides.
    pub const fn none(coherency: Coherency) -> Self {
        Self {
            coherency,
            translation_requests: false,
            page_requests: false,
            pasid_bits: 0,
            address_bits: 0,
            may_stall: false,
            no_snoop_is_moot: false,
        }
    }
}

/// A PCI host bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// Its segment.
    pub segment: Segment,
    /// Its first and last bus.
    pub buses: (u8, u8),
    /// Which bits of a requester id count on the way to an SMMU.
    pub stream_mask: u32,
    /// What becomes of requester ids on the way to memory.
    pub streams: Vec<Route<RequestTarget>>,
    /// Which bits of a requester id count on the way to interrupt services.
    pub message_mask: u32,
    /// What becomes of requester ids on the way to interrupt services, where that does not follow from the stream.
    pub messages: Vec<Route<ServicesIndex>>,
    /// What its devices may do.
    pub limits: RequesterLimits,
}

/// A device that is no PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformDevice {
    /// What firmware calls it.
    pub name: Vec<u8>,
    /// Its streams: the unit, and the first and the last.
    pub streams: Vec<(UnitIndex, StreamId, StreamId)>,
    /// Who it is to interrupt services, where that does not follow from its streams.
    pub messages: Option<MessageWriter>,
    /// What it may do.
    pub limits: RequesterLimits,
}

impl PlatformDevice {
    /// Whether a stream is one of its own.
    pub fn has_stream(&self, unit: UnitIndex, stream: StreamId) -> bool {
        self.streams
            .iter()
            .any(|&(own, first, last)| own == unit && (first..=last).contains(&stream))
    }
}

/// Memory that firmware goes on using through a range of streams, mapped one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedStreams {
    /// The streams' unit.
    pub unit: UnitIndex,
    /// The first stream.
    pub first: StreamId,
    /// The last stream.
    pub last: StreamId,
    /// The memory.
    pub memory: PhysRange,
    /// Whether firmware goes on using it whatever happens.
    pub kind: ReservedKind,
}

/// Something that is wrong with what firmware says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FirmwareFinding {
    /// In the IORT.
    #[error(transparent)]
    Iort(#[from] iort::Finding),
    /// In the device tree.
    #[error(transparent)]
    Tree(#[from] device_tree::Finding),
}

impl FirmwareFinding {
    /// Whether nothing that protects memory can depend on it.
    pub const fn is_harmless(&self) -> bool {
        match self {
            Self::Iort(finding) => finding.is_harmless(),
            Self::Tree(finding) => finding.is_harmless(),
        }
    }
}

/// Why firmware's word cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FirmwareError {
    /// More units than can be numbered.
    #[error("too many SMMUs: expected at most {}, found {found}", UnitIndex::LIMIT)]
    TooManyUnits {
        /// How many there are.
        found: usize,
    },
    /// There was no memory to keep it.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl fmt::Display for SmmuUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coherent = if self.coherent {
            "coherent"
        } else {
            "not coherent"
        };
        write!(
            f,
            "SMMUv3 at {}, {coherent} by firmware's word",
            self.registers
        )?;
        for quirk in self.quirks.iter() {
            write!(f, ", {quirk}")?;
        }
        Ok(())
    }
}
