//! Watches what the driver stores into the stream table, store by store.
//!
//! The unit reads an entry word by word in any order, so what counts is which configurations an entry ever was: a
//! mixture of two of them that says something else than any is a torn entry.

use std::collections::{BTreeMap, BTreeSet};

use super::Unit;
use super::spec::stage_two::Granule;
use super::spec::stream::{self, ENTRY_BYTES, Stream, Tables, WORDS, Words};
use crate::bus::Bus;
use crate::memory::{FRAME_BYTES, frame_of};
use crate::rule::Rule;

/// How many former configurations of an entry a late walker may still read.
const FORMER: usize = 12;

/// What is known of the tables.
#[derive(Default)]
pub(crate) struct Structures {
    /// Frames of entries: the stream of the first entry in each.
    tables: BTreeMap<u64, u32>,
    /// Frames of first-level descriptors.
    upper: BTreeSet<u64>,
    /// Entries that translate now, by stream.
    live: BTreeMap<u32, Tables>,
    /// What each entry said, oldest first.
    said: BTreeMap<u32, Vec<Stream>>,
    /// A fetch that the unit began by itself.
    pub(crate) ahead: Option<Ahead>,
    /// Second-level tables that were linked after the table was set.
    linked: u64,
}

/// An entry that is being fetched although no request asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    pub(crate) stream: u32,
    pub(crate) at: u64,
    pub(crate) words: [Option<u64>; WORDS],
}

impl Structures {
    /// Whether an entry ever said this. That nothing passes can be said at any time.
    pub(crate) fn said(&self, stream: u32, what: &Stream) -> bool {
        if matches!(what, Stream::Invalid | Stream::Abort) {
            return true;
        }
        let said = self.said.get(&stream);
        said.is_some_and(|said| said.contains(what))
    }

    /// What the entries of these streams say now, if that is a second stage.
    pub(crate) fn bound(&self, streams: &[u32]) -> impl Iterator<Item = Tables> {
        let live = self.live.iter();
        live.filter_map(|(stream, tables)| streams.contains(stream).then_some(*tables))
    }

    /// The pages of the tables that are used now.
    pub(crate) fn granule(&self) -> Option<Granule> {
        let live = self.live.values().next();
        live.map(|tables| tables.shape.granule)
    }

    /// The roots of all tables that devices are bound to now.
    pub(crate) fn roots(&self) -> impl Iterator<Item = u64> {
        self.live.values().map(|tables| tables.root)
    }

    /// Frames of second-level tables that were linked while the unit was on.
    pub(crate) fn count(&self) -> u64 {
        self.linked
    }

    /// A frame of these that is part of the stream table.
    pub(crate) fn table_in(&self, first: u64, pages: u64) -> Option<u64> {
        let frames = first..first + pages;
        let lower = self
            .tables
            .range(frames.clone())
            .next()
            .map(|(frame, _)| *frame);
        lower.or_else(|| self.upper.range(frames).next().copied())
    }

    fn note(&mut self, stream: u32, what: Stream) {
        let said = self.said.entry(stream).or_default();
        if said.contains(&what) {
            return;
        }
        if said.len() == FORMER {
            said.remove(0);
        }
        said.push(what);
    }
}

impl Unit {
    /// The driver stored `new` over `old` at `at`, which lies in memory that the unit may walk.
    pub(super) fn structure_stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64) {
        let frame = frame_of(at);
        if self.structures.upper.contains(&frame) {
            if old != new {
                self.level_one_stored(bus, at, old, new);
            }
        } else if let Some(&first) = self.structures.tables.get(&frame) {
            bus.provoked = true;
            let entry = at / ENTRY_BYTES * ENTRY_BYTES;
            let stream = first + (entry % FRAME_BYTES / ENTRY_BYTES) as u32;
            if old != new {
                self.entry_stored(bus, stream, entry);
                self.fetch_ahead(bus, stream, entry);
            }
        }
    }

    /// The stream table came into force.
    pub(crate) fn table_taken(&mut self, bus: &mut Bus) {
        self.structures = Structures::default();
        let Some(table) = self.table else { return };
        if table.split == 0 {
            self.entries_linked(bus, table.base, 0, 1 << table.log2);
            return;
        }
        let count = 1_u64 << (table.log2 - table.split);
        for index in 0..count {
            let at = table.base + index * 8;
            self.structures.upper.insert(frame_of(at));
            let word = bus.memory.load(at);
            if word != 0 {
                self.level_one_stored(bus, at, 0, word);
            }
        }
        self.structures.linked = 0;
    }

    fn level_one_stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64) {
        let Some(table) = self.table else { return };
        if at < table.base || at >= table.base + (8 << (table.log2 - table.split)) {
            return;
        }
        let index = ((at - table.base) / 8) as u32;
        let bits = self.identity.address_bits();
        if stream::level_one(old, &table, bits).is_ok_and(|known| known.is_some()) {
            let what = format!(
                "first-level descriptor {index:#x} changed from {old:#x} to {new:#x} while it named a table"
            );
            bus.broken(Rule::TornEntry, what);
        }
        match stream::level_one(new, &table, bits) {
            Err(why) => {
                bus.broken(
                    Rule::ReservedBits,
                    format!("first-level descriptor {index:#x}: {why}"),
                );
            }
            Ok(None) => {}
            Ok(Some((base, entries))) => {
                self.structures.linked += (entries * ENTRY_BYTES).div_ceil(FRAME_BYTES);
                self.entries_linked(bus, base, index << table.split, entries);
            }
        }
    }

    /// Entries that were written before their table was linked are live now.
    fn entries_linked(&mut self, bus: &mut Bus, base: u64, first: u32, entries: u64) {
        for number in 0..entries {
            let at = base + number * ENTRY_BYTES;
            let stream = first + number as u32;
            if at.is_multiple_of(FRAME_BYTES) || number == 0 {
                let before = (at % FRAME_BYTES / ENTRY_BYTES) as u32;
                self.structures
                    .tables
                    .insert(frame_of(at), stream.saturating_sub(before));
            }
            // Nearly all of them pass nothing.
            if bus.memory.load(at) & stream::PASSES != 0 {
                self.entry_stored(bus, stream, at);
            }
        }
    }

    fn words(bus: &mut Bus, entry: u64) -> Words {
        std::array::from_fn(|word| bus.memory.load(entry + word as u64 * 8))
    }

    /// An entry is what it is now, by one store.
    fn entry_stored(&mut self, bus: &mut Bus, stream: u32, entry: u64) {
        let words = Self::words(bus, entry);
        let now = match stream::decode(&words, &self.limits) {
            Ok(now) => now,
            Err(why) => {
                let what =
                    format!("the entry of stream {stream:#x} at {entry:#x} is live as {why}");
                bus.broken(Rule::BadContext, what);
                return;
            }
        };
        let before = self.structures.live.remove(&stream);
        match now {
            Stream::Invalid | Stream::Abort => return,
            // Where that leads is judged like any other request.
            Stream::Bypass => {}
            Stream::Tables(tables) => {
                if let Some(before) = before
                    && (before.vmid, before.root, before.is_cached_as())
                        != (tables.vmid, tables.root, tables.is_cached_as())
                {
                    let what = format!(
                        "the entry of stream {stream:#x} went from {before:x?} to {tables:x?} while live"
                    );
                    bus.broken(Rule::TornEntry, what);
                }
                self.now_live(bus, stream, tables);
            }
        }
        self.structures.note(stream, now);
    }

    fn now_live(&mut self, bus: &mut Bus, stream: u32, tables: Tables) {
        if !bus.frames.is_out(frame_of(tables.root)) {
            let what = format!(
                "the entry of stream {stream:#x} names a root at {:#x}, which is free",
                tables.root
            );
            bus.broken(Rule::BadContext, what);
        }
        let other = self.structures.live.iter().find(|(_, known)| {
            let same = known.root == tables.root && known.is_cached_as() == tables.is_cached_as();
            known.vmid == tables.vmid && !same
        });
        if let Some((other, known)) = other {
            let what = format!(
                "VMID {} stands for the table at {:#x} (stream {other:#x}) and for the one at {:#x} (stream \
                 {stream:#x}) at once",
                tables.vmid, known.root, tables.root
            );
            bus.broken(Rule::DomainId, what);
        }
        if let Some(stale) = self.caches.other_root(tables.vmid, tables.root) {
            let what = format!(
                "VMID {} is used for the table at {:#x} while the unit still holds entries under it from the one \
                 at {stale:#x}",
                tables.vmid, tables.root
            );
            bus.broken(Rule::DomainId, what);
        }
        self.structures.live.insert(stream, tables);
    }

    /// The unit may read an entry at any time: it begins to now, or goes on, in the middle of the driver's stores.
    fn fetch_ahead(&mut self, bus: &mut Bus, stream: u32, entry: u64) {
        let on = self.control & super::spec::registers::SMMUEN != 0;
        if !on || !bus.temper.background {
            return;
        }
        let same = |ahead: &Ahead| ahead.stream == stream;
        if !self.structures.ahead.as_ref().is_some_and(same) {
            if self.structures.ahead.is_some() || bus.rng.one_in(3) {
                return;
            }
            self.structures.ahead = Some(Ahead {
                stream,
                at: entry,
                words: [None; WORDS],
            });
        }
        for _ in 0..bus.rng.below(4) {
            self.fetch_ahead_word(bus);
        }
    }

    /// Reads one more word of the entry that is fetched ahead, and keeps it when it is whole.
    pub(crate) fn fetch_ahead_word(&mut self, bus: &mut Bus) {
        let Some(mut ahead) = self.structures.ahead.take() else {
            return;
        };
        if super::walk::fetch_word(bus, self.view, ahead.at, &mut ahead.words) {
            self.structures.ahead = Some(ahead);
            return;
        }
        let words = ahead.words.map(Option::unwrap_or_default);
        let _ = self.entry_read(bus, ahead.stream, ahead.at, &words);
    }
}
