//! Devices that keep translations themselves (ATS): each flush reaches them, and nothing of them is left behind.

use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, PageSize, PciAddress};
use hv_iommu::{AttachError, Attached, Domain, FunctionKind, Group, TrustedDevice};
use hv_rig::{Answering, FunctionModel, Identity, Machine, Outcome, Vendor};

use super::Backend;
use super::stand::{DEVICE_WAIT, Kernel, REMEMBERS, Stand, count, iovas, on_machines, pci, small};

/// The device that keeps translations.
pub(super) const DEVICE: PciAddress = pci(0, 2, 0);

/// Every unit is changed like that.
pub(super) fn all(machine: &mut Machine, change: impl Fn(&mut Identity)) {
    for unit in &mut machine.units {
        change(unit.smmu().unwrap());
    }
}

/// Devices can ask, and units look at what they send.
pub(super) fn with_ats(machine: &mut Machine) {
    all(machine, |identity| identity.ats = true);
    for function in &mut machine.functions {
        function.ats = true;
    }
}

/// A domain of the hypervisor with the device, which asks.
pub(super) fn asking(stand: &mut Stand) -> Kernel {
    asking_with(stand, DEVICE)
}

/// A domain of the hypervisor with another device, which asks.
pub(super) fn asking_with(stand: &mut Stand, device: PciAddress) -> Kernel {
    let claimed = stand
        .take(device)
        .claim_for_hypervisor()
        .trust("the rig's own");
    let trusted = TrustedDevice::vouch_for(&claimed, "the rig's own");
    let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
    let tenant = stand.tenant();
    let mut group = stand.attach(claimed, &domain, tenant);
    group.enable_ats(device, &trusted).unwrap();
    assert!(stand.rig.asks(device));
    Kernel {
        rig: stand.rig.clone(),
        domain,
        tenant,
        group: Some(group),
    }
}

/// What the device reaches by a translation of its own.
fn kept(stand: &Stand, at: u64) -> bool {
    let outcome = stand.rig.access_kept(DEVICE, Iova::new(at), Access::Write);
    matches!(outcome, Outcome::Reached { .. })
}

/// The device asks for an address.
fn ask(stand: &Stand, at: u64) -> bool {
    let outcome = stand.rig.ask(DEVICE, Iova::new(at), Access::Write);
    matches!(outcome, Outcome::Reached { .. })
}

#[test]
fn bc05_a_device_that_firmware_let_ask_is_stopped_at_bring_up() {
    super::stand::fault_of_the_environment();
    let left_on = |machine: &mut Machine| {
        with_ats(machine);
        for function in &mut machine.functions {
            function.left_on = true;
        }
    };
    on_machines(20, left_on, |stand| {
        for function in &stand.rig.machine().functions {
            assert!(!stand.rig.asks(function.address), "{}", function.address);
        }
        // Nor does it keep a setting that its next owner did not ask for.
        let one = asking(stand);
        drop(one.end());
    });
}

#[test]
fn bc15_a_flush_reaches_what_devices_keep() {
    on_machines(60, with_ats, |stand| {
        let one = asking(stand);
        for pages in [1, 3, 40] {
            let range = iovas(0x10_0000, pages);
            let mapped = one.map(range);
            let last = 0x10_0000 + (pages - 1) * 0x1000;
            assert!(ask(stand, 0x10_0000) && ask(stand, last));
            assert!(kept(stand, 0x10_0000) && kept(stand, last));
            one.unmap_and_free(mapped);
            assert!(!kept(stand, 0x10_0000) && !kept(stand, last));
            assert!(!ask(stand, 0x10_0000), "nothing is mapped there");
        }
        drop(one.end());
    });
}

/// A device may have been answered for a whole large page, or for any part of one: what is taken out, split, or made of one
/// piece again is forgotten of all that it keeps.
#[test]
fn bc15_entries_of_devices_are_of_any_size_up_to_the_leaf() {
    const LARGE: u64 = 0x20_0000;
    let resizing = |machine: &mut Machine| {
        with_ats(machine);
        machine
            .units
            .iter_mut()
            .for_each(hv_rig::UnitModel::set_resizing);
    };
    on_machines(60, resizing, |stand| {
        let one = asking(stand);
        let spots = [0, 0x1000, 0xff_000, 0x1f_f000].map(|offset| LARGE + offset);
        let keeps = || spots.map(|at| ask(stand, at) && kept(stand, at));
        let frames = stand.rig.alloc_frames(count(512), PageSize::Size2M);
        let mapped = one.map_to(iovas(LARGE, 512), frames.unwrap(), PageSize::Size2M);
        assert_eq!(keeps(), [true; 4]);
        one.unmap_and_free(mapped);
        assert_eq!(spots.map(|at| kept(stand, at)), [false; 4]);
        // A page out of the middle: its neighbours stay, in smaller pieces.
        let frames = stand.rig.alloc_frames(count(512), PageSize::Size2M);
        let mapped = one.map_to(iovas(LARGE, 512), frames.unwrap(), PageSize::Size2M);
        assert_eq!(keeps(), [true; 4]);
        let (left, right) = mapped.split_large_at(count(0xff)).unwrap();
        let (middle, right) = right.split_large_at(count(1)).unwrap();
        one.unmap_and_free(middle);
        assert!(!kept(stand, spots[2]) && !ask(stand, spots[2]));
        for at in [spots[0], spots[1], spots[3]] {
            assert!(ask(stand, at) && kept(stand, at), "{at:#x}");
        }
        one.unmap_and_free(left);
        one.unmap_and_free(right);
        assert_eq!(spots.map(|at| kept(stand, at)), [false; 4]);
        drop(one.end());
    });
}

#[test]
fn bc15_cve_2026_43130_a_device_that_is_pulled_out_with_its_tlb_open_stops_no_unit() {
    on_machines(30, with_ats, |stand| {
        let one = asking(stand);
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, 0x10_0000));
        stand.rig.plug(one.device(), false);
        drop(mapped);
        let blocked = one.end();
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        drop(blocked);
    });
}

#[test]
fn bc15_a_flush_reaches_devices_over_a_queue_of_a_few_commands() {
    let narrow = |machine: &mut Machine| {
        with_ats(machine);
        all(machine, |identity| {
            (identity.commands, identity.ril) = (3, false)
        });
    };
    on_machines(30, narrow, |stand| {
        let one = asking(stand);
        for pages in 1..12 {
            let mapped = one.map(iovas(0x10_0000, pages));
            let last = 0x10_0000 + (pages - 1) * 0x1000;
            assert!(ask(stand, last));
            one.unmap_and_free(mapped);
            assert!(!kept(stand, last));
        }
        drop(one.end());
    });
}

/// As many devices as a unit keeps count of, all of one domain: more commands than go into its queue at once.
#[test]
fn bc15_a_flush_reaches_as_many_devices_as_there_may_be() {
    let device = |number: u8| pci(3 + number / 32, number % 32, 0);
    let mut machine = super::suited(Machine::calm_of(Vendor::Smmu));
    for number in 0..64 {
        let kind = FunctionKind::Endpoint;
        machine
            .functions
            .push(FunctionModel::new(device(number), kind));
    }
    with_ats(&mut machine);
    let mut stand = Stand::new(machine);
    let trust = "the rig's own";
    let claimed = (0..64).map(|number| {
        let group = stand.take(device(number)).claim_for_hypervisor();
        group.trust(trust)
    });
    let claimed: Vec<_> = claimed.collect();
    let domain = Domain::paging_domain_alloc(&claimed[0], small()).unwrap();
    let tenant = stand.tenant();
    let mut one = Kernel {
        rig: stand.rig.clone(),
        domain,
        tenant,
        group: None,
    };
    let mut groups = Vec::new();
    for (number, claimed) in (0..).zip(claimed) {
        let trusted = TrustedDevice::vouch_for(&claimed, trust);
        let mut group = stand.attach(claimed, &one.domain, tenant);
        group.enable_ats(device(number), &trusted).unwrap();
        groups.push(group);
        let mapped = one.map(iovas(0x10_0000, 1));
        let asks = |number| {
            let at = Iova::new(0x10_0000);
            stand.rig.ask(device(number), at, Access::Write)
        };
        let keeps = |number| {
            let at = Iova::new(0x10_0000);
            stand.rig.access_kept(device(number), at, Access::Write)
        };
        assert!(matches!(asks(number), Outcome::Reached { .. }));
        assert!(matches!(keeps(number), Outcome::Reached { .. }));
        one.unmap_and_free(mapped);
        assert!(
            !matches!(keeps(number), Outcome::Reached { .. }),
            "{number}"
        );
    }
    one.group = groups.pop();
    for group in groups {
        let members = group.members().to_vec();
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
    }
    drop(one.end());
}

#[test]
fn bc05_xsa_306_nothing_that_a_device_keeps_reaches_its_next_owner() {
    on_machines(60, with_ats, |stand| {
        let one = asking(stand);
        let _mapped = one.map(iovas(0x10_0000, 4));
        assert!(ask(stand, 0x10_0000) && kept(stand, 0x10_0000));
        let group = one.end();
        assert!(!stand.rig.asks(DEVICE), "told to stop");
        stand.groups.push(group);
        // The same addresses, without and with a TLB of its own.
        let two = stand.take(DEVICE);
        let two = stand.kernel(two);
        let mapped = two.map(iovas(0x10_0000, 4));
        assert!(two.writes(0x10_0000) && !ask(stand, 0x10_0000) && !kept(stand, 0x10_0000));
        two.unmap_and_free(mapped);
        stand.groups.push(two.end());
        let three = asking(stand);
        let mapped = three.map(iovas(0x10_0000, 4));
        assert!(ask(stand, 0x10_2000) && kept(stand, 0x10_2000));
        three.unmap_and_free(mapped);
        drop(three.end());
    });
}

#[test]
fn bc15_a_device_that_does_what_it_likes_keeps_nothing_once_it_was_closed() {
    on_machines(60, with_ats, |stand| {
        let mut one = asking(stand);
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, 0x10_0000) && ask(stand, 0x10_1000));
        let mut group = one.group.take().unwrap();
        group.disable_ats(DEVICE).unwrap();
        one.group = Some(group);
        // It asks all the same, and would use what it gets.
        for at in [0x10_0000, 0x10_1000] {
            assert!(!ask(stand, at) && !kept(stand, at) && one.writes(at));
        }
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

/// What firmware, or somebody before, left in a device is not used when its entry lets it.
#[test]
fn bc15_what_a_device_kept_from_before_is_forgotten_before_its_entry_lets_it() {
    on_machines(60, with_ats, |stand| {
        let mut one = asking(stand);
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, 0x10_0000) && kept(stand, 0x10_0000));
        // It does not answer the last invalidations, and its unit does not get over that, so that is reset; the memory goes
        // to somebody else.
        stand.rig.answer(DEVICE, Answering::NotEvenInTime);
        let unit = one.group.as_ref().unwrap().unit();
        let pending = one.unmap(mapped).flush().err().unwrap().pending;
        stand.rig.wedged(unit.index(), true);
        assert!(!stand.rig.asks(DEVICE), "cut off");
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        stand.rig.answer(DEVICE, Answering::AtOnce);
        let (free, frames) = pending.flush().unwrap();
        one.returned(free.span(), &frames);
        stand.give_back(frames);
        free.release().unwrap();
        let group = one.detach();
        let claimed = group.claim_for_hypervisor();
        let trusted = TrustedDevice::vouch_for(&claimed, "the rig's own");
        let mut group = stand.attach(claimed, &one.domain, one.tenant);
        group.enable_ats(DEVICE, &trusted).unwrap();
        one.group = Some(group);
        assert!(!kept(stand, 0x10_0000));
        drop(one.end());
    });
}

/// Where a unit waits for ever for a device that does not answer, no receipt is made, and what the device may still hold is
/// not given back.
#[test]
fn bc01_xsa_373_a_device_that_does_not_answer_makes_no_receipt() {
    on_machines(40, with_ats, |stand| {
        let one = asking(stand);
        let unit = one.group.as_ref().unwrap().unit();
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, 0x10_1000));
        stand.rig.answer(DEVICE, Answering::NotEvenInTime);
        let before = stand.rig.nanos();
        let pending = one.unmap(mapped).flush().err().unwrap().pending;
        assert!(Duration::from_nanos(stand.rig.nanos() - before) < 2 * DEVICE_WAIT);
        stand.rig.wedged(unit.index(), true);
        assert!(stand.iommu.wedged_units().eq([unit]));
        assert!(!kept(stand, 0x10_1000), "it has no bus mastering");
        let pending = pending.flush().err().unwrap().pending;
        // The device stays as it is: its unit does not need it.
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        let group = one.group.as_ref().unwrap();
        group.enable_bus_mastering(DEVICE).unwrap();
        assert!(!kept(stand, 0x10_1000) && !ask(stand, 0x10_1000));
        let (free, frames) = pending.flush().unwrap();
        one.returned(free.span(), &frames);
        stand.give_back(frames);
        free.release().unwrap();
        drop(one.end());
    });
}

/// Where requests that say they are translated are not looked at, a device without any leave reaches everything.
#[test]
fn bc15_translated_requests_of_a_device_that_may_not_ask_reach_nothing() {
    on_machines(40, with_ats, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let mapped = one.map(iovas(0x10_0000, 1));
        for at in [0x10_0000, 0x20_0000] {
            stand.rig.forge(DEVICE, Iova::new(at), 0x1_0100_0000);
            assert!(!kept(stand, at), "a translation of its own making");
        }
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

/// Why the device was not let.
fn refused(
    group: &mut Group<Backend, Attached<KernelPaging, Backend>>,
    trusted: &TrustedDevice<Backend>,
) -> AttachError {
    group.enable_ats(DEVICE, trusted).unwrap_err()
}

/// What the error says, and the machine that lacks it.
type Lacking = (&'static str, fn(&mut Machine));

#[test]
fn ats_is_refused_by_name_where_something_on_the_way_has_none() {
    let cases: [Lacking; 3] = [
        ("by firmware's word", |machine| {
            machine.functions.iter_mut().for_each(|f| f.ats = false);
        }),
        ("IDR0.ATS", |machine| {
            all(machine, |identity| {
                (identity.ats, identity.pri) = (false, false)
            })
        }),
        ("no ATS capability", |machine| {
            let mut functions = machine.functions.iter_mut();
            functions.find(|f| f.address == DEVICE).unwrap().ats = false;
        }),
    ];
    for (why, without) in cases {
        let change = |machine: &mut Machine| {
            with_ats(machine);
            without(machine);
        };
        on_machines(5, change, |stand| {
            let other = stand.take(pci(0, 1, 0)).claim_for_hypervisor();
            let others = TrustedDevice::vouch_for(&other, "another's");
            let claimed = stand.take(DEVICE).claim_for_hypervisor();
            let trusted = TrustedDevice::vouch_for(&claimed, "the rig's own");
            let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
            let mut group = stand.attach(claimed, &domain, stand.tenant());
            let members = group.members().to_vec();
            let found = refused(&mut group, &trusted).to_string();
            assert!(found.contains(why), "{found}");
            let found = refused(&mut group, &others);
            assert!(
                matches!(found, AttachError::NotVouchedFor { .. }),
                "{found}"
            );
            let found = group.enable_ats(pci(0, 1, 0), &trusted);
            assert!(matches!(found, Err(AttachError::NotAMember { .. })));
            stand
                .rig
                .detaching(&members, hv_rig::Tenant(stand.tenants.get()));
            let claimed = group.detach().unwrap();
            stand.rig.detached(&members);
            drop(claimed.release().without_reset(REMEMBERS));
            domain.destroy().unwrap().for_each(drop);
        });
    }
}
