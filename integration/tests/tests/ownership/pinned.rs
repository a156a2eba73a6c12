//! Regions that firmware goes on using: reserved before they are mapped, there as long as the domain is, and in
//! nobody else's hands.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, IovaRange, PageSize, Perms, PhysAddr};
use hv_iommu::table::TableError;
use hv_iommu::{
    AtRest, AttachError, AttachFailed, BufferRequest, Domain, DomainConfig, DomainError,
    FirmwareOverridden, FlushSpan, Group, Pinned, ReplaceFailed, ReservedKind, ReservedRegion,
    SpaceError,
};
use hv_tests::fake::{DmaFault, Fake};
use hv_tests::host::Host;

use super::domain_end::ended_in_a_walk;
use super::machine::{
    ALIAS, BRIDGE, DISK, FAR, Machine, NIC, OLD, TWIN, end_domain, iovas, isolated, pages, vm,
};

/// A domain that has the addresses of the host's frames.
pub(crate) const WIDE: DomainConfig = DomainConfig {
    address_bits: 48,
    largest_page: PageSize::Size1G,
};

/// A region of this kind in frames that nobody else gets.
fn region(host: &Host, count: u64, kind: ReservedKind) -> ReservedRegion {
    let memory = host.frames(count).into_range();
    host.set_aside(memory);
    let start = Iova::new(memory.start().as_u64());
    let range = IovaRange::new(start, memory.pages()).unwrap();
    ReservedRegion { range, kind }
}

fn pinned(group: AtRest<Fake>) -> Group<Fake, Pinned> {
    match group {
        AtRest::ForHypervisor(group) => group,
        other => panic!("{other:?}"),
    }
}

/// A machine whose first device has a region of five pages.
fn machine() -> (Machine, ReservedRegion) {
    let mut kept = None;
    let machine = Machine::with_regions(|host| {
        let region = region(host, 5, ReservedKind::Pinned);
        kept = Some(region);
        vec![(NIC, region)]
    });
    (machine, kept.unwrap())
}

fn each_page(range: IovaRange) -> impl Iterator<Item = Iova> {
    (0..range.pages().get()).map(move |page| Iova::new(range.start().as_u64() + (page << 12)))
}

#[test]
fn bc06_xsa_378_regions_are_each_as_firmware_gave_them_and_go_with_the_whole_group() {
    let mut given = Vec::new();
    let mut machine = Machine::with_regions(|host| {
        let first = region(host, 2, ReservedKind::Pinned);
        // Right behind the first: still a region of its own.
        let second = region(host, 2, ReservedKind::Relaxable);
        assert_eq!(
            first.range.last().as_u64() + 1,
            second.range.start().as_u64()
        );
        given.extend([first, second]);
        // Shared by two devices of a group; and one that only an alias of another group has.
        vec![
            (TWIN[0], first),
            (TWIN[1], first),
            (TWIN[1], second),
            (ALIAS, first),
        ]
    });
    let group = pinned(machine.take_at_rest(TWIN[0]));
    let window = ReservedRegion {
        range: iovas(0xfee0_0000, 256),
        kind: ReservedKind::InterruptWindow,
    };
    let all: Vec<_> = group.reserved_regions().collect();
    assert_eq!(all, [window, given[0], given[1]]);
    let behind = pinned(machine.take_at_rest(OLD[0]));
    assert!(
        behind.reserved_regions().any(|region| region == given[0]),
        "{BRIDGE}"
    );
    let plain = machine.take(NIC);
    assert_eq!(plain.reserved_regions().collect::<Vec<_>>(), [window]);
}

#[test]
fn bc06_xsa_400_a_region_is_mapped_before_its_device_is_attached_and_after_every_transition() {
    let (mut machine, region) = machine();
    let mut group = pinned(machine.take_at_rest(NIC)).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    let reaches = |machine: &Machine| {
        for at in each_page(region.range) {
            let to = machine.fake.dma(NIC, at, Access::Write);
            assert_eq!(to, Ok(PhysAddr::new(at.as_u64())));
        }
    };
    for _ in 0..2 {
        for at in each_page(region.range) {
            assert_eq!(domain.translate(at).unwrap().to, PhysAddr::new(at.as_u64()));
        }
        let attached = group.attach(&domain).unwrap();
        attached.enable_bus_mastering(NIC).unwrap();
        reaches(&machine);
        // Neither flushes nor a reclaim of empty tables take it.
        let _receipt = domain.flush(FlushSpan::Domain).unwrap();
        domain.reclaim().unwrap();
        reaches(&machine);
        group = attached.detach().unwrap();
        assert_eq!(
            machine.fake.dma(NIC, region.range.start(), Access::Read),
            Err(DmaFault::NotBusMaster)
        );
        group = pinned(group.release().without_reset("a test")).claim_for_hypervisor();
    }
    assert_eq!(end_domain(domain, machine.host()), 0);
}

#[test]
fn bc06_d41501f_no_caller_can_have_or_unmap_a_page_of_a_region() {
    let (mut machine, region) = machine();
    let group = pinned(machine.take_at_rest(NIC)).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    for at in each_page(region.range) {
        let wanted = iovas(at.as_u64(), 1);
        assert_eq!(
            domain.reserve(wanted).err(),
            Some(SpaceError::Reserved { wanted, by: region })
        );
    }
    // The pages on both sides are free, and what is mapped there comes and goes without the region.
    let (before, after) = (
        region.range.start().as_u64() - 0x1000,
        region.range.last().as_u64() + 1,
    );
    for start in [before, after] {
        let range = domain.reserve(iovas(start, 1)).unwrap();
        let mapped = range
            .map(machine.host().frames(1), Perms::ReadWrite)
            .unwrap();
        let (_, frames) = mapped.unmap().flush().unwrap();
        machine.host().free_frames(frames);
    }
    for at in each_page(region.range) {
        assert!(domain.translate(at).is_some());
    }
    assert_eq!(end_domain(domain, machine.host()), 0);
}

#[test]
fn bc06_the_end_of_a_domain_hands_no_memory_of_firmware_out() {
    // The frame right behind the region is the driver's, so that one run could be made of both.
    let mut parts = None;
    let mut machine = Machine::with_regions(|host| {
        let (firmwares, drivers) = host.frames(6).split_at(pages(5)).unwrap();
        host.set_aside(firmwares.range());
        let range = iovas(firmwares.range().start().as_u64(), 5);
        parts = Some((firmwares, drivers));
        let kind = ReservedKind::Pinned;
        vec![(NIC, ReservedRegion { range, kind })]
    });
    let (_firmwares, drivers) = parts.unwrap();
    let memory = drivers.range();
    let group = pinned(machine.take_at_rest(NIC)).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    let range = domain.reserve(iovas(memory.start().as_u64(), 1)).unwrap();
    drop(range.map(drivers, Perms::Read).unwrap());
    let back: Vec<_> = domain
        .destroy()
        .unwrap()
        .map(|frames| frames.range())
        .collect();
    assert_eq!(back, [memory]);
    assert_eq!(machine.host().frames_out(), 6, "its tables are back");
}

#[test]
fn bc06_xsa_460_a_region_that_cannot_be_mapped_leaves_nothing() {
    let (mut machine, _) = machine();
    let group = pinned(machine.take_at_rest(NIC)).claim_for_hypervisor();
    let host = machine.fake.host();
    let out = host.frames_out();
    let mut failing = 0;
    let domain = loop {
        host.fail_allocation_after(Some(failing));
        let domain = Domain::paging_domain_alloc(&group, WIDE);
        host.fail_allocation_after(None);
        let Err(error) = domain else {
            break domain.unwrap();
        };
        assert!(
            matches!(error, DomainError::Table(TableError::OutOfFrames { .. })),
            "{error}"
        );
        assert_eq!(host.frames_out(), out, "after {failing} allocations");
        assert_eq!(machine.iommu.domains_in_use(), 0);
        failing += 1;
    };
    assert_eq!(failing, 4, "the root and three tables");
    assert_eq!(end_domain(domain, host), 0);
    assert_eq!(host.frames_out(), out);
}

#[test]
fn bc06_regions_that_overlap_or_are_out_of_reach_are_refused() {
    let window = iovas(0xfee0_0000, 1);
    let far = iovas(1 << 48, 1);
    let kind = ReservedKind::Pinned;
    let mut given = Vec::new();
    let mut machine = Machine::with_regions(|host| {
        let first = region(host, 2, kind);
        let second = ReservedRegion {
            range: iovas(first.range.start().as_u64(), 1),
            kind,
        };
        let (window, far) = (
            ReservedRegion {
                range: window,
                kind,
            },
            ReservedRegion { range: far, kind },
        );
        given.extend([first, second, window, far]);
        vec![(NIC, first), (NIC, second), (DISK, window), (FAR, far)]
    });
    let &[first, second, taken, far] = &given[..] else {
        panic!("{given:?}");
    };
    let messages = ReservedRegion {
        range: iovas(0xfee0_0000, 256),
        kind: ReservedKind::InterruptWindow,
    };
    let meets = |region: ReservedRegion, by| {
        let wanted = region.range;
        SpaceError::Reserved { wanted, by }
    };
    let outside = SpaceError::Outside {
        wanted: far.range,
        last: Iova::new((1 << 48) - 1),
    };
    for (device, expected, why) in [
        (NIC, second, meets(second, first)),
        (DISK, taken, meets(taken, messages)),
        (FAR, far, outside),
    ] {
        let group = pinned(machine.take_at_rest(device)).claim_for_hypervisor();
        let Err(error) = Domain::paging_domain_alloc(&group, WIDE) else {
            panic!("{expected}");
        };
        assert_eq!(
            error,
            DomainError::Region {
                region: expected,
                why
            }
        );
        assert_eq!(machine.iommu.domains_in_use(), 0);
    }
}

#[test]
fn bc06_xsa_386_a_domain_without_the_region_does_not_take_the_group() {
    let (mut machine, region) = machine();
    let disk = machine.driver(DISK);
    let group = pinned(machine.take_at_rest(NIC)).claim_for_hypervisor();
    let Err(AttachFailed::Refused { group, error }) = group.attach(&disk.domain) else {
        panic!("attached without the region");
    };
    let expected = AttachError::RegionNotMapped {
        group: group.id(),
        domain: disk.domain.uid(),
        region,
    };
    assert_eq!(error, expected);
    assert_eq!(machine.fake.bound(NIC), None);
    // The other way round: the domain of the pinned group takes both.
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    let group = group.attach(&domain).unwrap();
    // Nor is it moved there, with a gap or without, and its device notices nothing.
    let Err(ReplaceFailed::Refused { group, error }) = group.replace_with_gap(&disk.domain) else {
        panic!("moved to where the region is not");
    };
    assert_eq!(error, expected);
    let gapless = group.gapless().unwrap();
    let Err(ReplaceFailed::Refused { group, error }) = group.replace(&disk.domain, &gapless) else {
        panic!("moved to where the region is not");
    };
    assert_eq!(error, expected);
    group.enable_bus_mastering(NIC).unwrap();
    let at = region.range.start();
    let to = machine.fake.dma(NIC, at, Access::Write);
    assert_eq!(to, Ok(PhysAddr::new(at.as_u64())));
    let other = disk.group.detach().unwrap().attach(&domain).unwrap();
    assert!(group.detach().is_ok() && other.detach().is_ok());
}

#[test]
fn a_pinned_group_goes_to_a_guest_by_an_override_that_counts_once() {
    let (mut machine, region) = machine();
    let policy = FirmwareOverridden::override_pinned_regions("a test");
    let group = pinned(machine.take_at_rest(NIC)).override_firmware(&policy);
    let group = group.claim_for_guest(vm(1));
    let domain = Domain::user_domain_alloc(&group, WIDE).unwrap();
    assert!(
        domain.reserve(region.range).is_ok(),
        "the guest has all addresses"
    );
    let group = group.attach_for_guest(&domain, &isolated()).unwrap();
    let released = group.detach().unwrap().release();
    let again = released.reset_members(|_| Ok::<_, ()>(())).unwrap();
    let group = pinned(again.all().unwrap()).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    assert!(domain.translate(region.range.start()).is_some());
}

/// Firmware's table names memory that the hypervisor, or a guest, has.
#[test]
fn bc06_a_region_over_memory_of_the_hypervisor_is_mapped_in_no_domain() {
    for kind in [ReservedKind::Pinned, ReservedKind::Relaxable] {
        let mut kept = None;
        let mut machine = Machine::with_regions(|host| {
            // Firmware has all but the last page of it.
            let memory = host.frames(3).into_range();
            let (own, _) = memory.split_at(pages(2)).unwrap();
            host.set_aside(own);
            let start = Iova::new(memory.start().as_u64());
            let range = IovaRange::new(start, memory.pages()).unwrap();
            kept = Some(ReservedRegion { range, kind });
            vec![(NIC, kept.unwrap())]
        });
        let region = kept.unwrap();
        let (before, ids) = (machine.host().frames_out(), machine.iommu.domains_in_use());
        let group = match machine.take_at_rest(NIC) {
            AtRest::ForHypervisor(group) => group.claim_for_hypervisor(),
            other => other.claimable().unwrap().claim_for_hypervisor(),
        };
        let refused = Domain::paging_domain_alloc(&group, WIDE).unwrap_err();
        assert_eq!(refused, DomainError::RegionNotFirmwares { region });
        let after = (machine.host().frames_out(), machine.iommu.domains_in_use());
        assert_eq!(after, (before, ids), "nothing is left of it");
        // Nor does a domain that was made for another device take it, as long as firmware goes on with it.
        let other = machine.take(FAR).claim_for_hypervisor();
        let domain = Domain::paging_domain_alloc(&other, WIDE).unwrap();
        assert_eq!(
            group.attach(&domain).is_ok(),
            kind == ReservedKind::Relaxable
        );
    }
}

#[test]
fn a_region_that_firmware_is_done_with_hinders_no_guest() {
    let mut kept = None;
    let mut machine = Machine::with_regions(|host| {
        kept = Some(region(host, 3, ReservedKind::Relaxable));
        vec![(NIC, kept.unwrap())]
    });
    let region = kept.unwrap();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, WIDE).unwrap();
    assert!(
        domain.translate(region.range.start()).is_some(),
        "for the hypervisor's driver"
    );
    let buffer = BufferRequest {
        pages: pages(1),
        align: PageSize::Size4K,
        perms: Perms::Read,
    };
    let buffer = domain.alloc_coherent(buffer).unwrap();
    assert!(!region.range.overlaps(&iovas(buffer.iova().as_u64(), 1)));
    drop(buffer);
    let group = group.release().without_reset("a test").claimable().unwrap();
    let group = group.claim_for_guest(vm(2));
    let guests = Domain::user_domain_alloc(&group, WIDE).unwrap();
    assert!(guests.translate(region.range.start()).is_none());
    assert!(guests.reserve(region.range).is_ok());
}

#[test]
fn bc06_xsa_386_an_end_that_was_put_off_takes_no_group_without_its_region() {
    let mut kept = None;
    let mut machine = Machine::with_regions(|host| {
        let memory = host.frames_aligned(512, PageSize::Size2M).into_range();
        host.set_aside(memory);
        let start = Iova::new(memory.start().as_u64());
        let range = IovaRange::new(start, memory.pages()).unwrap();
        let kind = ReservedKind::Pinned;
        kept = Some(ReservedRegion { range, kind });
        vec![(NIC, ReservedRegion { range, kind })]
    });
    let region = kept.unwrap();
    let group = pinned(machine.take_at_rest(NIC)).claim_for_hypervisor();
    // Small pages, so that the region has a table of its own, which goes only when nobody walks.
    let config = DomainConfig {
        largest_page: PageSize::Size4K,
        ..WIDE
    };
    let domain = Domain::paging_domain_alloc(&group, config).unwrap();
    let domain = ended_in_a_walk(&machine, domain);
    let Err(AttachFailed::Refused { group, error }) = group.attach(&domain) else {
        panic!("attached to a domain whose region is half gone");
    };
    let missing = AttachError::RegionNotMapped {
        group: group.id(),
        domain: domain.uid(),
        region,
    };
    assert_eq!(error, missing);
    end_domain(domain, machine.host());
}

#[test]
fn bc06_xsa_400_a_group_that_firmware_uses_is_not_put_into_a_blocked_domain() {
    let (mut machine, region) = machine();
    let group = pinned(machine.take_at_rest(NIC)).claim_for_hypervisor();
    let (blocked, domain) = (
        Domain::blocked(&group),
        Domain::paging_domain_alloc(&group, WIDE).unwrap(),
    );
    let group = group.attach(&domain).unwrap();
    let Err(refused) = group.replace_with_gap(&blocked) else {
        panic!("blocked");
    };
    let said = refused.to_string();
    assert!(said.contains(&region.to_string()), "{said}");
    assert!(machine.fake.bound(NIC).is_some());
}
