//! Lanes of floors and engines as most rows need them.

use crate::engine::{Engine, Walkers};
use crate::floor::Floor;
use crate::lane::Lane;
use crate::platform::Memory;
use crate::results::Who;

use hv_core::PageSize;

/// Where the timed part of a row begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// Nothing is mapped, and the tables are there.
    Vacant,
    /// Everything is mapped.
    Filled,
    /// Everything was unmapped and waits for a receipt.
    Pending,
    /// Nothing is mapped, and there are no tables. A floor has them all the same: it never installs.
    Cold,
}

/// A window of addresses: how many pages, and by which leaves they are mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Pages of 4 KiB.
    pub(super) pages: u64,
    /// The size of the leaves.
    pub(super) size: PageSize,
}

impl Window {
    /// Leaves of the window.
    pub(super) fn leaves(self) -> u64 {
        self.pages / self.size.pages()
    }

    fn level(self) -> u32 {
        1 + self.size.pages().ilog2() / 9
    }

    /// Brings a floor to where the timed part begins.
    fn floor_ready(self, floor: &Floor, ready: Ready) {
        floor.attach_tables();
        let filled = matches!(ready, Ready::Filled | Ready::Pending);
        match self.size {
            PageSize::Size4K if filled => floor.fill(),
            PageSize::Size4K => floor.vacate(),
            PageSize::Size2M => {
                floor.map_blocks::<2>(self.pages, 1);
                if !filled {
                    floor.unmap_blocks::<2>(self.pages, 1);
                }
            }
            _ => {
                floor.map_blocks::<3>(self.pages, 1);
                if !filled {
                    floor.unmap_blocks::<3>(self.pages, 1);
                }
            }
        }
    }

    /// The floor's lane.
    pub(super) fn floor(
        self,
        ready: Ready,
        operations: u64,
        run: impl Fn(&Floor) + 'static,
    ) -> Lane {
        Lane::new(
            Who::Floor,
            operations,
            Floor::new(self.pages, self.level()),
            move |floor| self.floor_ready(floor, ready),
            move |floor| run(floor),
        )
    }

    /// The engine's lanes: under one guard, with a pin per call, and with a pin per call within a stay.
    pub(super) fn engines<const SNOOPS: bool>(
        self,
        ready: Ready,
        operations: u64,
        guarded: impl Fn(&Engine<SNOOPS>) + 'static,
        pinned: impl Fn(&Engine<SNOOPS>) + Clone + 'static,
    ) -> [Lane; 3]
    where
        Memory<SNOOPS>: Walkers,
    {
        let prepare = move |engine: &mut Engine<SNOOPS>| match ready {
            Ready::Vacant => engine.vacate(),
            Ready::Filled => engine.fill(),
            Ready::Pending => engine.leave_pending(),
            Ready::Cold => engine.renew(),
        };
        [
            Lane::new(
                Who::Engine,
                operations,
                Engine::<SNOOPS>::new(self.pages, self.size),
                prepare,
                move |engine| guarded(engine),
            ),
            Lane::new(
                Who::EnginePinned,
                operations,
                Engine::<SNOOPS>::new(self.pages, self.size),
                prepare,
                {
                    let pinned = pinned.clone();
                    move |engine| pinned(engine)
                },
            ),
            Lane::new(
                Who::EngineStay,
                operations,
                Engine::<SNOOPS>::new(self.pages, self.size),
                prepare,
                move |engine| {
                    let _stay = engine.enter();
                    pinned(engine);
                },
            ),
        ]
    }
}
