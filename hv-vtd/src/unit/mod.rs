//! One remapping unit from discovery to running: each step is a type, and no step can be left out.
//!
//! [`Discovered`] → [`QueueReady`] → [`RootSet`] → [`Flushed`] → [`Enabled`]. A step consumes the
//! unit; its error names the unit, and hardware that was given memory keeps it. Each step is done
//! on all units before the next (Linux notes chipsets that hang otherwise).

mod bring_up;
mod info;
mod interrupts;
mod regs;
mod reset;
mod running;
mod shut_down;

use hv_core::platform::Platform;
use hv_iommu::{UnitCaps, UnitIndex};
use spin::mutex::SpinMutex;

pub use info::{UnitInfo, UnitRefusal};
pub(crate) use regs::Regs;

use crate::context::ContextTables;
use crate::faults::FaultLog;
use crate::queue::Queue;

/// A unit in state `S`.
pub(crate) struct Unit<P: Platform, S> {
    index: UnitIndex,
    info: UnitInfo,
    caps: UnitCaps,
    regs: Regs<P::Block>,
    faults: FaultLog,
    state: S,
}

/// Registers were read; nothing was written.
pub(crate) struct Discovered;

/// The invalidation queue runs.
pub(crate) struct QueueReady {
    queue: Queue,
}

/// The unit has taken a root table that binds nobody.
pub(crate) struct RootSet {
    queue: Queue,
    tables: ContextTables,
}

/// Nothing of before is cached.
pub(crate) struct Flushed {
    queue: Queue,
    tables: ContextTables,
}

/// Translation is on: a requester that is not bound reaches nothing. Or all is ready for it, in a backend that is
/// [asleep](crate::DormantVtd).
pub(crate) struct Enabled {
    queue: Queue,
    tables: ContextTables,
    /// Held by the one reset that is under way; nothing else waits for it.
    reset: SpinMutex<Standing>,
    /// Held by who says where the interrupt goes; nothing else waits for it.
    routing: SpinMutex<()>,
}

/// Whether a unit is there for a reset to bring back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is.
    Up,
    /// It was turned off for whoever has the machine next, for good.
    Ended,
}

impl<P: Platform, S> Unit<P, S> {
    /// What its registers say.
    pub(crate) const fn info(&self) -> &UnitInfo {
        &self.info
    }

    /// What it can do for domains.
    pub(crate) const fn caps(&self) -> UnitCaps {
        self.caps
    }

    /// The same unit, trusted or not to follow a change of page size that happens under it.
    pub(crate) fn with_live_resize(mut self, live_resize: bool) -> Self {
        self.caps.live_resize = live_resize;
        self
    }

    /// The same unit in the next state.
    fn into_state<T>(self, next: impl FnOnce(S) -> T) -> Unit<P, T> {
        Unit {
            index: self.index,
            info: self.info,
            caps: self.caps,
            regs: self.regs,
            faults: self.faults,
            state: next(self.state),
        }
    }
}
