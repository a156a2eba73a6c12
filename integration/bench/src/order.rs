//! In which order pages are visited: one after the other, or by a permutation that is the same in every run.

use std::sync::Arc;

/// The seed of every permutation.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The xorshift64 generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator that everything here uses, from its fixed seed.
    pub const fn new() -> Self {
        Self(SEED)
    }

    /// The next number.
    #[inline]
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    #[inline]
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

/// Pages in the order in which an operation visits them.
pub trait Order: Clone + Send + Sync + 'static {
    /// How many there are.
    fn count(&self) -> u64;
    /// Their numbers.
    fn pages(&self) -> impl Iterator<Item = u64>;
}

/// Every page from the first to the last.
#[derive(Clone, Copy, Debug)]
pub struct Sequential {
    /// The first page.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Order for Sequential {
    fn count(&self) -> u64 {
        self.count
    }

    #[inline]
    fn pages(&self) -> impl Iterator<Item = u64> {
        self.first..self.first + self.count
    }
}

/// Every page once, in an order that no prefetcher guesses.
#[derive(Clone, Debug)]
pub struct Shuffled(Arc<[u32]>);

impl Shuffled {
    /// A permutation of the pages below `count`.
    pub fn new(count: u64) -> Self {
        let mut pages: Vec<u32> = (0..count as u32).collect();
        let mut random = Random::new();
        for at in (1..pages.len()).rev() {
            pages.swap(at, random.below(at as u64 + 1) as usize);
        }
        Self(pages.into())
    }

    /// The pages of this order whose number is `part` modulo `parts`: one thread's share of shared tables.
    pub fn share(&self, part: u64, parts: u64) -> Self {
        let mine = |page: &u32| u64::from(*page) % parts == part;
        Self(self.0.iter().copied().filter(mine).collect())
    }

    /// Every `parts`th page of this order from the `part`th on.
    pub fn nth_of(&self, part: u64, parts: u64) -> Self {
        let pages = self.0.iter().copied();
        Self(pages.skip(part as usize).step_by(parts as usize).collect())
    }
}

impl Order for Shuffled {
    fn count(&self) -> u64 {
        self.0.len() as u64
    }

    #[inline]
    fn pages(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|page| u64::from(*page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_names_every_page_once_and_is_the_same_each_time() {
        let order: Vec<u64> = Shuffled::new(1000).pages().collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
        assert!(!order.iter().copied().eq(0..1000));
        assert!(Shuffled::new(1000).pages().eq(order));
    }

    #[test]
    fn shares_are_disjoint_and_complete() {
        let order = Shuffled::new(100);
        let parts = [order.share(0, 3), order.share(1, 3), order.share(2, 3)];
        assert_eq!(parts.iter().map(Order::count).sum::<u64>(), 100);
        assert!(parts[1].pages().all(|page| page % 3 == 1));
    }
}
