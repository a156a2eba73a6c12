//! Changes of what is mapped: permissions, page sizes, and what hardware notes, against the model.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use hv_core::{Iova, Perms, PhysAddr};
use hv_iommu::table::{BATCH, Changed, Mapping, TableError};

use crate::subject::{Leaf, State, Subject, TableAt, pages_of, range, size_of_level, span_of};
use crate::under_test::{ADDRESS, NOTES};

fn at(page: u64) -> Iova {
    Iova::new(page << 12)
}

impl Subject {
    /// Changes what devices may do with a mapped region.
    pub(crate) fn protect(&mut self, first: u64, perms: Perms) {
        let region = self.regions.get_mut(&first).unwrap();
        let before = std::mem::replace(&mut region.perms, perms);
        let span = region.range();
        let changed = self.table.protect(&self.guard(), span, perms);
        self.arena.check_order(self.shape.coherent);
        let expected = Changed {
            lost: (before.readable() && !perms.readable())
                || (before.writable() && !perms.writable()),
            any: before != perms,
        };
        assert_eq!(changed, Ok(expected), "{before} to {perms}");
    }

    /// Asks for permissions on pages that are not whole leaves of one mapped region.
    pub(crate) fn protect_in_vain(&self, first: u64, pages: u64) {
        let changed = self
            .table
            .protect(&self.guard(), range(first, pages), Perms::Write);
        self.arena.check_order(self.shape.coherent);
        assert!(changed.is_err(), "{pages} pages at {first:#x}: {changed:?}");
    }

    /// Replaces one leaf of a mapped region by smaller ones.
    pub(crate) fn split_leaf(&mut self, first: u64, index: usize) {
        let region = self.regions.get_mut(&first).unwrap();
        let (page, level) = region.leaves[index];
        if level == 1 {
            return;
        }
        let expected = match self.shape.live_resize {
            true => Ok(()),
            false => Err(TableError::Breaks { at: at(page) }),
        };
        if expected.is_ok() {
            let small = pages_of(level - 1);
            let parts = (0..512).map(|part| (page + part * small, level - 1));
            if region.dirty.remove(&page) {
                region.dirty.extend(parts.clone().map(|(page, _)| page));
            }
            region.leaves.splice(index..=index, parts);
            self.linked.insert((level - 1, page / pages_of(level)));
        }
        let split = self
            .table
            .split(&self.guard(), at(page), size_of_level(level));
        self.arena.check_order(self.shape.coherent);
        assert_eq!(split, expected, "level {level} at {page:#x}");
        self.look_for_tables();
    }

    /// What merging these pages of a region into one of `level` must give.
    fn can_merge(&self, first: u64, page: u64, level: u32) -> Result<(), TableError> {
        let not_mapped = |page| Err(TableError::NotMapped { at: at(page) });
        let region = &self.regions[&first];
        let leaf_of = |page: u64| -> Leaf {
            let after = region.leaves.partition_point(|(first, _)| *first <= page);
            region.leaves[after - 1]
        };
        if !self.shape.live_resize {
            return Err(TableError::Breaks { at: at(page) });
        }
        if level > self.shape.largest || leaf_of(page).1 > level {
            return not_mapped(page);
        }
        if self.reclaimer.removed.len() == BATCH {
            return Err(TableError::ReclaimPending { at: at(page) });
        }
        let small = pages_of(level - 1);
        if leaf_of(page) != (page, level - 1) {
            return not_mapped(page);
        }
        let to = region.to + (page - region.first);
        if !to.is_multiple_of(pages_of(level)) {
            let to = PhysAddr::new(to << 12);
            return Err(TableError::NotContiguous {
                at: at(page),
                expected: to,
                found: to,
            });
        }
        let mut pages = (0..512).map(|part| page + part * small);
        match pages.find(|page| leaf_of(*page) != (*page, level - 1)) {
            Some(page) => not_mapped(page),
            None => Ok(()),
        }
    }

    /// Replaces the smaller leaves of a mapped region at `page` by one, if they are there and fit.
    pub(crate) fn merge(&mut self, first: u64, page: u64, level: u32) {
        let expected = self.can_merge(first, page, level);
        let merged = self
            .table
            .merge(&self.guard(), at(page), size_of_level(level));
        self.arena.check_order(self.shape.coherent);
        assert_eq!(merged, expected, "level {level} at {page:#x}");
        if expected.is_ok() {
            let end = page + pages_of(level);
            let region = self.regions.get_mut(&first).unwrap();
            let from = region.leaves.partition_point(|(first, _)| *first < page);
            region.leaves.splice(from..from + 512, [(page, level)]);
            let written: BTreeSet<_> = region.dirty.range(page..end).copied().collect();
            region.dirty.retain(|dirty| !(page..end).contains(dirty));
            if !written.is_empty() {
                region.dirty.insert(page);
            }
            let table = (level - 1, page / pages_of(level));
            assert!(self.linked.remove(&table));
            self.reclaimer.removed.push((table, written));
        }
        self.look_for_tables();
    }

    /// A device accesses a leaf of a mapped region: hardware caches the way and notes what it has to.
    pub(crate) fn touch(&mut self, first: u64, leaf: usize, write: bool) {
        let region = self.regions.get_mut(&first).unwrap();
        let page = region.leaves[leaf].0;
        let write = write && region.perms.writable();
        if write && self.shape.dirty {
            region.dirty.insert(page);
        }
        let path = self.walker().path(page << 12).unwrap();
        let (leaf, links) = path.split_last().unwrap();
        self.cached.push((*leaf, page));
        if self.shape.dirty {
            let (used, written) = NOTES;
            for (table, index) in links {
                self.arena.note(*table, *index, used);
            }
            let written = if write { written } else { 0 };
            self.arena.note(leaf.0, leaf.1, used | written);
        }
    }

    /// Hardware noted writes in a table that a merge replaced: any of its pages may have been meant.
    pub(crate) fn written_somewhere(&mut self, table: TableAt) {
        let (first, end) = span_of(table);
        for region in self.regions.values_mut() {
            let detached = self.detached.get(&region.first);
            let leaves = region.leaves.iter().filter(|(page, level)| {
                let gone = |tables: &BTreeSet<_>| tables.contains(&(*level, page >> (9 * level)));
                *page < end && page + pages_of(*level) > first && !detached.is_some_and(gone)
            });
            region.dirty.extend(leaves.map(|leaf| leaf.0));
        }
    }

    /// What an owner is told besides when it redeems these pages: what was noted in replaced tables.
    pub(crate) fn written_before_merges(&self, first: u64, end: u64) -> BTreeSet<u64> {
        let removed = self.reclaimer.removed.iter();
        let inside = removed.filter(|(table, _)| (first..end).contains(&span_of(*table).0));
        inside
            .flat_map(|(_, written)| written.iter().copied())
            .collect()
    }

    /// A device wrote through what was this leaf until now.
    pub(crate) fn was_written(&mut self, page: u64, level: u32) {
        let (_, region) = self.regions.range_mut(..=page).next_back().unwrap();
        let end = page + pages_of(level);
        let parts = region.leaves.iter().map(|leaf| leaf.0);
        let parts: Vec<_> = parts.filter(|part| (page..end).contains(part)).collect();
        region.dirty.extend(parts);
    }

    /// A device writes through a link that hardware has cached, in a table that was detached meanwhile:
    /// until the receipt, what it writes is noted there.
    pub(crate) fn touch_stale(&mut self, cached: usize) {
        let ((table, index), page) = self.cached[cached];
        let region = self.regions.range_mut(..=page).next_back();
        let Some(region) = region.map(|(_, region)| region) else {
            return;
        };
        // The leaf is still what it was, in a table that is not freed before the receipt.
        let waits = region.state == State::Pending && self.detached.contains_key(&region.first);
        let level = region.leaves.iter().find(|leaf| leaf.0 == page);
        let Some((_, level)) = level.filter(|_| waits && self.shape.dirty) else {
            return;
        };
        let leaf_table = (*level, page >> (9 * level));
        if !region.perms.writable() || !self.detached[&region.first].contains(&leaf_table) {
            return;
        }
        let word = self
            .arena
            .is_taken(table)
            .then(|| self.arena.snoop(table, index));
        let to = (region.to + (page - region.first)) << 12;
        if word.is_some_and(|word| word & 3 != 0 && word & ADDRESS == to) {
            self.arena.note(table, index, NOTES.1);
            region.dirty.insert(page);
        }
    }

    /// Compares what the engine knows of writes with the model, in the mapped parts of a range.
    pub(crate) fn harvest(&mut self, first: u64, pages: u64, clear: bool) {
        let mut found = BTreeSet::new();
        let show = |at: Iova, level: hv_iommu::Level| {
            let page = (at.as_u64() >> 12) & !(pages_of(level.number().into()) - 1);
            assert!(found.insert(page), "{at} is told twice");
        };
        let span = range(first, pages);
        match clear {
            true => self.table.dirty_and_clear(&self.guard(), span, show),
            false => self.table.dirty(&self.guard(), span, show),
        }
        self.arena.check_order(self.shape.coherent);
        let mut expected = BTreeSet::new();
        let end = first + pages;
        for region in self.regions.values_mut() {
            if region.state != State::Mapped || region.first >= end || region.end() <= first {
                continue;
            }
            let leaves: Vec<_> = region.leaves.clone();
            for (page, level) in leaves {
                let inside = page < end && page + pages_of(level) > first;
                if inside && region.dirty.contains(&page) {
                    expected.insert(page);
                    if clear {
                        region.dirty.remove(&page);
                    }
                }
            }
        }
        assert_eq!(found, expected, "written pages of {pages} at {first:#x}");
    }

    /// Compares the leaves that the engine shows with the model's.
    pub(crate) fn compare_mappings(&self, first: u64, pages: u64) {
        let mut found = vec![];
        let shown = self
            .table
            .mappings(&self.guard(), range(first, pages), |leaf| {
                found.push(leaf);
                ControlFlow::Continue(())
            });
        assert_eq!(shown, ControlFlow::Continue(()));
        let end = first + pages;
        let mut expected = vec![];
        for region in self.regions.values() {
            if region.state != State::Mapped || region.first >= end || region.end() <= first {
                continue;
            }
            let inside = |leaf: &&Leaf| leaf.0 < end && leaf.0 + pages_of(leaf.1) > first;
            expected.extend(region.leaves.iter().filter(inside).map(|leaf| Mapping {
                at: at(leaf.0),
                to: PhysAddr::new((region.to + leaf.0 - region.first) << 12),
                perms: region.perms,
                level: hv_iommu::Level::new(leaf.1 as u8).unwrap(),
            }));
        }
        assert_eq!(found, expected, "leaves of {pages} pages at {first:#x}");
        // Breaking off is for good.
        let mut shown = 0;
        let broken = self
            .table
            .mappings(&self.guard(), range(first, pages), |_| {
                shown += 1;
                ControlFlow::Break(())
            });
        assert_eq!(broken.is_break(), !expected.is_empty());
        assert_eq!(shown, usize::from(!expected.is_empty()));
    }
}
