//! The event queue of one unit: the unit fills it, we empty it, and what was lost is said.
//!
//! What of it can be believed once the unit says that it could not write an event (GERROR.EVENTQ_ABT): its index may have
//! moved past entries that were never written, and software is told to take all of them for invalid (IHI 0070, 7.2.2).
//! Dropping them all would lose real ones: those before the failed one, and all of a full queue, which QEMU reports in
//! the same way. So each entry is emptied when it was taken, before the unit gets it back, and one that is still empty
//! when its turn comes was not written: it is counted as lost, and no old record is told again as somebody's fault.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::Ordering;
use hv_core::{Access, EntryCell, FrameRun, Hypervisor, Iova, PageSize, Pasid};
use hv_iommu::{FaultClass, FaultEvent, RawFault, StrayFault, UnitError};
use log::warn;
use spin::mutex::SpinMutex;

use crate::StreamId;
use crate::error::BringUpError;
use crate::frames::Reach;
use crate::spec::event::{EventKind, EventRecord, WORDS};
use crate::spec::queue::{EVENT_BYTES, QUEUE_ADDRESS_SHIFT, QueueBase, QueuePointer, QueueSize};
use crate::spec::registers::{self, Gerror};
use crate::unit::Regs;

/// Log2 of the entries: four pages. A storm is told by its first events; more of the same would only take longer.
const LOG2: u8 = 9;

/// How many entries the queue of a unit has that takes 2^`most`.
pub(crate) const fn entries(most: u8) -> u32 {
    1 << (if most < LOG2 { most } else { LOG2 })
}

/// An event queue.
///
/// # Invariants
/// `ring` is aligned to its size, used for nothing else, and never given back: the unit writes it for as long as it
/// runs.
pub(crate) struct Events {
    ring: FrameRun<Hypervisor>,
    size: QueueSize,
    /// What we read next, as the register says. The lock keeps two CPUs from telling of one event twice.
    next: SpinMutex<QueuePointer>,
}

impl Events {
    /// A queue for a unit that takes 2^`most` entries, with both indices at zero.
    pub(crate) fn new<P: Platform>(reach: &Reach<'_, P>, most: u8) -> Result<Self, BringUpError> {
        let size = QueueSize::new(most.min(LOG2)).ok_or(UnitError::Hardware {
            unit: reach.unit,
            what: "an event queue of too many entries, log2",
            expected: LOG2.into(),
            found: most.into(),
        })?;
        let ring = reach.aligned_run(u64::from(size.entries()) * EVENT_BYTES)?;
        // Zeros that are still in a cache must not be written over events later.
        reach.publish(ring.range().start(), ring.range().pages().bytes());
        // INVARIANT: the run is new.
        Ok(Self {
            ring,
            size,
            next: SpinMutex::new(QueuePointer::default()),
        })
    }

    /// What the unit's register says of the ring.
    pub(crate) fn base(&self) -> QueueBase {
        QueueBase::new()
            .with_address(self.ring.range().start().as_u64() >> QUEUE_ADDRESS_SHIFT)
            .with_log2size(self.size.log2())
            .with_allocate(true)
    }

    /// Takes one event: the oldest record, else the note that some were lost. `requester_of` names the function that
    /// sends as a stream.
    ///
    /// Another CPU that takes one is waited for, which is a few accesses: it may have seen an empty queue just before the
    /// event whose interrupt brought this CPU here.
    pub(crate) fn take<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        regs: &Regs<P::Block>,
        requester_of: impl Fn(StreamId) -> Option<hv_core::PciAddress>,
    ) -> Option<FaultEvent> {
        let mut next = self.next.lock();
        let word = regs.read32(registers::EVENTQ_PROD);
        // A unit that is gone reads as all ones; its events would never end.
        if word == u32::MAX {
            return None;
        }
        let prod = QueuePointer::from_bits(word);
        if !self.size.is_empty(prod, *next) {
            let record = self.record(reach, self.size.index(*next));
            *next = self.size.advance(*next, 1);
            // Written at once: that makes room.
            if !Fault::KeepEvents.is_on() {
                regs.write32(registers::EVENTQ_CONS, next.into_bits());
            }
            return Some(match record {
                Some(record) => attribute(record, requester_of),
                None => FaultEvent::Overflow,
            });
        }
        if prod.overflow() != next.overflow() {
            *next = next.acknowledge(prod);
            if !Fault::KeepOverflow.is_on() {
                regs.write32(registers::EVENTQ_CONS, next.into_bits());
            }
            return Some(FaultEvent::Overflow);
        }
        // An event that could not be written is lost too. QEMU says so when its queue is full.
        let lost = Gerror::new().with_eventq_abt_err(regs.errors().eventq_abt_err());
        if lost != Gerror::new() {
            regs.acknowledge(lost);
            return Some(FaultEvent::Overflow);
        }
        None
    }

    /// Copies a record out of the ring, and empties its entry; `None` where the unit did not write it.
    fn record<P: Platform>(&self, reach: &Reach<'_, P>, index: u32) -> Option<EventRecord> {
        let offset = u64::from(index) * EVENT_BYTES;
        let page = PageSize::Size4K.bytes();
        let at = self.ring.range().start().checked_add(offset)?;
        if !reach.coherent {
            reach.platform.write_back_and_drop(at, EVENT_BYTES);
        }
        let cells = self.ring.cells(reach.platform, offset / page)?;
        let first = usize::try_from(offset % page / 8).ok()?;
        let cells = cells.get(first..)?.first_chunk::<WORDS>()?;
        // ORDERING: Acquire, the index was read before: the unit wrote the record before it moved that.
        let words = cells.each_ref().map(|word| word.load(Ordering::Acquire));
        let [head, ..] = cells;
        // ORDERING: Relaxed, `publish` puts it before the index that gives the entry back to the unit.
        head.store(EventRecord::NONE, Ordering::Relaxed);
        reach.publish(at, EVENT_BYTES);
        let [word0, ..] = words;
        (word0 != EventRecord::NONE || Fault::BelieveEmptyEvents.is_on())
            .then(|| EventRecord::from_words(words))
    }
}

/// Whose event it is, in the words that all vendors share.
fn attribute(
    record: EventRecord,
    requester_of: impl Fn(StreamId) -> Option<hv_core::PciAddress>,
) -> FaultEvent {
    let (kind, stream) = (record.kind(), record.stream());
    let [word0, ..] = record.words();
    let address = record.address().unwrap_or(Iova::new(0));
    let page = address.align_down(PageSize::Size4K);
    let reads = record
        .transaction()
        .is_none_or(|transaction| transaction.is_read);
    let access = if reads { Access::Read } else { Access::Write };
    let (mut class, code) = (kind.class(), u16::from(word0.to_le_bytes()[0]));
    let pasid = record.substream().and_then(|id| Pasid::new(id.get()));
    if kind == EventKind::BadContext && pasid.is_some() {
        // A descriptor that is not valid is how a PASID that nobody bound looks.
        class = FaultClass::NotBound;
    }
    if let Some(at) = record.fetch_address() {
        warn!("SMMUv3: {kind:?} of {stream}: what it read is at {at}");
    }
    match requester_of(stream) {
        Some(requester) => FaultEvent::Fault(RawFault {
            requester,
            pasid,
            address: page,
            access,
            class,
            code,
        }),
        None => FaultEvent::Stray(StrayFault {
            source: stream.get(),
            address: page,
            access,
            class,
            code,
        }),
    }
}
