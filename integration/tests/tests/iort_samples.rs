//! IORT tables of machines: every field against what ACPICA's disassembler printed.

#![cfg(not(hv_loom))]

use hv_smmu::iort::{Iort, Mapping, NodeInfo, parse};
use hv_tests::iort_build::samples;
use serde_json::{Map, Value, json};

/// What a node of ours is in the disassembler's words.
fn node(node: NodeInfo, kind: u8, fields: Value, mappings: &[Mapping]) -> Value {
    let mut ours = fields.as_object().cloned().unwrap_or_default();
    ours.insert("Length".into(), json!(node.length));
    ours.insert("Revision".into(), json!(node.revision));
    ours.insert("Identifier".into(), json!(node.identifier));
    ours.insert("Mapping Count".into(), json!(mappings.len()));
    if let Some(first) = mappings.first() {
        let offset = first.offset - node.place.offset;
        ours.insert("Mapping Offset".into(), json!(offset));
    }
    let mappings: Vec<_> = mappings
        .iter()
        .map(|mapping| {
            json!({
                "Input base": mapping.input_base,
                "ID Count": mapping.count,
                "Output Base": mapping.output_base,
                "Output Reference": mapping.output.offset,
                "Single Mapping": u8::from(mapping.single),
            })
        })
        .collect();
    json!({ "offset": node.place.offset, "type": kind, "fields": ours, "mappings": mappings })
}

fn nodes(iort: &Iort) -> Vec<Value> {
    let mut nodes = Vec::new();
    for group in &iort.its_groups {
        let fields = json!({ "ItsCount": group.ids.len(), "Identifiers": group.ids.first() });
        nodes.push(node(group.node, 0, fields, &[]));
    }
    for root in &iort.root_complexes {
        let fields = json!({
            "Cache Coherency": u8::from(root.memory.coherent),
            "Hints": root.memory.hints,
            "Memory Flags": root.memory.flags,
            "ATS Attribute": root.ats,
            "PCI Segment Number": root.segment.0,
            "Memory Size Limit": root.address_bits,
            "PASID Capabilities": root.pasid_bits,
        });
        nodes.push(node(root.node, 2, fields, &root.mappings));
    }
    for unit in &iort.units {
        let [event, pri, gerror, sync] = unit.interrupts;
        let fields = json!({
            "Base Address": unit.registers.start().as_u64(),
            "Flags": unit.flags,
            "VATOS Address": unit.vatos,
            "Model": unit.model,
            "Event GSIV": event,
            "PRI GSIV": pri,
            "GERR GSIV": gerror,
            "Sync GSIV": sync,
            "Device ID Mapping Index": unit.device_id_mapping,
        });
        nodes.push(node(unit.node, 4, fields, &unit.mappings));
    }
    nodes
}

/// Every key of ours that the disassembler printed too has the same value. How many there are.
fn compare(name: &str, theirs: &Map<String, Value>, ours: &Map<String, Value>) -> usize {
    let mut compared = 0;
    for (key, value) in ours {
        if let Some(expected) = theirs.get(key) {
            assert_eq!(value, expected, "{name}: {key}");
            compared += 1;
        }
    }
    compared
}

#[test]
fn every_field_is_what_the_disassembler_printed() {
    let samples = samples();
    let mut compared = 0;
    for sample in &samples {
        let name = sample.path.display().to_string();
        let json = std::fs::read(sample.path.with_extension("json")).expect("a .json beside it");
        let json: Value = serde_json::from_slice(&json).expect("valid JSON");
        let iort = parse(&sample.bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(iort.findings, [], "{name}");
        let header = &json["fields"]["header"];
        assert_eq!(header["Table Length"], json!(iort.header.length), "{name}");
        assert_eq!(
            header["Node Count"],
            json!(iort.header.node_count),
            "{name}"
        );
        assert_eq!(
            header["Node Offset"],
            json!(iort.header.node_offset),
            "{name}"
        );
        assert_eq!(header["Checksum"], json!(iort.header.checksum), "{name}");
        let theirs = json["fields"]["nodes"].as_array().expect("nodes");
        let ours = nodes(&iort);
        assert_eq!(ours.len(), theirs.len(), "{name}: nodes");
        for theirs in theirs {
            let mut candidates = ours.iter();
            let ours = candidates.find(|ours| ours["offset"] == theirs["offset"]);
            let ours = ours.unwrap_or_else(|| panic!("{name}: nothing at {}", theirs["offset"]));
            assert_eq!(ours["type"], theirs["type"], "{name}");
            let (fields, expected) = (&ours["fields"], &theirs["fields"]);
            let expected = expected.as_object().expect("fields");
            let count = compare(&name, expected, fields.as_object().expect("fields"));
            assert!(count >= 4, "{name}: {count} fields of {theirs}");
            let (ours, theirs) = (&ours["mappings"], &theirs["mappings"]);
            let (ours, theirs) = (ours.as_array().unwrap(), theirs.as_array().unwrap());
            assert_eq!(ours.len(), theirs.len(), "{name}: mappings");
            for (ours, theirs) in ours.iter().zip(theirs) {
                let theirs = theirs.get("fields").unwrap_or(theirs);
                let (ours, theirs) = (ours.as_object().unwrap(), theirs.as_object().unwrap());
                let count = compare(&name, theirs, ours);
                assert!(count >= 4, "{name}: {count} fields of {theirs:?}");
                compared += count;
            }
            compared += count;
        }
        println!("{name}: {iort}");
    }
    println!("{} tables, {compared} fields compared", samples.len());
    assert!(samples.is_empty() || compared > 0, "nothing was compared");
}
