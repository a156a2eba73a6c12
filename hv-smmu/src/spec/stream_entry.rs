//! Stream table entries: what happens to the transactions of a stream.
//!
//! The words are private. An entry is made from what it is to mean, so that one which the unit refuses, or which
//! brings an emulator down (a second stage of AArch32 tables), cannot be said. What may be said only on some units takes
//! a token of their [id registers](super::id_registers).
//!
//! Source: Linux `arm-smmu-v3.h` (`STRTAB_STE_*`) and `arm-smmu-v3.c` (`arm_smmu_get_ste_used`), QEMU
//! `smmuv3-internal.h`. S2HD, S2HA, S2S, S2R: old QEMU had the first three a bit higher; Linux and today's QEMU have them
//! as here. PRIVCFG and its neighbours, PPAR, DCP and DRE are recalled and never set.

use hv_core::PhysAddr;
use static_assertions::const_assert_eq;

use super::granule::{Granule, OutputSize};
use super::id_registers::{ForcedWriteBack, OnFault, TranslationRequests, WritesDirty};
use super::stream_table::ENTRY_BYTES;
use super::walk::Walk;
use crate::Vmid;

mod user;
mod words;

pub use user::BadUserEntry;
pub use words::used_bits;
use words::{Word0, Word1, Word2};

/// 64-bit words of an entry.
pub const WORDS: usize = 8;
const_assert_eq!((WORDS * size_of::<u64>()) as u64, ENTRY_BYTES);

/// Low bits of a context descriptor table's address that word 0 leaves out.
const S1CONTEXTPTR_SHIFT: u32 = 6;
/// Config, bit 0: the first stage translates.
const CONFIG_FIRST: u8 = 1;
/// Config, bit 1: the second stage translates.
const CONFIG_SECOND: u8 = 2;
/// Config, bit 2: transactions are not aborted.
const CONFIG_PASS: u8 = 4;
/// SHCFG: as it comes.
const SHCFG_INCOMING: u8 = 1;
/// EATS: devices may ask for translations.
const EATS_FULL: u8 = 1;

/// What an entry does with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Config {
    /// Ends transactions with an abort, without an event.
    Abort,
    /// Lets them through as they are.
    Bypass,
    /// Translates them by context descriptors.
    First,
    /// Translates them by second-stage tables.
    Second,
    /// By both.
    Nested,
}

/// What holds for a stream at any stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// What a fault does to its transaction.
    pub on_fault: OnFault,
    /// The device may ask for translations.
    pub translation_requests: Option<TranslationRequests>,
    /// Identical events may be merged, so that a device fills the event queue more slowly.
    pub merge_events: bool,
}

/// The shape of second-stage tables.
///
/// # Invariants
/// The start level has a code, and its root covers `ipa_bits` with one table, or with 2 to 16 side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStageShape {
    granule: Granule,
    start_level: u8,
    ipa_bits: u8,
    output: OutputSize,
}

impl SecondStageShape {
    /// Tables of `granule` that start at `start_level` and translate addresses of `ipa_bits` bits into ones of
    /// `output`; `None` where no entry can say that. What a unit takes of it is in its IDR5; where the architecture
    /// wants tables side by side instead of one level more is the table format's to know.
    pub const fn new(
        granule: Granule,
        start_level: u8,
        ipa_bits: u8,
        output: OutputSize,
    ) -> Option<Self> {
        let wide = matches!((granule, output), (Granule::Size64K, OutputSize::Bits52));
        let most = if wide { IPA_BITS_WIDE } else { IPA_BITS_MOST };
        let shape = Self {
            granule,
            start_level,
            ipa_bits,
            output,
        };
        if ipa_bits < IPA_BITS_LEAST || ipa_bits > most || shape.start_code().is_none() {
            return None;
        }
        let index_bits = granule.shift() - TABLE_ENTRY_SHIFT;
        let below = granule.shift() + (LAST_LEVEL - start_level) * index_bits;
        let beside = if start_level == 0 {
            0
        } else {
            SIDE_BY_SIDE_LOG2
        };
        // INVARIANT: checked here.
        if ipa_bits <= below || ipa_bits > below + index_bits + beside {
            return None;
        }
        Some(shape)
    }

    /// The same, from the codes of S2TG, S2SL0 and S2T0SZ, as a table's format tells them.
    pub const fn from_codes(tg: u8, sl0: u8, t0sz: u8, output: OutputSize) -> Option<Self> {
        let Some(granule) = Granule::from_tg0(tg) else {
            return None;
        };
        let highest = match granule {
            Granule::Size4K => 2,
            Granule::Size16K | Granule::Size64K => LAST_LEVEL,
        };
        if sl0 > highest || t0sz > ADDRESS_BITS {
            return None;
        }
        Self::new(granule, highest - sl0, ADDRESS_BITS - t0sz, output)
    }

    /// S2SL0.
    const fn start_code(&self) -> Option<u8> {
        match (self.granule, self.start_level) {
            (Granule::Size4K, level @ 0..=2) => Some(2 - level),
            (Granule::Size16K | Granule::Size64K, level @ 1..=3) => Some(3 - level),
            _ => None,
        }
    }

    /// The root's bytes, which are also its alignment: whole tables, side by side.
    pub const fn root_bytes(&self) -> u64 {
        let index_bits = self.granule.shift() - TABLE_ENTRY_SHIFT;
        let below = self.granule.shift() + (LAST_LEVEL - self.start_level) * index_bits;
        let root_bits = self.ipa_bits - below;
        self.granule.bytes() << root_bits.saturating_sub(index_bits)
    }

    /// Significant bits of an input address.
    pub const fn ipa_bits(&self) -> u8 {
        self.ipa_bits
    }

    /// The tables' granule.
    pub const fn granule(&self) -> Granule {
        self.granule
    }
}

/// What T0SZ is subtracted from.
const ADDRESS_BITS: u8 = 64;
/// Log2 of the bytes of a table entry.
const TABLE_ENTRY_SHIFT: u8 = 3;
/// The level whose entries map single pages.
const LAST_LEVEL: u8 = 3;
/// Log2 of how many root tables may stand side by side.
const SIDE_BY_SIDE_LOG2: u8 = 4;
/// T0SZ is at most 39 (recalled; more with IDR3.STT).
const IPA_BITS_LEAST: u8 = 25;
/// T0SZ is at least 16.
const IPA_BITS_MOST: u8 = 48;
/// T0SZ is at least 12 with 52-bit addresses.
const IPA_BITS_WIDE: u8 = 52;

/// The second stage of a stream: tables of AArch64, little endian.
///
/// # Invariants
/// `root` is aligned to the shape's [`root_bytes`](SecondStageShape::root_bytes) and within the output size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStageTables {
    vmid: Vmid,
    root: PhysAddr,
    shape: SecondStageShape,
    walk: Walk,
    force_write_back: Option<ForcedWriteBack>,
    dirty: Option<WritesDirty>,
}

impl SecondStageTables {
    /// Tables at `root`, cached under `vmid`; `None` if `root` is not where they can be.
    pub const fn new(
        vmid: Vmid,
        root: PhysAddr,
        shape: SecondStageShape,
        walk: Walk,
    ) -> Option<Self> {
        let address = root.as_u64();
        let within = address >> shape.output.bits() == 0;
        // INVARIANT: checked here.
        if !within || !address.is_multiple_of(shape.root_bytes()) {
            return None;
        }
        Some(Self {
            vmid,
            root,
            shape,
            walk,
            force_write_back: None,
            dirty: None,
        })
    }

    /// The same, with leaves that force memory types.
    #[must_use]
    pub const fn force_write_back(self, token: ForcedWriteBack) -> Self {
        Self {
            force_write_back: Some(token),
            ..self
        }
    }

    /// The same, with leaves in which the unit notes accesses and writes.
    #[must_use]
    pub const fn note_writes(self, token: WritesDirty) -> Self {
        Self {
            dirty: Some(token),
            ..self
        }
    }
}

/// How context descriptors are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextTableFormat {
    /// One array.
    Linear,
    /// Descriptors of 64 KiB arrays. Needs IDR0.CD2L.
    TwoLevel,
    /// Descriptors of 4 KiB arrays (IHI 0070, 5.2, S1Fmt 0b01). Needs IDR0.CD2L.
    TwoLevelsOfPages,
}

/// What happens to requests that carry no substream, where there are context descriptors for substreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WithoutSubstream {
    /// They are aborted and recorded.
    Terminate = 0,
    /// They pass the first stage as they are. The only one that a second stage alone looks at.
    Bypass = 1,
    /// They use the context descriptor of substream 0.
    UseZero = 2,
}

/// Whose translations a first stage makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Regime {
    /// Of an operating system (NS-EL1).
    El1 = 0,
    /// Of a hypervisor (EL2, or EL2&0 with CR2.E2H). Needs IDR0.HYP.
    El2 = 2,
}

/// The first stage of a stream: context descriptors.
///
/// # Invariants
/// `table` is a multiple of 64 below 2^52, and `log2` fits S1CDMAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstStageContexts {
    table: u64,
    format: ContextTableFormat,
    log2: u8,
    without: WithoutSubstream,
    walk: Walk,
}

impl FirstStageContexts {
    /// The same, with descriptors that are read so.
    #[must_use]
    pub const fn read_by(self, walk: Walk) -> Self {
        Self { walk, ..self }
    }

    /// Log2 of how many descriptors there are.
    pub const fn log2(&self) -> u8 {
        self.log2
    }

    /// How they are arranged.
    pub const fn format(&self) -> ContextTableFormat {
        self.format
    }

    /// 2^`log2` context descriptors, at most 2^20, that are found at `table`: a physical address, an address of the
    /// guest where a second stage follows. With `log2` 0 there is one, for all requests, and none may carry a
    /// substream. `None` if that cannot be said.
    pub const fn new(
        table: u64,
        format: ContextTableFormat,
        log2: u8,
        without: WithoutSubstream,
        walk: Walk,
    ) -> Option<Self> {
        let misplaced =
            table >> POINTER_BITS != 0 || !table.is_multiple_of(1 << S1CONTEXTPTR_SHIFT);
        // INVARIANT: checked here.
        if misplaced || log2 > hv_core::Pasid::BITS {
            return None;
        }
        Some(Self {
            table,
            format,
            log2,
            without,
            walk,
        })
    }
}

/// Bits of the widest address that an entry holds.
const POINTER_BITS: u32 = 52;

/// A stream table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTableEntry([u64; WORDS]);

impl StreamTableEntry {
    /// Not valid: transactions are aborted, and recorded as C_BAD_STE.
    pub const INVALID: Self = Self([0; WORDS]);
    /// Transactions are aborted and nothing is recorded. What every stream starts with.
    pub const ABORT: Self = Self([Word0::new().with_v(true).into_bits(), 0, 0, 0, 0, 0, 0, 0]);

    /// Transactions reach memory as they are. For devices that somebody trusts by name.
    pub const fn bypass(merge_events: bool) -> Self {
        let word1 = Word1::new()
            .with_sh_cfg(SHCFG_INCOMING)
            .with_mev(merge_events);
        Self::of(Self::word0(CONFIG_PASS), word1, 0, 0)
    }

    /// Transactions go through second-stage tables.
    pub const fn second_stage(tables: &SecondStageTables, options: &StreamOptions) -> Self {
        let word0 = Self::word0(CONFIG_PASS | CONFIG_SECOND);
        let word1 = Self::with_second(Self::word1(options), tables);
        Self::of(
            word0,
            word1,
            Self::word2(tables, options),
            tables.root.as_u64(),
        )
    }

    /// Transactions go through first-stage tables. `vmid` tags what is cached, if the unit has second stages.
    pub const fn first_stage(
        contexts: &FirstStageContexts,
        regime: Regime,
        vmid: Vmid,
        options: &StreamOptions,
    ) -> Self {
        let word0 = Self::with_contexts(Self::word0(CONFIG_PASS | CONFIG_FIRST), contexts);
        let word1 = Self::with_context_reads(Self::word1(options), contexts, options)
            .with_strw(regime as u8);
        let word2 = Word2::new().with_s2vmid(vmid.get()).into_bits();
        Self::of(word0, word1, word2, 0)
    }

    /// Transactions go through first-stage tables, whose addresses go through second-stage tables.
    pub const fn nested(
        contexts: &FirstStageContexts,
        tables: &SecondStageTables,
        options: &StreamOptions,
    ) -> Self {
        let config = CONFIG_PASS | CONFIG_FIRST | CONFIG_SECOND;
        let word0 = Self::with_contexts(Self::word0(config), contexts);
        let word1 = Self::with_context_reads(Self::word1(options), contexts, options)
            .with_strw(Regime::El1 as u8);
        let word1 = Self::with_second(word1, tables);
        Self::of(
            word0,
            word1,
            Self::word2(tables, options),
            tables.root.as_u64(),
        )
    }

    const fn of(word0: Word0, word1: Word1, word2: u64, word3: u64) -> Self {
        Self([
            word0.into_bits(),
            word1.into_bits(),
            word2,
            word3,
            0,
            0,
            0,
            0,
        ])
    }

    const fn word0(config: u8) -> Word0 {
        Word0::new().with_v(true).with_config(config)
    }

    const fn word1(options: &StreamOptions) -> Word1 {
        let eats = if options.translation_requests.is_some() {
            EATS_FULL
        } else {
            0
        };
        Word1::new().with_mev(options.merge_events).with_eats(eats)
    }

    const fn word2(tables: &SecondStageTables, options: &StreamOptions) -> u64 {
        let (shape, walk) = (&tables.shape, tables.walk);
        // INVARIANT: shapes whose start level has no code are not made.
        let start = match shape.start_code() {
            Some(code) => code,
            None => 0,
        };
        let dirty = tables.dirty.is_some();
        Word2::new()
            .with_s2vmid(tables.vmid.get())
            .with_s2t0sz(ADDRESS_BITS - shape.ipa_bits)
            .with_s2sl0(start)
            .with_s2ir0(walk.cacheability())
            .with_s2or0(walk.cacheability())
            .with_s2sh0(walk.shareability().into_bits())
            .with_s2tg(shape.granule.tg0())
            .with_s2ps(shape.output.code())
            .with_s2aa64(true)
            .with_s2ptw(true)
            .with_s2hd(dirty)
            .with_s2ha(dirty)
            .with_s2s(options.on_fault.stalls())
            .with_s2r(true)
            .into_bits()
    }

    const fn with_second(word1: Word1, tables: &SecondStageTables) -> Word1 {
        word1
            .with_sh_cfg(SHCFG_INCOMING)
            .with_s2fwb(tables.force_write_back.is_some())
    }

    const fn with_contexts(word0: Word0, contexts: &FirstStageContexts) -> Word0 {
        let format = match contexts.format {
            ContextTableFormat::Linear => 0,
            ContextTableFormat::TwoLevelsOfPages => 1,
            ContextTableFormat::TwoLevel => 2,
        };
        word0
            .with_s1fmt(format)
            .with_s1contextptr(contexts.table >> S1CONTEXTPTR_SHIFT)
            .with_s1cdmax(contexts.log2)
    }

    const fn with_context_reads(
        word1: Word1,
        contexts: &FirstStageContexts,
        options: &StreamOptions,
    ) -> Word1 {
        // Requests that bypass the first stage keep their shareability; for others it is not looked at.
        let word1 = match contexts.without {
            WithoutSubstream::Bypass => word1.with_sh_cfg(SHCFG_INCOMING),
            WithoutSubstream::Terminate | WithoutSubstream::UseZero => word1,
        };
        word1
            .with_s1dss(contexts.without as u8)
            .with_s1cir(contexts.walk.cacheability())
            .with_s1cor(contexts.walk.cacheability())
            .with_s1csh(contexts.walk.shareability().into_bits())
            .with_s1stalld(options.on_fault.is_forbidden_to_stall())
    }

    /// The words, lowest address first. Word 0 makes the entry valid.
    pub const fn words(&self) -> [u64; WORDS] {
        self.0
    }

    /// What it does, or `None` for [`INVALID`](Self::INVALID).
    pub const fn config(&self) -> Option<Config> {
        Config::of(&self.0)
    }

    /// The bits that the unit looks at in this entry, see [`used_bits`].
    pub const fn used(&self) -> [u64; WORDS] {
        used_bits(&self.0)
    }
}

/// The words of a bypassing entry that says, in a field which the unit does not look at then, under which id somebody
/// knows it.
pub const fn bypass_as(vmid: Vmid) -> [u64; WORDS] {
    let mut words = StreamTableEntry::bypass(true).words();
    let [_, _, word2, ..] = &mut words;
    *word2 = Word2::new().with_s2vmid(vmid.get()).into_bits();
    words
}

/// Under which id what an entry of these words leads to is cached.
pub const fn vmid_of(words: &[u64; WORDS]) -> Vmid {
    let [_, _, word2, ..] = words;
    Vmid::new(Word2::from_bits(*word2).s2vmid())
}

/// The words of the same entry, but that its device may ask for translations and use them, or may not.
pub const fn asking(
    words: &[u64; WORDS],
    translation_requests: Option<TranslationRequests>,
) -> [u64; WORDS] {
    let mut changed = *words;
    let [_, word1, ..] = &mut changed;
    let eats = match translation_requests {
        Some(_) => EATS_FULL,
        None => 0,
    };
    *word1 = Word1::from_bits(*word1).with_eats(eats).into_bits();
    changed
}

/// Whether its device may ask for translations and use them.
pub const fn is_asking(words: &[u64; WORDS]) -> bool {
    let [_, word1, ..] = words;
    Word1::from_bits(*word1).eats() != 0
}

#[cfg(test)]
mod tests;
