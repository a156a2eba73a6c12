//! Streaming mappings: a run of frames that a device has for a while, and the CPU does not.

#![expect(
    unsafe_code,
    reason = "takes a run of frames back that it gave up for a mapping"
)]

use core::fmt;
use core::marker::PhantomData;

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::{
    FrameRun, Hypervisor, Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr, PhysRange,
};

use super::Hold;
use super::bounce::{self, PagePart};
use super::device::{DmaDevice, Snooping, Trust};
use super::direction::Direction;
use super::error::{DmaMapError, DmaRefusal, PendingError};
use super::parts::Placed;
use crate::backend::Backend;
use crate::flush::Receipt;
use crate::iova::IovaAlign;
use crate::pending::{RedeemRefusal, Seal};
use crate::range::MapRefusal;

/// Bytes of a page.
const PAGE: u64 = PageSize::Size4K.bytes();

/// Bytes of a run of frames: where they begin, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteWindow {
    /// Bytes from the start of the run.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
}

impl fmt::Display for ByteWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at offset {:#x}", self.bytes, self.offset)
    }
}

impl ByteWindow {
    /// All of a run.
    fn whole(pages: PageCount) -> Self {
        Self {
            offset: 0,
            bytes: pages.bytes(),
        }
    }

    /// Whether the bytes begin in the first of `pages` pages and end in the last.
    fn fits(self, pages: PageCount) -> bool {
        let end = self.offset.checked_add(self.bytes);
        let spared = |end: u64| pages.bytes().checked_sub(end);
        self.bytes != 0
            && self.offset < PAGE
            && end.and_then(spared).is_some_and(|rest| rest < PAGE)
    }
}

/// A page of a buffer that stays with the CPU, and the bounce page that the device has in its place.
#[derive(Clone, Copy, Debug)]
struct Edge {
    own: PhysAddr,
    bounce: PhysAddr,
    part: PagePart,
}

/// What a mapping is of.
///
/// # Invariants
/// `run` is a run of hypervisor frames that was given up for this value. Those of its pages that no edge
/// keeps are the middle; `edges` are the first and the last page, if bounced, in this order, one if they
/// are the same. The bounce pages are the domain's pool's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    pub(super) run: PhysRange,
    window: ByteWindow,
    edges: [Option<Edge>; 2],
}

impl Body {
    /// The pages that the device reaches, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = PhysRange> + use<> {
        let page = |edge: Option<Edge>| PhysRange::new(edge?.bounce, PageCount::ONE).ok();
        let [head, tail] = self.edges;
        [page(head), self.middle(), page(tail)]
            .into_iter()
            .flatten()
    }

    /// Where the window begins in memory.
    pub(super) fn first_byte(&self) -> Option<PhysAddr> {
        self.run.start().checked_add(self.window.offset)
    }

    fn middle(&self) -> Option<PhysRange> {
        let [head, tail] = self.edges.map(|edge| u64::from(edge.is_some()));
        if head + tail == 0 {
            return Some(self.run);
        }
        let pages = PageCount::new(self.run.pages().get().checked_sub(head + tail)?)?;
        PhysRange::new(self.run.page(head)?, pages).ok()
    }

    fn edges(&self) -> impl Iterator<Item = Edge> + use<> {
        self.edges.into_iter().flatten()
    }
}

/// A body at its place: what the states of a stream have in common.
///
/// # Invariants
/// The body's parts are what is mapped at `placed`. Once `home` is set, addresses, run and bounce pages are
/// somebody else's.
pub(super) struct Stream<B: Backend> {
    pub(super) hold: Hold<B>,
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
    pub(super) seal: Seal,
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
    pub fn map_bytes<D: Direction>(
        &self,
        run: FrameRun<Hypervisor>,
        window: ByteWindow,
        _direction: D,
    ) -> Result<StreamMapping<B, D>, StreamError<B, D>> {
        let taken = self
            .check(&run, window)
            .and_then(|()| self.edges(run.range(), window))
            .and_then(|edges| {
                let place = self.addresses(run.pages(), alignment(run.range()));
                place
                    .map(|span| (edges, span))
                    .inspect_err(|_| self.give_back(edges))
            });
        let (edges, span) = match taken {
            Ok(taken) => taken,
            Err(reason) => return Err(DmaMapError::Refused { value: run, reason }),
        };
        // INVARIANT: the run is given up for this value; its edges and addresses were taken just now.
        let stream = Stream {
            hold: Hold::new(&self.hold.0),
            placed: Placed::new(span),
            body: Body {
                run: run.into_range(),
                window,
                edges,
            },
            trust: self.config.trust,
            snooping: self.config.snooping,
            home: false,
        };
        stream.fill();
        stream.map()
    }

    fn check(&self, run: &FrameRun<Hypervisor>, window: ByteWindow) -> Result<(), DmaRefusal> {
        let core = &self.hold.0;
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

    /// The pages of the run that the device must not have, each with a bounce page.
    fn edges(&self, run: PhysRange, window: ByteWindow) -> Result<[Option<Edge>; 2], DmaRefusal> {
        let exclusive = (self.config.trust, self.config.snooping);
        if exclusive == (Trust::Trusted, Snooping::Snoops) || Fault::BounceSkipped.is_on() {
            return Ok([None; 2]);
        }
        let wanted = partial_pages(run.pages(), window);
        let count = wanted.iter().flatten().count();
        if count == 0 {
            return Ok([None; 2]);
        }
        let mut pool = self.hold.0.dma.pool.lock();
        let missing = pool.missing(count);
        if missing != 0 {
            return Err(DmaRefusal::NoBouncePages { missing });
        }
        Ok(wanted.map(|page| {
            let (index, part) = page?;
            let (own, bounce) = (run.page(index)?, pool.take()?);
            Some(Edge { own, bounce, part })
        }))
    }

    /// Gives bounce pages back that nothing was mapped to.
    fn give_back(&self, edges: [Option<Edge>; 2]) {
        let mut pool = self.hold.0.dma.pool.lock();
        edges
            .into_iter()
            .flatten()
            .for_each(|edge| pool.put(edge.bounce));
    }
}

/// Which of `pages` pages the window fills in part, with the part: the first, and the last if it is another.
fn partial_pages(pages: PageCount, window: ByteWindow) -> [Option<(u64, PagePart)>; 2] {
    let last = pages.get() - 1;
    let end = window.offset + window.bytes - last * PAGE;
    if last == 0 {
        let part = PagePart {
            offset: window.offset,
            bytes: window.bytes,
        };
        return [(window.bytes != PAGE).then_some((0, part)), None];
    }
    let head = PagePart {
        offset: window.offset,
        bytes: PAGE - window.offset,
    };
    let tail = PagePart {
        offset: 0,
        bytes: end,
    };
    [
        (window.offset != 0).then_some((0, head)),
        (end != PAGE).then_some((last, tail)),
    ]
}

/// The alignment of addresses at which a run takes the fewest leaves.
pub(super) fn alignment(run: PhysRange) -> IovaAlign {
    let fits = |size: &PageSize| run.pages().get() >= size.pages() && run.start().is_aligned(*size);
    let largest = PageSize::ALL.into_iter().rev().find(fits);
    largest.unwrap_or(PageSize::Size4K).into()
}

impl<B: Backend> Stream<B> {
    /// Puts the edges' bytes where the device finds them, and writes back what the CPU's caches hold.
    fn fill(&self) {
        let memory = self.hold.0.system.backend.platform();
        for edge in self.body.edges() {
            // SAFETY: the page is of the run that this value has, the bounce page the pool gave it.
            unsafe { bounce::fill(memory, edge.own, edge.bounce, edge.part) };
        }
        self.drop_lines();
    }

    /// Maps the parts, or takes all of it back.
    fn map<D: Direction>(mut self) -> Result<StreamMapping<B, D>, StreamError<B, D>> {
        let parts = self.body.parts();
        if let Err(error) = self.placed.map(&self.hold.0, parts, D::PERMS) {
            let reason = MapRefusal::from(error).into();
            if self.placed.mapped() == 0 {
                let value = self.go_home();
                return Err(DmaMapError::Refused { value, reason });
            }
            let pending: PendingStream<B, D> = self.unmap();
            return Err(match pending.flush_untold() {
                Ok(value) => DmaMapError::Refused { value, reason },
                Err(error) => DmaMapError::Stuck {
                    pending: error.pending,
                    reason,
                    flush: error.reason,
                },
            });
        }
        let synced = self.hold.0.sync_map(self.placed.span());
        let mapping = StreamMapping {
            stream: self,
            direction: PhantomData,
        };
        match synced {
            Ok(()) => Ok(mapping),
            Err(reason) => Err(DmaMapError::NotVisible { mapping, reason }),
        }
    }

    fn unmap<D: Direction>(self) -> PendingStream<B, D> {
        let tables = self.placed.unmap(&self.hold.0, self.body.parts());
        let seal = Seal::of_unmap(&self.hold.0, self.placed.span(), tables, None);
        PendingStream {
            stream: self,
            seal,
            direction: PhantomData,
        }
    }

    /// Takes back what the seal was for.
    fn redeem(
        &mut self,
        receipt: &Receipt,
        seal: &Seal,
        copy: bool,
    ) -> Result<FrameRun<Hypervisor>, RedeemRefusal> {
        let core = &self.hold.0;
        seal.opens(core, receipt)?;
        // SAFETY: the receipt was just seen to open the seal of this unmap.
        unsafe { self.placed.redeem(core, self.body.parts()) }?;
        if copy {
            self.copy_back();
        }
        Ok(self.go_home())
    }

    /// The run as it was, when the table holds nothing of it; bounce pages and addresses go back.
    fn go_home(&mut self) -> FrameRun<Hypervisor> {
        self.home = true;
        let core = &self.hold.0;
        self.body.put_bounce_pages(core);
        core.free_iova(self.placed.span());
        // SAFETY: by the invariant the run was given up for this value; the table holds nothing of it, and
        // this happens once, as its callers consume the value.
        unsafe { FrameRun::from_raw(self.body.run, ()) }
    }

    /// Addresses, run and bounce pages are somebody else's from here on.
    pub(super) fn is_home(&mut self) {
        self.home = true;
    }

    /// Copies what a device wrote into bounce pages to where it belongs, after dropping what the CPU's caches
    /// hold of it.
    pub(super) fn copy_back(&self) {
        self.drop_lines();
        let memory = self.hold.0.system.backend.platform();
        for edge in self.body.edges() {
            let part = match Fault::BounceCopiesBackWholePage.is_on() {
                true => PagePart {
                    offset: 0,
                    bytes: PAGE,
                },
                false => edge.part,
            };
            // SAFETY: the page is of the run that this value has, the bounce page the pool gave it.
            unsafe { bounce::copy(memory, edge.bounce, edge.own, part) };
        }
    }

    /// Copies what the CPU wrote into bounce pages, and writes it back.
    pub(super) fn copy_out(&self) {
        let memory = self.hold.0.system.backend.platform();
        for edge in self.body.edges() {
            // SAFETY: the page is of the run that this value has, the bounce page the pool gave it.
            unsafe { bounce::copy(memory, edge.own, edge.bounce, edge.part) };
        }
        self.drop_lines();
    }

    /// Memory and what the CPU sees of the mapped pages are the same, and no line of them is cached, where
    /// the device does not snoop. No line holds anything else: pages that are shared are bounced.
    fn drop_lines(&self) {
        if self.snooping == Snooping::Snoops || Fault::SyncSkipsCaches.is_on() {
            return;
        }
        let platform = self.hold.0.system.backend.platform();
        for part in self.body.parts() {
            platform.write_back_and_drop(part.start(), part.pages().bytes());
        }
    }
}

impl Body {
    /// Gives the bounce pages back to their pool, when no device reaches them any more.
    pub(super) fn put_bounce_pages<B: Backend>(&self, core: &crate::domain::DomainCore<B>) {
        if self.edges.iter().any(Option::is_some) {
            let mut pool = core.dma.pool.lock();
            self.edges().for_each(|edge| pool.put(edge.bounce));
        }
    }
}

impl<B: Backend> Drop for Stream<B> {
    /// The table keeps what it holds; pages that it does not hold are kept for the end of the domain.
    fn drop(&mut self) {
        if self.home || self.body.edges.iter().all(Option::is_none) {
            return;
        }
        let mut pool = self.hold.0.dma.pool.lock();
        for own in self.body.edges().map(|edge| edge.own) {
            if let Ok(page) = PhysRange::new(own, PageCount::ONE) {
                pool.keep_orphan(page);
            }
        }
        let middle = self.body.middle();
        for part in self.body.parts().skip(self.placed.mapped()) {
            match Some(part) == middle {
                true => pool.keep_orphan(part),
                false => pool.put(part.start()),
            }
        }
    }
}

impl<B: Backend, D: Direction> StreamMapping<B, D> {
    /// Where the device finds the first byte.
    pub fn iova(&self) -> Iova {
        let (start, window) = (self.span().start(), self.stream.body.window);
        start.checked_add(window.offset).unwrap_or(start)
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.stream.body.window.bytes
    }

    /// The pages that the device reaches it through.
    pub fn span(&self) -> IovaRange {
        self.stream.placed.span()
    }

    /// What the device may do with it. More than the direction says where the unit has no write-only mappings.
    pub fn granted(&self) -> Perms {
        self.stream.hold.0.granted(D::PERMS)
    }

    /// Whether the device has bounce pages in the place of some of the run's.
    pub fn is_bounced(&self) -> bool {
        self.stream.body.edges.iter().any(Option::is_some)
    }

    /// Makes the memory unreachable for walks from now on. What is cached goes with the flush that the
    /// pending value asks for.
    pub fn unmap(self) -> PendingStream<B, D> {
        self.stream.unmap()
    }
}

impl<B: Backend, D: Direction> PendingStream<B, D> {
    /// What has to be flushed for it to open.
    pub fn flush_span(&self) -> IovaRange {
        self.seal.need.span
    }

    /// Opens the value: the run comes back, with what the device wrote, and the addresses are free again.
    ///
    /// # Errors
    /// [`PendingError`] with this value, when the receipt does not cover it.
    pub fn redeem(self, receipt: &Receipt) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        self.open(receipt, D::PERMS.writable())
    }

    /// Flushes just this mapping and opens the value.
    ///
    /// # Errors
    /// [`PendingError`] with this value, when the flush failed.
    pub fn flush(self) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        let hold = Hold::new(&self.stream.hold.0);
        let opened = match self.seal.flush(&hold.0) {
            Ok(receipt) => self.redeem(&receipt),
            Err(error) => Err(PendingError {
                reason: error.into(),
                pending: self,
            }),
        };
        hold.0.assist_reclaim();
        opened
    }

    /// As [`flush`](Self::flush), for a mapping that no device was told of.
    fn flush_untold(self) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        match self.seal.flush(&self.stream.hold.0) {
            Ok(receipt) => self.open(&receipt, false),
            Err(error) => Err(PendingError {
                reason: error.into(),
                pending: self,
            }),
        }
    }

    fn open(
        mut self,
        receipt: &Receipt,
        copy: bool,
    ) -> Result<FrameRun<Hypervisor>, PendingError<Self>> {
        match self.stream.redeem(receipt, &self.seal, copy) {
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
        let (window, span) = (self.stream.body.window, self.span());
        write!(f, "{window} at {span}, {}", D::NAME)
    }
}

impl<B: Backend, D: Direction> fmt::Debug for PendingStream<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pending {}, {}", self.stream.placed.span(), D::NAME)
    }
}
