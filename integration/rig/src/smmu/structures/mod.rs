//! Watches what the driver stores into the stream table, and into [`contexts`], store by store.
//!
//! The unit reads an entry word by word in any order, so what counts is which configurations an entry ever was: a
//! mixture of two of them that says something else than any is a torn entry.

mod contexts;

use std::collections::{BTreeMap, BTreeSet};

use super::Unit;
use super::caches::Tag;
use super::spec::stage_two::Granule;
use super::spec::stream::{self, ENTRY_BYTES, Stages, Stream, Tables, WORDS, Words};
use crate::bus::Bus;
use crate::memory::{FRAME_BYTES, frame_of};
use crate::rule::Rule;

/// How many former configurations of an entry a late walker may still read.
pub(super) const FORMER: usize = 12;

/// What is known of the tables.
#[derive(Default)]
pub(crate) struct Structures {
    /// Frames of entries: the stream of the first entry in each.
    tables: BTreeMap<u64, u32>,
    /// Frames of first-level descriptors.
    upper: BTreeSet<u64>,
    /// Entries that translate now, by stream.
    live: BTreeMap<u32, Stages>,
    contexts: contexts::Watched,
    /// What each entry said, oldest first.
    said: BTreeMap<u32, Vec<Stream>>,
    /// A fetch that the unit began by itself.
    pub(crate) ahead: Option<Ahead>,
    /// Second-level tables that were linked after the table was set.
    linked: u64,
    /// How many.
    tables_linked: u64,
    /// Where the descriptors of streams were, of units that have first stages alone: one for each second-level table.
    described: BTreeSet<u64>,
}

/// An entry or descriptor that is being fetched although no request asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    pub(crate) what: Fetched,
    pub(crate) at: u64,
    pub(crate) words: [Option<u64>; WORDS],
}

/// What is fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// The entry of a stream.
    Stream(u32),
    /// A context of a stream.
    Context {
        stream: u32,
        substream: u32,
        stages: Stages,
    },
}

impl Fetched {
    /// Of which stream it is.
    pub(crate) const fn stream(&self) -> u32 {
        match self {
            Self::Stream(stream) | Self::Context { stream, .. } => *stream,
        }
    }
}

/// Ids under which translations of a stream are kept now, and how large pages of its tables are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) tag: Tag,
    pub(crate) granule: Granule,
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

    /// Under which ids translations for these senders are kept now: streams and substreams.
    pub(crate) fn bound(&self, senders: &[(u32, Option<u32>)]) -> Vec<Bound> {
        let mut bound = Vec::new();
        let live = self.live.iter();
        for (stream, stages) in live.filter(|(stream, _)| {
            let mut all = senders.iter();
            all.any(|(sender, _)| sender == *stream)
        }) {
            if let (None, Some(tables)) = (stages.first, stages.second) {
                let tag = Tag::Second { vmid: tables.vmid };
                let granule = tables.shape.granule;
                bound.push(Bound { tag, granule });
            }
            for (other, substream, vmid, tables) in self.contexts.live() {
                // Without a substream, the context of substream 0.
                let mut all = senders.iter();
                let sends = |(sender, with): &(u32, Option<u32>)| {
                    (*sender, with.unwrap_or(0)) == (other, substream)
                };
                let half = tables.halves.iter().flatten().next();
                if other == *stream
                    && all.any(sends)
                    && let Some(half) = half
                {
                    let asid = tables.asid;
                    let tag = Tag::First { vmid, asid };
                    let granule = half.shape.granule;
                    bound.push(Bound { tag, granule });
                }
            }
        }
        bound
    }

    /// Whether a stream's entry lets its device ask for translations now.
    pub(crate) fn asks(&self, stream: u32) -> bool {
        self.live.get(&stream).is_some_and(|stages| stages.asks)
    }

    /// The guest whose own first stage translates requests of this stream now.
    pub(crate) fn guest(&self, stream: u32) -> Option<u16> {
        let stages = self.live.get(&stream)?;
        (stages.first.is_some() && stages.second.is_some()).then_some(stages.vmid)
    }

    /// The roots of all tables that devices are bound to now.
    pub(crate) fn roots(&self) -> impl Iterator<Item = u64> {
        let second = self.live.values().filter_map(|stages| stages.second);
        let first = self.contexts.live().flat_map(|(.., tables)| tables.halves);
        let first = first.flatten().map(|half| half.root);
        second.map(|tables| tables.root).chain(first)
    }

    /// Frames of second-level tables that were linked while the unit was on.
    pub(crate) fn count(&self) -> u64 {
        self.linked
    }

    /// The fewest and the most frames that descriptors of those tables' streams take, where each stream has one.
    pub(crate) fn descriptors(&self) -> (u64, u64) {
        let each = match self.tables_linked {
            0 => 0,
            tables => self.linked / tables,
        };
        (self.described.len() as u64 * each, self.linked)
    }

    /// A frame of these that is part of the stream table.
    pub(crate) fn table_in(&self, first: u64, pages: u64) -> Option<u64> {
        let frames = first..first + pages;
        let lower = self
            .tables
            .range(frames.clone())
            .next()
            .map(|(frame, _)| *frame);
        lower
            .or_else(|| self.upper.range(frames).next().copied())
            .or_else(|| self.contexts.frame_in(first, pages))
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
        } else if old != new && self.has_contexts(at) {
            self.context_stored(bus, at, old);
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
        self.structures.tables_linked = 0;
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
                self.structures.tables_linked += 1;
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
        self.structures.contexts.leave(stream);
        match now {
            Stream::Invalid | Stream::Abort => return,
            // Where that leads is judged like any other request.
            Stream::Bypass => {}
            Stream::Translates(stages) => {
                let second = |stages: Stages| {
                    let tables = stages.second;
                    (
                        stages.vmid,
                        tables.map(|tables| (tables.root, tables.is_cached_as())),
                    )
                };
                let ids = (before.map(second), second(stages));
                if let Some(before) = before
                    && ids.0 != Some(ids.1)
                {
                    let what = format!(
                        "the entry of stream {stream:#x} went from {before:x?} to {stages:x?} while live"
                    );
                    bus.broken(Rule::TornEntry, what);
                }
                if let Some(tables) = stages.second {
                    self.now_live(bus, stream, tables);
                } else if let (Some(contexts), Some(table)) = (stages.first, self.table)
                    && table.split != 0
                {
                    // Descriptors lie as entries do.
                    let array = ENTRY_BYTES << table.split;
                    self.structures.described.insert(contexts.at / array);
                }
                self.structures.live.insert(stream, stages);
                self.contexts_linked(bus, stream, stages);
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
        let live = self.structures.live.iter();
        let mut second = live.filter_map(|(stream, stages)| Some((stream, stages.second?)));
        let other = second.find(|(_, known)| {
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
        let tag = Tag::Second { vmid: tables.vmid };
        if let Some(stale) = self.caches.other_root(tag, tables.root) {
            let what = format!(
                "VMID {} is used for the table at {:#x} while the unit still holds entries under it from the one \
                 at {stale:#x}",
                tables.vmid, tables.root
            );
            bus.broken(Rule::DomainId, what);
        }
    }

    /// The unit may read an entry at any time: it begins to now, or goes on, in the middle of the driver's stores.
    fn fetch_ahead(&mut self, bus: &mut Bus, stream: u32, entry: u64) {
        let on = self.control & super::spec::registers::SMMUEN != 0;
        if !on || !bus.temper.background {
            return;
        }
        let same = |ahead: &Ahead| ahead.what == Fetched::Stream(stream);
        if !self.structures.ahead.as_ref().is_some_and(same) {
            if self.structures.ahead.is_some() || bus.rng.one_in(3) {
                return;
            }
            self.structures.ahead = Some(Ahead {
                what: Fetched::Stream(stream),
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
        match ahead.what {
            Fetched::Stream(stream) => drop(self.entry_read(bus, stream, ahead.at, &words)),
            Fetched::Context {
                stream,
                substream,
                stages,
            } => drop(self.context_read(bus, stream, substream, &stages, &words)),
        }
    }
}
