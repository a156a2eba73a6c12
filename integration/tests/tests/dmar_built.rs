//! DMAR tables of shapes that the samples lack: decoded as built, and refused by name.

#![cfg(not(hv_loom))]

use hv_core::{PhysAddr, Segment};
use hv_tests::dmar_build::{Table, built_tables, endpoint, scope};
use hv_vtd::dmar::{Defect, Dmar, DmarError, PathStep, RecordKind, ScopeKind, parse};

fn built(name: &str) -> Dmar {
    let (_, bytes) = built_tables()
        .into_iter()
        .find(|(built, _)| *built == name)
        .unwrap();
    let dmar = parse(&bytes).unwrap();
    assert_eq!(dmar.warnings, []);
    assert_eq!(dmar.header.length as usize, bytes.len());
    dmar
}

#[test]
fn units_keep_their_order_and_devices() {
    let dmar = built("several units");
    let bases: Vec<_> = dmar.units.iter().map(|unit| unit.base().as_u64()).collect();
    assert_eq!(bases, [0xfed9_0000, 0xfc80_0000, 0xfed9_1000]);
    let all: Vec<_> = dmar.units.iter().map(|unit| unit.include_all()).collect();
    assert_eq!(all, [false, false, true]);
    let pages: Vec<_> = dmar
        .units
        .iter()
        .map(|unit| unit.registers.pages().get())
        .collect();
    assert_eq!(pages, [1, 16, 1]);
    let kinds: Vec<_> = dmar.units[2]
        .scopes
        .iter()
        .map(|scope| scope.kind)
        .collect();
    assert_eq!(
        kinds,
        [ScopeKind::Ioapic, ScopeKind::Hpet, ScopeKind::Namespace]
    );
    assert_eq!(dmar.units[2].scopes[0].enumeration_id, 2);
    assert_eq!(dmar.units[2].scopes[0].start_bus, 0xf0);
    assert_eq!(dmar.header.host_address_bits, 46);
    assert!(dmar.header.flags.x2apic_opt_out());
    assert_eq!(dmar.devices[0].name, b"\\_SB.PCI0.I2C0");
}

#[test]
fn segments_and_proximities_are_apart() {
    let dmar = built("several segments");
    let segments: Vec<_> = dmar.units.iter().map(|unit| unit.segment).collect();
    assert_eq!(segments, [Segment(0), Segment(1), Segment(0xffff)]);
    assert_eq!(dmar.units[2].base(), PhysAddr::new(0xffff_ffff_0000_0000));
    assert_eq!(dmar.proximities[1].domain, 0xdead_beef);
}

#[test]
fn paths_are_kept_whole() {
    let dmar = built("bridges and deep paths");
    let scopes = &dmar.units[0].scopes;
    assert_eq!(scopes[1].kind, ScopeKind::Bridge);
    let steps = [(0, 0), (3, 1)].map(|(device, function)| PathStep { device, function });
    assert_eq!(scopes[1].path, steps);
    assert_eq!(scopes[2].path.len(), 8);
    assert_eq!(
        scopes[2].path[7],
        PathStep {
            device: 7,
            function: 7
        }
    );
}

#[test]
fn every_kind_of_structure_is_taken() {
    let dmar = built("all structures");
    assert_eq!(dmar.units.len(), 2);
    let regions: Vec<_> = dmar
        .regions
        .iter()
        .map(|region| {
            (
                region.region.start().as_u64(),
                region.region.last().as_u64(),
            )
        })
        .collect();
    assert_eq!(
        regions,
        [(0x3e2e_0000, 0x3e2f_ffff), (0x8000_0000, 0xafff_ffff)]
    );
    assert_eq!(dmar.regions[1].scopes.len(), 2);
    assert!(dmar.ats_ports[0].all_ports() && !dmar.ats_ports[1].all_ports());
    assert_eq!(dmar.ats_ports[1].scopes.len(), 1);
    assert_eq!(dmar.caches[0].flags, 1);
    assert_eq!(dmar.properties[0].scopes[0].flags, 0x1f);
    let shown = dmar.to_string();
    for word in [
        "DRHD",
        "RMRR",
        "ATSR",
        "RHSA",
        "ANDD",
        "SATC",
        "SIDP",
        "\\_SB.PCI0.UA00",
    ] {
        assert!(shown.contains(word), "{word} is missing in:\n{shown}");
    }
}

/// The one finding that stops a table.
fn refused(table: Table) -> (RecordKind, Defect, u64) {
    match parse(&table.finish()) {
        Err(DmarError::Malformed(finding)) => (finding.place.record, finding.what, finding.found),
        other => panic!("expected an error, found {other:?}"),
    }
}

fn one_unit() -> Table {
    Table::new(38, 1).drhd(1, 0, 0, 0xfed9_0000, &[])
}

#[test]
fn what_could_lose_a_unit_is_an_error_that_names_it() {
    let empty = Table::new(38, 1);
    let unit = |base| empty.clone().drhd(0, 0, 0, base, &[endpoint(0, 2, 0)]);
    for base in [0, u64::MAX, 0xfed9_0800] {
        assert_eq!(
            refused(unit(base)),
            (RecordKind::Drhd, Defect::RegisterBase, base)
        );
    }
    // Registers that pass the end of the address space.
    let high = empty.clone().drhd(1, 15, 0, 0xffff_ffff_ffff_f000, &[]);
    assert_eq!(refused(high).1, Defect::RegisterBase);
    assert_eq!(
        refused(one_unit().drhd(0, 0, 3, 0xfed9_0000, &[])),
        (RecordKind::Drhd, Defect::DuplicateBase, 0xfed9_0000)
    );
    assert_eq!(
        refused(one_unit().drhd(1, 0, 0, 0xfed9_1000, &[])),
        (RecordKind::Drhd, Defect::SecondIncludeAll, 2)
    );
    assert_eq!(
        refused(empty.clone()),
        (RecordKind::Header, Defect::NoUnits, 0)
    );
    for width in [0, 64, 255] {
        let table = Table::new(width, 0).drhd(1, 0, 0, 0xfed9_0000, &[]);
        assert_eq!(refused(table).1, Defect::HostAddressWidth);
    }
    let short = empty.clone().record(0, &[0; 11]);
    assert_eq!(refused(short), (RecordKind::Drhd, Defect::RecordLength, 15));
    let odd = unit_with_scope(&[1, 9, 0, 0, 0, 0, 2, 0, 0]);
    assert_eq!(refused(odd), (RecordKind::Drhd, Defect::ScopeLength, 9));
    let no_path = unit_with_scope(&[1, 6, 0, 0, 0, 0]);
    assert_eq!(refused(no_path), (RecordKind::Drhd, Defect::ScopeLength, 6));
    let long = unit_with_scope(&[1, 10, 0, 0, 0, 0, 2, 0]);
    assert_eq!(refused(long), (RecordKind::Drhd, Defect::ScopeTiling, 10));
    let rest = unit_with_scope(&[1, 8, 0, 0, 0, 0, 2, 0, 1, 8]);
    assert_eq!(refused(rest), (RecordKind::Drhd, Defect::ScopeTiling, 2));
}

fn unit_with_scope(scope: &[u8]) -> Table {
    Table::new(38, 1).drhd(0, 0, 0, 0xfed9_0000, &[scope.to_vec()])
}

#[test]
fn what_could_lose_a_region_is_an_error_that_names_it() {
    let scopes = [endpoint(0, 2, 0)];
    let region = |base, limit| refused(one_unit().rmrr(0, base, limit, &scopes));
    assert_eq!(
        region(0x8000, 0x7fff),
        (RecordKind::Rmrr, Defect::RegionOrder, 0x7fff)
    );
    assert_eq!(
        region(0x8010, 0x8fff),
        (RecordKind::Rmrr, Defect::RegionAlignment, 0x8010)
    );
    assert_eq!(
        region(0x8000, 0x8ffe),
        (RecordKind::Rmrr, Defect::RegionAlignment, 0x8fff)
    );
    let whole = parse(&one_unit().rmrr(0, 0, u64::MAX, &scopes).finish()).unwrap();
    assert_eq!(whole.regions[0].region.pages().get(), 1 << 52);
    let cut = one_unit().record(1, &[0; 19]);
    assert_eq!(refused(cut), (RecordKind::Rmrr, Defect::RecordLength, 23));
}

#[test]
fn what_loses_nothing_is_a_warning_that_names_it() {
    let cases = [
        (
            one_unit().record(7, &[1, 2, 3]),
            RecordKind::Unknown(7),
            Defect::UnknownRecord,
        ),
        (
            one_unit().record(2, &[0; 3]),
            RecordKind::Atsr,
            Defect::RecordLength,
        ),
        (
            one_unit().scoped(2, 0, 0, &[vec![2, 7, 0, 0, 0, 0, 0]]),
            RecordKind::Atsr,
            Defect::ScopeLength,
        ),
        (
            one_unit().record(3, &[0; 15]),
            RecordKind::Rhsa,
            Defect::RecordLength,
        ),
        (
            one_unit().rhsa(0xfed9_1000, 0),
            RecordKind::Rhsa,
            Defect::NoSuchUnit,
        ),
        (
            one_unit().record(4, b"\0\0\0\x01no end"),
            RecordKind::Andd,
            Defect::DeviceName,
        ),
        (one_unit().andd(1, ""), RecordKind::Andd, Defect::DeviceName),
        (
            one_unit().scoped(5, 0, 0, &[vec![1, 200, 0, 0, 0, 0, 0, 0]]),
            RecordKind::Satc,
            Defect::ScopeTiling,
        ),
        (
            one_unit().record(6, &[]),
            RecordKind::Sidp,
            Defect::RecordLength,
        ),
        (
            one_unit().drhd(
                0,
                0,
                0,
                0xfed9_1000,
                &[scope(9, 0, 0, 0, &[(1, 0)]), endpoint(0, 3, 0)],
            ),
            RecordKind::Drhd,
            Defect::UnknownScope,
        ),
        (
            one_unit().drhd(0, 0, 0, 0xfed9_1000, &[endpoint(0, 32, 0)]),
            RecordKind::Drhd,
            Defect::PathStep,
        ),
        (
            one_unit().drhd(0, 0, 0, 0xfed9_1000, &[]),
            RecordKind::Drhd,
            Defect::NoScopes,
        ),
        (
            one_unit().rmrr(0, 0x8000, 0x8fff, &[]),
            RecordKind::Rmrr,
            Defect::NoScopes,
        ),
    ];
    for (table, record, what) in cases {
        let dmar = parse(&table.finish()).unwrap();
        let found: Vec<_> = dmar
            .warnings
            .iter()
            .map(|warning| (warning.place.record, warning.what))
            .collect();
        assert_eq!(found, [(record, what)]);
        let shown = dmar.to_string();
        assert!(shown.contains("warning: DMAR"), "{shown}");
    }
}

#[test]
fn a_wrong_checksum_and_padding_are_warnings_but_lost_bytes_are_not() {
    let mut bytes = one_unit().finish();
    bytes[9] ^= 0x55;
    let dmar = parse(&bytes).unwrap();
    assert_eq!(dmar.warnings.len(), 1);
    assert_eq!(dmar.warnings[0].what, Defect::Checksum);
    assert!(dmar.warnings[0].to_string().contains("checksum"));

    let mut bytes = one_unit().finish();
    bytes.extend([0; 8]);
    assert_eq!(
        parse(&bytes).unwrap().warnings[0].what,
        Defect::TrailingBytes
    );
    bytes.push(1);
    assert!(parse(&bytes).is_err());
    assert!(parse(b"").is_err());
    assert!(parse(b"FACP").is_err());
    let mut other = one_unit().finish();
    other[..4].copy_from_slice(b"IORT");
    assert!(matches!(
        parse(&other),
        Err(DmarError::Malformed(finding)) if finding.what == Defect::Signature
    ));
}
