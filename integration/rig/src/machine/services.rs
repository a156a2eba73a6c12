//! The interrupt translation services (ITS) of a machine with SMMUs: which units' devices write messages to which, and as
//! whom.

use hv_core::PciAddress;

use super::{Impossible, Machine};
use crate::driver::Vendor;

/// Interrupt translation services.
#[derive(Clone, Debug)]
pub struct ServicesModel {
    /// By which number firmware's tables name them.
    pub number: u32,
    /// The units whose devices' messages are theirs.
    pub units: Vec<usize>,
}

/// A requester of a unit.
pub(crate) type Source = (usize, u16);

impl Machine {
    /// So many services, each of which takes the messages of some units' devices: units take turns.
    pub fn set_services(&mut self, count: usize) {
        let units = 0..self.units.len();
        let each = (0..count).map(|index| ServicesModel {
            number: 3 + 5 * index as u32,
            units: units.clone().filter(|unit| unit % count == index).collect(),
        });
        self.services = each.collect();
    }

    /// The services that take a unit's devices' messages.
    pub(crate) fn services_of(&self, unit: usize) -> Option<usize> {
        let mut services = self.services.iter();
        services.position(|services| services.units.contains(&unit))
    }

    /// As whom a requester writes messages: mostly as itself.
    pub(crate) fn writes_as(&self, (unit, requester): Source) -> Source {
        let is = |function: PciAddress| {
            function.requester() == requester && self.unit_of(function) == Some(unit)
        };
        let mut same = self.same_writers.iter();
        let other = same.find(|(function, _)| is(*function));
        let other = other.and_then(|(_, other)| Some((self.unit_of(*other)?, other.requester())));
        other.unwrap_or((unit, requester))
    }

    /// Refuses services that no machine has.
    pub(super) fn check_services(&self) -> Result<(), Impossible> {
        let wrong = |why| Err(Impossible::Services { why });
        if !self.services.is_empty() && self.vendor() != Vendor::Smmu {
            return wrong("units that translate messages");
        }
        let units = self.services.iter().flat_map(|services| &services.units);
        let once = |unit: &&usize| units.clone().filter(|other| *other == *unit).count() == 1;
        if !units
            .clone()
            .all(|unit| *unit < self.units.len() && once(&unit))
        {
            return wrong("units that are there, each with one of them");
        }
        let numbers = self.services.iter().map(|services| services.number);
        let unique = |number| numbers.clone().filter(|other| *other == number).count() == 1;
        if !numbers.clone().all(unique) {
            return wrong("numbers of their own");
        }
        let services_of = |function| self.services_of(self.unit_of(function)?);
        let same = |(one, other): &(PciAddress, PciAddress)| {
            services_of(*one).is_some() && services_of(*one) == services_of(*other)
        };
        match self.same_writers.iter().all(same) {
            true => Ok(()),
            false => wrong("writers that are one to be those of the same services"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        let refused = |change: fn(&mut Machine)| {
            let mut machine = Machine::calm_of(Vendor::Smmu);
            machine.set_services(1);
            assert_eq!(machine.check(), Ok(()));
            change(&mut machine);
            machine.check().unwrap_err().to_string()
        };
        let twice = refused(|machine| {
            let again = machine.services[0].clone();
            machine.services.push(ServicesModel { number: 9, ..again });
        });
        assert!(twice.contains("each with one of them"), "{twice}");
        let far = refused(|machine| machine.services[0].units = vec![1]);
        assert!(far.contains("units that are there"), "{far}");
        let elsewhere = refused(|machine| {
            let (one, other) = (machine.functions[0].address, machine.functions[1].address);
            machine.same_writers = vec![(one, other)];
            machine.services.clear();
        });
        assert!(elsewhere.contains("the same services"), "{elsewhere}");
    }
}
