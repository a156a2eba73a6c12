//! Devices that do more than send: they keep translations themselves, ask for pages, and send to units that let requests
//! stand still. A machine of each kind, with what its driver owes such a device.

use hv_core::{Access, Iova, IovaRange, PageCount, PageSize};
use hv_iommu::{FaultNotice, TrustedDevice};
use hv_smmu::Smmu;

use super::single::Single;
use crate::devices::Answering;
use crate::driver::Vendor;
use crate::machine::Machine;
use crate::request::Outcome;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};
use crate::smmu::Identity;

/// Where the drill maps.
const AT: u64 = 0x10_0000;
/// How often it maps and unmaps.
const ROUNDS: u64 = 6;

type Backend = Smmu<Rig>;
/// What the units are like, and what the device does.
type Kind = (fn(&mut Identity), fn(&mut Drilled) -> Option<()>);

/// All of the drills on the machine of a seed.
pub(crate) fn devices(seed: u64) -> Option<Violation> {
    let kinds: [Kind; 5] = [
        (|identity| identity.ats = true, keeping),
        (|identity| identity.ats = true, silent),
        (|identity| identity.ats = true, alone),
        (
            |identity| (identity.ats, identity.pri) = (true, true),
            paging,
        ),
        (
            |identity| (identity.stall_model, identity.pri) = (2, false),
            stalling,
        ),
    ];
    kinds.into_iter().find_map(|(change, drill)| {
        let rig = Rig::new(machine(seed, change)).ok()?;
        if let Some(mut drilled) = Drilled::new(&rig) {
            drill(&mut drilled);
            let _ = drilled.one.end();
        }
        rig.judged()
    })
}

fn machine(seed: u64, change: fn(&mut Identity)) -> Machine {
    let mut machine = Machine::draw_of(Vendor::Smmu, seed);
    // These hide what is looked for here.
    (machine.temper.evictions, machine.temper.widening) = (false, false);
    machine.temper.rogues = false;
    for unit in &mut machine.units {
        if let Some(identity) = unit.smmu() {
            change(identity);
            // A device that stands still for what it does by itself is told from no other.
            machine.temper.background &= identity.stall_model != 2;
        }
    }
    for function in &mut machine.functions {
        function.ats = true;
    }
    machine
}

/// A device in a domain of its own, and whose word there is for it.
struct Drilled {
    one: Single<Backend>,
    trusted: TrustedDevice<Backend>,
}

impl Drilled {
    fn new(rig: &Rig) -> Option<Self> {
        let one = Single::new(rig, 31)?;
        let trusted = TrustedDevice::vouch_for(one.group.as_ref()?, "a drill");
        Some(Self { one, trusted })
    }

    /// Maps some pages, has `meanwhile` done, and takes them back.
    fn with_pages(&self, pages: u64, meanwhile: impl FnOnce(&Self)) -> Option<()> {
        let range = IovaRange::new(Iova::new(AT), PageCount::new(pages)?).ok()?;
        self.one
            .with_pages(range, PageSize::Size4K, || meanwhile(self))
    }

    fn wrong(&self, what: &str) {
        self.one.rig.broken(Rule::WrongAnswer, what);
    }
}

/// The device keeps translations, is closed, does what it likes, and is opened again.
fn keeping(drilled: &mut Drilled) -> Option<()> {
    let (device, rig) = (drilled.one.device, drilled.one.rig.clone());
    // Before it may: a translation of its own making leads nowhere.
    rig.forge(device, Iova::new(AT), crate::memory::BASE);
    rig.access_kept(device, Iova::new(AT), Access::Write);
    let mut group = drilled.one.group.take()?;
    let mut on = group.enable_ats(device, &drilled.trusted).is_ok();
    rig.access_kept(device, Iova::new(AT), Access::Write);
    for _ in 0..ROUNDS {
        // With something to ask for: a device that may asks at once.
        drilled.with_pages(32, |this| {
            let _ = group.disable_ats(device);
            on = group.enable_ats(device, &this.trusted).is_ok();
        })?;
    }
    drilled.one.group = Some(group);
    for round in 0..ROUNDS {
        let pages = 1 + round * 7;
        drilled.with_pages(pages, |_| {
            for page in [0, pages / 2, pages - 1] {
                let at = Iova::new(AT + page * 0x1000);
                for access in [Access::Read, Access::Write] {
                    rig.ask(device, at, access);
                    rig.access_kept(device, at, access);
                }
            }
        })?;
        rig.access_kept(device, Iova::new(AT), Access::Write);
        if round % 2 == 1 {
            let mut group = drilled.one.group.take()?;
            let changed = match on {
                true => group.disable_ats(device),
                false => group.enable_ats(device, &drilled.trusted),
            };
            on = on != changed.is_ok();
            drilled.one.group = Some(group);
        }
    }
    Some(())
}

/// The device does not answer when it is let ask, then it does, and then it does not when it is to forget.
fn silent(drilled: &mut Drilled) -> Option<()> {
    let (device, rig) = (drilled.one.device, drilled.one.rig.clone());
    let mut group = drilled.one.group.take()?;
    rig.forge(device, Iova::new(AT), crate::memory::BASE);
    rig.mute(device, true);
    if group.enable_ats(device, &drilled.trusted).is_ok() {
        rig.access_kept(device, Iova::new(AT), Access::Write);
        drilled.wrong("a device that does not forget what it has was let ask");
    }
    rig.mute(device, false);
    group.enable_ats(device, &drilled.trusted).ok()?;
    drilled.with_pages(4, |_| {
        for access in [Access::Read, Access::Write] {
            rig.ask(device, Iova::new(AT), access);
        }
        rig.mute(device, true);
    })?;
    let mut told = 0;
    drilled.one.iommu.take_faults(|notice| {
        told += usize::from(matches!(notice, FaultNotice::CutOff(_)));
    });
    if told != 1 || drilled.one.iommu.wedged_units().count() != 0 {
        drilled.wrong("a device that does not answer was not cut off by itself");
    }
    drilled.one.group = Some(group);
    Some(())
}

/// The device answers when it is asked alone, and never otherwise: it is not borne with for ever.
fn alone(drilled: &mut Drilled) -> Option<()> {
    let (device, rig) = (drilled.one.device, drilled.one.rig.clone());
    let group = drilled.one.group.as_mut()?;
    group.enable_ats(device, &drilled.trusted).ok()?;
    rig.answer(device, Answering::NotForPages);
    for _ in 0..ROUNDS {
        drilled.with_pages(4, |_| {
            rig.ask(device, Iova::new(AT), Access::Write);
        })?;
        rig.access_kept(device, Iova::new(AT), Access::Write);
    }
    let mut told = 0;
    drilled.one.iommu.take_faults(|notice| {
        told += usize::from(matches!(notice, FaultNotice::CutOff(_)));
    });
    if told != 1 || drilled.one.iommu.wedged_units().count() != 0 {
        drilled.wrong("a device that answers only when it is asked alone is asked again and again");
    }
    Some(())
}

/// The device asks for pages, more than the queue holds, and waits for an answer to each group.
fn paging(drilled: &mut Drilled) -> Option<()> {
    let (device, rig) = (drilled.one.device, &drilled.one.rig);
    let mut sent = 0;
    for round in 0..ROUNDS as u16 {
        for group in 0..10 {
            rig.ask_for_page(device, Iova::new(AT), round * 10 + group, group != 4);
            sent += usize::from(group != 4);
        }
        drilled.one.iommu.take_faults(|_| {});
    }
    rig.idle(20_000);
    if rig.page_answers(device).len() != sent {
        drilled.wrong("a device asked for pages, and was not answered");
    }
    Some(())
}

/// The device goes where nothing is, and stands still until that was looked at.
fn stalling(drilled: &mut Drilled) -> Option<()> {
    let (device, rig) = (drilled.one.device, &drilled.one.rig);
    drilled.with_pages(1, |_| {
        for _ in 0..ROUNDS {
            rig.access(device, Iova::new(AT + 0x1_0000), Access::Write);
            drilled.one.iommu.take_faults(|_| {});
            rig.idle(20_000);
            let outcome = rig.access(device, Iova::new(AT), Access::Write);
            if !matches!(outcome, Outcome::Reached { .. }) {
                drilled.wrong("a device stands still, and its fault was taken");
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the drills find with a fault of the driver is due to the fault.
    #[test]
    fn the_drills_break_nothing_without_a_fault() {
        for seed in 0..24 {
            assert_eq!(devices(seed), None, "seed {seed}");
        }
    }
}
