//! The whole subsystem with no hardware at all: two domains, DMA through both, and a blocked access.

use std::error::Error;

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GuestMemory, Iova, IovaRange, PageCount, PageSize, Perms, VmId};
use hv_iommu::{AtRest, BufferRequest, Config, Domain, DomainConfig, InterruptsIsolated, Iommu};
use hv_rig::{Machine, Rig};
use hv_vtd::{CoveragePolicy, Vtd, dmar};

fn main() -> Result<(), Box<dyn Error>> {
    // A hypervisor implements the platform traits; here the rig does, and plays the hardware too.
    let platform = Rig::new(Machine::calm())?;
    let functions = platform.functions();

    // From firmware's table to running units: devices reach nothing from here on.
    let table = dmar::parse(&platform.dmar()?)?;
    let discovery = Vtd::discover(platform.clone(), &table, &functions, CoveragePolicy::Strict)?;
    let (iommu, groups) = Iommu::new(discovery.bring_up()?, &functions, Config::default())?;
    // No device is firmware's here.
    let free: Vec<_> = groups.into_iter().flat_map(AtRest::claimable).collect();
    let [nic, disk] = <[_; 2]>::try_from(free).map_err(|_| "the machine has two devices")?;

    // The hypervisor's own driver has the first device, in a domain that the hypervisor fills.
    let device = nic.members()[0];
    let nic = nic.claim_for_hypervisor();
    let kernel = Domain::paging_domain_alloc(&nic, DomainConfig::default())?;
    let nic = nic.attach(&kernel)?;
    nic.enable_bus_mastering(device)?;
    let request = BufferRequest {
        pages: PageCount::ONE,
        align: PageSize::Size4K,
        perms: Perms::ReadWrite,
    };
    let buffer = kernel.alloc_coherent(request)?;
    platform.device_write(device, buffer.iova(), b"from the device")?;
    let mut seen = [0; 15];
    buffer.read(0, &mut seen)?;
    println!("KernelPaging: {:?}", std::str::from_utf8(&seen)?);

    // A guest has the second device: its memory, at its addresses, pinned while it is mapped.
    let vm = VmId::new(1).ok_or("guests are numbered from 1")?;
    let mut memory = GuestMemory::new(vm);
    let pages = PageCount::new(16).ok_or("some pages")?;
    let frames = platform.alloc_frames(pages, PageSize::Size4K)?;
    let slot = memory
        .give(Gpa::new(0), frames)
        .map_err(|(_, error)| error)?;
    let passed = disk.members()[0];
    let disk = disk.claim_for_guest(vm);
    let user = Domain::user_domain_alloc(&disk, DomainConfig::default())?;
    let isolated = InterruptsIsolated::override_unsafe_interrupts("an example without interrupts");
    let disk = disk.attach_for_guest(&user, &isolated)?;
    disk.enable_bus_mastering(passed)?;
    let range = user.reserve(IovaRange::new(Iova::new(0), pages)?)?;
    let mapped = range.map(memory.pin(slot)?, Perms::ReadWrite)?;
    platform.device_write(passed, Iova::new(0x2000), b"for the guest")?;
    let mut seen = [0; 13];
    memory.read(&platform, Gpa::new(0x2000), &mut seen)?;
    println!("UserManaged: {:?}", std::str::from_utf8(&seen)?);

    // What is not mapped is not reached, and the fault says who tried.
    let blocked = platform.device_write(passed, Iova::new(0x10_0000), b"nothing there");
    println!(
        "unmapped: {}",
        blocked.err().ok_or("the write went through")?
    );
    iommu.take_faults(|notice| println!("fault: {notice}"));

    // Frames come back by receipt, groups by detach, tables by the end of their domain.
    let (range, frames) = mapped.unmap().flush()?;
    memory.unpin(frames).map_err(|(_, error)| error)?;
    range.release().map_err(|(_, error)| error)?;
    buffer.free()?;
    let released = (
        nic.detach().map(|group| group.release()),
        disk.detach().map(|group| group.release()),
    );
    if released.0.is_err() || released.1.is_err() {
        return Err("a unit did not answer".into());
    }
    let ends = [kernel.destroy()?.count(), user.destroy()?.count()];
    println!("mapped at the end: {ends:?}");
    platform.free_frames(memory.take_back(Gpa::new(0))?);
    Ok(platform.verdict()?)
}
