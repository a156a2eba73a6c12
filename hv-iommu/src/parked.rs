//! Groups whose devices are being reset: taken from their domain meanwhile, with all ids, and put back after.

use hv_core::Owner;

use crate::attach::AttachFailed;
use crate::backend::Backend;
use crate::bind::{BindFailed, bind_all, unbind_all, unregister, wedged};
use crate::domain::DomainUid;
use crate::group::{Attached, AttachedGroup, Claimed, Group, Wedged};
use crate::shape::{Paging, Shape};

/// State of a group that reaches no memory while one of its devices is reset. It keeps its owner and its domain,
/// which counts it as attached and cannot be destroyed meanwhile.
pub struct Parked<O: Owner, B: Backend, S: Shape<O, B> = Paging> {
    pub(crate) owner: O::Id,
    core: S::Core,
}

/// A group whose devices are being reset.
pub type ParkedGroup<O, B, S = Paging> = Group<B, Parked<O, B, S>>;

impl<O: Owner, B: Backend, S: Shape<O, B>> Group<B, Attached<O, B, S>> {
    /// Takes bus mastering from all members and the group from its domain, with every id that its devices may
    /// send with, until [`unpark`](Group::unpark). For the reset of a function, or of the bus that it is on: what
    /// the device does in between reaches nothing.
    ///
    /// # Errors
    /// The group, wedged, as for [`detach`](Group::detach).
    pub fn park(self) -> Result<ParkedGroup<O, B, S>, Group<B, Wedged<B>>> {
        let Self {
            inner,
            state: Attached { owner, core },
        } = self;
        inner.silence();
        let anchor = S::anchor(&core);
        if let Err(stuck) = unbind_all(&inner, &anchor, &inner.requesters) {
            let bound = inner.requesters.len();
            return Err(wedged(inner, anchor, stuck, bound));
        }
        let state = Parked { owner, core };
        Ok(Group { inner, state })
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> Group<B, Parked<O, B, S>> {
    /// Who of its kind claimed the group.
    pub fn owner(&self) -> O::Id {
        self.state.owner
    }

    /// The domain that the group goes back to.
    pub fn domain(&self) -> DomainUid {
        S::anchor(&self.state.core).uid()
    }

    /// Puts the group back into its domain, as it was. Bus mastering is off, whatever the reset left: who drives
    /// a device sets it up before it sends. What keeps groups apart (ACS) and was cleared by the reset has to be set
    /// again before.
    ///
    /// # Errors
    /// [`AttachFailed`]: the group, claimed and without a domain, or wedged.
    pub fn unpark(self) -> Result<AttachedGroup<O, B, S>, AttachFailed<O, B>> {
        let Self {
            inner,
            state: Parked { owner, core },
        } = self;
        inner.silence();
        let anchor = S::anchor(&core);
        match bind_all::<O, B, S>(&inner, &core) {
            Ok(()) => {
                let state = Attached { owner, core };
                Ok(Group { inner, state })
            }
            Err(BindFailed::TakenBack(error)) => {
                unregister(&inner, &anchor);
                let group = Group::again(inner, owner);
                Err(AttachFailed::Refused { group, error })
            }
            Err(BindFailed::Wedged { stuck, bound }) => {
                let group = wedged(inner, anchor, stuck, bound);
                Err(AttachFailed::Wedged { group })
            }
        }
    }

    /// Leaves the domain for good: for a device that did not come back from its reset.
    pub fn detach(self) -> Group<B, Claimed<O>> {
        let Self {
            inner,
            state: Parked { owner, core },
        } = self;
        inner.silence();
        unregister(&inner, &S::anchor(&core));
        Group::again(inner, owner)
    }
}
