//! Models of the fault path: the subsystem takes faults of a device while another CPU takes the device from its
//! domain, ends the domain, and attaches the device elsewhere.

use std::sync::Arc;

use hv_core::{KernelPaging, OwnerId};
use hv_iommu::{
    Attached, Claimed, Domain, DomainConfig, DomainUid, FaultNotice, Group, GroupId, Iommu,
};

use crate::arena::{Use, become_cpu};
use crate::board::{Board, DEVICES, machine};
use crate::explore::{models, saw};

const SMALL: DomainConfig = DomainConfig {
    address_bits: 13,
    largest_page: hv_core::PageSize::Size4K,
};

/// Who caused a fault, as it is told.
type Culprit = Option<(GroupId, DomainUid, OwnerId)>;

/// The group of a device that its driver has claimed, or attached.
type Ours = Group<Board, Claimed<KernelPaging>>;
type Working = Group<Board, Attached<KernelPaging, Board>>;

// On its own: the stacks of a model's threads are small.
#[inline(never)]
fn attached(group: Ours) -> (Working, Domain<KernelPaging, Board>, Culprit) {
    let domain = Domain::paging_domain_alloc(&group, SMALL).unwrap();
    let culprit = Some((group.id(), domain.uid(), OwnerId::Hypervisor));
    let group = group.attach(&domain).unwrap();
    (group, domain, culprit)
}

// On its own, as above.
#[inline(never)]
fn end(iommu: &Iommu<Board>, domain: Domain<KernelPaging, Board>) {
    assert_eq!(domain.destroy().unwrap().count(), 0);
    iommu.sweep();
}

// On its own, as above.
#[inline(never)]
fn detached(
    iommu: &Iommu<Board>,
    group: Working,
    domain: Domain<KernelPaging, Board>,
) -> Box<Ours> {
    let group = Box::new(group.detach().unwrap());
    end(iommu, domain);
    group
}

// On its own, as above.
#[inline(never)]
fn claimed_anew(group: Ours) -> Box<Ours> {
    Box::new(group.release().claim_for_hypervisor())
}

#[inline(never)]
fn faults(iommu: &Iommu<Board>) -> Vec<Culprit> {
    let mut found = Vec::new();
    iommu.take_faults(|notice| match notice {
        FaultNotice::Fault(report) => {
            assert_eq!(report.fault.requester, DEVICES[0]);
            found.push(report.bound_to);
        }
        other => panic!("{other:?}"),
    });
    found
}

/// A machine whose CPU 0 has this many frames, and a device of it, claimed.
// On its own, as above.
#[inline(never)]
fn device(frames: usize) -> (Iommu<Board>, Ours) {
    let (iommu, mut groups) = machine(frames);
    let group = groups.remove(0).claimable().unwrap();
    (iommu, group.claim_for_hypervisor())
}

/// Runs a model that makes domains, which takes more stack than loom gives the first thread.
fn on_a_deep_stack(model: fn()) {
    let deep = loom::thread::Builder::new().stack_size(1 << 17);
    deep.spawn(model).unwrap().join().unwrap();
}

/// The device goes for good. Whoever has not noticed that its entry went is told whose it is.
fn faults_against_detach() {
    let (iommu, group) = device(1);
    let (group, domain, culprit) = attached(group);
    iommu.platform().fault(DEVICES[0]);
    let gone = Arc::new(Use::new());
    let reader = {
        let (iommu, gone) = (iommu.clone(), gone.clone());
        loom::thread::spawn(move || {
            become_cpu(1);
            let found = faults(&iommu);
            if iommu.platform().unbound() == 0 {
                saw("the device is bound still");
                assert_eq!(found, [culprit]);
            } else if found == [culprit] {
                saw("the device has just gone");
            } else {
                saw("the device is nobody's");
                assert_eq!(found, [None]);
                // What the detach did before it let go of the register has happened.
                gone.reach();
            }
        })
    };
    gone.have_alone();
    let group = group.detach().unwrap();
    end(&iommu, domain);
    reader.join().unwrap();
    // What the device sends from now on is nobody's.
    iommu.platform().fault(group.members()[0]);
    assert_eq!(faults(&iommu), [None]);
}

/// The device goes to another domain. No report mixes the two, or names one that the device is not in yet.
fn faults_against_reassignment() {
    let (iommu, group) = device(2);
    let (group, domain, old) = attached(group);
    iommu.platform().fault(DEVICES[0]);
    let reader = {
        let iommu = iommu.clone();
        loom::thread::spawn(move || {
            become_cpu(1);
            let mut found = faults(&iommu);
            // Lets the other CPU run.
            iommu.platform().unbound();
            iommu.platform().fault(DEVICES[0]);
            found.extend(faults(&iommu));
            found
        })
    };
    let group = claimed_anew(*detached(&iommu, group, domain));
    let (group, domain, new) = attached(*group);
    let found = reader.join().unwrap();
    // In the order in which the device was: with the old one, with nobody, with the new one.
    let place = |culprit: &Culprit| match culprit {
        None => 1,
        other if *other == old => 0,
        other if *other == new => 2,
        Some((group, domain, owner)) => panic!("{group}, {domain} of {owner}"),
    };
    let places: Vec<_> = found.iter().map(place).collect();
    assert_eq!(places.len(), 2, "each fault is told once");
    assert!(places.is_sorted(), "{places:?}");
    match places[..] {
        [0, 0] => saw("the old domain's"),
        [0, 2] => saw("the old domain's, then the new one's"),
        [1, ..] => saw("nobody's"),
        _ => {}
    }
    drop(detached(&iommu, group, domain));
    assert_eq!(iommu.domains_in_use(), 0);
}

models! {
    /// A fault names the device's domain until the unit was told to forget it, and nobody's after.
    /// Shows: bc19.
    bc19_a_fault_is_told_while_its_device_goes: Exhaustive,
        sees ["the device is bound still", "the device has just gone", "the device is nobody's"],
        || on_a_deep_stack(faults_against_detach);

    /// A fault names one domain that the device was in, whatever ends and begins meanwhile.
    /// Shows: bc19.
    bc19_cve_2024_35843_a_fault_names_one_domain_while_its_device_moves: Exhaustive,
        sees ["the old domain's", "nobody's", "the old domain's, then the new one's"],
        || on_a_deep_stack(faults_against_reassignment);
}
