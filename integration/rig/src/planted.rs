//! The test of the rig: deliberate faults of the driver, each with what the rig has to say about it.

use std::time::Duration;

use hv_core::fault::Fault;
use hv_iommu::{Backend, FlushDepth, FlushRequest, FlushSpan, HwDomainId, UnitIndex};
use hv_vtd::{CoveragePolicy, Vtd, dmar};

use crate::life::Life;
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};

/// A fault that the rig has to catch.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    /// The fault.
    pub fault: Fault,
    /// The rules that it breaks; which one is seen first depends on the machine.
    pub rules: &'static [Rule],
}

const fn planted(fault: Fault, rules: &'static [Rule]) -> Planted {
    Planted { fault, rules }
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
    planted(Fault::ClaimKeepsBusMastering, &[Rule::NotCutOff]),
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
    planted(Fault::LeafHintAlways, &[Rule::MappedFaulted]),
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
    planted(Fault::FreePageEarly, STALE),
    planted(
        Fault::FreeTablesEarly,
        &[Rule::WrongAnswer, Rule::StillCached],
    ),
    planted(Fault::LoseLastFrame, &[Rule::LostFrames]),
    planted(Fault::RedeemWrongRange, &[Rule::LostFrames]),
    planted(Fault::ClearFaultBeforeReading, &[Rule::FaultReport]),
];

/// Faults that are not for the rig, and who catches them.
pub const ELSEWHERE: &[(Fault, &str)] = &[
    (
        Fault::InstallByStore,
        "the loom models: it takes two CPUs in the middle of one map each",
    ),
    (Fault::PublishRelaxed, LOOM),
    (Fault::SharedRelaxed, LOOM),
    (Fault::SkipThaw, LOOM),
    (Fault::SkipRelink, LOOM),
    (Fault::SkipTombstone, LOOM),
    (Fault::SkipFreezeGrace, LOOM),
    (Fault::SkipRetireGrace, LOOM),
    (Fault::PendingIsEmpty, LOOM),
    (Fault::SkipUnlinkWriteBack, LOOM),
    (Fault::OtherAttemptsReceipt, LOOM),
    (Fault::SkipReclaimFlush, LOOM),
    (Fault::ReclaimLeafHint, LOOM),
    (Fault::DetachLeafHint, LOOM),
    (Fault::DropDebt, LOOM),
    (Fault::DirtyByStore, LOOM),
    (Fault::SplitDropsDirty, LOOM),
];

/// It takes several CPUs in the middle of something.
const LOOM: &str = "the loom models";

/// How many lives are lived before a fault counts as not caught.
pub const LIVES: u64 = 3000;
/// Operations of each.
const OPERATIONS: usize = 120;
/// How many requests the queue's drill hands in without waiting for any: more than a queue holds.
const REQUESTS: u16 = 200;

/// Lives, and drills in between, until a rule is broken. Gives the number of lives it took, too.
pub fn hunt(lives: u64) -> Option<(u64, Violation)> {
    (0..lives).find_map(|seed| {
        let drilled = if seed < 8 { queue_drill(seed) } else { None };
        let found = drilled.or_else(|| Some(Life::new(seed, OPERATIONS).live().failure?.violation));
        found.map(|violation| (seed + 1, violation))
    })
}

/// Many submitters at once, as only a machine of many CPUs has: requests without a wait for each, on a unit
/// that stands still for a while, so that the queue fills up and goes round.
fn queue_drill(seed: u64) -> Option<Violation> {
    let rig = Rig::new(Machine::draw(seed)).ok()?;
    let table = dmar::parse(&rig.dmar()).ok()?;
    let discovery = Vtd::discover(
        rig.clone(),
        &table,
        &rig.functions(),
        CoveragePolicy::Strict,
    )
    .ok()?;
    let unit = UnitIndex::new(0)?;
    if let Ok(backend) = discovery.bring_up() {
        rig.hang(0, Duration::from_millis(20));
        for number in 0..REQUESTS {
            let request = FlushRequest {
                domain: HwDomainId::new(1 + number % 8),
                span: FlushSpan::Domain,
                depth: FlushDepth::WalkCaches,
            };
            if let Err(error) = backend.submit(unit, request) {
                rig.broken(
                    Rule::WrongAnswer,
                    format!("request {number} was not taken: {error}"),
                );
                break;
            }
        }
        rig.idle(20_000);
    }
    rig.verdict().err().map(|failure| failure.violation)
}
