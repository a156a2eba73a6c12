//! Watches what the driver stores into the context descriptors that entries of the stream table lead to.
//!
//! A guest's descriptors are its own business: what is watched is what entries without a second stage lead to.

use std::collections::BTreeMap;

use super::super::Unit;
use super::super::caches::Tag;
use super::super::spec::context::{self, CONTEXT_BYTES, Context, FirstTables};
use super::super::spec::stream::{Contexts, Stages, WORDS};
use super::{Ahead, FORMER, Fetched, Structures};
use crate::bus::Bus;
use crate::memory::{FRAME_BYTES, frame_of};
use crate::rule::Rule;

/// Descriptors in a row, or directory entries, that the entry of a stream leads to.
#[derive(Clone, Copy, Debug)]
struct Run {
    stream: u32,
    /// The substream of the first.
    first: u32,
    at: u64,
    count: u64,
    /// Of directory entries: log2 of the substreams that each is for.
    split: Option<u8>,
    stages: Stages,
}

impl Run {
    const fn bytes(&self) -> u64 {
        self.count
            * match self.split {
                None => CONTEXT_BYTES,
                Some(_) => 8,
            }
    }

    const fn has(&self, at: u64) -> bool {
        self.at <= at && at < self.at + self.bytes()
    }
}

/// What is known of contexts.
#[derive(Default)]
pub(crate) struct Watched {
    runs: Vec<Run>,
    /// How many runs touch each frame.
    frames: BTreeMap<u64, u32>,
    /// Contexts that translate now, by stream and substream, with their guest's id.
    live: BTreeMap<(u32, u32), (u16, FirstTables)>,
    /// What each said, oldest first.
    said: BTreeMap<(u32, u32), Vec<Context>>,
}

impl Watched {
    fn note(&mut self, stream: u32, substream: u32, what: Context) {
        let said = self.said.entry((stream, substream)).or_default();
        if said.contains(&what) {
            return;
        }
        if said.len() == FORMER {
            said.remove(0);
        }
        said.push(what);
    }

    fn add(&mut self, run: Run) {
        for frame in frame_of(run.at)..=frame_of(run.at + run.bytes() - 1) {
            *self.frames.entry(frame).or_default() += 1;
        }
        self.runs.push(run);
    }

    /// The stream's entry leads nowhere any more.
    pub(super) fn leave(&mut self, stream: u32) {
        let (gone, kept) = self.runs.iter().partition(|run| run.stream == stream);
        let gone: Vec<Run> = gone;
        self.runs = kept;
        for run in gone {
            for frame in frame_of(run.at)..=frame_of(run.at + run.bytes() - 1) {
                if let Some(count) = self.frames.get_mut(&frame) {
                    *count -= 1;
                    if *count == 0 {
                        self.frames.remove(&frame);
                    }
                }
            }
        }
        self.live.retain(|(other, _), _| *other != stream);
    }

    /// Whether descriptors are in this frame.
    pub(super) fn is_in(&self, frame: u64) -> bool {
        self.frames.contains_key(&frame)
    }

    /// A frame of these that descriptors are in.
    pub(super) fn frame_in(&self, first: u64, pages: u64) -> Option<u64> {
        let mut frames = self.frames.range(first..first + pages);
        frames.next().map(|(frame, _)| *frame)
    }

    /// The contexts that translate now, with their streams and substreams.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, u32, u16, &FirstTables)> {
        let live = self.live.iter();
        live.map(|((stream, substream), (vmid, tables))| (*stream, *substream, *vmid, tables))
    }
}

impl Structures {
    /// Whether a context ever said this while an entry led there. That nothing passes can be said at any time.
    pub(crate) fn said_context(&self, stream: u32, substream: u32, what: &Context) -> bool {
        let said = self.contexts.said.get(&(stream, substream));
        *what == Context::Invalid || said.is_some_and(|said| said.contains(what))
    }

    /// Where a context's descriptor is that an entry leads to, as far as the CPU knows.
    pub(crate) fn context_at(
        &self,
        bus: &mut Bus,
        contexts: &Contexts,
        substream: u32,
    ) -> Option<u64> {
        let Some(split) = contexts.split else {
            return Some(contexts.at + u64::from(substream) * CONTEXT_BYTES);
        };
        let word = bus
            .memory
            .load(contexts.at + u64::from(substream >> split) * 8);
        let table = context::directory(word, split, 52).ok()??;
        Some(table + u64::from(substream & ((1 << split) - 1)) * CONTEXT_BYTES)
    }
}

impl Unit {
    /// The entry of a stream leads to contexts from now on.
    pub(super) fn contexts_linked(&mut self, bus: &mut Bus, stream: u32, stages: Stages) {
        let Some(contexts) = stages.first.filter(|_| stages.second.is_none()) else {
            return;
        };
        let count = 1_u64 << contexts.log2;
        match contexts.split {
            None => self.contexts_added(bus, stream, stages, (0, contexts.at, count)),
            Some(split) => {
                let entries = count.div_ceil(1 << split);
                self.structures.contexts.add(Run {
                    stream,
                    first: 0,
                    at: contexts.at,
                    count: entries,
                    split: Some(split),
                    stages,
                });
                for index in 0..entries {
                    let at = contexts.at + index * 8;
                    let word = bus.memory.load(at);
                    self.directory_said(
                        bus,
                        stream,
                        stages,
                        ((index as u32) << split, split),
                        word,
                    );
                }
            }
        }
    }

    fn directory_said(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        stages: Stages,
        (first, split): (u32, u8),
        word: u64,
    ) {
        match context::directory(word, split, self.identity.address_bits()) {
            Ok(None) => {}
            Ok(Some(table)) => {
                self.contexts_added(bus, stream, stages, (first, table, 1 << split));
            }
            Err(why) => {
                let what = format!("directory of contexts of stream {stream:#x}: {why}");
                bus.broken(Rule::ReservedBits, what);
            }
        }
    }

    fn contexts_added(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        stages: Stages,
        (first, at, count): (u32, u64, u64),
    ) {
        let run = Run {
            stream,
            first,
            at,
            count,
            split: None,
            stages,
        };
        self.structures.contexts.add(run);
        for frame in frame_of(at)..=frame_of(at + run.bytes() - 1) {
            if !bus.frames.is_out(frame) {
                let what = format!(
                    "the entry of stream {stream:#x} leads to descriptors in frame {frame:#x}, which is free"
                );
                bus.broken(Rule::BadContext, what);
                return;
            }
        }
        for index in 0..count {
            let at = at + index * CONTEXT_BYTES;
            let valid = bus.memory.load(at) & context::VALID != 0;
            if valid {
                self.context_said(bus, &run, first + index as u32, at);
            } else if count == 1 {
                let what = format!(
                    "the entry of stream {stream:#x} went live, and its one descriptor at {at:#x} is not valid"
                );
                bus.broken(Rule::BadContext, what);
            }
        }
    }

    /// The driver stored into memory where descriptors are that entries lead to.
    pub(super) fn context_stored(&mut self, bus: &mut Bus, at: u64, old: u64) {
        let runs = self.structures.contexts.runs.iter();
        let mine: Vec<Run> = runs.filter(|run| run.has(at)).copied().collect();
        for run in mine {
            let place = at - run.at;
            if let Some(split) = run.split {
                let first = ((place / 8) as u32) << split;
                if context::directory(old, split, 52).is_ok_and(|known| known.is_some()) {
                    let what = format!(
                        "the directory of contexts of stream {:#x} changed at {at:#x} while it named a table",
                        run.stream
                    );
                    bus.broken(Rule::TornEntry, what);
                }
                let word = bus.memory.load(at);
                self.directory_said(bus, run.stream, run.stages, (first, split), word);
                continue;
            }
            let substream = run.first + (place / CONTEXT_BYTES) as u32;
            let entry = run.at + place / CONTEXT_BYTES * CONTEXT_BYTES;
            bus.provoked = true;
            self.context_said(bus, &run, substream, entry);
            self.context_fetched_ahead(bus, &run, substream, entry);
        }
    }

    /// A descriptor is what it is now, by one store, or by the entry that leads to it.
    fn context_said(&mut self, bus: &mut Bus, run: &Run, substream: u32, at: u64) {
        let words: [u64; WORDS] = std::array::from_fn(|word| bus.memory.load(at + word as u64 * 8));
        let (stream, vmid) = (run.stream, run.stages.vmid);
        let no_stalls = run.stages.first.is_some_and(|contexts| contexts.no_stalls);
        let now = match context::decode(&words, &self.identity.context_limits(), no_stalls) {
            Ok(now) => now,
            Err(why) => {
                let what = format!(
                    "descriptor {substream:#x} of stream {stream:#x} at {at:#x} is live as {why}"
                );
                bus.broken(Rule::BadContext, what);
                return;
            }
        };
        let known = &mut self.structures.contexts;
        let before = known.live.remove(&(stream, substream));
        let Context::Tables(tables) = now else {
            return;
        };
        if let Some((_, before)) = before
            && (before.asid, before.halves) != (tables.asid, tables.halves)
        {
            let what = format!(
                "descriptor {substream:#x} of stream {stream:#x} went from {before:x?} to {tables:x?} while live"
            );
            bus.broken(Rule::TornEntry, what);
        }
        if self.identity.coherent && !tables.snoops {
            let what = format!(
                "walks for descriptor {substream:#x} of stream {stream:#x} do not look into the CPU's caches, where \
                 tables are"
            );
            bus.broken(Rule::BadContext, what);
        }
        self.context_live(bus, (stream, substream), vmid, tables);
        self.structures.contexts.note(stream, substream, now);
    }

    fn context_live(
        &mut self,
        bus: &mut Bus,
        (stream, substream): (u32, u32),
        vmid: u16,
        tables: FirstTables,
    ) {
        let asid = tables.asid;
        let roots = |tables: &FirstTables| tables.halves.map(|half| half.map(|half| half.root));
        for root in roots(&tables).into_iter().flatten() {
            if !bus.frames.is_out(frame_of(root)) {
                let what = format!(
                    "descriptor {substream:#x} of stream {stream:#x} names a root at {root:#x}, which is free"
                );
                bus.broken(Rule::BadContext, what);
            }
            let stale = self.caches.other_root(Tag::First { vmid, asid }, root);
            // Of two halves each is another root.
            let stale = stale.filter(|stale| !roots(&tables).contains(&Some(*stale)));
            if let Some(stale) = stale {
                let what = format!(
                    "ASID {asid} is used for the table at {root:#x} while the unit still holds entries under it from \
                     the one at {stale:#x}"
                );
                bus.broken(Rule::DomainId, what);
            }
        }
        let known = &mut self.structures.contexts;
        let other = known.live.iter().find(|(_, (other, known))| {
            (*other, known.asid) == (vmid, asid) && known.halves != tables.halves
        });
        if let Some(((other, theirs), (_, known))) = other {
            let what = format!(
                "ASID {asid} stands for the tables {:x?} (descriptor {theirs:#x} of stream {other:#x}) and for {:x?} \
                 (descriptor {substream:#x} of stream {stream:#x}) at once",
                roots(known),
                roots(&tables),
            );
            bus.broken(Rule::DomainId, what);
        }
        known.live.insert((stream, substream), (vmid, tables));
    }

    /// The unit may read a descriptor at any time: it begins to now, in the middle of the driver's stores.
    fn context_fetched_ahead(&mut self, bus: &mut Bus, run: &Run, substream: u32, at: u64) {
        let on = self.control & super::super::spec::registers::SMMUEN != 0;
        if !on || !bus.temper.background {
            return;
        }
        if self.structures.ahead.is_none() && !bus.rng.one_in(3) {
            self.structures.ahead = Some(Ahead {
                what: Fetched::Context {
                    stream: run.stream,
                    substream,
                    stages: run.stages,
                },
                at,
                words: [None; WORDS],
            });
        }
        for _ in 0..bus.rng.below(4) {
            self.fetch_ahead_word(bus);
        }
    }

    /// Whether descriptors that entries lead to lie there.
    pub(super) fn has_contexts(&self, at: u64) -> bool {
        self.structures.contexts.is_in(at / FRAME_BYTES)
    }
}
