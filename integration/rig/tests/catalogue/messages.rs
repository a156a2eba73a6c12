//! Class 10 where units translate interrupt messages: they go through the domain to services that tell writers apart, and
//! the witness of isolated interrupts is had where those can.

use hv_core::{Iova, IovaRange, PciAddress, Perms, PhysAddr, PhysRange};
use hv_iommu::{AttachError, AttachFailed, Blocked, Group, NotIsolated, ReservedKind, SpaceError};
use hv_rig::{Machine, Message, Outcome};

use super::stand::{Backend, Kernel, PAGE, Stand, iovas, on_machines, pci, two_units};

/// One or two services.
pub(crate) fn with_services(machine: &mut Machine) {
    machine.set_services(1 + machine.seed as usize % 2);
}

/// The page that a device writes messages to.
pub(crate) fn doorbell(stand: &Stand, device: PciAddress) -> IovaRange {
    let register = stand.rig.message_register(device).unwrap().as_u64();
    iovas(register - register % (PAGE * 4096), PAGE)
}

/// What a device is to its services.
fn writer(stand: &Stand, device: PciAddress) -> u32 {
    stand.rig.message_writer(device).unwrap().1
}

/// What becomes of a message that a device writes where it should.
pub(crate) fn sends(stand: &Stand, device: PciAddress, event: u32) -> Message {
    let register = stand.rig.message_register(device).unwrap().as_u64();
    stand.rig.send_message(device, Iova::new(register), event)
}

/// A group of the hypervisor, with what the ledger has to know: its doorbell is mapped, and devices go there.
fn ringing(stand: &Stand, group: Group<Backend, Blocked>) -> Kernel {
    let one = stand.kernel(group);
    let range = doorbell(stand, one.device());
    let memory = PhysRange::new(PhysAddr::new(range.start().as_u64()), range.pages()).unwrap();
    let unit = one.group.as_ref().unwrap().unit();
    let granted = match stand.iommu.unit_caps(unit).unwrap().write_only {
        true => Perms::Write,
        false => Perms::ReadWrite,
    };
    stand.rig.mapping(one.tenant, range, memory, granted);
    stand.rig.mapped(one.tenant, range, granted);
    one
}

fn end(stand: &Stand, one: Kernel) -> Group<Backend, Blocked> {
    let range = doorbell(stand, one.device());
    stand.rig.unmapping(one.tenant, range);
    one.end()
}

/// The group has the witness, and the watcher knows.
fn isolate(stand: &Stand, one: &Kernel) {
    let group = one.group.as_ref().unwrap();
    let witness = group.interrupts_isolated();
    let seed = stand.rig.machine().seed;
    assert!(witness.is_ok(), "seed {seed:#x}: {}", witness.unwrap_err());
    stand.rig.isolated(group.members());
}

/// Shows: bc10.
#[test]
fn bc10_xsa_33_a_device_raises_what_it_was_given_and_nothing_of_another() {
    on_machines(30, with_services, |stand| {
        let (first, second) = (pci(0, 1, 0), pci(0, 2, 0));
        let (one, two) = (stand.take(first), stand.take(second));
        let (one, two) = (ringing(stand, one), ringing(stand, two));
        isolate(stand, &one);
        isolate(stand, &two);
        assert!(stand.rig.give_event(first, 1, one.tenant));
        assert!(stand.rig.give_event(second, 2, two.tenant));
        for _ in 0..3 {
            for (device, own, tenant) in [(first, 1, one.tenant), (second, 2, two.tenant)] {
                for event in 0..4 {
                    let became = sends(stand, device, event);
                    let (services, id) = stand.rig.message_writer(device).unwrap();
                    let expected = match event == own {
                        true => Message::Raised {
                            services,
                            device: id,
                            tenant,
                        },
                        false => Message::Dropped {
                            services,
                            device: id,
                        },
                    };
                    assert_eq!(became, expected, "{device} event {event}");
                }
            }
            // And by themselves.
            stand.rig.idle(60);
        }
        // One that is attached nowhere interrupts nobody.
        let group = end(stand, one);
        let nowhere = sends(stand, first, 1);
        assert!(matches!(nowhere, Message::Elsewhere(_)), "{nowhere:?}");
        let one = ringing(stand, group);
        let id = writer(stand, first);
        let became = sends(stand, first, 1);
        assert!(
            matches!(became, Message::Dropped { device, .. } if device == id),
            "taken back with the device: {became:?}"
        );
        drop((end(stand, one), end(stand, two)));
    });
}

/// Two functions of different groups are one writer: neither has the witness, and that is why.
///
/// Shows: bc10.
#[test]
fn bc10_xsa_36_who_is_the_same_writer_as_another_has_no_witness_and_raises_its_interrupts() {
    let (first, second) = (pci(0, 1, 0), pci(0, 2, 0));
    let same = |machine: &mut Machine| {
        machine.set_services(1);
        machine.same_writers = vec![(first, second)];
    };
    on_machines(20, same, |stand| {
        let (one, two) = (stand.take(first), stand.take(second));
        let (one, two) = (ringing(stand, one), ringing(stand, two));
        let id = writer(stand, first);
        assert_eq!(id, writer(stand, second));
        for (own, same) in [(&one, second), (&two, first)] {
            let refused = own.group.as_ref().unwrap().interrupts_isolated();
            let NotIsolated::Shared {
                source_id, other, ..
            } = refused.err().unwrap()
            else {
                panic!("{:?} is told apart", own.device());
            };
            assert_eq!((source_id.id, other), (id, same));
        }
        assert!(stand.rig.give_event(second, 2, two.tenant));
        for device in [first, second] {
            let became = sends(stand, device, 2);
            let tenant = two.tenant;
            assert!(
                matches!(became, Message::Raised { tenant: raised, .. } if raised == tenant),
                "{became:?}"
            );
        }
        // Whoever else is there has it, and raises none of theirs.
        let third = pci(1, 0, 0);
        let group = stand.take(third);
        let other = ringing(stand, group);
        isolate(stand, &other);
        let became = sends(stand, third, 2);
        assert!(matches!(became, Message::Dropped { .. }), "{became:?}");
        stand.rig.idle(60);
        drop((end(stand, one), end(stand, two), end(stand, other)));
    });
}

/// Ids are of their services: whose device writes to others would be somebody else there.
///
/// Shows: bc10.
#[test]
fn bc10_a_device_reaches_no_services_but_those_that_firmware_names() {
    for seed in 0..20 {
        let mut machine = two_units(seed);
        machine.set_services(2);
        let mut stand = Stand::new(machine);
        let (first, second) = (pci(0, 1, 0), pci(0, 2, 0));
        let one = stand.take(first);
        let one = ringing(&stand, one);
        let other = doorbell(&stand, second);
        assert_ne!(doorbell(&stand, first), other);
        let register = stand.rig.message_register(second).unwrap().as_u64();
        let beyond = stand.rig.send_message(first, Iova::new(register), 1);
        let blocked = matches!(beyond, Message::Elsewhere(Outcome::Faulted { .. }));
        assert!(blocked, "seed {seed:#x}: {beyond:?}");
        // A domain of its own services takes no device of others.
        let claimed = stand.take(second).claim_for_hypervisor().trust("a test");
        let Err(AttachFailed::Refused { error, .. }) = claimed.attach(&one.domain) else {
            panic!("its messages would be lost");
        };
        let AttachError::RegionNotMapped { region, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(region.range, other);
        // What is beside the register is none.
        let own = stand.rig.message_register(first).unwrap().as_u64();
        for beside in [own - 0x40, own + 4] {
            let became = stand.rig.send_message(first, Iova::new(beside), 1);
            let reached = Message::Elsewhere(Outcome::Reached { at: beside });
            assert_eq!(became, reached);
        }
        drop(end(&stand, one));
        stand.check();
    }
}

/// Shows: bc06.
#[test]
fn bc06_a_doorbell_stays_whatever_its_domain_and_its_group_go_through() {
    on_machines(30, with_services, |stand| {
        let device = pci(0, 2, 0);
        let group = stand.take(device);
        let mut one = ringing(stand, group);
        let range = doorbell(stand, device);
        let rings = |stand: &Stand, tenant| {
            assert!(stand.rig.give_event(device, 5, tenant));
            let became = sends(stand, device, 5);
            assert!(
                matches!(became, Message::Raised { tenant: raised, .. } if raised == tenant),
                "{became:?}"
            );
        };
        let bytes = range.pages().bytes();
        let around = iovas(range.start().as_u64() - bytes, 3 * range.pages().get());
        for wanted in [range, around] {
            let refused = one.domain.reserve(wanted).err();
            assert!(
                matches!(refused, Some(SpaceError::Reserved { by, .. }) if by.kind == ReservedKind::Doorbell),
                "{wanted}: {refused:?}"
            );
        }
        for start in [
            range.start().as_u64() - bytes,
            range.start().as_u64() + bytes,
        ] {
            let mapped = one.map(iovas(start, PAGE));
            rings(stand, one.tenant);
            one.unmap_and_free(mapped);
            one.domain.reclaim().unwrap();
            rings(stand, one.tenant);
        }
        // A reset in between.
        let group = one.group.take().unwrap();
        let members = group.members().to_vec();
        stand.rig.detaching(&members, one.tenant);
        let parked = group.park().unwrap();
        stand.rig.detached(&members);
        let quiet = sends(stand, device, 5);
        assert!(matches!(quiet, Message::Elsewhere(_)), "{quiet:?}");
        stand.rig.attaching(&members, one.tenant);
        let group = parked.unpark().unwrap();
        stand.rig.attached(&members, one.tenant);
        for member in &members {
            group.enable_bus_mastering(*member).unwrap();
        }
        one.group = Some(group);
        rings(stand, one.tenant);
        drop(end(stand, one));
    });
}
