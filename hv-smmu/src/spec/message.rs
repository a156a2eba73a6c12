//! Where devices write interrupt messages.
//!
//! Source: the GIC architecture (IHI 0069), the memory map of an ITS: a frame of control registers of 64 KiB, then a frame
//! for translations, in which GITS_TRANSLATER is the one register. Linux has the same number (`GITS_TRANSLATER`).

/// GITS_TRANSLATER, counted from the start of the ITS. A write to it is a message; who sent it comes beside the write.
pub const TRANSLATER: u64 = 0x1_0040;
