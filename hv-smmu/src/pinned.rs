//! Devices that firmware goes on using, whatever happens (RMRs that are not to be moved): who they are, and what stands
//! against bringing the machine up all the same.

use alloc::vec::Vec;

use hv_core::list::push;
use hv_core::platform::Platform;
use hv_core::{OutOfMemory, PciAddress, PhysAddr, PhysRange};
use hv_iommu::{PciFunction, ReservedKind, ReservedRegion, group_plans};
use log::{info, warn};

use crate::coverage::{Coverage, CoveragePolicy};
use crate::error::BringUpError;
use crate::regions::Regions;

/// The functions that firmware goes on using, virtual ones too: those of which one id is a stream that it uses. That may be
/// the id of a bridge which sends for what is behind it, and nothing tells for whom of them.
pub(crate) struct PinnedFunctions(Vec<PciAddress>);

impl PinnedFunctions {
    pub(crate) fn new(
        coverage: &Coverage,
        regions: &Regions,
        functions: &[PciFunction],
    ) -> Result<Self, OutOfMemory> {
        let is_pinned = |id: PciAddress| {
            let place = coverage.unit_of(id);
            place.is_some_and(|(unit, stream)| regions.is_pinned(unit, stream))
        };
        let mut pinned = Vec::new();
        for function in functions {
            let own = core::iter::once(function.address).chain(function.phantom_ids());
            let through = functions
                .iter()
                .flat_map(|bridge| bridge.ids_for(function.address));
            if own.chain(through).any(is_pinned) {
                push(&mut pinned, function.address)?;
            }
            for virtual_one in function.virtual_ids().filter(|id| is_pinned(*id)) {
                push(&mut pinned, virtual_one)?;
            }
        }
        Ok(Self(pinned))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = PciAddress> {
        self.0.iter().copied()
    }
}

/// Refuses a machine that firmware goes on using a device of, which bring-up would stop, or whose word about memory the
/// memory map contradicts; or says why it might be.
pub(crate) fn look_at_regions<P: Platform>(
    platform: &P,
    coverage: &Coverage,
    regions: &Regions,
    functions: &[PciFunction],
    (policy, keeps): (CoveragePolicy, bool),
) -> Result<(), BringUpError> {
    let mut devices = Vec::new();
    for plan in group_plans(functions)? {
        for id in plan.requesters {
            push(&mut devices, id)?;
        }
    }
    for function in functions {
        if !devices.contains(&function.address) {
            push(&mut devices, function.address)?;
        }
    }
    for device in devices {
        let Some((unit, stream)) = coverage.unit_of(device) else {
            continue;
        };
        for ReservedRegion { range, kind } in regions.of(unit, stream) {
            let memory = PhysRange::new(PhysAddr::new(range.start().as_u64()), range.pages())?;
            if !platform.firmware_may_use(memory) {
                refuse(policy, BringUpError::RegionNotFirmwares { memory, device })?;
            }
            match kind {
                ReservedKind::Pinned if keeps => {}
                ReservedKind::Pinned => {
                    refuse(policy, BringUpError::ReservedRegion { memory, device })?;
                }
                _ => info!("SMMUv3: {device} is stopped, which firmware used {memory} with"),
            }
        }
    }
    Ok(())
}

/// The same for devices that are no PCI functions: nobody claims them here, so what firmware does with them stands still.
pub(crate) fn look_at_platform_devices(
    coverage: &Coverage,
    regions: &Regions,
    policy: CoveragePolicy,
) -> Result<(), BringUpError> {
    for device in &coverage.firmware().devices {
        for &(unit, first, last) in &device.streams {
            for region in regions.between(unit, first, last) {
                if region.kind == ReservedKind::Pinned {
                    let memory = region.range;
                    refuse(
                        policy,
                        BringUpError::ReservedForOther {
                            memory,
                            unit,
                            stream: first,
                        },
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// The same for streams of nobody that is known: whoever sends as them stands still as well.
pub(crate) fn look_at_nobodys_regions(
    coverage: &Coverage,
    regions: &Regions,
    policy: CoveragePolicy,
) -> Result<(), BringUpError> {
    for (memory, unit, first, last) in regions.pinned() {
        if !coverage.has_any(unit, first, last) {
            let nobodys = BringUpError::ReservedForNobody {
                memory,
                unit,
                first,
                last,
            };
            refuse(policy, nobodys)?;
        }
    }
    Ok(())
}

/// Refuses the machine, or only says why it might be.
pub(crate) fn refuse(policy: CoveragePolicy, problem: BringUpError) -> Result<(), BringUpError> {
    match policy {
        CoveragePolicy::Strict => Err(problem),
        CoveragePolicy::Lenient => {
            warn!("SMMUv3: {problem}");
            Ok(())
        }
    }
}
