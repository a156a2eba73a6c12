//! A machine in memory for the tests: frames, registers that behave, a clock that runs.
//!
//! Every store, write-back, fence, register write and executed descriptor goes into one log, so
//! that tests can ask for order. Offsets and bits here are literals, not those of `spec`.

#![expect(unsafe_code, reason = "implements the platform traits")]

use std::boxed::Box;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use hv_core::platform::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, Mmio, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{
    CpuId, EntryCell, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr, PhysRange,
    Segment,
};
use hv_iommu::{Level, RootPointer};

mod unit;

pub(crate) use unit::{Behaviour, FakeUnit};

/// The root of a table that no unit of these tests walks.
pub(crate) fn root(page: u64, levels: u8) -> RootPointer {
    let level = Level::new(levels).unwrap();
    // SAFETY: the unit of these tests does not walk tables.
    unsafe { RootPointer::from_raw(PhysAddr::new(page), level) }
}

/// Something that the driver did, or the unit because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Store {
        at: u64,
        word: u64,
    },
    WriteBack {
        at: u64,
        bytes: u64,
    },
    Fence,
    Write32 {
        unit: usize,
        offset: u32,
        value: u32,
    },
    Write64 {
        unit: usize,
        offset: u32,
        value: u64,
    },
    Executed {
        unit: usize,
        low: u64,
        high: u64,
    },
    Config {
        function: PciAddress,
        offset: u16,
        value: u32,
    },
}

#[derive(Default)]
pub(crate) struct Log(Mutex<Vec<Event>>);

impl Log {
    pub(crate) fn note(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

/// A word of memory that notes stores.
pub(crate) struct TracedCell {
    word: AtomicU64,
    at: u64,
    log: Arc<Log>,
    interruption: Arc<Planned>,
}

impl TracedCell {
    fn note(&self, word: u64) {
        self.log.note(Event::Store { at: self.at, word });
    }
}

impl EntryCell for TracedCell {
    fn load(&self, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        self.word.load(order)
    }
    fn store(&self, word: u64, order: Ordering) {
        self.interruption.pass(Point::Store);
        self.note(word);
        // ORDERING: the caller's.
        self.word.store(word, order);
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        // ORDERING: the caller's.
        let result = self.word.compare_exchange(current, new, success, failure);
        if result.is_ok() {
            self.note(new);
        }
        result
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        let before = self.word.fetch_or(bits, order);
        self.note(before | bits);
        before
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        let before = self.word.fetch_and(bits, order);
        self.note(before & bits);
        before
    }
    fn swap(&self, word: u64, order: Ordering) -> u64 {
        self.note(word);
        // ORDERING: the caller's.
        self.word.swap(word, order)
    }
}

/// Frames that were handed out, by address. They live until the test process ends.
#[derive(Default)]
pub(crate) struct Memory {
    frames: Mutex<BTreeMap<u64, &'static [TracedCell]>>,
    log: Arc<Log>,
    interruption: Arc<Planned>,
}

impl Memory {
    fn add(&self, frame: u64) {
        let cells: Vec<_> = (0..512)
            .map(|word| TracedCell {
                // Careless on purpose: hardware must never see what was there before.
                word: AtomicU64::new(u64::MAX),
                at: frame + word * 8,
                log: Arc::clone(&self.log),
                interruption: Arc::clone(&self.interruption),
            })
            .collect();
        let cells: &'static [TracedCell] = Vec::leak(cells);
        self.frames.lock().unwrap().insert(frame, cells);
    }

    fn cells(&self, frame: u64) -> &'static [TracedCell] {
        let frames = self.frames.lock().unwrap();
        frames
            .get(&frame)
            .unwrap_or_else(|| panic!("{frame:#x} is no frame of ours"))
    }

    /// The word at an address, as hardware reads it.
    pub(crate) fn word(&self, at: u64) -> u64 {
        let cell = &self.cells(at & !0xfff)[(at & 0xfff) as usize / 8];
        // ORDERING: SeqCst, plays hardware behind a doorbell.
        cell.word.load(Ordering::SeqCst)
    }

    /// Hardware writes the lower half of the word at an address.
    pub(crate) fn hardware_write32(&self, at: u64, value: u32) {
        let cell = &self.cells(at & !0xfff)[(at & 0xfff) as usize / 8];
        assert_eq!(at % 8, 0);
        // ORDERING: SeqCst, plays hardware.
        cell.word.store(value.into(), Ordering::SeqCst);
    }
}

/// Where in the driver another CPU can be made to come in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// A look at the clock.
    Clock,
    /// Just before a look at a status word.
    StatusWord,
    /// Just before a store to memory.
    Store,
}

/// What another CPU does, after so many times at that point.
type Interruption = (Point, u32, Box<dyn FnOnce() + Send>);

/// What is to come in between, if anything.
#[derive(Default)]
struct Planned(Mutex<Option<Interruption>>);

impl Planned {
    fn pass(&self, point: Point) {
        let mut planned = self.0.lock().unwrap();
        match planned.as_mut() {
            Some((at, 0, _)) if *at == point => {}
            Some((at, after, _)) if *at == point => {
                *after -= 1;
                return;
            }
            _ => return,
        }
        let job = planned.take();
        drop(planned);
        if let Some((_, _, job)) = job {
            job();
        }
    }
}

/// The machine. Clones are the same machine.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) log: Arc<Log>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) units: Vec<Arc<FakeUnit>>,
    config: Arc<Mutex<HashMap<(PciAddress, u16), u32>>>,
    fixed_masters: Arc<Mutex<Vec<PciAddress>>>,
    frames_left: Arc<Mutex<u64>>,
    next_frame: Arc<Mutex<u64>>,
    clock: Arc<AtomicU64>,
    tick: Arc<AtomicU64>,
    /// What is the hypervisor's of the memory that firmware names.
    ram: Arc<Mutex<Vec<PhysRange>>>,
}

/// Where the registers of a unit are.
pub(crate) const fn base(unit: usize) -> u64 {
    0xfed9_0000 + unit as u64 * 0x1_0000
}

impl Machine {
    /// A machine with a unit for each pair of CAP and ECAP.
    pub(crate) fn new(units: &[(u64, u64)]) -> Self {
        let memory = Arc::<Memory>::default();
        let log = Arc::clone(&memory.log);
        let units = units
            .iter()
            .enumerate()
            .map(|(index, &(cap, ecap))| {
                Arc::new(FakeUnit::new(
                    index,
                    cap,
                    ecap,
                    Arc::clone(&memory),
                    Arc::clone(&log),
                ))
            })
            .collect();
        Self {
            log,
            memory,
            units,
            config: Arc::default(),
            fixed_masters: Arc::default(),
            frames_left: Arc::new(Mutex::new(1000)),
            next_frame: Arc::new(Mutex::new(0x100_0000)),
            clock: Arc::new(AtomicU64::new(0)),
            tick: Arc::new(AtomicU64::new(10_000_000)),
            ram: Arc::default(),
        }
    }

    /// From now on this is the hypervisor's.
    pub(crate) fn add_ram(&self, range: PhysRange) {
        self.ram.lock().unwrap().push(range);
    }

    /// Another CPU does `job` when the driver comes to `point` after passing it `after` times.
    pub(crate) fn interrupt(&self, point: Point, after: u32, job: impl FnOnce() + Send + 'static) {
        *self.memory.interruption.0.lock().unwrap() = Some((point, after, Box::new(job)));
    }

    fn pass(&self, point: Point) {
        self.memory.interruption.pass(point);
    }

    /// Takes what was noted since the last call.
    pub(crate) fn take_log(&self) -> Vec<Event> {
        core::mem::take(&mut *self.log.0.lock().unwrap())
    }

    /// Puts an endpoint with bus mastering on.
    pub(crate) fn add_endpoint(&self, at: PciAddress) {
        let mut config = self.config.lock().unwrap();
        config.insert((at, 0x00), 0x1234_8086);
        config.insert((at, 0x04), 0x0010_0007);
        config.insert((at, 0x08), 0x0108_0200);
        config.insert((at, 0x0c), 0);
    }

    /// Puts a bridge with bus mastering on.
    pub(crate) fn add_bridge(&self, at: PciAddress, secondary: u8, subordinate: u8) {
        self.add_endpoint(at);
        let mut config = self.config.lock().unwrap();
        config.insert((at, 0x08), 0x0604_0000);
        // A multi-function device, to see that the bit is not part of the type.
        config.insert((at, 0x0c), 0x0081_0000);
        let buses = u32::from_le_bytes([at.bus(), secondary, subordinate, 0]);
        config.insert((at, 0x18), buses);
    }

    /// Changes base class and subclass.
    pub(crate) fn set_class(&self, at: PciAddress, class: u32) {
        self.config.lock().unwrap().insert((at, 0x08), class << 16);
    }

    /// Makes a function a host bridge (or what the class says) whose bus master bit is fixed.
    pub(crate) fn fix_bus_master(&self, at: PciAddress, class: u32) {
        self.config.lock().unwrap().insert((at, 0x08), class << 16);
        self.fixed_masters.lock().unwrap().push(at);
    }

    /// Whether a function may master the bus.
    pub(crate) fn masters(&self, at: PciAddress) -> bool {
        self.config_read32(at, 0x04) & 4 != 0
    }

    /// From now on there are this many frames.
    pub(crate) fn limit_frames(&self, frames: u64) {
        *self.frames_left.lock().unwrap() = frames;
    }

    /// How long a look at the clock takes; ten milliseconds unless said here.
    pub(crate) fn tick(&self, nanos: u64) {
        // ORDERING: Relaxed, as in `now`.
        self.tick.store(nanos, Ordering::Relaxed);
    }

    pub(crate) fn frames_left(&self) -> u64 {
        *self.frames_left.lock().unwrap()
    }

    /// From now on frames start here.
    pub(crate) fn frames_from(&self, address: u64) {
        *self.next_frame.lock().unwrap() = address;
    }
}

impl FrameSource for Machine {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        assert_eq!((pages.get(), align), (1, PageSize::Size4K));
        let mut left = self.frames_left.lock().unwrap();
        *left = left.checked_sub(1).ok_or(OutOfFrames { pages, align })?;
        let mut next = self.next_frame.lock().unwrap();
        let frame = *next;
        *next += 0x1000;
        self.memory.add(frame);
        let range = PhysRange::new(PhysAddr::new(frame), pages).unwrap();
        // SAFETY: just made, and the address is never given out again.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let frame = run.range().start().as_u64();
        self.memory.frames.lock().unwrap().remove(&frame).unwrap();
        *self.frames_left.lock().unwrap() += 1;
    }
}

// SAFETY: `cells` gives the words kept for that very frame, and copies go through them.
unsafe impl PhysMemory for Machine {
    type Cell = TracedCell;

    unsafe fn cells(&self, frame: PhysAddr) -> &[TracedCell] {
        self.memory.cells(frame.as_u64())
    }
    unsafe fn read(&self, _: PhysAddr, _: &mut [u8]) {
        panic!("the backend copies nothing out");
    }
    unsafe fn write(&self, _: PhysAddr, _: &[u8]) {
        panic!("the backend copies nothing in");
    }
    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        self.pass(Point::StatusWord);
        self.memory.word(from.as_u64()) as u32
    }
}

/// The mapped registers of a unit: no more than was mapped answers.
pub(crate) struct Block {
    unit: Arc<FakeUnit>,
    bytes: u64,
}

impl Block {
    fn holds(&self, offset: u32, bytes: u64) -> bool {
        assert!(u64::from(offset).is_multiple_of(bytes), "unaligned access");
        u64::from(offset) + bytes <= self.bytes
    }
}

impl Mmio for Block {
    fn read32(&self, offset: u32) -> u32 {
        if !self.holds(offset, 4) {
            return u32::MAX;
        }
        self.unit.read32(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        if self.holds(offset, 4) {
            self.unit.write32(offset, value);
        }
    }
    fn read64(&self, offset: u32) -> u64 {
        if !self.holds(offset, 8) {
            return u64::MAX;
        }
        self.unit.read64(offset)
    }
    fn write64(&self, offset: u32, value: u64) {
        if self.holds(offset, 8) {
            self.unit.write64(offset, value);
        }
    }
}

// SAFETY: a test says which memory is the hypervisor's, and puts nothing into any other.
unsafe impl MemoryMap for Machine {
    fn firmware_may_use(&self, range: PhysRange) -> bool {
        !self
            .ram
            .lock()
            .unwrap()
            .iter()
            .any(|ram| ram.overlaps(&range))
    }
}

impl Registers for Machine {
    type Block = Block;

    fn map_registers(&self, range: PhysRange) -> Result<Block, RegistersError> {
        let unit = (0..self.units.len()).find(|&unit| base(unit) == range.start().as_u64());
        match unit.and_then(|unit| self.units.get(unit)) {
            Some(unit) => Ok(Block {
                unit: Arc::clone(unit),
                bytes: range.pages().bytes(),
            }),
            None => Err(RegistersError {
                range,
                reason: "no unit is there",
            }),
        }
    }
}

impl PciConfig for Machine {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        assert!(offset < 4096 && offset.is_multiple_of(4), "{offset:#x}");
        let config = self.config.lock().unwrap();
        config.get(&(function, offset)).copied().unwrap_or(u32::MAX)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        assert_eq!(offset, 0x04, "only the command register is written");
        assert_eq!(value >> 16, 0, "ones would clear status bits");
        self.log.note(Event::Config {
            function,
            offset,
            value,
        });
        let fixed = self.fixed_masters.lock().unwrap().contains(&function);
        let mut config = self.config.lock().unwrap();
        let before = config[&(function, offset)];
        let fixed = if fixed { 4 } else { 0 };
        config.insert((function, offset), before & 0xffff_0000 | value | fixed);
    }
}

impl CacheMaintenance for Machine {
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        let at = from.as_u64();
        self.log.note(Event::WriteBack { at, bytes });
    }
    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.write_back(from, bytes);
    }
    fn walker_fence(&self) {
        self.log.note(Event::Fence);
    }
}

impl Clock for Machine {
    fn now(&self) -> Instant {
        self.pass(Point::Clock);
        // ORDERING: Relaxed, set before the threads that read it start.
        let tick = self.tick.load(Ordering::Relaxed);
        // ORDERING: Relaxed, a counter.
        Instant::from_nanos(self.clock.fetch_add(tick, Ordering::Relaxed))
    }
}

// SAFETY: the backend asks for no CPU numbers; tests with threads do not either.
unsafe impl Cpus for Machine {
    fn current_cpu(&self) -> CpuId {
        CpuId::new(0)
    }
    fn cpu_count(&self) -> usize {
        1
    }
}

/// A function of segment 0.
pub(crate) fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(Segment(0), bus, device, function).unwrap()
}
