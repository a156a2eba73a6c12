//! Functions that reach memory past their unit (CXL.cache), where groups move, come back, or share a device.

use hv_core::{KernelPaging, PciAddress};
use hv_iommu::{
    AccessControl, AttachError, AttachFailed, Attached, Claimed, DestroyRefusal, Domain,
    FunctionKind, Group, PciFunction, ReplaceFailed, TrustedDevice, UnparkFailed,
};
use hv_tests::fake::Fake;
use hv_tests::host::Host;

use super::machine::{Machine, NIC, PLAIN, TWIN, end_domain};
use super::pasid::{pasid, stand};

/// Where a function has its CXL control register.
const CONTROL: u16 = 0x20c;

/// Gives a function a cache, off, which its driver may switch: behind its PASID capability "PCIe DVSEC for CXL Devices", with
/// Cache_Capable (CXL 3.1, 8.1.3).
fn give_cache(host: &Host, function: PciAddress) {
    for (offset, value, writable) in [
        (0x100, 0x2001_001b, 0),
        (0x200, 0x0001_0023, 0),
        (0x204, 0x0380_1e98, 0),
        (0x208, 0x0001_0000, 0),
        (CONTROL, 0, 1),
    ] {
        host.set_register(function, offset, value, writable);
    }
}

/// Turns it on, as a driver does, or whoever had the function before.
fn cache(machine: &Machine, function: PciAddress) {
    machine.host().set_register(function, CONTROL, 1, 1);
}

fn caches(machine: &Machine, function: PciAddress) -> bool {
    machine.host().register(function, CONTROL) & 1 != 0
}

/// By somebody's word.
fn vouched(group: Group<Fake, Claimed<KernelPaging>>) -> Group<Fake, Claimed<KernelPaging>> {
    let trusted = TrustedDevice::vouch_for(&group, "a test");
    group.let_cxl_cache(&trusted).unwrap()
}

type Refused = (Group<Fake, Claimed<KernelPaging>>, AttachError);

fn refused(
    attached: Result<Group<Fake, Attached<KernelPaging, Fake>>, AttachFailed<KernelPaging, Fake>>,
) -> Refused {
    match attached.map(drop).unwrap_err() {
        AttachFailed::Refused { group, error } => (group, error),
        AttachFailed::Wedged { group } => panic!("{}", group.error()),
    }
}

/// What it has written and keeps would go to the old domain's memory by the new one's translations.
#[test]
fn bc15_a_group_that_keeps_memory_is_not_moved_under_its_caches() {
    let mut machine = Machine::new();
    give_cache(machine.host(), NIC);
    let group = vouched(machine.take(NIC).claim_for_hypervisor());
    let [one, two] = [(); 2].map(|()| Domain::paging_domain_alloc(&group, PLAIN).unwrap());
    let group = group.attach(&one).unwrap();
    cache(&machine, NIC);
    let group = match group.replace_with_gap(&two) {
        Err(ReplaceFailed::Refused { group, error }) => {
            assert_eq!(error, AttachError::ReachesPastUnit { function: NIC });
            group
        }
        other => panic!("{:?}", other.map(drop)),
    };
    assert_eq!(group.domain(), one.uid());
    assert!(caches(&machine, NIC), "nothing was changed");
    // Nor does it go on by itself after that.
    let claimed = group.detach().unwrap();
    assert!(!caches(&machine, NIC));
    // One that nobody gave their word for has none, and moves.
    let plain = machine.driver(TWIN[0]);
    let other = Domain::paging_domain_alloc(&claimed, PLAIN).unwrap();
    let moved = plain.group.replace_with_gap(&other).unwrap();
    assert_eq!(moved.domain(), other.uid());
    drop(moved.detach().unwrap());
    for domain in [one, two, other, plain.domain] {
        end_domain(domain, machine.host());
    }
}

/// Function 0 of a device has the switch for all of it. Turned off for one group, it would lose what another's has written.
#[test]
fn bc15_a_cache_that_another_group_goes_by_is_left_on_and_refused() {
    let apart = |functions: &mut [PciFunction]| {
        let twins = functions.iter_mut();
        for twin in twins.filter(|function| TWIN.contains(&function.address)) {
            assert_eq!(twin.kind, FunctionKind::Endpoint);
            twin.access_control = AccessControl::from_registers(0, 0);
        }
    };
    let mut machine = Machine::with_functions(apart);
    give_cache(machine.host(), TWIN[0]);
    let [first, second] = TWIN.map(|function| machine.take(function).claim_for_hypervisor());
    assert_eq!(
        (first.members(), second.members()),
        (&TWIN[..1], &TWIN[1..])
    );
    let domains = [(); 2].map(|()| Domain::paging_domain_alloc(&first, PLAIN).unwrap());
    let second = vouched(second).attach(&domains[1]).unwrap();
    cache(&machine, TWIN[0]);
    let past = AttachError::ReachesPastUnit { function: TWIN[0] };
    let (first, error) = refused(first.attach(&domains[0]));
    assert_eq!(error, past);
    assert!(
        caches(&machine, TWIN[0]),
        "it was turned off under the other"
    );
    drop(second.detach().unwrap());
    assert!(!caches(&machine, TWIN[0]));
    // Nobody else's now: whoever left it on does not keep it.
    cache(&machine, TWIN[0]);
    let (first, error) = refused(first.attach(&domains[0]));
    assert_eq!(error, past);
    assert!(!caches(&machine, TWIN[0]));
    drop(first);
    for domain in domains {
        end_domain(domain, machine.host());
    }
}

/// What is there after a reset is not what was there before.
#[test]
fn bc15_what_comes_back_with_a_cache_is_not_put_back_with_its_pasids() {
    let (machine, group, own, [one, two]) = stand();
    let held = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap();
    let parked = group.park().unwrap();
    give_cache(machine.host(), TWIN[1]);
    cache(&machine, TWIN[1]);
    let group = match parked.unpark() {
        Err(UnparkFailed::Refused { group, error }) => {
            assert_eq!(error, AttachError::ReachesPastUnit { function: TWIN[1] });
            group
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is back, and reaches memory past its unit"),
    };
    assert!(!caches(&machine, TWIN[1]));
    held.give_up().unwrap();
    drop(group);
    for domain in [own, one, two] {
        end_domain(domain, machine.host());
    }
}

/// By the word that it was attached with, and without a cache until its driver turns that on.
#[test]
fn bc15_a_group_with_a_word_is_parked_and_put_back_without_its_caches() {
    let mut machine = Machine::new();
    give_cache(machine.host(), NIC);
    let group = vouched(machine.take(NIC).claim_for_hypervisor());
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let group = group.attach(&domain).unwrap();
    cache(&machine, NIC);
    let parked = group.park().unwrap();
    assert!(!caches(&machine, NIC), "it goes on while it is reset");
    // It holds its domain meanwhile, and is named.
    let refused = domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
    assert_eq!(refused.group, Some(parked.id()));
    let group = parked.unpark().unwrap();
    assert!(!caches(&machine, NIC));
    drop(group.detach().unwrap());
    end_domain(refused.domain, machine.host());
}
