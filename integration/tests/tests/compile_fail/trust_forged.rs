//! Trust is given by name, for one group, and is in the log afterwards.
//! Instead: `TrustedDevice::vouch_for(&group, "why it is acceptable here")`.
use hv_iommu::TrustedDevice;
use hv_tests::fake::Fake;

fn mistake() -> TrustedDevice<Fake> {
    TrustedDevice {
        reason: "it will be fine",
    }
}

fn main() {}
