//! The reset of a wedged unit: its steps in order, and what completes, or never does, around it.

use std::sync::Arc;

use super::*;
use crate::queue::ENTRIES;
use crate::testing::{Behaviour, Point};
use hv_iommu::{Backend, FlushDepth, FlushRequest, FlushSpan, FlushTicket, UnitError};

const WEDGED: UnitError = UnitError::Wedged { unit: FIRST };
const TE: u32 = 1 << 31;
const QIE: u32 = 1 << 26;

fn flush(vtd: &Vtd<Machine>) -> Result<FlushTicket, UnitError> {
    let request = FlushRequest {
        domain: domain(7),
        span: FlushSpan::Domain,
        depth: FlushDepth::WalkCaches,
    };
    vtd.submit(FIRST, request)
}

/// A unit that completes no waits until told to, with one flush that it was asked for.
fn holding() -> (Machine, Arc<Vtd<Machine>>, FlushTicket) {
    let (machine, vtd) = running(CAP, ECAP);
    machine.units[0].behave(Behaviour {
        hold_waits: true,
        ..Behaviour::default()
    });
    let ticket = flush(&vtd).unwrap();
    (machine, Arc::new(vtd), ticket)
}

/// Writes to registers in order, and the kinds of the descriptors that were executed among them.
fn steps(log: &[Event]) -> Vec<(u32, u64)> {
    log.iter()
        .filter_map(|event| match *event {
            Event::Write32 { offset, value, .. } => Some((offset, value.into())),
            Event::Write64 { offset, value, .. } => Some((offset, value)),
            Event::Executed { low, .. } => Some((0, low & 0x3f)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_reset_restarts_the_queue_and_forgets_everything_one_step_at_a_time() {
    let (machine, vtd) = running(CAP, ECAP);
    machine.units[0].behave(Behaviour {
        command_delay: 3,
        ..Behaviour::default()
    });
    flush(&vtd).unwrap();
    vtd.wedge(FIRST);
    // A lost fault, which is not the queue's, and a queue that stopped at an error.
    machine.units[0].set_fault_status(1 | 1 << 4);
    machine.take_log();
    assert_eq!(vtd.reset(FIRST), Ok(()));
    let on = u64::from(TE | QIE);
    let found = steps(&machine.take_log());
    // The fake refuses a command before the last was reported, one that changes two fields or turns
    // translation off, and an address of the queue while it is on.
    let ring = found
        .iter()
        .find(|(offset, _)| *offset == 0x90)
        .map(|(_, ring)| *ring)
        .unwrap();
    let expected = [
        (0x18, on & !u64::from(QIE)),
        (0x34, 0x70),
        (0x88, 0),
        (0x90, ring),
        (0x18, on),
        (0x88, 0x20),
        // Context cache, everything; then IOTLB, everything. A wait behind each.
        (0, 0x11),
        (0, 0x25),
        (0x88, 0x40),
        (0, 0x12),
        (0, 0x25),
    ];
    assert_eq!(found, expected);
    assert_eq!(machine.units[0].fault_status(), 1);
    assert!(machine.units[0].translates());
    let ticket = flush(&vtd).unwrap();
    assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
}

#[test]
fn a_unit_that_is_well_is_not_reset() {
    let (machine, vtd) = running(CAP, ECAP);
    let refused = Err(UnitError::NotWedged { unit: FIRST });
    assert_eq!(vtd.reset(FIRST), refused);
    assert_eq!(steps(&machine.take_log()), []);
    vtd.wedge(FIRST);
    assert_eq!(vtd.reset(FIRST), Ok(()));
    assert_eq!(vtd.reset(FIRST), refused);
    let unit = UnitIndex::new(1).unwrap();
    assert_eq!(vtd.reset(unit), Err(UnitError::NoSuchUnit { unit }));
}

#[test]
fn a_late_completion_of_an_old_wait_satisfies_nothing_new() {
    let (machine, vtd, old) = holding();
    flush(&vtd).unwrap();
    vtd.wedge(FIRST);
    machine.units[0].behave(Behaviour::default());
    assert_eq!(vtd.reset(FIRST), Ok(()));
    machine.units[0].behave(Behaviour {
        hold_waits: true,
        ..Behaviour::default()
    });
    let new = flush(&vtd).unwrap();
    // Sequences go on, in a ring that begins at its first place: the two flushes of the reset were there before.
    assert!(new.sequence > old.sequence + 4);
    assert_eq!(new.sequence % ENTRIES as u64, 6);
    for _ in 0..2 {
        machine.units[0].complete_held();
        assert_eq!(vtd.poll(FIRST, new), Ok(false));
    }
    machine.units[0].complete_held();
    assert_eq!(vtd.poll(FIRST, new), Ok(true));
}

#[test]
fn what_was_asked_for_before_a_reset_counts_as_done_after_it() {
    let (machine, vtd, old) = holding();
    assert_eq!(vtd.poll(FIRST, old), Ok(false));
    vtd.wedge(FIRST);
    assert_eq!(vtd.poll(FIRST, old), Err(WEDGED));
    machine.units[0].behave(Behaviour::default());
    assert_eq!(vtd.reset(FIRST), Ok(()));
    assert_eq!(vtd.poll(FIRST, old), Ok(true));
}

#[test]
fn bc01_an_old_wait_is_not_done_when_half_of_a_reset_is() {
    let (machine, vtd, old) = holding();
    // One CPU was admitted to look at the old wait. Meanwhile another wedges the unit, and its reset
    // gets as far as the flush of context entries, which moves the status word past the old wait.
    let (other, unit) = (Arc::clone(&vtd), Arc::clone(&machine.units[0]));
    machine.interrupt(Point::StatusWord, 0, move || {
        other.wedge(FIRST);
        unit.behave(Behaviour {
            refuse_type: Some(2),
            ..Behaviour::default()
        });
        let error = other.reset(FIRST).unwrap_err();
        assert!(matches!(error, UnitError::Refused { .. }), "{error}");
    });
    let (status, data) = machine.units[0].last_held();
    assert_eq!(vtd.poll(FIRST, old), Err(WEDGED));
    assert!(machine.memory.word(status) as u32 > data, "the word moved");
}

#[test]
fn nobody_is_let_in_while_a_reset_is_under_way() {
    // At any look at the clock of the reset, until it has ended.
    let mut looks = 0;
    loop {
        let (machine, vtd, old) = holding();
        vtd.wedge(FIRST);
        machine.units[0].behave(Behaviour {
            command_delay: 2,
            ..Behaviour::default()
        });
        let other = Arc::clone(&vtd);
        let (tell, told) = std::sync::mpsc::channel();
        machine.interrupt(Point::Clock, looks, move || {
            if tell.send(()).is_err() {
                // The reset ended before.
                return;
            }
            assert_eq!(flush(&other), Err(WEDGED));
            assert_eq!(other.poll(FIRST, old), Err(WEDGED));
            let busy = other.reset(FIRST).unwrap_err();
            assert!(matches!(busy, UnitError::Busy { .. }), "{busy}");
        });
        assert_eq!(vtd.reset(FIRST), Ok(()));
        let interrupted = told.try_recv().is_ok();
        drop(told);
        let new = flush(&vtd).unwrap();
        assert_eq!(vtd.poll(FIRST, new), Ok(true));
        if !interrupted || looks > 100 {
            break;
        }
        looks += 1;
    }
    assert!((8..100).contains(&looks), "{looks}");
}

#[test]
fn bc01_a_reset_that_a_unit_does_not_complete_leaves_it_wedged() {
    let broken = [
        Behaviour {
            stuck_command: QIE,
            ..Behaviour::default()
        },
        Behaviour {
            queue_stands: true,
            ..Behaviour::default()
        },
        Behaviour {
            hold_waits: true,
            ..Behaviour::default()
        },
        Behaviour {
            refuse_type: Some(1),
            ..Behaviour::default()
        },
        Behaviour {
            refuse_type: Some(2),
            ..Behaviour::default()
        },
        Behaviour {
            errors_stay: true,
            ..Behaviour::default()
        },
    ];
    for behaviour in broken {
        let (machine, vtd, old) = holding();
        vtd.wedge(FIRST);
        machine.units[0].set_fault_status(1 << 6);
        machine.units[0].behave(behaviour);
        let start = hv_core::platform::Clock::now(&machine);
        let error = vtd.reset(FIRST).unwrap_err();
        let took = hv_core::platform::Clock::now(&machine).since(start);
        assert!(took.as_secs() < 3, "{behaviour:?} took {took:?}");
        let expected = matches!(
            error,
            UnitError::Timeout { .. } | UnitError::Hardware { .. } | UnitError::Refused { .. }
        );
        assert!(expected, "{error}");
        assert_eq!(vtd.poll(FIRST, old), Err(WEDGED), "{behaviour:?}");
        assert_eq!(flush(&vtd), Err(WEDGED), "{behaviour:?}");
        assert!(machine.units[0].translates());
        // Once the unit answers, a further reset goes through, from wherever the last one got to.
        machine.units[0].behave(Behaviour::default());
        assert_eq!(vtd.reset(FIRST), Ok(()), "{behaviour:?}");
        let ticket = flush(&vtd).unwrap();
        assert_eq!(vtd.poll(FIRST, ticket), Ok(true), "{behaviour:?}");
    }
}

#[test]
fn a_unit_that_is_gone_or_lost_its_state_is_not_reset() {
    for status in [u32::MAX, QIE] {
        let (machine, vtd) = running(CAP, ECAP);
        vtd.wedge(FIRST);
        machine.units[0].set_status(status);
        machine.take_log();
        match vtd.reset(FIRST) {
            Err(UnitError::Hardware { found, .. }) => assert_eq!(found, status.into()),
            other => panic!("{other:?}"),
        }
        assert_eq!(steps(&machine.take_log()), []);
        assert_eq!(flush(&vtd), Err(WEDGED));
    }
}

#[test]
fn a_reset_waits_for_a_queue_that_is_only_slow() {
    let (machine, vtd) = running(CAP, ECAP);
    machine.units[0].behave(Behaviour {
        queue_stands: true,
        ..Behaviour::default()
    });
    flush(&vtd).unwrap();
    vtd.wedge(FIRST);
    let unit = Arc::clone(&machine.units[0]);
    // Looks at the clock: two for the lock, then those of the wait for the queue's end.
    machine.interrupt(Point::Clock, 5, move || {
        unit.behave(Behaviour::default());
        unit.run_queue();
    });
    machine.take_log();
    assert_eq!(vtd.reset(FIRST), Ok(()));
    let found = steps(&machine.take_log());
    // The old flush and its wait were read before the queue went off.
    assert_eq!(found[..3], [(0, 0x22), (0, 0x25), (0x18, TE.into())]);
}
