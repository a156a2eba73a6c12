//! Bits and only bits: what this crate touches of PCI configuration space.

/// Command (15:0) and status (31:16) of a function (PCI Local Bus 3.0, 6.2.2 and 6.2.3).
pub(crate) const COMMAND: u16 = 0x04;
/// Bus master enable.
pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;

// Access control services, the same bits in the capability and the control register (PCI Express Base,
// "ACS Extended Capability"; Linux `include/uapi/linux/pci_regs.h`, `PCI_ACS_*`).

/// The port checks the bus number of requester ids.
pub(crate) const ACS_SOURCE_VALIDATION: u16 = 1 << 0;
/// The port refuses requests that say they are translated.
pub(crate) const ACS_TRANSLATION_BLOCKING: u16 = 1 << 1;
/// Requests between peers go up instead.
pub(crate) const ACS_REQUEST_REDIRECT: u16 = 1 << 2;
/// Completions between peers go up instead.
pub(crate) const ACS_COMPLETION_REDIRECT: u16 = 1 << 3;
/// Requests that arrive from below at the port of their target go up too.
pub(crate) const ACS_UPSTREAM_FORWARDING: u16 = 1 << 4;
/// A table says which peers are reached directly.
pub(crate) const ACS_EGRESS_CONTROL: u16 = 1 << 5;
/// Translated requests between peers go directly.
pub(crate) const ACS_DIRECT_TRANSLATED: u16 = 1 << 6;

/// Device capabilities of the PCI Express capability, phantom functions supported (4:3): that many of the
/// highest bits of the function number (PCI Express Base, "Device Capabilities Register"; Linux
/// `PCI_EXP_DEVCAP_PHANTOM`).
pub(crate) const DEVICE_PHANTOM_SHIFT: u32 = 3;
/// Width of the same.
pub(crate) const DEVICE_PHANTOM_MASK: u32 = 0b11;
/// Bits of a function number.
pub(crate) const FUNCTION_NUMBER_BITS: u8 = 3;

/// SR-IOV control: the virtual functions are there (PCI Express Base, "SR-IOV Control"; Linux
/// `PCI_SRIOV_CTRL_VFE`).
pub(crate) const CONTROL_VF_ENABLE: u16 = 1 << 0;
