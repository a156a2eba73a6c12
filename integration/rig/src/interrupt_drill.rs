//! A drill of units' interrupts: a driver that looks at the fault logs only when it was interrupted is told of every fault,
//! and of nothing that was none.

use hv_core::{Access, Iova, PhysAddr};
use hv_iommu::{
    FaultLogs, FaultNotice, InterruptMessage, InterruptRoute, InterruptSource, Iommu, MessageData,
    RoutedInterrupts, UnitIndex,
};

use crate::drill::Single;
use crate::driver::{Driver, Vendor};
use crate::interrupt::{Cause, Log, Trouble};
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};

/// How many faults come after the interrupt was turned on.
const FAULTS: u64 = 12;

/// What looks have told.
#[derive(Default)]
struct Told {
    faults: u64,
    lost: u64,
}

impl Told {
    fn note(&mut self, notice: FaultNotice) {
        match notice {
            FaultNotice::Fault(_) | FaultNotice::Stray(..) => self.faults += 1,
            _ => self.lost += 1,
        }
    }
}

/// The faults of a device are told by interrupts alone.
pub(crate) fn interrupts<B: Driver + RoutedInterrupts>(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(B::VENDOR, seed);
    // Nothing but the one device faults.
    machine.temper.background = false;
    let wide = seed % 2 == 1;
    if wide {
        machine.set_wide_apic_ids();
    }
    let rig = Rig::new(machine).ok()?;
    let one = Single::<B>::new(&rig, 31)?;
    let (iommu, device) = (&one.iommu, one.device);
    let unit = one.group.as_ref()?.unit();
    // What bring-up left.
    while iommu.take_faults(|_| ()) == FaultLogs::MayHoldMore {}
    let faults = |number: u64| {
        rig.access(device, Iova::new((0x100 + number) << 12), Access::Write);
    };
    faults(0);
    let mut told = Told::default();
    for number in 0..2 {
        // Elsewhere the second time, on units that send messages.
        let route = route_of(&rig, unit, number, wide);
        let routed = iommu.route_interrupt(unit, InterruptSource::Faults, route, |notice| {
            told.note(notice);
        });
        if let Err(error) = routed {
            rig.broken(Rule::WrongAnswer, format!("{route:?}: {error}"));
        }
    }
    // Those that came on the way were taken by nobody: the look behind the route is to serve for them.
    rig.take_interrupts();
    for number in 1..=FAULTS {
        faults(number);
        look_if_interrupted(&rig, iommu, unit, &mut told);
    }
    if told.faults != FAULTS + 1 || told.lost != 0 {
        let what = format!(
            "{} faults came, of which interrupts told {}, and {} losses that were none",
            FAULTS + 1,
            told.faults,
            told.lost
        );
        rig.broken(Rule::FaultReport, what);
    }
    overflowing(&rig, iommu, unit, faults);
    if B::VENDOR == Vendor::Smmu {
        unwritten(&rig, iommu, unit, || faults(FAULTS + 1));
        astray(&rig, iommu, unit);
    }
    rig.judged()
}

fn route_of(rig: &Rig, unit: UnitIndex, number: u32, wide: bool) -> InterruptRoute {
    let mut machine = rig.machine().clone();
    let vendor = machine.vendor();
    let unit = machine.units.get_mut(unit.index());
    let has_messages = match vendor {
        Vendor::Vtd => true,
        Vendor::Smmu => unit
            .and_then(|unit| unit.smmu())
            .is_some_and(|smmu| smmu.msi),
    };
    match has_messages {
        true => {
            let address = vendor.takes_messages_at().as_u64();
            // Another CPU each time, where ids have an upper part.
            let upper = match (vendor, wide) {
                (Vendor::Vtd, true) => u64::from(1 + number) << 40,
                _ => 0,
            };
            InterruptRoute::Message(InterruptMessage {
                address: PhysAddr::new(upper | address),
                data: MessageData(0x20 + number),
            })
        }
        false => InterruptRoute::Wired,
    }
}

/// What a driver does that sleeps until it is interrupted.
fn look_if_interrupted<B: Driver>(rig: &Rig, iommu: &Iommu<B>, unit: UnitIndex, told: &mut Told) {
    let mut came = rig.take_interrupts().into_iter();
    if came.any(|came| (came.unit, came.cause) == (unit.index(), Cause::Faults)) {
        while iommu.take_faults(|notice| told.note(notice)) == FaultLogs::MayHoldMore {}
    }
}

/// More faults than the log holds, before anybody looks: that some were lost is told, and so is the next fault.
fn overflowing<B: Driver>(rig: &Rig, iommu: &Iommu<B>, unit: UnitIndex, fault: impl Fn(u64)) {
    let units = &rig.machine().units;
    let records = units
        .get(unit.index())
        .map_or(0, |unit| unit.fault_records()) as u64;
    let mut told = Told::default();
    (0..records + 2).for_each(&fault);
    look_if_interrupted(rig, iommu, unit, &mut told);
    fault(FAULTS);
    look_if_interrupted(rig, iommu, unit, &mut told);
    if told.faults != records + 1 || told.lost == 0 {
        let what = format!(
            "of {} faults, one of them after a look, in a log of {records}, interrupts told {}, and {} losses",
            records + 3,
            told.faults,
            told.lost
        );
        rig.broken(Rule::FaultReport, what);
    }
}

/// A record that could not be written is lost, and not told as what stood there before.
fn unwritten<B: Driver>(rig: &Rig, iommu: &Iommu<B>, unit: UnitIndex, fault: impl FnOnce()) {
    rig.suffer(unit.index(), Trouble::RecordAborts { index_moves: true });
    fault();
    let mut told = Told::default();
    while iommu.take_faults(|notice| told.note(notice)) == FaultLogs::MayHoldMore {}
    if told.faults != 0 || told.lost == 0 {
        let what = format!(
            "a record that was not written was told as {} faults, and {} losses",
            told.faults, told.lost
        );
        rig.broken(Rule::FaultReport, what);
    }
}

/// An index that is where it cannot be tells of no record, and of none of a lap ago.
fn astray<B: Driver>(rig: &Rig, iommu: &Iommu<B>, unit: UnitIndex) {
    let (log, reads) = (Log::Faults, 0);
    rig.suffer(unit.index(), Trouble::IndexAstray { log, reads });
    let mut told = Told::default();
    while iommu.take_faults(|notice| told.note(notice)) == FaultLogs::MayHoldMore {}
    if told.faults != 0 || told.lost == 0 {
        let what = format!(
            "an index that is where it cannot be was told as {} faults, and {} losses",
            told.faults, told.lost
        );
        rig.broken(Rule::FaultReport, what);
    }
}
