//! What a random life does with groups: claim, attach, detach, reassign; bus mastering.

use hv_core::{PageSize, PciAddress, VmId};
use hv_iommu::table::TableError;
use hv_iommu::{
    AtRest, AttachError, AttachFailed, Domain, DomainConfig, DomainError, Needs, UnitError,
    UnitIndex,
};

use super::granule::Lives;
use super::space::{Household, Space};
use super::world::{GUESTS, Held, World};
use crate::ledger::Tenant;
use crate::machine::UnitModel;
use crate::rng::Rng;
use crate::rule::Rule;

/// The guest of a choice, or the hypervisor.
fn owner(choice: u64) -> Option<VmId> {
    VmId::new((choice % (u64::from(GUESTS) + 1)) as u16)
}

impl<B: Lives> World<B> {
    /// The index of a group, by choice.
    fn pick(&self, choice: u64) -> usize {
        (choice % self.groups.len() as u64) as usize
    }

    /// Whether some unit has first stages alone.
    fn has_first_alone(&self) -> bool {
        let machine = self.rig().machine();
        machine.units.iter().any(UnitModel::has_first_alone)
    }

    fn take(&mut self, index: usize) -> Held<B> {
        std::mem::replace(&mut self.groups[index], Held::Moving)
    }

    pub(crate) fn claim(&mut self, choice: [u64; 3]) {
        let index = self.pick(choice[0]);
        self.groups[index] = match self.take(index) {
            Held::Blocked(group) => match owner(choice[1]) {
                Some(vm) => Held::Guest(group.claim_for_guest(vm)),
                None => Held::Kernel(group.claim_for_hypervisor().trust("a random life")),
            },
            other => other,
        };
    }

    pub(crate) fn release(&mut self, choice: [u64; 3]) {
        let index = self.pick(choice[0]);
        self.groups[index] = match self.take(index) {
            Held::Kernel(group) => at_rest(group.release().into()),
            Held::Guest(group) => at_rest(group.release().into()),
            other => other,
        };
    }

    pub(crate) fn allocate(&mut self, choice: [u64; 3]) {
        if self.kernel.len() + self.guest.len() > 3 {
            return;
        }
        let mut rng = Rng::new(choice[1]);
        let more = if rng.one_in(3) { 20 } else { 8 };
        let config = DomainConfig {
            address_bits: 31 + rng.below(more) as u8,
            largest_page: *rng
                .pick(&[B::smallest(), B::large(), PageSize::LARGEST])
                .unwrap_or(&B::smallest()),
        };
        let index = self.pick(choice[0]);
        let unit = match &self.groups[index] {
            Held::Kernel(group) => group.unit(),
            Held::Guest(group) => group.unit(),
            _ => return,
        };
        let needs = self.needs(unit, choice[2]);
        let request = config.with(needs);
        let made = match &self.groups[index] {
            Held::Kernel(group) => match Domain::paging_domain_alloc(group, request) {
                Ok(domain) => {
                    let space = self.space(domain, (), needs);
                    self.kernel.insert(space.tenant.0, space);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Held::Guest(group) => match Domain::user_domain_alloc(group, request) {
                Ok(domain) => {
                    let vm = group.owner();
                    let space = self.space(domain, vm, needs);
                    self.guest.insert(space.tenant.0, space);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            _ => Ok(()),
        };
        match made {
            // Frames fail on purpose; ids run out where a unit has few.
            Ok(())
            | Err(DomainError::Table(TableError::OutOfFrames { .. }) | DomainError::NoDomainId) => {
            }
            // A unit may have fewer bits, or nothing for guests.
            Err(DomainError::TooManyBits { .. }) => {}
            Err(DomainError::NoSecondStage { .. }) if self.has_first_alone() => {}
            Err(error) => self
                .rig()
                .broken(Rule::WrongAnswer, format!("no domain: {error}")),
        }
    }

    /// What a domain is asked for beside its size, of what this unit can do.
    fn needs(&self, unit: UnitIndex, choice: u64) -> Needs {
        let Some(caps) = self.iommu.unit_caps(unit) else {
            return Needs::default();
        };
        // Of its own, so that the rest of a life does not depend on it.
        let mut rng = Rng::new(choice ^ 0x6e_6565_6473);
        Needs {
            dirty_tracking: caps.dirty && rng.one_in(2),
            coherent_dma: caps.snoop_control && rng.one_in(2),
            ..Needs::default()
        }
    }

    fn space<O: Household>(
        &mut self,
        domain: Domain<O, B>,
        owner: O::Id,
        needs: Needs,
    ) -> Space<O, B> {
        let tenant = Tenant(self.next_tenant);
        self.next_tenant += 1;
        if needs.coherent_dma {
            self.rig().snoops(tenant);
        }
        Space::new(domain, owner, tenant)
    }

    pub(crate) fn attach(&mut self, choice: [u64; 3]) {
        let index = self.pick(choice[0]);
        let held = self.take(index);
        self.groups[index] = self.attach_held(held, choice);
    }

    fn attach_held(&mut self, held: Held<B>, choice: [u64; 3]) -> Held<B> {
        let rig = self.rig().clone();
        let (attached, failed) = match held {
            Held::Kernel(group) => {
                let count = self.kernel.len() as u64;
                let nth = choice[1].checked_rem(count);
                let Some(space) = nth.and_then(|nth| self.kernel.values_mut().nth(nth as usize))
                else {
                    return Held::Kernel(group);
                };
                let (tenant, members) = (space.tenant, group.members().to_vec());
                rig.say(format!("{members:?} to {tenant:?}"));
                rig.attaching(&members, tenant);
                match group.attach(&space.domain) {
                    Ok(group) => {
                        space.attached += 1;
                        rig.attached(&members, tenant);
                        (Held::KernelOn(group, tenant), None)
                    }
                    Err(AttachFailed::Refused { group, error }) => {
                        rig.detached(&members);
                        (Held::Kernel(group), Some(error))
                    }
                    Err(AttachFailed::Wedged { group }) => {
                        space.attached += 1;
                        rig.detaching(&members, tenant);
                        let error = group.error().into();
                        (Held::Wedged(group, tenant), Some(error))
                    }
                }
            }
            Held::Guest(group) => {
                let vm = group.owner();
                let mut mine: Vec<_> = self
                    .guest
                    .values_mut()
                    .filter(|space| space.owner == vm)
                    .collect();
                let nth = choice[1].checked_rem(mine.len() as u64);
                let Some(space) = nth.and_then(|nth| mine.get_mut(nth as usize)) else {
                    return Held::Guest(group);
                };
                let (tenant, members) = (space.tenant, group.members().to_vec());
                rig.say(format!("{members:?} to {tenant:?}"));
                rig.attaching(&members, tenant);
                match group.attach_for_guest(&space.domain, &self.witness) {
                    Ok(group) => {
                        space.attached += 1;
                        rig.attached(&members, tenant);
                        (Held::GuestOn(group, tenant), None)
                    }
                    Err(AttachFailed::Refused { group, error }) => {
                        rig.detached(&members);
                        (Held::Guest(group), Some(error))
                    }
                    Err(AttachFailed::Wedged { group }) => {
                        space.attached += 1;
                        rig.detaching(&members, tenant);
                        let error = group.error().into();
                        (Held::Wedged(group, tenant), Some(error))
                    }
                }
            }
            other => return other,
        };
        match failed {
            None => self.let_send(&attached),
            // What another unit can do differs; frames for a bus's table may be out.
            Some(
                AttachError::Incompatible { .. } | AttachError::Unit(UnitError::OutOfFrames(_)),
            ) => {}
            Some(AttachError::Unit(error)) => self.failed(error),
            Some(error) => rig.broken(Rule::WrongAnswer, format!("not attached: {error}")),
        }
        attached
    }

    /// Lets the members of an attached group send.
    fn let_send(&mut self, held: &Held<B>) {
        let failed: Vec<AttachError> = match held {
            Held::KernelOn(group, _) => {
                each_member(group.members(), |member| group.enable_bus_mastering(member))
            }
            Held::GuestOn(group, _) => {
                each_member(group.members(), |member| group.enable_bus_mastering(member))
            }
            _ => Vec::new(),
        };
        for error in failed {
            match error {
                // It was pulled out.
                AttachError::NoBusMastering { .. } | AttachError::Gone { .. } => {}
                AttachError::Unit(UnitError::Wedged { unit })
                    if self.wedged.contains(&unit.index()) => {}
                other => self
                    .rig()
                    .broken(Rule::WrongAnswer, format!("bus mastering: {other}")),
            }
        }
    }

    pub(crate) fn bus_master(&mut self, choice: [u64; 3]) {
        let index = self.pick(choice[0]);
        let held = self.take(index);
        let off = match &held {
            Held::KernelOn(group, _) => each_member(group.members(), |member| {
                group.disable_bus_mastering(member)
            }),
            Held::GuestOn(group, _) => each_member(group.members(), |member| {
                group.disable_bus_mastering(member)
            }),
            _ => Vec::new(),
        };
        // Of those that were pulled out nothing is known, and nothing is written to them.
        let gone = |error: &&AttachError| matches!(error, AttachError::Gone { .. });
        if let Some(error) = off.iter().find(|error| !gone(error)) {
            self.rig()
                .broken(Rule::WrongAnswer, format!("bus mastering off: {error}"));
        }
        if !choice[1].is_multiple_of(4) {
            self.let_send(&held);
        }
        self.groups[index] = held;
    }

    pub(crate) fn detach_some(&mut self, choice: u64) {
        let index = self.pick(choice);
        self.detach(index);
    }

    /// Detaches a group, if it is attached.
    pub(crate) fn detach(&mut self, index: usize) {
        let rig = self.rig().clone();
        let (held, left, failed) = match self.take(index) {
            Held::KernelOn(group, tenant) => {
                let members = group.members().to_vec();
                rig.detaching(&members, tenant);
                match group.detach() {
                    Ok(group) => {
                        rig.detached(&members);
                        (Held::Kernel(group), Some(tenant), None)
                    }
                    Err(group) => {
                        let error = group.error();
                        (Held::Wedged(group, tenant), None, Some(error))
                    }
                }
            }
            Held::GuestOn(group, tenant) => {
                let members = group.members().to_vec();
                rig.detaching(&members, tenant);
                match group.detach() {
                    Ok(group) => {
                        rig.detached(&members);
                        (Held::Guest(group), Some(tenant), None)
                    }
                    Err(group) => {
                        let error = group.error();
                        (Held::Wedged(group, tenant), None, Some(error))
                    }
                }
            }
            other => (other, None, None),
        };
        self.groups[index] = held;
        if let Some(tenant) = left {
            self.left(tenant);
        }
        if let Some(error) = failed {
            self.failed(error);
        }
    }

    /// One group fewer is attached to this domain.
    fn left(&mut self, tenant: Tenant) {
        if let Some(space) = self.kernel.get_mut(&tenant.0) {
            space.attached -= 1;
        }
        if let Some(space) = self.guest.get_mut(&tenant.0) {
            space.attached -= 1;
        }
    }

    /// From one owner to another, all the way: detach, release, claim, attach.
    pub(crate) fn reassign(&mut self, choice: [u64; 3]) {
        let index = self.pick(choice[0]);
        self.detach(index);
        self.release(choice);
        self.claim(choice);
        self.attach([choice[0], choice[2], choice[1]]);
    }

    /// Resets wedged units and recovers their groups; `first_wake` ends what made them hang.
    pub(crate) fn reset(&mut self, first_wake: bool) {
        for unit in self.wedged.clone() {
            if first_wake {
                self.rig().wake(unit);
            }
            let Some(index) = UnitIndex::new(unit) else {
                continue;
            };
            match self.iommu.reset_unit(index) {
                Ok(()) => {
                    self.wedged.retain(|other| *other != unit);
                    self.rig().wedged(unit, false);
                }
                Err(error) if first_wake && self.lost != Some(unit) => {
                    let what = format!("{index} was well again and was not reset: {error}");
                    self.rig().broken(Rule::WrongAnswer, what);
                }
                Err(_) => {}
            }
        }
        for index in 0..self.groups.len() {
            self.groups[index] = match self.take(index) {
                Held::Wedged(group, tenant) => {
                    let members = group.members().to_vec();
                    match group.recover() {
                        Ok(group) => {
                            self.rig().detached(&members);
                            self.left(tenant);
                            at_rest(group)
                        }
                        Err(group) => {
                            let unit = group.unit().index();
                            let error = group.error();
                            let held = Held::Wedged(group, tenant);
                            if !self.wedged.contains(&unit) {
                                self.failed(error);
                            }
                            held
                        }
                    }
                }
                other => other,
            };
        }
        B::recover_nests(self);
    }
}

/// A group at rest, after the reset that it may need. The devices of a life remember nothing.
pub(super) fn at_rest<B: Lives>(group: AtRest<B>) -> Held<B> {
    let group = match group {
        AtRest::ToReset(group) => group.without_reset("the rig's devices remember nothing"),
        AtRest::AfterDriver(group) => group.without_reset("the rig's devices remember nothing"),
        other => other,
    };
    // No machine that is drawn has regions of firmware.
    group.claimable().map_or(Held::Moving, Held::Blocked)
}

/// Does something to each member, and gives the errors.
fn each_member(
    members: &[PciAddress],
    change: impl Fn(PciAddress) -> Result<(), AttachError>,
) -> Vec<AttachError> {
    members
        .iter()
        .filter_map(|member| change(*member).err())
        .collect()
}
