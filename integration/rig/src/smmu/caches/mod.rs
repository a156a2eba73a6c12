//! What an SMMUv3 remembers: [`configuration`], links to tables, translations.
//!
//! Everything that was read is kept beside what is there already, entries that say "nothing" included where the
//! architecture allows that: configuration. Translations are kept of what is valid only. What both stages gave together
//! is kept under what the device asked for, so that forgetting an address of the guest's does not find it.

mod configuration;

use std::collections::BTreeMap;

use super::spec::command::{Range, Whose};
use crate::rng::Rng;

pub(crate) use configuration::Configuration;

/// How many translations are kept before some are dropped at random, as any cache may do.
const MOST: usize = 2048;
/// How many versions of one thing are kept.
const VERSIONS: usize = 4;

/// Under which ids something is kept (IHI 0070, 3.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tag {
    /// Under none: what passes untranslated.
    Untagged,
    /// What a second stage says of a guest's addresses.
    Second { vmid: u16 },
    /// What a first stage says for one ASID, on its own or with the second one's word.
    First { vmid: u16, asid: u16 },
    /// What a first stage says for all ASIDs of a set (ASET).
    Global { vmid: u16, set: bool },
}

impl Tag {
    /// The guest.
    pub(crate) const fn vmid(self) -> Option<u16> {
        match self {
            Self::Untagged => None,
            Self::Second { vmid } | Self::First { vmid, .. } | Self::Global { vmid, .. } => {
                Some(vmid)
            }
        }
    }

    /// Whether a command about these is about what is kept so.
    pub(crate) fn is_meant(self, whose: Whose) -> bool {
        match (self, whose) {
            (Self::Second { vmid }, Whose::Second { vmid: other })
            | (Self::Global { vmid, .. }, Whose::Asid { vmid: other, .. })
            | (
                Self::First { vmid, .. } | Self::Global { vmid, .. },
                Whose::First { vmid: other },
            ) => vmid == other,
            (
                Self::First { vmid, asid },
                Whose::Asid {
                    vmid: other,
                    asid: theirs,
                },
            ) => (vmid, asid) == (other, theirs),
            _ => false,
        }
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untagged => f.write_str("no id"),
            Self::Second { vmid } => write!(f, "VMID {vmid}"),
            Self::First { vmid, asid } => write!(f, "VMID {vmid} and ASID {asid}"),
            Self::Global { vmid, .. } => write!(f, "VMID {vmid} and every ASID"),
        }
    }
}

/// A link to a table or a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    /// The root of the table that it was read from.
    pub(crate) root: u64,
    /// Where it leads.
    pub(crate) to: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Log2 bytes of what it leads to.
    pub(crate) size: u8,
    /// Whether it is the word of two stages, whose sizes no level of either tells.
    pub(crate) combined: bool,
    /// For what it is taken.
    pub(crate) memory: Kind,
    /// Of a leaf that was not written through when it was read: where its descriptor is, and what that was.
    pub(crate) clean: Option<(u64, u64)>,
}

/// For what a translation takes what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Registers.
    Device,
    /// Memory that is reached through the CPU's caches.
    Cached,
    /// Memory that is reached past them.
    Uncached,
    /// Memory that is reached through them, whatever a first stage says (S2FWB).
    Forced,
}

impl Kind {
    /// What becomes of a first stage's word under this one of the second.
    pub(crate) fn over(self, first: Self) -> Self {
        match (self, first) {
            (Self::Cached, Self::Uncached) => Self::Uncached,
            _ => self,
        }
    }
}

/// Ids, log2 of the span, and the address bits from there up.
type Key = (Tag, u8, u64);
type Kept = BTreeMap<Key, Vec<Cached>>;

/// The caches of one unit.
#[derive(Default)]
pub(crate) struct Caches {
    pub(crate) configuration: Configuration,
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
    /// Keeps a translation of 2^`span` bytes.
    pub(crate) fn keep_leaf(&mut self, tag: Tag, span: u8, address: u64, entry: Cached) {
        if push(
            self.leaves.entry((tag, span, address >> span)).or_default(),
            entry,
        ) {
            self.kept += 1;
            self.count(&entry, 1);
        }
    }

    /// Keeps a link to a table that resolves 2^`span` bytes.
    pub(crate) fn keep_link(&mut self, tag: Tag, span: u8, address: u64, entry: Cached) {
        if push(
            self.links.entry((tag, span, address >> span)).or_default(),
            entry,
        ) {
            self.kept += 1;
            self.count(&entry, 1);
        }
    }

    fn count(&mut self, entry: &Cached, by: i32) {
        let key = (entry.size - 12, entry.to >> 12);
        let count = self.named.entry(key).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.named.remove(&key);
        }
    }

    fn find(
        kept: &Kept,
        tag: Tag,
        spans: &[u8],
        address: u64,
        rng: &mut Rng,
    ) -> Option<(u8, Cached)> {
        let first = rng.below(spans.len() as u64) as usize;
        (0..spans.len()).find_map(|step| {
            let span = *spans.get((first + step) % spans.len())?;
            let versions = kept.get(&(tag, span, address >> span))?;
            rng.pick(versions).map(|entry| (span, *entry))
        })
    }

    /// A translation that is kept for an address, of one of these spans: any, if there are several.
    pub(crate) fn leaf(
        &self,
        tag: Tag,
        spans: &[u8],
        address: u64,
        rng: &mut Rng,
    ) -> Option<(u8, Cached)> {
        Self::find(&self.leaves, tag, spans, address, rng)
    }

    /// A link that is kept for an address, of one of these spans: any, if there are several.
    pub(crate) fn link(
        &self,
        tag: Tag,
        spans: &[u8],
        address: u64,
        rng: &mut Rng,
    ) -> Option<(u8, Cached)> {
        Self::find(&self.links, tag, spans, address, rng)
    }

    /// A translation that is kept for some of these addresses and contradicts a new one of 2^`span` bytes: it leads
    /// elsewhere, or `sizes` and it is of another size.
    pub(crate) fn conflict(
        &self,
        tag: Tag,
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
                let keys = (tag, other, first >> other)..=(tag, other, last >> other);
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

    /// Forgets every translation and link.
    pub(crate) fn forget_translations(&mut self) {
        self.leaves.clear();
        self.links.clear();
        self.named.clear();
        self.kept = 0;
    }

    fn drop_where(&mut self, gone: impl Fn(&Key, Option<&Cached>) -> bool) {
        let mut dropped = Vec::new();
        for (is_leaf, kept) in [(true, &mut self.leaves), (false, &mut self.links)] {
            kept.retain(|key, versions| {
                versions.retain(|entry| {
                    let goes = gone(key, is_leaf.then_some(entry));
                    if goes {
                        dropped.push(*entry);
                    }
                    !goes
                });
                !versions.is_empty()
            });
        }
        self.kept -= dropped.len();
        for entry in dropped {
            self.count(&entry, -1);
        }
    }

    /// Forgets everything of a guest.
    pub(crate) fn forget_guest(&mut self, vmid: u16) {
        self.drop_where(|key, _| key.0.vmid() == Some(vmid));
    }

    /// Forgets what first stages of a guest gave: for one ASID, but not what is for all, or everything.
    pub(crate) fn forget_first(&mut self, vmid: u16, asid: Option<u16>) {
        self.drop_where(|key, _| match (key.0, asid) {
            (tag, None) => tag.is_meant(Whose::First { vmid }),
            (tag, Some(asid)) => tag == Tag::First { vmid, asid },
        });
    }

    /// Forgets what a range names and nothing more.
    pub(crate) fn forget_range(&mut self, range: &Range) {
        self.drop_where(|(tag, span, index), leaf| {
            let inside = (range.first >> span..=range.last >> span).contains(index);
            // What entries of a granule span is what none of another's does.
            let found_by = |granule: u8| {
                let above = span.checked_sub(granule);
                above.is_some_and(|above| above % (granule - 3) == 0)
            };
            let combined = leaf.is_some_and(|entry| entry.combined);
            let fits = combined || range.granule.is_none_or(found_by);
            let meant = match leaf {
                Some(entry) => entry.combined || range.only.is_none_or(|only| only == *span),
                // Links above the level that the hint names.
                None => !range.leaf && range.only.is_none_or(|only| only < *span),
            };
            inside && fits && meant && tag.is_meant(range.whose)
        });
    }

    /// Drops something by itself.
    pub(crate) fn evict_one(&mut self, rng: &mut Rng) {
        if rng.one_in(4) {
            self.configuration.evict_one(rng);
            return;
        }
        let id = rng.below(16) as u16;
        let tag = match rng.one_in(2) {
            true => Tag::Second { vmid: id },
            false => Tag::First { vmid: 0, asid: id },
        };
        let from = (tag, 12, rng.below(256));
        let next = self.leaves.range(from..).next().map(|(key, _)| *key);
        let link = || self.links.range(from..).next().map(|(key, _)| *key);
        if let Some(found) = next.or_else(link) {
            self.drop_where(|key, _| *key == found);
        }
    }

    /// Makes room, as any cache of finite size does.
    pub(crate) fn make_room(&mut self, rng: &mut Rng) {
        if self.kept > MOST {
            // Half of it at once: rarely, then.
            let odd = rng.below(2);
            self.drop_where(|key, leaf| leaf.is_none() || key.2 & 1 == odd);
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

    /// A translation of one of these pages that is kept under these ids, in words.
    pub(crate) fn holding(&self, tag: Tag, page: u64, pages: u64) -> Option<String> {
        let (first, last) = (page << 12, ((page + pages) << 12) - 1);
        let mut kept = self.leaves.range((tag, 0, 0)..=(tag, u8::MAX, u64::MAX));
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
        tag: Tag,
        span: u8,
        at: u64,
        to: u64,
        (read, write): (bool, bool),
    ) -> Option<String> {
        let last = at + ((1 << span) - 1);
        let all = (tag, 0, 0)..=(tag, u8::MAX, u64::MAX);
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

    /// A root other than `root` from which something is kept under these ids.
    pub(crate) fn other_root(&self, tag: Tag, root: u64) -> Option<u64> {
        let all = (tag, 0, 0)..=(tag, u8::MAX, u64::MAX);
        let kept = self.leaves.range(all.clone()).chain(self.links.range(all));
        let roots = kept.flat_map(|(_, versions)| versions.iter().map(|entry| entry.root));
        let asid = match tag {
            Tag::First { asid, .. } => Some(asid),
            _ => None,
        };
        let bound = self.configuration.roots(tag.vmid()?, asid);
        roots.chain(bound).find(|other| *other != root)
    }
}

fn describe(what: &str, (tag, span, index): &Key, to: u64) -> String {
    format!(
        "the cached {what} of 2^{span} bytes for {:#x} under {tag} to {to:#x}",
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
            size: 12,
            combined: false,
            memory: Kind::Cached,
            clean: None,
        }
    }

    fn large(frame: u64) -> Cached {
        Cached {
            size: 21,
            ..to(frame)
        }
    }

    const ONE: Tag = Tag::Second { vmid: 1 };
    const TWO: Tag = Tag::Second { vmid: 2 };

    fn range(first: u64, last: u64, leaf: bool) -> Range {
        Range {
            whose: Whose::Second { vmid: 1 },
            first,
            last,
            leaf,
            only: None,
            granule: None,
        }
    }

    const SPANS: [u8; 3] = [12, 21, 30];

    #[test]
    fn an_invalidation_drops_what_it_names_and_nothing_more() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        for page in 0..8 {
            caches.keep_leaf(ONE, 12, page << 12, to(100 + page));
            caches.keep_leaf(TWO, 12, page << 12, to(200 + page));
        }
        caches.keep_link(ONE, 21, 0, to(50));
        caches.forget_range(&range(0x2000, 0x3fff, true));
        let mut has = |tag, page: u64| caches.leaf(tag, &SPANS, page << 12, &mut rng).is_some();
        assert!(has(ONE, 1) && !has(ONE, 2) && !has(ONE, 3) && has(ONE, 4) && has(TWO, 2));
        assert!(
            caches.link(ONE, &SPANS, 0, &mut rng).is_some(),
            "leaves only"
        );
        assert!(caches.naming(102, 2).is_none() && caches.naming(104, 1).is_some());
        caches.forget_range(&range(0x7000, 0x7000, false));
        assert!(caches.link(ONE, &SPANS, 0, &mut rng).is_none());
        caches.forget_guest(2);
        assert!(caches.naming(200, 8).is_none() && caches.naming(104, 1).is_some());
    }

    #[test]
    fn a_large_leaf_goes_with_any_address_of_it_but_not_with_a_hint_of_another_level() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        caches.keep_leaf(ONE, 21, 0x20_0000, large(512));
        let hint = Range {
            only: Some(12),
            ..range(0x20_0000, 0x20_0fff, false)
        };
        caches.forget_range(&hint);
        assert!(caches.leaf(ONE, &SPANS, 0x20_5000, &mut rng).is_some());
        assert!(
            caches.naming(600, 1).is_some(),
            "a frame in the middle of it"
        );
        caches.forget_range(&range(0x20_7000, 0x20_7000, true));
        assert!(caches.leaf(ONE, &SPANS, 0x20_5000, &mut rng).is_none());
        assert!(caches.naming(600, 1).is_none());
    }

    #[test]
    fn what_was_found_by_tables_of_another_granule_stays() {
        let mut rng = Rng::new(1);
        let all = |granule| Range {
            granule: Some(granule),
            ..range(0, 0xffff_ffff, false)
        };
        // Leaves and links of pages of 4, 16 and 64 KiB.
        let sizes: [(u8, &[u8]); 3] = [(12, &[12, 21, 30]), (14, &[14, 25]), (16, &[16, 29])];
        for (granule, mine) in sizes {
            let mut caches = Caches::default();
            for span in sizes.into_iter().flat_map(|(_, spans)| spans) {
                caches.keep_leaf(ONE, *span, 0, to(1));
                caches.keep_link(ONE, *span, 0, to(2));
            }
            caches.forget_range(&all(granule));
            for span in sizes.into_iter().flat_map(|(_, spans)| spans) {
                let stays = !mine.contains(span);
                assert_eq!(caches.leaf(ONE, &[*span], 0, &mut rng).is_some(), stays);
                assert_eq!(caches.link(ONE, &[*span], 0, &mut rng).is_some(), stays);
            }
        }
    }

    #[test]
    fn two_translations_of_one_address_conflict() {
        let mut caches = Caches::default();
        caches.keep_leaf(ONE, 21, 0x20_0000, large(512));
        let clash = |caches: &Caches, span, address, frame: u64, sizes| {
            caches
                .conflict(ONE, span, address, frame << 12, sizes)
                .is_some()
        };
        assert!(!clash(&caches, 21, 0x20_0000, 512, true));
        assert!(clash(&caches, 21, 0x20_0000, 1024, false), "elsewhere");
        assert!(clash(&caches, 12, 0x20_5000, 517, true), "another size");
        assert!(!clash(&caches, 12, 0x20_5000, 517, false));
        assert!(clash(&caches, 12, 0x20_5000, 518, false));
        assert!(!clash(&caches, 12, 0x40_5000, 518, true));
    }

    #[test]
    fn first_stages_are_told_apart_by_their_ids_and_not_found_by_a_guests_addresses() {
        let mut rng = Rng::new(1);
        let mut caches = Caches::default();
        let first = |vmid, asid| Tag::First { vmid, asid };
        let global = Tag::Global { vmid: 1, set: true };
        let fill = |caches: &mut Caches| {
            for tag in [first(1, 3), first(1, 4), first(2, 3), global, ONE] {
                caches.keep_leaf(tag, 12, 0x1000, to(100));
            }
        };
        let mut has = |caches: &Caches, tag| caches.leaf(tag, &[12], 0x1000, &mut rng).is_some();
        let one = |whose| Range {
            whose,
            ..range(0x1000, 0x1000, true)
        };
        fill(&mut caches);
        caches.forget_range(&one(Whose::Second { vmid: 1 }));
        assert!(!has(&caches, ONE) && has(&caches, first(1, 3)) && has(&caches, global));
        caches.forget_first(1, Some(3));
        assert!(!has(&caches, first(1, 3)) && has(&caches, first(1, 4)) && has(&caches, global));
        caches.forget_range(&one(Whose::Asid { vmid: 1, asid: 3 }));
        assert!(!has(&caches, global) && has(&caches, first(1, 4)));
        fill(&mut caches);
        caches.forget_range(&one(Whose::First { vmid: 1 }));
        assert!(!has(&caches, first(1, 4)) && has(&caches, ONE) && has(&caches, first(2, 3)));
        fill(&mut caches);
        caches.forget_first(1, None);
        assert!(!has(&caches, global) && has(&caches, ONE) && has(&caches, first(2, 3)));
        caches.forget_guest(1);
        assert!(!has(&caches, ONE) && has(&caches, first(2, 3)));
    }
}
