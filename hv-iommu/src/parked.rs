//! Groups whose devices are being reset: taken from their domain meanwhile, with all ids, and put back after.

use core::fmt;

use hv_core::Owner;

use crate::attach::AttachError;
use crate::backend::Backend;
use crate::bind::{BindFailed, bind_all, unbind_all, unregister, wedged};
use crate::domain::DomainUid;
use crate::group::{Attached, AttachedGroup, Claimed, Group, Wedged};
use crate::shape::{Paging, Shape};
use crate::topology::IsolationError;

/// State of a group that reaches no memory while one of its devices is reset. It keeps its owner and its domain,
/// which counts it as attached and cannot be destroyed meanwhile.
pub struct Parked<O: Owner, B: Backend, S: Shape<O, B> = Paging> {
    pub(crate) owner: O::Id,
    pub(crate) core: S::Core,
}

/// What a failed unpark gives back: the group parked as `P`, claimed without a domain, or wedged.
pub enum UnparkFailed<O: Owner, B: Backend, P> {
    /// The reset came over what keeps the group apart from others, which is not as it was. It stays parked.
    NotApart {
        /// The group.
        group: P,
        /// What is not as it was.
        error: IsolationError,
    },
    /// The unit did not take the group back. Nothing is bound.
    Refused {
        /// The group.
        group: Group<B, Claimed<O>>,
        /// Why.
        error: AttachError,
    },
    /// The hardware did not forget what had been bound.
    Wedged {
        /// The group.
        group: Group<B, Wedged<B>>,
    },
}

impl<O: Owner, B: Backend, P> UnparkFailed<O, B, P> {
    /// The same of a group that is parked in another way.
    pub(crate) fn parked_as<Q>(self, change: impl FnOnce(P) -> Q) -> UnparkFailed<O, B, Q> {
        match self {
            Self::NotApart { group, error } => {
                let group = change(group);
                UnparkFailed::NotApart { group, error }
            }
            Self::Refused { group, error } => UnparkFailed::Refused { group, error },
            Self::Wedged { group } => UnparkFailed::Wedged { group },
        }
    }
}

impl<O: Owner, B: Backend, P> fmt::Display for UnparkFailed<O, B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotApart { error, .. } => write!(f, "it stays parked: {error}"),
            Self::Refused { group, error } => write!(f, "{} did not go back: {error}", group.id()),
            Self::Wedged { group } => group.say_wedged(f),
        }
    }
}

impl<O: Owner, B: Backend, P> fmt::Debug for UnparkFailed<O, B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend, P> core::error::Error for UnparkFailed<O, B, P> {}

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
            mut inner,
            state: Attached { owner, core },
        } = self;
        inner.silence();
        // Also when it leaves this state in another way than back: who attaches it next looks.
        inner.is_unseen = true;
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
    /// a device sets it up before it sends. So are the TLBs of its devices: who wants one [asks](Group::enable_ats) anew. What keeps groups apart (ACS) and was cleared by the reset is set again as
    /// it was when the functions came in, and read back.
    ///
    /// # Errors
    /// [`UnparkFailed`]: the group, parked as it was when it is not kept apart any more; claimed and without a domain;
    /// or wedged.
    pub fn unpark(mut self) -> Result<AttachedGroup<O, B, S>, UnparkFailed<O, B, Self>> {
        self.inner.silence();
        if let Err(error) = self.inner.look_if_unseen() {
            // The next try looks again.
            return Err(UnparkFailed::NotApart { group: self, error });
        }
        let Self {
            inner,
            state: Parked { owner, core },
        } = self;
        let anchor = S::anchor(&core);
        // The reset may have left it on, or something else is there now.
        if let Err(error) = inner.look_at_cxl_caches() {
            unregister(&inner, &anchor);
            let group = Group::again(inner, owner);
            return Err(UnparkFailed::Refused { group, error });
        }
        match bind_all::<O, B, S>(&inner, &core) {
            Ok(()) => {
                let state = Attached { owner, core };
                Ok(Group { inner, state })
            }
            Err(BindFailed::TakenBack(error)) => {
                unregister(&inner, &anchor);
                let group = Group::again(inner, owner);
                Err(UnparkFailed::Refused { group, error })
            }
            Err(BindFailed::Wedged { stuck, bound }) => {
                let group = wedged(inner, anchor, stuck, bound);
                Err(UnparkFailed::Wedged { group })
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
