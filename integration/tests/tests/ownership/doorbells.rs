//! Where a device's interrupt messages go, through the unit: mapped in every domain that takes it, and in nobody's hands.

use hv_core::{Access, Gpa, GpaRange, Iova, IovaRange, PageCount, Perms, PhysAddr};
use hv_iommu::table::TableError;
use hv_iommu::{
    AddressSpace, AddressSpaceError, AtRest, AttachError, AttachFailed, Domain, DomainError,
    FirmwareOverridden, ReservedFor, ReservedKind, ReservedRegion, SpaceError,
};
use hv_tests::fake::DmaFault;
use hv_tests::host::Host;

use super::machine::{DISK, Machine, NIC, PLAIN, TWIN, end_domain, iovas, isolated, pages, vm};
use super::pinned::WIDE;

/// A page that takes messages, and the host knows it.
fn doorbell(host: &Host) -> ReservedRegion {
    let region = unknown_doorbell(host);
    let start = PhysAddr::new(region.range.start().as_u64());
    host.add_doorbell(hv_core::PhysRange::new(start, region.range.pages()).unwrap());
    region
}

/// A page that firmware says takes messages.
fn unknown_doorbell(host: &Host) -> ReservedRegion {
    let page = host.frames(1).into_range();
    let start = Iova::new(page.start().as_u64());
    let range = IovaRange::new(start, page.pages()).unwrap();
    let kind = ReservedKind::Doorbell;
    ReservedRegion { range, kind }
}

/// The first device and the twins have one doorbell; the disk has none.
fn machine() -> (Machine, ReservedRegion) {
    let mut kept = None;
    let machine = Machine::with_regions(|host| {
        let region = doorbell(host);
        kept = Some(region);
        vec![(NIC, region), (TWIN[0], region), (TWIN[1], region)]
    });
    (machine, kept.unwrap())
}

#[test]
fn a_doorbell_is_mapped_for_writes_in_each_owners_domain_before_anything_is_attached() {
    let (mut machine, region) = machine();
    let at = region.range.start();
    let to = PhysAddr::new(at.as_u64());
    let rings = |machine: &Machine| {
        assert_eq!(machine.fake.dma(NIC, at, Access::Write), Ok(to));
        assert_eq!(machine.fake.rings(NIC, at), Ok(true), "no memory");
        let read = machine.fake.dma(NIC, at, Access::Read);
        assert_eq!(read, Err(DmaFault::NotPermitted));
        let beside = Iova::new(at.as_u64() + 0x1000);
        let found = machine.fake.dma(NIC, beside, Access::Write);
        assert_eq!(found, Err(DmaFault::NotMapped));
    };
    let group = machine.take(NIC).claim_for_hypervisor();
    assert!(group.reserved_regions().any(|found| found == region));
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    let found = domain.translate(at).unwrap();
    assert_eq!((found.to, found.perms), (to, Perms::Write));
    let group = group.attach(&domain).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    rings(&machine);
    let _receipt = domain.flush(hv_iommu::FlushSpan::Domain).unwrap();
    domain.reclaim().unwrap();
    rings(&machine);
    let group = group.detach().unwrap().release();
    assert_eq!(end_domain(domain, machine.host()), 0);
    let group = group.without_reset("a test").claimable().unwrap();
    let group = group.claim_for_guest(vm(1));
    // A guest's, and one that its own first stages can stand on.
    let plain = Domain::user_domain_alloc(&group, WIDE).unwrap();
    let parent = Domain::user_parent_alloc(&group, WIDE).unwrap();
    assert_eq!(parent.translate(at), Some(found));
    let group = group.attach_for_guest(&plain, &isolated()).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    rings(&machine);
    assert!(group.detach().is_ok());
    // Nothing of it is the guest's to get back.
    assert_eq!(plain.destroy().unwrap().count(), 0);
    assert_eq!(parent.destroy().unwrap().count(), 0);
    assert_eq!(machine.host().frames_out(), 1, "the doorbell alone");
}

#[test]
fn bc06_no_caller_can_have_or_unmap_a_doorbell() {
    let (mut machine, region) = machine();
    let wanted = region.range;
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    let refused = Some(SpaceError::Reserved { wanted, by: region });
    assert_eq!(domain.reserve(wanted).err(), refused);
    // Not even whoever takes all that is free.
    let mut most = 1 << 36;
    let mut ranges = Vec::new();
    while most > 0 {
        let (count, limit) = (PageCount::new(most).unwrap(), Iova::new(u64::MAX));
        let align = hv_core::PageSize::Size4K;
        match domain.allocate_within(count, align, limit) {
            Ok(range) => ranges.push(range),
            Err(_) => most /= 2,
        }
    }
    // Page 0 goes to nobody who does not ask for it.
    ranges.push(domain.reserve(iovas(0, 1)).unwrap());
    assert_eq!(domain.free_pages(), 0);
    assert!(ranges.iter().all(|range| !range.span().overlaps(&wanted)));
    for range in ranges {
        range.release().map_err(|(_, error)| error).unwrap();
    }
    assert!(domain.translate(wanted.start()).is_some());
    assert_eq!(end_domain(domain, machine.host()), 0);
}

#[test]
fn bc06_an_address_space_lists_its_doorbell_as_reserved_and_maps_nothing_there() {
    let (mut machine, region) = machine();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let domain = Domain::user_domain_alloc(&group, WIDE).unwrap();
    let mut memory = hv_core::GuestMemory::new(vm(1));
    let mut space = AddressSpace::new(domain, None).unwrap();
    let at = region.range.start();
    let start = Gpa::new(at.as_u64());
    memory.give(start, machine.host().frames(2)).unwrap();
    let listed = (region.range, ReservedFor::Hardware);
    let windows = (iovas(0xfee0_0000, 256), ReservedFor::Hardware);
    assert_eq!(space.reserved().collect::<Vec<_>>(), [windows, listed]);
    for count in [1, 2] {
        let gpas = GpaRange::new(start, pages(count)).unwrap();
        let refused = space.map(&memory, at, gpas, Perms::ReadWrite);
        let (by, why) = listed;
        let wanted = iovas(at.as_u64(), count);
        let expected = AddressSpaceError::Reserved { wanted, by, why };
        assert_eq!(refused, Err(expected));
    }
    assert_eq!(
        space.unmap(&memory, region.range),
        Err(AddressSpaceError::NotMapped {
            wanted: region.range
        })
    );
    assert!(space.domain().translate(at).is_some());
    let behind = Iova::new(at.as_u64() + 0x1000);
    let gpas = GpaRange::new(start, pages(1)).unwrap();
    space.map(&memory, behind, gpas, Perms::ReadWrite).unwrap();
    let teardown = space.destroy().map_err(|(_, why)| why).unwrap();
    teardown.finish(&memory);
    assert_eq!(memory.pinned_pages(), 0);
}

#[test]
fn a_domain_without_its_doorbell_takes_no_group() {
    let (mut machine, region) = machine();
    let disk = machine.take(DISK).claim_for_guest(vm(1));
    let without = Domain::user_domain_alloc(&disk, WIDE).unwrap();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let Err(AttachFailed::Refused { group, error }) = group.attach_for_guest(&without, &isolated())
    else {
        panic!("its messages would be lost");
    };
    let expected = AttachError::RegionNotMapped {
        group: group.id(),
        domain: without.uid(),
        region,
    };
    assert_eq!(error, expected);
    // That of one device takes another which has the same, and one which has none.
    let domain = Domain::user_domain_alloc(&group, WIDE).unwrap();
    let twins = machine.take(TWIN[0]).claim_for_guest(vm(1));
    for group in [group, twins, disk] {
        assert!(group.attach_for_guest(&domain, &isolated()).is_ok());
    }
}

#[test]
fn an_override_of_firmware_leaves_the_doorbell() {
    let mut kept = None;
    let mut machine = Machine::with_regions(|host| {
        let memory = host.frames(1).into_range();
        host.set_aside(memory);
        let range = iovas(memory.start().as_u64(), 1);
        let kind = ReservedKind::Pinned;
        let bell = doorbell(host);
        kept = Some(bell);
        vec![(NIC, ReservedRegion { range, kind }), (NIC, bell)]
    });
    let bell = kept.unwrap();
    let AtRest::ForHypervisor(group) = machine.take_at_rest(NIC) else {
        panic!("not pinned");
    };
    let policy = FirmwareOverridden::override_pinned_regions("a test");
    let group = group.override_firmware(&policy).claim_for_guest(vm(1));
    let domain = Domain::user_domain_alloc(&group, WIDE).unwrap();
    let mapped = group
        .reserved_regions()
        .filter(|region| domain.translate(region.range.start()).is_some());
    assert_eq!(mapped.collect::<Vec<_>>(), [bell]);
}

/// Firmware's table says that messages go where the hypervisor has memory.
#[test]
fn bc06_a_doorbell_that_the_platform_does_not_know_is_mapped_in_no_domain() {
    let mut kept = None;
    let mut machine = Machine::with_regions(|host| {
        kept = Some(unknown_doorbell(host));
        vec![(NIC, kept.unwrap())]
    });
    let region = kept.unwrap();
    let refused = Some(DomainError::NoDoorbell { region });
    let out = machine.host().frames_out();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    assert_eq!(Domain::user_domain_alloc(&group, WIDE).err(), refused);
    assert_eq!(Domain::user_parent_alloc(&group, WIDE).err(), refused);
    let group = group.release().without_reset("a test").claimable().unwrap();
    let group = group.claim_for_hypervisor();
    assert_eq!(Domain::paging_domain_alloc(&group, WIDE).err(), refused);
    assert_eq!(machine.host().frames_out(), out);
    assert_eq!(machine.iommu.domains_in_use(), 0);
}

#[test]
fn bc06_xsa_460_a_doorbell_that_cannot_be_mapped_leaves_nothing() {
    let (mut machine, _) = machine();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let host = machine.fake.host();
    let out = host.frames_out();
    let mut failing = 0;
    let domain = loop {
        host.fail_allocation_after(Some(failing));
        let domain = Domain::user_domain_alloc(&group, WIDE);
        host.fail_allocation_after(None);
        let Err(error) = domain else {
            break domain.unwrap();
        };
        let expected = matches!(error, DomainError::Table(TableError::OutOfFrames { .. }));
        assert!(expected, "{error}");
        assert_eq!(host.frames_out(), out, "after {failing} allocations");
        assert_eq!(machine.iommu.domains_in_use(), 0);
        failing += 1;
    };
    assert_eq!(failing, 4, "the root and three tables");
    assert_eq!(domain.destroy().unwrap().count(), 0);
    assert_eq!(host.frames_out(), out);
}

#[test]
fn a_domain_that_ends_before_the_doorbell_is_refused_and_says_so() {
    let range = iovas(1 << 45, 1);
    let kind = ReservedKind::Doorbell;
    let region = ReservedRegion { range, kind };
    let mut machine = Machine::with_regions(|host| {
        let start = PhysAddr::new(1 << 45);
        host.add_doorbell(hv_core::PhysRange::new(start, pages(1)).unwrap());
        vec![(NIC, region)]
    });
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let wanted = range;
    let last = Iova::new((1 << PLAIN.address_bits) - 1);
    let why = SpaceError::Outside { wanted, last };
    let refused = Domain::user_domain_alloc(&group, PLAIN).err();
    assert_eq!(refused, Some(DomainError::Region { region, why }));
    assert_eq!(machine.iommu.domains_in_use(), 0);
    let domain = Domain::user_domain_alloc(&group, WIDE).unwrap();
    assert!(domain.translate(range.start()).is_some());
}
