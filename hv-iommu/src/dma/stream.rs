//! Streaming mappings: a run of frames that a device has for a while, and the CPU does not.

#![expect(
    unsafe_code,
    reason = "takes a run of frames back that it gave up for a mapping"
)]

use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;

use hv_core::fault::Fault;
use hv_core::{FrameRun, Hypervisor, Iova, IovaRange, PageCount, PageSize, Perms, PhysRange};

use super::Hold;
use super::body::{self, Body, BouncePage, ByteWindow};
use super::bounce;
use super::device::{DmaDevice, Snooping};
use super::direction::Direction;
use super::error::{DmaMapError, DmaRefusal, PendingError};
use super::parts::Placed;
use super::trust::Trust;
use crate::backend::Backend;
use crate::flush::Receipt;
use crate::format::{Format, Level};
use crate::iova::IovaAlign;
use crate::pending::{Mark, RedeemRefusal, Seal};
use crate::range::MapRefusal;

/// A body at its place: what the states of a stream have in common.
///
/// # Invariants
/// The body's parts are what is mapped at `placed`. Once `home` is set, addresses, run and bounce pages are
/// somebody else's, and `hold` has ended: nobody looks at it.
pub(super) struct Stream<B: Backend> {
    /// Its count ends with the addresses where it can, which is why dropping it is left to `self`.
    pub(super) hold: ManuallyDrop<Hold<B>>,
    pub(super) placed: Placed,
    pub(super) body: Body,
    pub(super) trust: Trust,
    snooping: Snooping,
    home: bool,
}

/// A run of frames that a device has: as a whole, or some of its bytes. The CPU has no view of it meanwhile.
///
/// Dropping it leaves it mapped until the domain ends.
#[must_use = "a dropped mapping keeps its memory until the domain ends"]
pub struct StreamMapping<B: Backend, D: Direction> {
    pub(super) stream: Stream<B>,
    pub(super) direction: PhantomData<D>,
}

/// A streaming mapping that was unmapped and that hardware may still have cached. A receipt gives the run
/// back, and what a device wrote into bounce pages with it.
///
/// Dropping it loses nothing: the end of the domain gives the frames back.
#[must_use = "the memory comes back only with a receipt"]
pub struct PendingStream<B: Backend, D: Direction> {
    stream: Stream<B>,
    mark: Mark,
    direction: PhantomData<D>,
}

/// What a failed streaming map gives back.
pub type StreamError<B, D> =
    DmaMapError<FrameRun<Hypervisor>, StreamMapping<B, D>, PendingStream<B, D>>;

impl<B: Backend> DmaDevice<B> {
    /// Lends a whole run of frames to the device.
    ///
    /// # Errors
    /// [`StreamError`], with the run.
    #[inline(always)]
    pub fn map<D: Direction>(
        &self,
        run: FrameRun<Hypervisor>,
        direction: D,
    ) -> Result<StreamMapping<B, D>, StreamError<B, D>> {
        let window = ByteWindow::whole(run.pages());
        self.map_bytes(run, window, direction)
    }

    /// Lends some bytes of a run of frames to the device: they begin in the run's first page and end in its
    /// last. A trusted device sees the rest of these two pages too; an untrusted one sees zeros there, since
    /// it has bounce pages in their place, and so does one that does not snoop, whose cache lines are not to
    /// be shared.
    ///
    /// # Errors
    /// [`StreamError`], with the run.
    #[inline]
    pub fn map_bytes<D: Direction>(
        &self,
        run: FrameRun<Hypervisor>,
        window: ByteWindow,
        _direction: D,
    ) -> Result<StreamMapping<B, D>, StreamError<B, D>> {
        if let Err(reason) = self.check(&run, window) {
            return Err(DmaMapError::Refused { value: run, reason });
        }
        let bounce = match self.bounce_pages(run.pages(), window) {
            Ok(bounce) => bounce,
            Err(reason) => return Err(DmaMapError::Refused { value: run, reason }),
        };
        let (hold, span) =
            match self.addresses_held(run.pages(), alignment::<B::Format>(run.range())) {
                Ok(held) => held,
                Err(reason) => {
                    self.give_back(bounce);
                    return Err(DmaMapError::Refused { value: run, reason });
                }
            };
        // INVARIANT: the run is given up for this value; its bounce pages and addresses were taken
        // just now.
        let stream = Stream {
            hold: ManuallyDrop::new(hold),
            placed: Placed::new(span),
            body: Body::new(run.into_range(), window, bounce),
            trust: self.trust,
            snooping: self.config.snooping,
            home: false,
        };
        stream.fill();
        stream.map()
    }

    #[inline]
    fn check(&self, run: &FrameRun<Hypervisor>, window: ByteWindow) -> Result<(), DmaRefusal> {
        let core = &self.core;
        if !window.fits(run.pages()) {
            let pages = run.pages();
            return Err(DmaRefusal::Window { window, pages });
        }
        if !core.reaches(&run.range()) {
            let (frames, bits) = (run.range(), core.caps.phys_bits);
            return Err(MapRefusal::PhysTooWide { frames, bits }.into());
        }
        Ok(())
    }

    /// Bounce pages for the pages of the run that the device must not have.
    #[inline]
    fn bounce_pages(
        &self,
        pages: PageCount,
        window: ByteWindow,
    ) -> Result<[Option<BouncePage>; 2], DmaRefusal> {
        let exclusive = (self.trust, self.config.snooping);
        if exclusive == (Trust::Trusted, Snooping::Snoops) || Fault::BounceSkipped.is_on() {
            return Ok([None; 2]);
        }
        let wanted = body::partial_pages(pages, window).map(|page| page.is_some());
        match wanted {
            [false, false] => Ok([None; 2]),
            _ => self.take_bounce_pages(wanted),
        }
    }

    #[cold]
    fn take_bounce_pages(&self, wanted: [bool; 2]) -> Result<[Option<BouncePage>; 2], DmaRefusal> {
        let count = wanted.iter().filter(|wanted| **wanted).count();
        let mut pool = self.core.dma.pool.lock();
        let missing = pool.missing(count);
        if missing != 0 {
            return Err(DmaRefusal::NoBouncePages { missing });
        }
        Ok(wanted.map(|wanted| wanted.then(|| pool.take().map(BouncePage::new)).flatten()))
    }

    /// Gives bounce pages back that nothing was mapped to.
    #[cold]
    fn give_back(&self, bounce: [Option<BouncePage>; 2]) {
        let mut pool = self.core.dma.pool.lock();
        let pages = bounce.into_iter().flatten();
        pages.for_each(|bounce| pool.put(bounce.page()));
    }
}

/// The alignment of addresses at which a run takes the fewest leaves of a format.
#[inline]
pub(super) fn alignment<F: Format>(run: PhysRange) -> IovaAlign {
    let fits = |size: &PageSize| run.pages().get() >= size.pages() && run.start().is_aligned(*size);
    let sizes = const { Level::sizes::<F>() };
    let largest = sizes.into_iter().rev().find(fits);
    largest.unwrap_or(PageSize::Size4K).into()
}

impl<B: Backend> Stream<B> {
    /// Puts the edges' bytes where the device finds them, and writes back what the CPU's caches hold.
    #[inline]
    fn fill(&self) {
        if self.body.is_bounced() {
            body::fill_edges(&*self.hold, self.body);
        }
        self.drop_lines();
    }

    /// Maps the parts, or takes all of it back.
    #[inline(always)]
    fn map<D: Direction>(mut self) -> Result<StreamMapping<B, D>, StreamError<B, D>> {
        let mapped = match self.body.is_bounced() {
            false => self.placed.map_one(&self.hold, self.body.run, D::PERMS),
            true => {
                let (placed, mapped) =
                    body::map_parts(&*self.hold, self.placed.clone(), self.body, D::PERMS);
                self.placed = placed;
                mapped
            }
        };
        if let Err(error) = mapped {
            return Err(self.take_back(MapRefusal::from(error).into()));
        }
        let synced = self.hold.sync_map(self.placed.span());
        let mapping = StreamMapping {
            stream: self,
            direction: PhantomData,
        };
        match synced {
            Ok(()) => Ok(mapping),
            Err(reason) => Err(DmaMapError::NotVisible { mapping, reason }),
        }
    }

    /// Unmaps what was mapped before a part could not be.
    #[cold]
    fn take_back<D: Direction>(mut self, reason: DmaRefusal) -> StreamError<B, D> {
        if self.placed.mapped() == 0 {
            let value = self.go_home();
            return DmaMapError::Refused { value, reason };
        }
        let pending: PendingStream<B, D> = self.unmap();
        match pending.flush_untold() {
            Ok(value) => DmaMapError::Refused { value, reason },
            Err(error) => DmaMapError::Stuck {
                pending: error.pending,
                reason,
                flush: error.reason,
            },
        }
    }

    #[inline(always)]
    fn unmap<D: Direction>(self) -> PendingStream<B, D> {
        let tables = match self.body.is_bounced() {
            false => self.placed.unmap_one(&self.hold),
            true => body::unmap_parts(&*self.hold, self.placed.clone(), self.body),
        };
        let mark = Mark::of_unmap(&self.hold, self.placed.span(), tables);
        PendingStream {
            stream: self,
            mark,
            direction: PhantomData,
        }
    }

    /// Takes back what the seal was for.
    #[inline(always)]
    fn redeem(
        &mut self,
        receipt: &Receipt,
        mark: Mark,
        copy: bool,
    ) -> Result<FrameRun<Hypervisor>, RedeemRefusal> {
        let core = &self.hold;
        mark.seal(self.placed.span()).opens(core, receipt)?;
        match self.body.is_bounced() {
            // SAFETY: the receipt was just seen to open the seal of this unmap.
            false => unsafe { self.placed.redeem_one(core, self.body.run) }?,
            true => {
                // SAFETY: as above.
                let (placed, redeemed) =
                    unsafe { body::redeem_parts(core, self.placed.clone(), self.body) };
                self.placed = placed;
                redeemed?;
            }
        }
        if copy {
            self.copy_back();
        }
        Ok(self.go_home())
    }

    /// The run as it was, when the table holds nothing of it; bounce pages and addresses go back.
    #[inline(always)]
    fn go_home(&mut self) -> FrameRun<Hypervisor> {
        self.body.put_bounce_pages(&*self.hold);
        let span = self.placed.span();
        // SAFETY: its callers consume the stream, and do not look at it again.
        unsafe { self.leave() }.end_with(span);
        // SAFETY: by the invariant the run was given up for this value; the table holds nothing of it, and
        // this happens once, as its callers consume the value.
        unsafe { FrameRun::from_raw(self.body.run, ()) }
    }

    /// Addresses, run and bounce pages are the caller's from here on, and so is the hold.
    ///
    /// # Safety
    /// Nothing is done with the stream after this but dropping it.
    #[inline]
    pub(super) unsafe fn leave(&mut self) -> Hold<B> {
        // INVARIANT: by the caller's promise nobody looks at `hold` after this; nor does `drop`, which sees `home`.
        self.home = true;
        // SAFETY: as just said.
        unsafe { ManuallyDrop::take(&mut self.hold) }
    }

    /// Copies what a device wrote into bounce pages to where it belongs, after dropping what the CPU's caches
    /// hold of it.
    #[inline]
    pub(super) fn copy_back(&self) {
        self.drop_lines();
        if self.body.is_bounced() {
            body::copy_edges_back(&*self.hold, self.body);
        }
    }

    /// Copies what the CPU wrote into bounce pages, and writes it back.
    pub(super) fn copy_out(&self) {
        let memory = self.hold.system.backend.platform();
        for edge in self.body.edges() {
            // SAFETY: the page is of the run that this value has, the bounce page the pool gave it.
            unsafe { bounce::copy(memory, edge.own, edge.bounce, edge.part) };
        }
        self.drop_lines();
    }

    /// Memory and what the CPU sees of the mapped pages are the same, and no line of them is cached, where
    /// the device does not snoop. No line holds anything else: pages that are shared are bounced.
    #[inline]
    fn drop_lines(&self) {
        if self.snooping == Snooping::DoesNotSnoop && !Fault::SyncSkipsCaches.is_on() {
            body::drop_lines_of(&*self.hold, self.body);
        }
    }
}

impl<B: Backend> Drop for Stream<B> {
    /// The table keeps what it holds; pages that it does not hold are kept for the end of the domain.
    #[inline]
    fn drop(&mut self) {
        if self.home {
            return;
        }
        if self.body.is_bounced() {
            body::keep_orphans(&*self.hold, self.placed.clone(), self.body);
        }
        // SAFETY: nothing comes after the drop.
        drop(unsafe { self.leave() });
    }
}

impl<B: Backend, D: Direction> StreamMapping<B, D> {
    /// Where the device finds the first byte.
    pub fn iova(&self) -> Iova {
        let (start, window) = (self.span().start(), self.stream.body.window());
        start.checked_add(window.offset).unwrap_or(start)
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.stream.body.window().bytes
    }

    /// The pages that the device reaches it through.
    pub fn span(&self) -> IovaRange {
        self.stream.placed.span()
    }

    /// What the device may do with it. More than the direction says where the unit has no write-only mappings.
    pub fn granted(&self) -> Perms {
        self.stream.hold.granted(D::PERMS)
    }

    /// Whether the device has bounce pages in the place of some of the run's.
    pub fn is_bounced(&self) -> bool {
        self.stream.body.is_bounced()
    }

    /// Makes the memory unreachable for walks from now on. What is cached goes with the flush that the
    /// pending value asks for.
    #[inline(always)]
    pub fn unmap(self) -> PendingStream<B, D> {
        self.stream.unmap()
    }
}

impl<B: Backend, D: Direction> PendingStream<B, D> {
    /// What has to be flushed for it to open.
    pub fn flush_span(&self) -> IovaRange {
        self.seal().need.span
    }

    fn seal(&self) -> Seal {
        self.mark.seal(self.stream.placed.span())
    }

    /// Opens the value: the run comes back, with what the device wrote, and the addresses are free again.
    ///
    /// # Errors
    /// [`PendingError`] with this value, when the receipt does not cover it.
    #[inline(always)]
    pub fn redeem(self, receipt: &Receipt) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        self.open(receipt, D::PERMS.writable())
    }

    /// Flushes just this mapping and opens the value.
    ///
    /// # Errors
    /// [`PendingError`] with this value, when the flush failed.
    pub fn flush(self) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        let hold = Hold::new(&self.stream.hold);
        let opened = match self.seal().flush(&hold) {
            Ok(receipt) => self.redeem(&receipt),
            Err(error) => Err(PendingError {
                reason: error.into(),
                pending: self,
            }),
        };
        hold.assist_reclaim();
        opened
    }

    /// As [`flush`](Self::flush), for a mapping that no device was told of.
    fn flush_untold(self) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        match self.seal().flush(&self.stream.hold) {
            Ok(receipt) => self.open(&receipt, false),
            Err(error) => Err(PendingError {
                reason: error.into(),
                pending: self,
            }),
        }
    }

    #[inline(always)]
    fn open(
        mut self,
        receipt: &Receipt,
        copy: bool,
    ) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        match self.stream.redeem(receipt, self.mark, copy) {
            Ok(run) => Ok(run),
            Err(reason) => Err(PendingError {
                pending: self,
                reason,
            }),
        }
    }
}

impl<B: Backend, D: Direction> fmt::Debug for StreamMapping<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (window, span) = (self.stream.body.window(), self.span());
        write!(f, "{window} at {span}, {}", D::NAME)
    }
}

impl<B: Backend, D: Direction> fmt::Debug for PendingStream<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pending {}, {}", self.stream.placed.span(), D::NAME)
    }
}
