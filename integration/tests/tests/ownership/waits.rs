//! Waits for a unit that waits for devices: how long they are, and whom they hold up.

use std::sync::mpsc;
use std::time::Duration;

use hv_core::Perms;
use hv_iommu::{FlushError, RedeemRefusal, UnitError};
use hv_tests::fake::Completion;

use super::machine::{Driver, FAR, Machine, NIC, iovas};

/// One page, unmapped and pending.
fn flush(machine: &Machine, driver: &Driver) -> Result<(), UnitError> {
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::ReadWrite);
    match range.unwrap().unmap().flush() {
        Ok((range, frames)) => {
            hv_core::platform::FrameSource::free_frames(machine.host(), frames);
            range.release().unwrap();
            Ok(())
        }
        Err(failed) => match failed.reason {
            RedeemRefusal::Flush(FlushError::Unit(error)) => Err(error),
            other => panic!("{other}"),
        },
    }
}

/// Each device that does not answer is given its time, and who waits for all of them waits as long.
#[test]
fn bc01_who_waits_while_it_is_found_out_who_does_not_answer_begins_anew_with_each() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    // Looks at the clock take a microsecond, and waits are over after a millisecond, or three more for devices.
    machine.fake.finds_out(0, 3000);
    machine.fake.completes(0, Completion::AfterPolls(20_000));
    assert_eq!(flush(&machine, &driver), Ok(()));
    // One that is given more time than that is never found out.
    machine.fake.finds_out(0, 6000);
    match flush(&machine, &driver) {
        Err(UnitError::Timeout { waited, .. }) => {
            assert!(waited > Duration::from_millis(4) && waited < Duration::from_millis(6));
        }
        other => panic!("{other:?}"),
    }
}

/// A CPU that finds out which devices do not answer is in one look at its unit for all of that time.
#[test]
fn a_cpu_that_waits_for_devices_holds_back_nothing_that_is_retired() {
    let mut machine = Machine::new();
    let (driver, far) = (machine.driver(NIC), machine.driver(FAR));
    for index in 1..20 {
        let range = far.domain.reserve(iovas(index << 21, 1)).unwrap();
        let range = range
            .map(machine.host().frames(1), Perms::ReadWrite)
            .unwrap();
        let (range, frames) = range.unmap().flush().unwrap();
        hv_core::platform::FrameSource::free_frames(machine.host(), frames);
        range.release().unwrap();
    }
    let before = far.domain.table_pages();
    assert!(before > 19, "{before} tables");
    let (given, back) = mpsc::channel();
    machine.fake.during_poll(0, move || {
        let other = std::thread::spawn(move || (far.domain.reclaim(), far));
        given.send(other.join()).unwrap();
    });
    let stay = machine.iommu.enter();
    assert_eq!(flush(&machine, &driver), Ok(()));
    drop(stay);
    let (reclaimed, far) = back.recv().unwrap().unwrap();
    assert_eq!(reclaimed, Ok(before - 1));
    assert_eq!(
        (far.end(machine.host()), driver.end(machine.host())),
        (0, 0)
    );
}
