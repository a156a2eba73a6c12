//! A guest's own first stage in the guest's memory, as its driver would keep one.

use hv_core::{Gpa, Iova, PhysRange};

use super::spec::guest;
use crate::rig::Rig;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Pages of the tables of one address space: three levels, one table each.
const LEVELS: u64 = 3;

/// A first stage: a page of contexts, and tables of two address spaces, each for the first 2 MiB.
///
/// What is written reaches memory at once, as if the guest had written it back.
#[derive(Clone)]
pub struct GuestStage {
    rig: Rig,
    /// Where the guest has its pages, and where they are.
    at: Gpa,
    memory: PhysRange,
}

impl GuestStage {
    /// How many pages it takes.
    pub const PAGES: u64 = 1 + 2 * LEVELS;

    /// A first stage of nothing in these pages of memory, which the guest has from `at` on.
    pub fn new(rig: &Rig, at: Gpa, memory: PhysRange) -> Self {
        let stage = Self {
            rig: rig.clone(),
            at,
            memory,
        };
        for page in 0..Self::PAGES {
            let at = stage.memory.start().as_u64() + page * PAGE;
            let mut state = rig.core.step();
            state.bus.memory.write_bytes(at, &[0; PAGE as usize]);
        }
        for space in 0..2 {
            for level in 0..LEVELS - 1 {
                let table = stage.at.as_u64() + Self::table(space, level + 1);
                stage.store(Self::table(space, level), guest::link(table));
            }
        }
        stage
    }

    fn table(space: u64, level: u64) -> u64 {
        (1 + space * LEVELS + level) * PAGE
    }

    fn store(&self, offset: u64, word: u64) {
        let at = self.memory.start().as_u64() + offset;
        let mut state = self.rig.core.step();
        state.bus.memory.write_bytes(at, &word.to_le_bytes());
    }

    /// The stream table entry that leads to 2^`log2` contexts, at most 2^6.
    pub fn entry(&self, log2: u8) -> [u64; 8] {
        guest::entry(self.at.as_u64(), log2)
    }

    /// The context of a substream leads to an address space, 0 or 1, under this ASID. Its first word is stored last.
    pub fn set_context(&self, substream: u32, asid: u16, space: u64) {
        let root = self.at.as_u64() + Self::table(space, 0);
        self.set_context_to(substream, asid, Gpa::new(root));
    }

    /// The same, to tables that are elsewhere than this stage's.
    pub fn set_context_to(&self, substream: u32, asid: u16, root: Gpa) {
        let words = guest::context(root.as_u64(), asid);
        for (at, word) in words.into_iter().enumerate().rev() {
            self.store(u64::from(substream) * 64 + at as u64 * 8, word);
        }
    }

    /// The context of a substream is not valid any more.
    pub fn clear_context(&self, substream: u32) {
        self.store(u64::from(substream) * 64, 0);
    }

    fn leaf(space: u64, at: Iova) -> u64 {
        Self::table(space, LEVELS - 1) + at.as_u64() / PAGE % 512 * 8
    }

    /// Maps a page.
    pub fn map(&self, space: u64, at: Iova, to: Gpa) {
        self.store(Self::leaf(space, at), guest::page(to.as_u64()));
    }

    /// Maps a page that its devices are to reach past the CPU's caches.
    pub fn map_past_caches(&self, space: u64, at: Iova, to: Gpa) {
        self.store(Self::leaf(space, at), guest::page_past_caches(to.as_u64()));
    }

    /// Unmaps a page.
    pub fn unmap(&self, space: u64, at: Iova) {
        self.store(Self::leaf(space, at), 0);
    }

    /// The command to forget the context of a substream.
    pub fn forget_context(substream: u32) -> [u64; 2] {
        guest::forget_context(substream)
    }

    /// The command to forget all contexts.
    pub fn forget_contexts() -> [u64; 2] {
        guest::forget_contexts()
    }

    /// The command to forget all translations.
    pub fn forget_all() -> [u64; 2] {
        guest::forget_all()
    }

    /// The command to forget translations of an ASID.
    pub fn forget_asid(asid: u16) -> [u64; 2] {
        guest::forget_asid(asid)
    }

    /// The command to forget what translates a page under an ASID.
    pub fn forget_page(asid: u16, at: Iova) -> [u64; 2] {
        guest::forget_address(asid, at.as_u64())
    }
}
