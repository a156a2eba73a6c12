//! The fake's table format. Nothing in it is like the format of a real unit.

#![expect(unsafe_code, reason = "promises what the format trait demands")]

use hv_core::{Perms, PhysAddr};
use hv_iommu::{Entry, Format, Level, RootTables, Snoop};

/// The device may read through this leaf.
pub(super) const READ: u64 = 1 << 0;
/// The device may write through this leaf.
pub(super) const WRITE: u64 = 1 << 1;
/// The word links a table.
pub(super) const LINK: u64 = 1 << 2;
/// The link reached memory.
const SAVED: u64 = 1 << 3;
/// The word was a leaf and waits.
const WAITS: u64 = 1 << 4;
/// A reclaimer's mark.
const MARKED: u64 = 1 << 5;
/// Hardware walked through it: the fake never notes that.
const USED: u64 = 1 << 6;
/// Hardware wrote through it: noted where a binding asks for it.
pub(super) const WRITTEN: u64 = 1 << 7;
/// What devices send through this leaf snoops, whatever they ask for.
pub(super) const SNOOPED: u64 = 1 << 8;
/// The leaf says that no memory is behind it.
pub(super) const RINGS: u64 = 1 << 9;
/// Where the page or table is.
pub(super) const ADDRESS: u64 = ((1 << 40) - 1) << 12;

/// Second-stage tables of the fake: 512 words per table, one bit per meaning.
#[derive(Clone, Copy, Debug, Default)]
pub struct FakeFormat {
    /// What every leaf has beside.
    beside: u64,
}

impl FakeFormat {
    /// The format whose leaves do that about snooping.
    pub const fn with(snoop: Snoop) -> Self {
        Self {
            beside: match snoop {
                Snoop::AsAsked => 0,
                Snoop::Forced => SNOOPED,
            },
        }
    }
}

// SAFETY: the kinds of words differ in their flag bits: none, READ or WRITE alone, LINK with SAVED and
// MARKED, WAITS alone, MARKED alone, none but an address. Each encoder keeps the address bits and sets
// one kind, which `decode` reads back; the unit takes exactly READ, WRITE and LINK for present.
unsafe impl Format for FakeFormat {
    const INDEX_BITS: u32 = 9;
    const MOST_ROOT_TABLES: RootTables = RootTables::MAX;
    const ADDRESS: u64 = ADDRESS;
    const LINK_MASK: u64 = LINK | MARKED | READ | WRITE;
    const LINK: u64 = LINK;
    const PRESENT: u64 = READ | WRITE | LINK;
    const FROZEN: u64 = MARKED;
    const WRITTEN_BACK: u64 = SAVED;
    const ACCESSED: u64 = USED;
    const DIRTY: u64 = WRITTEN;

    fn decode(&self, word: u64, _level: Level) -> Entry {
        let to = PhysAddr::new(word & ADDRESS);
        let perms = Perms::from_rights(word & READ != 0, word & WRITE != 0);
        let flags = word & !ADDRESS & !(READ | WRITE);
        match (perms, flags & !(USED | WRITTEN)) {
            _ if word == 0 => Entry::Empty,
            (Some(perms), 0 | SNOOPED | RINGS) => Entry::Leaf { to, perms },
            (None, WAITS) => Entry::Pending { to },
            (None, MARKED) => Entry::Tombstone { page: to },
            (None, bits) if bits & !(SAVED | MARKED) == LINK => Entry::Table {
                page: to,
                written_back: bits & SAVED != 0,
                frozen: bits & MARKED != 0,
            },
            (None, bits) if bits & !SAVED == 0 => Entry::PendingTable { page: to },
            _ => Entry::Unknown(word),
        }
    }

    fn leaf(&self, _level: Level, to: PhysAddr, perms: Perms) -> u64 {
        let bits = match perms {
            Perms::Read => READ,
            Perms::Write => WRITE,
            Perms::ReadWrite => READ | WRITE,
        };
        to.as_u64() & ADDRESS | bits | self.beside
    }

    fn doorbell(&self, to: PhysAddr, perms: Perms) -> u64 {
        Self { beside: RINGS }.leaf(Level::LEAF, to, perms)
    }

    fn table(&self, page: PhysAddr) -> u64 {
        page.as_u64() & ADDRESS | LINK
    }

    fn pending(&self, word: u64) -> u64 {
        word & (ADDRESS | WRITTEN) | WAITS
    }

    fn tombstone(&self, page: PhysAddr) -> u64 {
        page.as_u64() & ADDRESS | MARKED
    }
}
