//! Exceptions and interrupts: one table for all CPUs, every vector on a trap stack.
//!
//! Nothing here expects an exception, so any of them ends the run with a report, except the
//! breakpoint of [`self_check`]. Of the interrupts, only the wake-up of idle CPUs, that of IOMMUs which tell of faults, and
//! the APIC's spurious vector are used.
#![expect(unsafe_code, reason = "fills and loads the interrupt table")]

use core::fmt;

use hv_core::sync::{AtomicU64, Ordering};
use spin::Once;
use thiserror::Error;
use x86_64::instructions::{interrupts, nop, tables::lidt};
use x86_64::registers::control::Cr2;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::Entry;
use x86_64::{PrivilegeLevel, VirtAddr};

use super::descriptors::{STACK_COMMON, STACK_DOUBLE_FAULT, STACK_NMI};
use super::exit::exit;
use super::{cpu, lapic, pic};
use crate::console::print_last_words;
use crate::outcome::Outcome;
use crate::report;

/// Vectors of the architecture.
const VECTORS: usize = 256;
/// Bytes between the entry stubs of neighbouring vectors, as `boot/traps.s` lays them out.
const STUB_BYTES: u64 = 16;

const NMI: u8 = 2;
const BREAKPOINT: u8 = 3;
const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
const MACHINE_CHECK: u8 = 18;
/// First vector that is no exception.
const FIRST_INTERRUPT: u8 = 32;
/// Interrupt that takes an idle CPU out of its halt; it carries no other meaning.
pub(super) const WAKE: u8 = 0xe0;
/// Interrupt by which IOMMUs tell of faults.
pub(super) const UNIT: u8 = 0xd0;
/// Vector of the local APIC's spurious interrupts; they take no end-of-interrupt.
pub(super) const SPURIOUS: u8 = 0xff;

/// Names of the exceptions, by vector.
const NAMES: [&str; 32] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection fault",
    "page fault",
    "reserved exception 15",
    "x87 floating point",
    "alignment check",
    "machine check",
    "SIMD floating point",
    "virtualization exception",
    "control protection",
    "reserved exception 22",
    "reserved exception 23",
    "reserved exception 24",
    "reserved exception 25",
    "reserved exception 26",
    "reserved exception 27",
    "hypervisor injection",
    "VMM communication",
    "security exception",
    "reserved exception 31",
];

/// What the stubs of `boot/traps.s` and the CPU push, lowest address first.
#[derive(Debug)]
#[repr(C)]
pub struct TrapFrame {
    /// General registers: r15 to r8, rbp, rdi, rsi, rdx, rcx, rbx, rax.
    pub registers: [u64; 15],
    /// The vector.
    pub vector: u64,
    /// The error code, 0 for vectors without one.
    pub error: u64,
    /// Where execution was.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// The interrupt table.
struct Table([Entry<()>; VECTORS]);

static TABLE: Once<Table> = Once::new();
/// Breakpoints taken by [`self_check`].
static BREAKPOINTS: AtomicU64 = AtomicU64::new(0);
/// Interrupts of IOMMUs that were taken so far.
static OF_UNITS: AtomicU64 = AtomicU64::new(0);
/// Whether a breakpoint is expected now: 1 during [`self_check`], otherwise 0.
static BREAKPOINT_EXPECTED: AtomicU64 = AtomicU64::new(0);

/// Breakpoint traps do not work as they should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("trap self-check: {taken} breakpoints taken and resumed, expected {expected}")]
pub struct SelfCheckError {
    /// Breakpoints executed.
    pub expected: u64,
    /// Breakpoints counted.
    pub taken: u64,
}

/// Builds the table over the stubs of `boot/traps.s` and masks the legacy interrupt controllers.
///
/// # Safety
/// `stubs` is the first of 256 entry stubs, 16 bytes apart, that call [`handle`]; the code segment
/// now in use has the same selector as in every CPU's own table.
pub unsafe fn init(stubs: VirtAddr) {
    pic::mask_all();
    TABLE.call_once(|| {
        let mut table = Table([const { Entry::missing() }; VECTORS]);
        for (vector, entry) in (0u8..=u8::MAX).zip(&mut table.0) {
            let stack = match vector {
                DOUBLE_FAULT => STACK_DOUBLE_FAULT,
                NMI | MACHINE_CHECK => STACK_NMI,
                _ => STACK_COMMON,
            };
            let stub = stubs + STUB_BYTES * u64::from(vector);
            // SAFETY: the caller promises an entry stub for every vector.
            let options = unsafe { entry.set_handler_addr(stub) };
            options
                .disable_interrupts(true)
                .set_privilege_level(PrivilegeLevel::Ring0);
            // SAFETY: every CPU's TSS has these three stacks, one user each: a handler is only
            // interrupted by what has another stack, and a trap inside a handler ends
            // the run.
            unsafe { options.set_stack_index(stack) };
        }
        table
    });
}

/// Loads the table on the CPU that calls. Does nothing before [`init`].
pub(super) fn load() {
    if let Some(table) = TABLE.get() {
        let pointer = DescriptorTablePointer {
            limit: (size_of::<Table>() - 1) as u16,
            base: VirtAddr::from_ptr(table),
        };
        // SAFETY: the pointer covers exactly the table, which is complete and never changes or goes
        // away.
        unsafe { lidt(&pointer) };
    }
}

/// What an entry stub calls, on a trap stack with interrupts off. Returns to go on where the trap
/// came from.
pub fn handle(frame: &TrapFrame) {
    let vector = u8::try_from(frame.vector).unwrap_or(u8::MAX);
    match vector {
        // ORDERING: Relaxed, the flag is set and read on one CPU, in program order.
        BREAKPOINT if BREAKPOINT_EXPECTED.load(Ordering::Relaxed) != 0 => {
            // ORDERING: Relaxed, counted and read on one CPU, in program order.
            BREAKPOINTS.fetch_add(1, Ordering::Relaxed);
        }
        WAKE => lapic::end_of_interrupt(),
        UNIT => {
            // ORDERING: Relaxed, a count that publishes nothing: what an interrupt tells of is looked for by itself.
            OF_UNITS.fetch_add(1, Ordering::Relaxed);
            lapic::end_of_interrupt();
        }
        SPURIOUS => {}
        _ => die(vector, frame),
    }
}

/// How many interrupts of IOMMUs came so far, those included that are pending at the CPU that calls. Interrupts are off when
/// this is back, as they are before.
pub(super) fn of_units() -> u64 {
    interrupts::enable();
    // What is pending is taken behind the instruction that follows the one that let it through.
    nop();
    interrupts::disable();
    // ORDERING: Relaxed, as in `handle`.
    OF_UNITS.load(Ordering::Relaxed)
}

/// A trap as the reason why the run ends.
struct Report<'a> {
    vector: u8,
    frame: &'a TrapFrame,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.get(usize::from(self.vector)).copied();
        let name = name.unwrap_or("unexpected interrupt");
        write!(
            f,
            "{name} (vector {}, error code {:#x}) at rip {:#x}, rsp {:#x}",
            self.vector, self.frame.error, self.frame.rip, self.frame.rsp
        )?;
        if self.vector == PAGE_FAULT {
            write!(f, ", cr2 {:#x}", Cr2::read_raw())?;
        }
        write!(f, " on {}", cpu::current())
    }
}

fn die(vector: u8, frame: &TrapFrame) -> ! {
    let report = Report { vector, frame };
    print_last_words(format_args!("[trap] {report}\n"));
    if vector < FIRST_INTERRUPT {
        let [
            r15,
            r14,
            r13,
            r12,
            r11,
            r10,
            r9,
            r8,
            rbp,
            rdi,
            rsi,
            rdx,
            rcx,
            rbx,
            rax,
        ] = frame.registers;
        print_last_words(format_args!(
            "  rax {rax:016x} rbx {rbx:016x} rcx {rcx:016x} rdx {rdx:016x}\n  \
               rsi {rsi:016x} rdi {rdi:016x} rbp {rbp:016x} r8  {r8:016x}\n  \
               r9  {r9:016x} r10 {r10:016x} r11 {r11:016x} r12 {r12:016x}\n  \
               r13 {r13:016x} r14 {r14:016x} r15 {r15:016x} rflags {:x}\n",
            frame.rflags
        ));
    }
    report::emit_panic(&report);
    exit(Outcome::Refused)
}

/// Takes a breakpoint on the CPU that calls and sees that execution goes on behind it.
///
/// # Errors
/// [`SelfCheckError`] when the handler did not run exactly once. (Where it cannot run at all, the
/// machine resets.)
pub fn self_check() -> Result<(), SelfCheckError> {
    // ORDERING: Relaxed for all accesses here: one CPU, and int3 is a barrier to the compiler.
    let before = BREAKPOINTS.load(Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    BREAKPOINT_EXPECTED.store(1, Ordering::Relaxed);
    interrupts::int3();
    // ORDERING: Relaxed, as above.
    BREAKPOINT_EXPECTED.store(0, Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    let taken = BREAKPOINTS.load(Ordering::Relaxed) - before;
    match taken {
        1 => Ok(()),
        _ => Err(SelfCheckError { expected: 1, taken }),
    }
}
