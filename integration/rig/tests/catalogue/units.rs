//! Class 12: nothing is enabled before old state is gone. Class 13: every unit, every requester.

use hv_core::{Access, Iova, PhysAddr};
use hv_iommu::{InterruptMessage, InterruptRoute, InterruptSource, MessageData, UnitIndex};
use hv_rig::{Driver, Machine, Outcome, Rig, Temper};

use super::stand::{BAD, Backend, Stand, drawn, on_machines, pci};

#[test]
fn bc12_asterinas_3920_every_legal_unit_comes_up_clean() {
    // Old translations of firmware in every cache, late commands, any capability bits.
    for seed in 0..400 {
        let mut machine = drawn(seed);
        machine.temper = BAD;
        let stand = Stand::new(machine);
        stand.rig.idle(200);
        for function in stand.rig.endpoints() {
            for page in 0..40 {
                let outcome = stand
                    .rig
                    .access(function, Iova::new(page << 12), Access::Write);
                assert!(
                    !matches!(outcome, Outcome::Reached { .. }),
                    "seed {seed}: {function} {page}"
                );
            }
        }
        stand.check();
    }
}

#[test]
fn bc12_a_unit_that_hangs_in_bring_up_is_an_error_within_the_deadline() {
    for seed in 0..20 {
        let mut machine = drawn(seed);
        machine.temper = Temper::WORST;
        let rig = Rig::new(machine).unwrap();
        let units = rig.machine().units.len();
        rig.hang(units - 1, std::time::Duration::from_secs(100));
        let before = rig.nanos();
        let error = Backend::start(&rig).err().unwrap();
        assert!(error.contains("did not complete"), "{error}");
        assert!(rig.nanos() - before < 3_000_000_000);
        rig.verdict().unwrap();
    }
}

#[test]
fn bc13_no_unit_and_no_requester_is_left_out() {
    let many = |machine: &mut Machine| {
        if machine.units.len() < 2 {
            let mut first = machine.units[0].clone();
            first.scopes = Some(vec![pci(0, 1, 0)]);
            machine.units.insert(0, first);
        }
    };
    on_machines(60, many, |stand| {
        let endpoints = stand.rig.endpoints();
        let grouped: usize = stand.groups.iter().map(|group| group.members().len()).sum();
        assert_eq!(grouped, endpoints.len(), "each endpoint is in one group");
        // Each group works behind its unit, one after the other, and the rest reach nothing.
        while let Some(group) = stand.groups.pop() {
            let one = stand.kernel(group);
            let mapped = one.map(super::stand::iovas(0x10_0000, 1));
            let members = one.group.as_ref().unwrap().members().to_vec();
            for endpoint in &endpoints {
                for _ in 0..4 {
                    let outcome = stand
                        .rig
                        .access(*endpoint, Iova::new(0x10_0008), Access::Read);
                    let reached = matches!(outcome, Outcome::Reached { .. });
                    assert_eq!(
                        reached,
                        members.contains(endpoint),
                        "{endpoint} with {members:?} attached"
                    );
                }
            }
            one.unmap_and_free(mapped);
            drop(one.end());
        }
    });
}

/// The end of a machine's hypervisor: nothing reaches anything from then on, units look at no memory of it, and whoever
/// comes next brings them up as after power-on.
#[test]
fn bc12_a_machine_that_was_shut_down_is_brought_up_by_the_next_one() {
    let quiet = |machine: &mut Machine| machine.temper.background = false;
    on_machines(30, quiet, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = one.map(super::stand::iovas(0x10_0000, 1));
        assert!(one.writes(0x10_0000));
        stand.iommu.shut_down().unwrap();
        for unit in 0..stand.rig.machine().units.len() {
            stand.rig.wedged(unit, true);
            assert!(!stand.rig.translates(unit));
            let unit = UnitIndex::new(unit).unwrap();
            assert!(stand.iommu.reset_unit(unit).is_err(), "for good");
            // Nor does anybody turn its interrupts on once more.
            let message = InterruptRoute::Message(InterruptMessage {
                address: PhysAddr::new(0xfee0_0000),
                data: MessageData(0x30),
            });
            let routed =
                stand
                    .iommu
                    .route_interrupt(unit, InterruptSource::Faults, message, |_| ());
            let refused = routed.unwrap_err().to_string();
            assert!(refused.contains("does not translate"), "{refused}");
        }
        for endpoint in stand.rig.endpoints() {
            for at in [0x10_0000, 0x7_0000_0000] {
                let outcome = stand.rig.access(endpoint, Iova::new(at), Access::Write);
                assert!(!matches!(outcome, Outcome::Reached { .. }), "{outcome:?}");
            }
        }
        // What the domain and its tables were made of is not read any more.
        std::mem::forget((one, mapped));
        Backend::start(&stand.rig).unwrap();
    });
}
