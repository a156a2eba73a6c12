//! PASID 0 is what requests without a PASID have; they follow the group's own domain.
//! Instead: `Pasid::new(number)`, which is `None` for 0; for the function itself, `attach`.
use hv_core::{KernelPaging, Pasid, PciAddress};
use hv_iommu::{Domain, Paging, PasidGroup};
use hv_tests::fake::Fake;

fn mistake(
    group: &PasidGroup<KernelPaging, Fake, Paging>,
    member: PciAddress,
    domain: &Domain<KernelPaging, Fake>,
) {
    let _ = group.attach_pasid(member, 0, domain);
    let _ = Pasid(core::num::NonZeroU32::MIN);
}

fn main() {}
// Shows: T4.
