//! Several tenants who want the same group: one gets it, the others hear who has it.

use std::sync::Mutex;

use hv_core::{OwnerId, VmId};
use hv_iommu::{
    AtRest, ClaimError, Domain, FirmwareOverridden, GroupTable, ReservedKind, ReservedRegion,
    ResetFailed, ResetRefusal, Whereabouts,
};

use super::machine::{DISK, FAR, Machine, NIC, PLAIN, iovas, vm};

/// A machine with the groups of three devices in a table. Firmware pins that of `FAR`.
fn table() -> (Machine, GroupTable<hv_tests::fake::Fake>) {
    let mut machine = Machine::with_regions(|_| {
        let region = ReservedRegion {
            range: iovas(0x7000_0000, 2),
            kind: ReservedKind::Pinned,
        };
        vec![(FAR, region)]
    });
    let groups = [NIC, DISK, FAR].map(|member| machine.take_at_rest(member));
    (machine, GroupTable::new(groups.into()).unwrap())
}

#[test]
fn bc05_a_group_that_somebody_has_is_refused_with_its_holder() {
    let (mut machine, table) = table();
    let far = machine.take(super::machine::TWIN[0]);
    let unknown = far.id();
    let (nic, holder) = (ids(&table, NIC), OwnerId::Vm(vm(1)));
    let group = table.claim_for_guest(nic, vm(1)).unwrap();
    let held = Whereabouts::Held { group: nic, holder };
    assert_eq!(table.find(NIC), Some(held));
    assert_eq!(table.whereabouts(nic), Some(held));
    assert_eq!(held.to_string(), format!("{nic} is held by vm1"));
    assert_eq!(table.find(super::machine::LOST), None);
    let held = ClaimError::Held { group: nic, holder };
    assert_eq!(table.claim_for_guest(nic, vm(2)).err(), Some(held));
    assert_eq!(
        table.claim_for_guest(nic, vm(1)).err(),
        Some(held),
        "not even itself"
    );
    assert_eq!(table.claim_for_hypervisor(nic).err(), Some(held));
    assert_eq!(table.take_at_rest(nic).err(), Some(held));
    assert_eq!(held.to_string(), format!("{nic} is held by vm1"));
    // What was refused took nothing away from the holder.
    assert!(Domain::user_domain_alloc(&group, PLAIN).is_ok());

    // Back in the table it waits for its reset, whoever asks; then it is anybody's.
    table.put_back(AtRest::ToReset(group.release())).unwrap();
    assert_eq!(table.find(NIC), Some(Whereabouts::AtRest(nic)));
    let last = holder;
    let unreset = ClaimError::NeedsReset { group: nic, last };
    assert_eq!(table.claim_for_guest(nic, vm(2)).err(), Some(unreset));
    assert_eq!(table.claim_for_hypervisor(nic).err(), Some(unreset));
    let AtRest::ToReset(used) = table.take_at_rest(nic).unwrap() else {
        panic!("was reset by nobody");
    };
    let Err(ResetFailed { group: used, error }) = used.reset_members(|_| Err::<(), _>("no")) else {
        panic!("a reset that failed");
    };
    let (member, why) = (NIC, "no");
    assert_eq!(error, ResetRefusal::Member { member, error: why });
    let clean = used.reset_members(|_| Ok::<_, ()>(())).unwrap();
    table.put_back(clean.all().unwrap()).unwrap();
    assert!(table.claim_for_guest(nic, vm(2)).is_ok());

    // A group that was never here is not given out.
    assert_eq!(
        table.claim_for_hypervisor(unknown).err(),
        Some(ClaimError::Unknown(unknown))
    );
    // One that came later is taken in, and given out from then on.
    table.put_back(AtRest::Claimable(far)).unwrap();
    assert!(table.claim_for_hypervisor(unknown).is_ok());
}

/// The number of the group with this function.
fn ids(table: &GroupTable<hv_tests::fake::Fake>, member: hv_core::PciAddress) -> hv_iommu::GroupId {
    table.find(member).unwrap().group()
}

#[test]
fn bc06_a_guest_is_told_that_a_group_is_firmwares() {
    let (_machine, table) = table();
    let far = ids(&table, FAR);
    assert_eq!(
        table.claim_for_guest(far, vm(1)).err(),
        Some(ClaimError::Pinned(far))
    );
    let here = Some(Whereabouts::AtRest(far));
    assert_eq!(table.whereabouts(far), here, "it is where it was");
    let AtRest::ForHypervisor(group) = table.take_at_rest(far).unwrap() else {
        panic!("not firmware's");
    };
    let policy = FirmwareOverridden::override_pinned_regions("a test");
    table
        .put_back(AtRest::Claimable(group.override_firmware(&policy)))
        .unwrap();
    let group = table.claim_for_guest(far, vm(1)).unwrap();
    let rest = group.release().without_reset("a test");
    table.put_back(rest).unwrap();
    assert_eq!(
        table.claim_for_guest(far, vm(1)).err(),
        Some(ClaimError::Pinned(far))
    );
    assert!(table.claim_for_hypervisor(far).is_ok());
}

#[test]
fn bc05_of_many_who_claim_at_once_one_gets_the_group() {
    let (_machine, table) = table();
    let nic = ids(&table, NIC);
    for _ in 0..50 {
        let start = std::sync::Barrier::new(4);
        let (won, lost) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for vm in (1..=4).filter_map(VmId::new) {
                let (table, start, won, lost) = (&table, &start, &won, &lost);
                scope.spawn(move || {
                    start.wait();
                    match table.claim_for_guest(nic, vm) {
                        Ok(group) => won.lock().unwrap().push((vm, group)),
                        Err(error) => lost.lock().unwrap().push(error),
                    }
                });
            }
        });
        let (vm, group) = won.into_inner().unwrap().pop().unwrap();
        let holder = OwnerId::Vm(vm);
        let held = ClaimError::Held { group: nic, holder };
        assert_eq!(lost.into_inner().unwrap(), [held; 3]);
        table
            .put_back(group.release().without_reset("a test"))
            .unwrap();
    }
}

#[test]
fn bc05_a_group_of_another_subsystem_is_not_put_back() {
    let (_machine, table) = table();
    let (_other, elsewhere) = self::table();
    let nic = ids(&table, NIC);
    let held = table.claim_for_guest(nic, vm(1)).unwrap();
    let foreign = elsewhere.take_at_rest(ids(&elsewhere, NIC)).unwrap();
    assert_eq!(foreign.id(), nic);
    let foreign = table.put_back(foreign).expect_err("it is not from here");
    let holder = table.find(NIC).and_then(Whereabouts::holder);
    assert_eq!(holder, Some(OwnerId::Vm(vm(1))));
    elsewhere.put_back(foreign).unwrap();
    table
        .put_back(held.release().without_reset("a test"))
        .unwrap();
}
