//! Bringing a wedged unit back: its queue off and on again, and everything that it cached forgotten.
//!
//! Translation stays on throughout, and the tables stay as they are. While it goes on the unit is
//! wedged for everybody else, and it takes requests again only at the very end.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::UnitError;
use log::warn;
use spin::mutex::SpinMutexGuard;

use super::regs::Command;
use super::{Enabled, Standing, Unit};
use crate::descriptor::{Descriptor, IotlbFlusher};
use crate::spec::registers;

impl<P: Platform> Unit<P, Enabled> {
    /// See [`hv_iommu::Backend::reset`]. Each step has a deadline of its own.
    ///
    /// No ticket of before counts as completed too early: `poll` refuses while the unit is wedged, also
    /// after it has looked at the status word. Once the unit is revived, the word is past all sequences
    /// of before, and rightly so: both flushes below came after whatever those waits stood for, forget
    /// all of it and more, and drain requests in flight.
    pub(crate) fn reset(&self, platform: &P) -> Result<(), UnitError> {
        let unit = self.index;
        let queue = &self.state.queue;
        let standing = self.take_wedged()?;
        if *standing == Standing::Ended {
            return Err(UnitError::ShutDown { unit });
        }
        // An earlier reset may have timed out in the middle of a command.
        self.regs.settle(platform, unit)?;
        self.check_translating()?;
        let context = self.queue_with(platform);
        let anew = queue.restart(&context)?;
        self.turn_queue_off(platform)?;
        self.clear_queue_errors()?;
        self.turn_queue_on(platform, queue.ring_address())?;
        // Context entries first: a translation cached meanwhile comes from entries in memory.
        let steps = [
            (
                Descriptor::context_global(),
                "the context cache flush of a reset",
            ),
            (
                IotlbFlusher::new(self.info.cap).global(),
                "the IOTLB flush of a reset",
            ),
        ];
        for (descriptor, what) in steps {
            queue.submit_anew(&anew, &context, &[descriptor], what)?;
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
        match self.state.queue.check_alive(unit) {
            Ok(()) => Err(UnitError::NotWedged { unit }),
            Err(_) => Ok(alone),
        }
    }

    /// Refuses a unit that does not translate, or is gone: no restart of the queue brings that back.
    fn check_translating(&self) -> Result<(), UnitError> {
        let status = self.regs.status();
        if status.into_bits() != u32::MAX && status.tes() {
            return Ok(());
        }
        Err(UnitError::Hardware {
            unit: self.index,
            what: "a status without translation (GSTS.TES)",
            expected: registers::GCMD_TE.into(),
            found: status.into_bits().into(),
        })
    }

    /// Turns the queue off, unless an earlier reset got no further than that.
    pub(super) fn turn_queue_off(&self, platform: &P) -> Result<(), UnitError> {
        if !self.regs.status().qies() {
            return Ok(());
        }
        // A unit that was only slow gets the time to read to the end, as Linux gives it; one that
        // stopped at an error never would.
        let drained = self.regs.wait_for(
            platform,
            self.index,
            "reading its invalidation queue to the end",
            || {
                let errors = self.regs.read32(registers::FSTS) & registers::FSTS_QUEUE_ERRORS;
                errors != 0 || self.regs.read64(registers::IQH) == self.regs.read64(registers::IQT)
            },
        );
        if let Err(error) = drained {
            warn!("VT-d {error}; its queue is turned off all the same");
        }
        self.regs
            .command(platform, self.index, Command::DisableQueue)
    }

    /// Clears the errors for which a queue stops. Lost faults stay noted for who reads the log.
    fn clear_queue_errors(&self) -> Result<(), UnitError> {
        if Fault::LeaveQueueErrors.is_on() {
            return Ok(());
        }
        self.regs
            .write32(registers::FSTS, registers::FSTS_QUEUE_ERRORS);
        let found = self.regs.read32(registers::FSTS);
        if found & registers::FSTS_QUEUE_ERRORS == 0 {
            return Ok(());
        }
        Err(UnitError::Hardware {
            unit: self.index,
            what: "invalidation queue errors that stay after they were cleared (FSTS)",
            expected: (found & !registers::FSTS_QUEUE_ERRORS).into(),
            found: found.into(),
        })
    }
}
