//! What lives with different tables differ in: how large pages are, and what only SMMUs have.

use hv_core::{PageCount, PageSize};
use hv_iommu::{Format, Level};
use hv_smmu::{Smmu, Tables};
use hv_vtd::Vtd;

use super::guest::Nest;
use super::world::World;
use crate::driver::{Driver, Vendor};
use crate::rig::Rig;
use crate::rng::Rng;

/// A backend that lives are lived with.
pub(crate) trait Lives: Driver {
    /// Pages of 4 KiB in a smallest page of its tables.
    const PAGE: u64 = 1 << (Self::Format::PAGE_SHIFT - PageSize::Size4K.shift());
    /// The same of a page of the next size.
    const LARGE: u64 = Self::PAGE << Self::Format::INDEX_BITS;

    /// A guest with a first stage of its own, where there are any.
    type Nest;

    /// The size of its smallest pages.
    fn smallest() -> PageSize {
        Level::LEAF
            .size::<Self::Format>()
            .unwrap_or(PageSize::Size4K)
    }

    /// The next size.
    fn large() -> PageSize {
        let level = Level::new(2);
        level
            .and_then(Level::size::<Self::Format>)
            .unwrap_or(Self::smallest())
    }

    /// So many smallest pages; one, if that is none.
    fn pages(count: u64) -> PageCount {
        PageCount::new(count.max(1) * Self::PAGE).unwrap_or(PageCount::ONE)
    }

    /// A device keeps translations itself, or does not any more.
    fn device_tlb(_world: &mut World<Self>, _choice: [u64; 3]) {}

    /// Something becomes of a guest with a first stage of its own.
    fn nested(_world: &mut World<Self>, _choice: [u64; 3]) {}

    /// Wedged groups of such guests recover.
    fn recover_nests(_world: &mut World<Self>) {}

    /// All such guests end, as far as their groups come back.
    fn end_nests(_world: &mut World<Self>) {}
}

impl Lives for Vtd<Rig> {
    type Nest = std::convert::Infallible;
}

impl<F: Tables> Lives for Smmu<Rig, F> {
    type Nest = Nest<F>;

    fn device_tlb(world: &mut World<Self>, choice: [u64; 3]) {
        world.device_tlb(choice);
    }

    fn nested(world: &mut World<Self>, choice: [u64; 3]) {
        world.nested(choice);
    }

    fn recover_nests(world: &mut World<Self>) {
        world.recover_nests();
    }

    fn end_nests(world: &mut World<Self>) {
        world.end_nests();
    }
}

/// The tables of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifeTables {
    /// Their smallest pages.
    pub page: PageSize,
    /// Whether they lead to memory at addresses of more than 48 bits.
    pub high: bool,
}

impl LifeTables {
    /// Of this seed. Of its own, so that the rest of a life does not depend on it.
    pub(super) fn draw(vendor: Vendor, seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x6772_616e_756c_6573);
        let page = match (vendor, rng.below(4)) {
            (Vendor::Smmu, 0) => PageSize::Size16K,
            (Vendor::Smmu, 1) => PageSize::Size64K,
            _ => PageSize::Size4K,
        };
        let high = page == PageSize::Size64K && rng.one_in(3);
        Self { page, high }
    }
}
