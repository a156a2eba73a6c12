//! Events: what a unit tells about transactions that it did not let through.
//!
//! Source: Linux `arm-smmu-v3.h` (`EVTQ_*`, `EVT_ID_*`), QEMU `smmuv3-internal.h` (`SMMUEventType`, `EVT_SET_*`);
//! F_VMS_FETCH is recalled. QEMU puts the fetch address of F_STE_FETCH and its kin into word 2; hardware's is in word 3.

pub mod user;

use bitfield_struct::bitfield;
use hv_core::{Iova, PhysAddr};
use hv_iommu::FaultClass;
use static_assertions::const_assert_eq;

use super::queue::EVENT_BYTES;
use crate::{StallTag, StreamId, SubstreamId};

/// 64-bit words of an event.
pub const WORDS: usize = 4;
const_assert_eq!((WORDS * size_of::<u64>()) as u64, EVENT_BYTES);

#[bitfield(u64)]
struct Word0 {
    /// [`EventKind`] (bits 7:0).
    id: u8,
    #[bits(3)]
    __: u8,
    /// There is a substream (bit 11).
    ssv: bool,
    /// The substream (bits 31:12).
    #[bits(20)]
    ssid: u32,
    /// The stream (bits 63:32).
    sid: u32,
}

#[bitfield(u64)]
struct Word1 {
    /// Names the stalled transaction (bits 15:0).
    stag: u16,
    #[bits(15)]
    __: u16,
    /// It is stalled (bit 31).
    stall: bool,
    __: bool,
    /// Privileged (bit 33).
    pnu: bool,
    /// An instruction is fetched (bit 34).
    ind: bool,
    /// A read (bit 35).
    rnw: bool,
    #[bits(3)]
    __: u8,
    /// The second stage (bit 39).
    s2: bool,
    /// What the unit was at (bits 41:40).
    #[bits(2)]
    class: u8,
    #[bits(2)]
    __: u8,
    /// The walk itself was a read (bit 44).
    ttrnw: bool,
    #[bits(19)]
    __: u32,
}

/// Address bits of word 3 where it is an intermediate physical address (51:12).
const IPA: u64 = 0x000f_ffff_ffff_f000;
/// Address bits of word 3 where it is what was read (51:3).
const FETCH: u64 = 0x000f_ffff_ffff_fff8;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// F_UUT (0x01): a transaction of a kind that the unit does not take.
    UnsupportedTransaction,
    /// C_BAD_STREAMID (0x02): the stream table has no such stream. Only with CR2.RECINVSID.
    BadStreamId,
    /// F_STE_FETCH (0x03): the stream table cannot be read.
    StreamEntryFetch,
    /// C_BAD_STE (0x04): the stream table entry is not valid, or makes no sense.
    BadStreamEntry,
    /// F_BAD_ATS_TREQ (0x05): a translation request where none may be.
    BadTranslationRequest,
    /// F_STREAM_DISABLED (0x06): no substream where one has to be.
    StreamDisabled,
    /// F_TRANSL_FORBIDDEN (0x07): a translated request where none may be.
    TranslatedForbidden,
    /// C_BAD_SUBSTREAMID (0x08): no context descriptor for the substream.
    BadSubstreamId,
    /// F_CD_FETCH (0x09): the context descriptor cannot be read.
    ContextFetch,
    /// C_BAD_CD (0x0a): the context descriptor is not valid, or makes no sense.
    BadContext,
    /// F_WALK_EABT (0x0b): a table cannot be read.
    WalkAbort,
    /// F_TRANSLATION (0x10): nothing is mapped there.
    Translation,
    /// F_ADDR_SIZE (0x11): a table leads to an address that is too wide.
    AddressSize,
    /// F_ACCESS (0x12): the access flag is clear.
    Access,
    /// F_PERMISSION (0x13): mapped, but not for this.
    Permission,
    /// F_TLB_CONFLICT (0x20): cached translations contradict each other.
    TlbConflict,
    /// F_CFG_CONFLICT (0x21): cached configurations contradict each other.
    ConfigConflict,
    /// E_PAGE_REQUEST (0x24): a hint that a page will be wanted.
    PageRequest,
    /// F_VMS_FETCH (0x25): the VM structure cannot be read.
    VmsFetch,
    /// A number that is not known.
    Unknown(u8),
}

impl EventKind {
    /// The event with this number.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0x01 => Self::UnsupportedTransaction,
            0x02 => Self::BadStreamId,
            0x03 => Self::StreamEntryFetch,
            0x04 => Self::BadStreamEntry,
            0x05 => Self::BadTranslationRequest,
            0x06 => Self::StreamDisabled,
            0x07 => Self::TranslatedForbidden,
            0x08 => Self::BadSubstreamId,
            0x09 => Self::ContextFetch,
            0x0a => Self::BadContext,
            0x0b => Self::WalkAbort,
            0x10 => Self::Translation,
            0x11 => Self::AddressSize,
            0x12 => Self::Access,
            0x13 => Self::Permission,
            0x20 => Self::TlbConflict,
            0x21 => Self::ConfigConflict,
            0x24 => Self::PageRequest,
            0x25 => Self::VmsFetch,
            other => Self::Unknown(other),
        }
    }

    /// What kind of mistake it shows.
    pub const fn class(self) -> FaultClass {
        match self {
            Self::Translation | Self::Permission | Self::Access => FaultClass::NotPermitted,
            Self::BadStreamId | Self::BadSubstreamId | Self::StreamDisabled => FaultClass::NotBound,
            Self::UnsupportedTransaction
            | Self::BadTranslationRequest
            | Self::TranslatedForbidden => FaultClass::RequestBlocked,
            Self::StreamEntryFetch | Self::ContextFetch | Self::WalkAbort | Self::VmsFetch => {
                FaultClass::StructureAccess
            }
            Self::BadStreamEntry
            | Self::BadContext
            | Self::AddressSize
            | Self::TlbConflict
            | Self::ConfigConflict => FaultClass::BadStructure,
            Self::PageRequest | Self::Unknown(_) => FaultClass::Other,
        }
    }

    /// Whether a context descriptor, or that there is none, is what refused a transaction.
    pub const fn is_of_context(self) -> bool {
        matches!(
            self,
            Self::StreamDisabled | Self::BadSubstreamId | Self::BadContext
        )
    }

    /// Whether it comes to pass before the stream's entry is looked at, whatever that says (IHI 0070, 3.12, 7.3.22).
    pub const fn precedes_entry(self) -> bool {
        matches!(self, Self::UnsupportedTransaction)
    }

    /// Whether it tells that its transaction stands still, where it does; of any other event the transaction is over (IHI 0070,
    /// 7.3.22).
    const fn has_stall(self) -> bool {
        matches!(
            self,
            Self::Translation | Self::AddressSize | Self::Access | Self::Permission
        )
    }

    /// Whether it tells what the transaction was to do (IHI 0070, 7.3.2, 7.3.8, 7.3.17 beside those of translation).
    const fn has_access(self) -> bool {
        self.has_transaction()
            || matches!(
                self,
                Self::UnsupportedTransaction | Self::TranslatedForbidden | Self::TlbConflict
            )
    }

    /// Whether it is about one transaction, at a stage that is told.
    const fn has_transaction(self) -> bool {
        matches!(
            self,
            Self::WalkAbort
                | Self::Translation
                | Self::AddressSize
                | Self::Access
                | Self::Permission
        )
    }

    /// Whether word 2 is the address that was asked for.
    const fn has_address(self) -> bool {
        self.has_transaction()
            || matches!(
                self,
                Self::UnsupportedTransaction
                    | Self::BadTranslationRequest
                    | Self::TranslatedForbidden
                    | Self::TlbConflict
                    | Self::PageRequest
            )
    }

    /// Whether word 3 is the address of what could not be read.
    const fn has_fetch(self) -> bool {
        matches!(
            self,
            Self::StreamEntryFetch | Self::ContextFetch | Self::WalkAbort | Self::VmsFetch
        )
    }
}

/// What the unit was at when a transaction met its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultStep {
    /// Reading a context descriptor, whose address the second stage translates (0).
    ContextFetch,
    /// Reading a first-stage table, likewise (1).
    TableFetch,
    /// Translating the transaction's own address (2).
    Input,
    /// A code that means nothing (3).
    Unknown,
}

/// A transaction that met a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultedTransaction {
    /// Names it while it waits for [`Command::resume`](super::command::Command::resume); `None` if it is over, as it is
    /// whatever the record's bits say for an event whose transaction cannot stand still.
    pub stalled: Option<StallTag>,
    /// It reads; otherwise it writes.
    pub is_read: bool,
    /// It fetches instructions.
    pub is_instruction: bool,
    /// It is privileged.
    pub is_privileged: bool,
    /// The second stage did not let it through.
    pub second_stage: bool,
    /// What the unit was at.
    pub step: FaultStep,
}

/// An event as the unit wrote it. The driver copies it out of the queue before it looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRecord([u64; WORDS]);

impl EventRecord {
    /// Word 0 of an entry without an event: no event has the number 0 (IHI 0070, 7.3).
    pub const NONE: u64 = 0;

    /// The event in these words, lowest address first.
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// The words.
    pub const fn words(&self) -> [u64; WORDS] {
        self.0
    }

    const fn word0(&self) -> Word0 {
        let [word0, ..] = self.0;
        Word0::from_bits(word0)
    }

    /// What happened.
    pub const fn kind(&self) -> EventKind {
        EventKind::from_number(self.word0().id())
    }

    /// Whose transaction it was.
    pub const fn stream(&self) -> StreamId {
        StreamId::new(self.word0().sid())
    }

    /// Its substream, if it carried one. Where that is what is wrong, no bit has to say so (IHI 0070, 7.3.9).
    pub const fn substream(&self) -> Option<SubstreamId> {
        let word0 = self.word0();
        if word0.ssv() || matches!(self.kind(), EventKind::BadSubstreamId) {
            SubstreamId::new(word0.ssid())
        } else {
            None
        }
    }

    /// The transaction, where the event tells about one.
    pub const fn transaction(&self) -> Option<FaultedTransaction> {
        if !self.kind().has_transaction() {
            return None;
        }
        let [_, word1, ..] = self.0;
        let word1 = Word1::from_bits(word1);
        Some(FaultedTransaction {
            stalled: if word1.stall() && self.kind().has_stall() {
                Some(StallTag::new(word1.stag()))
            } else {
                None
            },
            is_read: word1.rnw(),
            is_instruction: word1.ind(),
            is_privileged: word1.pnu(),
            second_stage: word1.s2(),
            step: match word1.class() {
                0 => FaultStep::ContextFetch,
                1 => FaultStep::TableFetch,
                2 => FaultStep::Input,
                _ => FaultStep::Unknown,
            },
        })
    }

    /// Whether it read, where the event tells: otherwise it wrote.
    pub const fn is_read(&self) -> Option<bool> {
        let [_, word1, ..] = self.0;
        if self.kind().has_access() {
            Some(Word1::from_bits(word1).rnw())
        } else {
            None
        }
    }

    /// The address that was asked for, where the event tells it.
    pub const fn address(&self) -> Option<Iova> {
        let [_, _, word2, _] = self.0;
        if self.kind().has_address() {
            Some(Iova::new(word2))
        } else {
            None
        }
    }

    /// The page that the second stage was asked for, where it did not let a transaction through.
    pub const fn intermediate(&self) -> Option<Iova> {
        let [_, _, _, word3] = self.0;
        match self.transaction() {
            Some(transaction) if transaction.second_stage && !self.kind().has_fetch() => {
                Some(Iova::new(word3 & IPA))
            }
            _ => None,
        }
    }

    /// Where the structure is that could not be read, where the event tells it.
    pub const fn fetch_address(&self) -> Option<PhysAddr> {
        let [_, _, _, word3] = self.0;
        if self.kind().has_fetch() {
            Some(PhysAddr::new(word3 & FETCH))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_seen_in_an_emulator_decodes() {
        // QEMU 10: device 00:01.0 wrote to 0x500000, which is not mapped.
        let words = [0x8_0000_0010, 0x280_0000_0000, 0x50_0000, 0x50_0000];
        let event = EventRecord::from_words(words);
        assert_eq!(event.kind(), EventKind::Translation);
        assert_eq!(event.stream(), StreamId::new(8));
        assert_eq!(event.substream(), None);
        let transaction = event.transaction().unwrap();
        assert_eq!(transaction.stalled, None);
        assert!(!transaction.is_read && transaction.second_stage);
        assert_eq!(transaction.step, FaultStep::Input);
        assert_eq!(event.address(), Some(Iova::new(0x50_0000)));
        assert_eq!(event.intermediate(), Some(Iova::new(0x50_0000)));
        assert_eq!(event.fetch_address(), None);
        assert_eq!(event.kind().class(), FaultClass::NotPermitted);
        assert_eq!(event.words(), words);
    }

    #[test]
    fn transaction_bits_match_an_independent_table() {
        let decode = |word1| {
            EventRecord::from_words([0x13, word1, 0, 0])
                .transaction()
                .unwrap()
        };
        let none = decode(0);
        assert_eq!(none.step, FaultStep::ContextFetch);
        assert_eq!(
            decode(0xbeef | 1 << 31).stalled,
            Some(StallTag::new(0xbeef))
        );
        assert_eq!(decode(0xbeef).stalled, None);
        assert!(decode(1 << 33).is_privileged && !none.is_privileged);
        assert!(decode(1 << 34).is_instruction && !none.is_instruction);
        assert!(decode(1 << 35).is_read && !none.is_read);
        assert!(decode(1 << 39).second_stage && !none.second_stage);
        assert_eq!(decode(1 << 40).step, FaultStep::TableFetch);
        assert_eq!(decode(3 << 40).step, FaultStep::Unknown);
        assert_eq!(Word1::new().with_ttrnw(true).into_bits(), 1 << 44);
    }

    /// Of all others the bit is reserved (IHI 0070, 7.3.12, 7.3.22): whoever answered them would have the unit stop.
    #[test]
    fn only_faults_of_translation_stand_still() {
        let stands = |number: u64| {
            let record = EventRecord::from_words([number, 0xbeef | 1 << 31, 0, 0]);
            record.transaction().and_then(|told| told.stalled)
        };
        for number in 0..=0xff {
            let may = matches!(number, 0x10..=0x13);
            assert_eq!(
                stands(number),
                may.then(|| StallTag::new(0xbeef)),
                "{number:#x}"
            );
        }
    }

    #[test]
    fn no_entry_stops_what_is_refused_before_it_is_looked_at() {
        let before = |number: &u8| EventKind::from_number(*number).precedes_entry();
        assert_eq!((0..=u8::MAX).filter(before).collect::<Vec<_>>(), [0x01]);
    }

    #[test]
    fn what_was_to_be_done_is_told_by_more_events_than_those_of_translation() {
        let reads = |number: u64, word1| EventRecord::from_words([number, word1, 0, 0]).is_read();
        for number in 0..=0xff {
            let tells = matches!(number, 0x01 | 0x07 | 0x0b | 0x10..=0x13 | 0x20);
            assert_eq!(reads(number, 1 << 35), tells.then_some(true), "{number:#x}");
            assert_eq!(
                reads(number, !(1 << 35)),
                tells.then_some(false),
                "{number:#x}"
            );
        }
    }

    #[test]
    fn substreams_are_told_only_where_they_are_valid() {
        let event = |bits| EventRecord::from_words([bits, 0, 0, 0]);
        let all = 0xf_ffff << 12;
        assert_eq!(event(0x10 | all).substream(), None);
        assert_eq!(
            event(0x10 | all | 1 << 11).substream(),
            SubstreamId::new(0xf_ffff)
        );
        assert_eq!(event(0x10 | 1 << 11).substream(), Some(SubstreamId::ZERO));
        assert_eq!(event(u64::MAX).stream(), StreamId::new(u32::MAX));
    }

    #[test]
    fn every_number_has_its_kind_and_its_words() {
        use EventKind as K;
        use FaultClass as C;
        // Number, kind, class, and whether there are a transaction, an address and a fetch address.
        let table = [
            (
                0x01,
                K::UnsupportedTransaction,
                C::RequestBlocked,
                [false, true, false],
            ),
            (0x02, K::BadStreamId, C::NotBound, [false; 3]),
            (
                0x03,
                K::StreamEntryFetch,
                C::StructureAccess,
                [false, false, true],
            ),
            (0x04, K::BadStreamEntry, C::BadStructure, [false; 3]),
            (
                0x05,
                K::BadTranslationRequest,
                C::RequestBlocked,
                [false, true, false],
            ),
            (0x06, K::StreamDisabled, C::NotBound, [false; 3]),
            (
                0x07,
                K::TranslatedForbidden,
                C::RequestBlocked,
                [false, true, false],
            ),
            (0x08, K::BadSubstreamId, C::NotBound, [false; 3]),
            (
                0x09,
                K::ContextFetch,
                C::StructureAccess,
                [false, false, true],
            ),
            (0x0a, K::BadContext, C::BadStructure, [false; 3]),
            (0x0b, K::WalkAbort, C::StructureAccess, [true; 3]),
            (0x10, K::Translation, C::NotPermitted, [true, true, false]),
            (0x11, K::AddressSize, C::BadStructure, [true, true, false]),
            (0x12, K::Access, C::NotPermitted, [true, true, false]),
            (0x13, K::Permission, C::NotPermitted, [true, true, false]),
            (0x20, K::TlbConflict, C::BadStructure, [false, true, false]),
            (0x21, K::ConfigConflict, C::BadStructure, [false; 3]),
            (0x24, K::PageRequest, C::Other, [false, true, false]),
            (0x25, K::VmsFetch, C::StructureAccess, [false, false, true]),
        ];
        for (number, kind, class, told) in table {
            let event =
                EventRecord::from_words([u64::from(number), 0, 0x1234, 0xffff_ffff_ffff_ffff]);
            assert_eq!((event.kind(), event.kind().class()), (kind, class));
            let tells = [
                event.transaction().is_some(),
                event.address() == Some(Iova::new(0x1234)),
                event.fetch_address() == Some(PhysAddr::new(0x000f_ffff_ffff_fff8)),
            ];
            assert_eq!(tells, told, "{number:#x}");
        }
        for number in 0..=u8::MAX {
            if table.iter().all(|row| row.0 != number) {
                assert_eq!(EventKind::from_number(number), K::Unknown(number));
                assert_eq!(K::Unknown(number).class(), C::Other);
            }
        }
    }
}
