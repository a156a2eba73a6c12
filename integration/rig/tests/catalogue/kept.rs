//! Class 6 where firmware's devices run on while translation goes on.

use hv_core::platform::PciConfig;
use hv_core::{Access, Iova, PageSize, Perms, PhysAddr, PhysRange};
use hv_iommu::{Config, DomainConfig, FirmwareKept, Iommu, KeepError, Kept, KeptSetup, UnitError};
use hv_rig::{Driver, Machine, Outcome, Rig, Tenant, UnitModel};

use super::regions::{end, machine, ranges, reach};
use super::stand::{Backend, Retires, Stand, WAIT, pci};

/// Where nothing is firmware's.
const ASTRAY: Iova = Iova::new(0x7000_0000);

fn waiting() -> Config {
    Config {
        wait: WAIT,
        ..Config::default()
    }
}

const WIDE: DomainConfig = DomainConfig {
    address_bits: 34,
    largest_page: PageSize::Size1G,
};

/// A machine before its bring-up, with firmware's devices at work. They are of the tenant from now on, and judged.
fn at_work(machine: Machine, tenant: Tenant) -> Rig {
    let rig = Rig::new(machine).unwrap();
    for function in rig.functions() {
        rig.config_write32(function.address, 4, 1 << 2);
    }
    for range in ranges() {
        let at = PhysAddr::new(range.start().as_u64());
        let memory = PhysRange::new(at, range.pages()).unwrap();
        rig.mapping(tenant, range, memory, Perms::ReadWrite);
        rig.mapped(tenant, range, Perms::ReadWrite);
    }
    rig.keep_running(&[pci(0, 2, 0), pci(0, 2, 1)], tenant);
    rig.idle(100);
    rig
}

/// Brings it up with the devices running that firmware uses.
fn keeping(rig: Rig, tenant: Tenant) -> (Stand, Vec<Kept<Backend>>) {
    keeping_after(rig, tenant, |_| ())
}

/// The same after something that happens while units go by what firmware left still, but for their queues.
fn keeping_after(
    rig: Rig,
    tenant: Tenant,
    meanwhile: impl FnOnce(&Rig),
) -> (Stand, Vec<Kept<Backend>>) {
    let seed = rig.machine().seed;
    let policy = FirmwareKept::keep_pinned_devices_running("a test").accepting_gap();
    let dormant = Backend::start_keeping(&rig, &policy);
    let dormant = dormant.unwrap_or_else(|error| panic!("seed {seed:#x}: {error}"));
    rig.idle(100);
    meanwhile(&rig);
    let functions = rig.functions();
    let made = Iommu::new_keeping(dormant, &functions, waiting(), WIDE, &policy);
    let KeptSetup {
        iommu,
        groups,
        kept,
    } = made.unwrap_or_else(|error| panic!("seed {seed:#x}: {error}"));
    rig.watch();
    let groups = groups
        .into_iter()
        .filter_map(|group| group.claimable().ok());
    let stand = Stand {
        retires: Retires(rig.clone()),
        rig,
        iommu,
        groups: groups.collect(),
        pinned: Vec::new(),
        tenants: std::cell::Cell::new(tenant.0),
    };
    (stand, kept)
}

#[test]
fn bc06_xsa_400_firmwares_device_runs_on_while_translation_goes_on() {
    let (mut without, mut with) = (0, 0);
    for seed in 0..40 {
        let tenant = Tenant(1);
        let (stand, kept) = keeping(at_work(machine(seed), tenant), tenant);
        stand.check();
        // The one moment that may be: firmware's tables are off, and others not on yet.
        let gap = stand.rig.gap();
        assert!(gap.nanos < 100_000_000, "seed {seed:#x}: {gap:?}");
        match gap.units {
            0 => without += 1,
            _ => with += 1,
        }
        let [Kept { group, domain }] = <[_; 1]>::try_from(kept).ok().unwrap();
        // Nobody let it send: it never stopped.
        for member in group.members() {
            let command = stand.rig.config_read32(*member, 4);
            assert_eq!(
                command & 1 << 2,
                1 << 2,
                "seed {seed:#x}: {member} was stopped"
            );
            let at = ranges()[0].start();
            let outcome = stand.rig.access(*member, at, Access::Write);
            let to = at.as_u64();
            assert_eq!(outcome, Outcome::Reached { at: to }, "seed {seed:#x}");
        }
        reach(&stand, &group);
        let others = stand.groups.iter().flat_map(|group| group.members());
        for other in others {
            let command = stand.rig.config_read32(*other, 4);
            assert_eq!(command & 1 << 2, 0, "seed {seed:#x}: {other} runs on");
        }
        let members = group.members().to_vec();
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        end(&stand, domain, tenant);
        stand.check();
    }
    assert!(without > 10, "{without} of {}", without + with);
    assert_eq!(with > 5, super::LEFT_ON, "{with} of {}", without + with);
}

/// A unit that firmware left translating keeps nobody running without a gap: who does not put up with that is told, and
/// nothing was touched.
#[test]
fn bc06_xsa_400_a_gap_is_for_who_accepts_it() {
    let mut refused = 0;
    for seed in 0..40 {
        let tenant = Tenant(1);
        let rig = at_work(machine(seed), tenant);
        let policy = FirmwareKept::keep_pinned_devices_running("a test");
        let found = Backend::start_keeping(&rig, &policy).err();
        if let Some(error) = found {
            assert!(error.contains("accepting_gap"), "seed {seed:#x}: {error}");
            refused += 1;
            // It goes on by firmware's tables.
            let at = ranges()[0].start();
            let outcome = rig.access(pci(0, 2, 0), at, Access::Write);
            let to = at.as_u64();
            assert_eq!(outcome, Outcome::Reached { at: to }, "seed {seed:#x}");
        }
        rig.idle(100);
        assert_eq!(rig.gap(), hv_rig::Gap::default());
        let verdict = rig.verdict();
        assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
        rig.retire();
    }
    assert_eq!(refused > 5, super::LEFT_ON, "{refused}");
}

/// A device goes astray while its unit goes by firmware's tables. The queue that records that is ours already, but nobody had
/// the device: it is told of no one, and counts against no one.
#[test]
fn bc19_what_was_recorded_by_firmwares_tables_is_told_of_nobody() {
    let mut refused = 0;
    for seed in 0..40 {
        let tenant = Tenant(1);
        let mut machine = machine(seed);
        machine.temper.background = false;
        let (stand, kept) = keeping_after(at_work(machine, tenant), tenant, |rig| {
            if !super::LEFT_ON || !(0..rig.machine().units.len()).all(|unit| rig.translates(unit)) {
                return;
            }
            // More than fit: that some were lost is nobody's either.
            for page in 0..600 {
                let at = ASTRAY.checked_add(page << 12).unwrap();
                let outcome = rig.access(pci(0, 2, 0), at, Access::Write);
                assert!(matches!(outcome, Outcome::Faulted { .. }), "{outcome}");
                refused += 1;
            }
        });
        let mut told = Vec::new();
        stand.iommu.take_faults(|notice| told.push(notice));
        assert_eq!(told, [], "seed {seed:#x}");
        let [Kept { group, domain }] = <[_; 1]>::try_from(kept).ok().unwrap();
        // What it does from now on is its owner's.
        let wild = stand.rig.access(pci(0, 2, 0), ASTRAY, Access::Write);
        assert!(!matches!(wild, Outcome::Reached { .. }), "{wild}");
        let members = group.members().to_vec();
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        end(&stand, domain, tenant);
        stand.check();
    }
    assert_eq!(refused > 0, super::LEFT_ON);
}

/// Translation goes on everywhere or the caller is told of it. That one unit does not answer keeps no other from
/// translating: what is behind those would go on by nothing, or by what firmware left.
#[test]
fn bc13_a_unit_that_does_not_wake_keeps_no_other_asleep() {
    for seed in 0..20 {
        let tenant = Tenant(1);
        let mut machine = machine(seed);
        // Those that firmware uses are behind the last unit.
        let one = machine.units[0].clone();
        machine.units = vec![
            UnitModel {
                scopes: Some(vec![pci(0, 1, 0)]),
                ..one.clone()
            },
            UnitModel {
                scopes: None,
                ..one
            },
        ];
        machine
            .functions
            .retain(|function| function.address.segment().0 == 0);
        let rig = at_work(machine, tenant);
        let policy = FirmwareKept::keep_pinned_devices_running("a test").accepting_gap();
        let dormant = Backend::start_keeping(&rig, &policy).unwrap();
        rig.idle(100);
        // It takes nothing any more.
        rig.lose_unit(0);
        let functions = rig.functions();
        let made = Iommu::new_keeping(dormant, &functions, waiting(), WIDE, &policy);
        let error = made.err().unwrap();
        assert!(
            matches!(error, KeepError::Wake(UnitError::Timeout { unit, .. } | UnitError::Hardware { unit, .. }) if unit.index() == 0),
            "seed {seed:#x}: {error}"
        );
        assert!(rig.translates(1), "seed {seed:#x}: the other stays asleep");
        rig.retire();
    }
}
