//! The stream table of one unit: an entry for each stream, every one of them aborting until somebody binds it.
//!
//! Linear, or in two levels with one array of entries per PCI bus, which is linked when the first of its streams is
//! bound and never taken back. A stream that has no entry is a bad one: its requests are aborted too, and nothing records
//! them (CR2.RECINVSID is off: they are nobody's, and could fill the queue).
//!
//! An entry has one writer: whoever has its group by value. Others only take something away, word by word and atomically:
//! who cuts a group off, the reset of a wedged unit, and who finds that a device does not answer. So the writer stores into
//! an entry that is live by comparing as well ([`EntryWords::exchange`]), and computes what it stores from what stands.

#![expect(
    unsafe_code,
    reason = "arrays of entries are reached by the addresses in descriptors"
)]

use hv_core::platform::Platform;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, PageSize, PhysAddr};
use hv_iommu::UnitError;

use crate::StreamId;
use crate::entry_update::Step;
use crate::frames::Reach;
use crate::spec::stream_entry::{StreamTableEntry, WORDS};
use crate::spec::stream_table::{
    ENTRY_BYTES, FORMAT_LINEAR, FORMAT_TWO_LEVEL, LEVEL_1_BYTES, Level1Descriptor, SPLIT_BY_BUS,
    StreamTableBase, StreamTableConfig, TABLE_ADDRESS_SHIFT,
};

/// Bytes of a word of an entry.
const WORD_BYTES: u64 = 8;
/// The most streams of a table in two levels: Linux has a first level of at most 1 MiB.
const TWO_LEVEL_BITS_MOST: u8 = 17 + SPLIT_BY_BUS;
/// The most streams of a linear table: 4 MiB.
const LINEAR_BITS_MOST: u8 = 16;

/// How entries are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// One array.
    Linear,
    /// Descriptors of arrays of 2^[`SPLIT_BY_BUS`] entries.
    TwoLevel,
}

/// The table.
///
/// # Invariants
/// `root` holds 2^`log2` entries, or as many descriptors as that takes arrays. Each descriptor that is not zero holds
/// the address of an array that was taken from the platform for this table, is used for nothing else, and is never
/// given back; all of its entries were valid before it was linked.
pub(crate) struct StreamTable {
    root: FrameRun<Hypervisor>,
    shape: Shape,
    log2: u8,
    /// What an entry is before somebody writes it.
    blank: [u64; WORDS],
}

/// The words of an entry, and where the first is.
pub(crate) struct EntryWords<'a, C> {
    cells: &'a [C; WORDS],
    at: PhysAddr,
}

impl StreamTable {
    /// Bits of the streams that a table has room for, at most, of a unit that knows `bits` bits.
    pub(crate) const fn most_bits(bits: u8, two_levels: bool) -> u8 {
        let most = match Self::shape(bits, two_levels) {
            Shape::TwoLevel => TWO_LEVEL_BITS_MOST,
            Shape::Linear => LINEAR_BITS_MOST,
        };
        if bits < most { bits } else { most }
    }

    const fn shape(bits: u8, two_levels: bool) -> Shape {
        match two_levels && bits > SPLIT_BY_BUS {
            true => Shape::TwoLevel,
            false => Shape::Linear,
        }
    }

    /// A table for streams of `bits` bits in which every stream is aborted, or bad.
    pub(crate) fn new<P: Platform>(
        reach: &Reach<'_, P>,
        bits: u8,
        two_levels: bool,
    ) -> Result<Self, UnitError> {
        let shape = Self::shape(bits, two_levels);
        let log2 = Self::most_bits(bits, two_levels);
        Self::filled_with(reach, shape, log2, StreamTableEntry::ABORT.words())
    }

    /// A table of other things of the same size, one for each stream of this one.
    pub(crate) fn same_shape<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        blank: [u64; WORDS],
    ) -> Result<Self, UnitError> {
        Self::filled_with(reach, self.shape, self.log2, blank)
    }

    fn filled_with<P: Platform>(
        reach: &Reach<'_, P>,
        shape: Shape,
        log2: u8,
        blank: [u64; WORDS],
    ) -> Result<Self, UnitError> {
        let bytes = match shape {
            Shape::Linear => ENTRY_BYTES << log2,
            Shape::TwoLevel => LEVEL_1_BYTES << (log2 - SPLIT_BY_BUS),
        };
        let root = reach.aligned_run(bytes)?;
        if shape == Shape::Linear {
            fill(reach, &root, &blank);
        }
        reach.publish(root.range().start(), root.range().pages().bytes());
        // INVARIANT: the run is long enough, and no descriptor names anything.
        Ok(Self {
            root,
            shape,
            log2,
            blank,
        })
    }

    /// Whether the table has room for a stream.
    pub(crate) fn covers(&self, stream: StreamId) -> bool {
        u64::from(stream.get()).checked_shr(self.log2.into()) == Some(0)
    }

    /// What the unit's registers say of the table.
    pub(crate) fn registers(&self) -> (StreamTableBase, StreamTableConfig) {
        let address = self.root.range().start().as_u64() >> TABLE_ADDRESS_SHIFT;
        let (format, split) = match self.shape {
            Shape::Linear => (FORMAT_LINEAR, 0),
            Shape::TwoLevel => (FORMAT_TWO_LEVEL, SPLIT_BY_BUS),
        };
        let config = StreamTableConfig::new()
            .with_log2size(self.log2)
            .with_split(split)
            .with_fmt(format);
        let base = StreamTableBase::new().with_address(address).with_ra(true);
        (base, config)
    }

    /// The entry of a stream; `None` while the unit counts it as a bad one and [`add_array`](Self::add_array) has not
    /// been called.
    pub(crate) fn entry<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        stream: StreamId,
    ) -> Result<Option<EntryWords<'a, P::Cell>>, UnitError> {
        let index = u64::from(stream.get());
        if !self.covers(stream) {
            return Err(UnitError::Hardware {
                unit: reach.unit,
                what: "a StreamID beyond the stream table, whose last is",
                expected: (1 << self.log2) - 1,
                found: index,
            });
        }
        if self.shape == Shape::Linear {
            let (offset, page) = (index * ENTRY_BYTES, PageSize::Size4K.bytes());
            let cells = cells_at(reach, &self.root, offset)?;
            let start = self.root.range().start();
            let Some(frame) = start.checked_add(offset / page * page) else {
                return Ok(None);
            };
            return EntryWords::of(reach, cells, offset, frame);
        }
        let descriptor = self.descriptor(reach, stream)?;
        // ORDERING: Acquire pairs with the store that linked the array: its entries are seen.
        let word = Level1Descriptor::from_bits(descriptor.load(Ordering::Acquire));
        if word == Level1Descriptor::EMPTY {
            return Ok(None);
        }
        let offset = (index & ((1 << SPLIT_BY_BUS) - 1)) * ENTRY_BYTES;
        let page = PageSize::Size4K.bytes();
        let array = PhysAddr::new(word.address() << TABLE_ADDRESS_SHIFT);
        let Some(frame) = array.checked_add(offset / page * page) else {
            return Ok(None);
        };
        // SAFETY: by the invariant of this table, `frame` is one of the frames of an array that is its own and is
        // never given back.
        let cells = unsafe { reach.platform.cells(frame) };
        EntryWords::of(reach, cells, offset % page, frame)
    }

    fn descriptor<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        stream: StreamId,
    ) -> Result<&'a P::Cell, UnitError> {
        let offset = u64::from(stream.get() >> SPLIT_BY_BUS) * LEVEL_1_BYTES;
        let cells = cells_at(reach, &self.root, offset)?;
        let word = usize::try_from(offset % PageSize::Size4K.bytes() / WORD_BYTES).ok();
        word.and_then(|word| cells.get(word))
            .ok_or(UnitError::Hardware {
                unit: reach.unit,
                what: "a stream table page that is too short, in words",
                expected: offset / WORD_BYTES,
                found: cells.len() as u64,
            })
    }

    /// Links an array of blank entries for the stream and its neighbours, unless there is one. The unit has to
    /// be told behind it: it may have kept that there was none.
    pub(crate) fn add_array<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        stream: StreamId,
    ) -> Result<(), UnitError> {
        let descriptor = self.descriptor(reach, stream)?;
        let bytes = ENTRY_BYTES << SPLIT_BY_BUS;
        let run = reach.aligned_run(bytes)?;
        fill(reach, &run, &self.blank);
        // The entries reach the unit before the descriptor does.
        reach.publish(run.range().start(), bytes);
        let link = Level1Descriptor::new()
            .with_span(Level1Descriptor::span_of(SPLIT_BY_BUS))
            .with_address(run.range().start().as_u64() >> TABLE_ADDRESS_SHIFT);
        // ORDERING: Release, the entries are visible before the link to them; nothing is acquired on failure.
        let linked =
            descriptor.compare_exchange(0, link.into_bits(), Ordering::Release, Ordering::Relaxed);
        match linked {
            Ok(_) => {
                // INVARIANT: the descriptor owns the array from here on.
                let _ = run.into_range();
                self.publish_link(reach, stream);
            }
            // Somebody else was faster; the unit never saw this array.
            Err(_) => reach.platform.free_frames(run),
        }
        Ok(())
    }
}

impl StreamTable {
    /// Makes the link to a stream's array visible to the unit, whoever stored it.
    pub(crate) fn publish_link<P: Platform>(&self, reach: &Reach<'_, P>, stream: StreamId) {
        if self.shape == Shape::Linear {
            return;
        }
        let offset = u64::from(stream.get() >> SPLIT_BY_BUS) * LEVEL_1_BYTES;
        if let Some(at) = self.root.range().start().checked_add(offset) {
            reach.publish(at, LEVEL_1_BYTES);
        }
    }
}

impl<'a, C: EntryCell> EntryWords<'a, C> {
    /// The eight words `offset` bytes into the page at `frame`, which are its `cells`.
    pub(crate) fn of<P: Platform<Cell = C>>(
        reach: &Reach<'_, P>,
        cells: &'a [C],
        offset: u64,
        frame: PhysAddr,
    ) -> Result<Option<Self>, UnitError> {
        let offset = offset % PageSize::Size4K.bytes();
        let word = usize::try_from(offset / WORD_BYTES).unwrap_or(usize::MAX);
        let words = cells.get(word..).and_then(|rest| rest.first_chunk());
        match (words, frame.checked_add(offset)) {
            (Some(cells), Some(at)) => Ok(Some(Self { cells, at })),
            _ => Err(UnitError::Hardware {
                unit: reach.unit,
                what: "a stream table page that is too short, in words",
                expected: (word + WORDS) as u64,
                found: cells.len() as u64,
            }),
        }
    }

    /// Where it is.
    pub(crate) const fn at(&self) -> PhysAddr {
        self.at
    }

    /// The entry as it stands.
    pub(crate) fn read(&self) -> [u64; WORDS] {
        // ORDERING: Relaxed, who may write the entry is alone; what it reads is its own.
        self.cells
            .each_ref()
            .map(|word| word.load(Ordering::Relaxed))
    }

    /// Does the stores of a step and makes them visible to the unit. It has to be told behind them.
    pub(crate) fn store<P: Platform<Cell = C>>(&self, reach: &Reach<'_, P>, step: &Step) {
        for (word, value) in &step.stores {
            if let Some(cell) = self.cells.get(*word) {
                // ORDERING: Release, the domain's tables, and all that was done before, are visible before a word
                // that the unit may act on.
                cell.store(*value, Ordering::Release);
            }
        }
        reach.publish(self.at, ENTRY_BYTES);
    }

    /// Makes the entry abort, in one store. The unit has to be told behind it.
    pub(crate) fn abort<P: Platform<Cell = C>>(&self, reach: &Reach<'_, P>) {
        let [abort, ..] = StreamTableEntry::ABORT.words();
        self.stop(reach, abort);
    }

    /// Takes it down by one store of this first word. The unit has to be told behind it.
    pub(crate) fn stop<P: Platform<Cell = C>>(&self, reach: &Reach<'_, P>, stopped: u64) {
        let [word, ..] = self.cells;
        // ORDERING: Release, nothing that was done while the device was bound moves behind this.
        word.store(stopped, Ordering::Release);
        reach.publish(self.at, ENTRY_BYTES);
    }

    /// A word that says where something else is, where the words are no entry; 0 for nowhere.
    pub(crate) fn link(&self, word: usize) -> u64 {
        // ORDERING: Acquire pairs with `set_link`: what it leads to is seen as it was when it was linked, or since.
        let cell = self.cells.get(word);
        cell.map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    /// Sets such a word, unless it is set: gives what it was then.
    pub(crate) fn set_link(&self, word: usize, to: u64) -> Result<u64, u64> {
        let Some(cell) = self.cells.get(word) else {
            return Err(0);
        };
        // ORDERING: Release, what it leads to is written before the link; Acquire on failure, what somebody else's leads
        // to is seen.
        cell.compare_exchange(0, to, Ordering::Release, Ordering::Acquire)
    }

    /// Does the stores of a step to what stands, word by word, as long as each word still is what it was; says whether
    /// all were, and notes in `stands` what was stored. Then the unit has to be told.
    pub(crate) fn exchange<P: Platform<Cell = C>>(
        &self,
        reach: &Reach<'_, P>,
        step: &Step,
        stands: &mut [u64; WORDS],
    ) -> bool {
        let mut stored = step.stores.iter().map(|(word, value)| {
            let (Some(cell), Some(found)) = (self.cells.get(*word), stands.get_mut(*word)) else {
                return false;
            };
            // ORDERING: Release, as in `store`; Relaxed on failure, the entry is read anew then.
            let swapped =
                cell.compare_exchange(*found, *value, Ordering::Release, Ordering::Relaxed);
            *found = *value;
            swapped.is_ok()
        });
        let all = stored.all(|swapped| swapped);
        reach.publish(self.at, ENTRY_BYTES);
        all
    }

    /// Makes the entry abort, whoever else is at it. The unit has to be told behind it.
    pub(crate) fn abort_now<P: Platform<Cell = C>>(&self, reach: &Reach<'_, P>) {
        let [abort, ..] = StreamTableEntry::ABORT.words();
        loop {
            let [word, ..] = self.read();
            if word == abort || self.replace(reach, 0, word, abort) {
                return;
            }
        }
    }

    /// Replaces one word, if it still is what it was. Says whether it was.
    pub(crate) fn replace<P: Platform<Cell = C>>(
        &self,
        reach: &Reach<'_, P>,
        word: usize,
        from: u64,
        to: u64,
    ) -> bool {
        let Some(cell) = self.cells.get(word) else {
            return true;
        };
        // ORDERING: Relaxed, it takes something away (records, the leave to ask, all that an entry lets through) and
        // leads to nothing that is new; a word that somebody else has changed meanwhile stays as it is. The queue's own
        // publication comes after it, so that a unit which is told to read the entry anew finds it.
        let swapped = cell.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        reach.publish(self.at, ENTRY_BYTES);
        swapped.is_ok()
    }
}

/// The words of the frame of a run that holds this offset.
fn cells_at<'a, P: Platform>(
    reach: &Reach<'a, P>,
    run: &'a FrameRun<Hypervisor>,
    offset: u64,
) -> Result<&'a [P::Cell], UnitError> {
    let index = offset / PageSize::Size4K.bytes();
    run.cells(reach.platform, index).ok_or(UnitError::Hardware {
        unit: reach.unit,
        what: "a stream table that is too short, in frames",
        expected: index + 1,
        found: run.pages().get(),
    })
}

/// Makes every entry of a private run blank.
fn fill<P: Platform>(reach: &Reach<'_, P>, run: &FrameRun<Hypervisor>, blank: &[u64; WORDS]) {
    for index in 0..run.pages().get() {
        let cells = run.cells(reach.platform, index).unwrap_or_default();
        for (cell, word) in cells.iter().zip(blank.iter().cycle()) {
            // ORDERING: Relaxed, the run is private; the link or register that hands it over publishes it.
            cell.store(*word, Ordering::Relaxed);
        }
    }
}
