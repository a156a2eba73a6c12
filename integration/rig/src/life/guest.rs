//! A guest of a random life that has a first stage of its own, on an SMMU: it maps, remaps and has things forgotten by
//! commands, while the hypervisor takes pages from under it.

use std::collections::BTreeMap;

use hv_core::{
    Access, Gpa, GpaRange, GuestMemory, Iova, IovaRange, PageCount, PciAddress, Perms, PhysAddr,
    PhysRange, UserManaged,
};
use hv_iommu::{
    Attached, Claimed, Domain, FlushError, Group, InvalidateRefusal, MapError, Mapped, Nested,
    ParentPaging, PendingUnmap, Range, RedeemRefusal, UnitError, Wedged,
};
use hv_smmu::{Smmu, Tables};

use super::granule::Lives;
use crate::ledger::Tenant;
use crate::rig::Rig;
use crate::rng::Rng;
use crate::rule::Rule;
use crate::smmu::GuestStage;

pub(super) type Backend<F> = Smmu<Rig, F>;
pub(super) type Parent<F> = Domain<UserManaged, Backend<F>, ParentPaging>;
pub(super) type OnNested<F> = Group<Backend<F>, Attached<UserManaged, Backend<F>, Nested>>;

/// Smallest pages of the parent's tables in the guest's memory; its first stage, which has pages of 4 KiB whatever the
/// parent has, lies in the first of them.
pub(super) const SPOTS: u64 = 24;
/// Pages that its devices have addresses for.
const ADDRESSES: u64 = 8;

/// Where the guest's group is.
pub(super) enum Place<F: Tables> {
    Off(Group<Backend<F>, Claimed<UserManaged>>),
    On(OnNested<F>),
    Wedged(Group<Backend<F>, Wedged<Backend<F>>>),
    /// It came back from a wedged unit, and is anybody's.
    Gone,
}

/// A smallest page of the parent's tables of the guest's memory, as the parent has it.
pub(super) enum Spot<F: Tables> {
    Mapped(Range<UserManaged, Backend<F>, Mapped>),
    /// A unit did not forget it.
    Stuck(#[expect(dead_code, reason = "it holds the page")] PendingUnmap<UserManaged, Backend<F>>),
    Free,
}

/// A guest, its parent domain, its nested domain, and its group.
pub(crate) struct Nest<F: Tables> {
    /// Which of the life's groups.
    pub(super) slot: usize,
    pub(super) place: Place<F>,
    pub(super) members: Vec<PciAddress>,
    pub(super) memory: GuestMemory,
    pub(super) frames: PhysRange,
    pub(super) parent: Parent<F>,
    pub(super) nested: Domain<UserManaged, Backend<F>, Nested>,
    /// What the guest's memory is, and what its devices reach.
    pub(super) tenants: (Tenant, Tenant),
    pub(super) spots: Vec<Spot<F>>,
    pub(super) stage: GuestStage,
    /// ASID and address space of its context, if it has one.
    pub(super) context: Option<(u16, u64)>,
    /// By page that devices name: the guest's page, as the first stage has it in each of its spaces.
    pub(super) maps: [BTreeMap<u64, u64>; 2],
    /// A unit failed in the middle of something: only its end is left.
    pub(super) failed: bool,
}

fn at(number: u64) -> Iova {
    Iova::new(number << 12)
}

fn page(number: u64) -> Option<IovaRange> {
    IovaRange::new(at(number), PageCount::ONE).ok()
}

impl<F: Tables> Nest<F> {
    /// Pages of 4 KiB in a spot.
    const PAGE: u64 = <Backend<F> as Lives>::PAGE;
    /// The first spot that the first stage has nothing of.
    pub(super) const FIRST: u64 = GuestStage::PAGES.div_ceil(Self::PAGE);

    /// Some spot behind the first stage.
    fn some_spot(rng: &mut Rng) -> u64 {
        Self::FIRST + rng.below(SPOTS - Self::FIRST)
    }

    fn frame_of(&self, guests: u64) -> Option<PhysRange> {
        let start = self.frames.start().as_u64() + (guests << 12);
        PhysRange::new(PhysAddr::new(start), PageCount::ONE).ok()
    }

    /// The parent maps a spot of the guest's memory, one to one.
    pub(super) fn map_spot(&mut self, rig: &Rig, spot: u64) -> Option<Result<(), FlushError>> {
        let (first, pages) = (spot * Self::PAGE, PageCount::new(Self::PAGE)?);
        let range = IovaRange::new(at(first), pages).ok()?;
        let free = self.parent.reserve(range).ok()?;
        let Ok(pin) = self
            .memory
            .pin(GpaRange::new(Gpa::new(first << 12), pages).ok()?)
        else {
            let what = format!("page {first} of a guest is not its own");
            rig.broken(Rule::Leak, what);
            return None;
        };
        rig.mapping(self.tenants.0, range, pin.range(), Perms::ReadWrite);
        match free.map(pin, Perms::ReadWrite) {
            Ok(mapped) => {
                rig.mapped(self.tenants.0, range, mapped.granted());
                *self.spots.get_mut(spot as usize)? = Spot::Mapped(mapped);
                Some(Ok(()))
            }
            Err(MapError::Refused {
                range: free,
                frames,
                ..
            }) => {
                rig.returned(self.tenants.0, range);
                drop(self.memory.unpin(frames));
                drop(free.release());
                None
            }
            Err(MapError::NotVisible { range, reason }) => {
                *self.spots.get_mut(spot as usize)? = Spot::Mapped(range);
                Some(Err(reason))
            }
        }
    }

    /// Pages of devices that lead to this spot of the guest's, by the context that it has, and to which page of it.
    fn leading_to(&self, spot: u64) -> Vec<(u64, u64)> {
        let Some((_, space)) = self.context else {
            return Vec::new();
        };
        let maps = self.maps[space as usize & 1].iter();
        let mine = maps.filter(|(_, to)| **to / Self::PAGE == spot);
        mine.map(|(at, to)| (*at, *to)).collect()
    }

    fn is_mapped(&self, guests: u64) -> bool {
        matches!(
            self.spots.get((guests / Self::PAGE) as usize),
            Some(Spot::Mapped(_))
        )
    }

    /// What is about to be reached, or is.
    fn comes(&self, rig: &Rig, at: u64, guests: u64) {
        if let (Some(range), Some(frame)) = (page(at), self.frame_of(guests)) {
            rig.mapping(self.tenants.1, range, frame, Perms::ReadWrite);
        }
    }

    fn came(&self, rig: &Rig, at: u64) {
        if let Some(range) = page(at) {
            rig.mapped(self.tenants.1, range, Perms::ReadWrite);
        }
    }

    fn goes(&self, rig: &Rig, at: u64) {
        if let Some(range) = page(at) {
            rig.unmapping(self.tenants.1, range);
        }
    }

    fn went(&self, rig: &Rig, at: u64) {
        if let Some(range) = page(at) {
            rig.returned(self.tenants.1, range);
        }
    }

    /// The guest gives commands, and waits for them. `None` where a unit failed.
    fn command(&mut self, rig: &Rig, commands: &[[u64; 2]]) -> Result<(), UnitError> {
        match self.nested.invalidate(commands) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.failed = true;
                match error.reason {
                    InvalidateRefusal::Unit(error) => Err(error),
                    InvalidateRefusal::Malformed(why) | InvalidateRefusal::Embedders(why) => {
                        let what = format!("a guest's commands were refused: {why}");
                        rig.broken(Rule::WrongAnswer, what);
                        Ok(())
                    }
                }
            }
        }
    }

    /// The guest maps a page, or takes one out and has it forgotten.
    pub(super) fn guest_page(&mut self, rig: &Rig, rng: &mut Rng) -> Result<(), UnitError> {
        let Some((asid, space)) = self.context else {
            return Ok(());
        };
        let (spot, guests) = (rng.below(ADDRESSES), Self::some_spot(rng) * Self::PAGE);
        // Any part of what the parent has as one page.
        let guests = guests + rng.below(Self::PAGE);
        let Some(old) = self.maps[space as usize & 1].remove(&spot) else {
            if self.is_mapped(guests) {
                self.comes(rig, spot, guests);
            }
            self.stage.map(space, at(spot), Gpa::new(guests << 12));
            if self.is_mapped(guests) {
                self.came(rig, spot);
            }
            self.maps[space as usize & 1].insert(spot, guests);
            return Ok(());
        };
        let reached = self.is_mapped(old);
        if reached {
            self.goes(rig, spot);
        }
        self.stage.unmap(space, at(spot));
        let forget = match rng.below(3) {
            0 => GuestStage::forget_all(),
            1 => GuestStage::forget_asid(asid),
            _ => GuestStage::forget_page(asid, at(spot)),
        };
        self.command(rig, &[forget])?;
        if reached && !self.failed {
            self.went(rig, spot);
        }
        Ok(())
    }

    /// The guest's devices get another context, with other tables and another ASID.
    pub(super) fn switch(&mut self, rig: &Rig, rng: &mut Rng) -> Result<(), UnitError> {
        if let Some((asid, space)) = self.context.take() {
            let maps = self.maps[space as usize & 1].clone();
            let reached: Vec<u64> = maps
                .iter()
                .filter(|(_, to)| self.is_mapped(**to))
                .map(|(at, _)| *at)
                .collect();
            reached.iter().for_each(|at| self.goes(rig, *at));
            self.stage.clear_context(0);
            let contexts = match rng.one_in(2) {
                true => GuestStage::forget_contexts(),
                false => GuestStage::forget_context(0),
            };
            self.command(rig, &[contexts, GuestStage::forget_asid(asid)])?;
            if self.failed {
                return Ok(());
            }
            reached.iter().for_each(|at| self.went(rig, *at));
        }
        let (asid, space) = (1 + rng.below(200) as u16, rng.below(2));
        let maps = self.maps[space as usize & 1].clone();
        let leads: Vec<_> = maps.iter().filter(|(_, to)| self.is_mapped(**to)).collect();
        for (at, to) in &leads {
            self.comes(rig, **at, **to);
        }
        // That the context was not valid may be kept, and an ASID may have been used before.
        self.stage.set_context(0, asid, space);
        self.context = Some((asid, space));
        let forget = [GuestStage::forget_contexts(), GuestStage::forget_all()];
        self.command(rig, &forget)?;
        if !self.failed {
            leads.iter().for_each(|(at, _)| self.came(rig, **at));
        }
        Ok(())
    }

    /// The hypervisor takes a spot of the guest's memory out of the parent, or puts it back.
    pub(super) fn take(&mut self, rig: &Rig, rng: &mut Rng) -> Result<(), FlushError> {
        let spot = Self::some_spot(rng);
        let Some(place) = self.spots.get_mut(spot as usize) else {
            return Ok(());
        };
        match std::mem::replace(place, Spot::Free) {
            Spot::Free => {
                let leading = self.leading_to(spot);
                leading
                    .iter()
                    .for_each(|(at, guests)| self.comes(rig, *at, *guests));
                match self.map_spot(rig, spot) {
                    Some(Ok(())) => leading.iter().for_each(|(at, _)| self.came(rig, *at)),
                    Some(Err(error)) => {
                        self.failed = true;
                        return Err(error);
                    }
                    None => leading.iter().for_each(|(at, _)| self.went(rig, *at)),
                }
                Ok(())
            }
            Spot::Mapped(mapped) => {
                let (leading, span) = (self.leading_to(spot), mapped.span());
                leading.iter().for_each(|(at, _)| self.goes(rig, *at));
                rig.unmapping(self.tenants.0, span);
                match mapped.unmap().flush() {
                    Ok((free, pin)) => {
                        leading.iter().for_each(|(at, _)| self.went(rig, *at));
                        rig.expect_frames(self.tenants.0, span, pin.range());
                        rig.returned(self.tenants.0, span);
                        drop(self.memory.unpin(pin));
                        drop(free.release());
                        Ok(())
                    }
                    Err(error) => {
                        self.failed = true;
                        self.spots[spot as usize] = Spot::Stuck(error.pending);
                        match error.reason {
                            RedeemRefusal::Flush(error) => Err(error),
                            other => {
                                let what = format!("{span} of a guest stays closed: {other}");
                                rig.broken(Rule::WrongAnswer, what);
                                Ok(())
                            }
                        }
                    }
                }
            }
            stuck @ Spot::Stuck(_) => {
                self.spots[spot as usize] = stuck;
                Ok(())
            }
        }
    }

    /// Its devices send to where the guest has something, or has not.
    pub(super) fn send(&self, rig: &Rig, rng: &mut Rng) {
        if let Place::On(group) = &self.place {
            for member in &self.members {
                // A reset of their unit turned it off; those of a wedged one, or that were pulled out, get none.
                let _ = group.enable_bus_mastering(*member);
            }
        }
        for _ in 0..12 {
            let access = match rng.one_in(2) {
                true => Access::Read,
                false => Access::Write,
            };
            for member in &self.members {
                rig.access(*member, at(rng.below(ADDRESSES + 2)), access);
            }
        }
    }
}
