//! Which addresses of a domain are free, and who gets them.
//!
//! ```text
//!   alloc, release of 1 to 32 pages          other lengths, exact ranges
//!                |                                        |
//!         a CPU's cache   -- whole magazines -->  depot   |
//!     claimed, never awaited                              v
//!                `------------ ranges ----------->   free ranges
//!                                          (depot and free ranges: one short lock)
//! ```
//!
//! **Free ranges** are an ordered, balanced tree (`tree`) that finds a place for a length, an alignment and a limit, or the
//! neighbours of a range, in a number of steps that grows with the logarithm of the number of free ranges, whatever
//! the ranges are. Room for what comes back is made when it goes out (`space`), so giving a range back allocates
//! nothing and cannot fail, unless it comes back in more pieces than it went out: a piece for which there is no memory
//! then stays with its owner. Reserved ranges are never free.
//!
//! **High addresses first.** Within its limit a request gets the highest place. Devices with few address bits may share a
//! domain with others, and only the low addresses serve them: nobody else gets one while there is a higher one, but
//! from a cache. Address 0, which drivers take for "no address", is given only to who asks for exactly that.
//!
//! **Caches** (`cache`) hold ranges of 4 KiB to 128 KiB that were given back on a CPU, for the next who asks there: no
//! shared lock, no search. After Bonwick and Adams, "Magazines and Vmem" (2001), as Linux does it for the same purpose.
//! Only lengths that are powers of two are cached, and only ranges on their natural alignment; who can use a little
//! more rounds up ([`IovaAllocator::cached_length`]). A cache is claimed by a flag for the few steps of a call. Who finds
//! it claimed, because it was moved to another CPU or interrupted the call that has it, goes to the free ranges
//! instead: nobody waits for a cache. Guests' domains, whose addresses are chosen by the guest, have none.
//!
//! **Nothing is lost in caches.** Before "full" is reported, or an exact range refused, every cache gives back what would
//! help, and the free ranges are looked at once more. Meanwhile no magazine goes through the depot: it could get from a
//! cache that is not emptied yet to one that is. A cache that is claimed just then is not waited for; the answer is
//! [`SpaceError::CachesInUse`] then, never "full".
//!
//! **Holders.** Mappings that keep their domain from ending are counted here, since each takes addresses and gives them back:
//! under the claim of a CPU's cache the count is two plain words of that CPU (`tally`), where a counter of the domain would cost
//! two more locked operations and a line that all CPUs write. Begun and ended are counted apart and only up, and whoever adds
//! them up reads all ends first: a hold begins on one CPU and ends on another.
//!
//! **Lock order**: a cache's claim, then the lock of depot and free ranges, which is held for one magazine at a time and
//! never across a wait.
//!
//! | who, and whom it meets | outcome | model in `integration/tests/tests/loom/allocating.rs` |
//! |---|---|---|
//! | alloc and release, at one cache | one has the cache, the other goes to the free ranges | `two_contexts_of_one_cpu` |
//! | alloc of the last range, another alloc of it | one has it | `the_last_range_has_one_owner` |
//! | alloc that empties caches, a release | what came back is found, or stays | `emptying_against_release` |
//! | alloc that empties caches, an alloc at its cache | each has a range, or is told to come again | `emptying_against_cached_alloc` |
//! | alloc that empties caches, a magazine on its way through the depot | found | `emptying_against_the_depot` |
//! | the end of what is held, the last release of a hold | refused until that CPU is out of its cache | `the_end_waits_for_the_last_hold` |
//! | the end, a hold that goes from CPU to CPU while others begin | never taken for the last | `a_hold_that_moves_is_not_missed` |
//! | two allocs that empty caches | each has a range, or one is told to come again | `two_empty_caches_at_once` |

mod arena;
mod cache;
mod space;
mod tally;
mod tree;

use alloc::vec::Vec;
use core::fmt;

use hv_core::fault::Fault;
use hv_core::platform::Cpus;
use hv_core::sync::Mutex;
use hv_core::{Iova, IovaRange, OutOfMemory, PageCount, PageSize, TryLock};
use thiserror::Error;

use crate::reserved::ReservedRegion;

use cache::{Central, Class, CpuCache};
use space::{Space, pages_up_to};
use tally::Tally;

/// A power of two that the first address of a range is a multiple of: 4 KiB to 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaAlign(u8);

impl IovaAlign {
    /// Any page.
    pub const PAGE: Self = Self(0);
    /// 1 GiB, the largest page of any table.
    pub const LARGEST: Self = Self(18);

    /// The largest power of two that divides the length, up to [`LARGEST`](Self::LARGEST): whoever asks for a whole
    /// number of large pages can map with them.
    pub const fn natural(pages: PageCount) -> Self {
        match pages.get().trailing_zeros() {
            order @ 0..18 => Self(order as u8),
            _ => Self::LARGEST,
        }
    }

    /// 2^`shift` bytes, no less than a page and no more than the largest one.
    pub(crate) const fn of_shift(shift: u32) -> Self {
        match shift.saturating_sub(PageSize::Size4K.shift()) {
            order @ 0..18 => Self(order as u8),
            _ => Self::LARGEST,
        }
    }

    /// Log2 of the number of 4 KiB pages.
    pub const fn order(self) -> u8 {
        self.0
    }

    /// The alignment in bytes.
    pub const fn bytes(self) -> u64 {
        PageSize::Size4K.bytes() << self.0
    }
}

impl From<PageSize> for IovaAlign {
    fn from(size: PageSize) -> Self {
        Self::natural(PageCount::of(size))
    }
}

impl fmt::Display for IovaAlign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes", self.bytes())
    }
}

impl fmt::Debug for IovaAlign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IovaAlign({:#x})", self.bytes())
    }
}

/// Why a range could not be had, or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpaceError {
    /// Part of the range is taken: somebody has it, or had it and dropped it without `release`.
    #[error(
        "{wanted} is not free in this domain: all or part of it was taken before, and not released"
    )]
    NotFree {
        /// The range that was asked for.
        wanted: IovaRange,
    },
    /// Part of the range is beyond the domain's address space.
    #[error(
        "{wanted} is not in this domain, whose last address is {last}: make one with more `DomainConfig::address_bits`"
    )]
    Outside {
        /// The range that was asked for.
        wanted: IovaRange,
        /// The last address that there is.
        last: Iova,
    },
    /// Firmware or hardware reserves part of the range, so nobody is given it.
    #[error("{wanted} is nobody's to have in this domain: it meets {by}")]
    Reserved {
        /// The range that was asked for.
        wanted: IovaRange,
        /// What it meets.
        by: ReservedRegion,
    },
    /// No free range is long enough.
    #[error("no free range of {pages} aligned to {align} up to {limit}")]
    Full {
        /// The length that was asked for.
        pages: PageCount,
        /// The alignment that was asked for.
        align: IovaAlign,
        /// The last address that would have served.
        limit: Iova,
    },
    /// What was asked for may be free in caches of other CPUs that were in use just now. Trying again helps.
    #[error("free addresses of this domain may be in caches that are in use right now; try again")]
    CachesInUse,
    /// There is no memory to note one more range.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Hands out the addresses of one domain. Any CPU may call, any number at once, and no call waits for another for longer
/// than one of them holds the lock: a bounded number of steps.
///
/// # Invariants
/// A page is in a reserved range, free in `central`, in one cache, or part of a range that is out.
pub struct IovaAllocator {
    central: Mutex<Central>,
    /// By CPU number. None for a space whose owner chooses the addresses.
    caches: Vec<Home>,
    /// Of holds that no cache's claim was taken for.
    tally: Tally,
}

/// What belongs to one CPU.
///
/// # Invariants
/// `tally` is written by who has the claim of `cache` alone.
struct Home {
    cache: TryLock<CpuCache>,
    tally: Tally,
}

impl IovaAllocator {
    /// All of `whole` but `reserved`, with caches for CPUs 0 to `cpus` - 1.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(whole: IovaRange, reserved: &[IovaRange], cpus: usize) -> Result<Self, OutOfMemory> {
        let central = Central::new(Space::new(whole, reserved)?, cpus)?;
        let mut caches = Vec::new();
        caches.try_reserve_exact(cpus).map_err(|_| OutOfMemory {
            bytes: cpus.saturating_mul(size_of::<Home>()),
        })?;
        caches.extend((0..cpus).map(|_| Home {
            cache: TryLock::new(CpuCache::default()),
            tally: Tally::new(),
        }));
        Ok(Self {
            central: Mutex::new(central),
            caches,
            tally: Tally::new(),
        })
    }

    /// The shortest length from `pages` on that is cached, or `pages` when none is. For callers that may take, and give
    /// back, a little more than they need.
    pub fn cached_length(pages: PageCount) -> PageCount {
        let rounded = pages.get().checked_next_power_of_two();
        let rounded = rounded.and_then(PageCount::new);
        rounded
            .filter(|rounded| Class::of(*rounded).is_some())
            .unwrap_or(pages)
    }

    /// Takes a range of this length that starts at a multiple of `align` and whose last address is at most `limit`.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing was taken then.
    #[inline]
    pub fn alloc(
        &self,
        cpus: &impl Cpus,
        pages: PageCount,
        align: IovaAlign,
        limit: Iova,
    ) -> Result<IovaRange, SpaceError> {
        self.alloc_as::<false>(cpus, pages, align, limit)
    }

    /// As [`alloc`](Self::alloc), and counts the caller as one more [holder](Self::holders), which costs nothing where
    /// the range comes from a cache: the claim does for both.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing was taken or counted then.
    #[inline]
    pub fn alloc_held(
        &self,
        cpus: &impl Cpus,
        pages: PageCount,
        align: IovaAlign,
        limit: Iova,
    ) -> Result<IovaRange, SpaceError> {
        self.alloc_as::<true>(cpus, pages, align, limit)
    }

    #[inline]
    fn alloc_as<const HELD: bool>(
        &self,
        cpus: &impl Cpus,
        pages: PageCount,
        align: IovaAlign,
        limit: Iova,
    ) -> Result<IovaRange, SpaceError> {
        let class = Class::of(pages).filter(|class| align.order() <= class.order());
        if let (Some(class), Some(home)) = (class, self.home(cpus)) {
            let cached = home.cache.with(|cache| {
                let page = cache.take(class, pages_up_to(limit), &self.central)?;
                let range = class.range(page)?;
                if HELD {
                    home.tally.begin_claimed();
                }
                Some(range)
            });
            if let Some(range) = cached.flatten() {
                return Ok(range);
            }
        }
        let range = self.alloc_central(class, pages, align, limit)?;
        if HELD {
            self.tally.begin();
        }
        Ok(range)
    }

    /// Takes a range of the free ones, for a length that is of `class`, if that is cached.
    #[inline(never)]
    fn alloc_central(
        &self,
        class: Option<Class>,
        pages: PageCount,
        align: IovaAlign,
        limit: Iova,
    ) -> Result<IovaRange, SpaceError> {
        // A cache keeps only ranges of the alignment that all of their class have, so that one is tried first.
        let cached = class.filter(|_| !self.caches.is_empty());
        let natural = cached.map(|_| IovaAlign::natural(pages));
        let look = |space: &mut Space| {
            let natural = natural.filter(|natural| *natural != align);
            let kept = natural.map(|natural| space.allocate(pages, natural, limit));
            match kept {
                Some(found @ Ok(_)) => found,
                _ => space.allocate(pages, align, limit),
            }
        };
        let first = look(&mut self.central.lock().space);
        match first {
            Err(SpaceError::Full { .. }) => self.after_emptying(|_| true, look),
            found => found,
        }
    }

    /// Takes exactly `wanted`.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing was taken then.
    pub fn reserve(&self, wanted: IovaRange) -> Result<IovaRange, SpaceError> {
        let look = |space: &mut Space| space.reserve(wanted);
        let first = look(&mut self.central.lock().space);
        match first {
            Err(SpaceError::NotFree { .. }) => {
                self.after_emptying(|range| range.overlaps(&wanted), look)
            }
            taken => taken,
        }
    }

    /// Gives a range back that was taken, or a part of one.
    ///
    /// # Errors
    /// [`SpaceError`], when there is no memory to note one more piece of a range that was cut: it stays taken then.
    #[inline]
    pub fn release(&self, cpus: &impl Cpus, range: IovaRange) -> Result<(), SpaceError> {
        self.release_as::<false>(cpus, range)
    }

    /// As [`release`](Self::release), and counts one [holder](Self::holders) less. Unless it fails, nothing that the
    /// hold kept may be looked at after this.
    ///
    /// # Errors
    /// [`SpaceError`]: the range stays taken then, and the hold counted.
    #[inline]
    pub fn release_held(&self, cpus: &impl Cpus, range: IovaRange) -> Result<(), SpaceError> {
        self.release_as::<true>(cpus, range)
    }

    #[inline]
    fn release_as<const HELD: bool>(
        &self,
        cpus: &impl Cpus,
        range: IovaRange,
    ) -> Result<(), SpaceError> {
        if let (Some(class), Some(home)) = (Class::of_range(&range), self.home(cpus)) {
            let page = range.start().as_u64() / PageSize::Size4K.bytes();
            let kept = home.cache.with(|cache| {
                let kept = cache.keep(class, page, &self.central);
                if HELD && kept {
                    // The claim ends after this: who counts looks for that too.
                    home.tally.end_claimed();
                }
                kept
            });
            if kept == Some(true) {
                return Ok(());
            }
        }
        self.release_central(range)?;
        if HELD {
            self.tally.end();
        }
        Ok(())
    }

    /// One more holder, beside those that [`alloc_held`](Self::alloc_held) counts.
    #[inline]
    pub fn hold(&self) {
        self.tally.begin();
    }

    /// One holder less. Nothing that the hold kept may be looked at after this.
    #[inline]
    pub fn let_go(&self) {
        self.tally.end();
    }

    /// How many hold on to what the addresses are of, and keep it from going away. A hold is begun by who owns that, or
    /// from another hold; so zero is lasting for the one owner that is left, and nobody who held on looks at the
    /// allocator any more.
    pub fn holders(&self) -> usize {
        let homes = self.caches.iter();
        let tallies = homes.clone().map(|home| &home.tally);
        let held = tally::held(core::iter::once(&self.tally).chain(tallies));
        if held != 0 {
            return usize::try_from(held).unwrap_or(usize::MAX);
        }
        // Who was just seen to end may still be about to let go of the cache. A claim that is free now was let go of by
        // its last holder, after whom nobody comes.
        let at_work =
            |home: &&Home| home.cache.with(|_| ()).is_none() && !Fault::HoldClaimNotAwaited.is_on();
        homes.filter(at_work).count()
    }

    #[inline(never)]
    fn release_central(&self, range: IovaRange) -> Result<(), SpaceError> {
        self.central.lock().space.release(range)
    }

    /// How many pages are free, in caches too. Exact when no other call is under way.
    pub fn free_pages(&self) -> u64 {
        let cached = self
            .caches
            .iter()
            .filter_map(|home| home.cache.with(|cache| cache.pages()));
        let cached: u64 = cached.sum();
        cached + self.central.lock().free_pages()
    }

    /// What the CPU that runs has.
    #[inline]
    fn home(&self, cpus: &impl Cpus) -> Option<&Home> {
        self.caches.get(cpus.current_cpu().index())
    }

    /// Looks once more, after all caches gave back what is wanted of them.
    fn after_emptying(
        &self,
        wanted: impl Fn(&IovaRange) -> bool,
        look: impl FnOnce(&mut Space) -> Result<IovaRange, SpaceError>,
    ) -> Result<IovaRange, SpaceError> {
        self.central.lock().close_depot();
        let mut all = loop {
            let emptied = self.central.lock().empty_one();
            if let Some(all) = emptied {
                break all;
            }
        };
        for Home { cache, .. } in &self.caches {
            let emptied = match Fault::SkipEmptying.is_on() {
                true => Some(true),
                false => cache.with(|cache| cache.give_back(&self.central, &wanted)),
            };
            all &= emptied.unwrap_or(Fault::ClaimedIsEmpty.is_on());
        }
        let mut central = self.central.lock();
        let found = look(&mut central.space);
        central.open_depot();
        match found {
            Err(SpaceError::Full { .. } | SpaceError::NotFree { .. }) if !all => {
                Err(SpaceError::CachesInUse)
            }
            found => found,
        }
    }
}
