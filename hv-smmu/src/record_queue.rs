//! A queue that the unit fills and we empty: the ring, the two indices, and what was lost.
//!
//! What of it can be believed once the unit says that it could not write an event (GERROR.EVENTQ_ABT): its index may have
//! moved past entries that were never written, and software is told to take all of them for invalid (IHI 0070, 7.2.2).
//! Dropping them all would lose real ones: those before the failed one, and all of a full queue, which QEMU reports in
//! the same way. So each entry is emptied when it was taken, before the unit gets it back, and one that is still empty
//! when its turn comes was not written: it is counted as lost, and no old record is told again as somebody's fault.
//!
//! Where the unit does not snoop, the ring is read and never written (3.21.2): a line of the cache may be larger than a
//! record, and written back for the sake of one it would take what the unit has just written beside it along. Nothing tells
//! old records from new ones there, so once the unit says that it could not write one, all that are in the queue are
//! taken for lost.
//!
//! An index may also be where it cannot be: further ahead of ours than there are entries. Nothing tells then how many records
//! are new, so none of them is told, answered or charged to anybody: all are dropped, and we go on from where the unit says that
//! it is. It may have said so by mistake and go back to where it was, for which old records would look new again; so what comes
//! first after that is dropped as well.

use hv_core::fault::Fault;
use hv_core::platform::{Mmio, Platform};
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, PageSize};
use hv_iommu::{BadLog, UnitError};
use spin::mutex::SpinMutex;

use crate::error::BringUpError;
use crate::frames::Reach;
use crate::owed::Owed;
use crate::spec::command::Command;
use crate::spec::event::EventRecord;
use crate::spec::queue::{QUEUE_ADDRESS_SHIFT, QueueBase, QueuePointer, QueueSize};
use crate::spec::registers::{EVENTQ_CONS, EVENTQ_PROD, Gerror, PRIQ_CONS, PRIQ_PROD};
use crate::unit::Regs;

/// Bytes of a word.
const WORD_BYTES: u64 = 8;

/// Which queue of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// Events.
    Events,
    /// Requests for pages.
    Pages,
}

impl Records {
    /// Where the unit writes next, and what we read next.
    pub(crate) const fn indices(self) -> (u32, u32) {
        match self {
            Self::Events => (EVENTQ_PROD, EVENTQ_CONS),
            Self::Pages => (PRIQ_PROD, PRIQ_CONS),
        }
    }

    /// What people call it.
    const fn name(self) -> &'static str {
        match self {
            Self::Events => "event queue",
            Self::Pages => "page request queue",
        }
    }

    /// That a record could not be written.
    fn lost(self, errors: Gerror) -> Gerror {
        match self {
            Self::Events => Gerror::new().with_eventq_abt_err(errors.eventq_abt_err()),
            Self::Pages => Gerror::new().with_priq_abt_err(errors.priq_abt_err()),
        }
    }
}

/// What a look at a queue gave.
pub(crate) enum Taken<R> {
    /// The oldest record; its place is free again.
    Record(R),
    /// Some were lost; the condition was cleared.
    Lost,
    /// The unit could not write some, and says so; the condition was cleared. Or some were dropped behind an index that lied.
    /// Those of requests that stand still may be among them, which nothing tells of again (IHI 0070, 7.2.2).
    Aborted,
    /// The index says that there are more than there can be: all were dropped. Given once, until records are taken again.
    Beyond(BadLog),
    /// There may be some, which are not taken before the command queue has taken an answer that is owed.
    Withheld,
}

/// A queue of records of `WORDS` words.
///
/// # Invariants
/// `ring` is aligned to its size, used for nothing else, and never given back: the unit writes it for as long as it
/// runs.
pub(crate) struct RecordQueue<const WORDS: usize> {
    ring: FrameRun<Hypervisor>,
    size: QueueSize,
    /// The lock keeps two CPUs from telling of one record twice.
    reader: SpinMutex<Reader>,
    owed: Owed,
}

/// How far records were taken.
#[derive(Default)]
struct Reader {
    /// What is read next, as the register says.
    next: QueuePointer,
    /// Whether the index lied, and nothing has come since.
    is_doubted: bool,
}

impl<const WORDS: usize> RecordQueue<WORDS> {
    const BYTES: u64 = WORDS as u64 * WORD_BYTES;

    /// A queue of 2^`log2` entries, with both indices at zero.
    pub(crate) fn new<P: Platform>(reach: &Reach<'_, P>, log2: u8) -> Result<Self, BringUpError> {
        let size = QueueSize::new(log2).ok_or(UnitError::Hardware {
            unit: reach.unit,
            what: "a queue of too many records, log2",
            expected: crate::spec::queue::LOG2_MAX.into(),
            found: log2.into(),
        })?;
        let ring = reach.aligned_run(u64::from(size.entries()) * Self::BYTES)?;
        // Zeros that are still in a cache must not be written over records later.
        reach.publish(ring.range().start(), ring.range().pages().bytes());
        // INVARIANT: the run is new.
        Ok(Self {
            ring,
            size,
            reader: SpinMutex::new(Reader::default()),
            owed: Owed::new(),
        })
    }

    /// What the unit's register says of the ring.
    pub(crate) fn base(&self) -> QueueBase {
        QueueBase::new()
            .with_address(self.ring.range().start().as_u64() >> QUEUE_ADDRESS_SHIFT)
            .with_log2size(self.size.log2())
            .with_allocate(true)
    }

    /// Takes the oldest record, else the note that some were lost. `answer` says what the unit has to be told about a
    /// record, and `tell` whether the unit took that: it may wait for room among commands, so no lock is held meanwhile.
    ///
    /// [`Taken::Withheld`] while the unit takes no commands and an answer is owed; what is left is found by the next look.
    /// Another CPU that takes a record is waited for, which is a few accesses: it may have seen an empty queue just before
    /// the record whose interrupt brought this CPU here.
    pub(crate) fn take<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        regs: &Regs<P::Block>,
        which: Records,
        answer: impl Fn(&[u64; WORDS]) -> Option<Command>,
        tell: impl Fn(Command) -> bool,
    ) -> Option<Taken<[u64; WORDS]>> {
        // The record's place in the ring is given back before its answer is: that lets the device send the next one.
        self.owed
            .take(|| self.look(reach, regs, which), answer, tell)
    }

    /// Takes what there is.
    fn look<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        regs: &Regs<P::Block>,
        which: Records,
    ) -> Option<Taken<[u64; WORDS]>> {
        let (prod, cons) = which.indices();
        let mut reader = self.reader.lock();
        let word = regs.read32(prod);
        // A unit that is gone reads as all ones; its records would never end.
        if word == u32::MAX {
            return None;
        }
        let prod = QueuePointer::from_bits(word);
        let (used, room) = (self.size.used(prod, reader.next), self.size.entries());
        if used > room && !Fault::BelieveAnyIndex.is_on() {
            self.empty_all(reach, which);
            self.drop_all(regs, &mut reader, (prod, which));
            let was_told = core::mem::replace(&mut reader.is_doubted, true);
            return Some(match was_told {
                true => Taken::Aborted,
                false => Taken::Beyond(BadLog {
                    log: which.name(),
                    room,
                    found: used,
                }),
            });
        }
        if used > 0 && reader.is_doubted {
            self.empty_all(reach, which);
            self.drop_all(regs, &mut reader, (prod, which));
            reader.is_doubted = false;
            return Some(Taken::Aborted);
        }
        if used > 0 {
            let record = self.record(reach, self.size.index(reader.next), which);
            if !reach.coherent && which == Records::Events {
                // Behind the copy: what it shows is believed only where nothing was lost by then.
                let lost = which.lost(regs.errors());
                if lost != Gerror::new() {
                    self.drop_all(regs, &mut reader, (prod, which));
                    regs.acknowledge(lost);
                    return Some(Taken::Aborted);
                }
            }
            reader.next = self.size.advance(reader.next, 1);
            // Written at once: that makes room.
            if !Fault::KeepEvents.is_on() {
                regs.write32(cons, reader.next.into_bits());
            }
            return Some(record.map_or(Taken::Lost, Taken::Record));
        }
        if prod.overflow() != reader.next.overflow() {
            reader.next = reader.next.acknowledge(prod);
            if !Fault::KeepOverflow.is_on() {
                regs.write32(cons, reader.next.into_bits());
            }
            return Some(Taken::Lost);
        }
        // A record that could not be written is lost too. QEMU says so when its event queue is full.
        let lost = which.lost(regs.errors());
        if lost != Gerror::new() {
            if !reach.coherent && which == Records::Events {
                self.drop_all(regs, &mut reader, (prod, which));
            }
            regs.acknowledge(lost);
            return Some(Taken::Aborted);
        }
        None
    }

    /// Takes all that there is, which is nobody's.
    pub(crate) fn forget_all<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        regs: &Regs<P::Block>,
        which: Records,
    ) {
        // Twice its size: what a unit that goes on writing would give has an end, too.
        for _ in 0..2 * self.size.entries() {
            if self.look(reach, regs, which).is_none() {
                return;
            }
        }
    }

    /// Empties the entries of events that are dropped unread, so that none of them passes for a later one that the unit could
    /// not write. Where it does not snoop, nothing is written there.
    fn empty_all<P: Platform>(&self, reach: &Reach<'_, P>, which: Records) {
        if !reach.coherent || which != Records::Events {
            return;
        }
        for index in 0..self.size.entries() {
            let _ = self.record(reach, index, which);
        }
    }

    /// Gives all records back, unread. Where the unit has said that it could not write one, it writes none before that is
    /// acknowledged; its index may have moved once more since it was read, or have told the truth the second time.
    fn drop_all<B: Mmio>(
        &self,
        regs: &Regs<B>,
        reader: &mut Reader,
        (mut prod, which): (QueuePointer, Records),
    ) {
        let (index, cons) = which.indices();
        for is_last in [false, true] {
            reader.next = self.size.move_to(reader.next, prod);
            regs.write32(cons, reader.next.into_bits());
            if !is_last {
                prod = QueuePointer::from_bits(regs.read32(index));
            }
        }
    }

    /// Copies a record out of the ring, and empties its entry where that harms no other; `None` where the unit did not write
    /// it, as far as that can be told: no event begins with an empty word, a request for a page may.
    fn record<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        index: u32,
        which: Records,
    ) -> Option<[u64; WORDS]> {
        let offset = u64::from(index) * Self::BYTES;
        let page = PageSize::Size4K.bytes();
        let at = self.ring.range().start().checked_add(offset)?;
        if !reach.coherent {
            reach.platform.write_back_and_drop(at, Self::BYTES);
        }
        let cells = self.ring.cells(reach.platform, offset / page)?;
        let first = usize::try_from(offset % page / WORD_BYTES).ok()?;
        let cells = cells.get(first..)?.first_chunk::<WORDS>()?;
        // ORDERING: Acquire, the index was read before: the unit wrote the record before it moved that.
        let words = cells.each_ref().map(|word| word.load(Ordering::Acquire));
        if which == Records::Pages {
            return Some(words);
        }
        if let Some(head) = cells.first()
            && (reach.coherent || Fault::EmptyUnsnoopedEvents.is_on())
        {
            // ORDERING: Relaxed, `publish` puts it before the index that gives the entry back to the unit.
            head.store(EventRecord::NONE, Ordering::Relaxed);
            reach.publish(at, Self::BYTES);
        }
        let is_there = words.first() != Some(&EventRecord::NONE);
        (is_there || Fault::BelieveEmptyEvents.is_on()).then_some(words)
    }
}
