//! What all models of a table share: one table, its memory, its epochs, and checks of the outcome.

#![expect(unsafe_code, reason = "redeeming and draining are unsafe")]

use std::collections::BTreeMap;
use std::sync::Arc;

use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::{Guard, Quiescence};
use hv_iommu::table::{Drain, DrainStep, Geometry, Table, TableError};
use hv_iommu::{Level, RootPointer};
use hv_vtd::SecondStage;
use loom::thread::JoinHandle;

use crate::arena::{Arena, Use, become_cpu};
use crate::hardware::{Reads, Walker};

/// How many frames models map.
const FRAMES: usize = 3;

/// One table of two words per level, shared by the actors of a model.
pub(crate) struct World {
    pub(crate) arena: Arc<Arena>,
    pub(crate) table: Table<SecondStage<1>, Arc<Arena>>,
    pub(crate) quiescence: Quiescence,
    root: RootPointer,
    /// What actors have told: bit n, that the mapping of page n is done; the rest is the model's.
    pub(crate) told: AtomicU64,
    /// The content of the frames: written by who maps one, read by devices that reach it.
    contents: [Use; FRAMES],
}

/// The frame number `number` of those that models map.
pub(crate) fn frame(number: u64) -> PhysAddr {
    PhysAddr::new(0x10_0000 + (number << 12))
}

/// The first byte of page `page`.
pub(crate) fn iova(page: u64) -> Iova {
    Iova::new(page << 12)
}

/// `count` pages from page `first`.
pub(crate) fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(iova(first), PageCount::new(count).unwrap()).unwrap()
}

impl World {
    /// An empty table of `levels` levels for walkers that read as `reads` says. CPU `n` has
    /// `per_cpu[n]` frames for tables; CPU 0, which runs this, needs one for the root.
    pub(crate) fn new(levels: u8, reads: Reads, per_cpu: [usize; 3]) -> Arc<Self> {
        let arena = Arc::new(Arena::new(per_cpu));
        let geometry = Geometry {
            root: Level::new(levels).unwrap(),
            largest_leaf: Level::new(levels.min(3)).unwrap(),
            coherent: reads == Reads::Snooping,
            live_resize: true,
            dirty: false,
        };
        let table = Table::new(SecondStage::new(), geometry, arena.clone()).unwrap();
        let root = table.root().unwrap();
        Arc::new(Self {
            arena,
            table,
            quiescence: Quiescence::new(3).unwrap(),
            root,
            told: AtomicU64::new(0),
            contents: std::array::from_fn(|_| Use::new()),
        })
    }

    /// Runs an actor as CPU `cpu`.
    pub(crate) fn on_cpu<T: 'static>(
        self: &Arc<Self>,
        cpu: u32,
        act: impl FnOnce(&Self) -> T + 'static,
    ) -> JoinHandle<T> {
        let world = self.clone();
        loom::thread::spawn(move || {
            become_cpu(cpu);
            act(&world)
        })
    }

    pub(crate) fn pin(&self) -> Guard<'_> {
        self.quiescence.pin(&*self.arena)
    }

    /// Writes a frame and maps page `page` to it. Gives the number of tables that were linked.
    pub(crate) fn map(&self, page: u64, to: PhysAddr) -> Result<u64, TableError> {
        let size = PageSize::Size4K;
        let guard = self.pin();
        // After the guard's fence, so that only the leaf's store can publish it.
        self.content(to).have_alone();
        let outcome = self
            .table
            .map(&guard, pages(page, 1), to, Perms::ReadWrite, size);
        outcome.map(|outcome| outcome.tables)
    }

    /// The content of a frame.
    pub(crate) fn content(&self, at: PhysAddr) -> &Use {
        let number = (at.as_u64() - frame(0).as_u64()) >> 12;
        &self.contents[number as usize]
    }

    /// Tells the other actors `bits`.
    pub(crate) fn tell(&self, bits: u64) {
        // ORDERING: Release: who sees the bits sees what was done before.
        self.told.fetch_or(bits, Ordering::Release);
    }

    /// Whether `bits` were told.
    pub(crate) fn is_told(&self, bits: u64) -> bool {
        // ORDERING: Acquire pairs with `tell`.
        self.told.load(Ordering::Acquire) & bits == bits
    }

    pub(crate) fn walker(&self, reads: Reads) -> Walker<'_> {
        Walker::new(&self.arena, self.root, reads)
    }

    /// A device accesses `page`, which only one of `may` is ever mapped at: it never gets anywhere
    /// else, and does not fault once the mapping was told before the access began.
    pub(crate) fn access(&self, walker: &mut Walker<'_>, page: u64, may: &[PhysAddr]) {
        let mapped = self.is_told(1 << page);
        match walker.walk(page) {
            Some(to) => {
                assert!(may.contains(&to), "page {page} leads to {to}");
                self.content(to).reach();
            }
            None => assert!(!mapped, "page {page} is mapped and faults"),
        }
    }

    /// Where the engine says that `page` leads.
    pub(crate) fn translate(&self, page: u64) -> Option<PhysAddr> {
        let found = self.table.translate(&self.pin(), iova(page));
        found.map(|found| found.to)
    }

    /// Empties what was unmapped of a range that was mapped to the run at `to`.
    pub(crate) fn redeem(&self, range: IovaRange, to: PhysAddr) -> Result<u64, TableError> {
        // SAFETY: models say themselves when a device has forgotten; some leave that out on purpose.
        let redeemed = unsafe { self.table.redeem(&self.pin(), range, to, |_, _| ()) };
        redeemed.map(|redeemed| redeemed.tables)
    }

    /// Drains the closed table. Gives what it named and how often.
    pub(crate) fn drain(&self, root: RootPointer) -> BTreeMap<u64, u64> {
        // SAFETY: callers closed the table and waited until all guards of before had ended, or try
        // whether loom notices that they did not; no walker of theirs reaches it.
        let mut drain = unsafe { Drain::new(root) };
        let mut named = BTreeMap::new();
        loop {
            match drain.step(&self.table, usize::MAX) {
                DrainStep::Frames(run) => {
                    for index in 0..run.pages().get() {
                        *named.entry(run.page(index).unwrap().as_u64()).or_insert(0) += 1;
                    }
                }
                DrainStep::More => {}
                DrainStep::Done => return named,
            }
        }
    }

    /// What was drained is exactly `mapped`, and every frame came back.
    pub(crate) fn check_drained(&self, named: &BTreeMap<u64, u64>, mapped: &[PhysAddr]) {
        let expected: BTreeMap<u64, u64> = mapped.iter().map(|to| (to.as_u64(), 1)).collect();
        assert_eq!(*named, expected, "frames handed out at the end");
        assert_eq!(
            self.arena.free_frames(),
            self.arena.frames(),
            "tables leaked"
        );
    }

    /// Ends the table when all actors are gone: it names exactly `mapped`, and every frame comes
    /// back.
    pub(crate) fn end(&self, mapped: &[PhysAddr]) {
        let root = self.table.close().expect("ended twice");
        let named = self.drain(root);
        self.check_drained(&named, mapped);
    }
}
