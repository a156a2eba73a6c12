//! Bringing a wedged unit back: its command queue off and on again, and everything that it cached forgotten.
//!
//! Translation stays on throughout, and the stream table stays as it is. While it goes on the unit is wedged for
//! everybody else, and it takes requests again only at the very end.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::UnitError;
use spin::mutex::SpinMutexGuard;

use super::regs::Switch;
use super::{Enabled, Standing, Unit};
use crate::spec::registers::{self, Gerror};
use crate::spec::stream_table::StreamTableBase;

impl<P: Platform> Unit<P, Enabled> {
    /// See [`hv_iommu::Backend::reset`]. Each step has a deadline of its own.
    ///
    /// No ticket of before counts as completed too early: `poll` refuses while the unit is wedged, also after it has
    /// looked at the index. Once the unit is revived, positions are past all sequences of before, and rightly so: what
    /// is forgotten below came after whatever those stood for, and is all of it and more.
    pub(crate) fn reset(&self, platform: &P) -> Result<(), UnitError> {
        let unit = self.index;
        let commands = &self.state.commands;
        let mut standing = self.take_wedged()?;
        match *standing {
            Standing::On => self.check_translating()?,
            Standing::BehindGate => {
                self.regs.close_gate(platform, unit)?;
                self.check_table()?;
            }
            Standing::Ended => return Err(UnitError::ShutDown { unit }),
        }
        let context = self.queue_with(platform);
        let devices = &self.state.devices;
        // What was consumed need not be complete when the queue is off, but for what a sync stands behind (IHI 0070, 6.3.9.3):
        // an ATC_INV goes on, and a sync of the new ring may wait for it, and stop.
        if commands.waits_for(devices) {
            devices.outlive(true);
        }
        let anew = commands.restart(&context)?;
        // Off first: indices and the error are the unit's own while it is on. A queue that stopped at an error goes off
        // at once, one that is only slow when it has done what it is at.
        self.regs.switch(platform, unit, Switch::Commands, false)?;
        let stopped = Gerror::new().with_cmdq_err(self.regs.errors().cmdq_err());
        if stopped != Gerror::new() && !Fault::LeaveCommandError.is_on() {
            self.regs.acknowledge(stopped);
        }
        self.turn_commands_on(platform, commands)?;
        if self.info.always_stalls() && !Fault::ResetKeepsStalls.is_on() {
            // Requests may stand still of which nothing told: of those whose event could not be written. Off and on again
            // ends them all (7.2.2); in between the gate aborts what comes.
            self.regs.close_gate(platform, unit)?;
            *standing = Standing::BehindGate;
            self.regs
                .switch(platform, unit, Switch::Translation, false)?;
            self.regs
                .switch(platform, unit, Switch::Translation, true)?;
            *standing = Standing::On;
        }
        // Before configuration is forgotten: a device that did not answer is one that nothing depends on any more. So a sync
        // that stops for one of before goes on: it counts for what the unit itself has forgotten.
        self.close_all_device_tlbs(platform);
        for (command, what) in self.forget_all().into_iter().flatten() {
            commands.submit_anew(&anew, &context, &[command], what)?;
            devices.outlive(false);
        }
        // A unit that lost power meanwhile has lost more than a queue.
        self.check_translating()?;
        anew.revive();
        Ok(())
    }

    /// The unit for the one context that resets it or turns it off: it has to be wedged.
    pub(super) fn take_wedged(&self) -> Result<SpinMutexGuard<'_, Standing>, UnitError> {
        let (unit, waited) = (self.index, Duration::ZERO);
        let alone = self.state.reset.try_lock();
        let alone = alone.ok_or(UnitError::Busy { unit, waited })?;
        match self.state.commands.check_alive(unit) {
            Ok(()) => Err(UnitError::NotWedged { unit }),
            Err(_) => Ok(alone),
        }
    }

    /// Refuses a unit, which may be off, that does not know its stream table any more: it lost power.
    fn check_table(&self) -> Result<(), UnitError> {
        let (base, _) = self.state.streams.registers();
        let found = StreamTableBase::from_bits(self.regs.read64(registers::STRTAB_BASE));
        match found.address() == base.address() {
            true => Ok(()),
            false => Err(UnitError::Hardware {
                unit: self.index,
                what: "a unit that has lost its stream table (STRTAB_BASE)",
                expected: base.into_bits(),
                found: found.into_bits(),
            }),
        }
    }

    /// Refuses a unit that does not translate, has failed for good, or is gone: no restart of the queue brings that
    /// back.
    pub(super) fn check_translating(&self) -> Result<(), UnitError> {
        let control = self.regs.read32(registers::CR0ACK);
        if control == u32::MAX || !self.regs.control().smmuen() {
            return Err(UnitError::Hardware {
                unit: self.index,
                what: "a unit that does not translate (CR0ACK.SMMUEN)",
                expected: 1,
                found: control.into(),
            });
        }
        let errors = self.regs.errors();
        if errors.sfm_err() {
            return Err(UnitError::Hardware {
                unit: self.index,
                what: "a unit that has failed for good (GERROR.SFM)",
                expected: 0,
                found: errors.into_bits().into(),
            });
        }
        Ok(())
    }
}
