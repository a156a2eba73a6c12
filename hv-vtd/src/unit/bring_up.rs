//! The steps from discovery to running.
//!
//! Order after Linux, Xen, ACRN and the datasheets' list of what must hold before TE goes on.

use hv_core::fault::Fault;
use hv_core::platform::{Mmio, Platform};
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, PageCount, PageSize, PhysRange};
use hv_iommu::{UnitError, UnitIndex};
use spin::mutex::SpinMutex;

use super::regs::Command;
use super::{
    Discovered, Enabled, Flushed, QueueReady, Regs, RootSet, Standing, Unit, UnitInfo, UnitRefusal,
};
use crate::caps;
use crate::context::{ContextTables, TableContext};
use crate::descriptor::{Descriptor, IotlbFlusher};
use crate::dmar::{Drhd, Header};
use crate::error::BringUpError;
use crate::faults::FaultLog;
use crate::queue::{Queue, QueueContext};
use crate::spec::capability::{Cap, Ecap};
use crate::spec::registers::{self, GlobalStatus, Version};

/// The head and tail of a queue that was never used.
const QUEUE_START: u64 = 0;

impl<P: Platform> Unit<P, Discovered> {
    /// Reads what the unit is, and refuses what this version does not drive. Writes nothing.
    pub(crate) fn discover(
        platform: &P,
        index: UnitIndex,
        header: &Header,
        drhd: &Drhd,
    ) -> Result<Self, BringUpError> {
        let refused = |why| BringUpError::Refused {
            unit: index,
            base: drhd.base(),
            why,
        };
        let map = |range| {
            platform
                .map_registers(range)
                .map_err(|why| BringUpError::Registers { unit: index, why })
        };
        // One page always holds the capability registers, which say how many there are.
        let first = PhysRange::new(drhd.base(), PageCount::ONE)?;
        let block = map(first)?;
        let version = Version::from_bits(block.read32(registers::VER));
        let cap = Cap::from_bits(block.read64(registers::CAP));
        let ecap = Ecap::from_bits(block.read64(registers::ECAP));
        let status = GlobalStatus::from_bits(block.read32(registers::GSTS));
        if cap.into_bits() == u64::MAX || ecap.into_bits() == u64::MAX {
            return Err(refused(UnitRefusal::Absent));
        }
        check_capabilities(cap, ecap).map_err(refused)?;
        UnitRefusal::left_on(status).map_err(refused)?;
        let caps = caps::unit_caps(cap, ecap, header.host_address_bits)
            .ok_or_else(|| refused(UnitRefusal::DomainIds { nd: cap.nd() }))?;
        let range = register_range(drhd, cap, ecap).map_err(refused)?;
        let info = UnitInfo {
            unit: index,
            registers: range,
            segment: drhd.segment,
            include_all: drhd.include_all(),
            host_address_bits: header.host_address_bits,
            version,
            cap,
            ecap,
        };
        drop(block);
        Ok(Self {
            index,
            info,
            caps,
            regs: Regs::new(map(range)?),
            faults: FaultLog::new(cap, drhd.segment),
            state: Discovered,
        })
    }

    /// Masks the fault interrupt, forgets old faults, and starts the invalidation queue.
    pub(crate) fn start_queue(self, platform: &P) -> Result<Unit<P, QueueReady>, BringUpError> {
        // Discovery may be long ago; something else may have started the unit since.
        UnitRefusal::left_on(self.regs.status()).map_err(|why| BringUpError::Refused {
            unit: self.index,
            base: self.info.base(),
            why,
        })?;
        self.regs.write32(registers::FECTL, registers::FECTL_MASK);
        // The read makes sure that the write arrived.
        self.regs.read32(registers::FECTL);
        self.faults.clear(&self.regs);

        let ring = self.frame(platform)?;
        let status = self.frame(platform)?;
        let queue = Queue::new(ring, status)?;
        self.turn_queue_on(platform, queue.ring_address())?;
        Ok(self.into_state(|Discovered| QueueReady { queue }))
    }
}

impl<P: Platform> Unit<P, QueueReady> {
    /// Gives the unit a root table that binds nobody.
    pub(crate) fn set_root(self, platform: &P) -> Result<Unit<P, RootSet>, BringUpError> {
        let root = self.frame(platform)?;
        let tables = ContextTables::new(&self.tables_with(platform), root);
        if self.info.cap.rwbf() && !Fault::SkipWriteBufferFlush.is_on() {
            // No invalidation comes between the table's stores and its use that would imply it.
            self.regs
                .command(platform, self.index, Command::FlushWriteBuffer)?;
        }
        // Bits 11:10 zero: legacy mode.
        self.regs
            .write64(registers::RTADDR, tables.root_address().as_u64());
        self.regs
            .command(platform, self.index, Command::SetRootTable)?;
        Ok(self.into_state(|QueueReady { queue }| RootSet { queue, tables }))
    }
}

impl<P: Platform> Unit<P, RootSet> {
    /// Makes the unit forget everything that it cached before, unless taking the root table did.
    pub(crate) fn flush(self, platform: &P) -> Result<Unit<P, Flushed>, BringUpError> {
        if !self.info.cap.esrtps() && !Fault::SkipFirstFlush.is_on() {
            let context = self.queue_with(platform);
            // Context entries first: a translation cached meanwhile comes from the new tables.
            let steps = [
                (
                    Descriptor::context_global(),
                    "the first context cache flush",
                ),
                (
                    IotlbFlusher::new(self.info.cap).global(),
                    "the first IOTLB flush",
                ),
            ];
            for (descriptor, what) in steps {
                self.state
                    .queue
                    .submit_and_wait(&context, &[descriptor], what)?;
            }
        }
        Ok(self.into_state(|RootSet { queue, tables }| Flushed { queue, tables }))
    }
}

impl<P: Platform> Unit<P, Flushed> {
    /// Turns translation on. From here the unit, not protected memory, keeps devices out.
    pub(crate) fn enable(self, platform: &P) -> Result<Unit<P, Enabled>, BringUpError> {
        let unit = self.ready();
        unit.translate(platform)?;
        Ok(unit)
    }

    /// The unit as it will run, with translation off until [`translate`](Unit::translate).
    pub(crate) fn ready(self) -> Unit<P, Enabled> {
        self.into_state(|Flushed { queue, tables }| Enabled {
            queue,
            tables,
            reset: SpinMutex::new(Standing::Up),
            routing: SpinMutex::new(()),
        })
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// Turns translation on.
    pub(crate) fn translate(&self, platform: &P) -> Result<(), UnitError> {
        if !Fault::LeaveTranslationOff.is_on() {
            self.regs
                .command(platform, self.index, Command::EnableTranslation)?;
        }
        let protects = self.info.cap.plmr() || self.info.cap.phmr();
        if protects && !Fault::KeepProtectedMemory.is_on() {
            let protected = self.regs.read32(registers::PMEN);
            self.regs
                .write32(registers::PMEN, protected & !registers::PMEN_ENABLE);
            let what = "turning protected memory off (PMEN)";
            self.regs.wait_for(platform, self.index, what, || {
                let status = self.regs.read32(registers::PMEN) & registers::PMEN_STATUS;
                status == 0 || Fault::ProtectionNotAwaited.is_on()
            })?;
        }
        Ok(())
    }
}

impl<P: Platform, S> Unit<P, S> {
    /// A zeroed frame that the unit can reach.
    fn frame(&self, platform: &P) -> Result<FrameRun<Hypervisor>, BringUpError> {
        let unit = self.index;
        let run = platform
            .alloc_frames(PageCount::ONE, PageSize::Size4K)
            .map_err(|why| BringUpError::Unit(why.into()))?;
        if !caps::fits(run.range().start(), self.caps.phys_bits) {
            let found = run.range().start().as_u64();
            platform.free_frames(run);
            return Err(BringUpError::Unit(UnitError::Hardware {
                unit,
                what: "a frame above the host address width",
                expected: caps::last_address(self.caps.phys_bits),
                found,
            }));
        }
        // A frame source may be careless; a unit that walks what was there before must not be.
        for cell in run.cells(platform, 0).unwrap_or_default() {
            // ORDERING: Relaxed, the frame is private; the register write that hands it to the
            // unit comes after all stores of this CPU.
            cell.store(0, Ordering::Relaxed);
        }
        Ok(run)
    }

    /// Starts the queue, which is off, on an empty ring.
    pub(super) fn turn_queue_on(&self, platform: &P, ring: u64) -> Result<(), UnitError> {
        self.regs.write64(registers::IQT, QUEUE_START);
        // One page of 128-bit descriptors: the size and width fields are zero.
        self.regs.write64(registers::IQA, ring);
        self.regs
            .command(platform, self.index, Command::EnableQueue)?;
        let head = self.regs.read64(registers::IQH);
        if head != QUEUE_START {
            return Err(UnitError::Hardware {
                unit: self.index,
                what: "the head of a queue that was just started (IQH)",
                expected: QUEUE_START,
                found: head,
            });
        }
        Ok(())
    }

    /// What operations on the queue work with.
    pub(super) fn queue_with<'a>(&'a self, platform: &'a P) -> QueueContext<'a, P> {
        QueueContext {
            platform,
            regs: &self.regs,
            unit: self.index,
        }
    }

    /// What operations on root and context tables work with.
    pub(super) fn tables_with<'a>(&'a self, platform: &'a P) -> TableContext<'a, P> {
        TableContext {
            platform,
            unit: self.index,
            coherent: self.info.ecap.c(),
            pass_through: self.info.ecap.pt(),
            phys_bits: self.caps.phys_bits,
        }
    }
}

fn check_capabilities(cap: Cap, ecap: Ecap) -> Result<(), UnitRefusal> {
    if !ecap.qi() {
        let ecap = ecap.into_bits();
        return Err(UnitRefusal::NoQueue { ecap });
    }
    if caps::levels(cap).iter().next().is_none() {
        let sagaw = cap.sagaw();
        return Err(UnitRefusal::NoLevels { sagaw });
    }
    let (expected, found) = (registers::FIXED_END, cap.fault_records());
    if found < expected {
        return Err(UnitRefusal::FaultRecords { expected, found });
    }
    Ok(())
}

/// All pages of the unit's registers: as many as the table says, or as the capability registers
/// need, which may be more (Linux maps the larger).
fn register_range(drhd: &Drhd, cap: Cap, ecap: Ecap) -> Result<PhysRange, UnitRefusal> {
    let records = cap.fault_records() + cap.fault_record_count() * crate::spec::fault::RECORD_BYTES;
    let iotlb = ecap.iotlb_registers() + registers::IOTLB_REGISTERS;
    let bytes = drhd
        .registers
        .pages()
        .bytes()
        .max(records.into())
        .max(iotlb.into());
    PageCount::for_bytes(bytes)
        .and_then(|pages| PhysRange::new(drhd.base(), pages).ok())
        .ok_or(UnitRefusal::RegisterSize { bytes })
}
