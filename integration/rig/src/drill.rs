//! Drills: what a life on one CPU does not come to. Requests beyond what a queue holds; threads that map in the
//! very tables that other threads take out; a device that firmware goes on using; memory with long addresses.

mod cached;
mod devices;
mod ended;
mod high;
mod kept;
mod messages;
mod nested;
mod parts;
mod pasids;
mod refused;
mod single;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{
    Access, Iova, IovaRange, PageCount, PageSize, PciAddress, Perms, PhysAddr, PhysRange,
};
use hv_iommu::{
    AtRest, AttachFailed, Config, Domain, DomainConfig, FlushDepth, FlushRequest, FlushSpan,
    HwDomainId, Iommu, UnitIndex,
};

pub(crate) use cached::cached;
pub(crate) use ended::ended;
pub(crate) use high::high;
pub(crate) use kept::kept;
pub(crate) use messages::messages;
pub(crate) use nested::{cut_off, nested, switched};
pub(crate) use parts::parts;
pub(crate) use pasids::pasids;
pub(crate) use refused::refused;
pub(crate) use single::Single;

use crate::driver::{Driver, Policy};
use crate::ledger::Tenant;
use crate::machine::{Machine, RegionModel, UnitModel};
use crate::rig::Rig;
use crate::rng::Rng;
use crate::rule::{Rule, Violation};

pub(crate) use devices::devices;

/// How many requests the queue's drill hands in without waiting for any: more than a queue holds.
const REQUESTS: u16 = 200;
/// Threads that map, and as many that reclaim.
const THREADS: u64 = 2;
/// How often each of them maps, uses and unmaps a page.
const ROUNDS: u64 = 40;
/// How many tables they share.
const TABLES: u64 = 8;

/// Many submitters at once, as only a machine of many CPUs has: requests without a wait for each, on a unit
/// that stands still for a while, so that the queue fills up and goes round.
pub(crate) fn queue<B: Driver>(seed: u64) -> Option<Violation> {
    let rig = Rig::new(Machine::draw_of(B::VENDOR, seed)).ok()?;
    let unit = UnitIndex::new(0)?;
    if let Ok(backend) = B::start(&rig) {
        rig.hang(0, Duration::from_millis(20));
        for number in 0..REQUESTS {
            let request = FlushRequest {
                domain: HwDomainId::new(1 + number % 8),
                span: FlushSpan::Domain,
                depth: FlushDepth::WalkCaches,
            };
            if let Err(error) = backend.submit(unit, request) {
                rig.broken(
                    Rule::WrongAnswer,
                    format!("request {number} was not taken: {error}"),
                );
                break;
            }
        }
        rig.idle(20_000);
    }
    rig.judged()
}

/// Threads that map single pages in a few tables, have the device write there and unmap, while others reclaim
/// all the time. What happens first differs from run to run.
pub(crate) fn tables<B: Driver>(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(B::VENDOR, seed);
    machine.temper.steady_clock = true;
    // Eviction and widening hide what is looked for here.
    (machine.temper.evictions, machine.temper.widening) = (false, false);
    let rig = Rig::new(machine).ok()?;
    let one = Single::<B>::new(&rig, 31)?;
    rig.core.take_turns();
    let busy = AtomicUsize::new(THREADS as usize);
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (rig, one, busy) = (&rig, &one, &busy);
            scope.spawn(move || {
                let mut rng = Rng::new(seed << 8 | number);
                for _ in 0..ROUNDS {
                    let page = rng.below(TABLES) * 512 + number * 256 + rng.below(256);
                    if rig.is_broken() || one_page(one, page).is_none() {
                        break;
                    }
                }
                // ORDERING: SeqCst, a test.
                busy.fetch_sub(1, Ordering::SeqCst);
            });
            scope.spawn(move || {
                let mut rng = Rng::new(seed << 8 | 0x80 | number);
                // ORDERING: SeqCst, as above.
                while busy.load(Ordering::SeqCst) != 0 && !rig.is_broken() {
                    // Flushes take their time, so that others come in between.
                    let pause = Duration::from_micros(rng.below(6));
                    (0..rig.machine().units.len()).for_each(|unit| rig.hang(unit, pause));
                    // Another may be at it.
                    let _ = one.domain.reclaim();
                }
            });
        }
    });
    if !rig.is_broken() {
        let _ = one.domain.reclaim();
        let left = one.domain.table_pages();
        if left != 1 << one.domain.geometry().root_tables.log2() {
            let what = format!("nothing is mapped, and {left} tables are left");
            rig.broken(Rule::Leak, what);
        }
        let _ = one.end();
    }
    rig.judged()
}

/// Where firmware's region is: in the middle of what the driver's frames are taken from.
const REGION: u64 = 0x1_0000_8000;

/// A device that firmware goes on using, through memory that it reserved: in the domain of that device, in no other,
/// and in nobody's hands after the end.
pub(crate) fn regions<B: Driver>(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(B::VENDOR, seed);
    machine.units.iter_mut().for_each(UnitModel::widen);
    let device = machine.functions.first()?.address;
    let memory = PhysRange::new(PhysAddr::new(REGION), PageCount::new(3)?).ok()?;
    let functions = vec![device];
    machine.regions = vec![RegionModel { memory, functions }];
    let rig = Rig::new(machine).ok()?;
    region_of::<B>(&rig, device, memory);
    rig.judged()
}

/// Claims the device for the hypervisor, has it use its region, and ends the domain. `None` when that cannot go on.
fn region_of<B: Driver>(rig: &Rig, device: PciAddress, memory: PhysRange) -> Option<()> {
    let backend = B::start_by(rig, Policy::Lenient).ok()?;
    let functions = rig.functions();
    rig.watch();
    let (_iommu, groups) = Iommu::new(backend, &functions, Config::default()).ok()?;
    let (mut pinned, mut other) = (None, None);
    for group in groups {
        match group {
            AtRest::ForHypervisor(group) => pinned = Some(group),
            AtRest::Claimable(group) => other = Some(group),
            AtRest::ToReset(_) | AtRest::AfterDriver(_) => {}
        }
    }
    let (group, other) = (
        pinned?.claim_for_hypervisor(),
        other?.claim_for_hypervisor(),
    );
    let members = group.members().to_vec();
    let config = DomainConfig {
        address_bits: 34,
        ..DomainConfig::default()
    };
    let without = Domain::paging_domain_alloc(&other, config).ok()?;
    let group = match group.attach(&without) {
        Err(AttachFailed::Refused { group, .. }) => group,
        _ => {
            let what = "a domain without its region took a device of firmware";
            rig.broken(Rule::WrongAnswer, what);
            return None;
        }
    };
    let domain = Domain::paging_domain_alloc(&group, config).ok()?;
    let (tenant, range) = (
        Tenant(1),
        IovaRange::new(Iova::new(REGION), memory.pages()).ok()?,
    );
    rig.mapping(tenant, range, memory, Perms::ReadWrite);
    rig.mapped(tenant, range, Perms::ReadWrite);
    rig.attaching(&members, tenant);
    let group = group.attach(&domain).ok()?;
    rig.attached(&members, tenant);
    group.enable_bus_mastering(device).ok()?;
    rig.access(device, range.last(), Access::Write);
    rig.idle(40);
    rig.detaching(&members, tenant);
    drop(group.detach().ok()?);
    rig.detached(&members);
    rig.unmapping(tenant, range);
    let teardown = domain.destroy().ok()?;
    rig.ended(tenant);
    teardown.for_each(|run| rig.free_frames(run));
    Some(())
}

/// Maps a page, has the device write there, and unmaps it again. `None` when that cannot go on.
fn one_page<B: Driver>(one: &Single<B>, page: u64) -> Option<()> {
    let (rig, tenant) = (&one.rig, one.tenant);
    let at = Iova::new(page * PageSize::Size4K.bytes());
    let range = IovaRange::new(at, PageCount::ONE).ok()?;
    let free = one.domain.reserve(range).ok()?;
    let frames = rig.alloc_frames(PageCount::ONE, PageSize::Size4K).ok()?;
    rig.mapping(tenant, range, frames.range(), Perms::ReadWrite);
    let mapped = match free.map(frames, Perms::ReadWrite) {
        Ok(mapped) => mapped,
        Err(error) => {
            rig.broken(Rule::WrongAnswer, format!("{error}"));
            return None;
        }
    };
    rig.mapped(tenant, range, mapped.granted());
    rig.access(one.device, at, Access::Write);
    rig.unmapping(tenant, range);
    match mapped.unmap().flush() {
        Ok((free, frames)) => {
            rig.expect_frames(tenant, range, frames.range());
            rig.returned(tenant, range);
            rig.free_frames(frames);
            free.release().ok()
        }
        Err(error) => {
            rig.broken(Rule::WrongAnswer, format!("{error}"));
            None
        }
    }
}
