//! What can be wrong with a table, and where: errors and findings share one form.

use core::fmt;

use hv_core::OutOfMemory;
use thiserror::Error;

use crate::spec::iort as spec;

/// Which kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// The table's header, which is no node.
    Header,
    /// Interrupt translation services (type 0).
    ItsGroup,
    /// A device of the ACPI namespace (type 1).
    NamedComponent,
    /// A PCI host bridge (type 2).
    RootComplex,
    /// An SMMU of an older architecture (type 3).
    SmmuV1V2,
    /// An SMMUv3 (type 4).
    SmmuV3,
    /// A performance counter group (type 5).
    CounterGroup,
    /// Reserved memory ranges (type 6).
    ReservedMemory,
    /// An interrupt wire bridge (type 7).
    WireBridge,
    /// A type that is not known.
    Unknown(u8),
}

impl NodeKind {
    /// The kind with this number.
    pub const fn from_number(kind: u8) -> Self {
        match kind {
            spec::TYPE_ITS_GROUP => Self::ItsGroup,
            spec::TYPE_NAMED_COMPONENT => Self::NamedComponent,
            spec::TYPE_ROOT_COMPLEX => Self::RootComplex,
            spec::TYPE_SMMU_V1_V2 => Self::SmmuV1V2,
            spec::TYPE_SMMU_V3 => Self::SmmuV3,
            spec::TYPE_PMCG => Self::CounterGroup,
            spec::TYPE_RMR => Self::ReservedMemory,
            spec::TYPE_IWB => Self::WireBridge,
            other => Self::Unknown(other),
        }
    }

    /// Whether what it sends on may go to a node of that kind: from devices to SMMUs to interrupt services, and never
    /// back, so that no chain has a cycle.
    pub const fn may_lead_to(self, to: Self) -> bool {
        match self {
            Self::NamedComponent | Self::RootComplex => {
                matches!(to, Self::SmmuV3 | Self::SmmuV1V2 | Self::ItsGroup)
            }
            Self::ReservedMemory => matches!(to, Self::SmmuV3 | Self::SmmuV1V2),
            Self::SmmuV3 | Self::SmmuV1V2 | Self::CounterGroup | Self::WireBridge => {
                matches!(to, Self::ItsGroup)
            }
            Self::Header | Self::ItsGroup | Self::Unknown(_) => false,
        }
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::ItsGroup => f.write_str("ITS group"),
            Self::NamedComponent => f.write_str("named component"),
            Self::RootComplex => f.write_str("root complex"),
            Self::SmmuV1V2 => f.write_str("SMMUv1/2"),
            Self::SmmuV3 => f.write_str("SMMUv3"),
            Self::CounterGroup => f.write_str("PMCG"),
            Self::ReservedMemory => f.write_str("RMR"),
            Self::WireBridge => f.write_str("IWB"),
            Self::Unknown(kind) => write!(f, "node of type {kind}"),
        }
    }
}

/// Where in the table something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which kind of node.
    pub node: NodeKind,
    /// Where the node starts, in bytes from the start of the table.
    pub offset: usize,
    /// Where the part starts that it is about (an id mapping, a range), likewise.
    pub part: Option<usize>,
}

impl Place {
    /// The header.
    pub const HEADER: Self = Self {
        node: NodeKind::Header,
        offset: 0,
        part: None,
    };

    /// A node.
    pub const fn node(node: NodeKind, offset: usize) -> Self {
        Self {
            node,
            offset,
            part: None,
        }
    }

    /// A part of the node here.
    #[must_use]
    pub const fn part(self, part: usize) -> Self {
        Self {
            part: Some(part),
            ..self
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.node, self.offset)?;
        match self.part {
            Some(part) => write!(f, ", part at {part:#x}"),
            None => Ok(()),
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The table is not an IORT.
    Signature,
    /// The table's length does not fit the bytes at hand.
    TableLength,
    /// Bytes follow the end of the table, or of the last node.
    TrailingBytes,
    /// The sum of all bytes is not zero.
    Checksum,
    /// The nodes do not start behind the header.
    NodeOffset,
    /// A node is too short for its kind.
    NodeLength,
    /// A node reaches past the end of the table, or there are fewer nodes than the header says.
    NodeTiling,
    /// A node is of a kind that is not known; it was skipped.
    UnknownNode,
    /// Bytes of a node belong to none of its parts.
    UnaccountedBytes,
    /// Id mappings or other parts do not lie within their node, behind its fixed part.
    PartTiling,
    /// An id mapping passes the end of the id space.
    MappingRange,
    /// Two id mappings of a node send an id to different places.
    MappingOverlap,
    /// An id mapping leads to where no node starts.
    Reference,
    /// An id mapping leads to a node that cannot be there, such as back to where it came from.
    ReferenceKind,
    /// A node that sends nothing on has id mappings, or one is marked as single where ids count.
    MappingForm,
    /// The mapping for an SMMU's own messages is none of its single ones.
    DeviceIdMapping,
    /// A mapping for the unit's own messages, of a unit whose interrupts are wires.
    UnusedMapping,
    /// An SMMU's registers cannot be at that address.
    RegisterBase,
    /// Two SMMUs have the same registers.
    DuplicateBase,
    /// An SMMU's model is not known: it may need what is not done.
    UnknownModel,
    /// An SMMU has flags that are not known.
    UnknownFlags,
    /// An SMMU is of an architecture that is not driven here. Its requesters are covered by nobody.
    OldSmmu,
    /// A root complex has a segment number that PCI does not have.
    Segment,
    /// A path in the ACPI namespace is empty, does not end, or is not made of printable characters.
    DeviceName,
    /// A reserved range is empty or passes the end of the address space.
    RegionRange,
    /// A reserved range does not start or end at a page boundary.
    RegionAlignment,
    /// Reserved ranges are for no stream.
    NoStreams,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "signature",
            Self::TableLength => "table length",
            Self::TrailingBytes => "bytes behind the end",
            Self::Checksum => "checksum",
            Self::NodeOffset => "offset of the first node",
            Self::NodeLength => "node length",
            Self::NodeTiling => "node end",
            Self::UnknownNode => "node type",
            Self::UnaccountedBytes => "byte of no part",
            Self::PartTiling => "offset of a part",
            Self::MappingRange => "end of an id mapping",
            Self::MappingOverlap => "id that two mappings send to different places",
            Self::Reference => "output reference",
            Self::ReferenceKind => "type of the node that an output reference names",
            Self::MappingForm => "form of an id mapping",
            Self::DeviceIdMapping => "mapping of the unit's own messages",
            Self::UnusedMapping => "mapping of messages that the unit does not write",
            Self::RegisterBase => "register base",
            Self::DuplicateBase => "register base of a second unit",
            Self::UnknownModel => "model",
            Self::UnknownFlags => "flags of a unit",
            Self::OldSmmu => "architecture",
            Self::Segment => "segment number",
            Self::DeviceName => "device name",
            Self::RegionRange => "length of a range",
            Self::RegionAlignment => "boundary of a range",
            Self::NoStreams => "number of streams",
        })
    }
}

/// What would have been right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This value.
    Exactly(u64),
    /// This value or more.
    AtLeast(u64),
    /// This value or less.
    AtMost(u64),
    /// A multiple of this value.
    MultipleOf(u64),
    /// Something that takes words.
    That(&'static str),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(value) => write!(f, "{value:#x}"),
            Self::AtLeast(value) => write!(f, "at least {value:#x}"),
            Self::AtMost(value) => write!(f, "at most {value:#x}"),
            Self::MultipleOf(value) => write!(f, "a multiple of {value:#x}"),
            Self::That(words) => f.write_str(words),
        }
    }
}

/// One thing that is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("IORT {place}: {what}: expected {expected}, found {found:#x}")]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What.
    pub what: Defect,
    /// What would have been right.
    pub expected: Expected,
    /// What is there.
    pub found: u64,
}

impl Finding {
    /// Whether nothing that protects memory can depend on it. A strict policy refuses all others: a damaged byte may
    /// have been another stream's number.
    pub const fn is_harmless(&self) -> bool {
        matches!(
            self.what,
            Defect::TrailingBytes
                | Defect::OldSmmu
                | Defect::DeviceName
                | Defect::RegionAlignment
                | Defect::UnusedMapping
        )
    }
}

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IortError {
    /// Its contents are wrong in a way that could lose a unit.
    #[error(transparent)]
    Malformed(#[from] Finding),
    /// There was no memory to keep what it says.
    #[error("IORT: {0}")]
    OutOfMemory(#[from] OutOfMemory),
}
