//! The platform traits that the table engine asks for, over the arena.

#![expect(
    unsafe_code,
    reason = "implements the platform traits whose contract memory safety rests on"
)]

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use hv_core::platform::{CacheMaintenance, Cpus, FrameSource, OutOfFrames, PhysMemory};
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};

use crate::arena;

/// Bytes of a cache line on every x86-64 processor.
const LINE: u64 = 64;

/// The arena as a platform. `SNOOPS` says whether the walkers snoop the CPU's caches: if they do, write-back and
/// `walker_fence` are nothing on x86, where release stores are seen in order; if not, they are the real instructions.
#[derive(Debug)]
pub struct Memory<const SNOOPS: bool>(());

/// The platform whose walkers snoop.
pub static SNOOPED: Memory<true> = Memory(());
/// The platform whose walkers read memory.
pub static UNSNOOPED: Memory<false> = Memory(());

/// Whether this processor can write a cache line back and keep it.
pub fn has_clwb() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        const LEAF: u32 = 7;
        const CLWB: u32 = 1 << 24;
        std::arch::x86_64::__cpuid(0).eax >= LEAF
            && std::arch::x86_64::__cpuid_count(LEAF, 0).ebx & CLWB != 0
    })
}

/// Writes the line at physical address `at` back.
///
/// # Safety
/// `at` lies in the arena, and the processor has `clwb`.
#[inline]
pub unsafe fn write_line_back(at: u64) {
    let line = at as usize;
    // SAFETY: by the caller's promise the instruction exists and the address is mapped; it changes no content.
    unsafe {
        std::arch::asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
    }
}

/// Orders earlier stores and write-backs before later stores.
#[inline]
pub fn store_fence() {
    // SAFETY: every x86-64 processor has `sfence`, which changes nothing but order.
    unsafe { std::arch::asm!("sfence", options(nostack, preserves_flags)) };
}

impl<const SNOOPS: bool> FrameSource for Memory<SNOOPS> {
    #[inline]
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        let refused = OutOfFrames { pages, align };
        if pages != PageCount::ONE || align != PageSize::Size4K {
            return Err(refused);
        }
        let at = arena::take_zeroed().ok_or(refused)?;
        let range = PhysRange::new(PhysAddr::new(at), pages).map_err(|_| refused)?;
        // SAFETY: the arena gives each free frame once, and its memory is used as tables only.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    #[inline]
    fn alloc_table(&self) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        let refused = OutOfFrames {
            pages: PageCount::ONE,
            align: PageSize::Size4K,
        };
        let at = arena::take().ok_or(refused)?;
        let range = PhysRange::new(PhysAddr::new(at), PageCount::ONE).map_err(|_| refused)?;
        // SAFETY: as above.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let range = run.into_range();
        for page in (0..range.pages().get()).filter_map(|index| range.page(index)) {
            // SAFETY: a run is the one owner of its frames, which came from `alloc_frames`.
            unsafe { arena::put(page.as_u64()) };
        }
    }
}

// SAFETY: `cells` reaches the words of the one frame that is asked for. Nobody gives this platform frames whose bytes
// are read or written.
unsafe impl<const SNOOPS: bool> PhysMemory for Memory<SNOOPS> {
    type Cell = AtomicU64;

    #[inline]
    unsafe fn cells(&self, frame: PhysAddr) -> &[AtomicU64] {
        // SAFETY: the caller owns the frame, which came from `alloc_frames`.
        unsafe { arena::words(frame.as_u64()) }
    }

    unsafe fn read(&self, from: PhysAddr, _out: &mut [u8]) {
        panic!("a table reads {from} as bytes");
    }

    unsafe fn write(&self, to: PhysAddr, _bytes: &[u8]) {
        panic!("a table writes {to} as bytes");
    }

    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        panic!("a table reads {from} as a status word");
    }
}

impl<const SNOOPS: bool> CacheMaintenance for Memory<SNOOPS> {
    #[inline]
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        if SNOOPS {
            return;
        }
        let from = from.as_u64();
        let mut line = from & !(LINE - 1);
        while line < from + bytes {
            // SAFETY: the engine writes its own tables back, which lie in the arena; rows without snooping run only
            // where the processor has the instruction.
            unsafe { write_line_back(line) };
            line += LINE;
        }
        store_fence();
    }

    fn write_back_and_drop(&self, from: PhysAddr, _bytes: u64) {
        panic!("a table drops lines of {from} from the cache");
    }

    #[inline]
    fn walker_fence(&self) {
        if SNOOPS {
            // What is left of a fence where the processor keeps stores in order: the compiler does, too.
            // ORDERING: Release, as a fence before a publishing store; it emits no instruction on x86.
            std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        } else {
            store_fence();
        }
    }
}

// SAFETY: a thread has one number for as long as it runs, and no other thread has it at the same time.
unsafe impl<const SNOOPS: bool> Cpus for Memory<SNOOPS> {
    #[inline]
    fn current_cpu(&self) -> CpuId {
        CpuId::new(arena::thread() as u32)
    }

    fn cpu_count(&self) -> usize {
        arena::THREADS
    }
}
