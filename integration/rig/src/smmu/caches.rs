//! What an SMMUv3 remembers: first-level descriptors, stream table entries, links to tables, translations.
//!
//! Everything that was read is kept beside what is there already, entries that say "nothing" included where the
//! architecture allows that: configuration. Translations are kept of what is valid only.

use std::collections::BTreeMap;

use super::spec::command::Range;
use super::spec::stream::Stream;
use crate::rng::Rng;

/// How many translations are kept before some are dropped at random, as any cache may do.
const MOST: usize = 2048;
/// How many versions of one thing are kept.
const VERSIONS: usize = 4;

/// A link to a table or a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    /// The root of the table that it was read from.
    pub(crate) root: u64,
    /// Where it leads.
    pub(crate) to: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Of a leaf that was not written through when it was read: where its descriptor is, and what that was.
    pub(crate) clean: Option<(u64, u64)>,
}

/// Guest, log2 of the span, and the address bits from there up.
type Key = (u16, u8, u64);
type Kept = BTreeMap<Key, Vec<Cached>>;

/// The caches of one unit.
#[derive(Default)]
pub(crate) struct Caches {
    /// Per first-level index: where its entries are, and how many; `None` that there are none.
    level_one: BTreeMap<u32, Vec<Option<(u64, u64)>>>,
    streams: BTreeMap<u32, Vec<Stream>>,
    leaves: Kept,
    links: Kept,
    /// How often something leads into frames: log2 of its pages, first frame.
    named: BTreeMap<(u8, u64), u32>,
    kept: usize,
}

fn push<T: PartialEq>(kept: &mut Vec<T>, item: T) -> bool {
    let new = kept.len() < VERSIONS && !kept.contains(&item);
    if new {
        kept.push(item);
    }
    new
}

impl Caches {
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

    /// Keeps a translation of 2^`span` bytes.
    pub(crate) fn keep_leaf(&mut self, vmid: u16, span: u8, address: u64, entry: Cached) {
        if push(
            self.leaves
                .entry((vmid, span, address >> span))
                .or_default(),
            entry,
        ) {
            self.kept += 1;
            self.count(span - 12, &entry, 1);
        }
    }

    /// Keeps a link to a table of 2^`size` bytes that resolves 2^`span` bytes.
    pub(crate) fn keep_link(
        &mut self,
        vmid: u16,
        (span, size): (u8, u8),
        address: u64,
        entry: Cached,
    ) {
        if push(
            self.links.entry((vmid, span, address >> span)).or_default(),
            entry,
        ) {
            self.kept += 1;
            self.count(size - 12, &entry, 1);
        }
    }

    fn count(&mut self, pages: u8, entry: &Cached, by: i32) {
        let key = (pages, entry.to >> 12);
        let count = self.named.entry(key).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.named.remove(&key);
        }
    }

    fn find(
        kept: &Kept,
        vmid: u16,
        spans: &[u8],
        address: u64,
        rng: &mut Rng,
    ) -> Option<(u8, Cached)> {
        let first = rng.below(spans.len() as u64) as usize;
        (0..spans.len()).find_map(|step| {
            let span = *spans.get((first + step) % spans.len())?;
            let versions = kept.get(&(vmid, span, address >> span))?;
            rng.pick(versions).map(|entry| (span, *entry))
        })
    }

    /// A translation that is kept for an address, of one of these spans: any, if there are several.
    pub(crate) fn leaf(
        &self,
        vmid: u16,
        spans: &[u8],
        address: u64,
        rng: &mut Rng,
    ) -> Option<(u8, Cached)> {
        Self::find(&self.leaves, vmid, spans, address, rng)
    }

    /// A link that is kept for an address, of one of these spans: any, if there are several.
    pub(crate) fn link(
        &self,
        vmid: u16,
        spans: &[u8],
        address: u64,
        rng: &mut Rng,
    ) -> Option<(u8, Cached)> {
        Self::find(&self.links, vmid, spans, address, rng)
    }

    /// A translation that is kept for some of these addresses and contradicts a new one of 2^`span` bytes: it leads
    /// elsewhere, or `sizes` and it is of another size.
    pub(crate) fn conflict(
        &self,
        vmid: u16,
        span: u8,
        address: u64,
        to: u64,
        sizes: bool,
    ) -> Option<String> {
        let first = address >> span << span;
        let last = first + ((1 << span) - 1);
        [12, 14, 16, 21, 25, 29, 30]
            .into_iter()
            .find_map(|other: u8| {
                let keys = (vmid, other, first >> other)..=(vmid, other, last >> other);
                self.leaves.range(keys).find_map(|(key, versions)| {
                    // Where both begin, as the smaller of the two does.
                    let start = first.max(key.2 << other);
                    let clashes = |entry: &&Cached| {
                        let theirs = entry.to + (start - (key.2 << other));
                        theirs != to + (start - first) || sizes && other != span
                    };
                    let entry = versions.iter().find(clashes)?;
                    Some(describe("translation", key, entry.to))
                })
            })
    }

    /// Forgets the entry of a stream, and unless `leaf` what is above it.
    pub(crate) fn forget_streams(&mut self, first: u32, last: u32, leaf: bool, split: u8) {
        self.streams
            .retain(|stream, _| !(first..=last).contains(stream));
        if !leaf {
            let (first, last) = (first >> split, last >> split);
            self.level_one
                .retain(|index, _| !(first..=last).contains(index));
        }
    }

    /// Forgets all configuration.
    pub(crate) fn forget_configuration(&mut self) {
        self.streams.clear();
        self.level_one.clear();
    }

    /// Forgets every translation and link.
    pub(crate) fn forget_translations(&mut self) {
        self.leaves.clear();
        self.links.clear();
        self.named.clear();
        self.kept = 0;
    }

    fn drop_where(&mut self, size: u8, gone: impl Fn(&Key, bool) -> bool) {
        let mut dropped = Vec::new();
        self.leaves.retain(|key, versions| {
            let goes = gone(key, true);
            if goes {
                dropped.extend(versions.drain(..).map(|entry| (key.1 - 12, entry)));
            }
            !goes
        });
        self.links.retain(|key, versions| {
            let goes = gone(key, false);
            if goes {
                dropped.extend(versions.drain(..).map(|entry| (size - 12, entry)));
            }
            !goes
        });
        self.kept -= dropped.len();
        for (pages, entry) in dropped {
            self.count(pages, &entry, -1);
        }
    }

    /// Forgets everything of a guest, whose tables have 2^`size` bytes.
    pub(crate) fn forget_guest(&mut self, vmid: u16, size: u8) {
        self.drop_where(size, |key, _| key.0 == vmid);
    }

    /// Forgets what a range names and nothing more.
    pub(crate) fn forget_range(&mut self, range: &Range, size: u8) {
        self.drop_where(size, |(vmid, span, index), is_leaf| {
            let inside =
                *vmid == range.vmid && (range.first >> span..=range.last >> span).contains(index);
            let meant = if is_leaf {
                range.only.is_none_or(|only| only == *span)
            } else {
                // Links above the level that the hint names.
                !range.leaf && range.only.is_none_or(|only| only < *span)
            };
            inside && meant
        });
    }

    /// Drops something by itself.
    pub(crate) fn evict_one(&mut self, rng: &mut Rng, size: u8) {
        if rng.one_in(4) {
            self.streams.pop_first();
            return;
        }
        let from = (rng.below(16) as u16, 12, rng.below(256));
        let next = self.leaves.range(from..).next().map(|(key, _)| *key);
        let link = || self.links.range(from..).next().map(|(key, _)| *key);
        if let Some(found) = next.or_else(link) {
            self.drop_where(size, |key, _| *key == found);
        }
    }

    /// Makes room, as any cache of finite size does.
    pub(crate) fn make_room(&mut self, rng: &mut Rng, size: u8) {
        if self.kept > MOST {
            // Half of it at once: rarely, then.
            let odd = rng.below(2);
            self.drop_where(size, |key, is_leaf| !is_leaf || key.2 & 1 == odd);
        }
    }

    /// A translation or link into one of these frames, in words.
    pub(crate) fn naming(&self, first: u64, pages: u64) -> Option<String> {
        let sizes = [0, 2, 4, 9, 13, 17, 18];
        let (size, frame) = sizes.into_iter().find_map(|size: u8| {
            let from = first.saturating_sub((1 << size) - 1);
            let keys = (size, from)..(size, first + pages);
            self.named.range(keys).next().map(|(key, _)| *key)
        })?;
        let is = |versions: &[Cached]| versions.iter().any(|entry| entry.to >> 12 == frame);
        let all = self.leaves.iter().map(|kept| (kept, "translation"));
        let mut all = all.chain(self.links.iter().map(|kept| (kept, "link to a table")));
        let found = all.find(|((_, versions), _)| is(versions));
        Some(match found {
            Some(((key, _), what)) => describe(what, key, frame << 12),
            None => format!("something of 2^{size} pages to frame {frame:#x}"),
        })
    }

    /// A translation of one of these pages that is kept for a guest, in words.
    pub(crate) fn holding(&self, vmid: u16, page: u64, pages: u64) -> Option<String> {
        let (first, last) = (page << 12, ((page + pages) << 12) - 1);
        let mut kept = self.leaves.range((vmid, 0, 0)..=(vmid, u8::MAX, u64::MAX));
        kept.find_map(|(key, versions)| {
            let inside = (first >> key.1..=last >> key.1).contains(&key.2);
            let entry = versions.first().filter(|_| inside)?;
            Some(describe("translation", key, entry.to))
        })
    }

    /// What is kept for the addresses of the leaf of 2^`span` bytes at `at` and is not that leaf, in words: another
    /// leaf, one that allows more, or a link past it.
    pub(crate) fn differing(
        &self,
        vmid: u16,
        span: u8,
        at: u64,
        to: u64,
        (read, write): (bool, bool),
    ) -> Option<String> {
        let last = at + ((1 << span) - 1);
        let all = (vmid, 0, 0)..=(vmid, u8::MAX, u64::MAX);
        let inside = |key: &Key| (at >> key.1..=last >> key.1).contains(&key.2);
        let leaf = self.leaves.range(all.clone()).find_map(|(key, versions)| {
            let differs = |entry: &&Cached| {
                let same = key.1 == span && entry.to == to;
                !same || entry.read && !read || entry.write && !write
            };
            let entry = versions.iter().filter(|_| inside(key)).find(differs)?;
            Some(describe("translation", key, entry.to))
        });
        let link = || {
            let mut links = self.links.range(all);
            links.find_map(|(key, versions)| {
                let past = key.1 <= span && inside(key);
                let entry = versions.first().filter(|_| past)?;
                Some(describe("link to a table", key, entry.to))
            })
        };
        leaf.or_else(link)
    }

    /// An entry of a stream, or a first-level descriptor, that names one of these frames, in words.
    pub(crate) fn configuration_naming(&self, first: u64, pages: u64) -> Option<String> {
        let inside = |at: u64| (first..first + pages).contains(&(at >> 12));
        let root = self.streams.iter().find_map(|(stream, kept)| {
            let named = kept.iter().find_map(|entry| match entry {
                Stream::Tables(tables) if inside(tables.root) => Some(tables.root),
                _ => None,
            })?;
            Some(format!(
                "the cached entry of stream {stream:#x}, to a root at {named:#x}"
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
        root.or_else(table)
    }

    /// A root other than `root` from which something of this guest is kept.
    pub(crate) fn other_root(&self, vmid: u16, root: u64) -> Option<u64> {
        let all = (vmid, 0, 0)..=(vmid, u8::MAX, u64::MAX);
        let kept = self.leaves.range(all.clone()).chain(self.links.range(all));
        let roots = kept.flat_map(|(_, versions)| versions.iter().map(|entry| entry.root));
        let entries = self.streams.values().flatten();
        let bound = entries.filter_map(|entry| match entry {
            Stream::Tables(tables) if tables.vmid == vmid => Some(tables.root),
            _ => None,
        });
        roots.chain(bound).find(|other| *other != root)
    }
}

fn describe(what: &str, (vmid, span, index): &Key, to: u64) -> String {
    format!(
        "the cached {what} of 2^{span} bytes for {:#x} under VMID {vmid} to {to:#x}",
        index << span
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(frame: u64) -> Cached {
        Cached {
            root: 0x1000,
            to: frame << 12,
            read: true,
            write: true,
            clean: None,
        }
    }

    fn range(first: u64, last: u64, leaf: bool) -> Range {
        Range {
            vmid: 1,
            first,
            last,
            leaf,
            only: None,
        }
    }

    const SPANS: [u8; 3] = [12, 21, 30];

    #[test]
    fn an_invalidation_drops_what_it_names_and_nothing_more() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        for page in 0..8 {
            caches.keep_leaf(1, 12, page << 12, to(100 + page));
            caches.keep_leaf(2, 12, page << 12, to(200 + page));
        }
        caches.keep_link(1, (21, 12), 0, to(50));
        caches.forget_range(&range(0x2000, 0x3fff, true), 12);
        let mut has = |vmid, page: u64| caches.leaf(vmid, &SPANS, page << 12, &mut rng).is_some();
        assert!(has(1, 1) && !has(1, 2) && !has(1, 3) && has(1, 4) && has(2, 2));
        assert!(caches.link(1, &SPANS, 0, &mut rng).is_some(), "leaves only");
        assert!(caches.naming(102, 2).is_none() && caches.naming(104, 1).is_some());
        caches.forget_range(&range(0x7000, 0x7000, false), 12);
        assert!(caches.link(1, &SPANS, 0, &mut rng).is_none());
        caches.forget_guest(2, 12);
        assert!(caches.naming(200, 8).is_none() && caches.naming(104, 1).is_some());
    }

    #[test]
    fn a_large_leaf_goes_with_any_address_of_it_but_not_with_a_hint_of_another_level() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        caches.keep_leaf(1, 21, 0x20_0000, to(512));
        let hint = Range {
            only: Some(12),
            ..range(0x20_0000, 0x20_0fff, false)
        };
        caches.forget_range(&hint, 12);
        assert!(caches.leaf(1, &SPANS, 0x20_5000, &mut rng).is_some());
        assert!(
            caches.naming(600, 1).is_some(),
            "a frame in the middle of it"
        );
        caches.forget_range(&range(0x20_7000, 0x20_7000, true), 12);
        assert!(caches.leaf(1, &SPANS, 0x20_5000, &mut rng).is_none());
        assert!(caches.naming(600, 1).is_none());
    }

    #[test]
    fn two_translations_of_one_address_conflict() {
        let mut caches = Caches::default();
        caches.keep_leaf(1, 21, 0x20_0000, to(512));
        let clash = |caches: &Caches, span, address, frame: u64, sizes| {
            caches
                .conflict(1, span, address, frame << 12, sizes)
                .is_some()
        };
        assert!(!clash(&caches, 21, 0x20_0000, 512, true));
        assert!(clash(&caches, 21, 0x20_0000, 1024, false), "elsewhere");
        assert!(clash(&caches, 12, 0x20_5000, 517, true), "another size");
        assert!(!clash(&caches, 12, 0x20_5000, 517, false));
        assert!(clash(&caches, 12, 0x20_5000, 518, false));
        assert!(!clash(&caches, 12, 0x40_5000, 518, true));
    }
}
