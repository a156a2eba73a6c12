//! Rows of invalidations: what an unmap asks of the hardware, counted by the rig.

use anyhow::{Context, Result, anyhow};
use hv_core::platform::FrameSource;
use hv_core::{PageCount, PageSize, Perms};
use hv_iommu::{BufferRequest, Config, Domain, DomainConfig, Iommu};
use hv_rig::{Machine, Rig};
use hv_vtd::{CoveragePolicy, Vtd, dmar};

use super::{BLANK, Job, Own, Row};

/// Pages of the ranges that are unmapped: one page, a table's worth, and one more that crosses into the next.
const LENGTHS: [u64; 4] = [1, 16, 512, 513];

/// Invalidations of one unmap with its flush, for each length.
fn count() -> Result<Vec<(u64, u64)>> {
    let rig = Rig::new(Machine::calm())?;
    let functions = rig.functions();
    let table = dmar::parse(&rig.dmar())?;
    let discovery = Vtd::discover(rig.clone(), &table, &functions, CoveragePolicy::Strict)?;
    let (_iommu, groups) = Iommu::new(discovery.bring_up()?, &functions, Config::default())?;
    let group = groups.into_iter().next().context("a rig without groups")?;
    let group = group.claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, DomainConfig::default())?;
    let _group = group.attach(&domain).map_err(|_| anyhow!("no attach"))?;
    let mut counts = Vec::new();
    for length in LENGTHS {
        let request = BufferRequest {
            pages: PageCount::new(length).context("no pages")?,
            align: PageSize::Size4K,
            perms: Perms::ReadWrite,
        };
        let buffer = domain.alloc_coherent(request)?;
        rig.idle(10_000);
        let before = rig.counts().invalidations;
        buffer.free().map_err(|_| anyhow!("no free"))?;
        rig.idle(10_000);
        counts.push((length, rig.counts().invalidations - before));
    }
    Ok(counts)
}
