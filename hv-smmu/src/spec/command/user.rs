//! Commands that a user of a nested stream gives about its own first stage: looked at word by word, and only then made
//! into commands of ours. What the user says about VMIDs and streams is not taken over.

use hv_core::Iova;

use super::words::{StreamWord, TlbWord0, TlbWord1};
use super::{Command, Depth, LEAF, Opcode, PAGE_SHIFT, TlbSpan, WORDS};
use crate::spec::granule::Granule;
use crate::{Asid, Vmid};

/// What a user may ask to be forgotten of its first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserCommand {
    /// A context descriptor, or all of a stream (CFGI_CD, CFGI_CD_ALL).
    Contexts,
    /// All translations (TLBI_NH_ALL).
    All,
    /// Those of an ASID (TLBI_NH_ASID).
    Asid(Asid),
    /// Those of some addresses under an ASID (TLBI_NH_VA).
    Addresses(Asid, TlbSpan, Depth),
    /// Those of some addresses under any ASID (TLBI_NH_VAA).
    AnyAsid(TlbSpan, Depth),
}

/// What commands the unit that a user sees takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// Ranges of addresses (IDR3.RIL).
    pub ranges: bool,
    /// How many bits its ASIDs have: those above are reserved (IHI 0070, 4.4), and a unit may stop at them.
    pub asid_bits: u8,
    /// Whether its requests may stand still, so that their answers are commands and not illegal (IHI 0070, 4.7.1 and 4.7.2).
    pub stalls: bool,
}

/// Why a user's command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCommand {
    /// Its kind is not one that a unit takes which is shown to users (word 0, bits 7:0).
    Opcode(u8),
    /// It is for whoever plays the user's unit: a sync, entries of the stream table, hints, all translations of everybody, answers
    /// to requests that stand still (word 0, bits 7:0).
    Embedders(u8),
    /// A bit is set that means nothing, or that is not the user's to set. The bits, and in which word.
    Reserved(usize, u64),
    /// The range has a reserved form, or an address that is not aligned to it. Word 1.
    Range(u64),
}

impl UserCommand {
    /// What the words mean to the unit that the user sees.
    ///
    /// # Errors
    /// [`BadCommand`].
    pub const fn decode(words: &[u64; WORDS], takes: Takes) -> Result<Self, BadCommand> {
        let Takes {
            ranges,
            asid_bits,
            stalls,
        } = takes;
        let [word0, word1] = *words;
        let opcode = TlbWord0::from_bits(word0).opcode();
        match opcode {
            code if code == Opcode::ConfigContext as u8 => {
                let kept = StreamWord::new()
                    .with_opcode(u8::MAX)
                    .with_ssid(u32::MAX >> 12)
                    .with_sid(u32::MAX);
                if let Some(bad) = unexpected(words, kept.into_bits(), LEAF) {
                    return Err(bad);
                }
                Ok(Self::Contexts)
            }
            code if code == Opcode::ConfigContextAll as u8 => {
                let kept = StreamWord::new().with_opcode(u8::MAX).with_sid(u32::MAX);
                match unexpected(words, kept.into_bits(), 0) {
                    Some(bad) => Err(bad),
                    None => Ok(Self::Contexts),
                }
            }
            code if code == Opcode::TlbFirstVmid as u8 => {
                match unexpected(words, with_vmid().into_bits(), 0) {
                    Some(bad) => Err(bad),
                    None => Ok(Self::All),
                }
            }
            code if code == Opcode::TlbFirstAsid as u8 => {
                let kept = with_vmid().with_asid(asids(asid_bits)).into_bits();
                match unexpected(words, kept, 0) {
                    Some(bad) => Err(bad),
                    None => Ok(Self::Asid(asid_of(word0))),
                }
            }
            code if code == Opcode::TlbFirstAddress as u8 => {
                let kept = with_range(ranges).with_asid(asids(asid_bits)).into_bits();
                if let Some(bad) = unexpected(words, kept, addresses(ranges)) {
                    return Err(bad);
                }
                match span_of(word0, word1) {
                    Some(span) => Ok(Self::Addresses(asid_of(word0), span, depth_of(word1))),
                    None => Err(BadCommand::Range(word1)),
                }
            }
            code if code == Opcode::TlbFirstAddressAnyAsid as u8 => {
                if let Some(bad) =
                    unexpected(words, with_range(ranges).into_bits(), addresses(ranges))
                {
                    return Err(bad);
                }
                match span_of(word0, word1) {
                    Some(span) => Ok(Self::AnyAsid(span, depth_of(word1))),
                    None => Err(BadCommand::Range(word1)),
                }
            }
            other if is_embedders(other) || stalls && is_answer(other) => {
                Err(BadCommand::Embedders(other))
            }
            other => Err(BadCommand::Opcode(other)),
        }
    }

    /// The command of ours that does it under `vmid`; `None` for context descriptors, which streams have and no VMID
    /// names: which streams are the user's is not known here.
    pub const fn under(&self, vmid: Vmid) -> Option<Command> {
        Some(match self {
            Self::Contexts => return None,
            Self::All => Command::tlb_first_vmid(vmid),
            Self::Asid(asid) => Command::tlb_first_asid(vmid, *asid),
            Self::Addresses(asid, span, depth) => {
                Command::tlb_first_address(vmid, *asid, span, *depth)
            }
            Self::AnyAsid(span, depth) => Command::tlb_first_address_any_asid(vmid, span, *depth),
        })
    }
}

/// Kinds that a unit of a first stage alone takes, and that are not about one.
const fn is_embedders(opcode: u8) -> bool {
    let kinds = [
        Opcode::Sync,
        Opcode::ConfigStream,
        Opcode::ConfigRange,
        Opcode::TlbAll,
        Opcode::PrefetchConfig,
        Opcode::PrefetchAddress,
    ];
    let mut left: &[Opcode] = &kinds;
    while let [kind, others @ ..] = left {
        if *kind as u8 == opcode {
            return true;
        }
        left = others;
    }
    false
}

/// Kinds that answer a request which stands still.
const fn is_answer(opcode: u8) -> bool {
    opcode == Opcode::Resume as u8 || opcode == Opcode::StallTerminate as u8
}

/// Opcode and VMID, which the user may set to whatever it thinks is its own.
const fn with_vmid() -> TlbWord0 {
    TlbWord0::new().with_opcode(u8::MAX).with_vmid(u16::MAX)
}

const fn with_range(ranges: bool) -> TlbWord0 {
    if ranges {
        with_vmid().with_num(u8::MAX >> 3).with_scale(u8::MAX >> 3)
    } else {
        with_vmid()
    }
}

/// The bits of word 1 that say which addresses, and how deep.
const fn addresses(ranges: bool) -> u64 {
    let word = TlbWord1::new()
        .with_leaf(true)
        .with_page(u64::MAX >> PAGE_SHIFT);
    if ranges {
        word.with_ttl(3).with_tg(3).into_bits()
    } else {
        word.into_bits()
    }
}

/// The bits of an ASID that count.
const fn asids(bits: u8) -> u16 {
    match 1_u16.checked_shl(bits as u32) {
        Some(end) => end - 1,
        None => u16::MAX,
    }
}

const fn asid_of(word0: u64) -> Asid {
    Asid::new(TlbWord0::from_bits(word0).asid())
}

const fn depth_of(word1: u64) -> Depth {
    if TlbWord1::from_bits(word1).leaf() {
        Depth::Leaves
    } else {
        Depth::All
    }
}

/// The addresses of a TLB invalidation, unless they have a reserved form.
const fn span_of(word0: u64, word1: u64) -> Option<TlbSpan> {
    let (word0, word1) = (TlbWord0::from_bits(word0), TlbWord1::from_bits(word1));
    let start = Iova::new(word1.page() << PAGE_SHIFT);
    let granule = match word1.tg() {
        0 if word0.num() == 0 && word0.scale() == 0 && word1.ttl() == 0 => {
            return Some(TlbSpan::address(start));
        }
        0 => return None,
        1 => Granule::Size4K,
        2 => Granule::Size16K,
        _ => Granule::Size64K,
    };
    let level = match word1.ttl() {
        0 => None,
        level => Some(level),
    };
    TlbSpan::of_any_unit(granule, start, word0.num() + 1, word0.scale(), level)
}

/// The first bits that are set where none may be.
const fn unexpected(words: &[u64; WORDS], kept0: u64, kept1: u64) -> Option<BadCommand> {
    let [word0, word1] = *words;
    if word0 & !kept0 != 0 {
        return Some(BadCommand::Reserved(0, word0 & !kept0));
    }
    if word1 & !kept1 != 0 {
        return Some(BadCommand::Reserved(1, word1 & !kept1));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::id_registers::Idr3;
    use crate::{StreamId, SubstreamId};

    const OURS: Vmid = Vmid::new(0x77);

    const ALL: Takes = Takes {
        ranges: true,
        asid_bits: 16,
        stalls: false,
    };

    fn decode(words: [u64; 2]) -> Result<UserCommand, BadCommand> {
        UserCommand::decode(&words, ALL)
    }

    #[test]
    fn a_users_vmid_and_streams_are_not_taken_over() {
        let token = Idr3::new().with_ril(true).range_invalidation().unwrap();
        let start = Iova::new(0x4000_0000);
        let range = TlbSpan::range(token, Granule::Size4K, start, 8, 3, Some(3)).unwrap();
        let (theirs, asid) = (Vmid::new(1), Asid::new(5));
        let one = TlbSpan::address(Iova::new(0x1234_5000));
        let table = [
            (
                Command::tlb_first_vmid(theirs),
                Command::tlb_first_vmid(OURS),
            ),
            (
                Command::tlb_first_asid(theirs, asid),
                Command::tlb_first_asid(OURS, asid),
            ),
            (
                Command::tlb_first_address(theirs, asid, &one, Depth::Leaves),
                Command::tlb_first_address(OURS, asid, &one, Depth::Leaves),
            ),
            (
                Command::tlb_first_address(theirs, asid, &range, Depth::All),
                Command::tlb_first_address(OURS, asid, &range, Depth::All),
            ),
            (
                Command::tlb_first_address_any_asid(theirs, &range, Depth::Leaves),
                Command::tlb_first_address_any_asid(OURS, &range, Depth::Leaves),
            ),
        ];
        for (given, made) in table {
            assert_eq!(
                decode(given.words()).unwrap().under(OURS),
                Some(made),
                "{given:?}"
            );
        }
        // A stream of the user's is none of ours.
        let (stream, substream) = (StreamId::new(9), SubstreamId::new(3).unwrap());
        for contexts in [
            Command::config_contexts(stream),
            Command::config_context(stream, substream, Depth::Leaves),
        ] {
            let decoded = decode(contexts.words());
            assert_eq!(decoded, Ok(UserCommand::Contexts));
            assert_eq!(decoded.unwrap().under(OURS), None);
        }
    }

    /// Everything that reaches further than the user's own first stage, and everything that is not a command.
    ///
    /// Shows: bc08.
    #[test]
    fn what_is_not_about_a_first_stage_is_refused() {
        let one = TlbSpan::address(Iova::new(0x1000));
        for command in [
            Command::config_stream(StreamId::new(1), Depth::Leaves),
            Command::config_all(),
            Command::tlb_all(),
        ] {
            let [word0, _] = command.words();
            assert_eq!(
                decode(command.words()),
                Err(BadCommand::Embedders(word0 as u8))
            );
        }
        // CMD_PREFETCH_CONFIG, CMD_PREFETCH_ADDR, CMD_SYNC.
        for opcode in [0x01, 0x02, 0x46] {
            assert_eq!(
                decode([opcode, 0]),
                Err(BadCommand::Embedders(opcode as u8))
            );
        }
        for command in [
            Command::tlb_vmid(Vmid::new(1)),
            Command::tlb_second_address(Vmid::new(1), &one, Depth::Leaves),
            Command::tlb_el2_all(),
        ] {
            let [word0, _] = command.words();
            assert_eq!(
                decode(command.words()),
                Err(BadCommand::Opcode(word0 as u8))
            );
        }
        for opcode in [0x00, 0x07, 0x14, 0x18, 0x1a, 0x40, 0x41, 0x44, 0x45, 0xff] {
            assert_eq!(decode([opcode, 0]), Err(BadCommand::Opcode(opcode as u8)));
        }
        // CMD_RESUME and CMD_STALL_TERM, where requests may stand still.
        let stalls = Takes {
            stalls: true,
            ..ALL
        };
        for command in [[0x44 | 9 << 32, 1], [0x45 | 9 << 32, 0]] {
            let embedders = BadCommand::Embedders(command[0] as u8);
            assert_eq!(UserCommand::decode(&command, stalls), Err(embedders));
        }
        for opcode in [0x40, 0x41, 0xff] {
            let refused = UserCommand::decode(&[opcode, 0], stalls);
            assert_eq!(refused, Err(BadCommand::Opcode(opcode as u8)));
        }
    }

    #[test]
    fn reserved_bits_and_forms_are_refused() {
        // SSEC, and a substream where none is.
        assert_eq!(
            decode([0x05 | 1 << 10, 0]),
            Err(BadCommand::Reserved(0, 1 << 10))
        );
        assert_eq!(
            decode([0x06 | 1 << 12, 0]),
            Err(BadCommand::Reserved(0, 1 << 12))
        );
        assert_eq!(
            decode([0x10 | 1 << 48, 0]),
            Err(BadCommand::Reserved(0, 1 << 48))
        );
        assert_eq!(decode([0x11, 1]), Err(BadCommand::Reserved(1, 1)));
        // A range without a granule, one granule of unknown level, an address that is not the range's.
        assert_eq!(decode([0x12 | 1 << 12, 0]), Err(BadCommand::Range(0)));
        assert_eq!(decode([0x12, 1 << 10]), Err(BadCommand::Range(1 << 10)));
        let misaligned = 0x5000 | 2 << 10 | 3 << 8;
        assert_eq!(
            decode([0x12, misaligned]),
            Err(BadCommand::Range(misaligned))
        );
        // An ASID that the unit does not have.
        let wide = [0x11 | 0x100 << 48, 0];
        let narrow = Takes {
            asid_bits: 8,
            ..ALL
        };
        assert_eq!(
            UserCommand::decode(&wide, narrow),
            Err(BadCommand::Reserved(0, 0x100 << 48))
        );
        assert_eq!(
            UserCommand::decode(&[0x12 | 0x8000 << 48, 0], narrow),
            Err(BadCommand::Reserved(0, 0x8000 << 48))
        );
        assert!(UserCommand::decode(&wide, ALL).is_ok());
        // A user that sees no ranges may not give them.
        let ranged = [0x13 | 1 << 12, 1 << 10 | 3 << 8];
        let unranged = Takes {
            ranges: false,
            ..ALL
        };
        assert_eq!(
            UserCommand::decode(&ranged, unranged),
            Err(BadCommand::Reserved(0, 1 << 12))
        );
    }
}
