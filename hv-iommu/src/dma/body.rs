//! What a streaming mapping is of: a run, the bytes of it that are lent, and the bounce pages in the place of its ends.

#![expect(
    unsafe_code,
    reason = "copies between pages of a run and their bounce pages"
)]

use core::fmt;
use core::num::NonZeroU64;

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::{PageCount, PageSize, Perms, PhysAddr, PhysRange};

use super::bounce::{self, PagePart};
use super::parts::Placed;
use crate::backend::Backend;
use crate::domain::DomainCore;
use crate::table::TableError;

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
    #[inline]
    pub(super) fn whole(pages: PageCount) -> Self {
        Self {
            offset: 0,
            bytes: pages.bytes(),
        }
    }

    /// What is wrong with a window that does not fit a run of `pages` pages, in words.
    pub(super) fn misfit(self, pages: PageCount) -> impl fmt::Display {
        let end = self.offset.checked_add(self.bytes);
        fmt::from_fn(move |f| match end {
            _ if self.bytes == 0 => write!(f, "{self}: there is nothing to map"),
            Some(end) if end <= pages.bytes() => write!(
                f,
                "{self} leave out whole pages of the run's {pages}: split those off the run first"
            ),
            _ => write!(f, "{self} pass the end of the run of {pages}"),
        })
    }

    /// Whether the bytes begin in the first of `pages` pages and end in the last.
    #[inline]
    pub(super) fn fits(self, pages: PageCount) -> bool {
        let end = self.offset.checked_add(self.bytes);
        let spared = |end: u64| pages.bytes().checked_sub(end);
        self.bytes != 0
            && self.offset < PAGE
            && end.and_then(spared).is_some_and(|rest| rest < PAGE)
    }
}

/// A window as what it leaves of the first and of the last page of its run, which takes less room.
#[derive(Clone, Copy, Debug)]
struct Margins {
    head: u16,
    tail: u16,
}

/// A page of a buffer that stays with the CPU, and the bounce page that the device has in its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) own: PhysAddr,
    pub(super) bounce: PhysAddr,
    pub(super) part: PagePart,
}

/// What a mapping is of.
///
/// # Invariants
/// `run` is a run of hypervisor frames that was given up for this value. Its partial pages
/// ([`partial_pages`]) stay with the CPU where `bounce` has a page of the domain's pool for them, in the same
/// order; the other pages are the middle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    pub(super) run: PhysRange,
    margins: Margins,
    pub(super) bounce: [Option<BouncePage>; 2],
}

/// The address of a bounce page, in eight bytes also where there may be none.
///
/// # Invariants
/// The lowest bit is set, which no page's address has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BouncePage(NonZeroU64);

impl BouncePage {
    pub(super) fn new(page: PhysAddr) -> Self {
        // INVARIANT: the bit comes in here.
        Self(NonZeroU64::MIN | page.as_u64())
    }

    pub(super) fn page(self) -> PhysAddr {
        PhysAddr::new(self.0.get() & !1)
    }
}

impl Body {
    /// For a run that is given up for it, a window that [fits](ByteWindow::fits) it, and bounce pages for its partial
    /// pages.
    #[inline]
    pub(super) fn new(run: PhysRange, window: ByteWindow, bounce: [Option<BouncePage>; 2]) -> Self {
        let tail = run.pages().bytes() - (window.offset + window.bytes);
        // Both are less than a page, since the window fits.
        let margins = Margins {
            head: window.offset as u16,
            tail: tail as u16,
        };
        // INVARIANT: as the caller says.
        Self {
            run,
            margins,
            bounce,
        }
    }

    /// The bytes of the run that are lent.
    #[inline]
    pub(super) fn window(&self) -> ByteWindow {
        let Margins { head, tail } = self.margins;
        let (offset, tail) = (u64::from(head), u64::from(tail));
        ByteWindow {
            offset,
            bytes: self.run.pages().bytes() - offset - tail,
        }
    }

    /// Whether some of the run's pages are bounced.
    #[inline]
    pub(super) fn is_bounced(&self) -> bool {
        self.bounce.iter().any(Option::is_some)
    }

    /// The pages that the device reaches, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = PhysRange> + use<> {
        let page = |bounce: Option<BouncePage>| PhysRange::new(bounce?.page(), PageCount::ONE).ok();
        let [head, tail] = self.bounce;
        [page(head), self.middle(), page(tail)]
            .into_iter()
            .flatten()
    }

    /// Where the window begins in memory.
    pub(super) fn first_byte(&self) -> Option<PhysAddr> {
        self.run.start().checked_add(self.margins.head.into())
    }

    fn middle(&self) -> Option<PhysRange> {
        let [head, tail] = self.bounce.map(|page| u64::from(page.is_some()));
        if head + tail == 0 {
            return Some(self.run);
        }
        let pages = PageCount::new(self.run.pages().get().checked_sub(head + tail)?)?;
        PhysRange::new(self.run.page(head)?, pages).ok()
    }

    pub(super) fn edges(&self) -> impl Iterator<Item = Edge> + use<> {
        let run = self.run;
        let pages = partial_pages(run.pages(), self.window());
        pages
            .into_iter()
            .zip(self.bounce)
            .filter_map(move |(page, bounce)| {
                let ((index, part), bounce) = (page?, bounce?);
                let (own, bounce) = (run.page(index)?, bounce.page());
                Some(Edge { own, bounce, part })
            })
    }
}

impl Body {
    /// Gives the bounce pages back to their pool, when no device reaches them any more.
    #[inline]
    pub(super) fn put_bounce_pages<B: Backend>(&self, core: &DomainCore<B>) {
        if self.is_bounced() {
            let mut pool = core.dma.pool.lock();
            let pages = self.bounce.into_iter().flatten();
            pages.for_each(|bounce| pool.put(bounce.page()));
        }
    }
}

/// Which of `pages` pages the window fills in part, with the part: the first, and the last if it is another.
#[inline]
pub(super) fn partial_pages(pages: PageCount, window: ByteWindow) -> [Option<(u64, PagePart)>; 2] {
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

// What is rare takes and gives values, not references to what a caller has in registers: the common way, inlined,
// then keeps no mapping in memory.

/// [`Placed::map`] of a bounced body.
#[cold]
pub(super) fn map_parts<B: Backend>(
    core: &DomainCore<B>,
    mut placed: Placed,
    body: Body,
    perms: Perms,
) -> (Placed, Result<(), TableError>) {
    let mapped = placed.map(core, body.parts(), perms);
    (placed, mapped)
}

/// [`Placed::unmap`] of a bounced body.
#[cold]
pub(super) fn unmap_parts<B: Backend>(core: &DomainCore<B>, placed: Placed, body: Body) -> bool {
    placed.unmap(core, body.parts())
}

/// [`Placed::redeem`] of a bounced body.
///
/// # Safety
/// A receipt has opened the seal of the unmap.
#[cold]
pub(super) unsafe fn redeem_parts<B: Backend>(
    core: &DomainCore<B>,
    mut placed: Placed,
    body: Body,
) -> (Placed, Result<(), TableError>) {
    // SAFETY: the caller's promise is the same.
    let redeemed = unsafe { placed.redeem(core, body.parts()) };
    (placed, redeemed)
}

/// Puts the edges' bytes where the device finds them.
#[cold]
pub(super) fn fill_edges<B: Backend>(core: &DomainCore<B>, body: Body) {
    let memory = core.system.backend.platform();
    for edge in body.edges() {
        // SAFETY: the page is of the run that the body's value has, the bounce page the pool gave it.
        unsafe { bounce::fill(memory, edge.own, edge.bounce, edge.part) };
    }
}

/// Copies what a device wrote into bounce pages to where it belongs.
#[cold]
pub(super) fn copy_edges_back<B: Backend>(core: &DomainCore<B>, body: Body) {
    let memory = core.system.backend.platform();
    for edge in body.edges() {
        let part = match Fault::BounceCopiesBackWholePage.is_on() {
            true => PagePart {
                offset: 0,
                bytes: PAGE,
            },
            false => edge.part,
        };
        // SAFETY: the page is of the run that the body's value has, the bounce page the pool gave it.
        unsafe { bounce::copy(memory, edge.bounce, edge.own, part) };
    }
}

/// Writes back and drops the lines of the pages that the device reaches.
#[cold]
pub(super) fn drop_lines_of<B: Backend>(core: &DomainCore<B>, body: Body) {
    let platform = core.system.backend.platform();
    for part in body.parts() {
        platform.write_back_and_drop(part.start(), part.pages().bytes());
    }
}

/// Keeps the pages of a dropped mapping that the table does not hold for the end of the domain: those that were never
/// mapped, and those whose words a redeem emptied before it failed at another part.
#[cold]
pub(super) fn keep_orphans<B: Backend>(core: &DomainCore<B>, placed: Placed, body: Body) {
    let mut pool = core.dma.pool.lock();
    for own in body.edges().map(|edge| edge.own) {
        if let Ok(page) = PhysRange::new(own, PageCount::ONE) {
            pool.keep_orphan(page);
        }
    }
    // Bounce pages too: what they stood in for has its place in the list as long as they are not in the pool again.
    for (index, part) in body.parts().enumerate() {
        if !placed.is_held(index) {
            pool.keep_orphan(part);
        }
    }
}
