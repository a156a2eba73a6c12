//! A guest's memory: which frames it was given, where the guest sees them, and who holds them.

#![expect(unsafe_code, reason = "hands out pins on frames that it owns")]

mod access;
mod error;
mod lend;
mod pins;
mod slot;
#[cfg(all(test, not(hv_loom)))]
mod tests;

use alloc::vec::Vec;

use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::{
    FrameRun, Gpa, GpaRange, Guest, Hypervisor, MmioRun, PageCount, PageSize, PhysAddr, PhysRange,
    Shared, VmId,
};
use lend::Accepted;
use pins::PinBook;
use slot::{Backing, Slot};

pub use error::GuestMemoryError;
pub use lend::Loan;
pub use slot::{GuestSlot, SlotKind};

/// The most pins of one guest, in pages: far from where a counter could wrap. Only runs that are forgotten in a
/// loop come near.
const MOST_PINS: u64 = 1 << 62;

/// The memory of one guest: runs of frames that the hypervisor gave it, frames that another guest lends it, and
/// registers of devices, at guest-physical places.
///
/// The frames come in by value and go back by [`take_back`](Self::take_back), or piece by piece by
/// [`take_back_part`](Self::take_back_part), which is refused while a pin is held there. A pin is a
/// [`FrameRun<Guest>`]; a domain that maps it holds it until a flush receipt gives it back.
///
/// # Invariants
/// Slots are sorted by guest address and do not overlap; `by_frames` has the same slots sorted by physical
/// address, and those do not overlap either. The books of the slots count every page named by a live run of
/// them, and `pinned` is how many that are.
pub struct GuestMemory {
    vm: VmId,
    slots: Vec<Slot>,
    by_frames: Vec<(PhysAddr, Gpa)>,
    pinned: AtomicU64,
    /// What was lent and is accepted; made with the first loan.
    accepted: Mutex<Option<Shared<Accepted>>>,
}

impl GuestMemory {
    /// An empty memory for `vm`.
    pub fn new(vm: VmId) -> Self {
        // INVARIANT: no slots, no pins.
        Self {
            vm,
            slots: Vec::new(),
            by_frames: Vec::new(),
            pinned: AtomicU64::new(0),
            accepted: Mutex::new(None),
        }
    }

    /// What was lent of this memory and is accepted.
    fn accepted(&self) -> Result<Shared<Accepted>, GuestMemoryError> {
        let mut accepted = self.accepted.lock();
        if let Some(accepted) = &*accepted {
            return Ok(accepted.clone());
        }
        let made = Shared::try_new(Accepted::nothing()).map_err(|(_, error)| error)?;
        Ok(accepted.insert(made).clone())
    }

    /// The guest.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The slots, by guest address.
    pub fn slots(&self) -> impl Iterator<Item = GuestSlot> {
        self.slots.iter().map(Slot::describe)
    }

    /// Gives `frames` to the guest at `gpa`. Pins are watched in blocks of 2 MiB: see
    /// [`give_watched`](Self::give_watched).
    ///
    /// # Errors
    /// The frames, with the reason.
    pub fn give(
        &mut self,
        gpa: Gpa,
        frames: FrameRun<Hypervisor>,
    ) -> Result<GpaRange, (FrameRun<Hypervisor>, GuestMemoryError)> {
        self.give_watched(gpa, frames, PageSize::Size2M)
    }

    /// Gives `frames` to the guest at `gpa`, and watches pins in blocks of `granule`, aligned as guest addresses:
    /// a part of the slot can be taken back when nothing of the blocks that it touches is pinned. 4 KiB is exact
    /// and costs 8 bytes per page; 2 MiB costs 16 bytes per 2 MiB.
    ///
    /// # Errors
    /// The frames, with the reason.
    pub fn give_watched(
        &mut self,
        gpa: Gpa,
        frames: FrameRun<Hypervisor>,
        granule: PageSize,
    ) -> Result<GpaRange, (FrameRun<Hypervisor>, GuestMemoryError)> {
        let room = self.room_for(gpa, frames.range(), granule);
        match room {
            Ok((gpa, book)) => {
                self.insert(gpa, Backing::Ram(frames), book, 0);
                Ok(gpa)
            }
            Err(error) => Err((frames, error)),
        }
    }

    /// Gives registers of a device to the guest at `gpa`.
    ///
    /// # Errors
    /// The registers, with the reason.
    pub fn give_registers(
        &mut self,
        gpa: Gpa,
        registers: MmioRun,
    ) -> Result<GpaRange, (MmioRun, GuestMemoryError)> {
        match self.room_for(gpa, registers.range(), PageSize::Size2M) {
            Ok((gpa, book)) => {
                self.insert(gpa, Backing::Registers(registers), book, 0);
                Ok(gpa)
            }
            Err(error) => Err((registers, error)),
        }
    }

    /// Pins the frames behind `range`, which must lie in one slot of memory: the guest's own, or lent to it.
    ///
    /// # Errors
    /// [`GuestMemoryError::NotMemory`] when no single slot holds the range, [`GuestMemoryError::Registers`].
    pub fn pin(&self, range: GpaRange) -> Result<FrameRun<Guest>, GuestMemoryError> {
        let slot = self.slot_of(range)?;
        if slot.kind() == SlotKind::Registers {
            return Err(GuestMemoryError::Registers { range: slot.gpa });
        }
        self.pin_in(slot, range)
    }

    /// Pins the registers at `range`, which must lie in one slot of registers. To be mapped for devices of the same
    /// guest: requests from peer to peer.
    ///
    /// # Errors
    /// [`GuestMemoryError::NotMemory`] when no single slot holds the range,
    /// [`GuestMemoryError::NotRegisters`].
    pub fn pin_registers(&self, range: GpaRange) -> Result<FrameRun<Guest>, GuestMemoryError> {
        let slot = self.slot_of(range)?;
        if slot.kind() != SlotKind::Registers {
            return Err(GuestMemoryError::NotRegisters { range: slot.gpa });
        }
        self.pin_in(slot, range)
    }

    fn pin_in(&self, slot: &Slot, range: GpaRange) -> Result<FrameRun<Guest>, GuestMemoryError> {
        let pages = range.pages();
        let first = slot.pages_to(range.start());
        let start = slot.frames.page(first);
        let frames = start.and_then(|start| PhysRange::new(start, pages).ok());
        let frames = frames.ok_or(GuestMemoryError::NotMemory { wanted: range })?;
        // ORDERING: Relaxed, a sum that is compared with a bound far from where it could wrap.
        let before = self.pinned.fetch_add(pages.get(), Ordering::Relaxed);
        if before > MOST_PINS {
            // ORDERING: Relaxed, as above.
            self.pinned.fetch_sub(pages.get(), Ordering::Relaxed);
            return Err(GuestMemoryError::Pinned {
                range,
                watched: range,
                pages: before,
            });
        }
        slot.book.pin(slot.first + first, pages.get());
        // SAFETY: the frames lie in a slot, which is what this guest was given, and the pins just counted keep
        // them there until `unpin`.
        Ok(unsafe { FrameRun::from_raw(frames, self.vm) })
    }

    /// Gives a pin back: all of it or, if it was cut, in any pieces.
    ///
    /// # Errors
    /// The run, when it is not of one slot of this guest's memory: also when it is of another memory of the same
    /// guest, since no two of them have the same frames.
    pub fn unpin(&self, run: FrameRun<Guest>) -> Result<(), (FrameRun<Guest>, GuestMemoryError)> {
        let range = run.range();
        let slot = self
            .slot_by_frame(range.start())
            .filter(|slot| slot.frames.covers(&range));
        match slot {
            Some(slot) if run.owner() == self.vm => {
                let offset = range.start().as_u64() - slot.frames.start().as_u64();
                let first = slot.first + (offset >> PageSize::Size4K.shift());
                slot.book.unpin(first, range.pages().get());
                // ORDERING: Relaxed, as in `pin_in`.
                self.pinned
                    .fetch_sub(range.pages().get(), Ordering::Relaxed);
                Ok(())
            }
            _ => {
                let error = GuestMemoryError::Foreign {
                    range,
                    owner: run.owner(),
                    vm: self.vm,
                };
                Err((run, error))
            }
        }
    }

    /// Where the guest sees these frames, which lie in one of its slots.
    pub fn place_of(&self, frames: PhysRange) -> Option<GpaRange> {
        let slot = self.slot_by_frame(frames.start())?;
        let offset = slot.frames.covers(&frames).then(|| {
            let bytes = frames.start().as_u64() - slot.frames.start().as_u64();
            bytes >> PageSize::Size4K.shift()
        })?;
        GpaRange::new(slot.gpa.page(offset)?, frames.pages()).ok()
    }

    /// How many pages are pinned, each as often as a live run names it.
    pub fn pinned_pages(&self) -> u64 {
        // ORDERING: Relaxed, a snapshot for people and tests.
        self.pinned.load(Ordering::Relaxed)
    }

    /// Takes the slot that starts at `gpa` back from the guest.
    ///
    /// # Errors
    /// [`GuestMemoryError::Pinned`] while any page of it is pinned, [`GuestMemoryError::NoSuchSlot`],
    /// [`GuestMemoryError::Lent`] and [`GuestMemoryError::Registers`] for what is not the guest's own memory.
    pub fn take_back(&mut self, gpa: Gpa) -> Result<FrameRun<Hypervisor>, GuestMemoryError> {
        let range = self.slots.get(self.slot_at(gpa)?).map(|slot| slot.gpa);
        self.take_back_part(range.ok_or(GuestMemoryError::NoSuchSlot(gpa))?)
    }

    /// Takes a part of a slot back from the guest, as a balloon does: what is left and right of it stays.
    ///
    /// # Errors
    /// [`GuestMemoryError::Pinned`] while a page of the blocks that the part touches is pinned (see
    /// [`give_watched`](Self::give_watched)), and as for [`take_back`](Self::take_back); nothing was changed then.
    pub fn take_back_part(
        &mut self,
        range: GpaRange,
    ) -> Result<FrameRun<Hypervisor>, GuestMemoryError> {
        let slot = self.slot_of(range)?;
        let whole = slot.gpa;
        let (head, pages) = (slot.pages_to(range.start()), range.pages().get());
        let held = slot.book.held(slot.first + head, pages);
        if held.pages != 0 {
            let (pages, watched) = (held.pages, slot.watched(range, held));
            return Err(GuestMemoryError::Pinned {
                range,
                watched,
                pages,
            });
        }
        match slot.kind() {
            SlotKind::Ram => {}
            SlotKind::Lent { from } => return Err(GuestMemoryError::Lent { range: whole, from }),
            SlotKind::Registers => return Err(GuestMemoryError::Registers { range: whole }),
        }
        // One slot becomes two at most.
        self.reserve_slot()?;
        let Some((backing, book, first)) = self.remove(whole.start()) else {
            return Err(GuestMemoryError::NotMemory { wanted: range });
        };
        let frames = match backing {
            Backing::Ram(frames) => frames,
            other => {
                self.insert(whole, other, book, first);
                return Err(GuestMemoryError::NotMemory { wanted: range });
            }
        };
        let (low, rest) = cut_off(frames, head);
        let (middle, high) = match rest.map(|rest| cut_off(rest, pages)) {
            Some((Some(middle), high)) => (middle, high),
            // The part has a page, and lies in the slot.
            _ => return Err(GuestMemoryError::NotMemory { wanted: range }),
        };
        for (part, before) in [(low, 0), (high, head + pages)] {
            let gpa = whole.page(before).zip(part.as_ref());
            let gpa = gpa.and_then(|(start, part)| GpaRange::new(start, part.pages()).ok());
            if let (Some(gpa), Some(part)) = (gpa, part) {
                // INVARIANT: the parts lie where the whole lay, and share its book: no run that is counted there
                // has a page of the part that goes.
                self.insert(gpa, Backing::Ram(part), book.clone(), first + before);
            }
        }
        Ok(middle)
    }

    /// Takes registers back from the guest: before their function stops to decode them, is reset or goes away.
    ///
    /// # Errors
    /// [`GuestMemoryError::Pinned`] while a device may reach them, [`GuestMemoryError::NoSuchSlot`],
    /// [`GuestMemoryError::NotRegisters`].
    pub fn take_back_registers(&mut self, gpa: Gpa) -> Result<MmioRun, GuestMemoryError> {
        match self.remove_unpinned(gpa, SlotKind::Registers)? {
            Backing::Registers(registers) => Ok(registers),
            // The kind was looked at.
            _ => Err(GuestMemoryError::NoSuchSlot(gpa)),
        }
    }

    /// Takes out the slot that starts at `gpa`, if it is of this kind and nothing of it is pinned.
    fn remove_unpinned(&mut self, gpa: Gpa, kind: SlotKind) -> Result<Backing, GuestMemoryError> {
        let no_slot = GuestMemoryError::NoSuchSlot(gpa);
        let slot = self.slots.get(self.slot_at(gpa)?).ok_or(no_slot)?;
        let range = slot.gpa;
        if slot.kind() != kind {
            return Err(match kind {
                SlotKind::Registers => GuestMemoryError::NotRegisters { range },
                _ => GuestMemoryError::NotLent { range },
            });
        }
        let held = slot.book.held(slot.first, range.pages().get());
        if held.pages != 0 {
            let (pages, watched) = (held.pages, slot.watched(range, held));
            return Err(GuestMemoryError::Pinned {
                range,
                watched,
                pages,
            });
        }
        let removed = self.remove(gpa).map(|(backing, _, _)| backing);
        removed.ok_or(no_slot)
    }

    /// Checks that a slot can go there, and takes all the memory that it needs.
    fn room_for(
        &mut self,
        gpa: Gpa,
        frames: PhysRange,
        granule: PageSize,
    ) -> Result<(GpaRange, Shared<PinBook>), GuestMemoryError> {
        let wanted = GpaRange::new(gpa, frames.pages())?;
        let after = self
            .slots
            .partition_point(|slot| slot.gpa.last() < wanted.start());
        if let Some(slot) = self
            .slots
            .get(after)
            .filter(|slot| slot.gpa.overlaps(&wanted))
        {
            let taken = slot.gpa;
            return Err(GuestMemoryError::Overlap { wanted, taken });
        }
        let clash = self.slot_by_frame(frames.last());
        if clash.is_some_and(|slot| slot.frames.overlaps(&frames)) {
            return Err(GuestMemoryError::GivenTwice { range: frames });
        }
        self.reserve_slot()?;
        let first = wanted.start().as_u64() >> PageSize::Size4K.shift();
        let book = PinBook::new(first, wanted.pages().get(), granule)?;
        let book = Shared::try_new(book).map_err(|(_, error)| error)?;
        Ok((wanted, book))
    }

    /// Puts a slot in its place; room for it was made before.
    fn insert(&mut self, gpa: GpaRange, backing: Backing, book: Shared<PinBook>, first: u64) {
        let frames = backing.range();
        let at = self
            .slots
            .partition_point(|slot| slot.gpa.start() < gpa.start());
        let place = self
            .by_frames
            .partition_point(|(start, _)| *start < frames.start());
        // INVARIANT: callers checked that nothing overlaps, or put back parts of what was there.
        self.by_frames.insert(place, (frames.start(), gpa.start()));
        let slot = Slot {
            gpa,
            frames,
            backing,
            book,
            first,
        };
        self.slots.insert(at, slot);
    }

    /// Takes out the slot that starts at `gpa`.
    fn remove(&mut self, gpa: Gpa) -> Option<(Backing, Shared<PinBook>, u64)> {
        let index = self.slot_at(gpa).ok()?;
        let frames = self.slots.get(index)?.frames;
        let place = self
            .by_frames
            .binary_search_by_key(&frames.start(), |(start, _)| *start)
            .ok()?;
        self.by_frames.remove(place);
        let slot = self.slots.remove(index);
        Some((slot.backing, slot.book, slot.first))
    }

    fn reserve_slot(&mut self) -> Result<(), GuestMemoryError> {
        let out = |bytes| crate::OutOfMemory { bytes };
        self.slots
            .try_reserve(1)
            .map_err(|_| out(size_of::<Slot>()))?;
        self.by_frames
            .try_reserve(1)
            .map_err(|_| out(size_of::<(PhysAddr, Gpa)>()))?;
        Ok(())
    }

    /// The index of the slot that starts at `gpa`.
    fn slot_at(&self, gpa: Gpa) -> Result<usize, GuestMemoryError> {
        self.slots
            .binary_search_by_key(&gpa, |slot| slot.gpa.start())
            .map_err(|_| GuestMemoryError::NoSuchSlot(gpa))
    }

    /// The slot that `at` lies in.
    fn slot_with(&self, at: Gpa) -> Option<&Slot> {
        let after = self.slots.partition_point(|slot| slot.gpa.start() <= at);
        let slot = self.slots.get(after.checked_sub(1)?)?;
        slot.gpa.contains(at).then_some(slot)
    }

    /// The one slot that holds all of `range`.
    fn slot_of(&self, range: GpaRange) -> Result<&Slot, GuestMemoryError> {
        self.slot_with(range.start())
            .filter(|slot| slot.gpa.covers(&range))
            .ok_or(GuestMemoryError::NotMemory { wanted: range })
    }

    /// The last slot whose frames do not begin behind `at`.
    fn slot_by_frame(&self, at: PhysAddr) -> Option<&Slot> {
        let after = self.by_frames.partition_point(|(start, _)| *start <= at);
        let (_, gpa) = self.by_frames.get(after.checked_sub(1)?)?;
        self.slots.get(self.slot_at(*gpa).ok()?)
    }
}

/// The first `pages` frames, if that is any, and the rest, if there is any.
fn cut_off(
    run: FrameRun<Hypervisor>,
    pages: u64,
) -> (Option<FrameRun<Hypervisor>>, Option<FrameRun<Hypervisor>>) {
    let Some(count) = PageCount::new(pages) else {
        return (None, Some(run));
    };
    match run.split_at(count) {
        Ok((low, high)) => (Some(low), Some(high)),
        // The cut is at the end.
        Err(error) => (Some(error.run), None),
    }
}
