//! A device that firmware goes on using and that runs on while translation goes on: at no moment is it refused, but in the
//! one that a unit takes which firmware left translating.

use hv_core::platform::FrameSource;
use hv_core::{Iova, IovaRange, PageCount, Perms, PhysAddr, PhysRange};
use hv_iommu::{Config, DomainConfig, FirmwareKept, Iommu, Kept, KeptSetup};

use super::REGION;
use crate::driver::Driver;
use crate::ledger::Tenant;
use crate::machine::{Machine, RegionModel, UnitModel};
use crate::rig::Rig;
use crate::rule::Violation;

/// How much happens between two parts of bring-up.
const STEPS: u32 = 60;

/// The first device of a machine is kept running.
pub(crate) fn kept<B: Driver>(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(B::VENDOR, seed);
    machine.units.iter_mut().for_each(UnitModel::widen);
    let function = machine.functions.first_mut()?;
    function.left_on = true;
    let device = function.address;
    let memory = PhysRange::new(PhysAddr::new(REGION), PageCount::new(3)?).ok()?;
    let functions = vec![device];
    machine.regions = vec![RegionModel { memory, functions }];
    // So that it is asked at every moment.
    machine.temper.background = true;
    let rig = Rig::new(machine).ok()?;
    let (tenant, range) = (
        Tenant(1),
        IovaRange::new(Iova::new(REGION), memory.pages()).ok()?,
    );
    rig.mapping(tenant, range, memory, Perms::ReadWrite);
    rig.mapped(tenant, range, Perms::ReadWrite);
    rig.keep_running(&[device], tenant);
    rig.idle(STEPS);
    bring_up::<B>(&rig, tenant, range);
    rig.judged()
}

/// Brings it up, and ends the domain. `None` when that cannot go on.
fn bring_up<B: Driver>(rig: &Rig, tenant: Tenant, range: IovaRange) -> Option<()> {
    let policy = FirmwareKept::keep_pinned_devices_running("a drill").accepting_gap();
    let asleep = B::start_keeping(rig, &policy).ok()?;
    rig.idle(STEPS);
    let config = DomainConfig {
        address_bits: 34,
        ..DomainConfig::default()
    };
    let functions = rig.functions();
    let made = Iommu::new_keeping(asleep, &functions, Config::default(), config, &policy);
    let KeptSetup { iommu, kept, .. } = made.ok()?;
    rig.watch();
    rig.idle(STEPS);
    let [Kept { group, domain }] = <[_; 1]>::try_from(kept).ok()?;
    let members = group.members().to_vec();
    rig.detaching(&members, tenant);
    drop(group.detach().ok()?);
    rig.detached(&members);
    rig.unmapping(tenant, range);
    let teardown = domain.destroy().ok()?;
    rig.ended(tenant);
    teardown.for_each(|run| rig.free_frames(run));
    drop(iommu);
    Some(())
}
