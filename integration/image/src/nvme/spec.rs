//! Registers, commands and completions (NVM Express Base Specification 2.0, sections 3.1 and 4; NVM
//! Command Set 1.0).

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Controller capabilities, 64 bits.
pub(super) const CAP: u32 = 0x00;
/// Version: major (31:16), minor (15:8), tertiary (7:0).
pub(super) const VS: u32 = 0x08;
/// Controller configuration.
pub(super) const CC: u32 = 0x14;
/// Controller status.
pub(super) const CSTS: u32 = 0x1c;
/// Sizes of the admin queues, each minus one: completion (27:16), submission (11:0).
pub(super) const AQA: u32 = 0x24;
/// Address of the admin submission queue, 64 bits.
pub(super) const ASQ: u32 = 0x28;
/// Address of the admin completion queue, 64 bits.
pub(super) const ACQ: u32 = 0x30;
/// First doorbell.
pub(super) const DOORBELLS: u32 = 0x1000;

/// The capabilities register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capabilities(pub(super) u64);

impl Capabilities {
    /// Most entries of a queue (15:0 holds one less).
    pub(super) fn max_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// Longest time to become ready or stop, in units of 500 ms (31:24).
    pub(super) fn timeout_units(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Bytes between doorbells: four, shifted by bits 35:32.
    pub(super) fn doorbell_stride(self) -> u32 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether it has the NVM command set (bit 37).
    pub(super) fn nvm_command_set(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    /// Log2 of its smallest memory page in bytes (51:48 counts from 4 KiB).
    pub(super) fn min_page_shift(self) -> u32 {
        12 + (self.0 >> 48 & 0xf) as u32
    }
}

/// Configuration bit 0: run.
pub(super) const CC_ENABLE: u32 = 1 << 0;
/// Configuration of a running controller: NVM command set, 4 KiB pages, round robin, 64-byte
/// submission (19:16) and 16-byte completion (23:20) entries.
pub(super) const CC_RUN: u32 = CC_ENABLE | 6 << 16 | 4 << 20;

/// Status bit 0: it runs.
pub(super) const CSTS_READY: u32 = 1 << 0;
/// Status bit 1: it met an error that it cannot report.
pub(super) const CSTS_FATAL: u32 = 1 << 1;
/// What a register of a device that is gone reads as.
pub(super) const GONE: u32 = u32::MAX;

/// A submission queue entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Command {
    /// What to do: one of the `ADMIN_*` or `IO_*` values.
    pub(super) opcode: u8,
    /// 0: plain command, data by PRPs.
    pub(super) flags: u8,
    /// Comes back in the completion.
    pub(super) id: U16,
    /// The namespace, 0 where the command is about none.
    pub(super) namespace: U32,
    pub(super) _reserved: U64,
    /// Metadata pointer.
    pub(super) metadata: U64,
    /// First data page, possibly with an offset.
    pub(super) prp1: U64,
    /// Second data page, or a list of pages from the second on.
    pub(super) prp2: U64,
    /// Command dwords 10 to 15.
    pub(super) dwords: [U32; 6],
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Completion {
    /// Command-specific result.
    pub(super) result: U32,
    pub(super) _reserved: U32,
    /// How far the submission queue was read.
    pub(super) submission_head: U16,
    /// Which submission queue.
    pub(super) submission_queue: U16,
    /// Which command.
    pub(super) id: U16,
    /// Phase (bit 0) and status (15:1).
    pub(super) status: U16,
}

/// Offset of the 32-bit word that holds id and status of a completion.
pub(super) const COMPLETION_LAST_WORD: usize = 12;
/// Phase bit in that word.
pub(super) const COMPLETION_PHASE: u32 = 1 << 16;

pub(super) const COMMAND_BYTES: usize = size_of::<Command>();
pub(super) const COMPLETION_BYTES: usize = size_of::<Completion>();
static_assertions::const_assert_eq!(COMMAND_BYTES, 64);
static_assertions::const_assert_eq!(COMPLETION_BYTES, 16);

pub(super) const ADMIN_CREATE_SUBMISSION_QUEUE: u8 = 0x01;
pub(super) const ADMIN_CREATE_COMPLETION_QUEUE: u8 = 0x05;
pub(super) const ADMIN_IDENTIFY: u8 = 0x06;
pub(super) const ADMIN_SET_FEATURES: u8 = 0x09;
pub(super) const IO_WRITE: u8 = 0x01;
pub(super) const IO_READ: u8 = 0x02;

/// Identify: a namespace.
pub(super) const IDENTIFY_NAMESPACE: u32 = 0x00;
/// Identify: the controller.
pub(super) const IDENTIFY_CONTROLLER: u32 = 0x01;
/// Bytes of either answer.
pub(super) const IDENTIFY_BYTES: usize = 4096;
/// Feature: number of I/O queues, submission (15:0) and completion (31:16), each minus one.
pub(super) const FEATURE_QUEUES: u32 = 0x07;
/// Create queue: the entries are one physically contiguous run.
pub(super) const QUEUE_CONTIGUOUS: u32 = 1 << 0;

/// How a command ended: status code type and status code. Zero is success.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status {
    kind: u8,
    code: u8,
}

impl Status {
    /// Everything went well, as far as the controller knows.
    pub const SUCCESS: Self = Self { kind: 0, code: 0 };

    /// From the completion's last word: code (24:17) and type (27:25).
    pub(super) fn from_word(word: u32) -> Self {
        Self {
            code: (word >> 17) as u8,
            kind: (word >> 25) as u8 & 7,
        }
    }

    /// Whether the command succeeded.
    pub fn is_success(self) -> bool {
        self == Self::SUCCESS
    }

    /// Status code type, 0 to 7.
    pub fn kind(self) -> u8 {
        self.kind
    }

    /// Status code.
    pub fn code(self) -> u8 {
        self.code
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.kind, self.code) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "data transfer error",
            (0, 0x06) => "internal error",
            (0, 0x0b) => "invalid namespace",
            (0, 0x13) => "invalid PRP offset",
            (0, 0x80) => "LBA out of range",
            (0, _) => "generic error",
            (1, _) => "command-specific error",
            (2, _) => "media or data error",
            (3, _) => "path error",
            _ => "vendor-specific error",
        };
        write!(f, "{name} ({}/{:#04x})", self.kind, self.code)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_split_into_fields() {
        // 2048 entries, 7.5 s, stride 8, NVM command set, 4 KiB pages.
        let capabilities = Capabilities(0x0000_0021_0f00_07ff);
        assert_eq!(capabilities.max_entries(), 0x800);
        assert_eq!(capabilities.timeout_units(), 15);
        assert_eq!(capabilities.doorbell_stride(), 8);
        assert!(capabilities.nvm_command_set());
        assert_eq!(capabilities.min_page_shift(), 12);
    }

    #[test]
    fn status_is_split_into_type_and_code() {
        let word = 0x0123 | COMPLETION_PHASE | 0x13 << 17 | 2 << 25 | 1 << 31;
        let status = Status::from_word(word);
        assert_eq!((status.kind(), status.code()), (2, 0x13));
        assert!(Status::from_word(COMPLETION_PHASE | 7).is_success());
    }
}
