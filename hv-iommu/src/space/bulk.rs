//! Mapping all memory of a huge guest: in one call, or by several CPUs at once.

use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::num::NonZeroUsize;

use hv_core::{
    FrameRun, Gpa, GpaRange, Guest, GuestMemory, Iova, IovaRange, OutOfMemory, PageCount, PageSize,
    Perms, SlotKind, UserManaged,
};

use super::areas::{Area, State};
use super::map::unpin;
use super::{AddressSpace, AddressSpaceError, MappingKind};
use crate::backend::Backend;
use crate::domain::DomainUid;
use crate::range::{Free, MapError, Mapped, Range};
use crate::shape::Pages;

/// A piece of the guest's memory on its way into the table.
struct Piece<B: Backend> {
    gpa: Gpa,
    /// Where the slot begins that it is of.
    slot: Gpa,
    state: PieceState<B>,
}

enum PieceState<B: Backend> {
    Free(Range<UserManaged, B, Free>, FrameRun<Guest>),
    Mapped(Range<UserManaged, B, Mapped>),
    Taken,
}

/// What one CPU maps of a guest: some pieces of its address space, which no other part has. From
/// [`AddressSpace::bulk`]; goes back with [`AddressSpace::adopt`], mapped or not.
#[must_use = "the addresses of a dropped part are lost to the domain, and its memory stays pinned"]
pub struct BulkPart<B: Backend> {
    domain: DomainUid,
    pieces: Vec<Piece<B>>,
    perms: Perms,
    tables: u64,
    failed: Option<AddressSpaceError>,
}

impl<B: Backend> BulkPart<B> {
    /// How many pages it has to map.
    pub fn pages(&self) -> u64 {
        let pages = self.pieces.iter().map(|piece| match &piece.state {
            PieceState::Free(range, _) => range.span().pages().get(),
            PieceState::Mapped(range) => range.span().pages().get(),
            PieceState::Taken => 0,
        });
        pages.sum()
    }

    /// Maps its pieces, on whichever CPU, while others map theirs. Stops at the first that cannot be mapped, which
    /// [`adopt`](AddressSpace::adopt) tells of.
    pub fn map(&mut self) {
        for piece in &mut self.pieces {
            if self.failed.is_some() {
                return;
            }
            piece.state = match mem::replace(&mut piece.state, PieceState::Taken) {
                PieceState::Free(range, frames) => match range.map(frames, self.perms) {
                    Ok(range) => PieceState::Mapped(range),
                    Err(MapError::Refused {
                        range,
                        frames,
                        reason,
                    }) => {
                        self.failed = Some(reason.into());
                        PieceState::Free(range, frames)
                    }
                    Err(MapError::NotVisible { range, reason }) => {
                        self.failed = Some(reason.into());
                        PieceState::Mapped(range)
                    }
                },
                other => other,
            };
        }
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// Maps all memory of the guest, its own and what is lent to it, each slot where the guest sees it. Gives how many
    /// bytes that were.
    ///
    /// # Errors
    /// As for [`map`](Self::map); all slots are mapped or none.
    pub fn map_guest(
        &mut self,
        memory: &GuestMemory,
        perms: Perms,
    ) -> Result<u64, AddressSpaceError> {
        let mut parts = self.bulk(memory, perms, NonZeroUsize::MIN)?;
        parts.iter_mut().for_each(BulkPart::map);
        self.adopt(memory, parts).map_err(|(_, error)| error)
    }

    /// Prepares to map all memory of the guest with several CPUs: every slot is pinned, its addresses taken, and all
    /// of it cut into at most `parts` parts of about the same size, at borders of large pages. Each part is
    /// [`map`](BulkPart::map)ped by some CPU, without the space at hand; then all go to [`adopt`](Self::adopt).
    ///
    /// # Errors
    /// As for [`map`](Self::map); nothing was changed.
    pub fn bulk(
        &mut self,
        memory: &GuestMemory,
        perms: Perms,
        parts: NonZeroUsize,
    ) -> Result<Vec<BulkPart<B>>, AddressSpaceError> {
        self.check_memory(memory)?;
        let slots = || {
            memory
                .slots()
                .filter(|slot| slot.kind != SlotKind::Registers)
        };
        let mut whole = BulkPart {
            domain: self.domain.uid(),
            pieces: Vec::new(),
            perms,
            tables: 0,
            failed: None,
        };
        room(&mut whole.pieces, slots().count())?;
        for slot in slots() {
            if let Err(error) = self.begin_slot(memory, slot.range, &mut whole) {
                self.call_off(memory, whole.pieces, whole.tables);
                return Err(error);
            }
        }
        // One place for each slot is promised already; each cut makes one piece more.
        let pieces = whole.pieces.len().saturating_add(parts.get());
        let mut all = Vec::new();
        let ready = room(&mut all, parts.get()).map_err(Into::into);
        if let Err(error) = ready.and_then(|()| self.promise_cuts(parts.get())) {
            self.call_off(memory, whole.pieces, whole.tables);
            return Err(error);
        }
        let pages = whole.pages().div_ceil(parts.get() as u64).max(1);
        while all.len() + 1 < parts.get() && whole.pages() > pages {
            let Ok(part) = whole.cut_off(pages) else {
                // What is not cut off is mapped by one CPU.
                break;
            };
            all.push(part);
        }
        all.push(whole);
        let cut: usize = all.iter().map(|part| part.pieces.len()).sum();
        self.areas.keep_promise(pieces.saturating_sub(cut));
        self.settle_mappings();
        Ok(all)
    }

    /// Makes and charges room for `cuts` more pieces.
    fn promise_cuts(&mut self, cuts: usize) -> Result<(), AddressSpaceError> {
        self.areas.promise(cuts)?;
        let charged = self.charge_mappings(0);
        if charged.is_err() {
            self.areas.keep_promise(cuts);
        }
        charged
    }

    /// Takes the parts of [`bulk`](Self::bulk) back. If all of them were mapped, what they map is the space's;
    /// pieces of one slot become one mapping again. Otherwise all of it is undone. Gives how many bytes were mapped.
    ///
    /// # Errors
    /// Why a part was not mapped; [`AddressSpaceError::NotMapped`] when one was not tried. The parts as they were,
    /// when one of them, or the memory, is not of this space.
    pub fn adopt(
        &mut self,
        memory: &GuestMemory,
        parts: Vec<BulkPart<B>>,
    ) -> Result<u64, (Vec<BulkPart<B>>, AddressSpaceError)> {
        let uid = self.domain.uid();
        let foreign = parts.iter().find(|part| part.domain != uid);
        let foreign = foreign.map(|part| AddressSpaceError::OtherDomain {
            expected: uid,
            found: part.domain,
        });
        if let Some(error) = self.check_memory(memory).err().or(foreign) {
            return Err((parts, error));
        }
        let mut bytes = 0;
        let mut failed = None;
        for part in &parts {
            failed = failed.or(part.failed);
            for piece in &part.pieces {
                match &piece.state {
                    PieceState::Mapped(range) => bytes += range.span().pages().bytes(),
                    PieceState::Free(range, _) => {
                        let wanted = range.span();
                        failed = failed.or(Some(AddressSpaceError::NotMapped { wanted }));
                    }
                    PieceState::Taken => {}
                }
            }
        }
        for part in parts {
            self.areas.keep_promise(part.pieces.len());
            self.promised_tables = self.promised_tables.saturating_sub(part.tables);
            match failed {
                Some(_) => self.undo(memory, part.pieces),
                None => self.keep(part.pieces),
            }
        }
        self.areas.forget_slots();
        self.settle();
        match failed {
            Some(error) => Err((Vec::new(), error)),
            None => Ok(bytes),
        }
    }

    /// Pins one slot and takes its addresses.
    fn begin_slot(
        &mut self,
        memory: &GuestMemory,
        gpa: GpaRange,
        whole: &mut BulkPart<B>,
    ) -> Result<(), AddressSpaceError> {
        let span = IovaRange::new(Iova::from(gpa.start()), gpa.pages())?;
        self.check_place(span)?;
        // Its own place, should the domain not take the addresses back. Charged with its tables.
        self.areas.promise(1)?;
        let run = match MappingKind::Memory.pin(memory, gpa) {
            Ok(run) => run,
            Err(error) => {
                self.areas.keep_promise(1);
                return Err(error);
            }
        };
        let tables = self.most_tables(span, run.range().start());
        let charged = self.charge(tables, 0);
        let range = charged.and_then(|()| {
            self.promised_tables += tables;
            whole.tables += tables;
            Ok(self.domain.reserve(span)?)
        });
        match range {
            Ok(range) => {
                // Room for all slots was made.
                whole.pieces.push(Piece {
                    gpa: gpa.start(),
                    slot: gpa.start(),
                    state: PieceState::Free(range, run),
                });
                Ok(())
            }
            Err(error) => {
                self.areas.keep_promise(1);
                unpin(memory, run);
                Err(error)
            }
        }
    }

    /// Undoes what was begun.
    fn call_off(&mut self, memory: &GuestMemory, pieces: Vec<Piece<B>>, tables: u64) {
        self.areas.keep_promise(pieces.len());
        self.promised_tables = self.promised_tables.saturating_sub(tables);
        self.undo(memory, pieces);
        self.settle();
    }

    /// Puts mapped pieces among the areas, those of one slot as one.
    fn keep(&mut self, pieces: Vec<Piece<B>>) {
        for piece in pieces {
            let PieceState::Mapped(range) = piece.state else {
                continue;
            };
            let index = self.areas.insert(Area {
                span: range.span(),
                gpa: piece.gpa,
                perms: range.granted(),
                kind: MappingKind::Memory,
                slot: Some(piece.slot),
                state: State::Mapped(range),
            });
            // The one behind it first: joining moves those behind.
            self.join_with_last(index + 1);
            self.join_with_last(index);
        }
    }

    /// Joins an area with the one before it, if both are pieces of one slot.
    fn join_with_last(&mut self, index: usize) {
        let Some(before) = index.checked_sub(1) else {
            return;
        };
        let (Some(low), Some(high)) = (self.areas.get(before), self.areas.get(index)) else {
            return;
        };
        // A run of two slots could not be given back.
        let follows = low.slot.is_some()
            && low.slot == high.slot
            && low.gpa.checked_add(low.span.pages().bytes()) == Some(high.gpa)
            && low.is_mapped()
            && high.is_mapped();
        if !follows {
            return;
        }
        let Some(mut high) = self.areas.remove(index) else {
            return;
        };
        let rest = self.areas.get_mut(before).map(|low| {
            match (low.take(), high.take()) {
                (State::Mapped(first), State::Mapped(second)) => match first.join(second) {
                    Ok(range) => {
                        low.span = range.span();
                        low.state = State::Mapped(range);
                        None
                    }
                    Err((first, second)) => {
                        low.state = State::Mapped(first);
                        Some(State::Mapped(second))
                    }
                },
                // Both were seen to be mapped.
                (first, second) => {
                    low.state = first;
                    Some(second)
                }
            }
        });
        if let Some(Some(state)) = rest {
            high.state = state;
            self.areas.insert(high);
        }
    }

    /// Unmaps what was mapped of the pieces, with one flush, and gives everything back.
    fn undo(&mut self, memory: &GuestMemory, pieces: Vec<Piece<B>>) {
        let mut spans: Option<IovaRange> = None;
        for piece in pieces {
            let (span, state) = match piece.state {
                PieceState::Free(range, run) => {
                    unpin(memory, run);
                    match range.release() {
                        Ok(()) => continue,
                        Err((range, _)) => (range.span(), State::Vacant(range)),
                    }
                }
                PieceState::Mapped(range) => (range.span(), State::Pending(range.unmap())),
                PieceState::Taken => continue,
            };
            spans = Some(spans.map_or(span, |spans| spans.hull(&span)));
            self.areas.insert(Area {
                span,
                gpa: piece.gpa,
                perms: Perms::Read,
                kind: MappingKind::Memory,
                slot: None,
                state,
            });
        }
        if let Some(spans) = spans {
            let indices = self.areas.meeting(spans);
            let begun = self.begin(indices, |_| false);
            self.call_back(memory, begun);
        }
    }
}

impl<B: Backend> BulkPart<B> {
    /// Cuts about `pages` pages off its end, at a border of large pages.
    fn cut_off(&mut self, pages: u64) -> Result<Self, OutOfMemory> {
        let mut part = Self {
            domain: self.domain,
            pieces: Vec::new(),
            perms: self.perms,
            tables: 0,
            failed: None,
        };
        room(&mut part.pieces, self.pieces.len())?;
        // Never through a large page, however small the parts.
        let border = match pages >= PageSize::Size1G.pages() {
            true => PageSize::Size1G,
            false => PageSize::Size2M,
        };
        let mut left = pages;
        while left > 0
            && let Some(piece) = self.pieces.pop()
        {
            let PieceState::Free(range, run) = piece.state else {
                continue;
            };
            let span = range.span();
            let length = span.pages().get();
            if length <= left {
                left -= length;
                part.pieces.push(Piece {
                    gpa: piece.gpa,
                    slot: piece.slot,
                    state: PieceState::Free(range, run),
                });
                continue;
            }
            // The border that is nearest above leaves this part a little more.
            let from = span.start().as_u64() + (length - left) * PageSize::Size4K.bytes();
            let cut = from / border.bytes() * border.bytes();
            let keep = cut.saturating_sub(span.start().as_u64()) / PageSize::Size4K.bytes();
            let (low, high) = match cut_piece(range, run, keep) {
                Ok(halves) => halves,
                Err((range, run)) => {
                    // No border inside: all of it.
                    part.pieces.push(Piece {
                        gpa: piece.gpa,
                        slot: piece.slot,
                        state: PieceState::Free(range, run),
                    });
                    break;
                }
            };
            let further = keep * PageSize::Size4K.bytes();
            part.pieces.push(Piece {
                gpa: super::gpa_after(piece.gpa, further),
                slot: piece.slot,
                state: PieceState::Free(high.0, high.1),
            });
            self.pieces.push(Piece {
                gpa: piece.gpa,
                slot: piece.slot,
                state: PieceState::Free(low.0, low.1),
            });
            break;
        }
        Ok(part)
    }
}

impl<B: Backend> fmt::Debug for BulkPart<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages to map in {}", self.pages(), self.domain)
    }
}

type Half<B> = (Range<UserManaged, B, Free>, FrameRun<Guest>);

/// Cuts addresses and frames after `keep` pages; both come back when one part would be empty.
fn cut_piece<B: Backend>(
    range: Range<UserManaged, B, Free>,
    run: FrameRun<Guest>,
    keep: u64,
) -> Result<(Half<B>, Half<B>), Half<B>> {
    let Some(keep) = PageCount::new(keep) else {
        return Err((range, run));
    };
    let (low, high) = match run.split_at(keep) {
        Ok(halves) => halves,
        Err(error) => return Err((range, error.run)),
    };
    match range.split_at(keep) {
        Ok((first, second)) => Ok(((first, low), (second, high))),
        // As long as the run, so it was cut like that.
        Err(range) => match low.join(high) {
            Ok(run) => Err((range, run)),
            Err((low, _)) => Err((range, low)),
        },
    }
}

fn room<T>(list: &mut Vec<T>, more: usize) -> Result<(), OutOfMemory> {
    list.try_reserve(more).map_err(|_| OutOfMemory {
        bytes: more.saturating_mul(size_of::<T>()),
    })
}
