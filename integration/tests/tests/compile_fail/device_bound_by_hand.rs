//! Binding a device to a table is what lets it reach memory; a backend's `bind` is unsafe.
//! Instead: `Group::attach`, which keeps what `bind` demands.
use hv_core::PciAddress;
use hv_iommu::{Backend, Binding, UnitIndex};
use hv_tests::fake::Fake;

fn mistake(backend: &Fake, unit: UnitIndex, device: PciAddress, binding: Binding) {
    let _ = backend.bind(unit, device, binding);
}

fn main() {}
// Shows: bc04, bc05.
