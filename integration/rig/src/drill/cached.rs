//! A device with a cache of memory at which no unit looks (CXL.cache): off until somebody gave their word, and afterwards.

use hv_iommu::{AtRest, AttachFailed, Config, Domain, DomainConfig, Iommu, TrustedDevice};

use crate::driver::Driver;
use crate::ledger::Tenant;
use crate::machine::{CxlCacheModel, Machine};
use crate::rig::Rig;
use crate::rule::{Rule, Violation};

/// The first device of a machine has one, and firmware left it on.
pub(crate) fn cached<B: Driver>(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(B::VENDOR, seed);
    let function = machine.functions.first_mut()?;
    (function.left_on, function.cxl_cache) = (true, Some(CxlCacheModel::Free));
    let rig = Rig::new(machine).ok()?;
    from_claim_to_claim::<B>(&rig);
    rig.judged()
}

/// Claims it for a driver, by nobody's word and by somebody's. `None` when that cannot go on.
fn from_claim_to_claim<B: Driver>(rig: &Rig) -> Option<()> {
    let backend = B::start(rig).ok()?;
    let functions = rig.functions();
    let device = functions.first()?.address;
    rig.watch();
    let (_iommu, groups) = Iommu::new(backend, &functions, Config::default()).ok()?;
    let mut groups = groups
        .into_iter()
        .filter_map(|group| group.claimable().ok());
    let group = groups.find(|group| group.members().contains(&device))?;
    let claimed = group.claim_for_hypervisor();
    let config = DomainConfig {
        address_bits: 31,
        ..DomainConfig::default()
    };
    let domain = Domain::paging_domain_alloc(&claimed, config).ok()?;
    let claimed = match claimed.attach(&domain) {
        Err(AttachFailed::Refused { group, .. }) => group,
        _ => {
            let what =
                "a device that reaches memory past its unit was attached, and nobody was asked";
            rig.broken(Rule::WrongAnswer, what);
            return None;
        }
    };
    let trusted = TrustedDevice::vouch_for(&claimed, "a drill");
    let claimed = claimed.let_cxl_cache(&trusted).ok()?;
    let (tenant, members) = (Tenant(1), claimed.members().to_vec());
    rig.attaching(&members, tenant);
    let group = claimed.attach(&domain).ok()?;
    rig.attached(&members, tenant);
    rig.cache(device, CxlCacheModel::Free);
    rig.idle(40);
    rig.detaching(&members, tenant);
    let claimed = group.detach().ok()?;
    rig.detached(&members);
    let _: AtRest<B> = claimed.release().without_reset("a drill");
    drop(domain.destroy().ok()?);
    rig.ended(tenant);
    Some(())
}
