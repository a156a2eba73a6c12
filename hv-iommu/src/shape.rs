//! The shapes of domains, as types: what a domain's devices go through on their way to memory.
//!
//! The second axis beside the owner. Not every pair exists: a user's own first stage stands only on a
//! user's parent, and nobody but the hypervisor's own driver is ever let through untranslated.

#![expect(unsafe_code, reason = "binds devices to tables")]

use hv_core::{KernelPaging, Owner, PciAddress, Shared, UserManaged};

use crate::anchor::{Anchor, Inside};
use crate::attach::AttachError;
use crate::backend::{Backend, Binding, FlushTicket, HwDomainId, UnitError, UnitIndex};
use crate::capability::{IdentityBackend, NestedBackend, ReplaceBackend, ReplaceNestedBackend};
use crate::destroy::{DestroyError, Teardown};
use crate::domain::{Domain, DomainCore, TablesHeld};
use crate::group::{Blocked, Inner};
use crate::identity::IdentityCore;
use crate::ids::IdLease;
use crate::nested::NestedCore;
use crate::reserved::{ReservedKind, ReservedRegion};

mod sealed {
    //! Keeps shapes from being let do more than below by the crate of a backend: the backend is a parameter of these traits, so
    //! the compiler would take such an `impl` for its own.
    pub trait Confines<O, B> {}
    pub trait Switches<O, B> {}
    pub trait LetsThrough<O, B> {}
}

/// What a request of a device goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// The domain's own tables.
    Second,
    /// A first stage that the user writes, then the parent's tables.
    FirstOnSecond,
    /// Nothing: the address is used as it is.
    Untranslated,
    /// It is refused.
    Refused,
}

/// The shape of a [`Domain`] of owner `O` on backend `B`. Closed.
#[diagnostic::on_unimplemented(
    message = "there is no `{Self}` domain of `{O}` on `{B}`",
    label = "no such domain",
    note = "`Nested` is for `UserManaged` domains on a backend with `NestedBackend`, on a `ParentPaging` parent",
    note = "`Identity` is for `KernelPaging` domains on a backend with `IdentityBackend`"
)]
pub trait Shape<O: Owner, B: Backend>: Inside<O, B> + Send + Sync + 'static {
    /// What requests go through.
    const STAGES: Stages;
    /// What is left of such a domain that has ended: what hands out all that it mapped, if it did.
    type Ended;

    /// What [`Domain::destroy`] does.
    ///
    /// # Errors
    /// The domain, while something uses it.
    fn end(domain: Domain<O, B, Self>) -> Result<Self::Ended, DestroyError<O, B, Self>>;
}

/// A domain with tables of its own, filled by maps.
#[derive(Debug)]
pub enum Paging {}

/// As [`Paging`], and made for users' first stages to stand on.
#[derive(Debug)]
pub enum ParentPaging {}

/// A first stage that the user writes itself, on a [`ParentPaging`] domain of the same user.
#[derive(Debug)]
pub enum Nested {}

/// No translation: the device reaches all memory. For the hypervisor's own, trusted devices alone.
#[derive(Debug)]
pub enum Identity {}

/// Shapes whose domains have tables of their own: [`Paging`] and [`ParentPaging`].
#[diagnostic::on_unimplemented(
    message = "a `{Self}` domain has no tables of its own, so nothing is reserved or mapped in it",
    label = "this domain is `{Self}`",
    note = "for `Nested`, map in the parent; `Identity` and `Blocked` map nothing at all: use a `Paging` domain"
)]
pub trait Pages<O: Owner, B: Backend>:
    Shape<O, B, Ended = Teardown<O, B>>
    + Inside<O, B, Core = Shared<DomainCore<B>>, Held = TablesHeld<O, B>>
{
}

/// Shapes that a claimed group is attached to without naming a bypass: all but [`Identity`]. Closed.
#[diagnostic::on_unimplemented(
    message = "a group is not attached to an `{Self}` domain like to any other",
    label = "this domain lets the device reach all memory",
    note = "use `attach_untranslated`, with a `TrustedDevice` of this very group"
)]
pub trait Confines<O: Owner, B: Backend>: Shape<O, B> + sealed::Confines<O, B> {}

/// Shapes between which a live entry can be switched, if its unit can ([`GaplessReplace`](crate::GaplessReplace)):
/// [`Paging`], [`ParentPaging`], and [`Nested`] where the backend switches to that too. Closed.
#[diagnostic::on_unimplemented(
    message = "no live entry is switched to or from a `{Self}` domain",
    label = "the entry of such a domain is made and taken down",
    note = "accept the gap by name: `replace_with_gap`"
)]
pub trait Switches<O: Owner, B: ReplaceBackend>: Confines<O, B> + sealed::Switches<O, B> {
    /// Under which id units file what its devices use.
    fn id(core: &Self::Core) -> HwDomainId;

    /// Switches a live entry of the domain with id `from` to this one.
    ///
    /// # Errors
    /// As [`ReplaceBackend::rebind`].
    ///
    /// # Safety
    /// As for [`Inside::bind`], and neither domain ends before the ticket has completed.
    unsafe fn switch(
        core: &Self::Core,
        backend: &B,
        unit: UnitIndex,
        requester: PciAddress,
        from: HwDomainId,
    ) -> Result<FlushTicket, UnitError>;
}

/// Shapes through which a device reaches memory: all but [`Blocked`]. Closed.
#[diagnostic::on_unimplemented(
    message = "devices of a group that is attached to a `{Self}` domain send nothing",
    label = "this domain refuses all requests",
    note = "`replace_with_gap` it by a `Paging` domain first"
)]
pub trait LetsThrough<O: Owner, B: Backend>: Shape<O, B> + sealed::LetsThrough<O, B> {}

impl<O: Owner, B: Backend> Shape<O, B> for Paging {
    const STAGES: Stages = Stages::Second;
    type Ended = Teardown<O, B>;

    fn end(domain: Domain<O, B, Self>) -> Result<Self::Ended, DestroyError<O, B, Self>> {
        crate::destroy::end_tables(domain)
    }
}
impl<O: Owner, B: Backend> Pages<O, B> for Paging {}
impl<O: Owner, B: Backend> sealed::Confines<O, B> for Paging {}
impl<O: Owner, B: Backend> Confines<O, B> for Paging {}
impl<O: Owner, B: Backend> sealed::LetsThrough<O, B> for Paging {}
impl<O: Owner, B: Backend> LetsThrough<O, B> for Paging {}

impl<B: Backend> Shape<UserManaged, B> for ParentPaging {
    const STAGES: Stages = Stages::Second;
    type Ended = Teardown<UserManaged, B>;

    fn end(
        domain: Domain<UserManaged, B, Self>,
    ) -> Result<Self::Ended, DestroyError<UserManaged, B, Self>> {
        crate::destroy::end_tables(domain)
    }
}
impl<B: Backend> Pages<UserManaged, B> for ParentPaging {}
impl<B: Backend> sealed::Confines<UserManaged, B> for ParentPaging {}
impl<B: Backend> Confines<UserManaged, B> for ParentPaging {}
impl<B: Backend> sealed::LetsThrough<UserManaged, B> for ParentPaging {}
impl<B: Backend> LetsThrough<UserManaged, B> for ParentPaging {}

impl<B: NestedBackend> Shape<UserManaged, B> for Nested {
    const STAGES: Stages = Stages::FirstOnSecond;
    type Ended = ();

    fn end(
        domain: Domain<UserManaged, B, Self>,
    ) -> Result<Self::Ended, DestroyError<UserManaged, B, Self>> {
        crate::nested::end(domain)
    }
}
impl<B: NestedBackend> sealed::Confines<UserManaged, B> for Nested {}
impl<B: NestedBackend> Confines<UserManaged, B> for Nested {}
impl<B: NestedBackend> sealed::LetsThrough<UserManaged, B> for Nested {}
impl<B: NestedBackend> LetsThrough<UserManaged, B> for Nested {}

impl<B: IdentityBackend> Shape<KernelPaging, B> for Identity {
    const STAGES: Stages = Stages::Untranslated;
    type Ended = ();

    fn end(
        domain: Domain<KernelPaging, B, Self>,
    ) -> Result<Self::Ended, DestroyError<KernelPaging, B, Self>> {
        crate::identity::end(domain)
    }
}
impl<B: IdentityBackend> sealed::LetsThrough<KernelPaging, B> for Identity {}
impl<B: IdentityBackend> LetsThrough<KernelPaging, B> for Identity {}

impl<O: Owner, B: Backend> Shape<O, B> for Blocked {
    const STAGES: Stages = Stages::Refused;
    type Ended = ();

    fn end(domain: Domain<O, B, Self>) -> Result<Self::Ended, DestroyError<O, B, Self>> {
        let _ = domain;
        Ok(())
    }
}
impl<O: Owner, B: Backend> sealed::Confines<O, B> for Blocked {}
impl<O: Owner, B: Backend> Confines<O, B> for Blocked {}

/// The binding of a requester to a domain's tables; `None` once the domain has ended.
pub(crate) fn binding<B: Backend>(core: &DomainCore<B>) -> Option<Binding> {
    Some(Binding {
        root: core.table.root()?,
        domain: core.id,
        leaves: core.caps.leaves(),
    })
}

/// Binds to a domain's tables.
///
/// # Safety
/// As for [`Inside::bind`].
unsafe fn bind_tables<B: Backend>(
    core: &DomainCore<B>,
    backend: &B,
    unit: UnitIndex,
    requester: PciAddress,
) -> Result<Option<FlushTicket>, UnitError> {
    let domain = core.id;
    // A domain that has ended was refused by `check`, and cannot end since.
    let binding = binding(core).ok_or(UnitError::NotBound { requester, domain })?;
    // SAFETY: the root is that of a live table in this backend's format, which by the caller's promise
    // does not end meanwhile. It maps what its owner's runs of frames name.
    unsafe { backend.bind(unit, requester, binding) }
}

/// What [`Inside`] is for shapes with tables of their own.
macro_rules! tables {
    ($shape:ty, $owner:ident, [$($generic:tt)*]) => {
        impl<$($generic)*> Inside<$owner, B> for $shape {
            type Core = Shared<DomainCore<B>>;
            type Held = TablesHeld<$owner, B>;
            fn anchor(core: &Self::Core) -> Anchor<B> {
                Anchor::Tables(core.clone())
            }

            fn is_with(core: &Self::Core, inner: &Inner<B>) -> bool {
                Shared::ptr_eq(&core.system, &inner.system)
            }

            fn check(core: &Self::Core, inner: &Inner<B>) -> Result<(), AttachError> {
                crate::attach::check_tables(core, inner)
            }

            unsafe fn bind(
                core: &Self::Core,
                backend: &B,
                unit: UnitIndex,
                requester: PciAddress,
            ) -> Result<Option<FlushTicket>, UnitError> {
                // SAFETY: the caller's promise is the same.
                unsafe { bind_tables(core, backend, unit, requester) }
            }
        }
    };
}

tables!(Paging, O, [O: Owner, B: Backend]);
tables!(ParentPaging, UserManaged, [B: Backend]);

/// What [`Switches`] is for them.
macro_rules! switches {
    ($shape:ty, $owner:ident, [$($generic:tt)*]) => {
        impl<$($generic)*> sealed::Switches<$owner, B> for $shape {}

        impl<$($generic)*> Switches<$owner, B> for $shape {
            fn id(core: &Self::Core) -> HwDomainId {
                core.id
            }

            unsafe fn switch(
                core: &Self::Core,
                backend: &B,
                unit: UnitIndex,
                requester: PciAddress,
                from: HwDomainId,
            ) -> Result<FlushTicket, UnitError> {
                let domain = core.id;
                // One that has ended was refused by `check`, and cannot end since.
                let to = binding(core).ok_or(UnitError::NotBound { requester, domain })?;
                // SAFETY: as in `bind_tables`; the old domain does not end before the ticket has completed, by the
                // caller's promise.
                unsafe { backend.rebind(unit, requester, from, to) }
            }
        }
    };
}

switches!(Paging, O, [O: Owner, B: ReplaceBackend]);
switches!(ParentPaging, UserManaged, [B: ReplaceBackend]);

impl<B: ReplaceNestedBackend> sealed::Switches<UserManaged, B> for Nested {}

impl<B: ReplaceNestedBackend> Switches<UserManaged, B> for Nested {
    fn id(core: &Self::Core) -> HwDomainId {
        core.parent.id
    }

    unsafe fn switch(
        core: &Self::Core,
        backend: &B,
        unit: UnitIndex,
        requester: PciAddress,
        from: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let domain = core.parent.id;
        let parent = binding(&core.parent).ok_or(UnitError::NotBound { requester, domain })?;
        // SAFETY: as in `Inside::bind`; the old domain does not end before the ticket has completed, by the caller's
        // promise.
        unsafe { backend.rebind_nested(unit, requester, from, parent, &core.stage) }
    }
}

impl<B: NestedBackend> Inside<UserManaged, B> for Nested {
    type Core = Shared<NestedCore<B>>;
    type Held = ();

    fn anchor(core: &Self::Core) -> Anchor<B> {
        Anchor::Nested(core.ties.clone(), core.parent.clone())
    }

    fn is_with(core: &Self::Core, inner: &Inner<B>) -> bool {
        Shared::ptr_eq(&core.parent.system, &inner.system)
    }

    fn check(core: &Self::Core, inner: &Inner<B>) -> Result<(), AttachError> {
        crate::attach::check_tables(&core.parent, inner)?;
        let backend = &core.parent.system.backend;
        let unit = inner.unit;
        let served = backend.serves_stage(unit, &core.stage);
        served.map_err(|unmet| AttachError::Incompatible { unit, unmet })
    }

    unsafe fn bind(
        core: &Self::Core,
        backend: &B,
        unit: UnitIndex,
        requester: PciAddress,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let domain = core.parent.id;
        let parent = binding(&core.parent).ok_or(UnitError::NotBound { requester, domain })?;
        // SAFETY: by the caller's promise the nested domain does not end meanwhile, and its parent not
        // before it: that counts its children. The parent's tables map what its owner's runs name.
        unsafe { backend.bind_nested(unit, requester, parent, &core.stage) }
    }
}

impl<B: IdentityBackend> Inside<KernelPaging, B> for Identity {
    type Core = IdentityCore<B>;
    type Held = IdLease;

    fn anchor(core: &Self::Core) -> Anchor<B> {
        Anchor::Identity(core.ties.clone())
    }

    fn is_with(core: &Self::Core, inner: &Inner<B>) -> bool {
        Shared::ptr_eq(&core.system, &inner.system)
    }

    fn check(core: &Self::Core, inner: &Inner<B>) -> Result<(), AttachError> {
        crate::attach::check_id(core.ties.id, inner, &inner.caps)?;
        let (unit, unmet) = (inner.unit, crate::identity::NO_PASS_THROUGH);
        match core.system.backend.passes_through(unit) {
            true => Ok(()),
            false => Err(AttachError::Incompatible { unit, unmet }),
        }
    }

    unsafe fn bind(
        core: &Self::Core,
        backend: &B,
        unit: UnitIndex,
        requester: PciAddress,
    ) -> Result<Option<FlushTicket>, UnitError> {
        // SAFETY: only a group whose holder vouches for its devices by a `TrustedDevice` comes here.
        unsafe { backend.bind_identity(unit, requester, core.ties.id) }
    }
}

impl<O: Owner, B: Backend> Inside<O, B> for Blocked {
    type Core = ();
    type Held = ();

    fn anchor((): &()) -> Anchor<B> {
        Anchor::Nothing
    }

    fn is_with((): &(), _inner: &Inner<B>) -> bool {
        true
    }

    fn check((): &(), inner: &Inner<B>) -> Result<(), AttachError> {
        let pinned = |region: &ReservedRegion| region.kind == ReservedKind::Pinned;
        match inner.firmwares_regions().find(pinned) {
            Some(region) => Err(AttachError::RegionBlocked {
                group: inner.id,
                region,
            }),
            None => Ok(()),
        }
    }

    unsafe fn bind(
        (): &(),
        _backend: &B,
        _unit: UnitIndex,
        _requester: PciAddress,
    ) -> Result<Option<FlushTicket>, UnitError> {
        Ok(None)
    }
}
