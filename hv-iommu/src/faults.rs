//! Faults: whose they are, and how many of them a device may cause before it is cut off, as is one that does not answer.
//!
//! Whom a fault is told to be of while its device goes elsewhere, the loom models
//! `bc19_a_fault_is_told_while_its_device_goes` and
//! `bc19_cve_2024_35843_a_fault_names_one_domain_while_its_device_moves` pin.

mod owed;
mod raw;
mod show;
mod strangers;

use core::time::Duration;

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::platform::{Clock, Instant};
use hv_core::{OwnerId, PciAddress};

pub use self::raw::{
    BadLog, FaultClass, FaultDetail, FaultEvent, FaultStage, FaultStep, RawFault, StrayFault,
};
pub(crate) use self::strangers::Strangers;
use crate::attach::AttachError;
use crate::backend::{Backend, UnitIndex};
use crate::domain::DomainUid;
use crate::group::{GroupId, Inner, clear_bus_mastering};
use crate::system::{Bound, Iommu, Registry, System};

/// How many faults a group of devices may cause in a time before it is cut off. A requester that is bound to nothing may
/// cause as many before its unit records no more of them, until it is bound.
///
/// A device that faults again and again fills the log that it shares with others, and costs time on each look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultBudget {
    /// How many faults are still in order.
    pub faults: u32,
    /// In what time.
    pub within: Duration,
}

impl FaultBudget {
    /// No device is ever cut off for its faults.
    pub const UNLIMITED: Self = Self {
        faults: u32::MAX,
        within: Duration::ZERO,
    };
}

impl Default for FaultBudget {
    /// A thousand a second: a driver with a bug causes some, a device that a guest turned loose causes millions. Emulators may
    /// record one blocked page as many (QEMU's SMMU as a thousand): allow more there.
    fn default() -> Self {
        Self {
            faults: 1000,
            within: Duration::from_secs(1),
        }
    }
}

/// What of its budget a group has used up. Each entry of the group has the same.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    /// When the present stretch of time began; `None` before the first fault.
    since: Option<Instant>,
    /// Faults since then.
    faults: u32,
    /// Whether the group was cut off, for its faults or for a device that does not answer.
    pub(crate) cut_off: bool,
}

impl Meter {
    /// Counts a fault. Says whether that is one too many.
    fn count(&mut self, now: Instant, budget: FaultBudget) -> bool {
        match self.since {
            Some(since) if now <= since.after(budget.within) => {
                self.faults = self.faults.saturating_add(1);
            }
            _ => {
                self.since = Some(now);
                self.faults = 1;
            }
        }
        self.faults > budget.faults
    }
}

/// Whether the entries of a requester are down for a move of the hypervisor's own
/// ([`replace_with_gap`](crate::Group::replace_with_gap)): what is refused for that is not the device's fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gap {
    /// They are not, and were not lately.
    None,
    /// They are.
    Open,
    /// They were, and what was recorded then may be told until then.
    Until(Instant),
}

impl Gap {
    /// What becomes of a gap that ends now. A budget's time is long enough for a look.
    pub(crate) fn ends(now: Instant, budget: FaultBudget) -> Self {
        Self::Until(now.after(budget.within))
    }

    /// Whether a fault that is told now is of the gap.
    fn explains(self, is_of_gap: bool, now: Instant) -> bool {
        let lately = match self {
            Self::None => false,
            Self::Open => true,
            Self::Until(end) => now <= end,
        };
        lately && is_of_gap
    }
}

/// One fault, with who caused it as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultReport {
    /// The unit that recorded it.
    pub unit: UnitIndex,
    /// What it recorded.
    pub fault: RawFault,
    /// The requester's group, domain and owner, if it was bound when the fault was taken. The domain is that of requests
    /// without a PASID.
    pub bound_to: Option<(GroupId, DomainUid, OwnerId)>,
}

/// What a look at the fault logs gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultNotice {
    /// A fault.
    Fault(FaultReport),
    /// A fault of something that no function of the machine sends as.
    Stray(UnitIndex, StrayFault),
    /// The unit lost faults because its log was full.
    Lost(UnitIndex),
    /// A log of the unit says of itself what cannot be. All that it held was dropped, and nobody is charged with it.
    BadLog(UnitIndex, BadLog),
    /// The unit says that it works no more: it is wedged, and the devices behind it are cut off. Told once, and not where
    /// somebody has reset it, or does, by the time that it would be told.
    Failed(UnitIndex),
    /// A group caused more faults than its budget allows, or one of its devices does not forget what it keeps: its devices
    /// have no bus mastering any more, and its units record no more of its faults. It gets both back after a detach, by
    /// being attached anew.
    CutOff(CutOff),
}

/// How many devices that do not answer one look takes; the next look goes on.
const SILENT_AT_ONCE: usize = 16;

/// What a look at the fault logs left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultLogs {
    /// Each of them was empty at some time during the look: the next fault is told by an interrupt, where those are on.
    Empty,
    /// There may be more in one, of which no interrupt tells: whoever relies on interrupts looks again.
    MayHoldMore,
    /// Nothing more is to be had now, and no interrupt tells of what there is or comes: a unit that takes no requests
    /// keeps it back. Whoever relies on interrupts looks again later, and once after the
    /// [reset](Iommu::reset_unit) of the unit, if it is wedged.
    Withheld,
}

/// Why a group was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutOffReason {
    /// It caused more faults than this.
    Faults(FaultBudget),
    /// A device of it was told to forget translations that it keeps (ATS), and did not say that it did. Its unit lets nothing
    /// of it through until it is attached anew, so what waited for it counts as forgotten.
    NoAnswer,
}

/// A group that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// The unit that it is behind.
    pub unit: UnitIndex,
    /// The requester that is the reason.
    pub requester: PciAddress,
    /// Its group.
    pub group: GroupId,
    /// The domain that the group is attached to, still.
    pub domain: DomainUid,
    /// Whose the group is: who has to be told.
    pub owner: OwnerId,
    /// Why.
    pub reason: CutOffReason,
}

/// Whose a requester is, and what its fault came to.
enum Counted {
    /// Of nobody.
    Unbound,
    /// Of nobody, and the last of it that is told before it is bound.
    UnboundNoMore,
    /// Of a group that goes on.
    Within(GroupId, DomainUid, OwnerId),
    /// Of a group that was cut off by this fault.
    OneTooMany(GroupId, DomainUid, OwnerId),
    /// Of a group that was cut off before, or of a requester that is bound to nothing and was made quiet.
    Late,
}

impl<B: Backend> Iommu<B> {
    /// The most fault events that one call of [`take_faults`](Self::take_faults) takes per unit, so
    /// that a storm costs bounded time.
    pub const FAULTS_PER_CALL: usize = 256;

    /// Empties the units' fault logs, at most [`FAULTS_PER_CALL`](Self::FAULTS_PER_CALL) events of
    /// each, and tells `report` of every event. A group that exceeds its [`FaultBudget`] is cut off, which is told
    /// once; what it leaves in the log is dropped. So is one of which a device does not forget what it keeps (ATS), as
    /// soon as that is known. Of a requester that is bound to nothing, and exceeds the same budget, no more is told until it
    /// is bound, nor recorded, where its unit can do without. A unit that says that it has failed is wedged.
    ///
    /// Says whether there may be more, which matters to those who rely on [interrupts](crate::RoutedInterrupts).
    ///
    /// Takes a lock that attaching and detaching take too: not for a handler that may interrupt a
    /// call into this subsystem on its own CPU.
    pub fn take_faults(&self, mut report: impl FnMut(FaultNotice)) -> FaultLogs {
        let (mut more, mut withheld) = (false, false);
        for unit in (0..self.0.backend.unit_count()).filter_map(UnitIndex::new) {
            let all = (0..Self::FAULTS_PER_CALL).any(|_| {
                // What waits for an answer gets it through a queue that may be full.
                match self.0.away(|| self.0.backend.take_fault(unit)) {
                    None => return true,
                    Some(FaultEvent::Withheld) => {
                        withheld = true;
                        return true;
                    }
                    Some(FaultEvent::Overflow) => report(FaultNotice::Lost(unit)),
                    Some(FaultEvent::BadLog(bad)) => report(FaultNotice::BadLog(unit, bad)),
                    Some(FaultEvent::Stray(fault)) => report(FaultNotice::Stray(unit, fault)),
                    Some(FaultEvent::Fault(fault)) => self.0.judge(unit, fault, &mut report),
                    Some(FaultEvent::Failed) => {
                        if self.0.cut_off_failed(unit) {
                            report(FaultNotice::Failed(unit));
                        }
                    }
                }
                false
            });
            more |= !all;
            self.0.hear_of_silent(unit);
        }
        self.0.reread_owed();
        while let Some(cut_off) = self.0.untold() {
            report(FaultNotice::CutOff(cut_off));
        }
        match (more, withheld) {
            (true, _) => FaultLogs::MayHoldMore,
            (false, true) => FaultLogs::Withheld,
            (false, false) => FaultLogs::Empty,
        }
    }
}

impl<B: Backend> System<B> {
    /// Tells of a fault, and cuts its device off where it was one too many.
    fn judge(&self, unit: UnitIndex, fault: RawFault, report: &mut impl FnMut(FaultNotice)) {
        let told = |bound_to| {
            FaultNotice::Fault(FaultReport {
                unit,
                fault,
                bound_to,
            })
        };
        match self.count(unit, &fault) {
            Counted::Unbound => report(told(None)),
            Counted::UnboundNoMore => {
                self.reread_owed();
                report(told(None));
                let (who, budget) = (fault.requester, self.budget);
                log::error!(
                    "{who}, which is bound to nothing, caused more than {} faults within {:?}: it is told of no more until it is \
                     attached",
                    budget.faults,
                    budget.within
                );
            }
            Counted::Within(group, domain, owner) => report(told(Some((group, domain, owner)))),
            Counted::Late => {}
            Counted::OneTooMany(group, domain, owner) => {
                self.reread_owed();
                report(told(Some((group, domain, owner))));
                let budget = self.budget;
                log::error!(
                    "{group} of {owner} is cut off: {} caused more than {} faults within {:?}",
                    fault.requester,
                    budget.faults,
                    budget.within
                );
                report(FaultNotice::CutOff(CutOff {
                    unit,
                    requester: fault.requester,
                    group,
                    domain,
                    owner,
                    reason: CutOffReason::Faults(budget),
                }));
            }
        }
    }

    /// Counts a fault under the budget of its requester's group, or of the requester itself if it is bound to nothing.
    fn count(&self, unit: UnitIndex, fault: &RawFault) -> Counted {
        let requester = fault.requester;
        let now = self.backend.platform().now();
        let mut registry = self.registry.lock();
        let bound = |entry: &&Bound| entry.requester == requester;
        let Some(bound) = registry.bound.iter().find(bound) else {
            return self.count_stranger(&mut registry, unit, fault, now);
        };
        let (group, domain, owner) = (bound.group, bound.domain, bound.owner);
        let mut meter = bound.meter;
        if meter.cut_off {
            if Fault::LateBoundStaysLoud.is_on() {
                return Counted::Late;
            }
            // Recorded before it was cut off, or its entry went live once more: it was being bound just then.
            let quiet = self.backend.quiet(bound.unit, bound.requester).is_ok();
            let again = quiet && (!bound.is_quiet || self.backend.heeds_quiet(fault.code));
            for bound in registry.bound.iter_mut() {
                bound.owes_reread |= again && bound.group == group;
                bound.is_quiet |= quiet && bound.requester == requester;
            }
            drop(registry);
            if Fault::RereadForEachRecord.is_on() {
                self.reread_owed();
            }
            return Counted::Late;
        }
        if bound.gap.explains(self.backend.is_of_gap(fault.code), now) {
            return Counted::Within(group, domain, owner);
        }
        let too_many = meter.count(now, self.budget);
        let ours = registry.bound.iter_mut();
        for bound in ours.filter(|bound| bound.group == group) {
            bound.meter = meter;
        }
        if !too_many {
            return Counted::Within(group, domain, owner);
        }
        self.silence_group(&mut registry, group);
        Counted::OneTooMany(group, domain, owner)
    }

    /// Cuts off the groups of devices that a unit lets nothing through of any more, since they did not answer.
    pub(crate) fn hear_of_silent(&self, unit: UnitIndex) {
        if !self.backend.has_silent(unit) {
            return;
        }
        let mut silent = ArrayVec::<PciAddress, SILENT_AT_ONCE>::new();
        {
            let mut registry = self.registry.lock();
            // Taken under the lock that each unbinding takes, behind its wait: whoever has the device next is not meant.
            for _ in 0..SILENT_AT_ONCE {
                let Some(requester) = self.backend.take_silent(unit) else {
                    break;
                };
                let _ = silent.try_push(requester);
                let mut bound = registry.bound.iter_mut();
                let its = |bound: &&mut Bound| bound.requester == requester && bound.unit == unit;
                let Some(bound) = bound.find(its) else {
                    continue;
                };
                // Told once.
                bound.is_untold = !bound.meter.cut_off;
                let group = bound.group;
                self.silence_group(&mut registry, group);
            }
        }
        for requester in silent {
            log::error!("{requester} does not answer invalidations (ATS) and is cut off");
        }
        self.reread_owed();
    }

    /// A group that was cut off because of a device that does not answer, of which nobody was told yet.
    fn untold(&self) -> Option<CutOff> {
        let mut registry = self.registry.lock();
        let bound = registry.bound.iter_mut().find(|bound| bound.is_untold)?;
        bound.is_untold = false;
        Some(CutOff {
            unit: bound.unit,
            requester: bound.requester,
            group: bound.group,
            domain: bound.domain,
            owner: bound.owner,
            reason: CutOffReason::NoAnswer,
        })
    }

    /// Takes bus mastering from a group's devices and stops their faults from being recorded. Under the registry's
    /// lock, which every binding and unbinding takes, so that the entries that are changed are this group's.
    fn silence_group(&self, registry: &mut Registry<B>, group: GroupId) {
        for bound in registry
            .bound
            .iter_mut()
            .filter(|bound| bound.group == group)
        {
            bound.meter.cut_off = true;
            clear_bus_mastering(self.backend.platform(), bound.requester);
            bound.stop_asking(self.backend.platform());
            // What cannot be noted costs others room in the log, no more.
            bound.is_quiet = self.backend.quiet(bound.unit, bound.requester).is_ok();
            bound.owes_reread = true;
        }
    }
}

impl<B: Backend> Registry<B> {
    /// What a group has used of its budget since it was attached.
    pub(crate) fn meter_of(&self, group: GroupId) -> Meter {
        let ours = self.bound.iter().find(|bound| bound.group == group);
        ours.map(|bound| bound.meter).unwrap_or_default()
    }
}

impl<B: Backend> Inner<B> {
    /// Notes what becomes of the gap in which the group's entries are down.
    pub(crate) fn note_gap(&self, gap: impl FnOnce(Instant, FaultBudget) -> Gap) {
        let system = &self.system;
        let gap = gap(system.backend.platform().now(), system.budget);
        let mut registry = system.registry.lock();
        for bound in registry.bound.iter_mut() {
            if bound.group == self.id {
                bound.gap = gap;
            }
        }
    }

    /// Refuses if the group was cut off.
    pub(crate) fn check_not_cut_off(&self) -> Result<(), AttachError> {
        if self.system.registry.lock().meter_of(self.id).cut_off {
            return Err(AttachError::CutOff { group: self.id });
        }
        Ok(())
    }
}
