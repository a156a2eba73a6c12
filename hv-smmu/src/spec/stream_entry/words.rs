//! How the words of an entry lie, and which bits of them an entry uses.

use bitfield_struct::bitfield;

use super::{Config, WORDS, WithoutSubstream};

#[bitfield(u64)]
pub(super) struct Word0 {
    /// The entry is valid (bit 0).
    pub(super) v: bool,
    /// What is translated (bits 3:1).
    #[bits(3)]
    pub(super) config: u8,
    /// How context descriptors are arranged (bits 5:4).
    #[bits(2)]
    pub(super) s1fmt: u8,
    /// Where they are, without the low 6 bits (bits 51:6).
    #[bits(46)]
    pub(super) s1contextptr: u64,
    #[bits(7)]
    __: u8,
    /// Log2 of how many there are (bits 63:59).
    #[bits(5)]
    pub(super) s1cdmax: u8,
}

#[bitfield(u64)]
pub(super) struct Word1 {
    /// Requests without a substream (bits 1:0).
    #[bits(2)]
    pub(super) s1dss: u8,
    /// Context descriptor reads, inner cacheability (bits 3:2).
    #[bits(2)]
    pub(super) s1cir: u8,
    /// Outer (bits 5:4).
    #[bits(2)]
    pub(super) s1cor: u8,
    /// Shareability (bits 7:6).
    #[bits(2)]
    pub(super) s1csh: u8,
    #[bits(8)]
    __: u8,
    /// Responses to page requests carry a PASID (bit 16).
    pub(super) ppar: bool,
    /// Directed cache prefetch (bit 17).
    pub(super) dcp: bool,
    /// Destructive reads (bit 18).
    pub(super) dre: bool,
    /// Identical events may be merged (bit 19).
    pub(super) mev: bool,
    #[bits(5)]
    __: u8,
    /// The second stage forces memory types (bit 25).
    pub(super) s2fwb: bool,
    __: bool,
    /// Faults of the first stage do not stall (bit 27).
    pub(super) s1stalld: bool,
    /// Translation requests (bits 29:28).
    #[bits(2)]
    pub(super) eats: u8,
    /// The regime of the first stage (bits 31:30).
    #[bits(2)]
    pub(super) strw: u8,
    /// Memory type, if MTCFG (bits 35:32).
    #[bits(4)]
    pub(super) mem_attr: u8,
    /// The memory type is overridden (bit 36).
    pub(super) mtcfg: bool,
    /// Allocation hints (bits 40:37).
    #[bits(4)]
    pub(super) alloc_cfg: u8,
    #[bits(3)]
    __: u8,
    /// Shareability (bits 45:44).
    #[bits(2)]
    pub(super) sh_cfg: u8,
    /// Non-secure (bits 47:46).
    #[bits(2)]
    pub(super) ns_cfg: u8,
    /// Privilege (bits 49:48).
    #[bits(2)]
    pub(super) priv_cfg: u8,
    /// Instruction or data (bits 51:50).
    #[bits(2)]
    pub(super) inst_cfg: u8,
    #[bits(12)]
    __: u16,
}

#[bitfield(u64)]
pub(super) struct Word2 {
    /// Under which id translations are cached (bits 15:0).
    pub(super) s2vmid: u16,
    __: u16,
    /// 64 less the bits of an input address (bits 37:32).
    #[bits(6)]
    pub(super) s2t0sz: u8,
    /// Start level (bits 39:38).
    #[bits(2)]
    pub(super) s2sl0: u8,
    /// Walks, inner cacheability (bits 41:40).
    #[bits(2)]
    pub(super) s2ir0: u8,
    /// Outer (bits 43:42).
    #[bits(2)]
    pub(super) s2or0: u8,
    /// Shareability (bits 45:44).
    #[bits(2)]
    pub(super) s2sh0: u8,
    /// Granule (bits 47:46).
    #[bits(2)]
    pub(super) s2tg: u8,
    /// Output size (bits 50:48).
    #[bits(3)]
    pub(super) s2ps: u8,
    /// Tables of AArch64 (bit 51).
    pub(super) s2aa64: bool,
    /// Big-endian tables (bit 52).
    pub(super) s2endi: bool,
    /// The access flag causes no faults (bit 53).
    pub(super) s2affd: bool,
    /// Walks of the first stage do not go through device memory (bit 54).
    pub(super) s2ptw: bool,
    /// The unit notes writes (bit 55).
    pub(super) s2hd: bool,
    /// The unit notes accesses (bit 56).
    pub(super) s2ha: bool,
    /// Faults stall (bit 57).
    pub(super) s2s: bool,
    /// Faults are recorded (bit 58).
    pub(super) s2r: bool,
    #[bits(5)]
    __: u8,
}

/// Address bits of the second stage's root (word 3, 51:4).
const S2TTB: u64 = 0x000f_ffff_ffff_fff0;

impl Config {
    /// What an entry does that stands in memory, whoever wrote it, or `None` for one that is not valid.
    pub const fn of(words: &[u64; WORDS]) -> Option<Self> {
        let [word0, ..] = *words;
        let word0 = Word0::from_bits(word0);
        if !word0.v() {
            return None;
        }
        Some(match word0.config() {
            0b100 => Self::Bypass,
            0b101 => Self::First,
            0b110 => Self::Second,
            0b111 => Self::Nested,
            _ => Self::Abort,
        })
    }
}

/// The bits that the unit looks at in an entry of these words: while it is in use, others may change at any time.
/// A word of which only unused bits change, and then one word at once, is what makes an update hitless.
pub const fn used_bits(words: &[u64; WORDS]) -> [u64; WORDS] {
    let valid = Word0::new().with_v(true).into_bits();
    let Some(config) = Config::of(words) else {
        return [valid, 0, 0, 0, 0, 0, 0, 0];
    };
    let [_, word1, ..] = *words;
    let word0 = valid | CONFIG;
    let (first, second) = match config {
        Config::Abort => return [word0, 0, 0, 0, 0, 0, 0, 0],
        Config::Bypass => return [word0, MERGE | ATTRIBUTES, 0, 0, 0, 0, 0, 0],
        Config::First => (true, false),
        Config::Second => (false, true),
        Config::Nested => (true, true),
    };
    let mut used = [word0, MERGE | EATS, VMID, 0, 0, 0, 0, 0];
    let [used0, used1, used2, used3, ..] = &mut used;
    if first {
        *used0 |= CONTEXTS;
        *used1 |= CONTEXT_READS | PRIVILEGE;
        // Requests that bypass the first stage keep their attributes.
        if Word1::from_bits(word1).s1dss() == WithoutSubstream::Bypass as u8 {
            *used1 |= ATTRIBUTES;
        }
    }
    if second {
        *used1 |= S2FWB | ATTRIBUTES;
        *used2 |= SECOND_STAGE;
        *used3 |= S2TTB;
    }
    used
}

/// Word 0: Config.
const CONFIG: u64 = Word0::new().with_config(u8::MAX >> 5).into_bits();
/// Word 0: what finds the context descriptors.
const CONTEXTS: u64 = Word0::new()
    .with_s1fmt(3)
    .with_s1contextptr(u64::MAX >> 18)
    .with_s1cdmax(u8::MAX >> 3)
    .into_bits();
/// Word 1: what the first stage looks at.
const CONTEXT_READS: u64 = Word1::new()
    .with_s1dss(3)
    .with_s1cir(3)
    .with_s1cor(3)
    .with_s1csh(3)
    .with_ppar(true)
    .with_dcp(true)
    .with_dre(true)
    .with_s1stalld(true)
    .with_strw(3)
    .into_bits();
/// Word 1: EATS.
const EATS: u64 = Word1::new().with_eats(3).into_bits();
/// Word 1: MEV.
const MERGE: u64 = Word1::new().with_mev(true).into_bits();
/// Word 1: S2FWB.
const S2FWB: u64 = Word1::new().with_s2fwb(true).into_bits();
/// Word 1: overrides of privilege and of instruction or data.
const PRIVILEGE: u64 = Word1::new().with_priv_cfg(3).with_inst_cfg(3).into_bits();
/// Word 1: overrides of attributes where the first stage gives none.
const ATTRIBUTES: u64 = PRIVILEGE
    | Word1::new()
        .with_mem_attr(0xf)
        .with_mtcfg(true)
        .with_alloc_cfg(0xf)
        .with_sh_cfg(3)
        .with_ns_cfg(3)
        .with_ppar(true)
        .with_dcp(true)
        .with_dre(true)
        .into_bits();
/// Word 2: S2VMID, which tags what a first stage alone makes too.
const VMID: u64 = Word2::new().with_s2vmid(u16::MAX).into_bits();
/// Word 2: all but S2VMID.
const SECOND_STAGE: u64 = Word2::new()
    .with_s2t0sz(0x3f)
    .with_s2sl0(3)
    .with_s2ir0(3)
    .with_s2or0(3)
    .with_s2sh0(3)
    .with_s2tg(3)
    .with_s2ps(7)
    .with_s2aa64(true)
    .with_s2endi(true)
    .with_s2affd(true)
    .with_s2ptw(true)
    .with_s2hd(true)
    .with_s2ha(true)
    .with_s2s(true)
    .with_s2r(true)
    .into_bits();
