//! Where a table starts and how deep it is is one value, which the table gives.
//! Instead: `Domain::paging_domain_alloc(&group, ..)` builds what the group's unit can walk, and `Group::attach`
//! tells the unit of it.
use hv_core::PhysAddr;
use hv_iommu::{Binding, HwDomainId, Level, RootPointer};

fn mistake(page: PhysAddr, level: Level, domain: HwDomainId) -> Binding {
    Binding {
        root: RootPointer { page, level },
        domain,
        leaves: Default::default(),
    }
}

fn main() {}
// Shows: bc08.
