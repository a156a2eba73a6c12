//! The subsystem as a whole: the backend, the register of domains and bound devices.

use alloc::vec::Vec;
use core::time::Duration;

use hv_core::platform::Cpus;
use hv_core::sync::{AtomicBool, Mutex};
use hv_core::{CpuId, OutOfMemory, OwnerId, PciAddress, Shared};
use thiserror::Error;

use crate::backend::{Backend, UnitCaps, UnitIndex};
use crate::cxl_cache::CxlCache;
use crate::device_tlb::AtsPlace;
use crate::domain::{DomainCore, DomainUid};
use crate::faults::{FaultBudget, Gap, Meter, Strangers};
use crate::group::GroupId;
use crate::ids::DomainIds;
use crate::quiesce::{Guard, Quiescence, RetireEpoch, Stay};
use crate::recover::{Resets, WedgedUnits};
use crate::rest::AtRest;
use crate::topology::{PciFunction, Topology};

/// What an embedder chooses for the whole subsystem.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a unit may take for one request before it counts as wedged.
    pub wait: Duration,
    /// How much longer it may take while devices behind it keep translations themselves
    /// ([`enable_ats`](crate::Group::enable_ats)), since it waits for those too. A unit goes on past a device only after
    /// the bus has given it up, so where this is shorter than the bus takes for that, a device that does not answer wedges its
    /// unit. Which one it was takes as long once more to find out, for each that does not answer: waits begin anew with each.
    pub device_wait: Duration,
    /// How many faults a group of devices may cause before it is cut off.
    pub faults: FaultBudget,
}

impl Default for Config {
    /// One second: hardware needs microseconds, a loaded emulator milliseconds. For devices 200: PCI Express gives
    /// them 60 to 90 to complete an invalidation (Base Specification 6.0, 10.3.1).
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(1),
            device_wait: Duration::from_secs(200),
            faults: FaultBudget::default(),
        }
    }
}

/// Why the subsystem could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SetupError {
    /// The backend has no unit.
    #[error("the machine has no IOMMU unit")]
    NoUnits,
    /// The control path's heap is exhausted.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A device that is bound to a domain right now.
pub(crate) struct Bound {
    pub(crate) unit: UnitIndex,
    pub(crate) requester: PciAddress,
    pub(crate) group: GroupId,
    pub(crate) domain: DomainUid,
    pub(crate) owner: OwnerId,
    /// The faults that it has caused.
    pub(crate) meter: Meter,
    /// Whether requests of it are, or were lately, refused for a move that the hypervisor made.
    pub(crate) gap: Gap,
    /// Where its setting for ATS is, while that is on.
    pub(crate) ats: Option<AtsPlace>,
    /// Its cache of memory that no unit looks at, where it may have one on.
    pub(crate) cxl_cache: Option<CxlCache>,
    /// Whether its group was cut off because its device did not answer, and nobody was told yet.
    pub(crate) is_untold: bool,
    /// Whether its entry was made quiet, and its unit was not asked to read that yet.
    pub(crate) owes_reread: bool,
    /// Whether its entry was there to be made quiet, since it was cut off.
    pub(crate) is_quiet: bool,
}

/// What has to be found without its value at hand.
///
/// `domains` keeps every core alive until a control-path call sweeps it, so that dropping a range
/// or a pending value never frees memory, and so that values of the DMA API need no more than to be counted
/// in a core.
pub(crate) struct Registry<B: Backend> {
    pub(crate) bound: Vec<Bound>,
    /// What requesters that are not among them have used up of a budget.
    pub(crate) strangers: Strangers,
    pub(crate) domains: Vec<Shared<DomainCore<B>>>,
    pub(crate) resets: Resets,
}

/// State that all handles share.
pub(crate) struct System<B: Backend> {
    pub(crate) backend: B,
    pub(crate) quiescence: Quiescence,
    pub(crate) ids: DomainIds,
    pub(crate) wait: Duration,
    pub(crate) device_wait: Duration,
    pub(crate) budget: FaultBudget,
    pub(crate) registry: Mutex<Registry<B>>,
    pub(crate) topology: Mutex<Topology>,
    pub(crate) wedged: WedgedUnits,
    /// Whether it was shut down.
    pub(crate) ended: AtomicBool,
    /// A number that no other subsystem has: one of those that domains have.
    pub(crate) uid: DomainUid,
    domain_ids: u32,
}

impl<B: Backend> System<B> {
    /// Protects tables from being freed while this CPU walks them.
    #[inline]
    pub(crate) fn pin(&self) -> Guard<'_> {
        self.quiescence.pin(self.backend.platform())
    }

    /// Whether every guard that was alive at `retired` has ended. A stay of this very CPU does not count: it
    /// is in none of its operations but the one that asks, which walks nothing then.
    pub(crate) fn has_passed(&self, retired: RetireEpoch) -> bool {
        self.quiescence.pass(self.backend.platform());
        self.quiescence.has_passed(retired)
    }

    /// Lets go of domains that nobody refers to any more, and no value of the DMA API holds. Control path only.
    pub(crate) fn sweep(&self) {
        loop {
            let unused = {
                let mut registry = self.registry.lock();
                let index = registry.domains.iter().position(is_unused);
                index.map(|index| registry.domains.swap_remove(index))
            };
            // Dropped without the lock: freeing a core takes its time.
            if unused.is_none() {
                return;
            }
        }
    }
}

/// Whether nobody refers to the domain but the register.
fn is_unused<B: Backend>(core: &Shared<DomainCore<B>>) -> bool {
    // A hold that an owner made is seen here, since that owner let go before the answer of `is_sole_owner`, which is
    // an Acquire; a hold that a hold made was counted beside it. So zero is lasting, and all has happened that was done
    // under holds.
    Shared::is_sole_owner(core) && core.space.holders() == 0
}

/// The IOMMU subsystem of a machine. A cheap handle; clones lead to the same subsystem.
pub struct Iommu<B: Backend>(pub(crate) Shared<System<B>>);

impl<B: Backend> Clone for Iommu<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> Iommu<B> {
    /// Sets the subsystem up over units that are running, and gives every group of devices among
    /// `functions`, at rest.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        backend: B,
        functions: &[PciFunction],
        config: Config,
    ) -> Result<(Self, Vec<AtRest<B>>), SetupError> {
        Self::set_up(backend, functions, config, false)
    }

    /// The same; with `keeps`, devices that firmware goes on using are not stopped.
    pub(crate) fn set_up(
        backend: B,
        functions: &[PciFunction],
        config: Config,
        keeps: bool,
    ) -> Result<(Self, Vec<AtRest<B>>), SetupError> {
        let caps =
            (0..backend.unit_count()).filter_map(|index| backend.unit_caps(UnitIndex::new(index)?));
        // One id serves a domain on all units, so the unit with the fewest decides. Domains of first-stage tables take
        // theirs from the same ones, although some units have more for those (8 bits for second stages and 16 for first ones
        // make 255 domains in all, not 255 and 65535). So a number is one domain's, of whichever stage its tables are.
        let domain_ids = caps
            .map(|caps| caps.domain_ids)
            .min()
            .ok_or(SetupError::NoUnits)?;
        let system = System {
            quiescence: Quiescence::new(backend.platform().cpu_count())?,
            ids: DomainIds::new(domain_ids)?,
            wait: config.wait,
            device_wait: config.device_wait,
            budget: config.faults,
            registry: Mutex::new(Registry {
                bound: Vec::new(),
                strangers: Strangers::default(),
                domains: Vec::new(),
                resets: Resets::default(),
            }),
            topology: Mutex::new(Topology::default()),
            wedged: WedgedUnits::new(backend.unit_count())?,
            ended: AtomicBool::new(false),
            uid: DomainUid::fresh(),
            domain_ids,
            backend,
        };
        let system = Shared::try_new(system).map_err(|(_, error)| error)?;
        let groups = crate::rescan::discover(&system, functions, keeps)?;
        Ok((Self(system), groups))
    }

    /// Begins this CPU's stay in the hypervisor, to be held from an exit to the next entry: maps, unmaps and
    /// look-ups cost less meanwhile. A CPU in the guest, or idle, holds none.
    pub fn enter(&self) -> Stay<'_> {
        self.0.quiescence.enter(self.0.backend.platform())
    }

    /// The CPUs that hold back, right now, what domains have retired: those in the middle of an operation, and those with a
    /// [stay](Self::enter), but for the time that they wait for a unit. For who looks for a CPU that never leaves.
    pub fn cpus_inside(&self) -> impl Iterator<Item = CpuId> + use<'_, B> {
        self.0.quiescence.inside()
    }

    /// The platform.
    pub fn platform(&self) -> &B::Platform {
        self.0.backend.platform()
    }

    /// What a unit can do.
    pub fn unit_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        self.0.backend.unit_caps(unit)
    }

    /// The unit that translates for `requester`, or `None` when no unit covers it.
    pub fn unit_of(&self, requester: PciAddress) -> Option<UnitIndex> {
        let sender = self.0.topology.lock().sender(requester);
        self.0.backend.unit_of(sender)
    }

    /// Lets go of what ended domains still take up on the heap. The next domain that is made does so by itself;
    /// a program that drops the whole subsystem calls this first, since the register of domains keeps the
    /// subsystem alive that it is part of.
    pub fn sweep(&self) {
        self.0.sweep();
    }

    /// How many domains hold a domain id of the hardware.
    pub fn domains_in_use(&self) -> u32 {
        self.0.ids.in_use(self.0.domain_ids)
    }
}
