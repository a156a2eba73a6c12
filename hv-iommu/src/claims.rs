//! A table of groups at rest, from which several tenants claim at once.
//!
//! The loom models `bc05_of_two_claims_one_gets_the_group` and `bc05_a_group_goes_from_holder_to_holder` pin that each
//! group has one holder.

use alloc::vec::Vec;
use core::fmt;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::sync::Mutex;
use hv_core::{KernelPaging, OutOfMemory, Owner, OwnerId, PciAddress, Shared, UserManaged, VmId};

use thiserror::Error;

use crate::backend::Backend;
use crate::group::{Claimed, Group, GroupId, Inner};
use crate::rescan::{RescanError, RescanFailed, Rescanned};
use crate::rest::AtRest;
use crate::states::HeldBy;
use crate::system::{Iommu, System};
use crate::topology::PciFunction;

/// Why a group was not claimed. It is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// There is no such group.
    #[error("there is no {0}")]
    Unknown(GroupId),
    /// Somebody has it.
    #[error("{group} is held by {holder}")]
    Held {
        /// The group.
        group: GroupId,
        /// Who has it.
        holder: OwnerId,
    },
    /// Firmware goes on using it, so that no guest may have it.
    #[error(
        "{0} is pinned by firmware: only the hypervisor may claim it, or an override take it from firmware"
    )]
    Pinned(GroupId),
    /// Somebody had it, and its devices were not reset since.
    #[error("{group} was {last}'s and has to be reset first")]
    NeedsReset {
        /// The group.
        group: GroupId,
        /// Who.
        last: OwnerId,
    },
}

enum Place<B: Backend> {
    Here(AtRest<B>),
    With(OwnerId),
}

/// Where the group of a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In the table: nobody holds it.
    AtRest(GroupId),
    /// With somebody.
    Held {
        /// The group.
        group: GroupId,
        /// Who has it.
        holder: OwnerId,
    },
}

impl Whereabouts {
    /// Of which group.
    pub const fn group(self) -> GroupId {
        match self {
            Self::AtRest(group) | Self::Held { group, .. } => group,
        }
    }

    /// Who has it, if somebody has.
    pub const fn holder(self) -> Option<OwnerId> {
        match self {
            Self::AtRest(_) => None,
            Self::Held { holder, .. } => Some(holder),
        }
    }
}

impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtRest(group) => write!(f, "{group} is at rest"),
            Self::Held { group, holder } => write!(f, "{group} is held by {holder}"),
        }
    }
}

struct Slot<B: Backend> {
    id: GroupId,
    /// The functions, which are asked for while the group is away too.
    members: Vec<PciAddress>,
    /// Of which the group is: others number theirs alike.
    system: Shared<System<B>>,
    place: Place<B>,
}

impl<B: Backend> Slot<B> {
    /// A slot for a group that is not in it yet.
    fn of(group: &AtRest<B>) -> Result<Self, OutOfMemory> {
        Self::of_inner(group.inner(), OwnerId::Hypervisor)
    }

    /// The same of a group that `holder` has.
    fn of_inner(group: &Inner<B>, holder: OwnerId) -> Result<Self, OutOfMemory> {
        Ok(Self {
            id: group.id,
            members: members(&group.members)?,
            system: group.system.clone(),
            place: Place::With(holder),
        })
    }

    /// Puts its group in, which may have other members now.
    ///
    /// # Errors
    /// The group, with [`OutOfMemory`] for its members.
    fn put(&mut self, group: AtRest<B>) -> Result<(), (AtRest<B>, OutOfMemory)> {
        if self.members != group.members() {
            match members(group.members()) {
                Ok(members) => self.members = members,
                Err(error) => return Err((group, error)),
            }
        }
        // INVARIANT: it is here.
        self.place = Place::Here(group);
        Ok(())
    }

    fn whereabouts(&self) -> Whereabouts {
        let group = self.id;
        match self.place {
            Place::Here(_) => Whereabouts::AtRest(group),
            Place::With(holder) => Whereabouts::Held { group, holder },
        }
    }
}

fn members(found: &[PciAddress]) -> Result<Vec<PciAddress>, OutOfMemory> {
    let mut members = Vec::new();
    let bytes = size_of_val(found);
    let room = members.try_reserve_exact(found.len());
    room.map_err(|_| OutOfMemory { bytes })?;
    members.extend_from_slice(found);
    Ok(members)
}

/// Puts a group in: into its slot, or one that is new.
///
/// # Errors
/// The group, with [`RescanError::OtherSystem`] or [`RescanError::OutOfMemory`].
fn put<B: Backend>(
    slots: &mut Vec<Slot<B>>,
    group: AtRest<B>,
) -> Result<(), (AtRest<B>, RescanError)> {
    let id = group.id();
    let is_own = |slot: &Slot<B>| Shared::ptr_eq(&slot.system, group.system());
    let is_first = slots.first().is_none_or(is_own);
    let same = |slot: &&mut Slot<B>| slot.id == id && is_own(slot);
    match slots.iter_mut().find(same) {
        Some(slot) if matches!(slot.place, Place::With(_)) => slot
            .put(group)
            .map_err(|(group, error)| (group, error.into())),
        None if is_first => {
            let bytes = size_of::<Slot<B>>();
            let room = slots.try_reserve(1).map_err(|_| OutOfMemory { bytes });
            match room.and_then(|()| Slot::of(&group)) {
                Ok(mut slot) => {
                    // INVARIANT: it is here.
                    slot.place = Place::Here(group);
                    slots.push(slot);
                    Ok(())
                }
                Err(error) => Err((group, error.into())),
            }
        }
        _ => Err((group, RescanError::OtherSystem(id))),
    }
}

/// The groups of a machine that nobody holds, and who holds the others.
///
/// # Invariants
/// A slot's group is here, or was handed out to the owner that the slot names and has not come back.
pub struct GroupTable<B: Backend>(Mutex<Vec<Slot<B>>>);

impl<B: Backend> GroupTable<B> {
    /// A table of these groups, of one subsystem.
    ///
    /// # Errors
    /// The groups, with [`OutOfMemory`].
    pub fn new(groups: Vec<AtRest<B>>) -> Result<Self, (Vec<AtRest<B>>, OutOfMemory)> {
        let mut slots = Vec::new();
        for group in &groups {
            if let Err(error) = Slot::of(group).and_then(|slot| push(&mut slots, slot)) {
                return Err((groups, error));
            }
        }
        for (slot, group) in slots.iter_mut().zip(groups) {
            // INVARIANT: it is here.
            slot.place = Place::Here(group);
        }
        Ok(Self(Mutex::new(slots)))
    }

    /// Claims a group for one guest.
    ///
    /// # Errors
    /// [`ClaimError`] names who has it, or what is in the way.
    pub fn claim_for_guest(
        &self,
        group: GroupId,
        vm: VmId,
    ) -> Result<Group<B, Claimed<UserManaged>>, ClaimError> {
        self.take(group, OwnerId::Vm(vm), |found| match found {
            AtRest::Claimable(group) => Ok(group.claim_for_guest(vm)),
            AtRest::ForHypervisor(pinned) => {
                Err((AtRest::ForHypervisor(pinned), ClaimError::Pinned(group)))
            }
            used @ (AtRest::ToReset(_) | AtRest::AfterDriver(_)) => Err(to_reset(used)),
        })
    }

    /// Claims a group for the hypervisor's own driver.
    ///
    /// # Errors
    /// [`ClaimError`] names who has it, or what is in the way.
    pub fn claim_for_hypervisor(
        &self,
        group: GroupId,
    ) -> Result<Group<B, Claimed<KernelPaging>>, ClaimError> {
        self.take(group, OwnerId::Hypervisor, |found| match found {
            AtRest::Claimable(group) => Ok(group.claim_for_hypervisor()),
            AtRest::ForHypervisor(group) => Ok(group.claim_for_hypervisor()),
            AtRest::AfterDriver(group) => Ok(group.claim_for_hypervisor()),
            used @ AtRest::ToReset(_) => Err(to_reset(used)),
        })
    }

    /// Takes a group as it is: to reset its devices, or to take it from firmware. The hypervisor holds it until it
    /// is put back.
    ///
    /// # Errors
    /// [`ClaimError::Unknown`], [`ClaimError::Held`].
    pub fn take_at_rest(&self, group: GroupId) -> Result<AtRest<B>, ClaimError> {
        self.take(group, OwnerId::Hypervisor, Ok)
    }

    /// Takes note of a group that somebody holds and that is not from here, such as one that was
    /// [kept running](crate::Kept): its functions are [found](Self::find) from now on, nobody else can claim it, and the
    /// table takes it once it is at rest ([`put_back`](Self::put_back)).
    ///
    /// # Errors
    /// [`RescanError::OtherSystem`] when it is of another subsystem than the groups here, [`RescanError::OutOfMemory`].
    pub fn note_held<O: Owner, S: HeldBy<O>>(
        &self,
        group: &Group<B, S>,
    ) -> Result<(), RescanError> {
        let (id, holder) = (group.id(), O::owner_id(group.state.owner()));
        let slot = Slot::of_inner(&group.inner, holder)?;
        let mut slots = self.0.lock();
        let is_own = |other: &Slot<B>| Shared::ptr_eq(&other.system, &slot.system);
        if !slots.first().is_none_or(is_own) {
            return Err(RescanError::OtherSystem(id));
        }
        // INVARIANT: it is with who holds it. A group that somebody holds is in no slot.
        match slots.iter_mut().find(|other| other.id == id) {
            Some(known) => *known = slot,
            None => push(&mut *slots, slot)?,
        }
        Ok(())
    }

    /// Puts a group back that was taken from here, or one of the same subsystem that came later.
    ///
    /// # Errors
    /// The group, if it is of another subsystem, or if there is no memory to note it or members that it did not have.
    pub fn put_back(&self, group: AtRest<B>) -> Result<(), AtRest<B>> {
        put(&mut self.0.lock(), group).map_err(|(group, _)| group)
    }

    /// Takes in functions that came later, as [`Iommu::add_functions`] does, with the groups that are here. Meanwhile the
    /// hypervisor holds those.
    ///
    /// # Errors
    /// [`RescanFailed`]. With groups only where the functions were taken in and there was no memory to keep what came of
    /// it: [`put_back`](Self::put_back) takes those once there is.
    pub fn add_functions(
        &self,
        iommu: &Iommu<B>,
        functions: &[PciFunction],
    ) -> Result<(), RescanFailed<B>> {
        self.rescan(|groups| iommu.add_functions(functions, groups))
    }

    /// Lets functions go, as [`Iommu::remove_functions`] does, with the groups that are here.
    ///
    /// # Errors
    /// As for [`add_functions`](Self::add_functions).
    pub fn remove_functions(
        &self,
        iommu: &Iommu<B>,
        functions: &[PciAddress],
    ) -> Result<(), RescanFailed<B>> {
        self.rescan(|groups| iommu.remove_functions(functions, groups))
    }

    fn rescan(
        &self,
        rescan: impl FnOnce(Vec<AtRest<B>>) -> Result<Rescanned<B>, RescanFailed<B>>,
    ) -> Result<(), RescanFailed<B>> {
        let mut taken = Vec::new();
        let mut slots = self.0.lock();
        if taken.try_reserve(slots.len()).is_err() {
            let bytes = slots.len() * size_of::<AtRest<B>>();
            let (at_rest, error) = (taken, OutOfMemory { bytes }.into());
            return Err(RescanFailed { at_rest, error });
        }
        for slot in slots.iter_mut() {
            let holder = Place::With(OwnerId::Hypervisor);
            match core::mem::replace(&mut slot.place, holder) {
                Place::Here(group) => taken.push(group),
                held @ Place::With(_) => slot.place = held,
            }
        }
        drop(slots);
        let (mut at_rest, ended, mut failed) = match rescan(taken) {
            Ok(Rescanned { groups, ended }) => (groups, ended, None),
            Err(failed) => (failed.at_rest, Vec::new(), Some(failed.error)),
        };
        let mut slots = self.0.lock();
        slots.retain(|slot| !ended.contains(&slot.id));
        // What is no more is gone from here; of the rest as much goes in as there is memory for. One that was here and
        // is as it was needs none.
        for _ in 0..at_rest.len() {
            let Some(group) = at_rest.pop() else { break };
            if let Err((group, error)) = put(&mut slots, group) {
                failed = failed.or(Some(error));
                // Where another one was just taken from: without an allocation.
                at_rest.insert(0, group);
            }
        }
        drop(slots);
        match failed {
            None => Ok(()),
            Some(error) => Err(RescanFailed { at_rest, error }),
        }
    }

    /// The group that has this function, and who holds it; `None` if no group of the table has it.
    pub fn find(&self, member: PciAddress) -> Option<Whereabouts> {
        let slots = self.0.lock();
        let slot = slots.iter().find(|slot| slot.members.contains(&member))?;
        Some(slot.whereabouts())
    }

    /// Where a group is; `None` if it is none of the table's.
    pub fn whereabouts(&self, group: GroupId) -> Option<Whereabouts> {
        let slots = self.0.lock();
        let slot = slots.iter().find(|slot| slot.id == group)?;
        Some(slot.whereabouts())
    }

    /// Hands a group out under the lock. Claiming writes no register and waits for nothing.
    fn take<T>(
        &self,
        group: GroupId,
        by: OwnerId,
        claim: impl FnOnce(AtRest<B>) -> Result<T, (AtRest<B>, ClaimError)>,
    ) -> Result<T, ClaimError> {
        let mut slots = self.0.lock();
        let slot = slots.iter_mut().find(|slot| slot.id == group);
        let slot = slot.ok_or(ClaimError::Unknown(group))?;
        let late = Fault::HolderNotedLate.is_on();
        let noted = if late { OwnerId::Hypervisor } else { by };
        // INVARIANT: handed out to `by` from here on, or put back below.
        match core::mem::replace(&mut slot.place, Place::With(noted)) {
            Place::Here(found) => {
                let claimed = claim(found).map_err(|(found, error)| {
                    slot.place = Place::Here(found);
                    error
                });
                drop(slots);
                if late && claimed.is_ok() {
                    let mut slots = self.0.lock();
                    let slot = slots.iter_mut().find(|slot| slot.id == group);
                    slot.into_iter()
                        .for_each(|slot| slot.place = Place::With(by));
                }
                claimed
            }
            Place::With(holder) => {
                slot.place = Place::With(holder);
                Err(ClaimError::Held { group, holder })
            }
        }
    }
}

fn to_reset<B: Backend>(used: AtRest<B>) -> (AtRest<B>, ClaimError) {
    let group = used.id();
    let last = used.last_owner().unwrap_or(OwnerId::Hypervisor);
    (used, ClaimError::NeedsReset { group, last })
}
