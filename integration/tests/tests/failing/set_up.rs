//! Setting the subsystem up, and the table of its groups.

use hv_core::PciAddress;
use hv_iommu::{
    AtRest, Config, FunctionKind, GroupTable, Iommu, PciFunction, RescanError, SetupError,
    Whereabouts,
};
use hv_tests::fake::Fake;
use hv_tests::heap;

use super::machine::{DISK, FAR, Machine, NIC, OLD, TWIN};

const DEVICES: [PciAddress; 7] = [NIC, TWIN[0], TWIN[1], DISK, FAR, OLD[0], OLD[1]];

fn set_up(machine: &Machine) -> Result<Vec<AtRest<Fake>>, SetupError> {
    let functions = DEVICES.map(|device| PciFunction::new(device, FunctionKind::Endpoint));
    let config = Config::default();
    let set_up = Iommu::new(machine.fake.clone(), &functions, config);
    set_up.map(|(_, groups)| groups)
}

#[test]
fn bc18_xsa_460_a_set_up_that_runs_out_of_memory_can_be_tried_again() {
    let machine = Machine::new();
    let mut failing = 0;
    loop {
        heap::fail_after(Some(failing));
        let groups = set_up(&machine);
        let is_over = heap::is_due();
        heap::fail_after(None);
        match groups {
            Ok(groups) if is_over => {
                assert_eq!(groups.len(), 6, "a group for each device");
                break;
            }
            Ok(_) => panic!("allocation {failing} failed, and nobody was told"),
            Err(error) => assert!(matches!(error, SetupError::OutOfMemory(_)), "{error}"),
        }
        assert_eq!(set_up(&machine).unwrap().len(), 6);
        assert_eq!(machine.host().frames_out(), 0);
        failing += 1;
    }
    assert!(failing >= 10, "{failing} only");
}

#[test]
fn bc18_xsa_460_a_table_that_has_no_room_gives_all_groups_back() {
    let machine = Machine::new();
    let mut groups = set_up(&machine).unwrap();
    let ids: Vec<_> = groups.iter().map(AtRest::id).collect();
    let mut failing = 0;
    let table = loop {
        heap::fail_after(Some(failing));
        let table = GroupTable::new(groups);
        heap::fail_after(None);
        match table {
            Ok(table) => break table,
            Err((back, error)) => {
                assert!(error.bytes > 0);
                assert!(back.iter().map(AtRest::id).eq(ids.iter().copied()));
                groups = back;
            }
        }
        failing += 1;
    };
    assert!(
        failing >= 7,
        "{failing} only: a list of members for each group"
    );
    for device in DEVICES {
        let found = table.find(device).unwrap();
        assert_eq!(found, Whereabouts::AtRest(found.group()));
    }
}

#[test]
fn bc18_xsa_460_a_table_without_memory_for_what_came_loses_no_group() {
    let functions = DEVICES.map(|device| PciFunction::new(device, FunctionKind::Endpoint));
    let (mut failing, mut given_back) = (0, 0);
    loop {
        let machine = Machine::new();
        let set_up = Iommu::new(machine.fake.clone(), &functions[..3], Config::default());
        let (iommu, groups) = set_up.unwrap();
        let table = GroupTable::new(groups).unwrap();
        let came = &functions[3..5];
        heap::fail_after(Some(failing));
        let added = table.add_functions(&iommu, came);
        let is_over = heap::is_due();
        heap::fail_after(None);
        match added {
            Ok(()) if is_over => break,
            Ok(()) => panic!("allocation {failing} failed, and nobody was told"),
            Err(failed) => {
                assert!(matches!(failed.error, RescanError::OutOfMemory(_)));
                given_back += failed.at_rest.len();
                for group in failed.at_rest {
                    table.put_back(group).unwrap();
                }
            }
        }
        table.add_functions(&iommu, came).unwrap();
        for device in &DEVICES[..5] {
            let found = table.find(*device).map(|found| (found, found.holder()));
            assert!(
                matches!(found, Some((_, None))),
                "allocation {failing} failed: {device} is {found:?}"
            );
        }
        failing += 1;
    }
    assert!(failing >= 20, "{failing} only");
    assert!(
        given_back >= 2,
        "{given_back} only: a slot, and its list of members"
    );
}
