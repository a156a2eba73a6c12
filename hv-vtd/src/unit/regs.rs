//! A unit's registers, and commands: one field changes per write, and each is waited for.
//!
//! Bring-up owns the unit, and later only a reset gives commands, one at a time: they need no lock
//! of their own.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::{Clock, Mmio};
use hv_core::sync::spin_hint;
use hv_iommu::{UnitError, UnitIndex};
use spin::mutex::SpinMutex;

use crate::spec::registers::{self, GlobalStatus};

/// How long the unit may take to report a command as done. Hardware takes microseconds; Linux and
/// ACRN give up after seconds at most.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(1);

/// The mapped registers of a unit.
///
/// # Invariants
/// `outstanding` is the last command that was given, until the unit was seen to have done it.
pub(crate) struct Regs<B> {
    block: B,
    outstanding: SpinMutex<Option<Command>>,
}

/// A change of one field of the command register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Turn the invalidation queue on.
    EnableQueue,
    /// Turn the invalidation queue off.
    DisableQueue,
    /// Take the root table address.
    SetRootTable,
    /// Flush the write buffer.
    FlushWriteBuffer,
    /// Turn translation on.
    EnableTranslation,
    /// Turn translation off.
    DisableTranslation,
}

impl Command {
    const fn bit(self) -> u32 {
        match self {
            Self::EnableQueue | Self::DisableQueue => registers::GCMD_QIE,
            Self::SetRootTable => registers::GCMD_SRTP,
            Self::FlushWriteBuffer => registers::GCMD_WBF,
            Self::EnableTranslation | Self::DisableTranslation => registers::GCMD_TE,
        }
    }

    /// The word to write when the status is `status`: all levels as they are, and this field.
    fn word(self, status: GlobalStatus) -> u32 {
        let mut levels = status.into_bits() & registers::GCMD_LEVELS;
        if Fault::DropCommandLevels.is_on() {
            levels = 0;
        }
        match self {
            Self::DisableQueue | Self::DisableTranslation => levels & !self.bit(),
            _ => levels | self.bit(),
        }
    }

    const fn is_done(self, status: GlobalStatus) -> bool {
        match self {
            Self::EnableQueue => status.qies(),
            Self::DisableQueue => !status.qies(),
            Self::SetRootTable => status.rtps(),
            Self::FlushWriteBuffer => !status.wbfs(),
            Self::EnableTranslation => status.tes(),
            Self::DisableTranslation => !status.tes(),
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Self::EnableQueue => "turning its invalidation queue on (GCMD.QIE)",
            Self::DisableQueue => "turning its invalidation queue off (GCMD.QIE)",
            Self::SetRootTable => "taking the root table (GCMD.SRTP)",
            Self::FlushWriteBuffer => "flushing its write buffer (GCMD.WBF)",
            Self::EnableTranslation => "turning translation on (GCMD.TE)",
            Self::DisableTranslation => "turning translation off (GCMD.TE)",
        }
    }
}

impl<B: Mmio> Regs<B> {
    pub(crate) const fn new(block: B) -> Self {
        // INVARIANT: no command was given yet.
        Self {
            block,
            outstanding: SpinMutex::new(None),
        }
    }

    pub(crate) fn read32(&self, offset: u32) -> u32 {
        self.block.read32(offset)
    }

    pub(crate) fn read64(&self, offset: u32) -> u64 {
        self.block.read64(offset)
    }

    pub(crate) fn write32(&self, offset: u32, value: u32) {
        self.block.write32(offset, value);
    }

    pub(crate) fn write64(&self, offset: u32, value: u64) {
        self.block.write64(offset, value);
    }

    pub(crate) fn status(&self) -> GlobalStatus {
        GlobalStatus::from_bits(self.read32(registers::GSTS))
    }

    /// Gives a command and waits until the unit reports it as done. One that timed out earlier must be
    /// done first: some units misbehave when a second command comes before the first is reported.
    pub(crate) fn command<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        command: Command,
    ) -> Result<(), UnitError> {
        self.settle(clock, unit)?;
        // INVARIANT: noted before it is given.
        *self.outstanding.lock() = Some(command);
        self.write32(registers::GCMD, command.word(self.status()));
        if Fault::CommandNotAwaited.is_on() {
            *self.outstanding.lock() = None;
            return Ok(());
        }
        self.await_command(clock, unit, command)
    }

    /// Waits until a command that was given earlier, and timed out, is done after all. What the status
    /// says, and which registers may be written, is known only then.
    pub(crate) fn settle<C: Clock>(&self, clock: &C, unit: UnitIndex) -> Result<(), UnitError> {
        // Callers exclude each other, so this waits for nobody; taken for a load or a store only.
        let earlier = *self.outstanding.lock();
        match earlier {
            Some(earlier) if !Fault::OverlapCommands.is_on() => {
                self.await_command(clock, unit, earlier)
            }
            _ => Ok(()),
        }
    }

    /// Waits until the unit reports `command`, the last one given, as done.
    fn await_command<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        command: Command,
    ) -> Result<(), UnitError> {
        self.wait_for(clock, unit, command.what(), || {
            let status = self.status();
            // A unit that is gone would report every command as done.
            status.into_bits() != u32::MAX && command.is_done(status)
        })?;
        // INVARIANT: the unit reported it.
        *self.outstanding.lock() = None;
        Ok(())
    }

    /// Waits until `done`, not longer than [`COMMAND_DEADLINE`].
    pub(crate) fn wait_for<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        what: &'static str,
        done: impl Fn() -> bool,
    ) -> Result<(), UnitError> {
        let start = clock.now();
        let deadline = start.after(COMMAND_DEADLINE);
        while !done() {
            let now = clock.now();
            if now > deadline {
                // It may have come in while this CPU was held up.
                if done() {
                    break;
                }
                let waited = now.since(start);
                return Err(UnitError::Timeout { unit, what, waited });
            }
            spin_hint();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_levels_and_drops_one_shots() {
        let all_set = GlobalStatus::from_bits(u32::MAX);
        let commands = [
            (Command::EnableQueue, 1 << 26),
            (Command::SetRootTable, 1 << 30),
            (Command::FlushWriteBuffer, 1 << 27),
            (Command::EnableTranslation, 1 << 31),
        ];
        for (command, bit) in commands {
            assert_eq!(command.word(GlobalStatus::new()), bit);
            let one_shots = 1 << 30 | 1 << 29 | 1 << 27 | 1 << 24;
            assert_eq!(command.word(all_set), !one_shots | bit);
        }
        let off = Command::DisableQueue;
        assert_eq!(off.word(GlobalStatus::new()), 0);
        let kept = 1 << 31 | 1 << 25;
        let status = GlobalStatus::from_bits(kept | 1 << 30 | 1 << 26);
        assert_eq!(off.word(status), kept);
    }
}
