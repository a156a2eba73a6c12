//! A guest with a first stage of its own on Arm: from discovery to an invalidation that the guest asks for.
//!
//! `GuestStage` plays the guest, which writes its tables in its own memory. A hypervisor sees two things of it, where the
//! guest touches what it takes for its SMMU: a stream table entry, and commands. It shows the guest two: id registers, and events.

use std::error::Error;

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GuestMemory, Iova, IovaRange, PageCount, PageSize, Perms, PhysRange, VmId};
use hv_iommu::{
    AtRest, Config, Domain, DomainConfig, FaultNotice, InterruptsIsolated, InvalidateRefusal, Iommu,
};
use hv_rig::{GuestStage, Machine, Rig, Vendor};
use hv_smmu::{CoveragePolicy, Smmu, StreamId, iort, user_event};

fn main() -> Result<(), Box<dyn Error>> {
    run()
}

/// Goes the whole way.
///
/// # Errors
/// Where it did not go on, or the rule of the rig that was broken.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let mut machine = Machine::calm_of(Vendor::Smmu);
    machine.set_nesting();
    let platform = Rig::new(machine)?;
    let functions = platform.functions();
    let firmware = iort::parse(&platform.iort()?)?.describe()?;
    let policy = CoveragePolicy::Strict;
    let discovery = Smmu::discover(platform.clone(), firmware, &functions, policy)?;
    let (iommu, groups) = Iommu::new(discovery.bring_up()?, &functions, Config::default())?;
    let mut free = groups.into_iter().flat_map(AtRest::claimable);
    let group = free.next().ok_or("the machine has devices")?;

    // What the guest is shown as its SMMU: these registers, with sizes of StreamIDs and queues of the hypervisor's choice.
    let shown = iommu.user_unit().ok_or("no unit nests")?;
    println!(
        "shown: {} ASID bits, {} substream bits, {} output bits, ranges: {}",
        shown.idr0.asid_bits(),
        shown.idr1.ssidsize(),
        shown.idr5.output_size().bits(),
        shown.idr3.range_invalidation().is_some()
    );

    // The parent, a second stage: all that the guest may reach, at its addresses. Its first stage can only choose among it.
    let vm = VmId::new(1).ok_or("guests are numbered from 1")?;
    let device = group.members()[0];
    let group = group.claim_for_guest(vm);
    let parent = Domain::user_parent_alloc(&group, DomainConfig::default())?;
    let pages = PageCount::new(32).ok_or("some pages")?;
    let frames = platform.alloc_frames(pages, PageSize::Size4K)?;
    let first = frames.range().start();
    let mut memory = GuestMemory::new(vm);
    let slot = memory
        .give(Gpa::new(0), frames)
        .map_err(|(_, error)| error)?;
    let range = parent.reserve(IovaRange::new(Iova::new(0), pages)?)?;
    let mapped = range.map(memory.pin(slot)?, Perms::ReadWrite)?;

    // The guest: its tables in its first pages, a context that leads to them under ASID 1, and a page of its own choice.
    let tables = PageCount::new(GuestStage::PAGES).ok_or("some pages")?;
    let stage = GuestStage::new(&platform, Gpa::new(0), PhysRange::new(first, tables)?);
    let (at, to) = (Iova::new(0x7_7000), Gpa::new(0x1_0000));
    stage.set_context(0, 1, 0);
    stage.map(0, at, to);

    // It names its contexts in an entry of what it takes for its stream table. That is looked at, word by word.
    let entry = stage.entry(0);
    let nested = Domain::alloc_nested(&parent, &entry)?;
    let isolated = InterruptsIsolated::override_unsafe_interrupts("an example without interrupts");
    let group = group.attach_for_guest(&nested, &isolated)?;
    group.enable_bus_mastering(device)?;
    platform.device_write(device, at, b"through both stages")?;
    let mut seen = [0; 19];
    memory.read(&platform, to, &mut seen)?;
    println!("{to}: {:?}", std::str::from_utf8(&seen)?);

    // It takes the page away, and asks that this be forgotten. The VMID is put in here, whatever the guest writes. Of one of
    // its domains it is asked on that, of all its devices on the parent.
    stage.unmap(0, at);
    parent.invalidate(&[GuestStage::forget_page(1, at)])?;
    let blocked = platform.device_write(device, at, b"too late");
    println!(
        "forgotten: {}",
        blocked.err().ok_or("the write went through")?
    );
    // The fault is the guest's own: it is told so as its SMMU would, which has the device as a stream of the guest's choice.
    iommu.take_faults(|notice| {
        println!("fault: {notice}");
        if let FaultNotice::Fault(report) = notice {
            let event = user_event(&report.fault, StreamId::new(8));
            println!("for the guest's event queue: {event:#x?}");
        }
    });
    // What is refused says how far the batch came, and who has to see to it: a CMD_SYNC is for the hypervisor, which knows
    // that all before it is done; a command of no kind is the guest's mistake (CERROR_ILL).
    for (command, whose) in [([0x46, 0], "the hypervisor's"), ([0; 2], "the guest's")] {
        let batch = [GuestStage::forget_asid(1), command];
        let refused = nested.invalidate(&batch).err().ok_or("it was done")?;
        let is_as_said = match refused.reason {
            InvalidateRefusal::Embedders(_) => whose == "the hypervisor's",
            InvalidateRefusal::Malformed(_) => whose == "the guest's",
            InvalidateRefusal::Unit(_) => false,
        };
        println!("refused, {whose}: {refused}");
        if !is_as_said {
            return Err("somebody else has to see to it".into());
        }
    }
    // The guest starts anew: contexts and translations of all its devices are forgotten.
    parent.forget_first_stages()?;

    // The parent ends after what stands on it.
    let released = group.detach().map_err(|group| group.error())?.release();
    nested.destroy()?;
    let (range, frames) = mapped.unmap().flush()?;
    memory.unpin(frames).map_err(|(_, error)| error)?;
    range.release().map_err(|(_, error)| error)?;
    println!("mapped at the end: {}", parent.destroy()?.count());
    drop(released);
    platform.free_frames(memory.take_back(Gpa::new(0))?);
    Ok(platform.verdict()?)
}
