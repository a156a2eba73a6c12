//! What can go wrong with an NVMe controller.

use core::fmt;
use core::time::Duration;

use hv_core::OutOfBounds;
use thiserror::Error;

use super::spec::Status;

/// What the driver waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The controller to stop.
    Stop,
    /// The controller to become ready.
    Ready,
    /// The completion of an admin command with this opcode.
    Admin(u8),
    /// The completion of an I/O command with this opcode.
    Io(u8),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop => f.write_str("the controller to stop"),
            Self::Ready => f.write_str("the controller to become ready"),
            Self::Admin(opcode) => write!(f, "admin command {opcode:#04x}"),
            Self::Io(opcode) => write!(f, "I/O command {opcode:#04x}"),
        }
    }
}

/// An operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NvmeError {
    /// The deadline passed. A command may still be executed later: the controller takes no more
    /// until it was stopped.
    #[error("NVMe: waited {limit:?} for {what} in vain (CSTS {csts:#x})")]
    Timeout {
        /// What was waited for.
        what: Wait,
        /// How long.
        limit: Duration,
        /// The status register at the end.
        csts: u32,
    },
    /// The controller reports an error that it cannot attribute to a command, such as a failed
    /// access to a queue.
    #[error("NVMe: controller failed while waiting for {what} (CSTS {csts:#x})")]
    Fatal {
        /// What was waited for.
        what: Wait,
        /// The status register.
        csts: u32,
    },
    /// Registers read as all ones: the device is gone.
    #[error("NVMe: the controller does not answer")]
    Gone,
    /// An earlier command ran into its deadline; the controller must be stopped first.
    #[error("NVMe: an earlier command is still out; stop the controller first")]
    Stuck,
    /// A command ended with an error.
    #[error("NVMe: {command} ended with {status}")]
    Command {
        /// The command.
        command: Wait,
        /// How it ended.
        status: Status,
    },
    /// A completion for a command that was not given.
    #[error("NVMe: completion for command id {found}, expected {expected}")]
    WrongCompletion {
        /// The id that was given.
        expected: u16,
        /// The id that came back.
        found: u16,
    },
    /// The controller cannot do what the driver needs.
    #[error("NVMe: {what} is {found}, the driver needs {expected}")]
    Unsupported {
        /// What is missing.
        what: &'static str,
        /// What was found.
        found: u64,
        /// What is needed.
        expected: u64,
    },
    /// The range of blocks is empty, too long for one command, or passes the end of the namespace.
    #[error(
        "NVMe: {blocks} blocks from block {lba}: one command moves 1 to {max_blocks}, the namespace has {capacity}"
    )]
    BlockRange {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// Most blocks of one command.
        max_blocks: u32,
        /// Blocks of the namespace.
        capacity: u64,
    },
    /// The number of page addresses does not fit the transfer.
    #[error("NVMe: {found} page addresses for a transfer that takes {expected}")]
    PageCount {
        /// Addresses given.
        found: usize,
        /// Addresses needed.
        expected: usize,
    },
    /// A buffer is smaller than the transfer, or offered at a place that is not page aligned.
    #[error("NVMe: {0}")]
    Buffer(#[from] OutOfBounds),
    /// The offset of a transfer in its buffer is not a multiple of 4 KiB.
    #[error("NVMe: buffer offset {offset:#x} is not a multiple of 4 KiB")]
    Unaligned {
        /// The offset.
        offset: usize,
    },
}

impl NvmeError {
    /// Whether this is a deadline that passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}
