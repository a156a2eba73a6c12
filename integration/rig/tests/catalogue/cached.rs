//! Functions with caches of memory at which no unit looks (CXL.cache): nobody has them without somebody's word.

use std::time::Duration;

use hv_core::{Access, Iova, KernelPaging, Owner, PciAddress, VmId};
use hv_iommu::{
    AttachError, AttachFailed, Attached, Claimed, Domain, FaultBudget, FaultNotice, FlushSpan,
    Group, InterruptsIsolated, TrustedDevice,
};
use hv_rig::{CxlCacheModel, Driver, Machine, Rig};

use super::stand::{BAD, Backend, REMEMBERS, Stand, drawn, on_machines, pci, small};

const DEVICE: PciAddress = pci(0, 2, 0);
const VOUCHED: &str = "the rig's own";
const REACHES: AttachError = AttachError::ReachesPastUnit { function: DEVICE };

/// Firmware left its cache on.
fn with_cache(machine: &mut Machine, model: CxlCacheModel) {
    let mut functions = machine.functions.iter_mut();
    let one = functions.find(|function| function.address == DEVICE);
    let one = one.unwrap();
    (one.cxl_cache, one.left_on) = (Some(model), true);
}

/// The group that was not attached, and why.
fn refused<O: Owner, T>(
    attached: Result<T, AttachFailed<O, Backend>>,
) -> (Group<Backend, Claimed<O>>, AttachError) {
    match attached.err().unwrap() {
        AttachFailed::Refused { group, error } => (group, error),
        AttachFailed::Wedged { group } => panic!("{}", group.error()),
    }
}

/// Claimed, by the word of somebody, attached, and its cache is on.
fn cached(
    stand: &Stand,
    claimed: Group<Backend, Claimed<KernelPaging>>,
    domain: &Domain<KernelPaging, Backend>,
) -> Group<Backend, Attached<KernelPaging, Backend>> {
    let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
    let claimed = claimed.let_cxl_cache(&trusted).unwrap();
    let group = stand.attach(claimed, domain, stand.tenant());
    stand.rig.cache(DEVICE, CxlCacheModel::Free);
    assert!(stand.rig.caches(DEVICE));
    group
}

#[test]
fn bc15_a_function_past_its_unit_goes_to_no_guest_and_to_a_driver_by_word_alone() {
    on_machines(
        12,
        |machine| with_cache(machine, CxlCacheModel::Free),
        |stand| {
            assert!(!stand.rig.caches(DEVICE), "as firmware left it");
            let group = stand.take(DEVICE).claim_for_guest(VmId::new(1).unwrap());
            let domain = Domain::user_domain_alloc(&group, small()).unwrap();
            let isolated = InterruptsIsolated::override_unsafe_interrupts("a test");
            let (group, error) = refused(group.attach_for_guest(&domain, &isolated));
            assert_eq!(error, REACHES);
            drop(domain.destroy().unwrap());
            let again = |group: hv_iommu::AtRest<Backend>| group.claimable().unwrap();
            let group = again(group.release().without_reset(REMEMBERS));

            let claimed = group.claim_for_hypervisor();
            let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
            // Whoever had it last may have turned it on, and locked it.
            stand.rig.cache(DEVICE, CxlCacheModel::Free);
            let (claimed, error) = refused(claimed.attach(&domain));
            assert_eq!(error, REACHES);
            assert!(error.to_string().contains("let_cxl_cache"), "{error}");
            assert!(!stand.rig.caches(DEVICE), "it was left on");
            stand.rig.cache(DEVICE, CxlCacheModel::Locked);
            let (claimed, error) = refused(claimed.attach(&domain));
            let keeps = matches!(error, AttachError::KeepsCxlCache { function, control } if function == DEVICE && control & 1 != 0);
            assert!(keeps, "{error}");
            stand.rig.plug(DEVICE, false);
            stand.rig.plug(DEVICE, true);

            // A word for another claim, and one for this.
            let other = stand.take(pci(0, 1, 0)).claim_for_hypervisor();
            let trusted = TrustedDevice::vouch_for(&other, VOUCHED);
            let (claimed, error) = refused(claimed.let_cxl_cache(&trusted));
            assert!(
                matches!(error, AttachError::NotVouchedFor { .. }),
                "{error}"
            );
            let group = cached(stand, claimed, &domain);
            let (members, tenant) = (
                group.members().to_vec(),
                hv_rig::Tenant(stand.tenants.get()),
            );
            stand.rig.detaching(&members, tenant);
            let claimed = group.detach().unwrap();
            stand.rig.detached(&members);
            assert!(!stand.rig.caches(DEVICE), "it goes on after its detach");
            let group = again(claimed.release().without_reset(REMEMBERS));
            let (_, error) = refused(group.claim_for_hypervisor().attach(&domain));
            assert_eq!(error, REACHES, "the word was for one claim");
            drop(domain.destroy().unwrap());
        },
    );
}

/// For its faults, and with its unit.
#[test]
fn bc15_a_function_past_its_unit_is_cut_off_with_its_cache() {
    for (seed, by_fault) in (0..12).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut machine = drawn(seed);
        machine.temper = BAD;
        with_cache(&mut machine, CxlCacheModel::Free);
        let rig = Rig::new(machine).unwrap();
        let backend = Backend::start(&rig);
        let none = FaultBudget {
            faults: 0,
            within: Duration::from_secs(3600),
        };
        let mut stand = Stand::with_budget(rig, backend, none);
        let claimed = stand.take(DEVICE).claim_for_hypervisor();
        let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let group = cached(&stand, claimed, &domain);
        if by_fault {
            let mut told = false;
            for _ in 0..100 {
                stand.rig.access(DEVICE, Iova::new(0x70_0000), Access::Read);
                stand
                    .iommu
                    .take_faults(|notice| told |= matches!(notice, FaultNotice::CutOff(_)));
            }
            assert!(told, "seed {seed:#x}");
        } else {
            stand.rig.fail_queue(group.unit().index());
            assert!(domain.flush(FlushSpan::Domain).is_err());
        }
        assert!(!stand.rig.caches(DEVICE), "seed {seed:#x}: {by_fault}");
        stand.check();
    }
}

#[test]
fn bc15_a_machine_is_refused_whose_firmware_has_locked_such_a_cache() {
    for seed in 0..8 {
        let mut machine = drawn(seed);
        with_cache(&mut machine, CxlCacheModel::Locked);
        let rig = Rig::new(machine).unwrap();
        let error = Backend::start(&rig).err().unwrap();
        let named = error.contains("CXL.cache") && error.contains(&DEVICE.to_string());
        assert!(named, "{error}");
        assert!(rig.verdict().is_ok());
        rig.retire();
    }
}
