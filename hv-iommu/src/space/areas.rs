//! The sorted table of an address space: its range tokens, each with what it maps.

use alloc::vec::Vec;
use core::mem;
use core::ops::Range as Indices;

use hv_core::{Gpa, GpaRange, Iova, IovaRange, OutOfMemory, Perms, UserManaged};

use super::{MappingKind, SpaceMapping, TableQuota};
use crate::backend::Backend;
use crate::pending::PendingUnmap;
use crate::range::{Free, Mapped, Range};

/// Where the token of an area is on its way.
pub(super) enum State<B: Backend> {
    /// Mapped.
    Mapped(Range<UserManaged, B, Mapped>),
    /// Unmapped, and not flushed yet.
    Pending(PendingUnmap<UserManaged, B>),
    /// Free, but not yet given back to the domain, whose list could not grow.
    Vacant(Range<UserManaged, B, Free>),
    /// For the moment between two of these.
    Taken,
}

/// One range token and what it maps: all that a mapping takes of the heap, but for what the domain's list of free
/// ranges takes where the mapping cuts one in two.
pub(super) struct Area<B: Backend> {
    pub(super) span: IovaRange,
    /// Where the memory behind it begins in the guest.
    pub(super) gpa: Gpa,
    pub(super) perms: Perms,
    pub(super) kind: MappingKind,
    /// While a bulk map is taken in: where the slot begins that this is a piece of.
    pub(super) slot: Option<Gpa>,
    pub(super) state: State<B>,
}

impl<B: Backend> Area<B> {
    /// What is mapped; `None` where nothing is any more.
    pub(super) fn describe(&self) -> Option<SpaceMapping> {
        match self.state {
            State::Mapped(_) => Some(SpaceMapping {
                span: self.span,
                gpa: GpaRange::new(self.gpa, self.span.pages()).ok()?,
                perms: self.perms,
                kind: self.kind,
            }),
            State::Pending(_) | State::Vacant(_) | State::Taken => None,
        }
    }

    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.state, State::Mapped(_))
    }

    fn is_vacant(&self) -> bool {
        matches!(self.state, State::Vacant(_))
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending(_))
    }

    /// Takes the state out, to put another one in its place.
    pub(super) fn take(&mut self) -> State<B> {
        mem::replace(&mut self.state, State::Taken)
    }
}

/// All areas of a space.
///
/// # Invariants
/// Sorted by address, without overlaps. There is room for `promised` more. Between calls `vacant` of them are vacant,
/// and none is taken.
pub(super) struct Areas<B: Backend> {
    list: Vec<Area<B>>,
    promised: usize,
    vacant: usize,
}

impl<B: Backend> Areas<B> {
    pub(super) fn new() -> Self {
        const { assert!(size_of::<Area<B>>() <= TableQuota::HEAP_PER_MAPPING) };
        // INVARIANT: empty, nothing promised.
        Self {
            list: Vec::new(),
            promised: 0,
            vacant: 0,
        }
    }

    /// How many there are, with those that were promised.
    pub(super) fn count(&self) -> usize {
        self.list.len().saturating_add(self.promised)
    }

    pub(super) fn all(&self) -> &[Area<B>] {
        &self.list
    }

    pub(super) fn get(&self, index: usize) -> Option<&Area<B>> {
        self.list.get(index)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Area<B>> {
        self.list.get_mut(index)
    }

    /// Makes room for `more` areas besides those that were promised before.
    pub(super) fn reserve(&mut self, more: usize) -> Result<(), OutOfMemory> {
        let wanted = self.promised.saturating_add(more);
        self.list.try_reserve(wanted).map_err(|_| OutOfMemory {
            bytes: wanted.saturating_mul(size_of::<Area<B>>()),
        })
    }

    /// As [`reserve`](Self::reserve), for later.
    pub(super) fn promise(&mut self, more: usize) -> Result<(), OutOfMemory> {
        self.reserve(more)?;
        self.promised += more;
        Ok(())
    }

    /// The room for `areas` is used now, or not needed.
    pub(super) fn keep_promise(&mut self, areas: usize) {
        self.promised = self.promised.saturating_sub(areas);
    }

    /// Puts an area, which overlaps no other, in its place. Room for it was made before.
    pub(super) fn insert(&mut self, area: Area<B>) -> usize {
        let start = area.span.start();
        self.vacant += usize::from(area.is_vacant());
        let at = self
            .list
            .partition_point(|other| other.span.start() < start);
        self.list.insert(at, area);
        at
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<Area<B>> {
        (index < self.list.len()).then(|| self.list.remove(index))
    }

    /// The area that `at` lies in.
    pub(super) fn with(&self, at: Iova) -> Option<usize> {
        let after = self.list.partition_point(|area| area.span.start() <= at);
        let index = after.checked_sub(1)?;
        self.list
            .get(index)
            .is_some_and(|area| area.span.contains(at))
            .then_some(index)
    }

    /// The areas that share a page with `range`.
    pub(super) fn meeting(&self, range: IovaRange) -> Indices<usize> {
        let low = self
            .list
            .partition_point(|area| area.span.last() < range.start());
        let high = self
            .list
            .partition_point(|area| area.span.start() <= range.last());
        low..high
    }

    /// The pieces of slots are whole mappings from now on.
    pub(super) fn forget_slots(&mut self) {
        self.list.iter_mut().for_each(|area| area.slot = None);
    }

    /// What was pending was redeemed: its range goes back to the domain, if the domain's list can grow. The area
    /// is gone then, and swept.
    pub(super) fn vacate(&mut self, index: usize, range: Range<UserManaged, B, Free>) {
        let state = match range.release() {
            Ok(()) => State::Taken,
            Err((range, _)) => State::Vacant(range),
        };
        if let Some(area) = self.list.get_mut(index) {
            self.vacant += usize::from(matches!(state, State::Vacant(_)));
            area.state = state;
        }
    }

    /// Removes the areas among `indices` that are gone.
    pub(super) fn sweep(&mut self, indices: Indices<usize>) {
        let gone = |area: &Area<B>| matches!(area.state, State::Taken);
        compact(&mut self.list, indices, gone);
    }

    /// Tries once more to give vacant ranges back to the domain. Looks at nothing where there are none.
    pub(super) fn settle_vacant(&mut self) {
        if self.vacant == 0 {
            return;
        }
        for area in self.list.iter_mut().filter(|area| area.is_vacant()) {
            area.state = match area.take() {
                State::Vacant(range) => match range.release() {
                    Ok(()) => {
                        self.vacant -= 1;
                        State::Taken
                    }
                    Err((range, _)) => State::Vacant(range),
                },
                other => other,
            };
        }
        self.sweep(0..self.list.len());
    }
}

/// Removes what is gone among `indices`, in one pass: each of these moves once at most, and what is behind them
/// moves as one. A guest chooses which are gone. Gives how many moves that took.
fn compact<T>(list: &mut Vec<T>, indices: Indices<usize>, gone: impl Fn(&T) -> bool) -> usize {
    let end = indices.end.min(list.len());
    let mut kept = indices.start;
    let mut moves = 0;
    for index in indices.start..end {
        if list.get(index).is_none_or(&gone) {
            continue;
        }
        if kept != index {
            list.swap(kept, index);
            moves += 1;
        }
        kept += 1;
    }
    if kept < end {
        list.drain(kept..end);
        moves += 1;
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every second one is gone, which is what `revoke` of one of two pages leaves that a guest maps in turn.
    #[test]
    fn a_sweep_moves_each_area_once_however_the_gone_ones_lie() {
        const AREAS: usize = 1000;
        for step in 1..5 {
            for phase in 0..step {
                let gone = |area: &usize| area % step == phase;
                let mut list: Vec<usize> = (0..AREAS).collect();
                let moves = compact(&mut list, 100..900, gone);
                assert!(moves <= 801, "{moves} moves for 800 areas");
                let kept = |area: &usize| !(100..900).contains(area) || !gone(area);
                assert!(list.iter().copied().eq((0..AREAS).filter(kept)));
            }
        }
        let mut list = Vec::from([1]);
        assert_eq!(compact(&mut list, 0..5, |_| true), 1);
        assert_eq!(compact(&mut list, 3..7, |_| true), 0);
    }
}
