//! Flattened device trees: how the header and the tokens lie in memory.
//!
//! All numbers are big endian. Source: the Devicetree Specification 0.4, section 5, in agreement with `libfdt` (`fdt.h`);
//! interrupts: the binding `arm,gic-v3`.

use static_assertions::const_assert_eq;
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The first word.
pub const MAGIC: u32 = 0xd00d_feed;
/// The version whose layout this is; later ones say with which they are compatible.
pub const VERSION: u32 = 17;
/// The oldest version that this layout is compatible with.
pub const COMPATIBLE_VERSION: u32 = 16;

/// The header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: U32,
    /// Bytes of the whole tree.
    pub total_size: U32,
    /// Where the tokens are.
    pub structure_offset: U32,
    /// Where the names of properties are.
    pub strings_offset: U32,
    /// Where the memory reservations are.
    pub reservations_offset: U32,
    /// [`VERSION`].
    pub version: U32,
    /// The oldest version that a reader may know.
    pub compatible_version: U32,
    /// The CPU that starts.
    pub boot_cpu: U32,
    /// Bytes of names.
    pub strings_size: U32,
    /// Bytes of tokens.
    pub structure_size: U32,
}
const_assert_eq!(size_of::<Header>(), 40);

/// Bytes that tokens and properties are aligned to.
pub const TOKEN_BYTES: usize = 4;
/// Token: a node starts; its name follows, ended by a zero.
pub const BEGIN_NODE: u32 = 1;
/// Token: a node ends.
pub const END_NODE: u32 = 2;
/// Token: a [`Property`], whose value follows.
pub const PROPERTY: u32 = 3;
/// Token: nothing.
pub const NOP: u32 = 4;
/// Token: the tree ends.
pub const END: u32 = 9;

/// What follows the token of a property.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Property {
    /// Bytes of the value.
    pub length: U32,
    /// Where the name is among the names.
    pub name_offset: U32,
}
const_assert_eq!(size_of::<Property>(), 8);

/// Cells of an address where a node does not say how many.
pub const ADDRESS_CELLS: u32 = 2;
/// Cells of a size where a node does not say how many.
pub const SIZE_CELLS: u32 = 1;

/// How many cells an interrupt at a GIC has: its kind, its number and how it is triggered; with four, for which CPUs.
pub const GIC_CELLS: core::ops::RangeInclusive<u32> = 3..=4;
/// First cell of an interrupt at a GIC: shared between CPUs.
pub const GIC_SHARED: u32 = 0;
/// First cell of an interrupt at a GIC: of the extended range.
pub const GIC_EXTENDED: u32 = 2;
/// INTID of the first shared interrupt.
pub const GIC_SHARED_BASE: u32 = 32;
/// INTID of the first interrupt of the extended range.
pub const GIC_EXTENDED_BASE: u32 = 4096;
