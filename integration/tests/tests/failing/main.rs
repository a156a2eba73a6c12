//! Whole scenarios with each of their allocations failing, one by one: nothing is lost or half done, and the same
//! again on the same machine goes through. Of the heap and of frames; [`hv_tests::failing`] is the loop.
//!
//! The scenarios take up those of `ownership`, `domains` and `front`; `address_space` and `iova` have their own.

#![cfg(not(hv_loom))]

mod dma;
mod front;
mod lives;
#[expect(dead_code, reason = "the machine serves other tests too")]
#[path = "../ownership/machine.rs"]
mod machine;
#[expect(dead_code, reason = "the requests serve other tests too")]
#[path = "../front/requests.rs"]
mod requests;
mod set_up;
mod shapes;
#[expect(dead_code, reason = "the stand serves other tests too")]
#[path = "../front/stand.rs"]
mod stand;
mod world;

#[global_allocator]
static HEAP: hv_tests::heap::FailingHeap = hv_tests::heap::FailingHeap;
