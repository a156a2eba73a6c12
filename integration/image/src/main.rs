//! The bootable image: assembly entry points, linker symbols, the panic handler and the global
//! allocator.
//!
//! All logic lives in the library `hv_image`.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "entry points called by assembly, and symbols of assembly and linker script"
)]

use core::arch::global_asm;
use core::panic::PanicInfo;

use hv_core::PhysAddr;
use hv_image::machine::{Image, Machine};
use hv_image::memory::heap::Heap;
use hv_image::x86::descriptors::TrapStackTop;
use hv_image::x86::exit::exit;
use hv_image::x86::smp::Trampoline;
use hv_image::x86::traps::{self, TrapFrame};
use hv_image::{console, last_words, report, scenario};
use x86_64::VirtAddr;

global_asm!(include_str!("boot/entry.s"), options(att_syntax, raw));
global_asm!(include_str!("boot/traps.s"), options(att_syntax, raw));
global_asm!(include_str!("boot/trampoline.s"), options(att_syntax, raw));

// Only the addresses of these are used.
unsafe extern "C" {
    fn pvh_entry() -> !;
    static __image_start: u8;
    static __image_end: u8;
    static boot_stack_guard: u8;
    static boot_trap_stack_guard: u8;
    static boot_trap_stack_top: u8;
    static trap_stubs: u8;
    static ap_trampoline: u8;
    static ap_mailbox: u8;
    static ap_trampoline_end: u8;
}

pvh::xen_elfnote_phys32_entry!(pvh_entry);

#[global_allocator]
static HEAP: Heap = Heap::empty();

fn address(symbol: *const u8) -> u64 {
    symbol.expose_provenance() as u64
}

fn image() -> Image {
    let start = &raw const ap_trampoline;
    let code_bytes = (address(&raw const ap_trampoline_end) - address(start)) as usize;
    // SAFETY: the two symbols enclose read-only data of the image.
    let code = unsafe { core::slice::from_raw_parts(start, code_bytes) };
    Image {
        start: PhysAddr::new(address(&raw const __image_start)),
        end: PhysAddr::new(address(&raw const __image_end)),
        guards: [
            PhysAddr::new(address(&raw const boot_stack_guard)),
            PhysAddr::new(address(&raw const boot_trap_stack_guard)),
        ],
        trap_stack_top: TrapStackTop(PhysAddr::new(address(&raw const boot_trap_stack_top))),
        trap_stubs: VirtAddr::from_ptr(&raw const trap_stubs),
        trampoline: Trampoline {
            code,
            mailbox: (address(&raw const ap_mailbox) - address(start)) as usize,
        },
        heap: &HEAP,
    }
}

/// Called by `boot/entry.s` in 64-bit mode with the address of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn hv_main(start_info: u32) -> ! {
    console::init();
    console::init_logger();
    // SAFETY: this is the first thing that the boot CPU does, entry.s passes on the boot loader's
    // address, and the image names the symbols of this binary.
    let machine = match unsafe { Machine::boot(start_info, &image()) } {
        Ok(machine) => machine,
        Err(error) => last_words::refuse(&error),
    };
    report::emit(&report::Event::Start {
        version: hv_image::VERSION,
        cpus: machine.cpus.count(),
        memory_mib: machine.memory_bytes >> 20,
    });
    exit(scenario::run(&machine))
}

/// Called by `boot/traps.s` on a trap stack.
#[unsafe(no_mangle)]
extern "C" fn hv_trap(frame: &TrapFrame) {
    traps::handle(frame);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    last_words::panicked(info)
}
