//! Groups: devices that cannot be told apart or kept apart, claimed and moved as one value.

use alloc::vec::Vec;
use core::fmt;

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::platform::PciConfig;
use hv_core::{KernelPaging, Owner, PciAddress, Shared, UserManaged, VmId};

use crate::anchor::Anchor;
use crate::attach::AttachError;
use crate::backend::{Backend, UnitCaps, UnitError, UnitIndex};
use crate::dma::Trust;
use crate::reserved::ReservedRegion;
use crate::shape::{Paging, Shape};
use crate::spec::{COMMAND, COMMAND_BUS_MASTER};
use crate::states::{ForGuests, ForTheHypervisor, GivesUp, MaySend};
use crate::system::System;

/// A group's number, in order of discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u32);

impl GroupId {
    pub(crate) const fn numbered(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// State of a group that reaches no memory and belongs to nobody: anybody may claim it. Groups start and end
/// [`AtRest`], mostly as this.
/// Also the shape of a domain through which nobody reaches memory.
#[derive(Debug)]
pub struct Blocked(pub(crate) ());

/// State of a group that was claimed. It still reaches no memory.
#[derive(Debug)]
pub struct Claimed<O: Owner> {
    pub(crate) owner: O::Id,
}

/// State of a group whose devices translate through a domain of shape `S`.
pub struct Attached<O: Owner, B: Backend, S: Shape<O, B> = Paging> {
    pub(crate) owner: O::Id,
    pub(crate) core: S::Core,
}

/// A group whose devices translate through a domain of shape `S`.
pub type AttachedGroup<O, B, S = Paging> = Group<B, Attached<O, B, S>>;

/// State of a group whose detach was not completed by the hardware. It belongs to nobody and can
/// be neither claimed nor attached, and its domain cannot be destroyed, until the group recovers
/// behind a unit that was reset.
pub struct Wedged<B: Backend> {
    pub(crate) error: UnitError,
    /// What its entries name, if some are left: one domain, or the two that it was moved between.
    pub(crate) holds: ArrayVec<Hold<B>, 2>,
}

/// What a wedged group still has of a domain.
pub(crate) struct Hold<B: Backend> {
    pub(crate) anchor: Anchor<B>,
    /// How many of the requesters, from the first on, were ever bound to the domain.
    pub(crate) bound: usize,
    /// How many of those the domain's reach still counts.
    pub(crate) entered: usize,
}

/// What a group is, whatever its state.
pub struct Inner<B: Backend> {
    pub(crate) id: GroupId,
    pub(crate) unit: UnitIndex,
    pub(crate) caps: UnitCaps,
    /// The functions.
    pub(crate) members: Vec<PciAddress>,
    /// Every requester id that the members' requests may carry.
    pub(crate) requesters: Vec<PciAddress>,
    /// The ports and bridges on the way to the members.
    pub(crate) upstream: Vec<PciAddress>,
    /// The ports and bridges that are not apart from the members.
    pub(crate) ports: Vec<PciAddress>,
    /// What firmware wants mapped for the members, each as firmware gave it, and where their messages go.
    pub(crate) regions: Vec<ReservedRegion>,
    /// Whether firmware's wish does not count for the present claim.
    pub(crate) is_overridden: bool,
    /// Whether a device was, or may have been, reset since anybody looked whether the group is still kept apart, or did
    /// not answer then.
    pub(crate) is_unseen: bool,
    /// Whether a member was ever let ask for translations, or reach memory past its unit: only then is it looked up who may
    /// now.
    pub(crate) has_asked: bool,
    /// How often a claim of it has ended: what somebody said about its devices in an earlier one does not count.
    pub(crate) claims: u64,
    /// Whether somebody gave their word for the devices in the present claim.
    pub(crate) trust: Trust,
    /// Whether its functions may reach memory past their unit (CXL.cache) in the present claim.
    pub(crate) has_cxl_word: bool,
    /// Whether a guest may have it in the present claim although what it sends is not coherent.
    pub(crate) has_incoherent_word: bool,
    pub(crate) system: Shared<System<B>>,
}

/// A group of devices in one of its states: [`Blocked`], [`Pinned`](crate::Pinned) and
/// [`NeedsReset`](crate::NeedsReset) at rest, [`Claimed`], [`Attached`], or [`Wedged`].
///
/// The value is the right to move the group on. There is one per group, and each step consumes it.
///
/// # Invariants
/// In every state but [`Attached`] and [`Wedged`] no entry of the unit is present for a requester of
/// the group, and its members have no bus mastering.
#[must_use = "a dropped group can never be claimed again"]
pub struct Group<B: Backend, S> {
    pub(crate) inner: Inner<B>,
    pub(crate) state: S,
}

impl<B: Backend> Inner<B> {
    /// Stops all members from sending requests.
    pub(crate) fn silence(&self) {
        for member in &self.members {
            clear_bus_mastering(self.system.backend.platform(), *member);
        }
    }

    /// Whether a function does not answer: it was removed.
    pub(crate) fn is_gone(&self, member: PciAddress) -> bool {
        self.system
            .backend
            .platform()
            .config_read32(member, COMMAND)
            == u32::MAX
    }
}

impl<B: Backend, S> Group<B, S> {
    /// The group's number.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// The unit that translates for the group.
    pub fn unit(&self) -> UnitIndex {
        self.inner.unit
    }

    /// The functions in the group.
    pub fn members(&self) -> &[PciAddress] {
        &self.inner.members
    }

    pub(crate) fn system(&self) -> &Shared<System<B>> {
        &self.inner.system
    }

    pub(crate) fn into_state<T>(self, state: T) -> Group<B, T> {
        Group {
            inner: self.inner,
            state,
        }
    }
}

impl<B: Backend, S> Group<B, S> {
    /// Claims the group for one guest.
    pub fn claim_for_guest(self, vm: VmId) -> Group<B, Claimed<UserManaged>>
    where
        S: ForGuests,
    {
        self.into_state(Claimed { owner: vm })
    }

    /// Claims the group for the hypervisor's own driver. A domain that is made for a [`Pinned`](crate::Pinned) one maps
    /// firmware's regions one to one before any device is attached, and keeps them mapped until its end.
    pub fn claim_for_hypervisor(self) -> Group<B, Claimed<KernelPaging>>
    where
        S: ForTheHypervisor,
    {
        self.into_state(Claimed { owner: () })
    }

    /// Gives the claim up. The group is [`NeedsReset`](crate::NeedsReset) then, since its devices are to be reset before
    /// somebody else's claim.
    pub fn release<Rest>(self) -> Rest
    where
        S: GivesUp<B, Rest>,
    {
        S::give_up(self)
    }
}

impl<B: Backend, O: Owner> Group<B, Claimed<O>> {
    /// Who of its kind claimed the group.
    pub fn owner(&self) -> O::Id {
        self.state.owner
    }

    pub(crate) fn again(inner: Inner<B>, owner: O::Id) -> Self {
        Self {
            inner,
            state: Claimed { owner },
        }
    }
}

impl<B: Backend, O: Owner, S: Shape<O, B>> Group<B, Attached<O, B, S>> {
    /// Who of its kind claimed the group.
    pub fn owner(&self) -> O::Id {
        self.state.owner
    }
}

impl<B: Backend, S> Group<B, S> {
    /// Lets `member` send requests. Ports and bridges on its way forward them from now on.
    ///
    /// Reset the function first if somebody else had it: what its last owner armed it with would
    /// reach this domain's addresses.
    ///
    /// # Errors
    /// [`AttachError::NotAMember`], [`AttachError::Gone`] when a function does not answer, [`AttachError::NotApart`] when
    /// one that did not answer after a reset does now, and is not as it was, [`AttachError::NoBusMastering`] when the function did not take the
    /// setting, [`AttachError::CutOff`] when the group caused too many faults, or [`AttachError::Unit`] when the unit is
    /// wedged: its devices stay cut off.
    pub fn enable_bus_mastering(&self, member: PciAddress) -> Result<(), AttachError>
    where
        S: MaySend,
    {
        if !self.inner.members.contains(&member) {
            return Err(AttachError::NotAMember {
                member,
                group: self.inner.id,
            });
        }
        let unit = self.inner.unit;
        if self.inner.system.wedged.has(unit) {
            return Err(UnitError::Wedged { unit }.into());
        }
        self.inner.check_not_cut_off()?;
        self.inner.look_before_sending(member)?;
        let platform = self.inner.system.backend.platform();
        for function in self.inner.upstream.iter().chain([&member]) {
            let function = *function;
            let command = set_command(platform, function, COMMAND_BUS_MASTER, true);
            let command = command.ok_or(AttachError::Gone { function })?;
            if command & COMMAND_BUS_MASTER == 0 {
                return Err(AttachError::NoBusMastering { function, command });
            }
        }
        // Once more after the setting: a unit that wedged meanwhile is seen here, or cuts the member
        // off itself.
        if self.inner.system.wedged.has(unit) {
            clear_bus_mastering(platform, member);
            return Err(UnitError::Wedged { unit }.into());
        }
        // Likewise: who cuts the group off for its faults does so under the lock that this takes.
        self.inner.check_not_cut_off().inspect_err(|_| {
            clear_bus_mastering(platform, member);
        })
    }

    /// Stops `member` from sending requests.
    ///
    /// # Errors
    /// [`AttachError::NotAMember`], [`AttachError::Gone`] when the function does not answer, to which nothing is written,
    /// or [`AttachError::KeepsBusMastering`] when it did not give the setting up.
    pub fn disable_bus_mastering(&self, member: PciAddress) -> Result<(), AttachError>
    where
        S: MaySend,
    {
        if !self.inner.members.contains(&member) {
            return Err(AttachError::NotAMember {
                member,
                group: self.inner.id,
            });
        }
        let platform = self.inner.system.backend.platform();
        let function = member;
        match set_command(platform, function, COMMAND_BUS_MASTER, false) {
            None => Err(AttachError::Gone { function }),
            Some(command) if command & COMMAND_BUS_MASTER != 0 => {
                Err(AttachError::KeepsBusMastering { function, command })
            }
            Some(_) => Ok(()),
        }
    }
}

impl<B: Backend> Group<B, Wedged<B>> {
    /// What the hardware did not do.
    pub fn error(&self) -> UnitError {
        self.state.error
    }

    /// Says that it is wedged, why, and what helps.
    pub(crate) fn say_wedged(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, state } = self;
        let (group, unit, error) = (inner.id, inner.unit, state.error);
        write!(
            f,
            "{group} is wedged: {error}; after `Iommu::reset_unit` of {unit} it is recovered (`Group::recover`)"
        )
    }
}

/// Changes bits of the command register and gives it back as it reads afterwards. `None` when the function does not
/// answer, before or after: nothing is written to one that is gone, nor made of what it reads.
fn set_command(
    platform: &impl PciConfig,
    function: PciAddress,
    bits: u16,
    on: bool,
) -> Option<u16> {
    let is_there = |word: &u32| *word != u32::MAX || Fault::GoneIsWritten.is_on();
    let read = || Some(platform.config_read32(function, COMMAND)).filter(is_there);
    // The upper half is the status register, whose bits are cleared by writing 1: write 0 there.
    let command = read()? as u16;
    let wanted = if on { command | bits } else { command & !bits };
    platform.config_write32(function, COMMAND, wanted.into());
    read().map(|word| word as u16)
}

/// Stops a function from sending requests.
pub(crate) fn clear_bus_mastering(platform: &impl PciConfig, function: PciAddress) {
    set_command(platform, function, COMMAND_BUS_MASTER, false);
}

impl<B: Backend, S> fmt::Debug for Group<B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} behind {}",
            self.inner.id, self.inner.members, self.inner.unit
        )
    }
}
