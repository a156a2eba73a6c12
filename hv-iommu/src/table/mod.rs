//! The lock-free second-stage table: its states, its rules, and the handle to one table.
//!
//! # States of a word
//! ```text
//! Empty = 0 | Leaf (present) | Table(page) (present) | Pending(page) (not present, keeps the address)
//! ```
//! What the bits are is the [`Format`]'s business. All 64 bits change at once; nobody ever writes
//! part of a word. Tables linked once stay linked until the domain ends.
//!
//! # Rules
//! 1. Whoever walks holds a [`Guard`]. The root word (page and level in one) is read under it.
//! 2. `Empty -> Table` is a CAS of a private page, all of whose words were written before. The loser
//!    keeps its page and goes on with the winner's.
//! 3. In an exclusive range, `Empty -> Leaf`, `Leaf -> Pending` and `Pending -> Empty` are plain
//!    release stores by the range's one owner, into words whose whole span the range covers. Nobody
//!    else writes those words. In a shared range the same steps are CASes, and who finds another
//!    word than expected is told of the overlap.
//! 4. A map takes all tables that it needs before its first leaf, so it cannot fail after it.
//! 5. `Pending -> Empty` needs a receipt for a flush asked for after the word became pending. Until
//!    then the word counts as occupied.
//! 6. A table is never replaced by a leaf: a large page over a table fills the table.
//! 7. Walkers that do not snoop: a table's words reach memory before the link to it, the link before
//!    the operation that needs it returns (the *written-back* bit says that it did; who walks
//!    through a link without it writes the link back), the leaves before the map returns, the
//!    pending words before the flush is asked for.
//! 8. The end of the table: the root word becomes 0, every guard of before ends, then one owner walks
//!    all words and frees each table once. Pending words are read there too, so nothing is lost
//!    that was forgotten.
//!
//! # Races
//! The hardware walker is a reader that takes no guard and caches what it read; it never sees a word
//! that is not one of the states above.
//!
//! | who × who | step | outcome | loom test (`integration/tests/tests/loom/`) |
//! |---|---|---|---|
//! | map × map | both install in one slot | one page linked, the other reused or freed; both leaves there | `two_mappers_and_a_walker` |
//! | map × unmap | one table, different words | each word as its owner left it | `mapper_against_unmapper_of_one_table` |
//! | map × map, shared range | same word | one wins, the other gets its frame back | `shared_range_gives_a_page_to_one_mapper` |
//! | unmap × unmap, shared range | same word | one gets the frame, the other is told | `a_shared_page_is_unmapped_and_redeemed_once` |
//! | map × lookup | table linked under the lookup | the mapping or nothing | `a_lookup_sees_whole_tables` |
//! | map × walker that does not snoop | link seen before the table's words | never: written back and fenced first | `a_link_reaches_memory_after_its_table` |
//! | walk × end | table freed under the walk | never: the guard holds the end back | `the_end_waits_for_walkers` |
//! | guard × guard × retire | epochs move under a walk | what was unlinked outlives every guard of before | `an_epoch_waits_for_every_guard` |
//! | unmap × flush × walker | stale leaf used after the receipt | never: receipts are younger than the store | `no_translation_survives_its_receipt` |
//!
//! # Orderings
//! | site | ordering | what it publishes |
//! |---|---|---|
//! | read of a word while walking | Acquire | the words of the table behind a link |
//! | install | AcqRel, failure Acquire | the private page's words; the winner's on failure |
//! | leaf, pending, empty stores | Release | the content of the page that is mapped; the owner's earlier steps |
//! | written-back bit | Release | that the link is in memory |
//! | shared leaf, pending, empty CAS | AcqRel, failure Acquire | as the stores; the other's word on failure |
//! | root: close | AcqRel | nothing new may start; pairs with the guard's fence |

#![expect(
    unsafe_code,
    reason = "declares the trait whose contract the tables' memory rests on"
)]

mod map;
mod shared;
mod teardown;
mod unmap;
mod walk;

use alloc::sync::Arc;
use core::ops::Deref;

use hv_core::platform::{CacheMaintenance, FrameSource, PhysMemory};
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use thiserror::Error;

use crate::format::{Format, Level, RootPointer};
use crate::quiesce::Guard;

pub use teardown::Drain;

/// The memory that tables live in: where frames come from, how words are reached, how they become
/// visible to walkers that do not snoop.
pub trait TableMemory: FrameSource + PhysMemory + CacheMaintenance {}
impl<M: FrameSource + PhysMemory + CacheMaintenance> TableMemory for M {}

/// Leads to the memory of a table.
///
/// # Safety
/// Every `deref` of one handle gives the same memory, in the sense of [`PhysMemory`] and
/// [`FrameSource`]: frames taken through one are reached, and taken back, through the next.
pub unsafe trait MemoryHandle: Deref<Target: TableMemory + Sized> {}

// SAFETY: a shared reference leads to one value for as long as it lives.
unsafe impl<M: TableMemory> MemoryHandle for &M {}
// SAFETY: a counted pointer leads to one value for as long as it lives.
unsafe impl<M: TableMemory> MemoryHandle for Arc<M> {}

/// What a table looks like. Fixed for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The level of the root table.
    pub root: Level,
    /// The highest level at which leaves may be written.
    pub largest_leaf: Level,
    /// Whether every walker of the table snoops the CPU's caches.
    pub coherent: bool,
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
    /// A table of smaller pages stands where the large page should go. It stays until the domain
    /// ends, even if it is empty.
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
    /// The frame source ran dry. Tables that were already linked stay for later use.
    #[error("out of frames: {missing} more table pages are needed")]
    OutOfFrames {
        /// How many pages were still missing.
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
    /// The domain has ended.
    #[error("the domain has ended")]
    Ended,
}

/// What a map did besides writing leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapOutcome {
    /// How many tables it linked.
    pub tables: u64,
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

/// One second-stage table, shared by all CPUs.
///
/// `H` leads to the memory that its tables live in; the same memory for its whole life.
///
/// # Invariants
/// Every table word that decodes to a link names a frame that this table took from its memory and
/// has not given back; no two words name the same one. `root` holds such a frame or 0.
pub struct Table<F: Format, H: MemoryHandle> {
    format: F,
    geometry: Geometry,
    memory: H,
    root: AtomicU64,
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// An empty table.
    ///
    /// # Errors
    /// [`TableError::OutOfFrames`] without a frame for the root.
    pub fn new(format: F, geometry: Geometry, memory: H) -> Result<Self, TableError> {
        let page = walk::new_table(&*memory, geometry.coherent)
            .ok_or(TableError::OutOfFrames { missing: 1 })?;
        let root = page.as_u64() | u64::from(geometry.root.number());
        // INVARIANT: the root is a fresh frame, all of whose words are empty.
        Ok(Self {
            format,
            geometry,
            memory,
            root: AtomicU64::new(root),
        })
    }

    /// What the table looks like.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The root pointer for the hardware, or `None` once the table has ended.
    pub fn root(&self) -> Option<RootPointer> {
        // ORDERING: Acquire pairs with the CAS or store that made the table reachable.
        decode_root(self.root.load(Ordering::Acquire))
    }

    /// Where `at` leads.
    pub fn translate(&self, guard: &Guard<'_>, at: Iova) -> Option<Translation> {
        self.lookup(guard, at)
    }

    /// Whether a mapping may be cut before `at`: no leaf spans it.
    pub fn is_leaf_boundary(&self, guard: &Guard<'_>, at: Iova) -> bool {
        match self.lookup(guard, at) {
            Some(found) => at.as_u64() & (self.span(found.level) - 1) == 0,
            None => true,
        }
    }

    /// Whether every word of `range` is empty.
    pub fn is_vacant(&self, guard: &Guard<'_>, range: IovaRange) -> bool {
        self.vacant_range(guard, range)
    }

    /// Maps `range` to the frames that start at `to`, with pages up to `largest`, in words that the
    /// caller owns exclusively.
    ///
    /// # Errors
    /// [`TableError`]; no leaf was written then.
    pub fn map(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
    ) -> Result<MapOutcome, TableError> {
        self.map_range(guard, range, to, perms, largest)
    }

    /// Turns all leaves of `range`, which the caller owns exclusively, into pending words.
    ///
    /// Words that are not leaves inside the range stay as they are; [`redeem`](Self::redeem)
    /// reports them.
    pub fn unmap(&self, guard: &Guard<'_>, range: IovaRange) {
        self.unmap_range(guard, range);
    }

    /// Empties the pending words of `range`, which the caller owns exclusively and for which it has
    /// a receipt. Gives the first frame of the run that they name, which is as long as the range.
    ///
    /// # Errors
    /// [`TableError`] when the words are not one run of pending pages; none was changed then.
    pub fn redeem(&self, guard: &Guard<'_>, range: IovaRange) -> Result<PhysAddr, TableError> {
        self.redeem_range(guard, range)
    }

    /// Maps one page of `size` in words that several CPUs share.
    ///
    /// # Errors
    /// [`TableError::Occupied`] when another mapping is in the way; nothing was mapped on any error.
    pub fn map_shared(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        perms: Perms,
        size: PageSize,
    ) -> Result<MapOutcome, TableError> {
        self.map_shared_page(guard, at, to, perms, size)
    }

    /// Turns the one leaf of `size` at `at` into a pending word, in words that several CPUs share.
    ///
    /// # Errors
    /// [`TableError::NotMapped`] when there is no such leaf, also when another CPU was faster.
    pub fn unmap_shared(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        size: PageSize,
    ) -> Result<PhysAddr, TableError> {
        self.unmap_shared_page(guard, at, size)
    }

    /// Empties the pending word at `at` that the caller made by [`unmap_shared`](Self::unmap_shared)
    /// and has a receipt for.
    ///
    /// # Errors
    /// [`TableError::NotMapped`] when the word is not the one that was left there.
    pub fn redeem_shared(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        size: PageSize,
    ) -> Result<(), TableError> {
        self.redeem_shared_page(guard, at, to, size)
    }

    /// Ends the table: from now on every operation that begins finds nothing. Gives the old root
    /// once; the tables may be drained after a grace period.
    pub fn close(&self) -> Option<RootPointer> {
        // ORDERING: AcqRel: all links made so far are seen by the drain; the caller's fence in
        // `retire_epoch` pairs with the guards of those who still hold the old root.
        decode_root(self.root.swap(0, Ordering::AcqRel))
    }

    /// Log2 of the bytes that one word of a table of `level` spans.
    fn shift(level: Level) -> u32 {
        PageSize::Size4K.shift() + F::INDEX_BITS * (u32::from(level.number()) - 1)
    }

    /// Bytes that one word of a table of `level` spans.
    fn span(&self, level: Level) -> u64 {
        1 << Self::shift(level)
    }

    /// 4 KiB pages that one word of a table of `level` spans.
    fn pages(&self, level: Level) -> PageCount {
        PageCount::new(self.span(level) / PageSize::Size4K.bytes()).unwrap_or(PageCount::ONE)
    }
}

fn decode_root(word: u64) -> Option<RootPointer> {
    let page = PhysAddr::new(word).align_down(PageSize::Size4K);
    let level = Level::new(u8::try_from(word - page.as_u64()).ok()?)?;
    Some(RootPointer { page, level })
}
