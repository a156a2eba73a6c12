//! Rows of counts: table pages and invalidations.

use super::{BLANK, Job, Own, Row, Scale};
use crate::arena;
use crate::engine::Engine;
use crate::order::{Order, Sequential, Shuffled};
use crate::window::{PAGES_1G, PAGES_2M};

use hv_core::PageSize;

/// The engine in memory whose walkers snoop.
type Snooped = Engine<true>;

/// Table pages of an empty table.
const ROOT: u64 = 1;

/// Frames that `engine`'s table has, when `before` were in use before it was made.
fn pages_since(before: u64) -> u64 {
    arena::in_use() - before
}

/// Table pages that stay when everything was unmapped and redeemed, page by page.
fn left_over(scale: &Scale) -> Own {
    let before = arena::in_use();
    let engine = Snooped::new(scale.pages, PageSize::Size4K);
    let order = Shuffled::new(scale.pages);
    engine.map_shared::<_, false>(&order);
    let most = pages_since(before);
    engine.unmap_shared::<_, false>(&order);
    engine.redeem_shared(&order);
    let empty = pages_since(before);
    engine.reclaim();
    let left = pages_since(before);
    assert_eq!(left, engine.table_pages(), "the engine counts its tables");
    Own {
        measure: "pages",
        value: Some((left - ROOT) as f64),
        notes: vec![format!(
            "{} pages of 4 KiB had {most} table pages, {empty} while empty, {left} after reclaim, the top table included",
            order.count()
        )],
        ..Own::default()
    }
}

/// The most table pages that are not in use while pages come and go and a reclaimer runs.
fn most_unused(scale: &Scale) -> Own {
    const STEPS: usize = 4;
    let before = arena::in_use();
    let engine = Snooped::new(scale.pages, PageSize::Size4K);
    let mut most = 0;
    for first in (0..scale.pages).step_by(PAGES_2M as usize) {
        let order = Sequential {
            first,
            count: PAGES_2M.min(scale.pages - first),
        };
        engine.map_shared::<_, false>(&order);
        engine.unmap_shared::<_, false>(&order);
        engine.redeem_shared(&order);
        most = most.max(pages_since(before) - ROOT);
        for _ in 0..STEPS {
            engine.reclaim_step();
        }
    }
    Own {
        measure: "pages",
        value: Some(most as f64),
        notes: vec![format!(
            "{STEPS} steps of reclaim after each 2 MiB that were mapped and unmapped page by page"
        )],
        ..Own::default()
    }
}

/// Table pages of a mapping over the fewest that the format allows.
fn used(pages: u64, size: PageSize, step: u64) -> Own {
    let before = arena::in_use();
    let engine = Snooped::new(pages, size);
    engine.map_ranges::<false>(step);
    let used = pages_since(before);
    let tables = |span: u64| pages.div_ceil(span);
    // The window begins where a word of the top table does, so no table is cut.
    let below = match size {
        PageSize::Size4K => tables(PAGES_2M) + tables(PAGES_1G),
        PageSize::Size2M => tables(PAGES_1G),
        _ => 0,
    };
    let fewest = ROOT + tables(PAGES_2M * PAGES_1G) + below;
    Own {
        measure: "ratio",
        value: Some(used as f64 / fewest as f64),
        notes: vec![format!("{used} table pages, {fewest} at the least")],
        ..Own::default()
    }
}

/// Table pages of single pages that lie far apart: three each below the top table.
fn scattered(scale: &Scale) -> Own {
    let before = arena::in_use();
    let count = scale.pages.min(64);
    let engine = Snooped::new(count * PAGES_2M, PageSize::Size4K);
    for number in 0..count {
        engine.map_owned::<_, false>(&Sequential {
            first: number * PAGES_2M,
            count: 1,
        });
    }
    let used = pages_since(before);
    let fewest = ROOT + 1 + (count * PAGES_2M).div_ceil(PAGES_1G) + count;
    Own {
        measure: "ratio",
        value: Some(used as f64 / fewest as f64),
        notes: vec![format!(
            "{used} table pages for {count} pages, one in each 2 MiB; {fewest} at the least"
        )],
        ..Own::default()
    }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-V2",
        part: "quiet",
        workload: "table pages left after 4K unmaps, at quiescence",
        unit: "table page",
        gate: Some(0.0),
        job: Job::Own(left_over),
        ..BLANK
    },
    Row {
        id: "B-V2",
        part: "busy",
        workload: "most empty table pages while 1 GiB comes and goes",
        unit: "table page",
        job: Job::Own(most_unused),
        ..BLANK
    },
    Row {
        id: "memory",
        part: "4K",
        workload: "table pages of 1 GiB as 4K",
        unit: "table page",
        job: Job::Own(|scale| used(scale.pages, PageSize::Size4K, scale.pages)),
        ..BLANK
    },
    Row {
        id: "memory",
        part: "2M",
        workload: "table pages of 4 GiB as 2M",
        unit: "table page",
        job: Job::Own(|_| used(4 * PAGES_1G, PageSize::Size2M, PAGES_1G)),
        ..BLANK
    },
    Row {
        id: "memory",
        part: "scattered",
        workload: "table pages of single pages far apart",
        unit: "table page",
        job: Job::Own(scattered),
        ..BLANK
    },
];
