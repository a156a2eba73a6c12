//! Models of a queue that stops at a command which hardware refuses, whoever waits for it.

use std::sync::Arc;

use hv_core::sync::spin_hint;
use hv_iommu::UnitError;
use hv_iommu::queue::QueuePort;

use super::Unit;
use crate::explore::models;

/// What hardware refuses.
const BAD: u64 = 5;

fn refusing() -> Arc<Unit> {
    Arc::new(Unit {
        eager: true,
        goes_on: true,
        refuses: BAD,
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
    let unit = refusing();
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.flush(1))
    };
    fails(&unit);
    other.join().unwrap();
    assert!(!unit.has_done(BAD));
    assert_eq!(unit.queue.refusals(), (1, 1));
    assert_eq!(unit.queue.check_alive(unit.unit()), Ok(()));
}

models! {
    /// What hardware refuses fails the one who asked for it, and harms nobody else.
    /// Shows: bc01.
    bc01_what_is_refused_fails_who_asked_for_it_and_nobody_else: Two(1), sees [], one_of_two_is_refused;
}
