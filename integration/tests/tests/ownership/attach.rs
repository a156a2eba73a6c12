//! Attaching and detaching: whose group to whose domain, on which unit, and bus mastering.

use hv_core::{Access, Iova, KernelPaging, Owner, PageSize, Perms, UserManaged};
use hv_iommu::{
    AttachError, AttachFailed, Claimed, Domain, DomainConfig, Group, LevelSet, UnitCaps,
};
use hv_tests::fake::{DmaFault, Fake, Logged};

use super::machine::{DISK, FAR, Machine, NIC, PLAIN, PORT, full_unit, iovas, isolated, level, vm};

/// The group and the reason of an attach that must be refused.
fn refused<O: Owner, T>(
    result: Result<T, AttachFailed<O, Fake>>,
) -> (Group<Fake, Claimed<O>>, AttachError) {
    match result {
        Err(AttachFailed::Refused { group, error }) => (group, error),
        Err(wedged) => panic!("{wedged:?}"),
        Ok(_) => panic!("attached"),
    }
}

#[test]
fn a_group_of_one_guest_is_not_attached_to_the_domain_of_another() {
    let mut machine = Machine::new();
    let first = machine.guest(NIC, vm(1));
    let group = machine.take(FAR).claim_for_guest(vm(2));
    let (group, error) = refused(group.attach_for_guest(&first.domain, &isolated()));
    let expected = AttachError::OtherOwner {
        group: group.id(),
        claimed: UserManaged::owner_id(vm(2)),
        domain: first.domain.uid(),
        owner: UserManaged::owner_id(vm(1)),
    };
    assert_eq!(error, expected);
    assert_eq!(machine.fake.bound(FAR), None);
    // The group is as it was: it goes to its own guest.
    let own = Domain::user_domain_alloc(&group, PLAIN).unwrap();
    assert!(group.attach_for_guest(&own, &isolated()).is_ok());
}

#[test]
fn a_domain_of_another_subsystem_is_refused() {
    let (mut here, mut there) = (Machine::new(), Machine::new());
    let driver = there.driver(NIC);
    let group = here.take(NIC).claim_for_hypervisor();
    let (group, error) = refused(group.attach(&driver.domain));
    let (group, domain) = (group.id(), driver.domain.uid());
    assert_eq!(error, AttachError::OtherSystem { group, domain });
    assert_eq!(here.fake.bound(NIC), None);
}

#[test]
fn bc08_xsa_390_a_unit_that_cannot_serve_the_domain_is_refused() {
    let full = full_unit();
    let deep = DomainConfig {
        address_bits: 48,
        ..PLAIN
    };
    let rows: [(&str, UnitCaps, DomainConfig, u64, u64); 6] = [
        (
            "levels of tables",
            UnitCaps {
                levels: LevelSet::EMPTY.with(level(3)),
                ..full
            },
            deep,
            4,
            3,
        ),
        (
            "bytes of the largest page",
            UnitCaps {
                largest_page: PageSize::Size2M,
                ..full
            },
            PLAIN,
            1 << 30,
            1 << 21,
        ),
        (
            "coherent walks",
            UnitCaps {
                coherent: false,
                ..full
            },
            PLAIN,
            1,
            0,
        ),
        (
            "write-only mappings",
            UnitCaps {
                write_only: false,
                ..full
            },
            PLAIN,
            1,
            0,
        ),
        (
            "physical address bits",
            UnitCaps {
                phys_bits: 39,
                ..full
            },
            PLAIN,
            46,
            39,
        ),
        (
            "address bits",
            UnitCaps {
                iova_bits: 38,
                ..full
            },
            PLAIN,
            39,
            38,
        ),
    ];
    for (row, weak, config, needs, has) in rows {
        let mut machine = Machine::with_units(full, weak);
        let driver = machine.driver_with(NIC, config);
        let group = machine.take(FAR).claim_for_hypervisor();
        let (group, error) = refused(group.attach(&driver.domain));
        let AttachError::Incompatible { unit, unmet } = error else {
            panic!("{row}: {error}");
        };
        assert_eq!((unit, unmet.what), (group.unit(), row));
        assert_eq!((unmet.needed, unmet.found), (needs, has), "{row}");
        assert_eq!(machine.fake.bound(FAR), None, "{row}");

        // The other way round it works: what the weak unit can do, the full one can.
        if let Ok(weak) = Domain::paging_domain_alloc(&group, config) {
            let group = driver.group.detach().unwrap();
            assert!(group.attach(&weak).is_ok(), "{row}");
        }
    }
}

#[test]
fn a_domain_for_a_lesser_unit_is_built_within_its_limits() {
    let weak = UnitCaps {
        largest_page: PageSize::Size2M,
        coherent: false,
        write_only: false,
        iova_bits: 38,
        ..full_unit()
    };
    let mut machine = Machine::with_units(weak, full_unit());
    let config = DomainConfig {
        address_bits: 38,
        ..PLAIN
    };
    let driver = machine.driver_with(NIC, config);
    let geometry = driver.domain.geometry();
    assert_eq!(geometry.largest_leaf, level(2));
    assert!(!geometry.coherent);
    assert!(driver.domain.reserve(iovas(1 << 38, 1)).is_err());
    let before = machine.host().bytes_written_back();
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Write).unwrap();
    assert_eq!(range.granted(), Perms::ReadWrite);
    assert!(machine.host().bytes_written_back() > before);
    assert!(
        machine
            .fake
            .dma(NIC, Iova::new(0x4000), Access::Read)
            .is_ok()
    );
}

#[test]
fn a_group_reaches_memory_only_while_attached_and_sending() {
    let mut machine = Machine::new();
    let group = machine.take(DISK).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let range = domain.reserve(iovas(0x4000, 1)).unwrap();
    let _range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    let reach = || {
        machine
            .fake
            .dma(DISK, Iova::new(0x4000), Access::Read)
            .map(drop)
    };
    assert_eq!(reach(), Err(DmaFault::NotBusMaster));
    let group = group.attach(&domain).unwrap();
    assert_eq!(group.domain(), domain.uid());
    assert_eq!(
        reach(),
        Err(DmaFault::NotBusMaster),
        "attaching does not let it send"
    );
    assert_eq!(machine.host().bus_master(PORT), Some(false));
    group.enable_bus_mastering(DISK).unwrap();
    assert_eq!(
        machine.host().bus_master(PORT),
        Some(true),
        "the port forwards"
    );
    assert_eq!(reach(), Ok(()));
    group.disable_bus_mastering(DISK).unwrap();
    assert_eq!(reach(), Err(DmaFault::NotBusMaster));

    group.enable_bus_mastering(DISK).unwrap();
    assert_eq!(reach(), Ok(()));
    machine.fake.take_log(0);
    let group = group.detach().unwrap();
    let unbind = Logged::Unbind {
        requester: DISK,
        bus_master: Some(false),
    };
    assert_eq!(
        machine.fake.take_log(0),
        [unbind],
        "bus mastering goes first"
    );
    assert_eq!(reach(), Err(DmaFault::NotBusMaster));
    // Even if it sent: the unit has forgotten it.
    machine.host().leave_bus_mastering_on(DISK);
    assert_eq!(reach(), Err(DmaFault::NotBound));
    drop(group);
}

#[test]
fn bc05_xsa_302_a_group_moves_from_driver_to_guest_and_back_with_nothing_left() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    drop(
        range
            .map(machine.host().frames(1), Perms::ReadWrite)
            .unwrap(),
    );
    let at = Iova::new(0x4000);
    machine.fake.dma_write(NIC, at, 1).unwrap();
    let group = driver.group.detach().unwrap();
    let reset = group.release().reset_members(|_| Ok::<_, ()>(())).unwrap();
    let group = reset.all().unwrap().claimable().unwrap();
    let group = group.claim_for_guest(vm(1));
    let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
    let group = group.attach_for_guest(&domain, &isolated()).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    assert_eq!(machine.fake.dma_read(NIC, at), Err(DmaFault::NotMapped));
    assert_eq!(group.owner(), vm(1));
    let group = group.detach().unwrap().release();
    assert_eq!(group.last_owner(), vm(1));
    let reset = group.reset_members(|_| Ok::<_, ()>(())).unwrap();
    let group = reset.all().unwrap().claimable().unwrap();
    let group = group.claim_for_hypervisor();
    let group = group.attach(&driver.domain).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    assert_eq!(machine.fake.dma_read(NIC, at), Ok(1));
    assert_eq!(domain.destroy().unwrap().count(), 0);
}

#[test]
fn bus_mastering_is_for_members_that_take_it() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let group = driver.group.id();
    let stranger = AttachError::NotAMember { member: FAR, group };
    assert_eq!(driver.group.enable_bus_mastering(FAR), Err(stranger));
    assert_eq!(driver.group.disable_bus_mastering(FAR), Err(stranger));
    let disk = machine.take(DISK).claim_for_hypervisor();
    let disk = disk.attach(&driver.domain).unwrap();
    machine.host().refuse_bus_mastering(PORT);
    let expected = AttachError::NoBusMastering {
        function: PORT,
        command: 0,
    };
    assert_eq!(disk.enable_bus_mastering(DISK), Err(expected));
    assert_eq!(machine.host().bus_master(DISK), Some(false));
}

#[test]
fn what_a_driver_unmapped_before_it_attached_needs_no_flush_on_the_new_unit() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    let pending = range.unmap();
    let receipt = driver.domain.flush(hv_iommu::FlushSpan::Domain).unwrap();
    let far = machine.take(FAR).claim_for_hypervisor();
    let far: Group<Fake, hv_iommu::Attached<KernelPaging, Fake>> =
        far.attach(&driver.domain).unwrap();
    far.enable_bus_mastering(FAR).unwrap();
    let absent = machine.fake.dma(FAR, Iova::new(0x4000), Access::Read);
    assert_eq!(absent, Err(DmaFault::NotMapped));
    assert!(pending.redeem(&receipt).is_ok());
}
