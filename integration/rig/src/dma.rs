//! What devices send, as a test has them do it.

use std::fmt;
use std::ops::Range;

use hv_core::{Access, Iova, Pasid, PciAddress};

use crate::core::State;
use crate::memory::FRAME_BYTES;
use crate::request::Outcome;
use crate::rig::Rig;

/// A device's access that did not reach memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    /// What became of it.
    pub outcome: Outcome,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            Outcome::Reached { .. } => write!(f, "{}, which is no memory", self.outcome),
            outcome => write!(f, "{outcome}"),
        }
    }
}

impl fmt::Debug for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Blocked {}

/// What a request says about the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// That it snoops them.
    Snooping,
    /// That it need not (No_snoop).
    NoSnoop,
    /// Now this, now that.
    Either,
}

impl Rig {
    /// A device's access to one 64-bit word or less, from beginning to end.
    pub fn access(&self, function: PciAddress, at: Iova, access: Access) -> Outcome {
        self.sent(function, None, at, access, Asks::Either)
    }

    /// The same with a PASID, or without one.
    pub fn access_as(
        &self,
        function: PciAddress,
        pasid: Option<Pasid>,
        at: Iova,
        access: Access,
    ) -> Outcome {
        self.sent(function, pasid, at, access, Asks::Either)
    }

    fn sent(
        &self,
        function: PciAddress,
        pasid: Option<Pasid>,
        at: Iova,
        access: Access,
        asks: Asks,
    ) -> Outcome {
        let mut state = self.core.quiet();
        let index = state
            .bus
            .functions
            .iter()
            .position(|known| known.address == function);
        index.map_or(Outcome::Lost, |index| {
            state.send(index, pasid.map(Pasid::get), at.as_u64(), access, asks)
        })
    }

    /// Whether the request that reached memory last went past the CPU's caches.
    pub fn went_past_caches(&self) -> bool {
        self.core.quiet().bus.past_caches
    }

    /// A device writes bytes to memory, in requests that stay in a page each.
    ///
    /// # Errors
    /// [`Blocked`], at the first request that did not get through.
    pub fn device_write(
        &self,
        function: PciAddress,
        at: Iova,
        bytes: &[u8],
    ) -> Result<(), Blocked> {
        self.written(function, at, bytes, Asks::Snooping)
    }

    /// The same in requests that need not snoop the CPU's caches (No_snoop). What lies in them is not written over
    /// then, and written back over the bytes later.
    ///
    /// # Errors
    /// As [`device_write`](Self::device_write).
    pub fn device_write_no_snoop(
        &self,
        function: PciAddress,
        at: Iova,
        bytes: &[u8],
    ) -> Result<(), Blocked> {
        self.written(function, at, bytes, Asks::NoSnoop)
    }

    fn written(
        &self,
        function: PciAddress,
        at: Iova,
        bytes: &[u8],
        asks: Asks,
    ) -> Result<(), Blocked> {
        let access = (at, Access::Write, asks);
        self.pieces(function, access, bytes.len(), |state, to, piece| {
            let bytes = bytes.get(piece).unwrap_or(&[]);
            match state.bus.past_caches {
                true => state.bus.memory.write_past_caches(to, bytes),
                false => state.bus.memory.write_bytes(to, bytes),
            }
        })
    }

    /// A device reads bytes from memory, in requests that stay in a page each.
    ///
    /// # Errors
    /// [`Blocked`], at the first request that did not get through.
    pub fn device_read(
        &self,
        function: PciAddress,
        at: Iova,
        out: &mut [u8],
    ) -> Result<(), Blocked> {
        self.read(function, at, out, Asks::Snooping)
    }

    /// The same in requests that need not snoop the CPU's caches (No_snoop): what the CPU wrote and did not write back
    /// is not seen then.
    ///
    /// # Errors
    /// As [`device_read`](Self::device_read).
    pub fn device_read_no_snoop(
        &self,
        function: PciAddress,
        at: Iova,
        out: &mut [u8],
    ) -> Result<(), Blocked> {
        self.read(function, at, out, Asks::NoSnoop)
    }

    fn read(
        &self,
        function: PciAddress,
        at: Iova,
        out: &mut [u8],
        asks: Asks,
    ) -> Result<(), Blocked> {
        let access = (at, Access::Read, asks);
        self.pieces(function, access, out.len(), |state, from, piece| {
            let Some(out) = out.get_mut(piece) else {
                return;
            };
            match state.bus.past_caches {
                true => state.bus.memory.read_past_caches(from, out),
                false => state.bus.memory.read_bytes(from, out),
            }
        })
    }

    fn pieces(
        &self,
        function: PciAddress,
        (at, access, asks): (Iova, Access, Asks),
        bytes: usize,
        mut piece: impl FnMut(&mut State, u64, Range<usize>),
    ) -> Result<(), Blocked> {
        let mut done = 0;
        while done < bytes {
            let address = at.as_u64() + done as u64;
            let rest = (FRAME_BYTES - address % FRAME_BYTES) as usize;
            let count = rest.min(bytes - done);
            let outcome = self.sent(function, None, Iova::new(address), access, asks);
            let Outcome::Reached { at } = outcome else {
                return Err(Blocked { outcome });
            };
            piece(&mut self.core.quiet(), at, done..done + count);
            done += count;
        }
        Ok(())
    }
}
