//! A device that firmware goes on using (RMRR, RMR) and that never stands still: through bring-up, and after it.
//!
//! On both vendors' machines: `cargo run -p hv-rig --example keeping`.

use std::error::Error;

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr, PhysRange};
use hv_iommu::{
    Backend, BufferRequest, Config, DomainConfig, Dormant, FirmwareKept, GroupTable, Iommu, Kept,
    KeptSetup,
};
use hv_rig::{Machine, RegionModel, Rig, Tenant, Vendor};
use hv_smmu::{Smmu, iort};
use hv_vtd::{Vtd, dmar};

type Failed = Box<dyn Error>;

/// Memory that firmware reserved for its device, which has it at the same addresses.
const REGION: u64 = 0x1_0010_0000;

fn main() -> Result<(), Failed> {
    run()
}

/// Goes the whole way on each vendor's machine.
///
/// # Errors
/// Where it did not go on, or the rule of the rig that was broken.
pub(crate) fn run() -> Result<(), Failed> {
    // Somebody takes the responsibility: until translation is on, the device reaches what it reached before.
    let policy = FirmwareKept::keep_pinned_devices_running("an example");

    let rig = at_work(Vendor::Vtd)?;
    let (table, functions) = (dmar::parse(&rig.dmar()?)?, rig.functions());
    let strict = hv_vtd::CoveragePolicy::Strict;
    let refused = Vtd::discover(rig.clone(), &table, &functions, strict).err();
    println!("without keeping: {}", refused.ok_or("it was not refused")?);
    let discovery = Vtd::discover_keeping(rig.clone(), &table, &functions, strict, &policy)?;
    go_on(&rig, discovery.bring_up()?, &policy)?;

    let rig = at_work(Vendor::Smmu)?;
    let (firmware, functions) = (iort::parse(&rig.iort()?)?.describe()?, rig.functions());
    let strict = hv_smmu::CoveragePolicy::Strict;
    let discovery = Smmu::discover_keeping(rig.clone(), firmware, &functions, strict, &policy)?;
    // A unit that firmware left translating has a moment in which the device is aborted: it is refused, unless the policy
    // is `accepting_gap`. This one was off.
    for (unit, how) in discovery.units().zip(discovery.hand_overs()) {
        println!("{}: {how}", unit.unit);
    }
    go_on(&rig, discovery.bring_up()?, &policy)
}

/// A machine whose first device firmware left at work, and goes on using.
fn at_work(vendor: Vendor) -> Result<Rig, Failed> {
    let pages = PageCount::new(4).ok_or("some pages")?;
    let memory = PhysRange::new(PhysAddr::new(REGION), pages)?;
    let mut machine = Machine::calm_of(vendor);
    let function = machine.functions.first_mut().ok_or("a device")?;
    function.left_on = true;
    let functions = vec![function.address];
    machine.regions = vec![RegionModel {
        memory,
        functions: functions.clone(),
    }];
    let rig = Rig::new(machine)?;
    // The rig is told what is firmware's, so that it watches: from here on the device may be refused at no moment.
    let (firmware, range) = (Tenant(1), IovaRange::new(Iova::new(REGION), pages)?);
    rig.mapping(firmware, range, memory, Perms::ReadWrite);
    rig.mapped(firmware, range, Perms::ReadWrite);
    rig.keep_running(&functions, firmware);
    works(&rig, "before bring-up")?;
    Ok(rig)
}

/// Firmware's device does what it always does.
fn works(rig: &Rig, when: &str) -> Result<(), Failed> {
    let device = rig.endpoints()[0];
    rig.device_write(device, Iova::new(REGION), b"firmware's own")?;
    println!("{when}: {device} reached firmware's memory");
    Ok(())
}

/// From units that do not translate yet to a group that the hypervisor holds.
fn go_on<B: Backend, D: Dormant<Backend = B>>(
    rig: &Rig,
    asleep: D,
    policy: &FirmwareKept,
) -> Result<(), Failed> {
    works(rig, "before translation is on")?;
    let functions = rig.functions();
    let (config, domains) = (Config::default(), DomainConfig::default());
    let made = Iommu::new_keeping(asleep, &functions, config, domains, policy)?;
    let KeptSetup { groups, kept, .. } = made;
    works(rig, "after it is on")?;

    // The groups that nobody holds are claimed as ever; their table learns of the one that is held.
    let table = GroupTable::new(groups).map_err(|(_, error)| error)?;
    let [Kept { group, domain }] =
        <[_; 1]>::try_from(kept).map_err(|_| "firmware uses one device")?;
    table.note_held(&group)?;
    for device in rig.endpoints() {
        println!("{device}: {}", table.find(device).ok_or("in no group")?);
    }

    // It is the hypervisor's group now, in a domain with firmware's region, which a driver uses beside firmware.
    let buffer = domain.alloc_coherent(BufferRequest {
        pages: PageCount::ONE,
        align: PageSize::Size4K,
        perms: Perms::ReadWrite,
    })?;
    let device = group.members()[0];
    let beside = rig.device_write(device, buffer.iova(), b"the driver's");
    println!(
        "a driver's buffer: {}",
        if beside.is_ok() { "reached" } else { "blocked" }
    );
    buffer.free()?;
    works(rig, "beside a driver")?;

    // It stands still when whoever holds it says so, and not before.
    let claimed = group.detach().map_err(|group| group.error())?;
    let refused = works(rig, "detached").err();
    println!("detached: {}", refused.ok_or("it was not stopped")?);
    println!("mapped at the end: {}", domain.destroy()?.count());
    let rest = claimed.release().without_reset("firmware's driver goes on");
    table.put_back(rest).map_err(|_| "its place is there")?;
    Ok(rig.verdict()?)
}
