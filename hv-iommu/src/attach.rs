//! Attaching a claimed group to a domain, and detaching it: whole or not at all.

#![expect(unsafe_code, reason = "binds devices to tables")]

use core::fmt;

use hv_core::fault::Fault;
use hv_core::sync::Ordering;
use hv_core::{KernelPaging, OutOfMemory, Owner, OwnerId, PciAddress, Shared, UserManaged};
use thiserror::Error;

use crate::backend::{Backend, Binding, UnitError, UnitIndex};
use crate::domain::{Domain, DomainCore, DomainUid};
use crate::group::{Attached, Claimed, Group, GroupId, Inner, Wedged, clear_bus_mastering};
use crate::isolation::InterruptsIsolated;
use crate::system::Bound;

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
    #[error("{unit} cannot serve the domain: {what} needs {needed}, the unit has {found}")]
    Incompatible {
        /// The unit.
        unit: UnitIndex,
        /// Which property.
        what: &'static str,
        /// What the domain needs.
        needed: u64,
        /// What the unit has.
        found: u64,
    },
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
            Self::Wedged { group } => write!(f, "{} is wedged: {}", group.id(), group.error()),
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
    pub fn attach(
        self,
        domain: &Domain<O, B>,
    ) -> Result<Group<B, Attached<O, B>>, AttachFailed<O, B>>
    where
        O: NeedsNoWitness,
    {
        attach(self, domain)
    }
}

impl<B: Backend> Group<B, Claimed<UserManaged>> {
    /// Lets the group's devices translate through the guest's `domain`. Bus mastering stays off.
    ///
    /// # Errors
    /// [`AttachFailed`], with the group.
    pub fn attach_for_guest(
        self,
        domain: &Domain<UserManaged, B>,
        isolated: &InterruptsIsolated,
    ) -> Result<Group<B, Attached<UserManaged, B>>, AttachFailed<UserManaged, B>> {
        log::warn!(
            "OVERRIDE: {} goes to {} without interrupt remapping: {}",
            self.id(),
            self.owner(),
            isolated.reason()
        );
        attach(self, domain)
    }
}

fn attach<O: Owner, B: Backend>(
    group: Group<B, Claimed<O>>,
    domain: &Domain<O, B>,
) -> Result<Group<B, Attached<O, B>>, AttachFailed<O, B>> {
    let owner = group.owner();
    let inner = group.inner;
    if let Err(error) = check(&inner, owner, domain) {
        let group = Group::again(inner, owner);
        return Err(AttachFailed::Refused { group, error });
    }
    match bind_all(&inner, &domain.core) {
        Ok(()) => {}
        Err(BindFailed::TakenBack(error)) => {
            let group = Group::again(inner, owner);
            return Err(AttachFailed::Refused { group, error });
        }
        Err(BindFailed::Wedged { stuck, bound }) => {
            let group = wedged(inner, domain.core.clone(), stuck, bound);
            return Err(AttachFailed::Wedged { group });
        }
    }
    let core = domain.core.clone();
    let state = Attached { owner, core };
    Ok(Group { inner, state })
}

fn check<O: Owner, B: Backend>(
    inner: &Inner<B>,
    owner: O::Id,
    domain: &Domain<O, B>,
) -> Result<(), AttachError> {
    let (group, core) = (inner.id, &domain.core);
    if !Shared::ptr_eq(&inner.system, &core.system) {
        return Err(AttachError::OtherSystem {
            group,
            domain: core.uid,
        });
    }
    if owner != domain.owner {
        return Err(AttachError::OtherOwner {
            group,
            claimed: O::owner_id(owner),
            domain: core.uid,
            owner: core.owner,
        });
    }
    let (need, have) = (&core.caps, &inner.caps);
    let level = need.level.number();
    let wanted_bits = u64::from(64 - need.last.as_u64().leading_zeros());
    let rows = [
        (
            "table depth",
            u64::from(level),
            if have.levels.has(need.level) {
                u64::from(level)
            } else {
                0
            },
        ),
        (
            "largest page",
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
            "domain ids",
            u64::from(core.id.get()) + 1,
            have.domain_ids.into(),
        ),
    ];
    let unit = inner.unit;
    match rows.into_iter().find(|(_, needed, found)| needed > found) {
        Some((what, needed, found)) => Err(AttachError::Incompatible {
            unit,
            what,
            needed,
            found,
        }),
        None => Ok(()),
    }
}

enum BindFailed {
    /// As before.
    TakenBack(AttachError),
    /// Some entry may still be cached.
    Wedged {
        stuck: Stuck,
        /// How many requesters were bound, or tried, from the first on.
        bound: usize,
    },
}

/// Entries that the unit may not have forgotten.
struct Stuck {
    error: UnitError,
    /// How many the domain's reach still counts.
    entered: usize,
}

/// A group with entries that its unit did not forget. The unit was cut off.
fn wedged<B: Backend>(
    inner: Inner<B>,
    core: Shared<DomainCore<B>>,
    stuck: Stuck,
    bound: usize,
) -> Group<B, Wedged<B>> {
    let state = Wedged {
        error: stuck.error,
        core,
        bound,
        entered: stuck.entered,
    };
    Group { inner, state }
}

/// Binds every requester of the group, or none.
fn bind_all<B: Backend>(inner: &Inner<B>, core: &Shared<DomainCore<B>>) -> Result<(), BindFailed> {
    let system = &inner.system;
    let refused = |error: AttachError| BindFailed::TakenBack(error);
    let root = core
        .table
        .root()
        .ok_or(refused(AttachError::Ended(core.uid)))?;
    {
        let mut registry = system.registry.lock();
        let count = inner.requesters.len();
        registry.bound.try_reserve(count).map_err(|_| {
            let bytes = count * size_of::<Bound>();
            refused(OutOfMemory { bytes }.into())
        })?;
        // Registered first, so that a unit that wedges now cuts these devices off too.
        registry
            .bound
            .extend(inner.requesters.iter().map(|requester| Bound {
                unit: inner.unit,
                requester: *requester,
                group: inner.id,
                domain: core.uid,
                owner: core.owner,
            }));
    }
    // ORDERING: Relaxed, `&Domain` is borrowed meanwhile, so `destroy` happens after this.
    core.attachments.fetch_add(1, Ordering::Relaxed);
    let binding = Binding {
        root,
        domain: core.id,
    };
    for (index, requester) in inner.requesters.iter().enumerate() {
        core.reach.enter(inner.unit, inner.caps.sync_on_map);
        // SAFETY: the root is that of a live table in this backend's format. It ends only by
        // `destroy`, which is refused while `attachments` counts this group, and that is taken
        // back only after `unbind` has completed. It maps what its owner's runs of frames name.
        let bound = unsafe { system.backend.bind(inner.unit, *requester, binding) };
        let waited = match bound {
            Ok(Some(ticket)) => system.wait(inner.unit, ticket, "the binding of a device"),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        let Err(error) = waited else { continue };
        // After most errors of `bind` the entry may be live. One that was live before is not ours.
        let foreign = matches!(bound, Err(UnitError::AlreadyBound { .. }));
        let undone = if foreign {
            Ok(())
        } else {
            unbind(inner, core, *requester)
        };
        let this = match undone {
            Err(UnitError::NotBound { .. }) if bound.is_err() => Ok(()),
            other => other,
        };
        // `unbind` left after it had completed; what was never bound leaves here.
        let never = foreign || matches!(undone, Err(UnitError::NotBound { .. }));
        if never {
            core.reach.leave(inner.unit);
        }
        let stays = usize::from(!never && undone.is_err());
        let before = inner.requesters.get(..index).unwrap_or(&[]);
        let others = unbind_all(inner, core, before);
        let entered = stays + others.as_ref().err().map_or(0, |stuck| stuck.entered);
        return Err(match this.and(others.map_err(|stuck| stuck.error)) {
            Ok(()) => {
                unregister(inner, core);
                refused(error.into())
            }
            Err(error) => {
                system.cut_off(inner.unit);
                BindFailed::Wedged {
                    stuck: Stuck { error, entered },
                    // An entry of somebody else is not ours to take down.
                    bound: index + usize::from(!foreign),
                }
            }
        });
    }
    Ok(())
}

/// Unbinds these requesters and waits until the unit has forgotten each. If one fails, the unit is
/// cut off and the others are taken down all the same: fewer live entries are better.
fn unbind_all<B: Backend>(
    inner: &Inner<B>,
    core: &DomainCore<B>,
    requesters: &[PciAddress],
) -> Result<(), Stuck> {
    let mut failed = None;
    let mut entered = 0;
    for requester in requesters {
        if let Err(error) = unbind(inner, core, *requester) {
            // After the entry is down, so that a reset which is under way counts as too early for it.
            inner.system.cut_off(inner.unit);
            failed = failed.or(Some(error));
            entered += 1;
        }
    }
    failed.map_or(Ok(()), |error| Err(Stuck { error, entered }))
}

/// Unbinds one requester and waits until the unit has forgotten it.
fn unbind<B: Backend>(
    inner: &Inner<B>,
    core: &DomainCore<B>,
    requester: PciAddress,
) -> Result<(), UnitError> {
    let system = &inner.system;
    let ticket = system.backend.unbind(inner.unit, requester, core.id)?;
    system.wait(inner.unit, ticket, "the unbinding of a device")?;
    core.reach.leave(inner.unit);
    Ok(())
}

/// Takes the group from the register and from the domain's count.
pub(crate) fn unregister<B: Backend>(inner: &Inner<B>, core: &DomainCore<B>) {
    let mut registry = inner.system.registry.lock();
    registry.bound.retain(|bound| bound.group != inner.id);
    drop(registry);
    // ORDERING: Release: the unit forgot the group's entries before `destroy` reads the count.
    core.attachments.fetch_sub(1, Ordering::Release);
}

impl<B: Backend, O: Owner> Group<B, Attached<O, B>> {
    /// The domain that the group is attached to.
    pub fn domain(&self) -> DomainUid {
        self.state.core.uid
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
        for member in &inner.members {
            if !Fault::ClaimKeepsBusMastering.is_on() {
                clear_bus_mastering(inner.system.backend.platform(), *member);
            }
        }
        let mut requesters = inner.requesters.as_slice();
        if Fault::UnbindSkipsAlias.is_on() {
            requesters = requesters.get(..1).unwrap_or(&[]);
        }
        match unbind_all(&inner, &core, requesters) {
            Ok(()) => {
                unregister(&inner, &core);
                Ok(Group::again(inner, owner))
            }
            Err(stuck) => {
                let bound = inner.requesters.len();
                Err(wedged(inner, core, stuck, bound))
            }
        }
    }
}
