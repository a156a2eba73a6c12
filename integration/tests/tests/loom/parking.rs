//! Models of groups with open PASIDs around a reset: whoever has an attachment gives it up while another CPU, which has the
//! group, takes its entry down.

use hv_core::{KernelPaging, Pasid};
use hv_iommu::{
    AtRest, Attached, Domain, DomainConfig, FlushSpan, Group, Iommu, Paging, PasidAttachment,
    PasidParkFailed, WithPasids,
};

use crate::arena::become_cpu;
use crate::board::{Board, DEVICES, machine};
use crate::explore::{models, saw};

const SMALL: DomainConfig = DomainConfig {
    address_bits: 13,
    largest_page: hv_core::PageSize::Size4K,
};

type Open = Group<Board, WithPasids<KernelPaging, Board, Paging>>;
type Working = Group<Board, Attached<KernelPaging, Board>>;
type Space = Domain<KernelPaging, Board>;

/// A group that was not parked, as the unit did not forget its PASID, and the unit is reset since.
struct Half {
    iommu: Iommu<Board>,
    group: Open,
    own: Space,
    /// Where its PASID goes, and another device.
    shared: Space,
    other: Working,
    attachment: PasidAttachment<KernelPaging, Board>,
}

// On its own: the stacks of a model's threads are small.
#[inline(never)]
fn half_parked() -> Box<Half> {
    let (iommu, mut groups) = machine(2);
    let mut claimed = || {
        let group: AtRest<Board> = groups.remove(0);
        group.claimable().unwrap().claim_for_hypervisor()
    };
    let (group, other) = (claimed(), claimed());
    let own = Domain::paging_domain_alloc(&group, SMALL).unwrap();
    let shared = Domain::paging_domain_alloc(&other, SMALL).unwrap();
    let other = other.attach(&shared).unwrap();
    let group = group.attach(&own).unwrap().open_pasids().unwrap();
    let pasid = Pasid::new(1).unwrap();
    let attachment = group.attach_pasid(DEVICES[0], pasid, &shared).unwrap();
    iommu.platform().hang();
    let Err(PasidParkFailed::Open { group, .. }) = group.park() else {
        panic!("the unit hangs");
    };
    iommu.reset_unit(group.unit()).unwrap();
    Box::new(Half {
        iommu,
        group,
        own,
        shared,
        other,
        attachment,
    })
}

/// The PASID is counted out of its domain once, whoever is first: flushes for the other device still reach the unit.
fn giving_up_against_park() {
    let Half {
        iommu,
        group,
        own,
        shared,
        other,
        attachment,
    } = *half_parked();
    let holder = loom::thread::spawn(move || {
        become_cpu(1);
        attachment.give_up()
    });
    let parked = group.park().unwrap();
    match holder.join().unwrap() {
        Ok(()) => saw("it is given up"),
        Err(attachment) => {
            saw("it is being taken down");
            attachment.give_up().unwrap();
        }
    }
    let before = iommu.platform().flushes();
    let _receipt = shared.flush(FlushSpan::Domain).unwrap();
    assert_eq!(
        iommu.platform().flushes(),
        before + 1,
        "its unit is left out"
    );
    drop(other.detach().unwrap());
    drop(parked.detach());
    for domain in [own, shared] {
        assert_eq!(domain.destroy().unwrap().count(), 0);
    }
    iommu.sweep();
}

models! {
    /// A PASID is given up before its group's entry is taken down for good, or after, and not in between.
    /// Shows: bc07.
    bc07_a_pasid_is_given_up_before_or_after_its_entry_is_taken_down: Two(3),
        sees ["it is given up", "it is being taken down"],
        || {
            let deep = loom::thread::Builder::new().stack_size(1 << 17);
            deep.spawn(giving_up_against_park).unwrap().join().unwrap();
        };
}
