//! Rows of invalidations: what an unmap asks of the hardware, counted by the rig.

use anyhow::{Context, Error, Result, anyhow};
use hv_core::platform::FrameSource;
use hv_core::{PageCount, PageSize, Perms};
use hv_iommu::{AtRest, Config, Domain, DomainConfig, Iommu};
use hv_rig::{Driver, Machine, Rig};

use super::{BLANK, Job, Own, Row};
use crate::format::Units;

/// Pages of the ranges that are unmapped: one page, a table's worth, and one more that crosses into the next.
const LENGTHS: [u64; 4] = [1, 16, 512, 513];

/// Invalidations of one unmap with its flush, for each length.
fn count() -> Result<Vec<(u64, u64)>> {
    let rig = Rig::new(Machine::calm_of(Units::VENDOR))?;
    let units = Units::start(&rig).map_err(Error::msg)?;
    let (_iommu, groups) = Iommu::new(units, &rig.functions(), Config::default())?;
    let mut groups = groups.into_iter().flat_map(AtRest::claimable);
    let group = groups.next().context("a rig without groups")?;
    let group = group.claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, DomainConfig::default())?;
    let _group = group.attach(&domain).map_err(|_| anyhow!("no attach"))?;
    let mut counts = Vec::new();
    for length in LENGTHS {
        let pages = PageCount::new(length).context("no pages")?;
        let range = domain.allocate(pages, PageSize::Size4K)?;
        let frames = rig.alloc_frames(pages, PageSize::Size4K)?;
        let mapped = range
            .map(frames, Perms::ReadWrite)
            .map_err(|error| anyhow!("{error}"))?;
        let before = rig.counts().invalidations;
        let redeemed = mapped.unmap().flush();
        let (range, frames) = redeemed.map_err(|error| anyhow!("{error}"))?;
        counts.push((length, rig.counts().invalidations - before));
        rig.free_frames(frames);
        range
            .release()
            .map_err(|(_, error)| anyhow!("no release: {error}"))?;
    }
    Ok(counts)
}

fn per_unmap() -> Own {
    match count() {
        Ok(counts) => Own {
            measure: "invalidations",
            value: counts
                .iter()
                .map(|(_, count)| *count as f64)
                .reduce(f64::max),
            notes: vec![format!(
                "invalidations besides waits, as a unit of the rig carried them out: {}",
                counts
                    .iter()
                    .map(|(pages, count)| format!("{count} for {pages} pages"))
                    .collect::<Vec<_>>()
                    .join(", ")
            )],
            ..Own::default()
        },
        Err(error) => Own {
            skipped: Some(format!("{error:#}")),
            ..Own::default()
        },
    }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    id: "B-V1",
    workload: "invalidations of one unmap call with its flush",
    unit: "call",
    gate: Some(1.0),
    remark: "the rig counts neither waits nor the leaf-only hint",
    job: Job::Own(|_| per_unmap()),
    ..BLANK
}];
