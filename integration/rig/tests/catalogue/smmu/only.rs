//! What only SMMUs have: linear tables of many pages, queues of a few entries, control bits that take their time.

use std::time::Duration;

use hv_core::{Access, Iova, IovaRange, PageCount, PageSize, PhysAddr, PhysRange};
use hv_iommu::{Coherency, Domain, ReservedKind, TrustedDevice, UnitIndex};
use hv_rig::{Identity, Machine, Outcome, Rig, Vendor};
use hv_smmu::firmware::{PlatformDevice, RequesterLimits, ReservedStreams};
use hv_smmu::{BringUpError, CoveragePolicy, Smmu, StreamId, iort};

use super::stand::{Kernel, Stand, WAIT, iovas, on_machines, pci, small};

/// Every unit is changed like that.
pub(super) fn all(machine: &mut Machine, change: impl Fn(&mut Identity)) {
    for unit in &mut machine.units {
        change(unit.smmu().unwrap());
    }
}

#[test]
fn bc04_entries_of_a_linear_table_reach_memory_wherever_they_lie() {
    let linear = |machine: &mut Machine| {
        all(machine, |identity| {
            (identity.two_level, identity.first_stream) = (false, 0);
            (identity.coherent, identity.says_coherent) = (false, false);
        });
    };
    on_machines(40, linear, |stand| {
        assert!(stand.pinned.is_empty());
        // One entry in the first page of the table, one far behind it.
        for function in [pci(0, 1, 0), pci(1, 0, 0)] {
            for _ in 0..3 {
                let group = stand.take(function);
                let one = stand.kernel(group);
                let mapped = one.map(iovas(0x10_0000, 2));
                assert!(one.writes(0x10_1000), "{function}");
                one.unmap_and_free(mapped);
                stand.groups.push(one.end());
            }
        }
    });
}

/// Two, four and eight commands: what a binding, a detach or a flush asks for at once is longer.
#[test]
fn bc03_everything_fits_a_queue_of_two_commands() {
    for (commands, second) in [(1, true), (1, false), (2, true), (2, false), (3, false)] {
        let narrow = |machine: &mut Machine| {
            all(machine, |identity| {
                (identity.first_stage, identity.second_stage) = (true, second);
                (identity.commands, identity.ril, identity.ats) = (commands, false, true);
                identity.pri = false;
            });
            machine.functions.iter_mut().for_each(|one| one.ats = true);
        };
        on_machines(10, narrow, |stand| {
            let function = pci(0, 2, 0);
            for _ in 0..3 {
                let claimed = stand.take(function).claim_for_hypervisor();
                let claimed = claimed.trust("a test");
                let trusted = TrustedDevice::vouch_for(&claimed, "a test");
                let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
                let tenant = stand.tenant();
                let mut group = stand.attach(claimed, &domain, tenant);
                group.enable_ats(function, &trusted).unwrap();
                let one = Kernel {
                    rig: stand.rig.clone(),
                    domain,
                    tenant,
                    group: Some(group),
                };
                let last = Iova::new(0x10_4000);
                let reaches = |outcome| matches!(outcome, Outcome::Reached { .. });
                let mapped = one.map(iovas(0x10_0000, 5));
                assert!(one.writes(0x10_4000));
                let asked = stand.rig.ask(function, last, Access::Write);
                assert!(reaches(asked));
                one.unmap_and_free(mapped);
                let kept = stand.rig.access_kept(function, last, Access::Write);
                assert!(!reaches(kept));
                stand.groups.push(one.end());
            }
        });
    }
}

#[test]
fn bc03_a_flush_fits_a_queue_of_a_few_commands() {
    let narrow = |machine: &mut Machine| {
        all(machine, |identity| {
            (identity.commands, identity.ril) = (3, false)
        });
    };
    on_machines(40, narrow, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for pages in 1..24 {
            let range = iovas(0x10_0000, pages);
            let mapped = one.map_to(range, stand.frames(pages), PageSize::Size4K);
            assert!(one.writes(0x10_0000 + (pages - 1) * 0x1000));
            let (free, frames) = one.unmap(mapped).flush().unwrap();
            one.returned(range, &frames);
            stand.give_back(frames);
            free.release().unwrap();
            assert!(!one.writes(0x10_0000) && !one.writes(0x10_0000 + (pages - 1) * 0x1000));
        }
        drop(one.end());
    });
}

#[test]
fn wedged_a_reset_after_one_that_gave_up_waits_for_what_that_one_began() {
    on_machines(
        20,
        |machine| machine.temper.background = false,
        |stand| {
            let group = stand.take(pci(0, 2, 0));
            let one = stand.kernel(group);
            let unit = one.group.as_ref().unwrap().unit();
            let mapped = one.map(iovas(0x10_0000, 1));
            stand.rig.hang(unit.index(), Duration::from_secs(60));
            let pending = one.unmap(mapped).flush().err().unwrap().pending;
            stand.rig.wedged(unit.index(), true);
            for _ in 0..2 {
                assert!(stand.iommu.reset_unit(unit).is_err(), "it hangs");
            }
            stand.rig.wake(unit.index());
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(unit.index(), false);
            let (free, frames) = pending.flush().unwrap();
            one.returned(free.span(), &frames);
            stand.give_back(frames);
            free.release().unwrap();
            drop(one.end());
        },
    );
}

#[test]
fn wedged_a_unit_that_is_gone_when_a_device_is_bound_is_cut_off() {
    for seed in 0..10 {
        let mut stand = Stand::new(super::stand::drawn(seed));
        let claimed = stand.take(pci(0, 2, 0)).claim_for_hypervisor();
        let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let (members, tenant) = (claimed.members().to_vec(), stand.tenant());
        let unit = (0..stand.rig.machine().units.len()).rev().find(|unit| {
            // The one that takes the rest of the segment.
            let unit = &stand.rig.machine().units[*unit];
            unit.scopes.is_none() && unit.segment.0 == 0
        });
        let unit = unit.unwrap();
        stand.rig.lose_unit(unit);
        stand.rig.attaching(&members, tenant);
        let before = stand.rig.nanos();
        assert!(claimed.attach(&domain).is_err());
        assert!(Duration::from_nanos(stand.rig.nanos() - before) < 3 * WAIT);
        let wedged: Vec<UnitIndex> = stand.iommu.wedged_units().collect();
        assert_eq!(wedged, [UnitIndex::new(unit).unwrap()], "seed {seed}");
        stand.rig.wedged(unit, true);
        let sent = stand.rig.access(members[0], Iova::new(0), Access::Read);
        assert!(!matches!(sent, Outcome::Reached { .. }));
        stand.check();
    }
}

/// An untranslated device goes back to nothing when it is detached, and then to a domain like any other.
#[test]
fn bc05_an_untranslated_device_reaches_nothing_after_its_detach() {
    let quiet = |machine: &mut Machine| machine.temper.background = false;
    on_machines(20, quiet, |stand| {
        let function = pci(0, 2, 0);
        let group = stand.take(function).claim_for_hypervisor();
        let trusted = TrustedDevice::vouch_for(&group, "a test");
        let domain = Domain::identity_domain_alloc(&group, &trusted).unwrap();
        let group = group.attach_untranslated(&domain, trusted).unwrap();
        let claimed = group.detach().unwrap();
        domain.destroy().unwrap();
        let kernel = Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let group = stand.attach(claimed, &kernel, stand.tenant());
        let outside = stand.rig.access(function, Iova::new(0x7000), Access::Write);
        assert!(matches!(outside, Outcome::Faulted { .. }), "{outside:?}");
        drop(group.detach().unwrap());
        kernel.destroy().unwrap().for_each(drop);
    });
}

/// What firmware goes on using through a device that is no PCI function would stand still after bring-up: nobody here can
/// bind it. A strict policy refuses the machine and names it; what firmware is done with is no reason.
#[test]
fn bc06_a_region_of_a_device_that_nobody_can_bind_refuses_the_machine() {
    let discover = |kind, policy| {
        let rig = Rig::new(Machine::calm_of(Vendor::Smmu)).unwrap();
        let mut firmware = iort::parse(&rig.iort().unwrap())
            .unwrap()
            .describe()
            .unwrap();
        let unit = UnitIndex::new(0).unwrap();
        let (first, last) = (StreamId::new(0xff00), StreamId::new(0xff03));
        firmware.devices.push(PlatformDevice {
            name: b"\\_SB.DMA0".to_vec(),
            streams: vec![(unit, first, last)],
            messages: None,
            limits: RequesterLimits::none(Coherency::Coherent),
        });
        let memory = PhysRange::new(PhysAddr::new(0x8800_0000), PageCount::ONE).unwrap();
        firmware.reserved.push(ReservedStreams {
            unit,
            first: last,
            last,
            memory,
            kind,
        });
        let functions = rig.functions();
        let found = Smmu::discover(rig, firmware, &functions, policy).map(drop);
        (found, memory, unit, first)
    };
    let (strict, memory, unit, stream) = discover(ReservedKind::Pinned, CoveragePolicy::Strict);
    let error = strict.unwrap_err();
    let memory = IovaRange::new(Iova::new(memory.start().as_u64()), memory.pages()).unwrap();
    let expected = BringUpError::ReservedForOther {
        memory,
        unit,
        stream,
    };
    assert_eq!(error.to_string(), expected.to_string());
    discover(ReservedKind::Pinned, CoveragePolicy::Lenient)
        .0
        .unwrap();
    discover(ReservedKind::Relaxable, CoveragePolicy::Strict)
        .0
        .unwrap();
}
