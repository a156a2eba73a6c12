//! Random lives: a few seconds of them on every run of the tests, from fixed seeds.

#![cfg(not(hv_fault))]

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

#[test]
fn a_life_is_the_same_each_time() {
    for (vendor, seed) in [(Vendor::Vtd, 3), (Vendor::Vtd, 77), (Vendor::Smmu, 5)] {
        let life = Life::new(vendor, seed, 150);
        let (one, two) = (life.live(), life.live());
        assert_eq!(one.counts, two.counts, "seed {seed}");
        assert_eq!((one.operations, one.nanos), (two.operations, two.nanos));
    }
}
