//! What a random life does about the tables of its domains: gives empty ones back, makes many, and takes some
//! apart under a CPU that walks in them.

use core::ops::ControlFlow;

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms};
use hv_iommu::{FlushError, FlushSpan, Level, ReclaimError, RedeemRefusal};

use super::granule::Lives;
use super::space::{Done, Household, Space};
use super::world::Memories;
use crate::rule::Rule;

/// How many ranges [`Space::sow`] maps, each in a table of its own: more than unmaps leave alone.
const SEEDS: u64 = 72;
/// From which page on.
const FIELD: u64 = 1 << 17;

impl<O: Household, B: Lives> Space<O, B> {
    /// Gives the domain's empty tables back. Nothing else runs, so nothing is in the way.
    pub(crate) fn reclaim(&mut self, memories: &Memories) -> Done {
        let rig = &memories.rig;
        let before = self.domain.table_pages();
        rig.say(format!("{:?} reclaims of {before} tables", self.tenant));
        match self.domain.reclaim() {
            Ok(pages) => {
                let left = self.domain.table_pages();
                if left + pages != before {
                    let what = format!("{pages} of {before} tables came back, and {left} are left");
                    rig.broken(Rule::WrongAnswer, what);
                }
                let bare = self.mapped.is_empty() && self.pending.is_empty() && !self.forgot;
                if bare && left != 1 << self.domain.geometry().root_tables.log2() {
                    let what = format!("nothing is mapped, and {left} tables are left");
                    rig.broken(Rule::Leak, what);
                }
                Done::Fine
            }
            Err(ReclaimError::Flush(error)) => Done::Unit(error),
            Err(error @ ReclaimError::Busy) => {
                rig.broken(Rule::WrongAnswer, format!("nobody else runs: {error}"));
                Done::Fine
            }
        }
    }

    /// Maps single pages far apart, so that there are many tables, and takes them out again: unmaps help to
    /// reclaim then.
    pub(crate) fn sow(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let mut sown = Vec::new();
        for number in 0..SEEDS {
            let page = FIELD + number * B::LARGE + choice[0] % 512 * B::PAGE;
            let start = Iova::new(page * PageSize::Size4K.bytes());
            let span = IovaRange::new(start, B::pages(1)).ok();
            let Some(free) = span.and_then(|span| self.domain.reserve(span).ok()) else {
                continue;
            };
            let count = self.mapped.len();
            let done = self.map_free(memories, free, choice[1] + number);
            if self.mapped.len() > count {
                sown.extend(self.mapped.pop());
            }
            if !matches!(done, Done::Fine) {
                self.mapped.append(&mut sown);
                return done;
            }
        }
        for mapped in sown {
            self.mapped.push(mapped);
            let last = self.mapped.len() as u64 - 1;
            let done = self.unmap(memories, last, true);
            if !matches!(done, Done::Fine) {
                self.forgot = true;
                return done;
            }
        }
        Done::Fine
    }

    fn map_free(
        &mut self,
        memories: &Memories,
        free: hv_iommu::Range<O, B, hv_iommu::Free>,
        choice: u64,
    ) -> Done {
        let frames = O::frames(memories, self.owner, B::pages(1), B::smallest(), choice);
        match frames {
            Some(frames) => self.map_into(memories, free, frames, Perms::ReadWrite, B::smallest()),
            None => {
                self.release(memories, free);
                Done::Fine
            }
        }
    }

    /// Maps a gigabyte by large pages, makes small ones of some, and takes it out: tables below tables.
    pub(crate) fn nest(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let Some(pages) = PageCount::new(1 << 18) else {
            return Done::Fine;
        };
        let start = Iova::new(PageSize::Size1G.bytes());
        if self.domain.geometry().largest_leaf == Level::LEAF {
            return Done::Fine;
        }
        let span = IovaRange::new(start, pages).ok();
        let Some(free) = span.and_then(|span| self.domain.reserve(span).ok()) else {
            return Done::Fine;
        };
        let largest = B::large();
        let Some(frames) = O::frames(memories, self.owner, pages, largest, 0) else {
            self.release(memories, free);
            return Done::Fine;
        };
        let done = self.map_into(memories, free, frames, Perms::ReadWrite, largest);
        let last = |space: &Self| (space.mapped.len() as u64).wrapping_sub(1);
        if !matches!(done, Done::Fine) || last(self) == u64::MAX {
            return done;
        }
        let done = self.cut(memories, [last(self), choice[1], u64::MAX]);
        if !matches!(done, Done::Fine) {
            return done;
        }
        let done = self.join(memories, [last(self).wrapping_sub(1), 0, 0]);
        if !matches!(done, Done::Fine) {
            return done;
        }
        self.unmap(memories, last(self), choice[1] & 1 == 0)
    }

    /// Unmaps a range, flushes, and tries to open it, all while this CPU walks the domain's tables: none of
    /// them may come back before the walk is over.
    pub(crate) fn unmap_walked(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let (rig, tenant) = (&memories.rig, self.tenant);
        // What was taken out before the walk may come back during it, so that is over first.
        let reclaims = choice[1] & 1 == 0;
        if reclaims {
            let done = self.reclaim(memories);
            if !matches!(done, Done::Fine) {
                return done;
            }
            for range in &mut self.mapped {
                let _ = range.merge();
            }
        }
        let Some(mapped) = self.take_large(choice[0]) else {
            return Done::Fine;
        };
        let span = mapped.span();
        rig.say(format!("{tenant:?} unmaps {span} under a walk"));
        rig.unmapping(tenant, span);
        self.unseen.retain(|range| !range.overlaps(&span));
        let domain = &self.domain;
        let pages = domain.table_pages();
        let (mut held, mut outcome) = (Some(mapped), None);
        let mut reclaimed = Ok(0);
        let _ = domain.mappings(span, |_| {
            let Some(mapped) = held.take() else {
                return ControlFlow::Break(());
            };
            let pending = mapped.unmap();
            outcome = Some(match domain.flush(FlushSpan::Pages(pending.flush_span())) {
                Ok(receipt) => (pending.redeem(&receipt), Some(receipt)),
                Err(error) => (
                    Err(hv_iommu::RedeemError {
                        pending,
                        reason: error.into(),
                    }),
                    None,
                ),
            });
            if reclaims {
                reclaimed = domain.reclaim();
            }
            ControlFlow::Break(())
        });
        let now = domain.table_pages();
        if now < pages {
            let what = format!("{} tables came back under a walk", pages - now);
            rig.broken(Rule::WrongAnswer, what);
        }
        if let Some(mapped) = held {
            rig.broken(
                Rule::WrongAnswer,
                format!("{span} is mapped and has no leaf"),
            );
            self.mapped.push(mapped);
        }
        let done = match outcome {
            None => Done::Fine,
            Some((Ok((free, frames)), _)) => {
                self.redeemed(memories, span, free, frames);
                Done::Fine
            }
            Some((Err(error), Some(receipt))) if error.reason == RedeemRefusal::StillWalked => {
                match error.pending.redeem(&receipt) {
                    Ok((free, frames)) => {
                        self.redeemed(memories, span, free, frames);
                        Done::Fine
                    }
                    Err(error) => {
                        let what = format!("{span} is walked by nobody: {}", error.reason);
                        rig.broken(Rule::WrongAnswer, what);
                        self.pending.push(error.pending);
                        Done::Fine
                    }
                }
            }
            Some((Err(error), _)) => {
                self.pending.push(error.pending);
                self.unit_failed(memories, error.reason)
            }
        };
        match reclaimed {
            Err(ReclaimError::Flush(FlushError::Unit(error))) => {
                Done::Unit(FlushError::Unit(error))
            }
            _ => done,
        }
    }
}
