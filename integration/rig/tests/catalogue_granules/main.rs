//! What larger smallest pages change in the [catalogue](../catalogue/main.rs). A program of its own, since machines whose
//! devices stay attached at the end of a test keep their words until it ends.

#![cfg(not(hv_fault))]
#![expect(
    clippy::duplicate_mod,
    reason = "the same tests are run once for each size of pages"
)]

#[path = "../catalogue/large_granules/mod.rs"]
mod large_granules;
