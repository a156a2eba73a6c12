//! How an SMMUv3 translates: one fetch at a time, so that the driver's stores fall between any two.

use hv_core::Access;

use super::Unit;
use super::caches::Cached;
use super::spec::event;
use super::spec::stage_two::{self, Descriptor, DescriptorLimits, Leaf};
use super::spec::stream::{self, ENTRY_BYTES, Stream, Tables, WORDS, Words};
use crate::bus::Bus;
use crate::memory::{View, frame_of};
use crate::request::{Progress, Request, Step};
use crate::rule::Rule;

/// How far a walk is.
#[derive(Clone, Debug)]
pub(crate) enum Walk {
    /// The entry of the stream is fetched, word by word.
    Entry {
        at: u64,
        words: [Option<u64>; WORDS],
    },
    /// The stream's entry is known.
    Bound { tables: Tables },
    /// The table of this level is known.
    Tables {
        tables: Tables,
        level: u8,
        table: u64,
    },
}

impl Walk {
    /// The guest that the walk is for, once that is known.
    pub(crate) fn vmid(&self) -> Option<u16> {
        match self {
            Self::Entry { .. } => None,
            Self::Bound { tables } | Self::Tables { tables, .. } => Some(tables.vmid),
        }
    }

    /// The frame that the walk reads next.
    pub(crate) fn frame(&self) -> u64 {
        frame_of(match self {
            Self::Entry { at, .. } => *at,
            Self::Bound { tables } => tables.root,
            Self::Tables { table, .. } => *table,
        })
    }
}

/// Reads one more word of an entry, in any order. `false` when it is whole.
pub(super) fn fetch_word(
    bus: &mut Bus,
    view: View,
    at: u64,
    words: &mut [Option<u64>; WORDS],
) -> bool {
    let missing: arrayvec::ArrayVec<usize, WORDS> = words
        .iter()
        .enumerate()
        .filter_map(|(index, word)| word.is_none().then_some(index))
        .collect();
    let Some(&index) = bus.rng.pick(&missing) else {
        return false;
    };
    let word = bus.fetch(view, at + index as u64 * 8);
    if let Some(place) = words.get_mut(index) {
        *place = Some(word);
    }
    missing.len() > 1
}

impl Unit {
    /// Does one step of a request.
    pub(super) fn walk(&mut self, bus: &mut Bus, request: &mut Request) -> Step {
        let walk = match &request.progress {
            Progress::Translated { to, tag } => return Step::Translated { to: *to, tag: *tag },
            Progress::Smmu(walk) => walk.clone(),
            _ => return self.begin(bus, request),
        };
        match walk {
            Walk::Entry { at, mut words } => {
                if fetch_word(bus, self.view, at, &mut words) {
                    request.progress = Progress::Smmu(Walk::Entry { at, words });
                    return Step::Again;
                }
                let stream = self.stream_of(request.requester);
                let words = words.map(Option::unwrap_or_default);
                match self.entry_read(bus, stream, at, &words) {
                    Some(entry) => self.bound(bus, request, entry),
                    None => self.refuse(bus, request, event::BAD_STE, true),
                }
            }
            Walk::Bound { tables } => self.look_up(bus, request, tables),
            Walk::Tables {
                tables,
                level,
                table,
            } => self.descriptor(bus, request, tables, level, table),
        }
    }

    fn begin(&mut self, bus: &mut Bus, request: &mut Request) -> Step {
        if !self.translates() {
            return if self.gate_is_closed() {
                Step::Lost {
                    why: "the closed gate of a unit that is off",
                }
            } else {
                Step::Untranslated
            };
        }
        if self.is_firmwares {
            return Step::Lost {
                why: "firmware's tables",
            };
        }
        let stream = self.stream_of(request.requester);
        if !bus.rng.one_in(8)
            && let Some(entry) = self.caches.stream(stream, &mut bus.rng)
        {
            return self.bound(bus, request, entry);
        }
        match self.entry_at(bus, stream) {
            Some(at) => {
                let words = [None; WORDS];
                request.progress = Progress::Smmu(Walk::Entry { at, words });
                Step::Again
            }
            None => self.refuse(bus, request, event::BAD_STREAM, true),
        }
    }

    /// Where a stream's entry is, by the first level if there is one.
    fn entry_at(&mut self, bus: &mut Bus, stream: u32) -> Option<u64> {
        let table = self.table?;
        if u64::from(stream) >> table.log2 != 0 {
            return None;
        }
        if table.split == 0 {
            return Some(table.base + u64::from(stream) * ENTRY_BYTES);
        }
        let index = stream >> table.split;
        let cached = self.caches.level_one(index, &mut bus.rng);
        let known = match cached.filter(|_| !bus.rng.one_in(8)) {
            Some(known) => known,
            None => {
                let at = table.base + u64::from(index) * 8;
                let word = bus.fetch(self.view, at);
                let read = stream::level_one(word, &table, self.identity.address_bits());
                let known = match read {
                    Ok(known) => known,
                    Err(why) => {
                        let what = format!("first-level descriptor {index:#x}: {why}");
                        bus.broken(Rule::ReservedBits, what);
                        None
                    }
                };
                self.caches.keep_level_one(index, known);
                known
            }
        };
        let (base, entries) = known?;
        let number = u64::from(stream) & ((1 << table.split) - 1);
        (number < entries).then(|| base + number * ENTRY_BYTES)
    }

    /// An entry was read whole: what it says, which is kept. `None` for an illegal one.
    pub(super) fn entry_read(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        at: u64,
        words: &Words,
    ) -> Option<Stream> {
        match stream::decode(words, &self.limits) {
            Ok(entry) => {
                if !self.structures.said(stream, &entry) {
                    let what = format!(
                        "the unit read {words:x?} for stream {stream:#x} at {at:#x}, word by word: {entry:x?}, which \
                         the entry never was"
                    );
                    bus.broken(Rule::TornEntry, what);
                }
                self.caches.keep_stream(stream, entry);
                Some(entry)
            }
            Err(why) => {
                let what = format!("the unit read for stream {stream:#x} at {at:#x}: {why}");
                bus.broken(Rule::TornEntry, what);
                None
            }
        }
    }

    fn bound(&mut self, bus: &mut Bus, request: &mut Request, entry: Stream) -> Step {
        match entry {
            Stream::Bypass | Stream::Tables(_) if request.substream.is_some() => {
                self.refuse(bus, request, event::BAD_SUBSTREAM, true)
            }
            Stream::Invalid => self.refuse(bus, request, event::BAD_STE, true),
            Stream::Abort => Step::Lost {
                why: "the stream's entry, which aborts",
            },
            Stream::Bypass => Step::Translated {
                to: request.address,
                tag: 0,
            },
            Stream::Tables(tables) => {
                request.progress = Progress::Smmu(Walk::Bound { tables });
                Step::Again
            }
        }
    }

    /// The spans that entries of a table can have, the largest first.
    fn spans(tables: &Tables) -> arrayvec::ArrayVec<u8, 4> {
        let levels = tables.shape.start..=3;
        levels
            .map(|level| tables.shape.granule.span(level))
            .collect()
    }

    fn look_up(&mut self, bus: &mut Bus, request: &mut Request, tables: Tables) -> Step {
        let (address, shape) = (request.address, tables.shape);
        if address >> shape.input_bits != 0 {
            return self.refuse(bus, request, event::TRANSLATION, tables.records);
        }
        let spans = Self::spans(&tables);
        if !bus.rng.one_in(8)
            && let Some((span, cached)) =
                self.caches.leaf(tables.vmid, &spans, address, &mut bus.rng)
        {
            return self.reach(bus, request, &tables, span, &cached);
        }
        let (mut level, mut table) = (shape.start, tables.root);
        if !bus.rng.one_in(4)
            && let Some((span, link)) = self.caches.link(tables.vmid, &spans, address, &mut bus.rng)
        {
            let above = (shape.start..3).find(|level| shape.granule.span(*level) == span);
            if let Some(above) = above {
                (level, table) = (above + 1, link.to);
            }
        }
        request.progress = Progress::Smmu(Walk::Tables {
            tables,
            level,
            table,
        });
        Step::Again
    }

    fn descriptor(
        &mut self,
        bus: &mut Bus,
        request: &mut Request,
        tables: Tables,
        level: u8,
        table: u64,
    ) -> Step {
        let at = tables.shape.word_at(table, level, request.address);
        let inside = crate::memory::BASE..crate::memory::BASE + crate::memory::FRAMES * 4096;
        if !inside.contains(&at) {
            let what = format!(
                "a walk for stream {:#x} read {at:#x}, where no memory is",
                request.requester
            );
            bus.broken(Rule::FreedMemory, what);
            return self.refuse(bus, request, event::WALK_ABORT, true);
        }
        let word = bus.fetch(self.view, at);
        if bus.temper.neighbours && bus.rng.one_in(4) {
            self.keep_neighbours(bus, &tables, level, at, request.address);
        }
        match self.decode_and_keep(bus, &tables, level, request.address, word) {
            Err(why) => {
                let what = format!("level {level} descriptor at {at:#x}: {why}");
                bus.broken(Rule::ReservedBits, what);
                self.refuse(bus, request, event::TRANSLATION, tables.records)
            }
            Ok(Descriptor::Absent) => self.refuse(bus, request, event::TRANSLATION, tables.records),
            Ok(Descriptor::Table { at }) => {
                request.progress = Progress::Smmu(Walk::Tables {
                    tables,
                    level: level + 1,
                    table: at,
                });
                Step::Again
            }
            Ok(Descriptor::Leaf(leaf)) => {
                let size = tables.shape.granule.0;
                self.caches.make_room(&mut bus.rng, size);
                let needs = !tables.ignores_access_flag && !tables.updates_access_flag;
                if !leaf.accessed && needs {
                    return self.refuse(bus, request, event::ACCESS_FLAG, tables.records);
                }
                let span = tables.shape.granule.span(level);
                self.reach(bus, request, &tables, span, &cached(&tables, &leaf))
            }
        }
    }

    /// Decodes a descriptor and keeps what it says, unless that is nothing.
    fn decode_and_keep(
        &mut self,
        bus: &mut Bus,
        tables: &Tables,
        level: u8,
        address: u64,
        word: u64,
    ) -> Result<Descriptor, String> {
        let granule = tables.shape.granule;
        let limits = DescriptorLimits {
            dirty: tables.dirty,
            forced: tables.forced,
            two_xn: self.identity.xnx,
            no_table: self.identity.bbml != 0,
        };
        let decoded = stage_two::decode(word, level, granule, &limits)?;
        let span = granule.span(level);
        match &decoded {
            Descriptor::Absent => {}
            Descriptor::Table { at } => {
                let link = Cached {
                    root: tables.root,
                    to: *at,
                    read: true,
                    write: true,
                };
                let size = (span, granule.0);
                self.caches.keep_link(tables.vmid, size, address, link);
            }
            Descriptor::Leaf(leaf) if !leaf.accessed && !tables.ignores_access_flag => {}
            Descriptor::Leaf(leaf) => {
                let sizes = self.identity.bbml < 2;
                let conflict = self
                    .caches
                    .conflict(tables.vmid, span, address, leaf.to, sizes);
                if let Some(other) = conflict {
                    let what = format!(
                        "a translation of 2^{span} bytes for {:#x} under VMID {} to {:#x} was made valid while the \
                         unit holds {other}",
                        address >> span << span,
                        tables.vmid,
                        leaf.to
                    );
                    bus.broken(Rule::BreakBeforeMake, what);
                }
                let kept = cached(tables, leaf);
                self.caches.keep_leaf(tables.vmid, span, address, kept);
            }
        }
        Ok(decoded)
    }

    /// Keeps the descriptors that lie in the same line of memory as the one that was asked for.
    fn keep_neighbours(
        &mut self,
        bus: &mut Bus,
        tables: &Tables,
        level: u8,
        at: u64,
        address: u64,
    ) {
        let span = tables.shape.granule.span(level);
        let line = at / 64 * 64;
        for other in (line..line + 64).step_by(8).filter(|other| *other != at) {
            let word = bus.fetch(self.view, other);
            let index = (address >> span)
                .wrapping_add(other / 8)
                .wrapping_sub(at / 8);
            // What is malformed there was not asked for; a small root may end inside the line.
            if index << span >> tables.shape.input_bits == 0 {
                let _ = self.decode_and_keep(bus, tables, level, index << span, word);
            }
        }
    }

    /// A leaf says where the request goes, if it may.
    fn reach(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        tables: &Tables,
        span: u8,
        leaf: &Cached,
    ) -> Step {
        if leaf.to >> tables.shape.output_bits != 0 {
            return self.refuse(bus, request, event::ADDRESS_SIZE, tables.records);
        }
        let permitted = match request.access {
            Access::Read => leaf.read,
            Access::Write => leaf.write,
        };
        if !permitted {
            return self.refuse(bus, request, event::PERMISSION, tables.records);
        }
        Step::Translated {
            to: leaf.to + (request.address & ((1 << span) - 1)),
            tag: tables.vmid,
        }
    }
}

fn cached(tables: &Tables, leaf: &Leaf) -> Cached {
    Cached {
        root: tables.root,
        to: leaf.to,
        read: leaf.read,
        write: leaf.write,
    }
}
