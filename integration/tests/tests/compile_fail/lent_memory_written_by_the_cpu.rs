//! While a device has a buffer, the CPU does not write it: the device would see half of that.
//! Instead: `StreamMapping::sync_for_cpu` for a turn, or `unmap` and `flush` to have it back.
use hv_iommu::{Bidirectional, StreamMapping};
use hv_tests::fake::Fake;

fn mistake(mapping: &mut StreamMapping<Fake, Bidirectional>) {
    let _ = mapping.write(0, &[1]);
}

fn main() {}
// Shows: bc17.
