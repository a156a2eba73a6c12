//! A device that is not translated reaches all memory, so somebody has to vouch for it.
//! Instead: `TrustedDevice::vouch_for(&group, "why")`, then `attach_untranslated`.
use hv_core::KernelPaging;
use hv_iommu::{Attached, Claimed, Domain, Group, Identity};
use hv_tests::fake::Fake;

fn attached(group: Group<Fake, Claimed<KernelPaging>>, domain: &Domain<KernelPaging, Fake, Identity>) {
    let _ = group.attach(domain);
}

fn moved(
    group: Group<Fake, Attached<KernelPaging, Fake>>,
    domain: &Domain<KernelPaging, Fake, Identity>,
) {
    let _ = group.replace_with_gap(domain);
}

fn main() {}
