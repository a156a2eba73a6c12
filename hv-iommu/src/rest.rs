//! Groups that nobody holds: which may be claimed by whom, and what has to happen before.

use core::fmt;

use hv_core::{KernelPaging, OwnerId, PciAddress, Shared, UserManaged, VmId};

use crate::backend::Backend;
use crate::dma::Trust;
use crate::group::{Blocked, Claimed, Group, GroupId, Inner};
use crate::reserved::{FirmwareOverridden, ReservedKind, ReservedRegion};
use crate::states::ClaimedUnseen;
use crate::system::System;

/// State of a group with a device that firmware goes on using. It reaches no memory and belongs to nobody. The
/// hypervisor may claim it; a domain that is made for it then maps firmware's regions. A guest may not.
#[derive(Debug)]
pub struct Pinned(());

/// State of a group that a guest gave up. It reaches no memory and belongs to nobody. What the guest armed its
/// devices with is still in them, so they are reset before anybody claims the group.
#[derive(Debug)]
pub struct NeedsReset {
    last: VmId,
}

impl NeedsReset {
    /// After this guest.
    pub(crate) fn after(last: VmId) -> Self {
        Self { last }
    }
}

/// A group at rest: blocked, and nobody's. Which of these it is depends on the machine and on who had it before,
/// so it is looked at where groups come in: from discovery, from a release, from a recovery.
#[must_use = "a dropped group can never be claimed again"]
pub enum AtRest<B: Backend> {
    /// Anybody may claim it.
    Claimable(Group<B, Blocked>),
    /// The hypervisor may claim it.
    ForHypervisor(Group<B, Pinned>),
    /// Its devices have to be reset first.
    ToReset(Group<B, NeedsReset>),
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

    fn inner(&self) -> &Inner<B> {
        match self {
            Self::Claimable(group) => &group.inner,
            Self::ForHypervisor(group) => &group.inner,
            Self::ToReset(group) => &group.inner,
        }
    }
}

impl<B: Backend> fmt::Debug for AtRest<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claimable(group) => write!(f, "free {group:?}"),
            Self::ForHypervisor(group) => write!(f, "pinned {group:?}"),
            Self::ToReset(group) => write!(f, "{group:?}, to be reset"),
        }
    }
}

impl<B: Backend> Inner<B> {
    /// The group at rest, nothing of whose last owner is left in its devices.
    pub(crate) fn rest(mut self) -> AtRest<B> {
        self.claims = self.claims.wrapping_add(1);
        // An override and a word given count for one claim.
        self.is_overridden = false;
        self.trust = Trust::Untrusted;
        if self
            .regions_to_map()
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
            OwnerId::Vm(last) => {
                let state = NeedsReset::after(last);
                AtRest::ToReset(Group { inner: self, state })
            }
            OwnerId::Hypervisor => self.rest(),
        }
    }

    /// What firmware wants mapped for the group, unless that was overridden.
    pub(crate) fn regions_to_map(&self) -> impl Iterator<Item = ReservedRegion> + '_ {
        let regions = self.regions.iter().filter(|_| !self.is_overridden);
        regions.copied()
    }
}

impl<B: Backend, S> Group<B, S> {
    /// Every range that firmware or hardware reserves for a requester of the group: the windows of its unit,
    /// and firmware's regions.
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
        for region in self.inner.regions_to_map() {
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

impl<B: Backend> Group<B, NeedsReset> {
    /// The guest that had it.
    pub fn last_owner(&self) -> VmId {
        self.state.last
    }

    /// Resets the group's devices: calls `reset` for each member, one after the other, while none of them reaches
    /// memory. A member that is gone needs no reset.
    ///
    /// Groups are kept apart by what the functions and the ports above them were set to at discovery. A reset may clear
    /// that (the ACS control of a function with several siblings, of the ports below a bridge that was reset): whoever
    /// resets sets it again before this returns.
    ///
    /// # Errors
    /// The group, with the first error of `reset`. Call again: all members are reset then.
    pub fn reset_members<E>(
        self,
        mut reset: impl FnMut(PciAddress) -> Result<(), E>,
    ) -> Result<AtRest<B>, (Self, E)> {
        for member in &self.inner.members {
            if self.inner.is_gone(*member) {
                continue;
            }
            if let Err(error) = reset(*member) {
                return Err((self, error));
            }
        }
        // A reset that went through the bridge above may have set the bit as it was before.
        self.inner.silence();
        Ok(self.inner.rest())
    }

    /// Says that the devices need no reset between two owners. The log says why.
    pub fn without_reset(self, reason: &'static str) -> AtRest<B> {
        log::warn!(
            "OVERRIDE: {} is not reset after {}: {reason}",
            self.inner.id,
            self.state.last
        );
        self.inner.rest()
    }
}
