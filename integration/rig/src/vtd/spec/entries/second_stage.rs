//! Second-stage entries.

use super::super::{above, bits, field};
use super::{Limits, Reserved, span_bits, zero};

/// What a second-stage entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecondStage {
    /// Nothing.
    Absent,
    /// The table of the next level.
    Table {
        /// Where it is.
        at: u64,
        /// Whether reads may pass.
        read: bool,
        /// Whether writes may pass.
        write: bool,
    },
    /// A page, of the size that its level spans.
    Leaf {
        /// Where it is.
        at: u64,
        /// Whether reads may pass.
        read: bool,
        /// Whether writes may pass.
        write: bool,
        /// Whether requests snoop the processors' caches whatever they ask for (SNP).
        snoops: bool,
    },
}

/// What a second-stage entry of a level, 1 to 5, says (VT-d manual, second-stage paging entries): R in 0, W
/// in 1, PS in 7, SNP in 11, address in 51:12, TM in 62. It is absent without R and W, whatever else is set.
///
/// Software may use 10, 61:52 and 63. Of the bits that only other modes give a meaning, those that a
/// unit in legacy mode may well look at are taken for reserved too.
pub(crate) fn second_stage(word: u64, level: u8, limits: &Limits) -> Result<SecondStage, Reserved> {
    let (read, write) = (field(word, 0, 0) == 1, field(word, 1, 1) == 1);
    if !read && !write {
        return Ok(SecondStage::Absent);
    }
    let large = field(word, 7, 7) == 1;
    let superpage_bit = match level {
        2 => limits.superpages & 0b01,
        3 => limits.superpages & 0b10,
        _ => 0,
    };
    if large && level != 1 && superpage_bit == 0 {
        let what = "PS of an entry whose level has no pages on this unit (VT-d manual, CAP.SSLPS)";
        zero(word, bits(7, 7), what)?;
    }
    zero(
        word,
        bits(9, 8),
        "A and D, which need scalable mode (VT-d manual, second-stage paging entries)",
    )?;
    let top = above(limits.haw) & bits(51, 12);
    zero(
        word,
        top,
        "address bits above the host's (VT-d manual, second-stage paging entries)",
    )?;
    let at = word & bits(51, 12);
    if level != 1 && !large {
        zero(
            word,
            bits(11, 11),
            "SNP of an entry that names a table (VT-d manual, second-stage paging entries)",
        )?;
        zero(
            word,
            bits(62, 62),
            "TM of an entry that names a table (VT-d manual, second-stage paging entries)",
        )?;
        return Ok(SecondStage::Table { at, read, write });
    }
    zero(
        word,
        bits(6, 3),
        "the memory type, which needs nested translation (VT-d manual, second-stage paging entries)",
    )?;
    if !limits.snoop_control {
        zero(
            word,
            bits(11, 11),
            "SNP, which needs ECAP.SC (VT-d manual, second-stage paging entries)",
        )?;
    }
    if !limits.device_tlb {
        zero(
            word,
            bits(62, 62),
            "TM, which needs ECAP.DT (VT-d manual, second-stage paging entries)",
        )?;
    }
    if level != 1 {
        let inside = bits(span_bits(level) - 1, 12);
        zero(
            word,
            inside,
            "the address bits inside a large page (VT-d manual, second-stage paging entries)",
        )?;
    }
    let snoops = field(word, 11, 11) == 1;
    Ok(SecondStage::Leaf {
        at,
        read,
        write,
        snoops,
    })
}
