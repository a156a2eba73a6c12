//! The test of the rig: deliberate faults of the driver, each with what the rig has to say about it.

use hv_core::fault::Fault;

use crate::driver::Vendor;
use crate::rule::Rule;

/// A fault that the rig has to catch.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    /// The fault.
    pub fault: Fault,
    /// On whose machines it is looked for, and has to be caught.
    pub vendors: &'static [Vendor],
    /// The rules that it breaks; which one is seen first depends on the machine.
    pub rules: &'static [Rule],
}

const fn planted(fault: Fault, rules: &'static [Rule]) -> Planted {
    Planted {
        fault,
        vendors: &[Vendor::Vtd],
        rules,
    }
}

/// A fault of the driver of SMMUs.
const fn of_smmu(fault: Fault, rules: &'static [Rule]) -> Planted {
    Planted {
        fault,
        vendors: &[Vendor::Smmu],
        rules,
    }
}

/// A fault that either driver can have.
const fn of_both(fault: Fault, rules: &'static [Rule]) -> Planted {
    Planted {
        fault,
        vendors: &Vendor::ALL,
        rules,
    }
}

/// Hardware reaches, or could reach, what it should have forgotten. Which of these is seen first depends on
/// what the memory became meanwhile: still cached when it is given back, free, another owner's, or the same
/// owner's for something else.
const STALE: &[Rule] = &[
    Rule::StillCached,
    Rule::FreedMemory,
    Rule::ForeignMemory,
    Rule::StaleTranslation,
];
/// The same, or that nothing was mapped is what should have been forgotten.
const FORGOTTEN: &[Rule] = &[
    Rule::StillCached,
    Rule::FreedMemory,
    Rule::ForeignMemory,
    Rule::StaleTranslation,
    Rule::MappedFaulted,
];

/// A range does not owe what it should, which is asked, or is seen as above.
const OWED: &[Rule] = &[
    Rule::WrongAnswer,
    Rule::StillCached,
    Rule::FreedMemory,
    Rule::ForeignMemory,
    Rule::StaleTranslation,
];
/// A table comes back too early, or something in it is lost.
const LOST_TABLES: &[Rule] = &[
    Rule::StillCached,
    Rule::FreedMemory,
    Rule::ForeignMemory,
    Rule::StaleTranslation,
    Rule::MappedFaulted,
    Rule::DriverMemory,
    Rule::WrongAnswer,
    Rule::Leak,
];

/// Every fault that the rig has to catch, with the rules that it breaks.
pub const PLANTED: &[Planted] = &[
    planted(Fault::ProtectionNotAwaited, &[Rule::MappedFaulted]),
    planted(Fault::OverlapCommands, &[Rule::Command, Rule::Register]),
    planted(Fault::LeaveQueueErrors, &[Rule::WrongAnswer]),
    planted(Fault::WindowNotReserved, &[Rule::MappedFaulted]),
    planted(Fault::IgnoreGuestWidth, &[Rule::MappedFaulted]),
    planted(Fault::IgnoreZeroLengthReads, &[Rule::ReservedBits]),
    planted(
        Fault::BindPassThrough,
        &[Rule::ForeignMemory, Rule::FreedMemory, Rule::BadContext],
    ),
    planted(Fault::OldReceiptOpens, &[Rule::WrongAnswer]),
    planted(Fault::AnySpanOpens, &[Rule::WrongAnswer]),
    planted(Fault::DropLastScope, &[Rule::MappedFaulted]),
    planted(Fault::KeepBusMastering, &[Rule::NotCutOff]),
    planted(Fault::DropCommandLevels, &[Rule::Command]),
    planted(
        Fault::CommandNotAwaited,
        &[
            Rule::Command,
            Rule::Register,
            Rule::EnabledEarly,
            Rule::Queue,
        ],
    ),
    planted(
        Fault::SkipWriteBufferFlush,
        &[Rule::ReservedBits, Rule::FreedMemory],
    ),
    planted(Fault::SkipFirstFlush, &[Rule::EnabledEarly]),
    planted(
        Fault::LeaveTranslationOff,
        &[Rule::Untranslated, Rule::WrongAnswer],
    ),
    planted(Fault::KeepProtectedMemory, &[Rule::MappedFaulted]),
    planted(Fault::ContextLowFirst, &[Rule::BadContext, Rule::TornEntry]),
    planted(Fault::ContextHighWhilePresent, &[Rule::TornEntry]),
    planted(Fault::HalfEntry, &[Rule::BadContext, Rule::TornEntry]),
    planted(
        Fault::RootLevelApart,
        &[
            Rule::BadContext,
            Rule::MappedFaulted,
            Rule::FreedMemory,
            Rule::ReservedBits,
        ],
    ),
    planted(
        Fault::SkipContextWriteBack,
        &[Rule::ReservedBits, Rule::TornEntry],
    ),
    planted(Fault::SkipBindFlush, &[Rule::MappedFaulted]),
    planted(Fault::BindFlushNewId, &[Rule::MappedFaulted]),
    planted(Fault::SkipContextFlush, FORGOTTEN),
    planted(Fault::UnbindContextOtherId, FORGOTTEN),
    planted(Fault::UnbindIotlbOtherId, STALE),
    planted(
        Fault::UnbindSkipsAlias,
        &[
            Rule::StillCached,
            Rule::ForeignMemory,
            Rule::FreedMemory,
            Rule::WrongAnswer,
        ],
    ),
    planted(Fault::ForgetPhantoms, &[Rule::MappedFaulted]),
    planted(Fault::ClaimKeepsBusMastering, &[Rule::NotCutOff]),
    planted(Fault::RegionNotMapped, &[Rule::MappedFaulted]),
    planted(Fault::RegionNotAsked, &[Rule::WrongAnswer]),
    planted(Fault::RegionHandedOut, &[Rule::DoubleFree]),
    planted(Fault::DomainIdZero, &[Rule::BadContext]),
    planted(Fault::FreeIdEarly, &[Rule::DomainId]),
    planted(
        Fault::SwapNeighbours,
        &[
            Rule::StaleTranslation,
            Rule::WrongAnswer,
            Rule::ForeignMemory,
        ],
    ),
    planted(
        Fault::IgnorePermissions,
        &[Rule::StaleTranslation, Rule::ForeignMemory],
    ),
    planted(Fault::SkipTableWriteBack, &[Rule::FreedMemory]),
    planted(Fault::SkipPublishFence, &[Rule::FreedMemory]),
    planted(
        Fault::SkipLinkWriteBack,
        &[Rule::MappedFaulted, Rule::FreedMemory],
    ),
    planted(Fault::SkipLeafWriteBack, &[Rule::MappedFaulted]),
    planted(Fault::SkipMapFence, &[Rule::MappedFaulted]),
    planted(Fault::SkipUnmapWriteBack, STALE),
    planted(Fault::SkipIotlbFlush, FORGOTTEN),
    planted(Fault::SkipSyncMap, &[Rule::MappedFaulted]),
    planted(Fault::LeafHintOnMap, &[Rule::MappedFaulted]),
    planted(Fault::LeafHintAlways, FORGOTTEN),
    planted(Fault::FlushRangeShort, FORGOTTEN),
    planted(Fault::FlushWrongDomain, FORGOTTEN),
    planted(Fault::OneUnitFlushed, FORGOTTEN),
    planted(Fault::SkipDrain, STALE),
    planted(Fault::SkipFence, STALE),
    planted(Fault::TailPastRing, &[Rule::Queue]),
    planted(Fault::QueueNeverFull, &[Rule::Queue]),
    planted(
        Fault::ReuseStatusWord,
        &[
            Rule::StillCached,
            Rule::ForeignMemory,
            Rule::StaleTranslation,
            Rule::MappedFaulted,
            Rule::EnabledEarly,
        ],
    ),
    planted(Fault::WaitNotAwaited, FORGOTTEN),
    planted(Fault::TimeoutIsSuccess, FORGOTTEN),
    planted(Fault::SkipCutOff, &[Rule::NotCutOff]),
    planted(Fault::TranslationOnAtEnd, &[Rule::WrongAnswer]),
    planted(Fault::FreePageEarly, STALE),
    planted(
        Fault::FreeTablesEarly,
        &[Rule::WrongAnswer, Rule::StillCached],
    ),
    planted(Fault::LoseLastFrame, &[Rule::LostFrames]),
    planted(Fault::RedeemWrongRange, &[Rule::LostFrames]),
    planted(Fault::ClearFaultBeforeReading, &[Rule::FaultReport]),
    planted(Fault::KeepFaultOverflow, &[Rule::FaultReport]),
    planted(
        Fault::UnmaskBeforeAddress,
        &[Rule::Register, Rule::ForeignMemory],
    ),
    planted(Fault::UpperAddressKept, &[Rule::Register]),
    planted(Fault::RemappableMessage, &[Rule::Register]),
    planted(Fault::PendingIsEmpty, LOST_TABLES),
    planted(Fault::SkipUnlinkWriteBack, LOST_TABLES),
    planted(Fault::SkipReclaimFlush, LOST_TABLES),
    planted(Fault::ReclaimLeafHint, LOST_TABLES),
    planted(Fault::DetachLeafHint, LOST_TABLES),
    planted(Fault::DropDebt, STALE),
    planted(Fault::SplitNotWrittenBack, FORGOTTEN),
    planted(Fault::MergeNotWrittenBack, FORGOTTEN),
    planted(Fault::ProtectNotWrittenBack, FORGOTTEN),
    planted(Fault::SplitWithGap, &[Rule::MappedFaulted]),
    planted(Fault::SplitShifts, OWED),
    planted(Fault::MergeWithGap, &[Rule::MappedFaulted]),
    planted(Fault::NarrowDebt, FORGOTTEN),
    planted(Fault::ShallowDebt, FORGOTTEN),
    planted(Fault::SettleSkipsFlush, FORGOTTEN),
    planted(Fault::CutForgetsDebt, OWED),
    planted(Fault::JoinForgetsDebt, OWED),
    planted(Fault::SkipDetachGrace, &[Rule::WrongAnswer]),
    planted(Fault::LoseNestedTables, &[Rule::Leak]),
    planted(Fault::KeepDetachedTables, &[Rule::Leak]),
    planted(Fault::CancelLeavesTombstones, &[Rule::Leak]),
    planted(Fault::SkipRetireGrace, &[Rule::WrongAnswer]),
    planted(Fault::SkipThaw, LOST_TABLES),
    planted(Fault::SkipRelink, LOST_TABLES),
    planted(Fault::SkipTombstone, LOST_TABLES),
    planted(Fault::SkipFreezeGrace, LOST_TABLES),
    planted(Fault::OtherAttemptsReceipt, LOST_TABLES),
    planted(Fault::BounceSkipped, &[Rule::ForeignMemory]),
    planted(Fault::BounceCopiesWholePage, &[Rule::ForeignMemory]),
    planted(Fault::BounceKeepsOldBytes, &[Rule::ForeignMemory]),
    planted(Fault::BounceCopiesBackWholePage, &[Rule::ForeignMemory]),
    planted(Fault::DeferredReleasesRangeEarly, STALE),
    planted(Fault::SnoopNotForced, &[Rule::NotSnooped]),
    of_smmu(Fault::LeaveGateOpen, &[Rule::OpenGate]),
    of_both(Fault::KeptBoundLate, &[Rule::MappedFaulted]),
    of_both(Fault::LeaveCxlCacheOn, &[Rule::NotCutOff]),
    of_both(Fault::CxlCacheNotAsked, &[Rule::WrongAnswer]),
    of_smmu(Fault::KeptGateStaysOpen, &[Rule::OpenGate]),
    of_smmu(Fault::KeptGapIsOpen, &[Rule::OpenGate]),
    of_smmu(Fault::KeepsEveryGate, &[Rule::OpenGate]),
    of_smmu(
        Fault::DoorbellOnePageOff,
        &[
            Rule::StaleTranslation,
            Rule::ForeignMemory,
            Rule::FreedMemory,
        ],
    ),
    of_smmu(Fault::DoorbellIsMemory, &[Rule::MemoryType]),
    of_smmu(Fault::DoorbellOfControl, &[Rule::WrongAnswer]),
    of_smmu(Fault::SharedWriterIsolated, &[Rule::ForeignInterrupt]),
    of_smmu(Fault::WriterByRequester, &[Rule::ForeignInterrupt]),
    of_smmu(Fault::GateWithoutUpdate, &[Rule::Register]),
    of_smmu(Fault::GateOpenAtEnd, &[Rule::OpenGate]),
    of_smmu(Fault::ControlNotAwaited, &[Rule::Command]),
    of_smmu(Fault::EnableBeforeForgetting, &[Rule::EnabledEarly]),
    of_smmu(Fault::AcknowledgeUnseenErrors, &[Rule::Register]),
    of_smmu(Fault::LeaveCommandError, &[Rule::WrongAnswer]),
    of_smmu(
        Fault::StreamWordZeroFirst,
        &[Rule::BadContext, Rule::TornEntry, Rule::DomainId],
    ),
    of_smmu(Fault::StreamStepsWithoutSync, &[Rule::TornEntry]),
    of_smmu(
        Fault::SkipStreamWriteBack,
        &[Rule::MappedFaulted, Rule::TornEntry, Rule::ReservedBits],
    ),
    of_smmu(
        Fault::SkipStreamForget,
        &[Rule::MappedFaulted, Rule::TornEntry],
    ),
    of_smmu(Fault::UnbindKeepsStream, FORGOTTEN),
    of_smmu(Fault::UnbindKeepsTranslations, FORGOTTEN),
    of_smmu(Fault::UnbindWithoutSync, FORGOTTEN),
    of_smmu(Fault::SkipArrayForget, &[Rule::MappedFaulted]),
    of_smmu(
        Fault::ContextWordZeroFirst,
        &[Rule::BadContext, Rule::TornEntry, Rule::DomainId],
    ),
    of_smmu(Fault::UnbindKeepsContext, FORGOTTEN),
    of_smmu(Fault::UnbindContextKeepsTranslations, FORGOTTEN),
    of_smmu(Fault::FlushOtherVmid, FORGOTTEN),
    of_smmu(Fault::SkipLastAddress, FORGOTTEN),
    // Where the unit has consumed more than it was known to have been given, the queue itself says so.
    of_smmu(
        Fault::SyncByConsumption,
        &[
            Rule::TornEntry,
            Rule::StillCached,
            Rule::FreedMemory,
            Rule::ForeignMemory,
            Rule::StaleTranslation,
            Rule::MappedFaulted,
            Rule::WrongAnswer,
        ],
    ),
    of_smmu(Fault::PauseIsCompletion, FORGOTTEN),
    of_smmu(Fault::AskAnyUnitForEvents, &[Rule::Queue]),
    of_smmu(Fault::SkipCommandWriteBack, &[Rule::Queue]),
    of_smmu(Fault::DropWrapBit, &[Rule::Queue]),
    of_smmu(Fault::KeepEvents, &[Rule::Queue]),
    of_smmu(Fault::KeepOverflow, &[Rule::Queue]),
    of_smmu(Fault::BelieveEmptyEvents, &[Rule::FaultReport]),
    of_smmu(Fault::BelieveAnyIndex, &[Rule::FaultReport]),
    of_smmu(Fault::SwitchThroughAbort, &[Rule::MappedFaulted]),
    of_smmu(Fault::SwitchKeepsTranslations, STALE),
    of_both(Fault::SkipLookAfterRoute, &[Rule::FaultReport]),
    of_both(Fault::LeaveInterruptsOff, &[Rule::FaultReport]),
    of_both(Fault::RerouteWhileOn, &[Rule::Register]),
    of_smmu(
        Fault::ResizeAnywhere,
        &[Rule::BreakBeforeMake, Rule::WrongAnswer],
    ),
    of_smmu(
        Fault::SplitBySmallPages,
        &[
            Rule::WrongAnswer,
            Rule::ReservedBits,
            Rule::StaleTranslation,
            Rule::ForeignMemory,
            Rule::FreedMemory,
            Rule::BreakBeforeMake,
        ],
    ),
    of_smmu(Fault::RangeBySmallPages, FORGOTTEN),
    of_smmu(Fault::WrittenBySmallPages, &[Rule::WrongAnswer]),
    of_smmu(Fault::ClearAccessFlag, &[Rule::MappedFaulted]),
    of_smmu(Fault::DropHighAddress, &[Rule::FreedMemory]),
    of_smmu(Fault::HighAddressInPlace, &[Rule::ReservedBits]),
    of_smmu(Fault::LeavesNotForced, &[Rule::ReservedBits]),
    of_smmu(Fault::EntryNotForced, &[Rule::ReservedBits]),
    of_smmu(Fault::EntryNotesNothing, &[Rule::ReservedBits]),
    of_smmu(Fault::NoSnoopUnasked, &[Rule::NotSnooped]),
    of_both(Fault::RefusedCountsAsDone, FORGOTTEN),
    of_both(Fault::RefusedIsNotReadAgain, &[Rule::WrongAnswer]),
    of_smmu(Fault::AloneIsEnough, &[Rule::WrongAnswer]),
    of_smmu(Fault::SkipDeviceForget, STALE),
    of_smmu(Fault::DeviceForgetsFirst, STALE),
    of_smmu(Fault::DeviceForgetsOnePage, STALE),
    of_smmu(Fault::ForgetOtherDevice, STALE),
    of_smmu(Fault::CloseKeepsEntry, STALE),
    of_smmu(Fault::LeaveOldTranslations, STALE),
    of_smmu(Fault::SilentIsBelieved, STALE),
    of_smmu(Fault::SilentKeepsEntry, STALE),
    of_smmu(Fault::SilentIsOpened, STALE),
    of_smmu(Fault::AskBeforeEntry, &[Rule::MappedFaulted]),
    of_smmu(Fault::TranslatedUnchecked, STALE),
    of_smmu(Fault::SkipResume, &[Rule::WrongAnswer]),
    of_smmu(Fault::SkipPageResponse, &[Rule::WrongAnswer]),
    of_smmu(
        Fault::ContextAfterEntry,
        &[Rule::BadContext, Rule::TornEntry],
    ),
    of_smmu(Fault::FirstStageOtherVmid, FORGOTTEN),
    of_smmu(
        Fault::LeafForEveryAsid,
        &[
            Rule::StillCached,
            Rule::FreedMemory,
            Rule::ForeignMemory,
            Rule::StaleTranslation,
            Rule::BreakBeforeMake,
        ],
    ),
    of_smmu(Fault::LeafForPrivileged, &[Rule::MappedFaulted]),
    of_smmu(
        Fault::NestedWithoutParent,
        &[
            Rule::FreedMemory,
            Rule::TornEntry,
            Rule::BadContext,
            Rule::ForeignMemory,
        ],
    ),
    of_smmu(Fault::NestedFlushByPages, STALE),
    of_smmu(Fault::UserCommandOtherVmid, STALE),
    of_smmu(Fault::UserContextsKept, FORGOTTEN),
    of_smmu(Fault::FirstStagesKept, FORGOTTEN),
    of_smmu(Fault::RereadForgetsNothing, &[Rule::FaultReport]),
    of_smmu(Fault::QuietSkipsNested, &[Rule::FaultReport]),
    of_smmu(Fault::EmptyUnsnoopedEvents, &[Rule::Queue]),
    of_smmu(Fault::TellBeforeSync, &[Rule::Queue]),
    of_smmu(Fault::MixKinds, &[Rule::Queue]),
];

/// Faults that are not for the rig, and who catches them.
pub const ELSEWHERE: &[(Fault, &str)] = &[
    (
        Fault::InstallByStore,
        "the loom models: it takes two CPUs in the middle of one map each",
    ),
    (Fault::HeldGroupChanges, OWNERSHIP),
    (Fault::UnitByOwnId, OWNERSHIP),
    (Fault::GoneIsWritten, OWNERSHIP),
    (Fault::IsolationNotReread, OWNERSHIP),
    (
        Fault::ParkLeavesPasids,
        "the tests of domains: the rig's units have no PASIDs",
    ),
    (
        Fault::PasidsStayOn,
        "the tests of domains: the rig's functions have no such switch",
    ),
    (Fault::LateBoundStaysLoud, ATTACHING),
    (Fault::RereadForEachRecord, ATTACHING),
    (
        Fault::RereadOnce,
        "the ownership tests: they have a queue that is busy while a group is cut off",
    ),
    (
        Fault::KeepFirmwaresEvents,
        "the catalogue: `kept` has a device go astray while its unit goes by firmware's tables",
    ),
    (
        Fault::WakeStopsAtTheFirst,
        "the catalogue: `kept` has a unit that does not take what it is told",
    ),
    (
        Fault::MarkFirstPage,
        "the catalogue: `bitmaps` has a guest ask what was written",
    ),
    (
        Fault::FirstBatchAlone,
        "the catalogue: `smmu::nested` has a guest with more streams than go into a batch",
    ),
    (
        Fault::NestedOnWhatIsHeld,
        "the catalogue: `smmu::taken` has a flush of pages that another CPU decided on before",
    ),
    (
        Fault::QuietOnceIsQuiet,
        "the catalogue: `smmu::quiet` has a unit that refuses to read the entry of a device that is cut off",
    ),
    (Fault::UpdateByStore, CATALOGUE),
    (Fault::QuietKeepsAsking, CATALOGUE),
    (Fault::RefusedIsForgotten, OPENING),
    (Fault::ResetForgetsOpening, OPENING),
    (Fault::MendAsksAll, PATIENCE),
    (
        Fault::SilentEntryNotReread,
        "the catalogue: `smmu::silent` has devices that do not answer",
    ),
    (Fault::MendingIsNotWaitedFor, PATIENCE),
    (Fault::ResetHeedsOldAnswers, PATIENCE),
    (
        Fault::MenderStays,
        "the ownership tests: it takes a CPU that ends tables in the middle of another one's wait for devices",
    ),
    (
        Fault::LeaveAtsOn,
        "the catalogue: `smmu::device_tlbs` looks at what firmware left on",
    ),
    (
        Fault::ResetKeepsStalls,
        "the catalogue: `smmu::answers` has a unit that could not write the event of a request that stands still",
    ),
    (
        Fault::RecordUnknownStreams,
        "the catalogue: `smmu::quiet` has a device that nobody attached go astray",
    ),
    (Fault::HolderNotedLate, LOOM),
    (Fault::UnregisterEarly, LOOM),
    (Fault::ReserveByStore, LOOM),
    (Fault::PublishEarly, LOOM),
    (Fault::PublishEntriesRelaxed, LOOM),
    (Fault::BellIsFree, LOOM),
    (Fault::BellIsNotRungAgain, LOOM),
    (Fault::SkipSecondLook, LOOM),
    (Fault::LetGoRelaxed, LOOM),
    (Fault::BellRelaxed, LOOM),
    (Fault::LeaveRelaxed, LOOM),
    (Fault::RingPastGap, LOOM),
    (Fault::SyncIsShared, LOOM),
    (Fault::WaitNotForSync, LOOM),
    (Fault::BelieveHead, LOOM),
    (Fault::RestartWithoutWaiting, LOOM),
    (Fault::RestartTakesAnyBell, LOOM),
    (Fault::ResumeBeforeHold, LOOM),
    (Fault::PublishRelaxed, LOOM),
    (Fault::SharedRelaxed, LOOM),
    (Fault::DirtyByStore, LOOM),
    (Fault::SplitDropsDirty, LOOM),
    (Fault::PinRelaxed, LOOM),
    (Fault::SkipPinFence, LOOM),
    (Fault::SkipPassFence, LOOM),
    (Fault::UnpinRelaxed, LOOM),
    (Fault::SkipRetireFence, LOOM),
    (Fault::SkipAdvanceFence, LOOM),
    (Fault::SkipReachFence, LOOM),
    (Fault::LeaveForAll, LOOM),
    (Fault::SkipFlushFence, LOOM),
    (Fault::SkipNoteFence, LOOM),
    (Fault::OneEpoch, LOOM),
    (Fault::LockRelaxed, LOOM),
    (Fault::LockIsFree, LOOM),
    (Fault::WalkRelaxed, LOOM),
    (Fault::LeafRelaxed, LOOM),
    (Fault::ThawByStore, LOOM),
    (Fault::ShortWayComparesNothing, LOOM),
    (Fault::ShortWaySkipsMarks, LOOM),
    (Fault::SkipUpperThaw, LOOM),
    (Fault::LinkClaimsWrittenBack, LOOM),
    (Fault::RelinkClaimsWrittenBack, LOOM),
    (Fault::DetachByStore, LOOM),
    (Fault::CacheKeepsRange, LOOM),
    (Fault::FlushKeepsRanges, LOOM),
    (Fault::OverflowLosesRanges, LOOM),
    (Fault::SkipEmptying, LOOM),
    (Fault::ClaimedIsEmpty, LOOM),
    (Fault::DepotOpenWhileEmptying, LOOM),
    (Fault::HoldsBegunFirst, LOOM),
    (Fault::HoldEndsRelaxed, LOOM),
    (Fault::HoldClaimNotAwaited, LOOM),
    (Fault::EmptyRelaxed, LOOM),
    (Fault::FreezeByStore, LOOM),
    (Fault::SkipRewalk, LOOM),
    (Fault::ClearByStore, LOOM),
    (Fault::RetireLinked, LOOM),
    (Fault::CoverLateMerges, LOOM),
    (Fault::EndSkipsPending, LOOM),
    (Fault::EndSkipsLists, LOOM),
    (Fault::SplitByStore, LOOM),
    (Fault::MergeDropsDirty, LOOM),
    (Fault::SkipLateHarvest, LOOM),
    (Fault::SkipMergedHarvest, LOOM),
    (Fault::LookSkipsMerges, LOOM),
    (Fault::ProtectDropsDirty, LOOM),
    (Fault::ProtectCarriesDirty, LOOM),
    (Fault::ClearDirtyByStore, LOOM),
    (Fault::PendingWithoutKind, LOOM),
    (
        Fault::IgnoreDmaMask,
        "the ownership tests: the rig's devices can say every address",
    ),
    (
        Fault::RegionNotCompared,
        "the ownership tests: the rig's regions are firmware's",
    ),
    (
        Fault::SyncSkipsCaches,
        "the ownership tests: the rig's devices snoop",
    ),
];

/// It takes functions that come, go or are reset.
const OWNERSHIP: &str = "the ownership tests: no machine of the rig has what it is about";
/// It takes another CPU between two requesters of a group.
const ATTACHING: &str =
    "the ownership tests: they have a group cut off in the middle of its attach";
/// It takes another CPU at one of many steps, each of which is tried.
const CATALOGUE: &str =
    "the catalogue: `smmu::loose` has a device cut off at each step of a change of its entry";
const OPENING: &str =
    "the catalogue: `smmu::loose` has several CPUs come in between when a device is let ask";
const PATIENCE: &str =
    "the catalogue: `smmu::patience` has devices that take as long as their bus gives them";
/// It takes several CPUs in the middle of something.
const LOOM: &str = "the loom models";
