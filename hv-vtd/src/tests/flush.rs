//! Flushes and waits: what completes, what never may, and what a broken unit answers.

use std::sync::Arc;

use super::*;
use crate::queue::ENTRIES;
use crate::testing::{Behaviour, Point};
use hv_core::{Iova, IovaRange};
use hv_iommu::{Backend, CommandCode, FlushDepth, FlushRequest, FlushSpan, FlushTicket, UnitError};

fn whole(number: u16) -> FlushRequest {
    FlushRequest {
        domain: domain(number),
        span: FlushSpan::Domain,
        depth: FlushDepth::WalkCaches,
    }
}

fn held() -> (Machine, Vtd<Machine>) {
    let (machine, vtd) = running(CAP, ECAP);
    machine.units[0].behave(Behaviour {
        hold_waits: true,
        ..Behaviour::default()
    });
    (machine, vtd)
}

#[test]
fn a_flush_is_its_descriptor_and_a_wait() {
    let (machine, vtd) = running(CAP, ECAP);
    let ticket = vtd.submit(FIRST, whole(0x2a)).unwrap();
    assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
    let pages = FlushRequest {
        domain: domain(0x2a),
        span: FlushSpan::Pages(
            IovaRange::new(Iova::new(0x4020_1000), PageCount::new(3).unwrap()).unwrap(),
        ),
        depth: FlushDepth::Leaves,
    };
    let ticket = vtd.submit(FIRST, pages).unwrap();
    assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
    assert_eq!(
        executed(&machine.take_log()),
        [(0x2a_00e2, 0), (0x2a_00f2, 0x4020_0000 | 0x40 | 2)]
    );
}

#[test]
fn a_queue_that_others_hold_is_busy_and_its_unit_well() {
    let (machine, vtd) = running(CAP, ECAP);
    let vtd = Arc::new(vtd);
    let other = Arc::clone(&vtd);
    let (tell, told) = std::sync::mpsc::channel();
    // In the middle of filling its entry, when its place is reserved: as an interrupt handler would, too.
    machine.interrupt(Point::Store, 1, move || {
        tell.send(other.submit(FIRST, whole(2))).unwrap();
    });
    let ticket = vtd.submit(FIRST, whole(1)).unwrap();
    let error = told.recv().unwrap().unwrap_err();
    assert!(matches!(error, UnitError::Busy { .. }), "{error}");
    // The one that was late goes through, and what came behind it and is gone is done as well, in order.
    assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
    let next = vtd.submit(FIRST, whole(3)).unwrap();
    assert_eq!(vtd.poll(FIRST, next), Ok(true));
    let done: Vec<_> = machine
        .take_log()
        .iter()
        .filter_map(|event| match *event {
            Event::Executed { low, .. } => Some((low & 0xf, low >> 16 & 0xffff)),
            _ => None,
        })
        .map(|(kind, domain)| if kind == 5 { (5, 0) } else { (kind, domain) })
        .collect();
    assert_eq!(done, [(2, 1), (5, 0), (2, 2), (5, 0), (2, 3), (5, 0)]);
}

#[test]
fn late_completion_never_satisfies_a_newer_ticket() {
    let (machine, vtd) = held();
    let first = vtd.submit(FIRST, whole(1)).unwrap();
    let second = vtd.submit(FIRST, whole(2)).unwrap();
    let third = vtd.submit(FIRST, whole(3)).unwrap();
    assert!(first < second && second < third);
    for ticket in [first, second, third] {
        assert_eq!(vtd.poll(FIRST, ticket), Ok(false));
    }
    machine.units[0].complete_held();
    assert_eq!(vtd.poll(FIRST, first), Ok(true));
    assert_eq!(vtd.poll(FIRST, second), Ok(false));
    machine.units[0].complete_held();
    assert_eq!(vtd.poll(FIRST, second), Ok(true));
    assert_eq!(vtd.poll(FIRST, third), Ok(false));
    machine.units[0].complete_held();
    assert_eq!(vtd.poll(FIRST, third), Ok(true));
    // Older tickets stay completed, and one that was never given does not complete.
    assert_eq!(vtd.poll(FIRST, first), Ok(true));
    let sequence = third.sequence + 1;
    assert_eq!(vtd.poll(FIRST, FlushTicket::alone(sequence)), Ok(false));
}

#[test]
fn a_wedged_unit_refuses_even_what_completes_late() {
    let (machine, vtd) = held();
    let ticket = vtd.submit(FIRST, whole(1)).unwrap();
    vtd.wedge(FIRST);
    machine.units[0].complete_held();
    let wedged = UnitError::Wedged { unit: FIRST };
    assert_eq!(vtd.poll(FIRST, ticket), Err(wedged));
    assert_eq!(vtd.submit(FIRST, whole(1)), Err(wedged));
}

/// Shows: bc01, bc14.
#[test]
fn sequences_go_on_when_the_low_half_wraps() {
    let (machine, vtd) = held();
    let ticket = vtd.submit(FIRST, whole(1)).unwrap();
    let (status, data) = machine.units[0].last_held();
    assert_eq!(u64::from(data), ticket.sequence);
    machine.units[0].complete_held();
    // Play a unit that has completed all but the last of 2^32 requests and more.
    let sequence = (5 << 32) - 700;
    vtd.skip_past(FIRST, FlushTicket::alone(sequence)).unwrap();
    machine.units[0].rewind();
    machine.memory.hardware_write32(status, sequence as u32);
    let near_wrap = (5 << 32) - 2;
    loop {
        let ticket = vtd.submit(FIRST, whole(1)).unwrap();
        assert!((sequence..=near_wrap).contains(&ticket.sequence));
        machine.units[0].complete_held();
        assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
        if ticket.sequence == near_wrap {
            break;
        }
    }
    let tickets: Vec<_> = (1..5)
        .map(|_| vtd.submit(FIRST, whole(1)).unwrap())
        .collect();
    for (done, ticket) in tickets.iter().enumerate() {
        // A sequence is a position: of the two entries of each, that of the wait.
        assert_eq!(ticket.sequence, near_wrap + 2 * (1 + done as u64));
        assert_eq!(vtd.poll(FIRST, *ticket), Ok(false), "{ticket:?}");
        machine.units[0].complete_held();
        assert_eq!(vtd.poll(FIRST, *ticket), Ok(true), "{ticket:?}");
    }
    assert_eq!(tickets[0].sequence as u32, 0);
}

#[test]
fn a_completion_of_what_was_never_submitted_wedges() {
    let (machine, vtd) = held();
    let ticket = vtd.submit(FIRST, whole(1)).unwrap();
    let (status, data) = machine.units[0].last_held();
    machine.memory.hardware_write32(status, data + 1);
    match vtd.poll(FIRST, ticket) {
        Err(UnitError::Hardware {
            expected, found, ..
        }) => {
            assert_eq!((expected, found), (ticket.sequence, u64::from(data) + 1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        vtd.poll(FIRST, ticket),
        Err(UnitError::Wedged { unit: FIRST })
    );
}

#[test]
fn queue_errors_are_reported_with_the_status_and_wedge() {
    // A completion error, a device that did not answer, with a refused descriptor as well, a unit that is gone.
    for fsts in [1 << 5, 1 << 6, 0x30, u32::MAX] {
        let (machine, vtd) = held();
        let ticket = vtd.submit(FIRST, whole(1)).unwrap();
        machine.units[0].set_fault_status(fsts);
        match vtd.poll(FIRST, ticket) {
            Err(UnitError::Hardware {
                unit,
                expected,
                found,
                ..
            }) => {
                assert_eq!(unit, FIRST);
                assert_eq!(found, u64::from(fsts));
                assert_eq!(expected, u64::from(fsts & !0x70));
            }
            other => panic!("{other:?}"),
        }
        let wedged = UnitError::Wedged { unit: FIRST };
        assert_eq!(vtd.submit(FIRST, whole(1)), Err(wedged));
    }
}

/// A descriptor that the unit refuses (IQE) is read once more, then a wait comes in its place: what it was for is not done.
#[test]
fn bc01_a_refused_descriptor_is_not_done_and_stops_nobody() {
    let (machine, vtd) = running(CAP, ECAP);
    let refuses = Behaviour {
        refuse_type: Some(2),
        ..Behaviour::default()
    };
    machine.units[0].behave(refuses);
    let ticket = vtd.submit(FIRST, whole(1)).unwrap();
    let other = vtd.submit(FIRST, whole(2)).unwrap();
    for (ticket, entry) in [(ticket, ticket.first), (other, other.first)] {
        let refused = UnitError::Refused {
            unit: FIRST,
            code: CommandCode(2),
            entry: entry as usize % ENTRIES,
        };
        assert_eq!(vtd.poll(FIRST, ticket), Err(refused));
    }
    assert_eq!(machine.units[0].fault_status(), 0);
    let troubles = vtd.troubles(FIRST);
    assert_eq!(
        (troubles.commands_read_again, troubles.commands_refused),
        (2, 2)
    );
    machine.units[0].behave(Behaviour::default());
    let ticket = vtd.submit(FIRST, whole(1)).unwrap();
    assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
    // An error that says nothing of the descriptor, or one that stays: the unit is wedged.
    let (machine, vtd) = held();
    let stays = Behaviour {
        errors_stay: true,
        queue_stands: true,
        ..Behaviour::default()
    };
    machine.units[0].behave(stays);
    let ticket = vtd.submit(FIRST, whole(1)).unwrap();
    machine.units[0].set_fault_status(1 << 4);
    let refused = vtd.poll(FIRST, ticket).unwrap_err();
    assert!(matches!(refused, UnitError::Refused { .. }), "{refused}");
    let wedged = UnitError::Wedged { unit: FIRST };
    assert_eq!(vtd.poll(FIRST, ticket), Err(wedged));
}

/// Shows: bc14.
#[test]
fn queue_arithmetic_fills_the_ring_and_no_more() {
    let (machine, vtd) = running(CAP, ECAP);
    let stands = Behaviour {
        queue_stands: true,
        ..Behaviour::default()
    };
    machine.units[0].behave(stands);
    // Two entries each, and one always stays free.
    let fits = (ENTRIES - 1) / 2;
    for _ in 0..fits {
        vtd.submit(FIRST, whole(1)).unwrap();
    }
    match vtd.submit(FIRST, whole(1)) {
        Err(UnitError::Timeout { unit, waited, .. }) => {
            assert_eq!(unit, FIRST);
            assert!(waited.as_secs() >= 1);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        vtd.submit(FIRST, whole(1)),
        Err(UnitError::Wedged { unit: FIRST })
    );
    machine.units[0].run_queue();
    assert_eq!(executed(&machine.take_log()).len(), fits);
}

#[test]
fn a_queue_that_goes_on_makes_room() {
    let (machine, vtd) = running(CAP, ECAP);
    // Around the ring several times, at every offset of two.
    let mut last = None;
    for round in 0..5 * ENTRIES {
        machine.units[0].behave(Behaviour {
            queue_stands: round % 100 != 0,
            ..Behaviour::default()
        });
        last = Some(vtd.submit(FIRST, whole(round as u16 + 1)).unwrap());
    }
    machine.units[0].run_queue();
    assert_eq!(vtd.poll(FIRST, last.unwrap()), Ok(true));
    let order: Vec<_> = executed(&machine.take_log())
        .into_iter()
        .map(|(low, _)| low >> 16 & 0xffff)
        .collect();
    let expected: Vec<_> = (1..=5 * ENTRIES as u64).collect();
    assert_eq!(order, expected);
}

/// Shows: bc14.
#[test]
fn a_head_outside_the_queue_wedges() {
    for head in [u64::MAX, 4096, 8, 1 << 20] {
        let (machine, vtd) = running(CAP, ECAP);
        machine.units[0].behave(Behaviour {
            queue_stands: true,
            ..Behaviour::default()
        });
        for _ in 0..(ENTRIES - 1) / 2 {
            vtd.submit(FIRST, whole(1)).unwrap();
        }
        machine.units[0].set_head(head);
        match vtd.submit(FIRST, whole(1)) {
            Err(UnitError::Hardware { found, .. }) => assert_eq!(found, head),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn submitters_on_many_cpus_lose_nothing() {
    let (machine, vtd) = running(CAP, ECAP);
    // Looks at the clock are many where submitters wait for each other.
    machine.tick(1);
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let vtd = &vtd;
            scope.spawn(move || {
                let mut before = None;
                for round in 0..200 {
                    let number = cpu * 1000 + round + 1;
                    let ticket = vtd.submit(FIRST, whole(number)).unwrap();
                    assert!(before < Some(ticket));
                    before = Some(ticket);
                    // The fake is done when the doorbell returns; this is the real check.
                    assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
                }
            });
        }
    });
    let mut done: Vec<_> = executed(&machine.take_log())
        .into_iter()
        .map(|(low, _)| low >> 16 & 0xffff)
        .collect();
    done.sort_unstable();
    let mut expected: Vec<_> = (0..4)
        .flat_map(|cpu| (0..200).map(move |round| cpu * 1000 + round + 1))
        .collect();
    expected.sort_unstable();
    assert_eq!(done, expected);
}

#[test]
fn there_is_no_unit_past_the_last() {
    let (_, vtd) = running(CAP, ECAP);
    let unit = UnitIndex::new(1).unwrap();
    let none = UnitError::NoSuchUnit { unit };
    assert_eq!(vtd.submit(unit, whole(1)), Err(none));
    assert_eq!(vtd.poll(unit, FlushTicket::alone(0)), Err(none));
    assert_eq!(vtd.unit_caps(unit), None);
    assert_eq!(vtd.take_fault(unit), None);
    vtd.wedge(unit);
    assert!(vtd.submit(FIRST, whole(1)).is_ok());
}
