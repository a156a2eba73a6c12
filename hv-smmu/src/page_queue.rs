//! Requests for pages (PRI): nobody is let send them, and a device that does gets an answer, and counts as one that faults.
//!
//! A device that asks and is not answered may keep its credits and its bus busy for ever. One that is told that it may
//! not ask (`ResponseFailure`) asks no more, if it does what it is told.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::{Access, Pasid, PciAddress};
use hv_iommu::{FaultClass, FaultDetail, FaultEvent, RawFault, StrayFault};

use crate::StreamId;
use crate::error::BringUpError;
use crate::frames::Reach;
use crate::record_queue::{RecordQueue, Records, Taken};
use crate::spec::command::{Command, PageResponse};
use crate::spec::page_request::{PageRequest, WORDS};
use crate::spec::queue::QueueBase;
use crate::unit::Regs;

/// Log2 of the entries: a page. The unit itself answers what finds no room (IHI 0070, 8.1).
const LOG2: u8 = 8;

/// The queue of requests for pages.
pub(crate) struct Pages(RecordQueue<WORDS>);

impl Pages {
    /// A queue for a unit that takes 2^`most` entries.
    pub(crate) fn new<P: Platform>(reach: &Reach<'_, P>, most: u8) -> Result<Self, BringUpError> {
        RecordQueue::new(reach, most.min(LOG2)).map(Self)
    }

    /// What the unit's register says of the ring.
    pub(crate) fn base(&self) -> QueueBase {
        self.0.base()
    }

    /// Takes one request. `tell` gives the unit a command.
    pub(crate) fn take<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        regs: &Regs<P::Block>,
        requester_of: impl Fn(StreamId) -> Option<PciAddress>,
        tell: impl Fn(Command) -> bool,
    ) -> Option<FaultEvent> {
        let taken = self.0.take(reach, regs, Records::Pages, answer, tell)?;
        Some(match taken {
            Taken::Withheld => FaultEvent::Withheld,
            Taken::Lost | Taken::Aborted => FaultEvent::Overflow,
            Taken::Beyond(bad) => FaultEvent::BadLog(bad),
            Taken::Record(words) => attribute(&PageRequest::from_words(words), requester_of),
        })
    }
}

/// What the device is told: that it may not ask.
fn answer(words: &[u64; WORDS]) -> Option<Command> {
    let request = PageRequest::from_words(*words);
    if !request.wants_answer() || Fault::SkipPageResponse.is_on() {
        return None;
    }
    let PageRequest {
        stream,
        substream,
        group,
        ..
    } = request;
    Command::page_response(stream, substream, group, PageResponse::Deny)
}

/// Whose request it is, in the words that all vendors share.
fn attribute(
    request: &PageRequest,
    requester_of: impl Fn(StreamId) -> Option<PciAddress>,
) -> FaultEvent {
    let access = match request.write {
        true => Access::Write,
        false => Access::Read,
    };
    let (address, class, code) = (request.page, FaultClass::PageRequest, request.group);
    match requester_of(request.stream) {
        Some(requester) => FaultEvent::Fault(RawFault {
            requester,
            pasid: request.substream.and_then(|id| Pasid::new(id.get())),
            address,
            access,
            class,
            stage: None,
            detail: FaultDetail::default(),
            code,
        }),
        None => FaultEvent::Stray(StrayFault {
            source: request.stream.get(),
            address,
            access,
            class,
            code,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any words are a request of somebody, and what wants an answer gets one, for its stream and its group.
    #[test]
    fn any_words_are_attributed_and_answered_or_not() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut answered, mut silent) = (0, 0);
        for _ in 0..20_000 {
            let words = [next(), next()];
            let [word0, word1] = words;
            let last = word0 >> 62 & 1 != 0;
            let marker = word0 >> 63 != 0 && word0 >> 60 & 3 == 0;
            match answer(&words) {
                Some(command) => {
                    assert!(last && !marker);
                    let [first, second] = command.words();
                    assert_eq!((first & 0xff, first >> 32), (0x41, word0 & 0xffff_ffff));
                    assert_eq!(second, word1 & 0x1ff, "the group, and no more of it");
                    answered += 1;
                }
                None => {
                    assert!(!last || marker);
                    silent += 1;
                }
            }
            let FaultEvent::Stray(fault) = attribute(&PageRequest::from_words(words), |_| None)
            else {
                panic!("of a requester that nobody knows");
            };
            assert_eq!(fault.class, FaultClass::PageRequest);
            assert_eq!(u64::from(fault.source), word0 & 0xffff_ffff);
            assert_eq!(fault.address.as_u64(), word1 & !0xfff);
        }
        assert!(answered > 1000 && silent > 1000);
    }
}
