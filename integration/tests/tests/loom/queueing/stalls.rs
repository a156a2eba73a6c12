//! CPUs that stand still in the middle of a submission, and others that do not wait for them.

use std::sync::Arc;

use hv_core::sync::{Ordering, spin_hint};
use hv_iommu::UnitError;
use hv_iommu::queue::QueuePort;

use super::{DEADLINE, SYNC, Unit};
use crate::explore::{models, saw};

/// One CPU stops in the middle of filling its entry. The other gives up in time, the unit is well, and both commands
/// are done, in order, when the first goes on, whoever is left to ring.
pub(super) fn a_producer_stalls() {
    let unit = Arc::new(Unit {
        runs: true,
        stall: 1,
        ..Unit::new(2)
    });
    let stalled = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(1))
    };
    match unit.submit(2) {
        Ok(_) => saw("the other goes first"),
        Err(UnitError::Busy { waited, .. }) => {
            saw("the other gives up");
            assert!(waited >= DEADLINE);
        }
        Err(error) => panic!("{error}"),
    }
    // ORDERING: Relaxed, orders nothing.
    unit.go.store(true, Ordering::Relaxed);
    // Behind another's sync, if that is rung late, it may give up as well.
    let first = stalled.join().unwrap();
    assert!(matches!(first, Ok(_) | Err(UnitError::Busy { .. })));
    assert_eq!(unit.queue.check_alive(unit.unit()), Ok(()));
    // Nobody is left to ring.
    while unit.step() {}
    assert!(unit.has_done(1) && unit.has_done(2), "something was left");
}

/// Two CPUs submit, and neither has time to wait: whoever finds the bell taken goes, and the holder rings for it.
pub(super) fn nobody_waits_for_the_bell() {
    let unit = Arc::new(Unit {
        runs: true,
        ..Unit::new(2)
    });
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(1))
    };
    let mine = unit.submit(2);
    let theirs = other.join().unwrap();
    for outcome in [mine, theirs] {
        match outcome {
            Ok(_) => {}
            Err(UnitError::Busy { .. }) => saw("one did not wait"),
            Err(error) => panic!("{error}"),
        }
    }
    while unit.step() {}
    assert!(unit.has_done(1) && unit.has_done(2), "something was left");
}

/// One CPU stops in the middle of filling its entry, another goes behind it without time to wait, and a third may have had
/// the bell meanwhile.
pub(super) fn nobody_waits_behind_a_gap() {
    let unit = Arc::new(Unit {
        runs: true,
        stall: 1,
        ..Unit::new(3)
    });
    let others = [1, 2].map(|command| {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(command))
    });
    if matches!(unit.submit(3), Err(UnitError::Busy { .. })) {
        saw("one did not wait");
    }
    // ORDERING: Relaxed, orders nothing.
    unit.go.store(true, Ordering::Relaxed);
    for other in others {
        let outcome = other.join().unwrap();
        assert!(matches!(outcome, Ok(_) | Err(UnitError::Busy { .. })));
    }
    // Nobody is left to ring.
    while unit.step() {}
    assert!(
        [1, 2, 3].iter().all(|&command| unit.has_done(command)),
        "something was left"
    );
}

/// A unit is wedged and its ring restarted while a CPU submits. What is in the new ring stays.
pub(super) fn a_reset_and_a_producer() {
    let unit = Arc::new(Unit::new(1));
    let late = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(1))
    };
    unit.queue.wedge();
    let anew = unit.queue.restart(&*unit).unwrap();
    // The vendor turns the queue off and on again.
    // ORDERING: Relaxed, hardware stands.
    unit.tail.store(0, Ordering::Relaxed);
    // ORDERING: as above.
    unit.head.store(0, Ordering::Relaxed);
    // Where the ring of before ended, at 0 or at 2, the next one of four positions begins.
    let start = 4;
    {
        let done = &mut *unit.done.lock().unwrap();
        (done.rung, done.read, done.tail) = (start, start, 0);
    }
    let hardware = {
        let unit = unit.clone();
        loom::thread::spawn(move || {
            while !unit.has_done(7) {
                if !unit.step() {
                    let read = unit.done.lock().unwrap().read;
                    assert!(read < start + 2, "what the reset asks for is written over");
                    spin_hint();
                }
            }
        })
    };
    anew.submit_and_wait(&*unit, &[7], "a flush").unwrap();
    hardware.join().unwrap();
    anew.revive();
    match late.join().unwrap() {
        // That of a sync of the old ring, or of the reset, which has done what the old ring lost.
        Ok(ticket) if ticket.sequence <= start + 2 => {
            saw("the late one was in time");
            assert_eq!(unit.queue.poll(&*unit, ticket), Ok(true));
            assert!(!unit.has_done(1));
        }
        Ok(ticket) => {
            saw("the late one came afterwards");
            while unit.step() {}
            assert_eq!(unit.queue.poll(&*unit, ticket), Ok(true));
            assert!(unit.has_done(1));
            return;
        }
        Err(error) => {
            saw("the late one is refused");
            let wedged = UnitError::Wedged { unit: unit.unit() };
            assert_eq!(error, wedged);
        }
    }
    // Nothing of before was written over what came after.
    // ORDERING: Relaxed, everybody else has ended.
    let ring: Vec<_> = unit
        .ring
        .iter()
        .map(|word| word.load(Ordering::Relaxed))
        .collect();
    assert_eq!(ring, [7, SYNC | (start + 2)]);
    assert_eq!(unit.done.lock().unwrap().read, start + 2);
}

/// Two CPUs reset a wedged unit. While the second still tries, the first has revived it, and a third submits, without time to
/// wait for a bell that somebody else has: the ring is none of the second's any more, nor is its bell.
fn a_second_reset_and_a_producer() {
    let unit = Arc::new(Unit {
        runs: true,
        ..Unit::new(1)
    });
    unit.queue.wedge();
    // Between its look at whether it is wedged still and its try.
    unit.done.lock().unwrap().revives_at = Some(2);
    let producer = {
        let unit = unit.clone();
        loom::thread::spawn(move || {
            // ORDERING: Acquire, pairs with `reset_by_another`.
            while !unit.go.load(Ordering::Acquire) {
                spin_hint();
            }
            unit.submit(1)
        })
    };
    let second = unit.queue.restart(&*unit).err();
    assert_eq!(second, Some(UnitError::NotWedged { unit: unit.unit() }));
    match producer.join().unwrap() {
        Ok(_) => saw("it is told"),
        other => panic!("{other:?}"),
    }
    // Nobody is left to ring.
    while unit.step() {}
    assert!(unit.has_done(1), "something was left");
}

models! {
    /// Who was admitted before a reset writes nothing into the ring after it.
    /// Shows: bc14.
    bc14_a_reset_meets_a_late_producer: Three(2),
        sees [
            "the late one was in time",
            "the late one is refused",
            "the late one came afterwards"
        ], a_reset_and_a_producer;

    /// Who comes too late to reset a ring takes nothing of it, its bell included.
    /// Shows: bc14.
    bc14_a_reset_that_comes_too_late_keeps_its_hands_off_the_bell: Two(3),
        sees ["it is told"], a_second_reset_and_a_producer;

    /// A stall costs others their deadline, not the unit, and loses nothing.
    /// Shows: bc14.
    bc14_a_stalled_producer_delays_and_loses_nothing: Two(3),
        sees ["the other gives up", "the other goes first"], a_producer_stalls;

    /// What is published is rung by whoever had the bell.
    /// Shows: bc14.
    bc14_what_nobody_waits_for_is_rung: Two(3), sees ["one did not wait"], nobody_waits_for_the_bell;

    /// The same behind a CPU that stands still: whoever publishes last sees to it.
    /// Shows: bc14.
    bc14_what_nobody_waits_for_behind_a_gap_is_rung: Three(1), sees ["one did not wait"], nobody_waits_behind_a_gap;
}
