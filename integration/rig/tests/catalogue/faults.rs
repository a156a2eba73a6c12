//! Faults come out once each, in order, as they happened; what was lost is said to be.

use hv_core::{Access, Iova};
use hv_iommu::{FaultNotice, UnitIndex};
use hv_rig::Machine;

use crate::stand::{Stand, on_machines, pci};

/// What the subsystem reports: page and direction of each fault, and how often some were lost.
fn taken(stand: &Stand, unit: UnitIndex) -> (Vec<(u64, Access)>, usize) {
    let (mut faults, mut lost) = (Vec::new(), 0);
    stand.iommu.take_faults(|notice| match notice {
        FaultNotice::Fault(report) => {
            assert_eq!((report.unit, report.fault.requester), (unit, pci(0, 2, 0)));
            faults.push((report.fault.address.as_u64(), report.fault.access));
        }
        FaultNotice::Lost(from) => {
            assert_eq!(from, unit);
            lost += 1;
        }
    });
    (faults, lost)
}

/// Shows: bc19.
#[test]
fn faults_come_out_once_each_and_losses_are_told() {
    let quiet = |machine: &mut Machine| machine.temper.background = false;
    on_machines(60, quiet, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let records = stand.rig.machine().units[unit.index()].cap.nfr as usize;
        assert_eq!(taken(stand, unit), (vec![], 0));
        // Again and again, so that the ring of records goes round; never, or always, one too many.
        for round in 0..6 {
            let count = if round % 2 == 0 { records } else { records + 1 };
            let mut expected = Vec::new();
            for index in 0..count {
                let page = 0x100 + (round * 100 + index) as u64;
                let access = if index % 2 == 0 {
                    Access::Read
                } else {
                    Access::Write
                };
                stand
                    .rig
                    .access(pci(0, 2, 0), Iova::new(page * 4096 + 8), access);
                expected.push((page * 4096, access));
            }
            expected.truncate(records);
            let lost = usize::from(count > records);
            assert_eq!(taken(stand, unit), (expected, lost), "round {round}");
            assert_eq!(taken(stand, unit), (vec![], 0), "round {round}");
        }
        drop(one.end());
    });
}
