//! A domain of a random life with everything that is mapped in it, and its place in the ledger.

use hv_core::platform::FrameSource;
use hv_core::{
    FrameRun, GpaRange, GuestMemory, Hypervisor, IovaRange, KernelPaging, Owner, PageCount,
    PageSize, Perms, UserManaged, VmId,
};
use hv_iommu::{
    Bidirectional, Domain, FlushError, FlushSpan, Free, Level, MapError, MapRefusal, Mapped,
    PendingScatter, PendingUnmap, Range, Receipt,
};

use super::granule::Lives;
use super::world::Memories;
use crate::ledger::Tenant;
use crate::rng::Rng;
use crate::rule::Rule;

/// Owners whose memory a life can come by.
pub(crate) trait Household: Owner {
    /// A run of frames of this owner.
    fn frames(
        memories: &Memories,
        owner: Self::Id,
        pages: PageCount,
        align: PageSize,
        choice: u64,
    ) -> Option<FrameRun<Self::Memory>>;

    /// Gives a run back.
    fn give_back(memories: &Memories, run: FrameRun<Self::Memory>);
}

impl Household for KernelPaging {
    fn frames(
        memories: &Memories,
        (): (),
        pages: PageCount,
        align: PageSize,
        _choice: u64,
    ) -> Option<FrameRun<Hypervisor>> {
        memories.rig.alloc_frames(pages, align).ok()
    }

    fn give_back(memories: &Memories, run: FrameRun<Hypervisor>) {
        memories.rig.free_frames(run);
    }
}

impl Household for UserManaged {
    fn frames(
        memories: &Memories,
        owner: VmId,
        pages: PageCount,
        align: PageSize,
        choice: u64,
    ) -> Option<FrameRun<hv_core::Guest>> {
        let memory = memories.guest(owner)?;
        let all = memories.guest_pages;
        let room = (all.checked_sub(pages.get())?) / align.pages() + 1;
        let first = choice % room * align.pages();
        let gpa = GpaRange::new(hv_core::Gpa::new(first * PageSize::Size4K.bytes()), pages).ok()?;
        GuestMemory::pin(memory, gpa).ok()
    }

    fn give_back(memories: &Memories, run: FrameRun<hv_core::Guest>) {
        let given = memories.guest(run.owner()).map(|memory| memory.unpin(run));
        if !matches!(given, Some(Ok(()))) {
            memories.rig.broken(
                Rule::Leak,
                "a run of guest memory does not go back to its guest",
            );
        }
    }
}

/// What an operation on a space came to.
pub(crate) enum Done {
    /// It was done, or refused for a good reason.
    Fine,
    /// A unit failed.
    Unit(FlushError),
}

/// One domain.
pub(crate) struct Space<O: Household, B: Lives> {
    pub(crate) domain: Domain<O, B>,
    pub(crate) owner: O::Id,
    pub(crate) tenant: Tenant,
    pub(crate) mapped: Vec<Range<O, B, Mapped>>,
    pub(crate) pending: Vec<PendingUnmap<O, B>>,
    /// Ranges that a unit was not told of when they were mapped.
    pub(crate) unseen: Vec<IovaRange>,
    /// A receipt of long ago, which opens nothing that was unmapped since.
    pub(crate) old: Option<Receipt>,
    /// Whether something is mapped or pending that nobody holds any more.
    pub(crate) forgot: bool,
    /// What came back before its flush, with the addresses that wait for it.
    pub(crate) waiting: Vec<(IovaRange, FrameRun<O::Memory>)>,
    /// Lists of which a part was mapped, and that a unit did not let go of.
    pub(crate) stuck: Vec<PendingScatter<B, Bidirectional>>,
    /// Groups that are attached, or were wedged while attached.
    pub(crate) attached: usize,
}

impl<O: Household, B: Lives> Space<O, B> {
    /// A domain with nothing mapped and nothing attached.
    pub(crate) fn new(domain: Domain<O, B>, owner: O::Id, tenant: Tenant) -> Self {
        Self {
            domain,
            owner,
            tenant,
            mapped: Vec::new(),
            pending: Vec::new(),
            unseen: Vec::new(),
            old: None,
            forgot: false,
            waiting: Vec::new(),
            stuck: Vec::new(),
            attached: 0,
        }
    }
}

/// Pages of the address space that mappings lie in: small, so that they come close to each other.
const SPREAD: u64 = 512;

/// Now and then something that is no smallest page begins or ends where there is none: that is refused, and nothing of it
/// is lost.
fn amiss<B: Lives>(choice: u64, page: u64, pages: PageCount) -> (u64, PageCount) {
    let by = choice >> 48;
    if B::PAGE == 1 || by % 32 >= 2 {
        return (page, pages);
    }
    let more = 1 + by / 32 % (B::PAGE - 1);
    match by % 32 {
        0 => (page + more, pages),
        _ => (page, PageCount::new(pages.get() + more).unwrap_or(pages)),
    }
}

impl<O: Household, B: Lives> Space<O, B> {
    /// Maps a range somewhere.
    pub(crate) fn map(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let mut rng = Rng::new(choice[0]);
        let kind = rng.below(20);
        self.map_kind(memories, choice, kind, rng)
    }

    /// Maps a range that large pages fit.
    pub(crate) fn map_large(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let mut rng = Rng::new(choice[0]);
        let kind = rng.below(4).min(2);
        self.map_kind(memories, choice, kind, rng)
    }

    fn map_kind(&mut self, memories: &Memories, choice: [u64; 3], kind: u64, mut rng: Rng) -> Done {
        let (small, large) = (B::smallest(), B::large());
        let (pages, align, largest) = match kind {
            0 => (B::LARGE, large, PageSize::LARGEST),
            1 => (
                B::LARGE + rng.below(600) * B::PAGE,
                large,
                PageSize::LARGEST,
            ),
            2 => (B::LARGE, large, small),
            // A gigabyte takes 262144 leaves where there are only small ones of 4 KiB.
            3 if rng.one_in(4) && self.domain.geometry().largest_leaf > Level::LEAF => {
                let largest = [large, PageSize::LARGEST];
                let largest = rng.pick(&largest).copied().unwrap_or(PageSize::LARGEST);
                (1 << 18, PageSize::Size1G, largest)
            }
            4..10 => (B::PAGE, small, PageSize::LARGEST),
            _ => ((1 + rng.below(24)) * B::PAGE, small, PageSize::LARGEST),
        };
        let Some(pages) = PageCount::new(pages) else {
            return Done::Fine;
        };
        let step = align.pages();
        // Mostly low; sometimes a gigabyte up, at the far end of what a device can say, or at the window for
        // interrupt messages, which no domain has.
        let region = match rng.below(16) {
            0..5 => 1 << 18,
            5 => 1 << (15 + rng.below(21)),
            6 => 0xf_ee00,
            _ => 0,
        };
        let page = region + rng.below((SPREAD * B::PAGE).max(step * 4)) / step * step;
        let (page, pages) = amiss::<B>(choice[1], page, pages);
        let perms = match rng.below(4) {
            0 => Perms::Read,
            1 => Perms::Write,
            _ => Perms::ReadWrite,
        };
        let start = hv_core::Iova::new(page * PageSize::Size4K.bytes());
        let Ok(range) = IovaRange::new(start, pages) else {
            return Done::Fine;
        };
        let Ok(free) = self.domain.reserve(range) else {
            return Done::Fine;
        };
        let Some(frames) = O::frames(memories, self.owner, pages, align, choice[1]) else {
            self.release(memories, free);
            return Done::Fine;
        };
        self.map_into(memories, free, frames, perms, largest)
    }

    /// Maps these frames into a range, and keeps it.
    pub(crate) fn map_into(
        &mut self,
        memories: &Memories,
        free: Range<O, B, Free>,
        frames: FrameRun<O::Memory>,
        perms: Perms,
        largest: PageSize,
    ) -> Done {
        let (rig, range) = (&memories.rig, free.span());
        rig.say(format!(
            "{:?} maps {range} to {}, {perms}",
            self.tenant,
            frames.range()
        ));
        // A unit without write-only mappings widens them, which the answer tells.
        let most = if perms == Perms::Write {
            Perms::ReadWrite
        } else {
            perms
        };
        rig.mapping(self.tenant, range, frames.range(), most);
        let whole = (range.start().as_u64() >> PageSize::Size4K.shift() | range.pages().get())
            .is_multiple_of(B::PAGE);
        match free.map_with(frames, perms, largest) {
            Ok(mapped) => {
                if !whole {
                    rig.broken(
                        Rule::WrongAnswer,
                        format!("{range} cuts a page, and is mapped"),
                    );
                }
                rig.mapped(self.tenant, range, mapped.granted());
                self.mapped.push(mapped);
                Done::Fine
            }
            Err(MapError::Refused {
                range: free,
                frames,
                reason,
            }) => {
                rig.returned(self.tenant, range);
                if !matches!(
                    reason,
                    MapRefusal::Table(_) | MapRefusal::PhysTooWide { .. }
                ) {
                    rig.broken(
                        Rule::WrongAnswer,
                        format!("{range} was not mapped: {reason}"),
                    );
                }
                O::give_back(memories, frames);
                self.release(memories, free);
                Done::Fine
            }
            Err(MapError::NotVisible {
                range: mapped,
                reason,
            }) => {
                self.unseen.push(range);
                self.mapped.push(mapped);
                Done::Unit(reason)
            }
        }
    }

    pub(crate) fn release(&self, memories: &Memories, free: Range<O, B, Free>) {
        if let Err((free, error)) = free.release() {
            memories
                .rig
                .broken(Rule::Leak, format!("{free:?} cannot be released: {error}"));
        }
    }

    /// Mostly a range with large pages, or room for them.
    pub(crate) fn take_large(&mut self, choice: u64) -> Option<Range<O, B, Mapped>> {
        let large = |range: &Range<O, B, Mapped>| range.span().pages().get() >= B::LARGE / 2;
        let count = self.mapped.len();
        let start = choice.checked_rem(count as u64)? as usize;
        let mut order = (0..count).map(|step| (start + step) % count);
        let found = order.find(|index| self.mapped.get(*index).is_some_and(large));
        match found {
            Some(index) if choice >> 32 & 3 != 0 => Some(self.mapped.swap_remove(index)),
            _ => self.take_mapped(choice),
        }
    }

    pub(crate) fn take_mapped(&mut self, choice: u64) -> Option<Range<O, B, Mapped>> {
        let index = choice.checked_rem(self.mapped.len() as u64)?;
        Some(self.mapped.swap_remove(index as usize))
    }

    /// Unmaps a range; `now` waits for the receipt.
    pub(crate) fn unmap(&mut self, memories: &Memories, choice: u64, now: bool) -> Done {
        let Some(mapped) = self.take_mapped(choice) else {
            return Done::Fine;
        };
        let (rig, span) = (&memories.rig, mapped.span());
        rig.say(format!("{:?} unmaps {span}", self.tenant));
        rig.unmapping(self.tenant, span);
        self.unseen.retain(|range| !range.overlaps(&mapped.span()));
        let mut pending = mapped.unmap();
        // A flush that was over before the unmap says nothing of it.
        if let Some(old) = &self.old {
            pending = match pending.redeem(old) {
                Err(error) => error.pending,
                Ok((free, _)) => {
                    let what = format!(
                        "{} was opened by a receipt of before its unmap",
                        free.span()
                    );
                    memories.rig.broken(Rule::WrongAnswer, what);
                    return Done::Fine;
                }
            };
        }
        if !now {
            self.pending.push(pending);
            return Done::Fine;
        }
        let span = pending.span();
        match pending.flush() {
            Ok((free, frames)) => {
                self.redeemed(memories, span, free, frames);
                Done::Fine
            }
            Err(error) => {
                self.pending.push(error.pending);
                self.unit_failed(memories, error.reason)
            }
        }
    }

    pub(crate) fn redeemed(
        &self,
        memories: &Memories,
        span: IovaRange,
        free: Range<O, B, Free>,
        frames: FrameRun<O::Memory>,
    ) {
        let rig = &memories.rig;
        rig.expect_frames(self.tenant, span, frames.range());
        rig.returned(self.tenant, span);
        O::give_back(memories, frames);
        self.release(memories, free);
    }

    /// Flushes a few pages, which opens what is pending there and nothing else.
    pub(crate) fn flush_pages(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        // Whether or not smallest pages begin and end there.
        let first = choice[0] % (SPREAD * B::PAGE);
        let start = hv_core::Iova::new(first * PageSize::Size4K.bytes());
        let pages = PageCount::new(1 + choice[1] % (64 * B::PAGE)).unwrap_or(PageCount::ONE);
        let Ok(span) = IovaRange::new(start, pages) else {
            return Done::Fine;
        };
        let receipt = match self.domain.flush(FlushSpan::Pages(span)) {
            Ok(receipt) => receipt,
            Err(error) => return Done::Unit(error),
        };
        for pending in core::mem::take(&mut self.pending) {
            let (range, covered) = (pending.span(), span.covers(&pending.flush_span()));
            match pending.redeem(&receipt) {
                Ok((free, frames)) => {
                    if !covered {
                        let what = format!("{range} was opened by a flush of {span}");
                        memories.rig.broken(Rule::WrongAnswer, what);
                    }
                    self.redeemed(memories, range, free, frames);
                }
                Err(error) => {
                    if covered {
                        let what = format!(
                            "{range} stays closed to a flush of {span}: {}",
                            error.reason
                        );
                        memories.rig.broken(Rule::WrongAnswer, what);
                    }
                    self.pending.push(error.pending);
                }
            }
        }
        self.settle_with(memories, &receipt, false);
        Done::Fine
    }

    /// Flushes the domain and opens what is pending; with the same receipt it pays, mostly, what ranges owe.
    pub(crate) fn flush(&mut self, memories: &Memories, choice: u64) -> Done {
        let receipt = match self.domain.flush(FlushSpan::Domain) {
            Ok(receipt) => receipt,
            Err(error) => return Done::Unit(error),
        };
        // They may have been cut and changed since.
        let unseen = core::mem::take(&mut self.unseen);
        for range in &self.mapped {
            if unseen.iter().any(|unseen| unseen.overlaps(&range.span())) {
                memories
                    .rig
                    .mapped(self.tenant, range.span(), range.granted());
            }
        }
        self.old = Some(receipt);
        for pending in core::mem::take(&mut self.pending) {
            let span = pending.span();
            match pending.redeem(&receipt) {
                Ok((free, frames)) => self.redeemed(memories, span, free, frames),
                Err(error) => {
                    let what = format!(
                        "{span} stays closed to a flush of its domain: {}",
                        error.reason
                    );
                    memories.rig.broken(Rule::WrongAnswer, what);
                    self.pending.push(error.pending);
                }
            }
        }
        if choice & 3 != 0 {
            self.settle_with(memories, &receipt, true);
        }
        Done::Fine
    }

    /// Cuts a range in two where no page is cut.
    pub(crate) fn split(&mut self, choice: [u64; 3]) {
        let Some(mapped) = self.take_mapped(choice[0]) else {
            return;
        };
        let at = PageCount::new(choice[1] % mapped.span().pages().get());
        match at.map(|at| mapped.split_at(at)) {
            Some(Ok((left, right))) => self.mapped.extend([left, right]),
            Some(Err(whole)) => self.mapped.push(whole),
            // Zero pages is no place to cut: the range goes, and comes back with the domain's end.
            None => self.forgot = true,
        }
    }

    /// Loses a range or a pending value.
    pub(crate) fn forget(&mut self, choice: [u64; 3]) {
        self.forgot = true;
        if choice[0] & 1 == 0 {
            drop(self.take_mapped(choice[1]));
        } else {
            self.pending.pop();
        }
    }

    /// The spot of a mapped page, and the permissions there.
    pub(crate) fn some_mapped(&self, choice: [u64; 3]) -> Option<(hv_core::Iova, Perms)> {
        let index = choice[0].checked_rem(self.mapped.len() as u64)?;
        let mapped = self.mapped.get(index as usize)?;
        let page = mapped
            .span()
            .page(choice[1] % mapped.span().pages().get())?;
        Some((page, mapped.granted()))
    }
}
