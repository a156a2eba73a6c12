//! Random runs of tables of each granule.

use hv_core::Perms;
use hv_tests::slab::Slab;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::granules::{Bench, Op, Shape};
use crate::random::config;

fn op() -> impl Strategy<Value = Op> {
    let perms = || {
        prop_oneof![
            Just(Perms::Read),
            Just(Perms::Write),
            Just(Perms::ReadWrite)
        ]
    };
    let map = (
        0..4_u64,
        0..4_u64,
        0..5_u64,
        prop_oneof![3 => Just(0_u64), 1 => Just(1)],
        any::<bool>(),
        perms(),
    );
    let share = (0..4_u64, 0..4_u64, any::<bool>(), perms());
    let part = || (any::<Index>(), any::<u64>());
    prop_oneof![
        6 => map.prop_map(|(place, offset, pages, skew, large, perms)| {
            let offset = if pages == 2 && place == 3 { 0 } else { offset };
            Op::Map(place, offset, pages, skew, large, perms)
        }),
        4 => share.prop_map(|(place, offset, block, perms)| Op::Share(place, offset, block, perms)),
        3 => part().prop_map(|(index, which)| Op::Split(index, which)),
        3 => part().prop_map(|(index, which)| Op::Merge(index, which)),
        1 => (any::<Index>(), perms()).prop_map(|(index, perms)| Op::Protect(index, perms)),
        4 => any::<Index>().prop_map(Op::Unmap),
        4 => any::<Index>().prop_map(Op::Redeem),
        1 => Just(Op::Reclaim),
    ]
}

fn run<const SHIFT: u32, const BITS: u32>(shape: Shape, ops: &[Op]) {
    let frames = 64 << (BITS - 9);
    let slab = if shape.long {
        Slab::high(frames)
    } else {
        Slab::new(frames)
    };
    let mut bench = Bench::<SHIFT, BITS>::new(&slab, shape);
    bench.run(ops);
    bench.end();
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn tables_of_16_kib_pages_agree_with_the_model(
        // Level 3 to level 1 of the architecture; two tables of that are 48 bits.
        root in prop_oneof![(Just(1_u8), 0..=4_u8), (Just(2_u8), 0..=4_u8), (Just(3_u8), 0..=1_u8)],
        coherent in any::<bool>(),
        live_resize in prop::bool::weighted(0.8),
        ops in prop::collection::vec(op(), 1..24),
    ) {
        let shape = Shape { root, coherent, live_resize, long: false };
        run::<14, 11>(shape, &ops);
    }

    #[test]
    fn tables_of_64_kib_pages_agree_with_the_model(
        root in prop_oneof![(Just(1_u8), 0..=4_u8), (Just(2_u8), 0..=4_u8), (Just(3_u8), 0..=0_u8)],
        long in any::<bool>(),
        coherent in any::<bool>(),
        live_resize in prop::bool::weighted(0.8),
        ops in prop::collection::vec(op(), 1..24),
    ) {
        let shape = Shape { root, coherent, live_resize, long };
        run::<16, 13>(shape, &ops);
    }
}
