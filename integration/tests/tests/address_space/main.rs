//! A guest's address space, after the cases of Linux's iommufd tests (`tools/testing/selftests/iommu`): each
//! module and test says which row it takes up.
//!
//! The hardware is `hv_tests::fake`, as in the tests of ownership. Mappings go in and out whole: where those tests
//! have an unmap split a mapping, it is refused here, and a split is asked for by name.

#![cfg(not(hv_loom))]

mod access;
mod areas;
mod balloon;
mod bulk;
mod copies;
mod end;
mod fail_nth;
#[expect(dead_code, reason = "the machine serves other tests too")]
#[path = "../ownership/machine.rs"]
mod machine;
mod quota;
mod space;
mod steps;
mod units;
mod windows;

#[global_allocator]
static HEAP: hv_tests::heap::FailingHeap = hv_tests::heap::FailingHeap;
