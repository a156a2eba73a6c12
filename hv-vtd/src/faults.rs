//! The fault log: records that hardware fills and software frees.

use hv_core::fault::Fault;
use hv_core::platform::Mmio;
use hv_core::{Access, Iova, PciAddress, Segment};
use hv_iommu::{FaultDetail, FaultEvent, RawFault};
use spin::mutex::SpinMutex;

use crate::spec::capability::Cap;
use crate::spec::fault::{self, RecordHigh};
use crate::spec::registers::{self, FaultStatus};
use crate::unit::Regs;

/// Where a unit's fault records are and who sends the requests in them.
pub(crate) struct FaultLog {
    cap: Cap,
    segment: Segment,
    /// Keeps two CPUs from reporting the same record.
    reader: SpinMutex<()>,
}

impl FaultLog {
    pub(crate) const fn new(cap: Cap, segment: Segment) -> Self {
        Self {
            cap,
            segment,
            reader: SpinMutex::new(()),
        }
    }

    /// Byte offset of record `index`.
    const fn record(&self, index: u32) -> u32 {
        self.cap.fault_records() + index * fault::RECORD_BYTES
    }

    /// Takes one event: the failure that `queue_stopped` makes of a queue that has stopped, if it does; the oldest record that
    /// is full; else the note that some were lost. [`FaultEvent::Withheld`], where `queue_stopped` says so, if the log is
    /// empty and the queue stands: faults that come then raise no interrupt.
    ///
    /// Another CPU that takes one is waited for, which is a few accesses to registers: it may have seen an empty log just
    /// before the fault whose interrupt brought this CPU here.
    pub(crate) fn take<B: Mmio>(
        &self,
        regs: &Regs<B>,
        queue_stopped: impl FnOnce(FaultStatus) -> Option<FaultEvent>,
    ) -> Option<FaultEvent> {
        let _reader = self.reader.lock();
        let word = regs.read32(registers::FSTS);
        // A unit that is gone reads as all ones; its records would never end.
        if word == u32::MAX {
            return None;
        }
        let status = FaultStatus::from_bits(word);
        let mut stands = None;
        if word & registers::FSTS_QUEUE_ERRORS != 0 {
            stands = queue_stopped(status);
        }
        if stands == Some(FaultEvent::Failed) {
            return stands;
        }
        if status.ppf()
            && let Some(fault) = self.take_record(regs, status.fri())
        {
            return Some(FaultEvent::Fault(fault));
        }
        // Behind the records: the unit records nothing, and tells of nothing, before this is cleared.
        if status.pfo() && !Fault::KeepFaultOverflow.is_on() {
            regs.write32(registers::FSTS, registers::FSTS_PFO);
            return Some(FaultEvent::Overflow);
        }
        stands
    }

    /// Takes the first full record from `first` on, around the end.
    fn take_record<B: Mmio>(&self, regs: &Regs<B>, first: u8) -> Option<RawFault> {
        let count = self.cap.fault_record_count();
        for step in 0..count {
            let offset = self.record((u32::from(first) + step) % count);
            let high = RecordHigh::from_bits(regs.read64(offset + 8));
            if !high.f() {
                continue;
            }
            let free = || regs.write32(offset + fault::RECORD_F_DWORD, fault::RECORD_F);
            if Fault::ClearFaultBeforeReading.is_on() {
                free();
            }
            // Hardware leaves a full record alone, so both halves belong together.
            let low = regs.read64(offset);
            free();
            let reason = high.reason();
            // T2:T1 are 00 for a write, 01 for a read, 10 for a page request, 11 for an atomic.
            let access = match (high.t2(), high.t1()) {
                (false, false) | (true, true) => Access::Write,
                (false, true) | (true, false) => Access::Read,
            };
            return Some(RawFault {
                requester: PciAddress::from_requester(self.segment, high.sid()),
                // The legacy mode blocks requests that carry one.
                pasid: None,
                address: Iova::new(low & fault::RECORD_ADDRESS),
                access,
                class: fault::class(reason),
                // The legacy mode has the second one alone.
                stage: None,
                detail: FaultDetail::default(),
                code: reason.into(),
            });
        }
        None
    }

    /// Forgets all faults and queue errors that firmware left.
    pub(crate) fn clear<B: Mmio>(&self, regs: &Regs<B>) {
        for index in 0..self.cap.fault_record_count() {
            let dword = self.record(index) + fault::RECORD_F_DWORD;
            regs.write32(dword, fault::RECORD_F);
        }
        regs.write32(registers::FSTS, registers::FSTS_CLEAR);
    }
}
