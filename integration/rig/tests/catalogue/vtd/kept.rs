//! Class 6 where firmware's devices run on while translation goes on.

use hv_core::platform::PciConfig;
use hv_core::{Access, Perms, PhysAddr, PhysRange};
use hv_iommu::{Config, DomainConfig, FirmwareKept, Iommu, Kept, KeptSetup};
use hv_rig::{Machine, Outcome, Rig, Tenant};
use hv_vtd::{CoveragePolicy, KeepingDiscovery, Vtd, dmar};

use super::regions::{end, machine, ranges, reach};
use super::stand::{Backend, Retires, Stand, WAIT};

/// Brings this machine up with the devices running that firmware uses. They are attached to domains of the tenant,
/// which the ledger knows.
fn keeping(machine: Machine, tenant: Tenant) -> (Stand, Vec<Kept<Backend>>) {
    let rig = Rig::new(machine).unwrap();
    let table = dmar::parse(&rig.dmar().unwrap()).unwrap();
    let functions = rig.functions();
    for function in &functions {
        rig.config_write32(function.address, 4, 1 << 2);
    }
    let policy = FirmwareKept::keep_pinned_devices_running("a test");
    let strict = CoveragePolicy::Strict;
    let found = Vtd::discover_keeping(rig.clone(), &table, &functions, strict, &policy);
    let dormant = found.and_then(KeepingDiscovery::bring_up).unwrap();
    let config = Config {
        wait: WAIT,
        ..Config::default()
    };
    let wide = DomainConfig {
        address_bits: 34,
        ..DomainConfig::default()
    };
    let made = Iommu::new_keeping(dormant, &functions, config, wide, &policy);
    let KeptSetup {
        iommu,
        groups,
        kept,
    } = made.unwrap();
    for kept in &kept {
        rig.attached(kept.group.members(), tenant);
    }
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
    for seed in 0..30 {
        let tenant = Tenant(1);
        let (stand, kept) = keeping(machine(seed), tenant);
        let [Kept { group, domain }] = <[_; 1]>::try_from(kept).ok().unwrap();
        for range in ranges() {
            let at = PhysAddr::new(range.start().as_u64());
            let memory = PhysRange::new(at, range.pages()).unwrap();
            stand.rig.mapping(tenant, range, memory, Perms::ReadWrite);
            stand.rig.mapped(tenant, range, Perms::ReadWrite);
        }
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
}
