//! Damaged DMAR tables: the same units, an error, or a warning that names what is wrong. No panic.

#![cfg(not(hv_loom))]

use hv_tests::dmar_build::{built_tables, fix_checksum, samples};
use hv_vtd::dmar::{Defect, Dmar, DmarError, parse};
use proptest::prelude::*;

/// What protects memory: units and regions, without where they stand.
fn protection(dmar: &Dmar) -> impl PartialEq + use<> {
    let units: Vec<_> = dmar
        .units
        .iter()
        .map(|unit| {
            (
                unit.flags,
                unit.segment,
                unit.registers,
                scopes(&unit.scopes),
            )
        })
        .collect();
    let regions: Vec<_> = dmar
        .regions
        .iter()
        .map(|region| (region.segment, region.region, scopes(&region.scopes)))
        .collect();
    (units, regions)
}

fn scopes(scopes: &[hv_vtd::dmar::Scope]) -> Vec<impl PartialEq + use<>> {
    scopes
        .iter()
        .map(|scope| {
            (
                scope.kind,
                scope.enumeration_id,
                scope.start_bus,
                scope.path.clone(),
            )
        })
        .collect()
}

/// How many units, scopes of units, regions and scopes of regions there are.
fn counts(dmar: &Dmar) -> [usize; 4] {
    [
        dmar.units.len(),
        dmar.units.iter().map(|unit| unit.scopes.len()).sum(),
        dmar.regions.len(),
        dmar.regions.iter().map(|region| region.scopes.len()).sum(),
    ]
}

fn tables() -> Vec<(String, Vec<u8>)> {
    let samples = samples()
        .into_iter()
        .map(|sample| (sample.path.display().to_string(), sample.bytes));
    let built = built_tables()
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes));
    samples.chain(built).collect()
}

/// The values that a byte is damaged to.
fn damages(byte: u8) -> impl Iterator<Item = u8> {
    let bits = (0..8).map(move |bit| byte ^ 1 << bit);
    let others = [
        0,
        0xff,
        1,
        2,
        16,
        byte.wrapping_add(1),
        byte.wrapping_sub(1),
    ];
    bits.chain(others).filter(move |&damage| damage != byte)
}

/// An error names a place; the text of both has something to say.
fn names_its_place(error: &DmarError) -> bool {
    match error {
        DmarError::Malformed(finding) => finding
            .to_string()
            .contains(&finding.place.record.to_string()),
        DmarError::OutOfMemory(_) => false,
    }
}

/// Shows: bc06, bc13.
#[test]
fn every_damaged_byte_is_noticed() {
    let (mut errors, mut warnings, mut same) = (0, 0, 0);
    for (name, whole) in tables() {
        // A table that is refused whole has nothing to lose, but damage must not bring us down.
        let sound = parse(&whole).ok();
        for position in 0..whole.len() {
            for damage in damages(whole[position]) {
                let mut bytes = whole.clone();
                bytes[position] = damage;
                match parse(&bytes) {
                    Err(error) => {
                        assert!(names_its_place(&error), "{name}: {error}");
                        errors += 1;
                    }
                    Ok(dmar) if !dmar.warnings.is_empty() => warnings += 1,
                    Ok(dmar) => {
                        assert!(
                            sound.as_ref().map(protection) == Some(protection(&dmar)),
                            "{name}: byte {position:#x} to {damage:#x} goes unseen"
                        );
                        same += 1;
                    }
                }
            }
        }
    }
    println!("{errors} errors, {warnings} warnings, {same} without effect");
}

#[test]
fn a_wrong_checksum_is_named_and_a_repaired_one_hides_no_lost_structure() {
    for (name, whole) in tables() {
        let Ok(sound) = parse(&whole) else { continue };
        for position in 10..whole.len() {
            for damage in damages(whole[position]) {
                let mut bytes = whole.clone();
                bytes[position] = damage;
                if let Ok(dmar) = parse(&bytes) {
                    let named = |what| dmar.warnings.iter().any(|warning| warning.what == what);
                    assert!(named(Defect::Checksum), "{name}: {position:#x}");
                }
                // Now with nothing but the structures to go by.
                fix_checksum(&mut bytes);
                if let Ok(dmar) = parse(&bytes)
                    && dmar.warnings.is_empty()
                {
                    assert_eq!(
                        counts(&dmar),
                        counts(&sound),
                        "{name}: byte {position:#x} to {damage:#x} loses something unseen"
                    );
                }
            }
        }
    }
}

#[test]
fn a_table_that_is_cut_is_refused() {
    for (name, whole) in tables() {
        if parse(&whole).is_err() {
            continue;
        }
        let ends: Vec<_> = structure_ends(&whole);
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{name} cut at {end:#x}");
            if end < 48 {
                continue;
            }
            // Cut, and the length made to fit: structures do not tile any more.
            let mut bytes = whole[..end].to_vec();
            bytes[4..8].copy_from_slice(&(end as u32).to_le_bytes());
            fix_checksum(&mut bytes);
            if parse(&bytes).is_ok() {
                assert!(ends.contains(&end), "{name} cut to {end:#x} goes unseen");
            }
            // The length alone made shorter: what is behind it must not be lost.
            let mut bytes = whole.clone();
            bytes[4..8].copy_from_slice(&(end as u32).to_le_bytes());
            assert!(parse(&bytes).is_err(), "{name} shortened to {end:#x}");
        }
    }
}

/// Where structures end, by their own lengths.
fn structure_ends(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 48;
    while at < bytes.len() {
        at += usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]));
        ends.push(at);
    }
    ends
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Anything at all behind a header that is in order.
    #[test]
    fn no_bytes_bring_the_parser_down(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = vec![0; 48];
        bytes[..4].copy_from_slice(b"DMAR");
        bytes[36] = 38;
        bytes.extend(body);
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        fix_checksum(&mut bytes);
        if let Ok(dmar) = parse(&bytes) {
            prop_assert!(!dmar.units.is_empty());
            // Whatever was decoded can be shown.
            prop_assert!(dmar.to_string().contains("DRHD"));
        }
    }

    /// Structures that tile, with bodies of anything: closer to what gets past the first checks.
    #[test]
    fn no_structures_bring_the_parser_down(
        records in prop::collection::vec(
            (0u16..8, prop::collection::vec(prop_oneof![Just(0u8), 1u8..16, any::<u8>()], 0..40)),
            1..6,
        )
    ) {
        let mut table = hv_tests::dmar_build::Table::new(38, 1);
        for (kind, body) in &records {
            table = table.record(*kind, body);
        }
        match parse(&table.finish()) {
            Ok(dmar) => {
                let units = records.iter().filter(|(kind, _)| *kind == 0).count();
                prop_assert_eq!(dmar.units.len(), units, "a unit was lost");
            }
            Err(error) => prop_assert!(names_its_place(&error), "{}", error),
        }
    }
}
