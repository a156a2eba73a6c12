//! Memory at addresses of more than 48 bits, which SMMUs reach by tables of pages of 64 KiB.

use hv_core::{Access, Iova, IovaRange, PageCount, PageSize};
use hv_smmu::{Smmu, Vmsa64K};

use super::single::Single;
use crate::driver::Vendor;
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};

/// Pages of 4 KiB in one of 64 KiB.
const PAGE: u64 = 16;
/// How many of those are mapped: from before an address with other upper bits to behind it.
const PAGES: u64 = 1200;

/// A device works with a range of pages whose addresses differ in the upper bits.
pub(crate) fn high(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(Vendor::Smmu, seed);
    machine.set_high_memory();
    // These hide what is looked for here.
    (machine.temper.evictions, machine.temper.widening) = (false, false);
    let rig = Rig::new(machine).ok()?;
    if use_pages(&rig).is_none() {
        rig.broken(Rule::WrongAnswer, "a drill with high memory did not go on");
    }
    rig.judged()
}

fn use_pages(rig: &Rig) -> Option<()> {
    let one = Single::<Smmu<Rig, Vmsa64K>>::new(rig, 34)?;
    let count = PageCount::new(PAGES * PAGE)?;
    let span = IovaRange::new(Iova::new(5 << 16), count).ok()?;
    one.with_pages(span, PageSize::Size64K, || {
        for page in (0..PAGES).step_by(37).chain([PAGES - 1]) {
            if let Some(at) = span.page(page * PAGE + page % PAGE) {
                rig.access(one.device, at, Access::Write);
            }
        }
        rig.idle(50);
    })?;
    one.end()
}

#[cfg(all(test, not(hv_fault)))]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_a_fault_breaks_no_rule() {
        for seed in 0..8 {
            assert_eq!(high(seed), None, "seed {seed}");
        }
    }
}
