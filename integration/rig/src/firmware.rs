//! What firmware says of a machine: its DMAR table or its IORT.

use hv_core::{PciAddress, Segment};
use thiserror::Error;

use crate::driver::Vendor;
use crate::machine::{Machine, RegionModel, UnitRegisters};
use crate::rig::Rig;
use crate::services::writers_of;
use crate::smmu::spec::iort::{self, Mapping, ReservedNode, RootNode, SmmuNode};
use crate::vtd::spec::dmar::{self, Drhd, Rmrr, Scope};
use crate::{smmu, vtd};

/// A machine whose firmware has no such table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "expected a machine with units of {expected}, which that table describes, found units of {found}"
)]
pub struct NoTable {
    /// Whose units the table describes.
    pub expected: Vendor,
    /// Whose units there are.
    pub found: Vendor,
}

impl Rig {
    fn described_for(&self, expected: Vendor) -> Result<&Machine, NoTable> {
        let found = self.machine().vendor();
        match found == expected {
            true => Ok(self.machine()),
            false => Err(NoTable { expected, found }),
        }
    }

    /// Firmware's DMAR table.
    ///
    /// # Errors
    /// [`NoTable`] of a machine whose units are not VT-d's.
    pub fn dmar(&self) -> Result<Vec<u8>, NoTable> {
        let machine = self.described_for(Vendor::Vtd)?;
        let units = machine.units.iter().enumerate();
        let drhds: Vec<_> = units
            .map(|(index, unit)| Drhd {
                include_all: unit.scopes.is_none(),
                segment: unit.segment.0,
                base: vtd::registers_at(index),
                size_pages_log2: vtd::REGISTER_PAGES_LOG2,
                scopes: unit
                    .scopes
                    .iter()
                    .flatten()
                    .map(|function| self.scope(*function))
                    .collect(),
            })
            .collect();
        let regions = machine.regions.iter();
        let rmrrs: Vec<_> = regions
            .map(|region| Rmrr {
                segment: region.functions.first().map_or(0, |f| f.segment().0),
                base: region.memory.start().as_u64(),
                limit: region.memory.last().as_u64(),
                scopes: region.functions.iter().map(|f| self.scope(*f)).collect(),
            })
            .collect();
        Ok(dmar::table(machine.host_address_bits, 0, &drhds, &rmrrs))
    }

    /// Firmware's IORT.
    ///
    /// # Errors
    /// [`NoTable`] of a machine whose units are not SMMUs.
    pub fn iort(&self) -> Result<Vec<u8>, NoTable> {
        let machine = self.described_for(Vendor::Smmu)?;
        let (mut nodes, mut roots) = (Vec::new(), Vec::<RootNode>::new());
        for (index, unit) in machine.units.iter().enumerate() {
            let UnitRegisters::Smmu(identity) = &unit.registers else {
                continue;
            };
            nodes.push(SmmuNode {
                base: smmu::registers_at(index),
                coherent: identity.coherent,
                httu: identity.httu,
                model: identity.model,
                one_wire: identity.is_cn99xx(),
                first_stream: identity.first_stream,
                writers: writers_of(machine, index),
            });
            let segment = unit.segment.0;
            let mut functions = machine.functions.iter();
            let ats = functions.any(|function| function.ats);
            match roots.iter_mut().find(|root| root.segment == segment) {
                Some(root) => root.canwbs &= identity.canwbs,
                None => roots.push(RootNode {
                    segment,
                    canwbs: identity.canwbs,
                    ats,
                    pasid_bits: machine.pasid_bits,
                    mappings: Vec::new(),
                }),
            }
        }
        for root in &mut roots {
            let of = |id: u16| {
                let function = PciAddress::from_requester(Segment(root.segment), id);
                let smmu = machine.unit_of(machine.sender_as(function))?;
                match machine.units.get(smmu)?.registers {
                    UnitRegisters::Smmu(identity) => Some((smmu, identity.first_stream)),
                    UnitRegisters::Vtd(_) => None,
                }
            };
            for id in 0..=u16::MAX {
                let Some((smmu, first)) = of(id) else {
                    continue;
                };
                let mapping = Mapping {
                    first: id,
                    last: id,
                    stream: first + u32::from(id),
                    smmu,
                };
                match root.mappings.last_mut() {
                    Some(last) if last.smmu == smmu && last.last + 1 == id => last.last = id,
                    _ => root.mappings.push(mapping),
                }
            }
        }
        let reserved: Vec<_> = machine
            .regions
            .iter()
            .map(|region| self.reserved(region))
            .collect();
        let services = machine.services.iter();
        let services: Vec<_> = services.map(|services| services.number).collect();
        Ok(iort::table(&nodes, &roots, &reserved, &services))
    }

    /// A region with the streams of its functions, by whatever ids they send.
    fn reserved(&self, region: &RegionModel) -> ReservedNode {
        let machine = self.machine();
        let mut streams = Vec::new();
        for function in &region.functions {
            let Some(smmu) = machine.unit_of(*function) else {
                continue;
            };
            let UnitRegisters::Smmu(identity) = &machine.units[smmu].registers else {
                continue;
            };
            let model = machine
                .functions
                .iter()
                .find(|model| model.address == *function);
            let phantoms = model.map(|model| model.facts());
            let phantoms = phantoms.iter().flat_map(|facts| facts.phantom_ids());
            for id in [*function].into_iter().chain(phantoms) {
                streams.push((smmu, identity.first_stream + u32::from(id.requester())));
            }
        }
        ReservedNode {
            memory: (
                region.memory.start().as_u64(),
                region.memory.pages().bytes(),
            ),
            streams,
        }
    }

    /// The scope of a function: the bus that its path starts at, and the way from there.
    fn scope(&self, function: PciAddress) -> Scope {
        let bridges = self.machine().bridges_above(function);
        let above = bridges
            .iter()
            .filter_map(|index| self.machine().functions.get(*index));
        let path: Vec<PciAddress> = above
            .map(|bridge| bridge.address)
            .chain([function])
            .collect();
        Scope {
            kind: 1,
            start_bus: path.first().map_or(0, |first| first.bus()),
            path: path
                .iter()
                .map(|step| (step.device(), step.function()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_the_table_of_its_vendor_alone() {
        for vendor in Vendor::ALL {
            let rig = Rig::new(Machine::calm_of(vendor)).unwrap();
            assert_eq!(rig.dmar().is_ok(), vendor == Vendor::Vtd);
            assert_eq!(rig.iort().is_ok(), vendor == Vendor::Smmu);
        }
        let rig = Rig::new(Machine::calm_of(Vendor::Smmu)).unwrap();
        let said = rig.dmar().unwrap_err().to_string();
        assert!(
            said.contains("units of vtd") && said.contains("units of smmu"),
            "{said}"
        );
    }
}
