//! The lock-free second-stage table; its protocol is in `PROTOCOL.md` beside this file.
#![doc = include_str!("PROTOCOL.md")]
#![expect(
    unsafe_code,
    reason = "declares the trait whose contract the tables' memory rests on"
)]

mod build;
mod change;
mod fast;
mod iterate;
mod map;
mod merged;
mod outcome;
mod place;
mod reclaim;
mod root;
mod shared;
mod spares;
mod teardown;
mod unmap;
mod walk;

use alloc::sync::Arc;
use core::ops::{ControlFlow, Deref};
use core::sync::atomic::AtomicU64 as MachineU64;

use hv_core::platform::{CacheMaintenance, Cpus, FrameSource, PhysMemory};
use hv_core::sync::{AtomicBool, AtomicU64, Ordering};
use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr, TryLock};

use crate::format::{Format, Level, RootPointer};
use crate::quiesce::{Guard, Quiescence};
use map::SparesOf;
use reclaim::Reclaimer;

pub use merged::MergedBits;
pub use outcome::{
    Changed, Geometry, MapOutcome, Mapping, Redeemed, TableError, Translation, Unmapped,
};
pub use place::LeafPlace;
pub use reclaim::{BATCH, ReclaimStep};
pub use spares::Spares;
pub use teardown::{Drain, DrainStep};

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

/// One second-stage table, shared by all CPUs.
///
/// `H` leads to the memory that its tables live in; the same memory for its whole life.
///
/// # Invariants
/// Every table word that decodes to a link, a tombstone or a detached table names a frame that this table
/// took from its memory and has not given back; no two words name the same one, and no list of `reclaim`
/// names it too. `root` holds such a frame or 0.
pub struct Table<F: Format, H: MemoryHandle> {
    format: F,
    geometry: Geometry,
    memory: H,
    root: AtomicU64,
    /// Mask and value of a link that a mapper goes through as it is.
    clear_link: (u64, u64),
    /// The format's address bits of a word: read, it costs less than the constant where it is needed.
    address: u64,
    /// All other bits, likewise.
    beside_address: u64,
    /// The address bits that a largest leaf must not have, all of them where the table takes none.
    beside_huge: u64,
    /// The address bits that the table does not translate.
    beyond: u64,
    /// The same, and all others where the table is not plain.
    beyond_plain: u64,
    /// Whether walkers snoop and write nothing: most tables.
    plain: bool,
    reclaim: TryLock<Reclaimer>,
    /// Asks the next look of `reclaim` to begin at the first address.
    rewind: AtomicBool,
    /// How many tables there are: a figure, so the machine's own atomic and not a modelled one.
    tables: MachineU64,
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// An empty table.
    ///
    /// # Errors
    /// [`TableError::OutOfFrames`] without frames for the root; [`TableError::FramesApart`],
    /// [`TableError::TooWide`] and [`TableError::NotesNothing`] where there can be no such table.
    ///
    /// # Safety
    /// All guards that are ever given to the table's methods are of one [`Quiescence`], and so is the one that
    /// [`reclaim`](Self::reclaim) and its companions are given, with the one [`Cpus`] that its guards are made
    /// with: what is freed after a grace period was waited for by these alone.
    pub unsafe fn new(format: F, geometry: Geometry, memory: H) -> Result<Self, TableError> {
        let geometry = Self::check(geometry)?;
        if geometry.dirty && !format.notes_writes() {
            return Err(TableError::NotesNothing);
        }
        let written_back = F::WRITTEN_BACK * u64::from(!geometry.coherent);
        let beyond = Self::beyond(&geometry);
        let plain = geometry.coherent && !geometry.dirty;
        let table = Self {
            format,
            geometry,
            memory,
            root: AtomicU64::new(0),
            clear_link: (F::LINK_MASK | written_back, F::LINK | written_back),
            address: F::ADDRESS,
            beside_address: !F::ADDRESS,
            beside_huge: Self::beside_huge(geometry.largest_leaf),
            beyond,
            beyond_plain: if plain { beyond } else { u64::MAX },
            plain,
            reclaim: TryLock::new(Reclaimer::new()),
            rewind: AtomicBool::new(false),
            tables: MachineU64::new(0),
        };
        let root = table.new_root()?;
        // INVARIANT: the root is of fresh frames, all of whose words are empty.
        // ORDERING: Release, like a link: whoever finds the root finds its words.
        table.root.store(
            root.as_u64() | u64::from(geometry.root.number()),
            Ordering::Release,
        );
        table.count_tables(geometry.root_tables.count() as i64);
        Ok(table)
    }

    /// What the table looks like.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// How many tables there are, with those that wait to be freed.
    pub fn table_pages(&self) -> u64 {
        // ORDERING: Relaxed, a figure.
        self.tables.load(Ordering::Relaxed)
    }

    fn count_tables(&self, change: i64) {
        // ORDERING: Relaxed, a figure.
        self.tables.fetch_add(change as u64, Ordering::Relaxed);
    }

    /// The root pointer for the hardware, or `None` once the table has ended.
    #[inline]
    pub fn root(&self) -> Option<RootPointer> {
        // ORDERING: Acquire pairs with the store that made the table reachable.
        self.decode_root(self.root.load(Ordering::Acquire))
    }

    /// Where `at` leads.
    #[inline(always)]
    pub fn translate(&self, guard: &Guard<'_>, at: Iova) -> Option<Translation> {
        self.lookup(guard, at)
    }

    /// Whether a mapping may be cut before `at`: no leaf spans it.
    pub fn is_leaf_boundary(&self, guard: &Guard<'_>, at: Iova) -> bool {
        match self.lookup(guard, at) {
            Some(found) => at.as_u64() & (Self::span(found.level) - 1) == 0,
            None => true,
        }
    }

    /// Whether a page of this table can begin at `at`, whatever is mapped there.
    ///
    /// # Errors
    /// [`TableError::CutsPage`].
    pub fn check_boundary(&self, at: Iova) -> Result<(), TableError> {
        Self::check_cut(at)
    }

    /// Whether nothing is mapped or pending in `range`.
    pub fn is_vacant(&self, guard: &Guard<'_>, range: IovaRange) -> bool {
        self.vacant_run(guard, range)
            .unwrap_or_else(|| self.vacant_range(guard, range))
    }

    /// Shows every leaf that has a page in `range`, in order, until the visitor breaks off.
    pub fn mappings(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        mut show: impl FnMut(Mapping) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.mappings_in(guard, range, &mut show)
    }

    /// Frames for tables that no word names yet: to be handed to a map that must not look for any.
    pub fn spares(&self) -> SparesOf<'_, H> {
        Spares::new(self.memory(), Self::TABLE_FRAMES, Self::BEYOND)
    }

    /// How many tables it takes at most to map `range` to the frames that start at `to` in two parts, the
    /// first of which has `pages` pages.
    pub fn most_tables(
        &self,
        range: IovaRange,
        to: PhysAddr,
        pages: PageCount,
        largest: PageSize,
    ) -> u64 {
        self.most_for(range, to, pages, largest)
    }

    /// Maps `range` to the frames that start at `to`, with pages up to `largest`, in words that the
    /// caller owns exclusively.
    ///
    /// # Errors
    /// [`TableError`]; nothing was mapped and no frame taken then.
    #[inline(always)]
    pub fn map(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
    ) -> Result<MapOutcome, TableError> {
        if self.map_run::<true>(guard, range, to, perms, largest) {
            return Ok(MapOutcome::default());
        }
        self.map_range(guard, range, to, perms, largest)
    }

    /// As [`map`](Self::map), with tables from `spares` first. What it takes from the platform beyond
    /// these and does not need is left there.
    ///
    /// # Errors
    /// [`TableError`]; nothing was mapped and no frame taken then.
    #[inline(always)]
    pub fn map_from(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
        spares: &mut SparesOf<'_, H>,
    ) -> Result<MapOutcome, TableError> {
        if self.map_run::<true>(guard, range, to, perms, largest) {
            return Ok(MapOutcome::default());
        }
        self.map_range_from(guard, range, to, perms, largest, spares)
    }

    /// As [`map`](Self::map), or with `spares` as [`map_from`](Self::map_from), for a range that is known to
    /// be vacant: the words of smallest leaves need not be looked at before they are written.
    ///
    /// # Errors
    /// [`TableError`]; nothing was mapped and no frame taken then.
    ///
    /// # Safety
    /// The caller owns the range exclusively, the table translates all of it, and every leaf that was ever
    /// mapped in it was redeemed. What is written over here is nobody's any more.
    #[inline(always)]
    pub unsafe fn map_vacant(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
        spares: Option<&mut SparesOf<'_, H>>,
    ) -> Result<MapOutcome, TableError> {
        if self.map_run::<false>(guard, range, to, perms, largest) {
            return Ok(MapOutcome::default());
        }
        match spares {
            Some(spares) => self.map_range_from(guard, range, to, perms, largest, spares),
            None => self.map_range(guard, range, to, perms, largest),
        }
    }

    /// Turns all leaves of `range`, which the caller owns exclusively, into pending words, and detaches
    /// each table that maps nothing outside of it.
    ///
    /// Words that are not leaves inside the range stay as they are; [`redeem`](Self::redeem)
    /// reports them.
    #[inline(always)]
    pub fn unmap(&self, guard: &Guard<'_>, range: IovaRange) -> Unmapped {
        match self.unmap_run(guard, range) {
            Some(unmapped) => unmapped,
            None => self.unmap_range(guard, range),
        }
    }

    /// Empties what [`unmap`](Self::unmap) left of `range`, which the caller owns exclusively and which
    /// was mapped to the run that begins at `to`. Gives detached tables back. Tells `dirty` of pages that
    /// were written by a device, where walkers note that; it calls nothing of this table.
    ///
    /// # Errors
    /// [`TableError`] when the words are not that run, pending, or with [`TableError::ReclaimPending`] while a
    /// step of reclaim runs where walkers write dirty bits; nothing was changed then.
    ///
    /// # Safety
    /// The caller owns the range, alone, and opens it once. A flush of it has completed on every unit, asked
    /// for after the unmap. If tables were detached it included walk caches, and every guard of the time of
    /// the unmap has ended.
    #[inline(always)]
    pub unsafe fn redeem(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        mut dirty: impl FnMut(Iova, Level),
    ) -> Result<Redeemed, TableError> {
        if self.redeem_run(guard, range, to) {
            return Ok(Redeemed::default());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.redeem_range(guard, range, to, &mut dirty) }
    }

    /// Maps one page of `size` in words that several CPUs share.
    ///
    /// # Errors
    /// [`TableError::Occupied`] when another mapping is in the way, [`TableError::NoSuchPage`]; nothing was mapped on any
    /// error.
    #[inline(always)]
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
    /// [`TableError::NotMapped`] when there is no such leaf, also when another CPU was faster;
    /// [`TableError::NoSuchPage`].
    #[inline(always)]
    pub fn unmap_shared(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        size: PageSize,
    ) -> Result<PhysAddr, TableError> {
        self.unmap_shared_page(guard, at, size)
    }

    /// Empties the pending word at `at` that the caller made by [`unmap_shared`](Self::unmap_shared)
    /// and has a receipt for. Whether a device has written the page, where walkers note that.
    ///
    /// # Errors
    /// [`TableError::NotMapped`] when the word is not the one that was left there.
    #[inline(always)]
    pub fn redeem_shared(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        size: PageSize,
    ) -> Result<bool, TableError> {
        self.redeem_shared_page(guard, at, to, size)
    }

    /// Changes what devices may do with `range`, which the caller owns exclusively and which is mapped.
    ///
    /// # Errors
    /// [`TableError::NotMapped`] where the range is not mapped by whole leaves; nothing was changed then.
    pub fn protect(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        perms: Perms,
    ) -> Result<Changed, TableError> {
        self.protect_range(guard, range, perms)
    }

    /// Makes the leaves of `range`, which the caller owns exclusively and which is mapped by smallest leaves, those of a
    /// doorbell. No device is bound to the table yet: what they say of memory changes.
    ///
    /// # Errors
    /// [`TableError::NotMapped`] where the range is not mapped so.
    pub fn make_doorbell(&self, guard: &Guard<'_>, range: IovaRange) -> Result<(), TableError> {
        self.doorbell_range(guard, range)
    }

    /// Replaces the leaf of `size` at `at`, which the caller owns exclusively, by leaves one size smaller,
    /// without a moment in which an address faults. Until a flush of the whole leaf that reaches walk
    /// caches, devices may use the old one.
    ///
    /// # Errors
    /// [`TableError::Breaks`] where walkers cannot follow, [`TableError::NoSuchPage`]; nothing was changed on any error.
    pub fn split(&self, guard: &Guard<'_>, at: Iova, size: PageSize) -> Result<(), TableError> {
        self.split_leaf(guard, at, size, &mut self.spares())
    }

    /// Replaces the table of smaller pages at `at`, all of which the caller owns exclusively, by one leaf
    /// of `size`, without a moment in which an address faults. Until a flush of the whole leaf that
    /// reaches walk caches, devices may use the table; it is given back by [`reclaim`](Self::reclaim).
    ///
    /// # Errors
    /// [`TableError::Breaks`] where walkers cannot follow, [`TableError::NotContiguous`] where the pages
    /// are not one run with the same permissions, [`TableError::NoSuchPage`], [`TableError::ReclaimPending`]; nothing was
    /// changed.
    pub fn merge(&self, guard: &Guard<'_>, at: Iova, size: PageSize) -> Result<(), TableError> {
        self.merge_table(guard, at, size)
    }

    /// Shows every leaf of `range` that a device wrote through since that was last cleared. Nothing where
    /// walkers do not note it.
    pub fn dirty(&self, guard: &Guard<'_>, range: IovaRange, mut dirty: impl FnMut(Iova, Level)) {
        self.dirty_range(guard, range, false, &mut dirty);
    }

    /// As [`dirty`](Self::dirty), and forgets it. Until a flush of the range, a device may write without
    /// that being noted again.
    pub fn dirty_and_clear(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        mut dirty: impl FnMut(Iova, Level),
    ) {
        self.dirty_range(guard, range, true, &mut dirty);
    }

    /// What has to be done before [`dirty`](Self::dirty) tells all that was written through `range`: units that
    /// have a link to a table that a merge replaced set dirty bits there, until a flush.
    pub fn merged_bits(&self, range: IovaRange) -> MergedBits {
        self.untold_merges(range)
    }

    /// Has the leaves of `range` get the dirty bits that were set in tables that merges replaced. Whether it could
    /// look: not while a step of reclaim runs.
    ///
    /// # Safety
    /// [`merged_bits`](Self::merged_bits) gave `merges` for this `range`, and the flush that it asked for was begun
    /// after that and has completed on every unit.
    pub unsafe fn take_merged_bits(
        &self,
        guard: &Guard<'_>,
        merges: u64,
        range: IovaRange,
    ) -> bool {
        self.tell_merges(guard, merges, range)
    }

    /// Marks every leaf of `range` as written by a device, where walkers note that.
    pub fn mark_written(&self, guard: &Guard<'_>, range: IovaRange) {
        if let Some((root, part)) = self.within(range)
            && self.geometry.dirty
        {
            let _ = self.mark_dirty(guard, root, part);
        }
    }

    /// One step towards giving empty tables back. Bounded, and waits for nobody. Not under a guard of
    /// `quiescence` that this CPU holds for long: it would wait for that one.
    pub fn reclaim(&self, quiescence: &Quiescence, cpus: &impl Cpus) -> ReclaimStep {
        self.reclaim_once(quiescence, cpus)
    }

    /// Has the next step of [`reclaim`](Self::reclaim) begin at the first address, so that
    /// [`ReclaimStep::Done`] then covers all that became empty before this call.
    pub fn reclaim_rewind(&self) {
        // ORDERING: Release, to the step that takes it.
        self.rewind.store(true, Ordering::Release);
    }

    /// What was unlinked in `attempt` is out of every unit's reach.
    ///
    /// # Safety
    /// The flush that [`ReclaimStep::Flush`] asked for with this number was begun after that step and has
    /// completed on every unit.
    pub unsafe fn reclaim_flushed(
        &self,
        quiescence: &Quiescence,
        cpus: &impl Cpus,
        attempt: u64,
    ) -> ReclaimStep {
        // SAFETY: the caller's promise is the same.
        unsafe { self.clear_unlinked(quiescence, cpus, attempt) }
    }

    /// The flush for `attempt` failed: links again what was unlinked. Whether that was done; another CPU
    /// runs a step otherwise.
    pub fn reclaim_cancel(&self, quiescence: &Quiescence, cpus: &impl Cpus, attempt: u64) -> bool {
        self.relink_unlinked(quiescence, cpus, attempt)
    }

    /// Ends the table: from now on every operation that begins finds nothing. Gives the old root
    /// once; the tables may be drained after a grace period.
    pub fn close(&self) -> Option<RootPointer> {
        // ORDERING: AcqRel: all links made so far are seen by the drain; the caller's fence in
        // `retire_epoch` pairs with the guards of those who still hold the old root.
        self.decode_root(self.root.swap(0, Ordering::AcqRel))
    }

    #[inline]
    fn decode_root(&self, word: u64) -> Option<RootPointer> {
        let page = PhysAddr::new(word).align_down(PageSize::Size4K);
        let level = Level::new(u8::try_from(word - page.as_u64()).ok()?)?;
        Some(RootPointer {
            page,
            level,
            tables: self.geometry.root_tables,
        })
    }
}
