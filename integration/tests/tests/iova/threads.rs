//! Many threads at one allocator, some of them with the number of one CPU: no page has two owners, none is lost.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hv_core::{Iova, IovaRange};
use hv_iommu::SpaceError;
use hv_iommu::iova::{IovaAlign, IovaAllocator};

use super::{CPUS, Cpu, TOP, choose_fault, first_page, pages, range};

const PAGES: u64 = 512;
const ROUNDS: u64 = 20_000;

/// Who has each page.
struct Owners(Vec<AtomicUsize>);

impl Owners {
    fn change(&self, range: &IovaRange, from: usize, to: usize) {
        let first = first_page(range) as usize;
        for owner in &self.0[first..first + range.pages().get() as usize] {
            // ORDERING: Relaxed, only that each change is one step counts.
            let found = owner.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
            assert_eq!(found, Ok(from), "{range}");
        }
    }
}

fn live(space: &IovaAllocator, owners: &Owners, me: usize, refused: &AtomicU64) {
    let cpu = Cpu((me % CPUS) as u32);
    let mut out = vec![];
    let mut chance = me as u64;
    for _ in 0..ROUNDS {
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let [what, how] = [chance >> 60, chance >> 40 & 0xff];
        if what < 9 {
            let count = pages(1 << (how % 6));
            let limit = if how < 200 { TOP } else { Iova::new(how << 13) };
            match space.alloc(&cpu, count, IovaAlign::natural(count), limit) {
                Ok(taken) => {
                    assert!(taken.last() <= limit);
                    owners.change(&taken, 0, me);
                    out.push(taken);
                }
                Err(SpaceError::Full { .. } | SpaceError::CachesInUse) => {
                    // ORDERING: Relaxed, a count.
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(other) => panic!("{other}"),
            }
        } else if !out.is_empty() {
            let back = out.swap_remove(how as usize % out.len());
            owners.change(&back, me, 0);
            space.release(&cpu, back).unwrap();
        }
    }
    for back in out {
        owners.change(&back, me, 0);
        space.release(&cpu, back).unwrap();
    }
}

#[test]
fn no_page_has_two_owners_and_none_is_lost() {
    choose_fault();
    let space = IovaAllocator::new(range(0, PAGES), &[range(100, 3)], CPUS).unwrap();
    let owners = Owners((0..PAGES).map(|_| AtomicUsize::new(0)).collect());
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for me in 1..=2 * CPUS {
            let (space, owners, refused) = (&space, &owners, &refused);
            scope.spawn(move || live(space, owners, me, refused));
        }
    });
    // ORDERING: Relaxed, the threads are done.
    assert!(refused.load(Ordering::Relaxed) > 0, "the space ran out");
    assert_eq!(space.free_pages(), PAGES - 3);
    space.reserve(range(0, 100)).unwrap();
    space.reserve(range(103, PAGES - 103)).unwrap();
}
