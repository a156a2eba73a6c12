//! Entry of the image on AArch64: assembly, and what Rust needs of its symbols.

use core::arch::global_asm;

use hv_core::PhysAddr;
use hv_image::arch::machine::{Symbols, boot};
use hv_image::arch::smp::{self, Start};
use hv_image::arch::traps::{self, TrapFrame};
use hv_image::console;

use super::{address, image, run};

global_asm!(include_str!("boot/entry.s"));
global_asm!(include_str!("boot/traps.s"));

// Only the addresses of these are used.
unsafe extern "C" {
    static secondary_entry: u8;
}

/// Called by `boot/entry.s` under the identity map, with what the boot loader left in x0.
#[unsafe(no_mangle)]
extern "C" fn hv_main(tree: u64) -> ! {
    console::init();
    console::init_logger();
    let symbols = Symbols {
        secondary_entry: PhysAddr::new(address(&raw const secondary_entry)),
    };
    // SAFETY: this is the first thing that the boot CPU does, entry.s passes on the boot loader's
    // word, and image and symbols are those of this binary.
    run(unsafe { boot(tree, &image(), &symbols) })
}

/// Called by `boot/entry.s` on a CPU that was started with this argument.
#[unsafe(no_mangle)]
extern "C" fn hv_secondary(start: &'static Start) -> ! {
    smp::started(start)
}

/// Called by `boot/traps.s` on a trap stack.
#[unsafe(no_mangle)]
extern "C" fn hv_trap(frame: &mut TrapFrame) {
    traps::handle(frame);
}
