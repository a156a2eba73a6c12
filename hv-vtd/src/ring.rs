//! Index arithmetic of a ring that one side fills and the other empties.

/// A place in a ring of `N` entries.
///
/// # Invariants
/// Below `N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingIndex<const N: usize>(usize);

impl<const N: usize> RingIndex<N> {
    /// The first place.
    pub(crate) const START: Self = {
        assert!(
            N >= 2,
            "a ring that can be neither full nor empty is no ring"
        );
        // INVARIANT: N is not zero.
        Self(0)
    };

    /// The place with this number, or `None` past the end.
    pub(crate) const fn new(place: usize) -> Option<Self> {
        if place < N {
            // INVARIANT: just checked.
            Some(Self(place))
        } else {
            None
        }
    }

    /// The number.
    pub(crate) const fn get(self) -> usize {
        self.0
    }

    /// The next place; the first after the last.
    #[must_use]
    pub(crate) const fn next(self) -> Self {
        let next = self.0 + 1;
        // INVARIANT: below N, or wrapped to zero.
        if next < N { Self(next) } else { Self(0) }
    }

    /// How many entries can be filled when this is the next to fill and `head` the next to empty.
    ///
    /// One place always stays free, so that full and empty differ.
    pub(crate) const fn free(self, head: Self) -> usize {
        let filled = if self.0 >= head.0 {
            self.0 - head.0
        } else {
            N - head.0 + self.0
        };
        N - 1 - filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Drives a ring against a queue that knows no wrap, through every state of both ends.
    fn agrees_with_a_queue<const N: usize>() {
        for start in 0..N {
            for fill in 0..N {
                let mut head = RingIndex::<N>::new(start).unwrap();
                let mut tail = head;
                let mut slots = [None; N];
                let mut model = VecDeque::new();
                assert_eq!(tail.free(head), N - 1);
                for value in 0..3 * N {
                    while model.len() < fill && tail.free(head) > 0 {
                        slots[tail.get()] = Some((value, model.len()));
                        model.push_back((value, model.len()));
                        tail = tail.next();
                    }
                    assert_eq!(tail.free(head), N - 1 - model.len());
                    assert!(tail.get() < N && head.get() < N);
                    if let Some(expected) = model.pop_front() {
                        assert_eq!(slots[head.get()].take(), Some(expected));
                        head = head.next();
                    }
                }
            }
        }
    }

    /// Shows: bc14.
    #[test]
    fn queue_arithmetic_holds_at_every_wrap() {
        agrees_with_a_queue::<2>();
        agrees_with_a_queue::<3>();
        agrees_with_a_queue::<4>();
        agrees_with_a_queue::<8>();
        agrees_with_a_queue::<31>();
    }

    /// Shows: bc14.
    #[test]
    fn a_full_ring_has_no_room_and_is_not_empty() {
        let head = RingIndex::<256>::new(100).unwrap();
        let mut tail = head;
        for filled in 0..255 {
            assert_eq!(tail.free(head), 255 - filled);
            tail = tail.next();
        }
        assert_eq!(tail.free(head), 0);
        assert_ne!(tail, head);
        assert_eq!(tail.next(), head);
        assert_eq!(RingIndex::<256>::new(256), None);
        assert_eq!(RingIndex::<256>::new(255).unwrap().next(), RingIndex::START);
    }
}
