//! Requests and replies as bytes: fixed layouts, little-endian, without padding.
//!
//! A later version of a request may be longer. A front takes a longer one whose further bytes are zero for the one
//! that it knows, and refuses it otherwise; a shorter one is refused.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of these layouts.
pub const VERSION: u16 = 1;

/// No request is longer, in bytes.
pub const LONGEST: usize = 256;

/// The numbers of commands.
pub mod command {
    /// [`Create`](super::Create): gives the number of a new space.
    pub const CREATE: u16 = 1;
    /// [`One`](super::One): ends a space. Gives 1 when that is done, 0 when it has to be called again.
    pub const DESTROY: u16 = 2;
    /// [`Map`](super::Map): gives what devices may do.
    pub const MAP: u16 = 3;
    /// [`Span`](super::Span): unmaps whole mappings. Gives how many bytes.
    pub const UNMAP: u16 = 4;
    /// [`One`](super::One): unmaps everything. Gives how many bytes.
    pub const UNMAP_ALL: u16 = 5;
    /// [`At`](super::At): cuts a mapping in two.
    pub const SPLIT: u16 = 6;
    /// [`Copy`](super::Copy): maps what another place maps. Gives what devices may do.
    pub const COPY: u16 = 7;
    /// [`Span`](super::Span): nothing will be reserved there. Gives the number of the window.
    pub const ALLOW: u16 = 8;
    /// [`Span`](super::Span): nothing will be mapped there. Gives the number of the window.
    pub const RESERVE: u16 = 9;
    /// [`One`](super::One): takes a window back.
    pub const DROP_WINDOW: u16 = 10;
    /// [`At`](super::At): gives start, bytes, guest address and flags of the mapping there.
    pub const QUERY: u16 = 11;
    /// [`Dirty`](super::Dirty): sets a bit for each 4 KiB that a device wrote.
    pub const DIRTY: u16 = 12;
    /// [`One`](super::One): flushes for what stayed pending in a space. Gives how many bytes.
    pub const RETRY: u16 = 13;
}

/// Flags of mappings.
pub mod flag {
    /// Devices may read.
    pub const READ: u32 = 1 << 0;
    /// Devices may write.
    pub const WRITE: u32 = 1 << 1;
    /// What is mapped are registers of a device.
    pub const REGISTERS: u32 = 1 << 2;
    /// Of [`DIRTY`](super::command::DIRTY): what was written stays noted.
    pub const KEEP: u32 = 1 << 0;
}

macro_rules! layouts {
    ($($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $field_doc:literal])* $field:ident: $kind:ty,)* })*) => {
        $($(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name {
            $($(#[doc = $field_doc])* pub $field: $kind,)*
        })*
    };
}

layouts! {
    /// What every request begins with.
    Header {
        /// [`VERSION`].
        version: U16,
        /// One of [`command`].
        command: U16,
        /// The bytes of the request, with this header.
        bytes: U32,
    }
    /// A new space.
    Create {
        /// The header.
        header: Header,
        /// How many address bits it has at least.
        address_bits: U32,
        /// Zero.
        reserved: U32,
    }
    /// An object.
    One {
        /// The header.
        header: Header,
        /// Its number.
        id: U32,
        /// Zero.
        reserved: U32,
    }
    /// A range of a space.
    Span {
        /// The header.
        header: Header,
        /// The space.
        id: U32,
        /// Zero.
        reserved: U32,
        /// The first address.
        at: U64,
        /// How many bytes.
        bytes: U64,
    }
    /// A place of a space.
    At {
        /// The header.
        header: Header,
        /// The space.
        id: U32,
        /// Zero.
        reserved: U32,
        /// The address.
        at: U64,
    }
    /// Guest memory to be mapped.
    Map {
        /// The header.
        header: Header,
        /// The space.
        id: U32,
        /// Of [`flag`].
        flags: U32,
        /// The first address for devices.
        at: U64,
        /// The first address of the guest.
        gpa: U64,
        /// How many bytes.
        bytes: U64,
    }
    /// A mapping to be made at another place too.
    Copy {
        /// The header.
        header: Header,
        /// The space to map in.
        id: U32,
        /// Of [`flag`], without registers: a copy is of its source's kind.
        flags: U32,
        /// The space that it is mapped in already.
        source: U32,
        /// Zero.
        reserved: U32,
        /// The first address in the source.
        from: U64,
        /// The first address for the copy.
        at: U64,
        /// How many bytes.
        bytes: U64,
    }
    /// What devices wrote.
    Dirty {
        /// The header.
        header: Header,
        /// The space.
        id: U32,
        /// [`flag::KEEP`] or zero.
        flags: U32,
        /// The first address.
        at: U64,
        /// How many bytes: at most 1 GiB.
        bytes: U64,
        /// Where in the guest the bits are set, the lowest of the first byte for the first page: in one slot.
        bitmap: U64,
    }
    /// The answer.
    ReplyBytes {
        /// 0, or a [`Code`](super::Code).
        code: U32,
        /// Zero.
        reserved: U32,
        /// What the command gives.
        values: [U64; 4],
    }
}
