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
    // All at once, as where a guest starts anew: another page under the same context, then another context.
    nest.going(None, 5);
    nest.stage.unmap(1, Iova::new(5 << 12));
    nest.forget_first_stages()?;
    nest.gone(None, 5);
    (4..8).for_each(send);
    nest.map(None, 1, 5, 23);
    (4..8).for_each(send);
    nest.going(None, 5);
    nest.stage.clear_context(0);
    nest.forget_first_stages()?;
    nest.gone(None, 5);
    (4..8).for_each(send);
    drop(nest.end()?);
    (4..8).for_each(send);
    Ok(())
}

/// A guest that turns its first stage off and on again while its device sends, and changes its tables meanwhile.
pub(crate) fn switched(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(Vendor::Smmu, seed);
    machine.set_nesting();
    let temper = &mut machine.temper;
    // Where a device gets to at other moments and addresses depends on the way that it goes.
    (temper.evictions, temper.widening, temper.background) = (false, false, false);
    let rig = Rig::new(machine).ok()?;
    if let Err(why) = switched_on(&rig) {
        rig.broken(Rule::WrongAnswer, why);
    }
    rig.judged()
}

/// How often the first stage goes off and on.
const SWITCHES: u64 = 16;

fn switched_on(rig: &Rig) -> Result<(), String> {
    /// A page that is where the guest has it, whichever way its device goes, and another one.
    const PAGES: [u64; 2] = [20, 10];
    let [same, moving] = PAGES;
    let (_iommu, groups) = bring_up::<Smmu<Rig>>(rig)?;
    let mut groups = groups.into_iter();
    let group = groups.find(|group| group.members().len() == 1);
    let mut nest = Nest::new(rig, group.ok_or("no single device")?, 0)?;
    let device = nest.device();
    let send = move |rig: &Rig, page: u64| {
        rig.access(device, Iova::new(page << 12), Access::Write);
    };
    let in_between = |at: u64, act: &mut dyn FnMut() -> Result<(), String>| {
        let inner = rig.clone();
        let mut done = Ok(());
        rig.between(at, move || send(&inner, same), || done = act());
        done
    };
    nest.map(None, 0, same, same);
    nest.map(None, 0, moving, 22);
    // The other first stage, a context further on, under the same ASID.
    nest.stage.set_context(1, 1, 1);
    nest.stage
        .map(1, Iova::new(same << 12), Gpa::new(same << 12));
    for round in 0..SWITCHES {
        let (space, next, other) = (round % 2, 22 + round % 3, 25 + round % 3);
        PAGES.into_iter().for_each(|page| send(rig, page));
        in_between(3 * round, &mut || nest.to_parent())?;
        PAGES.into_iter().for_each(|page| send(rig, page));
        nest.going(None, moving);
        nest.stage.unmap(space, Iova::new(moving << 12));
        nest.gone(None, moving);
        nest.map(None, space, moving, next);
        in_between(3 * round, &mut || nest.to_nested())?;
        PAGES.into_iter().for_each(|page| send(rig, page));
        // From one first stage to the other, which has another page there.
        let (space, to) = (1 - space, Gpa::new(other << 12));
        nest.stage.map(space, Iova::new(moving << 12), to);
        let mut entry = nest.stage.entry(0);
        entry[0] += 64 * space;
        in_between(3 * round, &mut || nest.to_other(&entry))?;
        nest.going(None, moving);
        nest.gone(None, moving);
        nest.coming(None, moving, other);
        nest.came(None, moving);
        PAGES.into_iter().for_each(|page| send(rig, page));
    }
    nest.end().map(drop)
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
