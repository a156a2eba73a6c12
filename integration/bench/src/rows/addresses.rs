//! The row of free addresses: what a range costs that its CPU has at hand.

use std::hint::black_box;

use hv_core::{Iova, IovaRange, PageCount, PageSize};
use hv_iommu::iova::{IovaAlign, IovaAllocator};

use super::{BLANK, Job, Row};
use crate::lane::{Lane, Mapped, Subject};
use crate::platform::SNOOPED;
use crate::results::Who;

/// Pairs in a round.
const PAIRS: u64 = 100_000;
/// Ranges that are at hand in both lanes.
const AT_HAND: u64 = 16;

/// First pages of ranges on a stack that nobody else reaches.
struct Stack(Vec<u64>);

impl Subject for Stack {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

#[inline(never)]
fn by_hand(stack: &mut Stack) {
    for _ in 0..PAIRS {
        if let Some(page) = stack.0.pop() {
            stack.0.push(black_box(page));
        }
    }
}

/// The allocator of a domain of 39 bits.
struct Addresses(IovaAllocator);

impl Addresses {
    fn new() -> Self {
        let whole = IovaRange::new(Iova::new(0), PageCount::new(1 << 27).expect("not zero"));
        let whole = whole.expect("it starts at 0");
        let space = IovaAllocator::new(whole, &[], crate::arena::THREADS);
        let addresses = Self(space.expect("the host has memory"));
        let ranges: Vec<_> = (0..AT_HAND).filter_map(|_| addresses.take()).collect();
        ranges.into_iter().for_each(|range| addresses.give(range));
        addresses
    }

    fn take(&self) -> Option<IovaRange> {
        let limit = Iova::new(u64::MAX);
        let taken = self
            .0
            .alloc(&SNOOPED, PageCount::ONE, IovaAlign::PAGE, limit);
        taken.ok()
    }

    fn give(&self, range: IovaRange) {
        let given = self.0.release(&SNOOPED, range);
        given.expect("it was taken whole");
    }

    #[inline(never)]
    fn pairs(&self) {
        for _ in 0..PAIRS {
            if let Some(range) = self.take() {
                self.give(black_box(range));
            }
        }
    }
}

impl Subject for Addresses {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

fn lanes() -> Vec<Lane> {
    let stack = Stack(
        (1..=AT_HAND)
            .map(|page| page * PageSize::Size4K.pages())
            .collect(),
    );
    vec![
        Lane::new(Who::Floor, PAIRS, stack, |_| {}, by_hand),
        Lane::new(
            Who::Engine,
            PAIRS,
            Addresses::new(),
            |_| {},
            |addresses| addresses.pairs(),
        ),
    ]
}

/// The row.
pub(super) const ROWS: &[Row] = &[Row {
    id: "B-D2",
    workload: "take a range of 4K from a CPU's cache and give it back",
    floor: "pop and push on a stack of the thread's own",
    unit: "pair",
    remark: "the engine claims and frees the cache twice, which takes two locked operations: a call can be interrupted or find itself on another CPU, which the floor cannot",
    job: Job::Lanes(|_| lanes()),
    ..BLANK
}];
