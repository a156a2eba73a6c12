//! PASIDs: further domains for the requests of one function, told apart by the number that they carry.
//!
//! A group opens its PASIDs once it is attached, and closes them before it is detached: while they are
//! open there is no `detach` to call. Around a reset it is parked with them (`pasid_park`). Whoever has a PASID may give it
//! up meanwhile: the loom model `bc07_a_pasid_is_given_up_before_or_after_its_entry_is_taken_down` pins how those meet.

#![expect(unsafe_code, reason = "binds devices to tables")]

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use hv_core::sync::Mutex;
use hv_core::{OutOfMemory, Owner, Pasid, PciAddress, Shared};
use thiserror::Error;

use crate::anchor::Anchor;
use crate::attach::{AttachError, check};
use crate::backend::{Backend, FlushTicket, UnitError, UnitIndex};
use crate::capability::PasidBackend;
use crate::dma::Trust;
use crate::domain::{Domain, DomainCore, DomainUid};
use crate::group::{Attached, AttachedGroup, Group};
use crate::pasid_device::{PasidsRefused, pasid_bits};
use crate::shape::{LetsThrough, Pages, Paging, Shape, binding};
use crate::system::System;

/// State of an attached group whose functions' PASIDs have domains of their own.
pub struct WithPasids<O: Owner, B: Backend, S: Shape<O, B>> {
    pub(crate) attached: Attached<O, B, S>,
    pub(crate) slots: Mutex<Vec<Shared<Slot<B>>>>,
}

/// An attached group whose PASIDs are open.
pub type PasidGroup<O, B, S = Paging> = Group<B, WithPasids<O, B, S>>;

/// A PASID that is taken.
///
/// # Invariants
/// The domain counts it as attached until it is [`Entry::Ended`], and its reach does while the entry may be cached.
pub(crate) struct Slot<B: Backend> {
    pub(crate) unit: UnitIndex,
    pub(crate) member: PciAddress,
    pub(crate) pasid: Pasid,
    pub(crate) core: Shared<DomainCore<B>>,
    /// The group's when it was attached, as the domain counts it.
    pub(crate) trust: Trust,
    pub(crate) entry: Mutex<Entry>,
}

/// How the entry of a PASID stands.
///
/// Its group moves it on: by `&mut`, or by a call that has the attachment. Whoever else has the attachment can only end it
/// ([`PasidAttachment::give_up`]), and only where nobody waits for the unit with it in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In place.
    Live,
    /// Being taken down: whoever does that waits for the unit, and says how it ended.
    Moving,
    /// Taken down; the unit, which is wedged since, may have it cached.
    Down,
    /// Taken down and forgotten, around a reset of the group.
    Parked,
    /// Given up: nobody has it any more.
    Ended,
}

impl<B: Backend> Slot<B> {
    pub(crate) fn anchor(&self) -> Anchor<B> {
        Anchor::Tables(self.core.clone())
    }
}

/// One function's requests with one PASID, bound to a domain. [`Group::detach_pasid`] takes it.
///
/// Dropping it leaves them bound: the group's PASIDs cannot be closed any more, nor the domain destroyed.
#[must_use = "dropped, it stays bound for good: detach it"]
pub struct PasidAttachment<O: Owner, B: Backend> {
    pub(crate) slot: Shared<Slot<B>>,
    owner: PhantomData<fn() -> O>,
}

/// Why a PASID was not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PasidRefusal {
    /// The unit looks at fewer bits, or the function sends fewer.
    #[error(
        "{pasid} needs more than the {bits} bits that the unit looks at, or that the function sends"
    )]
    TooWide {
        /// The PASID.
        pasid: Pasid,
        /// How many bits there are.
        bits: u8,
    },
    /// The function's requests with this PASID are bound already.
    #[error("{pasid} of {member} is bound to {domain}")]
    Taken {
        /// The function.
        member: PciAddress,
        /// The PASID.
        pasid: Pasid,
        /// What it is bound to.
        domain: DomainUid,
    },
    /// The function sends none.
    #[error(transparent)]
    Device(#[from] PasidsRefused),
    /// What holds of every attachment.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// What a failed attach of a PASID gives back.
pub enum PasidError<O: Owner, B: Backend> {
    /// Nothing is bound.
    Refused(PasidRefusal),
    /// The hardware did not forget what had been bound. Detach it once the unit was reset.
    Stuck(PasidAttachment<O, B>, UnitError),
}

impl<O: Owner, B: Backend> fmt::Display for PasidError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "not attached: {refusal}"),
            Self::Stuck(attachment, error) => write!(f, "{attachment:?} is stuck: {error}"),
        }
    }
}

/// A PASID that was not detached, and why.
pub struct PasidDetachFailed<O: Owner, B: Backend> {
    /// The attachment. It can be detached once the unit was reset.
    pub attachment: PasidAttachment<O, B>,
    /// Why.
    pub error: AttachError,
}

impl<O: Owner, B: Backend> fmt::Display for PasidDetachFailed<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} stays: {}", self.attachment, self.error)
    }
}

/// A group whose PASIDs are not closed, since some are bound.
pub struct StillOpen<G> {
    /// The group.
    pub group: G,
    /// How many are bound.
    pub bound: usize,
}

impl<G> fmt::Display for StillOpen<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.bound;
        write!(
            f,
            "{bound} PASIDs of the group are bound; detach them first"
        )
    }
}

/// What is told of an error is its sentence.
macro_rules! told {
    ([$($generic:tt)*] $error:ty) => {
        impl<$($generic)*> fmt::Debug for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl<$($generic)*> core::error::Error for $error {}
    };
}

told!([O: Owner, B: Backend] PasidError<O, B>);
told!([O: Owner, B: Backend] PasidDetachFailed<O, B>);
told!([G] StillOpen<G>);

impl<O: Owner, B: Backend> fmt::Debug for PasidAttachment<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = &self.slot;
        write!(f, "{} of {} in {}", slot.pasid, slot.member, slot.core.uid)
    }
}

impl<O: Owner, B: Backend> PasidAttachment<O, B> {
    /// The PASID.
    pub fn pasid(&self) -> Pasid {
        self.slot.pasid
    }

    /// The function.
    pub fn member(&self) -> PciAddress {
        self.slot.member
    }

    /// The domain.
    pub fn domain(&self) -> DomainUid {
        self.slot.core.uid
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> Group<B, Attached<O, B, S>> {
    /// From now on PASIDs of the group's functions can be attached to domains. Requests without one go
    /// where they went. Functions that have PASIDs may send with them; one that nobody bound reaches nothing.
    ///
    /// # Errors
    /// The group, and why not: what its unit or its functions lack, or that one did not take the setting.
    pub fn open_pasids(self) -> Result<PasidGroup<O, B, S>, (Self, PasidsRefused)>
    where
        B: PasidBackend,
        S: LetsThrough<O, B>,
    {
        let fits = match S::anchor(&self.state.core) {
            Anchor::Tables(core) => self.inner.check_for_pasids(&core),
            _ => Ok(()),
        };
        if let Err(refused) = self.inner.can_open_pasids().and(fits) {
            return Err((self, refused));
        }
        if let Some(function) = self.inner.asking() {
            // What it holds of PASIDs would have to be told apart.
            return Err((self, PasidsRefused::AsksForTranslations { function }));
        }
        if let Err(refused) = self.inner.switch_pasids_on() {
            return Err((self, refused));
        }
        let Self { inner, state } = self;
        let state = WithPasids {
            attached: state,
            slots: Mutex::new(Vec::new()),
        };
        Ok(Group { inner, state })
    }
}

impl<O: Owner, B: PasidBackend, S: Shape<O, B>> Group<B, WithPasids<O, B, S>> {
    /// The domain of requests without a PASID.
    pub fn domain(&self) -> DomainUid {
        S::anchor(&self.state.attached.core).uid()
    }

    /// Lets requests of `member` that carry `pasid` translate through `domain`. Those that it sends with a PASID under
    /// another id than its own, as a phantom function, reach nothing.
    ///
    /// # Errors
    /// [`PasidError`].
    pub fn attach_pasid<T: Pages<O, B>>(
        &self,
        member: PciAddress,
        pasid: Pasid,
        domain: &Domain<O, B, T>,
    ) -> Result<PasidAttachment<O, B>, PasidError<O, B>> {
        let slot = self.take_slot(member, pasid, domain);
        let slot = slot.map_err(PasidError::Refused)?;
        let (inner, core) = (&self.inner, &domain.core);
        let (unit, system) = (inner.unit, &inner.system);
        let anchor = T::anchor(core);
        let owner = PhantomData;
        let attachment = PasidAttachment { slot, owner };
        if let Err(error) = anchor.hold(inner) {
            self.free_slot(&attachment.slot);
            return Err(PasidError::Refused(error.into()));
        }
        let refused = |attachment: PasidAttachment<O, B>, error: AttachError| {
            anchor.let_go(inner.trust);
            self.free_slot(&attachment.slot);
            Err(PasidError::Refused(error.into()))
        };
        let Some(binding) = binding(core) else {
            let uid = core.uid;
            return refused(attachment, AttachError::Ended(uid));
        };
        anchor.enter(unit, inner.caps.sync_on_map);
        let resets = system.wedged.resets(unit);
        let bound = system.away(|| {
            // SAFETY: the root is that of a live table, whose domain counts this attachment until it was
            // detached; it maps what its owner's runs of frames name.
            unsafe { system.backend.bind_pasid(unit, member, pasid, binding) }
        });
        let waited = system.bound_pasid(unit, bound, resets);
        let Err(error) = waited else {
            return Ok(attachment);
        };
        let foreign = matches!(bound, Err(UnitError::AlreadyBound { .. }));
        let undone = match foreign {
            true => Ok(()),
            false => take_down(&attachment.slot),
        };
        match undone {
            Ok(()) => {}
            Err(UnitError::NotBound { .. }) if bound.is_err() => {}
            Err(error) => {
                // With `NotBound` nothing was taken down; else the entry is down and may still be cached.
                if !matches!(error, UnitError::NotBound { .. }) {
                    *attachment.slot.entry.lock() = Entry::Down;
                }
                return Err(PasidError::Stuck(attachment, error));
            }
        }
        anchor.leave(unit);
        refused(attachment, error.into())
    }

    /// Takes a PASID from its domain and waits until the hardware has forgotten both entry and
    /// translations. Requests that carry it reach no memory then.
    ///
    /// # Errors
    /// The attachment: it is of another group, or the unit did not complete that. The domain stays in
    /// use.
    pub fn detach_pasid(
        &self,
        attachment: PasidAttachment<O, B>,
    ) -> Result<(), PasidDetachFailed<O, B>> {
        let slot = &attachment.slot;
        let is_this = |other: &Shared<Slot<B>>| Shared::ptr_eq(other, slot);
        if !self.state.slots.lock().iter().any(is_this) {
            let error = AttachError::NotAMember {
                member: slot.member,
                group: self.inner.id,
            };
            return Err(PasidDetachFailed { attachment, error });
        }
        if let Err(error) = forget(slot) {
            let error = error.into();
            return Err(PasidDetachFailed { attachment, error });
        }
        slot.anchor().let_go(slot.trust);
        self.free_slot(slot);
        Ok(())
    }

    /// Closes the group's PASIDs: its functions send with none any more, and it can be detached, or moved to another
    /// domain.
    ///
    /// # Errors
    /// The group, while some are attached.
    pub fn close_pasids(self) -> Result<AttachedGroup<O, B, S>, StillOpen<Self>> {
        let is_held = |slot: &&Shared<Slot<B>>| *slot.entry.lock() != Entry::Ended;
        let bound = self.state.slots.lock().iter().filter(is_held).count();
        if bound != 0 {
            return Err(StillOpen { group: self, bound });
        }
        let Self { inner, state } = self;
        inner.switch_pasids_off();
        let state = state.attached;
        Ok(Group { inner, state })
    }

    /// All that is checked first; then the PASID is taken.
    fn take_slot<T: Pages<O, B>>(
        &self,
        member: PciAddress,
        pasid: Pasid,
        domain: &Domain<O, B, T>,
    ) -> Result<Shared<Slot<B>>, PasidRefusal> {
        let inner = &self.inner;
        if !inner.members.contains(&member) {
            let group = inner.id;
            return Err(AttachError::NotAMember { member, group }.into());
        }
        check(inner, self.state.attached.owner, domain)?;
        inner.check_not_cut_off()?;
        let bits = pasid_bits(&inner.system.backend, inner.unit, member)?;
        inner.check_for_pasids(&domain.core)?;
        if pasid.get().checked_shr(bits.into()).unwrap_or(0) != 0 {
            return Err(PasidRefusal::TooWide { pasid, bits });
        }
        let slot = Slot {
            unit: inner.unit,
            member,
            pasid,
            core: domain.core.clone(),
            trust: inner.trust,
            entry: Mutex::new(Entry::Live),
        };
        let slot = Shared::try_new(slot).map_err(|(_, error)| AttachError::from(error))?;
        let mut slots = self.state.slots.lock();
        slots.retain(|slot| *slot.entry.lock() != Entry::Ended);
        let taken = slots
            .iter()
            .find(|slot| slot.member == member && slot.pasid == pasid);
        if let Some(taken) = taken {
            let domain = taken.core.uid;
            return Err(PasidRefusal::Taken {
                member,
                pasid,
                domain,
            });
        }
        slots.try_reserve(1).map_err(|_| {
            let bytes = size_of::<Shared<Slot<B>>>();
            AttachError::from(OutOfMemory { bytes })
        })?;
        slots.push(slot.clone());
        Ok(slot)
    }

    fn free_slot(&self, slot: &Shared<Slot<B>>) {
        let other = |known: &Shared<Slot<B>>| !Shared::ptr_eq(known, slot);
        self.state.slots.lock().retain(|known| other(known));
    }
}

impl<B: PasidBackend> System<B> {
    /// Waits for what `bind_pasid` gave; `resets` were counted before. A unit that the backend waited for in between fails
    /// like one that is waited for here.
    pub(crate) fn bound_pasid(
        &self,
        unit: UnitIndex,
        bound: Result<Option<FlushTicket>, UnitError>,
        resets: u64,
    ) -> Result<(), UnitError> {
        match bound {
            // Where it is refused, the entry is taken down again.
            Ok(Some(ticket)) => self.wait_unless_refused(unit, ticket, "the binding of a PASID"),
            Ok(None) => Ok(()),
            Err(error) => {
                if matches!(error, UnitError::Timeout { .. } | UnitError::Wedged { .. }) {
                    self.request_failed(unit, error, resets);
                }
                Err(error)
            }
        }
    }
}

/// Takes an entry down, if it is not, and waits until the unit has forgotten it; the domain's reach no longer counts it.
pub(crate) fn forget<B: PasidBackend>(slot: &Slot<B>) -> Result<(), UnitError> {
    let before = {
        let mut entry = slot.entry.lock();
        let before = *entry;
        if matches!(before, Entry::Parked | Entry::Ended) {
            return Ok(());
        }
        // What is stored below counts: nobody ends it in between.
        *entry = Entry::Moving;
        before
    };
    match take_down(slot) {
        Ok(()) => {}
        // It was taken down before the unit was wedged, and is forgotten since the reset.
        Err(UnitError::NotBound { .. })
            if before == Entry::Down && !slot.core.system.wedged.has(slot.unit) => {}
        Err(error) => {
            *slot.entry.lock() = Entry::Down;
            return Err(error);
        }
    }
    slot.anchor().leave(slot.unit);
    *slot.entry.lock() = Entry::Parked;
    Ok(())
}

/// Takes the entry down and waits. A failure cuts the unit off, unless there was no such entry.
pub(crate) fn take_down<B: PasidBackend>(slot: &Slot<B>) -> Result<(), UnitError> {
    let (unit, system) = (slot.unit, &slot.core.system);
    let (member, pasid, id) = (slot.member, slot.pasid, slot.core.id);
    let asked = system.away(|| system.backend.unbind_pasid(unit, member, pasid, id));
    let undone = match asked {
        Ok(ticket) => system.wait(unit, ticket, "the unbinding of a PASID"),
        Err(error @ UnitError::NotBound { .. }) => return Err(error),
        Err(error) => Err(error),
    };
    if undone.is_err() {
        // After the entry is down, so that a reset which is under way counts as too early for it.
        system.cut_off(unit);
    }
    undone
}
