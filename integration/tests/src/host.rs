//! A host platform for tests: an arena of memory, recorded PCI config space, a clock, CPUs.
//!
//! Everything is counted. Frames that come back twice, or that somebody reaches after they came
//! back, end the test at once; what is still out at the end is [`Host::frames_out`].

#![expect(unsafe_code, reason = "promises what the platform traits demand")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hv_core::platform::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr, PhysRange};
use hv_rig::{NoRegisters, cpus};

/// Words of one frame.
const WORDS: u64 = PageSize::Size4K.bytes() / 8;
/// Words of a cache line.
const LINE_WORDS: u64 = 8;
/// Distance between the first frames of two hosts, so that no two hosts share an address.
const HOST_STRIDE: u64 = 4 << 30;
/// What a free frame holds: as a table word it is damaged, as data it is easy to see.
const POISON: u64 = 0xdead_dead_dead_dead;
/// The command register and its bus master bit.
const COMMAND: u16 = 4;
const BUS_MASTER: u32 = 1 << 2;

/// How time passes.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    /// As on the wall.
    Real,
    /// Each look at the clock takes this long. Waits end after a known number of looks.
    PerLook(Duration),
}

/// A moment in the middle of a call at which an interrupt, or another CPU, can come between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before an allocation of frames.
    Allocation,
    /// Before the words of a table page are looked at.
    Page,
    /// At a fence that orders stores for the walkers.
    WalkerFence,
}

/// Called at every such moment, with the caller's guards alive.
pub type Hook = Arc<dyn Fn(Moment) + Send + Sync>;

struct Allocator {
    used: Vec<bool>,
    /// Allocations to let through before one fails.
    fail_in: Option<u64>,
    allocations: u64,
}

struct Pci {
    /// The command register of each function that is there.
    commands: HashMap<PciAddress, u32>,
    /// Functions whose bus master bit cannot be set.
    stubborn: Vec<PciAddress>,
    /// Functions whose bus master bit cannot be cleared.
    keeping: Vec<PciAddress>,
    /// Other registers, and which of their bits a write changes.
    registers: HashMap<(PciAddress, u16), (u32, u32)>,
    /// Writes to functions that are not there.
    lost_writes: u64,
    /// How many looks at its command register a function does not answer yet.
    late: HashMap<PciAddress, u32>,
}

/// The platform. One arena of frames at addresses that no other host uses.
pub struct Host {
    base: u64,
    words: Vec<AtomicU64>,
    allocator: Mutex<Allocator>,
    hook: Mutex<Option<Hook>>,
    hooked: AtomicBool,
    pci: Mutex<Pci>,
    time: Time,
    looks: AtomicU64,
    start: std::time::Instant,
    written_back: AtomicU64,
    /// What the CPU's caches hold of data, where they are played.
    lines: Mutex<Option<Lines>>,
    /// What of memory is firmware's.
    set_aside: Mutex<Vec<PhysRange>>,
    /// Where devices write interrupt messages.
    doorbells: Mutex<Vec<PhysRange>>,
}

/// Cache lines by number, with what the CPU sees of them.
type Lines = HashMap<u64, [u64; LINE_WORDS as usize]>;

/// Locks, also after another test thread panicked with the lock held.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// A host with `frames` frames and these functions on its PCI buses.
    pub fn new(frames: u64, functions: &[PciAddress], time: Time) -> Self {
        static HOSTS: AtomicU64 = AtomicU64::new(1);
        // ORDERING: Relaxed, only that numbers differ counts.
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        assert!(frames * PageSize::Size4K.bytes() <= HOST_STRIDE);
        Self {
            base: number * HOST_STRIDE,
            words: (0..frames * WORDS)
                .map(|_| AtomicU64::new(POISON))
                .collect(),
            allocator: Mutex::new(Allocator {
                used: vec![false; frames as usize],
                fail_in: None,
                allocations: 0,
            }),
            hook: Mutex::new(None),
            hooked: AtomicBool::new(false),
            pci: Mutex::new(Pci {
                commands: functions.iter().map(|function| (*function, 0)).collect(),
                stubborn: Vec::new(),
                keeping: Vec::new(),
                registers: HashMap::new(),
                lost_writes: 0,
                late: HashMap::new(),
            }),
            time,
            looks: AtomicU64::new(0),
            start: std::time::Instant::now(),
            written_back: AtomicU64::new(0),
            lines: Mutex::new(None),
            set_aside: Mutex::new(Vec::new()),
            doorbells: Mutex::new(Vec::new()),
        }
    }

    /// How many frames were given out and have not come back.
    pub fn frames_out(&self) -> u64 {
        let allocator = lock(&self.allocator);
        allocator.used.iter().filter(|used| **used).count() as u64
    }

    /// Whether this frame was given out and has not come back.
    pub fn is_out(&self, frame: PhysAddr) -> bool {
        let index = self.word_index(frame) / WORDS as usize;
        lock(&self.allocator).used[index]
    }

    /// Firmware has set this memory aside: frames that were given out, or memory that is not the host's.
    pub fn set_aside(&self, range: PhysRange) {
        lock(&self.set_aside).push(range);
    }

    /// An interrupt controller takes messages here, which is no memory.
    pub fn add_doorbell(&self, range: PhysRange) {
        lock(&self.doorbells).push(range);
    }

    /// How many allocations were asked for so far.
    pub fn allocations(&self) -> u64 {
        lock(&self.allocator).allocations
    }

    /// Makes the one allocation fail that comes after `successes` more; `None` takes that back.
    pub fn fail_allocation_after(&self, successes: Option<u64>) {
        lock(&self.allocator).fail_in = successes;
    }

    /// Whether the allocation that was to fail has not come yet.
    pub fn is_failure_due(&self) -> bool {
        lock(&self.allocator).fail_in.is_some()
    }

    /// Calls `hook` at every [`Moment`].
    pub fn set_hook(&self, hook: Option<Hook>) {
        let mut place = lock(&self.hook);
        // ORDERING: Release, for symmetry; whoever sets a hook starts what meets it afterwards.
        self.hooked.store(hook.is_some(), Ordering::Release);
        *place = hook;
    }

    fn reached(&self, moment: Moment) {
        // ORDERING: Acquire, as at the store. Keeps the lock out of tests without a hook.
        if !self.hooked.load(Ordering::Acquire) {
            return;
        }
        // Called without the lock: the hook may set another, or call back in.
        let hook = lock(&self.hook).clone();
        if let Some(hook) = hook {
            hook(moment);
        }
    }

    /// A run of frames, or the end of the test.
    pub fn frames(&self, pages: u64) -> FrameRun<Hypervisor> {
        self.frames_aligned(pages, PageSize::Size4K)
    }

    /// An aligned run of frames, or the end of the test.
    pub fn frames_aligned(&self, pages: u64, align: PageSize) -> FrameRun<Hypervisor> {
        let pages = PageCount::new(pages).expect("a page count");
        self.alloc_frames(pages, align)
            .expect("a large enough arena")
    }

    /// Whether the function may send requests; `None` when there is no such function.
    pub fn bus_master(&self, function: PciAddress) -> Option<bool> {
        let pci = lock(&self.pci);
        let command = pci.commands.get(&function)?;
        Some(command & BUS_MASTER != 0)
    }

    /// Sets bus mastering as firmware would, behind the subsystem's back.
    pub fn leave_bus_mastering_on(&self, function: PciAddress) {
        lock(&self.pci).commands.insert(function, BUS_MASTER);
    }

    /// From now on `function` can send, and does not give that up.
    pub fn keep_bus_mastering(&self, function: PciAddress) {
        lock(&self.pci).keeping.push(function);
    }

    /// Gives a function a register of configuration space, of which writes change the bits of `writable`.
    pub fn set_register(&self, function: PciAddress, offset: u16, value: u32, writable: u32) {
        let place = (function, offset);
        lock(&self.pci).registers.insert(place, (value, writable));
    }

    /// Gives a function a PASID capability for PASIDs of this many bits, at the start of its extended capabilities.
    pub fn give_pasids(&self, function: PciAddress, bits: u32) {
        self.set_register(function, 0x100, 0x0001_001b, 0);
        self.set_register(function, 0x104, bits << 8, 1 << 16);
    }

    /// What a register of configuration space holds.
    pub fn register(&self, function: PciAddress, offset: u16) -> u32 {
        self.config_read32(function, offset)
    }

    /// Plugs a function in: from now on it answers, and does not send.
    pub fn plug(&self, function: PciAddress) {
        lock(&self.pci).commands.insert(function, 0);
    }

    /// So many looks at its command register `function` does not answer, as after a reset; then it does.
    pub fn answer_late(&self, function: PciAddress, looks: u32) {
        lock(&self.pci).late.insert(function, looks);
    }

    /// How many writes went to functions that are not there.
    pub fn lost_writes(&self) -> u64 {
        lock(&self.pci).lost_writes
    }

    /// From now on `function` does not take bus mastering.
    pub fn refuse_bus_mastering(&self, function: PciAddress) {
        lock(&self.pci).stubborn.push(function);
    }

    /// From now on devices do not snoop: what the CPU reads and writes of data stays in lines of its caches until
    /// they are written back, or dropped; no line ever goes by itself.
    pub fn play_caches(&self) {
        *lock(&self.lines) = Some(Lines::new());
    }

    /// Lets the CPU see, and perhaps change, the word at `at`: in its caches, if they are played.
    fn cpu_word(&self, at: PhysAddr, change: impl Fn(u64) -> Option<u64>) -> u64 {
        let index = self.word_index(at) as u64;
        let mut lines = lock(&self.lines);
        let Some(lines) = lines.as_mut() else {
            let word = &self.words[index as usize];
            // ORDERING: Acquire pairs with what devices write; Relaxed to change plain data, of which two bytes
            // of a word may have two writers.
            return match word.fetch_update(Ordering::Relaxed, Ordering::Acquire, &change) {
                Ok(word) | Err(word) => word,
            };
        };
        let first = index / LINE_WORDS * LINE_WORDS;
        let line = lines.entry(index / LINE_WORDS).or_insert_with(|| {
            // ORDERING: Acquire, as above.
            std::array::from_fn(|word| self.words[first as usize + word].load(Ordering::Acquire))
        });
        let word = &mut line[(index % LINE_WORDS) as usize];
        let seen = *word;
        *word = change(seen).unwrap_or(seen);
        seen
    }

    /// Writes the played lines of these bytes back, and drops them if asked to.
    fn clean(&self, from: PhysAddr, bytes: u64, dropped: bool) {
        let mut lines = lock(&self.lines);
        let Some(lines) = lines.as_mut() else {
            return;
        };
        let first = self.word_index(from) as u64 / LINE_WORDS;
        let last = (from.as_u64() + bytes - 1 - self.base) / 8 / LINE_WORDS;
        for number in first..=last {
            let Some(line) = lines.get(&number) else {
                continue;
            };
            for (word, value) in (number * LINE_WORDS..).zip(line) {
                // ORDERING: Release, as DMA is seen in order.
                self.words[word as usize].store(*value, Ordering::Release);
            }
            if dropped {
                lines.remove(&number);
            }
        }
    }

    /// Pulls a function out: from now on it does not answer.
    pub fn unplug(&self, function: PciAddress) {
        lock(&self.pci).commands.remove(&function);
    }

    /// How many bytes were written back for walkers that do not snoop.
    pub fn bytes_written_back(&self) -> u64 {
        // ORDERING: Relaxed, a count for tests.
        self.written_back.load(Ordering::Relaxed)
    }

    /// The word at `at`, as a device or a walker reads it.
    pub fn device_read(&self, at: PhysAddr) -> u64 {
        let word = &self.words[self.word_index(at)];
        // ORDERING: Acquire pairs with the release stores of the table engine.
        word.load(Ordering::Acquire)
    }

    /// Writes the word at `at`, as a device does.
    pub fn device_write(&self, at: PhysAddr, value: u64) {
        let word = &self.words[self.word_index(at)];
        // ORDERING: Release, as DMA writes are seen in order.
        word.store(value, Ordering::Release);
    }

    /// Changes the word at `at` as a walker does that notes something: only if it is still `old`.
    pub fn device_swap(&self, at: PhysAddr, old: u64, new: u64) -> bool {
        let word = &self.words[self.word_index(at)];
        // ORDERING: AcqRel and Acquire, the strongest that a walker has.
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn word_index(&self, at: PhysAddr) -> usize {
        let inside = at.as_u64().checked_sub(self.base).map(|offset| offset / 8);
        match inside {
            Some(index) if index < self.words.len() as u64 => index as usize,
            _ => panic!("{at} is not memory of this host"),
        }
    }

    fn set_frame(&self, index: usize, value: u64) {
        if let Some(lines) = lock(&self.lines).as_mut() {
            let first = index as u64 * WORDS / LINE_WORDS;
            (first..first + WORDS / LINE_WORDS).for_each(|line| {
                lines.remove(&line);
            });
        }
        for word in &self.words[index * WORDS as usize..(index + 1) * WORDS as usize] {
            // ORDERING: Relaxed, the frame belongs to the allocator, whose lock publishes it.
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl FrameSource for Host {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        self.reached(Moment::Allocation);
        let out = OutOfFrames { pages, align };
        let mut allocator = lock(&self.allocator);
        allocator.allocations += 1;
        match allocator.fail_in {
            Some(0) => {
                allocator.fail_in = None;
                return Err(out);
            }
            Some(left) => allocator.fail_in = Some(left - 1),
            None => {}
        }
        let (count, step) = (pages.get() as usize, align.pages() as usize);
        let starts = (0..allocator.used.len()).step_by(step);
        let start = starts
            .filter(|start| start + count <= allocator.used.len())
            .find(|start| !allocator.used[*start..start + count].contains(&true))
            .ok_or(out)?;
        allocator.used[start..start + count].fill(true);
        for index in start..start + count {
            self.set_frame(index, 0);
        }
        let first = PhysAddr::new(self.base + start as u64 * PageSize::Size4K.bytes());
        let range = PhysRange::new(first, pages).expect("a range inside the arena");
        // SAFETY: the frames are memory of the arena, were free until now and are marked as used, so
        // no other run names them.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let range = run.into_range();
        let mut allocator = lock(&self.allocator);
        for page in 0..range.pages().get() {
            let frame = range.page(page).expect("a page of the range");
            let index = self.word_index(frame) / WORDS as usize;
            assert!(allocator.used[index], "{frame} was given back twice");
            allocator.used[index] = false;
            self.set_frame(index, POISON);
        }
    }
}

// SAFETY: the arena lives as long as the host, and its word with index (address - base) / 8 is the
// memory at that address; any other address ends the test. `FrameSource` gives frames of the arena.
unsafe impl PhysMemory for Host {
    type Cell = AtomicU64;

    unsafe fn cells(&self, frame: PhysAddr) -> &[AtomicU64] {
        assert!(self.is_out(frame), "{frame} is reached after it was freed");
        self.reached(Moment::Page);
        let first = self.word_index(frame);
        &self.words[first..first + WORDS as usize]
    }

    unsafe fn read(&self, from: PhysAddr, out: &mut [u8]) {
        for (at, byte) in (from.as_u64()..).zip(out) {
            let at = PhysAddr::new(at);
            assert!(self.is_out(at), "{at} is read after it was freed");
            *byte = self.cpu_word(at, |_| None).to_le_bytes()[at.as_u64() as usize % 8];
        }
    }

    unsafe fn write(&self, to: PhysAddr, bytes: &[u8]) {
        for (at, byte) in (to.as_u64()..).zip(bytes) {
            let at = PhysAddr::new(at);
            assert!(self.is_out(at), "{at} is written after it was freed");
            let shift = at.as_u64() % 8 * 8;
            self.cpu_word(at, |word| {
                Some(word & !(0xff << shift) | u64::from(*byte) << shift)
            });
        }
    }

    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        let shift = from.as_u64() % 8 * 8;
        (self.cpu_word(from, |_| None) >> shift) as u32
    }
}

// SAFETY: only what a test has set aside, which it puts to no other use.
unsafe impl MemoryMap for Host {
    fn firmware_may_use(&self, range: PhysRange) -> bool {
        lock(&self.set_aside)
            .iter()
            .any(|aside| aside.covers(&range))
    }

    fn takes_messages(&self, range: PhysRange) -> bool {
        let doorbells = lock(&self.doorbells);
        doorbells.iter().any(|doorbell| doorbell.covers(&range))
    }
}

impl Registers for Host {
    type Block = NoRegisters;

    fn map_registers(&self, range: PhysRange) -> Result<NoRegisters, RegistersError> {
        NoRegisters::refuse(range)
    }
}

impl PciConfig for Host {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        let mut pci = lock(&self.pci);
        if offset == COMMAND
            && let Some(looks) = pci.late.get_mut(&function).filter(|looks| **looks != 0)
        {
            *looks -= 1;
            return u32::MAX;
        }
        match pci.commands.get(&function) {
            Some(command) if offset == COMMAND => {
                let status = pci.registers.get(&(function, offset));
                *command | status.map_or(0, |known| known.0)
            }
            Some(_) => pci
                .registers
                .get(&(function, offset))
                .map_or(0, |known| known.0),
            None => u32::MAX,
        }
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        let mut pci = lock(&self.pci);
        let stubborn = pci.stubborn.contains(&function);
        let kept = if pci.keeping.contains(&function) {
            BUS_MASTER
        } else {
            0
        };
        if !pci.commands.contains_key(&function) {
            pci.lost_writes += 1;
            return;
        }
        if let Some((register, writable)) = pci.registers.get_mut(&(function, offset)) {
            *register = *register & !*writable | value & *writable;
        }
        if let Some(command) = pci.commands.get_mut(&function)
            && offset == COMMAND
        {
            // The upper half is the status register, which a write of zero leaves alone.
            *command = kept | value & 0xffff & if stubborn { !BUS_MASTER } else { u32::MAX };
        }
    }
}

impl CacheMaintenance for Host {
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        // ORDERING: Relaxed, a count for tests.
        self.written_back.fetch_add(bytes, Ordering::Relaxed);
        self.clean(from, bytes, false);
    }

    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.clean(from, bytes, true);
    }

    fn walker_fence(&self) {
        // ORDERING: SeqCst, the strongest that a walker on another thread can need.
        std::sync::atomic::fence(Ordering::SeqCst);
        self.reached(Moment::WalkerFence);
    }
}

impl Clock for Host {
    fn now(&self) -> Instant {
        match self.time {
            Time::Real => Instant::from_nanos(self.start.elapsed().as_nanos() as u64),
            Time::PerLook(step) => {
                // ORDERING: Relaxed, one counter that only grows.
                let looks = self.looks.fetch_add(1, Ordering::Relaxed);
                Instant::from_nanos(looks * step.as_nanos() as u64)
            }
        }
    }
}

// SAFETY: a thread keeps the lowest number that no live thread has, from its first call to its end,
// and calls run on their thread from beginning to end.
unsafe impl Cpus for Host {
    fn current_cpu(&self) -> CpuId {
        cpus::current()
    }

    fn cpu_count(&self) -> usize {
        cpus::CPUS
    }
}
