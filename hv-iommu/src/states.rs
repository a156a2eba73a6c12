//! What a group may be asked for in which of its states: the traits that calls on [`Group`] are bound by, with
//! the messages that say what to call instead.

use hv_core::{KernelPaging, Owner};

use crate::backend::Backend;
use crate::group::{Attached, Blocked, Claimed, Group};
use crate::parked::Parked;
use crate::pasid::WithPasids;
use crate::rest::{NeedsReset, Pinned};
use crate::shape::{LetsThrough, Shape};

mod sealed {
    //! Keeps states of groups from being added elsewhere.
    pub trait Sealed {}
}

impl sealed::Sealed for Blocked {}
impl sealed::Sealed for Pinned {}
impl sealed::Sealed for NeedsReset<KernelPaging> {}
impl<O: Owner> sealed::Sealed for Claimed<O> {}
impl<O: Owner, B: Backend, S: Shape<O, B>> sealed::Sealed for Attached<O, B, S> {}
impl<O: Owner, B: Backend, S: Shape<O, B>> sealed::Sealed for Parked<O, B, S> {}
impl<O: Owner, B: Backend, S: Shape<O, B>> sealed::Sealed for WithPasids<O, B, S> {}

/// States of a group that a guest may claim: [`Blocked`] alone. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "a guest may claim a group that is `Blocked`, this one is `{Self}`",
    label = "this group is not to be had by a guest as it is",
    note = "`Pinned`: firmware goes on using it; `override_firmware` takes a policy that says why it may not",
    note = "`NeedsReset`: somebody had it before; `reset_members` first",
    note = "`Attached`, `Claimed`: somebody has it; `detach` and `release` it, and look at what comes back",
    note = "`Wedged`: reset its unit and `recover` it"
)]
pub trait ForGuests: sealed::Sealed {}
impl ForGuests for Blocked {}

/// States of a group that the hypervisor may claim: [`Blocked`], [`Pinned`], and [`NeedsReset`] after a driver of its own.
/// Exists for its message.
#[diagnostic::on_unimplemented(
    message = "the hypervisor may claim a group that is `Blocked`, `Pinned`, or `NeedsReset` after a driver of its own, \
               this one is `{Self}`",
    label = "this group is not to be had as it is",
    note = "`NeedsReset` after a guest: `reset_members` first",
    note = "`Attached`, `Claimed`, `Parked`, `WithPasids`: somebody has it; `detach` and `release` it, and look at what comes back",
    note = "`Wedged`: reset its unit and `recover` it"
)]
pub trait ForTheHypervisor: sealed::Sealed {}
impl ForTheHypervisor for Blocked {}
impl ForTheHypervisor for Pinned {}
impl ForTheHypervisor for NeedsReset<KernelPaging> {}

/// States of a group whose devices may send requests: [`Attached`] alone. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "devices may send requests while their group is `Attached`, this one is `{Self}`",
    label = "this group has no domain",
    note = "`attach` the group to a domain first; what the domain maps is all that they reach then"
)]
pub trait MaySend: sealed::Sealed {}
impl<O: Owner, B: Backend, S: LetsThrough<O, B>> MaySend for Attached<O, B, S> {}
impl<O: Owner, B: Backend, S: LetsThrough<O, B>> MaySend for WithPasids<O, B, S> {}

/// States of a group that `O` holds: [`Claimed`], [`Attached`], [`Parked`] and [`WithPasids`]. Domains are made for
/// such a group, those that replace the one that it is in too.
#[diagnostic::on_unimplemented(
    message = "a domain of `{O}` is made for a group that `{O}` holds, this one is `{Self}`",
    label = "this group is held by nobody, or by somebody else",
    note = "for a driver of the hypervisor: `claim_for_hypervisor`, then `Domain::paging_domain_alloc(&group, ..)`",
    note = "for a guest: `claim_for_guest`, then `Domain::user_domain_alloc(&group, ..)`",
    note = "a group that is `Claimed`, `Attached`, `Parked` or `WithPasids` serves"
)]
pub trait HeldBy<O: Owner>: sealed::Sealed {
    /// Who of its kind holds the group.
    fn owner(&self) -> O::Id;
}

impl<O: Owner> HeldBy<O> for Claimed<O> {
    fn owner(&self) -> O::Id {
        self.owner
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> HeldBy<O> for Attached<O, B, S> {
    fn owner(&self) -> O::Id {
        self.owner
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> HeldBy<O> for Parked<O, B, S> {
    fn owner(&self) -> O::Id {
        self.owner
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> HeldBy<O> for WithPasids<O, B, S> {
    fn owner(&self) -> O::Id {
        self.attached.owner
    }
}

/// States of a group in which its claim is given up: [`Claimed`] alone. `Rest` is a parameter, for each state just one,
/// since the compiler shows no message of ours for a call whose result it cannot name.
#[diagnostic::on_unimplemented(
    message = "a claim is given up while the group is `Claimed`, this one is `{Self}`",
    label = "this group is not released as it is",
    note = "`Attached`, `Parked`: `detach` it, and `release` the claimed group that comes back",
    note = "`WithPasids`: `close_pasids` first, then as above",
    note = "`Blocked`, `Pinned`, `NeedsReset`: nobody holds it, so there is nothing to give up",
    note = "`Wedged`: reset its unit and `recover` it; it comes back at rest"
)]
pub trait GivesUp<B: Backend, Rest>: sealed::Sealed + Sized {
    /// What [`Group::release`] does; `Rest` is what the group is then.
    fn give_up(group: Group<B, Self>) -> Rest;
}

impl<B: Backend, O: Owner> GivesUp<B, Group<B, NeedsReset<O>>> for Claimed<O> {
    fn give_up(group: Group<B, Self>) -> Group<B, NeedsReset<O>> {
        let last = group.owner();
        group.inner.needing_reset(last)
    }
}

/// Groups at rest that are claimed without a look at which they are: none. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "whether a group at rest may be claimed is not known before it was looked at",
    label = "it may be firmware's, or wait for a reset",
    note = "`claimable()` gives it if anybody may claim it, and it back if not: `group.claimable()?.claim_for_guest(vm)`",
    note = "or `match` on it: `AtRest::Claimable(group)`; `AtRest::ForHypervisor(group)`, which firmware goes on using; \
            `AtRest::ToReset(group)` and `AtRest::AfterDriver(group)`, whose `reset_members` gives it back at rest",
    note = "or keep the groups in a `GroupTable`, whose `claim_for_guest` answers with an error that says why not"
)]
pub trait ClaimedUnseen {
    /// Whatever the caller is to give: it is never called.
    fn never<T>(self) -> T;
}
