//! What only some backends can do, a trait each: nesting, PASIDs, identity, replacing an entry at once, TLBs in devices.
//!
//! A backend that lacks a trait lacks the operations as well: they do not compile for it. What differs
//! between the units of one backend is a value, asked for here and answered by a typed error.

#![expect(
    unsafe_code,
    reason = "declares traits on whose word memory is handed to devices"
)]

use core::fmt;

use hv_core::{Pasid, PciAddress};
use thiserror::Error;

use crate::backend::{Backend, Binding, FlushTicket, HwDomainId, UnitError, UnitIndex};

/// Something that was asked for and that a unit does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub struct Unmet {
    /// Which property.
    pub what: &'static str,
    /// How much of it is needed; 1 where it is there or not.
    pub needed: u64,
    /// How much there is.
    pub found: u64,
}

impl Unmet {
    /// That `what` is not there at all.
    pub const fn absent(what: &'static str) -> Self {
        Self {
            what,
            needed: 1,
            found: 0,
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            needed,
            found,
        } = *self;
        if self == &Self::absent(what) {
            write!(f, "the unit has no support for {what}")
        } else {
            write!(f, "{what}: needed {needed}, the unit has {found}")
        }
    }
}

/// Something that a user asked for and that is malformed: nothing was done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{what} is {found:#x}, expected {expected}")]
pub struct BadRequest {
    /// Which part of it.
    pub what: &'static str,
    /// What it may be, in words.
    pub expected: &'static str,
    /// What it was.
    pub found: u64,
}

/// Why a backend does not do what a user asked for. Nothing was done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotTaken {
    /// It is malformed, or asks for what users are not [shown](NestedBackend::user_unit): the user's mistake, which a unit of
    /// its own would tell it of.
    #[error(transparent)]
    Malformed(#[from] BadRequest),
    /// It is in order, and not for a backend: the embedder, who plays the user's unit, does it.
    #[error("this is for whoever plays the user's unit: {0}")]
    Embedders(BadRequest),
}

/// A backend whose units translate by a user's own first stage on top of the domain's tables.
///
/// What a user's stage leads to goes through the parent's tables, so a user reaches no more with it than
/// without.
///
/// # Safety
/// In addition to what [`Backend`] promises:
/// * After [`bind_nested`](Self::bind_nested), and after its ticket where it gave one, every address that
///   the requester reaches, those of the first stage's own tables too, is one that `parent`'s tables map.
///   [`Backend::unbind`] with the parent's id takes the binding down.
/// * A flush of [`FlushSpan::Domain`](crate::FlushSpan::Domain) that reaches walk caches removes what was
///   translated through both stages as well, and where a first stage's tables were found. One of pages
///   need not.
/// * Between the call of [`bind_nested`](Self::bind_nested) and the first request that goes by the first stage, the unit
///   forgets what it held of `parent`: a flush of pages may be under way that was asked for before, and come later.
#[diagnostic::on_unimplemented(
    message = "units of `{Self}` walk no first stage of a user's own",
    label = "this backend has no `NestedBackend`",
    note = "the user maps in its domain: `Domain::user_domain_alloc`, then `reserve` and `map`"
)]
pub unsafe trait NestedBackend: Backend {
    /// What a user says about its first stage: the words as they came.
    type UserStage;
    /// A first stage that was looked at and is well-formed.
    type FirstStage: fmt::Debug + Send + Sync + 'static;
    /// What a user asks to be forgotten of its first stage: the words as they came.
    type UserInvalidation;
    /// An invalidation that was looked at and is well-formed.
    type Invalidation;
    /// What a user may be shown as a unit of its own.
    type UserUnit;

    /// The most that a user may be shown: all that follows from it is taken by [`check_stage`](Self::check_stage) and
    /// [`check_invalidation`](Self::check_invalidation), and served by each unit that nests. `None` where none does, or where
    /// they differ in what no unit can be shown to do either way.
    fn user_unit(&self) -> Option<Self::UserUnit>;

    /// Looks at what a user says about its first stage. Changes nothing.
    ///
    /// # Errors
    /// [`NotTaken`].
    fn check_stage(&self, user: &Self::UserStage) -> Result<Self::FirstStage, NotTaken>;

    /// Whether a unit can walk such a first stage.
    ///
    /// # Errors
    /// [`Unmet`].
    fn serves_stage(&self, unit: UnitIndex, stage: &Self::FirstStage) -> Result<(), Unmet>;

    /// Binds `requester` to a first stage on top of `parent`.
    ///
    /// # Errors
    /// As [`Backend::bind`].
    ///
    /// # Safety
    /// As for [`Backend::bind`], with `parent` for the binding.
    unsafe fn bind_nested(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        parent: Binding,
        stage: &Self::FirstStage,
    ) -> Result<Option<FlushTicket>, UnitError>;

    /// Looks at what a user asks to be forgotten. Changes nothing.
    ///
    /// # Errors
    /// [`NotTaken`].
    fn check_invalidation(
        &self,
        user: &Self::UserInvalidation,
    ) -> Result<Self::Invalidation, NotTaken>;

    /// Asks a unit to forget that much of every first stage on top of the domain with this id, and for a wait
    /// behind it.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn submit_nested(
        &self,
        unit: UnitIndex,
        parent: HwDomainId,
        invalidation: &Self::Invalidation,
    ) -> Result<FlushTicket, UnitError>;

    /// Asks a unit to forget all of every first stage on top of the domain with this id: where they were found, and what was
    /// translated by them. And for a wait behind that.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn submit_forget_first_stages(
        &self,
        unit: UnitIndex,
        parent: HwDomainId,
    ) -> Result<FlushTicket, UnitError>;
}

/// A backend that can tell a device's requests apart by the PASID that they carry.
///
/// # Safety
/// What [`Backend`] promises of a requester holds of a requester's requests with one PASID:
/// * With a PASID that is not bound they reach no memory.
/// * After [`bind_pasid`](Self::bind_pasid), and after its ticket where it gave one, they translate by the
///   binding. Its entry became live in one store.
/// * When the ticket of [`unbind_pasid`](Self::unbind_pasid) completes, the unit holds nothing of it.
/// * Flushes by domain id name them too.
#[diagnostic::on_unimplemented(
    message = "units of `{Self}` do not tell requests apart by PASID",
    label = "this backend has no `PasidBackend`",
    note = "give the whole function to one domain: `attach`"
)]
pub unsafe trait PasidBackend: Backend {
    /// How many bits of a PASID a unit looks at in requests of this requester, at most 20; 0 when it takes none, or when
    /// it cannot tell them from another requester's. Always the same.
    fn pasid_bits(&self, unit: UnitIndex, requester: PciAddress) -> u8;

    /// Binds a requester's requests with `pasid`.
    ///
    /// # Errors
    /// As [`Backend::bind`].
    ///
    /// # Safety
    /// As for [`Backend::bind`], until the ticket of a later [`unbind_pasid`](Self::unbind_pasid).
    unsafe fn bind_pasid(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError>;

    /// Takes the binding of a requester's requests with `pasid` down.
    ///
    /// # Errors
    /// As [`Backend::unbind`].
    fn unbind_pasid(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError>;
}

/// A backend that can let a device's requests through untranslated.
///
/// # Safety
/// [`bind_identity`](Self::bind_identity) lets the requester reach every address, as that address;
/// [`Backend::unbind`] with the same id takes that back.
#[diagnostic::on_unimplemented(
    message = "units of `{Self}` translate every request",
    label = "this backend has no `IdentityBackend`",
    note = "use a `Paging` domain, and map what the device needs where it expects it"
)]
pub unsafe trait IdentityBackend: Backend {
    /// Whether a unit can.
    fn passes_through(&self, unit: UnitIndex) -> bool;

    /// Lets `requester` through untranslated.
    ///
    /// # Errors
    /// As [`Backend::bind`].
    ///
    /// # Safety
    /// Whoever controls the device may reach all memory, until the ticket of a later unbind.
    unsafe fn bind_identity(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<Option<FlushTicket>, UnitError>;
}

/// A backend that can switch a live entry from one domain to another in one store, for some pairs of them at least.
///
/// # Safety
/// * [`rebind`](Self::rebind) switches the entry in one store: at each moment the requester translates by
///   one of the two bindings. When its ticket completes, the unit holds nothing of the old one.
/// * With an error other than [`UnitError::NotBound`], [`UnitError::NeedsGap`] and [`UnitError::Busy`], with which nothing
///   was changed, the entry names either domain, whole.
/// * An entry that names the new binding already, under the old one's id, is switched: the unit forgets as for any other.
#[diagnostic::on_unimplemented(
    message = "units of `{Self}` cannot switch a live entry",
    label = "this backend has no `ReplaceBackend`",
    note = "accept the gap by name: `replace_with_gap`"
)]
pub unsafe trait ReplaceBackend: Backend {
    /// Whether a unit can.
    fn replaces_live(&self, unit: UnitIndex) -> bool;

    /// Switches the binding of `requester` from the domain with id `from`.
    ///
    /// # Errors
    /// [`UnitError`]; [`UnitError::NeedsGap`] where the two entries differ in more than one store changes.
    ///
    /// # Safety
    /// As for [`Backend::bind`]; the old binding's tables live until the ticket has completed.
    unsafe fn rebind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        from: HwDomainId,
        to: Binding,
    ) -> Result<FlushTicket, UnitError>;
}

/// A backend that can switch a live entry to a user's own first stage, too.
///
/// # Safety
/// [`rebind_nested`](Self::rebind_nested) promises what [`ReplaceBackend::rebind`] does, and [`NestedBackend`] of a first stage
/// that goes live.
#[diagnostic::on_unimplemented(
    message = "units of `{Self}` cannot switch a live entry to a user's first stage",
    label = "this backend has no `ReplaceNestedBackend`",
    note = "accept the gap by name: `replace_with_gap`"
)]
pub unsafe trait ReplaceNestedBackend: ReplaceBackend + NestedBackend {
    /// Switches the binding of `requester` from the domain with id `from` to a first stage on top of `parent`.
    ///
    /// # Errors
    /// As [`ReplaceBackend::rebind`].
    ///
    /// # Safety
    /// As for [`NestedBackend::bind_nested`]; the old binding's tables live until the ticket has completed.
    unsafe fn rebind_nested(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        from: HwDomainId,
        parent: Binding,
        stage: &Self::FirstStage,
    ) -> Result<FlushTicket, UnitError>;
}

/// A backend behind which devices may keep translations of their own (PCI ATS).
///
/// A device asks for a translation, keeps it, and sends requests that say that they are translated, which the unit lets
/// through as they are. So until its device TLB is closed, a device reaches what it was ever given, and all else that it
/// makes up.
///
/// # Safety
/// In addition to what [`Backend`] promises:
/// * A requester whose device TLB is not open is given no translation, and none of its requests passes that says it is
///   translated.
/// * After [`open_device_tlb`](Self::open_device_tlb), [`Backend::submit`] for the domain reaches the device too: when
///   its ticket completes, neither the unit nor the device holds a translation that the request names, and what the
///   device sent by one has reached memory. Of a device that does not answer it may complete once nothing that the device
///   sends passes any more: its entry aborts, the unit has read that, and requests that say they are translated are refused.
/// * When the ticket of [`close_device_tlb`](Self::close_device_tlb), or of [`Backend::unbind`], completes, the device's
///   TLB is closed, and nothing of it reaches memory. [`Backend::reset`] closes all of a unit.
#[diagnostic::on_unimplemented(
    message = "units of `{Self}` know nothing of TLBs in devices",
    label = "this backend has no `DeviceTlbBackend`",
    note = "leave ATS off: the units translate each request of a device"
)]
pub unsafe trait DeviceTlbBackend: Backend {
    /// Whether a unit can, and firmware says that what is between it and the requester can.
    ///
    /// # Errors
    /// [`Unmet`].
    fn serves_device_tlb(&self, unit: UnitIndex, requester: PciAddress) -> Result<(), Unmet>;

    /// Lets a requester that is bound to the domain ask for translations. Whatever its device TLB held before is
    /// forgotten first, so the device itself must not ask yet.
    ///
    /// # Errors
    /// [`UnitError`]. It may be open then: close it.
    ///
    /// # Safety
    /// Whoever controls the device may reach all memory, until it is closed.
    unsafe fn open_device_tlb(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError>;

    /// Takes that back. The device was told to stop before, if it does what it is told.
    ///
    /// # Errors
    /// [`UnitError`]: it may still be open. [`UnitError::NotBound`] where the requester is not bound to the domain.
    fn close_device_tlb(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError>;
}
