//! Deliberate faults of what the engine does about noted writes, which show on this format or show differently: a bit
//! that is the permission can be lost, and can be had by a leaf that must not have it.

use hv_core::fault::Fault;

use crate::dirty;
use crate::explore::{Row, notice_each};

const NOTING: &[Row] = &[
    (
        Fault::ProtectCarriesDirty,
        &[dirty::dirty_set_against_protect],
    ),
    (
        Fault::ProtectDropsDirty,
        &[dirty::dirty_set_against_protect],
    ),
    (Fault::ClearDirtyByStore, &[dirty::dirty_set_against_clear]),
    (
        Fault::DirtyByStore,
        &[
            dirty::dirty_set_against_unmap,
            dirty::dirty_set_against_unmap_of_large_page,
        ],
    ),
    (Fault::SplitByStore, &[dirty::dirty_set_against_split]),
    (Fault::SplitDropsDirty, &[dirty::dirty_set_against_split]),
    (Fault::MergeDropsDirty, &[dirty::dirty_set_against_merge]),
    (Fault::SkipLateHarvest, &[dirty::dirty_set_against_merge]),
];

#[test]
fn each_fault_is_noticed() {
    notice_each(NOTING);
}
