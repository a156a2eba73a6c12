//! From a node's bytes to what it says, kind by kind.

use alloc::vec::Vec;
use core::ops::Range;

use hv_core::list::push;
use hv_core::{OutOfMemory, PageCount, PageSize, PhysAddr, PhysRange, Segment};
use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::U32;

use super::finding::{Defect, Expected, IortError, NodeKind, Place};
use super::parse::{Node, finding};
use super::{
    CounterGroup, Iort, ItsGroup, Mapping, NamedComponent, OldSmmu, ReservedMemory, RootComplex,
    SmmuV3,
};
use crate::spec::iort as spec;
use crate::spec::quirks::{self, Quirk};
use crate::spec::registers::{FRAME_BYTES, FRAME_BYTES_ONE_PAGE};

impl Iort {
    /// Takes one node up.
    pub(super) fn take(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        let place = node.place();
        let result = match place.node {
            NodeKind::SmmuV3 => return self.take_unit(node, nodes),
            NodeKind::ItsGroup => self.take_its_group(node),
            NodeKind::NamedComponent => self.take_component(node, nodes),
            NodeKind::RootComplex => self.take_root_complex(node, nodes),
            NodeKind::SmmuV1V2 => self.take_old_unit(node, nodes),
            NodeKind::CounterGroup => self.take_counters(node, nodes),
            NodeKind::ReservedMemory => self.take_reserved(node, nodes),
            NodeKind::WireBridge => self.take_wire_bridge(node, nodes),
            NodeKind::Unknown(kind) => {
                let expected = Expected::AtMost(spec::TYPE_IWB.into());
                Err(finding(place, Defect::UnknownNode, expected, kind.into()).into())
            }
            NodeKind::Header => Ok(()),
        };
        self.note(result)
    }

    /// Keeps a finding, so that only running out of memory is left of an error.
    fn note(&mut self, result: Result<(), IortError>) -> Result<(), IortError> {
        match result {
            Err(IortError::Malformed(what)) => Ok(push(&mut self.findings, what)?),
            other => other,
        }
    }

    /// Keeps a finding about bytes that are of no part.
    fn account(
        &mut self,
        node: &Node<'_>,
        fixed: usize,
        part: Option<Range<usize>>,
    ) -> Result<(), OutOfMemory> {
        match node.account(fixed, part) {
            Err(what) => push(&mut self.findings, what),
            Ok(()) => Ok(()),
        }
    }

    /// The id mappings of a node, or none of them and a finding if one is wrong: part of what a node says could send an
    /// id to a place that the rest would contradict.
    fn mappings(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<Vec<Mapping>, IortError> {
        match node.mappings(nodes) {
            Err(IortError::Malformed(what)) => {
                push(&mut self.findings, what)?;
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// Says of a node through which ids pass, once, that its mappings disagree about one. They are kept: whoever asks
    /// about that id is told of both.
    fn note_overlap(&mut self, place: Place, mappings: &[Mapping]) -> Result<(), OutOfMemory> {
        for (number, one) in mappings.iter().enumerate() {
            for other in mappings.iter().take(number) {
                let same = one.output == other.output;
                if let Some(id) = one.window().conflict(&other.window(), same) {
                    let at = place.part(one.offset);
                    let expected = Expected::That("one mapping for each id");
                    let what = finding(at, Defect::MappingOverlap, expected, id.into());
                    return push(&mut self.findings, what);
                }
            }
        }
        Ok(())
    }

    fn take_unit(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        let place = node.place();
        let (raw, places, parts) =
            node.fixed_and::<spec::SmmuV3Body, spec::SmmuV3Places>(spec::SMMU_REVISION_PLACES)?;
        self.account(node, parts.start, None)?;
        let (base, model) = (raw.base.get(), raw.model.get());
        let quirks = quirks::by_model(model);
        if quirks.is_none() {
            let expected = Expected::AtMost(spec::MODEL_CAVIUM_CN99XX.into());
            let what = finding(place, Defect::UnknownModel, expected, model.into());
            push(&mut self.findings, what)?;
        }
        let flags = raw.flags.get();
        if flags & !spec::SMMU_FLAGS != 0 {
            let expected = Expected::AtMost(spec::SMMU_FLAGS.into());
            let what = finding(place, Defect::UnknownFlags, expected, flags.into());
            push(&mut self.findings, what)?;
        }
        let one_page = quirks.is_some_and(|quirks| quirks.has(Quirk::OnePage));
        let bytes = if one_page {
            FRAME_BYTES_ONE_PAGE
        } else {
            FRAME_BYTES
        };
        let registers = PageCount::for_bytes(bytes)
            .filter(|_| base != 0 && base.is_multiple_of(FRAME_BYTES_ONE_PAGE))
            .and_then(|pages| PhysRange::new(PhysAddr::new(base), pages).ok());
        let Some(registers) = registers else {
            let expected = Expected::That("a multiple of 0x10000 that is not 0");
            return Err(finding(place, Defect::RegisterBase, expected, base).into());
        };
        if self
            .units
            .iter()
            .any(|unit| unit.registers.overlaps(&registers))
        {
            let expected = Expected::That("registers that no other unit has");
            return Err(finding(place, Defect::DuplicateBase, expected, base).into());
        }
        let mut mappings = self.mappings(node, nodes)?;
        let index = places.device_id_mapping.get();
        let own_messages = if has_own_messages(node.info.revision, &raw) && !mappings.is_empty() {
            self.own_messages(place, index, &mut mappings)?
        } else {
            None
        };
        if own_messages.is_none() {
            self.drop_unused(place, index, &mut mappings)?;
        }
        if let Some(odd) = mappings.iter().find(|mapping| mapping.single) {
            let expected = Expected::Exactly(0);
            let found = spec::MAPPING_SINGLE.into();
            let what = finding(place.part(odd.offset), Defect::MappingForm, expected, found);
            push(&mut self.findings, what)?;
            mappings.clear();
        }
        self.note_overlap(place, &mappings)?;
        let unit = SmmuV3 {
            node: node.info,
            registers,
            flags,
            vatos: raw.vatos.get(),
            model,
            interrupts: [raw.event_gsiv, raw.pri_gsiv, raw.gerror_gsiv, raw.sync_gsiv]
                .map(U32::get),
            proximity: (flags & spec::SMMU_PXM_VALID != 0
                && node.info.revision >= spec::SMMU_REVISION_PLACES)
                .then(|| places.proximity.get()),
            device_id_mapping: index,
            own_messages,
            mappings,
        };
        Ok(push(&mut self.units, unit)?)
    }

    /// Takes the mapping for the unit's own messages out of the others: it is not for what passes the unit.
    fn own_messages(
        &mut self,
        place: Place,
        index: u32,
        mappings: &mut Vec<Mapping>,
    ) -> Result<Option<Mapping>, OutOfMemory> {
        let own = mappings.get(index as usize).copied();
        if let Some(own) = own.filter(|own| own.single) {
            mappings.remove(index as usize);
            return Ok(Some(own));
        }
        // Older tables have 0 there also where the first mapping is for streams.
        if index != 0 || own.is_none() {
            let expected = Expected::That("the number of a single mapping");
            let what = finding(place, Defect::DeviceIdMapping, expected, index.into());
            push(&mut self.findings, what)?;
        }
        Ok(None)
    }

    /// Takes the mapping for messages out where the unit writes none: its interrupts are wires, and it is for nothing else.
    fn drop_unused(
        &mut self,
        place: Place,
        index: u32,
        mappings: &mut Vec<Mapping>,
    ) -> Result<(), OutOfMemory> {
        let unused = mappings.get(index as usize).filter(|own| own.single);
        let Some(offset) = unused.map(|own| own.offset) else {
            return Ok(());
        };
        mappings.remove(index as usize);
        let expected = Expected::That("a unit that writes messages");
        let what = finding(
            place.part(offset),
            Defect::UnusedMapping,
            expected,
            index.into(),
        );
        push(&mut self.findings, what)
    }

    fn take_its_group(&mut self, node: &Node<'_>) -> Result<(), IortError> {
        let place = node.place();
        if node.mapping_count() != 0 {
            let expected = Expected::Exactly(0);
            let found = node.mapping_count().into();
            push(
                &mut self.findings,
                finding(place, Defect::MappingForm, expected, found),
            )?;
        }
        let (raw, parts) = node.fixed::<spec::ItsGroupBody>()?;
        let size = size_of::<U32>();
        let bytes = node.part(parts.start as u32, raw.count.get(), size)?;
        let mut ids = Vec::new();
        for id in bytes.chunks_exact(size) {
            if let Ok(id) = U32::read_from_bytes(id) {
                push(&mut ids, id.get())?;
            }
        }
        self.account(node, parts.start.saturating_add(bytes.len()), None)?;
        let group = ItsGroup {
            node: node.info,
            ids,
        };
        Ok(push(&mut self.its_groups, group)?)
    }

    fn take_component(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        let place = node.place();
        let (raw, parts) = node.fixed::<spec::NamedComponentBody>()?;
        let end = parts.behind.iter().position(|&byte| byte == 0);
        let path = end
            .and_then(|end| parts.behind.get(..end))
            .unwrap_or_default();
        if path.is_empty() || !path.iter().all(u8::is_ascii_graphic) {
            let expected = Expected::That("a printable path that ends with 0");
            let first = parts.behind.first().copied().unwrap_or_default();
            let what = finding(place, Defect::DeviceName, expected, first.into());
            push(&mut self.findings, what)?;
        }
        self.account(node, parts.start.saturating_add(path.len()), None)?;
        let mut name = Vec::new();
        for &byte in path {
            push(&mut name, byte)?;
        }
        let mappings = self.mappings(node, nodes)?;
        let component = NamedComponent {
            node: node.info,
            flags: raw.flags.get(),
            memory: raw.memory.into(),
            address_bits: raw.address_limit,
            name,
            mappings,
        };
        Ok(push(&mut self.components, component)?)
    }

    fn take_root_complex(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        let place = node.place();
        let (raw, parts) = node.fixed::<spec::RootComplexBody>()?;
        let segment = raw.segment.get();
        let Ok(segment) = u16::try_from(segment) else {
            let expected = Expected::AtMost(u16::MAX.into());
            return Err(finding(place, Defect::Segment, expected, segment.into()).into());
        };
        // Nodes of older revisions end, or have zeros, where these are.
        let limits = spec::RootComplexLimits::read_from_prefix(parts.behind).ok();
        let (address_bits, pasid_bits) = limits.map_or((0, 0), |(limits, _)| {
            let bits = (limits.pasid.get() & spec::ROOT_PASID_BITS) as u8;
            (limits.address_limit, bits)
        });
        let read = limits.map_or(0, |_| size_of::<spec::RootComplexLimits>());
        self.account(node, parts.start.saturating_add(read), None)?;
        let mappings = self.mappings(node, nodes)?;
        self.note_overlap(place, &mappings)?;
        let root = RootComplex {
            node: node.info,
            memory: raw.memory.into(),
            ats: raw.ats.get(),
            segment: Segment(segment),
            address_bits,
            pasid_bits,
            mappings,
        };
        Ok(push(&mut self.root_complexes, root)?)
    }

    /// What an interrupt wire bridge says is of no use here. That its mappings are those of one shows that it is not
    /// another kind of node, damaged.
    fn take_wire_bridge(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        push(&mut self.wire_bridges, node.place())?;
        self.mappings(node, nodes).map(drop)
    }

    fn take_old_unit(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        let (raw, _) = node.fixed::<spec::SmmuBody>()?;
        self.mappings(node, nodes)?;
        let unit = OldSmmu {
            node: node.info,
            base: PhysAddr::new(raw.base.get()),
            model: raw.model.get(),
        };
        push(&mut self.old_units, unit)?;
        let expected = Expected::That("SMMUv3");
        Err(finding(
            node.place(),
            Defect::OldSmmu,
            expected,
            raw.model.get().into(),
        )
        .into())
    }

    fn take_counters(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        let (raw, _, parts) =
            node.fixed_and::<spec::PmcgBody, spec::PmcgPage>(spec::PMCG_REVISION_PAGE)?;
        self.account(node, parts.start, None)?;
        let group = CounterGroup {
            node: node.info,
            base: PhysAddr::new(raw.base.get()),
            interrupt: raw.overflow_gsiv.get(),
            reference: raw.reference.get(),
        };
        push(&mut self.counters, group)?;
        self.mappings(node, nodes).map(drop)
    }

    fn take_reserved(&mut self, node: &Node<'_>, nodes: &[Node<'_>]) -> Result<(), IortError> {
        let place = node.place();
        let (raw, parts) = node.fixed::<spec::RmrBody>()?;
        let size = size_of::<spec::RmrDescriptor>();
        let bytes = node.part(raw.offset.get(), raw.count.get(), size)?;
        let start = raw.offset.get() as usize;
        let descriptors = start..start.saturating_add(bytes.len());
        self.account(node, parts.start, Some(descriptors))?;
        let mut ranges = Vec::new();
        for (number, range) in bytes.chunks_exact(size).enumerate() {
            let offset = start.saturating_add(number * size);
            let at = place.part(place.offset.saturating_add(offset));
            if let Ok(raw) = spec::RmrDescriptor::read_from_bytes(range) {
                let range = self.range(at, raw.base.get(), raw.length.get())?;
                if let Some(range) = range {
                    push(&mut ranges, range)?;
                }
            }
        }
        let mappings = self.mappings(node, nodes)?;
        if mappings.is_empty() || ranges.is_empty() {
            let expected = Expected::AtLeast(1);
            push(
                &mut self.findings,
                finding(place, Defect::NoStreams, expected, 0),
            )?;
        }
        let reserved = ReservedMemory {
            node: node.info,
            flags: raw.flags.get(),
            ranges,
            mappings,
        };
        Ok(push(&mut self.reserved, reserved)?)
    }

    /// A reserved range in whole pages: what it touches.
    fn range(
        &mut self,
        at: Place,
        base: u64,
        length: u64,
    ) -> Result<Option<PhysRange>, OutOfMemory> {
        let page = PageSize::Size4K.bytes();
        let start = PhysAddr::new(base).align_down(PageSize::Size4K);
        let range = length
            .checked_sub(1)
            .and_then(|more| base.checked_add(more))
            .and_then(|last| PageCount::new((last - start.as_u64()) / page + 1))
            .and_then(|pages| PhysRange::new(start, pages).ok());
        let Some(range) = range else {
            let expected = Expected::That("a length that ends in the address space");
            let what = finding(at, Defect::RegionRange, expected, length);
            push(&mut self.findings, what)?;
            return Ok(None);
        };
        for boundary in [base, length] {
            if !boundary.is_multiple_of(page) {
                let expected = Expected::MultipleOf(page);
                let what = finding(at, Defect::RegionAlignment, expected, boundary);
                push(&mut self.findings, what)?;
                break;
            }
        }
        Ok(Some(range))
    }
}

/// Whether the unit's own interrupts are messages, so that a mapping is for them. Source: Linux
/// `drivers/acpi/arm64/iort.c` (`iort_get_id_mapping_index`).
fn has_own_messages(revision: u8, raw: &spec::SmmuV3Body) -> bool {
    if revision >= spec::SMMU_REVISION_DEVICE_ID_FLAG {
        return raw.flags.get() & spec::SMMU_DEVICE_ID_VALID != 0;
    }
    if revision < spec::SMMU_REVISION_PLACES {
        return false;
    }
    let wires = [raw.event_gsiv, raw.pri_gsiv, raw.gerror_gsiv, raw.sync_gsiv];
    wires.iter().any(|wire| wire.get() == 0)
}
