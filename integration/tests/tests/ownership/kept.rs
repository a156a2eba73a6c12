//! Devices that firmware goes on using while the subsystem comes up: they never stand still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hv_core::{Access, Iova, IovaRange, OwnerId, PageSize, PhysAddr};
use hv_iommu::{
    ClaimError, Config, DomainConfig, FirmwareKept, FunctionKind, GroupTable, Iommu, KeepError,
    Kept, KeptSetup, PciFunction, RescanError, ReservedKind, ReservedRegion, Whereabouts,
};
use hv_tests::fake::{Asleep, DmaFault, Fake, FakeConfig};
use hv_tests::host::{Host, Time};

use super::machine::{DISK, FAR, LOST, NIC, end_domain, full_unit, switch_fault_on};

const WIDE: DomainConfig = DomainConfig {
    address_bits: 48,
    largest_page: PageSize::Size1G,
};

fn functions() -> [PciFunction; 4] {
    [NIC, DISK, FAR, LOST].map(|at| PciFunction::new(at, FunctionKind::Endpoint))
}

/// A machine whose firmware uses a network card, and left every device sending. One more that it uses is behind no unit.
fn machine() -> (Fake, IovaRange) {
    let present = functions().map(|function| function.address);
    let time = Time::PerLook(Duration::from_micros(1));
    let host = Host::new(1024, &present, time);
    for function in present {
        host.leave_bus_mastering_on(function);
    }
    let memory = host.frames(3).into_range();
    host.set_aside(memory);
    let start = Iova::new(memory.start().as_u64());
    let range = IovaRange::new(start, memory.pages()).unwrap();
    let kind = ReservedKind::Pinned;
    let region = ReservedRegion { range, kind };
    let config = FakeConfig {
        units: vec![full_unit(), full_unit()],
        coverage: vec![(0, 0x3f, 0), (0x40, 0x7f, 1)],
        reserved: Vec::new(),
        regions: vec![(NIC, region), (LOST, region)],
    };
    (Fake::new(host, config), range)
}

fn set_up(fake: &Fake) -> Result<KeptSetup<Fake>, KeepError> {
    switch_fault_on();
    let wait = Duration::from_millis(1);
    let config = Config {
        wait,
        ..Config::default()
    };
    let policy = FirmwareKept::keep_pinned_devices_running("a test");
    let asleep = Asleep::new(fake.clone());
    Iommu::new_keeping(asleep, &functions(), config, WIDE, &policy)
}

#[test]
fn bc06_xsa_400_a_device_that_firmware_uses_never_stands_still_while_translation_goes_on() {
    let (fake, region) = machine();
    let seen = Arc::new(AtomicU64::new(0));
    let (device, count) = (fake.clone(), seen.clone());
    fake.host().set_hook(Some(Arc::new(move |moment| {
        let to = device.dma(NIC, region.start(), Access::Write);
        let same = PhysAddr::new(region.start().as_u64());
        assert_eq!(to, Ok(same), "{moment:?}");
        // ORDERING: Relaxed, a count for this thread.
        count.fetch_add(1, Ordering::Relaxed);
    })));
    let KeptSetup {
        iommu,
        groups,
        kept,
    } = set_up(&fake).unwrap();
    fake.host().set_hook(None);
    // ORDERING: Relaxed, as above.
    assert!(seen.load(Ordering::Relaxed) > 3, "it was asked");
    let [Kept { group, domain }] = <[_; 1]>::try_from(kept).ok().unwrap();
    assert_eq!(group.members(), [NIC]);
    assert_eq!(fake.host().bus_master(NIC), Some(true));
    for page in 0..region.pages().get() {
        let at = Iova::new(region.start().as_u64() + (page << 12));
        assert_eq!(
            fake.dma(NIC, at, Access::Write),
            Ok(PhysAddr::new(at.as_u64()))
        );
    }
    let outside = Iova::new(region.last().as_u64() + 1);
    assert_eq!(
        fake.dma(NIC, outside, Access::Read),
        Err(DmaFault::NotMapped)
    );
    // The others stand still, also the one that no unit would hold. Their table knows who has this one.
    assert_eq!(groups.len(), 2);
    let table = GroupTable::new(groups).unwrap();
    assert_eq!(table.find(NIC), None);
    table.note_held(&group).unwrap();
    let (id, holder) = (group.id(), OwnerId::Hypervisor);
    let held = Whereabouts::Held { group: id, holder };
    assert_eq!(table.find(NIC), Some(held));
    let refused = table.claim_for_hypervisor(id).err();
    assert_eq!(refused, Some(ClaimError::Held { group: id, holder }));
    // Not a group of another machine's.
    let (other, _) = machine();
    let mut others = set_up(&other).unwrap();
    let other = others.kept.pop().unwrap();
    let refused = table.note_held(&other.group).err();
    assert_eq!(refused, Some(RescanError::OtherSystem(other.group.id())));
    for other in [DISK, FAR, LOST] {
        assert_eq!(fake.host().bus_master(other), Some(false), "{other}");
    }
    // From here on it is a group as any other that the hypervisor holds.
    let claimed = group.detach().unwrap();
    assert_eq!(claimed.owner(), ());
    assert_eq!(fake.host().bus_master(NIC), Some(false));
    let rest = claimed.release().without_reset("a test");
    assert!(table.put_back(rest).is_ok(), "its place is there");
    assert_eq!(table.find(NIC), Some(Whereabouts::AtRest(id)));
    assert!(table.claim_for_hypervisor(id).is_ok());
    assert_eq!(end_domain(domain, fake.host()), 0);
    assert_eq!(iommu.domains_in_use(), 0);
}

#[test]
fn bc06_xsa_460_a_set_up_that_fails_leaves_firmwares_device_as_it_was() {
    let mut failing = 0;
    loop {
        let (fake, region) = machine();
        fake.host().fail_allocation_after(Some(failing));
        let made = set_up(&fake);
        fake.host().fail_allocation_after(None);
        if made.is_ok() {
            break;
        }
        assert!(
            matches!(made.err(), Some(KeepError::Domain { .. })),
            "{failing}"
        );
        assert_eq!(fake.host().bus_master(NIC), Some(true));
        let to = fake.dma(NIC, region.start(), Access::Write);
        assert_eq!(to, Ok(PhysAddr::new(region.start().as_u64())));
        failing += 1;
    }
    assert!(failing > 2, "{failing}");
    let (fake, _) = machine();
    let wider = DomainConfig {
        address_bits: 57,
        ..WIDE
    };
    let policy = FirmwareKept::keep_pinned_devices_running("a test");
    let refused = Iommu::new_keeping(
        Asleep::new(fake),
        &functions(),
        Config::default(),
        wider,
        &policy,
    );
    let error = refused.err().unwrap();
    assert!(
        error.to_string().contains("cannot be kept running"),
        "{error}"
    );
}
