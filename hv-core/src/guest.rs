//! A guest's memory: which frames it was given, where the guest sees them, and who holds them.

#![expect(unsafe_code, reason = "hands out pins on frames that it owns")]

use alloc::vec::Vec;

use thiserror::Error;

use crate::platform::PhysMemory;
use crate::sync::{AtomicU64, Ordering};
use crate::{
    FrameRun, Gpa, GpaRange, Guest, Hypervisor, OutOfBounds, OutOfMemory, PageCount, PhysRange,
    RangeError, VmId,
};

/// One run of frames and its place in the guest.
struct Slot {
    gpa: GpaRange,
    frames: FrameRun<Hypervisor>,
    /// Pages held by runs of this slot, each page once per run that names it.
    pins: AtomicU64,
}

/// The memory of one guest: runs of frames that the hypervisor gave it, at guest-physical places.
///
/// The frames come in by value and go back by [`take_back`](Self::take_back), which is refused
/// while a pin is held. A pin is a [`FrameRun<Guest>`]; a domain that maps it holds it until a
/// flush receipt gives it back.
///
/// # Invariants
/// Slots do not overlap. The pins of a slot count every page named by a live run of it.
pub struct GuestMemory {
    vm: VmId,
    slots: Vec<Slot>,
}

/// Why guest memory could not be given, pinned or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GuestMemoryError {
    /// The place is taken.
    #[error("guest range {wanted} overlaps {taken}, which the guest has already")]
    Overlap {
        /// The range that was asked for.
        wanted: GpaRange,
        /// The slot that is in the way.
        taken: GpaRange,
    },
    /// No single slot holds the range.
    #[error("guest range {wanted} lies in no single run of the guest's memory")]
    NotMemory {
        /// The range that was asked for.
        wanted: GpaRange,
    },
    /// The slot starts elsewhere.
    #[error("no run of the guest's memory starts at {0}")]
    NoSuchSlot(Gpa),
    /// Pages are still held by mappings or pending values.
    #[error("guest range {range} is still pinned ({pages} pages)")]
    Pinned {
        /// The slot.
        range: GpaRange,
        /// How many pins are held, in pages.
        pages: u64,
    },
    /// The run belongs to another guest or to no slot of this one.
    #[error("frames {range} of {owner} are not memory of {vm}")]
    Foreign {
        /// The frames.
        range: PhysRange,
        /// Whose they are.
        owner: VmId,
        /// Whose memory this is.
        vm: VmId,
    },
    /// The place is no valid range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The list of slots cannot grow.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A CPU access leaves the guest's memory.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
}

impl GuestMemory {
    /// An empty memory for `vm`.
    pub fn new(vm: VmId) -> Self {
        // INVARIANT: no slots, no pins.
        Self {
            vm,
            slots: Vec::new(),
        }
    }

    /// The guest.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// Gives `frames` to the guest at `gpa`.
    ///
    /// # Errors
    /// The frames, with the reason.
    pub fn give(
        &mut self,
        gpa: Gpa,
        frames: FrameRun<Hypervisor>,
    ) -> Result<GpaRange, (FrameRun<Hypervisor>, GuestMemoryError)> {
        let gpa = match GpaRange::new(gpa, frames.pages()) {
            Ok(gpa) => gpa,
            Err(error) => return Err((frames, error.into())),
        };
        if let Some(slot) = self.slots.iter().find(|slot| slot.gpa.overlaps(&gpa)) {
            let taken = slot.gpa;
            return Err((frames, GuestMemoryError::Overlap { wanted: gpa, taken }));
        }
        if self.slots.try_reserve(1).is_err() {
            let bytes = size_of::<Slot>();
            return Err((frames, OutOfMemory { bytes }.into()));
        }
        // INVARIANT: overlap was checked; nothing names the new slot's frames yet.
        self.slots.push(Slot {
            gpa,
            frames,
            pins: AtomicU64::new(0),
        });
        Ok(gpa)
    }

    /// Pins the frames behind `range`, which must lie in one slot.
    ///
    /// # Errors
    /// [`GuestMemoryError::NotMemory`] when no single slot holds the range.
    pub fn pin(&self, range: GpaRange) -> Result<FrameRun<Guest>, GuestMemoryError> {
        let not_memory = GuestMemoryError::NotMemory { wanted: range };
        let slot = self
            .slots
            .iter()
            .find(|slot| slot.gpa.covers(&range))
            .ok_or(not_memory)?;
        let offset = range.start().as_u64() - slot.gpa.start().as_u64();
        let start = slot
            .frames
            .range()
            .start()
            .checked_add(offset)
            .ok_or(not_memory)?;
        let frames = PhysRange::new(start, range.pages())?;
        // ORDERING: Relaxed, the count guards nothing but `take_back`, which has `&mut self` and
        // so happens after every pin by whatever made the borrow exclusive.
        let counted = slot
            .pins
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pins| {
                pins.checked_add(range.pages().get())
            });
        counted.map_err(|pages| GuestMemoryError::Pinned {
            range: slot.gpa,
            pages,
        })?;
        // SAFETY: the frames lie in a slot, which is RAM given to this guest, and the pins just
        // counted keep them there until `unpin`.
        Ok(unsafe { FrameRun::from_raw(frames, self.vm) })
    }

    /// Gives a pin back.
    ///
    /// # Errors
    /// The run, when it is not of this guest's memory.
    pub fn unpin(&self, run: FrameRun<Guest>) -> Result<(), (FrameRun<Guest>, GuestMemoryError)> {
        let range = run.range();
        let slot = self
            .slots
            .iter()
            .find(|slot| slot.frames.range().covers(&range));
        match slot {
            Some(slot) if run.owner() == self.vm => {
                // ORDERING: Relaxed, as in `pin`.
                slot.pins.fetch_sub(range.pages().get(), Ordering::Relaxed);
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

    /// How many pages are pinned, each as often as a live run names it.
    pub fn pinned_pages(&self) -> u64 {
        // ORDERING: Relaxed, a snapshot for people and tests.
        self.slots
            .iter()
            .map(|slot| slot.pins.load(Ordering::Relaxed))
            .sum()
    }

    /// Takes the slot that starts at `gpa` back from the guest.
    ///
    /// # Errors
    /// [`GuestMemoryError::Pinned`] while any page of it is pinned, [`GuestMemoryError::NoSuchSlot`].
    pub fn take_back(&mut self, gpa: Gpa) -> Result<FrameRun<Hypervisor>, GuestMemoryError> {
        let index = self
            .slots
            .iter()
            .position(|slot| slot.gpa.start() == gpa)
            .ok_or(GuestMemoryError::NoSuchSlot(gpa))?;
        if let Some(slot) = self.slots.get(index) {
            // ORDERING: Relaxed, `&mut self` orders this after all pins and unpins.
            let pages = slot.pins.load(Ordering::Relaxed);
            if pages != 0 {
                return Err(GuestMemoryError::Pinned {
                    range: slot.gpa,
                    pages,
                });
            }
        }
        Ok(self.slots.swap_remove(index).frames)
    }

    /// Copies bytes out of guest memory, within one slot.
    ///
    /// # Errors
    /// [`GuestMemoryError::NotMemory`] or [`GuestMemoryError::OutOfBounds`]; nothing is copied then.
    pub fn read<M: PhysMemory>(
        &self,
        memory: &M,
        gpa: Gpa,
        out: &mut [u8],
    ) -> Result<(), GuestMemoryError> {
        let (slot, offset) = self.slot_at(gpa)?;
        Ok(slot.frames.read(memory, offset, out)?)
    }

    /// Copies bytes into guest memory, within one slot.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write<M: PhysMemory>(
        &self,
        memory: &M,
        gpa: Gpa,
        bytes: &[u8],
    ) -> Result<(), GuestMemoryError> {
        let (slot, offset) = self.slot_at(gpa)?;
        Ok(slot.frames.write(memory, offset, bytes)?)
    }

    /// Reads one aligned 32-bit word in one access, as [`PhysMemory::read_u32`] does.
    ///
    /// # Errors
    /// As for [`read`](Self::read), also when `gpa` is not a multiple of 4.
    pub fn read_u32<M: PhysMemory>(&self, memory: &M, gpa: Gpa) -> Result<u32, GuestMemoryError> {
        let (slot, offset) = self.slot_at(gpa)?;
        Ok(slot.frames.read_u32(memory, offset)?)
    }

    fn slot_at(&self, gpa: Gpa) -> Result<(&Slot, u64), GuestMemoryError> {
        let slot = self.slots.iter().find(|slot| slot.gpa.contains(gpa));
        match slot {
            Some(slot) => Ok((slot, gpa.as_u64() - slot.gpa.start().as_u64())),
            None => Err(GuestMemoryError::NotMemory {
                wanted: GpaRange::new(gpa.align_down(crate::PageSize::Size4K), PageCount::ONE)?,
            }),
        }
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;
    use crate::PhysAddr;

    fn frames(start: u64, pages: u64) -> FrameRun<Hypervisor> {
        let range = PhysRange::new(PhysAddr::new(start), PageCount::new(pages).unwrap()).unwrap();
        // SAFETY: the test never touches the memory behind these addresses.
        unsafe { FrameRun::from_raw(range, ()) }
    }

    fn gpas(start: u64, pages: u64) -> GpaRange {
        GpaRange::new(Gpa::new(start), PageCount::new(pages).unwrap()).unwrap()
    }

    #[test]
    fn pinned_memory_cannot_be_taken_back() {
        let mut memory = GuestMemory::new(VmId::new(3).unwrap());
        memory
            .give(Gpa::new(0x10_0000), frames(0x80_0000, 16))
            .unwrap();
        let run = memory.pin(gpas(0x10_2000, 4)).unwrap();
        assert_eq!(run.range().start(), PhysAddr::new(0x80_2000));
        assert!(matches!(
            memory.take_back(Gpa::new(0x10_0000)),
            Err(GuestMemoryError::Pinned { pages: 4, .. })
        ));
        let (left, right) = run.split_at(PageCount::ONE).unwrap();
        memory.unpin(left).unwrap();
        assert_eq!(memory.pinned_pages(), 3);
        memory.unpin(right).unwrap();
        assert_eq!(
            memory.take_back(Gpa::new(0x10_0000)).unwrap().pages().get(),
            16
        );
    }

    #[test]
    fn foreign_frames_and_overlaps_come_back() {
        let mut first = GuestMemory::new(VmId::new(1).unwrap());
        let mut second = GuestMemory::new(VmId::new(2).unwrap());
        first.give(Gpa::new(0), frames(0x10_0000, 2)).unwrap();
        second.give(Gpa::new(0), frames(0x20_0000, 2)).unwrap();
        let run = first.pin(gpas(0, 1)).unwrap();
        let (run, error) = second.unpin(run).unwrap_err();
        assert!(matches!(error, GuestMemoryError::Foreign { .. }));
        first.unpin(run).unwrap();
        let (_, error) = first
            .give(Gpa::new(0x1000), frames(0x30_0000, 1))
            .unwrap_err();
        assert!(matches!(error, GuestMemoryError::Overlap { .. }));
        assert!(first.pin(gpas(0x1000, 2)).is_err());
    }
}
