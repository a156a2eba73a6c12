//! Runs of frames one behind the other in addresses that nobody else has: mapped, unmapped, taken back.

#![expect(
    unsafe_code,
    reason = "tells the table whose the words under allocated addresses are"
)]

use hv_core::{IovaRange, PageCount, PageSize, Perms, PhysRange};

use crate::backend::Backend;
use crate::domain::DomainCore;
use crate::table::{LeafPlace, TableError};

/// Addresses of a domain, taken from its free ones and held by this value alone, with the runs of hypervisor
/// frames ("parts") that are mapped there. Each method is told the same domain, on which its caller has a hold, and the
/// same parts.
///
/// # Invariants
/// No range token names an address of it. In the table nothing stands under it but the leaves of the first
/// `mapped` parts, present or pending, without those of the first `redeemed`. `leaf`, where it is known, is the place of
/// the one leaf of the one part, until that is redeemed.
#[derive(Clone)]
pub(super) struct Placed {
    span: IovaRange,
    mapped: u32,
    redeemed: u32,
    leaf: Option<LeafPlace>,
}

/// Each part with the addresses that it has in `span`.
fn places(
    span: IovaRange,
    parts: impl IntoIterator<Item = PhysRange>,
) -> impl Iterator<Item = (IovaRange, PhysRange)> {
    let mut next = Some(span.start());
    // All parts together are as long as the span, so neither step fails.
    parts.into_iter().map_while(move |part| {
        let here = IovaRange::new(next?, part.pages()).ok()?;
        next = next?.checked_add(part.pages().bytes());
        Some((here, part))
    })
}

impl Placed {
    /// For addresses that were just taken from the domain's free ones.
    pub(super) fn new(span: IovaRange) -> Self {
        // INVARIANT: what was there before was redeemed when the addresses went back to the domain.
        Self {
            span,
            mapped: 0,
            redeemed: 0,
            leaf: None,
        }
    }

    /// The addresses.
    pub(super) fn span(&self) -> IovaRange {
        self.span
    }

    /// How many parts were mapped.
    pub(super) fn mapped(&self) -> usize {
        self.mapped as usize
    }

    /// Whether the table holds the part with this number, present or pending.
    pub(super) fn is_held(&self, part: usize) -> bool {
        (self.redeemed as usize..self.mapped()).contains(&part)
    }

    /// Maps the parts one behind the other; units are not told yet.
    ///
    /// # Errors
    /// Why a part was not mapped; those before it are.
    #[inline(always)]
    pub(super) fn map<B: Backend>(
        &mut self,
        core: &DomainCore<B>,
        parts: impl IntoIterator<Item = PhysRange>,
        perms: Perms,
    ) -> Result<(), TableError> {
        let guard = core.pin();
        let granted = core.granted(perms);
        for (here, part) in places(self.span, parts) {
            let (to, largest) = (part.start(), PageSize::LARGEST);
            // SAFETY: by the invariant these addresses, which the table translates, are this value's alone,
            // and nothing is under those of this part: all that was ever mapped there was redeemed.
            unsafe {
                core.table
                    .map_vacant(&guard, here, to, granted, largest, None)
            }?;
            self.mapped += 1;
        }
        Ok(())
    }

    /// As [`map`](Self::map) for a single part.
    ///
    /// # Errors
    /// Why it was not mapped.
    #[inline(always)]
    pub(super) fn map_one<B: Backend>(
        &mut self,
        core: &DomainCore<B>,
        part: PhysRange,
        perms: Perms,
    ) -> Result<(), TableError> {
        let guard = core.pin();
        let (to, granted) = (part.start(), core.granted(perms));
        if part.pages() == PageCount::ONE {
            // SAFETY: as in `map`; the one part is as long as the addresses.
            self.leaf = unsafe { core.table.map_page(&guard, self.span, to, granted) }?;
        } else {
            // SAFETY: as above.
            unsafe {
                core.table
                    .map_vacant(&guard, self.span, to, granted, PageSize::LARGEST, None)
            }?;
        }
        self.mapped = 1;
        Ok(())
    }

    /// As [`unmap`](Self::unmap) for a single part.
    #[inline(always)]
    pub(super) fn unmap_one<B: Backend>(&self, core: &DomainCore<B>) -> bool {
        if let Some(leaf) = self.leaf {
            // SAFETY: by the invariant the leaf stands there, and is nobody else's. Whoever has this has a hold on
            // the domain, so its table does not end.
            unsafe { core.table.unmap_page(leaf) };
            return false;
        }
        let guard = core.pin();
        self.mapped != 0 && core.table.unmap(&guard, self.span).tables
    }

    /// As [`redeem`](Self::redeem) for a single part.
    ///
    /// # Errors
    /// [`TableError`]; it is as it was.
    ///
    /// # Safety
    /// A receipt has opened the seal of the unmap.
    #[inline(always)]
    pub(super) unsafe fn redeem_one<B: Backend>(
        &mut self,
        core: &DomainCore<B>,
        part: PhysRange,
    ) -> Result<(), TableError> {
        if self.redeemed == self.mapped {
            return Ok(());
        }
        if let Some(leaf) = self.leaf.take() {
            // SAFETY: as in `unmap_one`; by the caller's promise the flush of this page has completed since.
            if unsafe { core.table.redeem_page(leaf, part.start()) } {
                self.redeemed = 1;
                return Ok(());
            }
        }
        let guard = core.pin();
        // SAFETY: as in `redeem`.
        unsafe {
            core.table
                .redeem(&guard, self.span, part.start(), |_, _| ())
        }?;
        self.redeemed = 1;
        Ok(())
    }

    /// Makes what is mapped pending. Whether tables were detached.
    #[inline(always)]
    pub(super) fn unmap<B: Backend>(
        &self,
        core: &DomainCore<B>,
        parts: impl IntoIterator<Item = PhysRange>,
    ) -> bool {
        let guard = core.pin();
        let mapped = places(self.span, parts).take(self.mapped());
        mapped.fold(false, |tables, (here, _)| {
            tables | core.table.unmap(&guard, here).tables
        })
    }

    /// Empties the words of what was mapped. An attempt that failed goes on where it was.
    ///
    /// # Errors
    /// [`TableError`]; the parts that are left are as they were.
    ///
    /// # Safety
    /// A receipt has opened the seal of the unmap.
    #[inline(always)]
    pub(super) unsafe fn redeem<B: Backend>(
        &mut self,
        core: &DomainCore<B>,
        parts: impl IntoIterator<Item = PhysRange>,
    ) -> Result<(), TableError> {
        let guard = core.pin();
        let left = places(self.span, parts)
            .take(self.mapped())
            .skip(self.redeemed as usize);
        self.leaf = None;
        for (here, part) in left {
            // SAFETY: by the invariant the addresses are this value's alone, and each part is opened once. By
            // the caller's promise a flush of them, begun after the unmap, has completed, deep enough for
            // what was detached, and so has the grace period.
            unsafe { core.table.redeem(&guard, here, part.start(), |_, _| ()) }?;
            self.redeemed += 1;
        }
        Ok(())
    }
}
