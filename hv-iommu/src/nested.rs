//! Nested domains: a first stage that a user writes itself, on a parent of its own.

use hv_core::sync::{Ordering, fence};
use hv_core::{OutOfMemory, Owner, Shared, UserManaged};
use thiserror::Error;

use crate::anchor::Ties;
use crate::backend::{FlushTicket, UnitError, UnitIndex};
use crate::capability::{BadRequest, NestedBackend, NotTaken};
use crate::destroy::DestroyError;
use crate::domain::{Domain, DomainCore, DomainUid};
use crate::reach::Reach;
use crate::shape::{Nested, ParentPaging};
use crate::system::Iommu;

/// The part of a nested domain that its attachments share.
pub struct NestedCore<B: NestedBackend> {
    pub(crate) ties: Shared<Ties>,
    pub(crate) parent: Shared<DomainCore<B>>,
    pub(crate) stage: B::FirstStage,
}

/// Why there is no nested domain. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NestedError {
    /// What the user says about its first stage is malformed, or needs what users are not shown: the user is told so, as a unit
    /// of its own would.
    #[error(transparent)]
    Stage(BadRequest),
    /// The user says, in due form, that there is no first stage: its device is attached to the parent, or
    /// [parked](crate::Group::park), as the backend's crate says.
    #[error("the user has no first stage there: {0}")]
    NoStage(BadRequest),
    /// The control path's heap is exhausted.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl From<NotTaken> for NestedError {
    fn from(error: NotTaken) -> Self {
        match error {
            NotTaken::Malformed(bad) => Self::Stage(bad),
            NotTaken::Embedders(request) => Self::NoStage(request),
        }
    }
}

/// Why a batch of a user's invalidations was not done to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{done} invalidations were done, the next one was not: {reason}")]
pub struct InvalidateError {
    /// How many are known to have completed, from the first on.
    pub done: usize,
    /// Why there are no more.
    pub reason: InvalidateRefusal,
}

/// Why an invalidation of a user was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidateRefusal {
    /// It is malformed, or one that users are not shown: the user's mistake, of which a unit of its own would tell it. Neither
    /// it nor any behind it was done.
    #[error(transparent)]
    Malformed(BadRequest),
    /// It is in order, and asks for what the embedder does, as the backend's crate says. Neither it nor any behind it was done:
    /// go on behind it once it is.
    #[error("this is for whoever plays the user's unit: {0}")]
    Embedders(BadRequest),
    /// A unit did not complete it. Unless it was only busy it is wedged, and its devices were cut off.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

impl From<NotTaken> for InvalidateRefusal {
    fn from(error: NotTaken) -> Self {
        match error {
            NotTaken::Malformed(bad) => Self::Malformed(bad),
            NotTaken::Embedders(request) => Self::Embedders(request),
        }
    }
}

impl<B: NestedBackend> Domain<UserManaged, B, Nested> {
    /// A domain of a first stage that the user writes, on `parent`, which lives for as long as it does.
    ///
    /// What the stage leads to is looked up in the parent's tables: the user reaches no more than what
    /// the parent maps. Whether a unit can walk such a stage shows when a group of it is attached.
    ///
    /// # Errors
    /// [`NestedError`].
    pub fn alloc_nested(
        parent: &Domain<UserManaged, B, ParentPaging>,
        user: &B::UserStage,
    ) -> Result<Self, NestedError> {
        let (core, owner) = (&parent.core, parent.owner);
        let stage = core.system.backend.check_stage(user)?;
        let ties = Ties::new(UserManaged::owner_id(owner), core.id);
        let ties = Shared::try_new(ties).map_err(|(_, error)| error)?;
        let nested = NestedCore {
            ties,
            parent: core.clone(),
            stage,
        };
        let core = Shared::try_new(nested).map_err(|(_, error)| error)?;
        core.parent.children.enter();
        Ok(Self {
            core,
            owner,
            held: (),
        })
    }

    /// The domain that it stands on.
    pub fn parent(&self) -> DomainUid {
        self.core.parent.uid
    }

    /// What the user's first stage is.
    pub fn first_stage(&self) -> &B::FirstStage {
        &self.core.stage
    }

    /// Has every unit that the domain's devices are behind forget what a user asks it to, one request after
    /// the other, and waits for that. None at all is well.
    ///
    /// A user means all its devices with most requests, whichever of its first stages they are on: those go to
    /// [its parent](Domain::forget_first_stages), which has the same call. A domain without a device has no unit, and does
    /// nothing.
    ///
    /// # Errors
    /// [`InvalidateError`] at the first request that is malformed, not a user's to give, or failed: it says how many were
    /// done; those behind it were not looked at. Where that is none because a unit failed, some may have been: to ask for
    /// all of them once more is safe, and has to be done after the unit's reset.
    pub fn invalidate(&self, batch: &[B::UserInvalidation]) -> Result<(), InvalidateError> {
        invalidate(&self.core.parent, &self.core.ties.reach, batch)
    }
}

impl<B: NestedBackend> Domain<UserManaged, B, ParentPaging> {
    /// As [`invalidate`](Domain::invalidate) of a nested domain, for all first stages on this one together: behind every unit
    /// that a device of any of them is behind.
    ///
    /// # Errors
    /// [`InvalidateError`], likewise.
    pub fn invalidate(&self, batch: &[B::UserInvalidation]) -> Result<(), InvalidateError> {
        invalidate(&self.core, &self.core.reach, batch)
    }

    /// Has every unit forget all of the user's first stages, contexts and translations, and waits for that: for a user that
    /// starts anew, or whose requests are not known one by one.
    ///
    /// What changes in this domain itself needs no such call: its flushes take along what was made of both stages.
    ///
    /// # Errors
    /// [`UnitError`] of the first unit that did not; others may have. To ask once more is safe, and has to be done after the
    /// unit's reset.
    pub fn forget_first_stages(&self) -> Result<(), UnitError> {
        let core = &self.core;
        let mut asked = Asked::new(core);
        let units = core.reach.units().filter(|unit| nests(core, *unit));
        let done = asked.of_each(units, |unit| {
            core.system
                .backend
                .submit_forget_first_stages(unit, core.id)
        });
        done.and(asked.wait())
    }
}

impl<B: NestedBackend> Iommu<B> {
    /// The most that a guest may be shown as an IOMMU of its own, for its first stages behind any unit of the machine that can
    /// nest: nothing that follows from it is refused. `None` where guests can have none.
    pub fn user_unit(&self) -> Option<B::UserUnit> {
        self.0.backend.user_unit()
    }
}

/// Whether first stages may stand on the domain behind that unit. One that has no first stages may take a request about them
/// for an illegal one.
fn nests<B: NestedBackend>(core: &DomainCore<B>, unit: UnitIndex) -> bool {
    let caps = core.system.backend.unit_caps(unit);
    caps.is_some_and(|caps| caps.nested)
}

/// What units were asked to forget of the first stages on a domain, and not yet waited for.
struct Asked<'a, B: NestedBackend> {
    core: &'a DomainCore<B>,
    tickets: [Option<(UnitIndex, FlushTicket)>; UnitIndex::LIMIT],
}

impl<'a, B: NestedBackend> Asked<'a, B> {
    fn new(core: &'a DomainCore<B>) -> Self {
        // ORDERING: SeqCst pairs with the fence of `Reach::enter`: either a unit that is entering is seen
        // behind this, or its walks, which begin after that fence, see what the user wrote before it asked.
        fence(Ordering::SeqCst);
        let tickets = [None; UnitIndex::LIMIT];
        Self { core, tickets }
    }

    /// Asks each of these units.
    fn of_each(
        &mut self,
        units: impl Iterator<Item = UnitIndex>,
        ask: impl Fn(UnitIndex) -> Result<FlushTicket, UnitError>,
    ) -> Result<(), UnitError> {
        let system = &self.core.system;
        for unit in units {
            let resets = system.wedged.resets(unit);
            match (
                system.away(|| ask(unit)),
                self.tickets.get_mut(unit.index()),
            ) {
                // The last one stands for all before it.
                (Ok(ticket), Some(slot)) => {
                    let earlier = slot.map_or(ticket, |(_, earlier)| earlier);
                    *slot = Some((unit, ticket.and(earlier)));
                }
                (Ok(_), None) => {}
                (Err(error), _) => {
                    system.request_failed(unit, error, resets);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits for all that was asked for.
    fn wait(self) -> Result<(), UnitError> {
        for (unit, ticket) in self.tickets.into_iter().flatten() {
            // One that the unit refuses is the user's own loss: whatever is kept of its first stage leads through the
            // parent's tables.
            let system = &self.core.system;
            system.wait_unless_refused(unit, ticket, "a user's invalidations")?;
        }
        Ok(())
    }
}

/// Has the units of `reach` forget what a user asks them to, of its first stages on `parent`.
fn invalidate<B: NestedBackend>(
    parent: &DomainCore<B>,
    reach: &Reach,
    batch: &[B::UserInvalidation],
) -> Result<(), InvalidateError> {
    let backend = &parent.system.backend;
    let mut asked = Asked::new(parent);
    let mut done = 0;
    let mut refused = None;
    for user in batch {
        let one = backend.check_invalidation(user);
        let one = one.map_err(InvalidateRefusal::from).and_then(|one| {
            let units = reach.units().filter(|unit| nests(parent, *unit));
            let asked = asked.of_each(units, |unit| backend.submit_nested(unit, parent.id, &one));
            asked.map_err(InvalidateRefusal::from)
        });
        if let Err(reason) = one {
            refused = Some(reason);
            break;
        }
        done += 1;
    }
    // Where a wait fails, which of them are done nobody knows.
    asked.wait().map_err(|error| InvalidateError {
        done: 0,
        reason: error.into(),
    })?;
    refused.map_or(Ok(()), |reason| Err(InvalidateError { done, reason }))
}

/// Ends a nested domain: its parent can end afterwards.
pub(crate) fn end<B: NestedBackend>(
    domain: Domain<UserManaged, B, Nested>,
) -> Result<(), DestroyError<UserManaged, B, Nested>> {
    match domain.core.ties.attachments.count() {
        0 => {
            domain.core.parent.children.leave();
            Ok(())
        }
        attachments => {
            let NestedCore { ties, parent, .. } = &*domain.core;
            let group = parent.system.attached_to(ties.uid);
            Err(DestroyError::attached(domain, attachments, group))
        }
    }
}
