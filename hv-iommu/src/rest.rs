//! Groups that nobody holds: which may be claimed by whom, and what has to happen before.

use alloc::vec::Vec;
use core::fmt;

use hv_core::{KernelPaging, OutOfMemory, Owner, OwnerId, PciAddress, Shared, UserManaged, VmId};
use thiserror::Error;

use crate::backend::Backend;
use crate::dma::Trust;
use crate::group::{Blocked, Claimed, Group, GroupId, Inner};
use crate::reserved::{FirmwareOverridden, ReservedKind, ReservedRegion};
use crate::states::ClaimedUnseen;
use crate::system::System;
use crate::topology::IsolationError;

/// State of a group with a device that firmware goes on using. It reaches no memory and belongs to nobody. The
/// hypervisor may claim it; a domain that is made for it then maps firmware's regions. A guest may not.
#[derive(Debug)]
pub struct Pinned(());

/// State of a group that an owner of kind `O` gave up. It reaches no memory and belongs to nobody. What its last owner
/// armed its devices with is still in them, so they are reset before anybody claims the group; but the hypervisor may
/// [take its own](Group::claim_for_hypervisor) as it is.
#[derive(Debug)]
pub struct NeedsReset<O: Owner = UserManaged> {
    last: O::Id,
}

/// A group at rest: blocked, and nobody's. Which of these it is depends on the machine and on who had it before,
/// so it is looked at where groups come in: from discovery, from a release, from a recovery.
#[must_use = "a dropped group can never be claimed again"]
pub enum AtRest<B: Backend> {
    /// Anybody may claim it.
    Claimable(Group<B, Blocked>),
    /// The hypervisor may claim it.
    ForHypervisor(Group<B, Pinned>),
    /// A guest had it: its devices have to be reset first.
    ToReset(Group<B, NeedsReset>),
    /// A driver of the hypervisor had it: its devices have to be reset before a guest has it.
    AfterDriver(Group<B, NeedsReset<KernelPaging>>),
}

impl<B: Backend> From<Group<B, NeedsReset>> for AtRest<B> {
    fn from(group: Group<B, NeedsReset>) -> Self {
        Self::ToReset(group)
    }
}

impl<B: Backend> From<Group<B, NeedsReset<KernelPaging>>> for AtRest<B> {
    fn from(group: Group<B, NeedsReset<KernelPaging>>) -> Self {
        Self::AfterDriver(group)
    }
}

impl<B: Backend> AtRest<B> {
    /// The group, if anybody may claim it.
    ///
    /// # Errors
    /// The group as it is.
    pub fn claimable(self) -> Result<Group<B, Blocked>, Self> {
        match self {
            Self::Claimable(group) => Ok(group),
            other => Err(other),
        }
    }

    /// Does not compile: whether anybody may claim the group is asked first, and the error says how.
    pub fn claim_for_guest(self, vm: VmId) -> Group<B, Claimed<UserManaged>>
    where
        Self: ClaimedUnseen,
    {
        let _ = vm;
        self.never()
    }

    /// Does not compile, like [`claim_for_guest`](Self::claim_for_guest).
    pub fn claim_for_hypervisor(self) -> Group<B, Claimed<KernelPaging>>
    where
        Self: ClaimedUnseen,
    {
        self.never()
    }

    /// The group's number.
    pub fn id(&self) -> GroupId {
        self.inner().id
    }

    pub(crate) fn system(&self) -> &Shared<System<B>> {
        &self.inner().system
    }

    /// The functions in the group.
    pub fn members(&self) -> &[PciAddress] {
        &self.inner().members
    }

    /// Who had it, if its devices have to be reset after that.
    pub fn last_owner(&self) -> Option<OwnerId> {
        match self {
            Self::Claimable(_) | Self::ForHypervisor(_) => None,
            Self::ToReset(group) => Some(OwnerId::Vm(group.last_owner())),
            Self::AfterDriver(_) => Some(OwnerId::Hypervisor),
        }
    }

    pub(crate) fn inner(&self) -> &Inner<B> {
        match self {
            Self::Claimable(group) => &group.inner,
            Self::ForHypervisor(group) => &group.inner,
            Self::ToReset(group) => &group.inner,
            Self::AfterDriver(group) => &group.inner,
        }
    }
}

impl<B: Backend> fmt::Debug for AtRest<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claimable(group) => write!(f, "free {group:?}"),
            Self::ForHypervisor(group) => write!(f, "pinned {group:?}"),
            Self::ToReset(group) => write!(f, "{group:?}, to be reset"),
            Self::AfterDriver(group) => write!(f, "{group:?}, to be reset after its driver"),
        }
    }
}

impl<B: Backend> Inner<B> {
    /// The group at rest, nothing of whose last owner is left in its devices.
    pub(crate) fn rest(mut self) -> AtRest<B> {
        self.end_claim();
        if self
            .firmwares_regions()
            .any(|region| region.kind == ReservedKind::Pinned)
        {
            let state = Pinned(());
            return AtRest::ForHypervisor(Group { inner: self, state });
        }
        let state = Blocked(());
        AtRest::Claimable(Group { inner: self, state })
    }

    /// The group at rest after this owner.
    pub(crate) fn rest_after(self, owner: OwnerId) -> AtRest<B> {
        match owner {
            OwnerId::Vm(vm) => self.needing_reset::<UserManaged>(vm).into(),
            OwnerId::Hypervisor => self.needing_reset::<KernelPaging>(()).into(),
        }
    }

    /// The group after this owner of a kind.
    pub(crate) fn needing_reset<O: Owner>(mut self, last: O::Id) -> Group<B, NeedsReset<O>> {
        self.end_claim();
        let state = NeedsReset { last };
        Group { inner: self, state }
    }

    fn end_claim(&mut self) {
        self.claims = self.claims.wrapping_add(1);
        // An override and a word given count for one claim.
        self.is_overridden = false;
        self.trust = Trust::Untrusted;
        self.has_cxl_word = false;
        self.has_incoherent_word = false;
    }

    /// What firmware wants mapped for the group, unless that was overridden.
    pub(crate) fn firmwares_regions(&self) -> impl Iterator<Item = ReservedRegion> + '_ {
        let wanted =
            |region: &&ReservedRegion| region.kind != ReservedKind::Doorbell && !self.is_overridden;
        self.regions.iter().filter(wanted).copied()
    }

    /// Where the group's interrupt messages go: no override is about those.
    pub(crate) fn doorbells(&self) -> impl Iterator<Item = ReservedRegion> + '_ {
        let is = |region: &&ReservedRegion| region.kind == ReservedKind::Doorbell;
        self.regions.iter().filter(is).copied()
    }

    /// What a domain has to have mapped before the group is attached to it.
    pub(crate) fn required_regions(&self) -> impl Iterator<Item = ReservedRegion> + '_ {
        let pinned = |region: &ReservedRegion| region.kind == ReservedKind::Pinned;
        self.firmwares_regions()
            .filter(pinned)
            .chain(self.doorbells())
    }
}

impl<B: Backend, S> Group<B, S> {
    /// Every range that firmware or hardware reserves for a requester of the group: the windows of its unit,
    /// firmware's regions, and the doorbells of its interrupt messages.
    pub fn reserved_regions(&self) -> impl Iterator<Item = ReservedRegion> + '_ {
        let window = |range: &hv_core::IovaRange| ReservedRegion {
            range: *range,
            kind: ReservedKind::InterruptWindow,
        };
        let windows = self.inner.system.backend.reserved().iter().map(window);
        windows.chain(self.inner.regions.iter().copied())
    }
}

impl<B: Backend> Group<B, Pinned> {
    /// Takes the group from firmware, for one claim. The log says why.
    pub fn override_firmware(self, policy: &FirmwareOverridden) -> Group<B, Blocked> {
        for region in self.inner.firmwares_regions() {
            log::warn!(
                "OVERRIDE: {} is taken from firmware, which says that it uses {region}: {}",
                self.inner.id,
                policy.reason()
            );
        }
        let mut group = self.into_state(Blocked(()));
        group.inner.is_overridden = true;
        group
    }
}

/// Why the members of a group were not all reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResetRefusal<E> {
    /// The reset of a member failed.
    #[error("{member} was not reset: {error}")]
    Member {
        /// The member.
        member: PciAddress,
        /// Why.
        error: E,
    },
    /// The members were reset, and the group is no longer kept apart.
    #[error(transparent)]
    NotApart(#[from] IsolationError),
    /// There was no memory to note which members are gone. None was reset.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A group that still needs its reset, and why.
pub struct ResetFailed<B: Backend, O: Owner, E> {
    /// The group.
    pub group: Group<B, NeedsReset<O>>,
    /// Why.
    pub error: ResetRefusal<E>,
}

impl<B: Backend, O: Owner, E: fmt::Display> fmt::Display for ResetFailed<B, O, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} still needs its reset: {}",
            self.group.id(),
            self.error
        )
    }
}

impl<B: Backend, O: Owner, E: fmt::Debug> fmt::Debug for ResetFailed<B, O, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} still needs its reset: {:?}",
            self.group.id(),
            self.error
        )
    }
}

impl<B: Backend, O: Owner, E: fmt::Debug + fmt::Display> core::error::Error
    for ResetFailed<B, O, E>
{
}

/// What [`reset_members`](Group::reset_members) gives.
#[must_use = "a dropped group can never be claimed again"]
pub enum ResetMembers<B: Backend, O: Owner> {
    /// All members were reset.
    All(AtRest<B>),
    /// Some did not answer, so nobody knows what is in them.
    SomeGone(MembersGone<B, O>),
}

impl<B: Backend, O: Owner> ResetMembers<B, O> {
    /// The group at rest, if all members were reset.
    ///
    /// # Errors
    /// The group, and which were not.
    pub fn all(self) -> Result<AtRest<B>, MembersGone<B, O>> {
        match self {
            Self::All(group) => Ok(group),
            Self::SomeGone(gone) => Err(gone),
        }
    }
}

/// A group of which some members did not answer when it was to be reset; the others were reset.
#[must_use = "a dropped group can never be claimed again"]
pub struct MembersGone<B: Backend, O: Owner> {
    group: Group<B, NeedsReset<O>>,
    gone: Vec<PciAddress>,
}

impl<B: Backend, O: Owner> fmt::Debug for MembersGone<B, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (group, gone) = (self.group.id(), &self.gone);
        write!(f, "{group}, of which {gone:?} did not answer")
    }
}

impl<B: Backend, O: Owner> MembersGone<B, O> {
    /// The members that did not answer, before their reset or after.
    pub fn gone(&self) -> &[PciAddress] {
        &self.gone
    }

    /// The group, to reset it once they are back.
    pub fn try_again(self) -> Group<B, NeedsReset<O>> {
        self.group
    }

    /// Says that those that did not answer need no reset: they were pulled out, and what comes in their place begins
    /// anew. Whether that is kept apart is looked at when the group is attached. The log says why. To let a function go
    /// for good: [`Iommu::remove_functions`](crate::Iommu::remove_functions).
    pub fn without_them(self, reason: &'static str) -> AtRest<B> {
        let (group, gone) = (self.group.id(), &self.gone);
        log::warn!("OVERRIDE: {gone:?} of {group} are not reset: {reason}");
        self.group.inner.rest()
    }
}

impl<B: Backend, O: Owner> Group<B, NeedsReset<O>> {
    /// Who had it.
    pub fn last_owner(&self) -> O::Id {
        self.state.last
    }

    /// Resets the group's devices: calls `reset` for each member, one after the other, while none of them reaches
    /// memory. `reset` returns once its function answers again. A member that does not answer, before or after, is named.
    ///
    /// A reset clears what keeps groups apart (the ACS control of a function with several siblings, of the ports below a
    /// bridge that was reset). It is set again here as it was when the functions came in, and read back.
    ///
    /// # Errors
    /// The group, with the first error of `reset`, or with what no longer keeps it apart. Call again: all members are
    /// reset then.
    pub fn reset_members<E>(
        mut self,
        mut reset: impl FnMut(PciAddress) -> Result<(), E>,
    ) -> Result<ResetMembers<B, O>, ResetFailed<B, O, E>> {
        let mut gone: Vec<PciAddress> = Vec::new();
        let room = gone.try_reserve(self.inner.members.len());
        if room.is_err() {
            let bytes = self.inner.members.len() * size_of::<PciAddress>();
            let error = OutOfMemory { bytes }.into();
            return Err(ResetFailed { group: self, error });
        }
        self.inner.is_unseen = true;
        for &member in &self.inner.members {
            let was_gone = self.inner.is_gone(member);
            if !was_gone && let Err(error) = reset(member) {
                let error = ResetRefusal::Member { member, error };
                return Err(ResetFailed { group: self, error });
            }
            // One that answers only now was not reset.
            if was_gone || self.inner.is_gone(member) {
                // Within what was reserved.
                gone.push(member);
            }
        }
        // A reset that went through the bridge above may have set the bit as it was before.
        self.inner.silence();
        if !gone.is_empty() {
            let group = self;
            return Ok(ResetMembers::SomeGone(MembersGone { group, gone }));
        }
        match self.inner.look_if_unseen() {
            Ok(()) => Ok(ResetMembers::All(self.inner.rest())),
            Err(error) => {
                let error = error.into();
                Err(ResetFailed { group: self, error })
            }
        }
    }

    /// Says that the devices need no reset between two owners. The log says why.
    pub fn without_reset(self, reason: &'static str) -> AtRest<B> {
        log::warn!(
            "OVERRIDE: {} is not reset after {}: {reason}",
            self.inner.id,
            O::owner_id(self.state.last)
        );
        self.inner.rest()
    }
}
