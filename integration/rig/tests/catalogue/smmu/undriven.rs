//! Units that are not brought up, by what they are when they are looked at, and turned off: refused by name, with a machine
//! through which nothing passes.

use hv_iommu::UnitError;
use hv_rig::{Machine, Rig, Trouble, Vendor};
use hv_smmu::{BringUpError, CoveragePolicy, Discovery, Smmu, UnitRefusal};

/// A machine of one unit, of this seed: firmware left every other one on.
fn machine(seed: u64) -> Rig {
    let mut machine = Machine::calm_of(Vendor::Smmu);
    machine.seed = seed;
    machine.temper = super::stand::BAD;
    Rig::new(machine).unwrap()
}

fn discover(rig: &Rig) -> Result<Discovery<Rig>, BringUpError> {
    let firmware = rig.smmu_firmware().unwrap();
    let functions = rig.functions();
    Smmu::discover(rig.clone(), firmware, &functions, CoveragePolicy::Strict)
}

fn why(error: Option<BringUpError>) -> UnitRefusal {
    match error {
        Some(BringUpError::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_unit_that_firmware_lists_and_that_is_not_there_is_refused() {
    for seed in 0..10 {
        let rig = machine(seed);
        rig.lose_unit(0);
        assert_eq!(why(discover(&rig).err()), UnitRefusal::Absent);
        // Lost in between: what it is was read, and it takes nothing any more.
        rig.find_unit(0);
        let discovery = discover(&rig).unwrap();
        rig.lose_unit(0);
        let error = discovery.bring_up().err();
        let late = matches!(error, Some(BringUpError::Unit(UnitError::Timeout { .. })));
        assert!(late, "seed {seed}: {error:?}");
        rig.verdict().unwrap();
    }
}

/// Whether it takes what is written to it or not: a unit that has failed may go either way (IHI 0070, 12.3).
#[test]
fn a_unit_that_says_it_has_failed_is_refused_for_that() {
    for seed in 0..10 {
        for takes_writes in [true, false] {
            let rig = machine(seed);
            let discovery = discover(&rig).unwrap();
            rig.suffer(0, Trouble::Fails);
            if takes_writes {
                rig.wake(0);
            }
            let refused = why(discovery.bring_up().err());
            // GERROR.SFM_ERR, whatever else was left over.
            let UnitRefusal::Failed { errors } = refused else {
                panic!("seed {seed}: {refused}");
            };
            assert_ne!(errors & 1 << 8, 0, "seed {seed}");
            rig.verdict().unwrap();
        }
    }
}
