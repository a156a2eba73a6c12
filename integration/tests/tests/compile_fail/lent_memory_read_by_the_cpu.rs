//! While a device has a buffer, the CPU has no view of it.
//! Instead: `StreamMapping::sync_for_cpu` for a turn, or `unmap` and `flush` to have it back.
use hv_iommu::{FromDevice, StreamMapping};
use hv_tests::fake::Fake;

fn mistake(mapping: StreamMapping<Fake, FromDevice>, out: &mut [u8]) {
    let _ = mapping.read(0, out);
}

fn main() {}
// Shows: bc17.
