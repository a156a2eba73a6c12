//! Models of a queue that stops at a command which hardware refuses, whoever waits for it.

use std::sync::Arc;

use hv_core::sync::spin_hint;
use hv_iommu::UnitError;
use hv_iommu::queue::QueuePort;

use super::Unit;
use crate::explore::models;

/// What hardware refuses.
const BAD: u64 = 5;

fn refusing(is_deaf: bool) -> Arc<Unit> {
    Arc::new(Unit {
        eager: true,
        goes_on: true,
        refuses: BAD,
        is_deaf,
        ..Unit::new(2)
    })
}

/// Submits what is refused, waits, and finds it not done.
fn fails(unit: &Unit) {
    let ticket = unit.submit(BAD).unwrap();
    loop {
        match unit.queue.poll(unit, ticket) {
            Ok(false) => spin_hint(),
            Err(UnitError::Refused { code, .. }) if u64::from(code.0) == BAD => return,
            other => panic!("{other:?}"),
        }
    }
}

/// One CPU asks for what is refused, another for something else, which may share the sync.
fn one_of_two_is_refused() {
    let unit = refusing(false);
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.flush(1))
    };
    fails(&unit);
    other.join().unwrap();
    is_well(&unit);
}

/// The same, and hardware hears the doorbell neither while it stands nor when it may go on: one CPU may have the bell while
/// the other repairs.
fn a_bell_is_not_heard() {
    let unit = refusing(true);
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(1).unwrap())
    };
    fails(&unit);
    let theirs = other.join().unwrap();
    assert_eq!(unit.queue.poll(&*unit, theirs), Ok(true));
    assert!(unit.has_done(1));
    is_well(&unit);
}

fn is_well(unit: &Unit) {
    assert!(!unit.has_done(BAD));
    assert_eq!(unit.queue.refusals(), (1, 1));
    assert_eq!(unit.queue.check_alive(unit.unit()), Ok(()));
}

models! {
    /// What hardware refuses fails the one who asked for it, and harms nobody else.
    /// Shows: bc01.
    bc01_what_is_refused_fails_who_asked_for_it_and_nobody_else: Two(1), sees [], one_of_two_is_refused;

    /// What was rung for while hardware stood is rung for once more.
    /// Shows: bc14.
    bc14_a_bell_that_hardware_did_not_hear_is_rung_again: Two(1), sees [], a_bell_is_not_heard;
}
