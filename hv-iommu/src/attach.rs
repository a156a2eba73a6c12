//! Attaching a claimed group to a domain, and detaching it: whole or not at all.

use core::fmt;

use hv_core::fault::Fault;
use hv_core::{KernelPaging, OutOfMemory, Owner, OwnerId, PciAddress, UserManaged};
use thiserror::Error;

use crate::backend::{Backend, HwDomainId, Snoop, UnitCaps, UnitError, UnitIndex};
use crate::bind::{
    BindFailed, bind_all, bound_requesters, register, strike_out, unbind_all, unregister, wedged,
};
use crate::capability::Unmet;
use crate::coherency::NotCoherent;
use crate::domain::{Domain, DomainCaps, DomainCore, DomainUid};
use crate::format::Level;
use crate::group::{Attached, AttachedGroup, Claimed, Group, GroupId, Inner, Wedged};
use crate::isolation::{InterruptsIsolated, NotIsolated};
use crate::pasid_device::PasidsRefused;
use crate::request::COHERENT_DMA;
use crate::reserved::ReservedRegion;
use crate::shape::{Confines, Shape};
use crate::topology::IsolationError;

/// Why a group was not attached, or a member not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AttachError {
    /// Group and domain belong to different guests.
    #[error("{group} is claimed by {claimed}, {domain} belongs to {owner}")]
    OtherOwner {
        /// The group.
        group: GroupId,
        /// Who claimed it.
        claimed: OwnerId,
        /// The domain.
        domain: DomainUid,
        /// Whose it is.
        owner: OwnerId,
    },
    /// Group and domain come from two different set-ups of the subsystem.
    #[error("{group} and {domain} belong to different IOMMU subsystems")]
    OtherSystem {
        /// The group.
        group: GroupId,
        /// The domain.
        domain: DomainUid,
    },
    /// The group's unit cannot do what the domain was built for.
    #[error("{unit} cannot serve the domain: {unmet}")]
    Incompatible {
        /// The unit.
        unit: UnitIndex,
        /// What it lacks.
        unmet: Unmet,
    },
    /// The word that was given for trusted devices is of another group.
    #[error(
        "{trusted} was vouched for in another claim, or is not {group}: vouch for the claimed group"
    )]
    NotVouchedFor {
        /// The group.
        group: GroupId,
        /// Whose devices are trusted.
        trusted: GroupId,
    },
    /// The witness is of another unit than the group's.
    #[error("the witness is of {witnessed}, the group is behind {unit}")]
    OtherUnit {
        /// The group's unit.
        unit: UnitIndex,
        /// The witness's.
        witnessed: UnitIndex,
    },
    /// The witness for interrupts is of another group.
    #[error(
        "the witness for interrupts is of {witnessed}, not of {group}: ask this very group for its own"
    )]
    OtherWitness {
        /// The group.
        group: GroupId,
        /// Whose interrupts are isolated.
        witnessed: GroupId,
    },
    /// The group's interrupts are not isolated any more, since other devices came.
    #[error(transparent)]
    NotIsolated(NotIsolated),
    /// What the group's devices send goes past the CPU's caches, which a guest does not expect.
    #[error(transparent)]
    NotCoherent(NotCoherent),
    /// Firmware's region of a device, or the doorbell of its messages, is not mapped in the domain, which was made for
    /// another group.
    #[error(
        "{group} needs {region} mapped, which {domain} does not have: make a domain for this group, which others may \
         join that need no more (devices whose messages go to several interrupt services have no domain together)"
    )]
    RegionNotMapped {
        /// The group.
        group: GroupId,
        /// The domain.
        domain: DomainUid,
        /// The region.
        region: ReservedRegion,
    },
    /// Firmware goes on using a device of the group, which a blocked domain would refuse everything.
    #[error(
        "{group} needs {region} mapped, so it is not attached to a blocked domain: `park` it for a while, or `detach` it"
    )]
    RegionBlocked {
        /// The group.
        group: GroupId,
        /// The region.
        region: ReservedRegion,
    },
    /// The domain's DMA API trusts its devices with more than their buffers, and nobody gave their word for this group.
    #[error(
        "{domain} lends its devices what shares pages with buffers, and {group} is not trusted with that: give its \
         word by `Group::trust`, or make a domain for it"
    )]
    Exposed {
        /// The group.
        group: GroupId,
        /// The domain.
        domain: DomainUid,
    },
    /// A reset came over what keeps the group apart, or may have, and it is not as it was.
    #[error(transparent)]
    NotApart(IsolationError),
    /// The function does not answer: it was removed.
    #[error("{function} does not answer any more")]
    Gone {
        /// The function.
        function: PciAddress,
    },
    /// A function of the group does not send with PASIDs again after its reset.
    #[error(transparent)]
    Pasids(#[from] PasidsRefused),
    /// The domain has ended.
    #[error("{0} has ended")]
    Ended(DomainUid),
    /// The unit refused or failed.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// The register of bound devices cannot grow.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The function is not in the group.
    #[error("{member} is not in {group}")]
    NotAMember {
        /// The function.
        member: PciAddress,
        /// The group.
        group: GroupId,
    },
    /// The group was cut off ([`CutOffReason`](crate::CutOffReason)).
    #[error(
        "{group} was cut off because it caused too many faults, or did not answer: `detach` it, reset its devices, and attach it anew"
    )]
    CutOff {
        /// The group.
        group: GroupId,
    },
    /// The function cannot ask for translations: it has no such capability, or its physical function is set to larger
    /// ones than single pages.
    #[error("{function} cannot ask for translations of single pages: {found}")]
    NoTranslationRequests {
        /// The function.
        function: PciAddress,
        /// What was found.
        found: &'static str,
    },
    /// The function's ATS control register did not take the setting.
    #[error(
        "{function} did not take its setting for ATS: its control register reads {control:#06x}"
    )]
    KeepsAts {
        /// The function.
        function: PciAddress,
        /// The register.
        control: u16,
    },
    /// The function, or another one for its whole device, reaches memory past its unit (CXL.cache).
    #[error(
        "{function} reaches memory past its unit once it keeps some in a cache of its own (CXL.cache), so it is for no guest, \
         and for a driver by somebody's word alone: `let_cxl_cache`, with a `TrustedDevice`"
    )]
    ReachesPastUnit {
        /// The function with that capability.
        function: PciAddress,
    },
    /// The same, and it does not give that up.
    #[error(
        "{function} reaches memory past its unit (CXL.cache), and does not give that up: its CXL control register reads \
         {control:#06x}; have firmware leave it off, and unlocked"
    )]
    KeepsCxlCache {
        /// The function with that capability.
        function: PciAddress,
        /// The register.
        control: u16,
    },
    /// The group is not moved without a gap while one of its functions has a device TLB open.
    #[error("{function} keeps translations of its domain in a TLB of its own: `disable_ats` first")]
    DeviceTlbOpen {
        /// The function.
        function: PciAddress,
    },
    /// The function's command register did not give bus mastering up.
    #[error("{function} keeps bus mastering: its command register reads {command:#06x}")]
    KeepsBusMastering {
        /// The function.
        function: PciAddress,
        /// The register.
        command: u16,
    },
    /// The function's command register did not take bus mastering.
    #[error("{function} did not take bus mastering: its command register reads {command:#06x}")]
    NoBusMastering {
        /// The function.
        function: PciAddress,
        /// The register.
        command: u16,
    },
}

/// What a failed attach gives back: the group as it was claimed, or wedged when taking back what had
/// been bound failed too.
pub enum AttachFailed<O: Owner, B: Backend> {
    /// Nothing is bound.
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

impl<O: Owner, B: Backend> fmt::Display for AttachFailed<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { group, error } => write!(f, "{} was not attached: {error}", group.id()),
            Self::Wedged { group } => group.say_wedged(f),
        }
    }
}

impl<O: Owner, B: Backend> fmt::Debug for AttachFailed<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend> core::error::Error for AttachFailed<O, B> {}

/// Owners whose groups are attached without a witness: [`KernelPaging`] alone. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "a group of `{Self}` is not attached without a witness for its interrupts",
    label = "this group belongs to a guest",
    note = "use `attach_for_guest`, with an `InterruptsIsolated`"
)]
pub trait NeedsNoWitness: Owner {}
impl NeedsNoWitness for KernelPaging {}

impl<O: Owner, B: Backend> Group<B, Claimed<O>> {
    /// Lets the group's devices translate through `domain`. Bus mastering stays off.
    ///
    /// # Errors
    /// [`AttachFailed`], with the group.
    pub fn attach<S>(
        self,
        domain: &Domain<O, B, S>,
    ) -> Result<AttachedGroup<O, B, S>, AttachFailed<O, B>>
    where
        O: NeedsNoWitness,
        S: Confines<O, B>,
    {
        attach(self, domain)
    }
}

impl<B: Backend> Group<B, Claimed<UserManaged>> {
    /// Lets the group's devices translate through the guest's `domain`. Bus mastering stays off. A witness that was
    /// shown, not assumed, is looked at once more. Devices have to be coherent, by firmware's word
    /// ([`Coherency`](crate::Coherency)).
    ///
    /// # Errors
    /// [`AttachFailed`], with the group.
    pub fn attach_for_guest<S: Confines<UserManaged, B>>(
        self,
        domain: &Domain<UserManaged, B, S>,
        isolated: &InterruptsIsolated,
    ) -> Result<AttachedGroup<UserManaged, B, S>, AttachFailed<UserManaged, B>> {
        let fit = self.inner.look_at_coherency();
        if let Err(error) = fit.and_then(|()| isolated.holds_for(&self)) {
            return Err(AttachFailed::Refused { group: self, error });
        }
        let (id, owner) = (self.id(), self.owner());
        let attached = attach(self, domain)?;
        // Only now: what was refused went to nobody. Its devices do not send yet.
        isolated.tell(id, owner);
        Ok(attached)
    }
}

pub(crate) fn attach<O: Owner, B: Backend, S: Shape<O, B>>(
    group: Group<B, Claimed<O>>,
    domain: &Domain<O, B, S>,
) -> Result<AttachedGroup<O, B, S>, AttachFailed<O, B>> {
    let owner = group.owner();
    let mut inner = group.inner;
    let anchor = S::anchor(&domain.core);
    let checked = check(&inner, owner, domain)
        .and_then(|()| inner.look_if_unseen().map_err(AttachError::NotApart))
        .and_then(|()| inner.look_at_cxl_caches())
        .and_then(|()| register(&inner, &anchor));
    if let Err(error) = checked {
        let group = Group::again(inner, owner);
        return Err(AttachFailed::Refused { group, error });
    }
    match bind_all::<O, B, S>(&inner, &domain.core) {
        Ok(()) => {}
        Err(BindFailed::TakenBack(error)) => {
            unregister(&inner, &anchor);
            let group = Group::again(inner, owner);
            return Err(AttachFailed::Refused { group, error });
        }
        Err(BindFailed::Wedged { stuck, bound }) => {
            let group = wedged(inner, anchor, stuck, bound);
            return Err(AttachFailed::Wedged { group });
        }
    }
    let core = domain.core.clone();
    let state = Attached { owner, core };
    Ok(Group { inner, state })
}

/// Whether the group may be attached to the domain at all.
pub(crate) fn check<O: Owner, B: Backend, S: Shape<O, B>>(
    inner: &Inner<B>,
    owner: O::Id,
    domain: &Domain<O, B, S>,
) -> Result<(), AttachError> {
    let (group, uid) = (inner.id, domain.uid());
    if !S::is_with(&domain.core, inner) {
        return Err(AttachError::OtherSystem { group, domain: uid });
    }
    if owner != domain.owner {
        return Err(AttachError::OtherOwner {
            group,
            claimed: O::owner_id(owner),
            domain: uid,
            owner: O::owner_id(domain.owner),
        });
    }
    S::check(&domain.core, inner)
}

/// Whether a domain's id is one that the unit has.
pub(crate) fn check_id<B: Backend>(
    id: HwDomainId,
    inner: &Inner<B>,
    caps: &UnitCaps,
) -> Result<(), AttachError> {
    let (needed, found) = (u64::from(id.get()) + 1, caps.domain_ids.into());
    let what = "domain ids";
    if needed > found {
        let unmet = Unmet {
            what,
            needed,
            found,
        };
        let unit = inner.unit;
        return Err(AttachError::Incompatible { unit, unmet });
    }
    Ok(())
}

impl<B: Backend> Inner<B> {
    /// What the unit can do for a domain that was made of these tables.
    fn caps_for(&self, domain: &DomainCaps) -> UnitCaps {
        if domain.second_stage == self.caps.second_stage {
            return self.caps;
        }
        let of_pasids = self.system.backend.pasid_caps(self.unit);
        let same = of_pasids.filter(|caps| caps.second_stage == domain.second_stage);
        same.unwrap_or(self.caps)
    }
}

/// Whether a unit can serve a domain's tables as they were built.
pub(crate) fn check_tables<B: Backend>(
    core: &DomainCore<B>,
    inner: &Inner<B>,
) -> Result<(), AttachError> {
    if core.table.root().is_none() {
        return Err(AttachError::Ended(core.uid));
    }
    let missing = |region: &ReservedRegion| {
        !core.regions.lock().contains(region) && !Fault::RegionNotAsked.is_on()
    };
    if let Some(region) = inner.required_regions().find(missing) {
        return Err(AttachError::RegionNotMapped {
            group: inner.id,
            domain: core.uid,
            region,
        });
    }
    let (need, have) = (&core.caps, &inner.caps_for(&core.caps));
    let depths = have.levels.iter().map(Level::number);
    let deepest = depths.max().unwrap_or(0);
    let level = need.level.number();
    let has_depth = have.levels.has(need.level);
    let wanted_bits = u64::from(64 - need.last.as_u64().leading_zeros());
    let rows = [
        (
            "second-stage tables",
            u64::from(need.second_stage),
            u64::from(have.second_stage),
        ),
        (
            "first-stage tables",
            u64::from(!need.second_stage),
            u64::from(!have.second_stage),
        ),
        (
            "tables side by side as a root",
            need.root_tables.count(),
            have.root_tables.count(),
        ),
        (
            "bytes of the largest page",
            need.largest_page.bytes(),
            have.largest_page.bytes(),
        ),
        (
            "coherent walks",
            u64::from(need.coherent),
            u64::from(have.coherent),
        ),
        (
            "write-only mappings",
            u64::from(need.write_only),
            u64::from(have.write_only),
        ),
        (
            "live change of page size",
            u64::from(need.live_resize),
            u64::from(have.live_resize),
        ),
        (
            "physical address bits",
            need.phys_bits.into(),
            have.phys_bits.into(),
        ),
        ("address bits", wanted_bits, have.iova_bits.into()),
        (
            "users' own first stages",
            u64::from(need.nested),
            u64::from(have.nested),
        ),
        (
            "dirty tracking",
            u64::from(need.dirty),
            u64::from(have.dirty),
        ),
        (
            COHERENT_DMA,
            u64::from(need.snoop == Snoop::Forced),
            u64::from(have.snoop_control),
        ),
    ];
    let depth = (!has_depth).then_some(("levels of tables", level.into(), deepest.into()));
    let lacking = rows.into_iter().find(|(_, needed, found)| needed > found);
    match depth.or(lacking) {
        Some((what, needed, found)) => {
            let unmet = Unmet {
                what,
                needed,
                found,
            };
            let unit = inner.unit;
            Err(AttachError::Incompatible { unit, unmet })
        }
        None => check_id(core.id, inner, have),
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> Group<B, Attached<O, B, S>> {
    /// The domain that the group is attached to.
    pub fn domain(&self) -> DomainUid {
        S::anchor(&self.state.core).uid()
    }

    /// Takes bus mastering from all members, then the group from its domain, and waits until the
    /// hardware has forgotten both entries and translations. The group reaches no memory then.
    ///
    /// # Errors
    /// The group, wedged, when the unit did not complete that. The domain stays in use.
    pub fn detach(self) -> Result<Group<B, Claimed<O>>, Group<B, Wedged<B>>> {
        let Self {
            inner,
            state: Attached { owner, core },
        } = self;
        if !Fault::ClaimKeepsBusMastering.is_on() {
            inner.silence();
        }
        let anchor = S::anchor(&core);
        if Fault::UnregisterEarly.is_on() {
            strike_out(&inner, &anchor);
        }
        match unbind_all(&inner, &anchor, bound_requesters(&inner)) {
            Ok(()) => {
                unregister(&inner, &anchor);
                Ok(Group::again(inner, owner))
            }
            Err(stuck) => {
                let bound = inner.requesters.len();
                Err(wedged(inner, anchor, stuck, bound))
            }
        }
    }
}
