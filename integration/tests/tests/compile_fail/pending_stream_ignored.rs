//! Unmapping a stream does not give its memory back.
//! Instead: `flush` what `unmap` gives.
#![deny(unused_must_use)]
use hv_iommu::{StreamMapping, ToDevice};
use hv_tests::fake::Fake;

fn mistake(mapping: StreamMapping<Fake, ToDevice>) {
    mapping.unmap();
}

fn main() {}
// Shows: bc02, T17.
