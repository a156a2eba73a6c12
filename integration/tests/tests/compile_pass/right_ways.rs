//! What the comments of the compile-fail cases advise, as code: it compiles.
use hv_core::platform::FrameSource;
use hv_core::{
    FrameRun, GpaRange, GuestMemory, Hypervisor, Iova, IovaRange, KernelPaging, PageCount,
    PageSize, Pasid, PciAddress, Perms, UserManaged, VmId,
};
use hv_iommu::{
    AtRest, FirmwareOverridden, NeedsReset,
    Attached, Bidirectional, Blocked, BufferRequest, Claimed, DeferredConfig, DirtyBitmap, DmaConfig, Domain, DomainConfig, FlushSpan, Free, Group, InterruptsIsolated, Mapped, Needs, PendingUnmap, Range, SharedRange, TrustedDevice, UserDomain,
};
use hv_tests::fake::{Fake, UserStage};
use hv_tests::host::Host;

type Driver = Group<Fake, Attached<KernelPaging, Fake>>;

fn driver(group: Group<Fake, Blocked>, member: PciAddress, config: DomainConfig) -> Option<Driver> {
    let group = group.claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, config).ok()?;
    let group = group.attach(&domain).ok()?;
    group.enable_bus_mastering(member).ok()?;
    Some(group)
}

fn guest(driver: Driver, vm: VmId, config: DomainConfig) -> Option<Group<Fake, Blocked>> {
    let group = driver.detach().ok()?.release();
    let again = group.claim_for_hypervisor().release();
    let reset = again.reset_members(|_| Ok::<_, ()>(())).ok()?;
    let group = reset.all().ok()?.claimable().ok()?.claim_for_guest(vm);
    let domain = Domain::user_domain_alloc(&group, config).ok()?;
    let isolated = InterruptsIsolated::override_unsafe_interrupts("a compile-pass case");
    let group = group.attach_for_guest(&domain, &isolated).ok()?;
    let group: Group<Fake, NeedsReset> = group.detach().ok()?.release();
    let reset = group.reset_members(|_| Ok::<_, ()>(())).ok()?;
    reset.all().ok()?.claimable().ok()
}

fn firmwares(found: AtRest<Fake>, vm: VmId) -> Option<Group<Fake, Claimed<UserManaged>>> {
    let group = match found {
        AtRest::Claimable(group) => group,
        AtRest::ToReset(group) => group.without_reset("a compile-pass case").claimable().ok()?,
        AtRest::AfterDriver(group) => group.without_reset("a compile-pass case").claimable().ok()?,
        AtRest::ForHypervisor(group) => {
            let policy = FirmwareOverridden::override_pinned_regions("a compile-pass case");
            group.override_firmware(&policy)
        }
    };
    Some(group.claim_for_guest(vm))
}

fn moved(
    group: Driver,
    next: &Domain<KernelPaging, Fake>,
) -> Option<Group<Fake, Attached<KernelPaging, Fake>>> {
    let group: Group<Fake, Claimed<KernelPaging>> = group.detach().ok()?;
    group.attach(next).ok()
}

fn to_a_new_domain(group: Driver, config: DomainConfig) -> Option<Driver> {
    let next = Domain::paging_domain_alloc(&group, config).ok()?;
    group.replace_with_gap(&next).ok()
}

fn guest_memory(domain: &Domain<UserManaged, Fake>, memory: &GuestMemory, at: GpaRange) {
    let Ok(pin) = memory.pin(at) else { return };
    let Ok(span) = IovaRange::new(at.start().into(), at.pages()) else {
        return;
    };
    let Ok(range) = domain.reserve(span) else {
        return;
    };
    let _mapped = range.map(pin, Perms::ReadWrite);
}

fn one_by_one(range: Range<KernelPaging, Fake, Mapped>, host: &Host) {
    if let Ok((range, frames)) = range.unmap().flush() {
        host.free_frames(frames);
        let _ = range.release();
    }
}

fn together(domain: &Domain<KernelPaging, Fake>, pending: Vec<PendingUnmap<KernelPaging, Fake>>) {
    let Ok(receipt) = domain.flush(FlushSpan::Domain) else {
        return;
    };
    for pending in pending {
        let _redeemed = pending.redeem(&receipt);
    }
}

fn in_parts(range: Range<KernelPaging, Fake, Free>, first: FrameRun<Hypervisor>) {
    if let Ok((low, _high)) = range.split_at(PageCount::ONE) {
        let _mapped = low.map(first, Perms::Read);
    }
}

fn shared(shared: SharedRange<KernelPaging, Fake>, at: Iova) {
    if let Ok(page) = shared.unmap(at, PageSize::Size4K) {
        let _frames = page.flush();
    }
    let _range = shared.unshare();
}

fn ended(domain: Domain<KernelPaging, Fake>, wanted: BufferRequest, host: &Host) {
    if let Ok(buffer) = domain.alloc_coherent(wanted) {
        let _ = buffer.free();
    }
    if let Ok(teardown) = domain.destroy() {
        teardown.for_each(|frames| host.free_frames(frames));
    }
}

fn tracked(group: &Group<Fake, Claimed<KernelPaging>>, range: IovaRange, words: &mut [u64]) {
    let needs = Needs {
        dirty_tracking: true,
        coherent_walks: true,
        coherent_dma: false,
        pasids: false,
    };
    let request = DomainConfig::default().with(needs);
    let Ok(domain) = Domain::paging_domain_alloc(group, request) else {
        return;
    };
    if let (Some(dirty), Ok(mut bitmap)) = (domain.dirty(), DirtyBitmap::new(range, words)) {
        let _ = dirty.read_and_clear(&mut bitmap);
    }
}

fn nested(
    group: Group<Fake, Claimed<UserManaged>>,
    isolated: &InterruptsIsolated,
    stage: &UserStage,
) -> Option<()> {
    let built = Domain::user_domain_alloc_or_plain(&group, DomainConfig::default()).ok()?;
    let parent = match built {
        UserDomain::Parent(parent) => parent,
        UserDomain::Plain { domain, unmet: _ } => {
            let _group = group.attach_for_guest(&domain, isolated).ok()?;
            return Some(());
        }
    };
    let nested = Domain::alloc_nested(&parent, stage).ok()?;
    let group = group.attach_for_guest(&nested, isolated).ok()?;
    nested.invalidate(&[[0, 0]]).ok()?;
    let _group = group.detach().ok()?;
    nested.destroy().ok()?;
    parent.destroy().ok()?.for_each(drop);
    Some(())
}

fn untranslated(group: Group<Fake, Claimed<KernelPaging>>) -> Option<()> {
    let trusted = TrustedDevice::vouch_for(&group, "a compile-pass case");
    let domain = Domain::identity_domain_alloc(&group, &trusted).ok()?;
    let group = group.attach_untranslated(&domain, trusted).ok()?;
    let blocked = Domain::blocked(&group.detach().ok()?);
    let _ = blocked.destroy();
    Some(())
}

fn replaced(group: Driver, next: &Domain<KernelPaging, Fake>) -> Option<Driver> {
    match group.gapless() {
        Some(gapless) => group.replace(next, &gapless).ok(),
        None => group.replace_with_gap(next).ok(),
    }
}

fn pasids(
    group: Driver,
    member: PciAddress,
    pasid: Pasid,
    domain: &Domain<KernelPaging, Fake>,
) -> Option<Group<Fake, Claimed<KernelPaging>>> {
    let Ok(group) = group.open_pasids() else {
        return None;
    };
    let attachment = group.attach_pasid(member, pasid, domain).ok()?;
    group.detach_pasid(attachment).ok()?;
    group.close_pasids().ok()?.detach().ok()
}

fn lent(domain: &Domain<KernelPaging, Fake>, frames: FrameRun<Hypervisor>, host: &Host) {
    let dma = domain.dma_device(DmaConfig::default());
    let Ok(mapping) = dma.map(frames, Bidirectional) else {
        return;
    };
    let mut turn = mapping.sync_for_cpu();
    let _ = turn.write(0, &[1]);
    if let Ok(frames) = turn.sync_for_device().unmap().flush() {
        let _ = frames.write(host, 0, &[2]);
        host.free_frames(frames);
    }
}

fn deferred(
    domain: &Domain<KernelPaging, Fake>,
    frames: FrameRun<Hypervisor>,
    config: DeferredConfig,
) -> Option<FrameRun<Hypervisor>> {
    domain.allow_deferred_flush(config).ok()?;
    let dma = domain.trusting_dma_device(DmaConfig::default()).ok()?;
    let mapping = dma.map(frames, Bidirectional).ok()?;
    mapping.unmap_deferred().ok()
}

fn main() {
    // Only that it compiles counts.
    let _ = (
        driver,
        guest,
        firmwares,
        moved,
        guest_memory,
        one_by_one,
        together,
        in_parts,
        shared,
        ended,
        tracked,
        nested,
        untranslated,
        replaced,
        to_a_new_domain,
        pasids,
        lent,
        deferred,
    );
}
