//! The memory that every table of the benchmark lives in: one block of host memory at a fixed address, as a
//! hypervisor's direct map would be, with a list of free frames per thread.

#![expect(
    unsafe_code,
    reason = "maps a block of memory and hands out the words of its frames"
)]

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// Where the block begins in this process. The same in every run, so that the step from a physical to a virtual
/// address is the addition of a constant, as in a kernel with a direct map.
pub const BASE: usize = 0x1000_0000_0000;
/// Bytes of a frame.
pub const FRAME: usize = 4096;
/// Words of a frame.
pub const WORDS: usize = 512;
/// Frames of the block: 256 MiB, and only what is touched is taken from the host.
const FRAMES: u32 = 1 << 16;
/// Threads that can have a list of their own.
pub const THREADS: usize = 64;
/// Frames that a thread with an empty list takes at once.
const REFILL: usize = 64;
/// The end of a list. Frame 0 is never handed out.
const NONE: u32 = 0;

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(0) };
}

/// The number of the thread that runs: its list of free frames, and its CPU number for the engine.
#[inline]
pub fn thread() -> usize {
    THREAD.get()
}

/// Gives the thread that runs a number below [`THREADS`]. No two threads that run at the same time may have one.
pub fn set_thread(number: usize) {
    assert!(
        number < THREADS,
        "thread {number} is beyond the {THREADS} that the arena knows"
    );
    THREAD.set(number);
}

/// One thread's free frames and counts, on cache lines of its own.
#[repr(align(128))]
struct List {
    head: AtomicU32,
    taken: AtomicU64,
    returned: AtomicU64,
}

struct Shared {
    /// For each frame of a list, the next one.
    next: Box<[AtomicU32]>,
    lists: Box<[List]>,
    stock: Mutex<Stock>,
    huge: AtomicBool,
}

/// Frames on no thread's list.
struct Stock {
    free: Vec<u32>,
    /// The first frame that was never handed out.
    fresh: u32,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

/// Maps the block, once.
///
/// # Errors
/// When the host has something else at its place, or no memory.
pub fn init() -> Result<()> {
    static ONCE: Mutex<()> = Mutex::new(());
    let _once = ONCE.lock().unwrap_or_else(PoisonError::into_inner);
    if SHARED.get().is_some() {
        return Ok(());
    }
    let bytes = FRAMES as usize * FRAME;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: `FIXED_NOREPLACE` maps nothing over what is there already.
    let at = unsafe {
        mmap_anonymous(
            ptr::without_provenance_mut::<c_void>(BASE),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
        )
    };
    let at = at.with_context(|| {
        format!(
            "no {} MiB of address space at {BASE:#x}: run the benchmark without sanitizers and address-space limits",
            bytes >> 20
        )
    })?;
    if at.expose_provenance() != BASE {
        bail!(
            "the kernel mapped the arena at {at:?} and not at {BASE:#x}: Linux 4.17 or newer is needed"
        );
    }
    // SAFETY: the block was mapped just now, and the advice changes no content.
    let advised = unsafe { madvise(at, bytes, Advice::LinuxHugepage) };
    let shared = Shared {
        next: (0..FRAMES).map(|_| AtomicU32::new(NONE)).collect(),
        lists: (0..THREADS)
            .map(|_| List {
                head: AtomicU32::new(NONE),
                taken: AtomicU64::new(0),
                returned: AtomicU64::new(0),
            })
            .collect(),
        stock: Mutex::new(Stock {
            free: Vec::new(),
            fresh: 1,
        }),
        huge: AtomicBool::new(advised.is_ok()),
    };
    let _ = SHARED.set(shared);
    Ok(())
}

/// Keeps other threads from using the arena as thread 0 as long as the result lives: the benchmark is one program that
/// does one row at a time, but tests are not.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[inline]
fn shared() -> &'static Shared {
    match SHARED.get() {
        Some(shared) => shared,
        None => first_use(),
    }
}

#[cold]
fn first_use() -> &'static Shared {
    if let Err(error) = init() {
        panic!("{error:#}");
    }
    SHARED.get().expect("the arena was mapped just now")
}

impl Shared {
    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the host took the advice to use huge pages.
pub fn huge() -> bool {
    // ORDERING: Relaxed, a constant after `init`.
    shared().huge.load(Ordering::Relaxed)
}

/// Writes to every page of the block, so that no round pays for the host's page faults.
pub fn touch() {
    for frame in 1..FRAMES {
        // SAFETY: the frame lies in the block.
        let words = unsafe { words(address(frame)) };
        // ORDERING: Relaxed, an addition of nothing changes no word.
        words[0].fetch_add(0, Ordering::Relaxed);
    }
}

/// The 512 words of the frame at physical address `at`.
///
/// # Safety
/// `at` is the address of a frame that [`take`] gave, or of one that lies in the block. All memory of the block is
/// reached through atomics, by the peers' exclusive references, and never goes away.
#[inline]
pub unsafe fn words(at: u64) -> &'static [AtomicU64; WORDS] {
    let pointer = ptr::with_exposed_provenance::<[AtomicU64; WORDS]>(at as usize);
    // SAFETY: the caller's frame lies in the block, which is mapped for ever, zeroed by the host, and aligned to
    // pages.
    unsafe { &*pointer }
}

/// Takes a frame, as [`take`] does, and zeroes it.
#[inline]
pub fn take_zeroed() -> Option<u64> {
    let at = take()?;
    // SAFETY: the frame was taken just now.
    for word in unsafe { words(at) } {
        // ORDERING: Relaxed, nobody else has the frame.
        word.store(0, Ordering::Relaxed);
    }
    Some(at)
}

/// Takes a frame of the thread's own list and gives its physical address. Its words hold anything.
#[inline]
pub fn take() -> Option<u64> {
    let shared = shared();
    let list = shared.lists.get(thread())?;
    // ORDERING: Relaxed, only this thread uses its list.
    let mut frame = list.head.load(Ordering::Relaxed);
    if frame == NONE {
        frame = refill(shared, list)?;
    }
    // ORDERING: Relaxed, as above.
    let next = shared.next[frame as usize].load(Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    list.head.store(next, Ordering::Relaxed);
    // ORDERING: Relaxed, only this thread writes its counts.
    let taken = list.taken.load(Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    list.taken.store(taken + 1, Ordering::Relaxed);
    Some(address(frame))
}

/// Where the frame with this number is: memory has the same address for the processor and in tables, as under the
/// identity map of the hypervisor image.
#[inline]
const fn address(frame: u32) -> u64 {
    BASE as u64 + frame as u64 * FRAME as u64
}

/// Moves frames from the stock to an empty list and gives the first.
#[cold]
fn refill(shared: &Shared, list: &List) -> Option<u32> {
    let mut stock = shared.stock();
    for _ in 0..REFILL {
        let frame = match stock.free.pop() {
            Some(frame) => frame,
            None if stock.fresh < FRAMES => {
                stock.fresh += 1;
                stock.fresh - 1
            }
            None => break,
        };
        push(shared, list, frame);
    }
    // ORDERING: Relaxed, only this thread uses its list.
    let head = list.head.load(Ordering::Relaxed);
    (head != NONE).then_some(head)
}

#[inline]
fn push(shared: &Shared, list: &List, frame: u32) {
    // ORDERING: Relaxed, only this thread uses its list.
    let head = list.head.load(Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    shared.next[frame as usize].store(head, Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    list.head.store(frame, Ordering::Relaxed);
}

/// Takes the frame at `at` back.
///
/// # Safety
/// The frame came from [`take`], is given back once, and nobody reaches it any more.
#[inline]
pub unsafe fn put(at: u64) {
    let shared = shared();
    let list = &shared.lists[thread()];
    push(shared, list, ((at as usize - BASE) / FRAME) as u32);
    // ORDERING: Relaxed, only this thread writes its counts.
    let returned = list.returned.load(Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    list.returned.store(returned + 1, Ordering::Relaxed);
}

/// Moves the frames of all lists to the stock, so that what one thread gives back another can take. For moments in which
/// no other thread takes a frame or gives one back.
pub fn settle() {
    let shared = shared();
    let mut stock = shared.stock();
    for list in &shared.lists {
        // ORDERING: Relaxed: by the caller's promise the other threads are at rest, and were joined.
        let mut frame = list.head.swap(NONE, Ordering::Relaxed);
        while frame != NONE {
            stock.free.push(frame);
            // ORDERING: Relaxed, as above.
            frame = shared.next[frame as usize].load(Ordering::Relaxed);
        }
    }
}

/// How many frames were ever taken, by all threads. For moments in which no other thread takes one.
pub fn taken() -> u64 {
    sum(|list| &list.taken)
}

/// How many frames were ever given back, by all threads. For moments in which no other thread gives one back.
pub fn returned() -> u64 {
    sum(|list| &list.returned)
}

/// How many frames are taken now. For moments in which no other thread takes one or gives one back.
pub fn in_use() -> u64 {
    taken() - returned()
}

fn sum(count: impl Fn(&List) -> &AtomicU64) -> u64 {
    shared()
        .lists
        .iter()
        // ORDERING: Relaxed: by the caller's promise the other threads are at rest, and were joined.
        .map(|list| count(list).load(Ordering::Relaxed))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_other_threads_gave_back_are_taken_again() {
        let _alone = alone();
        let before = in_use();
        // Twice as many frames as there are go from thread 1 to thread 0.
        for _ in 0..2 * FRAMES / 1024 {
            set_thread(1);
            let frames: Vec<u64> = (0..1024).filter_map(|_| take()).collect();
            assert_eq!(frames.len(), 1024, "the arena ran dry");
            set_thread(0);
            for frame in frames {
                // SAFETY: the frame was taken just now.
                unsafe { put(frame) };
            }
            settle();
        }
        assert_eq!(in_use(), before);
    }
}
