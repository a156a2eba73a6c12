//! Root, context and second-stage entries of legacy mode, read as strictly as a unit may read them.

mod second_stage;

pub(crate) use second_stage::{SecondStage, second_stage};

use std::ops::RangeInclusive;

use thiserror::Error;

use super::{above, bits, field};

/// Addresses that are interrupt requests and never translated (VT-d manual, handling requests to the
/// interrupt address range).
pub(crate) const INTERRUPT_WINDOW: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// What the unit's registers say that entries depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bits of a host address.
    pub(crate) haw: u8,
    /// CAP.SAGAW.
    pub(crate) sagaw: u8,
    /// Bits of a domain id.
    pub(crate) domain_id_bits: u8,
    /// CAP.CM.
    pub(crate) caching_mode: bool,
    /// ECAP.PT.
    pub(crate) pass_through: bool,
    /// ECAP.DT.
    pub(crate) device_tlb: bool,
    /// ECAP.SC.
    pub(crate) snoop_control: bool,
    /// CAP.SSLPS.
    pub(crate) superpages: u8,
}

/// An entry with bits that must be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected zero in {what}, found {bits:#x} in {word:#x}")]
pub(crate) struct Reserved {
    /// Which bits, and who says so.
    pub(crate) what: &'static str,
    /// The word.
    pub(crate) word: u64,
    /// Those of its bits.
    pub(crate) bits: u64,
}

const fn zero(word: u64, reserved: u64, what: &'static str) -> Result<(), Reserved> {
    match word & reserved {
        0 => Ok(()),
        bits => Err(Reserved { what, word, bits }),
    }
}

/// Index of a requester's root entry: its bus (VT-d manual, root table).
pub(crate) const fn root_index(source: u16) -> u64 {
    source as u64 >> 8
}

/// Index of a requester's context entry: its device and function (VT-d manual, context table).
pub(crate) const fn context_index(source: u16) -> u64 {
    source as u64 & 0xff
}

/// Address bits below the index into a table of this level, 12 at level 1: what one entry spans (VT-d
/// manual, second-stage translation: 9 bits a level).
pub(crate) const fn span_bits(level: u8) -> u32 {
    3 + 9 * level as u32
}

/// Index into a table of this level.
pub(crate) const fn table_index(address: u64, level: u8) -> u64 {
    (address >> span_bits(level)) & 0x1ff
}

/// The context table that a root entry names, `None` if it names none (VT-d manual, root entry): P in 0,
/// the table in 63:12, all else reserved.
pub(crate) fn root(low: u64, high: u64, limits: &Limits) -> Result<Option<u64>, Reserved> {
    if field(low, 0, 0) == 0 {
        return Ok(None);
    }
    zero(
        low,
        bits(11, 1),
        "bits 11:1 of a root entry (VT-d manual, root entry)",
    )?;
    zero(
        low,
        above(limits.haw),
        "address bits above the host's of a root entry (VT-d manual, root entry)",
    )?;
    zero(
        high,
        bits(63, 0),
        "bits 127:64 of a root entry (VT-d manual, root entry)",
    )?;
    Ok(Some(low & bits(63, 12)))
}

/// What a context entry does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContextKind {
    /// Second-stage tables translate them.
    Tables,
    /// They pass untranslated.
    PassThrough,
}

/// A context entry that is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Whether faults are not to be recorded.
    pub(crate) fault_processing_disabled: bool,
    /// What it does.
    pub(crate) kind: ContextKind,
    /// The root of the second-stage tables.
    pub(crate) table: u64,
    /// Levels of those tables: 3, 4 or 5.
    pub(crate) levels: u8,
    /// The domain id.
    pub(crate) domain: u16,
}

/// A context entry that no unit with these limits accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum BadContext {
    /// Reserved bits are set.
    #[error(transparent)]
    Reserved(#[from] Reserved),
    /// The translation type is none of this unit's.
    #[error(
        "expected translation type 0, 1 with ECAP.DT or 2 with ECAP.PT, found {0} (VT-d manual, context \
         entry, TT)"
    )]
    TranslationType(u8),
    /// The address width is none of this unit's.
    #[error(
        "expected an address width whose bit in CAP.SAGAW is set, and the largest for pass-through, found \
         {0} (VT-d manual, context entry, AW; Linux for pass-through)"
    )]
    Width(u8),
    /// The domain id is too large.
    #[error("expected a domain id below 2^(4 + 2 ND), found {0} (VT-d manual, CAP.ND)")]
    DomainId(u16),
    /// Domain id 0 is what absent entries are cached under.
    #[error("expected a domain id other than 0 under caching mode (VT-d manual, CAP.CM)")]
    DomainIdZeroUnderCachingMode,
    /// The tables lie where the host has no addresses.
    #[error(
        "expected tables below the host address width, found {0:#x} (VT-d manual, context entry)"
    )]
    TableAboveHostWidth(u64),
}

/// The bit of a present context entry that a driver may change (VT-d manual, context entry, FPD): faults of the
/// requester are not recorded.
pub(crate) const FAULT_PROCESSING_DISABLE: u64 = 1 << 1;

/// What a context entry says, `None` if it is not present (VT-d manual, context entry): P in 0, FPD in 1,
/// TT in 3:2, tables in 63:12, AW in 66:64, domain id in 87:72; 70:67 ignored, all else reserved.
pub(crate) fn context(low: u64, high: u64, limits: &Limits) -> Result<Option<Context>, BadContext> {
    if field(low, 0, 0) == 0 {
        return Ok(None);
    }
    zero(
        low,
        bits(11, 4),
        "bits 11:4 of a context entry (VT-d manual, context entry)",
    )?;
    zero(
        high,
        bits(7, 7),
        "bit 71 of a context entry (VT-d manual, context entry)",
    )?;
    zero(
        high,
        bits(63, 24),
        "bits 127:88 of a context entry (VT-d manual, context entry)",
    )?;
    let kind = match field(low, 3, 2) as u8 {
        0 => ContextKind::Tables,
        1 if limits.device_tlb => ContextKind::Tables,
        2 if limits.pass_through => ContextKind::PassThrough,
        other => return Err(BadContext::TranslationType(other)),
    };
    let width = field(high, 2, 0) as u8;
    // SAGAW has a bit for each width, at that width's number.
    let supported = limits.sagaw & 0b01110;
    let is_largest = supported >> width == 1;
    if (supported >> width) & 1 == 0 || kind == ContextKind::PassThrough && !is_largest {
        return Err(BadContext::Width(width));
    }
    let domain = field(high, 23, 8) as u16;
    if u32::from(domain) >> limits.domain_id_bits != 0 {
        return Err(BadContext::DomainId(domain));
    }
    if domain == 0 && limits.caching_mode {
        return Err(BadContext::DomainIdZeroUnderCachingMode);
    }
    // Pass-through ignores the tables, if Linux is right; reserved address bits are zero in any case.
    let table = low & bits(63, 12);
    if table & above(limits.haw) != 0 {
        return Err(BadContext::TableAboveHostWidth(table));
    }
    Ok(Some(Context {
        fault_processing_disabled: field(low, 1, 1) == 1,
        kind,
        table,
        levels: width + 2,
        domain,
    }))
}

#[cfg(test)]
mod tests;
