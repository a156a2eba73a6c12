//! One random life from power-on to the last frame, and what became of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use hv_core::PageSize;
use hv_smmu::{Smmu, Vmsa, Vmsa16K, Vmsa64K};
use hv_vtd::Vtd;

use super::acts;
use super::granule::{LifeTables, Lives};
use super::op::{Kind, Op, ops};
use super::world::World;
use crate::bus::Counts;
use crate::driver::Vendor;
use crate::machine::{Machine, Temper, UnitModel, UnitRegisters};
use crate::rig::{Failure, Rig};
use crate::rule::Rule;

/// A life to be lived.
#[derive(Clone, Debug)]
pub struct Life {
    /// What everything follows from.
    pub seed: u64,
    /// How many operations are drawn.
    pub operations: usize,
    /// Which of them are done, by number; all if `None`.
    pub keep: Option<Vec<usize>>,
    /// The hardware's temper, if it is not the seed's.
    pub temper: Option<Temper>,
    /// What the hardware's choices follow from besides: other luck, another course of the same operations.
    pub luck: u64,
    /// Whose units the machine has.
    pub vendor: Vendor,
}

/// What a life came to.
#[derive(Debug)]
pub struct Lived {
    /// How many operations were done.
    pub operations: u64,
    /// What the rig did.
    pub counts: Counts,
    /// The rig's clock at the end, in nanoseconds.
    pub nanos: u64,
    /// The first rule that was broken.
    pub failure: Option<Box<Failure>>,
}

/// What an operation may take at most on the rig's clock. Each wait of the subsystem ends within a tenth of a
/// second here; an operation waits for a few requesters, each on a few units. A reset waits several times for
/// up to a second, on each unit. Where devices keep translations, a unit that hangs cannot be told from one that waits
/// for a device: it has as long as the bus gives a device, and no unit hangs longer than that here.
const fn longest(kind: Kind, waits_for_devices: bool) -> Duration {
    match (kind, waits_for_devices) {
        (Kind::Reset, false) => Duration::from_secs(20),
        (_, false) => Duration::from_millis(1500),
        (_, true) => Duration::from_secs(60),
    }
}

impl Life {
    /// The life of this seed, on a machine of this vendor.
    pub fn new(vendor: Vendor, seed: u64, operations: usize) -> Self {
        Self {
            vendor,
            seed,
            operations,
            keep: None,
            temper: None,
            luck: 0,
        }
    }

    /// What `cargo xtask soak` has to be told to live this life again.
    pub fn command(&self) -> String {
        let numbers: Vec<usize> = self.ops().iter().map(|(index, _)| *index).collect();
        format!(
            "cargo xtask soak --vendor {} --seed {:#x} --operations {} --luck {} --temper {:#x} --keep {}",
            self.vendor,
            self.seed,
            self.operations,
            self.luck,
            self.machine().temper.bits(),
            ranges(&numbers)
        )
    }

    /// The operations that are done, with their numbers.
    pub fn ops(&self) -> Vec<(usize, Op)> {
        let all = ops(self.vendor, self.seed, self.operations)
            .into_iter()
            .enumerate();
        all.filter(|(index, _)| self.keep.as_ref().is_none_or(|keep| keep.contains(index)))
            .collect()
    }

    /// The tables that it is lived with.
    pub fn tables(&self) -> LifeTables {
        LifeTables::draw(self.vendor, self.seed)
    }

    /// The machine.
    pub fn machine(&self) -> Machine {
        let mut machine = Machine::draw_of(self.vendor, self.seed);
        machine.temper = self.temper.unwrap_or(machine.temper);
        if self.vendor == Vendor::Smmu {
            machine.draw_ats();
        }
        let tables = self.tables();
        if tables.page != PageSize::Size4K {
            machine.set_large_granules();
        }
        if tables.high {
            machine.set_high_memory();
        }
        machine
    }

    /// Lives it. A panic of the driver is a broken rule like any other.
    pub fn live(&self) -> Lived {
        let rig = match Rig::new(self.machine()) {
            Ok(rig) => rig,
            Err(why) => panic!("seed {:#x} draws an impossible machine: {why}", self.seed),
        };
        let mut done = 0;
        let lived = catch_unwind(AssertUnwindSafe(|| {
            match (self.vendor, self.tables().page) {
                (Vendor::Vtd, _) => self.live_on::<Vtd<Rig>>(&rig, &mut done),
                (Vendor::Smmu, PageSize::Size16K) => {
                    self.live_on::<Smmu<Rig, Vmsa16K>>(&rig, &mut done);
                }
                (Vendor::Smmu, PageSize::Size64K) => {
                    self.live_on::<Smmu<Rig, Vmsa64K>>(&rig, &mut done);
                }
                (Vendor::Smmu, _) => self.live_on::<Smmu<Rig, Vmsa>>(&rig, &mut done),
            }
        }));
        if let Err(panic) = lived {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            rig.broken(Rule::Panic, what.unwrap_or_default());
        }
        let lived = Lived {
            operations: done,
            counts: rig.counts(),
            nanos: rig.nanos(),
            failure: rig.verdict().err(),
        };
        // Domains that did not end keep the subsystem alive, and it the rig; not its memory as well.
        rig.retire();
        lived
    }

    fn live_on<B: Lives>(&self, rig: &Rig, done: &mut u64) {
        let mut world = match World::<B>::new(rig.clone()) {
            Ok(world) => world,
            Err(why) => {
                rig.broken(
                    Rule::WrongAnswer,
                    format!("the machine did not come up: {why}"),
                );
                return;
            }
        };
        // Some CPUs come from a guest only for a moment, others stay.
        let iommu = world.iommu.clone();
        let stay = (self.seed & 1 == 0).then(|| iommu.enter());
        let has_ats = |unit: &UnitModel| matches!(unit.registers, UnitRegisters::Smmu(identity) if identity.ats);
        let waits_for_devices = rig.machine().units.iter().any(has_ats);
        for (index, op) in self.ops() {
            rig.say(format!("operation {index}: {op}"));
            // Each operation has its own luck, so that leaving others out changes little of it.
            rig.reseed(
                self.seed ^ (self.luck << 32 | index as u64).wrapping_mul(0x2545_f491_4f6c_dd1d),
            );
            let start = rig.nanos();
            world.perform(op);
            *done += 1;
            let took = Duration::from_nanos(rig.nanos() - start);
            if took > longest(op.kind, waits_for_devices) {
                rig.broken(
                    Rule::Deadline,
                    format!("operation {index}, {op}, took {took:?}"),
                );
            }
            if rig.is_broken() {
                return;
            }
        }
        drop(stay);
        end(world);
    }
}

/// Numbers in a row as ranges.
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let parts = parts.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    parts.collect::<Vec<_>>().join(",")
}

/// Takes everything apart: all groups come back, all domains end, every frame and id is there.
fn end<B: Lives>(mut world: World<B>) {
    let rig = world.rig().clone();
    rig.say("the end");
    rig.fail_allocation_after(None);
    // While a unit is lost, nothing of it comes back; here it is found again.
    if let Some(unit) = world.lost {
        world.reset(true);
        rig.find_unit(unit);
        world.lost = None;
    }
    world.reset(true);
    for index in 0..world.groups.len() {
        world.detach(index);
    }
    B::end_nests(&mut world);
    // A unit that still hung may have wedged just now.
    world.reset(true);
    if rig.is_broken() {
        return;
    }
    B::end_nests(&mut world);
    world.leave_homes();
    let memories = &world.memories;
    let mut kept = world.nests.len() + world.homes.len();
    for (_, space) in std::mem::take(&mut world.kernel) {
        kept += usize::from(acts::end(memories, space).is_some());
    }
    for (_, space) in std::mem::take(&mut world.guest) {
        kept += usize::from(acts::end(memories, space).is_some());
    }
    world.iommu.sweep();
    if kept != 0 {
        rig.broken(Rule::Leak, format!("{kept} domains do not end"));
    }
    world.judge_leaks();
}
