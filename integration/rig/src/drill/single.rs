//! What most drills begin and end with: one device in a domain of its own, whose driver maps, unmaps and takes it back.

use hv_core::platform::FrameSource;
use hv_core::{IovaRange, KernelPaging, PageSize, PciAddress, Perms};
use hv_iommu::{Attached, Domain, DomainConfig, Group, Iommu};

use crate::driver::Driver;
use crate::ledger::Tenant;
use crate::life::bring_up;
use crate::rig::Rig;

/// A device in a domain of its own.
pub(crate) struct Single<B: Driver> {
    pub(crate) rig: Rig,
    pub(crate) iommu: Iommu<B>,
    pub(crate) device: PciAddress,
    pub(crate) tenant: Tenant,
    pub(crate) domain: Domain<KernelPaging, B>,
    /// The device's group, unless a drill has it.
    pub(crate) group: Option<Group<B, Attached<KernelPaging, B>>>,
}

impl<B: Driver> Single<B> {
    /// Brings the machine up, and attaches the first device that is alone in its group to a domain of so many address bits.
    /// `None` when that cannot go on.
    pub(crate) fn new(rig: &Rig, address_bits: u8) -> Option<Self> {
        let (iommu, groups) = bring_up::<B>(rig).ok()?;
        let mut groups = groups.into_iter();
        let group = groups.find(|group| group.members().len() == 1)?;
        let group = group.claim_for_hypervisor();
        let device = *group.members().first()?;
        let config = DomainConfig {
            address_bits,
            ..DomainConfig::default()
        };
        let domain = Domain::paging_domain_alloc(&group, config).ok()?;
        let tenant = Tenant(1);
        rig.attaching(&[device], tenant);
        let group = group.attach(&domain).ok()?;
        rig.attached(&[device], tenant);
        group.enable_bus_mastering(device).ok()?;
        Some(Self {
            rig: rig.clone(),
            iommu,
            device,
            tenant,
            domain,
            group: Some(group),
        })
    }

    /// Maps fresh frames, aligned like this, has `meanwhile` done, and takes them back.
    pub(crate) fn with_pages(
        &self,
        range: IovaRange,
        align: PageSize,
        meanwhile: impl FnOnce(),
    ) -> Option<()> {
        let (rig, tenant) = (&self.rig, self.tenant);
        let free = self.domain.reserve(range).ok()?;
        let frames = rig.alloc_frames(range.pages(), align).ok()?;
        rig.mapping(tenant, range, frames.range(), Perms::ReadWrite);
        let mapped = free.map(frames, Perms::ReadWrite).ok()?;
        rig.mapped(tenant, range, mapped.granted());
        meanwhile();
        rig.unmapping(tenant, range);
        let (free, frames) = mapped.unmap().flush().ok()?;
        rig.expect_frames(tenant, range, frames.range());
        rig.returned(tenant, range);
        rig.free_frames(frames);
        free.release().ok()
    }

    /// Takes the device back, and ends its domain.
    pub(crate) fn end(self) -> Option<()> {
        let (rig, members) = (&self.rig, [self.device]);
        rig.detaching(&members, self.tenant);
        let _ = self.group?.detach().ok()?;
        rig.detached(&members);
        let teardown = self.domain.destroy().ok()?;
        rig.ended(self.tenant);
        teardown.for_each(|run| rig.free_frames(run));
        Some(())
    }
}
