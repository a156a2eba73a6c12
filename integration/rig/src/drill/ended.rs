//! The end of the subsystem, and the next hypervisor on the same machine.

use hv_iommu::{Config, Iommu, UnitIndex};

use crate::driver::Driver;
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};

/// How much happens after the end.
const STEPS: u32 = 60;

/// A machine is brought up and shut down: no unit translates then, and whoever comes next brings it up.
pub(crate) fn ended<B: Driver>(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(B::VENDOR, seed);
    // Where units let everything through when they are off, so do they what ignores its bus master bit.
    machine.temper.background = false;
    let rig = Rig::new(machine).ok()?;
    end_of::<B>(&rig);
    rig.judged()
}

/// `None` when it cannot go on.
fn end_of<B: Driver>(rig: &Rig) -> Option<()> {
    let backend = B::start(rig).ok()?;
    rig.watch();
    let (iommu, _groups) = Iommu::new(backend, &rig.functions(), Config::default()).ok()?;
    let wrong = |what: String| rig.broken(Rule::WrongAnswer, what);
    if let Err(error) = iommu.shut_down() {
        wrong(format!("the shut-down failed: {error}"));
        return None;
    }
    for index in 0..rig.machine().units.len() {
        rig.wedged(index, true);
        if rig.translates(index) {
            wrong(format!("unit {index} translates after the shut-down"));
        }
        let refused = UnitIndex::new(index).map(|unit| iommu.reset_unit(unit).is_err());
        if refused == Some(false) {
            wrong(format!("unit {index} was reset after the shut-down"));
        }
    }
    rig.idle(STEPS);
    if let Err(error) = B::start(rig) {
        wrong(format!(
            "nobody brings the machine up after the shut-down: {error}"
        ));
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use hv_smmu::Smmu;
    use hv_vtd::Vtd;

    use super::*;

    #[test]
    fn an_end_and_the_next_begin_break_no_rule() {
        for seed in 0..24 {
            assert_eq!(ended::<Vtd<Rig>>(seed), None, "seed {seed}");
            assert_eq!(ended::<Smmu<Rig>>(seed), None, "seed {seed}");
        }
    }
}
