//! Why a call of an address space did nothing.

use hv_core::{GuestMemoryError, Iova, IovaRange, OutOfMemory, Perms, RangeError, VmId};
use thiserror::Error;

use super::ReservedFor;
use crate::domain::DomainUid;
use crate::flush::FlushError;
use crate::iova::SpaceError;
use crate::pending::RedeemRefusal;
use crate::range::MapRefusal;
use crate::reclaim::ReclaimError;
use crate::resize::CutRefusal;

/// Why a call of an address space did nothing; see the single calls for what a failed flush leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressSpaceError {
    /// The address or length is no valid range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The domain does not translate addresses that high.
    #[error("{wanted} is beyond {whole}, which is all that the domain translates")]
    Outside {
        /// What was asked for.
        wanted: IovaRange,
        /// What the domain translates.
        whole: IovaRange,
    },
    /// The memory is another guest's.
    #[error("memory of {memory} cannot be mapped into an address space of {space}")]
    ForeignMemory {
        /// Whose space it is.
        space: VmId,
        /// Whose memory was given.
        memory: VmId,
    },
    /// A part of a bulk map is of another space.
    #[error("the part is of {found}, the space of {expected}")]
    OtherDomain {
        /// The space's domain.
        expected: DomainUid,
        /// The part's.
        found: DomainUid,
    },
    /// The guest's memory refuses.
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
    /// Part of the range is reserved.
    #[error("{wanted} meets {by}, which is reserved ({why})")]
    Reserved {
        /// What was asked for.
        wanted: IovaRange,
        /// The reserved range.
        by: IovaRange,
        /// What it is reserved for.
        why: ReservedFor,
    },
    /// Ranges were allowed, and this one is in none of them.
    #[error("{wanted} lies in no range that is allowed")]
    NotAllowed {
        /// What was asked for.
        wanted: IovaRange,
    },
    /// The range to be reserved meets one that was promised to the guest.
    #[error("{wanted} cannot be reserved: {allowed} was allowed before")]
    Allowed {
        /// What was asked for.
        wanted: IovaRange,
        /// The allowed range.
        allowed: IovaRange,
    },
    /// No such range was allowed or reserved.
    #[error("{wanted} is no range that was allowed or reserved")]
    NoSuchWindow {
        /// What was asked for.
        wanted: IovaRange,
    },
    /// Part of the range is mapped.
    #[error("{wanted} overlaps {taken}, which is mapped")]
    Overlap {
        /// What was asked for.
        wanted: IovaRange,
        /// A mapping in the way.
        taken: IovaRange,
    },
    /// Part of the range was unmapped and waits for a flush that did not complete.
    #[error("{wanted} meets {pending}, which waits for a flush: retry when its unit works again")]
    Pending {
        /// What was asked for.
        wanted: IovaRange,
        /// What waits.
        pending: IovaRange,
    },
    /// Nothing is mapped there.
    #[error("nothing is mapped in {wanted}")]
    NotMapped {
        /// What was asked for.
        wanted: IovaRange,
    },
    /// A mapping cannot be cut where it begins.
    #[error("a mapping begins at {at} already: there is nothing to cut")]
    BeginsThere {
        /// Where it was to be cut.
        at: Iova,
    },
    /// The range holds only a part of a mapping.
    #[error("{wanted} would cut {mapping}: split it first")]
    Cuts {
        /// What was asked for.
        wanted: IovaRange,
        /// The mapping.
        mapping: IovaRange,
    },
    /// A copy may not allow more than its source does.
    #[error("a mapping for {found} cannot be copied as one for {wanted}")]
    Widens {
        /// What the source allows.
        found: Perms,
        /// What was asked for.
        wanted: Perms,
    },
    /// An access by the CPU is not what the mapping lets devices do.
    #[error("{at} is mapped for {found} only")]
    NotPermitted {
        /// The mapping.
        at: IovaRange,
        /// What it allows.
        found: Perms,
    },
    /// The guest's tables may not become more.
    #[error("the guest's tables may take {needed} more pages for this, {left} are left to it")]
    Quota {
        /// How many it could take at most.
        needed: u64,
        /// How many are left.
        left: u64,
    },
    /// The guest may not have more mappings.
    #[error(
        "the guest may have {limit} mappings, waiting for a flush or not: {used} are there, {needed} more do not fit"
    )]
    TooManyMappings {
        /// How many more it would have been.
        needed: u64,
        /// How many it has.
        used: u64,
        /// The most that it may have, over all of its address spaces.
        limit: u64,
    },
    /// No unit of the domain notes what devices write.
    #[error("the domain does not track what devices write")]
    NoDirtyTracking,
    /// The domain's free ranges.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// Range, frames or table refuse.
    #[error(transparent)]
    Map(#[from] MapRefusal),
    /// A mapping cannot be cut there.
    #[error(transparent)]
    Cut(#[from] CutRefusal),
    /// A unit did not complete a flush.
    #[error(transparent)]
    Unit(#[from] FlushError),
    /// What was unmapped stays pending.
    #[error(transparent)]
    Redeem(#[from] RedeemRefusal),
    /// Empty tables did not come back.
    #[error(transparent)]
    Reclaim(#[from] ReclaimError),
    /// The control path's heap is exhausted.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}
