//! What a guest is told: one code for each way in which a request can be refused.

use hv_core::GuestMemoryError;

use crate::destroy::DestroyRefusal;
use crate::iova::SpaceError;
use crate::pending::RedeemRefusal;
use crate::range::MapRefusal;
use crate::resize::CutRefusal;
use crate::space::AddressSpaceError;
use crate::table::TableError;

use super::wire::ReplyBytes;

/// Why a request was refused. Numbers never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Code {
    /// The request ends before its fields do, or says that it is longer than what was given.
    TooShort = 1,
    /// The request is longer than any version of it.
    TooLong = 2,
    /// The request has fields that this version does not know, and they are not zero.
    UnknownFields = 3,
    /// No such version.
    UnknownVersion = 4,
    /// No such command.
    UnknownCommand = 5,
    /// A flag that this version does not know, a reserved field that is not zero, or no permission at all.
    UnknownFlags = 6,
    /// No object has this number.
    UnknownId = 7,
    /// The object with this number is of another kind.
    WrongKind = 8,
    /// There is no room for another object.
    TooManyObjects = 9,
    /// A length of zero.
    Empty = 10,
    /// An address or length is not a multiple of 4 KiB.
    Unaligned = 11,
    /// The range passes the end of the 64-bit space.
    Overflow = 12,
    /// The space has fewer address bits.
    Outside = 13,
    /// Part of the range is mapped.
    Overlap = 14,
    /// Part of the range is reserved.
    Reserved = 15,
    /// Part of the range is allowed, so it cannot be reserved.
    Allowed = 16,
    /// The range is in none that is allowed.
    NotAllowed = 17,
    /// Nothing is mapped there.
    NotMapped = 18,
    /// A mapping would be cut.
    Cuts = 19,
    /// A copy would allow more than its source.
    Widens = 20,
    /// A unit cannot follow a change of page size there.
    CannotFollow = 21,
    /// The guest has no such memory, or it is of another kind.
    NotMemory = 22,
    /// The guest's tables may not become more.
    Quota = 23,
    /// The hypervisor is out of memory.
    OutOfMemory = 24,
    /// A device uses the space.
    Busy = 25,
    /// Part of the range waits for a flush that did not complete.
    Pending = 26,
    /// A unit did not complete a flush.
    UnitFailed = 27,
    /// The space does not track what devices write.
    NoDirtyTracking = 28,
    /// The hypervisor makes no such space.
    NoSuchSpace = 29,
    /// Something that the hypervisor should have prevented.
    Internal = 30,
    /// A mapping begins at that address already: there is nothing to cut.
    BeginsThere = 31,
    /// The guest may not have more mappings.
    TooManyMappings = 32,
}

impl From<AddressSpaceError> for Code {
    fn from(error: AddressSpaceError) -> Self {
        use AddressSpaceError as E;
        match error {
            E::Range(hv_core::RangeError::Unaligned { .. }) => Self::Unaligned,
            E::Range(hv_core::RangeError::Overflow { .. }) => Self::Overflow,
            E::Outside { .. } => Self::Outside,
            E::ForeignMemory { .. } | E::OtherDomain { .. } => Self::Internal,
            E::Memory(error) => error.into(),
            E::Reserved { .. } => Self::Reserved,
            E::NotAllowed { .. } => Self::NotAllowed,
            E::Allowed { .. } => Self::Allowed,
            E::NoSuchWindow { .. } => Self::UnknownId,
            E::Overlap { .. } => Self::Overlap,
            E::Pending { .. } => Self::Pending,
            E::NotMapped { .. } => Self::NotMapped,
            E::Cuts { .. } => Self::Cuts,
            E::Widens { .. } | E::NotPermitted { .. } => Self::Widens,
            E::Quota { .. } => Self::Quota,
            E::BeginsThere { .. } => Self::BeginsThere,
            E::TooManyMappings { .. } => Self::TooManyMappings,
            E::NoDirtyTracking => Self::NoDirtyTracking,
            E::Space(SpaceError::OutOfMemory(_)) | E::OutOfMemory(_) => Self::OutOfMemory,
            E::Space(_) => Self::Overlap,
            E::Map(MapRefusal::Table(error)) | E::Cut(CutRefusal::Table(error)) => table(error),
            E::Map(MapRefusal::PhysTooWide { .. }) => Self::NotMemory,
            E::Map(MapRefusal::Length { .. } | MapRefusal::ForeignFrames { .. }) => Self::Internal,
            E::Cut(CutRefusal::NothingLeft { .. }) => Self::NotMapped,
            E::Unit(_) | E::Reclaim(_) => Self::UnitFailed,
            E::Redeem(RedeemRefusal::Table(error)) => table(error),
            E::Redeem(_) => Self::UnitFailed,
        }
    }
}

fn table(error: TableError) -> Code {
    match error {
        TableError::OutOfFrames { .. } => Code::OutOfMemory,
        TableError::Breaks { .. } => Code::CannotFollow,
        TableError::TooWide { .. } => Code::Outside,
        TableError::Occupied { .. } => Code::Overlap,
        TableError::NotMapped { .. } => Code::NotMapped,
        TableError::CutsPage { .. } | TableError::NoSuchPage { .. } => Code::Unaligned,
        TableError::TableInTheWay { .. }
        | TableError::Damaged { .. }
        | TableError::NotContiguous { .. }
        | TableError::ReclaimPending { .. }
        | TableError::FramesApart { .. }
        | TableError::NotesNothing
        | TableError::Ended => Code::Internal,
    }
}

impl From<GuestMemoryError> for Code {
    fn from(error: GuestMemoryError) -> Self {
        match error {
            GuestMemoryError::OutOfMemory(_) => Self::OutOfMemory,
            _ => Self::NotMemory,
        }
    }
}

impl From<DestroyRefusal> for Code {
    fn from(refusal: DestroyRefusal) -> Self {
        match refusal {
            DestroyRefusal::Ended => Self::Internal,
            _ => Self::Busy,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Why it was refused; `None` when it was done.
    pub refused: Option<Code>,
    /// What it gives: see the commands. Zero when it was refused.
    pub values: [u64; 4],
}

impl Reply {
    pub(super) fn done(values: [u64; 4]) -> Self {
        Self {
            refused: None,
            values,
        }
    }

    pub(super) fn refused(code: Code) -> Self {
        Self {
            refused: Some(code),
            values: [0; 4],
        }
    }

    /// As bytes for the guest.
    pub fn to_wire(self) -> ReplyBytes {
        ReplyBytes {
            code: self.refused.map_or(0, |code| code as u32).into(),
            reserved: 0.into(),
            values: self.values.map(Into::into),
        }
    }
}
