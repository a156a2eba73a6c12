//! What firmware reserves on a machine.

use hv_core::{PciAddress, PhysRange};

use super::{Impossible, Machine};
use crate::memory::{FRAME_BYTES, FRAMES};

/// Memory that firmware reserves for devices that it goes on using (RMRR, RMR).
///
/// A machine with one is refused by the strict policy, since bring-up would stop the device. `examples/keeping.rs` keeps it
/// running; [`Policy::Lenient`](crate::Policy) stops it until the hypervisor claims it.
#[derive(Clone, Debug)]
pub struct RegionModel {
    /// The memory, inside the rig's; the devices have it at the same addresses.
    pub memory: PhysRange,
    /// The functions that it is for, all of one segment.
    pub functions: Vec<PciAddress>,
}

impl Machine {
    /// Whether a machine can have its regions.
    pub(super) fn check_regions(&self) -> Result<(), Impossible> {
        for (index, region) in self.regions.iter().enumerate() {
            if let Some(why) = self.wrong_with(region, self.regions.iter().take(index)) {
                let memory = region.memory;
                return Err(Impossible::Region { memory, why });
            }
        }
        Ok(())
    }

    /// What no machine has of a region, after those `before` it.
    fn wrong_with<'m>(
        &self,
        region: &RegionModel,
        mut before: impl Iterator<Item = &'m RegionModel>,
    ) -> Option<String> {
        let memory = region.memory;
        let start = self.memory_base();
        let end = start + FRAMES * FRAME_BYTES;
        if memory.start().as_u64() < start || memory.last().as_u64() >= end {
            return Some(format!(
                "expected memory of the rig, {start:#x} to {end:#x}, found some outside of it"
            ));
        }
        if let Some(other) = before.find(|other| other.memory.overlaps(&memory)) {
            return Some(format!(
                "expected a region of its own, found one that meets {}",
                other.memory
            ));
        }
        let Some(first) = region.functions.first() else {
            return Some("expected functions that it is for, found none".to_owned());
        };
        region.functions.iter().find_map(|function| {
            let mut functions = self.functions.iter();
            if !functions.any(|other| other.address == *function) {
                return Some(format!(
                    "expected functions of the machine, found {function}, which is not there"
                ));
            }
            (function.segment() != first.segment())
                .then(|| format!("expected functions of one segment, found {first} and {function}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use hv_core::{PageCount, PhysAddr, Segment};

    use super::*;
    use crate::memory::BASE;

    #[test]
    fn regions_that_no_machine_has_are_refused() {
        let at = |bus, device| PciAddress::new(Segment(0), bus, device, 0).unwrap();
        let refused = |regions| {
            let mut machine = Machine::calm();
            machine.regions = regions;
            machine.check().unwrap_err().to_string()
        };
        let region = |start, functions: &[PciAddress]| RegionModel {
            memory: PhysRange::new(PhysAddr::new(start), PageCount::ONE).unwrap(),
            functions: functions.to_vec(),
        };
        let device = at(0, 1);
        let end = BASE + FRAMES * FRAME_BYTES;
        for (wrong, why) in [
            (
                vec![region(BASE - FRAME_BYTES, &[device])],
                "found some outside of it",
            ),
            (vec![region(end, &[device])], "found some outside of it"),
            (
                vec![region(BASE, &[device]), region(BASE, &[device])],
                "found one that meets",
            ),
            (vec![region(BASE, &[])], "found none"),
            (
                vec![region(BASE, &[device, at(9, 1)])],
                "found 0000:09:01.0, which is not there",
            ),
        ] {
            let found = refused(wrong);
            assert!(found.contains(why), "{found}");
        }
    }
}
