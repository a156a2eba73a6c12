//! The end of a unit, for whoever has the machine next.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::UnitError;

use super::regs::Command;
use super::{Enabled, Standing, Unit};

impl<P: Platform> Unit<P, Enabled> {
    /// See [`hv_iommu::Backend::shut_down`]. Each step has a deadline of its own.
    ///
    /// Translation first: while it is on, the unit reads its tables. Nothing passes a unit that is on and was not told
    /// of an entry, and everything passes one that is off, so all devices are off the bus by now.
    pub(crate) fn shut_down(&self, platform: &P) -> Result<(), UnitError> {
        let unit = self.index;
        let mut standing = self.take_wedged()?;
        // Whoever routes an interrupt turns it on at the end: not behind this.
        let waited = Duration::ZERO;
        let routing = self.state.routing.try_lock();
        let _routes = routing.ok_or(UnitError::Busy { unit, waited })?;
        // Also where something of this fails: who calls this again gets further, who resets it does not bring it back.
        *standing = Standing::Ended;
        // An earlier reset may have timed out in the middle of a command.
        self.regs.settle(platform, unit)?;
        self.mask_faults(true)?;
        if self.regs.status().tes() && !Fault::TranslationOnAtEnd.is_on() {
            self.regs
                .command(platform, unit, Command::DisableTranslation)?;
        }
        self.turn_queue_off(platform)
    }
}
