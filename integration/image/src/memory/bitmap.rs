//! A bitmap of 4 KiB frames with a search for aligned runs; knows nothing of addresses.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// Bits per word of the map.
const WORD: usize = u64::BITS as usize;

/// One bit per frame, set while the frame is in use or does not exist.
///
/// # Invariants
/// `used` counts the set bits among the first `len`; bits from `len` on are set.
pub(super) struct Bitmap {
    words: Vec<u64>,
    len: usize,
    used: usize,
    /// Where the next search for a single frame begins.
    hint: usize,
}

impl Bitmap {
    /// A map of `len` frames, all in use.
    pub(super) fn all_used(len: usize) -> Result<Self, TryReserveError> {
        let mut words = Vec::new();
        let count = len.div_ceil(WORD);
        words.try_reserve_exact(count)?;
        words.resize(count, u64::MAX);
        // INVARIANT: every bit is set and counted.
        Ok(Self {
            words,
            len,
            used: len,
            hint: 0,
        })
    }

    /// Number of frames not in use.
    pub(super) fn unused(&self) -> usize {
        self.len - self.used
    }

    fn word_and_mask(&self, index: usize) -> Option<(usize, u64)> {
        (index < self.len).then_some((index / WORD, 1 << (index % WORD)))
    }

    fn is_used(&self, index: usize) -> bool {
        match self.word_and_mask(index) {
            Some((word, mask)) => self.words.get(word).is_none_or(|bits| bits & mask != 0),
            None => true,
        }
    }

    fn set(&mut self, index: usize, used: bool) {
        let Some((word, mask)) = self.word_and_mask(index) else {
            return;
        };
        let Some(bits) = self.words.get_mut(word) else {
            return;
        };
        let was = *bits & mask != 0;
        if used && !was {
            *bits |= mask;
            self.used += 1;
        } else if !used && was {
            *bits &= !mask;
            self.used -= 1;
        }
    }

    /// Marks `count` frames from `start` as unused, if every one of them is in use; otherwise
    /// changes nothing and returns the first frame that is not, or the first one past the end.
    pub(super) fn release(&mut self, start: usize, count: usize) -> Result<(), usize> {
        let end = start
            .checked_add(count)
            .filter(|end| *end <= self.len)
            .ok_or(self.len)?;
        if let Some(unused) = (start..end).find(|index| !self.is_used(*index)) {
            return Err(unused);
        }
        for index in start..end {
            self.set(index, false);
        }
        self.hint = self.hint.min(start);
        Ok(())
    }

    /// Finds and takes `count` unused frames in a row whose first index is `offset` modulo `align`.
    pub(super) fn take(&mut self, count: usize, align: usize, offset: usize) -> Option<usize> {
        if count == 0 || align == 0 {
            return None;
        }
        let single = count == 1 && align == 1;
        let mut start = if single { self.hint } else { offset % align };
        'search: loop {
            start = self.skip_full_words(start, offset, align);
            let end = start.checked_add(count)?;
            if end > self.len {
                return None;
            }
            // From the back: a used frame rules out every start up to and including it.
            for index in (start..end).rev() {
                if self.is_used(index) {
                    start = next_aligned(index + 1, align, offset)?;
                    continue 'search;
                }
            }
            for index in start..end {
                self.set(index, true);
            }
            if single {
                self.hint = end;
            }
            return Some(start);
        }
    }

    /// The first possible start at or after `start` that does not lie in a word without unused
    /// frames.
    fn skip_full_words(&self, mut start: usize, offset: usize, align: usize) -> usize {
        while self.words.get(start / WORD) == Some(&u64::MAX) {
            let next_word = (start / WORD + 1) * WORD;
            match next_aligned(next_word, align, offset) {
                Some(next) => start = next,
                None => return self.len,
            }
        }
        start
    }
}

/// The smallest index at or after `index` that is `offset` modulo `align`.
fn next_aligned(index: usize, align: usize, offset: usize) -> Option<usize> {
    let target = offset % align;
    let here = index % align;
    index.checked_add((target + align - here) % align)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_map(len: usize) -> Bitmap {
        let mut map = Bitmap::all_used(len).unwrap();
        map.release(0, len).unwrap();
        map
    }

    #[test]
    fn singles_fill_the_map_and_come_back() {
        let mut map = free_map(130);
        let mut taken: Vec<usize> = (0..130).map(|_| map.take(1, 1, 0).unwrap()).collect();
        assert_eq!(map.take(1, 1, 0), None);
        taken.sort_unstable();
        assert_eq!(taken, (0..130).collect::<Vec<_>>());
        map.release(64, 1).unwrap();
        assert_eq!(map.take(1, 1, 0), Some(64));
    }

    #[test]
    fn runs_are_aligned_relative_to_the_offset() {
        let mut map = free_map(4096);
        assert_eq!(map.take(1, 1, 0), Some(0));
        // Frame index 256 stands for a 2 MiB boundary when the first frame lies 1 MiB below one.
        assert_eq!(map.take(512, 512, 256), Some(256));
        assert_eq!(map.take(512, 512, 256), Some(768));
        assert_eq!(map.unused(), 4096 - 1 - 1024);
    }

    #[test]
    fn a_run_does_not_cross_used_frames() {
        let mut map = free_map(256);
        let blocker = 100;
        for index in 0..256 {
            map.set(index, index == blocker);
        }
        assert_eq!(map.take(120, 1, 0), Some(101));
        assert_eq!(map.take(120, 1, 0), None);
        assert_eq!(map.take(100, 1, 0), Some(0));
    }

    #[test]
    fn a_double_release_is_refused_and_changes_nothing() {
        let mut map = free_map(64);
        assert_eq!(map.take(4, 4, 0), Some(0));
        assert_eq!(map.release(2, 4), Err(4));
        assert_eq!(map.unused(), 60);
        map.release(0, 4).unwrap();
        assert_eq!(map.release(0, 1), Err(0));
        assert_eq!(map.release(63, 2), Err(64));
    }
}
