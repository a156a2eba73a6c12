//! Reserved memory regions (RMRR): for which requesters, and which of them firmware is done with.

use alloc::vec::Vec;

use hv_core::list::push;
use hv_core::platform::{MemoryMap, PciConfig};
use hv_core::{Iova, IovaRange, PciAddress, PhysRange};
use hv_iommu::{ReservedKind, ReservedRegion};
use log::{info, warn};

use crate::coverage::{self, Coverage, CoveragePolicy, Target};
use crate::dmar::Dmar;
use crate::error::BringUpError;
use crate::spec::pci::{BASE_CLASS_DISPLAY, CLASS_USB, CONFIG_CLASS};

/// A region and a device, or all behind a bridge, that it is for.
#[derive(Debug)]
struct Wish {
    target: Target,
    region: ReservedRegion,
}

/// What firmware wants mapped, for devices that are there.
///
/// # Invariants
/// As firmware gave it: no two regions were made one.
#[derive(Debug)]
pub(crate) struct Regions(Vec<Wish>);

impl Regions {
    /// Finds out which regions are for devices that are there. A strict policy refuses those that firmware goes
    /// on using: bring-up stops every device, and this version maps a region only when the hypervisor claims
    /// its group, unless it `keeps` such devices running. It refuses those too whose memory is not firmware's; no policy
    /// has any of them mapped.
    pub(crate) fn new<P: PciConfig + MemoryMap>(
        config: &P,
        dmar: &Dmar,
        policy: CoveragePolicy,
        keeps: bool,
    ) -> Result<Self, BringUpError> {
        let mut wishes = Vec::new();
        for rmrr in &dmar.regions {
            let region = rmrr.region;
            for scope in &rmrr.scopes {
                if !scope.kind.is_pci() {
                    // An ACPI device: whether it is there cannot be seen, and it uses its region.
                    let kind = scope.kind;
                    refuse(policy, BringUpError::ReservedRegionOfOther { region, kind })?;
                    continue;
                }
                match coverage::resolve(config, rmrr.segment, scope) {
                    Ok(target) if coverage::is_present(config, target.function) => {
                        let device = target.function;
                        if !config.firmware_may_use(region) {
                            let problem = BringUpError::RegionNotFirmwares { region, device };
                            refuse(policy, problem)?;
                        }
                        let kind = kind_of(config, &target);
                        if kind == ReservedKind::Pinned && keeps {
                            info!(
                                "VT-d: {device} goes on with {region}, which firmware uses it with"
                            );
                        } else if kind == ReservedKind::Pinned {
                            refuse(policy, BringUpError::ReservedRegion { region, device })?;
                        } else {
                            info!("VT-d: {device} is stopped, which firmware used {region} with");
                        }
                        let range = same_addresses(region)?;
                        let region = ReservedRegion { range, kind };
                        push(&mut wishes, Wish { target, region })?;
                    }
                    Ok(target) => info!(
                        "VT-d: region {region} is for {}, which is not there",
                        target.function
                    ),
                    Err(why) => info!("VT-d: region {region} is for nobody: {why}"),
                }
            }
        }
        Ok(Self(wishes))
    }

    /// The regions of a requester, its function's if it is a virtual or phantom one.
    pub(crate) fn of(
        &self,
        coverage: &Coverage,
        requester: PciAddress,
    ) -> impl Iterator<Item = ReservedRegion> {
        let function = coverage.function_of(requester);
        let wishes = self.0.iter().filter(move |wish| {
            let Target {
                function: named,
                buses,
            } = wish.target;
            let behind = buses.is_some_and(|buses| buses.contains(function.bus()));
            named == function || behind && named.segment() == function.segment()
        });
        wishes.map(|wish| wish.region)
    }
}

/// The addresses of a device that lead to the region: the same.
fn same_addresses(region: PhysRange) -> Result<IovaRange, BringUpError> {
    let start = Iova::new(region.start().as_u64());
    Ok(IovaRange::new(start, region.pages())?)
}

/// Refuses the machine, or only says why it might be.
fn refuse(policy: CoveragePolicy, problem: BringUpError) -> Result<(), BringUpError> {
    match policy {
        CoveragePolicy::Strict => Err(problem),
        CoveragePolicy::Lenient => {
            warn!("VT-d: {problem}");
            Ok(())
        }
    }
}

/// Whether firmware is done with a region when it hands the machine over: with those of USB controllers (legacy
/// keyboards) and of displays (the picture at start), as Linux's `device_rmrr_is_relaxable` has it. What is
/// behind a bridge may be anything.
fn kind_of<C: PciConfig>(config: &C, target: &Target) -> ReservedKind {
    let class = config.config_read32(target.function, CONFIG_CLASS) >> 16;
    let is_done = class == CLASS_USB || class >> 8 == BASE_CLASS_DISPLAY;
    if is_done && target.buses.is_none() {
        ReservedKind::Relaxable
    } else {
        ReservedKind::Pinned
    }
}
