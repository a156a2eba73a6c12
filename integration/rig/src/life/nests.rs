//! What a random life does with guests that have first stages of their own, on SMMUs: makes them, lets them live, has their
//! groups come and go, and ends them.

use std::collections::BTreeMap;

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GuestMemory, PageCount, PageSize, PhysRange, UserManaged};
use hv_iommu::{
    AttachError, AttachFailed, Claimed, Domain, DomainConfig, DomainError, FlushError, Group,
    UnitError,
};
use hv_smmu::Tables;

use super::granule::Lives;
use super::groups::at_rest;
use super::guest::{Backend, Nest, Parent, Place, SPOTS, Spot};
use super::world::{Held, World};
use crate::ledger::Tenant;
use crate::rng::Rng;
use crate::rule::Rule;
use crate::smmu::GuestStage;

/// How many guests like that there are at once.
const MOST: usize = 2;

/// Ends a parent in which nothing is mapped.
fn end_empty<F: Tables>(parent: Parent<F>) {
    if let Ok(teardown) = parent.destroy() {
        teardown.for_each(drop);
    }
}

impl<F: Tables> World<Backend<F>> {
    /// Does something with a guest that has a first stage of its own; makes one where there are few.
    pub(crate) fn nested(&mut self, choice: [u64; 3]) {
        let mut rng = Rng::new(choice[1]);
        let count = self.nests.len();
        if count < MOST && (count == 0 || rng.one_in(8)) {
            return self.make_nest(choice);
        }
        let Some(mut nest) = self.pick_nest(choice[0]) else {
            return;
        };
        let rig = self.rig().clone();
        let what = rng.below(16);
        let failure = match (&nest.place, nest.failed) {
            (_, true) | (Place::Gone, _) => {
                self.end_nest(nest);
                return;
            }
            (Place::Off(_), false) if what < 12 => {
                self.bind_nest(&mut nest);
                None
            }
            (Place::On(_), false) if what == 0 => {
                self.unbind_nest(&mut nest);
                None
            }
            (_, false) if what == 1 && rng.one_in(2) => {
                self.end_nest(nest);
                return;
            }
            _ => {
                let done = match what {
                    2..9 => nest.guest_page(&rig, &mut rng),
                    9..11 => nest.switch(&rig, &mut rng),
                    _ => nest
                        .take(&rig, &mut rng)
                        .map_err(|FlushError::Unit(error)| error),
                };
                nest.send(&rig, &mut rng);
                done.err()
            }
        };
        self.nests.push(nest);
        if let Some(error) = failure {
            self.failed(error);
        }
    }

    fn pick_nest(&mut self, choice: u64) -> Option<Nest<F>> {
        let index = choice.checked_rem(self.nests.len() as u64)?;
        Some(self.nests.swap_remove(index as usize))
    }

    /// A guest that has a group gets a first stage of its own, where its unit has both.
    fn make_nest(&mut self, choice: [u64; 3]) {
        let slot = (choice[0] % self.groups.len() as u64) as usize;
        let group = match std::mem::replace(&mut self.groups[slot], Held::Away) {
            Held::Guest(group) => group,
            other => {
                self.groups[slot] = other;
                return;
            }
        };
        match self.nest_of(slot, group) {
            Ok(nest) => self.nests.push(nest),
            Err(group) => self.groups[slot] = Held::Guest(group),
        }
    }

    fn nest_of(
        &mut self,
        slot: usize,
        group: Group<Backend<F>, Claimed<UserManaged>>,
    ) -> Result<Nest<F>, Group<Backend<F>, Claimed<UserManaged>>> {
        let rig = self.rig().clone();
        let config = DomainConfig {
            address_bits: 31,
            ..DomainConfig::default()
        };
        let parent = match Domain::user_parent_alloc(&group, config) {
            Ok(parent) => parent,
            Err(error) => {
                let good = matches!(
                    error,
                    DomainError::Table(_)
                        | DomainError::NoDomainId
                        | DomainError::NoSecondStage { .. }
                        | DomainError::TooManyBits { .. }
                        | DomainError::Unmet { .. }
                );
                if !good {
                    rig.broken(Rule::WrongAnswer, format!("no parent: {error}"));
                }
                return Err(group);
            }
        };
        let (pages, size) = (Backend::<F>::pages(SPOTS), Backend::<F>::smallest());
        let Ok(run) = rig.alloc_frames(pages, size) else {
            end_empty(parent);
            return Err(group);
        };
        let frames = run.range();
        let mut memory = GuestMemory::new(group.owner());
        if let Err((run, _)) = memory.give_watched(Gpa::new(0), run, PageSize::Size4K) {
            rig.free_frames(run);
            end_empty(parent);
            return Err(group);
        }
        let stage_pages = PageCount::new(GuestStage::PAGES).unwrap_or(PageCount::ONE);
        let tables = PhysRange::new(frames.start(), stage_pages).unwrap_or(frames);
        let stage = GuestStage::new(&rig, Gpa::new(0), tables);
        let nested = match Domain::alloc_nested(&parent, &stage.entry(0)) {
            Ok(nested) => nested,
            Err(error) => {
                rig.broken(Rule::WrongAnswer, format!("no nested domain: {error}"));
                return Err(group);
            }
        };
        let tenants = (Tenant(self.next_tenant), Tenant(self.next_tenant + 1));
        self.next_tenant += 2;
        stage.set_context(0, 1, 0);
        let mut nest = Nest {
            slot,
            members: group.members().to_vec(),
            place: Place::Off(group),
            memory,
            frames,
            parent,
            nested,
            tenants,
            spots: (0..SPOTS).map(|_| Spot::Free).collect(),
            stage,
            context: Some((1, 0)),
            maps: [BTreeMap::new(), BTreeMap::new()],
            failed: false,
        };
        for spot in 0..SPOTS {
            // A frame for a table may be missing: then the guest has less, or no tables that hardware reaches.
            match nest.map_spot(&rig, spot) {
                Some(Ok(())) => {}
                None if spot >= Nest::<F>::FIRST => {}
                _ => nest.failed = true,
            }
        }
        Ok(nest)
    }

    fn bind_nest(&mut self, nest: &mut Nest<F>) {
        let rig = self.rig().clone();
        let group = match std::mem::replace(&mut nest.place, Place::Gone) {
            Place::Off(group) => group,
            other => {
                nest.place = other;
                return;
            }
        };
        rig.attaching(&nest.members, nest.tenants.1);
        let failed = match group.attach_for_guest(&nest.nested, &self.witness) {
            Ok(group) => {
                rig.attached(&nest.members, nest.tenants.1);
                for member in &nest.members {
                    // One that was pulled out has none, and a wedged unit's get none.
                    let _ = group.enable_bus_mastering(*member);
                }
                nest.place = Place::On(group);
                None
            }
            Err(AttachFailed::Refused { group, error }) => {
                rig.detached(&nest.members);
                nest.place = Place::Off(group);
                Some(error)
            }
            Err(AttachFailed::Wedged { group }) => {
                rig.detaching(&nest.members, nest.tenants.1);
                let error = group.error().into();
                nest.failed = true;
                nest.place = Place::Wedged(group);
                Some(error)
            }
        };
        match failed {
            None => {}
            Some(
                AttachError::Incompatible { .. } | AttachError::Unit(UnitError::OutOfFrames(_)),
            ) => {}
            Some(AttachError::Unit(error)) => self.failed(error),
            Some(error) => rig.broken(Rule::WrongAnswer, format!("not attached: {error}")),
        }
    }

    fn unbind_nest(&mut self, nest: &mut Nest<F>) {
        let rig = self.rig().clone();
        let group = match std::mem::replace(&mut nest.place, Place::Gone) {
            Place::On(group) => group,
            other => {
                nest.place = other;
                return;
            }
        };
        rig.detaching(&nest.members, nest.tenants.1);
        match group.detach() {
            Ok(group) => {
                rig.detached(&nest.members);
                nest.place = Place::Off(group);
            }
            Err(group) => {
                let error = group.error();
                nest.failed = true;
                nest.place = Place::Wedged(group);
                self.failed(error);
            }
        }
    }

    /// Wedged groups of such guests recover, as others do.
    pub(crate) fn recover_nests(&mut self) {
        for mut nest in std::mem::take(&mut self.nests) {
            nest.place = match std::mem::replace(&mut nest.place, Place::Gone) {
                Place::Wedged(group) => match group.recover() {
                    Ok(group) => {
                        self.rig().detached(&nest.members);
                        self.groups[nest.slot] = at_rest(group);
                        Place::Gone
                    }
                    Err(group) => {
                        let (unit, error) = (group.unit().index(), group.error());
                        if !self.wedged.contains(&unit) {
                            self.failed(error);
                        }
                        Place::Wedged(group)
                    }
                },
                other => other,
            };
            self.nests.push(nest);
        }
    }

    /// Ends all such guests, as far as their groups come back.
    pub(crate) fn end_nests(&mut self) {
        for nest in std::mem::take(&mut self.nests) {
            self.end_nest(nest);
        }
    }

    /// The group leaves, and everything ends; it stays as it is while the group is wedged.
    fn end_nest(&mut self, mut nest: Nest<F>) {
        let rig = self.rig().clone();
        self.unbind_nest(&mut nest);
        match std::mem::replace(&mut nest.place, Place::Gone) {
            Place::Off(group) => self.groups[nest.slot] = at_rest(group.release().into()),
            Place::Gone => {}
            kept => {
                nest.place = kept;
                self.nests.push(nest);
                return;
            }
        }
        let (parents, devices) = nest.tenants;
        rig.ended(devices);
        if let Err(error) = nest.nested.destroy() {
            let what = format!("a nested domain does not end: {}", error.reason);
            rig.broken(Rule::Leak, what);
            return;
        }
        drop(nest.spots);
        let teardown = match nest.parent.destroy() {
            Ok(teardown) => teardown,
            Err(error) => {
                rig.broken(
                    Rule::Leak,
                    format!("a parent does not end: {}", error.reason),
                );
                return;
            }
        };
        rig.ended(parents);
        for pin in teardown {
            drop(nest.memory.unpin(pin));
        }
        match nest.memory.take_back(Gpa::new(0)) {
            Ok(run) => rig.free_frames(run),
            Err(error) => rig.broken(Rule::Leak, format!("a guest keeps its memory: {error}")),
        }
    }
}
