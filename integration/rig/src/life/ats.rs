//! What a random life does with devices that keep translations themselves (ATS), on SMMUs.

use hv_core::{Access, Iova, PciAddress};
use hv_iommu::{AttachError, TrustedDevice, UnitError};
use hv_smmu::{Smmu, Tables};

use super::world::{Held, World};
use crate::machine::UnitRegisters;
use crate::rig::Rig;
use crate::rng::Rng;
use crate::rule::Rule;

impl<F: Tables> World<Smmu<Rig, F>> {
    /// A member of a group of the hypervisor's may keep translations from now on, or may not any more; then it asks for
    /// some, and uses them.
    pub(crate) fn device_tlb(&mut self, choice: [u64; 3]) {
        let index = (choice[0] % self.groups.len() as u64) as usize;
        let mut held = std::mem::replace(&mut self.groups[index], Held::Moving);
        let mut failed = None;
        if let Held::KernelOn(group, tenant) = &mut held {
            let count = group.members().len() as u64;
            let nth = choice[1].checked_rem(count).unwrap_or(0) as usize;
            if let Some(member) = group.members().get(nth).copied() {
                let rig = self.memories.rig.clone();
                let asks = rig.asks(member);
                let changed = match asks {
                    true => group.disable_ats(member),
                    false => {
                        let trusted = TrustedDevice::vouch_for(&*group, "a random life");
                        group.enable_ats(member, &trusted)
                    }
                };
                match changed {
                    Ok(()) if asks == rig.asks(member) => {
                        let what = format!("{member} was told, and asks as before: {asks}");
                        rig.broken(Rule::WrongAnswer, what);
                    }
                    Ok(()) if !asks && !has_ats(&rig, member) => {
                        let what = format!("{member} may ask on a unit that has no answer");
                        rig.broken(Rule::WrongAnswer, what);
                    }
                    Ok(()) => {}
                    Err(error) => failed = Some(error),
                }
                let mut rng = Rng::new(choice[2]);
                let space = self.kernel.get(&tenant.0);
                for _ in 0..8 {
                    let choice = [rng.next(), rng.next(), rng.next()];
                    let spot = space.and_then(|space| space.some_mapped(choice));
                    let (at, _) =
                        spot.unwrap_or((Iova::new(rng.below(512) << 12), hv_core::Perms::Read));
                    let access = match rng.one_in(2) {
                        true => Access::Read,
                        false => Access::Write,
                    };
                    // A device that does what it likes asks whether it may or not.
                    if rig.asks(member) || rng.one_in(2) {
                        rig.ask(member, at, access);
                    }
                    // What it has of before it was closed, too.
                    rig.access_kept(member, at, access);
                }
            }
        }
        self.groups[index] = held;
        match failed {
            None => {}
            // The unit, what is on the way to it, or the function has none, or the function is gone.
            Some(
                AttachError::Incompatible { .. }
                | AttachError::NoTranslationRequests { .. }
                | AttachError::KeepsAts { .. }
                // Its faults were too many, or it did not answer.
                | AttachError::CutOff { .. }
                | AttachError::Unit(UnitError::NoAnswer { .. }),
            ) => {}
            Some(AttachError::Unit(UnitError::Wedged { unit }))
                if self.wedged.contains(&unit.index()) => {}
            Some(AttachError::Unit(error)) => self.failed(error),
            Some(error) => {
                let what = format!("translations for a device: {error}");
                self.rig().broken(Rule::WrongAnswer, what);
            }
        }
    }
}

/// Whether a function, and the unit that its requests pass, have what it takes.
fn has_ats(rig: &Rig, function: PciAddress) -> bool {
    let machine = rig.machine();
    let unit = machine.unit_of(function);
    let unit = unit.and_then(|unit| machine.units.get(unit));
    let mut functions = machine.functions.iter();
    let found = functions.find(|model| model.address == function);
    found.is_some_and(|model| model.ats)
        && unit.is_some_and(
            |unit| matches!(unit.registers, UnitRegisters::Smmu(identity) if identity.ats),
        )
}
