//! Deliberate faults of the engine: each must make a model fail.

use hv_core::fault::Fault;

use crate::explore::must_fail;
use crate::hardware::Reads;
use crate::mapping::two_mappers;

#[test]
fn a_link_by_store_is_noticed() {
    Fault::InstallByStore.switch_on();
    must_fail("two_mappers_and_a_walker, install_by_store", || {
        two_mappers(2, Reads::Snooping);
    });
    must_fail(
        "a_link_reaches_memory_after_its_table, install_by_store",
        || {
            two_mappers(2, Reads::Memory);
        },
    );
}
