//! Devices that firmware goes on using, bound before translation goes on: they never stand still.
//!
//! Bring-up otherwise stops every device, and one that firmware uses until the hypervisor claims it. Here its group is
//! claimed, gets a domain with firmware's regions one to one, and is attached while requests still reach memory
//! untranslated; only then translation goes on, and from one request to the next the device goes through its domain.

#![expect(
    unsafe_code,
    reason = "declares a trait on whose word memory is given back"
)]

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::{KernelPaging, OutOfMemory, PciAddress};
use thiserror::Error;

use crate::attach::{AttachError, AttachFailed};
use crate::backend::{Backend, UnitError};
use crate::domain::{Domain, DomainConfig, DomainError};
use crate::group::{AttachedGroup, Group, GroupId, clear_bus_mastering};
use crate::reserved::{FirmwareKept, ReservedKind};
use crate::rest::{AtRest, Pinned};
use crate::system::{Config, Iommu, SetupError, System};
use crate::topology::PciFunction;

/// Witness that whoever has it is [`Iommu::new_keeping`], which wakes the units that it takes.
#[derive(Debug)]
pub struct Keeping(());

/// Units that are up but for translation.
///
/// # Safety
/// What [`into_backend`](Self::into_backend) gives keeps all promises of [`Backend`], but that a requester which is not
/// bound reaches memory until [`wake`](Self::wake) gave `Ok`; then it keeps that too. A requester that was bound before
/// goes from one to the other without a request refused that its tables let through, but for a bounded time behind a unit
/// that translated before, and only where the policy is [one that accepts that](crate::FirmwareKept::accepting_gap).
pub unsafe trait Dormant: Sized {
    /// The backend that it becomes.
    type Backend: Backend;

    /// The backend, asleep. Only [`Iommu::new_keeping`] has what this takes: in other hands a backend that does not
    /// translate would pass for one that does.
    fn into_backend(self, keeping: Keeping) -> Self::Backend;

    /// Turns translation on, on all units.
    ///
    /// # Errors
    /// [`UnitError`]: some units may translate then, and some not.
    fn wake(backend: &Self::Backend) -> Result<(), UnitError>;
}

/// Why the subsystem was not set up with devices kept running. They run on, as firmware left them, unless it was
/// [`KeepError::Wake`]: then a unit that was on its way from firmware's tables to others may abort them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeepError {
    /// It could not be set up at all.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A group got no domain.
    #[error("{group} cannot be kept running: {error}")]
    Domain {
        /// The group.
        group: GroupId,
        /// Why.
        error: DomainError,
    },
    /// A group was not attached.
    #[error("{group} cannot be kept running: {error}")]
    Attach {
        /// The group.
        group: GroupId,
        /// Why.
        error: AttachError,
    },
    /// Translation did not go on everywhere.
    #[error("translation did not go on: {0}")]
    Wake(UnitError),
    /// There was no memory for the list of groups.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A group that was kept running, claimed for the hypervisor.
pub struct Kept<B: Backend> {
    /// The group. Its members send on as firmware set them up. A [`GroupTable`](crate::GroupTable) of the others learns of
    /// it by [`note_held`](crate::GroupTable::note_held).
    pub group: AttachedGroup<KernelPaging, B>,
    /// Its domain, which has firmware's regions and nothing else yet.
    pub domain: Domain<KernelPaging, B>,
}

/// The subsystem, set up with devices kept running.
pub struct KeptSetup<B: Backend> {
    /// The subsystem.
    pub iommu: Iommu<B>,
    /// The groups that nobody holds.
    pub groups: Vec<AtRest<B>>,
    /// Those that were kept running.
    pub kept: Vec<Kept<B>>,
}

impl<B: Backend> Iommu<B> {
    /// As [`new`](Self::new), over units that do not translate yet: the groups that firmware goes on using are attached
    /// first, each to a domain of its own, and go on without a pause. Then translation goes on. The log says which, and
    /// why.
    ///
    /// # Errors
    /// [`KeepError`].
    pub fn new_keeping<D: Dormant<Backend = B>>(
        dormant: D,
        functions: &[PciFunction],
        config: Config,
        domains: DomainConfig,
        policy: &FirmwareKept,
    ) -> Result<KeptSetup<B>, KeepError> {
        let early = Fault::KeptBoundLate.is_on();
        let backend = dormant.into_backend(Keeping(()));
        let (iommu, found) = Self::set_up(backend, functions, config, true)?;
        let system = &iommu.0;
        silence_unplaced(system)?;
        if early {
            D::wake(&system.backend).map_err(KeepError::Wake)?;
        }
        let (mut groups, mut kept) = (Vec::new(), Vec::new());
        for group in found {
            match group {
                AtRest::ForHypervisor(group) => push(&mut kept, keep(group, domains, policy)?)?,
                other => push(&mut groups, other)?,
            }
        }
        if !early {
            D::wake(&system.backend).map_err(KeepError::Wake)?;
        }
        Ok(KeptSetup {
            iommu,
            groups,
            kept,
        })
    }
}

fn keep<B: Backend>(
    group: Group<B, Pinned>,
    domains: DomainConfig,
    policy: &FirmwareKept,
) -> Result<Kept<B>, KeepError> {
    let id = group.id();
    for region in group.inner.firmwares_regions() {
        log::warn!("KEPT: {id} goes on with {region}: {}", policy.reason());
    }
    let claimed = group.claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&claimed, domains);
    let domain = domain.map_err(|error| KeepError::Domain { group: id, error })?;
    let failed = |error| KeepError::Attach { group: id, error };
    match claimed.attach(&domain) {
        Ok(group) => Ok(Kept { group, domain }),
        Err(AttachFailed::Refused { error, .. }) => Err(failed(error)),
        Err(AttachFailed::Wedged { group }) => Err(failed(group.error().into())),
    }
}

impl<B: Backend> System<B> {
    /// Whether firmware goes on using a function.
    pub(crate) fn is_pinned(&self, function: PciAddress) -> bool {
        let mut regions = self.backend.reserved_for(function);
        regions.any(|region| region.kind == ReservedKind::Pinned)
    }
}

/// Stops what firmware uses and no group has that can be attached: translation would not hold it.
fn silence_unplaced<B: Backend>(system: &System<B>) -> Result<(), OutOfMemory> {
    let topology = system.topology.lock().copy()?;
    for known in &topology.functions {
        let function = known.given.address;
        let unplaced = |id: &PciAddress| topology.group_of(*id).is_none();
        let is_bridge = known.given.kind.buses().is_some();
        let own = core::iter::once(function).filter(|_| !is_bridge);
        for id in own.chain(known.given.virtual_ids()).filter(unplaced) {
            clear_bus_mastering(system.backend.platform(), id);
        }
    }
    Ok(())
}
