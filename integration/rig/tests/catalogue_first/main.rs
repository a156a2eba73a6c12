//! The [catalogue](../catalogue/main.rs) where SMMUs have first stages alone. A program of its own, since machines whose
//! devices stay attached at the end of a test keep their words until it ends.

#![cfg(not(hv_fault))]

#[path = "../catalogue/first/mod.rs"]
mod first;
