//! Binding and unbinding: the order of stores, and what is flushed for which unit.

#![expect(unsafe_code, reason = "binds devices")]

use super::*;
use crate::testing::Behaviour;
use hv_core::PciAddress;
use hv_iommu::{Backend, FlushTicket, NotIsolated, UnitError};

fn bind(
    vtd: &Vtd<Machine>,
    requester: PciAddress,
    to: Binding,
) -> Result<Option<FlushTicket>, UnitError> {
    // SAFETY: no device is there to walk the tables.
    unsafe { vtd.bind(FIRST, requester, to) }
}

/// The two words of a requester's context entry and where the first is, as hardware finds them.
fn entry(machine: &Machine, requester: PciAddress) -> Option<(u64, u64, u64)> {
    let root = machine.units[0].root() + u64::from(requester.bus()) * 16;
    let link = machine.memory.word(root);
    if link & 1 == 0 {
        return None;
    }
    assert_eq!(machine.memory.word(root + 8), 0);
    assert_eq!(link & 0xffe, 0, "reserved bits");
    let at = (link & !0xfff) + u64::from(requester.devfn()) * 16;
    Some((machine.memory.word(at), machine.memory.word(at + 8), at))
}

#[test]
fn a_binding_is_what_the_hardware_reads() {
    let (machine, vtd) = running(CAP, ECAP);
    let requester = at(0x3a, 0x1f, 7);
    assert_eq!(entry(&machine, requester), None);
    for (levels, aw) in [(3, 1), (4, 2)] {
        bind(&vtd, requester, binding(0x12_3000, levels, 0x2a)).unwrap();
        let (low, high, _) = entry(&machine, requester).unwrap();
        assert_eq!((low, high), (0x12_3001, 0x2a00 | aw));
        vtd.unbind(FIRST, requester, domain(0x2a)).unwrap();
        assert_eq!(entry(&machine, requester).unwrap().0, 0);
    }
    // Neighbours of the entry were not touched.
    assert_eq!(
        entry(&machine, at(0x3a, 0x1f, 6)).map(|(low, high, _)| (low, high)),
        Some((0, 0))
    );
}

#[test]
fn without_interrupt_remapping_nobody_is_told_apart_by_messages() {
    let (_, vtd) = running(CAP, ECAP);
    let requester = at(0x3a, 0x1f, 7);
    let refused = Err(NotIsolated::NotRemapped { requester });
    assert_eq!(vtd.message_source(requester), refused);
}

#[test]
fn no_torn_entry_at_bind() {
    for (ecap, coherent) in [(ECAP, false), (ECAP | ECAP_C, true)] {
        let (machine, vtd) = running(CAP, ecap);
        let requester = at(0, 1, 0);
        bind(&vtd, requester, binding(0x12_3000, 4, 7)).unwrap();
        let (.., at) = entry(&machine, requester).unwrap();
        let (root, table) = (machine.units[0].root(), at & !0xfff);
        let back = |at, bytes| (!coherent).then_some(Event::WriteBack { at, bytes });
        let store = |at, word| Some(Event::Store { at, word });
        let fence = Some(Event::Fence);
        let expected: Vec<_> = [
            // The context table is whole before it is linked (its 512 zeros, checked below).
            back(table, 4096),
            fence,
            store(root, table | 1),
            back(root, 8),
            fence,
            // The word without P first; the one with P is the last store.
            store(at + 8, 0x702),
            back(at + 8, 8),
            fence,
            store(at, 0x12_3001),
            back(at, 8),
            fence,
        ]
        .into_iter()
        .flatten()
        .collect();
        let (zeros, rest) = {
            let mut log = machine.take_log();
            let rest = log.split_off(512);
            (log, rest)
        };
        let zero = |word: u64| Event::Store {
            at: table + 8 * word,
            word: 0,
        };
        assert_eq!(zeros, (0..512).map(zero).collect::<Vec<_>>());
        assert_eq!(rest, expected);
    }
}

#[test]
fn tables_are_empty_though_the_frame_source_is_careless() {
    let (machine, vtd) = running(CAP, ECAP);
    bind(&vtd, at(3, 1, 0), binding(0x12_3000, 4, 7)).unwrap();
    let neighbour = entry(&machine, at(3, 2, 0)).map(|(low, high, _)| (low, high));
    assert_eq!(neighbour, Some((0, 0)));
    assert_eq!(entry(&machine, at(4, 2, 0)), None);
}

#[test]
fn no_torn_entry_at_unbind() {
    let (machine, vtd) = running(CAP, ECAP);
    let requester = at(0, 1, 0);
    bind(&vtd, requester, binding(0x12_3000, 4, 7)).unwrap();
    let (.., at) = entry(&machine, requester).unwrap();
    machine.take_log();
    let ticket = vtd.unbind(FIRST, requester, domain(7)).unwrap();
    assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
    let log = machine.take_log();
    // One store takes it down; the other word stays for hardware that still reads it.
    assert_eq!(
        log[..3],
        [
            Event::Store { at, word: 0 },
            Event::WriteBack { at, bytes: 8 },
            Event::Fence,
        ]
    );
    let touched = log[3..].iter().any(
        |event| matches!(event, Event::Store { at: word, .. } if (at..at + 16).contains(word)),
    );
    assert!(!touched);
    assert_eq!(entry(&machine, requester).unwrap().1, 0x702);
    // Context entry under the old domain first, then the domain's translations.
    assert_eq!(executed(&log), [(0x0008_0007_0031, 0), (0x7_00e2, 0)]);
}

#[test]
fn what_bind_flushes_depends_on_the_unit() {
    let context = (0x0008_0000_0031, 0);
    let (nobody, own) = ((0xe2, 0), (0x7_00e2, 0));
    let cases = [
        (CAP, vec![]),
        (CAP | CAP_RWBF, vec![own]),
        (CAP | CAP_CM, vec![context, nobody, own]),
        (CAP | CAP_CM | CAP_RWBF, vec![context, nobody, own]),
    ];
    for (cap, expected) in cases {
        let (machine, vtd) = running(cap, ECAP);
        let ticket = bind(&vtd, at(0, 1, 0), binding(0x12_3000, 4, 7)).unwrap();
        assert_eq!(ticket.is_some(), !expected.is_empty());
        if let Some(ticket) = ticket {
            assert_eq!(vtd.poll(FIRST, ticket), Ok(true));
        }
        let log = machine.take_log();
        assert_eq!(executed(&log), expected);
        let live = log.iter().position(|event| {
            matches!(
                event,
                Event::Store {
                    word: 0x12_3001,
                    ..
                }
            )
        });
        let flushed = log
            .iter()
            .position(|event| matches!(event, Event::Executed { .. }));
        assert!(flushed.is_none() || live < flushed);
        let caps = vtd.unit_caps(FIRST).unwrap();
        assert_eq!(caps.sync_on_map, !expected.is_empty());
    }
}

#[test]
fn the_flushes_of_an_unbind_do_not_overtake_each_other() {
    let (machine, vtd) = running(CAP, ECAP);
    let requester = at(2, 3, 1);
    bind(&vtd, requester, binding(0x12_3000, 4, 7)).unwrap();
    machine.take_log();
    vtd.unbind(FIRST, requester, domain(7)).unwrap();
    // Type, and of a wait also SW and FN: only a fencing wait keeps what comes behind it back.
    let log = machine.take_log();
    let kinds = log.iter().filter_map(|event| match *event {
        Event::Executed { low, .. } if low & 0xf == 5 => Some(low & 0x7f),
        Event::Executed { low, .. } => Some(low & 0xf),
        _ => None,
    });
    assert_eq!(kinds.collect::<Vec<_>>(), [1, 0x65, 2, 0x65]);
}

#[test]
fn a_bound_requester_is_not_bound_again_and_a_stranger_not_unbound() {
    let (_, vtd) = running(CAP, ECAP);
    let requester = at(2, 3, 1);
    let not_bound = |number| UnitError::NotBound {
        requester,
        domain: domain(number),
    };
    assert_eq!(vtd.unbind(FIRST, requester, domain(7)), Err(not_bound(7)));
    bind(&vtd, requester, binding(0x12_3000, 4, 7)).unwrap();
    let again = UnitError::AlreadyBound {
        requester,
        domain: domain(7),
    };
    assert_eq!(bind(&vtd, requester, binding(0x45_6000, 3, 8)), Err(again));
    assert_eq!(vtd.unbind(FIRST, requester, domain(8)), Err(not_bound(8)));
    assert!(vtd.unbind(FIRST, requester, domain(7)).is_ok());
    assert_eq!(vtd.unbind(FIRST, requester, domain(7)), Err(not_bound(7)));
    assert!(bind(&vtd, requester, binding(0x45_6000, 3, 8)).is_ok());
}

#[test]
fn table_depth_and_domain_must_fit_the_unit() {
    let (machine, vtd) = running(CAP & !7 | 1, ECAP);
    let requester = at(0, 1, 0);
    let ids = vtd.unit_caps(FIRST).unwrap().domain_ids as u16;
    assert_eq!(ids, 64);
    let bad = [
        binding(0x12_3000, 5, 7),
        binding(0x12_3000, 2, 7),
        binding(0x12_3000, 4, 0),
        binding(0x12_3000, 4, ids),
        binding(1 << 39, 4, 7),
    ];
    for bad in bad {
        let error = bind(&vtd, requester, bad).unwrap_err();
        assert!(matches!(error, UnitError::Hardware { .. }), "{error}");
        assert_eq!(entry(&machine, requester), None);
    }
    assert!(bind(&vtd, requester, binding(0x12_3000, 4, ids - 1)).is_ok());
}

#[test]
fn a_bus_without_a_table_takes_one_frame_once() {
    let (machine, vtd) = running(CAP, ECAP);
    let before = machine.frames_left();
    bind(&vtd, at(0, 1, 0), binding(0x12_3000, 4, 7)).unwrap();
    bind(&vtd, at(0, 2, 0), binding(0x12_3000, 4, 7)).unwrap();
    assert_eq!(before - machine.frames_left(), 1);
    machine.limit_frames(0);
    assert!(bind(&vtd, at(0, 3, 0), binding(0x12_3000, 4, 7)).is_ok());
    let error = bind(&vtd, at(1, 0, 0), binding(0x12_3000, 4, 7)).unwrap_err();
    assert!(matches!(error, UnitError::OutOfFrames(_)));
    assert_eq!(entry(&machine, at(1, 0, 0)), None);
    // A frame that the unit cannot reach goes back.
    machine.limit_frames(1);
    machine.frames_from(1 << 40);
    assert!(bind(&vtd, at(1, 0, 0), binding(0x12_3000, 4, 7)).is_err());
    assert_eq!(machine.frames_left(), 1);
    assert_eq!(entry(&machine, at(1, 0, 0)), None);
}

#[test]
fn a_bind_that_cannot_be_flushed_leaves_its_entry_to_unbind() {
    let (machine, vtd) = running(CAP | CAP_CM, ECAP);
    machine.units[0].behave(Behaviour {
        queue_stands: true,
        ..Behaviour::default()
    });
    let mut bound = Vec::new();
    let error = loop {
        let requester = at(0, 0, 0).requester() + bound.len() as u16;
        let requester = PciAddress::from_requester(Segment(0), requester);
        match bind(&vtd, requester, binding(0x12_3000, 4, 7)) {
            Ok(_) => bound.push(requester),
            Err(error) => {
                // The unit may have read the entry: nobody may take it for gone.
                assert_eq!(entry(&machine, requester).unwrap().0 & 1, 1);
                bound.push(requester);
                break error;
            }
        }
    };
    assert!(matches!(error, UnitError::Timeout { .. }), "{error}");
    // The unit is wedged now. What is bound still comes down, though the flush is refused.
    let wedged = UnitError::Wedged { unit: FIRST };
    assert_eq!(
        bind(&vtd, at(9, 0, 0), binding(0x12_3000, 4, 7)),
        Err(wedged)
    );
    for requester in bound {
        assert_eq!(vtd.unbind(FIRST, requester, domain(7)), Err(wedged));
        assert_eq!(entry(&machine, requester).unwrap().0, 0);
    }
}
