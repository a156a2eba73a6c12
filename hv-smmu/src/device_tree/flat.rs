//! Reading a flattened tree: its nodes in a list, their properties on request.
//!
//! The crates at hand do not serve: `dtoolkit` 0.4 refuses a tree with a property name of more than 31 characters, which
//! one of the quirks of SMMUs has (and many shipped trees), and `fdt` 0.1 panics on damaged ones.

use alloc::vec::Vec;

use hv_core::OutOfMemory;
use hv_core::list::push;
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U32;

use super::finding::{Defect, Finding, NodeName, TreeError};
use crate::spec::device_tree as spec;

/// Which node of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(usize);

/// A node: where its properties start, and whose child it is.
struct Node<'a> {
    name: &'a [u8],
    parent: Option<NodeId>,
    properties: usize,
}

/// A tree.
///
/// # Invariants
/// Every node's properties, up to the first token that is none, lie within `structure`; parents stand before children.
pub(super) struct Tree<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    nodes: Vec<Node<'a>>,
    /// Sorted.
    phandles: Vec<(u32, NodeId)>,
}

/// Something in the token stream.
enum Token<'a> {
    Begin(&'a [u8]),
    End,
    Property(&'a [u8], &'a [u8]),
    Nop,
    Finish,
}

impl<'a> Tree<'a> {
    /// Reads the tree at the start of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, TreeError> {
        let given = bytes.len() as u64;
        let (header, _) =
            spec::Header::read_from_prefix(bytes).map_err(|_| broken(Defect::Size, given))?;
        let magic = header.magic.get();
        if magic != spec::MAGIC {
            return Err(broken(Defect::Magic, magic.into()).into());
        }
        let version = header.version.get();
        let compatible = header.compatible_version.get();
        if version < spec::VERSION || compatible > spec::VERSION {
            return Err(broken(Defect::Version, version.into()).into());
        }
        let total = header.total_size.get();
        let Some(bytes) = bytes.get(..total as usize) else {
            return Err(broken(Defect::Size, total.into()).into());
        };
        let block = |offset: U32, size: U32| {
            let (start, size) = (offset.get() as usize, size.get() as usize);
            let block = bytes.get(start..start.checked_add(size)?)?;
            (start >= size_of::<spec::Header>()).then_some(block)
        };
        let structure = block(header.structure_offset, header.structure_size);
        let strings = block(header.strings_offset, header.strings_size);
        let (Some(structure), Some(strings)) = (structure, strings) else {
            return Err(broken(Defect::Blocks, header.structure_offset.get().into()).into());
        };
        let mut tree = Self {
            structure,
            strings,
            nodes: Vec::new(),
            phandles: Vec::new(),
        };
        tree.read()?;
        for id in tree.nodes() {
            let phandle = tree.number(id, "phandle");
            if let Some(phandle) = phandle.or_else(|| tree.number(id, "linux,phandle")) {
                push(&mut tree.phandles, (phandle, id))?;
            }
        }
        tree.phandles.sort_unstable();
        Ok(tree)
    }

    /// Finds the nodes, and looks at every token once.
    fn read(&mut self) -> Result<(), TreeError> {
        let mut at = 0;
        let mut open: Option<NodeId> = None;
        let mut in_properties = false;
        loop {
            let Some((token, next)) = self.token(at) else {
                return Err(broken(Defect::Token, at as u64).into());
            };
            match token {
                Token::Begin(name) => {
                    // One root.
                    if open.is_none() && !self.nodes.is_empty() {
                        return Err(broken(Defect::Nesting, at as u64).into());
                    }
                    let id = NodeId(self.nodes.len());
                    let node = Node {
                        name,
                        parent: open,
                        properties: next,
                    };
                    push(&mut self.nodes, node)?;
                    open = Some(id);
                    in_properties = true;
                }
                Token::End => {
                    let Some(node) = open.and_then(|id| self.nodes.get(id.0)) else {
                        return Err(broken(Defect::Nesting, at as u64).into());
                    };
                    open = node.parent;
                    in_properties = false;
                }
                Token::Property(..) if in_properties => {}
                Token::Nop => {}
                Token::Finish if open.is_none() && !self.nodes.is_empty() => return Ok(()),
                Token::Property(..) | Token::Finish => {
                    return Err(broken(Defect::Nesting, at as u64).into());
                }
            }
            at = next;
        }
    }

    /// The token at an offset, and where the next one is.
    fn token(&self, at: usize) -> Option<(Token<'a>, usize)> {
        let rest = self.structure.get(at..)?;
        let (token, rest) = U32::read_from_prefix(rest).ok()?;
        let behind = at + spec::TOKEN_BYTES;
        Some(match token.get() {
            spec::BEGIN_NODE => {
                let end = rest.iter().position(|&byte| byte == 0)?;
                let name = rest.get(..end)?;
                (Token::Begin(name), aligned(behind + end + 1))
            }
            spec::END_NODE => (Token::End, behind),
            spec::PROPERTY => {
                let (raw, rest) = spec::Property::read_from_prefix(rest).ok()?;
                let length = raw.length.get() as usize;
                let value = rest.get(..length)?;
                let names = self.strings.get(raw.name_offset.get() as usize..)?;
                let end = names.iter().position(|&byte| byte == 0)?;
                let name = names.get(..end)?;
                let next = aligned(behind + size_of::<spec::Property>() + length);
                (Token::Property(name, value), next)
            }
            spec::NOP => (Token::Nop, behind),
            spec::END => (Token::Finish, behind),
            _ => return None,
        })
    }

    /// All nodes, parents before children.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// A node's name, with its address.
    pub(super) fn name(&self, id: NodeId) -> &'a [u8] {
        self.nodes.get(id.0).map_or(b"", |node| node.name)
    }

    /// A node's name, short enough to keep.
    pub(super) fn short_name(&self, id: NodeId) -> NodeName {
        NodeName::new(self.name(id))
    }

    /// Whose child a node is; `None` for the root.
    pub(super) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.nodes.get(id.0)?.parent
    }

    /// The value of a node's property.
    pub(super) fn property(&self, id: NodeId, wanted: &str) -> Option<&'a [u8]> {
        let mut at = self.nodes.get(id.0)?.properties;
        loop {
            match self.token(at)? {
                (Token::Property(name, value), next) => {
                    if name == wanted.as_bytes() {
                        return Some(value);
                    }
                    at = next;
                }
                (Token::Nop, next) => at = next,
                _ => return None,
            }
        }
    }

    /// A property that is one number.
    pub(super) fn number(&self, id: NodeId, wanted: &str) -> Option<u32> {
        let value = self.property(id, wanted)?;
        U32::read_from_bytes(value).ok().map(U32::get)
    }

    /// Whether a property that is a list of strings has this one.
    pub(super) fn lists(&self, id: NodeId, property: &str, wanted: &str) -> bool {
        let value = self.property(id, property).unwrap_or_default();
        value
            .split(|&byte| byte == 0)
            .any(|text| text == wanted.as_bytes())
    }

    /// Whether the node, and all above it, are in use.
    pub(super) fn is_enabled(&self, id: NodeId) -> bool {
        let mut at = Some(id);
        while let Some(id) = at {
            let status = self.property(id, "status");
            if status.is_some_and(|status| !matches!(status, b"okay\0" | b"ok\0")) {
                return false;
            }
            at = self.parent(id);
        }
        true
    }

    /// Who takes a node's interrupts where it does not say that for each: the first node with interrupts of its own on the way
    /// up, which goes by `interrupt-parent` where there is one (Devicetree Specification 0.4, 2.4).
    pub(super) fn interrupt_parent(&self, id: NodeId) -> Option<NodeId> {
        let mut at = id;
        // No more than there are: nodes may name each other.
        for _ in 0..self.nodes.len() {
            at = match self.number(at, "interrupt-parent") {
                Some(phandle) => self.by_phandle(phandle)?,
                None => self.parent(at)?,
            };
            if self.property(at, "#interrupt-cells").is_some() {
                return Some(at);
            }
        }
        None
    }

    /// Whether what a device sends to memory is coherent, as it or the nearest node above it says; not, where none does
    /// (Linux `of_dma_is_coherent`, on arm64).
    pub(super) fn is_coherent(&self, id: NodeId) -> bool {
        let mut at = Some(id);
        while let Some(id) = at {
            let says = |word| self.property(id, word).is_some();
            match (says("dma-coherent"), says("dma-noncoherent")) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => at = self.parent(id),
            }
        }
        false
    }

    /// The node that a phandle names. Of several the first.
    pub(super) fn by_phandle(&self, phandle: u32) -> Option<NodeId> {
        let at = self.phandles.partition_point(|entry| entry.0 < phandle);
        let (found, id) = *self.phandles.get(at)?;
        (found == phandle).then_some(id)
    }

    /// The first address of a node and its size, as the CPU sees it.
    pub(super) fn registers(&self, id: NodeId) -> Option<(u64, u64)> {
        let reg = self.property(id, "reg")?;
        let bus = self.parent(id)?;
        let mut cells = Cells::new(reg);
        let mut address = cells.take(self.address_cells(bus))?;
        let size = cells.take(self.size_cells(bus))?;
        let mut at = bus;
        // Up through the buses: each gives its addresses to its parent, unchanged or by ranges.
        while let Some(parent) = self.parent(at) {
            let ranges = self.property(at, "ranges")?;
            if !ranges.is_empty() {
                address = self.translate(at, parent, ranges, address, size)?;
            }
            at = parent;
        }
        Some((address, size))
    }

    fn translate(
        &self,
        bus: NodeId,
        parent: NodeId,
        ranges: &[u8],
        address: u64,
        size: u64,
    ) -> Option<u64> {
        let mut cells = Cells::new(ranges);
        while !cells.is_empty() {
            let child = cells.take(self.address_cells(bus))?;
            let up = cells.take(self.address_cells(parent))?;
            let length = cells.take(self.size_cells(bus))?;
            let place = address.checked_sub(child);
            let room = place.and_then(|place| length.checked_sub(place));
            if let (Some(place), Some(room)) = (place, room)
                && room >= size
            {
                return up.checked_add(place);
            }
        }
        None
    }

    fn address_cells(&self, bus: NodeId) -> u32 {
        let cells = self.number(bus, "#address-cells");
        cells.unwrap_or(spec::ADDRESS_CELLS)
    }

    fn size_cells(&self, bus: NodeId) -> u32 {
        self.number(bus, "#size-cells").unwrap_or(spec::SIZE_CELLS)
    }
}

fn aligned(offset: usize) -> usize {
    offset.next_multiple_of(spec::TOKEN_BYTES)
}

/// A defect of the tree itself.
fn broken(what: Defect, found: u64) -> Finding {
    Finding {
        node: NodeName::EMPTY,
        what,
        found,
    }
}

impl From<OutOfMemory> for TreeError {
    fn from(error: OutOfMemory) -> Self {
        Self::OutOfMemory(error)
    }
}

/// Numbers of a property, one cell after the other.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a>(&'a [u8]);

impl<'a> Cells<'a> {
    pub(super) const fn new(value: &'a [u8]) -> Self {
        Self(value)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next cell.
    pub(super) fn next(&mut self) -> Option<u32> {
        let (cell, rest) = U32::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(cell.get())
    }

    /// The next number, of that many cells, 2 at most that are not 0.
    pub(super) fn take(&mut self, cells: u32) -> Option<u64> {
        // More cells than a value can have: nothing is left long before the count is.
        let mut number = 0u64;
        for _ in 0..cells {
            if number > u64::from(u32::MAX) {
                return None;
            }
            number = number << 32 | u64::from(self.next()?);
        }
        Some(number)
    }
}
