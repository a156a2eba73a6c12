//! The hardware walker: takes no guard, may keep links in a walk cache, and never forgets unasked.
//!
//! Its reading of a word is written down here once more, apart from the format under test: bits 0 and
//! 1 are read and write, bit 7 above the last level makes a leaf, bits 51:12 are the address.

use hv_core::PhysAddr;
use hv_iommu::RootPointer;

use crate::arena::{Arena, WORDS};

/// How a walker reads tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reads {
    /// It snoops the CPUs' caches.
    Snooping,
    /// It reads memory, which holds only what was written back.
    Memory,
    /// It reads memory, and the cache has just written back every link that it reads.
    MemoryAfterEviction,
}

/// A link that the walk cache holds: the table of `level` that this page number goes through.
#[derive(Clone, Copy)]
struct Cached {
    prefix: u64,
    level: u8,
    table: PhysAddr,
}

/// One walker, with a walk cache of one link.
pub(crate) struct Walker<'a> {
    arena: &'a Arena,
    root: RootPointer,
    reads: Reads,
    cache: Option<Cached>,
}

impl<'a> Walker<'a> {
    pub(crate) fn new(arena: &'a Arena, root: RootPointer, reads: Reads) -> Self {
        Self {
            arena,
            root,
            reads,
            cache: None,
        }
    }

    fn read(&self, table: PhysAddr, index: usize, level: u8) -> u64 {
        match self.reads {
            Reads::Snooping => self.arena.snoop(table, index),
            Reads::Memory => self.arena.read_memory(table, index),
            Reads::MemoryAfterEviction => {
                if level > 1 {
                    self.arena.evict(table, index);
                }
                self.arena.read_memory(table, index)
            }
        }
    }

    /// Walks page number `page` and keeps the last link that it went through. `None` is a fault.
    pub(crate) fn walk(&mut self, page: u64) -> Option<PhysAddr> {
        let root = self.root;
        if page >> root.level.number() != 0 {
            return None;
        }
        let cached = self
            .cache
            .filter(|cached| page >> cached.level == cached.prefix);
        let (mut level, mut table) = match cached {
            Some(cached) => (cached.level, cached.table),
            None => (root.level.number(), root.page),
        };
        loop {
            let index = (page >> (level - 1)) as usize % WORDS;
            let word = self.read(table, index, level);
            let to = word & 0x000f_ffff_ffff_f000;
            if word & 3 == 0 {
                return None;
            }
            if level == 1 {
                return Some(PhysAddr::new(to));
            }
            if word & 0x80 != 0 {
                let inside = page & ((1 << (level - 1)) - 1);
                return Some(PhysAddr::new(to + (inside << 12)));
            }
            level -= 1;
            table = PhysAddr::new(to);
            self.cache = Some(Cached {
                prefix: page >> level,
                level,
                table,
            });
        }
    }

    /// Forgets what it cached, as an invalidation that includes walk caches asks for.
    pub(crate) fn invalidate(&mut self) {
        self.cache = None;
    }
}
