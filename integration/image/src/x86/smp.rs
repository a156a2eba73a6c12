//! The other CPUs: starting them, halting and waking them.
#![expect(unsafe_code, reason = "starts CPUs on raw stacks")]

use alloc::boxed::Box;
use core::time::Duration;

use arrayvec::ArrayVec;
use hv_core::sync::{AtomicBool, Ordering};
use hv_core::{CpuId, PageCount, PageSize, PhysAddr};
use thiserror::Error;
use x86_64::instructions::interrupts;
use x86_64::registers::control::Cr3;

use super::descriptors::{CpuTables, TRAP_STACK_BYTES, TRAP_STACKS, TrapStackTop};
use super::guard::{self, GuardError};
use super::lapic::{self, Message, SendError};
use super::{clock, traps};
use crate::acpi::{LapicId, Madt};
use crate::cpus::{self, Cpus};
use crate::memory::frames::FrameAllocator;
use crate::memory::physical;

/// How the hardware names a CPU.
pub type HardwareId = LapicId;

/// Where the start-up code is copied to: a page below 1 MiB that real mode can reach.
const TRAMPOLINE: PhysAddr = PhysAddr::new(0x8000);
/// The same place as the start-up message names it.
const TRAMPOLINE_PAGE: u8 = 0x8;
/// Bytes of a started CPU's stack.
const STACK_BYTES: u64 = 128 << 10;
/// Bytes of each page kept unmapped below a stack.
const GUARD_BYTES: u64 = PageSize::Size4K.bytes();

/// Between reset and start-up message (Intel SDM volume 3, 10.4.4).
const AFTER_INIT: Duration = Duration::from_millis(10);
/// Before the start-up message is repeated.
const BEFORE_RETRY: Duration = Duration::from_millis(5);
/// How long a CPU may take to report.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The start-up code of `boot/trampoline.s`.
#[derive(Clone, Copy, Debug)]
pub struct Trampoline {
    /// The code, mailbox included.
    pub code: &'static [u8],
    /// Offset of the mailbox in it.
    pub mailbox: usize,
}

/// What the start-up code takes from the end of its copy. The layout is that of `ap_mailbox`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Mailbox {
    /// Page-table root, below 4 GiB.
    root: u64,
    /// Top of the stack.
    stack: u64,
    /// [`started`].
    entry: u64,
    /// Its argument.
    argument: u64,
}

/// What a started CPU finds behind its argument. Lives for ever.
struct Start {
    tables: &'static CpuTables,
    online: AtomicBool,
}

/// A CPU could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StartError {
    /// The MADT does not know the CPU that runs this.
    #[error("the MADT lists no processor with this CPU's APIC id {}", .found.0)]
    BootCpuMissing {
        /// The id of the CPU that runs.
        found: LapicId,
    },
    /// The start-up code does not fit, or its mailbox does not.
    #[error("start-up code of {bytes} bytes does not fit its page")]
    Trampoline {
        /// Bytes of the code.
        bytes: usize,
    },
    /// No memory for a stack.
    #[error("no frames for the stacks of {cpu}")]
    NoStack {
        /// The CPU.
        cpu: CpuId,
    },
    /// A stack could not be fenced.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A message to the CPU was not delivered.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The CPU did not report in time.
    #[error(
        "{cpu} (APIC id {}) did not come up within {START_LIMIT:?}: try fewer CPUs (QEMU's -smp, `cargo xtask run-qemu --smp 1`) \
         or a host that does less else, and the trace of `--qemu-arg=-d --qemu-arg=int,cpu_reset`",
        .id.0
    )]
    Silent {
        /// The CPU.
        cpu: CpuId,
        /// Its APIC id.
        id: LapicId,
    },
}

/// Starts every enabled processor of the MADT, one after the other.
///
/// # Errors
/// [`StartError`] when one of them cannot be started. Those before it stay idle.
///
/// # Safety
/// Called once, on the CPU that booted, with its descriptor tables loaded and the clock
/// running; the page at 0x8000 is free; `trampoline` is the code of `boot/trampoline.s`.
pub unsafe fn start(
    madt: &Madt,
    trampoline: Trampoline,
    frames: &FrameAllocator,
) -> Result<Cpus, StartError> {
    lapic::enable();
    let boot_id = lapic::id();
    let mut ids = ArrayVec::new();
    ids.push(boot_id);
    if !madt
        .processors
        .iter()
        .any(|processor| processor.lapic_id == boot_id)
    {
        return Err(StartError::BootCpuMissing { found: boot_id });
    }
    // SAFETY: the caller's promise about page and code.
    unsafe { install(trampoline) }?;
    for processor in &madt.processors {
        let id = processor.lapic_id;
        if id == boot_id {
            continue;
        }
        let cpu = CpuId::new(ids.len() as u32);
        // SAFETY: the code was installed, and CPUs are started one at a time.
        unsafe { start_one(cpu, id, trampoline, frames) }?;
        // The MADT holds at most MAX_CPUS processors, and the boot CPU is one of them.
        ids.push(id);
    }
    Ok(Cpus::new(ids))
}

/// Takes a CPU that sleeps in [`sleep_unless`] out of it.
///
/// # Errors
/// [`SendError`] when the interrupt is not delivered.
pub fn wake(id: LapicId) -> Result<(), SendError> {
    lapic::send(id, Message::Interrupt(traps::WAKE))
}

/// Halts the CPU until it is woken, unless `ready` holds. May return for no reason; interrupts are off when it does.
pub fn sleep_unless(ready: impl FnOnce() -> bool) {
    interrupts::disable();
    if !ready() {
        // A wake-up that arrives after the look stays pending until the halt, and ends it.
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
}

/// Copies the start-up code to its page.
///
/// # Safety
/// The page at [`TRAMPOLINE`] is free.
unsafe fn install(trampoline: Trampoline) -> Result<(), StartError> {
    let bytes = trampoline.code.len();
    let mailbox_end = trampoline.mailbox.checked_add(size_of::<Mailbox>());
    let fits = bytes as u64 <= PageSize::Size4K.bytes()
        && mailbox_end.is_some_and(|end| end <= bytes)
        && trampoline.mailbox.is_multiple_of(align_of::<Mailbox>());
    if !fits {
        return Err(StartError::Trampoline { bytes });
    }
    let page = physical::pointer(TRAMPOLINE);
    // SAFETY: the caller promises a free page, the code fits into it, and the image lies elsewhere
    // (at 2 MiB).
    unsafe { core::ptr::copy_nonoverlapping(trampoline.code.as_ptr(), page, bytes) };
    Ok(())
}

/// Starts one CPU and waits until it reports.
///
/// # Safety
/// The start-up code is installed, and no other CPU is being started.
unsafe fn start_one(
    cpu: CpuId,
    id: LapicId,
    trampoline: Trampoline,
    frames: &FrameAllocator,
) -> Result<(), StartError> {
    let stacks = Stacks::take(cpu, frames)?;
    for page in stacks.guards {
        // SAFETY: the page was just taken for this purpose, and the CPUs that run already are idle:
        // they never touch it, so a stale translation of theirs does no harm.
        unsafe { guard::unmap(page, frames) }?;
    }
    let start: &'static Start = Box::leak(Box::new(Start {
        tables: CpuTables::leak(cpu, stacks.trap_top),
        online: AtomicBool::new(false),
    }));
    let (root, _) = Cr3::read();
    let entry: extern "C" fn(&'static Start) -> ! = started;
    let mailbox = Mailbox {
        root: root.start_address().as_u64(),
        stack: stacks.top.as_u64(),
        entry: entry as usize as u64,
        argument: (&raw const *start).expose_provenance() as u64,
    };
    let place = PhysAddr::new(TRAMPOLINE.as_u64() + trampoline.mailbox as u64);
    // SAFETY: `install` checked that the mailbox lies in the copied code and is aligned; nobody
    // else uses the page.
    unsafe {
        physical::pointer(place)
            .cast::<Mailbox>()
            .write_volatile(mailbox)
    };

    lapic::send(id, Message::Init)?;
    clock::delay(AFTER_INIT);
    lapic::send(id, Message::Startup(TRAMPOLINE_PAGE))?;
    let begin = clock::now();
    let mut repeated = false;
    // ORDERING: Acquire, the CPU is past the mailbox and its tables when it reports, so both may be
    // reused or read.
    while !start.online.load(Ordering::Acquire) {
        let waited = clock::now().since(begin);
        if waited > START_LIMIT {
            return Err(StartError::Silent { cpu, id });
        }
        if waited > BEFORE_RETRY && !repeated {
            // A CPU that started already ignores it.
            lapic::send(id, Message::Startup(TRAMPOLINE_PAGE))?;
            repeated = true;
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// The stacks of one CPU: trap stacks and main stack, each above a guard page.
struct Stacks {
    guards: [PhysAddr; 2],
    trap_top: TrapStackTop,
    top: PhysAddr,
}

impl Stacks {
    fn take(cpu: CpuId, frames: &FrameAllocator) -> Result<Self, StartError> {
        let trap_bytes = TRAP_STACKS * TRAP_STACK_BYTES;
        let bytes = GUARD_BYTES + trap_bytes + GUARD_BYTES + STACK_BYTES;
        let no_stack = StartError::NoStack { cpu };
        let pages = PageCount::for_bytes(bytes).ok_or(no_stack)?;
        let run = frames.take(pages, PageSize::Size4K).map_err(|_| no_stack)?;
        let at = |offset| run.start().checked_add(offset).ok_or(no_stack);
        Ok(Self {
            guards: [run.start(), at(GUARD_BYTES + trap_bytes)?],
            trap_top: TrapStackTop(at(GUARD_BYTES + trap_bytes)?),
            top: at(bytes)?,
        })
    }
}

/// Where the start-up code goes: loads the CPU's tables, reports, and idles for ever.
extern "C" fn started(start: &'static Start) -> ! {
    // SAFETY: the tables were made for this CPU, which comes here once; their stacks were taken for
    // it.
    unsafe { start.tables.load() };
    lapic::enable();
    // ORDERING: Release, tells the starting CPU that mailbox and tables were read.
    start.online.store(true, Ordering::Release);
    cpus::idle()
}

/// Takes the guard pages below the boot CPU's stacks out of the map.
///
/// # Errors
/// [`GuardError`] when the map cannot be refined.
///
/// # Safety
/// Called on the only CPU that runs, with `guards` as the linker placed them; nothing uses them.
pub unsafe fn guard_boot_stacks(
    guards: &[PhysAddr],
    frames: &FrameAllocator,
) -> Result<(), GuardError> {
    for page in guards {
        // SAFETY: the caller's promise.
        unsafe { guard::unmap(*page, frames) }?;
    }
    Ok(())
}
