//! Groups with open PASIDs around a reset: every entry is taken down, that of each PASID too, and put back whole.

#![expect(unsafe_code, reason = "binds devices to tables")]

use alloc::vec::Vec;
use core::fmt;

use hv_core::fault::Fault;
use hv_core::sync::Mutex;
use hv_core::{Owner, Shared};

use crate::attach::AttachError;
use crate::backend::{Backend, UnitError};
use crate::bind::{bound_requesters, unbind_all, unregister, wedged};
use crate::capability::PasidBackend;
use crate::domain::DomainUid;
use crate::group::{Claimed, Group, Inner, Wedged};
use crate::parked::{Parked, UnparkFailed};
use crate::pasid::{Entry, PasidAttachment, PasidGroup, Slot, WithPasids, forget, take_down};
use crate::shape::{Paging, Shape, binding};

/// State of a group with open PASIDs that reaches no memory while one of its devices is reset. It keeps its owner, its
/// domain, and those of its PASIDs.
pub struct ParkedWithPasids<O: Owner, B: Backend, S: Shape<O, B> = Paging> {
    parked: Parked<O, B, S>,
    slots: Vec<Shared<Slot<B>>>,
}

/// A group with open PASIDs whose devices are being reset.
pub type ParkedPasidGroup<O, B, S = Paging> = Group<B, ParkedWithPasids<O, B, S>>;

/// A group with open PASIDs that was not parked.
pub enum PasidParkFailed<O: Owner, B: Backend, S: Shape<O, B>> {
    /// The unit did not forget the entry of a PASID. The group is attached and its PASIDs are open, but its devices are
    /// cut off: park it again once the unit was reset.
    Open {
        /// The group.
        group: PasidGroup<O, B, S>,
        /// Why.
        error: UnitError,
    },
    /// The unit forgot the PASIDs, but not the rest. What is left of the PASIDs is given up:
    /// [`PasidAttachment::give_up`].
    Wedged {
        /// The group.
        group: Group<B, Wedged<B>>,
    },
}

impl<O: Owner, B: Backend, S: Shape<O, B>> fmt::Display for PasidParkFailed<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { group, error } => write!(f, "{} was not parked: {error}", group.id()),
            Self::Wedged { group } => group.say_wedged(f),
        }
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> fmt::Debug for PasidParkFailed<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> core::error::Error for PasidParkFailed<O, B, S> {}

impl<O: Owner, B: PasidBackend, S: Shape<O, B>> Group<B, WithPasids<O, B, S>> {
    /// Takes bus mastering from all members, then the entries of all PASIDs, then the group from its domain, until
    /// [`unpark`](Group::unpark). What the devices do in between reaches nothing, whatever PASID they send with.
    ///
    /// # Errors
    /// [`PasidParkFailed`].
    pub fn park(self) -> Result<ParkedPasidGroup<O, B, S>, PasidParkFailed<O, B, S>> {
        let Self { mut inner, state } = self;
        inner.silence();
        inner.is_unseen = true;
        let WithPasids { attached, slots } = state;
        let slots = core::mem::take(&mut *slots.lock());
        let mut failed = None;
        let all = if Fault::ParkLeavesPasids.is_on() {
            &[][..]
        } else {
            &slots
        };
        for slot in all {
            // The others are taken down all the same: fewer live entries are better.
            failed = failed.or(forget(slot).err());
        }
        if let Some(error) = failed {
            let slots = Mutex::new(slots);
            let state = WithPasids { attached, slots };
            let group = Group { inner, state };
            return Err(PasidParkFailed::Open { group, error });
        }
        inner.switch_pasids_off();
        let (owner, core) = (attached.owner, attached.core);
        let anchor = S::anchor(&core);
        if let Err(stuck) = unbind_all(&inner, &anchor, bound_requesters(&inner)) {
            let bound = inner.requesters.len();
            let group = wedged(inner, anchor, stuck, bound);
            return Err(PasidParkFailed::Wedged { group });
        }
        let parked = Parked { owner, core };
        let state = ParkedWithPasids { parked, slots };
        Ok(Group { inner, state })
    }
}

impl<O: Owner, B: PasidBackend, S: Shape<O, B>> Group<B, ParkedWithPasids<O, B, S>> {
    /// Who of its kind claimed the group.
    pub fn owner(&self) -> O::Id {
        self.state.parked.owner
    }

    /// The domain that requests without a PASID go back to.
    pub fn domain(&self) -> DomainUid {
        S::anchor(&self.state.parked.core).uid()
    }

    /// Puts the group back into its domain, and each PASID into its own, all or none. Bus mastering is off. What a
    /// reset cleared that keeps the group apart from others is set again first, and read back.
    ///
    /// # Errors
    /// [`UnparkFailed`]. Where the group comes back without its domain, its PASIDs are given up one by one:
    /// [`PasidAttachment::give_up`].
    pub fn unpark(self) -> Result<PasidGroup<O, B, S>, UnparkFailed<O, B, Self>> {
        let Self { inner, state } = self;
        let ParkedWithPasids { parked, mut slots } = state;
        let group = Group {
            inner,
            state: parked,
        };
        let group = group.unpark().map_err(|failed| {
            failed.parked_as(|group| Group {
                inner: group.inner,
                state: ParkedWithPasids {
                    parked: group.state,
                    slots: core::mem::take(&mut slots),
                },
            })
        })?;
        let Group { inner, state } = group;
        // A reset has cleared what a function was set to. None of them sends yet.
        let back = inner
            .can_open_pasids()
            .and_then(|()| inner.switch_pasids_on());
        if let Err(refused) = back {
            let (owner, anchor) = (state.owner, S::anchor(&state.core));
            return Err(leave(inner, owner, anchor, Ok(()), refused.into()));
        }
        slots.retain(|slot| {
            let mut entry = slot.entry.lock();
            // From here on whoever has the attachment cannot give it up.
            if *entry == Entry::Parked {
                *entry = Entry::Live;
                slot.anchor().enter(slot.unit, inner.caps.sync_on_map);
            }
            *entry != Entry::Ended
        });
        for (index, slot) in slots.iter().enumerate() {
            let Err(error) = put_back(slot) else { continue };
            // An entry of somebody else is not ours to take down.
            let foreign = matches!(error, AttachError::Unit(UnitError::AlreadyBound { .. }));
            let mut undone = Ok(());
            for (other, slot) in slots.iter().enumerate() {
                // What comes after the one that failed was not bound again.
                let taken = match other {
                    _ if other < index => forget(slot),
                    _ => never_bound(slot, other == index && !foreign),
                };
                undone = undone.and(taken);
            }
            return Err(leave(
                inner,
                state.owner,
                S::anchor(&state.core),
                undone,
                error,
            ));
        }
        let slots = Mutex::new(slots);
        let attached = state;
        let state = WithPasids { attached, slots };
        Ok(Group { inner, state })
    }

    /// Leaves the domain for good: for a device that did not come back from its reset. Its PASIDs are given up one by
    /// one: [`PasidAttachment::give_up`].
    pub fn detach(self) -> Group<B, Claimed<O>> {
        let Self { inner, state } = self;
        let state = state.parked;
        Group { inner, state }.detach()
    }
}

/// Makes the entry of a parked PASID live again.
fn put_back<B: PasidBackend>(slot: &Slot<B>) -> Result<(), AttachError> {
    let system = &slot.core.system;
    let Some(binding) = binding(&slot.core) else {
        return Err(AttachError::Ended(slot.core.uid));
    };
    let (unit, member, pasid) = (slot.unit, slot.member, slot.pasid);
    let resets = system.wedged.resets(unit);
    let bound = system.away(|| {
        // SAFETY: the root is that of a live table, whose domain counts this PASID as attached until its attachment is
        // detached or given up, and neither happens while the entry is live.
        unsafe { system.backend.bind_pasid(unit, member, pasid, binding) }
    });
    system
        .bound_pasid(unit, bound, resets)
        .map_err(AttachError::from)
}

/// Takes back what counts for an entry that was not made live, or only perhaps.
fn never_bound<B: PasidBackend>(slot: &Slot<B>, perhaps: bool) -> Result<(), UnitError> {
    if perhaps {
        match take_down(slot) {
            Ok(()) | Err(UnitError::NotBound { .. }) => {}
            Err(error) => {
                *slot.entry.lock() = Entry::Down;
                return Err(error);
            }
        }
    }
    slot.anchor().leave(slot.unit);
    *slot.entry.lock() = Entry::Parked;
    Ok(())
}

/// Takes the group itself from its domain too, since a PASID did not go back.
fn leave<O: Owner, B: Backend, P>(
    inner: Inner<B>,
    owner: O::Id,
    anchor: crate::anchor::Anchor<B>,
    pasids: Result<(), UnitError>,
    error: AttachError,
) -> UnparkFailed<O, B, P> {
    // They are closed with that: whoever claims the group next did not open them.
    inner.switch_pasids_off();
    let unbound = unbind_all(&inner, &anchor, bound_requesters(&inner));
    if let Err(stuck) = unbound {
        let bound = inner.requesters.len();
        let group = wedged(inner, anchor, stuck, bound);
        return UnparkFailed::Wedged { group };
    }
    unregister(&inner, &anchor);
    // A PASID that the unit did not forget is its attachment's; nothing of the group itself is left.
    let error = pasids.err().map_or(error, AttachError::from);
    let group = Group::again(inner, owner);
    UnparkFailed::Refused { group, error }
}

impl<O: Owner, B: Backend> PasidAttachment<O, B> {
    /// Gives an attachment up whose entry is down and forgotten: its group is parked, or left it behind when it was
    /// detached or wedged around a reset. It is not put back then, and its domain is free of it.
    ///
    /// # Errors
    /// The attachment, while its entry is live, is being taken down by whoever parks its group, or may be cached behind a
    /// unit that was not reset.
    pub fn give_up(self) -> Result<(), Self> {
        let slot = &self.slot;
        let mut entry = slot.entry.lock();
        let was = *entry;
        match was {
            Entry::Parked => {}
            Entry::Down if !slot.core.system.wedged.has(slot.unit) => {}
            _ => {
                drop(entry);
                return Err(self);
            }
        }
        *entry = Entry::Ended;
        drop(entry);
        if was == Entry::Down {
            slot.anchor().leave(slot.unit);
        }
        slot.anchor().let_go(slot.trust);
        Ok(())
    }
}
