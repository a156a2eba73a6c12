//! Units that fail, and what other CPUs do in the middle of it.

use std::sync::MutexGuard;
use std::time::Duration;

use hv_core::PciAddress;
use hv_iommu::{FaultEvent, UnitError, UnitIndex};

use super::unit::Unit;
use super::{Call, Fake, heap};

impl<T> Fake<T> {
    /// What another CPU does in the middle of the unit's next reset, when the unit has forgotten all
    /// and still refuses requests.
    pub fn during_reset(&self, unit: usize, job: impl FnOnce() + Send + 'static) {
        self.lock_unit(unit).during_reset = Some(Box::new(job));
    }

    /// What another CPU does after the unit refused the next flush because it is wedged, before the
    /// caller hears of it.
    pub fn after_refusal(&self, unit: usize, job: impl FnOnce() + Send + 'static) {
        self.lock_unit(unit).after_refusal = Some(Box::new(job));
    }

    /// The next look at the unit's faults finds that it has failed. `job` is what another CPU does before the caller hears
    /// of it.
    pub fn fails(&self, unit: usize, job: impl FnOnce() + Send + 'static) {
        self.lock_unit(unit).failed = Some(Box::new(job));
    }

    /// What another CPU does in the middle of the next look at what the unit was asked for.
    pub fn during_poll(&self, unit: usize, job: impl FnOnce() + Send + 'static) {
        self.lock_unit(unit).during_poll = Some(Box::new(job));
    }

    /// What another CPU does after the next look that finds a request which is never completed, before who looked goes on.
    pub fn after_look(&self, unit: usize, job: impl FnOnce() + Send + 'static) {
        self.lock_unit(unit).after_look = Some(Box::new(job));
    }

    /// A look that was in vain.
    pub(super) fn in_vain(mut unit: MutexGuard<'_, Unit>) -> Result<bool, UnitError> {
        let job = unit.after_look.take();
        drop(unit);
        if let Some(job) = job {
            job();
        }
        Ok(false)
    }

    /// What another CPU does in the middle of the next such call.
    pub fn during_call(&self, unit: usize, call: Call, job: impl FnOnce() + Send + 'static) {
        self.lock_unit(unit).during_call = Some((call, Box::new(job)));
    }

    /// A unit that is called.
    pub(super) fn interrupted(
        &self,
        index: UnitIndex,
        call: Call,
    ) -> Result<MutexGuard<'_, Unit>, UnitError> {
        let mut unit = self.unit(index)?;
        if let Some((_, job)) = unit.during_call.take_if(|(of, _)| *of == call) {
            drop(unit);
            job();
            unit = self.unit(index)?;
        }
        Ok(unit)
    }

    /// What another CPU does once a requester was bound, before the one that binds it goes on.
    pub fn after_bind(
        &self,
        unit: usize,
        requester: PciAddress,
        job: impl FnOnce() + Send + 'static,
    ) {
        self.lock_unit(unit).after_bind = Some((requester, Box::new(job)));
    }

    /// Whose entries the unit was asked to read anew since the last look, in order.
    pub fn take_reread(&self, unit: usize) -> Vec<PciAddress> {
        std::mem::take(&mut self.lock_unit(unit).reread)
    }

    /// The next so many requests to read an entry anew find the unit's queue busy.
    pub fn busy_rereads(&self, unit: usize, count: u32) {
        self.lock_unit(unit).too_busy_to_reread = count;
    }

    /// The next request to read an entry anew finds the unit's queue full, waits for it too long, and wedges the unit.
    pub fn fails_at_reread(&self, unit: usize) {
        self.lock_unit(unit).fails_at_reread = true;
    }

    /// See [`hv_iommu::Backend::reread`].
    pub(super) fn reread_asked(
        &self,
        index: UnitIndex,
        requester: PciAddress,
    ) -> Result<(), UnitError> {
        let mut unit = self.unit(index)?;
        if let Some(less) = unit.too_busy_to_reread.checked_sub(1) {
            unit.too_busy_to_reread = less;
            return Err(UnitError::Busy {
                unit: index,
                waited: Duration::ZERO,
            });
        }
        if std::mem::take(&mut unit.fails_at_reread) {
            unit.wedged = true;
            return Err(UnitError::Timeout {
                unit: index,
                what: "a deliberate wait for room",
                waited: Duration::ZERO,
            });
        }
        unit.reread.push(requester);
        Ok(())
    }

    /// How many faults are in the unit's log.
    pub fn logged_faults(&self, unit: usize) -> usize {
        self.lock_unit(unit).faults.len()
    }

    /// See [`hv_iommu::Backend::quiet`].
    pub(super) fn made_quiet(
        &self,
        index: UnitIndex,
        requester: PciAddress,
    ) -> Result<(), UnitError> {
        let _exempt = heap::exempt();
        self.unit(index)?.quiet.insert(requester);
        Ok(())
    }

    /// The unit waits for devices, and finds out about one of them in each so many looks.
    pub fn finds_out(&self, unit: usize, looks: u32) {
        self.lock_unit(unit).finds_out = Some((looks, 0));
    }

    /// The unit fails once more when its next reset is all but over.
    pub fn fails_again(&self, unit: usize) {
        self.lock_unit(unit).fails_again = true;
    }

    /// How often the unit has found out about a device.
    pub(super) fn found_out(&self, index: UnitIndex) -> u64 {
        let found = self.unit(index).ok().and_then(|unit| unit.finds_out);
        found.map_or(0, |(each, looks)| u64::from(looks / each))
    }

    /// The unit is off, if it was wedged before.
    pub(super) fn turned_off(&self, index: UnitIndex) -> Result<(), UnitError> {
        match self.unit(index)?.wedged {
            true => Ok(()),
            false => Err(UnitError::NotWedged { unit: index }),
        }
    }

    /// A unit at which somebody looks for what was asked of it.
    pub(super) fn looked_at(&self, index: UnitIndex) -> Result<MutexGuard<'_, Unit>, UnitError> {
        let mut unit = self.unit(index)?;
        if let Some((_, looks)) = &mut unit.finds_out {
            *looks += 1;
        }
        if let Some(job) = unit.during_poll.take() {
            drop(unit);
            job();
            unit = self.unit(index)?;
        }
        Ok(unit)
    }

    /// See [`hv_iommu::Backend::take_fault`].
    pub(super) fn taken(&self, index: UnitIndex) -> Option<FaultEvent> {
        let _exempt = heap::exempt();
        let mut unit = self.unit(index).ok()?;
        if let Some(fault) = unit.faults.pop_front() {
            return Some(FaultEvent::Fault(fault));
        }
        if let Some(job) = unit.failed.take() {
            unit.wedged = true;
            drop(unit);
            job();
            return Some(FaultEvent::Failed);
        }
        std::mem::take(&mut unit.lost_faults).then_some(FaultEvent::Overflow)
    }
}

/// The error of a unit that refuses or fails.
pub(super) fn broken(unit: UnitIndex) -> UnitError {
    UnitError::Hardware {
        unit,
        what: "a deliberate failure",
        expected: 0,
        found: 1,
    }
}
