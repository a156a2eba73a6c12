//! `concurrent`: all CPUs map, use and unmap in one domain while the drive works, and nothing is lost.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use hv_core::platform::{Clock, FrameSource, Instant};
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{CpuId, Iova, IovaRange, KernelPaging, PageCount, PageSize, Perms};
use hv_iommu::{CoherentBuffer, Domain, DomainConfig, SharedRange};
use spin::Mutex;

use super::blocked::{SCRATCH_OFFSET, fill, is_canary};
use super::drive::Driver;
use super::{Backend, Context, Failure, OrFail, Shown, ensure};

/// Rounds of each CPU.
const ROUNDS: u64 = 400;
/// Every how many rounds a CPU lets the drive write its page.
const DRIVE_EVERY: u64 = 8;
/// Pages of one round's range.
const PAGES: u64 = 3;
/// Where the CPUs' ranges lie: next to each other, so that tables are shared, across the end of one
/// table, so that they are installed by all.
const BASE: u64 = 0x40_001f_f000;
/// How far the ranges of one round are from those of the next, at least: now and then into a new table. Further where there
/// are more CPUs than fit, which are not in the same round.
const STRIDE: u64 = 0x1_8000;
/// Where all CPUs want the same pages.
const SHARED: Iova = Iova::new(0x50_0000_0000);
/// How many pages that are.
const SHARED_PAGES: u64 = 4;
/// How long all rounds of all CPUs may take. With all that runs before, far below the time that xtask lets QEMU run
/// (two minutes), so that it is the image that says what was late.
const LIMIT: Duration = Duration::from_secs(60);
/// When CPUs that have not ended by themselves are given up: some time after that, as the last round of each may have to
/// wait for the drive.
const STUCK: Duration = Duration::from_secs(90);

/// Counts over all CPUs.
#[derive(Default)]
struct Counts {
    mapped: AtomicU64,
    written: AtomicU64,
    won: AtomicU64,
    lost: AtomicU64,
}

/// Lets all CPUs work, then ends the domain and counts every frame.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    let platform = context.machine.platform;
    // The first device on a bus makes its unit take a table that it keeps; that is not a leak.
    context.with_kernel_drive(DomainConfig::default(), |_, _, _| Ok(()))?;
    let before = platform.frame_counts().allocated;
    let counts = Counts::default();
    context.with_kernel_drive(DomainConfig::default(), |context, domain, driver| {
        let span = PageCount::new(SHARED_PAGES).ok_or_else(|| Failure::new("no shared pages"))?;
        let span = IovaRange::new(SHARED, span).or_fail("naming the shared pages")?;
        let shared = domain.reserve(span).or_fail("reserving the shared pages")?;
        let shared = shared
            .share()
            .map_err(|(_, error)| error)
            .or_fail("sharing a range")?;
        let driver = Mutex::new(driver);
        // Each CPU's, as the first one may only say what another's did to the unit.
        let failures = Mutex::new(Vec::new());
        let end = platform.now().after(LIMIT);
        context.machine.cpus.run_on_all(STUCK, &|cpu| {
            let work = Work {
                end,
                context,
                domain,
                driver: &driver,
                counts: &counts,
            };
            if let Err(error) = work.rounds(cpu, &shared) {
                failures.lock().push(error.0);
            }
        });
        let failures = failures.into_inner();
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        let range = shared
            .unshare()
            .or_fail("something is left in the shared pages")?;
        range
            .release()
            .map_err(|(_, error)| error)
            .or_fail("releasing the shared pages")
    })?;
    let after = platform.frame_counts().allocated;
    ensure!(
        before == after,
        "{before} frames were in use before, {after} after"
    );
    // ORDERING: Relaxed, all CPUs are done and `run_on_all` synchronised with them.
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let cpus = context.machine.cpus.count();
    ensure!(count(&counts.written) > 0, "the drive wrote nothing");
    Ok(format!(
        "{cpus} CPUs, {} ranges mapped and unmapped, {} written by the drive, shared pages won {} and lost {} times; \
         all {after} frames accounted for",
        count(&counts.mapped),
        count(&counts.written),
        count(&counts.won),
        count(&counts.lost),
    ))
}

/// What each CPU works with.
struct Work<'w, 'm> {
    /// When no further round begins.
    end: Instant,
    context: &'w Context<'m>,
    domain: &'w Domain<KernelPaging, Backend>,
    driver: &'w Mutex<&'w mut Driver<CoherentBuffer<Backend>>>,
    counts: &'w Counts,
}

impl Work<'_, '_> {
    fn rounds(
        &self,
        cpu: CpuId,
        shared: &SharedRange<KernelPaging, Backend>,
    ) -> Result<(), Failure> {
        for round in 0..ROUNDS {
            ensure!(
                self.context.machine.platform.now() <= self.end,
                "{cpu} did {round} of {ROUNDS} rounds within {LIMIT:?}"
            );
            self.own_range(cpu, round)
                .map_err(|error| at(cpu, round, &error))?;
            self.shared_page(round, shared)
                .map_err(|error| at(cpu, round, &error))?;
        }
        Ok(())
    }

    /// Maps a range of this CPU's own, looks at it, now and then lets the drive write it, unmaps it.
    fn own_range(&self, cpu: CpuId, round: u64) -> Result<(), Failure> {
        let platform = self.context.machine.platform;
        let pages = PageCount::new(PAGES).ok_or_else(|| Failure::new("no pages"))?;
        let stride = STRIDE.max(self.context.machine.cpus.count() as u64 * pages.bytes());
        let place = BASE + round * stride + cpu.index() as u64 * pages.bytes();
        let span = IovaRange::new(Iova::new(place), pages).or_fail("naming a range")?;
        let frames = platform
            .alloc_frames(pages, PageSize::Size4K)
            .or_fail("allocating frames")?;
        let first = frames.range().start();
        fill(platform, &frames)?;
        let range = self.domain.reserve(span).or_fail("reserving a range")?;
        let mapped = range
            .map(frames, Perms::ReadWrite)
            .or_fail("mapping a range")?;
        for index in 0..PAGES {
            let at = span
                .page(index)
                .ok_or_else(|| Failure::new("a page of the range"))?;
            let found = self.domain.translate(at).map(|found| found.to);
            let expected = first.checked_add(index * PageSize::Size4K.bytes());
            ensure!(
                found == expected,
                "{at} leads to {found:?}, expected {expected:?}"
            );
        }
        let used = round % DRIVE_EVERY == cpu.index() as u64 % DRIVE_EVERY;
        if used {
            self.driver.lock().raw_read(SCRATCH_OFFSET, span.start())?;
        }
        let (range, frames) = mapped.unmap().flush().or_fail("unmapping a range")?;
        ensure!(
            frames.range().start() == first,
            "{span} gave back {frames}, expected {first}"
        );
        let written = !is_canary(platform, &frames);
        platform.free_frames(frames);
        range
            .release()
            .map_err(|(_, error)| error)
            .or_fail("releasing a range")?;
        ensure!(
            written == used,
            "{span}: the drive wrote {written}, expected {used}"
        );
        count(&self.counts.mapped);
        if used {
            count(&self.counts.written);
        }
        Ok(())
    }

    /// Tries to map a page that the other CPUs want too; who gets it unmaps it again.
    fn shared_page(
        &self,
        round: u64,
        shared: &SharedRange<KernelPaging, Backend>,
    ) -> Result<(), Failure> {
        let platform = self.context.machine.platform;
        let frames = platform
            .alloc_frames(PageCount::ONE, PageSize::Size4K)
            .or_fail("allocating a frame")?;
        let mine = frames.range().start();
        let at = shared.span().page(round % SHARED_PAGES);
        let at = at.ok_or_else(|| Failure::new("a shared page"))?;
        if let Err(error) = shared.map(at, frames, Perms::ReadWrite) {
            let frames = error
                .frames
                .ok_or_else(|| Failure::new("a shared page is not visible"))?;
            platform.free_frames(frames);
            count(&self.counts.lost);
            return Ok(());
        }
        let pending = shared
            .unmap(at, PageSize::Size4K)
            .or_fail("unmapping a shared page")?;
        let frames = pending
            .flush()
            .map_err(|(_, error)| error)
            .or_fail("flushing a shared page")?;
        let found = frames.range().start();
        platform.free_frames(frames);
        ensure!(
            found == mine,
            "the shared page {at} gave back {found}, expected {mine}"
        );
        count(&self.counts.won);
        Ok(())
    }
}

fn count(counter: &AtomicU64) {
    // ORDERING: Relaxed, only the sum counts, and it is read when all CPUs are done.
    counter.fetch_add(1, Ordering::Relaxed);
}

fn at(cpu: CpuId, round: u64, error: &Failure) -> Failure {
    let text: String = format!("{cpu}, round {round}: {error}");
    Failure::new(text)
}
