//! The end of a unit, for whoever has the machine next.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::UnitError;

use super::{Enabled, Standing, Unit};
use crate::spec::registers::IrqCtrl;

impl<P: Platform> Unit<P, Enabled> {
    /// See [`hv_iommu::Backend::shut_down`]. Each step has a deadline of its own.
    ///
    /// The gate is closed before translation goes off (IHI 0070, 6.3.14 and 6.3.9.6), so from one transaction to the
    /// next they are aborted by it. Queues go off after that: what the unit was writing to them has arrived when it has
    /// acknowledged that.
    pub(crate) fn shut_down(&self, platform: &P) -> Result<(), UnitError> {
        let unit = self.index;
        let mut standing = self.take_wedged()?;
        // Whoever routes an interrupt turns it on at the end: not behind this.
        let waited = Duration::ZERO;
        let routing = self.state.routing.try_lock();
        let _routes = routing.ok_or(UnitError::Busy { unit, waited })?;
        // Also where something of this fails: who calls this again gets further, who resets it does not turn it on.
        *standing = Standing::Ended;
        let closed = !Fault::GateOpenAtEnd.is_on();
        self.regs.set_gate(platform, unit, closed)?;
        self.regs
            .switch_interrupts(platform, unit, |_| IrqCtrl::new())?;
        self.regs.all_off(platform, unit)
    }
}
