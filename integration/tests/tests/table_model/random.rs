//! Random operations, and how they are drawn: few places, many collisions, every page size.

use hv_core::Perms;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed};

use crate::subject::{Job, Shape, State, Subject, pages_of, size_of_level};
use crate::under_test;

/// Pages of 1 GiB.
const GIB: u64 = 1 << 18;
/// Pages of 512 GiB: what a table of level 3 maps.
const TABLE_OF_3: u64 = 1 << 27;

/// One step of a run. Indices choose among the regions that there are.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Map(Draw),
    Split(Index, Index),
    Join(Index),
    Unmap(Index),
    Redeem(Index),
    Forget(Index),
    Protect(Index, Perms),
    SplitLeaf(Index, Index),
    Merge(Index, Index, u32),
    Touch(Index, Index, bool),
    TouchStale(Index),
    Harvest(Index, u64, bool),
    Reclaim(u32),
    Flushed(u64),
    Cancel(u64),
    Rewind,
    ReclaimAll,
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
    spares: u64,
}

impl Draw {
    /// The job. Each has target frames of its own: `number` is never used twice.
    pub(crate) fn job(&self, shape: Shape, number: u64) -> Job {
        let top = 1 << shape.page_bits();
        // Where the second table of the root begins, if there is one.
        let edge = match shape.root_tables {
            0 => GIB,
            _ => (1 << (9 * shape.levels)) - 512,
        };
        let base = [0, GIB - 512, edge, 5 * GIB, top - GIB, top - 512, top][self.place as usize];
        let base = if self.pages == TABLE_OF_3 {
            // All of a table of level 3, and of the root where there are no more levels.
            if shape.levels > 3 { TABLE_OF_3 } else { 0 }
        } else {
            base
        };
        let largest = self.largest.min(shape.largest);
        let (first, pages) = if self.shared {
            let pages = pages_of(largest);
            ((base + self.offset) & !(pages - 1), pages)
        } else if self.pages == TABLE_OF_3 && shape.largest == 3 {
            (base, TABLE_OF_3)
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
        let skew = if self.shared || pages == TABLE_OF_3 {
            0
        } else {
            skew
        };
        let wanted = if pages == TABLE_OF_3 { 3 } else { self.largest };
        Job {
            first,
            pages,
            // Congruent to the address modulo 1 GiB but for the skew, and below 2^46 bytes.
            to: ((number + 1) << 28 | first & (GIB - 1)) + skew,
            perms: self.perms,
            largest: size_of_level(if self.shared { largest } else { wanted }),
            shared: self.shared,
            spares: if self.shared { 0 } else { self.spares },
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
        1 => Just(TABLE_OF_3),
    ];
    let skew = prop_oneof![6 => Just(0_u64), 1 => Just(1), 2 => Just(512)];
    let perms = perms();
    let spares = prop_oneof![2 => Just(0_u64), 1 => 1..6_u64];
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
        spares,
    );
    parts.prop_map(
        |(place, offset, pages, skew, perms, largest, shared, spares)| Draw {
            place,
            offset,
            pages,
            skew,
            perms,
            largest,
            shared,
            spares,
        },
    )
}

fn perms() -> impl Strategy<Value = Perms> {
    prop::sample::select(under_test::PERMS)
}

fn op() -> impl Strategy<Value = Op> {
    let two = any::<(Index, Index)>;
    prop_oneof![
        14 => draw().prop_map(Op::Map),
        3 => two().prop_map(|(region, leaf)| Op::Split(region, leaf)),
        2 => any::<Index>().prop_map(Op::Join),
        12 => any::<Index>().prop_map(Op::Unmap),
        11 => any::<Index>().prop_map(Op::Redeem),
        1 => any::<Index>().prop_map(Op::Forget),
        3 => (any::<Index>(), perms()).prop_map(|(region, perms)| Op::Protect(region, perms)),
        4 => two().prop_map(|(region, leaf)| Op::SplitLeaf(region, leaf)),
        4 => (two(), 2..4_u32).prop_map(|((region, leaf), level)| Op::Merge(region, leaf, level)),
        4 => (two(), any::<bool>()).prop_map(|((region, leaf), write)| Op::Touch(region, leaf, write)),
        3 => any::<Index>().prop_map(Op::TouchStale),
        2 => (any::<Index>(), 1..2000_u64, any::<bool>())
            .prop_map(|(region, pages, clear)| Op::Harvest(region, pages, clear)),
        12 => (1..4_u32).prop_map(Op::Reclaim),
        5 => prop_oneof![8 => Just(0_u64), 1 => 1..3_u64].prop_map(Op::Flushed),
        1 => (0..2_u64).prop_map(Op::Cancel),
        1 => Just(Op::Rewind),
        1 => Just(Op::ReclaimAll),
    ]
}

/// Any shape of table.
pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    let live_resize = prop::bool::weighted(0.8);
    (
        under_test::LEVELS,
        0..=under_test::MOST_ROOT_TABLES,
        prop_oneof![1..4_u32, Just(3)],
        0..under_test::SNOOPS,
        live_resize,
    )
        .prop_map(
            |(levels, root_tables, largest, snoops, live_resize)| Shape {
                levels,
                root_tables: if levels > 3 { 0 } else { root_tables },
                largest: largest.min(levels),
                coherent: snoops > 0,
                live_resize,
                // Only walkers that snoop note anything.
                dirty: snoops > 1,
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

/// The first pages of the regions in this state, or of all.
fn starts(subject: &Subject, state: Option<State>) -> Vec<u64> {
    let regions = subject.regions.values();
    let of_state = regions.filter(|region| state.is_none_or(|state| region.state == state));
    of_state.map(|region| region.first).collect()
}

fn pick<T: Copy>(index: &Index, of: &[T]) -> Option<T> {
    (!of.is_empty()).then(|| *index.get(of))
}

/// One operation, if there is something to do it on: gives the first page of the region that it was about.
fn step(subject: &mut Subject, number: u64, op: &Op) -> Option<u64> {
    let shape = subject.shape;
    let mapped = starts(subject, Some(State::Mapped));
    let exclusive: Vec<_> = mapped
        .iter()
        .copied()
        .filter(|first| !subject.regions[first].shared)
        .collect();
    match op {
        Op::Map(draw) => {
            let job = draw.job(shape, number);
            subject.check_vacancy(job.first, job.pages);
            subject.map(&job);
            Some(job.first)
        }
        Op::Split(region, leaf) => pick(region, &mapped).inspect(|first| {
            let leaves = subject.regions[first].leaves.len();
            if leaves > 1 {
                subject.split(*first, 1 + leaf.index(leaves - 1));
            }
        }),
        Op::Join(region) => pick(region, &exclusive).inspect(|first| subject.join(*first)),
        Op::Unmap(region) => pick(region, &mapped).inspect(|first| subject.unmap(*first)),
        Op::Redeem(region) => pick(region, &starts(subject, None))
            .filter(|first| subject.regions[first].state != State::Forgotten)
            .inspect(|first| subject.redeem(*first)),
        Op::Forget(region) => {
            let first = pick(region, &starts(subject, Some(State::Pending)));
            first.inspect(|first| {
                subject.regions.get_mut(first).unwrap().state = State::Forgotten;
            })
        }
        Op::Protect(region, perms) => pick(region, &exclusive).inspect(|first| {
            let region = &subject.regions[first];
            if region.leaves[0].1 > 1 {
                subject.protect_in_vain(region.first + 1, region.pages - 1);
                subject.protect_in_vain(region.first, 1);
            }
            subject.protect_in_vain(region.end() - 1, 1 << 36);
            subject.protect(*first, *perms);
        }),
        Op::SplitLeaf(region, leaf) => pick(region, &exclusive).inspect(|first| {
            let leaves = subject.regions[first].leaves.len();
            if leaves < 3000 {
                subject.split_leaf(*first, leaf.index(leaves));
            }
        }),
        Op::Merge(region, leaf, level) => pick(region, &exclusive).inspect(|first| {
            let (region, pages) = (&subject.regions[first], pages_of(*level));
            let from = region.first.div_ceil(pages);
            let places = (region.end() / pages).saturating_sub(from);
            if places > 0 {
                let place = from + leaf.index(places as usize) as u64;
                subject.merge(*first, place * pages, *level);
            }
        }),
        Op::Touch(region, leaf, write) => pick(region, &mapped).inspect(|first| {
            let leaves = subject.regions[first].leaves.len();
            subject.touch(*first, leaf.index(leaves), *write);
        }),
        Op::TouchStale(cached) => {
            if !subject.cached.is_empty() {
                subject.touch_stale(cached.index(subject.cached.len()));
            }
            None
        }
        Op::Harvest(region, pages, clear) => {
            let near = pick(region, &mapped).unwrap_or(0);
            subject.harvest(near.saturating_sub(3), *pages, *clear);
            None
        }
        Op::Reclaim(steps) => {
            for _ in 0..*steps {
                subject.reclaim();
            }
            None
        }
        Op::Flushed(before) => {
            subject.flushed(subject.attempt().wrapping_sub(*before));
            None
        }
        Op::Cancel(before) => {
            subject.cancel(subject.attempt().wrapping_sub(*before));
            None
        }
        Op::Rewind => {
            subject.rewind();
            None
        }
        Op::ReclaimAll => {
            subject.reclaim_all();
            None
        }
    }
}

/// As [`step`], while hardware notes a write to a leaf of the operation in its middle, at the worst moment.
fn step_against_hardware(subject: &mut Subject, number: u64, op: &Op, at: &Index) -> Option<u64> {
    let may_meet = matches!(op, Op::Unmap(_) | Op::Protect(..) | Op::SplitLeaf(..));
    let writable = subject.regions.values().filter(|region| {
        region.state == State::Mapped && region.perms.writable() && !region.leaves.is_empty()
    });
    let leaves: Vec<_> = writable
        .flat_map(|region| region.leaves.iter().copied().take(3))
        .collect();
    let Some((page, level)) = pick(at, &leaves).filter(|_| may_meet && subject.shape.dirty) else {
        return step(subject, number, op);
    };
    let path = subject.walker().path(page << 12).unwrap();
    let (table, index) = *path.last().unwrap();
    let (used, written) = under_test::NOTES;
    subject.arena.note_late(table, index, used | written);
    let changed = step(subject, number, op);
    if subject.arena.was_noted() {
        subject.was_written(page, level);
    }
    changed
}

/// Runs `ops` on a new table, and checks everything after each.
fn run(shape: Shape, ops: &[Op], probes: &[(Index, u64)]) {
    let mut subject = Subject::new(shape);
    let everything = 1 << shape.page_bits();
    for (number, op) in ops.iter().enumerate() {
        let (late, _) = probes[number % probes.len()];
        let changed = step_against_hardware(&mut subject, number as u64, op, &late);
        if let Some(region) = changed.and_then(|first| subject.regions.get(&first)) {
            subject.compare_region(region);
        }
        subject.compare_all();
        let regions = starts(&subject, None);
        for (region, offset) in probes {
            let near = pick(region, &regions).unwrap_or(0);
            subject.compare((near << 12).wrapping_add(*offset));
            subject.compare(offset.rotate_left(31));
            subject.compare_mappings(near + offset % 5, 1 + offset % 1500);
        }
        subject.compare_mappings(0, everything);
    }
    subject.end();
}

/// What a run is drawn from.
fn runs() -> impl Strategy<Value = (Shape, Vec<Op>, Vec<(Index, u64)>)> {
    let probes = prop::collection::vec((any::<Index>(), 0..1_u64 << 40), 4);
    (shape(), prop::collection::vec(op(), 1..60), probes)
}

/// Whether one of this many runs notices that something is wrong.
#[cfg(hv_fault)]
pub(crate) fn notices(cases: u32) -> bool {
    let config = Config {
        max_shrink_iters: 0,
        ..config(cases)
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&runs(), |(shape, ops, probes)| {
        run(shape, &ops, &probes);
        Ok(())
    });
    outcome.is_err()
}

proptest! {
    #![proptest_config(config(384))]

    #[cfg_attr(not(hv_fault), test)]
    fn the_table_does_what_a_map_of_pages_does((shape, ops, probes) in runs()) {
        run(shape, &ops, &probes);
    }
}
