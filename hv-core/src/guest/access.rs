//! The hypervisor's own reads and writes of a guest's memory.

#![expect(
    unsafe_code,
    reason = "reaches memory that a slot owns or holds a pin on"
)]

use super::slot::{Backing, Slot};
use super::{GuestMemory, GuestMemoryError};
use crate::platform::PhysMemory;
use crate::{Gpa, GpaRange, OutOfBounds, PageCount, PageSize, PhysAddr};

impl GuestMemory {
    /// Copies bytes out of guest memory, within one slot.
    ///
    /// # Errors
    /// [`GuestMemoryError::NotMemory`], [`GuestMemoryError::Registers`] or [`GuestMemoryError::OutOfBounds`];
    /// nothing is copied then.
    pub fn read<M: PhysMemory>(
        &self,
        memory: &M,
        gpa: Gpa,
        out: &mut [u8],
    ) -> Result<(), GuestMemoryError> {
        let at = self.place(gpa, out.len())?;
        // SAFETY: `place` found the bytes in one slot of memory, which owns its frames or, if they are lent, holds a
        // pin on them, and `self` is borrowed for as long.
        unsafe { memory.read(at, out) };
        Ok(())
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
        let at = self.place(gpa, bytes.len())?;
        // SAFETY: as in `read`.
        unsafe { memory.write(at, bytes) };
        Ok(())
    }

    /// Reads one aligned 32-bit word in one access, as [`PhysMemory::read_u32`] does.
    ///
    /// # Errors
    /// As for [`read`](Self::read), also when `gpa` is not a multiple of 4.
    pub fn read_u32<M: PhysMemory>(&self, memory: &M, gpa: Gpa) -> Result<u32, GuestMemoryError> {
        let bytes = size_of::<u32>();
        let at = self.place(gpa, bytes)?;
        if !at.as_u64().is_multiple_of(bytes as u64) {
            return Err(self.outside(gpa, bytes).into());
        }
        // SAFETY: as in `read`, and the address is a multiple of 4.
        Ok(unsafe { memory.read_u32(at) })
    }

    /// Where in memory these bytes are, all in one slot.
    fn place(&self, gpa: Gpa, bytes: usize) -> Result<PhysAddr, GuestMemoryError> {
        let Some(slot) = self.slot_with(gpa) else {
            let page = gpa.align_down(PageSize::Size4K);
            let wanted = GpaRange::new(page, PageCount::ONE)?;
            return Err(GuestMemoryError::NotMemory { wanted });
        };
        match slot.backing {
            Backing::Ram(_) | Backing::Lent(_) => {}
            Backing::Registers(_) => {
                return Err(GuestMemoryError::Registers { range: slot.gpa });
            }
        }
        let offset = offset_in(slot, gpa);
        OutOfBounds::check(offset, bytes, slot.gpa.pages().bytes())?;
        let at = slot.frames.start().checked_add(offset);
        Ok(at.ok_or(self.outside(gpa, bytes))?)
    }

    fn outside(&self, gpa: Gpa, bytes: usize) -> OutOfBounds {
        let slot = self.slot_with(gpa);
        OutOfBounds {
            offset: slot.map_or(0, |slot| offset_in(slot, gpa)),
            bytes: bytes as u64,
            end: slot.map_or(0, |slot| slot.gpa.pages().bytes()),
        }
    }
}

fn offset_in(slot: &Slot, gpa: Gpa) -> u64 {
    gpa.as_u64() - slot.gpa.start().as_u64()
}
