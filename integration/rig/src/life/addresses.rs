//! What a random life does with a guest's address space: a group of the guest stays in one for a while, in which memory of
//! the guest is mapped, copied, cut and taken out.

use hv_core::{
    Access, Gpa, GpaRange, GuestMemory, Iova, IovaRange, PageCount, PageSize, PciAddress, Perms,
    UserManaged, VmId,
};
use hv_iommu::{
    AddressSpace, AddressSpaceError, AttachError, AttachFailed, Attached, Claimed, Domain,
    DomainConfig, FlushError, Group, SpaceMapping, UnitError,
};

use super::granule::Lives;
use super::world::{Held, Memories, World};
use crate::ledger::Tenant;
use crate::rng::Rng;
use crate::rule::Rule;

/// How much is done in a space.
const STEPS: usize = 20;
/// Smallest pages of the addresses that are used.
const SPREAD: u64 = 64;
/// Words of tables that its end looks at in one step.
const WORDS: usize = 4096;

/// A guest's address space, and who is in it.
pub(crate) struct Home<B: Lives> {
    space: AddressSpace<B>,
    vm: VmId,
    tenant: Tenant,
}

type Claim<B> = Group<B, Claimed<UserManaged>>;
type Inside<B> = Group<B, Attached<UserManaged, B>>;

impl<B: Lives> World<B> {
    /// A group that a guest has claimed comes to an address space, and leaves it again.
    pub(crate) fn address_space(&mut self, choice: [u64; 3]) {
        let slot = (choice[0] % self.groups.len() as u64) as usize;
        let group = match std::mem::replace(&mut self.groups[slot], Held::Moving) {
            Held::Guest(group) => group,
            other => {
                self.groups[slot] = other;
                return;
            }
        };
        let mut rng = Rng::new(choice[1]);
        let (held, failed) = self.stay(group, &mut rng);
        self.groups[slot] = held;
        if let Some(error) = failed {
            self.failed(error);
        }
    }

    fn stay(&mut self, group: Claim<B>, rng: &mut Rng) -> (Held<B>, Option<UnitError>) {
        let config = DomainConfig {
            address_bits: 31,
            largest_page: *rng
                .pick(&[B::smallest(), PageSize::LARGEST])
                .unwrap_or(&PageSize::LARGEST),
        };
        let vm = group.owner();
        // A unit may have nothing for guests, no id or no frames: `allocate` looks at why.
        let Ok(domain) = Domain::user_domain_alloc(&group, config) else {
            return (Held::Guest(group), None);
        };
        let space = match AddressSpace::new(domain, None) {
            Ok(space) => space,
            Err((domain, error)) => {
                let what = format!("no address space: {error}");
                self.rig().broken(Rule::WrongAnswer, what);
                drop(domain.destroy());
                return (Held::Guest(group), None);
            }
        };
        let tenant = Tenant(self.next_tenant);
        self.next_tenant += 1;
        let mut home = Home { space, vm, tenant };
        let group = match self.enter(group, &home) {
            Ok(group) => group,
            Err((held, failed)) => {
                self.homes.push(home);
                return (held, failed);
            }
        };
        let members = group.members().to_vec();
        let mut failed = None;
        for _ in 0..STEPS {
            if let Err(FlushError::Unit(error)) = home.step(&self.memories, rng) {
                failed = Some(error);
                break;
            }
            home.send(&self.memories, &members, rng);
        }
        self.rig().detaching(&members, tenant);
        let held = match group.detach() {
            Ok(group) => {
                self.rig().detached(&members);
                Held::Guest(group)
            }
            Err(group) => {
                failed = failed.or(Some(group.error()));
                Held::Wedged(group, tenant)
            }
        };
        self.homes.push(home);
        self.leave_homes();
        (held, failed)
    }

    /// The group comes in.
    fn enter(
        &self,
        group: Claim<B>,
        home: &Home<B>,
    ) -> Result<Inside<B>, (Held<B>, Option<UnitError>)> {
        let (rig, members) = (self.rig(), group.members().to_vec());
        rig.attaching(&members, home.tenant);
        match group.attach_for_guest(home.space.domain(), &self.witness) {
            Ok(group) => {
                rig.attached(&members, home.tenant);
                for member in &members {
                    // One that was pulled out has none, and a wedged unit's get none.
                    let _ = group.enable_bus_mastering(*member);
                }
                Ok(group)
            }
            Err(AttachFailed::Refused { group, error }) => {
                rig.detached(&members);
                let failed = match error {
                    AttachError::Incompatible { .. }
                    | AttachError::Unit(UnitError::OutOfFrames(_)) => None,
                    AttachError::Unit(error) => Some(error),
                    other => {
                        rig.broken(Rule::WrongAnswer, format!("not attached: {other}"));
                        None
                    }
                };
                Err((Held::Guest(group), failed))
            }
            Err(AttachFailed::Wedged { group }) => {
                rig.detaching(&members, home.tenant);
                let error = group.error();
                Err((Held::Wedged(group, home.tenant), Some(error)))
            }
        }
    }

    /// Ends the address spaces that nobody is in.
    pub(crate) fn leave_homes(&mut self) {
        for home in std::mem::take(&mut self.homes) {
            let Home { space, vm, tenant } = home;
            match space.destroy() {
                Ok(mut teardown) => {
                    let rig = &self.memories.rig;
                    rig.ended(tenant);
                    if let Some(memory) = self.memories.guest(vm) {
                        while !teardown.step(memory, WORDS) {}
                    }
                }
                // A wedged group is.
                Err((space, _)) => self.homes.push(Home { space, vm, tenant }),
            }
        }
    }
}

impl<B: Lives> Home<B> {
    /// Does something in the space.
    fn step(&mut self, memories: &Memories, rng: &mut Rng) -> Result<(), FlushError> {
        let Some(memory) = memories.guest(self.vm) else {
            return Ok(());
        };
        let there: Vec<SpaceMapping> = self.space.mappings().collect();
        let one = rng.pick(&there).copied();
        match (rng.below(8), one) {
            (0, Some(one)) => {
                // Another place for a part of it.
                let pages = one.span.pages().get();
                let first = rng.below(pages / B::PAGE) * B::PAGE;
                let count = 1 + rng.below((pages - first) / B::PAGE);
                let from = part(one.span, first, B::pages(count));
                let at = Iova::new(rng.below(SPREAD) * B::smallest().bytes());
                let gpa = one.gpa.page(first);
                let gpa = gpa.and_then(|gpa| GpaRange::new(gpa, B::pages(count)).ok());
                match (from, gpa) {
                    (Some(from), Some(gpa)) => {
                        self.put(memories, (at, gpa, one.perms), |space, perms| {
                            space.copy_within(memory, from, at, perms)
                        })
                    }
                    _ => Ok(()),
                }
            }
            (1, Some(one)) => {
                self.cut(memories, one, rng);
                Ok(())
            }
            (2, Some(one)) => {
                self.take(memories, &[one.span], |space| space.unmap(memory, one.span))
            }
            (3, Some(one)) => {
                // As a balloon would, whatever is mapped where.
                let gpa = GpaRange::new(one.gpa.start(), B::pages(1)).unwrap_or(one.gpa);
                let mine = there.iter().filter(|other| other.gpa.overlaps(&gpa));
                let spans: Vec<IovaRange> = mine.map(|other| other.span).collect();
                self.take(memories, &spans, |space| space.revoke(memory, gpa))
            }
            _ => self.map_some(memories, memory, rng),
        }
    }

    /// Maps memory of the guest; where pages are larger than 4 KiB, now and then a part of one, which is refused.
    fn map_some(
        &mut self,
        memories: &Memories,
        memory: &GuestMemory,
        rng: &mut Rng,
    ) -> Result<(), FlushError> {
        let mut pages = match rng.one_in(6) {
            true => B::LARGE,
            false => B::PAGE * (1 + rng.below(8)),
        };
        let room = memories.guest_pages - pages;
        let first = rng.below(room / B::PAGE + 1) * B::PAGE;
        let mut at = match pages == B::LARGE {
            true => B::LARGE * rng.below(2),
            false => rng.below(SPREAD) * B::PAGE,
        };
        match (B::PAGE > 1, rng.below(16)) {
            (true, 0) => at += 1 + rng.below(B::PAGE - 1),
            (true, 1) => pages -= 1 + rng.below(B::PAGE - 1),
            _ => {}
        }
        let perms = match rng.one_in(3) {
            true => Perms::Read,
            false => Perms::ReadWrite,
        };
        let at = Iova::new(at * PageSize::Size4K.bytes());
        let gpa = Gpa::new(first * PageSize::Size4K.bytes());
        let pages = PageCount::new(pages).unwrap_or(PageCount::ONE);
        let Ok(gpa) = GpaRange::new(gpa, pages) else {
            return Ok(());
        };
        self.put(memories, (at, gpa, perms), |space, perms| {
            space.map(memory, at, gpa, perms)
        })
    }

    /// Something of the guest comes to a place, if that is free, by `act`.
    fn put(
        &mut self,
        memories: &Memories,
        (at, gpa, perms): (Iova, GpaRange, Perms),
        act: impl FnOnce(&mut AddressSpace<B>, Perms) -> Result<SpaceMapping, AddressSpaceError>,
    ) -> Result<(), FlushError> {
        let (rig, tenant) = (&memories.rig, self.tenant);
        let Ok(span) = IovaRange::new(at, gpa.pages()) else {
            return Ok(());
        };
        let occupied = self
            .space
            .mappings()
            .any(|other| other.span.overlaps(&span));
        if occupied {
            let refused = act(&mut self.space, perms);
            if !matches!(refused, Err(AddressSpaceError::Overlap { .. })) {
                let what = format!("{span} is taken, and mapped again: {refused:?}");
                rig.broken(Rule::WrongAnswer, what);
            }
            return Ok(());
        }
        let Some(frames) = memories.guest(self.vm).and_then(|memory| {
            let pin = memory.pin(gpa).ok()?;
            let frames = pin.range();
            memory.unpin(pin).ok()?;
            Some(frames)
        }) else {
            return Ok(());
        };
        rig.say(format!("{tenant:?} maps {gpa} at {span}, {perms}"));
        rig.mapping(tenant, span, frames, perms);
        let first = span.start().as_u64() >> PageSize::Size4K.shift();
        let whole = (first | span.pages().get()).is_multiple_of(B::PAGE);
        match act(&mut self.space, perms) {
            Ok(mapping) => {
                rig.mapped(tenant, span, mapping.perms);
                if !whole || mapping.span != span {
                    let what = format!("{span} cuts a page, and is mapped: {mapping:?}");
                    rig.broken(Rule::WrongAnswer, what);
                }
                Ok(())
            }
            Err(AddressSpaceError::Unit(error)) => {
                rig.unmapping(tenant, span);
                Err(error)
            }
            Err(error) => {
                rig.returned(tenant, span);
                let poor = matches!(error, AddressSpaceError::Map(_));
                if whole && !poor {
                    rig.broken(Rule::WrongAnswer, format!("{span} was not mapped: {error}"));
                }
                Ok(())
            }
        }
    }

    /// Cuts a mapping in two, or finds out why not.
    fn cut(&mut self, memories: &Memories, one: SpaceMapping, rng: &mut Rng) {
        let rig = &memories.rig;
        let pages = one.span.pages().get();
        let page = match rng.one_in(8) {
            true => rng.below(pages),
            false => rng.below(pages / B::PAGE) * B::PAGE,
        };
        let Some(at) = one.span.page(page) else {
            return;
        };
        rig.say(format!("{:?} is cut at {at}", self.tenant));
        let before = self.space.mappings().count();
        let cut = self.space.split(at);
        let good = match &cut {
            Ok(()) => page != 0 && at.is_aligned(B::smallest()),
            Err(AddressSpaceError::BeginsThere { .. }) => page == 0,
            // A unit cannot follow, a page would be cut, or no frame is there.
            Err(AddressSpaceError::Cut(_)) => page != 0,
            Err(_) => false,
        };
        let after = self.space.mappings().count();
        if !good || after != before + usize::from(cut.is_ok()) {
            let what = format!("{} was cut at {at}: {cut:?}", one.span);
            rig.broken(Rule::WrongAnswer, what);
        }
    }

    /// Mappings go, all of each.
    fn take(
        &mut self,
        memories: &Memories,
        spans: &[IovaRange],
        act: impl FnOnce(&mut AddressSpace<B>) -> Result<u64, AddressSpaceError>,
    ) -> Result<(), FlushError> {
        let (rig, tenant) = (&memories.rig, self.tenant);
        rig.say(format!("{tenant:?} unmaps {spans:?}"));
        spans.iter().for_each(|span| rig.unmapping(tenant, *span));
        let bytes: u64 = spans.iter().map(|span| span.pages().bytes()).sum();
        match act(&mut self.space) {
            Ok(taken) => {
                spans.iter().for_each(|span| rig.returned(tenant, *span));
                if taken != bytes {
                    let what = format!("{taken} of {bytes} bytes in {spans:?} were unmapped");
                    rig.broken(Rule::WrongAnswer, what);
                }
                Ok(())
            }
            Err(AddressSpaceError::Unit(error)) => Err(error),
            Err(error) => {
                let what = format!("{spans:?} were not unmapped: {error}");
                rig.broken(Rule::WrongAnswer, what);
                Ok(())
            }
        }
    }

    /// Devices send to what is mapped, and beside it.
    fn send(&self, memories: &Memories, members: &[PciAddress], rng: &mut Rng) {
        let there: Vec<SpaceMapping> = self.space.mappings().collect();
        for member in members {
            let inside = rng.pick(&there).copied();
            let inside = inside.and_then(|one| one.span.page(rng.below(one.span.pages().get())));
            let beside = Iova::new(rng.below(SPREAD * B::PAGE) * PageSize::Size4K.bytes());
            let access = match rng.one_in(2) {
                true => Access::Read,
                false => Access::Write,
            };
            memories
                .rig
                .access(*member, inside.unwrap_or(beside), access);
            memories.rig.access(*member, beside, access);
        }
    }
}

/// So many pages of a range from one on.
fn part(range: IovaRange, first: u64, pages: PageCount) -> Option<IovaRange> {
    IovaRange::new(range.page(first)?, pages).ok()
}
