//! Bits and only bits: what this crate touches of PCI configuration space.

/// Command (15:0) and status (31:16) of a function (PCI Local Bus 3.0, 6.2.2 and 6.2.3).
pub(crate) const COMMAND: u16 = 0x04;
/// Bus master enable.
pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// Status, the upper half: there is a list of capabilities (PCI Local Bus 3.0, 6.2.3).
pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Header type is bits 23:16 (PCI Local Bus 3.0, 6.2.1).
pub(crate) const HEADER_TYPE: u16 = 0x0c;
/// The device has more functions than one.
pub(crate) const HEADER_MULTI_FUNCTION: u32 = 1 << 23;
/// Of a bridge: primary (7:0), secondary (15:8), subordinate (23:16) bus (PCI-to-PCI Bridge 1.2, 3.2.5.2 to 4).
pub(crate) const BUS_NUMBERS: u16 = 0x18;
/// Where the list of capabilities begins (7:0); the header ends at 0x40 (PCI Local Bus 3.0, 6.7).
pub(crate) const CAPABILITIES: u16 = 0x34;
/// Where the header ends.
pub(crate) const HEADER_END: u16 = 0x40;
/// The capability of PCI Express (Linux `PCI_CAP_ID_EXP`).
pub(crate) const CAPABILITY_EXPRESS: u8 = 0x10;
/// Device control 2 in it (Linux `PCI_EXP_DEVCTL2`).
pub(crate) const EXPRESS_CONTROL_2: u16 = 0x28;
/// The port forwards to functions above number 7 (Linux `PCI_EXP_DEVCTL2_ARI`).
pub(crate) const CONTROL_ARI_FORWARDING: u32 = 1 << 5;

/// Where extended capabilities begin: id (15:0), version (19:16), place of the next (31:20) (PCI Express Base,
/// "Extended Capabilities").
pub(crate) const EXTENDED_FIRST: u16 = 0x100;
/// Where a function's configuration space ends.
pub(crate) const EXTENDED_END: u16 = 0x1000;
/// Access control services (Linux `PCI_EXT_CAP_ID_ACS`).
pub(crate) const EXTENDED_ACS: u16 = 0x0d;
/// Capability (15:0) and control (31:16) of it (Linux `PCI_ACS_CAP`, `PCI_ACS_CTRL`).
pub(crate) const ACS_REGISTERS: u16 = 0x04;
/// Translation requests, or ATS (PCI Express Base, "ATS Extended Capability"; Linux `PCI_EXT_CAP_ID_ATS`).
pub(crate) const EXTENDED_ATS: u16 = 0x0f;
/// Capability (15:0) and control (31:16) of it (Linux `PCI_ATS_CAP`, `PCI_ATS_CTRL`).
pub(crate) const ATS_REGISTERS: u16 = 0x04;
/// ATS control: the function may ask for translations and use them (Linux `PCI_ATS_CTRL_ENABLE`). A change from clear to set
/// makes it forget all that it kept (PCI Express Base 6.2, 10.3.7, "Implicit Invalidation Events").
pub(crate) const ATS_CONTROL_ENABLE: u16 = 1 << 15;
/// ATS control: log2 of the least pages, of 4 KiB, that one translation covers (Linux `PCI_ATS_CTRL_STU`).
pub(crate) const ATS_CONTROL_UNIT: u16 = 0x1f;
/// Designated vendor-specific (DVSEC): one whose vendor says what it is (PCI Express Base, "Designated Vendor-Specific
/// Extended Capability"; Linux `PCI_EXT_CAP_ID_DVSEC`).
pub(crate) const EXTENDED_DVSEC: u16 = 0x23;
/// Its vendor (15:0 of Header 1; Linux `PCI_DVSEC_HEADER1`).
pub(crate) const DVSEC_VENDOR: u16 = 0x04;
/// Which of that vendor's it is (15:0 of Header 2; Linux `PCI_DVSEC_HEADER2`). Of CXL devices the upper half is the CXL
/// capability (CXL 3.1, 8.1.3.1; Linux `PCI_DVSEC_CXL_CAP`, 0xa).
pub(crate) const DVSEC_ID: u16 = 0x08;
/// The vendor id of the CXL consortium (CXL 3.1, 8.1.1; Linux `PCI_VENDOR_ID_CXL`).
pub(crate) const CXL_VENDOR: u16 = 0x1e98;
/// "PCIe DVSEC for CXL Devices" (CXL 3.1, 8.1.3; Linux `PCI_DVSEC_CXL_DEVICE`).
pub(crate) const CXL_DEVICE: u16 = 0;
/// CXL control (15:0) and status (31:16) in it (CXL 3.1, 8.1.3.2; Linux `PCI_DVSEC_CXL_CTRL`).
pub(crate) const CXL_CONTROL: u16 = 0x0c;
/// CXL capability: the device may keep memory in a cache of its own (CXL 3.1, 8.1.3.1, Cache_Capable; Linux
/// `PCI_DVSEC_CXL_CACHE_CAPABLE`).
pub(crate) const CXL_CACHE_CAPABLE: u16 = 1 << 0;
/// CXL control: it does (CXL 3.1, 8.1.3.2, Cache_Enable; QEMU `hw/cxl`, `CXL_DVSEC_CACHE_ENABLE`). Firmware may have locked
/// it (8.1.3.6).
pub(crate) const CXL_CACHE_ENABLE: u16 = 1 << 0;
/// Single-root virtualisation (Linux `PCI_EXT_CAP_ID_SRIOV`).
pub(crate) const EXTENDED_SRIOV: u16 = 0x10;
/// Its control (15:0) (Linux `PCI_SRIOV_CTRL`).
pub(crate) const SRIOV_CONTROL: u16 = 0x08;
/// How many virtual functions there are (15:0) (Linux `PCI_SRIOV_NUM_VF`).
pub(crate) const SRIOV_COUNT: u16 = 0x10;
/// Offset of the first (15:0) and stride (31:16) (Linux `PCI_SRIOV_VF_OFFSET`, `PCI_SRIOV_VF_STRIDE`).
pub(crate) const SRIOV_PLACES: u16 = 0x14;

/// Process address space ids (Linux `PCI_EXT_CAP_ID_PASID`).
pub(crate) const EXTENDED_PASID: u16 = 0x1b;
/// Capability (15:0) and control (31:16) of it (Linux `PCI_PASID_CAP`, `PCI_PASID_CTRL`).
pub(crate) const PASID_REGISTERS: u16 = 0x04;
/// PASID capability: bits of the widest PASID (12:8) (PCI Express Base, "PASID Capability Register"; Linux
/// `PCI_PASID_CAP_WIDTH`).
pub(crate) const PASID_WIDTH_SHIFT: u16 = 8;
/// Width of the same.
pub(crate) const PASID_WIDTH_MASK: u16 = 0x1f;
/// PASID control: the function may send with PASIDs (bit 0; Linux `PCI_PASID_CTRL_ENABLE`). Its other bits let it send as
/// a privileged one, and fetch instructions.
pub(crate) const PASID_ENABLE: u16 = 1 << 0;

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

/// Configuration space: class code in bits 31:8 (PCI Local Bus 3.0, 6.2.1).
pub(crate) const CLASS: u16 = 0x08;
/// Base class and subclass of a host bridge, as the top half of the class dword (Linux `pci_ids.h`).
pub(crate) const CLASS_HOST_BRIDGE: u32 = 0x0600;
/// Base class and subclass of an ISA bridge.
pub(crate) const CLASS_ISA_BRIDGE: u32 = 0x0601;
