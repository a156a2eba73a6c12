//! A domain id is leased once and given back once: given back twice, two domains would have it.
//! Instead: nothing; a domain holds its lease, and its end gives it back.
use hv_iommu::ids::{DomainIds, IdLease};

fn mistake(ids: &DomainIds, lease: IdLease) {
    ids.give_back(lease);
    ids.give_back(lease);
}

fn main() {}
// Shows: bc07.
