//! Machines on which a documented ability is not used.
//!
//! Source: the PCI ID repository (vendor 8086) for what the host bridges are; Xen, whose VT-d driver
//! avoids large pages on processors of this generation.

/// Host bridges of processors whose walkers are not trusted to follow a change of page size: vendor in
/// bits 15:0, device in 31:16, as configuration space has them.
pub const NO_LIVE_RESIZE: [u32; 4] = [
    // Sandy Bridge: desktop, mobile, server, and the larger server parts.
    0x0100_8086,
    0x0104_8086,
    0x0108_8086,
    0x3c00_8086,
];
