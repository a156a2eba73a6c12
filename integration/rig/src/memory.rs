//! Memory as three parties see it: the CPU, walkers that snoop its caches, walkers that do not.
//!
//! A store of the CPU may wait in a store buffer (`weak`), then lies in a cache, then in memory. A
//! walker that snoops reads the cache; one that does not reads memory, where a line arrives when it was
//! written back *and* a fence followed, or when the cache evicts it, which it may do at any time. Behind a
//! write buffer (VT-d's RWBF) even that is seen late.

mod plain;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use crate::rng::Rng;

/// Words of a frame.
pub(crate) const WORDS: usize = 512;
/// Bytes of a frame.
pub(crate) const FRAME_BYTES: u64 = 4096;
/// Where the rig's memory begins: above the interrupt window, whatever is mapped.
pub(crate) const BASE: u64 = 1 << 32;
/// Where it begins on a machine whose addresses take more than 48 bits: so that what is given out goes on where a sum of
/// address bits 47 and down carries.
pub(crate) const HIGH_BASE: u64 = (1 << 49) - (64 << 20);
/// How many frames there are: 4 GiB.
pub(crate) const FRAMES: u64 = 1 << 20;
/// Frames whose places are kept together.
const GROUP: usize = 1024;
/// Bytes of a cache line.
const LINE: u64 = 64;
/// Words of a cache line.
const LINE_WORDS: usize = 8;

/// Who reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// Whether it snoops the CPU's caches.
    pub(crate) coherent: bool,
    /// The unit whose write buffer is in between, if it has one.
    pub(crate) buffer: Option<usize>,
}

/// One frame. What the CPU wrote, and what has reached memory.
struct Frame {
    cpu: Box<[u64; WORDS]>,
    memory: Option<Box<[u64; WORDS]>>,
}

/// All frames that were touched, and what is still on its way.
pub(crate) struct Memory {
    /// Where it begins.
    base: u64,
    /// Per frame its place in `frames`, plus one; zero for one that was not touched. In groups, made when a frame of
    /// theirs is touched.
    places: Vec<Option<Box<[u32; GROUP]>>>,
    frames: Vec<Frame>,
    /// Places in `frames` that are free.
    spare: Vec<u32>,
    /// Whether some walker does not snoop: only then is `Frame::memory` kept.
    split: bool,
    /// Whether stores may wait in a store buffer until a fence.
    weak: bool,
    /// Words in the store buffer, with what others still see.
    buffered: BTreeMap<u64, u64>,
    /// Lines that memory does not have yet.
    dirty: BTreeSet<u64>,
    /// Lines that were written back, as they were then; they arrive at the next fence.
    travelling: BTreeMap<u64, [u64; LINE_WORDS]>,
    /// Lines of plain data that the CPU wrote and that lie in its cache: what memory has of them.
    behind: BTreeMap<u64, [u8; LINE as usize]>,
    /// Per unit with a write buffer: what is in it.
    write_buffers: Vec<Option<WriteBuffer>>,
    /// Which units with a write buffer snoop.
    snooping: Vec<bool>,
    /// What a fresh frame holds in memory: a word that looks like a valid entry and leads astray.
    poison: u64,
}

/// A buffer between memory and a unit: changes come out of it in the order in which they went in.
#[derive(Default)]
struct WriteBuffer {
    /// The words that changed, in order.
    order: VecDeque<u64>,
    /// What the unit still sees of them, first change first.
    seen: BTreeMap<u64, VecDeque<u64>>,
}

impl WriteBuffer {
    fn put(&mut self, at: u64, seen: u64) {
        self.order.push_back(at);
        self.seen.entry(at).or_default().push_back(seen);
    }

    fn get(&self, at: u64) -> Option<u64> {
        self.seen.get(&at)?.front().copied()
    }

    /// The oldest change comes out.
    fn drain_one(&mut self) {
        let Some(at) = self.order.pop_front() else {
            return;
        };
        if let Some(seen) = self.seen.get_mut(&at) {
            seen.pop_front();
            if seen.is_empty() {
                self.seen.remove(&at);
            }
        }
    }

    fn forget(&mut self, bytes: &Range<u64>) {
        self.order.retain(|at| !bytes.contains(at));
        self.seen.retain(|at, _| !bytes.contains(at));
    }
}

/// The frame number of an address.
pub(crate) const fn frame_of(at: u64) -> u64 {
    at / FRAME_BYTES
}

const fn word_of(at: u64) -> usize {
    (at % FRAME_BYTES / 8) as usize
}

impl Memory {
    /// Memory for units that snoop or not, and have a write buffer or not.
    pub(crate) fn new(units: &[(bool, bool)], weak: bool, poison: u64) -> Self {
        Self {
            base: BASE,
            places: Vec::new(),
            frames: Vec::new(),
            spare: Vec::new(),
            split: units.iter().any(|(coherent, _)| !coherent),
            weak,
            buffered: BTreeMap::new(),
            dirty: BTreeSet::new(),
            travelling: BTreeMap::new(),
            behind: BTreeMap::new(),
            write_buffers: units
                .iter()
                .map(|(_, buffer)| buffer.then(WriteBuffer::default))
                .collect(),
            snooping: units.iter().map(|(coherent, _)| *coherent).collect(),
            poison,
        }
    }

    /// The same, beginning there.
    pub(crate) fn starting_at(self, base: u64) -> Self {
        Self { base, ..self }
    }

    /// Whatever is reached outside of the rig's memory is reached at one more frame than there are.
    fn index(&self, frame: u64) -> usize {
        frame.wrapping_sub(frame_of(self.base)).min(FRAMES) as usize
    }

    /// Whether there is memory at this address.
    pub(crate) const fn is_there(&self, at: u64) -> bool {
        at >= self.base && at < self.base + FRAMES * FRAME_BYTES
    }

    fn frame(&mut self, frame: u64) -> &mut Frame {
        let index = self.index(frame);
        let mut place = match self.places.get(index / GROUP) {
            Some(Some(group)) => group[index % GROUP],
            _ => 0,
        };
        if place == 0 {
            place = self.touch(index);
        }
        &mut self.frames[place as usize - 1]
    }

    /// Makes a frame: the CPU sees zeros, memory holds what it likes.
    #[cold]
    fn touch(&mut self, index: usize) -> u32 {
        let poison = self.poison;
        let place = match self.spare.pop() {
            Some(place) => {
                let frame = &mut self.frames[place as usize - 1];
                frame.cpu.fill(0);
                if let Some(memory) = &mut frame.memory {
                    memory.fill(poison);
                }
                place
            }
            None => {
                self.frames.push(Frame {
                    cpu: Box::new([0; WORDS]),
                    memory: self.split.then(|| Box::new([poison; WORDS])),
                });
                self.frames.len() as u32
            }
        };
        let groups = self.places.len().max(index / GROUP + 1);
        self.places.resize(groups, None);
        let group = &mut self.places[index / GROUP];
        group.get_or_insert_with(|| Box::new([0; GROUP]))[index % GROUP] = place;
        place
    }

    /// A frame was given out: the CPU sees zeros, memory holds what it likes.
    pub(crate) fn given(&mut self, frame: u64) {
        self.forget(frame);
    }

    /// A frame came back: nothing of it is on its way any more.
    pub(crate) fn forget(&mut self, frame: u64) {
        let index = self.index(frame);
        let place = match self.places.get_mut(index / GROUP) {
            Some(Some(group)) => std::mem::take(&mut group[index % GROUP]),
            _ => 0,
        };
        if place == 0 {
            return;
        }
        self.spare.push(place);
        let bytes = frame * FRAME_BYTES..(frame + 1) * FRAME_BYTES;
        let waiting: Vec<u64> = self
            .buffered
            .range(bytes.clone())
            .map(|(at, _)| *at)
            .collect();
        for at in waiting {
            self.buffered.remove(&at);
        }
        for buffer in self.write_buffers.iter_mut().flatten() {
            buffer.forget(&bytes);
        }
        let lines: Vec<u64> = self.dirty.range(bytes.clone()).copied().collect();
        for line in lines {
            self.dirty.remove(&line);
        }
        let lines: Vec<u64> = self
            .travelling
            .range(bytes.clone())
            .map(|(at, _)| *at)
            .collect();
        for line in lines {
            self.travelling.remove(&line);
        }
        self.written_back(bytes.start, FRAME_BYTES);
    }

    /// What the CPU reads.
    pub(crate) fn load(&mut self, at: u64) -> u64 {
        self.frame(frame_of(at)).cpu[word_of(at)]
    }

    /// What a walker reads.
    pub(crate) fn walk(&mut self, view: View, at: u64) -> u64 {
        if let Some(buffer) = view.buffer
            && let Some(Some(buffer)) = self.write_buffers.get(buffer)
            && let Some(old) = buffer.get(at)
        {
            return old;
        }
        if view.coherent {
            self.cached(at)
        } else {
            self.in_memory(at)
        }
    }

    /// What the caches hold: what a snooping reader sees without a write buffer in between.
    fn cached(&mut self, at: u64) -> u64 {
        if let Some(old) = self.buffered.get(&at) {
            return *old;
        }
        self.load(at)
    }

    fn in_memory(&mut self, at: u64) -> u64 {
        let frame = self.frame(frame_of(at));
        match &frame.memory {
            Some(memory) => memory[word_of(at)],
            None => frame.cpu[word_of(at)],
        }
    }

    /// A store of the CPU to a word that walkers may read. Gives the word before.
    pub(crate) fn store(&mut self, at: u64, word: u64, rng: &mut Rng) -> u64 {
        let frame = self.frame(frame_of(at));
        let old = std::mem::replace(&mut frame.cpu[word_of(at)], word);
        if old == word {
            // Nobody can tell; what an earlier store left on its way stays there.
            return old;
        }
        if self.weak && !rng.one_in(4) {
            self.buffered.entry(at).or_insert(old);
        } else {
            let seen = self.buffered.remove(&at).unwrap_or(old);
            self.reached_cache(at, seen, rng);
        }
        old
    }

    /// A word's newest value is in the cache now; before, others saw `seen`.
    fn reached_cache(&mut self, at: u64, seen: u64, rng: &mut Rng) {
        if self.split {
            self.dirty.insert(at / LINE * LINE);
        }
        self.lag(at, seen, true, rng);
    }

    /// Units with a write buffer go on seeing `seen` for a while.
    fn lag(&mut self, at: u64, seen: u64, by_snoop: bool, rng: &mut Rng) {
        for (unit, buffer) in self.write_buffers.iter_mut().enumerate() {
            if let Some(buffer) = buffer
                && self.snooping.get(unit) == Some(&by_snoop)
                && (!buffer.order.is_empty() || !rng.one_in(4))
            {
                buffer.put(at, seen);
            }
        }
    }

    /// A walker that snoops replaces a word of a table that it read by another one, as one step. Whether the word was
    /// still that. A store of the CPU that is on its way comes first: a locked one could not be overtaken.
    pub(crate) fn note(&mut self, at: u64, read: u64, noted: u64, rng: &mut Rng) -> bool {
        self.drain(at, rng);
        let split = self.split;
        let word = &mut self.frame(frame_of(at)).cpu[word_of(at)];
        if *word != read {
            return false;
        }
        *word = noted;
        if split {
            self.dirty.insert(at / LINE * LINE);
        }
        true
    }

    /// Starts the write-back of every line that holds one of the bytes.
    pub(crate) fn write_back(&mut self, from: u64, bytes: u64, rng: &mut Rng) {
        self.written_back(from, bytes);
        let mut line = from / LINE * LINE;
        while line < from.saturating_add(bytes) {
            // A store of this CPU to the line comes before the line goes.
            let waiting: Vec<u64> = self
                .buffered
                .range(line..line + LINE)
                .map(|(at, _)| *at)
                .collect();
            for at in waiting {
                self.drain(at, rng);
            }
            if self.dirty.remove(&line) {
                let words = self.line(line);
                self.travelling.insert(line, words);
            } else if self.split && !self.travelling.contains_key(&line) {
                // Clean as far as stores go: the zeros that the frame was given with.
                let words = self.line(line);
                self.travelling.insert(line, words);
            }
            line += LINE;
        }
    }

    fn line(&mut self, line: u64) -> [u64; LINE_WORDS] {
        let mut words = [0; LINE_WORDS];
        for (word, at) in words.iter_mut().zip((line..).step_by(8)) {
            *word = self.cached(at);
        }
        words
    }

    fn arrive(&mut self, line: u64, words: [u64; LINE_WORDS], rng: &mut Rng) {
        for (word, at) in words.into_iter().zip((line..).step_by(8)) {
            let frame = self.frame(frame_of(at));
            let Some(memory) = &mut frame.memory else {
                return;
            };
            let old = std::mem::replace(&mut memory[word_of(at)], word);
            if old != word {
                self.lag(at, old, false, rng);
            }
        }
    }

    fn drain(&mut self, at: u64, rng: &mut Rng) {
        if let Some(seen) = self.buffered.remove(&at) {
            self.reached_cache(at, seen, rng);
        }
    }

    /// All stores of the CPU reach its cache: what a store to a register waits for.
    pub(crate) fn drain_stores(&mut self, rng: &mut Rng) {
        while let Some((&at, _)) = self.buffered.first_key_value() {
            self.drain(at, rng);
        }
    }

    /// The fence: stores are in the cache, and what was written back is in memory.
    pub(crate) fn fence(&mut self, rng: &mut Rng) {
        self.drain_stores(rng);
        while let Some((line, words)) = self.travelling.pop_first() {
            self.arrive(line, words, rng);
        }
    }

    /// Something becomes visible early, by itself.
    pub(crate) fn leak_one(&mut self, rng: &mut Rng) {
        let from = self.base + rng.below(FRAMES) * FRAME_BYTES + rng.below(FRAME_BYTES);
        match rng.below(4) {
            0 => {
                let next = self.buffered.range(from..).next();
                let next = next
                    .or_else(|| self.buffered.iter().next())
                    .map(|(at, _)| *at);
                if let Some(at) = next {
                    self.drain(at, rng);
                }
            }
            1 => {
                let next = self.dirty.range(from..).next();
                let next = next.or_else(|| self.dirty.iter().next()).copied();
                if let Some(line) = next {
                    self.dirty.remove(&line);
                    self.travelling.remove(&line);
                    let words = self.line(line);
                    self.arrive(line, words, rng);
                }
            }
            2 => {
                if let Some((line, words)) = self.travelling.pop_first() {
                    self.arrive(line, words, rng);
                }
            }
            _ => {
                for buffer in self.write_buffers.iter_mut().flatten() {
                    buffer.drain_one();
                }
            }
        }
    }

    /// Empties a unit's write buffer.
    pub(crate) fn flush_write_buffer(&mut self, unit: usize) {
        if let Some(Some(buffer)) = self.write_buffers.get_mut(unit) {
            *buffer = WriteBuffer::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = BASE + 0x1008;
    const POISON: u64 = 0xbad;
    const SNOOPS: View = View {
        coherent: true,
        buffer: None,
    };
    const BLIND: View = View {
        coherent: false,
        buffer: None,
    };

    #[test]
    fn a_walker_that_does_not_snoop_sees_a_line_after_write_back_and_fence() {
        let mut rng = Rng::new(1);
        let mut memory = Memory::new(&[(false, false)], false, POISON);
        memory.store(AT, 7, &mut rng);
        assert_eq!(memory.walk(SNOOPS, AT), 7);
        assert_eq!(memory.walk(BLIND, AT), POISON);
        memory.fence(&mut rng);
        assert_eq!(
            memory.walk(BLIND, AT),
            POISON,
            "a fence alone moves nothing"
        );
        memory.write_back(AT, 8, &mut rng);
        assert_eq!(memory.walk(BLIND, AT), POISON, "it is on its way");
        memory.store(AT, 8, &mut rng);
        memory.fence(&mut rng);
        assert_eq!(
            memory.walk(BLIND, AT),
            7,
            "as it was when it was written back"
        );
        assert_eq!(memory.walk(BLIND, AT + 8), 0, "lines go whole");
    }

    #[test]
    fn an_eviction_makes_a_line_visible_early() {
        let mut rng = Rng::new(3);
        let mut memory = Memory::new(&[(false, false)], false, POISON);
        memory.store(AT, 7, &mut rng);
        for _ in 0..100 {
            memory.leak_one(&mut rng);
        }
        assert_eq!(memory.walk(BLIND, AT), 7);
    }

    #[test]
    fn weak_stores_wait_for_a_fence_and_pass_each_other() {
        let (mut passed, mut late) = (false, false);
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut memory = Memory::new(&[(true, false)], true, POISON);
            memory.store(AT, 1, &mut rng);
            memory.store(AT + 8, 2, &mut rng);
            let seen = (memory.walk(SNOOPS, AT), memory.walk(SNOOPS, AT + 8));
            passed |= seen == (0, 2);
            late |= seen == (0, 0);
            assert_eq!(memory.load(AT), 1, "the CPU sees its own store");
            memory.fence(&mut rng);
            assert_eq!(memory.walk(SNOOPS, AT), 1);
        }
        assert!(passed && late);
    }

    #[test]
    fn a_write_buffer_holds_stores_until_it_is_flushed() {
        let mut rng = Rng::new(5);
        let mut memory = Memory::new(&[(true, true)], false, POISON);
        let unit = View {
            coherent: true,
            buffer: Some(0),
        };
        let held = (0..20).filter(|word| {
            memory.store(AT + word * 8, 7, &mut rng);
            memory.fence(&mut rng);
            memory.walk(unit, AT + word * 8) == 0
        });
        assert!(held.count() > 5);
        memory.flush_write_buffer(0);
        assert_eq!(memory.walk(unit, AT), 7);
    }
}
