//! Bits in guest memory, one for each page that a device wrote.

use hv_core::fault::Fault;
use hv_core::platform::PhysMemory;
use hv_core::{Gpa, GuestMemory, IovaRange, PageSize};

use super::Code;

/// Where the bits for the pages of a range are set.
pub(super) struct Bitmap<'m, M> {
    memory: &'m GuestMemory,
    platform: &'m M,
    at: Gpa,
    range: IovaRange,
}

impl<'m, M: PhysMemory> Bitmap<'m, M> {
    /// A bitmap at `at`, all of which has to be memory of one slot.
    pub(super) fn new(
        memory: &'m GuestMemory,
        platform: &'m M,
        at: Gpa,
        range: IovaRange,
    ) -> Result<Self, Code> {
        let bitmap = Self {
            memory,
            platform,
            at,
            range,
        };
        let last = (range.pages().get() - 1) / 8;
        let mut byte = [0];
        for offset in [0, last] {
            memory.read(platform, bitmap.byte(offset)?, &mut byte)?;
        }
        // Both ends in one slot: all between them, too.
        let slot = |at: Gpa| memory.slots().find(|slot| slot.range.contains(at));
        match slot(at) == slot(bitmap.byte(last)?) {
            true => Ok(bitmap),
            false => Err(Code::NotMemory),
        }
    }

    fn byte(&self, offset: u64) -> Result<Gpa, Code> {
        self.at.checked_add(offset).ok_or(Code::Overflow)
    }

    /// Sets the bits for the pages of a leaf, as far as they are in the range.
    pub(super) fn set(&self, leaf: IovaRange) -> Result<(), Code> {
        let first = leaf.start().as_u64() >> PageSize::Size4K.shift();
        let start = self.range.start().as_u64() >> PageSize::Size4K.shift();
        let low = first.saturating_sub(start);
        let pages = match Fault::MarkFirstPage.is_on() {
            true => 1,
            false => leaf.pages().get(),
        };
        let high = (first + pages).saturating_sub(start);
        for offset in low / 8..high.min(self.range.pages().get()).div_ceil(8) {
            let mut byte = [0];
            self.memory
                .read(self.platform, self.byte(offset)?, &mut byte)?;
            for bit in 0..8 {
                let number = offset * 8 + bit;
                if (low..high.min(self.range.pages().get())).contains(&number)
                    && let [bits] = &mut byte
                {
                    *bits |= 1 << bit;
                }
            }
            self.memory
                .write(self.platform, self.byte(offset)?, &byte)?;
        }
        Ok(())
    }
}
