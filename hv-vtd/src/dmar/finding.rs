//! What can be wrong with a table, and where: errors and warnings share one form.

use core::fmt;

use hv_core::OutOfMemory;
use thiserror::Error;

/// Which structure of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The table's header.
    Header,
    /// A remapping unit (type 0).
    Drhd,
    /// A reserved memory region (type 1).
    Rmrr,
    /// Root ports with ATS (type 2).
    Atsr,
    /// Proximity of a unit (type 3).
    Rhsa,
    /// An ACPI device (type 4).
    Andd,
    /// Integrated devices with translation caches (type 5).
    Satc,
    /// Properties of integrated devices (type 6).
    Sidp,
    /// A type that is not known.
    Unknown(u16),
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Drhd => f.write_str("DRHD"),
            Self::Rmrr => f.write_str("RMRR"),
            Self::Atsr => f.write_str("ATSR"),
            Self::Rhsa => f.write_str("RHSA"),
            Self::Andd => f.write_str("ANDD"),
            Self::Satc => f.write_str("SATC"),
            Self::Sidp => f.write_str("SIDP"),
            Self::Unknown(kind) => write!(f, "structure of type {kind}"),
        }
    }
}

/// Where in the table something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which structure.
    pub record: RecordKind,
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// Where the device scope starts, if it is about one, in bytes from the start of the table.
    pub scope: Option<usize>,
}

impl Place {
    /// The header.
    pub const HEADER: Self = Self {
        record: RecordKind::Header,
        offset: 0,
        scope: None,
    };

    /// A structure.
    pub const fn record(record: RecordKind, offset: usize) -> Self {
        Self {
            record,
            offset,
            scope: None,
        }
    }

    /// A device scope of the structure here.
    #[must_use]
    pub const fn scope(self, scope: usize) -> Self {
        Self {
            scope: Some(scope),
            ..self
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.record, self.offset)?;
        match self.scope {
            Some(scope) => write!(f, ", scope at {scope:#x}"),
            None => Ok(()),
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The table is not a DMAR table.
    Signature,
    /// The table's length does not fit the bytes at hand.
    TableLength,
    /// Bytes follow the end of the table.
    TrailingBytes,
    /// The sum of all bytes is not zero.
    Checksum,
    /// The host address width is not one.
    HostAddressWidth,
    /// A structure is too short for its kind.
    RecordLength,
    /// A structure reaches past the end of the table.
    RecordTiling,
    /// A structure is of a kind that is not known; it was skipped.
    UnknownRecord,
    /// A device scope is too short, or its path is not made of pairs.
    ScopeLength,
    /// A device scope reaches past the end of its structure.
    ScopeTiling,
    /// A device scope is of a kind that is not known; it covers nothing.
    UnknownScope,
    /// A step of a device scope's path is no PCI function; coverage decides what that means.
    PathStep,
    /// A unit that does not cover the rest of its segment names no device.
    NoScopes,
    /// A unit's registers cannot be at that address.
    RegisterBase,
    /// Two units have the same registers.
    DuplicateBase,
    /// Two units of one segment cover all its other functions.
    SecondIncludeAll,
    /// A reserved region ends before it starts.
    RegionOrder,
    /// A reserved region does not start or end at a page boundary.
    RegionAlignment,
    /// No unit is listed.
    NoUnits,
    /// An ACPI path is empty, does not end, or is not made of printable characters.
    DeviceName,
    /// No unit has these registers.
    NoSuchUnit,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "signature",
            Self::TableLength => "table length",
            Self::TrailingBytes => "bytes behind the table",
            Self::Checksum => "checksum",
            Self::HostAddressWidth => "host address width",
            Self::RecordLength => "structure length",
            Self::RecordTiling => "structure end",
            Self::UnknownRecord => "structure type",
            Self::ScopeLength => "scope length",
            Self::ScopeTiling => "scope end",
            Self::UnknownScope => "scope type",
            Self::PathStep => "path step (device, function)",
            Self::NoScopes => "number of scopes",
            Self::RegisterBase => "register base",
            Self::DuplicateBase => "register base of a second unit",
            Self::SecondIncludeAll => "units with INCLUDE_PCI_ALL in the segment",
            Self::RegionOrder => "region limit",
            Self::RegionAlignment => "region boundary",
            Self::NoUnits => "number of units",
            Self::DeviceName => "device name",
            Self::NoSuchUnit => "register base of a unit",
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
#[error("DMAR {place}: {what}: expected {expected}, found {found:#x}")]
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
    /// Whether it is about the table's checksum.
    pub const fn is_checksum(&self) -> bool {
        matches!(self.what, Defect::Checksum)
    }

    /// Whether a structure makes no sense as one of its kind: it may be a damaged one of another.
    pub const fn is_garbled(&self) -> bool {
        matches!(
            self.what,
            Defect::RecordLength | Defect::ScopeLength | Defect::ScopeTiling | Defect::DeviceName
        )
    }
}

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DmarError {
    /// Its contents are wrong in a way that could lose a unit or a reserved region.
    #[error(transparent)]
    Malformed(#[from] Finding),
    /// There was no memory to keep what it says.
    #[error("DMAR: {0}")]
    OutOfMemory(#[from] OutOfMemory),
}
