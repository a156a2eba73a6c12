//! DMAR tables of real machines: every field against what ACPICA's disassembler printed.

#![cfg(not(hv_loom))]

use hv_tests::dmar_build::samples;
use hv_vtd::dmar::{Defect, Dmar, DmarError, Finding, Place, Scope, parse};
use serde_json::{Map, Value, json};

/// What a structure of ours is in the disassembler's words.
fn record(place: Place, kind: u16, fields: Value, scopes: &[Scope]) -> Map<String, Value> {
    let mut record = fields.as_object().cloned().unwrap_or_default();
    record.insert("offset".into(), json!(place.offset));
    record.insert("type".into(), json!(kind));
    let scopes: Vec<_> = scopes
        .iter()
        .map(|scope| {
            let path: Vec<_> = scope
                .path
                .iter()
                .map(|step| json!([step.device, step.function]))
                .collect();
            json!({
                "offset": scope.offset,
                "type": scope.kind.number(),
                "path": path,
                "Entry Length": 6 + 2 * scope.path.len(),
                "Flags": scope.flags,
                "Enumeration ID": scope.enumeration_id,
                "PCI Bus Number": scope.start_bus,
            })
        })
        .collect();
    record.insert("scopes".into(), json!(scopes));
    record
}

/// All structures in the order of the table, with their lengths.
fn records(dmar: &Dmar) -> Vec<Map<String, Value>> {
    let mut records = Vec::new();
    for unit in &dmar.units {
        let log2_pages = unit.registers.pages().get().ilog2();
        let fields = json!({
            "Flags": unit.flags,
            "Size": unit.size,
            "Size (pages, log2)": log2_pages,
            "PCI Segment Number": unit.segment.0,
            "Register Base Address": unit.base().as_u64(),
        });
        assert_eq!(unit.include_all(), unit.flags & 1 == 1);
        records.push(record(unit.place, 0, fields, &unit.scopes));
    }
    for region in &dmar.regions {
        let fields = json!({
            "PCI Segment Number": region.segment.0,
            "Base Address": region.region.start().as_u64(),
            "End Address (limit)": region.region.last().as_u64(),
        });
        records.push(record(region.place, 1, fields, &region.scopes));
    }
    for ports in &dmar.ats_ports {
        let fields = json!({ "Flags": ports.flags, "PCI Segment Number": ports.segment.0 });
        records.push(record(ports.place, 2, fields, &ports.scopes));
    }
    for proximity in &dmar.proximities {
        let fields = json!({
            "Base Address": proximity.base.as_u64(),
            "Proximity Domain": proximity.domain,
        });
        records.push(record(proximity.place, 3, fields, &[]));
    }
    for device in &dmar.devices {
        let fields = json!({
            "Device Number": device.number,
            "Device Name": String::from_utf8_lossy(&device.name),
        });
        records.push(record(device.place, 4, fields, &[]));
    }
    for caches in &dmar.caches {
        let fields = json!({ "Flags": caches.flags, "PCI Segment Number": caches.segment.0 });
        records.push(record(caches.place, 5, fields, &caches.scopes));
    }
    for properties in &dmar.properties {
        let fields = json!({ "PCI Segment Number": properties.segment.0 });
        records.push(record(properties.place, 6, fields, &properties.scopes));
    }
    records.sort_by_key(|record| record["offset"].as_u64());
    // A structure ends where the next starts, be it one that only a warning names.
    let warned = dmar.warnings.iter().map(|warning| warning.place.offset);
    let mut starts: Vec<_> = records
        .iter()
        .filter_map(|record| record["offset"].as_u64())
        .chain(warned.map(|offset| offset as u64))
        .chain([dmar.header.length.into()])
        .collect();
    starts.sort_unstable();
    for record in &mut records {
        let start = record["offset"].as_u64();
        let end = starts.iter().copied().find(|&end| Some(end) > start);
        let length = end.zip(start).map(|(end, start)| end - start);
        record.insert("Length".into(), json!(length));
    }
    records
}

/// Text of a header field: up to the first zero, as the disassembler prints it.
fn text(bytes: &[u8]) -> Value {
    let end = bytes.iter().position(|&byte| byte == 0);
    json!(String::from_utf8_lossy(
        &bytes[..end.unwrap_or(bytes.len())]
    ))
}

fn header(dmar: &Dmar) -> Map<String, Value> {
    let header = &dmar.header;
    let flags = header.flags;
    assert_eq!(flags.interrupt_remapping(), flags.0 & 1 != 0);
    assert_eq!(flags.x2apic_opt_out(), flags.0 & 2 != 0);
    assert_eq!(flags.dma_opt_in(), flags.0 & 4 != 0);
    let header = json!({
        "Signature": "DMAR",
        "Table Length": header.length,
        "Revision": header.revision,
        "Checksum": header.checksum,
        "Oem ID": text(&header.oem_id),
        "Oem Table ID": text(&header.oem_table_id),
        "Oem Revision": header.oem_revision,
        "Asl Compiler ID": text(&header.creator_id),
        "Asl Compiler Revision": header.creator_revision,
        "Host Address Width": header.host_address_bits - 1,
        "Flags": flags.0,
    });
    header.as_object().cloned().unwrap_or_default()
}

/// Every key that the disassembler printed is a key of ours with the same value.
fn compare(name: &str, expected: &Value, ours: &Map<String, Value>) -> usize {
    let expected = expected.as_object().expect("an object");
    let mut compared = 0;
    for (key, value) in expected {
        match key.as_str() {
            "type_name" | "Reserved" => {}
            "scopes" => {
                let (theirs, ours) = (value.as_array().unwrap(), ours[key].as_array().unwrap());
                assert_eq!(theirs.len(), ours.len(), "{name}: scopes");
                for (theirs, ours) in theirs.iter().zip(ours) {
                    compared += compare(name, theirs, ours.as_object().unwrap());
                }
            }
            _ => {
                assert_eq!(ours.get(key), Some(value), "{name}: {key} of {ours:?}");
                compared += 1;
            }
        }
    }
    compared
}

/// The structure at an offset, as the disassembler printed it.
fn at(subtables: &[Value], offset: usize) -> Option<&Value> {
    subtables
        .iter()
        .find(|subtable| subtable["offset"] == json!(offset))
}

/// A table that is refused is refused for a value that the disassembler printed too.
fn is_justified(error: &DmarError, subtables: &[Value]) -> bool {
    let DmarError::Malformed(finding) = error else {
        return false;
    };
    let Some(subtable) = at(subtables, finding.place.offset) else {
        return false;
    };
    let is = |key: &str, value: u64| subtable[key] == json!(value);
    match finding.what {
        Defect::RegisterBase => {
            let odd = finding.found == 0 || finding.found % 4096 != 0;
            odd && is("Register Base Address", finding.found)
        }
        Defect::RegionOrder => is("End Address (limit)", finding.found),
        Defect::RegionAlignment => {
            is("Base Address", finding.found)
                || is("End Address (limit)", finding.found.wrapping_sub(1))
        }
        _ => false,
    }
}

#[test]
fn every_field_is_what_the_disassembler_printed() {
    let (mut compared, mut refused) = (0, 0);
    let samples = samples();
    for sample in &samples {
        let name = sample.path.display().to_string();
        let json = std::fs::read(sample.path.with_extension("json")).expect("a .json beside it");
        let json: Value = serde_json::from_slice(&json).expect("valid JSON");
        let theirs = json["fields"]["subtables"].as_array().expect("subtables");
        let dmar = match parse(&sample.bytes) {
            Ok(dmar) => dmar,
            Err(error) => {
                assert!(is_justified(&error, theirs), "{name}: {error}");
                println!("{name}: refused: {error}");
                refused += 1;
                continue;
            }
        };
        compared += compare(&name, &json["fields"]["header"], &header(&dmar));
        let ours = records(&dmar);
        for theirs in theirs {
            let ours = ours.iter().find(|ours| ours["offset"] == theirs["offset"]);
            match ours {
                Some(ours) => compared += compare(&name, theirs, ours),
                None => assert!(
                    dmar.warnings
                        .iter()
                        .any(|warning| json!(warning.place.offset) == theirs["offset"]),
                    "{name}: nothing says what became of {theirs}"
                ),
            }
        }
        assert!(ours.len() <= theirs.len(), "{name}: structures");
        let sound = json["header"]["checksum_ok"] == json!(true);
        let named = |warning: &Finding| warning.what == Defect::Checksum;
        let warned = dmar.warnings.iter().any(named);
        assert_eq!(warned, !sound, "{name}: checksum");
        println!("{name}: {dmar}");
    }
    let tables = samples.len();
    println!("{tables} tables, {refused} refused, {compared} fields compared");
    assert!(samples.is_empty() || compared > 0, "nothing was compared");
}
