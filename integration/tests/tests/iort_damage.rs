//! Damaged IORT tables: the same meaning, an error, or a finding that names what is wrong. No panic.

#![cfg(not(hv_loom))]

use hv_core::{PciAddress, Segment};
use hv_iommu::{FunctionKind, PciFunction};
use hv_smmu::firmware::Firmware;
use hv_smmu::iort::{Defect, Finding, IortError, parse};
use hv_smmu::{Coverage, CoveragePolicy, Regions};
use hv_tests::dmar_build::fix_checksum;
use hv_tests::iort_build::{Table, built_tables, map, samples};
use proptest::prelude::*;

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
    let others = [0, 0xff, 1, 2, 4, byte.wrapping_add(1), byte.wrapping_sub(1)];
    bits.chain(others).filter(move |&damage| damage != byte)
}

/// Asks everything that can be asked of what was read.
fn use_it(firmware: Firmware) -> Coverage {
    let function = |id| {
        let address = PciAddress::from_requester(Segment(0), id);
        PciFunction::new(address, FunctionKind::Endpoint)
    };
    let functions = [0, 8, 0x100, 0x2000, 0xffff].map(function);
    if let Ok(regions) = Regions::new(&firmware) {
        for reserved in &firmware.reserved {
            assert!(regions.of(reserved.unit, reserved.first).count() > 0);
        }
    }
    let coverage = Coverage::new(firmware, &functions).expect("memory");
    for function in functions {
        let found = coverage.unit_of(function.address);
        assert_eq!(
            found.is_some(),
            coverage.requester(function.address).is_some()
        );
        let alone = coverage.aliases_of(function.address).count() <= functions.len();
        assert!(alone && coverage.to_string().lines().count() > 0 || found.is_none());
    }
    coverage
}

/// Shows: bc06.
#[test]
fn bc13_every_damaged_byte_is_noticed() {
    let (mut errors, mut findings) = (0, 0);
    for (name, whole) in tables() {
        parse(&whole).unwrap();
        for position in 0..whole.len() {
            for (number, damage) in damages(whole[position]).enumerate() {
                let mut bytes = whole.clone();
                bytes[position] = damage;
                match parse(&bytes) {
                    Err(IortError::Malformed(finding)) => {
                        let kind = finding.place.node.to_string();
                        assert!(finding.to_string().contains(&kind), "{name}: {finding}");
                        errors += 1;
                    }
                    Err(IortError::OutOfMemory(_)) => panic!("{name}: memory"),
                    // The sum tells of any one byte; strict policy refuses it.
                    Ok(iort) => {
                        let serious = iort.findings.iter().any(|finding| !finding.is_harmless());
                        assert!(serious, "{name}: {position:#x} to {damage:#x} goes unseen");
                        if number == 0 {
                            let coverage = use_it(iort.describe().unwrap());
                            assert!(coverage.check(CoveragePolicy::Strict).is_err());
                        }
                        findings += 1;
                    }
                }
            }
        }
    }
    println!("{errors} errors, {findings} findings");
}

/// How many units, mappings and ranges there are: what must not get lost without a word.
fn counts(iort: &hv_smmu::iort::Iort) -> [usize; 4] {
    let roots = iort.root_complexes.iter().map(|root| root.mappings.len());
    let units = iort.units.iter();
    [
        iort.units.len(),
        roots.sum(),
        units
            .map(|unit| unit.mappings.len() + usize::from(unit.own_messages.is_some()))
            .sum(),
        iort.reserved
            .iter()
            .map(|reserved| reserved.ranges.len())
            .sum(),
    ]
}

#[test]
fn a_repaired_checksum_hides_no_lost_part() {
    for (name, whole) in tables() {
        let sound = parse(&whole).unwrap();
        let known = |finding: &Finding| sound.findings.contains(finding);
        for position in 10..whole.len() {
            for damage in damages(whole[position]) {
                let mut bytes = whole.clone();
                bytes[position] = damage;
                fix_checksum(&mut bytes);
                if let Ok(iort) = parse(&bytes)
                    && iort.findings.iter().all(known)
                {
                    let what = format!("{name}: byte {position:#x} to {damage:#x}");
                    assert_eq!(
                        counts(&iort),
                        counts(&sound),
                        "{what} loses something unseen"
                    );
                    assert!(iort.findings.iter().all(|it| it.what != Defect::Checksum));
                }
            }
        }
    }
}

#[test]
fn a_table_that_is_cut_is_refused() {
    for (name, whole) in tables() {
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{name} cut at {end:#x}");
            if end < 48 {
                continue;
            }
            // Cut, and the length made to fit: the number of nodes tells.
            let mut bytes = whole[..end].to_vec();
            bytes[4..8].copy_from_slice(&(end as u32).to_le_bytes());
            fix_checksum(&mut bytes);
            assert!(parse(&bytes).is_err(), "{name} cut to {end:#x} goes unseen");
            // The length alone made shorter: what is behind it must not be lost.
            let mut bytes = whole.clone();
            bytes[4..8].copy_from_slice(&(end as u32).to_le_bytes());
            assert!(parse(&bytes).is_err(), "{name} shortened to {end:#x}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Anything at all, and anything behind a header that is in order.
    #[test]
    fn no_bytes_bring_the_parser_down(
        body in prop::collection::vec(any::<u8>(), 0..300),
        nodes in 0u32..6,
    ) {
        drop(parse(&body));
        let mut bytes = Table::new().finish();
        bytes[36..40].copy_from_slice(&nodes.to_le_bytes());
        bytes.extend(body);
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        fix_checksum(&mut bytes);
        if let Ok(iort) = parse(&bytes) {
            use_it(iort.describe().unwrap());
            prop_assert!(iort.to_string().contains("IORT"));
        }
    }

    /// Nodes that tile, with bodies of anything and mappings of anything: closer to what gets past the first checks.
    #[test]
    fn no_nodes_bring_the_parser_down(
        nodes in prop::collection::vec(
            (
                0u8..9,
                0u8..6,
                prop::collection::vec(prop_oneof![Just(0u8), 1u8..16, any::<u8>()], 0..70),
                prop::collection::vec(
                    (any::<u32>(), any::<u32>(), any::<u32>(), 0usize..6, 0u32..3),
                    0..4,
                ),
            ),
            1..6,
        )
    ) {
        let mut places = Vec::new();
        let mut at = 48;
        for (_, _, body, maps) in &nodes {
            places.push(at);
            at += (16 + body.len() + 20 * maps.len()) as u32;
        }
        let mut table = Table::new();
        for (kind, revision, body, maps) in &nodes {
            let maps: Vec<_> = maps
                .iter()
                .map(|&(input, count, output, to, flags)| hv_tests::iort_build::Map {
                    flags,
                    ..map(input, count >> (input % 32), output, places.get(to).copied().unwrap_or(7))
                })
                .collect();
            table = table.node(*kind, *revision, body, &maps);
        }
        if let Ok(iort) = parse(&table.finish()) {
            let units = nodes.iter().filter(|(kind, ..)| *kind == 4).count();
            prop_assert_eq!(iort.units.len(), units, "a unit was lost");
            use_it(iort.describe().unwrap());
        }
    }

    /// Several bytes of a table that was in order, the sum repaired.
    #[test]
    fn no_damage_brings_the_parser_down(
        which in 0usize..3,
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let (_, mut bytes) = built_tables().swap_remove(which);
        for (place, byte) in damages {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        fix_checksum(&mut bytes);
        if let Ok(iort) = parse(&bytes) {
            use_it(iort.describe().unwrap());
        }
    }
}
