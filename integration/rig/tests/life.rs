//! Random lives: a few seconds of them on every run of the tests, from fixed seeds.

#![cfg(not(hv_fault))]

use hv_core::PageSize;
use hv_rig::Vendor;
use hv_rig::life::{LIMIT, Life, shrink};

/// Lives on these seeds; a failure is shown shortened, with its seed.
fn live(vendor: Vendor, seeds: std::ops::Range<u64>, operations: usize) {
    let mut requests = 0;
    for seed in seeds {
        let life = Life::new(vendor, seed, operations);
        let lived = life.live();
        requests += lived.counts.translated;
        if lived.failure.is_some() {
            let (short, lived) = shrink(&life, lived, LIMIT);
            panic!(
                "{}\nto see it again: {}",
                lived.failure.unwrap(),
                short.command()
            );
        }
    }
    assert!(
        requests > 10_000,
        "devices reached too little: {requests} times"
    );
}

#[test]
fn short_lives_break_no_rule() {
    live(Vendor::Vtd, 0..400, 60);
}

#[test]
fn short_lives_with_smmus_break_no_rule() {
    live(Vendor::Smmu, 0..400, 60);
}

#[test]
fn long_lives_break_no_rule() {
    live(Vendor::Vtd, 10_000..10_040, 600);
}

#[test]
fn long_lives_with_smmus_break_no_rule() {
    live(Vendor::Smmu, 10_000..10_040, 600);
}

/// The first seeds of lives whose tables have such pages, and lead to high memory or not.
fn seeds_of(page: PageSize, high: bool) -> impl Iterator<Item = u64> {
    (0..400).filter(move |seed| {
        let tables = Life::new(Vendor::Smmu, *seed, 60).tables();
        (tables.page, tables.high) == (page, high)
    })
}

#[test]
fn lives_with_smmus_have_tables_of_every_granule() {
    assert!(seeds_of(PageSize::Size4K, false).count() > 150);
    assert!(seeds_of(PageSize::Size16K, false).count() > 70);
    assert!(seeds_of(PageSize::Size64K, false).count() > 40);
    assert!(seeds_of(PageSize::Size64K, true).count() > 20);
}

#[test]
fn a_life_is_the_same_each_time() {
    let large = [
        (PageSize::Size16K, false),
        (PageSize::Size64K, false),
        (PageSize::Size64K, true),
    ];
    let large = large.map(|(page, high)| seeds_of(page, high).next().unwrap());
    let small = [(Vendor::Vtd, 3), (Vendor::Vtd, 77), (Vendor::Smmu, 5)];
    let large = large.map(|seed| (Vendor::Smmu, seed));
    for (vendor, seed) in small.into_iter().chain(large) {
        let life = Life::new(vendor, seed, 150);
        let (one, two) = (life.live(), life.live());
        assert_eq!(one.counts, two.counts, "seed {seed}");
        assert_eq!((one.operations, one.nanos), (two.operations, two.nanos));
    }
}
