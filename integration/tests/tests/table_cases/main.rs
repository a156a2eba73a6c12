//! What the test suites of other systems ask of a page table, asked of this one: Linux's generic_pt (KUnit),
//! its io-pgtable self-test and its iommufd tests. The cases follow theirs, the code does not; each says
//! after which.
//!
//! With `--cfg hv_fault` the variable `HV_FAULT` switches one deliberate fault on.

#![cfg(not(hv_loom))]

mod aligns;
mod bench;
mod entries;
mod failing;
mod notes;
mod ranges;
mod selftest;
mod sizes;
