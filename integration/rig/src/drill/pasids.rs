//! A drill with PASIDs, which lives do not open: a device whose requests go to several domains, by the number that they
//! carry, while those are attached, detached and mapped, and the device comes and goes.

use hv_core::platform::FrameSource;
use hv_core::{
    Access, Iova, IovaRange, KernelPaging, PageCount, PageSize, Pasid, PciAddress, Perms,
};
use hv_iommu::{
    Attached, Blocked, Claimed, Domain, DomainConfig, DomainRequest, Group, Mapped, Needs,
    PasidAttachment, PasidError, PasidGroup, PasidRefusal, PhantomBits, Range,
};
use hv_smmu::Smmu;

use crate::driver::Vendor;
use crate::ledger::Tenant;
use crate::life::bring_up;
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rng::Rng;
use crate::rule::{Rule, Violation};

/// How often the device comes and goes, and how much is done each time.
const VISITS: usize = 3;
const STEPS: usize = 50;
/// PASIDs on both sides of where pages of 64 and of 1024 descriptors end.
const NUMBERS: [u32; 7] = [1, 2, 63, 64, 1023, 1024, 0x8001];
/// Domains that PASIDs go to.
const SPACES: usize = 2;
/// Pages that may be mapped in each.
const PAGES: u64 = 4;

type Space = Domain<KernelPaging, Smmu<Rig>>;
type Claim = Group<Smmu<Rig>, Claimed<KernelPaging>>;

/// What the drill works with.
struct Drill {
    rig: Rig,
    rng: Rng,
    device: PciAddress,
}

/// A domain, with the pages that are mapped in it.
struct Home {
    domain: Space,
    tenant: Tenant,
    mapped: Vec<Range<KernelPaging, Smmu<Rig>, Mapped>>,
}

/// Machines with SMMUs that know substreams, of either kind.
fn machine(seed: u64) -> Machine {
    let mut machine = Machine::draw_of(Vendor::Smmu, seed);
    machine.pasid_bits = if seed.is_multiple_of(4) { 16 } else { 20 };
    // Eviction and widening hide what is looked for here.
    (machine.temper.evictions, machine.temper.widening) = (false, false);
    for function in &mut machine.functions {
        // What it sends with a PASID under another id than its own reaches nothing.
        function.phantoms = PhantomBits::NONE;
    }
    for unit in &mut machine.units {
        if let Some(identity) = unit.smmu() {
            identity.first_stage = true;
            if identity.substream_bits == 0 {
                identity.substream_bits = 1 + (seed % 20) as u8;
            }
        }
    }
    machine
}

/// Requests of one device with many PASIDs, and without.
pub(crate) fn pasids(seed: u64) -> Option<Violation> {
    let rig = Rig::new(machine(seed)).ok()?;
    let (_iommu, groups) = bring_up::<Smmu<Rig>>(&rig).ok()?;
    let mut rng = Rng::new(seed ^ 0x7061_7369_6473);
    let single = |group: &Group<Smmu<Rig>, Blocked>| group.members().len() == 1;
    let mut groups: Vec<_> = groups.into_iter().filter(single).collect();
    let group = groups.swap_remove(rng.below(groups.len() as u64) as usize);
    let device = *group.members().first()?;
    let mut drill = Drill {
        rig: rig.clone(),
        rng,
        device,
    };
    if drill.run(group.claim_for_hypervisor()).is_none() {
        rig.broken(Rule::WrongAnswer, "a drill with PASIDs did not go on");
    }
    rig.judged()
}

fn request() -> DomainRequest {
    let config = DomainConfig {
        address_bits: 31,
        ..DomainConfig::default()
    };
    config.with(Needs {
        pasids: true,
        ..Needs::default()
    })
}

impl Drill {
    /// `None` when something that should have worked did not, or a rule is broken.
    fn run(&mut self, mut group: Claim) -> Option<()> {
        let mut homes = Vec::new();
        for number in 0..=SPACES {
            homes.push(Home {
                domain: Domain::paging_domain_alloc(&group, request()).ok()?,
                tenant: Tenant(number as u64 + 1),
                mapped: Vec::new(),
            });
        }
        for _ in 0..VISITS {
            group = self.visit(group, &mut homes)?;
        }
        for Home { domain, tenant, .. } in homes {
            let teardown = domain.destroy().ok()?;
            self.rig.ended(tenant);
            teardown.for_each(|run| self.rig.free_frames(run));
        }
        Some(())
    }

    /// The device comes to the first domain, opens its PASIDs, and goes.
    fn visit(&mut self, group: Claim, homes: &mut [Home]) -> Option<Claim> {
        let (own, device) = (homes.first()?.tenant, [self.device]);
        self.rig.attaching(&device, own);
        let group = group.attach(&homes.first()?.domain).ok()?;
        self.rig.attached(&device, own);
        group.enable_bus_mastering(self.device).ok()?;
        let group: Group<_, Attached<_, _>> = group;
        let group = group.open_pasids().ok()?;
        let mut held = Vec::new();
        for _ in 0..STEPS {
            if self.rig.is_broken() {
                return None;
            }
            self.step(&group, homes, &mut held)?;
        }
        for (attachment, tenant) in held {
            self.detach(&group, attachment, tenant)?;
        }
        let group = group.close_pasids().ok()?;
        self.rig.detaching(&device, own);
        let group = group.detach().ok()?;
        self.rig.detached(&device);
        Some(group)
    }

    fn step(
        &mut self,
        group: &PasidGroup<KernelPaging, Smmu<Rig>>,
        homes: &mut [Home],
        held: &mut Vec<(PasidAttachment<KernelPaging, Smmu<Rig>>, Tenant)>,
    ) -> Option<()> {
        let number = *self.rng.pick(&NUMBERS)?;
        let pasid = Pasid::new(number)?;
        let home = self.rng.below(homes.len() as u64) as usize;
        let home = homes.get_mut(home)?;
        match self.rng.below(6) {
            0 | 1 => {
                let device = [self.device];
                let taken = held.iter().any(|(known, _)| known.pasid() == pasid);
                if taken {
                    return Some(());
                }
                self.rig.attaching_pasid(&device, pasid, home.tenant);
                match group.attach_pasid(self.device, pasid, &home.domain) {
                    Ok(attachment) => {
                        self.rig.attached_pasid(&device, pasid, home.tenant);
                        held.push((attachment, home.tenant));
                    }
                    Err(PasidError::Refused(PasidRefusal::TooWide { .. })) => {
                        self.rig.detached_pasid(&device, pasid);
                    }
                    Err(error) => {
                        self.rig
                            .broken(Rule::WrongAnswer, format!("{pasid}: {error}"));
                        return None;
                    }
                }
            }
            2 if !held.is_empty() => {
                let which = self.rng.below(held.len() as u64) as usize;
                let (attachment, tenant) = held.swap_remove(which);
                self.detach(group, attachment, tenant)?;
            }
            3 => self.map(home)?,
            4 => self.unmap(home)?,
            _ => {}
        }
        let at = Iova::new(self.rng.below(PAGES) * PageSize::Size4K.bytes());
        let with = self.rng.one_in(4).then_some(pasid);
        let with = with.or_else(|| {
            let (attachment, _) = self.rng.pick(held)?;
            Some(attachment.pasid())
        });
        // What becomes of it is the ledger's to judge.
        self.rig.access_as(self.device, with, at, Access::Write);
        self.rig.idle(3);
        Some(())
    }

    fn detach(
        &self,
        group: &PasidGroup<KernelPaging, Smmu<Rig>>,
        attachment: PasidAttachment<KernelPaging, Smmu<Rig>>,
        tenant: Tenant,
    ) -> Option<()> {
        let (pasid, device) = (attachment.pasid(), [self.device]);
        self.rig.detaching_pasid(&device, pasid, tenant);
        group.detach_pasid(attachment).ok()?;
        self.rig.detached_pasid(&device, pasid);
        Some(())
    }

    /// Maps a page that is not mapped.
    fn map(&mut self, home: &mut Home) -> Option<()> {
        let at = Iova::new(self.rng.below(PAGES) * PageSize::Size4K.bytes());
        let range = IovaRange::new(at, PageCount::ONE).ok()?;
        let Ok(free) = home.domain.reserve(range) else {
            return Some(());
        };
        let frames = self
            .rig
            .alloc_frames(PageCount::ONE, PageSize::Size4K)
            .ok()?;
        self.rig
            .mapping(home.tenant, range, frames.range(), Perms::ReadWrite);
        let mapped = free.map(frames, Perms::ReadWrite).ok()?;
        self.rig.mapped(home.tenant, range, mapped.granted());
        home.mapped.push(mapped);
        Some(())
    }

    /// Unmaps one that is, and gives its frame to somebody else.
    fn unmap(&mut self, home: &mut Home) -> Option<()> {
        if home.mapped.is_empty() {
            return Some(());
        }
        let which = self.rng.below(home.mapped.len() as u64) as usize;
        let mapped = home.mapped.swap_remove(which);
        let span = mapped.span();
        self.rig.unmapping(home.tenant, span);
        let (free, frames) = mapped.unmap().flush().ok()?;
        self.rig.expect_frames(home.tenant, span, frames.range());
        self.rig.returned(home.tenant, span);
        self.rig.free_frames(frames);
        free.release().ok()
    }
}

#[cfg(all(test, not(hv_fault)))]
mod tests {
    use super::*;

    #[test]
    fn drills_with_pasids_break_no_rule() {
        for seed in 0..200 {
            let found = pasids(seed);
            assert!(found.is_none(), "seed {seed}: {found:?}");
        }
    }
}
