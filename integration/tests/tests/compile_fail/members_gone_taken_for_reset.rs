//! A group of which members did not answer when it was reset is not at rest by that.
//! Instead: `all`, and for those that are gone `without_them` with the reason, or `try_again`.
use hv_core::PciAddress;
use hv_iommu::{AtRest, Group, NeedsReset};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, NeedsReset>) -> Option<AtRest<Fake>> {
    group.reset_members(|_| Ok::<_, PciAddress>(())).ok()
}

fn main() {}
// Shows: bc05.
