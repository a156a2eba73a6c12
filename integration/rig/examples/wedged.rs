//! A unit that stops answering, and the way back: time-out, cut-off, reset, recovery, a new flush.
//!
//! The machine is drawn from a seed: `cargo run -p hv-rig --example wedged -- 7`.

use std::error::Error;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms};
use hv_iommu::{AtRest, Config, Domain, DomainConfig, Iommu};
use hv_rig::{Machine, Rig};
use hv_vtd::{CoveragePolicy, Vtd, dmar};

/// Where each device has its memory.
const PLACE: u64 = 0x10_0000;

fn main() -> Result<(), Box<dyn Error>> {
    let seed = std::env::args().nth(1).map_or(Ok(7), |seed| seed.parse())?;
    live_through(seed)
}

/// Brings the machine of this seed up, wedges a unit, and takes everything back.
pub(crate) fn live_through(seed: u64) -> Result<(), Box<dyn Error>> {
    let rig = Rig::new(Machine::draw(seed))?;
    let functions = rig.functions();
    let table = dmar::parse(&rig.dmar()?)?;
    let discovery = Vtd::discover(rig.clone(), &table, &functions, CoveragePolicy::Strict)?;
    let (iommu, groups) = Iommu::new(discovery.bring_up()?, &functions, Config::default())?;
    let before = rig.frames_out();

    // Each group has a domain of its own, as deep as its unit can have it.
    let range = IovaRange::new(Iova::new(PLACE), PageCount::ONE)?;
    let mut attached = Vec::new();
    for group in groups.into_iter().flat_map(AtRest::claimable) {
        let caps = iommu
            .unit_caps(group.unit())
            .ok_or("a unit that is there")?;
        let config = DomainConfig {
            address_bits: caps.iova_bits.min(39),
            ..DomainConfig::default()
        };
        let claimed = group.claim_for_hypervisor();
        let domain = Domain::paging_domain_alloc(&claimed, config)?;
        let group = claimed.attach(&domain)?;
        let frames = rig.alloc_frames(PageCount::ONE, PageSize::Size4K)?;
        let mapped = domain.reserve(range)?.map(frames, Perms::ReadWrite)?;
        for member in group.members() {
            group.enable_bus_mastering(*member)?;
            rig.device_write(*member, Iova::new(PLACE), b"before")?;
        }
        attached.push((group, domain, mapped));
    }

    // The first group's unit stops. Its flush times out; the devices behind it lose bus mastering.
    let (group, domain, mapped) = attached.swap_remove(0);
    let unit = group.unit();
    rig.hang(unit.index(), Duration::from_secs(60));
    let failed = mapped
        .unmap()
        .flush()
        .err()
        .ok_or("a flush by a unit that hangs")?;
    println!("{failed}");
    let wedged = group
        .detach()
        .err()
        .ok_or("a detach from a unit that hangs")?;
    println!("{:?}: {}", wedged, wedged.error());
    let wedged_units: Vec<_> = iommu.wedged_units().collect();
    println!(
        "wedged: {wedged_units:?}; a reset now: {:?}",
        iommu.reset_unit(unit).err()
    );

    // It answers again. After the reset the group recovers, and what was pending is flushed anew.
    rig.wake(unit.index());
    iommu.reset_unit(unit)?;
    let group = wedged.recover().map_err(|group| group.error())?;
    println!("at rest again: {group:?}");
    let (range, frames) = failed.pending.flush()?;
    rig.free_frames(frames);
    range.release().map_err(|(_, error)| error)?;
    println!("left in its domain: {}", domain.destroy()?.count());

    // Groups that stayed attached behind the unit get bus mastering back from their holder.
    for (group, domain, mapped) in attached {
        for member in group.members() {
            group.enable_bus_mastering(*member)?;
            rig.device_write(*member, Iova::new(PLACE), b"after")?;
        }
        let (range, frames) = mapped.unmap().flush()?;
        rig.free_frames(frames);
        range.release().map_err(|(_, error)| error)?;
        drop(group.detach().map_err(|group| group.error())?.release());
        domain.destroy()?.count();
    }
    // All is back but the context tables, which units keep.
    let (after, kept) = (rig.frames_out(), rig.binding_tables());
    println!("frames out: {before} before, {after} after, of which {kept} are context tables");
    if after != before + kept {
        return Err("frames are missing".into());
    }
    Ok(rig.verdict()?)
}
