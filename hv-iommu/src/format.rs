//! What the table engine asks of a page-table format: entries as meanings, bits as the format's.

#![expect(
    unsafe_code,
    reason = "declares the trait whose contract memory safety rests on"
)]

use core::fmt;

use hv_core::{PageSize, Perms, PhysAddr};

/// A level of a page table, counted from the leaves: tables of level 1 hold the smallest pages, mostly of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The level of the smallest pages.
    pub const LEAF: Self = Self(1);
    /// The highest level of any supported format.
    pub const MAX: Self = Self(5);

    /// The bits that a level's number needs.
    pub(crate) const MASK: u8 = 7;

    /// The level with this number, 1 to 5.
    pub const fn new(number: u8) -> Option<Self> {
        if number >= 1 && number <= Self::MAX.0 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The level below, or `None` below the leaves.
    pub const fn below(self) -> Option<Self> {
        Self::new(self.0 - 1)
    }

    /// The level at which a format with 4 KiB pages and 512 entries per table maps pages of this size; of one that such a
    /// format does not have, of the next smaller one.
    pub const fn of(size: PageSize) -> Self {
        let shift = size.shift();
        let second = shift >= PageSize::Size2M.shift();
        let third = shift >= PageSize::Size1G.shift();
        Self(1 + second as u8 + third as u8)
    }

    /// The highest level whose pages are no larger than `size`, in any format; that of the smallest pages if those
    /// are larger already.
    pub const fn up_to<F: Format>(size: PageSize) -> Self {
        if F::PAGE_SHIFT == PageSize::Size4K.shift() {
            return Self::of(size);
        }
        Self(match size.shift().checked_sub(F::PAGE_SHIFT) {
            Some(more) if more / F::INDEX_BITS < Self::MAX.0 as u32 => {
                1 + (more / F::INDEX_BITS) as u8
            }
            Some(_) => Self::MAX.0,
            None => 1,
        })
    }

    /// The level at which a format maps pages of just this size, if it has such pages.
    #[inline]
    pub const fn mapping<F: Format>(size: PageSize) -> Option<Self> {
        if F::PAGE_SHIFT != PageSize::Size4K.shift() {
            let level = Self::up_to::<F>(size);
            let shift = F::PAGE_SHIFT + F::INDEX_BITS * (level.0 as u32 - 1);
            return match size.shift() == shift {
                true => Some(level),
                false => None,
            };
        }
        // By name: the format of a model has fewer entries per table, and smaller ones.
        match size {
            PageSize::Size4K => Some(Self(1)),
            PageSize::Size2M => Some(Self(2)),
            PageSize::Size1G => Some(Self(3)),
            _ => None,
        }
    }

    /// The size of pages of this level in a format, if it has one.
    pub const fn size<F: Format>(self) -> Option<PageSize> {
        if F::PAGE_SHIFT != PageSize::Size4K.shift() {
            let below = F::INDEX_BITS * (self.0 as u32 - 1);
            return PageSize::from_shift(F::PAGE_SHIFT + below);
        }
        match self.0 {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }

    /// The sizes of a format's pages, smallest first; the largest again where it has fewer than three.
    pub(crate) const fn sizes<F: Format>() -> [PageSize; 3] {
        let first = Self(1).size::<F>();
        let first = match first {
            Some(size) => size,
            None => PageSize::Size4K,
        };
        let second = match Self(2).size::<F>() {
            Some(size) => size,
            None => first,
        };
        let third = match Self(3).size::<F>() {
            Some(size) => size,
            None => second,
        };
        [first, second, third]
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {}", self.0)
    }
}

/// What a table word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: the word is zero.
    Empty,
    /// Maps a page of the level's size.
    Leaf {
        /// Where the page is.
        to: PhysAddr,
        /// What the device may do.
        perms: Perms,
    },
    /// Links a table of the level below.
    Table {
        /// The table's frame.
        page: PhysAddr,
        /// Whether this very word is known to have reached the memory that a walker reads, which
        /// matters only for walkers that do not snoop.
        written_back: bool,
        /// Whether a reclaimer has marked it. Hardware does not look at the mark.
        frozen: bool,
    },
    /// Linked a table that was empty and was taken out; hardware may still have the link cached. Not
    /// present. Whoever needs a table here links the same one again.
    Tombstone {
        /// The table's frame.
        page: PhysAddr,
    },
    /// Was a leaf, was unmapped, and waits for a flush receipt; not present for the hardware.
    Pending {
        /// The page that is not yet reusable.
        to: PhysAddr,
    },
    /// Linked a table that was detached with all that it maps, and waits for a flush receipt; not
    /// present for the hardware.
    PendingTable {
        /// The table's frame.
        page: PhysAddr,
    },
    /// None of the above: no software of ours wrote this word.
    Unknown(u64),
}

/// A page-table format: pure functions between the meaning of an entry and its bits.
///
/// The constants are what the engine tests on its way down, many times in each operation; `decode` is
/// for everything else.
///
/// # Safety
/// The table engine follows the addresses that `decode` gives, and devices follow the words that the
/// encoders give:
/// * `decode(encode(x)) == x` for each encoder below, and `decode(0)` is [`Entry::Empty`]. A leaf for [`Perms::Write`]
///   may be one for [`Perms::ReadWrite`] where units have no
///   [write-only mappings](crate::UnitCaps::write_only), of which nobody makes one then.
/// * A word is present for hardware exactly if it has a bit of [`PRESENT`](Self::PRESENT), and exactly if
///   it decodes to a leaf or a table.
/// * `word & LINK_MASK == LINK` at a level above [`Level::LEAF`] exactly if the word decodes to a table
///   that is not frozen.
/// * Setting or clearing `FROZEN`, `WRITTEN_BACK` or `ACCESSED` in a present word changes that property and nothing
///   else. `FROZEN`, `WRITTEN_BACK` are ignored by hardware.
/// * In a leaf of a value that notes writes (for tables with [`dirty`](crate::table::Geometry::dirty)), clearing all bits
///   of `DIRTY`, or setting `NOTED`, changes what is known of writes and nothing else; what it lets devices do, and
///   `decode` says of it, stays. Adding [`noted`](Self::noted) of any leaf does no more than that either.
/// * A table's word without its bits of `PRESENT`, `FROZEN` and `ACCESSED`, and a tombstone's without
///   `FROZEN`, decodes to [`Entry::PendingTable`] of the same page.
/// * `leaf(level, to + n * span) == leaf(level, to) + n * span` for the level's span, as long as `to + n * span` and `to`
///   are the same from bit [`CARRY_BITS`](Self::CARRY_BITS) on; `pending` likewise.
/// * [`address`](Self::address) of a leaf, a link or a pending word is the address that `decode` gives, and looks at the bits of
///   `ADDRESS` alone. All addresses below 2^[`OUTPUT_BITS`](Self::OUTPUT_BITS) can be told.
/// * A `doorbell` decodes as the `leaf` of the same page and permissions does, and `pending` makes one word of both.
/// * No two other encoders give the same word.
pub unsafe trait Format: Copy + Send + Sync + 'static {
    /// Log2 of the smallest page's bytes, at least 12.
    const PAGE_SHIFT: u32 = PageSize::Size4K.shift();
    /// Address bits that one level consumes: 9 for tables of 512 entries. A table of more words than a frame holds
    /// is a run of frames that starts at a multiple of its size.
    const INDEX_BITS: u32;
    /// How many tables may stand side by side as one root.
    const MOST_ROOT_TABLES: RootTables = RootTables::ONE;
    /// The bits of a leaf, a link and a pending word that tell the address.
    const ADDRESS: u64;
    /// Words tell addresses below 2 to this.
    const OUTPUT_BITS: u32 = u64::BITS - Self::ADDRESS.leading_zeros();
    /// Up to which bit of an address a sum of a word and a span carries. Those above stand elsewhere in words, in formats that
    /// have any.
    const CARRY_BITS: u32 = u64::BITS;
    /// The bits that tell a link, frozen or not, from everything else.
    const LINK_MASK: u64;
    /// What those bits are in a link that is not frozen.
    const LINK: u64;
    /// Bits of which a present word has at least one, and others none.
    const PRESENT: u64;
    /// A reclaimer's mark in a link, and what makes a tombstone.
    const FROZEN: u64;
    /// The bit that a link gets once it was written back.
    const WRITTEN_BACK: u64;
    /// The bit that hardware sets in what it walked through; 0 where it has none.
    const ACCESSED: u64;
    /// The bits any of which says of a leaf or a pending word, in a table with
    /// [`dirty`](crate::table::Geometry::dirty), that a device wrote through it: that which hardware sets, and
    /// [`NOTED`](Self::NOTED); 0 where hardware has none.
    const DIRTY: u64;
    /// With which of these software says it. Another one than hardware's where that is the permission to write, which a
    /// leaf for reading could not have.
    const NOTED: u64 = Self::DIRTY;

    /// The address that a leaf, a link or a pending word tells.
    #[inline(always)]
    fn address(word: u64) -> PhysAddr {
        PhysAddr::new(word & Self::ADDRESS)
    }

    /// The meaning of `word`, read from a table of `level`.
    fn decode(&self, word: u64, level: Level) -> Entry;

    /// A leaf of `level` that maps `to`, which is aligned to the level's page size.
    fn leaf(&self, level: Level, to: PhysAddr, perms: Perms) -> u64;

    /// The leaf of the lowest level that maps `to`, where devices write interrupt messages: no memory, which a format whose
    /// leaves name memory types has to say.
    fn doorbell(&self, to: PhysAddr, perms: Perms) -> u64 {
        self.leaf(Level::LEAF, to, perms)
    }

    /// Whether leaves of this value are such that hardware notes writes in them: only then is it one for tables with
    /// [`dirty`](crate::table::Geometry::dirty).
    fn notes_writes(&self) -> bool {
        Self::DIRTY != 0
    }

    /// A link to the table at `page`, not yet known to be written back.
    fn table(&self, page: PhysAddr) -> u64;

    /// What a leaf, or the pending word, that takes the place of `word` has to have beside its own, so that it tells of
    /// the same writes: `NOTED` of a leaf that has any bit of `DIRTY`. Asked for in tables with
    /// [`dirty`](crate::table::Geometry::dirty); elsewhere a value that notes no writes has nothing to say.
    #[inline]
    fn noted(&self, word: u64) -> u64 {
        const {
            assert!(
                Self::DIRTY == Self::NOTED,
                "a format whose software has a bit of its own for what was written says how it is had",
            );
        }
        word & Self::DIRTY
    }

    /// What unmapping makes of the leaf `word`: not present, keeps the address and `NOTED`.
    fn pending(&self, word: u64) -> u64;

    /// What is left of a link to the empty table at `page` until hardware forgot it: not present.
    fn tombstone(&self, page: PhysAddr) -> u64;
}

/// How many tables of one level stand side by side as a root that one table would be too small for: a power of two
/// up to 16. What a level above them would tell apart, their place does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RootTables(u8);

impl RootTables {
    /// One: an ordinary root.
    pub const ONE: Self = Self(0);
    /// 16, the most of any format.
    pub const MAX: Self = Self(4);

    /// 2^`log2` tables, up to 16.
    pub const fn new(log2: u8) -> Option<Self> {
        match log2 <= Self::MAX.0 {
            true => Some(Self(log2)),
            false => None,
        }
    }

    /// Log2 of their number: the address bits that they add.
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// Their number.
    pub const fn count(self) -> u64 {
        1 << self.0
    }
}

/// Where a table starts, how many levels it has and how many tables its root is made of: one value, which only tables
/// give, so that these cannot disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootPointer {
    pub(crate) page: PhysAddr,
    pub(crate) level: Level,
    pub(crate) tables: RootTables,
}

impl RootPointer {
    /// The root of a table that this crate did not build.
    ///
    /// # Safety
    /// Whoever is told of it walks from `page` as from a root of `level`: it is one, in the format of the backend
    /// that is told, as long as anybody walks there.
    pub const unsafe fn from_raw(page: PhysAddr, level: Level) -> Self {
        let tables = RootTables::ONE;
        Self {
            page,
            level,
            tables,
        }
    }

    /// The frame of the root table, or of the first one.
    pub const fn page(self) -> PhysAddr {
        self.page
    }

    /// The level of the root table.
    pub const fn level(self) -> Level {
        self.level
    }

    /// How many tables stand side by side there: the root starts at a multiple of their size.
    pub const fn tables(self) -> RootTables {
        self.tables
    }
}
