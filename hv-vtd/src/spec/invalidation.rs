//! Invalidation queue descriptors of 128 bits.
//!
//! Source: Linux `iommu.h` (`QI_*`), Xen `vtd/qinval.c`, VirtualBox `iommu-intel.h`.

use bitfield_struct::bitfield;
use static_assertions::const_assert_eq;

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: u64 = 16;
/// Descriptors that fit into a queue of one page (IQA.QS = 0).
pub const DESCRIPTORS_PER_PAGE: usize = 256;
/// Its logarithm.
pub const DESCRIPTORS_PER_PAGE_LOG2: u8 = 8;
const_assert_eq!(DESCRIPTORS_PER_PAGE as u64 * DESCRIPTOR_BYTES, 4096);
const_assert_eq!(1 << DESCRIPTORS_PER_PAGE_LOG2, DESCRIPTORS_PER_PAGE);

/// The bits of IQH and IQT that hold the byte offset (18:4).
pub const QUEUE_OFFSET: u64 = 0x7fff0;

/// Type: context cache.
pub const TYPE_CONTEXT: u8 = 1;
/// Type: IOTLB.
pub const TYPE_IOTLB: u8 = 2;
/// Type: wait.
pub const TYPE_WAIT: u8 = 5;

/// Granularity, context cache and IOTLB: everything.
pub const GLOBAL: u8 = 1;
/// Granularity, context cache and IOTLB: a domain.
pub const DOMAIN: u8 = 2;
/// Granularity, context cache: a device. IOTLB: a range of pages.
pub const SELECTIVE: u8 = 3;

/// Low word of a context cache invalidation. The high word is zero.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextInvalidation {
    /// [`TYPE_CONTEXT`] (bits 3:0).
    #[bits(4)]
    pub kind: u8,
    /// Granularity (bits 5:4).
    #[bits(2)]
    pub g: u8,
    #[bits(10)]
    __: u16,
    /// Domain id (bits 31:16).
    pub did: u16,
    /// Requester id (bits 47:32).
    pub sid: u16,
    /// Function bits of the requester id to ignore, 0 for none (bits 49:48).
    #[bits(2)]
    pub fm: u8,
    #[bits(14)]
    __: u16,
}

/// Low word of an IOTLB invalidation.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbInvalidation {
    /// [`TYPE_IOTLB`] (bits 3:0).
    #[bits(4)]
    pub kind: u8,
    /// Granularity (bits 5:4).
    #[bits(2)]
    pub g: u8,
    /// Drain writes first (bit 6).
    pub dw: bool,
    /// Drain reads first (bit 7).
    pub dr: bool,
    __: u8,
    /// Domain id (bits 31:16).
    pub did: u16,
    __: u32,
}

/// High word of an IOTLB invalidation of a range of pages; zero for the others.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbRange {
    /// Log2 of the number of pages (bits 5:0).
    #[bits(6)]
    pub am: u8,
    /// Only leaves changed in the range (bit 6).
    pub ih: bool,
    #[bits(5)]
    __: u8,
    /// Page number of the first page, a multiple of 2^AM (bits 63:12).
    #[bits(52)]
    pub page: u64,
}

/// Low word of a wait.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct WaitLow {
    /// [`TYPE_WAIT`] (bits 3:0).
    #[bits(4)]
    pub kind: u8,
    /// Raise an interrupt (bit 4).
    pub r#if: bool,
    /// Write the status word (bit 5).
    pub sw: bool,
    /// Later descriptors wait for earlier ones (bit 6).
    pub r#fn: bool,
    #[bits(25)]
    __: u32,
    /// What is written to the status word (bits 63:32).
    pub data: u32,
}

/// The status address of a wait is a multiple of this many bytes; it is the whole high word.
pub const STATUS_ALIGN: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_descriptor_matches_an_independent_table() {
        let context = ContextInvalidation::new();
        assert_eq!(context.with_kind(TYPE_CONTEXT).into_bits(), 0x1);
        assert_eq!(context.with_g(GLOBAL).into_bits(), 0x10);
        assert_eq!(context.with_g(DOMAIN).into_bits(), 0x20);
        assert_eq!(context.with_g(SELECTIVE).into_bits(), 0x30);
        assert_eq!(context.with_did(0xffff).into_bits(), 0xffff_0000);
        assert_eq!(context.with_sid(0xffff).into_bits(), 0xffff_0000_0000);
        assert_eq!(context.with_fm(3).into_bits(), 0x3_0000_0000_0000);
    }

    #[test]
    fn iotlb_descriptor_matches_an_independent_table() {
        let iotlb = IotlbInvalidation::new();
        assert_eq!(iotlb.with_kind(TYPE_IOTLB).into_bits(), 0x2);
        assert_eq!(iotlb.with_g(SELECTIVE).into_bits(), 0x30);
        assert_eq!(iotlb.with_dw(true).into_bits(), 0x40);
        assert_eq!(iotlb.with_dr(true).into_bits(), 0x80);
        assert_eq!(iotlb.with_did(0xffff).into_bits(), 0xffff_0000);
        let range = IotlbRange::new();
        assert_eq!(range.with_am(0x3f).into_bits(), 0x3f);
        assert_eq!(range.with_ih(true).into_bits(), 0x40);
        assert_eq!(range.with_page(0x4_0200).into_bits(), 0x4020_0000);
    }

    #[test]
    fn wait_descriptor_matches_an_independent_table() {
        let wait = WaitLow::new();
        assert_eq!(wait.with_kind(TYPE_WAIT).into_bits(), 0x5);
        assert_eq!(wait.with_if(true).into_bits(), 0x10);
        assert_eq!(wait.with_sw(true).into_bits(), 0x20);
        assert_eq!(wait.with_fn(true).into_bits(), 0x40);
        assert_eq!(wait.with_data(u32::MAX).into_bits(), 0xffff_ffff_0000_0000);
    }
}
