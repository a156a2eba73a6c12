//! The rig as a platform: the traits that an embedder implements, in software.

#![expect(unsafe_code, reason = "promises what the platform traits demand")]

use std::sync::Arc;

use hv_core::platform::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, Mmio, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr, PhysRange};

use crate::cell::RigCell;
use crate::core::Core;
use crate::cpus;
use crate::interrupt::DOORBELL;
use crate::memory::{FRAME_BYTES, frame_of};
use crate::pci::{BUS_MASTER, COMMAND};
use crate::rig::Rig;
use crate::rule::Rule;
use crate::services::frame_of_messages;
use crate::smmu::spec::services;
use crate::trace::Event;

/// How much of a run of frames is made anew when it is given out, and forgotten when it comes back: no table is larger.
const MADE_ANEW: u64 = 128;

impl FrameSource for Rig {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        let mut state = self.core.act();
        let bus = &mut state.bus;
        let taken = bus.frames.take(pages.get(), align.pages());
        let first = taken.ok_or(OutOfFrames { pages, align })?;
        for frame in first..first + pages.get().min(MADE_ANEW) {
            bus.memory.given(frame);
        }
        if let Some(tenant) = bus.lending.take() {
            bus.lent.push((tenant, first, pages.get()));
        }
        bus.note(Event::Frames {
            first: first * FRAME_BYTES,
            pages: pages.get(),
            out: true,
        });
        let range = PhysRange::new(PhysAddr::new(first * FRAME_BYTES), pages);
        let range = range.map_err(|_| OutOfFrames { pages, align })?;
        // SAFETY: the frames were free until now and are marked as taken, so no other run names them; the
        // memory behind them is the rig's own and reached through it alone.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let range = run.into_range();
        let (first, pages) = (frame_of(range.start().as_u64()), range.pages().get());
        let mut state = self.core.act();
        state.judge_return(first, pages, "given back to the platform");
        let bus = &mut state.bus;
        bus.note(Event::Frames {
            first: range.start().as_u64(),
            pages,
            out: false,
        });
        if !bus.frames.give_back(first, pages) {
            let what = format!("{pages} frames at {first:#x} came back, not all of which were out");
            bus.broken(Rule::DoubleFree, what);
        }
        for frame in first..first + pages.min(MADE_ANEW) {
            bus.memory.forget(frame);
        }
    }
}

// SAFETY: the word of a cell, `read` and `write` reach the rig's memory at exactly the address asked
// for, by one lock, which makes each access atomic; frames of this source are memory of the rig that
// nothing else uses. What is reached outside of taken frames is noted as a broken rule, and is memory
// of the rig all the same.
unsafe impl PhysMemory for Rig {
    type Cell = RigCell;

    unsafe fn cells(&self, frame: PhysAddr) -> &[RigCell] {
        let mut state = self.core.quiet();
        let at = frame.as_u64();
        state.judge_memory(at);
        let is_memory = state.bus.memory.is_there(at);
        let cells = state.sheets.of(frame_of(at), 1, is_memory, &self.core);
        cells.unwrap_or(&[])
    }

    unsafe fn cells_of(&self, first: PhysAddr, frames: PageCount) -> Option<&[RigCell]> {
        let mut state = self.core.quiet();
        let mut is_memory = true;
        for frame in 0..frames.get() {
            let at = first.as_u64() + frame * FRAME_BYTES;
            state.judge_memory(at);
            is_memory &= state.bus.memory.is_there(at);
        }
        let first = frame_of(first.as_u64());
        state.sheets.of(first, frames.get(), is_memory, &self.core)
    }

    unsafe fn read(&self, from: PhysAddr, out: &mut [u8]) {
        let mut state = self.core.step();
        state.judge_memory(from.as_u64());
        state.bus.memory.read_bytes(from.as_u64(), out);
    }

    unsafe fn write(&self, to: PhysAddr, bytes: &[u8]) {
        let mut state = self.core.act();
        state.judge_memory(to.as_u64());
        state.bus.memory.write_by_cpu(to.as_u64(), bytes);
    }

    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        let mut state = self.core.step();
        state.judge_memory(from.as_u64());
        let mut bytes = [0; 4];
        state.bus.memory.read_bytes(from.as_u64(), &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// The registers of one unit, or a part of them.
pub struct RigRegisters {
    core: Arc<Core>,
    unit: usize,
    bytes: u32,
}

impl RigRegisters {
    fn read(&self, offset: u32, bits: u32) -> u64 {
        let mut step = self.core.step();
        let state = &mut *step;
        let word = match state.units.get_mut(self.unit) {
            Some(unit) if offset < self.bytes => unit.read(&mut state.bus, offset, bits),
            _ => u64::MAX >> (64 - bits),
        };
        let waits = state.is_waited_for();
        drop(step);
        if waits {
            self.core.waits(self.unit);
        }
        word
    }

    fn write(&self, offset: u32, bits: u32, value: u64) {
        let mut state = self.core.act();
        let state = &mut *state;
        // A store to a register comes after all earlier stores to memory.
        state.bus.memory.drain_stores(&mut state.bus.rng);
        let unit = self.unit;
        state.bus.counts.register_writes += 1;
        state.bus.note(Event::Register {
            unit,
            offset,
            value,
        });
        if let Some(unit) = state.units.get_mut(unit)
            && offset < self.bytes
        {
            unit.write(&mut state.bus, offset, bits, value);
        }
    }
}

impl Mmio for RigRegisters {
    fn read32(&self, offset: u32) -> u32 {
        self.read(offset, 32) as u32
    }
    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, 32, value.into());
    }
    fn read64(&self, offset: u32) -> u64 {
        self.read(offset, 64)
    }
    fn write64(&self, offset: u32, value: u64) {
        self.write(offset, 64, value);
    }
}

// SAFETY: the frames of a machine's regions are kept from everybody, see `Core::new`.
unsafe impl MemoryMap for Rig {
    fn firmware_may_use(&self, range: PhysRange) -> bool {
        let regions = &self.machine().regions;
        regions.iter().any(|region| region.memory.covers(&range))
    }

    fn takes_messages(&self, range: PhysRange) -> bool {
        let count = self.machine().services.len();
        if count == 0 {
            // One that only units write to.
            return range.start().as_u64() == DOORBELL && range.pages() == PageCount::ONE;
        }
        let mut frames = (0..count).map(frame_of_messages);
        // As far as its frame goes, and with the register in it.
        let fits = range.pages().bytes() <= services::FRAME_BYTES;
        fits && frames.any(|frame| range.start().as_u64() == frame)
    }
}

impl Registers for Rig {
    type Block = RigRegisters;

    fn map_registers(&self, range: PhysRange) -> Result<RigRegisters, RegistersError> {
        let start = range.start().as_u64();
        let units = self.core.quiet().units.len();
        let (machine, vendor) = (self.machine(), self.machine().vendor());
        let unit = (0..units).find(|unit| vendor.registers_at(*unit) == start);
        let reason = "no unit of the rig has its registers there";
        let unit = unit.ok_or(RegistersError { range, reason })?;
        if range.pages().bytes() > machine.register_bytes(unit) {
            let reason = "the unit has fewer registers";
            return Err(RegistersError { range, reason });
        }
        Ok(RigRegisters {
            core: self.core.clone(),
            unit,
            bytes: range.pages().bytes() as u32,
        })
    }
}

impl PciConfig for Rig {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        let state = self.core.step();
        let mut functions = state.bus.functions.iter();
        let found = functions.find(|known| known.address == function);
        found.map_or(u32::MAX, |function| function.read(offset))
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        let mut state = self.core.act();
        let mut functions = state.bus.functions.iter_mut();
        if let Some(known) = functions.find(|known| known.address == function) {
            known.write(offset, value);
        }
        if offset == COMMAND {
            let function = function.to_string();
            state.bus.note(Event::Config { function, value });
            if value & BUS_MASTER != 0 {
                state.bus.judge_cut_off();
            }
        }
    }
}

impl CacheMaintenance for Rig {
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        let mut state = self.core.act();
        let from = from.as_u64();
        state.bus.note(Event::WriteBack { from, bytes });
        let bus = &mut state.bus;
        bus.memory.write_back(from, bytes, &mut bus.rng);
    }

    /// The rig's devices snoop, so dropping a line changes nothing that anybody sees.
    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.write_back(from, bytes);
    }

    fn walker_fence(&self) {
        let mut state = self.core.act();
        state.bus.note(Event::Fence);
        let bus = &mut state.bus;
        bus.provoked = true;
        bus.memory.fence(&mut bus.rng);
    }
}

impl Clock for Rig {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.core.look())
    }

    fn pause(&self) {
        self.core.pause(cpus::current());
    }
}

// SAFETY: a thread keeps the lowest number that no live thread has, from its first call to its end,
// and calls run on their thread from beginning to end.
unsafe impl Cpus for Rig {
    fn current_cpu(&self) -> CpuId {
        cpus::current()
    }

    fn cpu_count(&self) -> usize {
        cpus::CPUS
    }
}
