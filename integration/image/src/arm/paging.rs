//! The identity map that `boot/entry.s` builds: what is memory and what is device space in it, and guard pages.
//!
//! Every change goes through an invalid entry (break before make; Arm ARM, D8.17.1), and nothing uses the addresses
//! meanwhile.
#![expect(unsafe_code, reason = "edits the page tables that the CPU uses")]

use core::arch::asm;
use core::ptr;

use arm_sysregs::el1::accessors::read_id_aa64mmfr0_el1;
use arm_sysregs::el2::accessors::read_ttbr0_el2;
use arrayvec::ArrayVec;
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{PageCount, PageSize, PhysAddr};
use thiserror::Error;

use crate::memory::frames::FrameAllocator;
use crate::memory::physical;
use crate::memory::usable::{MAX_SPANS, MemoryMapError, Span, whole_gibs};

/// What the boot code maps.
const MAPPED: u64 = 4 << 40;
/// Entries of a table.
const ENTRIES: u64 = 512;

// Fields of entries (Arm ARM, D8.3), as in `boot/entry.s`.
/// The entry is used.
const VALID: u64 = 1 << 0;
/// The entry is a table, or a page at the last level.
const TABLE: u64 = 1 << 1;
/// Memory: attribute index 1, AP[1], inner shareable, accessed, execute never.
const MEMORY: u64 = 1 << 54 | 0x744;
/// Bits of an entry that are an address.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// A guard page could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GuardError {
    /// The identity map uses blocks larger than 2 MiB there, or none.
    #[error("{block} is not mapped as a 2 MiB block, so no page of it can become a guard page")]
    NotSplittable {
        /// The block.
        block: PhysAddr,
    },
    /// No frame for the finer table.
    #[error("no frame for the page table of the block {block}")]
    NoFrame {
        /// The block.
        block: PhysAddr,
    },
}

/// The end of the identity map, as far as the CPU can address it.
pub fn identity_limit() -> PhysAddr {
    // PARange (Arm ARM, D19.2 ID_AA64MMFR0_EL1).
    let bits = match read_id_aa64mmfr0_el1().bits() & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        _ => 42,
    };
    PhysAddr::new(MAPPED.min(1 << bits))
}

/// Entry `index` of a table.
fn entry(table: u64, index: u64) -> &'static AtomicU64 {
    let place = physical::pointer(PhysAddr::new((table & ADDRESS) + index % ENTRIES * 8));
    // SAFETY: callers name tables that they found by walking from the root, or made: live pages of 512 words, to which
    // all access goes through atomics, by this CPU and by its walker.
    unsafe { AtomicU64::from_ptr(place.cast()) }
}

/// The level 1 entry of an address below the limit.
fn level1(address: u64) -> &'static AtomicU64 {
    let root = read_ttbr0_el2().bits();
    // ORDERING: Relaxed, level 0 never changes after boot.
    let table = entry(root, address >> 39).load(Ordering::Relaxed);
    entry(table, address >> 30)
}

/// Waits until earlier changes of tables are seen by the walkers of all CPUs.
fn publish() {
    // SAFETY: barriers change nothing but order.
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
}

/// Has all CPUs forget translations of the page or block at `address`.
fn forget(address: u64) {
    // SAFETY: only makes CPUs walk the tables again.
    unsafe {
        asm!("dsb ishst", "tlbi vae2is, {}", "dsb ish", "isb", in(reg) address >> 12, options(nostack, preserves_flags))
    };
}

/// Replaces an entry by way of an invalid one.
fn replace(entry: &AtomicU64, address: u64, new: u64) {
    // ORDERING: Relaxed, the barriers of `forget` and `publish` order it for the walkers.
    entry.store(0, Ordering::Relaxed);
    forget(address);
    // ORDERING: Relaxed, as above.
    entry.store(new, Ordering::Relaxed);
    publish();
}

/// Maps a GiB as memory, unless it is.
///
/// # Safety
/// Called by the only CPU that runs, and nothing in the GiB is used as registers from then on.
unsafe fn map_gib(start: PhysAddr) {
    let start = start.as_u64();
    let entry = level1(start);
    // ORDERING: Relaxed, this CPU alone writes the tables.
    let found = entry.load(Ordering::Relaxed);
    let block = start | MEMORY | VALID;
    if found & TABLE == 0 && found != block {
        replace(entry, start, block);
    }
}

/// Maps the GiBs of these bytes as memory: what firmware left outside of the image's GiB is device space until then, in
/// which an access that is not aligned is a fault.
///
/// # Safety
/// As for [`map_ram`]; the bytes are RAM below the limit.
pub(super) unsafe fn map_bytes(start: PhysAddr, bytes: u64) {
    for gib in Span::new(start, bytes).gibs() {
        // SAFETY: the caller's promise.
        unsafe { map_gib(gib) };
    }
}

/// Maps the RAM beside the image's as memory too, a GiB at a time, and tells which spans are memory then.
///
/// # Errors
/// [`MemoryMapError`] when that cannot be told; nothing is changed then.
///
/// # Safety
/// Called by the only CPU that runs, before it uses RAM outside of the image's GiB.
pub(super) unsafe fn map_ram(ram: &[Span]) -> Result<ArrayVec<Span, MAX_SPANS>, MemoryMapError> {
    let spans = whole_gibs(ram, identity_limit())?;
    for gib in spans.iter().flat_map(Span::gibs) {
        // SAFETY: the caller's promise; what holds RAM is memory, and no registers are looked for there.
        unsafe { map_gib(gib) };
    }
    Ok(spans)
}

/// Maps a 2 MiB block of memory page by page.
///
/// # Errors
/// [`GuardError`]; nothing is changed then.
///
/// # Safety
/// The block is RAM that the caller owns whole, and nobody uses it meanwhile.
pub(super) unsafe fn split(block: PhysAddr, frames: &FrameAllocator) -> Result<(), GuardError> {
    let start = block.as_u64();
    // ORDERING: Relaxed, as in `map_ram`.
    let table = level1(start).load(Ordering::Relaxed);
    let entry = (table & TABLE != 0).then(|| entry(table, start >> 21));
    // ORDERING: Relaxed, as in `map_ram`.
    let is_block = |entry: &AtomicU64| entry.load(Ordering::Relaxed) & (VALID | TABLE) == VALID;
    let entry = entry
        .filter(|entry| is_block(entry))
        .ok_or(GuardError::NotSplittable { block })?;
    let frame = frames
        .take(PageCount::ONE, PageSize::Size4K)
        .map_err(|_| GuardError::NoFrame { block })?;
    let finer = frame.start().as_u64();
    for index in 0..ENTRIES {
        let page = start + index * PageSize::Size4K.bytes();
        let place = physical::pointer(PhysAddr::new(finer + index * 8)).cast::<u64>();
        // SAFETY: the frame was just taken, so it is mapped RAM that nothing else uses.
        unsafe { ptr::write(place, page | MEMORY | TABLE | VALID) };
    }
    replace(entry, start, finer | TABLE | VALID);
    Ok(())
}

/// Takes a page out of the map.
///
/// # Safety
/// The page lies in a block that [`split`] mapped page by page, and nothing uses it from then on.
pub(super) unsafe fn unmap(page: PhysAddr) {
    let address = page.as_u64();
    // ORDERING: Relaxed, as in `map_ram`.
    let table = level1(address).load(Ordering::Relaxed);
    // ORDERING: Relaxed, as in `map_ram`.
    let table = entry(table, address >> 21).load(Ordering::Relaxed);
    // ORDERING: Relaxed, `forget` orders it for the walkers.
    entry(table, address >> 12).store(0, Ordering::Relaxed);
    forget(address);
}
