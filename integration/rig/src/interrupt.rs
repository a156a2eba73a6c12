//! Interrupts of units, as the machine's interrupt controller sees them.

use hv_core::PhysAddr;

use crate::bus::Bus;
use crate::driver::Vendor;
use crate::rule::Rule;

/// Where SMMUs write interrupt messages: a frame of an interrupt controller, far from memory.
pub const DOORBELL: u64 = 0x0808_0000;
/// Where VT-d units do: the local APIC of a CPU.
const APIC: u64 = 0xfee0_2000;

impl Vendor {
    /// An address at which messages of such units are interrupts.
    pub const fn takes_messages_at(self) -> PhysAddr {
        match self {
            Self::Vtd => PhysAddr::new(APIC),
            Self::Smmu => PhysAddr::new(DOORBELL + 0x40),
        }
    }
}

/// Why a unit interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The first entry in a log that was empty; on VT-d, where all has one interrupt, an error of the unit's own too.
    Faults,
    /// An error of the unit's own became active.
    Errors,
}

/// How the interrupt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// By the wire of its cause.
    Wire,
    /// By this word, written at [`DOORBELL`], or at a local APIC.
    Message(u32),
}

/// An interrupt: an edge, which nothing raises again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Whose.
    pub unit: usize,
    /// Why.
    pub cause: Cause,
    /// How it came.
    pub signal: Signal,
}

impl Bus {
    /// The interrupt of a unit has come to where somebody takes it.
    pub(crate) fn interrupted(&mut self, interrupt: Interrupt) {
        let Interrupt {
            unit,
            cause,
            signal,
        } = interrupt;
        self.note_unit(unit, || format!("interrupts: {cause:?}, {signal:?}"));
        self.interrupts.push(interrupt);
    }

    /// The message of a unit goes elsewhere: over whatever lies there.
    pub(crate) fn message_astray(&mut self, unit: usize, address: u64) {
        let what = format!(
            "unit {unit} wrote an interrupt message to {address:#x}, where nobody takes any"
        );
        self.broken(Rule::ForeignMemory, what);
    }
}

/// A log that a unit fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Faults.
    Faults,
    /// Requests for pages.
    Pages,
}

/// What a test has a unit suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The next fault record cannot be written; the index of the log has moved past it all the same, or not.
    RecordAborts {
        /// Whether it has moved.
        index_moves: bool,
    },
    /// The index of a log says that there is one record more than the log holds.
    IndexAstray {
        /// Which log.
        log: Log,
        /// How often it is read so: it goes there for good, if never.
        reads: u32,
    },
    /// The next fault record of translation says that its request waits for an answer, whether it does or not.
    SaysStalled,
    /// The next interrupt message is taken by nobody.
    MessageAborts,
    /// The unit fails for good, and says so.
    Fails,
    /// The next change of whether it translates takes it two seconds, longer than anybody waits.
    SwitchesLate,
}
