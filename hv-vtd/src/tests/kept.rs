//! Devices that firmware goes on using: bound before translation goes on.

use super::bring_up::{Step, steps};
use super::*;
use crate::dmar::Rmrr;
use hv_core::Iova;
use hv_iommu::{Config, DomainConfig, FirmwareKept, Iommu, KeptSetup};

#[test]
fn bc06_xsa_400_a_device_that_firmware_uses_is_bound_before_translation_goes_on() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    let (device, bridge, other) = (at(1, 0, 0), at(0, 1, 0), at(0, 3, 0));
    machine.add_bridge(bridge, 1, 1);
    machine.add_endpoint(device);
    machine.add_endpoint(other);
    let mut dmar = own_segments(&machine);
    let region = PhysRange::new(PhysAddr::new(0x3e2e_0000), PageCount::new(2).unwrap()).unwrap();
    dmar.regions.push(Rmrr {
        place: Place::record(RecordKind::Rmrr, 120),
        segment: Segment(0),
        region,
        scopes: vec![scope(ScopeKind::Endpoint, 0, &[(1, 0), (0, 0)])],
    });
    let functions = [port(bridge, 1, 1), endpoint(device), endpoint(other)];
    let policy = FirmwareKept::keep_pinned_devices_running("a test");
    let strict = CoveragePolicy::Strict;
    let found = Vtd::discover_keeping(machine.clone(), &dmar, &functions, strict, &policy);
    let dormant = found.unwrap().bring_up().unwrap();
    assert!(machine.masters(device) && machine.masters(bridge));
    assert!(!machine.masters(other));
    let translate = |log: &[Event]| {
        let is = |step: &&(usize, Step)| step.1 == Step::Translate;
        steps(log).iter().filter(is).count()
    };
    assert_eq!(translate(&machine.take_log()), 0, "asleep");
    let (config, domains) = (Config::default(), DomainConfig::default());
    let made = Iommu::new_keeping(dormant, &functions, config, domains, &policy);
    let KeptSetup { kept, groups, .. } = made.unwrap();
    let log = machine.take_log();
    let is_last = |event: &Event| matches!(event, Event::Write32 { offset: 0x18, value, .. } if value & 1 << 31 != 0);
    let on = log.iter().position(is_last).unwrap();
    // Nothing of the tables is written after that: the entry was there.
    let stores = |event: &&Event| matches!(event, Event::WriteBack { .. });
    assert!(log[..on].iter().any(|event| stores(&event)));
    assert_eq!(log[on..].iter().filter(stores).count(), 0);
    assert!(machine.masters(device), "it never stood still");
    assert_eq!((kept.len(), groups.len()), (1, 1));
    let start = Iova::new(region.start().as_u64());
    let found = kept[0].domain.translate(start).unwrap();
    assert_eq!(found.to, region.start());
}
