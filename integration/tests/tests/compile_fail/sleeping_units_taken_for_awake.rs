//! Units that do not translate yet are the subsystem's to set up: it binds what firmware uses, then wakes them.
//! Instead: `Iommu::new_keeping(dormant, ..)`.
use hv_iommu::{Dormant, Keeping};

fn mistake<D: Dormant>(dormant: D) -> D::Backend {
    dormant.into_backend(Keeping(()))
}

fn another<D: Dormant>(dormant: D) -> D::Backend {
    dormant.into_backend()
}

fn main() {}
// Shows: bc12.
