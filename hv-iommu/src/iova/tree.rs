//! The free ranges of an address space, sorted by address: a balanced tree that knows what fits where.
//!
//! An AVL tree over an [`Arena`]. Each node knows, of all free ranges below it, how many pages the longest one has
//! from its first multiple of each alignment on. So a search never goes into a part of the tree where nothing fits,
//! except along the one path that follows the address limit: whatever is asked for, a call looks at a constant number
//! of nodes per level. There are at most 46 levels (1.44 log2 of 2^32 nodes), which is also how deep calls nest.

use core::cmp::Ordering::{Equal, Greater, Less};

use hv_core::OutOfMemory;

use super::IovaAlign;
use super::arena::{Arena, Link, Linked};

/// Alignments larger than a page.
const ORDERS: usize = IovaAlign::LARGEST.order() as usize;

/// A free range, in 4 KiB pages: from `first` up to `end`, which is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) first: u64,
    pub(super) end: u64,
}

impl Hole {
    pub(super) fn pages(&self) -> u64 {
        self.end.saturating_sub(self.first)
    }

    pub(super) fn covers(&self, other: &Self) -> bool {
        self.first <= other.first && other.end <= self.end
    }

    /// How many pages there are from the first multiple of `1 << order` on. Page 0 does not count: drivers take
    /// address 0 for "no address".
    fn run(&self, order: u8) -> u64 {
        let below = (1 << order) - 1;
        let start = self.first.max(1).saturating_add(below) & !below;
        self.end.saturating_sub(start)
    }

    /// The highest place in it for what is asked.
    fn place(&self, ask: &Ask) -> Option<Self> {
        if self.run(ask.order) < ask.pages {
            return None;
        }
        let first = (self.end - ask.pages) & !((1 << ask.order) - 1);
        let end = first + ask.pages;
        Some(Self { first, end })
    }
}

/// What is looked for: so many pages, from a multiple of `1 << order` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pages: u64,
    order: u8,
}

impl Ask {
    pub(super) fn new(pages: u64, align: IovaAlign) -> Self {
        let order = align.order();
        Self { pages, order }
    }
}

/// How many pages the longest free range of a subtree has, from its first multiple of each alignment on.
#[derive(Clone, Copy)]
struct Runs {
    /// From its first page on.
    any: u64,
    /// For orders from 1 on; what no 32 bits hold is [`u32::MAX`].
    aligned: [u32; ORDERS],
}

impl Runs {
    const NONE: Self = Self {
        any: 0,
        aligned: [0; ORDERS],
    };

    fn of(hole: &Hole) -> Self {
        let mut runs = Self {
            any: hole.run(0),
            ..Self::NONE
        };
        for (order, run) in (1..).zip(&mut runs.aligned) {
            *run = u32::try_from(hole.run(order)).unwrap_or(u32::MAX);
        }
        runs
    }

    fn max(mut self, other: &Self) -> Self {
        self.any = self.any.max(other.any);
        for (run, other) in self.aligned.iter_mut().zip(&other.aligned) {
            *run = (*run).max(*other);
        }
        self
    }

    /// Whether a free range that serves is surely there. Never wrongly; and for less than 2^32 - 1 pages (16 TiB)
    /// always if there is one. For more, only where every alignment would find room.
    fn hold(&self, ask: &Ask) -> bool {
        let aligned = usize::from(ask.order).checked_sub(1);
        match (aligned, u32::try_from(ask.pages)) {
            (Some(order), Ok(pages)) if pages < u32::MAX => {
                self.aligned.get(order).is_some_and(|run| *run >= pages)
            }
            _ => self.any >= ask.pages + ((1 << ask.order) - 1),
        }
    }
}

/// A free range, and what is below it.
///
/// # Invariants
/// Ranges on the left lie lower, ranges on the right higher. The heights of both sides differ by one at most. `height`
/// and `runs` are those of the subtree.
struct Node {
    hole: Hole,
    left: Link,
    right: Link,
    height: u8,
    runs: Runs,
}

impl Node {
    fn new(hole: Hole) -> Self {
        Self {
            hole,
            left: Link::NIL,
            right: Link::NIL,
            height: 1,
            runs: Runs::of(&hole),
        }
    }
}

impl Linked for Node {
    const ABSENT: &'static Self = &Self {
        hole: Hole { first: 0, end: 0 },
        left: Link::NIL,
        right: Link::NIL,
        height: 0,
        runs: Runs::NONE,
    };

    fn next(&self) -> Link {
        self.left
    }

    fn unused(next: Link) -> Self {
        Self {
            left: next,
            ..Self::new(Hole { first: 0, end: 0 })
        }
    }
}

/// Free ranges that neither overlap nor touch.
pub(super) struct Tree {
    nodes: Arena<Node>,
    root: Link,
}

impl Tree {
    pub(super) const fn new() -> Self {
        Self {
            nodes: Arena::new(),
            root: Link::NIL,
        }
    }

    /// How many free ranges there are.
    pub(super) fn count(&self) -> usize {
        self.nodes.live()
    }

    /// For how many there is room without an allocation.
    pub(super) fn capacity(&self) -> usize {
        self.nodes.capacity()
    }

    /// Makes room for so many in all.
    pub(super) fn reserve(&mut self, capacity: usize) -> Result<(), OutOfMemory> {
        self.nodes.reserve(capacity)
    }

    /// The free range that starts at this page or next below it, and the next one above.
    pub(super) fn around(&self, page: u64) -> (Option<Hole>, Option<Hole>) {
        let (mut at, mut below, mut above) = (self.root, None, None);
        while !at.is_nil() {
            let node = self.nodes.look(at);
            if node.hole.first <= page {
                below = Some(node.hole);
                at = node.right;
            } else {
                above = Some(node.hole);
                at = node.left;
            }
        }
        (below, above)
    }

    /// The highest place below the page `limit` for what is asked, and the free range that it is in.
    pub(super) fn highest(&self, ask: &Ask, limit: u64) -> Option<(Hole, Hole)> {
        let mut found = None;
        // A subtree that lies below the limit and holds what is asked, higher than `found`.
        let mut inside = Link::NIL;
        let mut at = self.root;
        // Down along the limit: what comes later is higher.
        while !at.is_nil() {
            let node = self.nodes.look(at);
            if node.hole.first >= limit {
                at = node.left;
                continue;
            }
            let below = Hole {
                end: node.hole.end.min(limit),
                ..node.hole
            };
            if let Some(place) = below.place(ask) {
                (found, inside) = (Some((place, node.hole)), Link::NIL);
            } else if self.nodes.look(node.left).runs.hold(ask) {
                (found, inside) = (None, node.left);
            }
            at = node.right;
        }
        while !inside.is_nil() {
            let node = self.nodes.look(inside);
            if self.nodes.look(node.right).runs.hold(ask) {
                inside = node.right;
                continue;
            }
            match node.hole.place(ask) {
                Some(place) => return Some((place, node.hole)),
                None => inside = node.left,
            }
        }
        found
    }

    /// Puts a free range in that touches no other. Whether there was room.
    pub(super) fn insert(&mut self, hole: Hole) -> bool {
        let Some(new) = self.nodes.put(Node::new(hole)) else {
            return false;
        };
        self.root = self.insert_below(self.root, new, hole.first);
        true
    }

    /// Takes the free range out that starts at this page.
    pub(super) fn remove(&mut self, first: u64) {
        self.root = self.remove_below(self.root, first);
    }

    /// Makes the free range that starts at this page another one, with the same neighbours.
    pub(super) fn change(&mut self, first: u64, hole: Hole) {
        self.change_below(self.root, first, hole);
    }

    fn insert_below(&mut self, at: Link, new: Link, first: u64) -> Link {
        if at.is_nil() {
            return new;
        }
        let node = self.nodes.look(at);
        let (lower, left, right) = (first < node.hole.first, node.left, node.right);
        if lower {
            let left = self.insert_below(left, new, first);
            self.link(at, left, right);
        } else {
            let right = self.insert_below(right, new, first);
            self.link(at, left, right);
        }
        self.balance(at)
    }

    fn remove_below(&mut self, at: Link, first: u64) -> Link {
        if at.is_nil() {
            return at;
        }
        let node = self.nodes.look(at);
        let (order, left, right) = (first.cmp(&node.hole.first), node.left, node.right);
        match order {
            Less => {
                let left = self.remove_below(left, first);
                self.link(at, left, right);
            }
            Greater => {
                let right = self.remove_below(right, first);
                self.link(at, left, right);
            }
            Equal => {
                self.nodes.drop_node(at);
                if left.is_nil() || right.is_nil() {
                    return if left.is_nil() { right } else { left };
                }
                let (next, rest) = self.split_lowest(right);
                self.link(next, left, rest);
                return self.balance(next);
            }
        }
        self.balance(at)
    }

    /// The lowest node, and the tree of the others.
    fn split_lowest(&mut self, at: Link) -> (Link, Link) {
        let node = self.nodes.look(at);
        let (left, right) = (node.left, node.right);
        if left.is_nil() {
            return (at, right);
        }
        let (lowest, left) = self.split_lowest(left);
        self.link(at, left, right);
        (lowest, self.balance(at))
    }

    fn change_below(&mut self, at: Link, first: u64, hole: Hole) {
        if at.is_nil() {
            return;
        }
        let node = self.nodes.look(at);
        let (order, left, right) = (first.cmp(&node.hole.first), node.left, node.right);
        match order {
            Less => self.change_below(left, first, hole),
            Greater => self.change_below(right, first, hole),
            Equal => {
                if let Some(node) = self.nodes.edit(at) {
                    node.hole = hole;
                }
            }
        }
        self.refresh(at);
    }

    fn link(&mut self, at: Link, left: Link, right: Link) {
        if let Some(node) = self.nodes.edit(at) {
            (node.left, node.right) = (left, right);
        }
    }

    /// Says anew what is below a node, after that has changed.
    fn refresh(&mut self, at: Link) {
        let node = self.nodes.look(at);
        let (left, right) = (self.nodes.look(node.left), self.nodes.look(node.right));
        let height = left.height.max(right.height) + 1;
        let runs = Runs::of(&node.hole).max(&left.runs).max(&right.runs);
        if let Some(node) = self.nodes.edit(at) {
            // INVARIANT: both sides are right, and these are theirs and the node's own.
            (node.height, node.runs) = (height, runs);
        }
    }

    /// Restores the invariants of a node, one of whose sides grew or shrank by one level. What stands in its place then.
    fn balance(&mut self, at: Link) -> Link {
        let node = self.nodes.look(at);
        let (left, right) = (node.left, node.right);
        let (low, high) = (self.nodes.look(left), self.nodes.look(right));
        if low.height > high.height + 1 {
            let (outer, inner) = (low.left, low.right);
            if self.nodes.look(inner).height > self.nodes.look(outer).height {
                let left = self.rotate_left(left);
                self.link(at, left, right);
            }
            return self.rotate_right(at);
        }
        if high.height > low.height + 1 {
            let (inner, outer) = (high.left, high.right);
            if self.nodes.look(inner).height > self.nodes.look(outer).height {
                let right = self.rotate_right(right);
                self.link(at, left, right);
            }
            return self.rotate_left(at);
        }
        self.refresh(at);
        at
    }

    /// Puts the left side's node in the place of `at`, which goes to its right.
    fn rotate_right(&mut self, at: Link) -> Link {
        let node = self.nodes.look(at);
        let (up, right) = (node.left, node.right);
        let node = self.nodes.look(up);
        let (left, middle) = (node.left, node.right);
        self.link(at, middle, right);
        self.refresh(at);
        self.link(up, left, at);
        self.refresh(up);
        up
    }

    /// Puts the right side's node in the place of `at`, which goes to its left.
    fn rotate_left(&mut self, at: Link) -> Link {
        let node = self.nodes.look(at);
        let (left, up) = (node.left, node.right);
        let node = self.nodes.look(up);
        let (middle, right) = (node.left, node.right);
        self.link(at, left, middle);
        self.refresh(at);
        self.link(up, at, right);
        self.refresh(up);
        up
    }
}

#[cfg(all(test, not(hv_loom)))]
impl Tree {
    /// All free ranges, lowest first, with every invariant checked on the way.
    pub(super) fn checked(&self) -> Vec<Hole> {
        let mut holes = Vec::new();
        self.check_below(self.root, &mut holes);
        for pair in holes.windows(2) {
            assert!(
                pair[0].end < pair[1].first,
                "{pair:?} overlap or touch, or are out of order"
            );
        }
        assert_eq!(holes.len(), self.count());
        holes
    }

    fn check_below(&self, at: Link, holes: &mut Vec<Hole>) -> (u8, Runs) {
        if at.is_nil() {
            return (0, Runs::NONE);
        }
        let node = self.nodes.look(at);
        let (left, low) = self.check_below(node.left, holes);
        assert!(node.hole.first < node.hole.end);
        holes.push(node.hole);
        let (right, high) = self.check_below(node.right, holes);
        assert!(left.abs_diff(right) <= 1, "balanced");
        assert_eq!(node.height, left.max(right) + 1);
        let runs = Runs::of(&node.hole).max(&low).max(&high);
        assert_eq!(node.runs.any, runs.any);
        assert_eq!(node.runs.aligned, runs.aligned);
        (node.height, runs)
    }

    /// How many nodes `act` looks at.
    pub(super) fn looks(&self) -> u64 {
        self.nodes.looks.get()
    }
}
