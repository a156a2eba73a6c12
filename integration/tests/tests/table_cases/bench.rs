//! One table with the engine's view, the raw words' view, and every frame counted.

#![expect(
    unsafe_code,
    reason = "redeems and drains where no hardware keeps anything"
)]

use std::ops::ControlFlow;
use std::sync::Arc;

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::{Guard, Quiescence};
use hv_iommu::table::{Drain, DrainStep, Geometry, ReclaimStep, Table, TableError};
use hv_iommu::{Level, RootTables};
use hv_tests::arena::Arena;
use hv_tests::walker::{Found, Walker};
use hv_vtd::SecondStage;

/// What machines have: physical address bits.
pub(crate) const HOST_WIDTH: u32 = 46;

/// Every page size, with its level.
pub(crate) const SIZES: [(PageSize, u32); 3] = [
    (PageSize::Size4K, 1),
    (PageSize::Size2M, 2),
    (PageSize::Size1G, 3),
];

pub(crate) const PERMS: [Perms; 3] = [Perms::Read, Perms::Write, Perms::ReadWrite];

pub(crate) struct Bench {
    pub(crate) arena: Arc<Arena>,
    pub(crate) table: Table<SecondStage, Arc<Arena>>,
    pub(crate) quiescence: Quiescence,
    pub(crate) geometry: Geometry,
    root: u64,
}

/// Addresses from this byte on, this many bytes.
pub(crate) fn bytes(from: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova::new(from), PageCount::new(length >> 12).unwrap()).unwrap()
}

/// Every depth, with walkers that snoop and others.
pub(crate) fn geometries() -> impl Iterator<Item = Geometry> {
    let level = |number| Level::new(number).unwrap();
    (3..6).flat_map(move |root| {
        [false, true].map(|coherent| Geometry {
            root: level(root),
            root_tables: RootTables::ONE,
            largest_leaf: level(3),
            coherent,
            live_resize: true,
            dirty: false,
        })
    })
}

impl Bench {
    pub(crate) fn new(geometry: Geometry) -> Self {
        #[cfg(hv_fault)]
        if let Ok(name) = std::env::var("HV_FAULT") {
            hv_core::fault::Fault::from_name(&name).unwrap().switch_on();
        }
        let arena = Arc::new(Arena::new(1024));
        // SAFETY: all guards and all of reclaim are of this value's one quiescence, on its one CPU.
        let table = unsafe { Table::new(SecondStage::new(), geometry, arena.clone()) }.unwrap();
        let root = table.root().unwrap().page().as_u64();
        Self {
            arena,
            table,
            quiescence: Quiescence::new(1).unwrap(),
            geometry,
            root,
        }
    }

    /// Four levels, walkers that snoop and note accesses and writes.
    pub(crate) fn dirty() -> Self {
        let plain = geometries().nth(3).unwrap();
        Self::new(Geometry {
            dirty: true,
            ..plain
        })
    }

    pub(crate) fn guard(&self) -> Guard<'_> {
        self.quiescence.pin(&*self.arena)
    }

    pub(crate) fn walker(&self) -> Walker<impl Fn(u64, usize) -> u64> {
        Walker {
            read: |at, index| match self.geometry.coherent {
                true => self.arena.snoop(at, index),
                false => self.arena.read_memory(at, index),
            },
            root: self.root,
            levels: self.geometry.root.number().into(),
            host_width: HOST_WIDTH,
            notes_accesses: self.geometry.dirty,
        }
    }

    pub(crate) fn map(
        &self,
        range: IovaRange,
        to: u64,
        perms: Perms,
        largest: PageSize,
    ) -> Result<(), TableError> {
        let to = PhysAddr::new(to);
        let mapped = self.table.map(&self.guard(), range, to, perms, largest);
        self.arena.check_order(self.geometry.coherent);
        mapped.map(drop)
    }

    pub(crate) fn unmap(&self, range: IovaRange) {
        let _ = self.table.unmap(&self.guard(), range);
        self.arena.check_order(self.geometry.coherent);
    }

    /// Redeems, and gives the pages that were written by a device.
    pub(crate) fn redeem(&self, range: IovaRange, to: u64) -> Result<Vec<u64>, TableError> {
        let (to, mut written) = (PhysAddr::new(to), vec![]);
        let dirty = |at: Iova, _| written.push(at.as_u64());
        // SAFETY: no hardware keeps anything, and there is no other guard.
        let redeemed = unsafe { self.table.redeem(&self.guard(), range, to, dirty) };
        self.arena.check_order(self.geometry.coherent);
        redeemed.map(|_| written)
    }

    pub(crate) fn free(&self, range: IovaRange, to: u64) {
        self.unmap(range);
        assert_eq!(self.redeem(range, to), Ok(vec![]), "{range} to {to:#x}");
    }

    /// Where engine and raw words lead; they agree.
    pub(crate) fn walk(&self, at: u64) -> Option<Found> {
        let walked = self.walker().walk(at).unwrap();
        let translated = self.table.translate(&self.guard(), Iova::new(at));
        let translated = translated.map(|found| Found {
            to: found.to.as_u64(),
            readable: found.perms.readable(),
            writable: found.perms.writable(),
            level: found.level.number().into(),
        });
        assert_eq!(translated, walked, "{at:#x}");
        walked
    }

    /// The address that `at` leads to.
    pub(crate) fn to(&self, at: u64) -> Option<u64> {
        self.walk(at).map(|found| found.to)
    }

    /// Each leaf: its address, where it leads, its level.
    pub(crate) fn leaves(&self) -> Vec<(u64, u64, u32)> {
        let bits = 12 + 9 * u32::from(self.geometry.root.number());
        let mut leaves = vec![];
        let _ = self
            .table
            .mappings(&self.guard(), bytes(0, 1 << bits), |leaf| {
                let (at, to) = (leaf.at.as_u64(), leaf.to.as_u64());
                leaves.push((at, to, leaf.level.number().into()));
                ControlFlow::Continue(())
            });
        leaves
    }

    /// The tables that are linked.
    pub(crate) fn tables(&self) -> Vec<(u32, u64)> {
        let mut tables = vec![];
        let shown = self
            .walker()
            .tables(|level, prefix| tables.push((level, prefix)));
        shown.unwrap();
        tables.sort_unstable();
        tables
    }

    /// The word that leads from `at` to its page.
    pub(crate) fn leaf_word(&self, at: u64) -> ((u64, usize), u64) {
        let place = *self.walker().path(at).unwrap().last().unwrap();
        (place, self.arena.snoop(place.0, place.1))
    }

    /// Gives all empty tables back.
    pub(crate) fn reclaim(&self) {
        self.table.reclaim_rewind();
        self.steps();
    }

    /// The steps of a reclaimer until it has nothing left to do.
    pub(crate) fn steps(&self) {
        loop {
            match self.table.reclaim(&self.quiescence, &*self.arena) {
                ReclaimStep::Done => break,
                ReclaimStep::Flush { attempt, .. } => {
                    // SAFETY: no hardware keeps anything.
                    unsafe {
                        self.table
                            .reclaim_flushed(&self.quiescence, &*self.arena, attempt)
                    };
                }
                _ => {}
            }
            self.arena.check_order(self.geometry.coherent);
        }
    }

    /// Ends the table: gives how many leaves it still had. No frame stays.
    pub(crate) fn end(self) -> usize {
        let root = self.table.close().unwrap();
        // SAFETY: the table was closed just now, no guard is held and no hardware walks.
        let mut drain = unsafe { Drain::new(root) };
        let mut leaves = 0;
        loop {
            match drain.step(&self.table, 1000) {
                DrainStep::Frames(_) => leaves += 1,
                DrainStep::More => {}
                DrainStep::Done => break,
            }
        }
        assert_eq!(self.arena.taken(), 0, "table pages left");
        leaves
    }
}
