//! Faults as people read them: one line each.

use core::fmt;

use super::raw::{RawFault, StrayFault};
use super::{CutOff, CutOffReason, FaultNotice, FaultReport};

impl fmt::Display for RawFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.requester.fmt(f)?;
        if let Some(pasid) = self.pasid {
            write!(f, " with {pasid}")?;
        }
        let Self {
            access,
            address,
            class,
            code,
            stage,
            detail,
            ..
        } = self;
        write!(f, ": {access} at {address}: {class} (code {code:#x}")?;
        if let Some(stage) = stage {
            write!(f, ", {stage}")?;
        }
        // Of a domain without a first stage it is the address itself.
        match (detail.step, detail.second_stage_page) {
            (Some(step), Some(page)) if page != *address => write!(f, ", for {step} at {page}")?,
            _ => {}
        }
        f.write_str(")")
    }
}

impl fmt::Display for StrayFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            access,
            address,
            class,
            code,
        } = self;
        write!(
            f,
            "source {source:#x}, which is no function here: {access} at {address}: {class} (code {code:#x})"
        )
    }
}

impl fmt::Display for FaultReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, told by {}", self.fault, self.unit)?;
        match self.bound_to {
            Some((group, domain, owner)) => write!(f, "; {group} in {domain} of {owner}"),
            None => f.write_str("; bound to no domain"),
        }
    }
}

impl fmt::Display for CutOffReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faults(budget) => {
                let (faults, within) = (budget.faults, budget.within);
                write!(f, "caused more than {faults} faults within {within:?}")
            }
            Self::NoAnswer => f.write_str("did not forget translations when told to (ATS)"),
        }
    }
}

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            unit,
            requester,
            group,
            domain,
            owner,
            reason,
        } = self;
        write!(
            f,
            "{group} in {domain} of {owner} is cut off: {requester} {reason} (told by {unit})"
        )
    }
}

impl fmt::Display for FaultNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(report) => report.fmt(f),
            Self::Stray(unit, fault) => write!(f, "{fault}, told by {unit}"),
            Self::Lost(unit) => write!(f, "{unit} lost faults: its log was full"),
            Self::BadLog(unit, bad) => {
                write!(f, "{unit} lost faults: {bad}, so none of them is believed")
            }
            Self::Failed(unit) => write!(
                f,
                "{unit} works no more, and the devices behind it are cut off until `Iommu::reset_unit` brings it back"
            ),
            Self::CutOff(cut_off) => cut_off.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use hv_core::{Access, Iova, OwnerId, Pasid, PciAddress, Segment, VmId};

    use super::super::raw::{BadLog, FaultClass, FaultDetail, FaultStage, FaultStep};
    use super::*;
    use crate::backend::UnitIndex;
    use crate::domain::DomainUid;
    use crate::faults::FaultBudget;
    use crate::group::GroupId;

    #[test]
    fn notices_are_one_line_each_that_says_who_where_and_whose() {
        let unit = UnitIndex::new(1).unwrap();
        let requester = PciAddress::from_requester(Segment(0), 0x0100);
        let (group, domain) = (GroupId::numbered(3), DomainUid::BLOCKED);
        let owner = OwnerId::Vm(VmId::new(7).unwrap());
        let fault = RawFault {
            requester,
            pasid: Pasid::new(5),
            address: Iova::new(0x7000),
            access: Access::Write,
            class: FaultClass::NotPermitted,
            stage: Some(FaultStage::First),
            detail: FaultDetail::default(),
            code: 0x10,
        };
        let beyond = RawFault {
            stage: Some(FaultStage::Second),
            detail: FaultDetail {
                step: Some(FaultStep::Table),
                second_stage_page: Some(Iova::new(0x28_0000)),
                ..FaultDetail::default()
            },
            ..fault
        };
        let stray = StrayFault {
            source: 0x1234,
            address: fault.address,
            access: fault.access,
            class: FaultClass::NotBound,
            code: 2,
        };
        let bad = BadLog {
            log: "event queue",
            room: 8,
            found: 11,
        };
        let report = |bound_to| {
            FaultNotice::Fault(FaultReport {
                unit,
                fault,
                bound_to,
            })
        };
        let cut_off = |reason| {
            FaultNotice::CutOff(CutOff {
                unit,
                requester,
                group,
                domain,
                owner,
                reason,
            })
        };
        let budget = CutOffReason::Faults(FaultBudget::default());
        for (notice, parts) in [
            (
                report(Some((group, domain, owner))),
                &[
                    "01:00.0",
                    "pasid 0x5",
                    "write at",
                    "7000",
                    "not mapped",
                    "(code 0x10, first stage)",
                    "group 3",
                    "domain 0",
                    "7",
                ][..],
            ),
            (report(None), &["01:00.0", "no domain"]),
            (
                FaultNotice::Fault(FaultReport {
                    unit,
                    fault: beyond,
                    bound_to: None,
                }),
                &["write at", "7000", "second stage, for a table at", "280000"],
            ),
            (FaultNotice::Stray(unit, stray), &["0x1234", "write at"]),
            (FaultNotice::Lost(unit), &["was full"]),
            (
                FaultNotice::BadLog(unit, bad),
                &["at most 8 records", "event queue", "says 11", "none"],
            ),
            (FaultNotice::Failed(unit), &["reset"]),
            (
                cut_off(budget),
                &["group 3", "01:00.0", "1000 faults within 1s"],
            ),
            (
                cut_off(CutOffReason::NoAnswer),
                &["group 3", "01:00.0", "did not forget"],
            ),
        ] {
            let told = notice.to_string();
            assert!(
                !told.contains('\n') && told.contains(&unit.to_string()),
                "{told}"
            );
            for part in parts {
                assert!(told.contains(part), "{part:?} is missing in {told:?}");
            }
        }
    }
}
