//! Descriptors of the invalidation queue, 128 bits, as far as a unit in legacy mode without device-TLBs and
//! interrupt remapping knows them.

use thiserror::Error;

use super::registers::{IQEI_RESERVED, IQEI_TYPE};
use super::{bits, field};

/// What is to be invalidated, or waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// All context entries.
    ContextGlobal,
    /// A domain's context entries.
    ContextDomain {
        /// The domain.
        domain: u16,
    },
    /// The context entries of one requester, or of several functions of its device.
    ContextDevice {
        /// The domain that they are cached under.
        domain: u16,
        /// The requester.
        source: u16,
        /// Which function bits do not count: 0 for none, 1 for bit 2, 2 for bits 2:1, 3 for bits 2:0.
        function_mask: u8,
    },
    /// All translations.
    IotlbGlobal {
        /// Whether earlier reads must be through.
        drain_reads: bool,
        /// Whether earlier writes must be through.
        drain_writes: bool,
    },
    /// A domain's translations.
    IotlbDomain {
        /// The domain.
        domain: u16,
        /// Whether earlier reads must be through.
        drain_reads: bool,
        /// Whether earlier writes must be through.
        drain_writes: bool,
    },
    /// Translations of 2^`mask` pages of a domain.
    IotlbPages {
        /// The domain.
        domain: u16,
        /// The first page's address in pages of 4 KiB.
        page: u64,
        /// How many of its lower bits do not count.
        mask: u8,
        /// Whether only leaves changed.
        leaf_hint: bool,
        /// Whether earlier reads must be through.
        drain_reads: bool,
        /// Whether earlier writes must be through.
        drain_writes: bool,
    },
    /// Says when all before it is done.
    Wait {
        /// By an interrupt.
        interrupt: bool,
        /// By a write: where, and what.
        status: Option<(u64, u32)>,
        /// Whether what follows must wait for it.
        fence: bool,
    },
}

/// What the unit's registers say that descriptors depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DescriptorLimits {
    /// Bits of a domain id.
    pub(crate) domain_id_bits: u8,
    /// CAP.PSI.
    pub(crate) psi: bool,
    /// CAP.MAMV.
    pub(crate) mamv: u8,
}

/// A descriptor that stops the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum BadDescriptor {
    /// The type is none that this unit has.
    #[error("expected type 1, 2 or 5, found {0} (VT-d manual, invalidation descriptors)")]
    UnknownType(u8),
    /// The granularity is reserved.
    #[error("expected granularity 1, 2 or 3, found 0 (VT-d manual, invalidation descriptors, G)")]
    Granularity,
    /// Bits are set that must be zero, among them those that the granularity has no use for.
    #[error(
        "expected zero in reserved bits, found {low:#x} {high:#x} (VT-d manual, invalidation descriptors)"
    )]
    Reserved {
        /// Those of bits 63:0.
        low: u64,
        /// Those of bits 127:64.
        high: u64,
    },
    /// Invalidation by page is not there.
    #[error("expected granularity 1 or 2 without CAP.PSI, found 3 (VT-d manual, CAP.PSI)")]
    PageSelectiveWithoutPsi,
    /// The address mask is too large.
    #[error("expected an address mask of at most {mamv}, found {found} (VT-d manual, CAP.MAMV)")]
    MaskTooLarge {
        /// The mask.
        found: u8,
        /// CAP.MAMV.
        mamv: u8,
    },
    /// The domain id has more bits than the unit.
    #[error("expected a domain id of {bits} bits, found {found:#x} (VT-d manual, CAP.ND)")]
    DomainIdTooWide {
        /// The id.
        found: u16,
        /// How many bits the unit has.
        bits: u8,
    },
    /// The first page is not a multiple of how many there are.
    #[error(
        "expected a multiple of 2^{mask} pages, found page {page:#x} (VT-d manual, IOTLB invalidation, AM)"
    )]
    Misaligned {
        /// The page.
        page: u64,
        /// The address mask.
        mask: u8,
    },
    /// The status is not naturally aligned.
    #[error("expected a status at a multiple of 4, found {0:#x} (VT-d manual, invalidation wait)")]
    StatusMisaligned(u64),
}

impl BadDescriptor {
    /// What the error record says of it: bits 3:0 of IQERCD.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::UnknownType(_) => IQEI_TYPE,
            // A value of a field that is reserved on this unit.
            _ => IQEI_RESERVED,
        }
    }
}

const fn zero(low: u64, high: u64) -> Result<(), BadDescriptor> {
    match (low, high) {
        (0, 0) => Ok(()),
        _ => Err(BadDescriptor::Reserved { low, high }),
    }
}

const fn domain_of(low: u64, limits: &DescriptorLimits) -> Result<u16, BadDescriptor> {
    let (found, bits) = (field(low, 31, 16) as u16, limits.domain_id_bits);
    match found as u32 >> bits {
        0 => Ok(found),
        _ => Err(BadDescriptor::DomainIdTooWide { found, bits }),
    }
}

/// What a descriptor asks for: its type is in 3:0, with further bits in 11:9.
pub(crate) fn decode(
    low: u64,
    high: u64,
    limits: &DescriptorLimits,
) -> Result<Descriptor, BadDescriptor> {
    match (field(low, 11, 9) << 4 | field(low, 3, 0)) as u8 {
        1 => context(low, high, limits),
        2 => iotlb(low, high, limits),
        5 => wait(low, high),
        other => Err(BadDescriptor::UnknownType(other)),
    }
}

/// G in 5:4, domain in 31:16, requester in 47:32, function mask in 49:48 (VT-d manual, context-cache
/// invalidate descriptor).
fn context(low: u64, high: u64, limits: &DescriptorLimits) -> Result<Descriptor, BadDescriptor> {
    zero(low & (bits(15, 6) | bits(63, 50)), high)?;
    match field(low, 5, 4) {
        0 => Err(BadDescriptor::Granularity),
        1 => {
            zero(low & bits(63, 6), 0)?;
            Ok(Descriptor::ContextGlobal)
        }
        2 => {
            zero(low & bits(63, 32), 0)?;
            let domain = domain_of(low, limits)?;
            Ok(Descriptor::ContextDomain { domain })
        }
        _ => Ok(Descriptor::ContextDevice {
            domain: domain_of(low, limits)?,
            source: field(low, 47, 32) as u16,
            function_mask: field(low, 49, 48) as u8,
        }),
    }
}

/// G in 5:4, DW in 6, DR in 7, domain in 31:16; AM in 69:64, IH in 70, address in 127:76 (VT-d manual,
/// IOTLB invalidate descriptor).
fn iotlb(low: u64, high: u64, limits: &DescriptorLimits) -> Result<Descriptor, BadDescriptor> {
    zero(low & (bits(15, 8) | bits(63, 32)), high & bits(11, 7))?;
    let (drain_writes, drain_reads) = (field(low, 6, 6) == 1, field(low, 7, 7) == 1);
    match field(low, 5, 4) {
        0 => return Err(BadDescriptor::Granularity),
        1 => {
            zero(low & bits(31, 16), high)?;
            return Ok(Descriptor::IotlbGlobal {
                drain_reads,
                drain_writes,
            });
        }
        2 => {
            zero(0, high)?;
            let domain = domain_of(low, limits)?;
            return Ok(Descriptor::IotlbDomain {
                domain,
                drain_reads,
                drain_writes,
            });
        }
        _ => {}
    }
    let domain = domain_of(low, limits)?;
    let (page, mask) = (field(high, 63, 12), field(high, 5, 0) as u8);
    if !limits.psi {
        return Err(BadDescriptor::PageSelectiveWithoutPsi);
    }
    if mask > limits.mamv {
        let mamv = limits.mamv;
        return Err(BadDescriptor::MaskTooLarge { found: mask, mamv });
    }
    if !page.is_multiple_of(1 << mask) {
        return Err(BadDescriptor::Misaligned { page, mask });
    }
    Ok(Descriptor::IotlbPages {
        domain,
        page,
        mask,
        leaf_hint: field(high, 6, 6) == 1,
        drain_reads,
        drain_writes,
    })
}

/// IF in 4, SW in 5, FN in 6, status data in 63:32; status address in 127:66 (VT-d manual, invalidation
/// wait descriptor). PD, bit 7, needs ECAP.PDS.
fn wait(low: u64, high: u64) -> Result<Descriptor, BadDescriptor> {
    zero(low & bits(31, 7), 0)?;
    let writes = field(low, 5, 5) == 1;
    if !writes {
        zero(low & bits(63, 32), high)?;
    } else if !high.is_multiple_of(4) {
        return Err(BadDescriptor::StatusMisaligned(high));
    }
    Ok(Descriptor::Wait {
        interrupt: field(low, 4, 4) == 1,
        status: writes.then_some((high, field(low, 63, 32) as u32)),
        fence: field(low, 6, 6) == 1,
    })
}

#[cfg(test)]
mod tests;
