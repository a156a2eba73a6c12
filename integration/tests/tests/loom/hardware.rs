//! The hardware walker: takes no guard, keeps links in a walk cache and leaves in an IOTLB, and never
//! forgets unasked.
//!
//! Its reading of a word is in `words`, apart from the format under test.

use hv_core::PhysAddr;
use hv_iommu::RootPointer;

use crate::arena::{Arena, WORDS};
use crate::words::{ACCESSED, ADDRESS, DIRTY, is_leaf, stops};

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

/// What a walker writes into tables, always by replacing exactly what it read. Only walkers that snoop
/// write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Notes {
    /// Nothing.
    Nothing,
    /// That a leaf was written through.
    Dirty,
    /// The same, and that a link or a leaf was used.
    AccessedAndDirty,
}

/// A link that the walk cache holds: the table of `level` that this page number goes through.
#[derive(Clone, Copy)]
struct Link {
    prefix: u64,
    level: u8,
    table: PhysAddr,
}

/// A leaf that the IOTLB holds, with the level of the table that it was found in.
#[derive(Clone, Copy)]
struct Leaf {
    first: u64,
    level: u8,
    to: PhysAddr,
    dirty: bool,
}

/// Whether a word has these bits; no word has none, which is what a format without them has for them.
fn has(word: u64, bits: u64) -> bool {
    bits != 0 && word & bits == bits
}

impl Leaf {
    fn lead(&self, page: u64) -> Option<PhysAddr> {
        let inside = page.checked_sub(self.first)?;
        (inside >> (self.level - 1) == 0).then(|| PhysAddr::new(self.to.as_u64() + (inside << 12)))
    }
}

/// What ends a walk before its time.
enum Stop {
    /// The address is not mapped.
    Fault,
    /// A word changed under the walker's own write.
    Changed,
}

/// What a walker has cached, apart from its arena: it can be filled before its actor starts.
#[derive(Clone)]
pub(crate) struct Cache {
    links: Vec<Link>,
    /// `None` for a walker without an IOTLB.
    leaves: Option<Vec<Leaf>>,
}

/// One walker.
pub(crate) struct Walker<'a> {
    arena: &'a Arena,
    root: RootPointer,
    reads: Reads,
    notes: Notes,
    cache: Cache,
}

impl<'a> Walker<'a> {
    /// A walker that caches links, has no IOTLB and writes nothing.
    pub(crate) fn new(arena: &'a Arena, root: RootPointer, reads: Reads) -> Self {
        Self {
            arena,
            root,
            reads,
            notes: Notes::Nothing,
            cache: Cache {
                links: Vec::new(),
                leaves: None,
            },
        }
    }

    /// The same with what another one has cached.
    pub(crate) fn with_cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// What it has cached.
    pub(crate) fn into_cache(self) -> Cache {
        self.cache
    }

    /// The same with an IOTLB.
    pub(crate) fn with_iotlb(mut self) -> Self {
        self.cache.leaves = Some(Vec::new());
        self
    }

    /// The same, and it writes this.
    pub(crate) fn that_notes(mut self, notes: Notes) -> Self {
        assert!(self.reads == Reads::Snooping || notes == Notes::Nothing);
        self.notes = notes;
        self
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

    /// A read of page number `page`. `None` is a fault.
    pub(crate) fn walk(&mut self, page: u64) -> Option<PhysAddr> {
        self.access(page, false)
    }

    /// A write to page number `page`. `None` is a fault.
    pub(crate) fn write(&mut self, page: u64) -> Option<PhysAddr> {
        self.access(page, true)
    }

    fn access(&mut self, page: u64, write: bool) -> Option<PhysAddr> {
        let dirties = write && self.notes >= Notes::Dirty;
        // A cached leaf that is not known to be dirty does not do for a write: that has to be noted.
        let cached = self.cache.leaves.iter().flatten();
        let cached = cached.filter(|leaf| leaf.dirty || !dirties);
        if let Some(to) = cached.into_iter().find_map(|leaf| leaf.lead(page)) {
            return Some(to);
        }
        loop {
            match self.walk_tables(page, write, dirties) {
                Ok(to) => return Some(to),
                Err(Stop::Fault) => return None,
                Err(Stop::Changed) => {}
            }
        }
    }

    /// Walks from the deepest link that is cached, and caches what it finds.
    fn walk_tables(&mut self, page: u64, write: bool, dirties: bool) -> Result<PhysAddr, Stop> {
        let root = self.root;
        if page >> root.level().number() != 0 {
            return Err(Stop::Fault);
        }
        let fitting = self.cache.links.iter();
        let fitting = fitting.filter(|link| page >> link.level == link.prefix);
        let deepest = fitting.min_by_key(|link| link.level);
        let (mut level, mut table) = match deepest {
            Some(link) => (link.level, link.table),
            None => (root.level().number(), root.page()),
        };
        loop {
            let index = (page >> (level - 1)) as usize % WORDS;
            let word = self.read(table, index, level);
            if stops(word, write) {
                return Err(Stop::Fault);
            }
            let is_leaf = is_leaf(word, level);
            let mut noted = word;
            if self.notes == Notes::AccessedAndDirty {
                noted |= ACCESSED;
            }
            if is_leaf && dirties {
                noted |= DIRTY;
            }
            if noted != word && !self.arena.note(table, index, word, noted) {
                return Err(Stop::Changed);
            }
            let to = PhysAddr::new(word & ADDRESS);
            if is_leaf {
                let leaf = Leaf {
                    first: page >> (level - 1) << (level - 1),
                    level,
                    to,
                    dirty: has(noted, DIRTY),
                };
                self.cache
                    .leaves
                    .iter_mut()
                    .for_each(|leaves| leaves.push(leaf));
                return leaf.lead(page).ok_or(Stop::Fault);
            }
            level -= 1;
            table = to;
            self.cache.links.push(Link {
                prefix: page >> level,
                level,
                table,
            });
        }
    }

    /// Forgets everything, as an invalidation that includes walk caches asks for.
    pub(crate) fn invalidate(&mut self) {
        self.cache.links.clear();
        self.invalidate_leaves();
    }

    /// Forgets leaves, as an invalidation of leaves alone asks for.
    pub(crate) fn invalidate_leaves(&mut self) {
        self.cache.leaves.iter_mut().for_each(Vec::clear);
    }

    /// Forgets the leaf of the smallest size at `page`: all that an invalidation of one page has to reach.
    pub(crate) fn invalidate_page(&mut self, page: u64) {
        if let Some(leaves) = &mut self.cache.leaves {
            leaves.retain(|leaf| leaf.level != 1 || leaf.first != page);
        }
    }
}
