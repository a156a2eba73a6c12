//! Deliberate faults of the engine: each must be noticed by the random runs.

use hv_core::fault::Fault;

use crate::random;

/// What one thread can notice. The others are for the loom models and for the rig.
const FAULTS: [Fault; 18] = [
    Fault::SwapNeighbours,
    Fault::IgnorePermissions,
    Fault::SkipTableWriteBack,
    Fault::SkipPublishFence,
    Fault::SkipLinkWriteBack,
    Fault::SkipLeafWriteBack,
    Fault::SkipMapFence,
    Fault::SkipUnmapWriteBack,
    Fault::SkipThaw,
    Fault::SkipRelink,
    Fault::SkipTombstone,
    Fault::SkipFreezeGrace,
    Fault::SkipRetireGrace,
    Fault::PendingIsEmpty,
    Fault::SkipUnlinkWriteBack,
    Fault::OtherAttemptsReceipt,
    Fault::SplitDropsDirty,
    Fault::DirtyByStore,
];

/// One test: a fault is one for all threads.
#[test]
fn each_fault_of_the_engine_is_noticed() {
    std::panic::set_hook(Box::new(|_| ()));
    assert!(!random::notices(64), "the engine without a fault");
    let missed: Vec<_> = FAULTS
        .into_iter()
        .filter(|fault| {
            fault.switch_on();
            let noticed = random::notices(512);
            fault.switch_off();
            !noticed
        })
        .collect();
    let _ = std::panic::take_hook();
    assert_eq!(missed, [], "faults that nobody noticed");
}
