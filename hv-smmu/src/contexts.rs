//! Context descriptors of one unit: one for each stream, as far as somebody bound it, or a table of them for a stream
//! that tells its requests apart by substream.
//!
//! They are a stream's, not a domain's. The one of requests without a substream is written only while the stream's entry
//! aborts and the unit holds nothing of it; one of a substream by the steps of [`Update::of_context`], by who has that
//! substream of the stream. So no descriptor changes under anybody's feet. Nobody but these tables and stream table
//! entries knows where one is.
//!
//! A stream without substreams has its descriptor in its slot. One with substreams has a page of 64 instead, whose first is
//! that of requests without a substream, and the slot, which no entry leads to then, says where the page is. Where 64 are
//! too few the page becomes the first leaf of a table in two levels (S1FMT 1), so that its descriptors stay where they are:
//! the stream's entry names the table instead of the page in one store of one word, and requests go on
//! meanwhile. Pages and tables are kept for the stream's next binding, and never given back.

#![expect(
    unsafe_code,
    reason = "pages of descriptors are reached by the addresses in slots and tables"
)]

use hv_core::platform::Platform;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, PageSize, PhysAddr};
use hv_iommu::UnitError;

use crate::SubstreamId;
use crate::entry_update::Step;
use crate::frames::Reach;
use crate::spec::context::{
    CONTEXT_BYTES, ContextDescriptor, LEVEL_1_BYTES, Level1Context, PAGE_CONTEXTS,
    PAGE_CONTEXTS_LOG2, WORDS,
};
use crate::spec::stream_entry::ContextTableFormat;
use crate::stream_table::{EntryWords, StreamTable};
use crate::unit::Stream;

/// Bits of a substream that a unit looks at without tables in two levels: as many as one page has descriptors for.
pub(crate) const LINEAR_BITS_MOST: u8 = PAGE_CONTEXTS_LOG2;

/// The word of a slot that says where a stream's page is, 0 for nowhere.
const SLOT_PAGE: usize = 0;
/// The word of a slot that says where a stream's first level is, 0 for nowhere.
const SLOT_TABLE: usize = 1;

/// The descriptors. Slots lie as the entries of a stream table do, which have the same size: in one array, or in one
/// array for each PCI bus.
///
/// # Invariants
/// The slot of a stream with substreams, and the first level that it names, hold zeros or addresses of runs that were
/// taken from the platform for this stream, are used for nothing else, and are never given back. A page is 64
/// descriptors, a first level has a descriptor for each 64 that the stream's bits make.
pub(crate) struct Contexts(StreamTable);

/// What a stream table entry says of the descriptors of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContextTable {
    pub(crate) at: PhysAddr,
    pub(crate) format: ContextTableFormat,
    /// Log2 of how many there are; 0 for one, and no substreams.
    pub(crate) log2: u8,
}

impl ContextTable {
    /// One descriptor, for requests without a substream, at this address.
    pub(crate) const fn alone(at: PhysAddr) -> Self {
        let format = ContextTableFormat::Linear;
        Self {
            at,
            format,
            log2: 0,
        }
    }
}

impl Contexts {
    /// Descriptors for as many streams as there are entries in `streams`, none of them valid.
    pub(crate) fn beside<P: Platform>(
        reach: &Reach<'_, P>,
        streams: &StreamTable,
    ) -> Result<Self, UnitError> {
        // A blank slot is a descriptor that is not valid, and one that names neither page nor table.
        let blank = ContextDescriptor::INVALID.words();
        streams.same_shape(reach, blank).map(Self)
    }

    /// The descriptor of a substream, or of requests without one ([`SubstreamId::ZERO`]), of a stream that has had it
    /// bound before.
    pub(crate) fn of<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        stream: Stream,
        substream: SubstreamId,
    ) -> Result<Option<EntryWords<'a, P::Cell>>, UnitError> {
        let Some(slot) = self.0.entry(reach, stream.id)? else {
            return Ok(None);
        };
        if stream.substream_bits == 0 {
            return Ok((substream == SubstreamId::ZERO).then_some(slot));
        }
        check_within(reach, stream, substream)?;
        let page = match leaf_number(substream) {
            0 => slot.link(SLOT_PAGE),
            number => match slot.link(SLOT_TABLE) {
                0 => 0,
                table => self.leaf_of(reach, table, number)?,
            },
        };
        self.in_page(reach, page, substream)
    }

    /// The same, which is made if it is not there.
    pub(crate) fn get<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        stream: Stream,
        substream: SubstreamId,
    ) -> Result<EntryWords<'a, P::Cell>, UnitError> {
        if self.0.entry(reach, stream.id)?.is_none() {
            self.0.add_array(reach, stream.id)?;
        }
        if stream.substream_bits != 0 {
            check_within(reach, stream, substream)?;
            let slot = self.slot(reach, stream)?;
            match leaf_number(substream) {
                0 => self.ensure_page(reach, &slot).map(|_| ())?,
                number => {
                    let table = self.ensure_table(reach, stream, &slot)?;
                    self.ensure_leaf(reach, table, number)?;
                }
            }
        }
        let made = self.of(reach, stream, substream)?;
        made.ok_or_else(|| missing(reach))
    }

    /// All descriptors of a stream with substreams. The one of requests without is where it was.
    pub(crate) fn all<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        stream: Stream,
    ) -> Result<ContextTable, UnitError> {
        let slot = self.slot(reach, stream)?;
        let log2 = stream.substream_bits;
        let (at, format) = match log2 <= PAGE_CONTEXTS_LOG2 {
            true => (self.ensure_page(reach, &slot)?, ContextTableFormat::Linear),
            false => (
                self.ensure_table(reach, stream, &slot)?,
                ContextTableFormat::TwoLevelsOfPages,
            ),
        };
        let at = PhysAddr::new(at);
        Ok(ContextTable { at, format, log2 })
    }

    fn slot<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        stream: Stream,
    ) -> Result<EntryWords<'a, P::Cell>, UnitError> {
        let slot = self.0.entry(reach, stream.id)?;
        slot.ok_or_else(|| missing(reach))
    }

    /// The page of the stream's first descriptors.
    fn ensure_page<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        slot: &EntryWords<'_, P::Cell>,
    ) -> Result<u64, UnitError> {
        let page = slot.link(SLOT_PAGE);
        if page != 0 {
            return Ok(page);
        }
        self.linked(
            reach,
            PageSize::Size4K.bytes(),
            |_| (),
            |at| slot.set_link(SLOT_PAGE, at),
        )
    }

    /// The stream's first level.
    fn ensure_table<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        stream: Stream,
        slot: &EntryWords<'_, P::Cell>,
    ) -> Result<u64, UnitError> {
        let table = slot.link(SLOT_TABLE);
        if table != 0 {
            return Ok(table);
        }
        let page = self.ensure_page(reach, slot)?;
        let bytes = LEVEL_1_BYTES << stream.substream_bits.saturating_sub(PAGE_CONTEXTS_LOG2);
        let first = |cells: &[P::Cell]| {
            if let Some(cell) = cells.first() {
                // ORDERING: Relaxed, the table is private; who links it publishes it.
                cell.store(Level1Context::to(page).into_bits(), Ordering::Relaxed);
            }
        };
        self.linked(reach, bytes, first, |at| slot.set_link(SLOT_TABLE, at))
    }

    /// The page of descriptors behind a descriptor of the first level.
    fn ensure_leaf<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        table: u64,
        number: u64,
    ) -> Result<(), UnitError> {
        let (cell, at) = self.level_1(reach, table, number)?;
        // ORDERING: Relaxed, only whether there is one.
        if cell.load(Ordering::Relaxed) == 0 {
            self.linked(
                reach,
                PageSize::Size4K.bytes(),
                |_| (),
                |page| {
                    let link = Level1Context::to(page).into_bits();
                    // ORDERING: Release, the page is seen empty before the link to it; Acquire on failure, whoever was faster
                    // has made an empty one too.
                    cell.compare_exchange(0, link, Ordering::Release, Ordering::Acquire)
                        .map_err(|found| Level1Context::from_bits(found).address())
                },
            )?;
        }
        // Whoever linked it may not have written the link back yet.
        reach.publish(at, LEVEL_1_BYTES);
        Ok(())
    }

    /// A new run of zeros, which are descriptors that are not valid, as `fill` leaves its first frame, linked by `link`;
    /// or what somebody else linked there first.
    fn linked<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        bytes: u64,
        fill: impl FnOnce(&[P::Cell]),
        link: impl FnOnce(u64) -> Result<u64, u64>,
    ) -> Result<u64, UnitError> {
        let run = reach.aligned_run(bytes)?;
        fill(run.cells(reach.platform, 0).unwrap_or_default());
        let start = run.range().start();
        // Before anything leads the unit there.
        reach.publish(start, run.range().pages().bytes());
        match link(start.as_u64()) {
            Ok(_) => {
                // INVARIANT: the link owns the run from here on.
                let _ = run.into_range();
                Ok(start.as_u64())
            }
            Err(other) => {
                reach.platform.free_frames(run);
                Ok(other)
            }
        }
    }

    /// The page that a first level names, 0 for none.
    fn leaf_of<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        table: u64,
        number: u64,
    ) -> Result<u64, UnitError> {
        let (cell, _) = self.level_1(reach, table, number)?;
        // ORDERING: Acquire pairs with the store that linked the page: it is seen empty, or as it was written since.
        Ok(Level1Context::from_bits(cell.load(Ordering::Acquire)).address())
    }

    /// A descriptor of a first level, and where it is. `table` is a word of a slot that is not zero, and `number` below
    /// what the stream's bits make.
    fn level_1<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        table: u64,
        number: u64,
    ) -> Result<(&'a P::Cell, PhysAddr), UnitError> {
        let (offset, page) = (number * LEVEL_1_BYTES, PageSize::Size4K.bytes());
        let at = PhysAddr::new(table).checked_add(offset);
        let at = at.ok_or_else(|| missing(reach))?;
        let word = usize::try_from(offset % page / LEVEL_1_BYTES).unwrap_or(usize::MAX);
        // SAFETY: by the invariant of this table, the run at `table` is its own and never given back, and has a frame for
        // each number that the stream's bits make.
        let cells = unsafe { reach.platform.cells(at.align_down(PageSize::Size4K)) };
        cells
            .get(word)
            .map(|cell| (cell, at))
            .ok_or_else(|| missing(reach))
    }

    /// The descriptor of a substream in its page; `None` where there is no page.
    fn in_page<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        page: u64,
        substream: SubstreamId,
    ) -> Result<Option<EntryWords<'a, P::Cell>>, UnitError> {
        if page == 0 {
            return Ok(None);
        }
        let frame = PhysAddr::new(page);
        let offset = u64::from(substream.get() % PAGE_CONTEXTS) * CONTEXT_BYTES;
        // SAFETY: by the invariant of this table, the page is its own and never given back.
        let cells = unsafe { reach.platform.cells(frame) };
        EntryWords::of(reach, cells, offset, frame)
    }
}

/// Which page of descriptors has that of a substream.
fn leaf_number(substream: SubstreamId) -> u64 {
    u64::from(substream.get() / PAGE_CONTEXTS)
}

/// Refuses a substream that a stream has no descriptor for.
fn check_within<P: Platform>(
    reach: &Reach<'_, P>,
    stream: Stream,
    substream: SubstreamId,
) -> Result<(), UnitError> {
    let count = 1u64 << stream.substream_bits.min(hv_core::Pasid::BITS);
    let found = u64::from(substream.get());
    if found < count {
        return Ok(());
    }
    Err(UnitError::Hardware {
        unit: reach.unit,
        what: "a substream beyond the stream's context descriptors, whose last is",
        expected: count - 1,
        found,
    })
}

fn missing<P: Platform>(reach: &Reach<'_, P>) -> UnitError {
    UnitError::Hardware {
        unit: reach.unit,
        what: "a link to context descriptors that was written, when it was read back",
        expected: 1,
        found: 0,
    }
}

/// The stores that make a descriptor which nobody reads this one: word 0, which makes it valid, is the last.
pub(crate) fn stores(target: &[u64; WORDS]) -> Step {
    let stores = target.iter().copied().enumerate().rev();
    Step {
        stores: stores.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_becomes_valid_with_its_last_store() {
        let target = [0x8000_0001, 1, 2, 3, 4, 5, 6, 7];
        let mut words = ContextDescriptor::INVALID.words();
        let step = stores(&target);
        let (last, before) = step.stores.split_last().unwrap();
        for (word, value) in before {
            words[*word] = *value;
        }
        assert_eq!(words[0], 0, "not valid until then");
        words[last.0] = last.1;
        assert_eq!(words, target);
    }
}
