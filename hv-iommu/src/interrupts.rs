//! Units' interrupts: where they go, and what is done when one comes.
//!
//! [`Iommu::take_faults`] works without any: looking now and then is the default. An interrupt says only that a look is
//! worth while, so none is missed for good where looks go on, seldom, beside it.
//!
//! Interrupts are edges: the log tells that it is no longer *empty*, not that it has something. So what was in it before
//! the interrupt was turned on is told by nobody, for which [`Iommu::route_interrupt`] looks once behind it; and who
//! was interrupted looks until the log is empty again ([`FaultLogs::Empty`]), or the next fault is no edge. A unit may have
//! kept an edge while its interrupt was off, and send it then: one more look that finds nothing.
//!
//! A handler does not look by itself. It interrupts whoever runs, who may hold the locks that a look takes (see the
//! crate's documentation). It ends the interrupt at the interrupt controller, notes that it came (a flag, a counter), and
//! wakes whoever looks; nothing has to be acknowledged at the unit, which sends no second one for what was not looked
//! at.

use core::fmt;

use hv_core::PhysAddr;
use hv_core::fault::Fault;
use thiserror::Error;

use crate::backend::{Backend, UnitError, UnitIndex};
use crate::faults::{FaultLogs, FaultNotice};
use crate::system::Iommu;

/// What a unit interrupts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptSource {
    /// Its fault log has something in it, and had not before.
    Faults,
    /// Something is wrong with the unit itself. Some units have one interrupt for this and for faults, and know no such
    /// source.
    Errors,
    /// Devices ask for pages.
    PageRequests,
}

impl fmt::Display for InterruptSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Faults => "faults",
            Self::Errors => "errors",
            Self::PageRequests => "page requests",
        })
    }
}

/// A wired interrupt: its number at the interrupt controller, as firmware tells it. Edge triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptId(pub u32);

impl fmt::Display for InterruptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupt {}", self.0)
    }
}

/// An interrupt message: what is written where. Both are the interrupt controller's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// Where: a multiple of 4.
    pub address: PhysAddr,
    /// What, in the meaning of the controller that is there.
    pub data: MessageData,
}

/// The 32 bits of an interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageData(pub u32);

/// Where the interrupts of one source go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptRoute {
    /// Nowhere: they are off, as they are at first.
    Off,
    /// To the interrupt controller, by the wire that [`RoutedInterrupts::wired_interrupt`] names.
    Wired,
    /// To memory, where the interrupt controller takes them.
    Message(InterruptMessage),
}

/// Why the interrupts of a source go nowhere, which they do after each of these but [`RouteError::Unit`]: where that says that
/// the unit was busy, or does not translate, nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RouteError {
    /// The unit does not interrupt for that, or not now: its queue of page requests is off.
    #[error("expected a source of interrupts of {unit}, found none for {interrupt_source}")]
    NoSource {
        /// The unit.
        unit: UnitIndex,
        /// The source. Not called `source`, which would be this error's cause.
        interrupt_source: InterruptSource,
    },
    /// Firmware tells of no wire, or the unit has none.
    #[error(
        "expected a wire for {interrupt_source} of {unit}, found none told by firmware: {}",
        in_place_of_a_wire(.messages)
    )]
    NoWire {
        /// The unit.
        unit: UnitIndex,
        /// The source.
        interrupt_source: InterruptSource,
        /// Whether it could send messages instead.
        messages: bool,
    },
    /// The unit sends no messages.
    #[error(
        "expected {unit} to send messages for {interrupt_source}, found that it does not: {}",
        OrElse(.wire)
    )]
    NoMessages {
        /// The unit.
        unit: UnitIndex,
        /// The source.
        interrupt_source: InterruptSource,
        /// The wire that could be used instead.
        wire: Option<InterruptId>,
    },
    /// A message must not go there: it would be written over something else.
    #[error(
        "expected an address at which the interrupt controller takes messages of {unit}, a multiple of 4, found \
         {address}"
    )]
    NotADoorbell {
        /// The unit.
        unit: UnitIndex,
        /// The address.
        address: PhysAddr,
    },
    /// The message says more than units can, or interrupt controllers take.
    #[error("expected interrupt data of 16 bits for {unit}, found {:#x}", .data.0)]
    DataTooWide {
        /// The unit.
        unit: UnitIndex,
        /// The data.
        data: MessageData,
    },
    /// The unit did not do its part, or another CPU is at it.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

/// What there is instead of a wire.
const fn in_place_of_a_wire(messages: &bool) -> &'static str {
    match messages {
        true => "it sends messages, so give it an `InterruptRoute::Message`",
        false => {
            "it sends no messages either, so look for them now and then (`Iommu::take_faults`)"
        }
    }
}

/// What there is instead of messages.
struct OrElse<'w>(&'w Option<InterruptId>);

impl fmt::Display for OrElse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(wire) => write!(f, "its wire is {wire}, so give it `InterruptRoute::Wired`"),
            None => f.write_str(
                "it has no wire either, so look for them now and then (`Iommu::take_faults`)",
            ),
        }
    }
}

/// A backend whose units interrupt.
pub trait RoutedInterrupts: Backend {
    /// The wire of a source, where firmware tells of one. Several sources may have the same.
    fn wired_interrupt(&self, unit: UnitIndex, source: InterruptSource) -> Option<InterruptId>;

    /// Turns the interrupts of a source off, then sends them there. Those that come from then on are of what happens
    /// from then on, but for one that the unit kept while they were off. Waits for the unit. A reset of the unit leaves
    /// that as it is.
    ///
    /// # Errors
    /// [`RouteError`].
    fn route_interrupt(
        &self,
        unit: UnitIndex,
        source: InterruptSource,
        route: InterruptRoute,
    ) -> Result<(), RouteError>;
}

impl<B: RoutedInterrupts> Iommu<B> {
    /// The wire of a source, where firmware tells of one: what to set up at the interrupt controller before
    /// [`route_interrupt`](Self::route_interrupt) with [`InterruptRoute::Wired`].
    pub fn wired_interrupt(&self, unit: UnitIndex, source: InterruptSource) -> Option<InterruptId> {
        self.0.backend.wired_interrupt(unit, source)
    }

    /// Says where the interrupts of one source of a unit go, and then looks at all fault logs once, as
    /// [`take_faults`](Self::take_faults): nothing tells of what was in them already. Where it gives
    /// [`FaultLogs::MayHoldMore`] the caller looks again, as it does after an interrupt.
    ///
    /// What the interrupt controller has to know comes first: an edge that nobody takes is lost. Not for handlers.
    ///
    /// # Errors
    /// [`RouteError`]: there are no interrupts of that source then, and looking works as before.
    pub fn route_interrupt(
        &self,
        unit: UnitIndex,
        source: InterruptSource,
        route: InterruptRoute,
        report: impl FnMut(FaultNotice),
    ) -> Result<FaultLogs, RouteError> {
        let system = &self.0;
        system.away(|| system.backend.route_interrupt(unit, source, route))?;
        if Fault::SkipLookAfterRoute.is_on() {
            return Ok(FaultLogs::Empty);
        }
        Ok(self.take_faults(report))
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_source_without_a_way_says_what_there_is_instead() {
        let (unit, interrupt_source) = (UnitIndex::new(1).unwrap(), InterruptSource::Faults);
        let no_wire = |messages| RouteError::NoWire {
            unit,
            interrupt_source,
            messages,
        };
        let no_messages = |wire| RouteError::NoMessages {
            unit,
            interrupt_source,
            wire,
        };
        for (error, instead) in [
            (no_wire(true), "give it an `InterruptRoute::Message`"),
            (no_wire(false), "`Iommu::take_faults`"),
            (
                no_messages(Some(InterruptId(106))),
                "its wire is interrupt 106, so give it `InterruptRoute::Wired`",
            ),
            (no_messages(None), "`Iommu::take_faults`"),
        ] {
            let said = error.to_string();
            assert!(said.contains(instead), "{said}");
            for debug in ["Some(", "None", "true", "false", "InterruptId"] {
                assert!(!said.contains(debug), "{said}");
            }
        }
    }
}
