//! The event queue of one unit: what it records of requests that it refused, or that stand still.
//!
//! A unit may let a request that it cannot translate stand still until software answers (IDR0.STALL_MODEL); one of model 2
//! always does. Nobody here pages, so each such request is aborted when its event is taken, whosever it is.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::{Access, Iova, PageSize, Pasid};
use hv_iommu::{FaultClass, FaultEvent, FaultStage, RawFault, StrayFault};
use log::warn;

use crate::StreamId;
use crate::error::BringUpError;
use crate::frames::Reach;
use crate::record_queue::{RecordQueue, Records, Taken};
use crate::spec::command::{Command, Resume};
use crate::spec::event::{EventKind, EventRecord, WORDS};
use crate::spec::queue::QueueBase;
use crate::unit::Regs;

/// Log2 of the entries: four pages. A storm is told by its first events; more of the same would only take longer.
const LOG2: u8 = 9;

/// How many entries the queue of a unit has that takes 2^`most`.
pub(crate) const fn entries(most: u8) -> u32 {
    1 << (if most < LOG2 { most } else { LOG2 })
}

/// An event queue.
pub(crate) struct Events(RecordQueue<WORDS>);

impl Events {
    /// Takes all that there is, which is nobody's.
    pub(crate) fn forget_all<P: Platform>(&self, reach: &Reach<'_, P>, regs: &Regs<P::Block>) {
        self.0.forget_all(reach, regs, Records::Events);
    }

    /// A queue for a unit that takes 2^`most` entries.
    pub(crate) fn new<P: Platform>(reach: &Reach<'_, P>, most: u8) -> Result<Self, BringUpError> {
        RecordQueue::new(reach, most.min(LOG2)).map(Self)
    }

    /// What the unit's register says of the ring.
    pub(crate) fn base(&self) -> QueueBase {
        self.0.base()
    }

    /// Takes one event: the oldest record, else the note that some were lost. `requester_of` names the function that
    /// sends as a stream, `tell` gives the unit a command and says whether it took that. `aborted` says what it comes to
    /// that events could not be written, or were dropped.
    pub(crate) fn take<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        regs: &Regs<P::Block>,
        requester_of: impl Fn(StreamId) -> Option<hv_core::PciAddress>,
        tell: impl Fn(Command) -> bool,
        aborted: impl FnOnce() -> FaultEvent,
    ) -> Option<FaultEvent> {
        let taken = self.0.take(reach, regs, Records::Events, answer, tell)?;
        Some(match taken {
            Taken::Withheld => FaultEvent::Withheld,
            Taken::Lost => FaultEvent::Overflow,
            Taken::Aborted => aborted(),
            Taken::Beyond(bad) => match aborted() {
                FaultEvent::Failed => FaultEvent::Failed,
                _ => FaultEvent::BadLog(bad),
            },
            Taken::Record(words) => attribute(EventRecord::from_words(words), requester_of),
        })
    }
}

/// What becomes of a request that stands still: it is aborted.
fn answer(words: &[u64; WORDS]) -> Option<Command> {
    let record = EventRecord::from_words(*words);
    let tag = record.transaction()?.stalled?;
    if Fault::SkipResume.is_on() {
        return None;
    }
    Some(Command::resume(record.stream(), tag, Resume::Abort))
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
    let transaction = record.transaction();
    let reads = transaction.is_none_or(|transaction| transaction.is_read);
    let stage = transaction.map(|transaction| match transaction.second_stage {
        true => FaultStage::Second,
        false => FaultStage::First,
    });
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
            stage,
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
