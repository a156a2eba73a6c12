//! The device tree: SMMUs, the host bridges that map requester ids to their streams, and devices with streams.
//!
//! Bindings: `arm,smmu-v3`, `pci-iommu`, `pci-msi`, `iommu`, `host-generic-pci` of the Linux kernel. What could lose a unit
//! is an error. A host bridge whose map of ids is damaged keeps none of it: nobody can claim what is behind it.
//! Not read: `iommu-addresses` of reserved memory.

mod finding;
mod flat;
mod units;

use alloc::vec::Vec;

use hv_core::Segment;
use hv_core::list::push;
use hv_iommu::{Coherency, UnitIndex};

pub use finding::{Defect, Finding, NodeName, TreeError};

use crate::StreamId;
use crate::firmware::{
    Firmware, MessageServices, PciHost, PlatformDevice, RequestTarget, RequesterLimits, Route,
    ServicesIndex,
};
use crate::window::IdWindow;
use flat::{Cells, NodeId, Tree};

/// Decodes the flattened device tree at the start of `bytes`.
///
/// # Errors
/// [`TreeError::Malformed`] wherever going on could lose a unit. Other faults are in [`Firmware::findings`].
pub fn parse(bytes: &[u8]) -> Result<Firmware, TreeError> {
    let tree = Tree::new(bytes)?;
    let mut reader = Reader {
        tree,
        unit_nodes: Vec::new(),
        service_nodes: Vec::new(),
        firmware: Firmware::default(),
    };
    reader.units()?;
    for node in reader.tree.nodes() {
        if !reader.tree.is_enabled(node) {
            continue;
        }
        if reader.is_host(node) {
            reader.host(node)?;
        } else if reader.tree.property(node, "iommus").is_some() {
            reader.device(node)?;
        }
    }
    reader.segments()?;
    Ok(reader.firmware)
}

/// What is known so far.
struct Reader<'a> {
    tree: Tree<'a>,
    /// The nodes of the units, in their order.
    unit_nodes: Vec<NodeId>,
    /// The nodes of the services, in their order.
    service_nodes: Vec<NodeId>,
    firmware: Firmware,
}

impl Reader<'_> {
    fn note(&mut self, node: NodeId, what: Defect, found: u64) -> Result<(), TreeError> {
        let node = self.tree.short_name(node);
        let finding = Finding { node, what, found };
        Ok(push(&mut self.firmware.findings, finding.into())?)
    }

    fn coherency(&self, node: NodeId) -> Coherency {
        match self.tree.is_coherent(node) {
            true => Coherency::Coherent,
            false => Coherency::NotCoherent {
                said: "no `dma-coherent` in the device tree",
            },
        }
    }

    fn is_pci(&self, node: NodeId) -> bool {
        self.tree.property(node, "device_type") == Some(b"pci\0")
    }

    /// Whether a node is a host bridge: a PCI bus that is on none.
    fn is_host(&self, node: NodeId) -> bool {
        let parent = self.tree.parent(node);
        self.is_pci(node) && !parent.is_some_and(|parent| self.is_pci(parent))
    }

    fn unit_of(&self, node: NodeId) -> Option<UnitIndex> {
        let found = self.unit_nodes.iter().position(|&unit| unit == node);
        found.and_then(UnitIndex::new)
    }

    /// The services of a node that is referred to as such.
    fn services_of(&mut self, node: NodeId) -> Result<ServicesIndex, TreeError> {
        let known = self.service_nodes.iter().position(|&own| own == node);
        if let Some(known) = known {
            return Ok(ServicesIndex(known));
        }
        let base = self.tree.registers(node);
        let services = MessageServices {
            tell_writers_apart: self.tree.lists(node, "compatible", "arm,gic-v3-its"),
            numbers: Vec::new(),
            base: base.map(|(base, _)| hv_core::PhysAddr::new(base)),
        };
        push(&mut self.firmware.services, services)?;
        push(&mut self.service_nodes, node)?;
        Ok(ServicesIndex(self.service_nodes.len() - 1))
    }

    /// A map of ids: first id, node, its cells, how many. `None` if some of it makes no sense.
    fn id_map(
        &self,
        value: &[u8],
        cells_property: &str,
    ) -> Result<Option<Vec<(IdWindow, NodeId)>>, TreeError> {
        let mut cells = Cells::new(value);
        let mut map = Vec::new();
        while !cells.is_empty() {
            let (Some(first), Some(phandle)) = (cells.next(), cells.next()) else {
                return Ok(None);
            };
            let Some(node) = self.tree.by_phandle(phandle) else {
                return Ok(None);
            };
            // One cell unless the node says otherwise: older trees map to nodes that do not say.
            let count = self.tree.number(node, cells_property).unwrap_or(1);
            let (Some(output), Some(length)) = (cells.take(count), cells.next()) else {
                return Ok(None);
            };
            let Some(more) = length.checked_sub(1) else {
                continue;
            };
            let Ok(output) = u32::try_from(output) else {
                return Ok(None);
            };
            let window = IdWindow::new(first, more, output);
            if !window.fits() || map.len() == MAP_LIMIT {
                return Ok(None);
            }
            push(&mut map, (window, node))?;
        }
        Ok(Some(map))
    }

    fn host(&mut self, node: NodeId) -> Result<(), TreeError> {
        let buses = self.buses(node)?;
        let segment = self.tree.number(node, "linux,pci-domain");
        let limits = RequesterLimits {
            translation_requests: self.tree.property(node, "ats-supported").is_some(),
            // A tree has no word for a host's: what units and functions say decides (Linux).
            pasid_bits: hv_core::Pasid::BITS,
            ..RequesterLimits::none(self.coherency(node))
        };
        let mask = |wanted| self.tree.number(node, wanted).unwrap_or(u32::MAX);
        let (stream_mask, message_mask) = (mask("iommu-map-mask"), mask("msi-map-mask"));
        let host = PciHost {
            // Hosts without a number get theirs when all are known.
            segment: Segment(segment.map_or(UNNUMBERED, |segment| segment as u16)),
            buses,
            stream_mask,
            streams: self.host_streams(node)?,
            message_mask,
            messages: self.host_messages(node)?,
            limits,
        };
        if let Some(segment) = segment.filter(|&segment| segment >= u32::from(UNNUMBERED)) {
            self.note(node, Defect::Segment, segment.into())?;
        }
        Ok(push(&mut self.firmware.hosts, host)?)
    }

    fn buses(&mut self, node: NodeId) -> Result<(u8, u8), TreeError> {
        let Some(value) = self.tree.property(node, "bus-range") else {
            return Ok((0, u8::MAX));
        };
        let mut cells = Cells::new(value);
        let bus = |cell: Option<u32>| cell.and_then(|cell| u8::try_from(cell).ok());
        match (bus(cells.next()), bus(cells.next())) {
            (Some(first), Some(last)) if first <= last => Ok((first, last)),
            _ => {
                self.note(node, Defect::Buses, value.len() as u64)?;
                // No bus is believed to be behind it.
                Ok((u8::MAX, 0))
            }
        }
    }

    fn host_streams(&mut self, node: NodeId) -> Result<Vec<Route<RequestTarget>>, TreeError> {
        let mut routes = Vec::new();
        if let Some(value) = self.tree.property(node, "iommu-map") {
            let Some(map) = self.id_map(value, "#iommu-cells")? else {
                self.note(node, Defect::IdMap, value.len() as u64)?;
                return Ok(routes);
            };
            for (window, target) in map {
                let to = self.target(target);
                push(&mut routes, Route { window, to })?;
            }
        } else if let Some(value) = self.tree.property(node, "iommus") {
            // All that is behind the bridge sends as one.
            match self.references(value)? {
                Some(found) => {
                    for (target, stream) in found {
                        let window = IdWindow::any(stream);
                        let to = self.target(target);
                        push(&mut routes, Route { window, to })?;
                    }
                }
                None => self.note(node, Defect::Reference, value.len() as u64)?,
            }
        }
        self.note_overlap(node, &routes)?;
        Ok(routes)
    }

    fn host_messages(&mut self, node: NodeId) -> Result<Vec<Route<ServicesIndex>>, TreeError> {
        let mut routes = Vec::new();
        if let Some(value) = self.tree.property(node, "msi-map") {
            let Some(map) = self.id_map(value, "#msi-cells")? else {
                self.note(node, Defect::IdMap, value.len() as u64)?;
                return Ok(routes);
            };
            for (window, target) in map {
                let to = self.services_of(target)?;
                push(&mut routes, Route { window, to })?;
            }
            self.note_overlap(node, &routes)?;
        } else if let Some(phandle) = self
            .tree
            .property(node, "msi-parent")
            .and_then(|value| Cells::new(value).next())
        {
            // Writers are known by their requester ids.
            if let Some(target) = self.tree.by_phandle(phandle) {
                let to = self.services_of(target)?;
                let window = IdWindow::new(0, u16::MAX.into(), 0);
                push(&mut routes, Route { window, to })?;
            }
        }
        Ok(routes)
    }

    fn target(&self, node: NodeId) -> RequestTarget {
        match self.unit_of(node) {
            Some(unit) => RequestTarget::Unit(unit),
            None => RequestTarget::Foreign,
        }
    }

    /// Says once that a map sends an id to two places.
    fn note_overlap<T: PartialEq>(
        &mut self,
        node: NodeId,
        routes: &[Route<T>],
    ) -> Result<(), TreeError> {
        let mut pairs = routes.iter().enumerate().flat_map(|(number, one)| {
            let others = routes.iter().take(number);
            others.map(move |other| (one, other))
        });
        let conflict = pairs.find_map(|(one, other)| {
            let same = one.to == other.to;
            one.window.conflict(&other.window, same)
        });
        match conflict {
            Some(id) => self.note(node, Defect::IdMapOverlap, id.into()),
            None => Ok(()),
        }
    }

    /// The streams that a list of references names: the unit's node and the first cell of each.
    fn references(&self, value: &[u8]) -> Result<Option<Vec<(NodeId, u32)>>, TreeError> {
        let mut cells = Cells::new(value);
        let mut found = Vec::new();
        while !cells.is_empty() {
            let node = cells
                .next()
                .and_then(|phandle| self.tree.by_phandle(phandle));
            let Some(node) = node else {
                return Ok(None);
            };
            let count = self.tree.number(node, "#iommu-cells").unwrap_or(1);
            let mut stream = 0;
            for number in 0..count {
                match cells.next() {
                    Some(cell) if number == 0 => stream = cell,
                    Some(_) => {}
                    None => return Ok(None),
                }
            }
            push(&mut found, (node, stream))?;
        }
        Ok(Some(found))
    }

    fn device(&mut self, node: NodeId) -> Result<(), TreeError> {
        let value = self.tree.property(node, "iommus").unwrap_or_default();
        let mut streams = Vec::new();
        match self.references(value)? {
            Some(found) => {
                for (target, stream) in found {
                    if let Some(unit) = self.unit_of(target) {
                        let stream = StreamId::new(stream);
                        push(&mut streams, (unit, stream, stream))?;
                    }
                }
            }
            None => self.note(node, Defect::Reference, value.len() as u64)?,
        }
        let mut name = Vec::new();
        for &byte in self.tree.name(node) {
            push(&mut name, byte)?;
        }
        let pasid_bits = self.tree.number(node, "pasid-num-bits").unwrap_or(0);
        let limits = RequesterLimits {
            pasid_bits: pasid_bits.min(hv_core::Pasid::BITS.into()) as u8,
            may_stall: self.tree.property(node, "dma-can-stall").is_some(),
            ..RequesterLimits::none(self.coherency(node))
        };
        let device = PlatformDevice {
            name,
            streams,
            messages: self.own_messages(node)?,
            limits,
        };
        Ok(push(&mut self.firmware.devices, device)?)
    }

    /// Numbers the host bridges that have no number: in the order of the tree, if none has one.
    fn segments(&mut self) -> Result<(), TreeError> {
        let hosts = &mut self.firmware.hosts;
        let unnumbered = hosts
            .iter()
            .filter(|host| host.segment.0 == UNNUMBERED)
            .count();
        if unnumbered == hosts.len() {
            for (number, host) in (0..).zip(hosts.iter_mut()) {
                host.segment = Segment(number);
            }
            return Ok(());
        }
        let twice = hosts.iter().enumerate().any(|(number, host)| {
            let mut others = hosts.iter().take(number);
            others.any(|other| other.segment == host.segment)
        });
        if unnumbered > 0 || twice {
            // Nobody knows which functions are behind which.
            for host in hosts.iter_mut() {
                host.streams.clear();
            }
            let found = unnumbered as u64;
            let what = Defect::Segment;
            let node = NodeName::EMPTY;
            let finding = Finding { node, what, found };
            push(&mut self.firmware.findings, finding.into())?;
        }
        Ok(())
    }
}

/// How many entries a map of ids may have.
const MAP_LIMIT: usize = 1024;
/// The segment of a host bridge that has no number yet.
const UNNUMBERED: u16 = u16::MAX;
