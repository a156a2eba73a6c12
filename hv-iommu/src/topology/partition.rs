//! Sorts functions into groups: those that cannot be told apart, or kept apart, are together.
//!
//! The facts are those that Linux's `pci_device_group` and `pci_for_each_dma_alias` go by:
//!
//! * *Told apart*: functions of which two may send with one requester id are together. A bridge with a
//!   conventional bus sends in the name of all that is behind it; phantom functions are further ids of one
//!   function; virtual functions have ids of their own.
//! * *Kept apart*: a function is apart from another if what it sends to that one has to pass the IOMMU. Every
//!   bridge on its way up must send all requests on upwards, and so must each function of a device that has
//!   several. A port that does not is together with all that is behind it.
//!
//! In two places this is stricter than Linux 6.17, as later proposals to Linux are ("Fix incorrect iommu_groups
//! with PCIe ACS"): where one of several functions of a device, or one downstream port of a switch, does not
//! send everything up, it reaches the others, so *all* of them are together, with what is behind them. The
//! functions on a port's bus are one device, whatever their device numbers say: a link has two ends (so ARI
//! needs no fact of its own).
//!
//! Whether the root complex routes between its ports cannot be seen. As everywhere in the field, ports of
//! different devices of the root complex count as apart, and so do virtual functions.

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::{OutOfMemory, PciAddress, Segment};

use super::{FunctionKind, PciFunction};

/// The functions of one group, and how their requests look and go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPlan {
    /// The functions that do DMA, virtual ones too. Empty for ports that are in no device's group.
    pub members: Vec<PciAddress>,
    /// The ports and bridges that are not apart from the members.
    pub ports: Vec<PciAddress>,
    /// Every requester id that the members' requests may carry.
    pub requesters: Vec<PciAddress>,
    /// The ports and bridges on the way to the members.
    pub upstream: Vec<PciAddress>,
}

/// A function that was listed, or a virtual one.
struct Node<'a> {
    at: PciAddress,
    /// The function itself, or the one whose virtual function it is.
    of: &'a PciFunction,
    is_virtual: bool,
}

impl Node<'_> {
    /// What it is a bridge to, if it is one.
    fn is_port(&self) -> bool {
        self.of.kind.buses().is_some() && !self.is_virtual
    }

    fn is_above(&self, other: &Node<'_>) -> bool {
        !self.is_virtual && self.of.is_above(other.at.segment(), other.at.bus())
    }

    /// Whether all that it sends, or forwards from below, goes up. `crowd`: whether its device or switch has
    /// more of its kind.
    fn isolates(&self, crowd: bool) -> bool {
        let access = self.of.access_control;
        match self.of.kind {
            _ if self.is_virtual => true,
            FunctionKind::Conventional | FunctionKind::ConventionalBridge(_) => false,
            FunctionKind::DownstreamPort(_) => access.isolates_switch(),
            FunctionKind::RootPort(_) => access.isolates(),
            // A device of one function has no peers inside.
            FunctionKind::Endpoint | FunctionKind::UpstreamPort(_) => {
                !(crowd || self.of.multi_function) || access.isolates()
            }
        }
    }
}

/// Functions between which nothing but themselves stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Siblings {
    /// The downstream ports of a switch: those on this bus.
    Switch(Segment, u8),
    /// The functions at the end of a link: those on this bus.
    Link(Segment, u8),
    /// The functions of a device.
    Device(Segment, u8, u8),
}

/// Sets of node numbers. The lowest number of a set stands for it.
struct Sets(Vec<usize>);

impl Sets {
    fn find(&self, mut node: usize) -> usize {
        while let Some(&parent) = self.0.get(node).filter(|parent| **parent != node) {
            node = parent;
        }
        node
    }

    fn unite(&mut self, one: usize, other: usize) {
        let (one, other) = (self.find(one), self.find(other));
        if let Some(parent) = self.0.get_mut(one.max(other)) {
            *parent = one.min(other);
        }
    }
}

/// Sorts `functions` into groups, in the order of their lowest addresses. Each function is in exactly one, and
/// so is each requester id that one may use. Functions that are bridges have to be listed too: what is behind a
/// bridge that is not counts as being at the root.
///
/// # Errors
/// [`OutOfMemory`].
pub fn group_plans(functions: &[PciFunction]) -> Result<Vec<GroupPlan>, OutOfMemory> {
    let nodes = nodes(functions)?;
    let mut ports = Vec::new();
    for (number, _) in nodes.iter().enumerate().filter(|(_, node)| node.is_port()) {
        push(&mut ports, number)?;
    }
    let mut sets = Sets(Vec::new());
    for number in 0..nodes.len() {
        push(&mut sets.0, number)?;
    }
    let leaks = unite_siblings(&nodes, &ports, &mut sets)?;
    let has_leak = |number: usize| leaks.get(number).copied().unwrap_or(true);
    for (number, node) in nodes.iter().enumerate() {
        for &port in ports.iter().filter(|port| has_leak(**port)) {
            if nodes.get(port).is_some_and(|port| port.is_above(node)) {
                sets.unite(number, port);
            }
        }
    }
    unite_aliases(&nodes, &mut sets)?;
    plans(&nodes, &ports, &sets)
}

fn nodes(functions: &[PciFunction]) -> Result<Vec<Node<'_>>, OutOfMemory> {
    let mut nodes = Vec::new();
    for of in functions {
        let (at, is_virtual) = (of.address, false);
        push(&mut nodes, Node { at, of, is_virtual })?;
        for at in of.virtual_ids() {
            let is_virtual = true;
            push(&mut nodes, Node { at, of, is_virtual })?;
        }
    }
    nodes.sort_unstable_by_key(|node| node.at);
    Ok(nodes)
}

/// Unites functions of one device or switch of which one does not send everything up. Says of each node
/// whether it, or one of those, does not: then it is together with what is behind it too.
fn unite_siblings(
    nodes: &[Node<'_>],
    ports: &[usize],
    sets: &mut Sets,
) -> Result<Vec<bool>, OutOfMemory> {
    let mut leaks = Vec::new();
    let mut keys = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        push(&mut leaks, false)?;
        if !node.is_virtual {
            push(&mut keys, (siblings_of(node, nodes, ports), number))?;
        }
    }
    keys.sort_unstable();
    for siblings in keys.chunk_by(|one, other| one.0 == other.0) {
        let crowd = siblings.len() > 1;
        let isolates = |(_, number): &(Siblings, usize)| {
            nodes.get(*number).is_some_and(|node| node.isolates(crowd))
        };
        if siblings.iter().all(isolates) {
            continue;
        }
        for &(_, number) in siblings {
            if let Some(leak) = leaks.get_mut(number) {
                *leak = true;
            }
            if let Some(&(_, first)) = siblings.first() {
                sets.unite(first, number);
            }
        }
    }
    Ok(leaks)
}

fn siblings_of(node: &Node<'_>, nodes: &[Node<'_>], ports: &[usize]) -> Siblings {
    let (segment, bus) = (node.at.segment(), node.at.bus());
    if matches!(node.of.kind, FunctionKind::DownstreamPort(_)) {
        return Siblings::Switch(segment, bus);
    }
    let ends_here = |port: &Node<'_>| match port.of.kind {
        FunctionKind::RootPort(buses) | FunctionKind::DownstreamPort(buses) => {
            buses.secondary == bus && port.at.segment() == segment
        }
        _ => false,
    };
    let mut ports = ports.iter().filter_map(|port| nodes.get(*port));
    if ports.any(ends_here) {
        Siblings::Link(segment, bus)
    } else {
        Siblings::Device(segment, bus, node.at.device())
    }
}

/// Unites functions that may send with one id.
fn unite_aliases(nodes: &[Node<'_>], sets: &mut Sets) -> Result<(), OutOfMemory> {
    let mut ids = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        push(&mut ids, (node.at, number))?;
        if node.is_virtual {
            continue;
        }
        for id in node.of.phantom_ids().chain(node.of.alias()) {
            push(&mut ids, (id, number))?;
        }
    }
    ids.sort_unstable();
    for pair in ids.windows(2) {
        if let [(one, first), (other, second)] = pair
            && one == other
        {
            sets.unite(*first, *second);
        }
    }
    Ok(())
}

fn plans(nodes: &[Node<'_>], ports: &[usize], sets: &Sets) -> Result<Vec<GroupPlan>, OutOfMemory> {
    let mut order = Vec::new();
    for number in 0..nodes.len() {
        push(&mut order, (sets.find(number), number))?;
    }
    order.sort_unstable();
    let mut plans = Vec::new();
    for set in order.chunk_by(|one, other| one.0 == other.0) {
        let mut plan = GroupPlan::default();
        for node in set.iter().filter_map(|(_, number)| nodes.get(*number)) {
            let list = if node.is_port() {
                &mut plan.ports
            } else {
                &mut plan.members
            };
            add(list, node.at)?;
            let own = (!node.is_port() || node.of.alias().is_some()).then_some(node.at);
            let of = (!node.is_virtual).then_some(node.of);
            let phantoms = |of: &PciFunction| {
                let known = !Fault::ForgetPhantoms.is_on();
                of.phantom_ids().filter(move |_| known)
            };
            let others = of.into_iter().flat_map(|of| phantoms(of).chain(of.alias()));
            for id in own.into_iter().chain(others) {
                add(&mut plan.requesters, id)?;
            }
            for port in ports.iter().filter_map(|port| nodes.get(*port)) {
                if port.is_above(node) && !node.is_port() {
                    add(&mut plan.upstream, port.at)?;
                }
            }
        }
        push(&mut plans, plan)?;
    }
    Ok(plans)
}

/// Adds what is not in the list.
fn add(list: &mut Vec<PciAddress>, item: PciAddress) -> Result<(), OutOfMemory> {
    if list.contains(&item) {
        return Ok(());
    }
    push(list, item)
}
