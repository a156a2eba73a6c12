//! Class 6 for memory that firmware reserves: it stays with its device whatever the group goes through.

use hv_core::{Access, Iova, IovaRange, KernelPaging, PageSize, Perms, PhysAddr, PhysRange, VmId};
use hv_iommu::{
    AtRest, AttachError, AttachFailed, Attached, ClaimError, Domain, DomainConfig, FlushSpan,
    Group, GroupTable, Pinned, ReplaceFailed, ReservedKind, SpaceError,
};
use hv_rig::{Driver, Machine, Outcome, Policy, RegionModel, Rig, Tenant, UnitModel};

use super::stand::{BAD, Backend, REMEMBERS, Stand, count, drawn, iovas, pci, small};

/// Two regions of firmware side by side, which stay two: the second is for one function only of the two that
/// make the group.
const REGIONS: [(u64, u64); 2] = [(0x1_0010_0000, 5), (0x1_0010_5000, 2)];

/// A domain that has the addresses of the rig's memory.
const WIDE: DomainConfig = DomainConfig {
    address_bits: 34,
    largest_page: PageSize::Size1G,
};

pub(crate) fn machine(seed: u64) -> Machine {
    let mut machine = drawn(seed);
    machine.temper = BAD;
    machine.units.iter_mut().for_each(UnitModel::widen);
    // They do DMA from before bring-up on.
    for function in &mut machine.functions {
        function.left_on |= function.address.bus() == 0 && function.address.device() == 2;
    }
    let functions = [vec![pci(0, 2, 0), pci(0, 2, 1)], vec![pci(0, 2, 1)]];
    let regions = REGIONS.into_iter().zip(functions);
    machine.regions = regions
        .map(|((start, pages), functions)| RegionModel {
            memory: PhysRange::new(PhysAddr::new(start), count(pages)).unwrap(),
            functions,
        })
        .collect();
    machine
}

/// Runs a test on machines with the regions, brought up by the policy that puts up with them.
fn on_pinned(seeds: u64, test: impl Fn(&mut Stand, Group<Backend, Pinned>)) {
    for seed in 0..seeds {
        let rig = Rig::new(machine(seed)).unwrap();
        let backend = Backend::start_by(&rig, Policy::Lenient);
        let mut stand = Stand::of(rig, backend);
        let group = stand.pinned.pop().unwrap();
        assert!(stand.pinned.is_empty());
        test(&mut stand, group);
        stand.check();
    }
}

pub(crate) fn ranges() -> [IovaRange; 2] {
    REGIONS.map(|(start, pages)| iovas(start, pages))
}

/// A domain for the pinned group, with what the ledger has to know: the regions are mapped in it from now on.
fn domain(
    stand: &Stand,
    made: Domain<KernelPaging, Backend>,
) -> (Domain<KernelPaging, Backend>, Tenant) {
    let tenant = stand.tenant();
    for range in ranges() {
        let at = PhysAddr::new(range.start().as_u64());
        let memory = PhysRange::new(at, range.pages()).unwrap();
        stand.rig.mapping(tenant, range, memory, Perms::ReadWrite);
        stand.rig.mapped(tenant, range, Perms::ReadWrite);
    }
    (made, tenant)
}

/// The devices use every page of the regions, and reach just those frames.
pub(crate) fn reach(stand: &Stand, group: &Group<Backend, Attached<KernelPaging, Backend>>) {
    for member in group.members() {
        group.enable_bus_mastering(*member).unwrap();
        for range in ranges() {
            for page in 0..range.pages().get() {
                let at = range.start().as_u64() + page * 4096;
                for access in [Access::Read, Access::Write] {
                    let outcome = stand.rig.access(*member, Iova::new(at), access);
                    assert_eq!(
                        outcome,
                        Outcome::Reached { at },
                        "{member} {access} {at:#x}"
                    );
                }
            }
        }
    }
    // And by themselves.
    stand.rig.idle(40);
}

pub(crate) fn end(stand: &Stand, domain: Domain<KernelPaging, Backend>, tenant: Tenant) {
    for range in ranges() {
        stand.rig.unmapping(tenant, range);
    }
    let teardown = domain.destroy().unwrap();
    assert_eq!(teardown.count(), 0, "none of it is the driver's");
    stand.rig.ended(tenant);
}

#[test]
fn bc06_xsa_400_firmwares_dma_works_before_and_after_every_transition() {
    on_pinned(40, |stand, group| {
        // Bring-up stopped them until somebody claims them, and says so: the policy puts up with that.
        let stopped = |device| {
            let outcome = stand.rig.access(device, ranges()[0].start(), Access::Write);
            assert!(!matches!(outcome, Outcome::Reached { .. }), "{outcome:?}");
        };
        group.members().iter().copied().for_each(stopped);
        let claimed = group.claim_for_hypervisor();
        let members = claimed.members().to_vec();
        let made = Domain::paging_domain_alloc(&claimed, WIDE).unwrap();
        let (one, first) = domain(stand, made);
        let made = Domain::paging_domain_alloc(&claimed, WIDE).unwrap();
        let (two, second) = domain(stand, made);

        stand.rig.attaching(&members, first);
        let group = claimed.attach(&one).unwrap();
        stand.rig.attached(&members, first);
        reach(stand, &group);

        // What the driver maps beside it comes and goes; flushes and a reclaim of empty tables change nothing.
        let (before, after) = (REGIONS[0].0 - 0x1000, REGIONS[1].0 + 0x2000);
        for start in [before, after, 0x10_0000] {
            let range = iovas(start, 1);
            let frames = stand.frames(1);
            stand
                .rig
                .mapping(first, range, frames.range(), Perms::ReadWrite);
            let free = one.reserve(range).unwrap();
            let mapped = free.map(frames, Perms::ReadWrite).unwrap();
            stand.rig.mapped(first, range, mapped.granted());
            reach(stand, &group);
            stand.rig.unmapping(first, range);
            let (free, frames) = mapped.unmap().flush().unwrap();
            stand.rig.returned(first, range);
            stand.give_back(frames);
            free.release().unwrap();
            reach(stand, &group);
        }
        let _receipt = one.flush(FlushSpan::Domain).unwrap();
        one.reclaim().unwrap();
        reach(stand, &group);

        // A reset in between.
        stand.rig.detaching(&members, first);
        let parked = group.park().unwrap();
        stand.rig.detached(&members);
        members.iter().copied().for_each(stopped);
        stand.rig.attaching(&members, first);
        let group = parked.unpark().unwrap();
        stand.rig.attached(&members, first);
        reach(stand, &group);

        // Straight to another domain, with a gap; devices go on asking for the regions meanwhile.
        stand.rig.attaching(&members, second);
        let group = group.replace_with_gap(&two).unwrap();
        stand.rig.attached(&members, second);
        reach(stand, &group);

        // Off one domain, given up, claimed again, and back on the other.
        stand.rig.detaching(&members, second);
        let released = group.detach().unwrap().release();
        let released = released.without_reset(REMEMBERS);
        stand.rig.detached(&members);
        let AtRest::ForHypervisor(pinned) = released else {
            panic!("{released:?}, which firmware goes on using");
        };
        let claimed = pinned.claim_for_hypervisor();
        stand.rig.attaching(&members, first);
        let group = claimed.attach(&one).unwrap();
        stand.rig.attached(&members, first);
        end(stand, two, second);
        reach(stand, &group);

        stand.rig.detaching(&members, first);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        end(stand, one, first);
    });
}

#[test]
fn bc06_xsa_378_nobody_gets_a_page_of_firmwares_and_none_comes_back() {
    on_pinned(30, |stand, group| {
        let claimed = group.claim_for_hypervisor();
        let members = claimed.members().to_vec();
        let before = stand.rig.frames_out();
        let made = Domain::paging_domain_alloc(&claimed, WIDE).unwrap();
        let (one, tenant) = domain(stand, made);
        stand.rig.attaching(&members, tenant);
        let group = claimed.attach(&one).unwrap();
        stand.rig.attached(&members, tenant);
        // Not a page of them, not all of both, not with their neighbours: so there is nothing to unmap.
        let (first, pages) = (REGIONS[0].0, REGIONS[0].1 + REGIONS[1].1);
        let mut wanted: Vec<_> = (0..pages)
            .map(|page| iovas(first + page * 4096, 1))
            .collect();
        wanted.extend([iovas(first, pages), iovas(first - 0x1000, pages + 2)]);
        for wanted in wanted {
            let refused = one.reserve(wanted).err();
            assert!(
                matches!(refused, Some(SpaceError::Reserved { by, .. }) if by.kind == ReservedKind::Pinned),
                "{wanted}: {refused:?}"
            );
        }
        reach(stand, &group);
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        end(stand, one, tenant);
        let tables = stand.rig.binding_tables();
        assert!(
            stand.rig.frames_out() <= before + tables,
            "its tables are back"
        );
    });
}

#[test]
fn bc06_xsa_378_a_guest_cannot_have_a_group_of_firmwares() {
    on_pinned(20, |_, group| {
        let (id, vm) = (group.id(), VmId::new(1).unwrap());
        let table = GroupTable::new(vec![AtRest::ForHypervisor(group)]).unwrap();
        let refused = table.claim_for_guest(id, vm).err();
        assert_eq!(refused, Some(ClaimError::Pinned(id)));
        assert!(table.claim_for_hypervisor(id).is_ok(), "it is where it was");
    });
    // By the strict policy such a machine does not come up at all.
    let rig = Rig::new(machine(0)).unwrap();
    let refused = Backend::start(&rig).err().unwrap();
    assert!(refused.contains("firmware goes on using"), "{refused}");
}

#[test]
fn bc06_xsa_386_a_domain_without_the_regions_gets_the_group_neither_by_attach_nor_by_replace() {
    on_pinned(30, |stand, group| {
        let other = stand.take(pci(0, 1, 0)).claim_for_hypervisor();
        let without = Domain::paging_domain_alloc(&other, small()).unwrap();
        let claimed = group.claim_for_hypervisor();
        let members = claimed.members().to_vec();
        let is_refused = |error: AttachError| {
            assert!(
                matches!(error, AttachError::RegionNotMapped { .. }),
                "{error}"
            );
        };
        let Err(AttachFailed::Refused {
            group: claimed,
            error,
        }) = claimed.attach(&without)
        else {
            panic!("attached without firmware's regions");
        };
        is_refused(error);

        let made = Domain::paging_domain_alloc(&claimed, WIDE).unwrap();
        let (one, tenant) = domain(stand, made);
        stand.rig.attaching(&members, tenant);
        let group = claimed.attach(&one).unwrap();
        stand.rig.attached(&members, tenant);
        reach(stand, &group);
        // Refused before anything is taken from the device: it goes on.
        let Err(ReplaceFailed::Refused { group, error }) = group.replace_with_gap(&without) else {
            panic!("moved to where firmware's regions are not");
        };
        is_refused(error);
        reach(stand, &group);
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        end(stand, one, tenant);
        assert_eq!(without.destroy().unwrap().count(), 0);
    });
}
