//! What machine the rig plays: its units, its functions, and how bad it is.

mod regions;
mod services;
mod temper;
mod traits;
mod unit;

use std::fmt;

use hv_core::{PciAddress, PhysRange, Segment};
use hv_iommu::{BusRange, FunctionKind, PciFunction, PhantomBits};
use thiserror::Error;

use crate::driver::Vendor;
use crate::memory::{BASE, HIGH_BASE};
use crate::pci::{PLAIN_BRIDGE, STIFF_BRIDGES};
use crate::rng::Rng;
use crate::smmu::Identity;
use crate::{smmu, vtd};

pub use regions::RegionModel;
pub use services::ServicesModel;
pub(crate) use services::Source;
pub use temper::Temper;
pub use unit::{Capabilities, UnitModel, UnitRegisters};

/// One PCI function.
#[derive(Clone, Copy, Debug)]
pub struct FunctionModel {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub kind: FunctionKind,
    /// Which other function numbers it sends with.
    pub phantoms: PhantomBits,
    /// Whether firmware left bus mastering on.
    pub left_on: bool,
    /// Whether it can keep translations itself (ATS).
    pub ats: bool,
    /// Whether it can keep memory in a cache of its own, at which no unit looks (CXL.cache).
    pub cxl_cache: Option<CxlCacheModel>,
}

/// How the switch of a function's CXL.cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CxlCacheModel {
    /// As it is written.
    Free,
    /// As firmware left it, which has locked it.
    Locked,
}

/// A machine to play.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What every choice follows from.
    pub seed: u64,
    /// Significant bits of a physical address.
    pub host_address_bits: u8,
    /// The units, in the order of firmware's table.
    pub units: Vec<UnitModel>,
    /// The functions but for the host bridge.
    pub functions: Vec<FunctionModel>,
    /// What firmware reserves. Nobody is given these frames.
    pub regions: Vec<RegionModel>,
    /// Interrupt translation services, of a machine with SMMUs.
    pub services: Vec<ServicesModel>,
    /// Functions whose messages are those of others, as far as services know.
    pub same_writers: Vec<(PciAddress, PciAddress)>,
    /// Vendor and device id of a host bridge at 00:00.0, as configuration space has them, if it is listed.
    pub host_bridge: Option<u32>,
    /// Bits of a PASID that functions say they send, and host bridges of SMMUs that they forward; 0 where nobody says
    /// anything. Devices send with PASIDs of any width in either case.
    pub pasid_bits: u8,
    /// Its memory has addresses of more than 48 bits. No machine is drawn so.
    pub high_memory: bool,
    /// How bad it is.
    pub temper: Temper,
}

/// A machine that no hardware can be.
#[derive(Clone, PartialEq, Eq, Error)]
pub enum Impossible {
    /// A unit's registers contradict the manual.
    #[error("unit {unit}: {why}")]
    Unit {
        /// Which unit.
        unit: usize,
        /// What is wrong, and the rule.
        why: String,
    },
    /// Units of several vendors.
    #[error("expected units of one vendor, found {expected:?} and {found:?}")]
    Vendors {
        /// That of the first unit.
        expected: Vendor,
        /// Another one's.
        found: Vendor,
    },
    /// There is no unit, or more than a driver can be asked to number.
    #[error("expected 1 to 64 units, found {found}")]
    UnitCount {
        /// How many.
        found: usize,
    },
    /// Physical addresses are too narrow for the rig's memory, or wider than an entry can name.
    #[error(
        "expected 33 to 52 host address bits, found {found}: the rig's memory ends at 2^33, and an entry names \
         address bits 51:12 (VT-d manual, second-stage paging entries)"
    )]
    HostAddressBits {
        /// How many.
        found: u8,
    },
    /// More bits than a PASID has.
    #[error("expected PASIDs of 0 to 20 bits, found {found} (PCI Express Base, PASID TLP prefix)")]
    PasidBits {
        /// How many.
        found: u8,
    },
    /// Two units take the rest of one segment.
    #[error(
        "{segment:?} has two units that take the rest: expected one at most (VT-d manual, DRHD flag \
         INCLUDE_PCI_ALL)"
    )]
    TwoForTheRest {
        /// The segment.
        segment: Segment,
    },
    /// No unit covers a function.
    #[error(
        "{function} is covered by no unit: expected a scope or a unit that takes the rest of its segment"
    )]
    NotCovered {
        /// The function.
        function: PciAddress,
    },
    /// A function is there twice.
    #[error("{function} is there twice")]
    Twice {
        /// The function.
        function: PciAddress,
    },
    /// A region is not memory of the rig, overlaps another one, or is for no function that is there.
    #[error("region {memory}: {why}")]
    Region {
        /// The region.
        memory: PhysRange,
        /// What was expected and what was found.
        why: String,
    },
    /// Interrupt translation services that no machine has.
    #[error("interrupt translation services: expected {why}")]
    Services {
        /// What they should have been.
        why: &'static str,
    },
    /// A scope names a function that is not there, so its path cannot be walked.
    #[error("unit {unit} lists {function}, which is not there")]
    NoSuchFunction {
        /// The unit.
        unit: usize,
        /// The function.
        function: PciAddress,
    },
}

impl fmt::Debug for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The function at this place, for the topologies below.
const fn at(segment: u16, bus: u8, device: u8, function: u8) -> PciAddress {
    let requester = (bus as u16) << 8 | (device as u16) << 3 | function as u16;
    PciAddress::from_requester(Segment(segment), requester)
}

const fn endpoint(address: PciAddress) -> FunctionModel {
    FunctionModel::new(address, FunctionKind::Endpoint)
}

impl FunctionModel {
    /// A function that sends with its own id and was left without bus mastering.
    pub const fn new(address: PciAddress, kind: FunctionKind) -> Self {
        Self {
            address,
            kind,
            phantoms: PhantomBits::NONE,
            left_on: false,
            ats: false,
            cxl_cache: None,
        }
    }

    /// What an embedder would find out about it.
    pub fn facts(&self) -> PciFunction {
        PciFunction {
            phantoms: self.phantoms,
            ..PciFunction::new(self.address, self.kind)
        }
    }
}

impl Machine {
    /// A friendly machine: one VT-d unit that can do everything, two devices at 00:01.0 and 00:02.0.
    pub fn calm() -> Self {
        Self::calm_of(Vendor::Vtd)
    }

    /// The same with a unit of this vendor.
    pub fn calm_of(vendor: Vendor) -> Self {
        let registers = match vendor {
            Vendor::Vtd => {
                let (cap, ecap) = vtd::plain();
                UnitRegisters::Vtd(Capabilities { cap, ecap })
            }
            Vendor::Smmu => UnitRegisters::Smmu(Identity::PLAIN),
        };
        Self {
            seed: 0,
            host_address_bits: 39,
            units: vec![UnitModel {
                segment: Segment(0),
                scopes: None,
                registers,
            }],
            functions: vec![endpoint(at(0, 0, 1, 0)), endpoint(at(0, 0, 2, 0))],
            regions: Vec::new(),
            services: Vec::new(),
            same_writers: Vec::new(),
            host_bridge: None,
            pasid_bits: 0,
            high_memory: false,
            temper: Temper::CALM,
        }
    }

    /// The machine of this seed: one to three units, different ones, and devices of every kind of
    /// topology. Units may take as few as 31 address bits, so a domain for one asks for no more than
    /// [`Iommu::unit_caps`](hv_iommu::Iommu::unit_caps) says.
    pub fn draw(seed: u64) -> Self {
        Self::draw_of(Vendor::Vtd, seed)
    }

    /// The same with units of this vendor.
    pub fn draw_of(vendor: Vendor, seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x6d61_6368_696e_6521);
        let host_address_bits = 33 + rng.below(20) as u8;
        let buses = |secondary| BusRange {
            secondary,
            subordinate: secondary,
        };
        let mut functions = vec![
            endpoint(at(0, 0, 1, 0)),
            endpoint(at(0, 0, 2, 0)),
            endpoint(at(0, 0, 2, 1)),
            FunctionModel::new(at(0, 0, 0x1c, 0), FunctionKind::RootPort(buses(1))),
            endpoint(at(0, 1, 0, 0)),
        ];
        if rng.one_in(2) {
            let bridge = FunctionKind::ConventionalBridge(buses(2));
            functions.push(FunctionModel::new(at(0, 0, 0x1e, 0), bridge));
            functions.extend([endpoint(at(0, 2, 1, 0)), endpoint(at(0, 2, 2, 0))]);
        }
        let mut units = Vec::new();
        // All SMMUs of a machine change page sizes alike, so that it is the machine's property.
        let resizing = (seed % 3) as u8;
        let mut unit = |segment, scopes, rng: &mut Rng| {
            let mut pick = |end| rng.below(end);
            let registers = match vendor {
                Vendor::Vtd => {
                    let (cap, ecap) = vtd::draw(&mut pick, host_address_bits);
                    UnitRegisters::Vtd(Capabilities { cap, ecap })
                }
                Vendor::Smmu => UnitRegisters::Smmu(Identity::draw(&mut pick, resizing)),
            };
            units.push(UnitModel {
                segment: Segment(segment),
                scopes,
                registers,
            });
        };
        if rng.one_in(2) {
            let mut named = vec![at(0, 0, 1, 0)];
            if rng.one_in(2) {
                named.push(at(0, 1, 0, 0));
            }
            unit(0, Some(named), &mut rng);
        }
        unit(0, None, &mut rng);
        if rng.one_in(3) {
            unit(7, None, &mut rng);
            functions.extend([endpoint(at(7, 0, 3, 0)), endpoint(at(7, 0x80, 0, 0))]);
        }
        for function in &mut functions {
            function.left_on = rng.one_in(2);
        }
        let temper = Temper::draw(&mut rng);
        // Of their own, so that the rest of a machine does not depend on them.
        let mut rng = Rng::new(seed ^ 0x7068_616e_746f_6d73);
        if let Some(function) = functions.first_mut()
            && rng.one_in(3)
        {
            let bits = 1 + rng.below(3) as u32;
            function.phantoms = PhantomBits::from_device_capabilities(bits << 3);
        }
        let mut rng = Rng::new(seed ^ 0x7374_6167_6573);
        // Some machines have first stages alone, at least on most of their units.
        let first = rng.one_in(4);
        for unit in &mut units {
            let alone = first && !rng.one_in(4);
            if let Some(identity) = unit.smmu() {
                identity.draw_first(alone, &mut |end| rng.below(end));
            }
        }
        let mut rng = Rng::new(seed ^ 0x6272_6964_6765);
        let host_bridge = match rng.below(4) {
            0 => rng.pick(&STIFF_BRIDGES).copied(),
            1 => Some(PLAIN_BRIDGE),
            _ => None,
        };
        Self {
            seed,
            host_address_bits,
            units,
            functions,
            regions: Vec::new(),
            services: Vec::new(),
            same_writers: Vec::new(),
            host_bridge,
            // Lives open no PASIDs: drills and the catalogue do.
            pasid_bits: 0,
            high_memory: false,
            temper,
        }
    }

    /// Where its memory begins.
    pub(crate) const fn memory_base(&self) -> u64 {
        match self.high_memory {
            true => HIGH_BASE,
            false => BASE,
        }
    }

    /// Whether the page size of a mapping may change under a device's eyes: not on processors that are known for
    /// trouble with it.
    pub fn resizes_live(&self) -> bool {
        let mut units = self.units.iter();
        match self.vendor() {
            Vendor::Vtd => {
                let bridge = self.host_bridge;
                bridge.is_none_or(|bridge| !STIFF_BRIDGES.contains(&bridge))
            }
            Vendor::Smmu => units.all(
                |unit| matches!(unit.registers, UnitRegisters::Smmu(identity) if identity.bbml == 2),
            ),
        }
    }

    /// Whether requests that ask not to snoop (No_snoop) may go past the CPU's caches: not where firmware says of the
    /// segment's root complex that whatever its devices send is coherent (CANWBS).
    pub fn heeds_no_snoop(&self, segment: Segment) -> bool {
        let mut units = self.units.iter().filter(|unit| unit.segment == segment);
        units
            .any(|unit| !matches!(unit.registers, UnitRegisters::Smmu(identity) if identity.canwbs))
    }

    /// In some lives functions can keep translations themselves.
    pub(crate) fn draw_ats(&mut self) {
        let mut rng = Rng::new(self.seed ^ 0x6174_7321);
        let some = rng.one_in(2);
        for function in &mut self.functions {
            function.ats = some && !rng.one_in(4);
        }
    }

    /// Bytes of a unit's registers.
    pub(crate) fn register_bytes(&self, unit: usize) -> u64 {
        match self.units.get(unit).map(|unit| &unit.registers) {
            Some(UnitRegisters::Smmu(identity)) => smmu::register_bytes(identity),
            Some(UnitRegisters::Vtd(_)) | None => vtd::REGISTER_BYTES,
        }
    }

    /// Whose units it has.
    pub fn vendor(&self) -> Vendor {
        let first = self.units.first();
        first.map_or(Vendor::Vtd, UnitModel::vendor)
    }

    /// The functions, the host bridge included.
    pub(crate) fn all_functions(&self) -> impl Iterator<Item = (FunctionModel, Option<u32>)> {
        let bridge = self.host_bridge.map(|bridge| {
            let function = FunctionModel {
                left_on: true,
                ..endpoint(at(0, 0, 0, 0))
            };
            (function, Some(bridge))
        });
        let others = self.functions.iter().map(|function| (*function, None));
        others.chain(bridge)
    }

    /// Refuses what no hardware can be.
    ///
    /// # Errors
    /// [`Impossible`], with the rule.
    pub fn check(&self) -> Result<(), Impossible> {
        if self.units.is_empty() || self.units.len() > 64 {
            let found = self.units.len();
            return Err(Impossible::UnitCount { found });
        }
        if !(33..=52).contains(&self.host_address_bits) {
            let found = self.host_address_bits;
            return Err(Impossible::HostAddressBits { found });
        }
        if self.pasid_bits > 20 {
            let found = self.pasid_bits;
            return Err(Impossible::PasidBits { found });
        }
        for (unit, model) in self.units.iter().enumerate() {
            let (expected, found) = (self.vendor(), model.vendor());
            if expected != found {
                return Err(Impossible::Vendors { expected, found });
            }
            let known = match &model.registers {
                UnitRegisters::Vtd(Capabilities { cap, ecap }) => {
                    vtd::check(cap, ecap).map_err(|why| why.to_string())
                }
                UnitRegisters::Smmu(identity) => identity.check(),
            };
            known.map_err(|why| Impossible::Unit { unit, why })?;
            let reaches =
                matches!(&model.registers, UnitRegisters::Smmu(identity) if identity.oas == 6);
            if self.high_memory && !reaches {
                let why = "expected IDR5.OAS of 52 bits where memory has addresses of as many";
                let why = why.to_owned();
                return Err(Impossible::Unit { unit, why });
            }
            let others = self.units.iter().take(unit);
            let same = |other: &UnitModel| other.segment == model.segment && other.scopes.is_none();
            if model.scopes.is_none() && others.into_iter().any(same) {
                let segment = model.segment;
                return Err(Impossible::TwoForTheRest { segment });
            }
            for &function in model.scopes.iter().flatten() {
                if !self.functions.iter().any(|other| other.address == function) {
                    return Err(Impossible::NoSuchFunction { unit, function });
                }
            }
        }
        for (index, (function, _)) in self.all_functions().enumerate() {
            let function = function.address;
            let mut before = self.all_functions().take(index);
            if before.any(|(other, _)| other.address == function) {
                return Err(Impossible::Twice { function });
            }
            if self.unit_of(function).is_none() {
                return Err(Impossible::NotCovered { function });
            }
        }
        self.check_regions()?;
        self.check_services()
    }

    /// The unit that a function's requests pass: one that lists it, else the one that takes the rest.
    pub(crate) fn unit_of(&self, function: PciAddress) -> Option<usize> {
        let same = |unit: &UnitModel| unit.segment == function.segment();
        let lists = |unit: &UnitModel| {
            let mut scopes = unit.scopes.iter().flatten();
            scopes.any(|scope| *scope == function)
        };
        let listed = self.units.iter().position(|unit| same(unit) && lists(unit));
        let rest = || {
            self.units
                .iter()
                .position(|unit| same(unit) && unit.scopes.is_none())
        };
        listed.or_else(rest)
    }

    /// The function that sends with this id: its own, or one of its phantoms'.
    pub(crate) fn sender_as(&self, id: PciAddress) -> PciAddress {
        let sends = |function: &&FunctionModel| {
            let mut phantoms = function.facts().phantom_ids();
            phantoms.any(|phantom| phantom == id)
        };
        // Few have any.
        let mut with = self
            .functions
            .iter()
            .filter(|function| function.phantoms != PhantomBits::NONE);
        with.find(sends).map_or(id, |function| function.address)
    }

    /// The bridges above a function, from the root down.
    pub(crate) fn bridges_above(&self, function: PciAddress) -> Vec<usize> {
        let above = |bridge: &FunctionModel| {
            let buses = bridge.kind.buses();
            bridge.address.segment() == function.segment()
                && buses.is_some_and(|buses| buses.contains(function.bus()))
        };
        let bridges = self.functions.iter().enumerate();
        bridges
            .filter(|(_, bridge)| above(bridge))
            .map(|(index, _)| index)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Machine)) -> String {
        let mut machine = Machine::calm();
        change(&mut machine);
        machine.check().unwrap_err().to_string()
    }

    #[test]
    fn impossible_machines_are_refused_with_the_rule() {
        assert!(refused(|machine| machine.units.clear()).contains("1 to 64 units, found 0"));
        assert!(refused(|machine| machine.host_address_bits = 32).contains("found 32"));
        let pasids = refused(|machine| machine.pasid_bits = 21);
        assert!(pasids.contains("0 to 20 bits, found 21"), "{pasids}");
        assert!(refused(|machine| machine.units[0].vtd().unwrap().cap.nd = 7).contains("unit 0"));
        let mixed = refused(|machine| machine.units.extend(Machine::calm_of(Vendor::Smmu).units));
        assert!(mixed.contains("units of one vendor"), "{mixed}");
        let twice = refused(|machine| machine.units.push(machine.units[0].clone()));
        assert!(twice.contains("INCLUDE_PCI_ALL"), "{twice}");
        let uncovered = refused(|machine| machine.units[0].scopes = Some(vec![at(0, 0, 1, 0)]));
        assert!(
            uncovered.contains("00:02.0 is covered by no unit"),
            "{uncovered}"
        );
        let twice = refused(|machine| machine.functions.push(machine.functions[0]));
        assert!(twice.contains("is there twice"), "{twice}");
        let lost = refused(|machine| machine.units[0].scopes = Some(vec![at(0, 9, 1, 0)]));
        assert!(lost.contains("09:01.0, which is not there"), "{lost}");
    }

    #[test]
    fn every_drawn_machine_is_possible() {
        for seed in 0..2000 {
            for vendor in [Vendor::Vtd, Vendor::Smmu] {
                let machine = Machine::draw_of(vendor, seed);
                assert_eq!(machine.check(), Ok(()), "seed {seed}");
            }
        }
    }
}
