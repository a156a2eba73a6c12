//! Events as a user's own SMMU would tell them, of what its first stage refused: made of what our unit told of the same.
//!
//! Which event is whose: IHI 0070, 7.3 (notes on injection into a guest in 7.3.10 and 7.3.12), and Linux
//! `arm_smmu_handle_event`, which hands on those of first stages with another StreamID.

use hv_core::Iova;

use super::{EventKind, EventRecord, IPA, Word0, Word1};
use crate::{StreamId, SubstreamId};

/// What was refused, and in which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserFault {
    /// What happened, as our unit tells it.
    pub kind: EventKind,
    /// The substream of the request.
    pub substream: Option<SubstreamId>,
    /// The address that was asked for.
    pub address: Iova,
    /// It reads; otherwise it writes.
    pub is_read: bool,
    /// It fetches instructions.
    pub is_instruction: bool,
    /// It is privileged.
    pub is_privileged: bool,
    /// Where it ended.
    pub place: UserPlace,
}

/// Where a user's request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserPlace {
    /// In the user's first stage.
    FirstStage,
    /// Where that was to be found: at its context descriptor's page, which the second stage did not let through.
    ContextOutOfReach(Iova),
    /// Where one of its tables was to be read, likewise.
    TableOutOfReach(Iova),
}

/// CLASS: reading a table.
const CLASS_TABLE: u8 = 1;
/// CLASS: translating the transaction's own address.
const CLASS_INPUT: u8 = 2;

impl UserFault {
    /// The event of the stream that the user has the device as; `None` where a user's SMMU has none for it: one that tells of
    /// what no user decides.
    ///
    /// Nothing stands still for the user (STALL is 0): the request was aborted.
    pub const fn event(&self, stream: StreamId) -> Option<EventRecord> {
        let word0 = Word0::new().with_sid(stream.get());
        let word0 = match self.substream {
            Some(substream) => word0.with_ssv(true).with_ssid(substream.get()),
            None => word0,
        };
        let (id, word1, word3) = match (self.kind, self.place) {
            // Its own SubstreamID has no bit that says it is there (7.3.9).
            (EventKind::BadSubstreamId, UserPlace::FirstStage) => {
                let word0 = word0.with_ssv(false);
                return Some(Self::alone(word0.with_id(EventKind::BAD_SUBSTREAM_ID)));
            }
            (EventKind::BadContext, UserPlace::FirstStage) => {
                return Some(Self::alone(word0.with_id(EventKind::BAD_CONTEXT)));
            }
            (EventKind::StreamDisabled, UserPlace::FirstStage) => {
                // There is no SubstreamID in it (7.3.7).
                let word0 = Word0::new().with_sid(stream.get());
                return Some(Self::alone(word0.with_id(EventKind::STREAM_DISABLED)));
            }
            (kind, UserPlace::FirstStage) => match kind.of_translation() {
                Some(id) => (id, Word1::new().with_class(CLASS_INPUT), 0),
                None => return None,
            },
            (kind, UserPlace::TableOutOfReach(page)) => match kind.of_translation() {
                Some(_) => (
                    EventKind::WALK_ABORT,
                    Word1::new().with_class(CLASS_TABLE),
                    page.as_u64() & IPA,
                ),
                None => return None,
            },
            (kind, UserPlace::ContextOutOfReach(page)) => match kind.of_translation() {
                Some(_) => {
                    let word0 = word0.with_id(EventKind::CONTEXT_FETCH);
                    let fetch = page.as_u64() & IPA;
                    let words = [word0.into_bits(), 0, 0, fetch];
                    return Some(EventRecord::from_words(words));
                }
                None => return None,
            },
        };
        let word1 = word1
            .with_pnu(self.is_privileged)
            .with_ind(self.is_instruction)
            .with_rnw(self.is_read);
        Some(EventRecord::from_words([
            word0.with_id(id).into_bits(),
            word1.into_bits(),
            self.address.as_u64(),
            word3,
        ]))
    }

    /// An event that tells of no transaction.
    const fn alone(word0: Word0) -> EventRecord {
        EventRecord::from_words([word0.into_bits(), 0, 0, 0])
    }
}

impl EventKind {
    const STREAM_DISABLED: u8 = 0x06;
    const BAD_SUBSTREAM_ID: u8 = 0x08;
    const CONTEXT_FETCH: u8 = 0x09;
    const BAD_CONTEXT: u8 = 0x0a;
    const WALK_ABORT: u8 = 0x0b;

    /// The number of a fault that a stage's tables cause.
    const fn of_translation(self) -> Option<u8> {
        Some(match self {
            Self::Translation => 0x10,
            Self::AddressSize => 0x11,
            Self::Access => 0x12,
            Self::Permission => 0x13,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::new(0x77);

    fn fault(kind: EventKind, place: UserPlace) -> UserFault {
        UserFault {
            kind,
            substream: SubstreamId::new(5),
            address: Iova::new(0x1234_5678),
            is_read: true,
            is_instruction: true,
            is_privileged: true,
            place,
        }
    }

    #[test]
    fn a_users_event_is_ours_with_its_own_stream_and_nothing_of_the_second_stage() {
        let numbers = [0x10, 0x11, 0x12, 0x13].map(EventKind::from_number);
        for kind in numbers {
            let event = fault(kind, UserPlace::FirstStage).event(STREAM).unwrap();
            let [word0, word1, word2, word3] = event.words();
            assert_eq!(event.kind(), kind);
            assert_eq!(word0 >> 8, 0x77 << 24 | 5 << 4 | 1 << 3);
            // PnU, InD, RnW, CLASS 2; neither STALL nor S2.
            assert_eq!(word1, 1 << 33 | 1 << 34 | 1 << 35 | 2 << 40);
            assert_eq!((word2, word3), (0x1234_5678, 0));
        }
        let plain = UserFault {
            substream: None,
            is_read: false,
            is_instruction: false,
            is_privileged: false,
            ..fault(EventKind::Translation, UserPlace::FirstStage)
        };
        let words = plain.event(STREAM).unwrap().words();
        assert_eq!(words, [0x77_0000_0010, 2 << 40, 0x1234_5678, 0]);
    }

    #[test]
    fn what_a_user_put_out_of_reach_could_not_be_read() {
        let page = Iova::new(0x28_0000);
        let table = fault(EventKind::Permission, UserPlace::TableOutOfReach(page));
        let event = table.event(STREAM).unwrap();
        assert_eq!(event.kind(), EventKind::WalkAbort);
        assert_eq!(event.fetch_address().map(|at| at.as_u64()), Some(0x28_0000));
        assert_eq!(event.words()[1], 1 << 33 | 1 << 34 | 1 << 35 | 1 << 40);
        assert_eq!(event.address(), Some(Iova::new(0x1234_5678)));
        let context = fault(EventKind::Translation, UserPlace::ContextOutOfReach(page));
        let words = context.event(STREAM).unwrap().words();
        assert_eq!(words, [0x77_0000_5809, 0, 0, 0x28_0000]);
    }

    #[test]
    fn configuration_that_a_user_wrote_is_told_without_a_transaction() {
        for (number, word0) in [
            (0x06, 0x77_0000_0006),
            (0x08, 0x77_0000_5008),
            (0x0a, 0x77_0000_580a),
        ] {
            let kind = EventKind::from_number(number);
            let words = fault(kind, UserPlace::FirstStage)
                .event(STREAM)
                .unwrap()
                .words();
            assert_eq!(words, [word0, 0, 0, 0], "{number:#x}");
        }
    }

    /// Entries of the stream table, device TLBs and what is kept there are nothing that a user has.
    #[test]
    fn what_is_no_users_is_not_told() {
        let page = Iova::new(0x1000);
        for number in 0..=u8::MAX {
            let kind = EventKind::from_number(number);
            let of = |place| fault(kind, place).event(STREAM).is_some();
            let told = [
                of(UserPlace::FirstStage),
                of(UserPlace::TableOutOfReach(page)),
                of(UserPlace::ContextOutOfReach(page)),
            ];
            let expected = match number {
                0x06 | 0x08 | 0x0a => [true, false, false],
                0x10..=0x13 => [true; 3],
                _ => [false; 3],
            };
            assert_eq!(told, expected, "{number:#x}");
        }
    }
}
