//! Models of who holds on to a domain by a mapping of its own: counted where addresses are taken and given back, on
//! whichever CPU that is. What is held does not end under anybody.

use std::sync::Arc;

use hv_core::platform::Cpus;
use hv_core::{CpuId, Iova, IovaRange, PageCount, PageSize};
use hv_iommu::iova::{IovaAlign, IovaAllocator};

use crate::arena::Use;
use crate::explore::{models, saw};

/// The CPU with this number.
struct Cpu(u32);

#[expect(
    unsafe_code,
    reason = "each thread of a model promises to be another CPU, or to be told apart by the claim"
)]
// SAFETY: the allocator claims what belongs to a CPU, so that even two threads of one number are harmless to it.
unsafe impl Cpus for Cpu {
    fn current_cpu(&self) -> CpuId {
        CpuId::new(self.0)
    }
    fn cpu_count(&self) -> usize {
        2
    }
}

/// The addresses of a domain, and the domain.
struct World {
    space: IovaAllocator,
    domain: Use,
}

impl World {
    /// With one page behind page 0, in the cache of `cpu`.
    fn new(cpu: u32) -> Arc<Self> {
        let space = IovaAllocator::new(pages(0, 2), &[pages(0, 1)], 2).unwrap();
        let page = space.reserve(pages(1, 1)).unwrap();
        space.release(&Cpu(cpu), page).unwrap();
        Arc::new(Self {
            space,
            domain: Use::new(),
        })
    }

    fn lend(&self, cpu: u32) -> IovaRange {
        let taken = self
            .space
            .alloc_held(&Cpu(cpu), PageCount::ONE, IovaAlign::PAGE, LAST);
        taken.unwrap()
    }

    /// Ends the domain if nobody holds on to it. Whether it did.
    fn end(&self) -> bool {
        if self.space.holders() != 0 {
            saw("somebody holds on");
            return false;
        }
        saw("nobody holds on");
        self.domain.have_alone();
        true
    }
}

const LAST: Iova = Iova::new(u64::MAX);

fn pages(first: u64, count: u64) -> IovaRange {
    let start = Iova::new(first * PageSize::Size4K.bytes());
    IovaRange::new(start, PageCount::new(count).unwrap()).unwrap()
}

/// The last mapping goes, on the CPU that it was made on, while somebody ends the domain.
fn the_last_goes() {
    let world = World::new(0);
    let lent = world.lend(0);
    let there = world.clone();
    let lender = loom::thread::spawn(move || {
        there.domain.reach();
        there.space.release_held(&Cpu(0), lent).unwrap();
    });
    if world.end() {
        // Nobody is in a cache any more either: what is there can be had.
        let found = world
            .space
            .alloc(&Cpu(0), PageCount::ONE, IovaAlign::PAGE, LAST);
        assert!(found.is_ok(), "the last holder is still at its cache");
    }
    lender.join().unwrap();
    assert_eq!(world.space.holders(), 0);
}

/// A device's hold is there while a mapping of it is made on one CPU and goes on another. Somebody ends the domain.
fn one_moves() {
    let world = World::new(1);
    world.space.hold();
    let there = world.clone();
    let lender = loom::thread::spawn(move || {
        let lent = there.lend(1);
        // The driver was moved.
        there.space.release_held(&Cpu(0), lent).unwrap();
        there.domain.reach();
        there.space.let_go();
    });
    world.end();
    lender.join().unwrap();
    assert_eq!(world.space.holders(), 0);
}

models! {
    /// What is held ends after the last access under a hold, and after the last holder has left its cache.
    /// Shows: bc18.
    the_end_waits_for_the_last_hold: Exhaustive, sees ["nobody holds on", "somebody holds on"], the_last_goes;

    /// Beginnings and ends on different CPUs add up to nothing only when nobody is left.
    /// Shows: bc18.
    a_hold_that_moves_is_not_missed: Exhaustive, sees ["nobody holds on", "somebody holds on"], one_moves;
}
