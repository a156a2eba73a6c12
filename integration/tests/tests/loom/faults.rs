//! Deliberate faults of the engine, each with the models that must fail because of it: the test of the tests.

use hv_core::fault::Fault;

use crate::explore::{Row, notice_each};
use crate::{
    allocating, claiming, detaching, dirty, ending, faulting, flushing, lending, mapping, queueing,
    quiescence, reclaiming, resizing, short_way, unmapping,
};

/// Epochs and the lock.
const WAITING: &[Row] = &[
    (
        Fault::PinRelaxed,
        &[quiescence::an_epoch_waits_for_every_guard],
    ),
    (
        Fault::SkipPinFence,
        &[quiescence::an_epoch_waits_for_every_guard],
    ),
    (
        Fault::SkipPassFence,
        &[quiescence::an_epoch_waits_for_a_stay_while_epochs_move],
    ),
    (
        Fault::UnpinRelaxed,
        &[quiescence::an_epoch_waits_for_every_guard],
    ),
    (
        Fault::SkipRetireFence,
        &[quiescence::an_epoch_waits_for_every_guard],
    ),
    (
        Fault::SkipAdvanceFence,
        &[quiescence::an_epoch_waits_for_every_guard],
    ),
    (
        Fault::OneEpoch,
        &[quiescence::an_epoch_waits_for_every_guard],
    ),
    (
        Fault::LockRelaxed,
        &[quiescence::a_lock_that_is_tried_is_had_by_one],
    ),
    (
        Fault::LockIsFree,
        &[quiescence::a_lock_that_is_tried_is_had_by_one],
    ),
];

/// Flushes, and who is flushed.
const FLUSHING: &[Row] = &[
    (
        Fault::SkipReachFence,
        &[flushing::a_unit_that_enters_is_flushed_or_walks_after_the_unmap],
    ),
    (
        Fault::SkipFlushFence,
        &[
            flushing::a_unit_that_enters_is_flushed_or_walks_after_the_unmap_of_another,
            flushing::a_flush_that_is_young_enough_saw_the_unmap,
        ],
    ),
    (
        Fault::SkipNoteFence,
        &[flushing::a_flush_that_is_young_enough_saw_the_unmap],
    ),
    (
        Fault::LeaveForAll,
        &[flushing::a_unit_stays_as_long_as_one_device_is_on_it],
    ),
];

/// The command queue.
const QUEUEING: &[Row] = &[
    (
        Fault::ReserveByStore,
        &[queueing::bc14_two_producers_share_a_sync],
    ),
    (
        Fault::PublishEarly,
        &[queueing::bc14_two_producers_wrap_the_ring],
    ),
    (
        Fault::PublishEntriesRelaxed,
        &[queueing::bc14_two_producers_wrap_the_ring],
    ),
    (
        Fault::BellIsFree,
        &[queueing::bc14_two_producers_share_a_sync],
    ),
    (
        Fault::BellIsNotRungAgain,
        &[queueing::refusing::bc14_a_bell_that_hardware_did_not_hear_is_rung_again],
    ),
    (
        Fault::SkipSecondLook,
        &[queueing::stalls::bc14_what_nobody_waits_for_is_rung],
    ),
    (
        Fault::LetGoRelaxed,
        &[queueing::bc14_two_producers_share_a_sync],
    ),
    (
        Fault::BellRelaxed,
        &[queueing::bc14_two_producers_share_a_sync],
    ),
    (
        Fault::LeaveRelaxed,
        &[queueing::stalls::bc14_what_nobody_waits_for_is_rung],
    ),
    (
        Fault::SyncIsShared,
        &[queueing::each::bc14_two_producers_with_a_sync_each_wrap_the_ring],
    ),
    (
        Fault::RingPastGap,
        &[queueing::bc14_two_producers_share_a_sync],
    ),
    (
        Fault::WaitNotForSync,
        &[queueing::bc14_two_producers_wrap_the_ring],
    ),
    (
        Fault::QueueNeverFull,
        &[queueing::bc14_a_producer_wraps_behind_hardware],
    ),
    (
        Fault::BelieveHead,
        &[queueing::bc14_a_head_past_the_tail_makes_no_room],
    ),
    (
        Fault::RestartWithoutWaiting,
        &[queueing::stalls::bc14_a_reset_meets_a_late_producer],
    ),
    (
        Fault::RestartTakesAnyBell,
        &[queueing::stalls::bc14_a_reset_that_comes_too_late_keeps_its_hands_off_the_bell],
    ),
    (
        Fault::ResumeBeforeHold,
        &[queueing::bc01_who_waits_for_what_does_not_answer_goes_on_behind_the_mending],
    ),
    (
        Fault::RefusedCountsAsDone,
        &[queueing::refusing::bc01_what_is_refused_fails_who_asked_for_it_and_nobody_else],
    ),
    (
        Fault::MendAsksAll,
        &[queueing::asking::bc01_what_stands_in_the_ring_is_asked_by_who_mends],
    ),
];

/// Groups, and who has them.
const OWNING: &[Row] = &[
    (
        Fault::HolderNotedLate,
        &[claiming::bc05_of_two_claims_one_gets_the_group],
    ),
    (
        Fault::UnregisterEarly,
        &[faulting::bc19_a_fault_is_told_while_its_device_goes],
    ),
];

/// Free addresses.
const ALLOCATING: &[Row] = &[
    (
        Fault::CacheKeepsRange,
        &[
            allocating::two_contexts_of_one_cpu,
            allocating::the_last_range_has_one_owner,
        ],
    ),
    (
        Fault::FlushKeepsRanges,
        &[
            allocating::emptying_against_release,
            allocating::two_empty_caches_at_once,
        ],
    ),
    (
        Fault::OverflowLosesRanges,
        &[allocating::emptying_against_the_depot],
    ),
    (
        Fault::SkipEmptying,
        &[
            allocating::emptying_against_release,
            allocating::emptying_against_cached_alloc,
        ],
    ),
    (
        Fault::ClaimedIsEmpty,
        &[
            allocating::emptying_against_cached_alloc,
            allocating::two_empty_caches_at_once,
        ],
    ),
    (
        Fault::DepotOpenWhileEmptying,
        &[allocating::emptying_against_the_depot],
    ),
    (Fault::LockRelaxed, &[allocating::two_contexts_of_one_cpu]),
    (Fault::LockIsFree, &[allocating::two_contexts_of_one_cpu]),
    (
        Fault::HoldsBegunFirst,
        &[lending::a_hold_that_moves_is_not_missed],
    ),
    (
        Fault::HoldEndsRelaxed,
        &[lending::a_hold_that_moves_is_not_missed],
    ),
    (
        Fault::HoldClaimNotAwaited,
        &[lending::the_end_waits_for_the_last_hold],
    ),
];

/// Links and leaves.
const MAPPING: &[Row] = &[
    (
        Fault::InstallByStore,
        &[
            mapping::two_mappers_and_a_walker,
            mapping::a_link_reaches_memory_after_its_table,
        ],
    ),
    (
        Fault::PublishRelaxed,
        &[
            mapping::two_mappers_and_a_walker,
            mapping::a_lookup_sees_whole_tables,
        ],
    ),
    (Fault::WalkRelaxed, &[mapping::a_lookup_sees_whole_tables]),
    (
        Fault::LeafRelaxed,
        &[mapping::mapper_against_unmapper_of_one_table],
    ),
    (
        Fault::SharedRelaxed,
        &[mapping::shared_range_gives_a_page_to_one_mapper],
    ),
    (
        Fault::PendingWithoutKind,
        &[reclaiming::a_pending_page_at_address_0_keeps_its_table],
    ),
];

/// An attempt and whom it meets.
const RECLAIMING: &[Row] = &[
    (
        Fault::SkipThaw,
        &[
            reclaiming::mapper_against_frozen_link,
            reclaiming::mapper_against_attempt,
            reclaiming::shared_mapper_against_attempt,
            reclaiming::two_mappers_against_frozen_link,
            reclaiming::mapper_twice_against_attempt,
        ],
    ),
    (
        Fault::SkipUpperThaw,
        &[reclaiming::upper_table_follows_lower],
    ),
    (
        Fault::ThawByStore,
        &[
            reclaiming::mapper_against_frozen_link,
            reclaiming::mapper_against_tombstone,
        ],
    ),
    (
        Fault::SkipRelink,
        &[reclaiming::device_and_mapper_against_tombstone],
    ),
    (
        Fault::SkipTombstone,
        &[
            reclaiming::device_and_mapper_against_frozen_link,
            reclaiming::device_and_mapper_against_tombstone,
            reclaiming::noting_device_and_mapper_against_frozen_link,
        ],
    ),
    (
        Fault::SkipFreezeGrace,
        &[
            reclaiming::mapper_against_attempt,
            reclaiming::a_batch_of_two_against_mapper,
            reclaiming::two_reclaimers_against_mapper,
            detaching::map_and_detach_against_attempt,
        ],
    ),
    (
        Fault::SkipRetireGrace,
        &[
            reclaiming::lookup_against_attempt,
            resizing::merge_under_lookup,
        ],
    ),
    (
        Fault::PendingIsEmpty,
        &[
            reclaiming::a_pending_page_keeps_its_table,
            reclaiming::redeem_and_map_against_attempt,
            reclaiming::a_page_at_its_place_keeps_its_table,
        ],
    ),
    (
        Fault::EmptyRelaxed,
        &[reclaiming::a_page_at_its_place_keeps_its_table],
    ),
    (
        Fault::OtherAttemptsReceipt,
        &[reclaiming::a_late_receipt_opens_nothing],
    ),
    (Fault::FreezeByStore, &[detaching::detach_against_attempt]),
    (
        Fault::SkipRewalk,
        &[
            detaching::detach_of_sub_tree_against_frozen_link,
            detaching::detach_of_sub_tree_against_attempt,
        ],
    ),
    (
        Fault::ClearByStore,
        &[
            reclaiming::mapper_against_tombstone,
            reclaiming::shared_mapper_against_tombstone,
            reclaiming::a_batch_of_two_tombstones_against_mapper,
            reclaiming::two_reclaimers_against_mapper_at_tombstone,
            detaching::detach_of_sub_tree_against_tombstone,
        ],
    ),
    (
        Fault::RetireLinked,
        &[
            reclaiming::mapper_against_tombstone,
            reclaiming::a_second_freeze_is_not_the_first,
            reclaiming::a_cancelled_attempt_links_again,
        ],
    ),
    (
        Fault::DetachByStore,
        &[
            detaching::detach_against_tombstone,
            detaching::detach_against_frozen_link,
        ],
    ),
];

/// The short way down.
const SHORT_WAY: &[Row] = &[
    (
        Fault::ShortWaySkipsMarks,
        &[
            short_way::short_way_of_mapper_against_attempt,
            short_way::short_way_of_mapper_against_frozen_link,
        ],
    ),
    (
        Fault::ShortWayComparesNothing,
        &[
            short_way::short_way_of_mapper_against_tombstone,
            short_way::short_way_of_lookup_against_split,
            short_way::short_way_of_lookup_against_merge,
            short_way::short_ways_to_pages_of_two_sizes,
            short_way::short_way_of_lookup_against_detach,
            short_way::short_way_of_lookup_against_detach_of_sub_tree,
        ],
    ),
];

/// Changes of what is there, and the end.
const CHANGING: &[Row] = &[
    (
        Fault::CoverLateMerges,
        &[resizing::a_merge_waits_for_its_own_flush],
    ),
    (Fault::SplitByStore, &[dirty::dirty_set_against_split]),
    (
        Fault::SplitDropsDirty,
        &[dirty::dirty_set_against_split, dirty::noted_against_split],
    ),
    (Fault::MergeDropsDirty, &[dirty::dirty_set_against_merge]),
    (Fault::SkipLateHarvest, &[dirty::dirty_set_against_merge]),
    (
        Fault::SkipMergedHarvest,
        &[dirty::dirty_set_against_merge_and_unmap],
    ),
    (
        Fault::ProtectDropsDirty,
        &[dirty::dirty_set_against_protect],
    ),
    (
        Fault::LookSkipsMerges,
        &[dirty::dirty_set_against_merge_and_look],
    ),
    (Fault::ClearDirtyByStore, &[dirty::dirty_set_against_clear]),
    (
        Fault::DirtyByStore,
        &[
            dirty::dirty_set_against_unmap,
            dirty::dirty_set_against_unmap_of_large_page,
        ],
    ),
    (
        Fault::EndSkipsPending,
        &[
            ending::the_end_finds_every_page,
            detaching::detach_against_frozen_link,
        ],
    ),
    (
        Fault::EndSkipsLists,
        &[
            ending::the_end_finds_every_page,
            ending::the_end_against_frozen_link,
            ending::the_end_against_retired_table,
            ending::the_end_against_merged_table,
            ending::the_end_against_merge,
            resizing::merge_under_attempt,
            resizing::merge_and_split_under_attempt,
        ],
    ),
];

/// Walkers that do not snoop.
const MEMORY: &[Row] = &[
    (
        Fault::SkipTableWriteBack,
        &[
            mapping::a_link_reaches_memory_after_its_table,
            mapping::a_link_reaches_memory_after_its_table_evictions,
            resizing::split_under_memory_walker,
        ],
    ),
    (
        Fault::SkipLinkWriteBack,
        &[
            mapping::a_link_reaches_memory_after_its_table,
            reclaiming::memory_device_and_mapper_against_tombstone,
        ],
    ),
    (
        Fault::LinkClaimsWrittenBack,
        &[mapping::a_link_reaches_memory_after_its_table],
    ),
    (
        Fault::RelinkClaimsWrittenBack,
        &[reclaiming::memory_device_and_mapper_against_tombstone],
    ),
    (
        Fault::SkipLeafWriteBack,
        &[
            reclaiming::memory_device_and_mapper_against_tombstone,
            mapping::shared_range_gives_a_page_to_one_mapper_memory,
        ],
    ),
    (
        Fault::SkipUnmapWriteBack,
        &[
            unmapping::no_translation_survives_its_receipt_memory,
            unmapping::no_translation_at_its_place_survives_its_receipt_memory,
            detaching::detach_against_memory_device,
        ],
    ),
    (
        Fault::SkipUnlinkWriteBack,
        &[
            reclaiming::memory_device_and_mapper_against_frozen_link,
            reclaiming::memory_device_and_mapper_against_tombstone,
        ],
    ),
];

/// Faults are switches of the whole process, so they take turns in one test.
#[test]
fn each_fault_is_noticed() {
    notice_each(
        &[
            WAITING, FLUSHING, QUEUEING, OWNING, ALLOCATING, MAPPING, RECLAIMING, SHORT_WAY,
            CHANGING, MEMORY,
        ]
        .concat(),
    );
}
