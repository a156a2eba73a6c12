//! Nested domains: what a user's own first stage reaches, what its parent owes it, its invalidations.
//!
//! The cases of `alloc_hwpt_nested` in the tests of Linux iommufd; those on wrong kinds of objects do not
//! compile here.

use hv_core::{Access, Gpa, GuestMemory, Iova, OwnerId, PageSize, Perms, UserManaged};
use hv_iommu::{
    AttachError, AttachFailed, Attached, BadRequest, Claimed, DestroyRefusal, DirtyBitmap, Domain,
    FaultNotice, Group, InvalidateRefusal, Mapped, Needs, Nested, NestedError, ParentPaging, Range,
    UnitCaps, Unmet,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Logged, UserStage};

use super::machine::{FAR, Machine, NIC, PLAIN, full_unit, gpas, iovas, isolated, vm};

/// Where the guest has the table of its first stage.
const TABLE: u64 = 0x3000;
/// Page 5 of the first stage leads to the guest's page 7.
const WORD: u64 = 5;
const AT: Iova = Iova::new(WORD << 12);
const PAGE: u64 = 7;

type OnStage = Group<Fake, Attached<UserManaged, Fake, Nested>>;

/// A guest with 16 pages, mapped in a parent; page 7 apart from the rest.
struct Guest {
    machine: Machine,
    group: Option<Group<Fake, Claimed<UserManaged>>>,
    parent: Domain<UserManaged, Fake, ParentPaging>,
    memory: GuestMemory,
    apart: Range<UserManaged, Fake, Mapped>,
    _rest: [Range<UserManaged, Fake, Mapped>; 2],
}

fn guest() -> Guest {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let parent = Domain::user_parent_alloc(&group, PLAIN).unwrap();
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), machine.host().frames(16)).unwrap();
    let map = |start: u64, pages: u64| {
        let range = parent.reserve(iovas(start << 12, pages)).unwrap();
        let pin = memory.pin(gpas(start << 12, pages)).unwrap();
        range.map(pin, Perms::ReadWrite).unwrap()
    };
    let (low, apart, high) = (map(0, PAGE), map(PAGE, 1), map(PAGE + 1, 16 - PAGE - 1));
    Guest {
        machine,
        group: Some(group),
        parent,
        memory,
        apart,
        _rest: [low, high],
    }
}

impl Guest {
    /// A first stage at `table`, in which nothing is mapped but what `words` say.
    fn stage(&self, table: u64, words: &[(u64, u64)]) -> Domain<UserManaged, Fake, Nested> {
        for (index, word) in words {
            let at = Gpa::new(table + index * 8);
            let host = self.machine.host();
            self.memory.write(host, at, &word.to_le_bytes()).unwrap();
        }
        Domain::alloc_nested(&self.parent, &UserStage { table, levels: 1 }).unwrap()
    }

    /// The device on that stage, sending.
    fn attach(&mut self, stage: &Domain<UserManaged, Fake, Nested>) -> OnStage {
        let group = self.group.take().unwrap();
        let group = group.attach_for_guest(stage, &isolated()).unwrap();
        group.enable_bus_mastering(NIC).unwrap();
        group
    }

    fn dma(&self, at: Iova) -> Result<u64, DmaFault> {
        let to = self.machine.fake.dma(NIC, at, Access::Write)?;
        Ok(to.as_u64())
    }
}

#[test]
fn a_users_first_stage_reaches_what_its_parent_maps_and_no_more() {
    let mut guest = guest();
    let beyond = 16 << 12 | 3;
    let stage = guest.stage(TABLE, &[(WORD, PAGE << 12 | 3), (6, beyond)]);
    assert_eq!(stage.parent(), guest.parent.uid());
    let group = guest.attach(&stage);
    assert_eq!(group.domain(), stage.uid());
    let direct = guest.parent.translate(Iova::new(PAGE << 12)).unwrap();
    assert_eq!(guest.dma(AT), Ok(direct.to.as_u64()));
    assert_eq!(guest.dma(Iova::new(6 << 12)), Err(DmaFault::NotMapped));
    assert_eq!(guest.dma(Iova::new(7 << 12)), Err(DmaFault::NotMapped));
    // Its faults are told as those of the nested domain, at the address that the device sent.
    let mut faults = Vec::new();
    guest
        .machine
        .iommu
        .take_faults(|notice| faults.push(notice));
    let told = faults.iter().map(|notice| match notice {
        FaultNotice::Fault(report) => {
            let (_, domain, owner) = report.bound_to.unwrap();
            assert_eq!((domain, owner), (stage.uid(), OwnerId::Vm(vm(1))));
            report.fault.address.as_u64() >> 12
        }
        other => panic!("{other:?}"),
    });
    assert!(told.eq([6, 7]));
    // A table that the parent does not map is not walked.
    let outside = guest.stage(TABLE, &[]);
    let nowhere = UserStage {
        table: 20 << 12,
        levels: 1,
    };
    let nowhere = Domain::alloc_nested(&guest.parent, &nowhere).unwrap();
    let group = group.replace_with_gap(&nowhere).unwrap();
    assert_eq!(guest.dma(AT), Err(DmaFault::NotMapped));
    drop((group, outside));
}

#[test]
fn bc21_xsa_207_a_parent_outlives_its_children() {
    let mut guest = guest();
    let (one, two) = (guest.stage(TABLE, &[]), guest.stage(TABLE, &[]));
    let group = guest.attach(&one);
    let refused = guest.parent.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::HasChildren { children: 2 });
    // Neither is a child destroyed under its device.
    let busy = one.destroy().unwrap_err();
    assert_eq!(busy.reason, DestroyRefusal::Attached { attachments: 1 });
    two.destroy().unwrap();
    let refused = refused.domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::HasChildren { children: 1 });
    let _group = group.detach().unwrap();
    busy.domain.destroy().unwrap();
    assert_eq!(refused.domain.destroy().unwrap().count(), 16);
}

#[test]
fn bc21_a_child_that_is_dropped_keeps_its_parent() {
    let guest = guest();
    drop(guest.stage(TABLE, &[]));
    let refused = guest.parent.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::HasChildren { children: 1 });
}

#[test]
fn moving_a_device_between_first_stages_frees_the_old_one() {
    let mut guest = guest();
    let one = guest.stage(TABLE, &[(WORD, PAGE << 12 | 3)]);
    let two = guest.stage(TABLE + 0x1000, &[(WORD, 8 << 12 | 3)]);
    let group = guest.attach(&one);
    let before = guest.dma(AT).unwrap();
    let group = group.replace_with_gap(&two).unwrap();
    assert_ne!(guest.dma(AT).unwrap(), before);
    one.destroy().unwrap();
    let refused = two.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
    // And onto the parent itself, where the same address means the guest's own.
    let group = group.replace_with_gap(&guest.parent).unwrap();
    let own = guest.parent.translate(AT).unwrap();
    assert_eq!(guest.dma(AT), Ok(own.to.as_u64()));
    refused.domain.destroy().unwrap();
    drop(group);
}

#[test]
fn bc02_memory_that_a_parent_unmapped_is_reached_by_no_first_stage() {
    let mut guest = guest();
    let stage = guest.stage(TABLE, &[(WORD, PAGE << 12 | 3)]);
    let _group = guest.attach(&stage);
    guest.dma(AT).unwrap();
    guest.machine.fake.take_log(0);
    // The unit has cached what came out of both stages, under the first one's address.
    let Guest {
        machine,
        apart,
        memory,
        ..
    } = guest;
    let (_range, pin) = apart.unmap().flush().unwrap();
    drop(pin);
    let reached = machine.fake.dma(NIC, AT, Access::Write);
    assert_eq!(reached, Err(DmaFault::NotMapped));
    drop(memory);
}

#[test]
fn bc02_tables_of_a_first_stage_that_a_parent_unmapped_are_walked_no_more() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let parent = Domain::user_parent_alloc(&group, PLAIN).unwrap();
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), machine.host().frames(16)).unwrap();
    let range = parent.reserve(iovas(TABLE, 1)).unwrap();
    let table = range
        .map(memory.pin(gpas(TABLE, 1)).unwrap(), Perms::ReadWrite)
        .unwrap();
    let range = parent.reserve(iovas(PAGE << 12, 1)).unwrap();
    let _page = range
        .map(memory.pin(gpas(PAGE << 12, 1)).unwrap(), Perms::ReadWrite)
        .unwrap();
    for word in [WORD, WORD + 1] {
        let bytes = (PAGE << 12 | 3).to_le_bytes();
        let at = Gpa::new(TABLE + word * 8);
        memory.write(machine.host(), at, &bytes).unwrap();
    }
    let user = UserStage {
        table: TABLE,
        levels: 1,
    };
    let stage = Domain::alloc_nested(&parent, &user).unwrap();
    let group = group.attach_for_guest(&stage, &isolated()).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    machine.fake.dma(NIC, AT, Access::Read).unwrap();
    let _ = table.unmap().flush().unwrap();
    // The other word is in the same table, whose place the unit has known.
    let next = machine
        .fake
        .dma(NIC, Iova::new((WORD + 1) << 12), Access::Read);
    assert_eq!(next, Err(DmaFault::NotMapped));
}

#[test]
fn a_flush_of_the_parent_is_of_pages_again_when_no_first_stage_is_in_use() {
    let mut guest = guest();
    let spans = |guest: &Guest| {
        let log = guest.machine.fake.take_log(0);
        let span = |call: &Logged| match call {
            Logged::Flush(request) => Some(request.span),
            _ => None,
        };
        log.iter().filter_map(span).collect::<Vec<_>>()
    };
    let stage = guest.stage(TABLE, &[]);
    let _ = guest.parent.flush(hv_iommu::FlushSpan::Domain);
    let group = guest.attach(&stage);
    let pages = hv_iommu::FlushSpan::Pages(iovas(0, 1));
    spans(&guest);
    let _ = guest.parent.flush(pages).unwrap();
    assert_eq!(spans(&guest), [hv_iommu::FlushSpan::Domain]);
    let group = group.replace_with_gap(&guest.parent).unwrap();
    spans(&guest);
    let _ = guest.parent.flush(pages).unwrap();
    assert_eq!(spans(&guest), [pages]);
    drop(group);
}

#[test]
fn a_batch_of_invalidations_stops_at_the_first_bad_one_and_says_how_many_were_done() {
    let mut guest = guest();
    let stage = guest.stage(TABLE, &[(WORD, PAGE << 12 | 3), (6, 8 << 12 | 3)]);
    let _group = guest.attach(&stage);
    let other = Iova::new(6 << 12);
    let (first, second) = (guest.dma(AT).unwrap(), guest.dma(other).unwrap());
    // The guest takes both out of its first stage; the unit has both cached.
    let host = guest.machine.host();
    for word in [WORD, 6] {
        let at = Gpa::new(TABLE + word * 8);
        guest.memory.write(host, at, &[0; 8]).unwrap();
    }
    assert_eq!(guest.dma(AT), Ok(first));
    stage.invalidate(&[]).unwrap();
    assert_eq!(
        guest.dma(AT),
        Ok(first),
        "none at all is well and does nothing"
    );

    let refused = stage
        .invalidate(&[[1, WORD], [1, 9999], [1, 6]])
        .unwrap_err();
    assert_eq!(refused.done, 1);
    let bad = BadRequest {
        what: "the page to forget",
        expected: "below 512",
        found: 9999,
    };
    assert_eq!(refused.reason, InvalidateRefusal::Malformed(bad));
    assert_eq!(
        guest.dma(AT),
        Err(DmaFault::NotMapped),
        "the first was done"
    );
    assert_eq!(guest.dma(other), Ok(second), "the last was not");

    for bad in [[2, 0], [0, 1]] {
        let refused = stage.invalidate(&[bad, [0, 0]]).unwrap_err();
        assert_eq!(refused.done, 0, "{bad:?}");
        assert_eq!(guest.dma(other), Ok(second));
    }
    stage.invalidate(&[[0, 0]]).unwrap();
    assert_eq!(guest.dma(other), Err(DmaFault::NotMapped));
}

#[test]
fn bc01_an_invalidation_that_never_completes_is_no_success() {
    for answer in [Completion::Never, Completion::Fails] {
        let mut guest = guest();
        let stage = guest.stage(TABLE, &[(WORD, PAGE << 12 | 3)]);
        let group = guest.attach(&stage);
        let answer = Answer::Completes(answer);
        guest.machine.fake.plan(0, Call::Nested, 0, answer);
        let refused = stage.invalidate(&[[0, 0], [1, 9999]]).unwrap_err();
        assert_eq!(refused.done, 0);
        assert!(matches!(refused.reason, InvalidateRefusal::Unit(_)));
        // Its devices are cut off.
        assert_eq!(guest.dma(AT), Err(DmaFault::NotBusMaster));
        assert_eq!(guest.machine.iommu.wedged_units().count(), 1);
        drop(group);
    }
}

#[test]
fn invalidations_go_to_the_units_of_the_stages_own_devices() {
    let mut guest = guest();
    let stage = guest.stage(TABLE, &[]);
    stage.invalidate(&[[0, 0]]).unwrap();
    let far = guest.machine.take(FAR).claim_for_guest(vm(1));
    let _far = far.attach_for_guest(&guest.parent, &isolated()).unwrap();
    let _near = guest.attach(&stage);
    let (near, far) = (
        guest.machine.fake.take_log(0),
        guest.machine.fake.take_log(1),
    );
    assert!(
        !near
            .iter()
            .chain(&far)
            .any(|call| matches!(call, Logged::Nested(_)))
    );
    stage.invalidate(&[[0, 0], [1, 1]]).unwrap();
    assert_eq!(
        guest.machine.fake.take_log(0),
        [Logged::Nested(guest.parent.hw_id()); 2]
    );
    assert_eq!(
        guest.machine.fake.take_log(1),
        [],
        "the parent's device is elsewhere"
    );
}

/// What is asked of the parent goes to each unit behind which a device may be on one of its first stages, and says no more than
/// what is asked of one of them.
#[test]
fn invalidations_of_a_parent_go_to_the_units_of_all_its_first_stages() {
    let mut guest = guest();
    let (near, far) = (guest.stage(TABLE, &[]), guest.stage(TABLE + 0x1000, &[]));
    guest.parent.invalidate(&[[0, 0]]).unwrap();
    guest.parent.forget_first_stages().unwrap();
    let _near = guest.attach(&near);
    let group = guest.machine.take(FAR).claim_for_guest(vm(1));
    let group = group.attach_for_guest(&far, &isolated()).unwrap();
    let nested = |guest: &Guest| {
        [0, 1].map(|unit| {
            let log = guest.machine.fake.take_log(unit);
            let of_parent = Logged::Nested(guest.parent.hw_id());
            log.iter().filter(|call| **call == of_parent).count()
        })
    };
    assert_eq!(nested(&guest), [0, 0], "nobody was there");
    guest.parent.invalidate(&[[0, 0], [1, 1]]).unwrap();
    assert_eq!(nested(&guest), [2, 2]);
    guest.parent.forget_first_stages().unwrap();
    assert_eq!(nested(&guest), [1, 1]);
    let refused = guest.parent.invalidate(&[[1, 1], [2, 0]]).unwrap_err();
    assert_eq!((refused.done, nested(&guest)), (1, [1, 1]));
    assert!(matches!(refused.reason, InvalidateRefusal::Malformed(_)));
    let _group = group.detach().unwrap();
    guest.parent.forget_first_stages().unwrap();
    assert_eq!(nested(&guest), [1, 0]);
    // One that does not is told of, whichever it is.
    let never = Answer::Completes(Completion::Never);
    guest.machine.fake.plan(0, Call::Nested, 0, never);
    guest.parent.forget_first_stages().unwrap_err();
    assert_eq!(guest.machine.iommu.wedged_units().count(), 1);
}

#[test]
fn a_malformed_first_stage_is_refused_and_takes_nothing() {
    let guest = guest();
    let rows = [
        (TABLE + 8, 1, "the address of a page", TABLE + 8),
        (TABLE, 0, "1 or 2", 0),
        (TABLE, 3, "1 or 2", 3),
    ];
    for (table, levels, expected, found) in rows {
        let refused = Domain::alloc_nested(&guest.parent, &UserStage { table, levels });
        let Err(NestedError::Stage(bad)) = refused else {
            panic!("{table:#x}, {levels} levels");
        };
        assert_eq!((bad.expected, bad.found), (expected, found));
    }
    assert_eq!(guest.parent.destroy().unwrap().count(), 16);
}

#[test]
fn a_first_stage_that_a_unit_cannot_walk_is_refused_at_attach() {
    let mut guest = guest();
    let deep = UserStage {
        table: TABLE,
        levels: 2,
    };
    let stage = Domain::alloc_nested(&guest.parent, &deep).unwrap();
    let group = guest.group.take().unwrap();
    let Err(AttachFailed::Refused { group, error }) = group.attach_for_guest(&stage, &isolated())
    else {
        panic!("attached");
    };
    let expected = AttachError::Incompatible {
        unit: group.unit(),
        unmet: Unmet {
            what: "levels of a first stage",
            needed: 2,
            found: 1,
        },
    };
    assert_eq!(error, expected);
    assert_eq!(guest.machine.fake.bound(NIC), None);
    stage.destroy().unwrap();
    // Another guest's group does not fit either.
    let stage = guest.stage(TABLE, &[]);
    let group = group
        .release()
        .without_reset("a test")
        .claimable()
        .unwrap()
        .claim_for_guest(vm(2));
    let refused = group.attach_for_guest(&stage, &isolated());
    assert!(matches!(
        refused,
        Err(AttachFailed::Refused {
            error: AttachError::OtherOwner { .. },
            ..
        })
    ));
}

#[test]
fn bc05_a_wedged_nested_group_keeps_child_and_parent() {
    let mut guest = guest();
    let stage = guest.stage(TABLE, &[(WORD, PAGE << 12 | 3)]);
    let group = guest.attach(&stage);
    let answer = Answer::Completes(Completion::Never);
    guest.machine.fake.plan(0, Call::Unbind, 0, answer);
    let group = group.detach().unwrap_err();
    let stage = stage.destroy().unwrap_err();
    assert_eq!(stage.reason, DestroyRefusal::Attached { attachments: 1 });
    let parent = guest.parent.destroy().unwrap_err();
    guest.machine.iommu.reset_unit(group.unit()).unwrap();
    let _group = group.recover().unwrap();
    stage.domain.destroy().unwrap();
    assert_eq!(parent.domain.destroy().unwrap().count(), 16);
}

#[test]
fn a_nested_life_with_each_allocation_failing() {
    let mut machine = Machine::new();
    let mut group = machine.take(NIC).claim_for_guest(vm(1));
    let host = machine.fake.host();
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), host.frames(16)).unwrap();
    let out = host.frames_out();
    let mut failing = 0;
    loop {
        host.fail_allocation_after(Some(failing));
        let built = Domain::user_parent_alloc(&group, PLAIN);
        let Ok(parent) = built else {
            assert_eq!(
                (host.frames_out(), machine.iommu.domains_in_use()),
                (out, 0)
            );
            failing += 1;
            continue;
        };
        let range = parent.reserve(iovas(0, 16)).unwrap();
        let pin = memory.pin(gpas(0, 16)).unwrap();
        let mapped = range.map_with(pin, Perms::ReadWrite, PageSize::Size4K);
        let done = mapped.is_ok();
        drop(mapped);
        let user = UserStage {
            table: TABLE,
            levels: 1,
        };
        // Neither the first stage nor its attachment takes a frame.
        host.fail_allocation_after(Some(0));
        let stage = Domain::alloc_nested(&parent, &user).unwrap();
        let attached = group.attach_for_guest(&stage, &isolated()).unwrap();
        group = attached.detach().unwrap();
        stage.destroy().unwrap();
        host.fail_allocation_after(None);
        for run in parent.destroy().unwrap() {
            drop(run);
        }
        assert_eq!(
            (host.frames_out(), machine.iommu.domains_in_use()),
            (out, 0)
        );
        if done {
            break;
        }
        failing += 1;
    }
    assert_eq!(failing, 3, "the root and two tables");
}

#[test]
fn what_is_written_through_a_first_stage_is_noted_in_the_parent() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let needs = Needs {
        dirty_tracking: true,
        coherent_walks: false,
        coherent_dma: false,
        pasids: false,
    };
    let parent = Domain::user_parent_alloc(&group, PLAIN.with(needs)).unwrap();
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), machine.host().frames(16)).unwrap();
    let range = parent.reserve(iovas(0, 16)).unwrap();
    let pin = memory.pin(gpas(0, 16)).unwrap();
    let _range = range.map(pin, Perms::ReadWrite).unwrap();
    let word = (PAGE << 12 | 3).to_le_bytes();
    memory
        .write(machine.host(), Gpa::new(TABLE + WORD * 8), &word)
        .unwrap();
    let user = UserStage {
        table: TABLE,
        levels: 1,
    };
    let stage = Domain::alloc_nested(&parent, &user).unwrap();
    let group = group.attach_for_guest(&stage, &isolated()).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    // Twice: the unit is told to forget that it has noted the page.
    for _ in 0..2 {
        machine.fake.dma(NIC, AT, Access::Write).unwrap();
        let mut words = [0];
        let mut bitmap = DirtyBitmap::new(iovas(0, 16), &mut words).unwrap();
        parent.dirty().unwrap().read_and_clear(&mut bitmap).unwrap();
        assert!(bitmap.pages().eq([Iova::new(PAGE << 12)]));
    }
}

#[test]
fn units_without_nesting_make_no_parent() {
    let plain = UnitCaps {
        nested: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(plain, plain);
    let group = machine.take(NIC).claim_for_guest(vm(1));
    assert!(Domain::user_parent_alloc(&group, PLAIN).is_err());
    assert!(Domain::user_domain_alloc(&group, PLAIN).is_ok());
}
