//! A shape is let no more by the crate of a backend than by this one: an untranslated device is attached by name alone.
//! Instead: `TrustedDevice::vouch_for(&group, "why")`, then `attach_untranslated`.
use hv_core::{IovaRange, KernelPaging, PciAddress};
use hv_iommu::{
    Backend, Binding, Blocked, Confines, FaultEvent, FlushRequest, FlushTicket, HwDomainId, Identity,
    IdentityBackend, LeafNeeds, LetsThrough, ReservedRegion, UnitCaps, UnitError, UnitIndex,
};
use hv_tests::fake::FakeFormat;
use hv_tests::host::Host;
use std::process::abort;

struct Mine;

// SAFETY: nothing is ever called, since this does not compile.
unsafe impl Backend for Mine {
    type Platform = Host;
    type Format = FakeFormat;

    fn platform(&self) -> &Host {
        abort()
    }
    fn unit_count(&self) -> usize {
        abort()
    }
    fn unit_caps(&self, _: UnitIndex) -> Option<UnitCaps> {
        abort()
    }
    fn unit_of(&self, _: PciAddress) -> Option<UnitIndex> {
        abort()
    }
    fn reserved(&self) -> &[IovaRange] {
        abort()
    }
    fn reserved_for(&self, _: PciAddress) -> impl Iterator<Item = ReservedRegion> {
        std::iter::empty()
    }
    fn format(&self, _: &UnitCaps, _: LeafNeeds) -> FakeFormat {
        abort()
    }
    unsafe fn bind(
        &self,
        _: UnitIndex,
        _: PciAddress,
        _: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        abort()
    }
    fn unbind(&self, _: UnitIndex, _: PciAddress, _: HwDomainId) -> Result<FlushTicket, UnitError> {
        abort()
    }
    fn submit(&self, _: UnitIndex, _: FlushRequest) -> Result<FlushTicket, UnitError> {
        abort()
    }
    fn poll(&self, _: UnitIndex, _: FlushTicket) -> Result<bool, UnitError> {
        abort()
    }
    fn wedge(&self, _: UnitIndex) {
        abort()
    }
    fn is_wedged(&self, _: UnitIndex) -> bool {
        abort()
    }
    fn reset(&self, _: UnitIndex) -> Result<(), UnitError> {
        abort()
    }
    fn shut_down(&self, _: UnitIndex) -> Result<(), UnitError> {
        abort()
    }
    fn quiet(&self, _: UnitIndex, _: PciAddress) -> Result<(), UnitError> {
        abort()
    }
    fn reread(&self, _: UnitIndex, _: PciAddress) -> Result<(), UnitError> {
        abort()
    }
    fn take_fault(&self, _: UnitIndex) -> Option<FaultEvent> {
        abort()
    }
}

// SAFETY: as above.
unsafe impl IdentityBackend for Mine {
    fn passes_through(&self, _: UnitIndex) -> bool {
        abort()
    }
    unsafe fn bind_identity(
        &self,
        _: UnitIndex,
        _: PciAddress,
        _: HwDomainId,
    ) -> Result<Option<FlushTicket>, UnitError> {
        abort()
    }
}

impl Confines<KernelPaging, Mine> for Identity {}
impl LetsThrough<KernelPaging, Mine> for Blocked {}

fn main() {}
// Shows: bc05.
