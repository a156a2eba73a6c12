//! What rows measure besides whole operations: guards without a table, and looking whether tables are empty.

use hv_core::PageSize;
use hv_iommu::quiesce::Quiescence;

use crate::engine::Engine;
use crate::lane::{Mapped, Subject};
use crate::platform::SNOOPED;

/// The engine's guards without a table.
pub struct Pins(Quiescence);

impl Pins {
    /// For all threads of the arena.
    pub fn new() -> Self {
        Self(Quiescence::new(crate::arena::THREADS).expect("the host has memory"))
    }

    /// Takes and drops `count` guards.
    #[inline(never)]
    pub fn take(&self, count: u64) {
        for _ in 0..count {
            drop(self.0.pin(&SNOOPED));
        }
    }
}

impl Default for Pins {
    fn default() -> Self {
        Self::new()
    }
}

impl Subject for Pins {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

/// A table whose window is empty, with tables that are looked through.
pub struct Vacancy(Engine<true>);

impl Vacancy {
    /// A window of `pages` pages.
    pub fn new(pages: u64) -> Self {
        Self(Engine::new(pages, PageSize::Size4K))
    }

    /// Empties the window, with the tables in place and in the caches.
    pub fn ready(&self) {
        self.0.vacate();
    }

    /// Looks through the window, 2 MiB at a time.
    pub fn scan(&self) {
        self.0.is_vacant_by_tables();
    }
}

impl Subject for Vacancy {
    fn mapped(&self) -> Vec<Mapped> {
        self.0.mapped()
    }
}
