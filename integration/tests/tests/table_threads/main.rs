//! One table, many threads: mappers of private ranges in shared leaf tables, users of a shared range, owners
//! who attach and detach whole tables and change page sizes, reclaimers, CPUs that translate and a device
//! whose unit caches all that it may. Nobody is ever led to a frame whose mapping had ended before, no
//! table page is touched after it was given back, and all of them come back.
//!
//! Seeds are fixed; `HV_SEED` chooses another, `HV_SECONDS` a longer run. Threads still meet differently in each run. With
//! `--cfg hv_fault` the variable `HV_FAULT` switches one deliberate fault on.

#![cfg(not(hv_loom))]

mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hv_core::{Iova, PageSize, Perms};
use hv_iommu::table::TableError;

use world::{World, next, range};

/// Pages of a table of the last level.
const TABLE: u64 = 512;
/// Where strips of 16 pages lie, which belong to the workers in turn: four leaf tables.
const STRIPS: u64 = 0x1_0000;
const STRIP: u64 = 16;
/// Where all workers map single pages: the end of one leaf table and the beginning of the next.
const SHARED: u64 = STRIPS + 6 * TABLE - 16;
/// Tables that belong to one worker each, and what lies behind them.
const TABLES: u64 = STRIPS + 8 * TABLE;
/// 1 GiB for each worker.
const LARGE: u64 = 1 << 20;
const GIB: u64 = 1 << 18;
/// Steps of a worker and attempts to reclaim below which nothing was tried.
const ENOUGH: (u64, u64) = (50, 5);
/// How long is waited for that.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the workers work.
fn time() -> Duration {
    let seconds = std::env::var("HV_SECONDS").map_or(2, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Maps a part of one of the worker's strips, uses it, unmaps it.
fn strip(world: &World, worker: u64, workers: u64, seed: &mut u64) {
    let index = next(seed) % (4 * TABLE / STRIP / workers);
    let (from, pages) = (next(seed) % 8, 1 + next(seed) % 8);
    let first = STRIPS + (index * workers + worker) * STRIP + from;
    let (number, to) = world.map(first, pages, PageSize::Size1G);
    world.dma(first + next(seed) % pages, true);
    world.unmap(first, pages, number, to, false);
}

/// Maps a page of the shared range, unless another worker has it.
fn shared(world: &World, seed: &mut u64) {
    let page = SHARED + next(seed) % 32;
    let at = Iova::new(page << 12);
    let (number, to) = world.begin(page, 1);
    let table = &world.table;
    let mapped = table.map_shared(&world.guard(), at, to, Perms::ReadWrite, PageSize::Size4K);
    match mapped {
        Ok(_) => {
            assert!(world.translate(page));
            world.dma(page, false);
            let found = table.unmap_shared(&world.guard(), at, PageSize::Size4K);
            assert_eq!(found, Ok(to));
            world.unmapped(number, 1);
            world.flush(false);
            world.flushed(number, 1);
            let redeemed = table.redeem_shared(&world.guard(), at, to, PageSize::Size4K);
            assert!(redeemed.is_ok(), "{redeemed:?}");
        }
        Err(error) => assert_eq!(error, TableError::Occupied { at }),
    }
}

/// Maps a table's worth of pages or some more, perhaps as one, changes page sizes, and detaches it all.
fn table(world: &World, worker: u64, workers: u64, seed: &mut u64) {
    // Two slots each: what reaches over the end of one stays inside the worker's own.
    let first = TABLES + (next(seed) % 4 * workers + worker) * 2 * TABLE;
    let pages = TABLE + next(seed) % 3 * 7;
    let largest = [PageSize::Size4K, PageSize::Size2M][next(seed) as usize % 2];
    let (number, to) = world.map(first, pages, largest);
    world.dma(first + next(seed) % pages, true);
    let at = Iova::new(first << 12);
    let mut debt = false;
    for _ in 0..next(seed) % 4 {
        let changed = match next(seed) % 3 {
            0 => world.table.split(&world.guard(), at, PageSize::Size2M),
            1 => world.table.merge(&world.guard(), at, PageSize::Size2M),
            _ => {
                let whole = range(first, pages);
                world
                    .table
                    .protect(&world.guard(), whole, Perms::ReadWrite)
                    .map(drop)
            }
        };
        debt |= changed.is_ok();
        let refused = matches!(
            changed,
            Ok(()) | Err(TableError::NotMapped { .. } | TableError::ReclaimPending { .. })
        );
        assert!(refused, "{changed:?}");
        let page = first + next(seed) % pages;
        assert!(world.translate(page), "no address is without a mapping");
        world.dma(page, true);
    }
    world.unmap(first, pages, number, to, debt);
}

/// Maps 1 GiB with large pages over whatever empty tables are there, and detaches it.
fn large(world: &World, worker: u64, seed: &mut u64) {
    let first = LARGE + worker * GIB;
    if next(seed).is_multiple_of(2) {
        // Tables of small pages, empty again but in the way of large ones.
        for _ in 0..8 {
            let page = first + next(seed) % GIB;
            let (number, to) = world.map(page, 1, PageSize::Size4K);
            world.unmap(page, 1, number, to, false);
        }
    } else {
        let (number, to) = world.map(first, GIB, PageSize::Size2M);
        world.dma(first + next(seed) % GIB, true);
        world.unmap(first, GIB, number, to, false);
    }
}

/// Gives the number of steps.
fn work(world: &World, worker: u64, workers: u64, mut seed: u64) -> u64 {
    let (start, time, mut steps) = (Instant::now(), time(), 0);
    // On a machine that is busy with other things, until they have met often enough.
    let met = |steps| steps > ENOUGH.0 && world.attempts() > ENOUGH.1;
    while start.elapsed() < time || (!met(steps) && start.elapsed() < PATIENCE) {
        steps += 1;
        match next(&mut seed) % 64 {
            0..36 => strip(world, worker, workers, &mut seed),
            36..52 => shared(world, &mut seed),
            52..60 => table(world, worker, workers, &mut seed),
            60 => large(world, worker, &mut seed),
            _ => drop(world.reclaim(false)),
        }
    }
    steps
}

/// Looks at random places until the workers are done: as a CPU, and as a device.
fn look(world: &World, done: &AtomicBool, mut seed: u64) {
    // ORDERING: Relaxed, only that the loop ends some day counts.
    while !done.load(Ordering::Relaxed) {
        let page = match next(&mut seed) % 8 {
            0 => LARGE + next(&mut seed) % (2 * GIB),
            1 | 2 => SHARED + next(&mut seed) % 32,
            _ => STRIPS + next(&mut seed) % (24 * TABLE),
        };
        match next(&mut seed) % 4 {
            0 => drop(world.translate(page)),
            1 => world.look_through(page, 1 + next(&mut seed) % 64),
            _ => world.dma(page, next(&mut seed).is_multiple_of(2)),
        }
        if next(&mut seed).is_multiple_of(32) {
            std::thread::yield_now();
        }
    }
}

fn reclaim(world: &World, done: &AtomicBool, mut seed: u64) {
    // ORDERING: Relaxed, only that the loop ends some day counts.
    while !done.load(Ordering::Relaxed) {
        world.reclaim(next(&mut seed).is_multiple_of(8));
    }
}

#[test]
fn nobody_is_led_astray_and_all_tables_come_back() {
    #[cfg(hv_fault)]
    if let Ok(name) = std::env::var("HV_FAULT") {
        hv_core::fault::Fault::from_name(&name).unwrap().switch_on();
    }
    let seed = std::env::var("HV_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    println!("HV_SEED={seed}");
    let world = &World::new();
    let done = &AtomicBool::new(false);
    let workers = 2;
    let mut seeds = seed | 1;
    let steps: u64 = std::thread::scope(|scope| {
        let busy: Vec<_> = (0..workers)
            .map(|worker| {
                let seed = next(&mut seeds) | 1;
                scope.spawn(move || work(world, worker, workers, seed))
            })
            .collect();
        let (looker, reclaimer) = (next(&mut seeds) | 1, next(&mut seeds) | 1);
        let others = [
            scope.spawn(move || look(world, done, looker)),
            scope.spawn(move || reclaim(world, done, reclaimer)),
        ];
        let ended: Vec<_> = busy.into_iter().map(|thread| thread.join()).collect();
        // ORDERING: Relaxed, as at its loads.
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a worker found an error");
        let others = others.map(|thread| thread.join());
        assert!(others.iter().all(Result::is_ok), "a looker found an error");
        ended.into_iter().flatten().sum()
    });
    let attempts = world.attempts();
    println!("{steps} steps, {attempts} attempts to reclaim");
    assert!(
        steps > ENOUGH.0 && attempts > ENOUGH.1,
        "nobody met anybody"
    );
    world.table.reclaim_rewind();
    for _ in 0..100_000 {
        if !world.reclaim(false) {
            break;
        }
    }
    assert_eq!(world.table.table_pages(), 1, "only the root is left");
    assert_eq!(world.pool.taken(), 1);
    let root = world.table.close();
    assert!(root.is_some());
}
