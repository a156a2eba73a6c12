//! Ranges that were given back a moment ago, at hand for the CPU that gave them.
//!
//! After Bonwick's magazines: a CPU has two per class, and goes to the depot only when both are full or both are empty,
//! with a whole magazine at a time.

use alloc::vec::Vec;
use core::mem;

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::sync::Mutex;
use hv_core::{IovaRange, OutOfMemory, PageCount};

use super::space::{Space, pages_of, range_at};

/// Ranges in a magazine.
const ROUNDS: usize = if cfg!(hv_loom) { 2 } else { 32 };
/// Lengths that are cached: 1, 2, 4, 8, 16 and 32 pages (4 KiB to 128 KiB).
const CLASSES: usize = 6;
/// Full magazines of one class that the depot keeps at least and at most: about one per CPU.
const DEPOT: (usize, usize) = if cfg!(hv_loom) { (1, 1) } else { (2, 16) };

/// A length that is cached: a power of two, whose ranges start at a multiple of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    /// The class of this length.
    #[inline]
    pub(super) fn of(pages: PageCount) -> Option<Self> {
        let pages = pages.get();
        let order = pages.trailing_zeros() as u8;
        (pages.is_power_of_two() && usize::from(order) < CLASSES).then_some(Self(order))
    }

    /// The class of this range, if ranges like it are what its length is cached for.
    #[inline]
    pub(super) fn of_range(range: &IovaRange) -> Option<Self> {
        let class = Self::of(range.pages())?;
        let first = pages_of(range).first;
        // Page 0 is never given out by length.
        (first != 0 && first.is_multiple_of(class.pages().get())).then_some(class)
    }

    /// Log2 of the length in pages, and of the alignment.
    pub(super) fn order(self) -> u8 {
        self.0
    }

    fn index(self) -> usize {
        self.0.into()
    }

    fn pages(self) -> PageCount {
        PageCount::new(1 << self.0).unwrap_or(PageCount::ONE)
    }

    /// The range of this class that starts at this page.
    #[inline]
    pub(super) fn range(self, page: u64) -> Option<IovaRange> {
        range_at(page, self.pages())
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..).map(Self).take(CLASSES)
    }
}

/// First pages of free ranges of one class.
#[derive(Default)]
struct Magazine(ArrayVec<u64, ROUNDS>);

impl Magazine {
    /// The range that came last of those that end before the page `limit`.
    #[inline]
    fn take_below(&mut self, class: Class, limit: u64) -> Option<u64> {
        let last = limit.checked_sub(1 << class.order())?;
        // Nearly all serve nearly all limits: then it is a pop.
        if self.0.last().is_some_and(|page| *page <= last) && !Fault::CacheKeepsRange.is_on() {
            return self.0.pop();
        }
        let at = self.0.iter().rposition(|page| *page <= last)?;
        match Fault::CacheKeepsRange.is_on() {
            true => self.0.get(at).copied(),
            false => self.0.swap_pop(at),
        }
    }

    /// Makes free what is wanted of it. Whether all of that found room.
    fn give_back(
        &mut self,
        class: Class,
        space: &mut Space,
        wanted: impl Fn(&IovaRange) -> bool,
    ) -> bool {
        self.0.retain(|page| {
            let range = class.range(*page).filter(|range| wanted(range));
            let stays = range.is_none_or(|range| space.release(range).is_err());
            stays || Fault::FlushKeepsRanges.is_on()
        });
        let has_wanted = |page: &u64| class.range(*page).is_some_and(|range| wanted(&range));
        !self.0.iter().any(has_wanted)
    }
}

/// Two magazines of one class.
#[derive(Default)]
struct Pair {
    loaded: Magazine,
    previous: Magazine,
}

impl Pair {
    /// Loads a magazine that is not full, if there is room for a full one.
    #[cold]
    fn make_room(&mut self, class: Class, central: &Mutex<Central>) {
        mem::swap(&mut self.loaded, &mut self.previous);
        if self.loaded.0.is_full() {
            central.lock().take_over(class, &mut self.loaded);
        }
    }
}

/// What one CPU has. On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct CpuCache {
    pairs: [Pair; CLASSES],
}

impl CpuCache {
    /// A range of this class that ends before the page `limit`. `central` is locked only when both magazines are empty.
    #[inline]
    pub(super) fn take(
        &mut self,
        class: Class,
        limit: u64,
        central: &Mutex<Central>,
    ) -> Option<u64> {
        let loaded = &mut self.pairs.get_mut(class.index())?.loaded;
        if let Some(page) = loaded.take_below(class, limit) {
            return Some(page);
        }
        self.take_after_loaded(class, limit, central)
    }

    /// As [`take`](Self::take), when the loaded magazine has no such range.
    #[cold]
    fn take_after_loaded(
        &mut self,
        class: Class,
        limit: u64,
        central: &Mutex<Central>,
    ) -> Option<u64> {
        let Pair { loaded, previous } = self.pairs.get_mut(class.index())?;
        if loaded.0.is_empty() {
            if previous.0.is_empty() {
                *loaded = central.lock().full_magazine(class)?;
            } else {
                mem::swap(loaded, previous);
            }
            return loaded.take_below(class, limit);
        }
        previous.take_below(class, limit)
    }

    /// Keeps the range of this class that starts at `page`, if there is room. `central` is locked only when both magazines
    /// are full.
    #[inline]
    pub(super) fn keep(&mut self, class: Class, page: u64, central: &Mutex<Central>) -> bool {
        let Some(pair) = self.pairs.get_mut(class.index()) else {
            return false;
        };
        if pair.loaded.0.is_full() {
            pair.make_room(class, central);
        }
        pair.loaded.0.try_push(page).is_ok()
    }

    /// Makes free what is wanted of all that it has, a magazine at a time. Whether all of that found room.
    pub(super) fn give_back(
        &mut self,
        central: &Mutex<Central>,
        wanted: impl Fn(&IovaRange) -> bool,
    ) -> bool {
        let mut all = true;
        for (class, pair) in Class::all().zip(&mut self.pairs) {
            for magazine in [&mut pair.loaded, &mut pair.previous] {
                if !magazine.0.is_empty() {
                    all &= magazine.give_back(class, &mut central.lock().space, &wanted);
                }
            }
        }
        all
    }

    /// How many pages it has.
    pub(super) fn pages(&self) -> u64 {
        let pages = Class::all().zip(&self.pairs).map(|(class, pair)| {
            let ranges = pair.loaded.0.len() + pair.previous.0.len();
            class.pages().get() * ranges as u64
        });
        pages.sum()
    }
}

/// What all CPUs share: the free ranges, and full magazines.
///
/// # Invariants
/// Magazines in the depot have ranges in them. None goes in or out while somebody empties caches.
pub(super) struct Central {
    pub(super) space: Space,
    depot: [Vec<Magazine>; CLASSES],
    /// How many empty caches at the moment.
    emptying: usize,
}

impl Central {
    /// Around this space, with caches of so many CPUs.
    pub(super) fn new(space: Space, cpus: usize) -> Result<Self, OutOfMemory> {
        let mut depot = [const { Vec::new() }; CLASSES];
        if cpus != 0 {
            let magazines = cpus.clamp(DEPOT.0, DEPOT.1);
            for full in &mut depot {
                full.try_reserve_exact(magazines).map_err(|_| OutOfMemory {
                    bytes: magazines * size_of::<Magazine>(),
                })?;
            }
        }
        Ok(Self {
            space,
            depot,
            emptying: 0,
        })
    }

    /// A magazine with ranges in it.
    fn full_magazine(&mut self, class: Class) -> Option<Magazine> {
        if self.emptying != 0 && !Fault::DepotOpenWhileEmptying.is_on() {
            return None;
        }
        self.depot.get_mut(class.index())?.pop()
    }

    /// Empties a full magazine: into the depot as it is, or its ranges into the space if the depot is full or closed.
    fn take_over(&mut self, class: Class, magazine: &mut Magazine) {
        if Fault::OverflowLosesRanges.is_on() {
            magazine.0.clear();
        }
        let open = self.emptying == 0 || Fault::DepotOpenWhileEmptying.is_on();
        let depot = self.depot.get_mut(class.index());
        match depot.filter(|full| open && full.len() < full.capacity()) {
            // Within the capacity, so nothing is allocated.
            Some(full) => full.push(mem::take(magazine)),
            None => {
                magazine.give_back(class, &mut self.space, |_| true);
            }
        }
    }

    /// Lets no magazine in or out, while caches are emptied one after the other.
    pub(super) fn close_depot(&mut self) {
        self.emptying += 1;
    }

    /// Makes one magazine of the depot free. `None` while there may be more, else whether all found room.
    pub(super) fn empty_one(&mut self) -> Option<bool> {
        let mut classes = Class::all().zip(&mut self.depot);
        let found = classes.find_map(|(class, full)| Some((class, full.pop()?, full)));
        let Some((class, mut magazine, full)) = found else {
            return Some(true);
        };
        if magazine.give_back(class, &mut self.space, |_| true) {
            return None;
        }
        // There is the room that it just came from, so nothing is allocated.
        full.push(magazine);
        Some(false)
    }

    /// Takes back one [`close_depot`](Self::close_depot).
    pub(super) fn open_depot(&mut self) {
        self.emptying = self.emptying.saturating_sub(1);
    }

    /// How many pages are free here.
    pub(super) fn free_pages(&self) -> u64 {
        let depot = Class::all().zip(&self.depot).map(|(class, full)| {
            let ranges: usize = full.iter().map(|magazine| magazine.0.len()).sum();
            class.pages().get() * ranges as u64
        });
        self.space.free_pages() + depot.sum::<u64>()
    }
}
