//! The allocator of addresses, without a domain around it: against a model, from many threads, and out of memory.
//!
//! With `--cfg hv_fault` the variable `HV_FAULT` switches one deliberate fault on; the suite must fail then.

#![cfg(not(hv_loom))]

mod model;
mod starved;
mod threads;

use hv_core::platform::Cpus;
use hv_core::{CpuId, Iova, IovaRange, PageCount, PageSize};

/// CPUs of the machine.
const CPUS: usize = 3;
/// No limit.
const TOP: Iova = Iova::new(u64::MAX);

/// The CPU with this number.
#[derive(Clone, Copy, Debug)]
struct Cpu(u32);

#[expect(unsafe_code, reason = "a test platform promises which CPU it is")]
// SAFETY: the allocator claims what belongs to a CPU, so that even two threads of one number are harmless to it.
unsafe impl Cpus for Cpu {
    fn current_cpu(&self) -> CpuId {
        CpuId::new(self.0)
    }
    fn cpu_count(&self) -> usize {
        CPUS
    }
}

fn pages(count: u64) -> PageCount {
    PageCount::new(count).expect("a page count")
}

fn range(page: u64, count: u64) -> IovaRange {
    IovaRange::new(Iova::new(page * PageSize::Size4K.bytes()), pages(count)).expect("a range")
}

fn first_page(range: &IovaRange) -> u64 {
    range.start().as_u64() / PageSize::Size4K.bytes()
}

/// Switches on the fault that the environment names, in builds that have it.
fn choose_fault() {
    #[cfg(hv_fault)]
    if let Ok(name) = std::env::var("HV_FAULT") {
        hv_core::fault::Fault::from_name(&name)
            .expect("a fault's name")
            .switch_on();
    }
}
