//! There are three directions, each with its permissions.
//! Instead: `ToDevice`, `FromDevice` or `Bidirectional`.
use hv_core::Perms;
use hv_iommu::Direction;

#[derive(Clone, Copy)]
struct Nowhere;

impl Direction for Nowhere {
    const PERMS: Perms = Perms::Read;
    const NAME: &'static str = "nowhere";
}

fn main() {}
