//! Moving an attached group to another domain: whole or not at all, without a gap where hardware can.

#![expect(unsafe_code, reason = "switches live entries from table to table")]

use core::fmt;

use arrayvec::ArrayVec;
use hv_core::{Owner, PciAddress, Shared};

use crate::anchor::Anchor;
use crate::attach::{AttachError, check};
use crate::backend::{Backend, FlushTicket, HwDomainId, UnitError, UnitIndex};
use crate::bind::{
    BindFailed, bind_all, bound_requesters, register, unbind_all, unregister, wedged,
};
use crate::capability::ReplaceBackend;
use crate::domain::Domain;
use crate::faults::Gap;
use crate::group::{Attached, AttachedGroup, Claimed, Group, Hold, Inner, Wedged};
use crate::shape::{Confines, Shape, Switches};
use crate::system::System;

/// Witness that a unit can switch a live entry from one domain to another in one store, for some pairs at least.
#[derive(Clone)]
pub struct GaplessReplace<B: ReplaceBackend> {
    unit: UnitIndex,
    system: Shared<System<B>>,
}

impl<B: ReplaceBackend> fmt::Debug for GaplessReplace<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} replaces without a gap", self.unit)
    }
}

/// What a failed replacement gives back.
pub enum ReplaceFailed<O: Owner, B: Backend, S: Shape<O, B>> {
    /// The group is attached as before. Where its entries were down meanwhile ([`Group::replace_with_gap`]), the TLBs of its
    /// devices are off, and are asked for anew ([`Group::enable_ats`]).
    Refused {
        /// The group.
        group: Group<B, Attached<O, B, S>>,
        /// Why.
        error: AttachError,
    },
    /// The unit took neither the new domain nor, after that, the old one again. The group is attached to
    /// nothing, without bus mastering. Only a replacement with a gap comes to this.
    Unbound {
        /// The group.
        group: Group<B, Claimed<O>>,
        /// Why it was not attached to the new domain.
        error: AttachError,
        /// Why it was not attached to the old one again.
        back: AttachError,
    },
    /// The hardware did not forget what had been bound.
    Wedged {
        /// The group.
        group: Group<B, Wedged<B>>,
    },
}

impl<O: Owner, B: Backend, S: Shape<O, B>> fmt::Display for ReplaceFailed<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { group, error } => {
                write!(f, "{} stays in {}: {error}", group.id(), group.domain())
            }
            Self::Unbound { group, error, back } => write!(
                f,
                "{} is attached to nothing: {error}; and not to what it was: {back}",
                group.id()
            ),
            Self::Wedged { group } => group.say_wedged(f),
        }
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> fmt::Debug for ReplaceFailed<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> core::error::Error for ReplaceFailed<O, B, S> {}

/// What a replacement gives: the group in its new domain, or what is left of it.
pub type Replaced<O, B, S, T> = Result<AttachedGroup<O, B, T>, ReplaceFailed<O, B, S>>;

impl<O: Owner, B: Backend, S: Shape<O, B>> Group<B, Attached<O, B, S>> {
    /// Moves the group to `domain`, with a gap: for a moment its requests are refused, and each such one
    /// is a fault, which is told and counts against no budget. Never does a request go through both domains, or through
    /// somebody else's. Bus mastering stays as it is, but is taken when `domain` is the blocked one.
    ///
    /// The domain that it is in already is no move: nothing happens.
    ///
    /// # Errors
    /// [`ReplaceFailed`], with the group.
    pub fn replace_with_gap<T: Confines<O, B>>(
        self,
        domain: &Domain<O, B, T>,
    ) -> Replaced<O, B, S, T> {
        if let Some(function) = self.inner.caching() {
            let error = AttachError::ReachesPastUnit { function };
            return Err(ReplaceFailed::Refused { group: self, error });
        }
        let (old, new) = (S::anchor(&self.state.core), T::anchor(&domain.core));
        let group = match self.prepare(&old, &new, domain)? {
            Prepared::There(group) => return Ok(group),
            Prepared::Ready(group) => group,
        };
        let Self {
            inner,
            state: Attached { owner, core },
        } = group;
        if new.entries().is_none() {
            inner.silence();
        }
        inner.note_gap(|_, _| Gap::Open);
        if let Err(stuck) = unbind_all(&inner, &old, bound_requesters(&inner)) {
            inner.note_gap(Gap::ends);
            unregister(&inner, &new);
            let bound = inner.requesters.len();
            let group = wedged(inner, old, stuck, bound);
            return Err(ReplaceFailed::Wedged { group });
        }
        let error = match bind_all::<O, B, T>(&inner, &domain.core) {
            Ok(()) => {
                inner.note_gap(Gap::ends);
                unregister(&inner, &old);
                let core = domain.core.clone();
                let state = Attached { owner, core };
                return Ok(Group { inner, state });
            }
            Err(BindFailed::TakenBack(error)) => error,
            Err(BindFailed::Wedged { stuck, bound }) => {
                inner.note_gap(Gap::ends);
                unregister(&inner, &old);
                let group = wedged(inner, new, stuck, bound);
                return Err(ReplaceFailed::Wedged { group });
            }
        };
        unregister(&inner, &new);
        let back = bind_all::<O, B, S>(&inner, &core);
        inner.note_gap(Gap::ends);
        Err(match back {
            Ok(()) => {
                let state = Attached { owner, core };
                let group = Group { inner, state };
                ReplaceFailed::Refused { group, error }
            }
            Err(BindFailed::TakenBack(back)) => {
                inner.silence();
                unregister(&inner, &old);
                let group = Group::again(inner, owner);
                ReplaceFailed::Unbound { group, error, back }
            }
            Err(BindFailed::Wedged { stuck, bound }) => {
                let group = wedged(inner, old, stuck, bound);
                ReplaceFailed::Wedged { group }
            }
        })
    }

    /// All that is done before an entry changes: the checks, and the count in the new domain.
    fn prepare<T: Shape<O, B>>(
        self,
        old: &Anchor<B>,
        new: &Anchor<B>,
        domain: &Domain<O, B, T>,
    ) -> Preparing<O, B, S, T> {
        let checked = check(&self.inner, self.state.owner, domain);
        if checked.is_ok() && old.uid() == new.uid() {
            let (owner, core) = (self.state.owner, domain.core.clone());
            return Ok(Prepared::There(self.into_state(Attached { owner, core })));
        }
        let ready = checked.and_then(|()| register(&self.inner, new));
        match ready {
            Ok(()) => Ok(Prepared::Ready(self)),
            Err(error) => Err(ReplaceFailed::Refused { group: self, error }),
        }
    }
}

/// A group before it moves, or as it was.
type Preparing<O, B, S, T> = Result<Prepared<O, B, S, T>, ReplaceFailed<O, B, S>>;

/// A group that is about to move, or is there already.
enum Prepared<O: Owner, B: Backend, S: Shape<O, B>, T: Shape<O, B>> {
    Ready(Group<B, Attached<O, B, S>>),
    There(Group<B, Attached<O, B, T>>),
}

impl<O: Owner, B: Backend, S: Shape<O, B>> Group<B, Attached<O, B, S>> {
    /// The witness that the group's unit replaces without a gap, if it does.
    pub fn gapless(&self) -> Option<GaplessReplace<B>>
    where
        B: ReplaceBackend,
    {
        let (unit, system) = (self.inner.unit, self.inner.system.clone());
        let can = system.backend.replaces_live(unit);
        can.then_some(GaplessReplace { unit, system })
    }

    /// Moves the group to `domain` without a gap: each request goes through the old domain or the new one.
    /// Bus mastering stays as it is.
    ///
    /// The domain that it is in already is no move: nothing happens.
    ///
    /// # Errors
    /// [`ReplaceFailed`], with the group: attached as before, also where the unit would need a gap for this pair
    /// ([`UnitError::NeedsGap`]), or wedged.
    pub fn replace<T: Switches<O, B>>(
        self,
        domain: &Domain<O, B, T>,
        gapless: &GaplessReplace<B>,
    ) -> Replaced<O, B, S, T>
    where
        B: ReplaceBackend,
        S: Switches<O, B>,
    {
        let witnessed =
            gapless.unit == self.inner.unit && Shared::ptr_eq(&gapless.system, &self.inner.system);
        if !witnessed {
            let error = AttachError::OtherUnit {
                unit: self.inner.unit,
                witnessed: gapless.unit,
            };
            return Err(ReplaceFailed::Refused { group: self, error });
        }
        if let Some(function) = self.inner.asking() {
            let error = AttachError::DeviceTlbOpen { function };
            return Err(ReplaceFailed::Refused { group: self, error });
        }
        let (old, new) = (S::anchor(&self.state.core), T::anchor(&domain.core));
        let group = match self.prepare(&old, &new, domain)? {
            Prepared::There(group) => return Ok(group),
            Prepared::Ready(group) => group,
        };
        let Self {
            inner,
            state: Attached { owner, core },
        } = group;
        let (backend, unit) = (&inner.system.backend, inner.unit);
        // SAFETY: both domains count this group as attached, so neither ends; what each maps is what its owner's runs of
        // frames name.
        let to_old = |requester, from| unsafe { S::switch(&core, backend, unit, requester, from) };
        // SAFETY: as above.
        let to_new =
            |requester, from| unsafe { T::switch(&domain.core, backend, unit, requester, from) };
        let (from, to) = (S::id(&core), T::id(&domain.core));
        let mut moving = Moving {
            inner: &inner,
            counted: [inner.requesters.len(), 0],
        };
        let forth = [
            Way {
                anchor: &old,
                id: from,
                switch: &to_old,
            },
            Way {
                anchor: &new,
                id: to,
                switch: &to_new,
            },
        ];
        let moved = moving.all(&inner.requesters, forth);
        let Err((index, stopped)) = moved else {
            unregister(&inner, &old);
            let core = domain.core.clone();
            let state = Attached { owner, core };
            return Ok(Group { inner, state });
        };
        let touched = inner.requesters.get(..=index).unwrap_or(&inner.requesters);
        let back = moving.back(touched, &stopped, forth);
        let [on_old, on_new] = moving.counted;
        if let Err(error) = back {
            take_down(&inner, [from, to]);
            // After the entries are down, so that a reset which is under way counts as too early for them.
            inner.system.cut_off(inner.unit);
            let group = half_moved(inner, error, [(old, on_old), (new, on_new)]);
            return Err(ReplaceFailed::Wedged { group });
        }
        unregister(&inner, &new);
        let error = stopped.error.into();
        let state = Attached { owner, core };
        let group = Group { inner, state };
        Err(ReplaceFailed::Refused { group, error })
    }
}

/// Why an entry did not move, as far as is known.
struct Stopped {
    error: UnitError,
    /// It may have.
    may_have_moved: bool,
}

/// A domain that entries come from or go to.
struct Way<'a, B: Backend> {
    anchor: &'a Anchor<B>,
    id: HwDomainId,
    /// Switches the entry of a requester from the domain with an id to this one.
    switch: &'a Switch<'a>,
}

/// See [`Way::switch`].
type Switch<'a> = dyn Fn(PciAddress, HwDomainId) -> Result<FlushTicket, UnitError> + 'a;

impl<B: Backend> Clone for Way<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Way<'_, B> {}

/// Entries of a group on their way between two domains.
struct Moving<'g, B: Backend> {
    inner: &'g Inner<B>,
    /// How many requesters the reach of the old and of the new domain counts.
    counted: [usize; 2],
}

impl<B: ReplaceBackend> Moving<'_, B> {
    /// Switches the entries of these requesters from the first way to the second.
    ///
    /// Fails at the first that does not, with its index; those before it have moved.
    fn all(
        &mut self,
        requesters: &[PciAddress],
        [old, new]: [Way<'_, B>; 2],
    ) -> Result<(), (usize, Stopped)> {
        for (index, requester) in requesters.iter().enumerate() {
            self.one(*requester, [old, new])
                .map_err(|stopped| (index, stopped))?;
            self.counted = [self.counted[0] - 1, self.counted[1] + 1];
            old.anchor.leave(self.inner.unit);
        }
        Ok(())
    }

    /// Switches one entry. On error the new domain's reach counts it only if it may have moved.
    fn one(&mut self, requester: PciAddress, [old, new]: [Way<'_, B>; 2]) -> Result<(), Stopped> {
        let (unit, system) = (self.inner.unit, &self.inner.system);
        new.anchor.enter(unit, self.inner.caps.sync_on_map);
        let resets = system.wedged.resets(unit);
        match system.away(|| (new.switch)(requester, old.id)) {
            Ok(ticket) => {
                let waited = system.wait(unit, ticket, "the replacement of a domain");
                waited.map_err(|error| Stopped {
                    error,
                    may_have_moved: true,
                })
            }
            Err(error) => {
                // A unit that a backend waits for in between fails like one that is waited for here.
                if matches!(error, UnitError::Timeout { .. } | UnitError::Wedged { .. }) {
                    system.request_failed(unit, error, resets);
                }
                let unchanged = matches!(
                    error,
                    UnitError::NotBound { .. }
                        | UnitError::NeedsGap { .. }
                        | UnitError::Busy { .. }
                );
                Err(Stopped {
                    error,
                    may_have_moved: !unchanged,
                })
            }
        }
    }

    /// Switches what may have moved back.
    fn back(
        &mut self,
        touched: &[PciAddress],
        stopped: &Stopped,
        [old, new]: [Way<'_, B>; 2],
    ) -> Result<(), UnitError> {
        let unit = self.inner.unit;
        // The one that failed is counted in the new domain as well as in the old.
        self.counted[1] += 1;
        let (failed, moved) = match touched.split_last() {
            Some(parts) => parts,
            None => return Ok(()),
        };
        if stopped.may_have_moved {
            match self.one(*failed, [new, old]) {
                Ok(())
                | Err(Stopped {
                    error: UnitError::NotBound { .. },
                    ..
                }) => old.anchor.leave(unit),
                Err(stopped) => {
                    self.counted[0] += 1;
                    return Err(stopped.error);
                }
            }
        }
        new.anchor.leave(unit);
        self.counted[1] -= 1;
        for requester in moved {
            let back = self.one(*requester, [new, old]);
            self.counted[0] += 1;
            back.map_err(|stopped| stopped.error)?;
            new.anchor.leave(unit);
            self.counted[1] -= 1;
        }
        Ok(())
    }
}

/// Takes every entry down, whichever of the two domains it names. Who waits for the unit to forget them is
/// `recover`.
fn take_down<B: Backend>(inner: &Inner<B>, ends: [HwDomainId; 2]) {
    for requester in &inner.requesters {
        for end in ends {
            // An error says that the entry names the other domain, or that the unit takes no requests.
            let (system, unit) = (&inner.system, inner.unit);
            let _ = system.away(|| system.backend.unbind(unit, *requester, end));
        }
    }
}

/// A wedged group that may be cached in two domains: neither ends before it recovers.
fn half_moved<B: Backend>(
    inner: Inner<B>,
    error: UnitError,
    ends: [(Anchor<B>, usize); 2],
) -> Group<B, Wedged<B>> {
    let bound = inner.requesters.len();
    let holds: ArrayVec<_, 2> = ends
        .into_iter()
        .map(|(anchor, entered)| Hold {
            anchor,
            bound,
            entered,
        })
        .collect();
    let state = Wedged { error, holds };
    Group { inner, state }
}
