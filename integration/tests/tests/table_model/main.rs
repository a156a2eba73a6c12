//! Property tests of the second-stage table: random operations on the engine with the VT-d format and
//! 512 entries per table, against a model that is a map of pages and knows each table: linked, marked by a
//! reclaimer, unlinked, detached, replaced by a merge, or given back.
//!
//! After every operation, `translate`, the model and a walker of its own that reads raw words must agree;
//! for walkers that do not snoop it reads what was written back; where walkers note writes, hardware does so
//! also in the middle of an operation. Runs are the same each time;
//! `PROPTEST_RNG_SEED` chooses others. `RUSTFLAGS="--cfg hv_fault"` runs the
//! deliberate faults instead, each of which must be noticed.

#![cfg(not(hv_loom))]
#![cfg_attr(
    hv_fault,
    expect(
        dead_code,
        reason = "a fault stays on, so only the test of the faults runs"
    )
)]

mod change;
#[cfg(hv_fault)]
mod faults;
mod frames;
mod random;
mod reclaimer;
mod subject;

/// The format of VT-d.
mod under_test {
    use std::ops::Range;

    use hv_core::Perms;
    use hv_tests::arena::Arena;
    pub(crate) use hv_tests::walker::Walker;
    pub(crate) use hv_vtd::SecondStage as Format;

    use crate::subject::Shape;

    pub(crate) const LEVELS: Range<u32> = 3..6;
    /// Log2 of the tables of a root.
    pub(crate) const MOST_ROOT_TABLES: u32 = 0;
    /// What devices can be let do.
    pub(crate) const PERMS: &[Perms] = &[Perms::Read, Perms::Write, Perms::ReadWrite];
    /// Walkers that snoop nothing, that snoop, that note what they do as well.
    pub(crate) const SNOOPS: u32 = 3;
    /// What hardware sets in a word that it used, and in a leaf that it wrote through.
    pub(crate) const NOTES: (u64, u64) = (1 << 8, 1 << 9);
    /// The address in a leaf.
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    pub(crate) fn arena(frames: usize, _: &Shape) -> Arena {
        Arena::new(frames)
    }

    pub(crate) fn format(_: &Shape) -> Format {
        Format::new()
    }

    pub(crate) fn walker<R: Fn(u64, usize) -> u64>(read: R, root: u64, shape: &Shape) -> Walker<R> {
        Walker {
            read,
            root,
            levels: shape.levels,
            host_width: 46,
            notes_accesses: shape.dirty,
        }
    }
}
