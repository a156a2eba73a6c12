//! Looking for the fault that a blocked access must leave behind.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use hv_core::platform::Clock;
use hv_core::sync::Ordering;
use hv_core::{Access, Iova, OwnerId, PageSize, PciAddress};
use hv_iommu::{DomainUid, FaultClass, FaultNotice, FaultStage};

use super::drive::drive;
use super::{Context, Failure};
use crate::arch::backend::announcements;
use crate::report::{self, Event, FaultEvent};

/// How many calls may be needed until the logs are empty: a device that goes on faulting must not hold this up for ever.
const MAX_CALLS: usize = 100;

/// How long a unit may take to tell of a fault: the device was told already that its access was refused.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(5);

/// The fault that is waited for.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    pub(super) requester: PciAddress,
    pub(super) address: Iova,
    pub(super) access: Access,
    pub(super) owner: OwnerId,
}

impl Context<'_> {
    /// Empties the fault logs without looking, and forgets the interrupts that told of them.
    pub(super) fn forget_faults(&self) {
        self.empty_logs(|_| {});
        self.forget_interrupts();
    }

    /// The interrupts that the drive's unit sent for faults so far.
    fn interrupts(&self) -> u64 {
        let unit = drive(self.machine).ok();
        let unit = unit.and_then(|drive| self.iommu.unit_of(drive));
        unit.map_or(0, |unit| announcements(&self.iommu, unit))
    }

    /// Forgets the interrupts that told of what was in the logs.
    fn forget_interrupts(&self) {
        // ORDERING: Relaxed, one CPU looks for faults.
        self.seen.store(self.interrupts(), Ordering::Relaxed);
    }

    /// Waits for the interrupt by which the drive's unit has to tell of the faults that were provoked since the logs were
    /// last emptied, as a driver would that sleeps until then; and then checks as [`expect_fault`](Self::expect_fault) does.
    pub(super) fn expect_announced(&self, expected: Expected) -> Result<(), Failure> {
        let clock = self.machine.platform;
        let end = clock.now().after(ANNOUNCED_WITHIN);
        // ORDERING: Relaxed, as in `forget_interrupts`.
        let seen = self.seen.load(Ordering::Relaxed);
        let told = loop {
            // The time is taken first: an interrupt that comes at the last moment still counts.
            let late = clock.now() > end;
            let told = self.interrupts() != seen;
            if told || late {
                break told;
            }
            core::hint::spin_loop();
        };
        self.expect_fault(expected)?;
        match told {
            true => Ok(()),
            false => Err(Failure::new(format_args!(
                "a fault is in the log, and within {ANNOUNCED_WITHIN:?} no interrupt told of it"
            ))),
        }
    }

    /// Empties the fault logs, which takes several calls where one DMA leaves more faults than one call takes.
    fn empty_logs(&self, mut tell: impl FnMut(FaultNotice)) {
        for _ in 0..MAX_CALLS {
            let mut any = false;
            self.iommu.take_faults(|notice| {
                any = true;
                tell(notice);
            });
            if !any {
                return;
            }
        }
    }

    /// Empties the fault logs, reports every fault that differs from the one before it, and checks that the expected
    /// one is among them.
    pub(super) fn expect_fault(&self, expected: Expected) -> Result<(), Failure> {
        self.expect_fault_of(expected, None)
    }

    /// Likewise, and it is told to be of that domain, and of that stage of it.
    pub(super) fn expect_fault_of(
        &self,
        expected: Expected,
        of: Option<(DomainUid, FaultStage)>,
    ) -> Result<(), Failure> {
        let page = expected.address.align_down(PageSize::Size4K);
        let mut found = false;
        let mut others = 0;
        let mut last = None;
        self.empty_logs(|notice| {
            let FaultNotice::Fault(report) = notice else {
                return;
            };
            if last.replace(report) == Some(report) {
                return;
            }
            let fault = report.fault;
            report::emit(&Event::Fault(FaultEvent {
                scenario: self.name,
                requester: fault.requester,
                address: fault.address,
                access: fault.access,
                reason: &match fault.stage {
                    Some(stage) => format!("{}, {stage}", fault.class),
                    None => format!("{}", fault.class),
                },
                code: fault.code,
                domain: report.bound_to.map(|(_, domain, _)| domain.get()),
                owner: report.bound_to.map(|(_, _, owner)| owner),
            }));
            let same = fault.requester == expected.requester
                && fault.address == page
                && fault.access == expected.access
                && fault.class == FaultClass::NotPermitted
                && report.bound_to.is_some_and(|(_, domain, owner)| {
                    let here = (domain, fault.stage);
                    owner == expected.owner
                        && of.is_none_or(|(domain, stage)| here == (domain, Some(stage)))
                });
            if same {
                found = true;
            } else {
                others += 1;
            }
        });
        self.forget_interrupts();
        if found {
            return Ok(());
        }
        let at = of.map_or(String::new(), |(domain, stage)| {
            format!(", by the {stage} of {domain}")
        });
        Err(Failure::new(format_args!(
            "no fault names a {} of {page} by {} of {}{at} ({others} other faults)",
            expected.access, expected.requester, expected.owner
        )))
    }
}
