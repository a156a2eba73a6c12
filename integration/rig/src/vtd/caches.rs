//! What a VT-d unit remembers: context entries, links to tables, translations. For ever, unless told.
//!
//! Everything that was read is kept beside what is there already, so that after a change without its
//! invalidation both the old and the new are used. Under caching mode what was absent is kept too.

use std::collections::BTreeMap;

use super::spec::entries::{Context, span_bits};
use crate::rng::Rng;

/// How many translations are kept before some are dropped at random, as any cache may do.
const MOST: usize = 2048;

/// A context entry, or that there was none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachedContext {
    /// The domain that it is filed under: 0 for one that was absent.
    pub(crate) domain: u16,
    pub(crate) entry: Option<Context>,
    /// Of one that was absent: whether it said that its faults are not recorded.
    pub(crate) is_quiet: bool,
}

/// A link to a table or a translation, or that there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    /// The root of the table that it was read from.
    pub(crate) root: u64,
    /// Where it leads.
    pub(crate) to: Option<u64>,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Whether requests by it snoop the CPU's caches whatever they ask for.
    pub(crate) snoops: bool,
}

/// Domain, level and index of an entry: the address bits from that level's span up.
type Key = (u16, u8, u64);

/// The caches of one unit.
#[derive(Default)]
pub(crate) struct Caches {
    contexts: BTreeMap<u16, Vec<CachedContext>>,
    /// Requesters of which the IOTLB knows that they were bound to nothing, filed under domain 0, and whether their entries
    /// said that their faults are not recorded.
    unbound: BTreeMap<u16, bool>,
    leaves: BTreeMap<Key, Vec<Cached>>,
    links: BTreeMap<Key, Vec<Cached>>,
    /// How many leaves and links lead into each frame; larger leaves by their first.
    named: BTreeMap<u64, u32>,
    /// Larger leaves: first frame and level, each as often as it is cached.
    large: BTreeMap<(u64, u8), u32>,
    kept: usize,
}

fn key(domain: u16, level: u8, address: u64) -> Key {
    (domain, level, address >> span_bits(level))
}

impl Caches {
    /// Keeps a context entry.
    pub(crate) fn keep_context(&mut self, requester: u16, context: CachedContext) {
        let kept = self.contexts.entry(requester).or_default();
        if kept.len() < 4 && !kept.contains(&context) {
            kept.push(context);
        }
    }

    /// A context entry that is kept for a requester: one of them, if there are several.
    pub(crate) fn context(&self, requester: u16, rng: &mut Rng) -> Option<&CachedContext> {
        rng.pick(self.contexts.get(&requester)?)
    }

    /// Keeps in the IOTLB that a requester was bound to nothing.
    pub(crate) fn keep_unbound(&mut self, requester: u16, is_quiet: bool) {
        self.unbound.entry(requester).or_insert(is_quiet);
    }

    /// Whether its entry said that its faults are not recorded, of a requester of which the IOTLB knows that it is bound to
    /// nothing.
    pub(crate) fn unbound(&self, requester: u16) -> Option<bool> {
        self.unbound.get(&requester).copied()
    }

    fn keep(map: &mut BTreeMap<Key, Vec<Cached>>, key: Key, entry: Cached) -> bool {
        let kept = map.entry(key).or_default();
        if kept.len() >= 4 || kept.contains(&entry) {
            return false;
        }
        kept.push(entry);
        true
    }

    /// Keeps a translation that was read at `level`.
    pub(crate) fn keep_leaf(&mut self, domain: u16, level: u8, address: u64, entry: Cached) {
        if Self::keep(&mut self.leaves, key(domain, level, address), entry) {
            self.kept += 1;
            self.count(level, true, &entry, 1);
        }
    }

    /// Keeps a link that was read at `level`: the table of the next lower one.
    pub(crate) fn keep_link(&mut self, domain: u16, level: u8, address: u64, entry: Cached) {
        if Self::keep(&mut self.links, key(domain, level, address), entry) {
            self.kept += 1;
            self.count(level, false, &entry, 1);
        }
    }

    fn count(&mut self, level: u8, leaf: bool, entry: &Cached, by: i32) {
        let Some(to) = entry.to else { return };
        let frame = to >> span_bits(1);
        let adjust = |count: &mut u32| *count = count.saturating_add_signed(by);
        if leaf && level > 1 {
            let count = self.large.entry((frame, level)).or_default();
            adjust(count);
            if *count == 0 {
                self.large.remove(&(frame, level));
            }
        } else {
            let count = self.named.entry(frame).or_default();
            adjust(count);
            if *count == 0 {
                self.named.remove(&frame);
            }
        }
    }

    /// A translation that is kept for an address: level and entry, one of them if there are several.
    pub(crate) fn leaf(&self, domain: u16, address: u64, rng: &mut Rng) -> Option<(u8, Cached)> {
        let first = rng.below(3) as u8;
        (0..3).find_map(|step| {
            let level = 1 + (first + step) % 3;
            let kept = self.leaves.get(&key(domain, level, address))?;
            rng.pick(kept).map(|entry| (level, *entry))
        })
    }

    /// A link that is kept for an address, below `levels`.
    pub(crate) fn link(
        &self,
        domain: u16,
        levels: u8,
        address: u64,
        rng: &mut Rng,
    ) -> Option<(u8, Cached)> {
        let span = levels.saturating_sub(1);
        let first = rng.below(span.into()) as u8;
        (0..span).find_map(|step| {
            let level = 2 + (first + step) % span;
            let kept = self.links.get(&key(domain, level, address))?;
            rng.pick(kept).map(|entry| (level, *entry))
        })
    }

    /// Forgets everything.
    pub(crate) fn forget_all(&mut self) {
        *self = Self::default();
    }

    /// Forgets every context entry.
    pub(crate) fn forget_contexts(&mut self) {
        self.contexts.clear();
    }

    /// Forgets the context entries of a domain.
    pub(crate) fn forget_contexts_of(&mut self, domain: u16) {
        for kept in self.contexts.values_mut() {
            kept.retain(|context| context.domain != domain);
        }
    }

    /// Forgets the context entries of a domain for a requester; `mask` bits of its number do not count.
    pub(crate) fn forget_context(&mut self, domain: u16, requester: u16, mask: u16) {
        for (other, kept) in &mut self.contexts {
            if other & !mask == requester & !mask {
                kept.retain(|context| context.domain != domain);
            }
        }
    }

    /// Forgets every translation and link.
    pub(crate) fn forget_translations(&mut self) {
        self.unbound.clear();
        self.leaves.clear();
        self.links.clear();
        self.named.clear();
        self.large.clear();
        self.kept = 0;
    }

    fn drop_from(&mut self, leaf: bool, key: Key) {
        let map = if leaf {
            &mut self.leaves
        } else {
            &mut self.links
        };
        for entry in map.remove(&key).unwrap_or_default() {
            self.kept -= 1;
            self.count(key.1, leaf, &entry, -1);
        }
    }

    fn keys(map: &BTreeMap<Key, Vec<Cached>>, from: Key, to: Key) -> Vec<Key> {
        map.range(from..=to).map(|(key, _)| *key).collect()
    }

    /// Forgets the translations and links of a domain.
    pub(crate) fn forget_domain(&mut self, domain: u16) {
        if domain == 0 {
            self.unbound.clear();
        }
        let (from, to) = ((domain, 0, 0), (domain, u8::MAX, u64::MAX));
        for key in Self::keys(&self.leaves, from, to) {
            self.drop_from(true, key);
        }
        for key in Self::keys(&self.links, from, to) {
            self.drop_from(false, key);
        }
    }

    /// Forgets the translations of a domain that lie wholly in 2^`mask` pages from `page`, and unless
    /// only leaves were asked for, every link that one of the pages goes through.
    ///
    /// A larger leaf that only overlaps stays: its invalidation needs a mask that covers it.
    pub(crate) fn forget_pages(&mut self, domain: u16, page: u64, mask: u8, leaves_only: bool) {
        let last = page + ((1_u64 << mask.min(52)) - 1);
        for level in 1..=3 {
            let shift = span_bits(level) - span_bits(1);
            let inside = (1_u64 << shift) - 1;
            // The first and last entries of this level that lie wholly inside.
            let (from, to) = ((page + inside) >> shift, (last + 1) >> shift);
            if from >= to {
                continue;
            }
            for key in Self::keys(&self.leaves, (domain, level, from), (domain, level, to - 1)) {
                self.drop_from(true, key);
            }
        }
        if leaves_only {
            return;
        }
        for level in 2..=5 {
            let shift = span_bits(level) - span_bits(1);
            let (from, to) = (page >> shift, last >> shift);
            for key in Self::keys(&self.links, (domain, level, from), (domain, level, to)) {
                self.drop_from(false, key);
            }
        }
    }

    /// Drops something by itself.
    pub(crate) fn evict_one(&mut self, rng: &mut Rng) {
        let from = (rng.below(16) as u16, 1 + rng.below(3) as u8, rng.below(256));
        if rng.one_in(4) {
            let requester = self.contexts.keys().next().copied();
            if let Some(requester) = requester {
                self.contexts.remove(&requester);
            }
        } else if let Some(key) = self.leaves.range(from..).next().map(|(key, _)| *key) {
            self.drop_from(true, key);
        } else if let Some(key) = self.links.range(from..).next().map(|(key, _)| *key) {
            self.drop_from(false, key);
        }
    }

    /// Makes room, as any cache of finite size does.
    pub(crate) fn make_room(&mut self, rng: &mut Rng) {
        while self.kept > MOST {
            let from = (rng.next() as u16, 0, 0);
            let next = self.leaves.range(from..).next();
            let next = next
                .or_else(|| self.leaves.iter().next())
                .map(|(key, _)| *key);
            match next {
                Some(key) => self.drop_from(true, key),
                None => self.links.clear(),
            }
        }
    }

    /// A translation or link into one of these frames, in words.
    pub(crate) fn naming(&self, first: u64, pages: u64) -> Option<String> {
        let end = first + pages;
        if let Some((frame, _)) = self.named.range(first..end).next() {
            let to = frame << span_bits(1);
            let is = |kept: &[Cached]| kept.iter().any(|entry| entry.to == Some(to));
            let leaf = self
                .leaves
                .iter()
                .find(|((_, level, _), kept)| *level == 1 && is(kept));
            let link = || self.links.iter().find(|(_, kept)| is(kept));
            let found = leaf.or_else(link).map(|(key, _)| *key);
            return Some(describe(*frame, found));
        }
        let large = self.large.keys().find(|(frame, level)| {
            let pages = 1_u64 << (span_bits(*level) - span_bits(1));
            *frame < end && first < frame + pages
        });
        large.map(|(frame, level)| format!("a cached leaf of level {level} to frame {frame:#x}"))
    }

    /// A translation of one of these pages that is kept for a domain, in words.
    pub(crate) fn holding(&self, domain: u16, page: u64, pages: u64) -> Option<String> {
        (1..=3).find_map(|level| {
            let shift = span_bits(level) - span_bits(1);
            let (from, to) = (page >> shift, (page + pages - 1) >> shift);
            let kept = self
                .leaves
                .range((domain, level, from)..=(domain, level, to));
            let mut present = kept.filter_map(|(key, kept)| {
                let leaf = kept.iter().find_map(|entry| entry.to)?;
                Some(describe(leaf >> span_bits(1), Some(*key)))
            });
            present.next()
        })
    }

    /// What is kept for the addresses of the leaf of `level` at `at` and is not that leaf, in words: another leaf,
    /// one that allows more, or a link past it. That nothing was there does not count.
    pub(crate) fn differing(
        &self,
        domain: u16,
        level: u8,
        at: u64,
        to: u64,
        (read, write): (bool, bool),
    ) -> Option<String> {
        let last = at + ((1 << span_bits(level)) - 1);
        let keys = |level: u8| {
            let shift = span_bits(level);
            (domain, level, at >> shift)..=(domain, level, last >> shift)
        };
        let leaf = (1..=3).find_map(|other: u8| {
            let mut kept = self.leaves.range(keys(other));
            kept.find_map(|(key, kept)| {
                let differs = |entry: &&Cached| {
                    let same = other == level && entry.to == Some(to);
                    let more = entry.read && !read || entry.write && !write;
                    entry.to.is_some() && (!same || more)
                };
                kept.iter().find(differs).map(|entry| (*key, entry.to))
            })
        });
        let link = || {
            (2..=level).find_map(|below| {
                let mut kept = self.links.range(keys(below));
                kept.find_map(|(key, kept)| {
                    let link = kept.iter().find(|entry| entry.to.is_some())?;
                    Some((*key, link.to))
                })
            })
        };
        let (key, found) = leaf.or_else(link)?;
        Some(describe(found.unwrap_or(0) >> span_bits(1), Some(key)))
    }

    /// A context entry that names this table as its root, in words.
    pub(crate) fn context_naming(&self, first: u64, pages: u64) -> Option<String> {
        for (requester, kept) in &self.contexts {
            for entry in kept.iter().filter_map(|context| context.entry.as_ref()) {
                let frame = entry.table >> span_bits(1);
                if (first..first + pages).contains(&frame) {
                    return Some(format!(
                        "the cached context entry of requester {requester:#06x} to frame {frame:#x}"
                    ));
                }
            }
        }
        None
    }

    /// A root other than `root` from which something of this domain is kept.
    pub(crate) fn other_root(&self, domain: u16, root: u64) -> Option<u64> {
        let (from, to) = ((domain, 0, 0), (domain, u8::MAX, u64::MAX));
        let kept = self
            .leaves
            .range(from..=to)
            .chain(self.links.range(from..=to));
        let roots = kept.flat_map(|(_, kept)| kept.iter().map(|entry| entry.root));
        let contexts = self.contexts.values().flatten();
        let contexts = contexts.filter(|context| context.domain == domain);
        let contexts = contexts.filter_map(|context| Some(context.entry.as_ref()?.table));
        roots.chain(contexts).find(|other| *other != root)
    }
}

fn describe(frame: u64, key: Option<Key>) -> String {
    match key {
        Some((domain, level, index)) => {
            let address = index << span_bits(level);
            format!(
                "the cached entry of level {level} for {address:#x} under domain id {domain} to frame {frame:#x}"
            )
        }
        None => format!("a cached entry to frame {frame:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(frame: u64) -> Cached {
        Cached {
            root: 0x1000,
            to: Some(frame << 12),
            read: true,
            write: true,
            snoops: false,
        }
    }

    #[test]
    fn an_invalidation_drops_what_it_names_and_nothing_more() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        for page in 0..8 {
            caches.keep_leaf(1, 1, page << 12, to(100 + page));
            caches.keep_leaf(2, 1, page << 12, to(200 + page));
        }
        caches.keep_link(1, 2, 0, to(50));
        caches.forget_pages(1, 2, 1, true);
        let mut has = |domain, page: u64| caches.leaf(domain, page << 12, &mut rng).is_some();
        assert!(has(1, 1) && !has(1, 2) && !has(1, 3) && has(1, 4) && has(2, 2));
        assert!(
            caches.link(1, 3, 0, &mut rng).is_some(),
            "only leaves were asked for"
        );
        caches.forget_pages(1, 7, 0, false);
        assert!(caches.link(1, 3, 0, &mut rng).is_none());
        caches.forget_domain(2);
        assert!(caches.leaf(2, 0, &mut rng).is_none() && caches.leaf(1, 0, &mut rng).is_some());
        assert!(caches.naming(100, 1).is_some());
        assert_eq!(caches.naming(102, 2), None);
    }

    #[test]
    fn a_large_leaf_goes_only_with_a_mask_that_covers_it() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        caches.keep_leaf(1, 2, 0x20_0000, to(512));
        caches.forget_pages(1, 0x200, 8, false);
        assert!(caches.leaf(1, 0x20_5000, &mut rng).is_some());
        assert!(
            caches.naming(600, 1).is_some(),
            "a frame in the middle of it"
        );
        caches.forget_pages(1, 0x200, 9, false);
        assert!(caches.leaf(1, 0x20_5000, &mut rng).is_none());
        assert_eq!(caches.naming(600, 1), None);
    }

    #[test]
    fn what_differs_from_a_leaf_is_found() {
        let all = (true, true);
        let mut caches = Caches::default();
        caches.keep_leaf(1, 2, 0x20_0000, to(512));
        caches.keep_link(1, 3, 0x20_0000, to(50));
        assert_eq!(caches.differing(1, 2, 0x20_0000, 512 << 12, all), None);
        let differs = |caches: &Caches, level, at, frame: u64, rights| {
            caches
                .differing(1, level, at, frame << 12, rights)
                .is_some()
        };
        assert!(
            differs(&caches, 2, 0x20_0000, 512, (true, false)),
            "allows more"
        );
        assert!(differs(&caches, 2, 0x20_0000, 1024, all), "leads elsewhere");
        assert!(differs(&caches, 1, 0x20_5000, 517, all), "was split");
        assert!(!differs(&caches, 1, 0x40_0000, 512, all));
        caches.forget_pages(1, 0x205, 0, false);
        assert!(differs(&caches, 1, 0x20_5000, 517, all), "flushed in part");
        caches.forget_pages(1, 0x200, 9, true);
        caches.keep_link(1, 2, 0x20_0000, to(60));
        assert!(!differs(&caches, 1, 0x20_5000, 517, all));
        assert!(differs(&caches, 2, 0x20_0000, 512, all), "a link past it");
        caches.forget_pages(1, 0x200, 9, true);
        assert!(differs(&caches, 2, 0x20_0000, 512, all), "leaves only");
        caches.forget_pages(1, 0x200, 9, false);
        assert!(!differs(&caches, 2, 0x20_0000, 512, all));
    }

    #[test]
    fn old_and_new_are_kept_side_by_side() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        caches.keep_leaf(1, 1, 0, to(100));
        caches.keep_leaf(1, 1, 0, to(101));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            seen.insert(caches.leaf(1, 0, &mut rng).unwrap().1.to);
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn context_entries_go_by_domain_and_requester() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        let absent = |domain| CachedContext {
            is_quiet: false,
            domain,
            entry: None,
        };
        caches.keep_context(0x10, absent(0));
        caches.forget_context(5, 0x10, 0);
        assert!(
            caches.context(0x10, &mut rng).is_some(),
            "filed under domain 0"
        );
        caches.forget_context(0, 0x11, 0);
        assert!(caches.context(0x10, &mut rng).is_some());
        caches.forget_context(0, 0x11, 7);
        assert!(caches.context(0x10, &mut rng).is_none());
    }
}
