//! `discover`: what the machine has, and which unit guards which function.

use alloc::format;
use alloc::vec::Vec;

use hv_core::PageSize;
use hv_iommu::{Level, ReservedKind, UnitIndex};

use super::{Context, Shown, ensure};
use crate::arch::backend::told_by;
use crate::pci::{Function, Header};
use crate::report::{self, Event, FunctionEvent, UnitEvent};
use crate::subsystem::{Backend, Subsystem};

/// The format of the domains' tables.
type Tables = <Backend as hv_iommu::Backend>::Format;

/// Reports every unit that came up.
pub(super) fn report_units(subsystem: &Subsystem) {
    for (index, unit) in subsystem.units.iter().enumerate() {
        let caps = UnitIndex::new(index).and_then(|index| subsystem.iommu.unit_caps(index));
        let Some(caps) = caps else { continue };
        let levels: Vec<u8> = caps.levels.iter().map(|level| level.number()).collect();
        let sizes = PageSize::ALL
            .into_iter()
            .filter(|size| *size <= caps.largest_page && Level::mapping::<Tables>(*size).is_some());
        report::emit(&Event::Unit(UnitEvent {
            index,
            base: unit.base,
            segment: unit.segment,
            version: &unit.version,
            registers: &unit.registers,
            domains: caps.domain_ids,
            levels: &levels,
            leaf_sizes: &sizes.collect::<Vec<_>>(),
            coherent: caps.coherent,
            fault_records: unit.fault_records,
            features: &unit.features,
        }));
    }
}

/// Reports every function. Passes if every unit came up, every function is behind one, and every endpoint in just one
/// group.
pub(super) fn run(context: &Context<'_>, subsystem: &Subsystem) -> Shown {
    context.note(told_by(context.machine));
    for index in 0..subsystem.units.len() {
        let caps = UnitIndex::new(index).and_then(|index| context.iommu.unit_caps(index));
        ensure!(caps.is_some(), "unit {index} did not come up");
    }
    let functions = &context.machine.functions;
    let mut endpoints = 0;
    for function in functions {
        let address = function.address;
        let mut groups = context
            .groups
            .iter()
            .filter(|group| group.members().contains(&address));
        let (first, second) = (groups.next(), groups.next());
        let unit = context.iommu.unit_of(address);
        report::emit(&Event::Function(FunctionEvent {
            address,
            identity: function.identity,
            class: function.class,
            kind: function.kind(),
            unit: unit.map(UnitIndex::index),
            group: first.map(|group| group.id().get() as usize),
        }));
        ensure!(unit.is_some(), "no unit covers {address}");
        if is_endpoint(function) {
            endpoints += 1;
            ensure!(first.is_some(), "{address} is in no group");
            ensure!(second.is_none(), "{address} is in two groups");
        }
    }
    ensure!(endpoints > 0, "no PCI endpoint was found");
    let summary = format!(
        "{} unit(s) cover {} functions, {endpoints} endpoints in {} groups",
        subsystem.units.len(),
        functions.len(),
        context.groups.len()
    );
    Ok(match messages(context) {
        (0, _) => summary,
        (translated, apart) => {
            format!("{summary}; messages of {translated} are translated, of {apart} told apart")
        }
    })
}

/// Of how many groups units translate the interrupt messages, and of how many nobody else can send the same.
fn messages(context: &Context<'_>) -> (usize, usize) {
    let translated = context.groups.iter().filter(|group| {
        let mut regions = group.reserved_regions();
        regions.any(|region| region.kind == ReservedKind::Doorbell)
    });
    let apart = context
        .groups
        .iter()
        .filter(|group| group.interrupts_isolated().is_ok());
    (translated.count(), apart.count())
}

fn is_endpoint(function: &Function) -> bool {
    !matches!(function.header, Header::Bridge { .. })
}
