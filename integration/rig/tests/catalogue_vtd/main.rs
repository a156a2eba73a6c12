//! The [catalogue](../catalogue/main.rs) on VT-d. A program of its own, since machines whose devices stay attached at the
//! end of a test keep their words until it ends.

#![cfg(not(hv_fault))]

#[path = "../catalogue/vtd/mod.rs"]
mod vtd;
