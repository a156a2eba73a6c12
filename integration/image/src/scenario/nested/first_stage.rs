//! A first stage as a guest keeps one in its memory: a context descriptor, and tables of two address spaces.

use hv_core::{Gpa, GuestMemory, Iova, PageCount, PageSize};
use hv_smmu::UserEntryWords;

use super::spec;
use crate::platform::BareMetal;
use crate::scenario::{Failure, OrFail};

/// One of the guest's address spaces: its first 2 MiB.
#[derive(Clone, Copy)]
pub(super) enum Space {
    /// The one that the guest begins with.
    First,
    /// The one that it turns to.
    Second,
}

impl Space {
    /// Under which number what is cached of it is filed.
    pub(super) const fn asid(self) -> u16 {
        match self {
            Self::First => 1,
            Self::Second => 2,
        }
    }

    /// The page of its table of that level.
    const fn table(self, level: u64) -> u64 {
        level
            + match self {
                Self::First => 0,
                Self::Second => spec::LAST_LEVEL,
            }
    }
}

/// Pages of a guest's memory with its first stage: the context descriptor's, then a table of each level for each space.
pub(super) struct FirstStage<'g> {
    guest: &'g GuestMemory,
    platform: &'static BareMetal,
    at: Gpa,
}

impl<'g> FirstStage<'g> {
    /// How many pages it takes.
    pub(super) const PAGES: u64 = 1 + 2 * spec::LAST_LEVEL;

    /// A first stage in the pages of the guest from `at` on, which are zeros: nothing is mapped, and the context is not
    /// valid.
    pub(super) fn new(
        guest: &'g GuestMemory,
        platform: &'static BareMetal,
        at: Gpa,
    ) -> Result<Self, Failure> {
        let stage = Self {
            guest,
            platform,
            at,
        };
        for space in [Space::First, Space::Second] {
            for level in 1..spec::LAST_LEVEL {
                let finer = stage.place(space.table(level + 1), 0)?;
                stage.store(space.table(level), 0, spec::link(finer.as_u64()))?;
            }
        }
        Ok(stage)
    }

    /// The guest's stream table entry.
    pub(super) fn entry(&self) -> UserEntryWords {
        spec::stream(self.at.as_u64())
    }

    /// Has the context descriptor lead to a space; its first word is stored last.
    pub(super) fn set_context(&self, space: Space) -> Result<(), Failure> {
        let root = self.place(space.table(1), 0)?;
        let words = spec::context(root.as_u64(), space.asid());
        for (at, word) in words.into_iter().enumerate().rev() {
            self.store(0, at as u64, word)?;
        }
        Ok(())
    }

    /// The context descriptor is not valid any more.
    pub(super) fn clear_context(&self) -> Result<(), Failure> {
        self.store(0, 0, 0)
    }

    /// Maps a page.
    pub(super) fn map(&self, space: Space, at: Iova, to: Gpa) -> Result<(), Failure> {
        let leaf = spec::page(to.as_u64());
        self.store(space.table(spec::LAST_LEVEL), leaf_of(at), leaf)
    }

    /// Maps pages at their own addresses.
    pub(super) fn map_as_they_are(
        &self,
        space: Space,
        from: Gpa,
        pages: PageCount,
    ) -> Result<(), Failure> {
        for page in 0..pages.get() {
            let to = from.checked_add(page * PageSize::Size4K.bytes());
            let to = to.ok_or_else(|| Failure::new("a guest's page beyond all addresses"))?;
            self.map(space, to.into(), to)?;
        }
        Ok(())
    }

    /// Unmaps a page.
    pub(super) fn unmap(&self, space: Space, at: Iova) -> Result<(), Failure> {
        self.store(space.table(spec::LAST_LEVEL), leaf_of(at), 0)
    }

    /// Word `index` of page `page`.
    fn place(&self, page: u64, index: u64) -> Result<Gpa, Failure> {
        let offset = page * PageSize::Size4K.bytes() + index * size_of::<u64>() as u64;
        let place = self.at.checked_add(offset);
        place.ok_or_else(|| Failure::new("a guest's first stage beyond all addresses"))
    }

    fn store(&self, page: u64, index: u64, word: u64) -> Result<(), Failure> {
        let place = self.place(page, index)?;
        self.guest
            .write(self.platform, place, &word.to_le_bytes())
            .or_fail("writing the guest's first stage")
    }
}

/// Which entry of the last level is a page's, in the first 2 MiB.
const fn leaf_of(at: Iova) -> u64 {
    at.as_u64() / PageSize::Size4K.bytes() % spec::TABLE_ENTRIES
}
