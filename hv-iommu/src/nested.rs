//! Nested domains: a first stage that a user writes itself, on a parent of its own.

use hv_core::sync::{Ordering, fence};
use hv_core::{OutOfMemory, Owner, Shared, UserManaged};
use thiserror::Error;

use crate::anchor::Ties;
use crate::backend::{UnitError, UnitIndex};
use crate::capability::{BadRequest, NestedBackend};
use crate::destroy::DestroyError;
use crate::domain::{Domain, DomainCore, DomainUid};
use crate::shape::{Nested, ParentPaging};

/// The part of a nested domain that its attachments share.
pub struct NestedCore<B: NestedBackend> {
    pub(crate) ties: Shared<Ties>,
    pub(crate) parent: Shared<DomainCore<B>>,
    pub(crate) stage: B::FirstStage,
}

/// Why there is no nested domain. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NestedError {
    /// What the user says about its first stage is malformed.
    #[error(transparent)]
    Stage(#[from] BadRequest),
    /// The control path's heap is exhausted.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
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
    /// It is malformed, or one that the backend takes from no user: what it asks for is the embedder's to do, as the backend's
    /// crate says. Neither it nor any behind it was done.
    #[error(transparent)]
    Malformed(#[from] BadRequest),
    /// A unit did not complete it. Unless it was only busy it is wedged, and its devices were cut off.
    #[error(transparent)]
    Unit(#[from] UnitError),
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
    /// A user means all its devices with most requests, whichever of its first stages they are on. So each request is for
    /// every nested domain of the user, or for one of them behind each unit; a domain without a device has no unit, and does
    /// nothing.
    ///
    /// # Errors
    /// [`InvalidateError`] at the first request that is malformed, not a user's to give, or failed: it says how many were
    /// done; those behind it were not looked at. Where that is none because a unit failed, some may have been: to ask for
    /// all of them once more is safe, and has to be done after the unit's reset.
    pub fn invalidate(&self, batch: &[B::UserInvalidation]) -> Result<(), InvalidateError> {
        let core = &self.core;
        let system = &core.parent.system;
        // ORDERING: SeqCst pairs with the fence of `Reach::enter`: either a unit that is entering is seen
        // here, or its walks, which begin after that fence, see what the user wrote before it asked.
        fence(Ordering::SeqCst);
        let mut tickets = [None; UnitIndex::LIMIT];
        let mut refused = None;
        let mut asked = 0;
        'batch: for user in batch {
            let checked = system.backend.check_invalidation(&core.stage, user);
            let invalidation = match checked {
                Ok(invalidation) => invalidation,
                Err(error) => {
                    refused = Some(error.into());
                    break;
                }
            };
            for unit in core.ties.reach.units() {
                let (id, stage) = (core.ties.id, &core.stage);
                let resets = system.wedged.resets(unit);
                let asked =
                    system.away(|| system.backend.submit_nested(unit, id, stage, &invalidation));
                match (asked, tickets.get_mut(unit.index())) {
                    // The last one stands for all before it.
                    (Ok(ticket), Some(slot)) => {
                        let earlier = slot.map_or(ticket, |(_, earlier)| earlier);
                        *slot = Some((unit, ticket.and(earlier)));
                    }
                    (Ok(_), None) => {}
                    (Err(error), _) => {
                        system.request_failed(unit, error, resets);
                        refused = Some(error.into());
                        break 'batch;
                    }
                }
            }
            asked += 1;
        }
        for (unit, ticket) in tickets.into_iter().flatten() {
            // One that the unit refuses is the user's own loss: whatever is kept of its first stage leads through the
            // parent's tables.
            let done = system.wait_unless_refused(unit, ticket, "a user's invalidations");
            if let Err(error) = done {
                // Which of them are done nobody knows now.
                let reason = error.into();
                return Err(InvalidateError { done: 0, reason });
            }
        }
        match refused {
            Some(reason) => Err(InvalidateError {
                done: asked,
                reason,
            }),
            None => Ok(()),
        }
    }
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
