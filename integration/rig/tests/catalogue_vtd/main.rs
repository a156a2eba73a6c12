//! The [catalogue](../catalogue/main.rs) on VT-d. A program of its own, so that it can be built and run by itself.

#![cfg(not(hv_fault))]

#[path = "../catalogue/vtd/mod.rs"]
mod vtd;
