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

#[cfg(target_arch = "aarch64")]
#[path = "arm/entry.rs"]
mod entry;
#[cfg(target_arch = "x86_64")]
#[path = "x86/entry.rs"]
mod entry;

use core::panic::PanicInfo;

use hv_core::PhysAddr;
use hv_image::arch::exit::exit;
use hv_image::machine::{BootError, Image, Machine};
use hv_image::memory::heap::Heap;
use hv_image::{last_words, report, scenario};

// Only the addresses of these are used.
unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
}

#[global_allocator]
static HEAP: Heap = Heap::empty();

fn address(symbol: *const u8) -> u64 {
    symbol.expose_provenance() as u64
}

fn image() -> Image {
    Image {
        start: PhysAddr::new(address(&raw const __image_start)),
        end: PhysAddr::new(address(&raw const __image_end)),
        heap: &HEAP,
    }
}

/// Runs the scenarios on the machine, and ends the run.
fn run(machine: Result<Machine, BootError>) -> ! {
    let machine = match machine {
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

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    last_words::panicked(info)
}
