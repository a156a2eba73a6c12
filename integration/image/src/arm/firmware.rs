//! Calls of firmware (PSCI): starting CPUs and turning the machine off.

use hv_core::PhysAddr;
use hv_core::sync::{AtomicBool, Ordering};
use smccc::psci::{self, error::Error};
use smccc::{Hvc, Smc};

use crate::device_tree::{Conduit, Mpidr};

/// Whether firmware is called by hypervisor call rather than by secure monitor call.
static BY_HVC: AtomicBool = AtomicBool::new(false);

/// Tells by which instruction firmware is called; a secure monitor call until then.
pub(super) fn init(conduit: Conduit) {
    // ORDERING: Relaxed, told before the other CPUs start, which orders it for them.
    BY_HVC.store(conduit == Conduit::Hvc, Ordering::Relaxed);
}

fn by_hvc() -> bool {
    // ORDERING: Relaxed, as in `init`.
    BY_HVC.load(Ordering::Relaxed)
}

/// Starts a CPU at `entry` with `argument` in x0.
pub(super) fn start_cpu(cpu: Mpidr, entry: PhysAddr, argument: u64) -> Result<(), Error> {
    if by_hvc() {
        psci::cpu_on::<Hvc>(cpu.get(), entry.as_u64(), argument)
    } else {
        psci::cpu_on::<Smc>(cpu.get(), entry.as_u64(), argument)
    }
}

/// Turns the machine off; where firmware refuses, the CPU stays here.
pub(super) fn power_off() -> ! {
    // There is nobody left to tell that it failed.
    let _ = if by_hvc() {
        psci::system_off::<Hvc>()
    } else {
        psci::system_off::<Smc>()
    };
    loop {
        super::smp::halt();
    }
}
