//! The [catalogue](../catalogue/main.rs) where SMMUs have first stages alone. A program of its own,
//! so that it can be built and run by itself.

#![cfg(not(hv_fault))]

#[path = "../catalogue/first/mod.rs"]
mod first;
