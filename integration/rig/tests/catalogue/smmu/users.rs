//! A guest's SMMU as an embedder plays it: what it may be shown, what it is told of faults, what it wants forgotten.

use hv_core::{Access, Gpa, Iova, Pasid, VmId};
use hv_iommu::{
    Domain, FaultNotice, FaultStep, InterruptsIsolated, InvalidateRefusal, NestedError, RawFault,
};
use hv_rig::nest::Nest;
use hv_rig::{GuestStage, Machine, Outcome};
use hv_smmu::{StreamId, UserUnit, user_event};

use super::stand::{Stand, on_machines, pci, small};

/// The stream that the guest has its device as.
const STREAM: u32 = 0x33;
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

const fn page(number: u64) -> Iova {
    Iova::new(number << 12)
}

fn send(stand: &Stand, pasid: Option<Pasid>, at: Iova, access: Access) -> Outcome {
    stand.rig.access_as(pci(0, 2, 0), pasid, at, access)
}

fn writes(stand: &Stand, number: u64) -> bool {
    let sent = send(stand, None, page(number), Access::Write);
    matches!(sent, Outcome::Reached { .. })
}

/// A fault that such a request causes, and what the guest is told of it.
fn told(
    stand: &Stand,
    pasid: Option<Pasid>,
    at: Iova,
    access: Access,
) -> (RawFault, Option<[u64; 4]>) {
    stand.iommu.take_faults(|_| ());
    let sent = send(stand, pasid, at, access);
    assert!(matches!(sent, Outcome::Faulted { .. }), "{at}: {sent:?}");
    let mut found = None;
    for _ in 0..100 {
        stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Fault(report) if report.fault.requester == pci(0, 2, 0) => {
                found = Some(report.fault);
            }
            _ => {}
        });
    }
    let fault = found.expect("a fault that is told");
    (fault, user_event(&fault, StreamId::new(STREAM)))
}

/// Words of an event (IHI 0070, 7.3): number, SubstreamID, direction and class, address, what could not be read.
fn event(number: u64, pasid: Option<u64>, rest: [u64; 3]) -> Option<[u64; 4]> {
    let substream = pasid.map_or(0, |pasid| 1 << 11 | pasid << 12);
    let [word1, word2, word3] = rest;
    let word0 = number | substream | u64::from(STREAM) << 32;
    Some([word0, word1, word2, word3])
}

// RnW, and CLASS of a table and of what was asked for.
const READ: u64 = 1 << 35;
const TABLE: u64 = 1 << 40;
const INPUT: u64 = 2 << 40;

#[test]
fn bc19_a_guest_is_told_of_its_own_faults_as_its_own_unit_would_tell_it() {
    let quiet = |machine: &mut Machine| {
        nesting(machine);
        // One fault at a time.
        machine.temper.background = false;
    };
    on_machines(40, quiet, |stand| {
        let mut nest = nest(stand, 2);
        let pasid = Pasid::new(1);
        nest.map(None, 0, 4, 20);
        // Nothing is mapped there, to the byte.
        let at = Iova::new(0x5678);
        for (access, word1) in [(Access::Read, READ | INPUT), (Access::Write, INPUT)] {
            let (fault, told) = told(stand, None, at, access);
            assert!(fault.is_of_users_stage(), "{fault}");
            assert_eq!(told, event(0x10, None, [word1, 0x5678, 0]), "{fault}");
        }
        // No context, and no such substream.
        let (fault, found) = told(stand, pasid, at, Access::Write);
        assert!(fault.is_of_users_stage(), "{fault}");
        assert_eq!(found, event(0x0a, Some(1), [0; 3]), "{fault}");
        let (fault, found) = told(stand, Pasid::new(9), at, Access::Write);
        assert!(fault.is_of_users_stage(), "{fault}");
        let bad_substream = 0x08 | 9 << 12 | u64::from(STREAM) << 32;
        assert_eq!(found, Some([bad_substream, 0, 0, 0]), "{fault}");
        // The same with a context of its own.
        nest.let_in(pasid.unwrap());
        nest.stage.set_context(1, 9, 1);
        nest.command(&[GuestStage::forget_context(1)]).unwrap();
        let (fault, found) = told(stand, pasid, at, Access::Read);
        assert!(fault.is_of_users_stage(), "{fault}");
        assert_eq!(found, event(0x10, Some(1), [READ | INPUT, 0x5678, 0]));

        // A page that leads where the guest has nothing: its unit would tell of nothing, and the embedder knows where.
        nest.stage.map(0, page(6), Gpa::new(BEYOND << 12));
        let (fault, found) = told(stand, None, page(6), Access::Read);
        assert_eq!(found, None, "{fault}");
        assert!(!fault.is_of_users_stage(), "{fault}");
        let (step, at) = (fault.detail.step, fault.detail.second_stage_page);
        assert_eq!((step, at), (Some(FaultStep::Input), Some(page(BEYOND))));
        // Tables that lie there could not be read, nor could contexts.
        nest.going(None, 4);
        nest.stage.set_context_to(0, 3, Gpa::new(BEYOND << 12));
        let forget = [GuestStage::forget_contexts(), GuestStage::forget_all()];
        nest.command(&forget).unwrap();
        nest.gone(None, 4);
        let (fault, found) = told(stand, None, page(4), Access::Read);
        let words = [READ | TABLE, 4 << 12, BEYOND << 12];
        assert_eq!(found, event(0x0b, None, words), "{fault}");
        assert_eq!(fault.detail.step, Some(FaultStep::Table));
        let mut entry = nest.stage.entry(2);
        entry[0] += BEYOND << 12;
        nest.to_other(&entry).unwrap();
        let (fault, found) = told(stand, None, page(4), Access::Read);
        assert_eq!(found, event(0x09, None, [0, 0, BEYOND << 12]), "{fault}");
        assert_eq!(fault.detail.step, Some(FaultStep::Context));
        drop(nest.end().unwrap());
    });
}

/// Where a guest lets requests pass its first stage, one wider than that takes is told by it (IHI 0070, 5.2, S1DSS 0b01).
#[test]
fn bc19_an_address_too_wide_for_a_guests_stage_that_is_passed_over_is_told_to_it() {
    let quiet = |machine: &mut Machine| {
        nesting(machine);
        machine.temper.background = false;
    };
    on_machines(20, quiet, |stand| {
        let mut nest = nest(stand, 2);
        let mut entry = nest.stage.entry(2);
        entry[1] = entry[1] & !3 | 1;
        nest.to_other(&entry).unwrap();
        let wide = Iova::new(1 << 60);
        for (access, word1) in [(Access::Read, READ | INPUT), (Access::Write, INPUT)] {
            let (fault, found) = told(stand, None, wide, access);
            assert_eq!(found, event(0x11, None, [word1, 1 << 60, 0]), "{fault}");
        }
        // What the parent has not is of no stage of the guest's.
        let (fault, found) = told(stand, None, page(BEYOND), Access::Read);
        assert!(!fault.is_of_users_stage(), "{fault}");
        assert_eq!(found, None, "{fault}");
        drop(nest.end().unwrap());
    });
}

/// What a guest asks of all its devices goes to its parent, once; so does that everything is forgotten.
#[test]
fn bc03_a_guests_first_stages_are_forgotten_all_at_once() {
    on_machines(40, nesting, |stand| {
        let nest = nest(stand, 0);
        nest.map(None, 0, 5, 20);
        nest.map(None, 0, 6, 21);
        assert!(writes(stand, 5) && writes(stand, 6));
        nest.going(None, 5);
        nest.stage.unmap(0, page(5));
        let forget = GuestStage::forget_page(1, page(5));
        nest.command_everywhere(&[forget]).unwrap();
        nest.gone(None, 5);
        assert!(!writes(stand, 5) && writes(stand, 6));
        // A page of its tables, and a context.
        nest.going(None, 6);
        nest.stage.unmap(0, page(6));
        nest.forget_first_stages().unwrap();
        nest.gone(None, 6);
        assert!(!writes(stand, 6));
        nest.map(None, 0, 7, 22);
        assert!(writes(stand, 7));
        nest.going(None, 7);
        nest.stage.clear_context(0);
        nest.forget_first_stages().unwrap();
        nest.gone(None, 7);
        assert!(!writes(stand, 7));
        drop(nest.end().unwrap());
    });
}

/// TLBI_NH_VA of two pages of 4 KiB, of leaves at level 3: SCALE 0, NUM 1, TG 1, TTL 3 (IHI 0070, 4.4.1).
const fn forget_range(asid: u16) -> [u64; 2] {
    [
        0x12 | 1 << 12 | (asid as u64) << 48,
        0x4000 | 1 << 10 | 3 << 8 | 1,
    ]
}

/// The entries of a guest that goes to the limit of what it is shown, on contexts at address 0: IHI 0070, 5.2 (`SteIllegal`).
fn entries(shown: &UserUnit, entry: [u64; 8]) -> Vec<[u64; 8]> {
    let bits = u64::from(shown.idr1.ssidsize());
    let with = |log2: u64, format: u64, without: u64| {
        let mut words = entry;
        words[0] = words[0] & !(0x1f << 59) | log2 << 59 | format << 4;
        words[1] |= without;
        words
    };
    let mut all = Vec::new();
    for log2 in 0..=bits {
        for format in 0..4 {
            // Levels of 4 KiB or 64 KiB are illegal where there are none; the rest is an array, and one context alone has no levels.
            if shown.idr0.cd2l() || log2 == 0 || format % 3 == 0 {
                all.push(with(log2, format, format));
            }
        }
    }
    if bits == 0 {
        // A unit without substreams does not look at how many contexts there are.
        all.push(with(5, 2, 3));
    }
    all
}

#[test]
fn bc12_what_a_guest_is_shown_is_never_refused() {
    let mut seen = [0_usize; 4];
    let seen = std::cell::RefCell::new(&mut seen);
    on_machines(60, Machine::set_nesting, |stand| {
        let Some(shown) = stand.iommu.user_unit() else {
            // Contexts would have to stall behind one unit, and must not behind another.
            let models = |machine: &Machine| -> Vec<bool> {
                let mut units = machine.units.clone();
                let each = units
                    .iter_mut()
                    .map(|unit| unit.smmu().unwrap().stall_model == 2);
                each.collect()
            };
            let models = models(stand.rig.machine());
            assert!(
                models.contains(&true) && models.contains(&false),
                "{models:?}"
            );
            return;
        };
        {
            let seen = &mut *seen.borrow_mut();
            seen[0] += usize::from(shown.idr0.cd2l());
            seen[1] += usize::from(shown.idr3.ril());
            seen[2] += usize::from(!shown.idr0.asid16());
            seen[3] += usize::from(shown.idr1.ssidsize() != 0);
        }
        // A device behind each unit.
        let groups = std::mem::take(&mut stand.groups);
        let mut units = Vec::new();
        for group in groups {
            let unit = group.unit();
            if units.contains(&unit) {
                continue;
            }
            units.push(unit);
            let mut claimed = group.claim_for_guest(VmId::new(1).unwrap());
            let parent = Domain::user_parent_alloc(&claimed, small()).unwrap();
            let isolated = InterruptsIsolated::override_unsafe_interrupts("the rig's own");
            let entry = [0b1011, 1 << 2 | 1 << 4, 0, 0, 0, 0, 0, 0];
            for words in entries(&shown, entry) {
                let nested = Domain::alloc_nested(&parent, &words).unwrap();
                let members = claimed.members().to_vec();
                stand.rig.attaching(&members, Nest::DEVICES);
                let group = claimed.attach_for_guest(&nested, &isolated);
                let group = group.unwrap_or_else(|error| panic!("{:#x}: {error:?}", words[0]));
                stand.rig.attached(&members, Nest::DEVICES);
                let asid = if shown.idr0.asid16() { u16::MAX } else { 0xff };
                let mut batch = vec![
                    GuestStage::forget_contexts(),
                    GuestStage::forget_asid(asid),
                    GuestStage::forget_page(asid, page(5)),
                    GuestStage::forget_all(),
                ];
                if shown.idr3.ril() {
                    batch.push(forget_range(asid));
                }
                nested.invalidate(&batch).unwrap();
                // One step further is the guest's own mistake.
                let refused = |command| nested.invalidate(&[command]).unwrap_err().reason;
                if !shown.idr0.asid16() {
                    let refused = refused(GuestStage::forget_asid(0x100));
                    assert!(matches!(refused, InvalidateRefusal::Malformed(_)));
                }
                if !shown.idr3.ril() {
                    let refused = refused(forget_range(1));
                    assert!(matches!(refused, InvalidateRefusal::Malformed(_)));
                }
                stand.rig.detaching(&members, Nest::DEVICES);
                claimed = group.detach().unwrap();
                stand.rig.detached(&members);
                nested.destroy().unwrap();
            }
            drop(parent.destroy().unwrap());
            drop(claimed.release());
        }
    });
    let seen = seen.into_inner();
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// An embedder can tell a guest's mistake, which the guest is told of, from what is its own to do.
#[test]
fn a_guests_mistakes_are_told_from_what_the_embedder_does() {
    let machine = |machine: &mut Machine| {
        nesting(machine);
        let model = 1 + (machine.seed % 2) as u8;
        for unit in &mut machine.units {
            unit.smmu().unwrap().stall_model = model;
        }
    };
    on_machines(2, machine, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let claimed = group.claim_for_guest(VmId::new(1).unwrap());
        let parent = Domain::user_parent_alloc(&claimed, small()).unwrap();
        let of = |word0| Domain::alloc_nested(&parent, &[word0, 0, 0, 0, 0, 0, 0, 0]).err();
        // Not valid; abort; bypass.
        for word0 in [0b1010, 0b0001, 0b1001] {
            let refused = of(word0);
            assert!(
                matches!(refused, Some(NestedError::NoStage(_))),
                "{refused:?}"
            );
        }
        // Both stages; contexts past the widest address that the guest is shown; more of them than there are numbers for.
        let output = stand.iommu.user_unit().unwrap().idr5.output_size().bits();
        for word0 in [0b1111, 0b1011 | 1 << output, 0b1011 | 21 << 59] {
            let refused = of(word0);
            assert!(
                matches!(refused, Some(NestedError::Stage(_))),
                "{refused:?}"
            );
        }
        // CFGI_STE, CFGI_ALL, TLBI_NSNH_ALL, PREFETCH_CONFIG, CMD_SYNC; and no command, TLBI_S12_VMALL, ATC_INV, PRI_RESP.
        let of = |opcode| parent.invalidate(&[[opcode, 0]]).unwrap_err();
        for opcode in [0x03, 0x04, 0x30, 0x01, 0x46] {
            let refused = of(opcode);
            assert!(
                matches!(refused.reason, InvalidateRefusal::Embedders(_)),
                "{refused}"
            );
        }
        for opcode in [0x00, 0x28, 0x40, 0x41] {
            let refused = of(opcode);
            assert!(
                matches!(refused.reason, InvalidateRefusal::Malformed(_)),
                "{refused}"
            );
        }
        // RESUME and STALL_TERM, where the guest is shown a unit that stalls.
        let stalls = stand.iommu.user_unit().unwrap().idr0.stall() == 2;
        for opcode in [0x44, 0x45] {
            let refused = of(opcode).reason;
            let is_embedders = matches!(refused, InvalidateRefusal::Embedders(_));
            assert_eq!(is_embedders, stalls, "{opcode:#x}: {refused:?}");
        }
        drop(parent.destroy().unwrap());
        drop(claimed.release());
    });
}
