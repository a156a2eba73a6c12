//! Where a unit's one interrupt goes, that of its fault event: by a message to a local APIC, for faults and for errors of
//! its invalidation queue alike.
//!
//! It is sent when one of the conditions of the fault status register comes up while none of them was. Who took all faults
//! there are, and cleared what else was set, is told of the next one; who left something is not (Xen and Linux handle it so;
//! QEMU, `vtd_generate_fault_event`). One that comes up while the event is masked stays pending, and is sent when the mask
//! goes. What the unit itself sends is not remapped.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{InterruptMessage, InterruptRoute, InterruptSource, RouteError, UnitError};

use super::{Enabled, Unit};
use crate::spec::registers;
use crate::spec::second_stage::{INTERRUPT_WINDOW, INTERRUPT_WINDOW_BYTES};

impl<P: Platform> Unit<P, Enabled> {
    /// See [`hv_iommu::RoutedInterrupts::route_interrupt`].
    pub(crate) fn route_interrupt(
        &self,
        source: InterruptSource,
        route: InterruptRoute,
    ) -> Result<(), RouteError> {
        let unit = self.index;
        // Nothing is waited for under it, nor for it.
        let Some(_alone) = self.state.routing.try_lock() else {
            let waited = Duration::ZERO;
            return Err(UnitError::Busy { unit, waited }.into());
        };
        if source != InterruptSource::Faults {
            return Err(RouteError::NoSource {
                unit,
                interrupt_source: source,
            });
        }
        if !self.regs.status().tes() {
            // A unit that was shut down is somebody else's.
            return Err(UnitError::Hardware {
                unit,
                what: "a unit that does not translate (GSTS.TES)",
                expected: 1,
                found: 0,
            }
            .into());
        }
        if !Fault::RerouteWhileOn.is_on() {
            self.mask_faults(true)?;
        }
        let message = match route {
            InterruptRoute::Off => return Ok(()),
            InterruptRoute::Wired => {
                return Err(RouteError::NoWire {
                    unit,
                    interrupt_source: source,
                    messages: true,
                });
            }
            InterruptRoute::Message(message) => message,
        };
        let (low, high) = self.check_message(message)?;
        if Fault::UnmaskBeforeAddress.is_on() {
            self.mask_faults(false)?;
        }
        self.regs.write32(registers::FEDATA, message.data.0);
        let format = match Fault::RemappableMessage.is_on() {
            true => registers::FEADDR_REMAPPABLE,
            false => 0,
        };
        self.regs.write32(registers::FEADDR, low | format);
        if !Fault::UpperAddressKept.is_on() {
            self.regs.write32(registers::FEUADDR, high);
        }
        if !Fault::LeaveInterruptsOff.is_on() {
            self.mask_faults(false)?;
        }
        Ok(())
    }

    /// Masks the fault event, or lets it through. When this is back, the unit has taken the write; a message that it had sent
    /// before is ahead of the answer to the read.
    pub(super) fn mask_faults(&self, mask: bool) -> Result<(), UnitError> {
        let wanted = if mask { registers::FECTL_MASK } else { 0 };
        self.regs.write32(registers::FECTL, wanted);
        let found = self.regs.read32(registers::FECTL);
        // A unit that is gone reads as all ones.
        if found != u32::MAX && found & registers::FECTL_MASK == wanted {
            return Ok(());
        }
        Err(UnitError::Hardware {
            unit: self.index,
            what: "a mask of the fault event that is not what was written (FECTL.IM)",
            expected: wanted.into(),
            found: found.into(),
        })
    }

    /// The two halves of the address, if a write there is an interrupt and the unit can say it: nothing translates what the
    /// unit itself writes, so a message that goes astray is written over memory.
    fn check_message(&self, message: InterruptMessage) -> Result<(u32, u32), RouteError> {
        let (unit, address, data) = (self.index, message.address, message.data);
        let bits = address.as_u64();
        let (low, high) = (bits as u32, (bits >> u32::BITS) as u32);
        let into_window = u64::from(low).checked_sub(INTERRUPT_WINDOW);
        let is_interrupt = into_window.is_some_and(|offset| offset < INTERRUPT_WINDOW_BYTES);
        // The upper half has the rest of a wide APIC id, which units for those take.
        let is_sayable = low & registers::FEADDR_BITS == low
            && low & registers::FEADDR_REMAPPABLE == 0
            && high & registers::FEUADDR_BITS == high
            && (high == 0 || self.info.ecap.eim());
        if !is_interrupt || !is_sayable {
            return Err(RouteError::NotADoorbell { unit, address });
        }
        if data.0 & registers::FEDATA_BITS != data.0 {
            return Err(RouteError::DataTooWide { unit, data });
        }
        Ok((low, high))
    }
}
