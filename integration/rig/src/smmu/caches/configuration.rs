//! What an SMMUv3 remembers of its configuration: stream table entries, context descriptors, and what leads to both.
//!
//! Each kind is kept for itself (IHI 0070, 4.3): forgetting one drops another only where the manual says so. What says
//! "nothing" is kept like everything else.

use std::collections::BTreeMap;

use super::push;
use crate::rng::Rng;
use crate::smmu::spec::context::Context;
use crate::smmu::spec::stream::Stream;

/// Configuration that one unit keeps.
#[derive(Default)]
pub(crate) struct Configuration {
    /// Per first-level index: where its entries are, and how many; `None` that there are none.
    level_one: BTreeMap<u32, Vec<Option<(u64, u64)>>>,
    streams: BTreeMap<u32, Vec<Stream>>,
    /// Per stream, bits below a directory, and place in it: where a table of descriptors is; `None` that there is none.
    directories: BTreeMap<(u32, u8, u32), Vec<Option<u64>>>,
    /// Per stream and substream. Where they were read makes no difference.
    contexts: BTreeMap<(u32, u32), Vec<Context>>,
}

impl Configuration {
    /// Keeps a first-level descriptor.
    pub(crate) fn keep_level_one(&mut self, index: u32, table: Option<(u64, u64)>) {
        push(self.level_one.entry(index).or_default(), table);
    }

    /// A first-level descriptor that is kept: one of them, if there are several.
    pub(crate) fn level_one(&self, index: u32, rng: &mut Rng) -> Option<Option<(u64, u64)>> {
        rng.pick(self.level_one.get(&index)?).copied()
    }

    /// Keeps a stream's entry.
    pub(crate) fn keep_stream(&mut self, stream: u32, entry: Stream) {
        push(self.streams.entry(stream).or_default(), entry);
    }

    /// A stream's entry that is kept: one of them, if there are several.
    pub(crate) fn stream(&self, stream: u32, rng: &mut Rng) -> Option<Stream> {
        rng.pick(self.streams.get(&stream)?).copied()
    }

    /// All that is kept of a stream's entry.
    pub(crate) fn entries_of(&self, stream: u32) -> impl Iterator<Item = &Stream> {
        self.streams.get(&stream).into_iter().flatten()
    }

    /// Keeps a directory's descriptor, which is for 2^`split` substreams.
    pub(crate) fn keep_directory(
        &mut self,
        stream: u32,
        (split, substream): (u8, u32),
        table: Option<u64>,
    ) {
        let key = (stream, split, substream >> split);
        push(self.directories.entry(key).or_default(), table);
    }

    /// A directory's descriptor that is kept: one of them, if there are several.
    pub(crate) fn directory(
        &self,
        stream: u32,
        (split, substream): (u8, u32),
        rng: &mut Rng,
    ) -> Option<Option<u64>> {
        let key = (stream, split, substream >> split);
        rng.pick(self.directories.get(&key)?).copied()
    }

    /// Keeps a context descriptor.
    pub(crate) fn keep_context(&mut self, stream: u32, substream: u32, context: Context) {
        push(
            self.contexts.entry((stream, substream)).or_default(),
            context,
        );
    }

    /// A context descriptor that is kept: one of them, if there are several.
    pub(crate) fn context(&self, stream: u32, substream: u32, rng: &mut Rng) -> Option<Context> {
        rng.pick(self.contexts.get(&(stream, substream))?).copied()
    }

    /// All that is kept of a context.
    pub(crate) fn contexts_of(&self, stream: u32, substream: u32) -> &[Context] {
        let kept = self.contexts.get(&(stream, substream));
        kept.map_or(&[], Vec::as_slice)
    }

    /// Forgets the entries of streams, and unless `leaf` what is above them; their contexts in any case (IHI 0070, 4.3.1).
    pub(crate) fn forget_streams(&mut self, first: u32, last: u32, leaf: bool, split: u8) {
        let named = |stream: u32| (first..=last).contains(&stream);
        self.streams.retain(|stream, _| !named(*stream));
        if !leaf {
            let (first, last) = (first >> split, last >> split);
            self.level_one
                .retain(|index, _| !(first..=last).contains(index));
        }
        self.contexts.retain(|(stream, _), _| !named(*stream));
        self.directories.retain(|(stream, ..), _| !named(*stream));
    }

    /// Forgets a context, and unless `leaf` what led to it.
    pub(crate) fn forget_context(&mut self, stream: u32, substream: u32, leaf: bool) {
        self.contexts.remove(&(stream, substream));
        if !leaf {
            self.directories.retain(|(other, split, index), _| {
                (*other, *index) != (stream, substream >> *split)
            });
        }
    }

    /// Forgets all contexts of a stream, and what led to them.
    pub(crate) fn forget_contexts(&mut self, stream: u32) {
        self.contexts.retain(|(other, _), _| *other != stream);
        self.directories.retain(|(other, ..), _| *other != stream);
    }

    /// Forgets everything.
    pub(crate) fn forget_all(&mut self) {
        *self = Self::default();
    }

    /// Drops something by itself.
    pub(crate) fn evict_one(&mut self, rng: &mut Rng) {
        if rng.one_in(2) {
            self.streams.pop_first();
        } else {
            self.contexts.pop_first();
        }
    }

    /// The roots that entries, or contexts, lead to under these ids.
    pub(crate) fn roots(&self, vmid: u16, asid: Option<u16>) -> impl Iterator<Item = u64> {
        let entries = self.streams.values().flatten();
        let second = entries.filter_map(move |entry| match (entry, asid) {
            (Stream::Translates(stages), None) if stages.vmid == vmid => Some(stages.second?.root),
            _ => None,
        });
        // A context counts under the VMID of its stream's entry: those of a user have its own, and roots that are no frames.
        let contexts = self.contexts.iter().filter(move |((stream, _), _)| {
            let mut entries = self.streams.get(stream).into_iter().flatten();
            entries.any(|entry| matches!(entry, Stream::Translates(stages) if stages.vmid == vmid))
        });
        let contexts = contexts.flat_map(|(_, contexts)| contexts);
        let first = contexts.filter_map(move |context| match context {
            Context::Tables(tables) if asid == Some(tables.asid) => Some(tables.halves),
            _ => None,
        });
        second.chain(first.flatten().flatten().map(|half| half.root))
    }

    /// Something kept that names one of these frames, in words.
    pub(crate) fn naming(&self, first: u64, pages: u64) -> Option<String> {
        let inside = |at: u64| (first..first + pages).contains(&(at >> 12));
        let root = self.streams.iter().find_map(|(stream, kept)| {
            let named = kept.iter().find_map(|entry| {
                let Stream::Translates(stages) = entry else {
                    return None;
                };
                // Addresses of a guest are no frames.
                let contexts = stages.first.filter(|_| stages.second.is_none());
                let contexts = contexts.map(|contexts| contexts.at);
                let root = stages.second.map(|tables| tables.root);
                root.into_iter().chain(contexts).find(|at| inside(*at))
            })?;
            Some(format!(
                "the cached entry of stream {stream:#x}, to tables at {named:#x}"
            ))
        });
        let table = || {
            self.level_one.iter().find_map(|(index, kept)| {
                let (at, _) = kept.iter().flatten().find(|(at, _)| inside(*at))?;
                Some(format!(
                    "the cached first-level descriptor {index:#x}, to {at:#x}"
                ))
            })
        };
        let context = || {
            self.contexts.iter().find_map(|((stream, substream), kept)| {
                // What a guest's own descriptors name is not ours to say; its streams have second stages.
                if self.is_guests(*stream) {
                    return None;
                }
                let halves = kept.iter().filter_map(|context| match context {
                    Context::Tables(tables) => Some(tables.halves),
                    Context::Invalid => None,
                });
                let mut halves = halves.flatten().flatten();
                let half = halves.find(|half| inside(half.root))?;
                Some(format!(
                    "the cached descriptor {substream:#x} of stream {stream:#x}, to a root at {:#x}",
                    half.root
                ))
            })
        };
        root.or_else(table).or_else(context)
    }

    fn is_guests(&self, stream: u32) -> bool {
        let kept = self.streams.get(&stream);
        kept.into_iter().flatten().any(|entry| match entry {
            Stream::Translates(stages) => stages.second.is_some(),
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgetting_one_kind_leaves_the_others_but_for_contexts_of_an_entry() {
        let mut rng = Rng::new(1);
        let mut kept = Configuration::default();
        let fill = |kept: &mut Configuration| {
            for stream in [3, 4] {
                kept.keep_stream(stream, Stream::Abort);
                for substream in [0, 5, 0x405] {
                    kept.keep_context(stream, substream, Context::Invalid);
                    kept.keep_directory(stream, (10, substream), Some(0x1000));
                }
            }
            kept.keep_level_one(0, None);
        };
        fill(&mut kept);
        kept.forget_context(3, 5, true);
        let mut context = |kept: &Configuration, stream, substream| {
            kept.context(stream, substream, &mut rng).is_some()
        };
        assert!(!context(&kept, 3, 5) && context(&kept, 3, 0) && context(&kept, 4, 5));
        let mut rng = Rng::new(2);
        let mut directory = |kept: &Configuration, stream, substream| {
            kept.directory(stream, (10, substream), &mut rng).is_some()
        };
        assert!(directory(&kept, 3, 5), "leaves only");
        kept.forget_context(3, 5, false);
        assert!(!directory(&kept, 3, 0) && directory(&kept, 3, 0x405) && directory(&kept, 4, 0));
        kept.forget_contexts(3);
        assert!(!context(&kept, 3, 0) && !directory(&kept, 3, 0x405) && context(&kept, 4, 0));
        kept.forget_streams(4, 4, true, 8);
        assert!(!context(&kept, 4, 0) && !directory(&kept, 4, 5));
        assert!(kept.level_one.contains_key(&0) && kept.streams.contains_key(&3));
        kept.forget_streams(3, 3, false, 8);
        assert!(kept.level_one.is_empty() && kept.streams.is_empty());
        fill(&mut kept);
        kept.forget_all();
        assert!(kept.contexts.is_empty() && kept.directories.is_empty());
    }
}
