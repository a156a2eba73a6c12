//! What a running unit does: bind, unbind, flush, report faults.

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use hv_core::PciAddress;
use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{
    Binding, FaultEvent, FlushRequest, FlushTicket, HwDomainId, UnitError, UnitTroubles,
};

use arrayvec::ArrayVec;
use log::error;

use super::{Enabled, Unit};
use crate::caps;
use crate::descriptor::{Descriptor, IotlbFlusher, NO_DOMAIN};
use crate::queue::BATCH_MAX;

/// Descriptors of one submission.
type Batch = ArrayVec<Descriptor, BATCH_MAX>;

impl<P: Platform> Unit<P, Enabled> {
    fn iotlb(&self) -> IotlbFlusher {
        IotlbFlusher::new(self.info.cap)
    }

    /// Makes `requester` translate by `binding`. See [`hv_iommu::Backend::bind`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn bind(
        &self,
        platform: &P,
        requester: PciAddress,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let unit = self.index;
        self.state.queue.check_alive(unit)?;
        let aw = self.check(binding)?;
        let (tables, context) = (&self.state.tables, self.tables_with(platform));
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe { tables.bind(&context, requester, binding, aw) }?;
        let (cm, rwbf) = (self.info.cap.cm(), self.info.cap.rwbf());
        if !cm && !rwbf || Fault::SkipBindFlush.is_on() {
            return Ok(None);
        }
        let mut batch = Batch::new();
        if cm {
            // That the requester was not bound may be cached, under domain id 0.
            let id = if Fault::BindFlushNewId.is_on() {
                binding.domain
            } else {
                NO_DOMAIN
            };
            batch.push(Descriptor::context_device(id, requester.requester()));
            // Linux flushes the new domain here, Xen domain 0; the sources do not settle it.
            batch.push(self.iotlb().domain(NO_DOMAIN));
        }
        // Any invalidation flushes the write buffer too.
        batch.push(self.iotlb().domain(binding.domain));
        // If this fails, the entry is live and stays so: the unit may have read it already, so only a
        // completed unbind can end it.
        let queue = &self.state.queue;
        queue.submit(&self.queue_with(platform), &batch).map(Some)
    }

    /// The AW field for a binding that this unit can do.
    fn check(&self, binding: Binding) -> Result<u8, UnitError> {
        let unit = self.index;
        let level = binding.root.level();
        let domain = binding.domain.get();
        let zero = domain == NO_DOMAIN.get() && !Fault::DomainIdZero.is_on();
        if zero || u32::from(domain) >= self.caps.domain_ids {
            return Err(UnitError::Hardware {
                unit,
                what: "a domain id that the unit does not have or that is reserved; the highest",
                expected: u64::from(self.caps.domain_ids).saturating_sub(1),
                found: domain.into(),
            });
        }
        let mut aw = caps::address_width(level);
        if Fault::RootLevelApart.is_on() {
            aw = caps::other_address_width(self.caps.levels, level);
        }
        match aw {
            Some(aw) if self.caps.levels.has(level) => Ok(aw),
            _ => Err(UnitError::Hardware {
                unit,
                what: "a depth of tables that the unit does not walk (CAP.SAGAW)",
                expected: self.info.cap.sagaw().into(),
                found: level.number().into(),
            }),
        }
    }

    /// Takes the binding down. See [`hv_iommu::Backend::unbind`].
    ///
    /// The entry comes down even where the unit is wedged: it can only help.
    pub(crate) fn unbind(
        &self,
        platform: &P,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        self.state
            .tables
            .unbind(&self.tables_with(platform), requester, domain)?;
        let mut batch = Batch::new();
        if !Fault::SkipContextFlush.is_on() {
            let id = domain_or_zero(domain, Fault::UnbindContextOtherId);
            batch.push(Descriptor::context_device(id, requester.requester()));
        }
        if !Fault::SkipIotlbFlush.is_on() {
            // After the context entry: the device may have translations under the old id.
            let id = domain_or_zero(domain, Fault::UnbindIotlbOtherId);
            batch.push(self.iotlb().domain(id));
        }
        let queue = &self.state.queue;
        queue.submit_patiently(&self.queue_with(platform), &batch)
    }

    /// Stops faults of a requester from being recorded. See [`hv_iommu::Backend::quiet`].
    pub(crate) fn quiet(&self, platform: &P, requester: PciAddress) -> Result<(), UnitError> {
        let tables = self.tables_with(platform);
        self.state.tables.quiet(&tables, requester)
    }

    /// Has the entry of a requester read anew. See [`hv_iommu::Backend::reread`].
    pub(crate) fn reread(&self, platform: &P, requester: PciAddress) -> Result<(), UnitError> {
        let tables = self.tables_with(platform);
        let domain = self.state.tables.domain_of(&tables, requester)?;
        let mut batch = Batch::new();
        let id = domain.unwrap_or(NO_DOMAIN);
        batch.push(Descriptor::context_device(id, requester.requester()));
        if domain.is_none() && self.info.cap.cm() {
            // As in `bind`, and as unsettled: that it was bound to nothing may be kept with translations as well.
            batch.push(self.iotlb().domain(NO_DOMAIN));
        }
        self.state
            .queue
            .submit(&self.queue_with(platform), &batch)?;
        Ok(())
    }

    /// Asks for a flush. See [`hv_iommu::Backend::submit`].
    pub(crate) fn submit(
        &self,
        platform: &P,
        request: FlushRequest,
    ) -> Result<FlushTicket, UnitError> {
        let mut batch = Batch::new();
        if !Fault::SkipIotlbFlush.is_on() {
            batch.push(self.iotlb().request(request));
        }
        self.state.queue.submit(&self.queue_with(platform), &batch)
    }

    /// Whether a request has completed. See [`hv_iommu::Backend::poll`].
    pub(crate) fn poll(&self, platform: &P, ticket: FlushTicket) -> Result<bool, UnitError> {
        self.state.queue.poll(&self.queue_with(platform), ticket)
    }

    /// Plays a unit that has been at it for long.
    #[cfg(test)]
    pub(crate) fn skip_past(&self, platform: &P, ticket: FlushTicket) -> Result<(), UnitError> {
        let queue = &self.state.queue;
        queue.skip_past(&self.queue_with(platform), ticket)
    }

    /// Refuses every request from now on.
    pub(crate) fn wedge(&self) {
        self.state.queue.wedge();
    }

    /// Whether it refuses every request.
    pub(crate) fn is_wedged(&self) -> bool {
        self.state.queue.check_alive(self.index).is_err()
    }

    /// Takes one event from the fault log, or says that the unit has failed.
    ///
    /// A queue that stopped raises the interrupt of faults too, and keeps every later one from being told. A reset of the
    /// unit clears that.
    pub(crate) fn take_fault(&self, platform: &P) -> Option<FaultEvent> {
        let queue = &self.state.queue;
        // Before the look: what it finds says nothing of a unit that was reset since.
        let seen = queue.alive();
        let failed = |error| {
            error!("VT-d {}: its queue has stopped: {error}", self.index);
            Some(FaultEvent::Failed)
        };
        self.faults.take(&self.regs, |status| {
            let stands = Some(FaultEvent::Withheld);
            let Some(seen) = seen else { return stands };
            if status.iqe() && !status.ice() && !status.ite() {
                // Whoever waits for what is behind a descriptor that was refused has it repaired; nobody may.
                return match queue.repair(&self.queue_with(platform)) {
                    Ok(true) => None,
                    Ok(false) | Err(UnitError::Wedged { .. }) => stands,
                    Err(error) => failed(error),
                };
            }
            match queue.wedge_as_seen(seen) {
                true => failed(UnitError::Wedged { unit: self.index }),
                false => stands,
            }
        })
    }

    /// See [`hv_iommu::Backend::troubles`].
    pub(crate) fn troubles(&self) -> UnitTroubles {
        let (commands_read_again, commands_refused) = self.state.queue.refusals();
        UnitTroubles {
            commands_read_again,
            commands_refused,
            ..UnitTroubles::default()
        }
    }
}

/// The domain whose id a flush names; id 0 where that is the deliberate fault.
fn domain_or_zero(domain: HwDomainId, fault: Fault) -> HwDomainId {
    if fault.is_on() { NO_DOMAIN } else { domain }
}
