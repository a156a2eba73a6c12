//! Draws what `discover` found: the IOMMU units and the PCI functions.

use std::env;

use comfy_table::{ContentArrangement, Table, presets};

use crate::qemu_run::serial::{Function, Unit};

/// Width where the output is no terminal.
const PLAIN_WIDTH: u16 = 120;

/// A table with one column a unit and one row a capability.
pub(crate) fn units(units: &[Unit]) -> String {
    type Row = (&'static str, fn(&Unit) -> String);
    let rows: [Row; 10] = [
        ("registers at", |unit| unit.base.clone()),
        ("PCI segment", |unit| {
            unit.segment
                .map_or_else(|| "any".to_owned(), |segment| format!("{segment:04x}"))
        }),
        ("version", |unit| unit.version.clone()),
        ("domains", |unit| unit.domains.to_string()),
        ("table levels", |unit| {
            unit.levels
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        }),
        ("leaf sizes", |unit| unit.leaf_sizes.join(", ")),
        ("coherent walks", |unit| {
            if unit.coherent { "yes" } else { "no" }.to_owned()
        }),
        ("fault records", |unit| unit.fault_records.to_string()),
        ("features", |unit| unit.features.join(", ")),
        ("registers", |unit| {
            let registers = unit.registers.iter();
            let shown: Vec<_> = registers
                .map(|(name, value)| format!("{name} {value}"))
                .collect();
            shown.join("\n")
        }),
    ];
    let mut table = empty();
    let names = units.iter().map(|unit| format!("unit {}", unit.index));
    table.set_header(["IOMMU".to_owned()].into_iter().chain(names));
    for (name, value) in rows {
        table.add_row([name.to_owned()].into_iter().chain(units.iter().map(value)));
    }
    indented(&table)
}

/// A table with one row a PCI function.
pub(crate) fn functions(functions: &[Function]) -> String {
    let mut table = empty();
    table.set_header(["function", "id", "class", "kind", "unit", "group"]);
    for function in functions {
        let or_none = |number: Option<u32>| {
            number.map_or_else(|| "none".to_owned(), |number| number.to_string())
        };
        table.add_row([
            function.address.clone(),
            format!("{}:{}", function.vendor, function.device),
            function.class.clone(),
            function.kind.clone(),
            or_none(function.unit),
            or_none(function.group),
        ]);
    }
    indented(&table)
}

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(if utf8() {
        presets::UTF8_FULL_CONDENSED
    } else {
        presets::ASCII_FULL_CONDENSED
    });
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let width = console::Term::stdout()
        .size_checked()
        .map_or(PLAIN_WIDTH, |(_, columns)| columns);
    table.set_width(width.saturating_sub(2).max(60));
    table
}

/// True when the locale says that the reader's terminal knows UTF-8.
fn utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    set.is_some_and(|value| value.to_lowercase().replace('-', "").contains("utf8"))
}

fn indented(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncovered_function_is_plain_to_see() {
        let function = Function {
            address: "0000:00:02.0".into(),
            vendor: "8086".into(),
            device: "5845".into(),
            class: "010802".into(),
            kind: "NVMe controller".into(),
            unit: None,
            group: Some(3),
        };
        let text = functions(&[function]);
        let row = text
            .lines()
            .find(|line| line.contains("0000:00:02.0"))
            .unwrap();
        assert!(
            row.contains("8086:5845") && row.contains("none") && row.contains('3'),
            "{text}"
        );
    }

    #[test]
    fn every_capability_of_a_unit_is_in_its_row() {
        let unit = Unit {
            index: 0,
            base: "0xfed90000".into(),
            segment: Some(0),
            version: "1.0".into(),
            registers: [("CAP", "0x1"), ("ECAP", "0x2")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            domains: 65536,
            levels: vec![3, 4],
            leaf_sizes: vec!["4K".into(), "2M".into()],
            coherent: false,
            fault_records: 1,
            features: vec!["snoop".into()],
        };
        let text = units(&[unit]);
        for piece in [
            "unit 0",
            "0xfed90000",
            "65536",
            "3, 4",
            "4K, 2M",
            "snoop",
            "CAP 0x1",
            "ECAP 0x2",
        ] {
            assert!(text.contains(piece), "no {piece} in\n{text}");
        }
    }
}
