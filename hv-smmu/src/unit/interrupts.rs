//! Where a unit's interrupts go, and the errors that it tells of itself.
//!
//! Both kinds of interrupt are edges, and nothing is acknowledged for them (IHI 0070, 3.18.2).

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::{PageCount, PageSize, PhysAddr, PhysRange};
use hv_iommu::{
    FaultEvent, InterruptId, InterruptMessage, InterruptRoute, InterruptSource, MessageData,
    RouteError, UnitError,
};
use log::error;

use super::{Enabled, Unit};
use crate::spec::queue::{CommandError, QueuePointer};
use crate::spec::registers::{
    self, Gerror, IrqCtrl, MSI_ADDRESS, MSI_DEVICE_NGNRE, MessageRegisters, MsiAttributes,
    Shareability,
};

/// A source's bit of IRQ_CTRL.
const fn set(control: IrqCtrl, source: InterruptSource, on: bool) -> IrqCtrl {
    match source {
        InterruptSource::Faults => control.with_eventq(on),
        InterruptSource::Errors => control.with_gerror(on),
        InterruptSource::PageRequests => control.with_priq(on),
    }
}

const fn registers_of(source: InterruptSource) -> MessageRegisters {
    match source {
        InterruptSource::Faults => registers::EVENTQ_MESSAGES,
        InterruptSource::Errors => registers::GERROR_MESSAGES,
        InterruptSource::PageRequests => registers::PRIQ_MESSAGES,
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// The wire of a source, by firmware's word.
    pub(crate) const fn wire(&self, source: InterruptSource) -> Option<InterruptId> {
        match source {
            InterruptSource::Faults => self.info.interrupts.event,
            InterruptSource::Errors => self.info.interrupts.global_error,
            InterruptSource::PageRequests => self.info.interrupts.page_request,
        }
    }

    /// See [`hv_iommu::RoutedInterrupts::route_interrupt`].
    pub(crate) fn route_interrupt(
        &self,
        platform: &P,
        source: InterruptSource,
        route: InterruptRoute,
    ) -> Result<(), RouteError> {
        let unit = self.index;
        // Held over waits, which is why nobody waits for it.
        let Some(_alone) = self.state.routing.try_lock() else {
            let waited = Duration::ZERO;
            return Err(UnitError::Busy { unit, waited }.into());
        };
        // A reset may have it off for a moment; a unit that was shut down is somebody else's.
        if self.state.reset.try_lock().is_none() {
            let waited = Duration::ZERO;
            return Err(UnitError::Busy { unit, waited }.into());
        }
        self.check_translating()?;
        if !Fault::RerouteWhileOn.is_on() {
            self.switch_source(platform, source, false)?;
        }
        match route {
            InterruptRoute::Off => return Ok(()),
            InterruptRoute::Wired => self.check_wire(source)?,
            InterruptRoute::Message(message) => self.check_message(platform, source, message)?,
        }
        if source == InterruptSource::PageRequests && !self.regs.control().priqen() {
            return Err(RouteError::NoSource {
                unit,
                interrupt_source: source,
            });
        }
        if self.info.idr0.msi() {
            // What they hold after a reset of the unit is not known; an address of 0 stands for the wire.
            let message = match route {
                InterruptRoute::Message(message) => message,
                InterruptRoute::Off | InterruptRoute::Wired => InterruptMessage {
                    address: PhysAddr::new(0),
                    data: MessageData(0),
                },
            };
            let registers = registers_of(source);
            let attributes = MsiAttributes::new()
                .with_mem_attr(MSI_DEVICE_NGNRE)
                .with_sh(Shareability::Outer);
            self.regs
                .write64(registers.address, message.address.as_u64());
            self.regs.write32(registers.data, message.data.0);
            self.regs
                .write32(registers.attributes, attributes.into_bits());
        }
        if !Fault::LeaveInterruptsOff.is_on() {
            self.switch_source(platform, source, true)?;
        }
        Ok(())
    }

    fn switch_source(
        &self,
        platform: &P,
        source: InterruptSource,
        on: bool,
    ) -> Result<(), UnitError> {
        self.regs
            .switch_interrupts(platform, self.index, |control| set(control, source, on))
    }

    fn check_wire(&self, source: InterruptSource) -> Result<(), RouteError> {
        match self.wire(source) {
            Some(_) => Ok(()),
            None => Err(RouteError::NoWire {
                unit: self.index,
                interrupt_source: source,
                messages: self.info.idr0.msi(),
            }),
        }
    }

    /// A message goes to the interrupt controller or nowhere: nothing translates what the unit itself writes, so one that
    /// goes astray is written over memory.
    fn check_message(
        &self,
        platform: &P,
        source: InterruptSource,
        message: InterruptMessage,
    ) -> Result<(), RouteError> {
        let unit = self.index;
        if !self.info.idr0.msi() {
            return Err(RouteError::NoMessages {
                unit,
                interrupt_source: source,
                wire: self.wire(source),
            });
        }
        let address = message.address;
        let page = address.align_down(PageSize::Size4K);
        let is_doorbell =
            PhysRange::new(page, PageCount::ONE).is_ok_and(|page| platform.takes_messages(page));
        let bits = self.info.idr5.output_size().bits();
        let is_sent = address.as_u64() & MSI_ADDRESS == address.as_u64()
            && address.as_u64().checked_shr(bits.into()).unwrap_or(0) == 0;
        if address.as_u64() != 0 && is_doorbell && is_sent {
            return Ok(());
        }
        Err(RouteError::NotADoorbell { unit, address })
    }

    /// What the unit tells of itself: whether it has failed. Errors of messages are acknowledged here, once each: what they
    /// were to tell of is being looked for already.
    ///
    /// What is read here is a while old when it is judged, and a reset may lie between the two, or between the two
    /// registers that say what is active. So it counts only for the unit that was alive before, and was not reset since.
    pub(super) fn take_error(&self, platform: &P) -> Option<FaultEvent> {
        let commands = &self.state.commands;
        let seen = commands.alive();
        let errors = self.regs.errors();
        let messages = Gerror::new()
            .with_msi_cmdq_abt_err(errors.msi_cmdq_abt_err())
            .with_msi_eventq_abt_err(errors.msi_eventq_abt_err())
            .with_msi_priq_abt_err(errors.msi_priq_abt_err())
            .with_msi_gerror_abt_err(errors.msi_gerror_abt_err());
        if messages != Gerror::new() {
            error!(
                "SMMUv3 {}: an interrupt message was not taken: {messages:?}",
                self.index
            );
            self.regs.acknowledge(messages);
        }
        // Neither is acknowledged: a reset does that for the one, and nothing undoes the other (IHI 0070, 12.3).
        if !errors.sfm_err() && !errors.cmdq_err() {
            return None;
        }
        // A device that did not answer is left to who waits for it, as somebody does.
        let cons = QueuePointer::from_bits(self.regs.read32(registers::CMDQ_CONS));
        if !errors.sfm_err()
            && (cons.command_error() == CommandError::AtcTimeout || self.regs.errors() != errors)
        {
            return None;
        }
        // Whoever waits for what is behind a command that the unit calls illegal has it repaired; nobody may.
        if !errors.sfm_err() && cons.command_error() == CommandError::Illegal {
            return match commands.repair(&self.queue_with(platform)) {
                Ok(_) | Err(UnitError::Wedged { .. }) => None,
                Err(_) => Some(FaultEvent::Failed),
            };
        }
        commands.wedge_as_seen(seen?).then(|| {
            error!("SMMUv3 {}: it works no more: {errors:?}", self.index);
            FaultEvent::Failed
        })
    }
}
