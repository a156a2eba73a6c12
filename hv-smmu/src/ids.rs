//! Numbers by which SMMUs and their tables know things, each of a type of its own.

use core::fmt;

use hv_core::Pasid;

/// What an SMMU knows a requester by: the index into its stream table.
///
/// As many bits as IDR1.SIDSIZE says, 32 at most. Each SMMU has its own; one means nothing without its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// The stream with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:#x}", self.0)
    }
}

/// What an ITS knows a writer of interrupt messages by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u32);

impl DeviceId {
    /// The writer with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device id {:#x}", self.0)
    }
}

/// What tells the requests of one stream apart: the index of a context descriptor. It is the PASID of a PCI
/// function, but 0 exists too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubstreamId(u32);

impl SubstreamId {
    /// The context descriptor for requests that carry no substream, where the stream says so.
    pub const ZERO: Self = Self(0);

    /// The substream with this number, or `None` from 2^20 on.
    pub const fn new(number: u32) -> Option<Self> {
        if number < 1 << Pasid::BITS {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl From<Pasid> for SubstreamId {
    fn from(pasid: Pasid) -> Self {
        // INVARIANT: a PASID has as many bits.
        Self(pasid.get())
    }
}

impl fmt::Display for SubstreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "substream {:#x}", self.0)
    }
}

/// The number under which an SMMU caches translations of a second stage. 8 bits, or 16 where IDR0.VMID16 says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmid(u16);

impl Vmid {
    /// The id with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vmid {:#x}", self.0)
    }
}

/// The number under which an SMMU caches translations of a first stage. 8 bits, or 16 where IDR0.ASID16 says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asid(u16);

impl Asid {
    /// The id with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Asid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asid {:#x}", self.0)
    }
}

/// Names a transaction that stands still until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StallTag(u16);

impl StallTag {
    /// The tag with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for StallTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stall tag {:#x}", self.0)
    }
}
