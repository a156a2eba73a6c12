//! Reserved memory (RMR): for which streams, and which of it firmware is done with.

use alloc::vec::Vec;

use hv_core::list::push;
use hv_core::{Iova, IovaRange, OutOfMemory, PhysRange, RangeError};
use hv_iommu::{ReservedKind, ReservedRegion, UnitIndex};
use thiserror::Error;

use crate::StreamId;
use crate::firmware::Firmware;

/// Why firmware's regions cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RegionsError {
    /// The device's addresses cannot be those of the memory.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// There was no memory for the list.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A region and the streams that it is for.
#[derive(Debug)]
struct Wish {
    unit: UnitIndex,
    first: StreamId,
    last: StreamId,
    region: ReservedRegion,
}

/// What firmware wants mapped.
///
/// # Invariants
/// As firmware gave it: no two regions were made one.
#[derive(Debug)]
pub struct Regions(Vec<Wish>);

impl Regions {
    /// The regions that firmware names, whether their streams are of devices that are there or not.
    ///
    /// # Errors
    /// [`RegionsError`].
    pub fn new(firmware: &Firmware) -> Result<Self, RegionsError> {
        let mut wishes = Vec::new();
        for reserved in &firmware.reserved {
            let range = same_addresses(reserved.memory)?;
            let kind = reserved.kind;
            let wish = Wish {
                unit: reserved.unit,
                first: reserved.first,
                last: reserved.last,
                region: ReservedRegion { range, kind },
            };
            push(&mut wishes, wish)?;
        }
        Ok(Self(wishes))
    }

    /// The regions of a stream.
    pub fn of(&self, unit: UnitIndex, stream: StreamId) -> impl Iterator<Item = ReservedRegion> {
        let mine =
            move |wish: &&Wish| wish.unit == unit && (wish.first..=wish.last).contains(&stream);
        self.0.iter().filter(mine).map(|wish| wish.region)
    }

    /// The regions of any stream from `first` to `last`.
    pub(crate) fn between(
        &self,
        unit: UnitIndex,
        first: StreamId,
        last: StreamId,
    ) -> impl Iterator<Item = ReservedRegion> {
        let mine =
            move |wish: &&Wish| wish.unit == unit && wish.first <= last && first <= wish.last;
        self.0.iter().filter(mine).map(|wish| wish.region)
    }

    /// The regions that firmware goes on using, and the streams that it uses each with: unit, first and last.
    pub(crate) fn pinned(
        &self,
    ) -> impl Iterator<Item = (IovaRange, UnitIndex, StreamId, StreamId)> {
        let pinned = |wish: &&Wish| wish.region.kind == ReservedKind::Pinned;
        let wishes = self.0.iter().filter(pinned);
        wishes.map(|wish| (wish.region.range, wish.unit, wish.first, wish.last))
    }

    /// Whether firmware goes on using a stream: bring-up would stop that.
    pub fn is_pinned(&self, unit: UnitIndex, stream: StreamId) -> bool {
        let mut regions = self.of(unit, stream);
        regions.any(|region| region.kind == ReservedKind::Pinned)
    }
}

/// The addresses of a device that lead to the memory: the same.
fn same_addresses(memory: PhysRange) -> Result<IovaRange, RangeError> {
    IovaRange::new(Iova::new(memory.start().as_u64()), memory.pages())
}
