//! What a device may do with a mapped page, and what it tried to do.

use core::fmt;

/// What a mapping lets a device do: bit 0 for reads, bit 1 for writes. There is no empty permission: not
/// mapped is not a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Perms {
    /// The device may read.
    Read = 1,
    /// The device may write.
    Write = 2,
    /// The device may read and write.
    ReadWrite = 3,
}

impl Perms {
    /// Whether reads are allowed.
    pub const fn readable(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether writes are allowed.
    pub const fn writable(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// The permission with these two rights, or `None` for neither.
    pub const fn from_rights(readable: bool, writable: bool) -> Option<Self> {
        match (readable, writable) {
            (true, true) => Some(Self::ReadWrite),
            (true, false) => Some(Self::Read),
            (false, true) => Some(Self::Write),
            (false, false) => None,
        }
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "r-",
            Self::Write => "-w",
            Self::ReadWrite => "rw",
        })
    }
}

/// The direction of a device's access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The device read from memory.
    Read,
    /// The device wrote to memory.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}
