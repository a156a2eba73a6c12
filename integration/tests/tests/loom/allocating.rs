//! Models of the allocator of addresses: no range has two owners, none is lost, and none is reported as used up while it
//! lies in a cache. Magazines hold two ranges here, and the depot one magazine.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use hv_core::platform::Cpus;
use hv_core::{CpuId, Iova, IovaRange, PageCount, PageSize};
use hv_iommu::SpaceError;
use hv_iommu::iova::{IovaAlign, IovaAllocator};

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

/// An allocator of single pages, for two CPUs, and who holds what.
struct World {
    space: IovaAllocator,
    /// Loom does not see this lock, which is never waited for: nothing under it is a step.
    out: Mutex<BTreeSet<u64>>,
}

impl World {
    /// With this many pages behind page 0, all of them out.
    fn new(pages: u64) -> Arc<Self> {
        let whole = PageCount::new(pages + 1).unwrap();
        let whole = IovaRange::new(Iova::new(0), whole).unwrap();
        let world = Self {
            space: IovaAllocator::new(whole, &[page(0)], 2).unwrap(),
            out: Mutex::new(BTreeSet::new()),
        };
        for number in 1..=pages {
            world.take(world.space.reserve(page(number)).unwrap());
        }
        Arc::new(world)
    }

    fn take(&self, range: IovaRange) -> u64 {
        let number = range.start().as_u64() / PageSize::Size4K.bytes();
        let is_new = self.out.lock().unwrap().insert(number);
        assert!(is_new, "page {number} has two owners");
        number
    }

    fn alloc(&self, cpu: u32) -> Result<u64, SpaceError> {
        self.alloc_below(cpu, 1 << 20)
    }

    /// A page with a number below `end`.
    fn alloc_below(&self, cpu: u32, end: u64) -> Result<u64, SpaceError> {
        let limit = Iova::new(end * PageSize::Size4K.bytes() - 1);
        let taken = self
            .space
            .alloc(&Cpu(cpu), PageCount::ONE, IovaAlign::PAGE, limit)?;
        Ok(self.take(taken))
    }

    fn release(&self, cpu: u32, number: u64) {
        let is_out = self.out.lock().unwrap().remove(&number);
        assert!(is_out);
        self.space.release(&Cpu(cpu), page(number)).unwrap();
    }

    /// All pages are out or free, and every free one can be had.
    fn check(&self, pages: u64) {
        let out = self.out.lock().unwrap().len() as u64;
        assert_eq!(self.space.free_pages(), pages - out);
        for _ in out..pages {
            self.alloc(2).expect("a free page");
        }
        assert!(self.alloc(2).is_err());
    }
}

fn page(number: u64) -> IovaRange {
    IovaRange::new(Iova::new(number * PageSize::Size4K.bytes()), PageCount::ONE).unwrap()
}

/// Runs `other` beside `this`.
fn beside<A, B: 'static>(
    world: &Arc<World>,
    this: impl FnOnce(&World) -> A,
    other: impl FnOnce(&World) -> B + Send + 'static,
) -> (A, B) {
    let there = world.clone();
    let thread = loom::thread::spawn(move || other(&there));
    let here = this(world);
    (here, thread.join().unwrap())
}

/// One takes a page and gives it back, the other gives a page and takes one; both believe to be the same CPU.
fn two_contexts() {
    let world = World::new(4);
    world.release(0, 1);
    let ((), ()) = beside(
        &world,
        |world| {
            match world.alloc(0) {
                Ok(number) => world.release(0, number),
                Err(SpaceError::CachesInUse) => saw("told to come again"),
                Err(other) => panic!("{other}"),
            };
        },
        |world| {
            world.release(0, 2);
            match world.alloc(0) {
                Ok(1) => saw("the page of another"),
                Ok(number) => assert_eq!(number, 2),
                Err(SpaceError::CachesInUse) => {}
                Err(other) => panic!("{other}"),
            }
        },
    );
    world.check(4);
}

/// One page is left, in the cache of one CPU; that one and another ask.
fn last_range() {
    let world = World::new(1);
    world.release(0, 1);
    let (here, there) = beside(&world, |world| world.alloc(0), |world| world.alloc(1));
    match (here, there) {
        (Ok(_), Err(SpaceError::Full { .. })) => saw("had from the cache"),
        (Ok(_), Err(SpaceError::CachesInUse)) => saw("told to come again"),
        (Err(_), Ok(_)) => saw("had from the other's cache"),
        other => panic!("{other:?}"),
    }
    world.check(1);
}

/// Two pages are in the cache of one CPU; that one and another ask.
fn emptying_and_alloc() {
    let world = World::new(2);
    world.release(0, 1);
    world.release(0, 2);
    let (here, there) = beside(&world, |world| world.alloc(0), |world| world.alloc(1));
    for asked in [here, there] {
        match asked {
            Ok(_) => {}
            Err(SpaceError::CachesInUse) => saw("told to come again"),
            Err(other) => panic!("{other} with a page for each"),
        }
    }
    if here.is_ok() && there.is_ok() {
        saw("a page for each");
    }
    assert!(here.is_ok() || there.is_ok());
    world.check(2);
}

/// One gives the only page back to its cache while another empties caches.
fn emptying_and_release() {
    let world = World::new(1);
    let ((), there) = beside(&world, |world| world.release(0, 1), |world| world.alloc(1));
    match there {
        Ok(_) => saw("the page that came back"),
        Err(_) => saw("before it came back"),
    }
    world.check(1);
}

/// A CPU's magazine goes to the depot and, since that context is moved, to another CPU's cache, while somebody empties
/// caches who needs one of its two pages.
fn emptying_and_depot() {
    let world = World::new(5);
    // The magazine behind the loaded one of CPU 1 has pages 1 and 2.
    for number in 1..=4 {
        world.release(1, number);
    }
    let (here, moved) = beside(
        &world,
        |world| world.alloc_below(2, 3),
        |world| {
            world.release(1, 5);
            world.alloc(0)
        },
    );
    match here {
        Ok(_) => saw("one of the two"),
        Err(SpaceError::CachesInUse) => saw("told to come again"),
        Err(other) => panic!("{other}: one of the two pages is free all the time"),
    }
    match moved {
        Ok(1 | 2) => saw("a page of the magazine that moved"),
        Ok(_) => saw("a page that was made free"),
        Err(SpaceError::CachesInUse) => {}
        Err(other) => panic!("{other}"),
    }
    world.check(5);
}

/// Two empty the same cache at once, which has a page for each.
fn two_emptying() {
    let world = World::new(2);
    world.release(0, 1);
    world.release(0, 2);
    let (here, there) = beside(&world, |world| world.alloc(1), |world| world.alloc(2));
    for asked in [here, there] {
        match asked {
            Ok(_) => {}
            Err(SpaceError::CachesInUse) => saw("told to come again"),
            Err(other) => panic!("{other} with a page for each"),
        }
    }
    assert!(here.is_ok() || there.is_ok());
    world.check(2);
}

models! {
    /// Nobody waits for a cache that another context of the same CPU is at, and nothing is lost or given twice.
    /// Shows: bc16.
    two_contexts_of_one_cpu: Exhaustive, sees ["the page of another", "told to come again"], two_contexts;

    /// Of two who ask for the last range one gets it.
    the_last_range_has_one_owner: Exhaustive,
        sees ["had from the cache", "had from the other's cache"], last_range;

    /// Nobody is told that addresses are used up while there are some in a cache, also not in one that is in use.
    emptying_against_cached_alloc: Exhaustive, sees ["told to come again", "a page for each"], emptying_and_alloc;

    /// What comes back while caches are emptied is found or stays.
    emptying_against_release: Exhaustive,
        sees ["the page that came back", "before it came back"], emptying_and_release;

    /// Nothing slips through the depot from a cache that is not emptied yet to one that was.
    emptying_against_the_depot: Exhaustive,
        sees ["one of the two", "a page of the magazine that moved", "a page that was made free"], emptying_and_depot;

    /// Two who empty caches at once each get what there is for them, or are told to come again.
    two_empty_caches_at_once: Exhaustive, sees [], two_emptying;
}
