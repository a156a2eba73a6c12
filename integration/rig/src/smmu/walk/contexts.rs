//! From a stream and a substream to a context descriptor.

use super::super::Unit;
use super::super::spec::context::{self, CONTEXT_BYTES, Context};
use super::super::spec::event::{self, At, Class};
use super::super::spec::stream::{Contexts, Stages, Stream, WORDS, WithoutSubstream};
use super::super::structures::{Ahead, Fetched};
use super::{Doing, Walk, fetch_word};
use crate::bus::Bus;
use crate::request::{Progress, Request, Step};
use crate::rule::Rule;

impl Unit {
    /// Which context a request has (IHI 0070, 5.2, S1CDMax and S1DSS).
    pub(super) fn choose_context(
        &mut self,
        bus: &mut Bus,
        request: &mut Request,
        stages: Stages,
        contexts: Contexts,
    ) -> Step {
        let zero = contexts.without == WithoutSubstream::UseZero;
        let chosen = match request.substream {
            Some(substream) if u64::from(substream) >> contexts.log2 != 0 || contexts.log2 == 0 => {
                Err(event::BAD_SUBSTREAM)
            }
            Some(0) if zero => Err(event::STREAM_DISABLED),
            Some(substream) => Ok(substream),
            None if contexts.log2 == 0 || zero => Ok(0),
            None if contexts.without == WithoutSubstream::PassFirst => {
                return self.past_first(bus, request, Some(stages));
            }
            None => Err(event::STREAM_DISABLED),
        };
        let substream = match chosen {
            Ok(substream) => substream,
            Err(code) => return self.refuse(bus, request, code, true, At::First),
        };
        let stream = self.stream_of(request.requester);
        let kept = &self.caches.configuration;
        if !bus.rng.one_in(8)
            && let Some(context) = kept.context(stream, substream, &mut bus.rng)
        {
            let mut walk = Walk::of(stages, Doing::Directory { at: 0, substream });
            return match self.translate_first(bus, request, &mut walk, stages, context) {
                Ok(()) => {
                    request.progress = Progress::Smmu(Box::new(walk));
                    Step::Again
                }
                Err(step) => step,
            };
        }
        let doing = match contexts.split {
            None => context_at(contexts.at, substream),
            Some(split) => {
                let cached = kept.directory(stream, (split, substream), &mut bus.rng);
                match cached.filter(|_| !bus.rng.one_in(8)) {
                    Some(Some(table)) => {
                        context_at(table, substream & ((1 << split) - 1)).with_substream(substream)
                    }
                    Some(None) => {
                        return self.refuse(bus, request, event::BAD_SUBSTREAM, true, At::First);
                    }
                    None => Doing::Directory {
                        at: contexts.at + u64::from(substream >> split) * 8,
                        substream,
                    },
                }
            }
        };
        request.progress = Progress::Smmu(Box::new(Walk::of(stages, doing)));
        Step::Again
    }

    /// Where configuration is that the entry of a stream leads to: through the second stage, if there is one.
    fn place_of(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        stages: Stages,
        at: u64,
    ) -> Result<Option<u64>, Step> {
        let stream = self.stream_of(request.requester);
        let Some(tables) = stages.second else {
            return match self.can_read(bus, stream, at, false) {
                true => Ok(Some(at)),
                false => Err(self.refuse(bus, request, event::CONTEXT_ABORT, true, At::First)),
            };
        };
        let Some((span, leaf)) = self.second(bus, request, walk, &tables, at, Class::Context)?
        else {
            return Ok(None);
        };
        let at = leaf.to + (at & ((1 << span) - 1));
        match self.can_read(bus, stream, at, true) {
            true => Ok(Some(at)),
            false => Err(self.refuse(bus, request, event::CONTEXT_ABORT, true, At::First)),
        }
    }

    /// Reads a directory's descriptor.
    pub(super) fn directory_step(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        stages: Stages,
        at: u64,
        substream: u32,
    ) -> Result<(), Step> {
        let Some(place) = self.place_of(bus, request, walk, stages, at)? else {
            return Ok(());
        };
        let split = stages.first.and_then(|contexts| contexts.split);
        let split = split.unwrap_or_default();
        let (is_guests, stream) = (stages.second.is_some(), self.stream_of(request.requester));
        let word = bus.fetch(self.view, place);
        let table = match context::directory(word, split, self.identity.address_bits()) {
            Ok(table) => table,
            Err(why) => {
                if !is_guests {
                    let what =
                        format!("directory of contexts of stream {stream:#x} at {at:#x}: {why}");
                    bus.broken(Rule::ReservedBits, what);
                }
                None
            }
        };
        let kept = &mut self.caches.configuration;
        kept.keep_directory(stream, (split, substream), table);
        let Some(table) = table else {
            return Err(self.refuse(bus, request, event::BAD_SUBSTREAM, true, At::First));
        };
        walk.resolved = None;
        let index = substream & ((1 << split) - 1);
        walk.doing = context_at(table, index).with_substream(substream);
        Ok(())
    }

    /// Reads a word of a context descriptor.
    pub(super) fn context_step(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        stages: Stages,
    ) -> Result<(), Step> {
        let Doing::Context { at, substream, .. } = walk.doing else {
            return Ok(());
        };
        let Some(place) = self.place_of(bus, request, walk, stages, at)? else {
            return Ok(());
        };
        let Doing::Context { words, .. } = &mut walk.doing else {
            return Ok(());
        };
        if fetch_word(bus, self.view, place, words) {
            return Ok(());
        }
        let words = words.map(Option::unwrap_or_default);
        let stream = self.stream_of(request.requester);
        match self.context_read(bus, stream, substream, &stages, &words) {
            Some(context) => self.translate_first(bus, request, walk, stages, context),
            None => Err(self.refuse(bus, request, event::BAD_CONTEXT, true, At::First)),
        }
    }

    /// A descriptor was read whole: what it says, which is kept. `None` for an illegal one.
    pub(in super::super) fn context_read(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        substream: u32,
        stages: &Stages,
        words: &[u64; WORDS],
    ) -> Option<Context> {
        let (is_guests, no_stalls) = (
            stages.second.is_some(),
            stages.first.is_some_and(|contexts| contexts.no_stalls),
        );
        let read = context::decode(words, &self.identity.context_limits(), no_stalls);
        let kept = &mut self.caches.configuration;
        match read {
            Ok(context) => {
                if !is_guests && !self.structures.said_context(stream, substream, &context) {
                    let what = format!(
                        "the unit read {words:x?} for descriptor {substream:#x} of stream {stream:#x}, word by word: \
                         {context:x?}, which the descriptor never was while its entry led there"
                    );
                    bus.broken(Rule::TornEntry, what);
                }
                kept.keep_context(stream, substream, context);
                Some(context)
            }
            Err(why) => {
                if !is_guests {
                    let what = format!(
                        "the unit read for descriptor {substream:#x} of stream {stream:#x}: {why}"
                    );
                    bus.broken(Rule::TornEntry, what);
                }
                kept.keep_context(stream, substream, Context::Invalid);
                None
            }
        }
    }

    /// The unit may read each context that an entry leads to, whoever sends: it begins to, now and then.
    pub(super) fn context_ahead(&mut self, bus: &mut Bus, stream: u32, entry: &Stream) {
        let Stream::Translates(stages) = entry else {
            return;
        };
        let Some(contexts) = stages.first.filter(|_| stages.second.is_none()) else {
            return;
        };
        if !bus.temper.neighbours || self.structures.ahead.is_some() || !bus.rng.one_in(2) {
            return;
        }
        let mut substream = bus.rng.below(1 << contexts.log2.min(4)) as u32;
        if bus.rng.one_in(4) {
            substream = bus.rng.below(1 << contexts.log2) as u32;
        }
        let Some(at) = self.structures.context_at(bus, &contexts, substream) else {
            return;
        };
        self.structures.ahead = Some(Ahead {
            what: Fetched::Context {
                stream,
                substream,
                stages: *stages,
            },
            at,
            words: [None; WORDS],
        });
    }
}

/// The descriptor of a place in a table.
fn context_at(table: u64, substream: u32) -> Doing {
    Doing::Context {
        at: table + u64::from(substream) * CONTEXT_BYTES,
        substream,
        words: [None; WORDS],
    }
}

impl Doing {
    /// The same, known by this number.
    fn with_substream(self, number: u32) -> Self {
        match self {
            Self::Context { at, words, .. } => Self::Context {
                at,
                substream: number,
                words,
            },
            other => other,
        }
    }
}
