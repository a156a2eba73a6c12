//! `tables`: page sizes change under the drive's DMA, and table pages come back while their domain lives.

use alloc::boxed::Box;
use alloc::format;
use core::ops::Range;
use core::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::sync::{AtomicBool, AtomicU64, Ordering};
use hv_core::{
    CpuId, FrameRun, Hypervisor, Iova, IovaRange, KernelPaging, PageCount, PageSize, Perms,
};
use hv_iommu::table::TableError;
use hv_iommu::{CoherentBuffer, Domain, DomainConfig, FaultNotice, Level, Mapped};
use spin::Mutex;

use super::blocked::CANARY;
use super::drive::{Driver, buffer};
use super::{Backend, Context, Failure, OrFail, Shown, ensure};
use crate::platform::BareMetal;

/// Pages of 4 KiB in the large page.
const PAGES: u64 = 512;
/// Those that the drive reads into; it must leave the others as they are.
const READ: u64 = PAGES / 2;
/// How often the drive reads each at least, while the page is split and merged.
const TURNS: u64 = 3;
/// How often the page is split and merged again, at least and at most.
const ROUNDS: Range<u64> = 1000..1_000_000;
/// How long that and the DMA may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Where single pages are mapped, each in a table of its own.
const FAR: u64 = 0x60_0000_0000;
/// How many.
const TABLES: u64 = 12;

type MappedRange = hv_iommu::Range<KernelPaging, Backend, Mapped>;

/// Splits and merges a large page while the drive reads into it, and looks at data and faults; then unmaps
/// whole tables and reclaims empty ones, and counts pages.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    let platform = context.machine.platform;
    // The first device on a bus makes its unit take a table that it keeps.
    context.with_kernel_drive(DomainConfig::default(), |_, _, _| Ok(()))?;
    let before = platform.frame_counts().allocated;
    let shown = context.with_kernel_drive(DomainConfig::default(), |context, domain, driver| {
        let (rounds, reads) = sizes(context, domain, driver)?;
        let (whole, reclaimed) = tables(context, domain)?;
        Ok(format!(
            "{rounds} live splits and merges under {reads} page reads, no fault, data right; tables back: {whole} with \
             their range, {reclaimed} by reclaim; all {before} frames accounted for"
        ))
    })?;
    let after = platform.frame_counts().allocated;
    ensure!(
        before == after,
        "{before} frames were in use before, {after} after"
    );
    Ok(shown)
}

/// Frames for a large page, full of canaries.
fn frames(platform: &BareMetal) -> Result<FrameRun<Hypervisor>, Failure> {
    let frames = platform
        .alloc_frames(PageCount::of(PageSize::Size2M), PageSize::Size2M)
        .or_fail("allocating frames")?;
    for page in 0..PAGES {
        let offset = page * PageSize::Size4K.bytes();
        frames
            .write(platform, offset, &CANARY)
            .or_fail("filling frames")?;
    }
    Ok(frames)
}

/// Maps frames for a large page, with pages of at most `largest`.
fn map_large(
    context: &Context<'_>,
    domain: &Domain<KernelPaging, Backend>,
    largest: PageSize,
) -> Result<MappedRange, Failure> {
    let range = domain
        .allocate(PageCount::of(PageSize::Size2M), PageSize::Size2M)
        .or_fail("taking a range")?;
    range
        .map_with(frames(context.machine.platform)?, Perms::ReadWrite, largest)
        .or_fail("mapping a range")
}

/// One CPU splits and merges, this one lets the drive read into the page. How often each.
fn sizes(
    context: &Context<'_>,
    domain: &Domain<KernelPaging, Backend>,
    driver: &mut Driver<CoherentBuffer<Backend>>,
) -> Result<(u64, u64), Failure> {
    let platform = context.machine.platform;
    let mapped = map_large(context, domain, PageSize::Size2M)?;
    let start = mapped.span().start();
    context.forget_faults();
    let (range, failure) = (Mutex::new(Some(mapped)), Mutex::new(None));
    let (driver, done) = (Mutex::new(driver), AtomicBool::new(false));
    let (rounds, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let cpus = context.machine.cpus.count();
    context.machine.cpus.run_on_all(LIMIT, &|cpu: CpuId| {
        let resizes = cpu.index() + 1 == cpus;
        let read = || read_until(start, &mut driver.lock(), &reads, &done);
        let result = match (cpu.index(), resizes) {
            (index, true) => {
                let enough = |round| {
                    // ORDERING: Relaxed, a figure; the reader goes on without this CPU.
                    cpus == 1
                        || reads.load(Ordering::Relaxed) >= TURNS * READ
                        || round >= ROUNDS.end
                };
                let result = resize(domain, &range, &rounds, enough);
                // ORDERING: Release, the range is back before the reader is told.
                done.store(true, Ordering::Release);
                match index {
                    // The only one.
                    0 => result.and_then(|()| read()),
                    _ => result,
                }
            }
            (0, false) => read(),
            _ => Ok(()),
        };
        if let Err(error) = result {
            failure.lock().get_or_insert(error);
        }
    });
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    let driver = driver.into_inner();
    let mut faults = 0;
    context.iommu.take_faults(|notice| {
        faults += u64::from(matches!(notice, FaultNotice::Fault(_)));
    });
    ensure!(faults == 0, "{faults} faults while page sizes changed");
    let mut mapped = range
        .into_inner()
        .ok_or_else(|| Failure::new("the range is gone"))?;
    let level = domain.translate(start).map(|found| found.level);
    ensure!(
        level == Some(Level::of(PageSize::Size2M)),
        "{start} is mapped at {level:?} in the end, expected a large page"
    );
    mapped.settle().or_fail("settling a range")?;
    let (range, frames) = mapped.unmap().flush().or_fail("unmapping a range")?;
    range
        .release()
        .map_err(|(_, error)| error)
        .or_fail("releasing a range")?;
    let same = compare(domain, driver, &frames, platform);
    platform.free_frames(frames);
    same?;
    // ORDERING: Relaxed, all CPUs are done and `run_on_all` synchronised with them.
    Ok((
        rounds.load(Ordering::Relaxed),
        reads.load(Ordering::Relaxed),
    ))
}

/// Splits at another page each time, and makes a large page of it again.
fn resize(
    domain: &Domain<KernelPaging, Backend>,
    range: &Mutex<Option<MappedRange>>,
    rounds: &AtomicU64,
    enough: impl Fn(u64) -> bool,
) -> Result<(), Failure> {
    let mut mapped = range
        .lock()
        .take()
        .ok_or_else(|| Failure::new("the range is gone"))?;
    let mut round = 0;
    while round < ROUNDS.start || !enough(round) {
        let at = PageCount::new(1 + round * 37 % (PAGES - 1)).unwrap_or(PageCount::ONE);
        let (mut low, high) = mapped.split_large_at(at).or_fail("splitting a page")?;
        if round % 2 == 0 {
            low.settle().or_fail("settling a part")?;
        }
        mapped = low.join(high).or_fail("joining the parts")?;
        let (merged, outcome) = match mapped.merge() {
            // The tables of earlier rounds wait for a flush.
            (_, Err(TableError::ReclaimPending { .. })) => {
                domain.reclaim().or_fail("reclaiming tables")?;
                mapped.merge()
            }
            other => other,
        };
        outcome.or_fail("merging pages")?;
        ensure!(merged == 1, "{merged} large pages were made, expected 1");
        if round % 3 == 0 {
            mapped.settle().or_fail("settling the whole")?;
        }
        round += 1;
    }
    // ORDERING: Relaxed, `run_on_all` synchronises.
    rounds.store(round, Ordering::Relaxed);
    *range.lock() = Some(mapped);
    Ok(())
}

/// Lets the drive read its first pages to where they belong, over and over.
fn read_until(
    start: Iova,
    driver: &mut Driver<CoherentBuffer<Backend>>,
    reads: &AtomicU64,
    done: &AtomicBool,
) -> Result<(), Failure> {
    let mut count = 0;
    // ORDERING: Acquire pairs with the store.
    while !done.load(Ordering::Acquire) || count < READ {
        let offset = count % READ * PageSize::Size4K.bytes();
        driver.raw_read(offset, Iova::new(start.as_u64() + offset))?;
        count += 1;
        // ORDERING: Relaxed, a figure.
        reads.store(count, Ordering::Relaxed);
    }
    Ok(())
}

/// The frames hold what the drive gives for an ordinary read, and behind that what they did before.
fn compare(
    domain: &Domain<KernelPaging, Backend>,
    driver: &mut Driver<CoherentBuffer<Backend>>,
    frames: &FrameRun<Hypervisor>,
    platform: &BareMetal,
) -> Result<(), Failure> {
    let pages = PageCount::of(PageSize::Size2M);
    let buffer = buffer(domain, pages, PageSize::Size4K, Perms::ReadWrite)?;
    let read = READ * PageSize::Size4K.bytes();
    driver.read(0, read as usize, &buffer)?;
    let (mut one, mut other) = (Box::new(CANARY), Box::new(CANARY));
    let mut wrong = None;
    for page in 0..PAGES {
        let offset = page * PageSize::Size4K.bytes();
        frames
            .read(platform, offset, one.as_mut_slice())
            .or_fail("reading frames")?;
        if page < READ {
            buffer
                .read(offset, other.as_mut_slice())
                .or_fail("reading a buffer")?;
        } else {
            *other = CANARY;
        }
        if one != other {
            wrong.get_or_insert(page);
        }
    }
    buffer.free().or_fail("freeing a buffer")?;
    match wrong {
        None => Ok(()),
        Some(page) => Err(Failure::new(format_args!(
            "page {page} of {PAGES} is not as it should be: the drive reads {READ}"
        ))),
    }
}

/// Gives tables back with a range that covers them, and by reclaim. How many each.
fn tables(
    context: &Context<'_>,
    domain: &Domain<KernelPaging, Backend>,
) -> Result<(u64, u64), Failure> {
    let platform = context.machine.platform;
    domain.reclaim().or_fail("reclaiming tables")?;
    let free = |mapped: MappedRange| -> Result<(), Failure> {
        let (range, frames) = mapped.unmap().flush().or_fail("unmapping a range")?;
        platform.free_frames(frames);
        range
            .release()
            .map_err(|(_, error)| error)
            .or_fail("releasing a range")
    };
    let mapped = map_large(context, domain, PageSize::Size4K)?;
    let full = domain.table_pages();
    free(mapped)?;
    let whole = full - domain.table_pages();
    ensure!(
        whole == 1,
        "{whole} tables came back with their range, expected 1"
    );

    domain.reclaim().or_fail("reclaiming tables")?;
    let least = domain.table_pages();
    for table in 0..TABLES {
        let at = Iova::new(FAR + table * PageSize::Size2M.bytes());
        let span = IovaRange::new(at, PageCount::ONE).or_fail("naming a page")?;
        let frames = platform
            .alloc_frames(PageCount::ONE, PageSize::Size4K)
            .or_fail("allocating a frame")?;
        let range = domain.reserve(span).or_fail("reserving a page")?;
        let mapped = range
            .map(frames, Perms::ReadWrite)
            .or_fail("mapping a page")?;
        free(mapped)?;
    }
    let most = domain.table_pages();
    ensure!(
        most >= least + TABLES,
        "{least} tables became {most}, expected {TABLES} more"
    );
    let reclaimed = domain.reclaim().or_fail("reclaiming tables")?;
    let left = domain.table_pages();
    ensure!(
        left == least && reclaimed == most - least,
        "{reclaimed} tables came back: {left} of {most} are left, expected {least}"
    );
    Ok((whole, reclaimed))
}
