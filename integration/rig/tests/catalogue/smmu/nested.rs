//! A guest's own first stage on its parent's second one: what is forgotten of both together, contexts, substreams.

use hv_core::{Access, Gpa, Iova, Pasid, VmId};
use hv_iommu::{
    BusRange, Domain, FaultBudget, FaultNotice, FaultStage, FunctionKind, Needs, UserDomain,
};
use hv_rig::nest::Nest;
use hv_rig::{FunctionModel, GuestStage, Machine, Outcome, Refusing, UnitModel};

use super::stand::{BAD, Stand, drawn, iovas, on_machines, pci, small};

// Events (IHI 0070, 7.3).
const STREAM_DISABLED: u8 = 0x06;
const BAD_SUBSTREAM: u8 = 0x08;
const BAD_CONTEXT: u8 = 0x0a;

/// A page of the guest's addresses where it has no memory.
const BEYOND: u64 = 40;

fn nesting(machine: &mut Machine) {
    machine.set_nesting();
    for unit in &mut machine.units {
        unit.smmu().unwrap().substream_bits = 8;
    }
}

fn nest(stand: &mut Stand, log2: u8) -> Nest {
    let group = stand.take(pci(0, 2, 0));
    Nest::new(&stand.rig, group, log2).unwrap()
}

/// What becomes of a write to a page, with a PASID or without one.
fn write(stand: &Stand, pasid: Option<Pasid>, page: u64) -> Outcome {
    let at = Iova::new(page << 12);
    stand.rig.access_as(pci(0, 2, 0), pasid, at, Access::Write)
}

const fn page(number: u64) -> Iova {
    Iova::new(number << 12)
}

fn writes(stand: &Stand, page: u64) -> bool {
    matches!(write(stand, None, page), Outcome::Reached { .. })
}

#[test]
fn bc03_what_both_stages_gave_is_forgotten_when_the_parent_takes_a_page() {
    on_machines(40, nesting, |stand| {
        let mut nest = nest(stand, 0);
        let apart = nest.apart();
        // Under several of its addresses; none of them is the page's own.
        for at in [3, 6, 9] {
            nest.map(None, 0, at, apart);
        }
        nest.map(None, 0, 4, 20);
        for at in [3, 6, 9, 4] {
            assert!((0..3).all(|_| writes(stand, at)), "page {at}");
        }
        nest.take_apart(&[3, 6, 9]).unwrap();
        stand.rig.idle(60);
        for at in [3, 6, 9] {
            assert!(!writes(stand, at), "page {at}");
        }
        assert!(writes(stand, 4));
        drop(nest.end().unwrap());
    });
}

/// A guest takes a page of its memory for one that its devices reach past the CPU's caches: so they do, unless its parent
/// was asked to have them snoop.
#[test]
fn bc12_a_guests_first_stage_gets_no_device_past_the_caches_where_its_parent_forces_them() {
    let forces = |machine: &mut Machine| {
        nesting(machine);
        for unit in &mut machine.units {
            let identity = unit.smmu().unwrap();
            (identity.fwb, identity.canwbs) = (true, true);
            unit.set_coherent(true);
        }
    };
    on_machines(30, forces, |stand| {
        for coherent_dma in [false, true] {
            let needs = Needs {
                coherent_dma,
                ..Needs::default()
            };
            let group = stand.take(pci(0, 2, 0));
            let nest = Nest::needing(&stand.rig, group, 0, needs).unwrap();
            nest.coming(None, 5, 20);
            nest.stage.map_past_caches(0, page(5), Gpa::new(20 << 12));
            nest.came(None, 5);
            nest.map(None, 0, 6, 21);
            for at in [5, 6] {
                for access in [Access::Read, Access::Write] {
                    stand.rig.access(nest.device(), page(at), access);
                    let past = stand.rig.went_past_caches();
                    assert_eq!(past, at == 5 && !coherent_dma, "page {at}");
                }
            }
            let group = nest.end().unwrap();
            stand.groups.push(group.claimable().unwrap());
        }
    });
}

#[test]
fn bc03_a_guests_contexts_are_forgotten_when_it_asks_and_as_it_asks() {
    on_machines(40, nesting, |stand| {
        let nest = nest(stand, 0);
        nest.map(None, 0, 5, 20);
        assert!(writes(stand, 5));
        for round in 0..4_u16 {
            let (all, asid, space) = (round & 1 == 0, 2 + round, u64::from((round + 1) & 1));
            let forget = match all {
                true => GuestStage::forget_contexts(),
                false => GuestStage::forget_context(0),
            };
            nest.going(None, 5);
            nest.stage.clear_context(0);
            let old = GuestStage::forget_asid(asid - 1);
            nest.command(&[forget, old]).unwrap();
            nest.gone(None, 5);
            let refused = write(stand, None, 5);
            let reason = BAD_CONTEXT;
            assert_eq!(refused, Outcome::Faulted { reason });
            nest.coming(None, 5, 22 + u64::from(round));
            let to = Gpa::new((22 + u64::from(round)) << 12);
            nest.stage.map(space, Iova::new(5 << 12), to);
            nest.stage.set_context(0, asid, space);
            nest.command(&[forget]).unwrap();
            nest.came(None, 5);
            assert!(writes(stand, 5), "round {round}");
        }
        drop(nest.end().unwrap());
    });
}

/// More devices behind one bridge than one batch of commands takes: a group, and a guest's.
fn crowd(machine: &mut Machine) {
    nesting(machine);
    let unit = UnitModel {
        scopes: None,
        ..machine.units[0].clone()
    };
    machine.units = vec![unit];
    let buses = BusRange {
        secondary: 2,
        subordinate: 2,
    };
    let bridge = FunctionKind::ConventionalBridge(buses);
    machine.functions = vec![FunctionModel::new(pci(0, 0x1e, 0), bridge)];
    let places = (1..=CROWD / 8).flat_map(|device| (0..8).map(move |function| (device, function)));
    machine.functions.extend(places.map(|(device, function)| {
        FunctionModel::new(pci(2, device, function), FunctionKind::Endpoint)
    }));
}

/// How many devices that is.
const CROWD: u8 = 80;

#[test]
fn bc03_a_guests_contexts_are_forgotten_for_all_of_its_many_streams_and_for_nobody_else() {
    on_machines(6, crowd, |stand| {
        let group = stand.take(pci(2, 1, 0));
        let nest = Nest::new(&stand.rig, group, 0).unwrap();
        let members = nest.group.as_ref().unwrap().members().to_vec();
        assert_eq!(members.len(), CROWD.into());
        // As any of the ids that the bridge may have it send with.
        let all = |outcome: fn(Outcome) -> bool| {
            for member in &members {
                for _ in 0..6 {
                    let sent = stand.rig.access(*member, page(5), Access::Write);
                    assert!(outcome(sent), "{member}: {sent}");
                }
            }
        };
        nest.map(None, 0, 5, 20);
        all(|sent| matches!(sent, Outcome::Reached { .. }));
        nest.going(None, 5);
        nest.stage.clear_context(0);
        let before = stand.rig.counts().invalidations;
        let (forget, old) = (GuestStage::forget_context(0), GuestStage::forget_asid(1));
        nest.command(&[forget, old]).unwrap();
        let named = stand.rig.counts().invalidations - before;
        nest.gone(None, 5);
        // The bridge, and the id of its bus, are streams as well; and the translations.
        assert!(named >= u64::from(CROWD) + 3, "{named} invalidations");
        all(|sent| {
            sent == Outcome::Faulted {
                reason: BAD_CONTEXT,
            }
        });
        drop(nest.end().unwrap());
    });
}

#[test]
fn bc05_a_device_that_leaves_a_guests_first_stage_reaches_nothing() {
    on_machines(40, nesting, |stand| {
        let nest = nest(stand, 0);
        for at in 2..8 {
            nest.map(None, 0, at, 16 + at);
        }
        assert!((2..8).all(|at| writes(stand, at)));
        drop(nest.end().unwrap());
        assert!((0..40).all(|at| !writes(stand, at)));
    });
}

#[test]
fn bc08_requests_with_a_pasid_go_by_its_context_and_by_no_other() {
    on_machines(40, nesting, |stand| {
        let nest = nest(stand, 2);
        let pasid = |number| Some(Pasid::new(number).unwrap());
        let reason = |outcome| match outcome {
            Outcome::Faulted { reason } => reason,
            other => panic!("{other:?}"),
        };
        nest.map(None, 0, 5, 20);
        // Not there yet; beyond the table.
        assert_eq!(reason(write(stand, pasid(1), 5)), BAD_CONTEXT);
        assert_eq!(reason(write(stand, pasid(4), 5)), BAD_SUBSTREAM);
        nest.let_in(Pasid::new(1).unwrap());
        nest.stage.set_context(1, 9, 1);
        nest.command(&[GuestStage::forget_context(1)]).unwrap();
        nest.map(pasid(1), 1, 5, 21);
        nest.map(pasid(1), 1, 6, 22);
        for _ in 0..4 {
            let (without, with) = (write(stand, None, 5), write(stand, pasid(1), 5));
            assert!(matches!(without, Outcome::Reached { .. }));
            assert!(matches!(with, Outcome::Reached { .. }) && with != without);
        }
        assert!(matches!(write(stand, pasid(1), 6), Outcome::Reached { .. }));
        assert!(!writes(stand, 6), "nothing of it without the PASID");
        // A parent's page is gone for every context.
        nest.going(pasid(1), 5);
        nest.stage.unmap(1, Iova::new(5 << 12));
        let forget = GuestStage::forget_page(9, Iova::new(5 << 12));
        nest.command(&[forget]).unwrap();
        nest.gone(pasid(1), 5);
        assert!(!matches!(
            write(stand, pasid(1), 5),
            Outcome::Reached { .. }
        ));
        assert!(writes(stand, 5), "the other's stays");
        drop(nest.end().unwrap());
    });
}

#[test]
fn bc08_a_stream_without_substreams_has_no_requests_with_one() {
    on_machines(10, nesting, |stand| {
        let nest = nest(stand, 0);
        nest.map(None, 0, 5, 20);
        let refused = write(stand, Pasid::new(1), 5);
        let reason = BAD_SUBSTREAM;
        assert_eq!(refused, Outcome::Faulted { reason });
        drop(nest.end().unwrap());
    });
    // The hypervisor's own streams have none at all today.
    on_machines(10, nesting, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = one.map(iovas(0x5000, 1));
        let refused = write(stand, Pasid::new(1), 5);
        assert!(
            matches!(refused, Outcome::Faulted { reason } if reason == BAD_SUBSTREAM || reason == STREAM_DISABLED),
            "{refused:?}"
        );
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

/// A device whose guest's context is malformed causes events that nothing in the entry turns off: it is cut off whole.
#[test]
fn bc19_a_nested_device_that_is_cut_off_fills_no_queue() {
    let budget = FaultBudget::default().faults as usize;
    for seed in 0..20 {
        let mut machine = drawn(seed);
        nesting(&mut machine);
        (machine.temper, machine.temper.background) = (BAD, false);
        machine.temper.rogues = true;
        let mut stand = Stand::new(machine);
        let nest = nest(&mut stand, 0);
        nest.stage.clear_context(0);
        nest.command(&[GuestStage::forget_context(0)]).unwrap();
        let (mut told, mut cut) = (0, false);
        for _ in 0..budget * 4 {
            write(&stand, None, 5);
            stand.iommu.take_faults(|notice| match notice {
                FaultNotice::CutOff(_) => cut = true,
                FaultNotice::Fault(_) => told += 1,
                _ => {}
            });
        }
        assert!(cut, "seed {seed}: {told} faults, and nobody was cut off");
        stand.rig.idle(200);
        stand.iommu.take_faults(|_| ());
        for _ in 0..40 {
            write(&stand, None, 5);
        }
        let mut later = 0;
        stand.iommu.take_faults(|_| later += 1);
        assert_eq!(later, 0, "seed {seed}");
        stand.check();
    }
}

/// A fault is the guest's where its own first stage refused, and tells of the guest where that led beyond its memory.
#[test]
fn bc19_a_fault_says_which_stage_refused() {
    on_machines(40, nesting, |stand| {
        let nest = nest(stand, 0);
        nest.map(None, 0, 4, 20);
        // Nothing leads there from page 5; page 6 leads where the guest has nothing.
        nest.stage.map(0, page(6), Gpa::new(BEYOND << 12));
        assert!(writes(stand, 4));
        for (at, expected) in [(5, FaultStage::First), (6, FaultStage::Second)] {
            assert!(!writes(stand, at), "page {at}");
            let mut told = Vec::new();
            for _ in 0..100 {
                stand.iommu.take_faults(|notice| match notice {
                    FaultNotice::Fault(report) if report.fault.address == page(at) => {
                        told.push(report.fault.stage);
                    }
                    _ => {}
                });
            }
            let all = told.iter().all(|stage| *stage == Some(expected));
            assert!(all && !told.is_empty(), "page {at}: {told:?}");
        }
        drop(nest.end().unwrap());
    });
}

/// A part that must not translate twice has domains for guests, and none of them is a parent.
#[test]
fn bc13_a_part_whose_erratum_forbids_nesting_gets_plain_domains() {
    let mmu_700 = |machine: &mut Machine| {
        nesting(machine);
        for unit in &mut machine.units {
            // IIDR of an MMU-700.
            unit.smmu().unwrap().part = 0x4870_043b;
        }
    };
    for (more, parent) in [(nesting as fn(&mut Machine), true), (mmu_700, false)] {
        on_machines(4, more, |stand| {
            let group = stand.take(pci(0, 2, 0));
            let claimed = group.claim_for_guest(VmId::new(1).unwrap());
            let built = Domain::user_domain_alloc_or_plain(&claimed, small()).unwrap();
            assert_eq!(matches!(built, UserDomain::Parent(_)), parent);
        });
    }
}

/// A guest whose invalidations the unit calls illegal loses by that, and nobody else does, however often it asks.
#[test]
fn bc01_a_guest_whose_invalidations_are_refused_wedges_no_unit() {
    on_machines(30, nesting, |stand| {
        let other = stand.take(pci(0, 1, 0));
        let other = stand.kernel(other);
        let nest = nest(stand, 0);
        let unit = nest.group.as_ref().unwrap().unit();
        nest.map(None, 0, 5, 20);
        assert!(writes(stand, 5));
        stand.rig.refuse(unit.index(), Refusing::Translations);
        for round in 0..9 {
            let pages = [
                GuestStage::forget_page(1, page(7)),
                GuestStage::forget_page(1, page(8)),
            ];
            let refused = nest.command(&pages[..1 + round % 2]).unwrap_err();
            assert!(refused.contains("refuses command"), "{refused}");
        }
        stand.rig.refuse(unit.index(), Refusing::Nothing);
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        let troubles = stand.iommu.unit_troubles(unit).unwrap();
        assert_eq!(troubles.commands_refused, 4 + 2 * 4 + 1);
        nest.command(&[GuestStage::forget_page(1, page(7))])
            .unwrap();
        let mapped = other.map(iovas(0x10_0000, 2));
        assert!(other.writes(0x10_0000) && writes(stand, 5));
        other.unmap_and_free(mapped);
        drop((nest.end().unwrap(), other.end()));
    });
}
