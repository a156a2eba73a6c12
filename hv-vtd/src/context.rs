//! Root and context tables of one unit: who is bound to what.
//!
//! An entry goes live by one last store and comes down by one first store; in between nobody
//! writes a field of it. Edits of one unit's tables exclude each other by a spin lock, which no
//! hardware wait happens under; map and unmap never come here.

#![expect(
    unsafe_code,
    reason = "binding a device hands it memory; context tables are reached by address"
)]

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr};
use hv_iommu::{Binding, HwDomainId, UnitError, UnitIndex};
use spin::mutex::SpinMutex;

use crate::caps;
use crate::spec::root_context::{
    ContextHigh, ContextLow, POINTER, RootLow, TT_PASS_THROUGH, TT_TABLES, WORDS_PER_ENTRY,
};

const PAGE_SHIFT: u32 = 12;
const WORD_BYTES: u64 = 8;

/// What an edit works with.
pub(crate) struct TableContext<'a, P: Platform> {
    pub(crate) platform: &'a P,
    pub(crate) unit: UnitIndex,
    /// Whether the unit's reads of these tables snoop (ECAP.C).
    pub(crate) coherent: bool,
    /// Whether the unit can let requests through untranslated (ECAP.PT), which only a deliberate fault uses.
    pub(crate) pass_through: bool,
    /// Addresses of tables are below 2 to this.
    pub(crate) phys_bits: u8,
}

/// The tables of one unit.
///
/// # Invariants
/// `root` is one page. Each present root entry holds the address of a page that was taken from the
/// platform for this table, is used for nothing else and is never given back.
pub(crate) struct ContextTables {
    root: FrameRun<Hypervisor>,
    edit: SpinMutex<()>,
}

/// The two words of an entry, and where the first is.
struct EntryWords<'a, C> {
    low: &'a C,
    high: &'a C,
    at: PhysAddr,
}

impl<'a, C> EntryWords<'a, C> {
    /// The entry with this index of the table at `table`.
    fn of(cells: &'a [C], table: PhysAddr, index: u8, unit: UnitIndex) -> Result<Self, UnitError> {
        let word = usize::from(index) * WORDS_PER_ENTRY;
        let entry = cells.get(word..).and_then(|rest| rest.first_chunk());
        match (entry, table.checked_add(word as u64 * WORD_BYTES)) {
            (Some([low, high]), Some(at)) => Ok(Self { low, high, at }),
            _ => Err(UnitError::Hardware {
                unit,
                what: "a table page that is too short, in words",
                expected: (word + WORDS_PER_ENTRY) as u64,
                found: cells.len() as u64,
            }),
        }
    }
}

impl<P: Platform> TableContext<'_, P> {
    /// Makes stores to `bytes` bytes at `from` visible to the unit, before any later store.
    fn publish(&self, from: PhysAddr, bytes: u64) {
        if !self.coherent && !Fault::SkipContextWriteBack.is_on() {
            self.platform.write_back(from, bytes);
        }
        self.platform.walker_fence();
    }
}

impl ContextTables {
    /// Tables that bind nobody, in a zeroed page.
    pub(crate) fn new<P: Platform>(
        context: &TableContext<'_, P>,
        root: FrameRun<Hypervisor>,
    ) -> Self {
        context.publish(root.range().start(), PageSize::Size4K.bytes());
        Self {
            root,
            edit: SpinMutex::new(()),
        }
    }

    /// The root table, for the unit's register.
    pub(crate) fn root_address(&self) -> PhysAddr {
        self.root.range().start()
    }

    fn root_entry<'a, P: Platform>(
        &'a self,
        context: &'a TableContext<'_, P>,
        bus: u8,
    ) -> Result<EntryWords<'a, P::Cell>, UnitError> {
        let cells = self.root.cells(context.platform, 0).unwrap_or_default();
        EntryWords::of(cells, self.root_address(), bus, context.unit)
    }

    /// The context entry of a requester, if its bus has a table.
    fn context_entry<'a, P: Platform>(
        &'a self,
        context: &'a TableContext<'_, P>,
        requester: PciAddress,
    ) -> Result<Option<EntryWords<'a, P::Cell>>, UnitError> {
        let root = self.root_entry(context, requester.bus())?;
        // ORDERING: Acquire, pairs with the Release of the store that linked the table: its zeros
        // are seen.
        let word = RootLow::from_bits(root.low.load(Ordering::Acquire));
        if !word.p() {
            return Ok(None);
        }
        let table = PhysAddr::new(word.into_bits() & POINTER);
        // SAFETY: the entry is present, so by the invariant `table` is a page of ours that stays
        // one for as long as `self` does.
        let cells = unsafe { context.platform.cells(table) };
        EntryWords::of(cells, table, requester.devfn(), context.unit).map(Some)
    }

    /// Gives a bus its context table.
    fn add_table<P: Platform>(
        &self,
        context: &TableContext<'_, P>,
        bus: u8,
    ) -> Result<(), UnitError> {
        let run = context
            .platform
            .alloc_frames(PageCount::ONE, PageSize::Size4K)?;
        let table = run.range().start();
        if !caps::fits(table, context.phys_bits) {
            context.platform.free_frames(run);
            return Err(too_wide(context, table));
        }
        for cell in run.cells(context.platform, 0).unwrap_or_default() {
            // ORDERING: Relaxed, the page is private; the link below publishes it.
            cell.store(0, Ordering::Relaxed);
        }
        // The zeros reach the unit before the link does.
        context.publish(table, PageSize::Size4K.bytes());
        let root = self.root_entry(context, bus)?;
        let link = RootLow::new()
            .with_p(true)
            .with_ctp(table.as_u64() >> PAGE_SHIFT)
            .into_bits();
        // ORDERING: Release, the table's zeros are visible before the link to it; nothing needs
        // to be acquired on failure.
        let linked = root
            .low
            .compare_exchange(0, link, Ordering::Release, Ordering::Relaxed);
        match linked {
            // INVARIANT: the entry owns the page from here on.
            Ok(_) => context.publish(root.at, WORD_BYTES),
            // Somebody else gave the bus a table; this page was never seen by the unit.
            Err(_) => context.platform.free_frames(run),
        }
        Ok(())
    }

    /// Makes `requester` go through the tables of `binding`.
    ///
    /// The caller has checked that the unit walks tables of that depth.
    ///
    /// # Safety
    /// As for [`hv_iommu::Backend::bind`].
    pub(crate) unsafe fn bind<P: Platform>(
        &self,
        context: &TableContext<'_, P>,
        requester: PciAddress,
        binding: Binding,
        aw: u8,
    ) -> Result<(), UnitError> {
        let page = binding.root.page();
        if !caps::fits(page, context.phys_bits) {
            return Err(too_wide(context, page));
        }
        let _edit = self.edit.lock();
        if self.context_entry(context, requester)?.is_none() {
            self.add_table(context, requester.bus())?;
        }
        let Some(entry) = self.context_entry(context, requester)? else {
            return Err(UnitError::Hardware {
                unit: context.unit,
                what: "a root entry that was written, when it was read back",
                expected: 1,
                found: 0,
            });
        };
        // ORDERING: Relaxed, the edit lock orders all writers of the entry.
        let before = ContextLow::from_bits(entry.low.load(Ordering::Relaxed));
        if before.p() {
            // ORDERING: Relaxed, as above.
            let high = ContextHigh::from_bits(entry.high.load(Ordering::Relaxed));
            return Err(UnitError::AlreadyBound {
                requester,
                domain: HwDomainId::new(high.did()),
            });
        }
        let high = ContextHigh::new()
            .with_aw(aw)
            .with_did(binding.domain.get());
        let tt = if Fault::BindPassThrough.is_on() && context.pass_through {
            TT_PASS_THROUGH
        } else {
            TT_TABLES
        };
        let low = ContextLow::new()
            .with_p(true)
            .with_tt(tt)
            .with_ssptptr(page.as_u64() >> PAGE_SHIFT);
        if Fault::ContextLowFirst.is_on() {
            // ORDERING: Release; the deliberate fault is that the other word is not there yet.
            entry.low.store(low.into_bits(), Ordering::Release);
            context.publish(entry.at, WORD_BYTES);
        }
        if !Fault::HalfEntry.is_on() {
            // ORDERING: Relaxed, the entry is not present: the unit does not look at this word
            // until the store below, which `publish` and its own Release put behind this one.
            entry.high.store(high.into_bits(), Ordering::Relaxed);
        }
        if let Some(at) = entry.at.checked_add(WORD_BYTES) {
            context.publish(at, WORD_BYTES);
        }
        // ORDERING: Release, makes the entry live: the other word and the domain's tables are
        // visible before it.
        entry.low.store(low.into_bits(), Ordering::Release);
        context.publish(entry.at, WORD_BYTES);
        Ok(())
    }

    /// Takes down the entry of `requester`, if it is bound to `domain`.
    ///
    /// The other word stays as it is: hardware ignores it now, and may still be reading it. It is
    /// written again only before the entry goes live the next time, which the caller does not ask
    /// for before the flush has completed.
    pub(crate) fn unbind<P: Platform>(
        &self,
        context: &TableContext<'_, P>,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<(), UnitError> {
        let _edit = self.edit.lock();
        let not_bound = UnitError::NotBound { requester, domain };
        let entry = self.context_entry(context, requester)?.ok_or(not_bound)?;
        // ORDERING: Relaxed, the edit lock orders all writers of the entry.
        let low = ContextLow::from_bits(entry.low.load(Ordering::Relaxed));
        // ORDERING: Relaxed, as above.
        let high = ContextHigh::from_bits(entry.high.load(Ordering::Relaxed));
        if !low.p() || high.did() != domain.get() {
            return Err(not_bound);
        }
        if Fault::ContextHighWhilePresent.is_on() {
            // ORDERING: Release; the deliberate fault is that the unit may be reading this word.
            entry.high.store(0, Ordering::Release);
            context.publish(entry.at, 2 * WORD_BYTES);
        }
        // What went astray while it was bound does so now.
        let down = ContextLow::new().with_fpd(low.fpd());
        // ORDERING: Release, nothing that was done while the device was bound moves behind this.
        entry.low.store(down.into_bits(), Ordering::Release);
        context.publish(entry.at, WORD_BYTES);
        Ok(())
    }
}

impl ContextTables {
    /// Stops faults of a requester from being recorded, until it is bound anew. Of one that is bound to nothing too, if its bus
    /// has a table: units look at this bit of the last entry that they reach, present or not.
    pub(crate) fn quiet<P: Platform>(
        &self,
        context: &TableContext<'_, P>,
        requester: PciAddress,
    ) -> Result<(), UnitError> {
        let _edit = self.edit.lock();
        let (entry, low) = self.found(context, requester)?;
        // ORDERING: Relaxed, one store that changes one bit, which decides what is recorded and nothing about where
        // requests go: whichever value the unit reads, the entry is the same binding, or none.
        entry
            .low
            .store(low.with_fpd(true).into_bits(), Ordering::Relaxed);
        context.publish(entry.at, WORD_BYTES);
        Ok(())
    }

    /// Under which id the entry of a requester may be cached; `None` if it is not present.
    pub(crate) fn domain_of<P: Platform>(
        &self,
        context: &TableContext<'_, P>,
        requester: PciAddress,
    ) -> Result<Option<HwDomainId>, UnitError> {
        let _edit = self.edit.lock();
        let (entry, low) = self.found(context, requester)?;
        // ORDERING: Relaxed, the edit lock orders all writers of the entry.
        let high = ContextHigh::from_bits(entry.high.load(Ordering::Relaxed));
        Ok(low.p().then(|| HwDomainId::new(high.did())))
    }

    /// The entry of a requester whose bus has a table, and its low word. The caller holds the edit lock.
    fn found<'a, P: Platform>(
        &'a self,
        context: &'a TableContext<'_, P>,
        requester: PciAddress,
    ) -> Result<(EntryWords<'a, P::Cell>, ContextLow), UnitError> {
        let not_bound = UnitError::NotBound {
            requester,
            domain: HwDomainId::new(0),
        };
        let entry = self.context_entry(context, requester)?.ok_or(not_bound)?;
        // ORDERING: Relaxed, the edit lock orders all writers of the entry.
        let low = ContextLow::from_bits(entry.low.load(Ordering::Relaxed));
        Ok((entry, low))
    }
}

fn too_wide<P: Platform>(context: &TableContext<'_, P>, page: PhysAddr) -> UnitError {
    UnitError::Hardware {
        unit: context.unit,
        what: "a table page above the host address width",
        expected: caps::last_address(context.phys_bits),
        found: page.as_u64(),
    }
}
