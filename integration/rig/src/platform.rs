//! The rig as a platform: the traits that an embedder implements, in software.

#![expect(unsafe_code, reason = "promises what the platform traits demand")]

use std::sync::{Arc, OnceLock};

use hv_core::platform::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, Mmio, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr, PhysRange};

use crate::cell::RigCell;
use crate::core::Core;
use crate::cpus;
use crate::interrupt::DOORBELL;
use crate::memory::{FRAME_BYTES, FRAMES, WORDS, frame_of};
use crate::pci::{BUS_MASTER, COMMAND};
use crate::rig::Rig;
use crate::rule::Rule;
use crate::trace::Event;

/// Frames of one block of cells: frames are given out all over memory, so each block that is made holds few.
const BLOCK: u64 = 128;

/// The cells of one frame, or of [`TOGETHER`] of them.
type FrameCells = OnceLock<Box<[RigCell]>>;

/// How many frames can be reached at once, from a multiple of that on: the largest table.
const TOGETHER: u64 = 16;

/// The cells of all frames, made when they are first reached and kept as long as the rig.
pub(crate) struct Cells {
    /// The first frame.
    base: u64,
    blocks: Vec<OnceLock<Box<[FrameCells]>>>,
    /// The same words for who reaches several frames at once, on machines where somebody does.
    together: OnceLock<Vec<OnceLock<Box<[FrameCells]>>>>,
    /// What stands for a frame that is none: words that nobody reads.
    nowhere: Box<[RigCell]>,
}

fn cells_of(frame: u64, frames: u64, core: &Arc<Core>) -> Box<[RigCell]> {
    (0..WORDS as u64 * frames)
        .map(|word| RigCell {
            at: frame * FRAME_BYTES + word * 8,
            core: Arc::downgrade(core),
        })
        .collect()
}

impl Cells {
    pub(crate) fn new(core: &Arc<Core>, base: u64) -> Self {
        let base = frame_of(base);
        Self {
            base,
            blocks: (0..FRAMES / BLOCK).map(|_| OnceLock::new()).collect(),
            together: OnceLock::new(),
            nowhere: cells_of(base + FRAMES - 1, 1, core),
        }
    }

    fn of(&self, frame: u64, core: &Arc<Core>) -> &[RigCell] {
        let Some(index) = frame.checked_sub(self.base) else {
            return &self.nowhere;
        };
        let Some(block) = self.blocks.get((index / BLOCK) as usize) else {
            return &self.nowhere;
        };
        let block = block.get_or_init(|| (0..BLOCK).map(|_| OnceLock::new()).collect());
        match block.get((index % BLOCK) as usize) {
            Some(cells) => cells.get_or_init(|| cells_of(frame, 1, core)),
            None => &self.nowhere,
        }
    }

    /// The words of frames in a row, of which a largest table is a multiple.
    fn run(&self, frame: u64, frames: u64, core: &Arc<Core>) -> Option<&[RigCell]> {
        let index = frame.checked_sub(self.base)?;
        let (group, inside) = (index / TOGETHER, index % TOGETHER);
        let groups = BLOCK / TOGETHER;
        let blocks = || (0..FRAMES / BLOCK).map(|_| OnceLock::new()).collect();
        let block = self
            .together
            .get_or_init(blocks)
            .get((group / groups) as usize)?;
        let block = block.get_or_init(|| (0..groups).map(|_| OnceLock::new()).collect());
        let cells = block.get((group % groups) as usize)?;
        let first = frame - inside;
        let cells = cells.get_or_init(|| cells_of(first, TOGETHER, core));
        let words = |frames: u64| frames as usize * WORDS;
        cells.get(words(inside)..words(inside + frames))
    }
}

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
        for frame in first..first + pages.get().min(BLOCK) {
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
        for frame in first..first + pages.min(BLOCK) {
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
        self.core.quiet().judge_memory(frame.as_u64());
        self.cells.of(frame_of(frame.as_u64()), &self.core)
    }

    unsafe fn cells_of(&self, first: PhysAddr, frames: PageCount) -> Option<&[RigCell]> {
        for frame in 0..frames.get() {
            let at = first.as_u64() + frame * FRAME_BYTES;
            self.core.quiet().judge_memory(at);
        }
        self.cells
            .run(frame_of(first.as_u64()), frames.get(), &self.core)
    }

    unsafe fn read(&self, from: PhysAddr, out: &mut [u8]) {
        let mut state = self.core.step();
        state.judge_memory(from.as_u64());
        state.bus.memory.read_bytes(from.as_u64(), out);
    }

    unsafe fn write(&self, to: PhysAddr, bytes: &[u8]) {
        let mut state = self.core.act();
        state.judge_memory(to.as_u64());
        state.bus.memory.write_bytes(to.as_u64(), bytes);
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
        self.core.held_up(self.unit);
        let mut state = self.core.step();
        let state = &mut *state;
        match state.units.get_mut(self.unit) {
            Some(unit) if offset < self.bytes => unit.read(&mut state.bus, offset, bits),
            _ => u64::MAX >> (64 - bits),
        }
    }

    fn write(&self, offset: u32, bits: u32, value: u64) {
        let mut state = self.core.act();
        let state = &mut *state;
        // A store to a register comes after all earlier stores to memory.
        state.bus.memory.drain_stores(&mut state.bus.rng);
        let unit = self.unit;
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
        range.start().as_u64() == DOORBELL && range.pages() == PageCount::ONE
    }
}

impl Registers for Rig {
    type Block = RigRegisters;

    fn map_registers(&self, range: PhysRange) -> Result<RigRegisters, RegistersError> {
        let start = range.start().as_u64();
        let units = self.core.quiet().units.len();
        let vendor = self.machine().vendor();
        let unit = (0..units).find(|unit| vendor.registers_at(*unit) == start);
        let reason = "no unit of the rig has its registers there";
        let unit = unit.ok_or(RegistersError { range, reason })?;
        if range.pages().bytes() > vendor.register_bytes() {
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
