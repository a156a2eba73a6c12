//! The interrupts of an SMMUv3: edges, by wire or by message, and only of what happens while they are on.

use super::Unit;
use super::spec::registers as spec;
use crate::bus::Bus;
use crate::interrupt::{Cause, DOORBELL, Interrupt, Log, Signal, Trouble};
use crate::rule::Rule;

/// What a unit was told to suffer next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ills {
    /// A record aborts, and whether the index moves all the same.
    pub(super) record: Option<bool>,
    message: bool,
    /// The next record says that its request stands still.
    pub(super) says_stalled: bool,
    /// The next change of SMMUEN is late.
    pub(super) switch: bool,
    /// An index that is read as something else, which, and how often still.
    astray: Option<(Log, u32, u32)>,
    /// What was read so, last.
    pub(super) lied: Option<(Log, u32)>,
}

impl Ills {
    /// What the index of a log is read as, if that is a lie.
    pub(super) fn lie(&mut self, log: Log) -> Option<u32> {
        let (_, value, reads) = self.astray.filter(|(which, ..)| *which == log)?;
        self.astray = (reads > 1).then_some((log, value, reads - 1));
        self.lied = Some((log, value));
        Some(value)
    }
}

impl Unit {
    /// The driver says where the messages of a source go: only while that is off, and was seen to be.
    pub(super) fn message_written(&mut self, bus: &mut Bus, offset: u32, value: u64) {
        let guard = match offset {
            spec::GERROR_IRQ_CFG0..=spec::GERROR_IRQ_CFG2 => spec::IRQ_GERROR,
            spec::EVENTQ_IRQ_CFG0..=spec::EVENTQ_IRQ_CFG2 => spec::IRQ_EVENTQ,
            _ => spec::IRQ_PRIQ,
        };
        if (self.interrupts.0 | self.interrupts.1) & guard != 0 {
            let what = format!(
                "unit {}: register {offset:#x} was written while its interrupts are on",
                self.index
            );
            bus.broken(Rule::Register, what);
            return;
        }
        if !self.identity.msi && value != 0 {
            let what = format!(
                "unit {}: register {offset:#x} says {value:#x}, and the unit sends no messages (IDR0.MSI)",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
        self.plain.insert(offset, value);
    }

    /// Something happened that is told, if that is on.
    pub(super) fn interrupt(&mut self, bus: &mut Bus, cause: Cause) {
        let (bit, address, data) = match cause {
            Cause::Faults => (
                spec::IRQ_EVENTQ,
                spec::EVENTQ_IRQ_CFG0,
                spec::EVENTQ_IRQ_CFG1,
            ),
            Cause::Errors => (
                spec::IRQ_GERROR,
                spec::GERROR_IRQ_CFG0,
                spec::GERROR_IRQ_CFG1,
            ),
        };
        if self.interrupts.1 & bit == 0 {
            return;
        }
        let said = |register| self.plain.get(&register).copied().unwrap_or(0);
        let (address, data) = (said(address), said(data) as u32);
        let signal = match address {
            _ if !self.identity.msi => Signal::Wire,
            0 => Signal::Wire,
            _ => Signal::Message(data),
        };
        if let Signal::Message(_) = signal {
            if std::mem::take(&mut self.ills.message) {
                let error = match cause {
                    Cause::Faults => spec::GERROR_MSI_EVENTQ,
                    Cause::Errors => spec::GERROR_MSI_GERROR,
                };
                self.error(bus, error);
                return;
            }
            if address & !0xfff != DOORBELL {
                bus.message_astray(self.index, address);
                return;
            }
        }
        bus.interrupted(Interrupt {
            unit: self.index,
            cause,
            signal,
        });
    }

    /// An error of the unit's own becomes active, if it was not.
    pub(super) fn error(&mut self, bus: &mut Bus, error: u32) {
        if (self.errors ^ self.errors_seen) & error != 0 {
            return;
        }
        self.errors ^= error;
        self.interrupt(bus, Cause::Errors);
    }

    pub(super) fn suffers(&mut self, bus: &mut Bus, trouble: Trouble) {
        match trouble {
            Trouble::RecordAborts { index_moves } => self.ills.record = Some(index_moves),
            Trouble::IndexAstray { log, reads } => {
                let (prod, cons, log2) = match log {
                    Log::Faults => (&mut self.events.prod, self.events.cons, self.events.log2),
                    Log::Pages => self.pages.indices(),
                };
                let beyond = spec::position(cons, log2) + (1 << log2) + 1;
                let beyond = *prod & spec::OVERFLOW | (beyond & ((2 << log2) - 1)) as u32;
                match reads {
                    0 => *prod = beyond,
                    _ => self.ills.astray = Some((log, beyond, reads)),
                }
            }
            Trouble::SaysStalled => self.ills.says_stalled = true,
            Trouble::MessageAborts => self.ills.message = true,
            Trouble::SwitchesLate => self.ills.switch = true,
            Trouble::Fails => {
                self.error(bus, spec::GERROR_SFM);
                // No command is done any more.
                self.health.stuck_until = u64::MAX;
            }
        }
    }
}
