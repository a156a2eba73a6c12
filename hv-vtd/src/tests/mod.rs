//! The backend on a machine in memory: order of bring-up, waits, bindings, faults.

mod binding;
mod bring_up;
mod faults;
mod flush;
mod interrupts;
mod kept;
mod reset;

use std::vec::Vec;

use hv_core::{PageCount, PhysAddr, PhysRange, Segment};
use hv_iommu::{Binding, BusRange, FunctionKind, HwDomainId, LeafNeeds, PciFunction, UnitIndex};

use crate::dmar::{Dmar, Drhd, Header, PathStep, Place, RecordKind, Scope, ScopeKind, TableFlags};
use crate::testing::{Event, Machine, at, base};
use crate::{BringUpError, CoveragePolicy, Discovery, Vtd};

/// QEMU's default unit: 3 and 4 levels, 64Ki domains, one fault record, page ranges up to 2^18,
/// drains; not coherent, no caching mode, no write buffer, ESRTPS off.
pub(crate) const CAP: u64 = 0x00d2_008c_222f_0606;
pub(crate) const ECAP: u64 = 0x0000_0000_00f0_0f4a;
pub(crate) const CAP_RWBF: u64 = 1 << 4;
pub(crate) const CAP_PLMR: u64 = 1 << 5;
pub(crate) const CAP_CM: u64 = 1 << 7;
pub(crate) const CAP_ESRTPS: u64 = 1 << 63;
pub(crate) const ECAP_C: u64 = 1;

pub(crate) fn scope(kind: ScopeKind, start_bus: u8, path: &[(u8, u8)]) -> Scope {
    Scope {
        offset: 64,
        kind,
        flags: 0,
        enumeration_id: 0,
        start_bus,
        path: path
            .iter()
            .map(|&(device, function)| PathStep { device, function })
            .collect(),
    }
}

pub(crate) fn drhd(number: usize, segment: u16, include_all: bool, scopes: Vec<Scope>) -> Drhd {
    Drhd {
        place: Place::record(RecordKind::Drhd, 48),
        flags: include_all.into(),
        size: 0,
        segment: Segment(segment),
        registers: PhysRange::new(PhysAddr::new(base(number)), PageCount::ONE).unwrap(),
        scopes,
    }
}

pub(crate) fn table(units: Vec<Drhd>) -> Dmar {
    Dmar {
        header: Header {
            length: 0,
            revision: 1,
            checksum: 0,
            oem_id: [0; 6],
            oem_table_id: [0; 8],
            oem_revision: 0,
            creator_id: [0; 4],
            creator_revision: 0,
            host_address_bits: 39,
            flags: TableFlags(0),
        },
        units,
        regions: Vec::new(),
        ats_ports: Vec::new(),
        proximities: Vec::new(),
        devices: Vec::new(),
        caches: Vec::new(),
        properties: Vec::new(),
        warnings: Vec::new(),
    }
}

/// One unit for each of the machine's, each with its own segment.
fn own_segments(machine: &Machine) -> Dmar {
    let segments = 0..machine.units.len();
    table(
        segments
            .map(|number| drhd(number, number as u16, true, Vec::new()))
            .collect(),
    )
}

fn endpoint(address: hv_core::PciAddress) -> PciFunction {
    PciFunction::new(address, FunctionKind::Endpoint)
}

fn port(address: hv_core::PciAddress, secondary: u8, subordinate: u8) -> PciFunction {
    let kind = FunctionKind::RootPort(BusRange {
        secondary,
        subordinate,
    });
    PciFunction::new(address, kind)
}

fn discover(machine: &Machine) -> Result<Discovery<Machine>, BringUpError> {
    let dmar = own_segments(machine);
    Vtd::discover(machine.clone(), &dmar, &[], CoveragePolicy::Strict)
}

fn bring_up(machine: &Machine) -> Result<Vtd<Machine>, BringUpError> {
    discover(machine)?.bring_up()
}

/// A running unit with these registers, and what happened so far forgotten.
fn running(cap: u64, ecap: u64) -> (Machine, Vtd<Machine>) {
    let machine = Machine::new(&[(cap, ecap)]);
    let vtd = bring_up(&machine).unwrap();
    machine.take_log();
    (machine, vtd)
}

const FIRST: UnitIndex = match UnitIndex::new(0) {
    Some(unit) => unit,
    None => unreachable!(),
};

fn domain(number: u16) -> HwDomainId {
    HwDomainId::new(number)
}

fn binding(page: u64, levels: u8, number: u16) -> Binding {
    Binding {
        root: crate::testing::root(page, levels),
        domain: domain(number),
        leaves: LeafNeeds::default(),
    }
}

/// The descriptors that the first unit executed, without waits.
fn executed(log: &[Event]) -> Vec<(u64, u64)> {
    log.iter()
        .filter_map(|event| match *event {
            Event::Executed { low, high, .. } if low & 0xf != 5 => Some((low, high)),
            _ => None,
        })
        .collect()
}
