//! A table that threads share, what was mapped when, and hardware that walks it and caches what it read.

#![expect(
    unsafe_code,
    reason = "redeems and reclaims by the flushes of the hardware below"
)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::{Guard, Quiescence};
use hv_iommu::table::{Geometry, ReclaimStep, Table, TableError};
use hv_iommu::{Level, RootTables};
use hv_tests::pool::Pool;
use hv_vtd::SecondStage;

/// Mappings that a run can make. Each has frames of its own: its number is in their address.
const MAPPINGS: usize = 1 << 20;
/// Pages that one number covers.
pub(crate) const PAGES: u64 = 1 << 12;
/// How long anything may wait for anybody.
const PATIENCE: Duration = Duration::from_secs(20);

/// What became of a mapping; moments are 0 until they come.
#[derive(Default)]
struct Mapped {
    first: AtomicU64,
    pages: AtomicU64,
    /// When it was unmapped.
    unmapped: AtomicU64,
    /// When a flush of it had completed.
    flushed: AtomicU64,
}

/// What hardware has cached: links by level and address, leaves by page.
#[derive(Default)]
struct Caches {
    links: HashMap<(u32, u64), u64>,
    leaves: HashMap<u64, u64>,
}

pub(crate) struct World {
    pub(crate) table: Table<SecondStage, Arc<Pool>>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) quiescence: Quiescence,
    hardware: Mutex<Caches>,
    mapped: Vec<Mapped>,
    numbers: AtomicU64,
    moments: AtomicU64,
    /// Attempts to reclaim whose flush was done.
    attempts: AtomicU64,
}

/// A pseudo-random number, the same in each run.
pub(crate) fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
}

pub(crate) fn range(first: u64, pages: u64) -> IovaRange {
    IovaRange::new(Iova::new(first << 12), PageCount::new(pages).unwrap()).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let pool = Arc::new(Pool::new(4096));
        let geometry = Geometry {
            root: Level::new(4).unwrap(),
            root_tables: RootTables::ONE,
            largest_leaf: Level::new(2).unwrap(),
            coherent: true,
            live_resize: true,
            dirty: true,
        };
        // SAFETY: all guards and all of reclaim are of this world's one quiescence and one pool.
        let table = unsafe { Table::new(SecondStage::new(), geometry, pool.clone()) }.unwrap();
        Self {
            table,
            quiescence: Quiescence::new(64).unwrap(),
            pool,
            hardware: Mutex::default(),
            mapped: (0..MAPPINGS).map(|_| Mapped::default()).collect(),
            numbers: AtomicU64::new(1),
            moments: AtomicU64::new(1),
            attempts: AtomicU64::new(0),
        }
    }

    pub(crate) fn guard(&self) -> Guard<'_> {
        self.quiescence.pin(&*self.pool)
    }

    /// How many attempts to reclaim came to their flush.
    pub(crate) fn attempts(&self) -> u64 {
        // ORDERING: Relaxed, a count.
        self.attempts.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        // ORDERING: SeqCst, one order of all moments.
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    /// Frames for a mapping that is about to be made: gives its number and the address of the first.
    pub(crate) fn begin(&self, first: u64, pages: u64) -> (u64, PhysAddr) {
        let count = pages.div_ceil(PAGES).max(1);
        // ORDERING: Relaxed, only that numbers differ counts.
        let number = self.numbers.fetch_add(count, Ordering::Relaxed);
        for part in 0..count {
            let mapped = &self.mapped[(number + part) as usize];
            let (at, left) = (first + part * PAGES, pages - part * PAGES);
            // ORDERING: SeqCst, noted before the mapping is made.
            mapped.first.store(at, Ordering::SeqCst);
            // ORDERING: SeqCst, as above.
            mapped.pages.store(left.min(PAGES), Ordering::SeqCst);
        }
        let offset = if count > 1 { 0 } else { first % PAGES };
        (number, PhysAddr::new((number * PAGES + offset) << 12))
    }

    fn each(&self, number: u64, pages: u64, note: impl Fn(&Mapped, u64)) {
        let now = self.now();
        for part in 0..pages.div_ceil(PAGES).max(1) {
            note(&self.mapped[(number + part) as usize], now);
        }
    }

    /// The mapping was unmapped just now.
    pub(crate) fn unmapped(&self, number: u64, pages: u64) {
        // ORDERING: SeqCst, one order of all moments.
        self.each(number, pages, |mapped, now| {
            mapped.unmapped.store(now, Ordering::SeqCst);
        });
    }

    /// Hardware forgets leaves, and with `links` the way to them too; then nobody uses the mapping.
    pub(crate) fn flush(&self, links: bool) {
        let mut caches = self.hardware.lock().unwrap_or_else(PoisonError::into_inner);
        caches.leaves.clear();
        if links {
            caches.links.clear();
        }
    }

    /// The mapping was flushed after it had been unmapped.
    pub(crate) fn flushed(&self, number: u64, pages: u64) {
        // ORDERING: SeqCst, one order of all moments.
        self.each(number, pages, |mapped, now| {
            mapped.flushed.store(now, Ordering::SeqCst);
        });
    }

    /// Checks that who began to look at `since` may be led from `page` to `to`.
    fn check(&self, page: u64, to: u64, since: u64, by_hardware: bool) {
        let number = to / PAGES;
        let mapped = &self.mapped[number as usize];
        // ORDERING: SeqCst, as at the stores.
        let first = mapped.first.load(Ordering::SeqCst);
        // ORDERING: SeqCst, as above.
        let pages = mapped.pages.load(Ordering::SeqCst);
        let inside = page >= first && page < first + pages;
        assert!(inside, "{page:#x} leads to {to:#x}, a frame of {first:#x}");
        let expected = match pages == PAGES {
            true => page - first,
            false => page % PAGES,
        };
        assert_eq!(to % PAGES, expected, "the frame of {page:#x}");
        let end = if by_hardware {
            &mapped.flushed
        } else {
            &mapped.unmapped
        };
        // ORDERING: SeqCst, one order of all moments.
        let end = end.load(Ordering::SeqCst);
        assert!(
            end == 0 || end > since,
            "{page:#x} leads to {to:#x}, whose mapping ended at {end}, before {since} (hardware: {by_hardware})"
        );
    }

    /// A CPU translates an address. Whether it is mapped.
    pub(crate) fn translate(&self, page: u64) -> bool {
        let guard = self.guard();
        let since = self.now();
        let found = self.table.translate(&guard, Iova::new(page << 12));
        if let Some(found) = found {
            self.check(page, found.to.as_u64() >> 12, since, false);
        }
        found.is_some()
    }

    /// A CPU looks at all mappings of a range.
    pub(crate) fn look_through(&self, first: u64, pages: u64) {
        let guard = self.guard();
        let since = self.now();
        let _ = self.table.mappings(&guard, range(first, pages), |leaf| {
            let (page, to) = (leaf.at.as_u64() >> 12, leaf.to.as_u64() >> 12);
            self.check(page, to, since, false);
            std::ops::ControlFlow::Continue(())
        });
    }

    /// A device accesses a page, through all that hardware has cached.
    pub(crate) fn dma(&self, page: u64, write: bool) {
        let mut caches = self.hardware.lock().unwrap_or_else(PoisonError::into_inner);
        let since = self.now();
        if let Some(to) = caches.leaves.get(&page) {
            return self.check(page, *to, since, true);
        }
        // From the deepest link that is cached: a table of that level.
        let cached = (1..4).find_map(|level| {
            let table = caches.links.get(&(level, page >> (9 * level)))?;
            Some((level, *table))
        });
        let root = self.table.root().unwrap().page().as_u64();
        let (mut level, mut table) = cached.unwrap_or((4, root));
        loop {
            let index = (page >> (9 * (level - 1))) as usize & 511;
            let word = self.pool.snoop(table, index);
            let address = word & 0x000f_ffff_ffff_f000;
            if word & 3 == 0 {
                return;
            }
            if level == 1 || word & 0x80 != 0 {
                let bits = if write && word & 2 != 0 { 0x300 } else { 0x100 };
                self.pool.note(table, index, word, bits);
                let to = (address >> 12) + (page & ((1 << (9 * (level - 1))) - 1));
                caches.leaves.insert(page, to);
                return self.check(page, to, since, true);
            }
            self.pool.note(table, index, word, 0x100);
            level -= 1;
            table = address;
            caches.links.insert((level, page >> (9 * level)), table);
        }
    }

    /// Unmaps, flushes, waits for who walks in what was detached, redeems.
    pub(crate) fn unmap(&self, first: u64, pages: u64, number: u64, to: PhysAddr, debt: bool) {
        let unmapped = self.table.unmap(&self.guard(), range(first, pages));
        self.unmapped(number, pages);
        let epoch = unmapped.tables.then(|| self.quiescence.retire_epoch());
        self.flush(unmapped.tables || debt);
        self.flushed(number, pages);
        if let Some(epoch) = epoch {
            let start = Instant::now();
            let mut looks = 0_u32;
            while !self.quiescence.has_passed(epoch) {
                std::hint::spin_loop();
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(1000) {
                    assert!(start.elapsed() < PATIENCE, "a guard is held for ever");
                    std::thread::yield_now();
                }
            }
        }
        let redeemed = loop {
            // SAFETY: hardware was made to forget, walk caches too where tables were detached, whose grace
            // period is over.
            let redeemed = unsafe {
                self.table
                    .redeem(&self.guard(), range(first, pages), to, |_, _| ())
            };
            // Another thread runs a step of reclaim.
            if !matches!(redeemed, Err(TableError::ReclaimPending { .. })) {
                break redeemed;
            }
            std::thread::yield_now();
        };
        assert!(
            redeemed.is_ok(),
            "{pages} pages at {first:#x}: {redeemed:?}"
        );
    }

    /// One step of a reclaimer, whose flush may fail. Whether there is more to do.
    pub(crate) fn reclaim(&self, fails: bool) -> bool {
        match self.table.reclaim(&self.quiescence, &*self.pool) {
            ReclaimStep::Done => false,
            ReclaimStep::Again | ReclaimStep::Swept | ReclaimStep::Busy => true,
            ReclaimStep::Flush { attempt, .. } if fails => {
                let _ = self
                    .table
                    .reclaim_cancel(&self.quiescence, &*self.pool, attempt);
                true
            }
            ReclaimStep::Flush { attempt, .. } => {
                self.flush(true);
                // Another thread may have done the same, and gone on with the next attempt.
                for _ in 0..attempt % 8 * 2000 {
                    std::hint::spin_loop();
                }
                // ORDERING: Relaxed, a count.
                self.attempts.fetch_add(1, Ordering::Relaxed);
                // SAFETY: hardware was made to forget everything after the step.
                unsafe {
                    self.table
                        .reclaim_flushed(&self.quiescence, &*self.pool, attempt)
                };
                true
            }
        }
    }

    /// Maps, and checks that it is there at once.
    pub(crate) fn map(&self, first: u64, pages: u64, largest: PageSize) -> (u64, PhysAddr) {
        let (number, to) = self.begin(first, pages);
        let mapped = self.table.map(
            &self.guard(),
            range(first, pages),
            to,
            Perms::ReadWrite,
            largest,
        );
        assert!(mapped.is_ok(), "{pages} pages at {first:#x}: {mapped:?}");
        for page in [first, first + pages / 2, first + pages - 1] {
            assert!(self.translate(page), "{page:#x} was mapped just now");
        }
        (number, to)
    }
}
