//! Frames for what the unit reads: aligned to their size, within its reach, and filled before anybody looks.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, PageCount, PhysAddr};
use hv_iommu::{UnitError, UnitIndex};

/// What making a structure in memory works with.
pub(crate) struct Reach<'a, P: Platform> {
    pub(crate) platform: &'a P,
    pub(crate) unit: UnitIndex,
    /// Whether the unit snoops the CPU's caches when it reads structures.
    pub(crate) coherent: bool,
    /// Addresses of structures are below 2 to this.
    pub(crate) phys_bits: u8,
}

impl<P: Platform> Reach<'_, P> {
    /// Makes stores to `bytes` bytes at `from` visible to the unit, before any later store.
    pub(crate) fn publish(&self, from: PhysAddr, bytes: u64) {
        if !self.coherent && !Fault::SkipStreamWriteBack.is_on() {
            self.platform.write_back(from, bytes);
        }
        self.platform.walker_fence();
    }

    /// A run of at least `bytes` bytes, a power of two, aligned to them or to a page, and zeroed.
    ///
    /// # Errors
    /// [`UnitError::OutOfFrames`], or a run where the unit has no addresses.
    pub(crate) fn aligned_run(&self, bytes: u64) -> Result<FrameRun<Hypervisor>, UnitError> {
        let pages = PageCount::for_bytes(bytes.next_power_of_two()).unwrap_or(PageCount::ONE);
        let run = self.platform.alloc_table_run(pages)?;
        let last = run.range().start().as_u64() | (run.range().pages().bytes() - 1);
        if last.checked_shr(self.phys_bits.into()).unwrap_or(0) != 0 {
            let found = run.range().start().as_u64();
            self.platform.free_frames(run);
            return Err(UnitError::Hardware {
                unit: self.unit,
                what: "a frame above the unit's output size (IDR5.OAS), in address bits",
                expected: self.phys_bits.into(),
                found,
            });
        }
        // A frame source may be careless; a unit that reads what was there before must not be.
        for index in 0..run.pages().get() {
            for cell in run.cells(self.platform, index).unwrap_or_default() {
                // ORDERING: Relaxed, the frame is private; whoever hands it to the unit publishes it.
                cell.store(0, Ordering::Relaxed);
            }
        }
        Ok(run)
    }
}
