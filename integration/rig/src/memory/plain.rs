//! Plain data, not tables: what the CPU writes lies in its cache, where those find it that snoop, and reaches memory when
//! it is written back.

use super::{LINE, Memory, frame_of, word_of};

/// Lines of plain data that the CPU's cache holds at most.
const MOST_BEHIND: usize = 4096;

impl Memory {
    /// The CPU writes plain data, which lies in its cache: who does not snoop sees it once it was written back.
    pub(crate) fn write_by_cpu(&mut self, at: u64, bytes: &[u8]) {
        let mut line = at / LINE * LINE;
        while line < at + bytes.len() as u64 {
            if !self.behind.contains_key(&line) {
                let mut old = [0; LINE as usize];
                self.read_bytes(line, &mut old);
                self.behind.insert(line, old);
            }
            line += LINE;
        }
        while self.behind.len() > MOST_BEHIND {
            // As any cache of finite size does.
            self.behind.pop_first();
        }
        self.write_bytes(at, bytes);
    }

    /// What memory has, by who does not look into the CPU's cache.
    pub(crate) fn read_past_caches(&mut self, at: u64, out: &mut [u8]) {
        self.read_bytes(at, out);
        for (at, byte) in (at..).zip(out) {
            if let Some(line) = self.behind.get(&(at / LINE * LINE)) {
                *byte = line[(at % LINE) as usize];
            }
        }
    }

    /// Somebody writes past the CPU's cache: to memory, which a line of the cache is written over later.
    pub(crate) fn write_past_caches(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            match self.behind.get_mut(&(at / LINE * LINE)) {
                Some(line) => line[(at % LINE) as usize] = *byte,
                None => self.write_bytes(at, &[*byte]),
            }
        }
    }

    /// Lines of plain data reach memory.
    pub(super) fn written_back(&mut self, from: u64, bytes: u64) {
        let lines = from / LINE * LINE..from.saturating_add(bytes);
        while let Some((line, _)) = self.behind.range(lines.clone()).next() {
            let line = *line;
            self.behind.remove(&line);
        }
    }

    /// Plain data, not a table, of who snoops: all see it at once.
    pub(crate) fn write_bytes(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            let frame = self.frame(frame_of(at));
            let shift = at % 8 * 8;
            let word = &mut frame.cpu[word_of(at)];
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
            let word = *word;
            if let Some(memory) = &mut frame.memory {
                memory[word_of(at)] = word;
            }
        }
    }

    /// Reads plain data.
    pub(crate) fn read_bytes(&mut self, at: u64, out: &mut [u8]) {
        for (at, byte) in (at..).zip(out) {
            let word = self.load(at);
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::BASE;
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn plain_data_is_in_memory_once_it_was_written_back() {
        let mut rng = Rng::new(1);
        let mut memory = Memory::new(&[(true, false)], false, 0xbad);
        let at = BASE + 0x1030;
        let see = |memory: &mut Memory| {
            let (mut snooped, mut past) = ([0; 32], [0; 32]);
            memory.read_bytes(at, &mut snooped);
            memory.read_past_caches(at, &mut past);
            (snooped, past)
        };
        memory.write_by_cpu(at, &[7; 32]);
        assert_eq!(see(&mut memory), ([7; 32], [0; 32]));
        memory.write_past_caches(at, &[9; 32]);
        assert_eq!(see(&mut memory), ([7; 32], [9; 32]));
        memory.write_back(at, 1, &mut rng);
        let mut half = [9; 32];
        half[..16].fill(7);
        assert_eq!(see(&mut memory), ([7; 32], half), "the first line alone");
        memory.write_back(at, 32, &mut rng);
        assert_eq!(see(&mut memory), ([7; 32], [7; 32]));
        memory.write_past_caches(at, &[1; 32]);
        assert_eq!(
            see(&mut memory),
            ([1; 32], [1; 32]),
            "no line is in the way"
        );
        memory.write_by_cpu(at, &[2; 4]);
        memory.forget(frame_of(at));
        assert!(memory.behind.is_empty());
    }
}
