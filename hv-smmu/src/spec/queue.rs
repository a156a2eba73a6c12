//! Queues in memory: their base registers, and the indices that say how far each side is.
//!
//! Source: Linux `arm-smmu-v3.h` and `arm-smmu-v3.c` (`queue_*`), QEMU `smmuv3-internal.h`.

use bitfield_struct::bitfield;
use static_assertions::const_assert_eq;

/// Bytes of a command.
pub const COMMAND_BYTES: u64 = 16;
/// Bytes of an event.
pub const EVENT_BYTES: u64 = 32;
/// Bytes of a page request.
pub const PAGE_REQUEST_BYTES: u64 = 16;
/// Log2 of the most entries that IDR1 can tell, and of what PROD and CONS have room for.
pub const LOG2_MAX: u8 = 19;

/// CMDQ_BASE, EVENTQ_BASE, PRIQ_BASE: where a queue is. Aligned to its size, and to 32 bytes.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueBase {
    /// Log2 of the number of entries (bits 4:0).
    #[bits(5)]
    pub log2size: u8,
    /// The address without its low 5 bits (bits 51:5).
    #[bits(47)]
    pub address: u64,
    #[bits(10)]
    __: u16,
    /// The unit may allocate cache lines for it (bit 62): read-allocate for commands, write-allocate for others.
    pub allocate: bool,
    __: bool,
}

/// The low bits of an address that [`QueueBase`] leaves out.
pub const QUEUE_ADDRESS_SHIFT: u32 = 5;

/// How many entries a queue has: a power of two.
///
/// # Invariants
/// At most [`LOG2_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSize(u8);

impl QueueSize {
    /// 2^`log2` entries, or `None` above [`LOG2_MAX`].
    pub const fn new(log2: u8) -> Option<Self> {
        // INVARIANT: checked here.
        if log2 <= LOG2_MAX {
            Some(Self(log2))
        } else {
            None
        }
    }

    /// Log2 of the number of entries.
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// The number of entries.
    pub const fn entries(self) -> u32 {
        1 << self.0
    }

    /// The entry that a pointer names.
    pub const fn index(self, pointer: QueuePointer) -> u32 {
        pointer.0 & (self.entries() - 1)
    }

    /// Index and wrap bit: what two pointers are compared by.
    pub const fn position(self, pointer: QueuePointer) -> u32 {
        pointer.0 & (2 * self.entries() - 1)
    }

    /// The pointer `count` entries further, with its flag as it is.
    #[must_use]
    pub const fn advance(self, pointer: QueuePointer, count: u32) -> QueuePointer {
        let mask = 2 * self.entries() - 1;
        let position = self.position(pointer).wrapping_add(count) & mask;
        QueuePointer(position | pointer.0 & OVERFLOW)
    }

    /// The pointer where `to` is, with its flag as it is.
    #[must_use]
    pub const fn move_to(self, pointer: QueuePointer, to: QueuePointer) -> QueuePointer {
        QueuePointer(self.position(to) | pointer.0 & OVERFLOW)
    }

    /// How many entries were written and not yet read. More than there are entries, when a pointer lies.
    pub const fn used(self, prod: QueuePointer, cons: QueuePointer) -> u32 {
        let mask = 2 * self.entries() - 1;
        self.position(prod).wrapping_sub(self.position(cons)) & mask
    }

    /// Whether there is nothing to read: index and wrap bit are equal.
    pub const fn is_empty(self, prod: QueuePointer, cons: QueuePointer) -> bool {
        self.used(prod, cons) == 0
    }

    /// Whether there is no room: the indices are equal, the wrap bits are not.
    pub const fn is_full(self, prod: QueuePointer, cons: QueuePointer) -> bool {
        self.used(prod, cons) == self.entries()
    }
}

/// Bit 31 of PROD (OVFLG) and CONS (OVACKFLG) of the event and page request queues.
const OVERFLOW: u32 = 1 << 31;
/// Error code in CMDQ_CONS (30:24).
const ERROR_SHIFT: u32 = 24;
/// Its bits once shifted.
const ERROR_MASK: u32 = 0x7f;
// The widest position ends below the error code.
const_assert_eq!((2u32 << LOG2_MAX) >> ERROR_SHIFT, 0);

/// The value of a PROD or CONS register: index in the low bits, the wrap bit above them, flags and errors at the top.
/// What index and wrap bit are depends on the [`QueueSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueuePointer(u32);

impl QueuePointer {
    /// The register's value.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The value for the register.
    pub const fn into_bits(self) -> u32 {
        self.0
    }

    /// Why the unit stopped reading commands: CMDQ_CONS, while GERROR says that there is an error. The code stays
    /// after the error is gone.
    pub const fn command_error(self) -> CommandError {
        match (self.0 >> ERROR_SHIFT) & ERROR_MASK {
            0 => CommandError::None,
            1 => CommandError::Illegal,
            2 => CommandError::Abort,
            3 => CommandError::AtcTimeout,
            other => CommandError::Unknown(other as u8),
        }
    }

    /// OVFLG, OVACKFLG: entries were lost when the two differ.
    pub const fn overflow(self) -> bool {
        self.0 & OVERFLOW != 0
    }

    /// This CONS with the flag of `prod`: says that the loss was seen.
    #[must_use]
    pub const fn acknowledge(self, prod: Self) -> Self {
        Self(self.0 & !OVERFLOW | prod.0 & OVERFLOW)
    }
}

/// Why the unit stopped reading commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// It did not (0).
    None,
    /// The command is not one (1). It has to be replaced before the error is acknowledged.
    Illegal,
    /// The command could not be read (2).
    Abort,
    /// A device did not answer an invalidation; CONS is at the CMD_SYNC behind it (3).
    AtcTimeout,
    /// A code that is not known.
    Unknown(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(bits: u32) -> QueuePointer {
        QueuePointer::from_bits(bits)
    }

    #[test]
    fn base_bits_match_an_independent_table() {
        let base = QueueBase::new();
        assert_eq!(base.with_log2size(0x1f).into_bits(), 0x1f);
        assert_eq!(base.with_allocate(true).into_bits(), 1 << 62);
        let address = 0x000f_ffff_ffff_ffe0u64;
        let base = base.with_address(address >> QUEUE_ADDRESS_SHIFT);
        assert_eq!(base.into_bits(), address);
        // Seen in QEMU after reset: 2^19 entries at 0.
        assert_eq!(QueueBase::from_bits(0x13).log2size(), LOG2_MAX);
    }

    #[test]
    fn the_wrap_bit_tells_full_from_empty() {
        let size = QueueSize::new(8).unwrap();
        assert_eq!(size.entries(), 256);
        assert!(size.is_empty(pointer(5), pointer(5)));
        assert!(!size.is_full(pointer(5), pointer(5)));
        assert!(size.is_full(pointer(0x105), pointer(5)));
        assert!(size.is_full(pointer(5), pointer(0x105)));
        assert_eq!(size.used(pointer(0x102), pointer(0xfe)), 4);
        assert_eq!(size.index(pointer(0x1ff)), 0xff);
        assert_eq!(size.advance(pointer(0x1ff), 1), pointer(0));
        assert_eq!(size.advance(pointer(0xff), 1), pointer(0x100));
    }

    #[test]
    fn the_smallest_and_the_largest_queue_wrap() {
        let one = QueueSize::new(0).unwrap();
        assert!(one.is_full(one.advance(pointer(0), 1), pointer(0)));
        assert_eq!(one.advance(pointer(1), 1), pointer(0));
        let most = QueueSize::new(LOG2_MAX).unwrap();
        assert_eq!(most.advance(pointer(0xf_ffff), 1), pointer(0));
        assert_eq!(QueueSize::new(LOG2_MAX + 1), None);
    }

    #[test]
    fn flags_and_errors_are_no_part_of_the_position() {
        let size = QueueSize::new(8).unwrap();
        // Seen in QEMU: an illegal command at index 3.
        let cons = pointer(0x0100_0003);
        assert_eq!(cons.command_error(), CommandError::Illegal);
        assert!(size.is_empty(pointer(3), cons));
        assert_eq!(pointer(0x0200_0000).command_error(), CommandError::Abort);
        assert_eq!(
            pointer(0x0300_0000).command_error(),
            CommandError::AtcTimeout
        );
        assert_eq!(
            pointer(0xff00_0000).command_error(),
            CommandError::Unknown(0x7f)
        );
        let prod = pointer(0x8000_0007);
        assert!(prod.overflow() && size.used(prod, pointer(3)) == 4);
        assert_eq!(pointer(3).acknowledge(prod), pointer(0x8000_0003));
        assert_eq!(pointer(0x8000_0003).acknowledge(pointer(7)), pointer(3));
        assert_eq!(size.advance(prod, 1), pointer(0x8000_0008));
    }
}
