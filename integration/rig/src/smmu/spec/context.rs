//! Context descriptors (CD), and the directories that lead to them, with every rule for them.
//!
//! After IHI 0070, 5.3 to 5.5.

use super::stage_two::{Granule, Shape};
use super::stream::size_bits;
use crate::bits::{bits, field};

/// Bytes of a descriptor.
pub(crate) const CONTEXT_BYTES: u64 = 64;
/// Words of a descriptor.
pub(crate) const WORDS: usize = 8;

/// The bit of word 0 that makes a descriptor valid.
pub(crate) const VALID: u64 = 1 << 31;

/// What a unit can, as far as descriptors ask for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContextLimits {
    pub(crate) asid_bits: u8,
    pub(crate) address_bits: u8,
    /// Input addresses of 52 bits (IDR5.VAX).
    pub(crate) wide: bool,
    /// Log2 bytes of the granules that the unit has, 4K, 16K, 64K; zero for one that it has not.
    pub(crate) granules: [u8; 3],
    /// HTTU: 0, accessed, dirty.
    pub(crate) updates: u8,
    /// Faults may stall their request (IDR0.STALL_MODEL is not 1).
    pub(crate) stalls: bool,
    /// They always do (IHI 0070, 5.4, CdIllegal: S has to be set then).
    pub(crate) always_stalls: bool,
}

/// What a descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// V is clear: C_BAD_CD.
    Invalid,
    Tables(FirstTables),
}

/// A first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstTables {
    pub(crate) asid: u16,
    /// ASET: which global translations are its own.
    pub(crate) set: bool,
    /// Addresses whose top bits are zeros, and those whose top bits are ones.
    pub(crate) halves: [Option<Half>; 2],
    pub(crate) output_bits: u8,
    /// No faults for a clear access flag.
    pub(crate) ignores_access_flag: bool,
    /// Faults are recorded.
    pub(crate) records: bool,
    /// MAIR: a byte for each kind of memory that leaves name.
    pub(crate) attributes: u64,
    /// Walks look into the CPU's caches.
    pub(crate) snoops: bool,
}

/// Tables for half of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    pub(crate) root: u64,
    pub(crate) shape: Shape,
}

impl FirstTables {
    /// The tables for an address, and the address as they see it. `None` for one that neither half has.
    pub(crate) fn half_of(&self, address: u64) -> Option<(Half, u64)> {
        // Bit 55 tells the halves apart; no byte on top is ignored (TBI).
        let upper = address & 1 << 55 != 0;
        let half = self.halves[usize::from(upper)]?;
        let outside = bits(63, half.shape.input_bits.into());
        let expected = if upper { outside } else { 0 };
        (address & outside == expected).then_some((half, address & !outside))
    }

    /// Whether leaves that name this kind are of registers, not of memory.
    pub(crate) const fn is_device(&self, index: u8) -> bool {
        field(self.attributes, index as u32 * 8 + 7, index as u32 * 8 + 4) == 0
    }

    /// Whether leaves that name this kind are of memory that is written back to from caches, inner and outer (MAIR, DDI
    /// 0487: 11RW, or 01RW with hints that are not both clear).
    pub(crate) const fn is_cached(&self, index: u8) -> bool {
        let low = index as u32 * 8;
        let inner = field(self.attributes, low + 3, low);
        let outer = field(self.attributes, low + 7, low + 4);
        matches!(inner, 5..=7 | 12..=15) && matches!(outer, 5..=7 | 12..=15)
    }
}

/// A directory's descriptor: where a table of contexts is, `None` if nowhere.
pub(crate) fn directory(word: u64, split: u8, address_bits: u8) -> Result<Option<u64>, String> {
    if word & 1 == 0 {
        return Ok(None);
    }
    let at = word & bits(51, 12);
    if word & !(bits(51, 12) | 1) != 0 {
        return Err(format!("{word:#x}: reserved bits are set"));
    }
    if !at.is_multiple_of(CONTEXT_BYTES << split) || at >> address_bits != 0 {
        return Err(format!("{word:#x}: no place for 2^{split} descriptors"));
    }
    Ok(Some(at))
}

/// Decodes a descriptor; an illegal one is C_BAD_CD to hardware. `no_stalls`: the stream's entry forbids them.
pub(crate) fn decode(
    words: &[u64; WORDS],
    limits: &ContextLimits,
    no_stalls: bool,
) -> Result<Context, String> {
    let [first, lower, upper, attributes, rest @ ..] = words;
    if first & VALID == 0 {
        return Ok(Context::Invalid);
    }
    let refuse = |broken: bool, what: &str| match broken {
        true => Err(format!("{what} (words {words:x?})")),
        false => Ok(()),
    };
    refuse(
        rest.iter().any(|word| *word != 0),
        "expected zeros in words 4 to 7",
    )?;
    let asid = field(*first, 63, 48);
    refuse(
        asid >> limits.asid_bits != 0,
        "an ASID that the unit has not",
    )?;
    refuse(first & 1 << 41 == 0, "AA64 is clear: tables of AArch32")?;
    refuse(
        first & 1 << 15 != 0,
        "ENDI: the rig's memory is little-endian",
    )?;
    refuse(
        field(*first, 39, 38) != 0,
        "TBI, which the rig's units do not play",
    )?;
    let (dirty, accessed) = (first & 1 << 42 != 0, first & 1 << 43 != 0);
    refuse(accessed && limits.updates < 1, "HA without HTTU")?;
    refuse(dirty && limits.updates < 2, "HD without HTTU")?;
    refuse(
        first & 1 << 44 != 0 && (!limits.stalls || no_stalls),
        "S where faults must not stall",
    )?;
    refuse(
        first & 1 << 44 == 0 && limits.always_stalls,
        "S is clear on a unit that always stalls",
    )?;
    refuse(
        first & 1 << 46 == 0,
        "A is clear on a unit that aborts what faults (IDR0.TERM_MODEL)",
    )?;
    // HAD is for tables that restrict those below them, which the rig's units do not play.
    refuse(
        (lower | upper) & !(bits(51, 4) | 0b10) != 0,
        "reserved bits of words 1 and 2",
    )?;
    let output_bits = size_bits(field(*first, 34, 32) as u8).min(limits.address_bits);
    let half = |disabled: bool, at: u32, granule: Option<usize>, root: u64| {
        if disabled {
            return Ok(None);
        }
        let shift = granule.and_then(|place| limits.granules.get(place).copied());
        let shift = shift.filter(|shift| *shift != 0);
        let shift =
            shift.ok_or_else(|| format!("a granule that the unit has not (words {words:x?})"))?;
        let size = field(*first, at + 5, at) as u8;
        let shape = Shape::first(Granule(shift), size, output_bits, limits.wide)?;
        let root = root & bits(51, 4);
        if root >> shape.output_bits != 0 {
            let bits = shape.output_bits;
            return Err(format!("TTB {root:#x} has more than {bits} bits"));
        }
        // The unit takes the address as if it were where a root can be.
        let root = root & !(shape.root_bytes() - 1);
        Ok(Some(Half { root, shape }))
    };
    // The two codes of granules differ: 4K, 64K, 16K and none, 16K, 4K, 64K.
    let low = [Some(0), Some(2), Some(1), None][field(*first, 7, 6) as usize];
    let high = [None, Some(1), Some(0), Some(2)][field(*first, 23, 22) as usize];
    let halves = [
        half(first & 1 << 14 != 0, 0, low, *lower)?,
        half(first & 1 << 30 != 0, 16, high, *upper)?,
    ];
    let snoops = |at: u32| {
        let (inner, outer) = (field(*first, at + 1, at), field(*first, at + 3, at + 2));
        inner != 0 && outer != 0 && field(*first, at + 5, at + 4) >= 2
    };
    let seen = [8, 24].map(snoops);
    Ok(Context::Tables(FirstTables {
        asid: asid as u16,
        set: first & 1 << 47 != 0,
        halves,
        output_bits,
        ignores_access_flag: first & 1 << 35 != 0 || accessed,
        records: first & 1 << 45 != 0,
        attributes: *attributes,
        snoops: halves
            .iter()
            .zip(seen)
            .all(|(half, seen)| half.is_none() || seen),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ContextLimits = ContextLimits {
        asid_bits: 8,
        address_bits: 44,
        wide: false,
        granules: [12, 0, 16],
        updates: 0,
        stalls: false,
        always_stalls: false,
    };

    /// 39 bits of 4 KiB pages, everything cacheable, no upper half, ASID 5.
    const GOOD: [u64; WORDS] = [
        25 | 1 << 8
            | 1 << 10
            | 3 << 12
            | 1 << 30
            | VALID
            | 4 << 32
            | 1 << 41
            | 1 << 45
            | 1 << 46
            | 1 << 47
            | 5 << 48,
        0x1_0000_3000,
        0,
        0x04ff,
        0,
        0,
        0,
        0,
    ];

    #[test]
    fn descriptors_are_decoded_and_illegal_ones_refused() {
        let Ok(Context::Tables(found)) = decode(&GOOD, &LIMITS, false) else {
            panic!("{:?}", decode(&GOOD, &LIMITS, false));
        };
        assert_eq!((found.asid, found.set, found.records), (5, true, true));
        assert!(found.snoops && found.halves[1].is_none());
        let half = found.halves[0].unwrap();
        assert_eq!(
            (half.root, half.shape.start, half.shape.input_bits),
            (0x1_0000_3000, 1, 39)
        );
        assert!(!found.is_device(0) && found.is_device(1));
        assert!(found.half_of(0x7f_ffff_ffff).is_some());
        assert!(found.half_of(0x80_0000_0000).is_none(), "too wide");
        assert!(found.half_of(u64::MAX).is_none(), "the upper half");
        let with = |word: usize, value: u64| {
            let mut words = GOOD;
            words[word] = value;
            decode(&words, &LIMITS, false)
        };
        assert_eq!(with(0, GOOD[0] & !VALID), Ok(Context::Invalid));
        for (word, value, what) in [
            (0, GOOD[0] & !(1 << 41), "AArch32"),
            (0, GOOD[0] | 0x100 << 48, "a wide ASID"),
            (0, GOOD[0] & !(1 << 46), "A"),
            (0, GOOD[0] | 1 << 44, "stalls"),
            (0, GOOD[0] | 1 << 43, "HA"),
            (0, GOOD[0] | 2 << 6, "16K"),
            (0, GOOD[0] & !0x3f | 15, "too wide"),
            (0, GOOD[0] & !0x3f | 40, "too narrow"),
            (1, 1 << 46, "out of reach"),
            (1, GOOD[1] | 1 << 60, "reserved"),
            (5, 1, "words that are none"),
        ] {
            assert!(with(word, value).is_err(), "{what}");
        }
    }

    #[test]
    fn upper_halves_have_their_own_code_of_granules() {
        let mut words = GOOD;
        words[0] = GOOD[0] & !(1 << 30) | 25 << 16 | 2 << 22;
        words[2] = 0x1_0000_4000;
        let Ok(Context::Tables(found)) = decode(&words, &LIMITS, false) else {
            panic!("two halves");
        };
        assert!(!found.snoops, "the upper half is not cacheable");
        let (half, low) = found.half_of(0xffff_ff80_0000_1000).unwrap();
        assert_eq!((half.root, low), (0x1_0000_4000, 0x1000));
        assert!(found.half_of(0xffff_0000_0000_0000).is_none());
    }

    #[test]
    fn directories_name_whole_tables() {
        assert_eq!(directory(0x1_0000_0000, 10, 44), Ok(None));
        assert_eq!(directory(0x1_0001_0001, 10, 44), Ok(Some(0x1_0001_0000)));
        assert_eq!(directory(0x1_0000_1001, 6, 44), Ok(Some(0x1_0000_1000)));
        assert!(directory(0x1_0000_1001, 10, 44).is_err(), "alignment");
        assert!(directory(0x1_0000_1003, 6, 44).is_err(), "reserved");
    }
}
