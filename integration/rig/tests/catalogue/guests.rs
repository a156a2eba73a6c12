//! Classes 1, 6 and 17 for a guest's address space: its memory under balloons, late units and reserved ranges.

use hv_core::platform::FrameSource;
use hv_core::{
    Access, Gpa, GpaRange, GuestMemory, GuestMemoryError, Iova, PageSize, Perms, UserManaged, VmId,
};
use hv_iommu::{
    AddressSpace, AddressSpaceError, Attached, Domain, Group, InterruptsIsolated, MapError,
    ReservedFor,
};
use hv_rig::{Outcome, Tenant};

use super::stand::{Backend, Stand, WAIT, count, iovas, on_machines, pci, small};

/// A guest with pages of its own, a space and a device that sends.
struct Guest {
    memory: GuestMemory,
    space: AddressSpace<Backend>,
    group: Group<Backend, Attached<UserManaged, Backend>>,
    tenant: Tenant,
}

/// Where the guest sees its memory, and how many pages that is.
const AT: u64 = 0x10_0000;
const PAGES: u64 = 16;

fn gpas(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start), count(pages)).unwrap()
}

impl Guest {
    fn new(stand: &mut Stand, vm: VmId) -> Self {
        let mut memory = GuestMemory::new(vm);
        let frames = stand
            .rig
            .alloc_frames(count(PAGES), PageSize::Size4K)
            .unwrap();
        memory
            .give_watched(Gpa::new(AT), frames, PageSize::Size4K)
            .unwrap();
        let group = stand.take(pci(0, 2, 0)).claim_for_guest(vm);
        let members = group.members().to_vec();
        let domain = Domain::user_domain_alloc(&group, small()).unwrap();
        let space = AddressSpace::new(domain, None).unwrap();
        let tenant = stand.tenant();
        stand.rig.attaching(&members, tenant);
        let isolated = InterruptsIsolated::override_unsafe_interrupts("a test");
        let group = group.attach_for_guest(space.domain(), &isolated).unwrap();
        stand.rig.attached(&members, tenant);
        for member in &members {
            group.enable_bus_mastering(*member).unwrap();
        }
        Self {
            memory,
            space,
            group,
            tenant,
        }
    }

    /// Maps where the guest sees it, and tells the watcher.
    fn map(&mut self, stand: &Stand, start: u64, pages: u64) {
        let pin = self.memory.pin(gpas(start, pages)).unwrap();
        let (range, perms) = (iovas(start, pages), Perms::ReadWrite);
        stand.rig.mapping(self.tenant, range, pin.range(), perms);
        self.memory.unpin(pin).unwrap();
        let mapping = self
            .space
            .map(&self.memory, Iova::new(start), gpas(start, pages), perms)
            .unwrap();
        stand.rig.mapped(self.tenant, range, mapping.perms);
    }

    fn writes(&self, stand: &Stand, at: u64) -> bool {
        let device = self.group.members()[0];
        let outcome = stand.rig.access(device, Iova::new(at), Access::Write);
        matches!(outcome, Outcome::Reached { .. })
    }

    fn is_pinned(&mut self, start: u64, pages: u64) -> bool {
        let taken = self.memory.take_back_part(gpas(start, pages));
        matches!(taken, Err(GuestMemoryError::Pinned { .. }))
    }
}

#[test]
fn bc17_xsa_379_what_a_balloon_takes_from_a_guest_its_device_cannot_reach() {
    on_machines(
        40,
        |_| {},
        |stand| {
            let (vm, other) = (VmId::new(1).unwrap(), VmId::new(2).unwrap());
            let mut guest = Guest::new(stand, vm);
            guest.map(stand, AT, PAGES);
            assert!(guest.writes(stand, AT + 0x3000));
            assert!(guest.is_pinned(AT + 0x3000, 2));
            // Cut by name; each part is still held.
            guest.space.split(Iova::new(AT + 0x3000)).unwrap();
            guest.space.split(Iova::new(AT + 0x5000)).unwrap();
            assert!(guest.is_pinned(AT + 0x3000, 2));
            stand.rig.unmapping(guest.tenant, iovas(AT + 0x3000, 2));
            let unmapped = guest.space.unmap(&guest.memory, iovas(AT + 0x3000, 2));
            assert_eq!(unmapped, Ok(2 * 4096));
            stand.rig.returned(guest.tenant, iovas(AT + 0x3000, 2));
            assert!(guest.is_pinned(AT + 0x2000, 2), "a page of it is mapped");
            let taken = guest.memory.take_back_part(gpas(AT + 0x3000, 2)).unwrap();
            // Another guest has the frames now; the device of the first one goes on with the rest.
            let mut next = GuestMemory::new(other);
            next.give(Gpa::new(0), taken).unwrap();
            stand.rig.idle(60);
            for page in 0..PAGES {
                let reached = guest.writes(stand, AT + page * 4096);
                assert_eq!(reached, !(3..5).contains(&page), "page {page}");
            }
            stand.rig.idle(60);
        },
    );
}

#[test]
fn bc01_xsa_373_memory_of_a_guest_stays_pinned_while_its_unit_hangs() {
    on_machines(
        20,
        |_| {},
        |stand| {
            let unit = stand.iommu.unit_of(pci(0, 2, 0)).unwrap().index();
            let mut guest = Guest::new(stand, VmId::new(1).unwrap());
            guest.map(stand, AT, PAGES);
            assert!(guest.writes(stand, AT));
            stand.rig.unmapping(guest.tenant, iovas(AT, PAGES));
            stand.rig.hang(unit, WAIT * 3);
            let failed = guest.space.unmap_all(&guest.memory);
            assert!(
                matches!(failed, Err(AddressSpaceError::Unit(_))),
                "{failed:?}"
            );
            stand.rig.wedged(unit, true);
            assert_eq!(guest.memory.pinned_pages(), PAGES);
            assert!(guest.is_pinned(AT, 1));
            assert!(guest.space.retry(&guest.memory).is_err());
            assert_eq!(guest.memory.pinned_pages(), PAGES);
        },
    );
}

#[test]
fn bc06_xsa_378_a_guest_maps_nothing_where_units_take_interrupts_or_something_is_reserved() {
    on_machines(
        20,
        |_| {},
        |stand| {
            let mut guest = Guest::new(stand, VmId::new(1).unwrap());
            let firmware = iovas(0x40_0000, 4);
            guest
                .space
                .reserve(firmware, ReservedFor::Firmware)
                .unwrap();
            let all: Vec<_> = guest.space.reserved().collect();
            for (range, _) in all {
                let pages = range.pages().get().min(2);
                let at = range.start();
                let refused = guest
                    .space
                    .map(&guest.memory, at, gpas(AT, pages), Perms::ReadWrite);
                let outside = matches!(refused, Err(AddressSpaceError::Outside { .. }));
                let reserved = matches!(refused, Err(AddressSpaceError::Reserved { .. }));
                assert!(reserved || outside, "{range}: {refused:?}");
                assert!(guest.space.unmap(&guest.memory, range).is_err());
            }
            assert!(!guest.writes(stand, 0x40_1000));
            assert_eq!(guest.memory.pinned_pages(), 0);
        },
    );
}

#[test]
fn bc17_xsa_379_memory_of_a_guest_stays_its_own_until_the_receipt() {
    on_machines(
        40,
        |_| {},
        |stand| {
            let (vm, other) = (VmId::new(1).unwrap(), VmId::new(2).unwrap());
            let mut memory = GuestMemory::new(vm);
            let frames = stand.rig.alloc_frames(count(16), PageSize::Size4K).unwrap();
            let slot = memory.give(Gpa::new(0), frames).unwrap();
            let group = stand.take(pci(0, 2, 0)).claim_for_guest(vm);
            let members = group.members().to_vec();
            let domain = Domain::user_domain_alloc(&group, small()).unwrap();
            let isolated = InterruptsIsolated::override_unsafe_interrupts("a test");
            let tenant = stand.tenant();
            stand.rig.attaching(&members, tenant);
            let group = group.attach_for_guest(&domain, &isolated).unwrap();
            stand.rig.attached(&members, tenant);
            group.enable_bus_mastering(members[0]).unwrap();

            let range = iovas(0x10_0000, 16);
            let pinned = memory.pin(slot).unwrap();
            stand
                .rig
                .mapping(tenant, range, pinned.range(), Perms::ReadWrite);
            let mapped = domain
                .reserve(range)
                .unwrap()
                .map(pinned, Perms::ReadWrite)
                .unwrap();
            stand.rig.mapped(tenant, range, mapped.granted());
            let write = |at| stand.rig.access(members[0], Iova::new(at), Access::Write);
            assert!(matches!(write(0x10_3000), Outcome::Reached { .. }));

            // Ballooned, given away, mapped for another guest: all refused while the device may reach it.
            let pinned = |memory: &mut GuestMemory| {
                matches!(
                    memory.take_back(Gpa::new(0)),
                    Err(GuestMemoryError::Pinned { .. })
                )
            };
            assert!(pinned(&mut memory));
            stand.rig.unmapping(tenant, range);
            let pending = mapped.unmap();
            assert!(pinned(&mut memory), "unmapped is not forgotten");
            let (free, frames) = pending.flush().unwrap();
            stand.rig.returned(tenant, range);
            assert!(pinned(&mut memory), "the run is still out");
            memory.unpin(frames).unwrap();

            // The frames go to another guest, and the first one's device does not come with them.
            let frames = memory.take_back(Gpa::new(0)).unwrap();
            let mut next = GuestMemory::new(other);
            let slot = next.give(Gpa::new(0), frames).unwrap();
            assert!(!matches!(write(0x10_3000), Outcome::Reached { .. }));
            let foreign = free.map(next.pin(slot).unwrap(), Perms::Read).unwrap_err();
            let MapError::Refused { frames, .. } = foreign else {
                panic!("{foreign}")
            };
            next.unpin(frames).unwrap();
            stand.rig.idle(100);
        },
    );
}
