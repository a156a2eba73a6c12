//! Parts with errata: the same work as anywhere, without what must not be done with them.

use hv_core::{Access, Iova, IovaRange, PageCount, PageSize};
use hv_smmu::Smmu;

use super::single::Single;
use crate::driver::Vendor;
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};
use crate::smmu::Identity;

/// Where the drill maps.
const AT: u64 = 0x10_0000;
/// How many pages.
const PAGES: u64 = 5;
/// How often it maps and unmaps.
const ROUNDS: u64 = 3;

/// IIDR of an MMU-700.
const MMU_700: u32 = 0x4871_043b;

/// A device works on each of the parts.
pub(crate) fn parts(seed: u64) -> Option<Violation> {
    let kinds: [fn(&mut Identity); 4] = [
        |identity| identity.part = MMU_700,
        // With a first stage alone more kinds of commands go together.
        |identity| {
            identity.part = MMU_700;
            (identity.first_stage, identity.second_stage) = (true, false);
        },
        |identity| identity.model = 1,
        |identity| identity.model = 2,
    ];
    kinds.into_iter().find_map(|change| {
        let mut machine = Machine::draw_of(Vendor::Smmu, seed);
        for unit in &mut machine.units {
            unit.smmu().into_iter().for_each(change);
        }
        let rig = Rig::new(machine).ok()?;
        if work(&rig).is_none() {
            rig.broken(Rule::WrongAnswer, "a drill with a part did not go on");
        }
        rig.judged()
    })
}

fn work(rig: &Rig) -> Option<()> {
    let one = Single::<Smmu<Rig>>::new(rig, 31)?;
    let range = IovaRange::new(Iova::new(AT), PageCount::new(PAGES)?).ok()?;
    for _ in 0..ROUNDS {
        one.with_pages(range, PageSize::Size4K, || {
            rig.access(one.device, range.last(), Access::Write);
            rig.idle(20);
        })?;
    }
    one.end()
}

#[cfg(all(test, not(hv_fault)))]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_a_fault_breaks_no_rule() {
        for seed in 0..8 {
            assert_eq!(parts(seed), None, "seed {seed}");
        }
    }
}
