//! Random operations, and how they are drawn: few places, many collisions, every page size.

use hv_core::{PageSize, Perms};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed};

use crate::subject::{Job, Shape, State, Subject, pages_of};

/// Pages of 1 GiB.
const GIB: u64 = 1 << 18;

/// One step of a run. Indices choose among the regions that there are.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Map(Draw),
    Split(Index, Index),
    Unmap(Index),
    Redeem(Index),
    Forget(Index),
}

/// A mapping that is drawn before the table's shape is known.
#[derive(Clone, Debug)]
pub(crate) struct Draw {
    place: u64,
    offset: u64,
    pages: u64,
    skew: u64,
    perms: Perms,
    largest: u32,
    shared: bool,
}

impl Draw {
    /// The job. Each has target frames of its own: `number` is never used twice.
    pub(crate) fn job(&self, shape: Shape, number: u64) -> Job {
        let top = 1 << (9 * shape.levels);
        let base = [0, GIB - 512, GIB, 5 * GIB, top - GIB, top - 512, top][self.place as usize];
        let largest = self.largest.min(shape.largest);
        let (first, pages) = if self.shared {
            let pages = pages_of(largest);
            ((base + self.offset) & !(pages - 1), pages)
        } else if self.pages >= GIB {
            // As many words as leaves of 4 KiB take too long.
            let fits = shape.largest >= 2 && self.largest >= 2;
            (base & !511, if fits { GIB + 512 } else { 1024 })
        } else {
            (base + self.offset, self.pages)
        };
        let skew = if self.shared || self.pages >= GIB {
            self.skew & !511
        } else {
            self.skew
        };
        let skew = if self.shared { 0 } else { skew };
        Job {
            first,
            pages,
            // Congruent to the address modulo 1 GiB but for the skew, and below 2^46 bytes.
            to: ((number + 1) << 20 | first & (GIB - 1)) + skew,
            perms: self.perms,
            largest: PageSize::ALL[if self.shared { largest } else { self.largest } as usize - 1],
            shared: self.shared,
        }
    }
}

fn draw() -> impl Strategy<Value = Draw> {
    let offset = prop_oneof![4 => Just(0), 1 => Just(511), 3 => Just(512), 3 => 0..1024_u64];
    let pages = prop_oneof![
        2 => 1..4_u64,
        2 => Just(512_u64),
        1 => 500..1100_u64,
        1 => Just(1536_u64),
        2 => Just(GIB),
    ];
    let skew = prop_oneof![6 => Just(0_u64), 1 => Just(1), 2 => Just(512)];
    let perms = prop_oneof![
        Just(Perms::Read),
        Just(Perms::Write),
        Just(Perms::ReadWrite)
    ];
    let place = prop_oneof![12 => 0..4_u64, 4 => 4..6_u64, 1 => Just(6_u64)];
    let largest = prop_oneof![1 => Just(1_u32), 2 => Just(2), 3 => Just(3)];
    let parts = (
        place,
        offset,
        pages,
        skew,
        perms,
        largest,
        prop::bool::weighted(0.25),
    );
    parts.prop_map(
        |(place, offset, pages, skew, perms, largest, shared)| Draw {
            place,
            offset,
            pages,
            skew,
            perms,
            largest,
            shared,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => draw().prop_map(Op::Map),
        1 => any::<(Index, Index)>().prop_map(|(region, leaf)| Op::Split(region, leaf)),
        3 => any::<Index>().prop_map(Op::Unmap),
        3 => any::<Index>().prop_map(Op::Redeem),
        1 => any::<Index>().prop_map(Op::Forget),
    ]
}

/// Any shape of table.
pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    (3..6_u32, prop_oneof![1..4_u32, Just(3)], any::<bool>()).prop_map(
        |(levels, largest, coherent)| Shape {
            levels,
            largest,
            coherent,
        },
    )
}

/// Up to `most` draws of mappings.
pub(crate) fn draws(most: usize) -> impl Strategy<Value = Vec<Draw>> {
    prop::collection::vec(draw(), 1..=most)
}

/// The same runs each time, unless the environment chooses a seed.
pub(crate) fn config(cases: u32) -> Config {
    let mut config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(0x0009_1e57_7ab1_e000);
    }
    config
}

/// Runs `ops` on a new table, and checks everything after each.
fn run(shape: Shape, ops: &[Op], probes: &[(Index, u64)]) {
    let mut subject = Subject::new(shape);
    for (number, op) in ops.iter().enumerate() {
        let starts = |state: Option<State>| -> Vec<u64> {
            let regions = subject.regions.values();
            let of_state = regions.filter(|region| state.is_none_or(|state| region.state == state));
            of_state.map(|region| region.first).collect()
        };
        let pick =
            |index: &Index, starts: Vec<u64>| (!starts.is_empty()).then(|| *index.get(&starts));
        let changed = match op {
            Op::Map(draw) => {
                let job = draw.job(shape, number as u64);
                subject.check_vacancy(job.first, job.pages);
                subject.map(&job);
                Some(job.first)
            }
            Op::Split(region, leaf) => {
                let first = pick(region, starts(Some(State::Mapped)));
                first.inspect(|first| {
                    let leaves = subject.regions[first].leaves.len();
                    if leaves > 1 {
                        subject.split(*first, 1 + leaf.index(leaves - 1));
                    }
                })
            }
            Op::Unmap(region) => {
                let first = pick(region, starts(Some(State::Mapped)));
                first.inspect(|first| subject.unmap(*first))
            }
            Op::Redeem(region) => {
                let first = pick(region, starts(None));
                first
                    .filter(|first| subject.regions[first].state != State::Forgotten)
                    .inspect(|first| subject.redeem(*first))
            }
            Op::Forget(region) => {
                let first = pick(region, starts(Some(State::Pending)));
                first.inspect(|first| {
                    subject.regions.get_mut(first).unwrap().state = State::Forgotten;
                })
            }
        };
        if let Some(region) = changed.and_then(|first| subject.regions.get(&first)) {
            subject.compare_region(region);
        }
        subject.compare_all();
        for (region, offset) in probes {
            let near = pick(region, subject.regions.keys().copied().collect());
            subject.compare((near.unwrap_or(0) << 12).wrapping_add(*offset));
            subject.compare(offset.rotate_left(31));
        }
    }
    subject.end();
}

proptest! {
    #![proptest_config(config(768))]

    #[cfg_attr(not(hv_fault), test)]
    fn the_table_does_what_a_map_of_pages_does(
        shape in shape(),
        ops in prop::collection::vec(op(), 1..40),
        probes in prop::collection::vec((any::<Index>(), 0..1_u64 << 40), 4),
    ) {
        run(shape, &ops, &probes);
    }
}
