//! Numbers for the threads that call in, as CPUs have them.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use hv_core::CpuId;

/// How many threads can call in at the same time.
pub const CPUS: usize = 64;

/// The number of a thread; given back when the thread ends.
struct CpuNumber(usize);

static TAKEN: Mutex<[bool; CPUS]> = Mutex::new([false; CPUS]);

impl Drop for CpuNumber {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner)[self.0] = false;
    }
}

thread_local! {
    static CPU: RefCell<Option<CpuNumber>> = const { RefCell::new(None) };
}

/// The number of this thread: the lowest that no live thread has, from its first call to its end.
///
/// # Panics
/// When more than [`CPUS`] threads call in at once.
pub fn current() -> CpuId {
    CPU.with_borrow_mut(|mine| {
        let number = mine.get_or_insert_with(|| {
            let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            let free = taken.iter().position(|taken| !taken);
            let free = free.expect("no more than 64 threads at once");
            taken[free] = true;
            CpuNumber(free)
        });
        CpuId::new(number.0 as u32)
    })
}
