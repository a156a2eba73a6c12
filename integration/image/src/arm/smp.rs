//! The other CPUs: starting them by firmware, letting them sleep and waking them.
#![expect(unsafe_code, reason = "starts CPUs on raw stacks")]

use alloc::boxed::Box;
use core::arch::asm;
use core::time::Duration;

use arm_sysregs::el1::accessors::read_mpidr_el1;
use arrayvec::ArrayVec;
use hv_core::platform::OutOfFrames;
use hv_core::sync::{AtomicBool, Ordering};
use hv_core::{CpuId, PageCount, PageSize, PhysAddr};
use smccc::psci;
use thiserror::Error;

use super::gic::{self, WakeError};
use super::paging::{self, GuardError};
use super::{clock, cpu, firmware, traps};
use crate::cpus::{self, Cpus};
use crate::device_tree::Mpidr;
use crate::memory::frames::FrameAllocator;

/// How the hardware names a CPU.
pub type HardwareId = Mpidr;

/// Bytes of a started CPU's trap stack.
const TRAP_STACK_BYTES: u64 = 16 << 10;
/// Bytes of its other stack.
const STACK_BYTES: u64 = 128 << 10;
/// Bytes of each page kept unmapped below a stack.
const GUARD_BYTES: u64 = PageSize::Size4K.bytes();
/// Bytes of both stacks with their guard pages.
const STACKS_BYTES: u64 = GUARD_BYTES + TRAP_STACK_BYTES + GUARD_BYTES + STACK_BYTES;

/// How long a CPU may take to report.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A CPU could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StartError {
    /// The device tree does not know the CPU that runs this.
    #[error("the device tree lists no CPU with this one's affinity {:#x}", .found.get())]
    BootCpuMissing {
        /// The CPU that runs.
        found: Mpidr,
    },
    /// No memory for the stacks.
    #[error("no memory for the stacks of the other CPUs: {0}")]
    NoStacks(#[from] OutOfFrames),
    /// A stack could not be fenced.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Firmware did not start the CPU.
    #[error("firmware does not start {cpu} (affinity {:#x}): {error}", .id.get())]
    Firmware {
        /// The CPU.
        cpu: CpuId,
        /// Its affinity.
        id: Mpidr,
        /// What firmware says.
        error: psci::Error,
    },
    /// The CPU did not report in time.
    #[error(
        "{cpu} (affinity {:#x}) did not come up within {START_LIMIT:?}, though firmware started it: try fewer CPUs (QEMU's -smp, \
         `cargo xtask run-qemu --smp 1`) or a host that does less else, and the trace of `--qemu-arg=-d --qemu-arg=int`",
        .id.get()
    )]
    Silent {
        /// The CPU.
        cpu: CpuId,
        /// Its affinity.
        id: Mpidr,
    },
}

/// What a started CPU finds behind its argument. Lives for ever.
#[derive(Debug)]
#[repr(C)]
pub struct Start {
    /// Top of the trap stack; read by `boot/entry.s`.
    trap_stack_top: u64,
    /// Top of the other stack; read by `boot/entry.s`.
    stack_top: u64,
    cpu: CpuId,
    id: Mpidr,
    online: AtomicBool,
}

/// The CPU that calls, as hardware names it.
pub(super) fn this_cpu() -> Mpidr {
    Mpidr::new(read_mpidr_el1().bits())
}

/// Starts every CPU of the device tree, one after the other.
///
/// # Errors
/// [`StartError`] when one of them cannot be started. Those before it stay idle.
///
/// # Safety
/// Called once, on the CPU that booted, with clock and interrupt controller running; `entry` is `secondary_entry` of
/// `boot/entry.s`.
pub(super) unsafe fn start(
    all: &[Mpidr],
    entry: PhysAddr,
    frames: &FrameAllocator,
) -> Result<Cpus, StartError> {
    let boot = this_cpu();
    if !all.contains(&boot) {
        return Err(StartError::BootCpuMissing { found: boot });
    }
    let mut ids = ArrayVec::new();
    ids.push(boot);
    let others = all.len() - 1;
    let mut stacks = Stacks::take(others, frames)?;
    for id in all.iter().copied().filter(|id| *id != boot) {
        let cpu = CpuId::new(ids.len() as u32);
        // SAFETY: the stacks were made for this CPU alone, and `entry` is what the caller promises.
        unsafe { start_one(cpu, id, entry, stacks.next_pair()) }?;
        // There are as many as the device tree's list has, which is as long.
        ids.push(id);
    }
    Ok(Cpus::new(ids))
}

/// Starts one CPU and waits until it reports.
///
/// # Safety
/// `entry` is `secondary_entry`, and the two stacks are mapped and used by nothing else.
unsafe fn start_one(
    cpu: CpuId,
    id: Mpidr,
    entry: PhysAddr,
    (trap_stack_top, stack_top): (u64, u64),
) -> Result<(), StartError> {
    let start: &'static Start = Box::leak(Box::new(Start {
        trap_stack_top,
        stack_top,
        cpu,
        id,
        online: AtomicBool::new(false),
    }));
    let argument = (&raw const *start).expose_provenance() as u64;
    // The call of firmware is a barrier for nobody: the CPU reads this with its caches on, after this store.
    super::cache::write_back(PhysAddr::new(argument), size_of::<Start>() as u64);
    firmware::start_cpu(id, entry, argument).map_err(|error| StartError::Firmware {
        cpu,
        id,
        error,
    })?;
    let begin = clock::now();
    // ORDERING: Acquire, what the CPU did until it reported is done.
    while !start.online.load(Ordering::Acquire) {
        if clock::now().since(begin) > START_LIMIT {
            return Err(StartError::Silent { cpu, id });
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// The stacks of all other CPUs: trap stack and main stack of each, each above a guard page.
struct Stacks {
    next: u64,
}

impl Stacks {
    /// Takes memory for this many CPUs: whole 2 MiB blocks, as only those can be mapped page by page.
    fn take(cpus: usize, frames: &FrameAllocator) -> Result<Self, StartError> {
        let block = PageSize::Size2M.bytes();
        let bytes = (cpus as u64 * STACKS_BYTES).next_multiple_of(block);
        let Some(pages) = PageCount::for_bytes(bytes) else {
            return Ok(Self { next: 0 });
        };
        let run = frames.take(pages, PageSize::Size2M)?;
        let start = run.start().as_u64();
        for at in (start..start + bytes).step_by(block as usize) {
            // SAFETY: the block was just taken, whole, and nobody uses it yet.
            unsafe { paging::split(PhysAddr::new(at), frames) }?;
        }
        for cpu in 0..cpus as u64 {
            let guard = start + cpu * STACKS_BYTES;
            for page in [guard, guard + GUARD_BYTES + TRAP_STACK_BYTES] {
                // SAFETY: the page lies in a block that was just split, and was taken to be a guard.
                unsafe { paging::unmap(PhysAddr::new(page)) };
            }
        }
        Ok(Self { next: start })
    }

    /// The tops of one more CPU's trap stack and main stack. As often as there are CPUs.
    fn next_pair(&mut self) -> (u64, u64) {
        let trap_top = self.next + GUARD_BYTES + TRAP_STACK_BYTES;
        self.next += STACKS_BYTES;
        (trap_top, self.next)
    }
}

/// Where `boot/entry.s` leads a started CPU: reports, and idles for ever.
pub fn started(start: &'static Start) -> ! {
    // SAFETY: each CPU has a `Start` with a number of its own, and comes here once.
    unsafe { cpu::install(start.cpu) };
    traps::accept_system_errors();
    clock::start_events();
    if let Err(error) = gic::init_cpu(start.id) {
        crate::last_words::refuse(&error);
    }
    // ORDERING: Release, tells the starting CPU that this one is set up.
    start.online.store(true, Ordering::Release);
    cpus::idle()
}

/// Takes a CPU that sleeps in [`sleep_unless`] out of it.
///
/// # Errors
/// [`WakeError`] when the CPU cannot be named.
pub fn wake(id: Mpidr) -> Result<(), WakeError> {
    // What the CPU is woken for is stored before: a system register does not wait for that by itself.
    super::cache::write_barrier();
    gic::wake(id)
}

/// Halts the CPU until it is woken, unless `ready` holds. May return for no reason; interrupts are off throughout.
pub fn sleep_unless(ready: impl FnOnce() -> bool) {
    if !ready() {
        // A wake-up that arrives after the look stays pending, and ends the halt although it is masked.
        halt();
        gic::take_pending();
    }
}

/// Halts until an interrupt is pending.
pub(super) fn halt() {
    // SAFETY: waiting changes nothing.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}
