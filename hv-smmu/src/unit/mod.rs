//! One SMMU from discovery to running: each step is a type, and no step can be left out.
//!
//! [`Discovered`] → [`Closed`] (aborts everything, whoever left it on) → [`Ready`] (stream table and command queue) →
//! [`Flushed`] → [`Listening`] (event queue) → [`Enabled`]. A step consumes the unit; its error names the unit, and
//! hardware that was given memory keeps it. Each step is done on all units before the next.
//!
//! A unit behind which firmware's devices are kept running goes the same way with its [`HandOver`]: what would stop them
//! comes last, in [`Unit::translate`].

mod bring_up;
mod device_tlb;
mod first_stage;
mod hand_over;
mod info;
mod interrupts;
mod looks;
mod nested_streams;
mod quiet;
mod rebind;
mod refusal;
mod regs;
mod reset;
mod running;
mod shut_down;
mod silent;
mod substreams;
mod telling;

use hv_core::platform::Platform;
use hv_iommu::{UnitCaps, UnitIndex};
use spin::mutex::SpinMutex;

pub use hand_over::HandOver;
pub use info::UnitInfo;
pub use refusal::UnitRefusal;
pub(crate) use regs::Regs;
pub(crate) use running::Stream;
pub(crate) use silent::Behind;
pub use telling::Telling;

use looks::Looks;
use nested_streams::NestedStreams;

use crate::command_queue::Commands;
use crate::command_queue::QueueContext;
use crate::contexts::Contexts;
use crate::device_tlbs::DeviceTlbs;
use crate::event_queue::Events;
use crate::frames::Reach;
use crate::page_queue::Pages;
use crate::stream_table::StreamTable;

/// A unit in state `S`.
pub(crate) struct Unit<P: Platform, S> {
    index: UnitIndex,
    info: UnitInfo,
    caps: UnitCaps,
    /// The same for domains of first-stage tables, where it walks those.
    first_stage_caps: Option<UnitCaps>,
    hand_over: HandOver,
    regs: Regs<P::Block>,
    state: S,
}

/// Registers were read; nothing was written.
pub(crate) struct Discovered;

/// Off, and every transaction is aborted; or as its [`HandOver`] has it. Its queues and interrupts are off.
pub(crate) struct Closed;

/// The command queue runs; the unit knows its stream table, in which every stream is aborted.
pub(crate) struct Ready {
    streams: StreamTable,
    commands: Commands,
}

/// Nothing of before is cached, or will be once it translates by its own tables.
pub(crate) struct Flushed {
    streams: StreamTable,
    commands: Commands,
}

/// Events are recorded.
pub(crate) struct Listening {
    streams: StreamTable,
    commands: Commands,
    events: Events,
    pages: Option<Pages>,
}

/// Translation is on: a stream that is not bound reaches nothing. Of units that are [asleep](crate::DormantSmmu) it goes on
/// last.
pub(crate) struct Enabled {
    streams: StreamTable,
    commands: Commands,
    events: Events,
    /// Of a unit to which devices can send requests for pages.
    pages: Option<Pages>,
    /// Of a unit that translates by first stages: all domains, or those for PASIDs.
    contexts: Option<Contexts>,
    /// Streams whose devices keep translations themselves.
    devices: DeviceTlbs,
    /// Streams on users' first stages.
    nested: NestedStreams,
    /// Held by the one reset that is under way, or by who else changes what is on; nothing else waits for it.
    reset: SpinMutex<Standing>,
    /// Held by who says where an interrupt goes; nothing else waits for it.
    routing: SpinMutex<()>,
    looks: Looks,
}

/// What a reset left of translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing touched it.
    On,
    /// It was being turned off and on again behind the closed gate, and the unit did not take that in time: it may come to
    /// be off, which the next reset makes good.
    BehindGate,
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

    /// What it can do for domains with PASIDs, which are of first-stage tables.
    pub(crate) fn pasid_caps(&self) -> Option<UnitCaps> {
        let takes_any = self.info.idr1.ssidsize() != 0;
        self.first_stage_caps.filter(|_| takes_any)
    }

    /// The same unit in the next state.
    fn into_state<T>(self, next: impl FnOnce(S) -> T) -> Unit<P, T> {
        Unit {
            index: self.index,
            info: self.info,
            caps: self.caps,
            first_stage_caps: self.first_stage_caps,
            hand_over: self.hand_over,
            regs: self.regs,
            state: next(self.state),
        }
    }

    /// What structures in memory are made with.
    fn reach<'a>(&self, platform: &'a P) -> Reach<'a, P> {
        Reach {
            platform,
            unit: self.index,
            coherent: self.info.coherent,
            phys_bits: self.caps.phys_bits,
        }
    }

    /// What operations on the command queue work with before any device is behind it.
    fn queue_alone<'a>(&'a self, platform: &'a P) -> QueueContext<'a, P> {
        QueueContext {
            platform,
            regs: &self.regs,
            unit: self.index,
            coherent: self.info.coherent,
            telling: self.info.telling,
            behind: None,
        }
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// What operations on the command queue work with.
    fn queue_with<'a>(&'a self, platform: &'a P) -> QueueContext<'a, P> {
        QueueContext {
            behind: Some(Behind {
                devices: &self.state.devices,
                streams: &self.state.streams,
                coherent: self.info.coherent,
                phys_bits: self.caps.phys_bits,
            }),
            ..self.queue_alone(platform)
        }
    }
}
