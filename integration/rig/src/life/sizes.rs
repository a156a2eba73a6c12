//! What a random life does to mapped ranges: page sizes, permissions, and the debts that both leave.

use core::ops::ControlFlow;

use hv_core::{IovaRange, PageCount, PageSize, Perms};
use hv_iommu::table::{Mapping, TableError};
use hv_iommu::{
    CutError, CutRefusal, Level, MapError, Mapped, Range, Receipt, RedeemRefusal, Redeemed,
};

use super::granule::Lives;
use super::space::{Done, Household, Space};
use super::world::Memories;
use crate::rule::Rule;

/// A range of a life.
type MappedOf<O, B> = Range<O, B, Mapped>;

impl<O: Household, B: Lives> Space<O, B> {
    /// Cuts a range in two at any page; whatever the machine, in one way or the other.
    pub(crate) fn cut(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let Some(mapped) = self.take_large(choice[0]) else {
            return Done::Fine;
        };
        let (rig, span) = (&memories.rig, mapped.span());
        let Some(at) = place::<B>(span, choice) else {
            self.mapped.push(mapped);
            return Done::Fine;
        };
        let middle = span.page(at.get()).unwrap_or(span.start());
        let inside = self
            .domain
            .translate(middle)
            .is_some_and(|found| middle.as_u64() & (span_of::<B>(found.level) - 1) != 0);
        let cuts_page = !middle.is_aligned(B::smallest());
        rig.say(format!("{:?} cuts {span} at {middle}", self.tenant));
        let mapped = match mapped.split_large_at(at) {
            Ok(parts) => {
                if cuts_page {
                    let what = format!("{span} was cut in a smallest page, at {middle}");
                    rig.broken(Rule::WrongAnswer, what);
                }
                if inside && !rig.machine().resizes_live() {
                    let what = format!("{span} was cut live, on a machine that cannot follow");
                    rig.broken(Rule::WrongAnswer, what);
                }
                self.were_cut(memories, [parts.0, parts.1], inside);
                return Done::Fine;
            }
            Err(CutError::Refused { range, reason }) => {
                let stiff = matches!(reason, CutRefusal::Table(TableError::Breaks { .. }));
                let poor = matches!(reason, CutRefusal::Table(TableError::OutOfFrames { .. }));
                let cuts = matches!(reason, CutRefusal::Table(TableError::CutsPage { .. }));
                if cuts != cuts_page {
                    let what = format!("{span} is cut at {middle}: {reason}");
                    rig.broken(Rule::WrongAnswer, what);
                }
                if cuts {
                    self.mapped.push(range);
                    return Done::Fine;
                }
                if !poor && (!stiff || !inside || rig.machine().resizes_live()) {
                    let what = format!("{span} was not cut at {middle}: {reason}");
                    rig.broken(Rule::WrongAnswer, what);
                }
                range
            }
            Err(error) => {
                rig.broken(Rule::WrongAnswer, format!("a live cut: {error}"));
                return Done::Fine;
            }
        };
        rig.unmapping(self.tenant, span);
        let granted = mapped.granted();
        match mapped.split_with_gap_at(at) {
            Ok(parts) => {
                for part in [parts.0, parts.1] {
                    rig.mapped(self.tenant, part.span(), part.granted());
                    self.settled(memories, &part);
                    self.mapped.push(part);
                }
                Done::Fine
            }
            Err(CutError::Refused { range, reason }) => {
                rig.mapped(self.tenant, span, granted);
                self.mapped.push(range);
                if !matches!(reason, CutRefusal::Table(TableError::OutOfFrames { .. })) {
                    let what = format!("{span} was not cut with a gap at {middle}: {reason}");
                    rig.broken(Rule::WrongAnswer, what);
                }
                Done::Fine
            }
            Err(CutError::Pending(error)) => {
                self.pending.push(error.pending);
                self.unit_failed(memories, error.reason)
            }
            Err(CutError::Unmapped {
                failed,
                mapped,
                rest,
            }) => self.cut_failed(memories, failed, mapped, rest),
        }
    }

    /// A cut with a gap came to its end with one part or none.
    fn cut_failed(
        &mut self,
        memories: &Memories,
        failed: MapError<O, B>,
        mapped: Option<MappedOf<O, B>>,
        rest: Option<Redeemed<O, B>>,
    ) -> Done {
        let rig = &memories.rig;
        if let Some(part) = mapped {
            rig.mapped(self.tenant, part.span(), part.granted());
            self.mapped.push(part);
        }
        if let Some((free, frames)) = rest {
            self.redeemed(memories, free.span(), free, frames);
        }
        match failed {
            MapError::NotVisible { range, reason } => {
                self.unseen.push(range.span());
                self.mapped.push(range);
                Done::Unit(reason)
            }
            MapError::Refused {
                range,
                frames,
                reason,
            } => {
                let what = format!("a part of a cut was not mapped again: {reason}");
                rig.broken(Rule::WrongAnswer, what);
                self.redeemed(memories, range.span(), range, frames);
                Done::Fine
            }
        }
    }

    /// A range was cut; `changed` says that a page size was.
    fn were_cut(&mut self, memories: &Memories, parts: [MappedOf<O, B>; 2], changed: bool) {
        for mut part in parts {
            if changed && !part.is_in_debt() {
                let what = format!(
                    "{} was cut out of a large page and owes nothing",
                    part.span()
                );
                memories.rig.broken(Rule::WrongAnswer, what);
            }
            if changed {
                self.old_pays_nothing(memories, &mut part);
            }
            self.mapped.push(part);
        }
    }

    /// A receipt of before the last change does not pay for it.
    fn old_pays_nothing(&self, memories: &Memories, range: &mut MappedOf<O, B>) {
        if let Some(old) = &self.old
            && range.is_in_debt()
            && range.settle_with(old).is_ok()
        {
            let what = format!("a receipt of before its change pays for {}", range.span());
            memories.rig.broken(Rule::WrongAnswer, what);
        }
    }

    /// A range owes nothing: every unit has at most what the domain has.
    pub(crate) fn settled(&self, memories: &Memories, range: &MappedOf<O, B>) {
        if range.is_in_debt() {
            let what = format!("{} was settled and is in debt", range.span());
            memories.rig.broken(Rule::WrongAnswer, what);
        }
        let leaves = self.leaves(range.span());
        memories.rig.settled(self.tenant, range.span(), &leaves);
    }

    fn leaves(&self, span: IovaRange) -> Vec<Mapping> {
        let mut leaves = Vec::new();
        let _ = self.domain.mappings(span, |leaf| {
            leaves.push(leaf);
            ControlFlow::Continue(())
        });
        leaves
    }

    /// Makes larger pages of a range, where that goes.
    pub(crate) fn merge(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let Some(mut mapped) = self.take_large(choice[0]) else {
            return Done::Fine;
        };
        let (rig, span) = (&memories.rig, mapped.span());
        rig.say(format!("{:?} merges {span}", self.tenant));
        let before = self.leaves(span).len();
        let (merged, outcome) = mapped.merge();
        let after = self.leaves(span).len();
        if (merged != 0) != (after < before) || (merged != 0 && !mapped.is_in_debt()) {
            let what =
                format!("{span} was merged {merged} times: {before} leaves before, {after} after");
            rig.broken(Rule::WrongAnswer, what);
        }
        if merged != 0 {
            self.old_pays_nothing(memories, &mut mapped);
        }
        match outcome {
            Err(TableError::Breaks { .. }) if merged == 0 && !rig.machine().resizes_live() => {}
            // As many tables wait as the reclaimer keeps aside.
            Ok(()) | Err(TableError::ReclaimPending { .. }) => {}
            Err(error) => rig.broken(Rule::WrongAnswer, format!("{span} was not merged: {error}")),
        }
        self.mapped.push(mapped);
        Done::Fine
    }

    /// Changes what devices may do with a range.
    pub(crate) fn protect(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let Some(mut mapped) = self.take_large(choice[0]) else {
            return Done::Fine;
        };
        let (rig, span) = (&memories.rig, mapped.span());
        let perms = match choice[1] % 3 {
            0 => Perms::Read,
            1 => Perms::Write,
            _ => Perms::ReadWrite,
        };
        let before = mapped.granted();
        rig.say(format!("{:?} makes {span} {perms}", self.tenant));
        rig.protecting(self.tenant, span, perms);
        match mapped.protect(perms) {
            Ok(()) => {
                let granted = mapped.granted();
                rig.protected(self.tenant, span, granted);
                if before != granted {
                    if !mapped.is_in_debt() {
                        let what = format!("{span} was {before}, is {granted}, and owes nothing");
                        rig.broken(Rule::WrongAnswer, what);
                    }
                    self.old_pays_nothing(memories, &mut mapped);
                }
            }
            Err(error) => {
                let what = format!("{span} was not made {perms}: {error}");
                rig.broken(Rule::WrongAnswer, what);
            }
        }
        self.mapped.push(mapped);
        Done::Fine
    }

    /// Makes one range of two that follow each other, where their frames do too.
    pub(crate) fn join(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let count = self.mapped.len();
        let start = choice[0].checked_rem(count as u64).unwrap_or(0) as usize;
        let pair = (0..count).find_map(|step| {
            let left = (start + step) % count;
            let end = self.mapped.get(left)?.span();
            let follows = |range: &MappedOf<O, B>| end.join(&range.span()).is_some();
            Some((left, self.mapped.iter().position(follows)?))
        });
        let Some((left, right)) = pair else {
            return Done::Fine;
        };
        let (first, second) = {
            let (low, high) = (left.min(right), left.max(right));
            let high = self.mapped.swap_remove(high);
            let low = self.mapped.swap_remove(low);
            if left < right {
                (low, high)
            } else {
                (high, low)
            }
        };
        let debts = first.is_in_debt() || second.is_in_debt();
        memories
            .rig
            .say(format!("{:?} joins {first:?} and {second:?}", self.tenant));
        match first.join(second) {
            Ok(joined) => {
                if joined.is_in_debt() != debts {
                    let what = format!("{} owes, after a join: {}", joined.span(), !debts);
                    memories.rig.broken(Rule::WrongAnswer, what);
                }
                self.mapped.push(joined);
            }
            Err((first, second)) => self.mapped.extend([first, second]),
        }
        Done::Fine
    }

    /// Pays what a range owes.
    pub(crate) fn settle(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        // Mostly one that owes something.
        let owes = self.mapped.iter().position(Range::is_in_debt);
        let mapped = match owes {
            Some(index) if choice[1] & 3 != 0 => Some(self.mapped.swap_remove(index)),
            _ => self.take_mapped(choice[0]),
        };
        let Some(mut mapped) = mapped else {
            return Done::Fine;
        };
        let owed = mapped.is_in_debt();
        memories
            .rig
            .say(format!("{:?} settles {}", self.tenant, mapped.span()));
        let paid = mapped.settle();
        if paid.is_ok() && owed {
            self.settled(memories, &mapped);
        }
        self.mapped.push(mapped);
        match paid {
            Ok(()) => Done::Fine,
            Err(error) => Done::Unit(error),
        }
    }

    /// Settles with a receipt what it pays for; with one for the whole domain that is everything.
    pub(crate) fn settle_with(&mut self, memories: &Memories, receipt: &Receipt, whole: bool) {
        for mut mapped in core::mem::take(&mut self.mapped) {
            if mapped.is_in_debt() {
                match mapped.settle_with(receipt) {
                    Ok(()) => self.settled(memories, &mapped),
                    Err(error) if whole => {
                        let what = format!("{} is not settled: {error}", mapped.span());
                        memories.rig.broken(Rule::WrongAnswer, what);
                    }
                    Err(_) => {}
                }
            }
            self.mapped.push(mapped);
        }
    }

    /// What a redeem that was refused means here.
    pub(crate) fn unit_failed(&self, memories: &Memories, reason: RedeemRefusal) -> Done {
        match reason {
            RedeemRefusal::Flush(error) => Done::Unit(error),
            other => {
                let what = format!("a flush was made to measure, and does not open: {other}");
                memories.rig.broken(Rule::WrongAnswer, what);
                Done::Fine
            }
        }
    }
}

/// Where to cut a range: mostly anywhere between two smallest pages, now and then where a large page ends, or, if they are
/// larger than that, in the middle of one.
fn place<B: Lives>(span: IovaRange, choice: [u64; 3]) -> Option<PageCount> {
    let pages = span.pages().get();
    if B::PAGE > 1 && choice[2] >> 40 & 15 == 0 {
        return PageCount::new(1 + choice[1].checked_rem(pages.checked_sub(1)?)?);
    }
    let anywhere = 1 + choice[1].checked_rem((pages / B::PAGE).checked_sub(1)?)?;
    let aligned = anywhere * B::PAGE / B::LARGE * B::LARGE;
    let at = match choice[2] >> 32 & 3 {
        0 if aligned != 0 => aligned,
        _ => anywhere * B::PAGE,
    };
    PageCount::new(at)
}

/// Bytes that a leaf of this level maps.
fn span_of<B: Lives>(level: Level) -> u64 {
    level.size::<B::Format>().map_or(1, PageSize::bytes)
}
