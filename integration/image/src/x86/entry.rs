//! Entry of the image on x86_64: assembly, and what Rust needs of its symbols.

use core::arch::global_asm;

use hv_core::PhysAddr;
use hv_image::arch::descriptors::TrapStackTop;
use hv_image::arch::machine::{Symbols, boot};
use hv_image::arch::smp::Trampoline;
use hv_image::arch::traps::{self, TrapFrame};
use hv_image::console;
use x86_64::VirtAddr;

use super::{address, image, run};

global_asm!(include_str!("boot/entry.s"), options(att_syntax, raw));
global_asm!(include_str!("boot/traps.s"), options(att_syntax, raw));
global_asm!(include_str!("boot/trampoline.s"), options(att_syntax, raw));

// Only the addresses of these are used.
unsafe extern "C" {
    fn pvh_entry() -> !;
    static boot_stack_guard: u8;
    static boot_trap_stack_guard: u8;
    static boot_trap_stack_top: u8;
    static trap_stubs: u8;
    static ap_trampoline: u8;
    static ap_mailbox: u8;
    static ap_trampoline_end: u8;
}

pvh::xen_elfnote_phys32_entry!(pvh_entry);

fn symbols() -> Symbols {
    let start = &raw const ap_trampoline;
    let code_bytes = (address(&raw const ap_trampoline_end) - address(start)) as usize;
    // SAFETY: the two symbols enclose read-only data of the image.
    let code = unsafe { core::slice::from_raw_parts(start, code_bytes) };
    Symbols {
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
    }
}

/// Called by `boot/entry.s` in 64-bit mode with the address of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn hv_main(start_info: u32) -> ! {
    console::init();
    console::init_logger();
    // SAFETY: this is the first thing that the boot CPU does, entry.s passes on the boot loader's
    // address, and image and symbols are those of this binary.
    run(unsafe { boot(start_info, &image(), &symbols()) })
}

/// Called by `boot/traps.s` on a trap stack.
#[unsafe(no_mangle)]
extern "C" fn hv_trap(frame: &TrapFrame) {
    traps::handle(frame);
}
