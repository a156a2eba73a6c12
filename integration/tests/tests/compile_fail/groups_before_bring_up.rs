//! Units that were only looked at give no groups: what firmware left in them is still live.
//! Instead: `Discovery::bring_up`, and `Iommu::new` with what it gives.
use hv_iommu::{Config, Iommu};
use hv_rig::Rig;
use hv_vtd::Discovery;

fn mistake(discovery: Discovery<Rig>) {
    let _ = Iommu::new(discovery, &[], Config::default());
}

fn main() {}
// Shows: bc12.
