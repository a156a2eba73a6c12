//! From the table to what every firmware says.

use alloc::vec::Vec;

use hv_core::OutOfMemory;
use hv_core::list::push;
use hv_iommu::{ReservedKind, UnitIndex};

use super::{Iort, Mapping, NodeKind, SmmuV3};
use crate::firmware::{
    Firmware, FirmwareError, InterruptId, Interrupts, LeafNotes, MessageServices, MessageWriter,
    PciHost, PlatformDevice, RequestTarget, RequesterLimits, ReservedStreams, Route, ServicesIndex,
    SmmuUnit,
};
use crate::spec::iort as spec;
use crate::spec::quirks::{self, Quirks};
use crate::{DeviceId, StreamId};

impl Iort {
    /// What the table says, in the words of [`Firmware`].
    ///
    /// # Errors
    /// [`FirmwareError`].
    pub fn describe(&self) -> Result<Firmware, FirmwareError> {
        let found = self.units.len();
        if found > UnitIndex::LIMIT {
            return Err(FirmwareError::TooManyUnits { found });
        }
        let mut firmware = Firmware::default();
        for group in &self.its_groups {
            let mut numbers = Vec::new();
            for &id in &group.ids {
                push(&mut numbers, id)?;
            }
            let base = None;
            let services = MessageServices {
                tell_writers_apart: true,
                numbers,
                base,
            };
            push(&mut firmware.services, services)?;
        }
        for unit in &self.units {
            push(&mut firmware.units, self.unit(unit)?)?;
        }
        for root in &self.root_complexes {
            let limits = RequesterLimits {
                coherency: root.memory.coherency(),
                translation_requests: root.ats & spec::ROOT_ATS != 0,
                page_requests: root.ats & spec::ROOT_PRI != 0,
                pasid_bits: if root.ats & spec::ROOT_PASID != 0 {
                    root.pasid_bits
                } else {
                    0
                },
                address_bits: root.address_bits,
                may_stall: false,
                no_snoop_is_moot: root.memory.flags & spec::MEMORY_CANWBS != 0,
            };
            let host = PciHost {
                segment: root.segment,
                buses: (0, u8::MAX),
                stream_mask: u32::MAX,
                streams: self.requests(&root.mappings)?,
                message_mask: u32::MAX,
                messages: self.messages(&root.mappings)?,
                limits,
            };
            push(&mut firmware.hosts, host)?;
        }
        for component in &self.components {
            let mut name = Vec::new();
            for &byte in &component.name {
                push(&mut name, byte)?;
            }
            let limits = RequesterLimits {
                pasid_bits: spec::named_pasid_bits(component.flags.into()),
                address_bits: component.address_bits,
                may_stall: component.flags & spec::NAMED_STALL != 0,
                ..RequesterLimits::none(component.memory.coherency())
            };
            let mut streams = Vec::new();
            for (unit, first, last) in self.streams(&component.mappings) {
                push(&mut streams, (unit, first, last))?;
            }
            let device = PlatformDevice {
                name,
                streams,
                messages: None,
                limits,
            };
            push(&mut firmware.devices, device)?;
        }
        for reserved in &self.reserved {
            let kind = if reserved.remap_permitted() {
                ReservedKind::Relaxable
            } else {
                ReservedKind::Pinned
            };
            for (unit, first, last) in self.streams(&reserved.mappings) {
                for &memory in &reserved.ranges {
                    let streams = ReservedStreams {
                        unit,
                        first,
                        last,
                        memory,
                        kind,
                    };
                    push(&mut firmware.reserved, streams)?;
                }
            }
        }
        for &finding in &self.findings {
            push(&mut firmware.findings, finding.into())?;
        }
        Ok(firmware)
    }

    fn unit(&self, unit: &SmmuV3) -> Result<SmmuUnit, OutOfMemory> {
        let wire = |number: u32| (number != 0).then_some(InterruptId(number));
        let [event, page_request, global_error, sync] = unit.interrupts.map(wire);
        let notes = match spec::smmu_httu_override(unit.flags) {
            0 => LeafNotes::Nothing,
            1 => LeafNotes::Accesses,
            _ => LeafNotes::Writes,
        };
        let own = unit.own_messages;
        Ok(SmmuUnit {
            registers: unit.registers,
            coherent: unit.coherent(),
            leaf_notes: Some(notes),
            quirks: quirks::by_model(unit.model).unwrap_or(Quirks::NONE),
            interrupts: Interrupts {
                event,
                page_request,
                global_error,
                sync,
            },
            own_messages: own.and_then(|own| {
                let device = DeviceId::new(own.output_base);
                let services = self.services_at(&own)?;
                Some(MessageWriter { services, device })
            }),
            messages: self.messages(&unit.mappings)?,
            proximity: unit.proximity,
        })
    }

    /// Where requests go.
    fn requests(&self, mappings: &[Mapping]) -> Result<Vec<Route<RequestTarget>>, OutOfMemory> {
        let mut routes = Vec::new();
        for mapping in mappings {
            let to = match mapping.output.node {
                NodeKind::SmmuV3 => match self.unit_at(mapping) {
                    Some(unit) => RequestTarget::Unit(unit),
                    None => RequestTarget::Foreign,
                },
                NodeKind::ItsGroup => RequestTarget::Memory,
                _ => RequestTarget::Foreign,
            };
            let window = mapping.window();
            push(&mut routes, Route { window, to })?;
        }
        Ok(routes)
    }

    /// Where messages go that are mapped to services at once.
    fn messages(&self, mappings: &[Mapping]) -> Result<Vec<Route<ServicesIndex>>, OutOfMemory> {
        let mut routes = Vec::new();
        for mapping in mappings {
            if let Some(to) = self.services_at(mapping) {
                let window = mapping.window();
                push(&mut routes, Route { window, to })?;
            }
        }
        Ok(routes)
    }

    /// The streams that the mappings of a node put out. One too many of one mapping gives way to the next, as for
    /// requesters; where there is none, it counts: a stream too many is reserved or taken, and one too few would not be.
    fn streams(
        &self,
        mappings: &[Mapping],
    ) -> impl Iterator<Item = (UnitIndex, StreamId, StreamId)> {
        mappings.iter().filter_map(|mapping| {
            let others = mappings.iter().map(Mapping::window);
            let (first, last) = mapping.window().output_beside(others);
            let unit = self.unit_at(mapping)?;
            Some((unit, StreamId::new(first), StreamId::new(last)))
        })
    }

    fn unit_at(&self, mapping: &Mapping) -> Option<UnitIndex> {
        let place = mapping.output;
        let found = self.units.iter().position(|unit| unit.node.place == place);
        found.and_then(UnitIndex::new)
    }

    fn services_at(&self, mapping: &Mapping) -> Option<ServicesIndex> {
        let place = mapping.output;
        let mut groups = self.its_groups.iter();
        groups
            .position(|group| group.node.place == place)
            .map(ServicesIndex)
    }
}
