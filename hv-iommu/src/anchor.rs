//! What a group holds of the domain that it is attached to, whatever the domain's shape.

#![expect(unsafe_code, reason = "declares how each shape binds a device")]

use hv_core::{Owner, OwnerId, PciAddress, Shared};

use crate::attach::AttachError;
use crate::backend::{Backend, FlushTicket, HwDomainId, UnitError, UnitIndex};
use crate::dma::{Gate, Trust};
use crate::domain::{DomainCore, DomainUid};
use crate::group::Inner;
use crate::ids::Users;
use crate::reach::Reach;

/// The part of a domain without tables of its own that its attachments share.
pub struct Ties {
    pub(crate) uid: DomainUid,
    pub(crate) owner: OwnerId,
    /// The id under which units cache what its devices use: its own, or its parent's.
    pub(crate) id: HwDomainId,
    /// The units that its devices are behind.
    pub(crate) reach: Reach,
    /// Groups whose entries may still name it.
    pub(crate) attachments: Users,
}

impl Ties {
    pub(crate) fn new(owner: OwnerId, id: HwDomainId) -> Self {
        Self {
            uid: DomainUid::fresh(),
            owner,
            id,
            reach: Reach::new(),
            attachments: Users::none(),
        }
    }
}

/// What entries of a group lead to: keeps it alive, and counts the group and its requesters in it.
pub enum Anchor<B: Backend> {
    /// A domain's own tables.
    Tables(Shared<DomainCore<B>>),
    /// A first stage, and the parent whose tables it stands on.
    Nested(Shared<Ties>, Shared<DomainCore<B>>),
    /// All of memory.
    Identity(Shared<Ties>),
    /// Nothing: there is no entry.
    Nothing,
}

impl<B: Backend> Anchor<B> {
    pub(crate) fn uid(&self) -> DomainUid {
        match self {
            Self::Tables(core) => core.uid,
            Self::Nested(ties, _) | Self::Identity(ties) => ties.uid,
            Self::Nothing => DomainUid::BLOCKED,
        }
    }

    /// Under which id units file what the entries lead to, and whose it is; `None` where there are none.
    pub(crate) fn entries(&self) -> Option<(HwDomainId, OwnerId)> {
        match self {
            Self::Tables(core) => Some((core.id, core.owner)),
            Self::Nested(ties, _) | Self::Identity(ties) => Some((ties.id, ties.owner)),
            Self::Nothing => None,
        }
    }

    fn attachments(&self) -> Option<&Users> {
        match self {
            Self::Tables(core) => Some(&core.attachments),
            Self::Nested(ties, _) | Self::Identity(ties) => Some(&ties.attachments),
            Self::Nothing => None,
        }
    }

    /// Where trust counts: in the tables that the DMA API lends by.
    fn gate(&self) -> Option<&Gate> {
        match self {
            Self::Tables(core) => Some(&core.dma.gate),
            Self::Nested(..) | Self::Identity(_) | Self::Nothing => None,
        }
    }

    /// Counts a group in, or a PASID of it. The caller has `&Domain`, or is counted already.
    ///
    /// # Errors
    /// [`AttachError::Exposed`]; it is not counted then.
    pub(crate) fn hold(&self, inner: &Inner<B>) -> Result<(), AttachError> {
        if self.gate().is_some_and(|gate| !gate.enter(inner.trust)) {
            return Err(AttachError::exposed(inner.id, self.uid()));
        }
        if let Some(attachments) = self.attachments() {
            attachments.enter();
        }
        Ok(())
    }

    /// Counts a group out, or a PASID of it, after the unit forgot its entries. `trust` is what it was when it came:
    /// it changes only while a group is claimed and attached to nothing.
    pub(crate) fn let_go(&self, trust: Trust) {
        if let Some(gate) = self.gate() {
            gate.leave(trust);
        }
        if let Some(attachments) = self.attachments() {
            attachments.leave();
        }
    }

    /// Counts a requester that is about to be bound on `unit`: flushes go there from now on.
    pub(crate) fn enter(&self, unit: UnitIndex, sync_on_map: bool) {
        match self {
            Self::Tables(core) => core.reach.enter(unit, sync_on_map),
            Self::Nested(ties, parent) => {
                ties.reach.enter(unit, sync_on_map);
                parent.reach.enter_nested(unit, sync_on_map);
            }
            Self::Identity(ties) => ties.reach.enter(unit, false),
            Self::Nothing => {}
        }
    }

    /// Takes back what [`enter`](Self::enter) counted, after the unit forgot the entry.
    pub(crate) fn leave(&self, unit: UnitIndex) {
        match self {
            Self::Tables(core) => core.reach.leave(unit),
            Self::Nested(ties, parent) => {
                ties.reach.leave(unit);
                parent.reach.leave_nested(unit);
            }
            Self::Identity(ties) => ties.reach.leave(unit),
            Self::Nothing => {}
        }
    }
}

/// What the subsystem does with a shape: how its domains are checked and bound. Closed.
pub trait Inside<O: Owner, B: Backend>: Sized {
    /// What attachments keep of a domain.
    type Core: Clone + Send + Sync;
    /// What only the domain itself has.
    type Held: Send + Sync;
    /// What entries that name the domain lead to.
    fn anchor(core: &Self::Core) -> Anchor<B>;

    /// Whether it is of the group's subsystem, or the same in each.
    fn is_with(core: &Self::Core, inner: &Inner<B>) -> bool;

    /// Whether the group's unit can serve the domain as it was built.
    ///
    /// # Errors
    /// [`AttachError`].
    fn check(core: &Self::Core, inner: &Inner<B>) -> Result<(), AttachError>;

    /// Makes the entry of `requester` live.
    ///
    /// # Errors
    /// As [`Backend::bind`].
    ///
    /// # Safety
    /// The domain does not end until the ticket of a later [`Backend::unbind`] has completed: it counts
    /// the caller's group as attached.
    unsafe fn bind(
        core: &Self::Core,
        backend: &B,
        unit: UnitIndex,
        requester: PciAddress,
    ) -> Result<Option<FlushTicket>, UnitError>;
}
