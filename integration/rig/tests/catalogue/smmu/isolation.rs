//! Class 10 for guests: a device goes to one with the witness that its interrupts are isolated, and what the guest maps
//! changes nothing of that.

use hv_core::platform::FrameSource;
use hv_core::{
    Gpa, GpaRange, GuestMemory, Iova, IovaRange, PageSize, Perms, PhysAddr, PhysRange, VmId,
};
use hv_iommu::{
    AddressSpace, AddressSpaceError, AttachError, AttachFailed, Domain, InterruptsIsolated,
    NotIsolated, ReservedFor,
};
use hv_rig::nest::Nest;
use hv_rig::{Machine, Message, Outcome, Tenant};

use super::messages::{doorbell, sends, with_services};
use super::stand::{Stand, count, on_machines, pci, small};

/// Notes a doorbell in the ledger.
fn note(stand: &Stand, tenant: Tenant, range: IovaRange) {
    let memory = PhysRange::new(PhysAddr::new(range.start().as_u64()), range.pages()).unwrap();
    stand.rig.mapping(tenant, range, memory, Perms::Write);
    stand.rig.mapped(tenant, range, Perms::Write);
}

#[test]
fn bc10_xsa_33_a_guest_with_the_witness_raises_its_own_interrupts_whatever_it_maps() {
    on_machines(30, with_services, |stand| {
        let (device, other) = (pci(0, 1, 0), pci(0, 2, 0));
        let vm = VmId::new(1).unwrap();
        let group = stand.take(device).claim_for_guest(vm);
        let witness = group.interrupts_isolated().unwrap();
        let range = doorbell(stand, device);
        let (tenant, strange) = (stand.tenant(), stand.tenant());
        let domain = Domain::user_domain_alloc(&group, small()).unwrap();
        note(stand, tenant, range);
        // Its memory lies where the doorbell is, too.
        let mut memory = GuestMemory::new(vm);
        let frames = stand.rig.alloc_frames(count(4), PageSize::Size4K).unwrap();
        let at = Gpa::new(range.start().as_u64());
        memory.give(at, frames).unwrap();
        let mut space = AddressSpace::new(domain, None).unwrap();
        let members = group.members().to_vec();
        stand.rig.attaching(&members, tenant);
        let group = group.attach_for_guest(space.domain(), &witness).unwrap();
        stand.rig.attached(&members, tenant);
        stand.rig.isolated(&members);
        for member in &members {
            group.enable_bus_mastering(*member).unwrap();
        }
        assert!(stand.rig.give_event(device, 1, tenant));
        assert!(stand.rig.give_event(other, 2, strange));
        for pages in [1, 2, 4] {
            let gpas = GpaRange::new(at, count(pages)).unwrap();
            let refused = space.map(&memory, range.start(), gpas, Perms::ReadWrite);
            let is_it = matches!(
                refused,
                Err(AddressSpaceError::Reserved { by, why: ReservedFor::Hardware, .. }) if by == range
            );
            assert!(is_it, "{refused:?}");
            assert!(space.unmap(&memory, range).is_err());
            let own = sends(stand, device, 1);
            assert!(
                matches!(own, Message::Raised { tenant: raised, .. } if raised == tenant),
                "{own:?}"
            );
            let strangers = sends(stand, device, 2);
            assert!(
                matches!(strangers, Message::Dropped { .. }),
                "{strangers:?}"
            );
        }
        // Elsewhere the guest's own pages are no doorbell.
        let gpas = GpaRange::new(at, count(1)).unwrap();
        let pin = memory.pin(gpas).unwrap();
        let below = Iova::new(0x10_0000);
        let there = IovaRange::new(below, count(1)).unwrap();
        stand
            .rig
            .mapping(tenant, there, pin.range(), Perms::ReadWrite);
        memory.unpin(pin).unwrap();
        let mapping = space.map(&memory, below, gpas, Perms::ReadWrite).unwrap();
        stand.rig.mapped(tenant, there, mapping.perms);
        let memorys = stand.rig.send_message(device, Iova::new(0x10_0040), 1);
        assert!(matches!(memorys, Message::Elsewhere(_)), "{memorys:?}");
        stand.rig.idle(60);
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        stand.rig.unmapping(tenant, range);
        stand.rig.unmapping(tenant, there);
        let teardown = space.destroy().map_err(|(_, why)| why).unwrap();
        stand.rig.ended(tenant);
        teardown.finish(&memory);
        assert_eq!(memory.pinned_pages(), 0);
    });
}

/// What the override is for: whoever says so takes a group whose interrupts are another's too.
#[test]
fn bc10_xsa_36_a_guest_without_the_witness_needs_an_override_and_raises_what_others_were_given() {
    let (device, other) = (pci(0, 1, 0), pci(0, 2, 0));
    let same = |machine: &mut Machine| {
        machine.set_services(1);
        machine.same_writers = vec![(device, other)];
    };
    on_machines(20, same, |stand| {
        // The witness of another group is none for this one.
        let (vm, strange) = (VmId::new(1).unwrap(), VmId::new(2).unwrap());
        let third = stand.take(pci(1, 0, 0)).claim_for_guest(strange);
        let witness = third.interrupts_isolated().unwrap();
        let group = stand.take(device).claim_for_guest(vm);
        let refused = group.interrupts_isolated().err();
        assert!(
            matches!(refused, Some(NotIsolated::Shared { .. })),
            "{refused:?}"
        );
        let domain = Domain::user_domain_alloc(&group, small()).unwrap();
        let Err(AttachFailed::Refused { group, error }) = group.attach_for_guest(&domain, &witness)
        else {
            panic!("attached by another group's witness");
        };
        assert!(matches!(error, AttachError::OtherWitness { .. }), "{error}");
        let (tenant, owner) = (stand.tenant(), stand.tenant());
        let range = doorbell(stand, device);
        note(stand, tenant, range);
        let members = group.members().to_vec();
        stand.rig.attaching(&members, tenant);
        let anyhow = InterruptsIsolated::override_unsafe_interrupts("a test");
        let group = group.attach_for_guest(&domain, &anyhow).unwrap();
        stand.rig.attached(&members, tenant);
        for member in &members {
            group.enable_bus_mastering(*member).unwrap();
        }
        assert!(stand.rig.give_event(other, 2, owner));
        let became = sends(stand, device, 2);
        assert!(
            matches!(became, Message::Raised { tenant: raised, .. } if raised == owner),
            "{became:?}"
        );
        stand.rig.detaching(&members, tenant);
        drop((group.detach().unwrap(), third));
        stand.rig.detached(&members);
        stand.rig.unmapping(tenant, range);
        assert_eq!(domain.destroy().unwrap().count(), 0);
        stand.rig.ended(tenant);
    });
}

/// A guest names the doorbell as it likes, and other services as well: what its parent maps decides, and the bus who it is.
#[test]
fn bc10_a_guests_first_stage_leads_messages_to_its_own_services_and_as_itself() {
    let nesting = |machine: &mut Machine| {
        machine.set_nesting();
        with_services(machine);
    };
    on_machines(20, nesting, |stand| {
        let device = pci(0, 2, 0);
        let group = stand.take(device);
        let nest = Nest::new(&stand.rig, group, 0).unwrap();
        let register = stand.rig.message_register(device).unwrap().as_u64();
        let (bell, offset) = (register & !0xfff, register & 0xfff);
        let at = |page: u64| Iova::new(page << 12);
        let seen = IovaRange::new(at(3), count(1)).unwrap();
        let memory = PhysRange::new(PhysAddr::new(bell), count(1)).unwrap();
        stand.rig.mapping(Nest::DEVICES, seen, memory, Perms::Write);
        nest.stage.map(0, at(3), Gpa::new(bell));
        stand.rig.mapped(Nest::DEVICES, seen, Perms::Write);
        // The services behind its own, the page beside the register's, and control registers.
        for (page, elsewhere) in [
            (4, bell + 0x2_0000),
            (5, bell + 0x1000),
            (6, bell - 0x1_0000),
        ] {
            nest.stage.map(0, at(page), Gpa::new(elsewhere));
        }
        assert!(stand.rig.give_event(device, 1, Nest::DEVICES));
        stand.rig.isolated(&[device]);
        let (_, writer) = stand.rig.message_writer(device).unwrap();
        for _ in 0..3 {
            let send = |page: u64, event| {
                let to = Iova::new(page << 12 | offset);
                stand.rig.send_message(device, to, event)
            };
            let own = send(3, 1);
            let is_own = matches!(own, Message::Raised { device, tenant, .. }
                if (device, tenant) == (writer, Nest::DEVICES));
            assert!(is_own, "{own:?}");
            let strange = send(3, 2);
            assert!(matches!(strange, Message::Dropped { .. }), "{strange:?}");
            for page in 4..7 {
                let blocked = send(page, 1);
                assert!(
                    matches!(blocked, Message::Elsewhere(Outcome::Faulted { .. })),
                    "page {page}: {blocked:?}"
                );
            }
            stand.rig.idle(40);
        }
        stand.rig.unmapping(Nest::DEVICES, seen);
        drop(nest.end().unwrap());
    });
}
