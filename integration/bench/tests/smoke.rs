//! Every row for a round or two on a small window, and what its competitors left in their tables. Nothing is timed.

use hv_bench::arena;
use hv_bench::lane::Lane;
use hv_bench::results::Who;
use hv_bench::rows::{self, Job, Row, Scale};

/// Rounds of each lane: the second begins where the first ended.
const ROUNDS: usize = 3;

fn lanes(row: &Row) -> Option<Vec<Lane>> {
    match row.job {
        Job::Lanes(lanes) => Some(lanes(&Scale::SMOKE)),
        Job::Unsnooped(lanes) if hv_bench::platform::has_clwb() => Some(lanes(&Scale::SMOKE)),
        _ => None,
    }
}

/// Every competitor of a row leaves the same mappings as its floor, in every round.
#[test]
fn floor_engine_and_peers_do_the_same() {
    let _alone = arena::alone();
    for row in rows::all() {
        let Some(mut lanes) = lanes(row) else {
            continue;
        };
        for round in 0..ROUNDS {
            for lane in &mut lanes {
                lane.round(std::time::Duration::ZERO);
            }
            let floor = lanes.iter().find(|lane| lane.who == Who::Floor);
            let expected = floor.expect("every row has a floor").mapped();
            for lane in &lanes {
                let found = lane.mapped();
                assert_eq!(
                    found.len(),
                    expected.len(),
                    "{}, round {round}: {} maps another number of pages than the floor",
                    row.name(),
                    lane.who.name()
                );
                if let Some((found, expected)) = found
                    .iter()
                    .zip(&expected)
                    .find(|(one, other)| one != other)
                {
                    panic!(
                        "{}, round {round}: {} has {found:x?}, the floor {expected:x?}",
                        row.name(),
                        lane.who.name()
                    );
                }
            }
        }
    }
}

/// Rows that map leave their whole window mapped, so that the test above compares something.
#[test]
fn rows_that_map_leave_mappings() {
    let _alone = arena::alone();
    for (id, part) in [
        ("B-M1", ""),
        ("B-M3", "rand"),
        ("B-R1", ""),
        ("B-X1", "seq"),
    ] {
        let row = rows::all().find(|row| row.id == id && row.part == part);
        let mut lanes = lanes(row.expect("a row of the matrix")).expect("a row with lanes");
        for lane in &mut lanes {
            lane.round(std::time::Duration::ZERO);
            let mapped = lane.mapped();
            assert_eq!(
                mapped.len() as u64,
                Scale::SMOKE.pages,
                "{id} {}",
                lane.who.name()
            );
            for (page, mapped) in mapped.iter().enumerate() {
                let page = page as u64;
                assert_eq!(mapped.at, hv_bench::window::iova(page), "{id}");
                assert_eq!(mapped.to, hv_bench::window::phys(page), "{id}");
                assert_eq!(mapped.bytes, hv_bench::window::PAGE, "{id}");
            }
        }
    }
}

/// Every row gives a result with a value, or says why not.
#[test]
fn every_row_is_measured_or_says_why_not() {
    let _alone = arena::alone();
    let before = arena::in_use();
    for row in rows::all() {
        let result = row.measure(&Scale::SMOKE, |_| {});
        assert!(
            result.value.is_some() || result.skipped.is_some() || !result.histogram.is_empty(),
            "{} says nothing",
            row.name()
        );
        if let Some(lane) = result.lanes.iter().find(|lane| lane.count == 0) {
            panic!("{}: {} did not run", row.name(), lane.name);
        }
        assert_eq!(arena::in_use(), before, "{} keeps frames", row.name());
    }
}

/// Looking up gives every competitor the same sum of addresses.
#[test]
fn lookups_agree() {
    use hv_bench::engine::Engine;
    use hv_bench::floor::Floor;
    use hv_bench::order::{Order, Shuffled};
    use hv_bench::peers::aarch64::Aarch64;
    use hv_bench::peers::multiarch::Multiarch;
    use hv_bench::peers::{Peer, x86_64::X86};

    fn peer<P: Peer>(order: &Shuffled) -> u64 {
        let mut peer = P::new();
        peer.map(order);
        peer.translate(order)
    }

    let _alone = arena::alone();
    let pages = 1500;
    let order = Shuffled::new(pages);
    let expected: u64 = order.pages().map(hv_bench::window::phys).sum();
    let floor = Floor::new(pages, 1);
    floor.fill();
    assert_eq!(floor.translate(&order), expected);
    let engine = Engine::<true>::new(pages, hv_core::PageSize::Size4K);
    engine.map_shared::<_, false>(&order);
    assert_eq!(engine.translate::<_, false>(&order), expected);
    assert_eq!(engine.translate::<_, true>(&order), expected);
    assert_eq!(peer::<X86>(&order), expected);
    assert_eq!(peer::<Aarch64>(&order), expected);
    assert_eq!(peer::<Multiarch>(&order), expected);
}
