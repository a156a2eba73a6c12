//! Stream table: first-level descriptors, and stream table entries (STE) with every rule for them.

use super::registers::StreamTable;
use super::stage_two::{Granule, Shape};
use crate::bits::{bits, field};

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: u64 = 64;
/// Words of an entry.
pub(crate) const WORDS: usize = 8;

/// The bit of word 0 without which nothing passes: the upper one of Config.
pub(crate) const PASSES: u64 = 1 << 3;

/// An entry as it lies in memory.
pub(crate) type Words = [u64; WORDS];

/// What a unit can, as far as entries ask for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) first_stage: bool,
    pub(crate) second_stage: bool,
    /// Both for one stream.
    pub(crate) nests: bool,
    pub(crate) vmid_bits: u8,
    pub(crate) address_bits: u8,
    pub(crate) granules: [u8; 3],
    pub(crate) ats: bool,
    /// HTTU: 0, accessed, dirty.
    pub(crate) updates: u8,
    pub(crate) forced: bool,
    /// TTENDIAN allows big-endian tables.
    pub(crate) big_endian: bool,
    /// Faults may stall their request.
    pub(crate) stalls: bool,
    /// They always do.
    pub(crate) always_stalls: bool,
    /// IDR1.SSIDSIZE.
    pub(crate) substream_bits: u8,
    /// Context descriptors in two levels (IDR0.CD2L).
    pub(crate) directories: bool,
    /// The unit snoops, so that walks must be cacheable and shareable to see what the CPU wrote.
    pub(crate) coherent: bool,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// V is clear: C_BAD_STE.
    Invalid,
    /// Requests end, silently.
    Abort,
    /// Requests pass.
    Bypass,
    Translates(Stages),
}

/// What translates the requests of a stream: one stage or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stages {
    /// Under which guest translations are kept.
    pub(crate) vmid: u16,
    pub(crate) first: Option<Contexts>,
    pub(crate) second: Option<Tables>,
    /// Its device may ask for translations and use them (EATS), of either stage.
    pub(crate) asks: bool,
}

/// Where the context descriptors of a first stage are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contexts {
    /// Of the table, or of the directory. An address of the guest where there is a second stage.
    pub(crate) at: u64,
    /// Bits of a substream that tables below the directory resolve; `None` where there is no directory.
    pub(crate) split: Option<u8>,
    /// Log2 of how many descriptors there are. With 0, no request may carry a substream.
    pub(crate) log2: u8,
    pub(crate) without: WithoutSubstream,
    /// Faults must not stall (S1STALLD).
    pub(crate) no_stalls: bool,
}

/// What becomes of requests without a substream, where there are several contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithoutSubstream {
    Terminate,
    PassFirst,
    UseZero,
}

/// A second stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) vmid: u16,
    pub(crate) root: u64,
    pub(crate) shape: Shape,
    /// No faults for a clear access flag.
    pub(crate) ignores_access_flag: bool,
    pub(crate) updates_access_flag: bool,
    pub(crate) dirty: bool,
    pub(crate) forced: bool,
    /// First-stage tables and contexts are not read from registers (S2PTW).
    pub(crate) protects_walks: bool,
    /// Faults are recorded.
    pub(crate) records: bool,
}

impl Tables {
    /// What of it may be cached with translations, so that all entries of one VMID have to agree on it (IHI 0070, 5.2.1).
    pub(crate) const fn is_cached_as(&self) -> (Shape, bool, bool, bool, bool) {
        let notes = (self.updates_access_flag, self.dirty);
        (
            self.shape,
            self.ignores_access_flag,
            notes.0,
            notes.1,
            self.forced,
        )
    }
}

/// A first-level descriptor: the entries that it names, `None` if none.
pub(crate) fn level_one(
    word: u64,
    table: &StreamTable,
    address_bits: u8,
) -> Result<Option<(u64, u64)>, String> {
    let span = field(word, 4, 0);
    if span == 0 {
        return Ok(None);
    }
    if span > u64::from(table.split) + 1 {
        return Err(format!(
            "{word:#x}: a span of {span} with a split of {} (expected at most one more)",
            table.split
        ));
    }
    let entries = 1 << (span - 1);
    let at = word & bits(51, 6);
    if word & !(bits(51, 6) | bits(4, 0)) != 0 {
        return Err(format!("{word:#x}: reserved bits are set"));
    }
    if !at.is_multiple_of(entries * ENTRY_BYTES) || at >> address_bits != 0 {
        return Err(format!("{word:#x}: no place for {entries} entries"));
    }
    Ok(Some((at, entries)))
}

/// Bits of an output size (S2PS, IDR5.OAS).
pub(crate) const fn size_bits(code: u8) -> u8 {
    match code {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

/// Decodes an entry; an illegal one is C_BAD_STE to hardware.
pub(crate) fn decode(words: &Words, limits: &StreamLimits) -> Result<Stream, String> {
    let [first, second, third, fourth, rest @ ..] = words;
    if first & 1 == 0 {
        return Ok(Stream::Invalid);
    }
    let illegal = |what: String| Err(format!("{what} (words {words:x?})"));
    let config = field(*first, 3, 1);
    if config & 0b100 == 0 {
        return Ok(Stream::Abort);
    }
    if first & bits(58, 52) != 0 {
        return illegal("reserved bits of word 0 are set".to_owned());
    }
    if rest.iter().any(|word| *word != 0) {
        return illegal("expected zeros in words 4 to 7".to_owned());
    }
    let ats = field(*second, 29, 28);
    if ats == 3 || ats != 0 && !limits.ats {
        return illegal(format!("EATS {ats} on a unit without ATS"));
    }
    let (has_first, has_second) = (config & 1 != 0, config & 2 != 0);
    if !has_first && !has_second {
        return Ok(Stream::Bypass);
    }
    if has_first && !limits.first_stage {
        return illegal("a first stage, which the unit has not".to_owned());
    }
    if has_first && has_second && !limits.nests {
        return illegal("both stages on a part whose erratum forbids that".to_owned());
    }
    if has_second && !limits.second_stage {
        return illegal("a second stage, which the unit has not".to_owned());
    }
    let stages = || {
        let first = has_first.then(|| contexts(*first, *second, has_second, limits));
        let asks = field(*second, 29, 28) == 1;
        let tables = has_second.then(|| tables(*second, *third, *fourth, limits));
        let tables = tables.transpose()?;
        Ok(Stream::Translates(Stages {
            vmid: match tables {
                Some(tables) => tables.vmid,
                None if limits.second_stage => field(*third, 15, 0) as u16,
                None => 0,
            },
            first: first.transpose()?,
            second: tables,
            asks,
        }))
    };
    stages().or_else(illegal)
}

fn contexts(
    first: u64,
    second: u64,
    is_guests: bool,
    limits: &StreamLimits,
) -> Result<Contexts, String> {
    let refuse = |broken: bool, what: &str| if broken { Err(what.to_owned()) } else { Ok(()) };
    let log2 = match limits.substream_bits {
        0 => 0,
        _ => field(first, 63, 59) as u8,
    };
    refuse(log2 > limits.substream_bits, "S1CDMax above IDR1.SSIDSIZE")?;
    // 0b11 is reserved and behaves as linear; with one descriptor nobody looks.
    let split = match field(first, 5, 4) {
        1 if log2 > 0 => Some(6),
        2 if log2 > 0 => Some(10),
        _ => None,
    };
    refuse(
        split.is_some() && !limits.directories,
        "S1Fmt of two levels without IDR0.CD2L",
    )?;
    let bytes = match split {
        None => 64 << log2,
        Some(split) => (8_u64 << log2.saturating_sub(split)).max(64),
    };
    let at = first & bits(51, 6);
    refuse(
        !is_guests && !at.is_multiple_of(bytes),
        "S1ContextPtr has reserved bits: the table is not where its size has tables",
    )?;
    refuse(
        at >> limits.address_bits != 0,
        "S1ContextPtr is out of reach",
    )?;
    let no_stalls = second & 1 << 27 != 0;
    refuse(
        no_stalls && (!limits.stalls || limits.always_stalls),
        "S1STALLD on a unit that cannot stall, or always does (STALL_MODEL is not 0)",
    )?;
    refuse(
        limits.stalls && !limits.always_stalls && !no_stalls && is_guests,
        "faults of a guest's first stage may stall a device of PCI, which must not",
    )?;
    refuse(
        field(second, 31, 30) != 0,
        "STRW of another world, which no driver on the rig asks for",
    )?;
    let (inner, outer, share) = (
        field(second, 3, 2),
        field(second, 5, 4),
        field(second, 7, 6),
    );
    refuse(
        limits.coherent && (inner == 0 || outer == 0 || share < 2),
        "descriptors are read past the CPU's caches, where they are",
    )?;
    Ok(Contexts {
        at: at & !(bytes - 1),
        split,
        log2,
        without: match field(second, 1, 0) {
            1 => WithoutSubstream::PassFirst,
            2 => WithoutSubstream::UseZero,
            _ => WithoutSubstream::Terminate,
        },
        no_stalls,
    })
}

fn tables(second: u64, third: u64, fourth: u64, limits: &StreamLimits) -> Result<Tables, String> {
    let refuse = |broken: bool, what: &str| if broken { Err(what.to_owned()) } else { Ok(()) };
    let vmid = field(third, 15, 0);
    if vmid >> limits.vmid_bits != 0 {
        return Err(format!(
            "VMID {vmid:#x} has more than {} bits",
            limits.vmid_bits
        ));
    }
    refuse(
        vmid == 0,
        "VMID 0, which Linux keeps for streams that bypass",
    )?;
    refuse(
        field(second, 31, 30) != 0,
        "STRW of another world with a second stage",
    )?;
    let forced = second & 1 << 25 != 0;
    refuse(forced && !limits.forced, "S2FWB without IDR3.FWB")?;
    let code = field(third, 47, 46) as usize;
    // 0, 1, 2: 4K, 64K, 16K; the unit's list goes by size.
    let place = [0, 2, 1].get(code).copied().unwrap_or(3);
    let shift = limits.granules.get(place).copied().unwrap_or(0);
    if shift == 0 {
        return Err(format!("S2TG {code}, which the unit has not"));
    }
    refuse(third & 1 << 51 == 0, "S2AA64 is clear: tables of AArch32")?;
    refuse(
        third & 1 << 52 != 0 && !limits.big_endian,
        "S2ENDI on a unit with little-endian tables",
    )?;
    refuse(
        third & 1 << 52 != 0,
        "S2ENDI: the driver writes little-endian",
    )?;
    let (dirty, accessed) = (third & 1 << 55 != 0, third & 1 << 56 != 0);
    refuse(accessed && limits.updates < 1, "S2HA without HTTU")?;
    refuse(dirty && limits.updates < 2, "S2HD without HTTU")?;
    refuse(dirty && !accessed, "S2HD without S2HA")?;
    refuse(
        dirty && !limits.coherent,
        "S2HD on a unit that does not snoop, whose bits would be set past what the CPU has cached",
    )?;
    refuse(
        third & 1 << 57 != 0 && !limits.stalls,
        "S2S on a unit that cannot stall",
    )?;
    refuse(
        third & 1 << 57 != 0 && !limits.always_stalls,
        "S2S for a device of PCI, which must not stall",
    )?;
    refuse(
        third & 1 << 57 == 0 && limits.always_stalls,
        "S2S is clear on a unit that always stalls",
    )?;
    refuse(
        third & 1 << 57 != 0 && field(second, 29, 28) != 0,
        "EATS beside S2S",
    )?;
    refuse(
        third & (bits(63, 59) | bits(31, 16)) != 0,
        "reserved bits of word 2",
    )?;
    let (inner, outer, share) = (
        field(third, 41, 40),
        field(third, 43, 42),
        field(third, 45, 44),
    );
    refuse(share == 1, "S2SH0 1 is reserved")?;
    if limits.coherent {
        let cached = |code| code == 1 || code == 2 || code == 3;
        refuse(
            !cached(inner) || !cached(outer) || share < 2,
            "walks that do not look into the CPU's caches, where tables are",
        )?;
    }
    let output = size_bits(field(third, 50, 48) as u8);
    let shape = Shape::decode(
        Granule(shift),
        field(third, 37, 32) as u8,
        field(third, 39, 38) as u8,
        output,
        limits.address_bits,
    )?;
    let root = fourth & bits(51, 4);
    refuse(fourth & !bits(51, 4) != 0, "reserved bits of word 3")?;
    if !root.is_multiple_of(shape.root_bytes()) {
        return Err(format!(
            "S2TTB {root:#x} is not a multiple of the root's {} bytes",
            shape.root_bytes()
        ));
    }
    if root >> shape.output_bits != 0 {
        return Err(format!(
            "S2TTB {root:#x} has more than {} bits",
            shape.output_bits
        ));
    }
    Ok(Tables {
        vmid: vmid as u16,
        root,
        shape,
        ignores_access_flag: third & 1 << 53 != 0,
        updates_access_flag: accessed,
        dirty,
        forced,
        protects_walks: third & 1 << 54 != 0,
        records: third & 1 << 58 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StreamLimits = StreamLimits {
        first_stage: true,
        second_stage: true,
        nests: true,
        vmid_bits: 8,
        address_bits: 44,
        granules: [12, 14, 16],
        ats: false,
        updates: 0,
        forced: false,
        big_endian: false,
        stalls: false,
        always_stalls: false,
        substream_bits: 8,
        directories: false,
        coherent: true,
    };

    /// 39 bits from level 1, everything cacheable, VMID 5.
    const GOOD: Words = [
        0b1101,
        1 << 44,
        5 | 25 << 32 | 1 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 4 << 48 | 1 << 51 | 1 << 58,
        0x1_0000_3000,
        0,
        0,
        0,
        0,
    ];

    #[test]
    fn entries_are_decoded_and_illegal_ones_refused() {
        let Ok(Stream::Translates(found)) = decode(&GOOD, &LIMITS) else {
            panic!("{:?}", decode(&GOOD, &LIMITS));
        };
        assert_eq!(found.first, None);
        let found = found.second.unwrap();
        assert_eq!((found.vmid, found.root), (5, 0x1_0000_3000));
        assert_eq!((found.shape.start, found.shape.input_bits), (1, 39));
        assert!(found.records && !found.ignores_access_flag);
        let with = |word: usize, value: u64| {
            let mut words = GOOD;
            words[word] = value;
            decode(&words, &LIMITS)
        };
        assert_eq!(with(0, 0b1100), Ok(Stream::Invalid));
        assert_eq!(with(0, 1), Ok(Stream::Abort));
        assert_eq!(with(0, 0b1001), Ok(Stream::Bypass));
        for (word, value, what) in [
            (1, 1 << 28, "EATS"),
            (1, 1 << 25, "S2FWB"),
            (2, 0, "all clear"),
            (2, GOOD[2] & !0xff, "VMID 0"),
            (2, GOOD[2] | 0x100, "a wide VMID"),
            (2, GOOD[2] & !(1 << 51), "AArch32"),
            (2, GOOD[2] | 1 << 57, "stalls"),
            (2, GOOD[2] | 1 << 55, "dirty bits"),
            (2, GOOD[2] & !(1 << 40), "not cacheable"),
            (2, GOOD[2] & !(0x3f << 32) | 15 << 32, "too wide"),
            (3, 0x1_0000_3800, "alignment"),
            (3, 1 << 46, "out of reach"),
            (5, 1, "words that are none"),
        ] {
            assert!(with(word, value).is_err(), "{what}");
        }
    }

    #[test]
    fn first_stages_are_decoded_and_illegal_ones_refused() {
        // 16 descriptors, that of substream 0 for requests without one, everything cacheable, no second stage.
        let good = [
            0b1011 | 0x1_0000_4400 | 4 << 59,
            2 | 1 << 2 | 1 << 4 | 3 << 6,
            7,
            0,
            0,
            0,
            0,
            0,
        ];
        let Ok(Stream::Translates(found)) = decode(&good, &LIMITS) else {
            panic!("{:?}", decode(&good, &LIMITS));
        };
        assert_eq!((found.vmid, found.second), (7, None));
        let contexts = found.first.unwrap();
        assert_eq!((contexts.at, contexts.log2), (0x1_0000_4400, 4));
        assert_eq!(contexts.split, None);
        assert_eq!(contexts.without, WithoutSubstream::UseZero);
        let with = |word: usize, value: u64| {
            let mut words: Words = good;
            words[word] = value;
            decode(&words, &LIMITS)
        };
        for (word, value, what) in [
            (0, good[0] | 0x200, "not aligned to 16 descriptors"),
            (0, good[0] | 1 << 4, "a directory"),
            (0, good[0] | 8 << 59, "more than 2^8"),
            (1, good[1] & !(3 << 6), "not shareable"),
            (1, good[1] | 2 << 30, "EL2"),
            (1, good[1] | 1 << 27, "S1STALLD"),
        ] {
            assert!(with(word, value).is_err(), "{what}");
        }
        // Both stages.
        let mut both = GOOD;
        both[0] = good[0] | 0b100;
        both[1] |= good[1];
        let Ok(Stream::Translates(found)) = decode(&both, &LIMITS) else {
            panic!("{:?}", decode(&both, &LIMITS));
        };
        assert!(found.vmid == 5 && found.first.is_some() && found.second.is_some());
        let alone = StreamLimits {
            second_stage: false,
            ..LIMITS
        };
        assert!(decode(&both, &alone).is_err() && decode(&good, &alone).is_ok());
        // On a part that has both, and must not have them for one stream.
        let apart = StreamLimits {
            nests: false,
            ..LIMITS
        };
        assert!(decode(&both, &apart).is_err());
        assert!(decode(&good, &apart).is_ok() && decode(&GOOD, &apart).is_ok());
    }

    #[test]
    fn first_level_descriptors_name_whole_tables() {
        let table = StreamTable {
            base: 0,
            log2: 16,
            split: 8,
        };
        assert_eq!(level_one(0, &table, 40), Ok(None));
        assert_eq!(
            level_one(0x1_0000_4000 | 9, &table, 40),
            Ok(Some((0x1_0000_4000, 256)))
        );
        assert!(level_one(0x1_0000_4000 | 10, &table, 40).is_err());
        assert!(level_one(0x1_0000_2000 | 9, &table, 40).is_err());
    }
}
