//! What larger smallest pages change in the [catalogue](../catalogue/main.rs). A program of its own, so
//! that it can be built and run by itself.

#![cfg(not(hv_fault))]
#![expect(
    clippy::duplicate_mod,
    reason = "the same tests are run once for each size of pages"
)]

#[path = "../catalogue/large_granules/mod.rs"]
mod large_granules;
