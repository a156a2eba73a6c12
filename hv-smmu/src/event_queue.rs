//! The event queue of one unit: what it records of requests that it refused, or that stand still.
//!
//! A unit may let a request that it cannot translate stand still until software answers (IDR0.STALL_MODEL); one of model 2
//! always does. Nobody here pages, so each such request is aborted when its event is taken, whosever it is. Of a unit that
//! cannot let any stand still (model 1) the answer would be illegal, and stop its commands (4.7.1): a record that says so all
//! the same is its device's fault as any other, and counted.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{Access, Iova, PageSize, Pasid};
use hv_iommu::{FaultClass, FaultDetail, FaultEvent, FaultStage, FaultStep, RawFault, StrayFault};
use log::{error, warn};

use crate::StreamId;
use crate::error::BringUpError;
use crate::frames::Reach;
use crate::record_queue::{RecordQueue, Records, Taken};
use crate::spec::command::{Command, Resume};
use crate::spec::event::{self, EventKind, EventRecord, WORDS};
use crate::spec::queue::QueueBase;
use crate::unit::Regs;

/// Log2 of the entries: four pages. A storm is told by its first events; more of the same would only take longer.
const LOG2: u8 = 9;

/// How many entries the queue of a unit has that takes 2^`most`.
pub(crate) const fn entries(most: u8) -> u32 {
    1 << (if most < LOG2 { most } else { LOG2 })
}

/// An event queue.
pub(crate) struct Events {
    queue: RecordQueue<WORDS>,
    /// Whether requests may stand still.
    may_stall: bool,
    /// Significant bits of an address that a second stage takes (IAS; IHI 0070, 3.4).
    intermediate_bits: u8,
    /// How many records said so where none may.
    false_stalls: AtomicU64,
}

impl Events {
    /// Takes all that there is, which is nobody's.
    pub(crate) fn forget_all<P: Platform>(&self, reach: &Reach<'_, P>, regs: &Regs<P::Block>) {
        self.queue.forget_all(reach, regs, Records::Events);
    }

    /// A queue for a unit that takes 2^`most` entries, whose requests may stand still or not, and whose second stages take
    /// addresses of so many bits.
    pub(crate) fn new<P: Platform>(
        reach: &Reach<'_, P>,
        most: u8,
        may_stall: bool,
        intermediate_bits: u8,
    ) -> Result<Self, BringUpError> {
        Ok(Self {
            queue: RecordQueue::new(reach, most.min(LOG2))?,
            may_stall,
            intermediate_bits,
            false_stalls: AtomicU64::new(0),
        })
    }

    /// How many records said of a request that it stands still, of a unit that lets none.
    pub(crate) fn false_stalls(&self) -> u64 {
        // ORDERING: Relaxed, a number and nothing else.
        self.false_stalls.load(Ordering::Relaxed)
    }

    /// What the unit's register says of the ring.
    pub(crate) fn base(&self) -> QueueBase {
        self.queue.base()
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
        let answer = |words: &[u64; WORDS]| self.answer(EventRecord::from_words(*words));
        let queue = &self.queue;
        let taken = queue.take(reach, regs, Records::Events, answer, tell)?;
        Some(match taken {
            Taken::Withheld => FaultEvent::Withheld,
            Taken::Lost => FaultEvent::Overflow,
            Taken::Aborted => aborted(),
            Taken::Beyond(bad) => match aborted() {
                FaultEvent::Failed => FaultEvent::Failed,
                _ => FaultEvent::BadLog(bad),
            },
            Taken::Record(words) => {
                let record = EventRecord::from_words(words);
                attribute(record, requester_of, self.intermediate_bits)
            }
        })
    }

    /// What becomes of a request that stands still: it is aborted.
    fn answer(&self, record: EventRecord) -> Option<Command> {
        let tag = record.transaction()?.stalled?;
        if !self.may_stall {
            // ORDERING: Relaxed, a number and nothing else.
            let before = self.false_stalls.fetch_add(1, Ordering::Relaxed);
            if (before + 1).is_power_of_two() {
                let stream = record.stream();
                error!(
                    "SMMUv3: a request of {stream} is said to stand still, of a unit that lets none (IDR0.STALL_MODEL): \
                     expected one that is over; it is not answered"
                );
            }
            return None;
        }
        if Fault::SkipResume.is_on() {
            return None;
        }
        Some(Command::resume(record.stream(), tag, Resume::Abort))
    }
}

/// Whose event it is, in the words that all vendors share.
fn attribute(
    record: EventRecord,
    requester_of: impl Fn(StreamId) -> Option<hv_core::PciAddress>,
    intermediate_bits: u8,
) -> FaultEvent {
    let (kind, stream) = (record.kind(), record.stream());
    let [word0, ..] = record.words();
    let address = record.address().unwrap_or(Iova::new(0));
    let page = address.align_down(PageSize::Size4K);
    let transaction = record.transaction();
    let reads = record.is_read().unwrap_or(true);
    let mut stage = transaction.map(|transaction| match transaction.second_stage {
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
    // Where the first stage is passed over, an address that no second stage takes is told as one that the first put out
    // (IHI 0070, 3.4, 7.3.14). It is the device's mistake: neither stage has come to look at it. By the address alone, since the
    // stream may have another entry by now, or none.
    let is_input = transaction
        .is_some_and(|told| !told.second_stage && told.step == event::FaultStep::Input)
        && kind == EventKind::AddressSize;
    let is_wide = address.as_u64() >> intermediate_bits != 0;
    if is_input && is_wide && record.substream().is_none() {
        (class, stage) = (FaultClass::AddressTooWide, None);
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
            detail: detail(&record),
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

/// What a record tells beside who, where and why.
fn detail(record: &EventRecord) -> FaultDetail {
    let transaction = record.transaction();
    let step = match transaction.map(|transaction| transaction.step) {
        Some(event::FaultStep::ContextFetch) => Some(FaultStep::Context),
        Some(event::FaultStep::TableFetch) => Some(FaultStep::Table),
        Some(event::FaultStep::Input) => Some(FaultStep::Input),
        Some(event::FaultStep::Unknown) => None,
        None => record.kind().is_of_context().then_some(FaultStep::Context),
    };
    FaultDetail {
        address: record.address(),
        is_privileged: transaction.is_some_and(|transaction| transaction.is_privileged),
        is_instruction: transaction.is_some_and(|transaction| transaction.is_instruction),
        step,
        second_stage_page: record.intermediate(),
    }
}

#[cfg(test)]
mod tests {
    use hv_core::{PciAddress, Segment};

    use super::*;

    fn told(words: [u64; WORDS]) -> RawFault {
        let who = |_| Some(PciAddress::from_requester(Segment(0), 8));
        match attribute(EventRecord::from_words(words), who, 48) {
            FaultEvent::Fault(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    /// All that a record says arrives in words that every vendor has.
    #[test]
    fn what_a_record_says_is_handed_on_whole() {
        let (read, fetch, privileged, second) = (1 << 35, 1 << 34, 1 << 33, 1 << 39);
        let first = told([
            0x8_0000_5810,
            2 << 40 | read | fetch | privileged,
            0x1234_5678,
            0,
        ]);
        assert_eq!(first.pasid, Pasid::new(5));
        assert_eq!(
            (first.stage, first.access),
            (Some(FaultStage::First), Access::Read)
        );
        assert_eq!(first.address, Iova::new(0x1234_5000));
        let expected = FaultDetail {
            address: Some(Iova::new(0x1234_5678)),
            is_privileged: true,
            is_instruction: true,
            step: Some(FaultStep::Input),
            second_stage_page: None,
        };
        assert_eq!(first.detail, expected);
        assert!(first.is_of_users_stage());
        // A table, a context and what was asked for, none of which the second stage has.
        for (class, step) in [FaultStep::Context, FaultStep::Table, FaultStep::Input]
            .into_iter()
            .enumerate()
        {
            let words = [
                0x8_0000_0010,
                second | (class as u64) << 40,
                0x5678,
                0x28_0123,
            ];
            let beyond = told(words);
            assert_eq!(
                (beyond.stage, beyond.access),
                (Some(FaultStage::Second), Access::Write)
            );
            let expected = FaultDetail {
                address: Some(Iova::new(0x5678)),
                step: Some(step),
                second_stage_page: Some(Iova::new(0x28_0000)),
                ..FaultDetail::default()
            };
            assert_eq!(beyond.detail, expected);
            assert!(!beyond.is_of_users_stage());
        }
    }

    /// Records about contexts tell neither stage nor address, and are a user's own all the same.
    #[test]
    fn a_context_that_is_not_as_it_has_to_be_is_a_first_stages() {
        for number in [0x06, 0x08, 0x0a] {
            let fault = told([0x8_0000_0000 | number, 0, 0, 0]);
            assert_eq!(
                (fault.stage, fault.detail.step),
                (None, Some(FaultStep::Context))
            );
            assert_eq!(fault.detail.address, None);
            assert!(fault.is_of_users_stage(), "{number:#x}");
        }
        for number in [0x01, 0x02, 0x03, 0x04, 0x05, 0x07, 0x20, 0x25] {
            let fault = told([0x8_0000_0000 | number, 0, 0, 0]);
            assert!(!fault.is_of_users_stage(), "{number:#x}");
        }
    }
}
