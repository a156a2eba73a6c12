//! How an SMMUv3 translates: one fetch at a time, so that the driver's stores fall between any two.
//!
//! From the entry of the stream to its context ([`contexts`]), through first-stage tables ([`first`]) and second-stage
//! ones ([`second`]). What a first stage reads of a guest's addresses goes through the second one, a walk in a walk.

mod contexts;
mod first;
mod second;

use hv_core::Access;

use super::Unit;
use super::caches::{Cached, Kind, Tag};
use super::spec::context::{FirstTables, Half};
use super::spec::event::{self, At};
use super::spec::stream::{self, ENTRY_BYTES, Stages, Stream, WORDS, Words};
use crate::bus::Bus;
use crate::memory::{View, frame_of};
use crate::request::{Progress, Reach, Request, Step};
use crate::rule::Rule;
use second::Below;

/// A walk under way.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    doing: Doing,
    /// What the entry of the stream said, once that is known.
    stages: Option<Stages>,
    /// How far the second stage is with an address of the guest that is read next.
    below: Option<Below>,
    /// The last such address that it translated: log2 of the span, and the leaf.
    resolved: Option<(u64, u8, Cached)>,
    /// An address whose leaf, found by a cache or a fetch of whenever, was clean: that it is written is noted first.
    noting: Option<(u64, u8, Cached)>,
}

/// What is read next.
#[derive(Clone, Debug)]
enum Doing {
    /// The entry of the stream, word by word.
    Entry {
        at: u64,
        words: [Option<u64>; WORDS],
    },
    /// A directory's descriptor, which leads to a table of contexts.
    Directory { at: u64, substream: u32 },
    /// A context descriptor, word by word.
    Context {
        at: u64,
        substream: u32,
        words: [Option<u64>; WORDS],
    },
    /// A descriptor of a first-stage table of this level.
    First {
        context: FirstTables,
        half: Half,
        /// The address as the half sees it.
        low: u64,
        level: u8,
        table: Place,
    },
    /// Where an address leads that a first stage gave, or that goes through the second one alone.
    Out { first: Option<Given>, address: u64 },
}

/// Where a first stage's table is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Known(u64),
    /// Where the guest has it.
    Guests(u64),
}

/// What a first stage gave.
#[derive(Clone, Copy, Debug)]
struct Given {
    tag: Tag,
    span: u8,
    leaf: Cached,
}

impl Walk {
    fn new(doing: Doing) -> Self {
        Self {
            doing,
            stages: None,
            below: None,
            resolved: None,
            noting: None,
        }
    }

    fn of(stages: Stages, doing: Doing) -> Self {
        Self {
            stages: Some(stages),
            ..Self::new(doing)
        }
    }

    /// The guest that the walk is for, once that is known.
    pub(crate) fn vmid(&self) -> Option<u16> {
        self.stages.map(|stages| stages.vmid)
    }

    /// Whether the walk is about to read something that `is` says.
    pub(crate) fn leads(&self, is: impl Fn(u64) -> bool) -> bool {
        let guests = self.stages.is_some_and(|stages| stages.second.is_some());
        let root = self.stages.and_then(|stages| stages.second);
        let mine = match &self.doing {
            Doing::Entry { at, .. } => Some(*at),
            Doing::Directory { at, .. } | Doing::Context { at, .. } if !guests => Some(*at),
            Doing::First {
                table: Place::Known(table),
                ..
            } => Some(*table),
            _ => None,
        };
        let below = self.below.map(|below| below.table);
        let resolved = self.resolved.map(|(_, _, leaf)| leaf.to);
        let root = root.map(|tables| tables.root);
        [mine, below, resolved, root].into_iter().flatten().any(is)
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
        let mut walk = match &request.progress {
            Progress::Translated(reach) => return Step::Translated(*reach),
            Progress::Smmu(walk) => walk.clone(),
            _ => return self.begin(bus, request),
        };
        if let Doing::Entry { at, words } = &mut walk.doing {
            let at = *at;
            if fetch_word(bus, self.view, at, words) {
                request.progress = Progress::Smmu(walk);
                return Step::Again;
            }
            let stream = self.stream_of(request.requester);
            let words = words.map(Option::unwrap_or_default);
            return match self.entry_read(bus, stream, at, &words) {
                Some(entry) => self.bound(bus, request, entry),
                None => self.refuse(bus, request, event::BAD_STE, true, At::First),
            };
        }
        let Some(stages) = walk.stages else {
            return self.begin(bus, request);
        };
        let stepped = match walk.doing.clone() {
            Doing::Entry { .. } => Ok(()),
            Doing::Directory { at, substream } => {
                self.directory_step(bus, request, &mut walk, stages, at, substream)
            }
            Doing::Context { .. } => self.context_step(bus, request, &mut walk, stages),
            Doing::First { .. } => self.first_step(bus, request, &mut walk, stages),
            Doing::Out { first, address } => {
                self.out_step(bus, request, &mut walk, stages, first, address)
            }
        };
        match stepped {
            Ok(()) => {
                request.progress = Progress::Smmu(walk);
                Step::Again
            }
            Err(step) => step,
        }
    }

    fn begin(&mut self, bus: &mut Bus, request: &mut Request) -> Step {
        if !self.translates() {
            return match self.gate_is_closed() {
                true if self.gap_since.is_some() && bus.is_kept(request) => Step::InGap,
                true => Step::Lost {
                    why: "the closed gate of a unit that is off",
                },
                false => Step::Untranslated,
            };
        }
        if self.is_firmwares {
            // Those map what firmware uses, one to one.
            if bus.is_kept(request) {
                return Step::Untranslated;
            }
            // And record what they refuse, once there is a queue for that: it is there for whoever takes the unit over.
            let reason = event::TRANSLATION;
            self.record(bus, request, reason, At::First, None);
            return Step::Fault { reason };
        }
        if let Some(step) = self
            .behind_stalled(request)
            .or_else(|| self.unchecked(request))
        {
            return step;
        }
        let stream = self.stream_of(request.requester);
        if !bus.rng.one_in(8)
            && let Some(entry) = self.caches.configuration.stream(stream, &mut bus.rng)
        {
            return self.bound(bus, request, entry);
        }
        match self.entry_at(bus, stream) {
            Some(at) => {
                let words = [None; WORDS];
                let walk = Walk::new(Doing::Entry { at, words });
                request.progress = Progress::Smmu(Box::new(walk));
                Step::Again
            }
            None => self.refuse(bus, request, event::BAD_STREAM, true, At::First),
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
        let kept = &mut self.caches.configuration;
        let cached = kept.level_one(index, &mut bus.rng);
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
                kept.keep_level_one(index, known);
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
                self.caches.configuration.keep_stream(stream, entry);
                self.context_ahead(bus, stream, &entry);
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
        if let Some(step) = self.says(bus, request, &entry) {
            return step;
        }
        match entry {
            Stream::Invalid => self.refuse(bus, request, event::BAD_STE, true, At::First),
            Stream::Abort => Step::Lost {
                why: "the stream's entry, which aborts",
            },
            Stream::Bypass => self.pass(bus, request, None),
            Stream::Translates(stages) => match stages.first {
                Some(contexts) => self.choose_context(bus, request, stages, contexts),
                None => self.pass(bus, request, Some(stages)),
            },
        }
    }

    /// A request meets no first stage: it goes through the second one, or to memory.
    fn pass(&mut self, bus: &mut Bus, request: &mut Request, stages: Option<Stages>) -> Step {
        if request.substream.is_some() {
            return self.refuse(bus, request, event::BAD_SUBSTREAM, true, At::First);
        }
        self.past_first(bus, request, stages)
    }

    /// The same for one that may carry what it likes.
    fn past_first(&mut self, bus: &mut Bus, request: &mut Request, stages: Option<Stages>) -> Step {
        let address = request.address;
        let stages = stages.filter(|stages| stages.second.is_some());
        let bits = match stages {
            None => self.identity.address_bits(),
            Some(_) => self.identity.intermediate_bits(),
        };
        if address >> bits != 0 {
            return self.refuse(bus, request, event::ADDRESS_SIZE, true, At::Neither);
        }
        let Some(stages) = stages else {
            return untagged(request, address);
        };
        let first = None;
        let walk = Walk::of(stages, Doing::Out { first, address });
        request.progress = Progress::Smmu(Box::new(walk));
        Step::Again
    }

    /// Where an address leads, and whether the request may go there.
    fn out_step(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        stages: Stages,
        first: Option<Given>,
        address: u64,
    ) -> Result<(), Step> {
        let Some(tables) = stages.second else {
            // Without a second stage, the first one's word is the last.
            let given = first.ok_or(Step::Lost {
                why: "a walk without stages",
            })?;
            return Err(self.reach(bus, request, given.tag, given.span, &given.leaf, false));
        };
        let found = self.second(bus, request, walk, &tables, address, event::Class::Input)?;
        let Some((span, leaf)) = found else {
            return Ok(());
        };
        let Some(given) = first else {
            let tag = Tag::Second { vmid: tables.vmid };
            return Err(self.reach(bus, request, tag, span, &leaf, false));
        };
        // As small as the smaller of the two.
        let small = span.min(given.span);
        let to = (leaf.to + (address & ((1 << span) - 1))) >> small << small;
        let both = Cached {
            root: given.leaf.root,
            to,
            read: given.leaf.read && leaf.read,
            write: given.leaf.write && leaf.write,
            size: small,
            combined: true,
            memory: leaf.memory.over(given.leaf.memory),
            // The first stage's descriptors are not written; a clean page of the second's is walked to again.
            clean: leaf.clean,
        };
        self.caches.make_room(&mut bus.rng);
        self.caches
            .keep_leaf(given.tag, small, request.address, both);
        Err(self.reach(bus, request, given.tag, small, &both, true))
    }

    /// A leaf says where the request goes. `is_guests`: the guest had a say in it.
    fn reach(
        &self,
        bus: &mut Bus,
        request: &Request,
        tag: Tag,
        span: u8,
        leaf: &Cached,
        is_guests: bool,
    ) -> Step {
        let to = leaf.to + (request.address & ((1 << span) - 1));
        if bus.memory.is_there(to) && leaf.memory == Kind::Device && !is_guests {
            let what = format!(
                "{:#x} is memory, and a translation under {tag} takes it for registers",
                frame_of(to)
            );
            bus.broken(Rule::MemoryType, what);
        }
        if bus.services.at(to).is_some() && leaf.memory != Kind::Device && !is_guests {
            let what = format!(
                "{to:#x} is a register of interrupt services, and a translation under {tag} takes it for memory"
            );
            bus.broken(Rule::MemoryType, what);
        }
        Step::Translated(Reach {
            to,
            tag: tag.into(),
            span,
            // No_snoop comes after whatever the leaf says (IHI 0070, 13.6.1.1), S2FWB included (13.1.6).
            past_caches: request.no_snoop || leaf.memory == Kind::Uncached,
        })
    }

    /// Whether a walker can read there; a broken rule if not.
    fn can_read(&self, bus: &mut Bus, stream: u32, at: u64, is_guests: bool) -> bool {
        let there = bus.memory.is_there(at);
        if !there || is_guests && !bus.frames.is_out(frame_of(at)) {
            let what = format!("a walk for stream {stream:#x} read {at:#x}, where no memory is");
            bus.broken(Rule::FreedMemory, what);
        }
        there
    }
}

/// Where a request goes that nothing translates here.
pub(super) fn untagged(request: &Request, to: u64) -> Step {
    Step::Translated(Reach {
        to,
        tag: Tag::Untagged.into(),
        span: 12,
        past_caches: request.no_snoop,
    })
}

/// Whether permissions allow an access.
const fn allows(access: Access, (read, write): (bool, bool)) -> bool {
    match access {
        Access::Read => read,
        Access::Write => write,
    }
}
