//! Units that do not answer while a guest's mappings come and go.

use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Duration;

use hv_core::platform::{Clock, FrameSource};
use hv_core::{Gpa, GuestMemoryError, Iova, Perms};
use hv_iommu::{AddressSpaceError, FlushError, RedeemRefusal, UnitCaps, UnitError, UnitIndex};
use hv_tests::fake::{Answer, Call, Completion};

use super::machine::{Machine, full_unit, gpas, iovas, vm};
use super::space::{PAGE, end_space, guest, guest_on};

#[test]
fn bc01_xsa_373_what_was_not_flushed_stays_pinned_until_a_flush_works() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 2);
    one.map(0x8000, 0x8000, 2);
    assert!(one.writes(0x1000));
    one.machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let failed = one.space.unmap(&one.memory, iovas(0, 16));
    let unit = UnitIndex::new(0).unwrap();
    let waited = Duration::from_millis(1);
    let busy = FlushError::Unit(UnitError::Busy { unit, waited });
    assert_eq!(failed, Err(AddressSpaceError::Unit(busy)));
    // Gone from the space, but neither place nor memory is free.
    assert_eq!(one.listed(), []);
    assert_eq!(one.memory.pinned_pages(), 4);
    let held = one.memory.take_back(Gpa::new(0));
    assert!(matches!(held, Err(GuestMemoryError::Pinned { .. })));
    let (wanted, pending) = (iovas(0x1000, 1), iovas(0x1000, 2));
    let expected = AddressSpaceError::Pending { wanted, pending };
    let refused = one
        .space
        .map(&one.memory, Iova::new(0x1000), gpas(0, 1), Perms::Read);
    assert_eq!(refused, Err(expected));
    let again = one.space.unmap(&one.memory, wanted);
    assert_eq!(again, Err(expected));
    assert_eq!(one.space.retry(&one.memory), Ok(4 * PAGE));
    assert_eq!(one.memory.pinned_pages(), 0);
    assert!(!one.writes(0x1000));
    one.map(0x1000, 0, 1);
    one.end();
}

#[test]
fn bc01_xsa_373_a_wedged_unit_keeps_the_memory_until_its_reset() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 2);
    one.machine.fake.completes(0, Completion::Never);
    let failed = one.space.unmap_all(&one.memory);
    assert!(
        matches!(failed, Err(AddressSpaceError::Unit(_))),
        "{failed:?}"
    );
    assert!(one.space.retry(&one.memory).is_err());
    assert_eq!(one.memory.pinned_pages(), 2);
    one.machine.fake.completes(0, Completion::AfterPolls(0));
    one.machine
        .iommu
        .reset_unit(UnitIndex::new(0).unwrap())
        .unwrap();
    assert_eq!(one.space.retry(&one.memory), Ok(2 * PAGE));
    one.end();
}

#[test]
fn a_map_that_a_unit_was_not_told_of_does_not_stay() {
    let unit = UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    // The unit refuses to be told, and then the flush of the unmap, too.
    for failures in 1..3 {
        let mut one = guest_on(Machine::with_units(unit, unit), vm(1), None);
        for failure in 0..failures {
            one.machine
                .fake
                .plan(0, Call::Submit, failure, Answer::Busy);
        }
        let refused = one
            .space
            .map(&one.memory, Iova::new(0x1000), gpas(0, 2), Perms::Read);
        assert!(
            matches!(refused, Err(AddressSpaceError::Unit(_))),
            "{refused:?}"
        );
        assert_eq!(one.listed(), []);
        assert_eq!(one.memory.pinned_pages(), if failures == 1 { 0 } else { 2 });
        let retried = one.space.retry(&one.memory).unwrap();
        assert_eq!(retried, if failures == 1 { 0 } else { 2 * PAGE });
        one.map(0x1000, 0, 2);
        one.end();
    }
}

#[test]
fn frames_of_a_pending_mapping_come_back_with_the_end() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 2);
    one.machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    assert!(one.space.unmap_all(&one.memory).is_err());
    let host = one.machine.host();
    let spare = host.frames(1);
    host.free_frames(spare);
    one.end();
}

/// A CPU stays in a walk, of another space even, for longer than a wait lasts.
#[test]
fn one_call_waits_for_walkers_once_however_many_tables_it_detached() {
    const AREAS: u64 = 8;
    let mut one = guest(vm(1));
    let mut other = one.other_space();
    other
        .map(&one.memory, Iova::new(0x1000), gpas(0, 1), Perms::Read)
        .unwrap();
    one.give(0x4000_0000, 1024);
    // Not aligned in the guest, so each fills a table of small pages.
    for number in 0..AREAS {
        one.map(0x8000_0000 + number * 512 * PAGE, 0x4000_1000, 512);
    }
    let tables = one.space.domain().table_pages();
    let (entered, seen) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let domain = other.domain();
        let walker = scope.spawn(move || {
            let _ = domain.mappings(iovas(0, 16), |_| {
                entered.send(()).unwrap();
                let _ = wait.recv_timeout(Duration::from_secs(10));
                ControlFlow::Continue(())
            });
        });
        seen.recv_timeout(Duration::from_secs(10)).unwrap();
        let start = one.machine.host().now();
        let refused = one.space.unmap_all(&one.memory);
        let waited = one.machine.host().now().since(start);
        let walked = AddressSpaceError::Redeem(RedeemRefusal::StillWalked);
        assert_eq!(refused, Err(walked));
        // The deadline of the machine is a millisecond.
        let (least, most) = (Duration::from_millis(1), Duration::from_millis(2));
        assert!((least..most).contains(&waited), "{waited:?}");
        assert_eq!(one.space.domain().table_pages(), tables);
        go.send(()).unwrap();
        walker.join().unwrap();
    });
    assert_eq!(one.space.retry(&one.memory), Ok(AREAS * 512 * PAGE));
    end_space(other, &one.memory);
    one.end();
}
