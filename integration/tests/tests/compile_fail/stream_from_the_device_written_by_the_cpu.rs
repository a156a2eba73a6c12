//! The device writes a buffer that goes from the device.
//! Instead: map it `Bidirectional`, or write into the run that comes back.
use hv_iommu::{FromDevice, StreamOnCpu};
use hv_tests::fake::Fake;

fn mistake(mut turn: StreamOnCpu<Fake, FromDevice>) {
    let _ = turn.write(0, &[1]);
}

fn main() {}
