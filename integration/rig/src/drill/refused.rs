//! Units that call commands of their driver illegal: one that was misread, and those of a kind, for good.

use hv_core::{Access, Iova, IovaRange, PageCount, PageSize};
use hv_iommu::UnitIndex;

use super::single::Single;
use crate::driver::Driver;
use crate::machine::Machine;
use crate::refusing::Refusing;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};

/// Where the drill maps.
const AT: u64 = 0x10_0000;
/// How often it maps and unmaps.
const ROUNDS: u64 = 6;

/// A device whose memory comes back while its unit refuses what should have it forgotten.
pub(crate) fn refused<B: Driver>(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(B::VENDOR, seed);
    // These hide what is looked for here.
    (machine.temper.evictions, machine.temper.widening) = (false, false);
    machine.temper.rogues = false;
    let units = machine.units.len();
    let rig = Rig::new(machine).ok()?;
    let one = Single::<B>::new(&rig, 31)?;
    let mut before = 0;
    for round in 0..ROUNDS {
        let refusing = match round % 2 {
            0 => Refusing::Pages,
            _ => Refusing::OneMisread,
        };
        let range = IovaRange::new(Iova::new(AT), PageCount::new(1 + 3 * round)?).ok()?;
        let came_back = one.with_pages(range, PageSize::Size4K, || {
            rig.access(one.device, Iova::new(AT), Access::Write);
            (0..units).for_each(|unit| rig.refuse(unit, refusing));
        });
        (0..units).for_each(|unit| rig.refuse(unit, Refusing::Nothing));
        let all = (0..units).filter_map(UnitIndex::new);
        let refused = |unit| {
            one.iommu
                .unit_troubles(unit)
                .map_or(0, |found| found.commands_refused)
        };
        let refused = all.map(refused).sum::<u64>();
        if refusing == Refusing::OneMisread && refused != before {
            rig.broken(
                Rule::WrongAnswer,
                "what was misread once was not read again",
            );
        }
        before = refused;
        rig.access(one.device, Iova::new(AT), Access::Write);
        if came_back.is_none() {
            rig.broken(
                Rule::WrongAnswer,
                "what is refused was not asked for in another way",
            );
        }
        let gone = |unit| {
            one.iommu
                .wedged_units()
                .any(|wedged| UnitIndex::new(unit) == Some(wedged))
        };
        if (0..units).any(gone) {
            rig.broken(
                Rule::WrongAnswer,
                "a unit is wedged for what it does in another way",
            );
        }
    }
    let _ = one.end();
    rig.judged()
}
