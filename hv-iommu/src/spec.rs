//! Bits and only bits: what this crate touches of PCI configuration space.

/// Command (15:0) and status (31:16) of a function (PCI Local Bus 3.0, 6.2.2 and 6.2.3).
pub(crate) const COMMAND: u16 = 0x04;
/// Bus master enable.
pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;
