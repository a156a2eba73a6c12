//! Drills on SMMUs: guests with first stages of their own, and devices that are cut off for their faults.

use std::time::Duration;

use hv_core::{Access, Gpa, Iova, PciAddress};
use hv_iommu::{Blocked, Config, Domain, DomainConfig, FaultBudget, FaultNotice, Group, Iommu};
use hv_smmu::Smmu;

use crate::driver::{Driver, Vendor};
use crate::ledger::Tenant;
use crate::life::bring_up;
use crate::machine::Machine;
use crate::nest::Nest;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};
use crate::smmu::GuestStage;

/// A guest with a first stage of its own: maps, remaps, other contexts, a page that the hypervisor takes from under it.
pub(crate) fn nested(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(Vendor::Smmu, seed);
    machine.set_nesting();
    // Eviction and widening hide what is looked for here.
    (machine.temper.evictions, machine.temper.widening) = (false, false);
    let rig = Rig::new(machine).ok()?;
    if let Err(why) = nested_on(&rig) {
        rig.broken(Rule::WrongAnswer, why);
    }
    rig.judged()
}

fn nested_on(rig: &Rig) -> Result<(), String> {
    let (_iommu, groups) = bring_up::<Smmu<Rig>>(rig)?;
    let mut groups = groups.into_iter();
    let group = groups.find(|group| group.members().len() == 1);
    let mut nest = Nest::new(rig, group.ok_or("no single device")?, 0)?;
    let device = nest.device();
    let send = |at: u64| {
        for access in [Access::Write, Access::Read] {
            rig.access(device, Iova::new(at << 12), access);
        }
        rig.idle(20);
    };
    nest.map(None, 0, 5, 20);
    nest.map(None, 0, 6, nest.apart());
    (4..8).for_each(send);
    // Another page at the same address.
    nest.going(None, 5);
    nest.stage.unmap(0, Iova::new(5 << 12));
    nest.command(&[GuestStage::forget_page(1, Iova::new(5 << 12))])?;
    nest.gone(None, 5);
    (4..8).for_each(send);
    nest.map(None, 0, 5, 21);
    (4..8).for_each(send);
    // Another context.
    (5..7).for_each(|at| nest.going(None, at));
    nest.stage.clear_context(0);
    nest.command(&[GuestStage::forget_context(0), GuestStage::forget_asid(1)])?;
    (5..7).for_each(|at| nest.gone(None, at));
    (4..8).for_each(send);
    nest.coming(None, 5, 22);
    nest.coming(None, 6, nest.apart());
    nest.stage.map(1, Iova::new(5 << 12), Gpa::new(22 << 12));
    let apart = Gpa::new(nest.apart() << 12);
    nest.stage.map(1, Iova::new(6 << 12), apart);
    nest.stage.set_context(0, 2, 1);
    nest.command(&[GuestStage::forget_contexts()])?;
    (5..7).for_each(|at| nest.came(None, at));
    (4..8).for_each(send);
    nest.take_apart(&[6])?;
    (4..8).for_each(send);
    drop(nest.end()?);
    (4..8).for_each(send);
    Ok(())
}

/// Faults after which a device is cut off in a drill.
const BUDGET: u32 = 4;
/// Requests of the device by then, at most.
const MOST: u32 = 64;

/// A device that ignores its bus master bit and faults: once it was cut off, and the unit has read anew what says so,
/// nothing of it is recorded any more. Of a guest with a first stage of its own, or of the hypervisor.
pub(crate) fn cut_off(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(Vendor::Smmu, seed);
    if seed & 1 == 0 {
        machine.set_nesting();
    }
    let temper = &mut machine.temper;
    (temper.evictions, temper.widening, temper.background) = (false, false, false);
    let rig = Rig::new(machine).ok()?;
    let nested = seed & 1 == 0;
    if let Err(why) = cut_off_on(&rig, nested) {
        rig.broken(Rule::WrongAnswer, why);
    }
    rig.judged()
}

fn cut_off_on(rig: &Rig, nested: bool) -> Result<(), String> {
    let backend = Smmu::<Rig>::start(rig)?;
    let functions = rig.functions();
    rig.watch();
    let config = Config {
        wait: Duration::from_millis(100),
        faults: FaultBudget {
            faults: BUDGET,
            within: Duration::from_secs(60),
        },
        ..Config::default()
    };
    let iommu = Iommu::new(backend, &functions, config);
    let (iommu, groups) = iommu.map_err(|error| error.to_string())?;
    let groups = groups.into_iter();
    let mut groups = groups.filter_map(|group| group.claimable().ok());
    let group = groups.find(|group| group.members().len() == 1);
    let group = group.ok_or("no single device")?;
    let device = *group.members().first().ok_or("no device")?;
    if nested {
        let nest = Nest::new(rig, group, 0)?;
        // Its context is malformed: no bit of the entry keeps that from being recorded.
        nest.stage.clear_context(0);
        nest.command(&[GuestStage::forget_contexts()])?;
        storm(rig, &iommu, device)?;
        return nest.end().map(drop);
    }
    of_the_hypervisor(rig, &iommu, group, device)
}

fn of_the_hypervisor(
    rig: &Rig,
    iommu: &Iommu<Smmu<Rig>>,
    group: Group<Smmu<Rig>, Blocked>,
    device: PciAddress,
) -> Result<(), String> {
    let group = group.claim_for_hypervisor();
    let config = DomainConfig {
        address_bits: 31,
        ..DomainConfig::default()
    };
    let domain = Domain::paging_domain_alloc(&group, config);
    let domain = domain.map_err(|error| error.to_string())?;
    let (members, tenant) = (group.members().to_vec(), Tenant(1));
    rig.attaching(&members, tenant);
    let attached = group.attach(&domain);
    let group = attached.map_err(|error| error.to_string())?;
    rig.attached(&members, tenant);
    storm(rig, iommu, device)?;
    rig.detaching(&members, tenant);
    let detached = group.detach();
    drop(detached.map_err(|group| group.error().to_string())?);
    rig.detached(&members);
    let ended = domain.destroy();
    drop(ended.map_err(|error| error.reason.to_string())?);
    rig.ended(tenant);
    Ok(())
}

fn storm(rig: &Rig, iommu: &Iommu<Smmu<Rig>>, device: PciAddress) -> Result<(), String> {
    let mut state = rig.core.quiet();
    let functions = state.bus.functions.iter_mut();
    for function in functions.filter(|function| function.address == device) {
        function.rogue = true;
    }
    drop(state);
    let fault = || rig.access(device, Iova::new(0x12_3000), Access::Write);
    let mut cut = false;
    for _ in 0..MOST {
        fault();
        iommu.take_faults(|notice| cut |= matches!(notice, FaultNotice::CutOff(_)));
        if cut {
            break;
        }
    }
    if !cut {
        return Err("a device that only faults was not cut off".to_owned());
    }
    // The unit reads anew in its own time.
    rig.idle(4000);
    iommu.take_faults(|_| ());
    for _ in 0..16 {
        fault();
    }
    let mut later = 0;
    iommu.take_faults(|_| later += 1);
    if later != 0 {
        let what = format!("{later} faults of {device} were recorded after it was cut off");
        rig.broken(Rule::FaultReport, what);
    }
    Ok(())
}
