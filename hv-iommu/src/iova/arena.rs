//! Where the tree's nodes live: blocks that never move, and room that is made before it is needed.

use alloc::vec::Vec;

use hv_core::OutOfMemory;

/// Nodes of the first block; each block has twice as many as the one before.
const FIRST_BLOCK: usize = 16;
/// Blocks, so that every [`Link`] has its place: 2^32 - 16 nodes.
const BLOCKS: usize = 28;

/// Which node, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link(u32);

impl Link {
    pub(super) const NIL: Self = Self(u32::MAX);

    pub(super) fn is_nil(self) -> bool {
        self == Self::NIL
    }

    /// Block, and place in it.
    fn place(self) -> (usize, usize) {
        let number = self.0 as usize;
        let block = (number / FIRST_BLOCK + 1).ilog2() as usize;
        (block, number - FIRST_BLOCK * ((1 << block) - 1))
    }
}

/// Nodes of one tree.
///
/// Room is made by [`reserve`](Self::reserve) and by nothing else, so that what must not fail does not allocate. Blocks
/// are not copied to grow, so that no call pays for all nodes.
pub(super) struct Arena<N> {
    blocks: [Vec<N>; BLOCKS],
    /// Nodes that a block can hold by now.
    capacity: usize,
    /// Nodes that were in use at some time.
    touched: usize,
    /// Nodes in use.
    live: usize,
    /// The first of the nodes that are in use no more.
    unused: Link,
    #[cfg(test)]
    pub(super) looks: core::cell::Cell<u64>,
}

/// What a node has to offer to the arena.
pub(super) trait Linked: Sized + 'static {
    /// What is seen where there is no node.
    const ABSENT: &'static Self;

    /// The next unused node, in a node that is not in use.
    fn next(&self) -> Link;

    /// A node that is not in use, in front of another.
    fn unused(next: Link) -> Self;
}

impl<N: Linked> Arena<N> {
    pub(super) const fn new() -> Self {
        Self {
            blocks: [const { Vec::new() }; BLOCKS],
            capacity: 0,
            touched: 0,
            live: 0,
            unused: Link::NIL,
            #[cfg(test)]
            looks: core::cell::Cell::new(0),
        }
    }

    /// How many nodes are in use.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// How many there is memory for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `capacity` nodes in all.
    pub(super) fn reserve(&mut self, capacity: usize) -> Result<(), OutOfMemory> {
        while self.capacity < capacity {
            let number = (self.capacity / FIRST_BLOCK + 1).ilog2() as usize;
            let nodes = FIRST_BLOCK << number;
            let bytes = nodes.saturating_mul(size_of::<N>());
            let block = self.blocks.get_mut(number).ok_or(OutOfMemory { bytes })?;
            block
                .try_reserve_exact(nodes)
                .map_err(|_| OutOfMemory { bytes })?;
            self.capacity += nodes;
        }
        Ok(())
    }

    /// Puts a node in, if there is room.
    pub(super) fn put(&mut self, node: N) -> Option<Link> {
        let link = if self.unused.is_nil() {
            if self.touched >= self.capacity {
                return None;
            }
            let link = Link(u32::try_from(self.touched).ok()?);
            // Not beyond what was reserved, so nothing is allocated.
            self.blocks.get_mut(link.place().0)?.push(node);
            self.touched += 1;
            link
        } else {
            let link = self.unused;
            let place = self.edit(link)?;
            let next = place.next();
            *place = node;
            self.unused = next;
            link
        };
        self.live += 1;
        Some(link)
    }

    /// Makes a node's place free for another.
    pub(super) fn drop_node(&mut self, link: Link) {
        let next = self.unused;
        if let Some(node) = self.edit(link) {
            *node = N::unused(next);
            self.unused = link;
            self.live -= 1;
        }
    }

    /// The node, or [`Linked::ABSENT`].
    pub(super) fn look(&self, link: Link) -> &N {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        if link.is_nil() {
            return N::ABSENT;
        }
        let (block, at) = link.place();
        let block = self.blocks.get(block);
        block
            .and_then(|block| block.get(at))
            .unwrap_or(const { N::ABSENT })
    }

    /// The node, to be changed.
    pub(super) fn edit(&mut self, link: Link) -> Option<&mut N> {
        if link.is_nil() {
            return None;
        }
        let (block, at) = link.place();
        self.blocks.get_mut(block)?.get_mut(at)
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    struct Number(Link);

    impl Linked for Number {
        const ABSENT: &'static Self = &Self(Link::NIL);
        fn next(&self) -> Link {
            self.0
        }
        fn unused(next: Link) -> Self {
            Self(next)
        }
    }

    #[test]
    fn places_are_dense_and_nothing_is_put_without_room() {
        let mut arena: Arena<Number> = Arena::new();
        assert!(arena.put(Number(Link::NIL)).is_none());
        arena.reserve(100).unwrap();
        assert_eq!(arena.capacity(), 16 + 32 + 64);
        for number in 0..112 {
            let link = arena.put(Number(Link(number))).unwrap();
            assert_eq!(link, Link(number));
            assert_eq!(arena.look(link).0, Link(number));
        }
        assert!(arena.put(Number(Link::NIL)).is_none());
        arena.drop_node(Link(3));
        arena.drop_node(Link(70));
        assert_eq!(arena.live(), 110);
        assert_eq!(arena.put(Number(Link::NIL)), Some(Link(70)));
        assert_eq!(arena.put(Number(Link::NIL)), Some(Link(3)));
        assert!(arena.put(Number(Link::NIL)).is_none());
    }

    #[test]
    fn the_last_link_has_a_place() {
        let last = Link(u32::MAX - 16);
        assert_eq!(last.place().0, BLOCKS - 1);
        assert!(arena_capacity() >= u64::from(u32::MAX - 16));
    }

    fn arena_capacity() -> u64 {
        FIRST_BLOCK as u64 * ((1 << BLOCKS) - 1)
    }
}
