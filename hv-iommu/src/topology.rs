//! The PCI functions of a machine, as the embedder enumerated them.

use core::fmt;

use hv_core::PciAddress;

/// The buses behind a bridge, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// The bus right behind the bridge.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
}

impl BusRange {
    /// Whether `bus` is behind the bridge.
    pub const fn contains(&self, bus: u8) -> bool {
        self.secondary <= bus && bus <= self.subordinate
    }
}

/// What a PCI function is, as far as isolation cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// An endpoint: does DMA of its own.
    Endpoint,
    /// A PCI Express port or switch port: keeps the requester ids of what is behind it.
    ExpressPort(BusRange),
    /// A bridge to a conventional PCI bus: what is behind it cannot be told apart.
    ConventionalBridge(BusRange),
}

impl FunctionKind {
    /// The buses behind it, if it is a bridge of any kind.
    pub const fn buses(&self) -> Option<BusRange> {
        match *self {
            Self::Endpoint => None,
            Self::ExpressPort(buses) | Self::ConventionalBridge(buses) => Some(buses),
        }
    }
}

/// One PCI function of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub kind: FunctionKind,
}

impl fmt::Display for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FunctionKind::Endpoint => write!(f, "{}", self.address),
            FunctionKind::ExpressPort(buses) => {
                write!(
                    f,
                    "{} (port to buses {:02x}-{:02x})",
                    self.address, buses.secondary, buses.subordinate
                )
            }
            FunctionKind::ConventionalBridge(buses) => {
                write!(
                    f,
                    "{} (bridge to buses {:02x}-{:02x})",
                    self.address, buses.secondary, buses.subordinate
                )
            }
        }
    }
}
