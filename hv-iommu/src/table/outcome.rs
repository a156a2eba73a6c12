//! What a table is asked with and answers: its shape, what operations did, why they did nothing.

use hv_core::{Iova, PageSize, Perms, PhysAddr};
use thiserror::Error;

use crate::format::{Level, RootTables};

/// What a table looks like. Fixed for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The level of the root table.
    pub root: Level,
    /// How many tables stand side by side as the root; no more than the format allows.
    pub root_tables: RootTables,
    /// The highest level at which leaves may be written.
    pub largest_leaf: Level,
    /// Whether every walker of the table snoops the CPU's caches.
    pub coherent: bool,
    /// Whether a leaf may be replaced by a table of the same meaning, and the other way round, while
    /// walkers use it.
    pub live_resize: bool,
    /// Whether walkers write dirty bits. Only walkers that snoop can.
    pub dirty: bool,
}

/// Why a table operation did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// Something is mapped or pending there.
    #[error("{at} is mapped already, or waits for a flush receipt")]
    Occupied {
        /// The first such address.
        at: Iova,
    },
    /// A table of smaller pages stands where the large page should go. If it is empty, it stays until it
    /// was reclaimed.
    #[error("{at} has a table of smaller pages, so no page of that size fits")]
    TableInTheWay {
        /// The address.
        at: Iova,
    },
    /// Nothing of that size is mapped there.
    #[error("{at} is not mapped by a page of the expected size")]
    NotMapped {
        /// The address.
        at: Iova,
    },
    /// The frame source ran dry, or gave frames at addresses that no word of the table can tell, which went back. Nothing was
    /// taken.
    #[error("out of frames: {missing} more table pages are needed")]
    OutOfFrames {
        /// How many pages were missing.
        missing: u64,
    },
    /// A word that no rule of the table produces.
    #[error("the table word for {at} is damaged: {word:#x}")]
    Damaged {
        /// Where.
        at: Iova,
        /// What was read.
        word: u64,
    },
    /// The pages behind a range are not the one contiguous run that was mapped.
    #[error("{at} maps {found}, expected {expected}")]
    NotContiguous {
        /// Where the run breaks.
        at: Iova,
        /// The page that continues the run.
        expected: PhysAddr,
        /// The page found.
        found: PhysAddr,
    },
    /// The address has more bits than the table translates.
    #[error("{last} is beyond the {bits} bits that the table translates")]
    TooWide {
        /// The last address of the operation.
        last: Iova,
        /// How many bits the table translates.
        bits: u32,
    },
    /// Walkers of this table cannot follow a live change of page size.
    #[error("the page size at {at} cannot change while devices use it: unmap, flush and map again")]
    Breaks {
        /// The address.
        at: Iova,
    },
    /// Part of a page: those of this table are larger than 4 KiB.
    #[error(
        "{at} would be mapped by part of a page: the smallest has {bytes:#x} bytes, and what is mapped has to be whole ones"
    )]
    CutsPage {
        /// The first address of the operation.
        at: Iova,
        /// The bytes of the smallest page.
        bytes: u64,
    },
    /// A page of a size that this table has not.
    #[error("{at} cannot have a page of {size}: this table's smallest has {smallest:#x} bytes")]
    NoSuchPage {
        /// The address.
        at: Iova,
        /// What was asked for.
        size: PageSize,
        /// The bytes of the smallest page.
        smallest: u64,
    },
    /// The platform reaches frames only one by one.
    #[error(
        "a table takes {frames} frames side by side, which the platform reaches only one by one"
    )]
    FramesApart {
        /// How many frames one table has.
        frames: u64,
    },
    /// Writes are to be noted in leaves that are not such as hardware notes them in.
    #[error(
        "hardware notes no writes in leaves of this format, and the table was to be one where it does"
    )]
    NotesNothing,
    /// Too many merged tables wait for their flush, or a reclaim step runs right now.
    #[error(
        "{at} has to wait for reclaim: let its steps, and tables that wait for them, come to an end"
    )]
    ReclaimPending {
        /// The address.
        at: Iova,
    },
    /// The domain has ended.
    #[error("the domain has ended")]
    Ended,
}

/// What a map did besides writing leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapOutcome {
    /// How many tables it linked.
    pub tables: u64,
    /// At how many places a larger page would have fitted, but a table was there and was filled.
    pub filled: u64,
}

/// What an unmap left to be flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a flush without walk caches is not enough where tables were detached"]
pub struct Unmapped {
    /// Whether tables were detached: the flush has to reach walk caches, and what is pending opens only
    /// after a grace period as well.
    pub tables: bool,
}

/// What was taken out when a pending range was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redeemed {
    /// How many table pages were given back.
    pub tables: u64,
}

/// What a change of permissions did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Whether a device may now do less somewhere. Until a flush it may still do it.
    pub lost: bool,
    /// Whether anything is different. Until a flush devices may be refused what they may now do.
    pub any: bool,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address of the byte.
    pub to: PhysAddr,
    /// What the device may do.
    pub perms: Perms,
    /// The level of the leaf.
    pub level: Level,
}

/// One leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its first address.
    pub at: Iova,
    /// Where that leads.
    pub to: PhysAddr,
    /// What the device may do.
    pub perms: Perms,
    /// Its level.
    pub level: Level,
}
