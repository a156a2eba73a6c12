//! Memory at addresses of more than 48 bits, which SMMUs reach by tables of pages of 64 KiB.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, IovaRange, PageCount, PageSize, Perms};
use hv_iommu::{Domain, DomainConfig};
use hv_smmu::{Smmu, Vmsa64K};

use crate::driver::Vendor;
use crate::ledger::Tenant;
use crate::life::bring_up;
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};

type Backend = Smmu<Rig, Vmsa64K>;

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
    let violation = rig.verdict().err().map(|failure| failure.violation);
    rig.retire();
    violation
}

fn use_pages(rig: &Rig) -> Option<()> {
    let (_iommu, groups) = bring_up::<Backend>(rig).ok()?;
    let mut groups = groups.into_iter();
    let group = groups.find(|group| group.members().len() == 1)?;
    let group = group.claim_for_hypervisor();
    let device = *group.members().first()?;
    let config = DomainConfig {
        address_bits: 34,
        ..DomainConfig::default()
    };
    let domain = Domain::paging_domain_alloc(&group, config).ok()?;
    let tenant = Tenant(1);
    rig.attaching(&[device], tenant);
    let group = group.attach(&domain).ok()?;
    rig.attached(&[device], tenant);
    group.enable_bus_mastering(device).ok()?;
    let count = PageCount::new(PAGES * PAGE)?;
    let frames = rig.alloc_frames(count, PageSize::Size64K).ok()?;
    let span = IovaRange::new(Iova::new(5 << 16), count).ok()?;
    let free = domain.reserve(span).ok()?;
    rig.mapping(tenant, span, frames.range(), Perms::ReadWrite);
    let mapped = free.map(frames, Perms::ReadWrite).ok()?;
    rig.mapped(tenant, span, mapped.granted());
    for page in (0..PAGES).step_by(37).chain([PAGES - 1]) {
        rig.access(device, span.page(page * PAGE + page % PAGE)?, Access::Write);
    }
    rig.idle(50);
    rig.unmapping(tenant, span);
    let (free, frames) = mapped.unmap().flush().ok()?;
    rig.expect_frames(tenant, span, frames.range());
    rig.returned(tenant, span);
    rig.free_frames(frames);
    free.release().ok()?;
    rig.detaching(&[device], tenant);
    let _ = group.detach().ok()?;
    rig.detached(&[device]);
    let teardown = domain.destroy().ok()?;
    rig.ended(tenant);
    teardown.for_each(|run| rig.free_frames(run));
    Some(())
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
