//! The one source of chance: everything that the rig decides follows from a seed.

/// A small generator of numbers (SplitMix64), good enough to choose by and easy to replay.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator with this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `end`; zero if that is zero.
    pub const fn below(&mut self, end: u64) -> u64 {
        // The product's upper half is spread evenly over `0..end`, near enough.
        ((self.next() as u128 * end as u128) >> 64) as u64
    }

    /// True once in `times` calls, on average.
    pub const fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these, by index; `None` of none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len() as u64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_all_of_a_range() {
        let (mut one, mut two) = (Rng::new(7), Rng::new(7));
        let mut seen = [false; 10];
        for _ in 0..200 {
            let number = one.below(10);
            assert_eq!(number, two.below(10));
            seen[number as usize] = true;
        }
        assert_eq!(seen, [true; 10]);
        assert_eq!(one.below(0), 0);
    }
}
