//! From bytes to nodes: the header, and nodes that tile what is behind it.

use alloc::vec::Vec;
use core::ops::Range;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::finding::{Defect, Expected, Finding, IortError, NodeKind, Place};
use super::{Header, Iort, Mapping, NodeInfo};
use hv_core::list::push;

use crate::spec::iort as spec;

/// Decodes the IORT in `bytes`, which are the table and nothing else.
///
/// # Errors
/// [`IortError::Malformed`] names the node, what was expected and what was found, wherever going on could lose a unit.
/// Other faults of the table are in [`Iort::findings`].
pub fn parse(bytes: &[u8]) -> Result<Iort, IortError> {
    let mut findings = Vec::new();
    let (header, table) = header(bytes, &mut findings)?;
    let nodes = walk(&header, table, &mut findings)?;
    let mut iort = Iort {
        header,
        its_groups: Vec::new(),
        components: Vec::new(),
        root_complexes: Vec::new(),
        old_units: Vec::new(),
        units: Vec::new(),
        counters: Vec::new(),
        reserved: Vec::new(),
        wire_bridges: Vec::new(),
        findings,
    };
    for node in &nodes {
        iort.take(node, &nodes)?;
    }
    Ok(iort)
}

pub(super) fn finding(place: Place, what: Defect, expected: Expected, found: u64) -> Finding {
    Finding {
        place,
        what,
        expected,
        found,
    }
}

fn header<'a>(
    bytes: &'a [u8],
    findings: &mut Vec<Finding>,
) -> Result<(Header, &'a [u8]), IortError> {
    let at = Place::HEADER;
    let minimum = size_of::<spec::TableHeader>() as u64;
    let given = bytes.len() as u64;
    let (raw, _) = spec::TableHeader::read_from_prefix(bytes)
        .map_err(|_| finding(at, Defect::TableLength, Expected::AtLeast(minimum), given))?;
    if raw.signature != spec::SIGNATURE {
        let expected = Expected::Exactly(u32::from_be_bytes(spec::SIGNATURE).into());
        let found = u32::from_be_bytes(raw.signature).into();
        return Err(finding(at, Defect::Signature, expected, found).into());
    }
    let length = u64::from(raw.length.get());
    if length < minimum {
        let expected = Expected::AtLeast(minimum);
        return Err(finding(at, Defect::TableLength, expected, length).into());
    }
    let Some((table, behind)) = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.split_at_checked(length))
    else {
        let expected = Expected::AtMost(given);
        return Err(finding(at, Defect::TableLength, expected, length).into());
    };
    padding(at, behind, findings)?;
    let sum = table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    if sum != 0 {
        let expected = Expected::Exactly(raw.checksum.wrapping_sub(sum).into());
        let what = finding(at, Defect::Checksum, expected, raw.checksum.into());
        push(findings, what)?;
    }
    let header = Header {
        length: raw.length.get(),
        revision: raw.revision,
        checksum: raw.checksum,
        oem_id: raw.oem_id,
        oem_table_id: raw.oem_table_id,
        oem_revision: raw.oem_revision.get(),
        creator_id: raw.creator_id,
        creator_revision: raw.creator_revision.get(),
        node_count: raw.node_count.get(),
        node_offset: raw.node_offset.get(),
    };
    Ok((header, table))
}

/// Zeros are harmless, but a node that was cut off by a damaged length or count must not go unseen.
fn padding(at: Place, bytes: &[u8], findings: &mut Vec<Finding>) -> Result<(), IortError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let expected = Expected::Exactly(0);
    let what = finding(at, Defect::TrailingBytes, expected, bytes.len() as u64);
    if bytes.iter().any(|&byte| byte != 0) {
        return Err(what.into());
    }
    Ok(push(findings, what)?)
}

/// Splits the table into nodes.
fn walk<'a>(
    header: &Header,
    table: &'a [u8],
    findings: &mut Vec<Finding>,
) -> Result<Vec<Node<'a>>, IortError> {
    let at = Place::HEADER;
    let start = header.node_offset as usize;
    let behind_header = size_of::<spec::TableHeader>();
    let gap = table.get(behind_header..start);
    let Some(gap) = gap.filter(|_| start <= table.len()) else {
        let expected = Expected::That("an offset in the table, behind its header");
        return Err(finding(at, Defect::NodeOffset, expected, start as u64).into());
    };
    if gap.iter().any(|&byte| byte != 0) {
        let expected = Expected::Exactly(behind_header as u64);
        return Err(finding(at, Defect::NodeOffset, expected, start as u64).into());
    }
    let mut nodes = Vec::new();
    let mut offset = start;
    for number in 0..header.node_count {
        let rest = table.get(offset..).unwrap_or_default();
        let Some(node) = Node::first(rest, offset)? else {
            let expected = Expected::Exactly(header.node_count.into());
            return Err(finding(at, Defect::NodeTiling, expected, number.into()).into());
        };
        offset = offset.saturating_add(node.bytes.len());
        push(&mut nodes, node)?;
    }
    padding(at, table.get(offset..).unwrap_or_default(), findings)?;
    Ok(nodes)
}

/// One node: where it is, and its bytes.
pub(super) struct Node<'a> {
    pub(super) info: NodeInfo,
    raw: spec::NodeHeader,
    bytes: &'a [u8],
}

/// The parts of a node whose place the node tells.
pub(super) struct Parts<'a> {
    /// Behind the fixed part, up to the mappings or the end.
    pub(super) behind: &'a [u8],
    /// Where that starts, from the start of the node.
    pub(super) start: usize,
}

impl<'a> Node<'a> {
    /// The node at the start of `rest`, which stands at `offset`; `None` if there is nothing.
    fn first(rest: &'a [u8], offset: usize) -> Result<Option<Self>, Finding> {
        let minimum = size_of::<spec::NodeHeader>();
        if rest.is_empty() {
            return Ok(None);
        }
        let (raw, _) = spec::NodeHeader::read_from_prefix(rest).map_err(|_| {
            let expected = Expected::AtLeast(minimum as u64);
            let at = Place::node(NodeKind::Header, 0);
            finding(at, Defect::TrailingBytes, expected, rest.len() as u64)
        })?;
        let place = Place::node(NodeKind::from_number(raw.kind), offset);
        let length = usize::from(raw.length.get());
        if length < minimum {
            let expected = Expected::AtLeast(minimum as u64);
            return Err(finding(place, Defect::NodeLength, expected, length as u64));
        }
        let Some(bytes) = rest.get(..length) else {
            let expected = Expected::AtMost(rest.len() as u64);
            return Err(finding(place, Defect::NodeTiling, expected, length as u64));
        };
        let info = NodeInfo {
            place,
            length: raw.length.get(),
            revision: raw.revision,
            identifier: raw.identifier.get(),
        };
        Ok(Some(Self { info, raw, bytes }))
    }

    pub(super) const fn place(&self) -> Place {
        self.info.place
    }

    /// The fixed part behind the node's header, and what is behind it up to the mappings.
    pub(super) fn fixed<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
    ) -> Result<(T, Parts<'a>), Finding> {
        let header = size_of::<spec::NodeHeader>();
        let start = header + size_of::<T>();
        let body = self.bytes.get(header..).unwrap_or_default();
        let (raw, _) = T::read_from_prefix(body).map_err(|_| {
            let expected = Expected::AtLeast(start as u64);
            let found = self.bytes.len() as u64;
            finding(self.place(), Defect::NodeLength, expected, found)
        })?;
        let end = if self.raw.mapping_count.get() == 0 {
            self.bytes.len()
        } else {
            self.raw.mapping_offset.get() as usize
        };
        let Some(behind) = self.bytes.get(start..end) else {
            let expected = Expected::That("an offset in the node, behind its fixed part");
            let found = self.raw.mapping_offset.get().into();
            return Err(finding(self.place(), Defect::PartTiling, expected, found));
        };
        Ok((raw, Parts { behind, start }))
    }

    /// The same of a node whose fixed part has grown: `T`, and from revision `since` on what follows it.
    pub(super) fn fixed_and<T, More>(&self, since: u8) -> Result<(T, More, Parts<'a>), Finding>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
        More: FromBytes + KnownLayout + Immutable + Unaligned + Default,
    {
        if self.info.revision < since {
            let (raw, parts) = self.fixed()?;
            return Ok((raw, More::default(), parts));
        }
        let (both, parts) = self.fixed::<spec::Grown<T, More>>()?;
        Ok((both.first, both.more, parts))
    }

    /// Part of the node: `count` things of `size` bytes from `offset` on, in bytes from the start of the node.
    pub(super) fn part(&self, offset: u32, count: u32, size: usize) -> Result<&'a [u8], Finding> {
        let start = offset as usize;
        let length = (count as usize).checked_mul(size);
        let end = length.and_then(|length| start.checked_add(length));
        let part = end.and_then(|end| self.bytes.get(start..end));
        part.filter(|_| start >= size_of::<spec::NodeHeader>())
            .ok_or_else(|| {
                let expected = Expected::That("parts within the node");
                finding(self.place(), Defect::PartTiling, expected, count.into())
            })
    }

    /// Whether each byte that is not 0 is below `fixed`, of the mappings or of `part`: a damaged count must not lose what
    /// it counted.
    pub(super) fn account(&self, fixed: usize, part: Option<Range<usize>>) -> Result<(), Finding> {
        let start = self.raw.mapping_offset.get() as usize;
        let size =
            (self.raw.mapping_count.get() as usize).saturating_mul(size_of::<spec::IdMapping>());
        let mappings = start..start.saturating_add(size);
        let odd = |at: &usize| {
            let known = *at < fixed || mappings.contains(at);
            !known && !part.as_ref().is_some_and(|part| part.contains(at))
        };
        let mut bytes = self.bytes.iter().enumerate();
        match bytes.find(|(at, byte)| **byte != 0 && odd(at)) {
            Some((at, &byte)) => {
                let place = self.place();
                let place = place.part(place.offset.saturating_add(at));
                let expected = Expected::Exactly(0);
                Err(finding(
                    place,
                    Defect::UnaccountedBytes,
                    expected,
                    byte.into(),
                ))
            }
            None => Ok(()),
        }
    }

    /// How many id mappings it says it has.
    pub(super) fn mapping_count(&self) -> u32 {
        self.raw.mapping_count.get()
    }

    /// The node's id mappings. The first finding is of the first that is wrong.
    pub(super) fn mappings(&self, nodes: &[Node<'_>]) -> Result<Vec<Mapping>, IortError> {
        let mut mappings = Vec::new();
        let (count, offset) = (self.raw.mapping_count.get(), self.raw.mapping_offset.get());
        if count == 0 {
            return Ok(mappings);
        }
        let size = size_of::<spec::IdMapping>();
        let bytes = self.part(offset, count, size)?;
        for (number, raw) in bytes.chunks_exact(size).enumerate() {
            let offset = self.place().offset + offset as usize + number * size;
            let Ok(raw) = spec::IdMapping::read_from_bytes(raw) else {
                break;
            };
            push(&mut mappings, self.mapping(offset, &raw, nodes)?)?;
        }
        Ok(mappings)
    }

    fn mapping(
        &self,
        offset: usize,
        raw: &spec::IdMapping,
        nodes: &[Node<'_>],
    ) -> Result<Mapping, Finding> {
        let at = self.place().part(offset);
        let reference = raw.output_reference.get();
        let to = nodes
            .binary_search_by_key(&(reference as usize), |node| node.place().offset)
            .ok()
            .and_then(|number| nodes.get(number));
        let Some(to) = to else {
            let expected = Expected::That("the offset of a node");
            return Err(finding(at, Defect::Reference, expected, reference.into()));
        };
        let kind = self.place().node;
        if !kind.may_lead_to(to.place().node) {
            let expected = match kind {
                NodeKind::NamedComponent | NodeKind::RootComplex => {
                    Expected::That("an SMMU or an ITS group")
                }
                NodeKind::ReservedMemory => Expected::That("an SMMU"),
                _ => Expected::That("an ITS group"),
            };
            let found = to.raw.kind.into();
            return Err(finding(at, Defect::ReferenceKind, expected, found));
        }
        let flags = raw.flags.get();
        if flags & !spec::MAPPING_SINGLE != 0 {
            let expected = Expected::AtMost(spec::MAPPING_SINGLE.into());
            return Err(finding(at, Defect::MappingForm, expected, flags.into()));
        }
        let mapping = Mapping {
            offset,
            input_base: raw.input_base.get(),
            count: raw.count.get(),
            output_base: raw.output_base.get(),
            output: to.place(),
            single: flags & spec::MAPPING_SINGLE != 0,
        };
        if !mapping.window().fits() {
            let largest = mapping.input_base.max(mapping.output_base);
            let expected = Expected::AtMost((u32::MAX - largest).into());
            return Err(finding(
                at,
                Defect::MappingRange,
                expected,
                mapping.count.into(),
            ));
        }
        Ok(mapping)
    }
}
