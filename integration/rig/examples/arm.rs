//! An Arm machine from its IORT to DMA: what a domain, a group or a unit can be asked for there, one after the other.
//!
//! Ownership, blocked accesses and the way back are in `embed.rs`, and are the same here.

use std::error::Error;

use hv_core::platform::FrameSource;
use hv_core::{Access, Gpa, GuestMemory, Iova, IovaRange, PageCount, PageSize, Pasid, Perms, VmId};
use hv_iommu::{
    AtRest, BufferRequest, Config, DirtyBitmap, Domain, DomainConfig, InterruptRoute,
    InterruptSource, InterruptsIsolated, Iommu, Needs, TrustedDevice, UnitIndex,
};
use hv_rig::{Machine, Rig, Vendor};
use hv_smmu::{CoveragePolicy, Smmu, iort};

/// A machine whose unit, firmware and functions all have what is shown here. One of them that has not is refused by name.
fn machine() -> Machine {
    let mut machine = Machine::calm_of(Vendor::Smmu);
    for identity in machine.units.iter_mut().filter_map(|unit| unit.smmu()) {
        (identity.httu, identity.ats) = (2, true);
    }
    for function in &mut machine.functions {
        function.ats = true;
    }
    machine.pasid_bits = 8;
    machine
}

const ONE_PAGE: BufferRequest = BufferRequest {
    pages: PageCount::ONE,
    align: PageSize::Size4K,
    perms: Perms::ReadWrite,
};

fn main() -> Result<(), Box<dyn Error>> {
    run()
}

/// Goes the whole way.
///
/// # Errors
/// Where it did not go on, or the rule of the rig that was broken.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let platform = Rig::new(machine())?;
    let functions = platform.functions();

    // What the table says, in the words that a device tree's are brought into too. On hardware an `madt::parse` and
    // `Firmware::place_services` come here, or devices send no interrupt messages.
    let firmware = iort::parse(&platform.iort()?)?.describe()?;
    let policy = CoveragePolicy::Strict;
    let discovery = Smmu::discover(platform.clone(), firmware, &functions, policy)?;
    for unit in discovery.units() {
        println!("{unit}");
    }
    let (iommu, groups) = Iommu::new(discovery.bring_up()?, &functions, Config::default())?;
    let free: Vec<_> = groups.into_iter().flat_map(AtRest::claimable).collect();
    let [nic, disk] = <[_; 2]>::try_from(free).map_err(|_| "the machine has two devices")?;

    // Interrupts of the unit: the interrupt controller is told of the wire first.
    let unit = UnitIndex::new(0).ok_or("the first unit")?;
    let wire = iommu.wired_interrupt(unit, InterruptSource::Faults);
    println!("faults come by: {}", wire.ok_or("no wire")?);
    iommu.route_interrupt(unit, InterruptSource::Faults, InterruptRoute::Wired, |_| {})?;

    // A guest's domain whose written pages are noted, as a migration needs it.
    let vm = VmId::new(1).ok_or("guests are numbered from 1")?;
    let mut memory = GuestMemory::new(vm);
    let pages = PageCount::new(16).ok_or("some pages")?;
    let frames = platform.alloc_frames(pages, PageSize::Size4K)?;
    let slot = memory
        .give(Gpa::new(0), frames)
        .map_err(|(_, error)| error)?;
    let passed = disk.members()[0];
    let disk = disk.claim_for_guest(vm);
    let noted = DomainConfig::default().with(Needs {
        dirty_tracking: true,
        ..Needs::default()
    });
    let user = Domain::user_domain_alloc(&disk, noted)?;
    // `disk.interrupts_isolated()` gives the witness where there is an ITS; this machine has none (`Machine::set_services`).
    let isolated = InterruptsIsolated::override_unsafe_interrupts("an example without interrupts");
    let disk = disk.attach_for_guest(&user, &isolated)?;
    disk.enable_bus_mastering(passed)?;
    let range = user.reserve(IovaRange::new(Iova::new(0), pages)?)?;
    let mapped = range.map(memory.pin(slot)?, Perms::ReadWrite)?;
    platform.device_write(passed, Iova::new(0x2000), b"for the guest")?;
    let mut words = [0];
    let mut bitmap = DirtyBitmap::new(mapped.span(), &mut words)?;
    let dirty = user.dirty().ok_or("the domain was asked for with it")?;
    dirty.read_and_clear(&mut bitmap)?;
    let written: Vec<_> = bitmap.pages().map(|page| page.to_string()).collect();
    println!("written: {written:?}");

    // A fault, told by the interrupt. A handler only notes that it came; whoever it wakes looks.
    let blocked = platform.device_write(passed, Iova::new(0x10_0000), b"nothing there");
    println!(
        "unmapped: {}",
        blocked.err().ok_or("the write went through")?
    );
    platform.idle(1000);
    println!("interrupts: {}", platform.take_interrupts().len());
    iommu.take_faults(|notice| println!("fault: {notice}"));

    // The hypervisor's device sends with PASIDs: each has a domain of its own, which has to be asked for as one.
    let device = nic.members()[0];
    let nic = nic.claim_for_hypervisor();
    let told_apart = DomainConfig::default().with(Needs {
        pasids: true,
        ..Needs::default()
    });
    let plain = Domain::paging_domain_alloc(&nic, told_apart)?;
    let queue = Domain::paging_domain_alloc(&nic, told_apart)?;
    let nic = nic.attach(&plain)?;
    nic.enable_bus_mastering(device)?;
    let buffer = queue.alloc_coherent(ONE_PAGE)?;
    let pasid = Pasid::new(5).ok_or("PASIDs are numbered from 1")?;
    let write_as = |pasid| {
        let outcome = platform.access_as(device, pasid, buffer.iova(), Access::Write);
        println!("queue's buffer, with {pasid:?}: {outcome}");
    };
    let nic = nic.open_pasids().map_err(|(_, refused)| refused)?;
    let bound = nic.attach_pasid(device, pasid, &queue)?;
    write_as(Some(pasid));
    write_as(None);
    nic.detach_pasid(bound)?;
    write_as(Some(pasid));
    let mut nic = nic.close_pasids()?;

    // A device that keeps translations itself, which takes somebody's word for it. Flushes reach it too.
    let trusted = TrustedDevice::vouch_for(&nic, "an example");
    nic.enable_ats(device, &trusted)?;
    let lent = plain.alloc_coherent(ONE_PAGE)?;
    let at = lent.iova();
    platform.device_write(device, at, b"by its own translation")?;
    lent.free()?;
    let freed = platform.device_write(device, at, b"too late");
    println!(
        "freed: {}",
        freed.err().ok_or("the device reached freed memory")?
    );
    nic.disable_ats(device)?;

    buffer.free()?;
    let (range, frames) = mapped.unmap().flush()?;
    memory.unpin(frames).map_err(|(_, error)| error)?;
    range.release().map_err(|(_, error)| error)?;
    let released = (
        nic.detach().map(|group| group.release()),
        disk.detach().map(|group| group.release()),
    );
    if released.0.is_err() || released.1.is_err() {
        return Err("a unit did not answer".into());
    }
    for rest in [plain.destroy()?, queue.destroy()?] {
        println!("mapped at the end: {}", rest.count());
    }
    println!("mapped at the end: {}", user.destroy()?.count());
    platform.free_frames(memory.take_back(Gpa::new(0))?);
    Ok(platform.verdict()?)
}
