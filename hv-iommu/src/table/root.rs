//! Where walks begin: the root, of one table or of several side by side, and the sizes that the format gives.

#![expect(
    unsafe_code,
    reason = "clears the tables of a root that is still private"
)]

use hv_core::platform::FrameSource;
use hv_core::{Iova, IovaRange, PageCount, PageSize, PhysAddr};

use super::spares::{Private, told};
use super::{Geometry, MemoryHandle, Table, TableError};
use crate::format::{Format, Level, RootPointer, RootTables};

/// A table that a walk has come to.
#[derive(Clone, Copy)]
pub(super) struct TableAt {
    pub(super) page: PhysAddr,
    pub(super) level: Level,
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// Bytes of the smallest page.
    pub(super) const PAGE_BYTES: u64 = 1 << F::PAGE_SHIFT;
    /// The same in 4 KiB pages, as a power of two.
    pub(super) const PAGE_ORDER: u32 = F::PAGE_SHIFT - PageSize::Size4K.shift();
    /// Log2 of the words of a frame.
    const FRAME_WORDS_SHIFT: u32 = PageSize::Size4K.shift() - 3;
    /// The frames of one table.
    pub(super) const TABLE_FRAMES: PageCount =
        match PageCount::new(1 << F::INDEX_BITS.saturating_sub(Self::FRAME_WORDS_SHIFT)) {
            Some(frames) => frames,
            None => PageCount::ONE,
        };
    /// The bits of addresses that no word can tell.
    pub(super) const BEYOND: u64 = match u64::MAX.checked_shl(F::OUTPUT_BITS) {
        Some(beyond) => beyond,
        None => 0,
    };
    /// The bytes from one table of a root to the next.
    pub(super) const TABLE_BYTES: u64 = Self::TABLE_FRAMES.bytes();
    /// Whether roots have one table each.
    pub(super) const ONE_ROOT: bool = F::MOST_ROOT_TABLES.log2() == 0;

    /// Log2 of what one table of a root of this level translates.
    #[inline]
    pub(super) const fn root_shift(root: Level) -> u32 {
        Self::shift(root) + F::INDEX_BITS
    }

    /// How far behind the first table of a root, which is of `level`, the one is that translates `at`.
    #[inline(always)]
    pub(super) const fn root_offset(level: Level, at: u64) -> u64 {
        match Self::ONE_ROOT {
            true => 0,
            // Callers know that the table translates it, so it is one of them.
            false => (at >> Self::root_shift(level)).wrapping_mul(Self::TABLE_BYTES),
        }
    }

    /// The table of the root that translates `at`.
    #[inline(always)]
    pub(super) fn top(root: RootPointer, at: u64) -> TableAt {
        TableAt {
            page: PhysAddr::new(root.page.as_u64() + Self::root_offset(root.level, at)),
            level: root.level,
        }
    }

    /// The tables of the root that translate `first` to `last`, each with its part of them.
    #[inline]
    pub(super) fn tops(
        root: RootPointer,
        (first, last): (u64, u64),
    ) -> impl Iterator<Item = (TableAt, (u64, u64))> + use<F, H> {
        let shift = Self::root_shift(root.level);
        let numbers = match Self::ONE_ROOT {
            true => 0..=0,
            false => first >> shift..=last >> shift,
        };
        numbers.map(move |number| match Self::ONE_ROOT {
            true => (Self::top(root, first), (first, last)),
            false => {
                let base = number << shift;
                let end = base | ((1 << shift) - 1);
                (Self::top(root, base), (first.max(base), last.min(end)))
            }
        })
    }

    /// A root all of whose words are empty.
    pub(super) fn new_root(&self) -> Result<PhysAddr, TableError> {
        let missing = self.geometry.root_tables.count();
        let out = TableError::OutOfFrames { missing };
        if missing == 1 {
            let mut spares = self.spares();
            spares.reserve(1).map_err(|_| out)?;
            let private = spares.take().ok_or(out)?;
            if !self.is_reached(&private) {
                spares.push(private);
                return Err(Self::frames_apart());
            }
            self.clear(&private);
            return Ok(private.at());
        }
        let frames = PageCount::new(missing * Self::TABLE_FRAMES.get()).ok_or(out)?;
        let run = self.memory().alloc_table_run(frames).map_err(|_| out)?;
        let run = told(self.memory(), run, Self::BEYOND).ok_or(out)?;
        let root = run.range().start();
        let table = |number| PhysAddr::new(root.as_u64() + number * Self::TABLE_BYTES);
        // SAFETY: the run, which is given up below, owns the frames of all tables, alone.
        let tables = (0..missing).map(|number| unsafe { Private::from_raw(table(number)) });
        for private in tables {
            if !self.is_reached(&private) {
                self.memory().free_frames(run);
                return Err(Self::frames_apart());
            }
            self.clear(&private);
        }
        // The root owns the frames from here on.
        let _ = run.into_range();
        Ok(root)
    }

    /// Whether the platform reaches all of a table's frames at once.
    fn is_reached(&self, private: &Private) -> bool {
        Self::TABLE_FRAMES == PageCount::ONE || !self.private_page(private).cells.is_empty()
    }

    #[cold]
    fn frames_apart() -> TableError {
        TableError::FramesApart {
            frames: Self::TABLE_FRAMES.get(),
        }
    }

    /// What the table can be: the geometry that was asked for, as far as the format has it.
    pub(super) fn check(geometry: Geometry) -> Result<Geometry, TableError> {
        let root_tables = geometry.root_tables.min(F::MOST_ROOT_TABLES);
        let bits = Self::root_shift(geometry.root) + u32::from(root_tables.log2());
        if bits >= u64::BITS {
            let last = Iova::new(u64::MAX);
            return Err(TableError::TooWide { last, bits });
        }
        Ok(Geometry {
            root_tables,
            ..geometry
        })
    }

    /// The address bits that tables with such a root translate.
    #[inline]
    pub(super) const fn bits(root: Level, tables: RootTables) -> u32 {
        Self::root_shift(root) + tables.log2() as u32
    }

    /// How many of the smallest pages a range is made of, if it is of whole ones, and what it leads to too.
    #[inline(always)]
    pub(super) fn smallest(range: IovaRange, to: PhysAddr) -> Option<u64> {
        let pages = range.pages().get();
        if Self::PAGE_ORDER == 0 {
            return Some(pages);
        }
        let addresses = (range.start().as_u64() | to.as_u64()) & (Self::PAGE_BYTES - 1);
        let whole = addresses == 0 && pages & ((1 << Self::PAGE_ORDER) - 1) == 0;
        whole.then_some(pages >> Self::PAGE_ORDER)
    }

    /// The level whose pages have exactly this size.
    #[inline]
    pub(super) fn level_of(at: Iova, size: PageSize) -> Result<Level, TableError> {
        match Level::mapping::<F>(size) {
            Some(level) => Ok(level),
            None => Err(Self::no_such_page(at, size)),
        }
    }

    #[cold]
    pub(super) fn no_such_page(at: Iova, size: PageSize) -> TableError {
        TableError::NoSuchPage {
            at,
            size,
            smallest: Self::PAGE_BYTES,
        }
    }

    /// Whether `at` is where a page may begin.
    pub(super) fn check_cut(at: Iova) -> Result<(), TableError> {
        match at.as_u64() & (Self::PAGE_BYTES - 1) {
            0 => Ok(()),
            _ => Err(Self::cuts_page(at)),
        }
    }

    #[cold]
    pub(super) fn cuts_page(at: Iova) -> TableError {
        TableError::CutsPage {
            at,
            bytes: Self::PAGE_BYTES,
        }
    }
}
