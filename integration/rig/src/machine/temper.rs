//! How bad a machine is.

use crate::rng::Rng;

/// How badly the hardware behaves, all of it legal. Each is a choice that a seed makes at each
/// opportunity; what is off never happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Temper {
    /// Stores wait in a store buffer and pass each other until a fence for walkers: what the platform
    /// trait leaves open.
    pub weak_stores: bool,
    /// Stores, write-backs and write buffers become visible earlier than asked for.
    pub early: bool,
    /// Invalidations drop more than was named.
    pub widening: bool,
    /// Caches drop entries by themselves.
    pub evictions: bool,
    /// A walk fetches the neighbours of the entry that it needs, and keeps them.
    pub neighbours: bool,
    /// Caches start full of what firmware's tables said.
    pub leftovers: bool,
    /// Commands and invalidations take their time; else they are done at the next look.
    pub slow: bool,
    /// Devices send requests by themselves, at any moment.
    pub background: bool,
    /// Some devices send although their bus master bit is clear.
    pub rogues: bool,
    /// The clock goes on steadily also for who waits: for drivers on several threads, one of which waits for
    /// another. Else time goes faster for one who does nothing but wait.
    pub steady_clock: bool,
}

impl Temper {
    /// Friendly hardware: what is asked for is done soon, and nothing happens by itself.
    pub const CALM: Self = Self {
        weak_stores: false,
        early: false,
        widening: false,
        evictions: false,
        neighbours: false,
        leftovers: false,
        slow: false,
        background: false,
        rogues: false,
        steady_clock: false,
    };

    /// Everything at once.
    pub const WORST: Self = Self {
        weak_stores: true,
        early: true,
        widening: true,
        evictions: true,
        neighbours: true,
        leftovers: true,
        slow: true,
        background: true,
        rogues: true,
        steady_clock: false,
    };

    /// The same as a number, one bit each in the order of the fields, lowest first.
    pub const fn bits(self) -> u16 {
        let all = [
            self.weak_stores,
            self.early,
            self.widening,
            self.evictions,
            self.neighbours,
            self.leftovers,
            self.slow,
            self.background,
            self.rogues,
            self.steady_clock,
        ];
        let (mut bits, mut index) = (0, 0);
        while index < all.len() {
            bits |= (all[index] as u16) << index;
            index += 1;
        }
        bits
    }

    /// The temper with this number.
    pub const fn from_bits(bits: u16) -> Self {
        Self {
            weak_stores: bits & 1 != 0,
            early: bits >> 1 & 1 != 0,
            widening: bits >> 2 & 1 != 0,
            evictions: bits >> 3 & 1 != 0,
            neighbours: bits >> 4 & 1 != 0,
            leftovers: bits >> 5 & 1 != 0,
            slow: bits >> 6 & 1 != 0,
            background: bits >> 7 & 1 != 0,
            rogues: bits >> 8 & 1 != 0,
            steady_clock: bits >> 9 & 1 != 0,
        }
    }

    /// Some of it. What hides mistakes (evictions, widening) comes rarely.
    pub(super) fn draw(rng: &mut Rng) -> Self {
        Self {
            weak_stores: rng.one_in(2),
            early: rng.one_in(2),
            widening: rng.one_in(4),
            evictions: rng.one_in(4),
            neighbours: rng.one_in(2),
            leftovers: !rng.one_in(4),
            slow: !rng.one_in(4),
            background: true,
            rogues: rng.one_in(2),
            steady_clock: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tempers_are_numbers_and_back() {
        for bits in 0..1 << 10 {
            assert_eq!(Temper::from_bits(bits).bits(), bits);
        }
        assert_eq!(Temper::CALM.bits(), 0);
    }
}
