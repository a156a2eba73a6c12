//! Entries by their literal words.

use super::*;

/// 39 address bits, 3 and 4 levels, 8 bits of domain id, nothing extra but 2 MiB pages.
const LIMITS: Limits = Limits {
    haw: 39,
    sagaw: 0b00110,
    domain_id_bits: 8,
    caching_mode: false,
    pass_through: false,
    device_tlb: false,
    snoop_control: false,
    superpages: 0b01,
};

#[test]
fn indices_and_spans_are_the_manuals() {
    assert_eq!((root_index(0x12ab), context_index(0x12ab)), (0x12, 0xab));
    assert_eq!([1, 2, 3, 4, 5].map(span_bits), [12, 21, 30, 39, 48]);
    // Indices 1, 2, 3, 4, 5 from the top down, offset 6.
    let address = 1 << 48 | 2 << 39 | 3 << 30 | 4 << 21 | 5 << 12 | 6;
    assert_eq!(
        [5, 4, 3, 2, 1].map(|level| table_index(address, level)),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(table_index(u64::MAX, 5), 511);
    assert!(INTERRUPT_WINDOW.contains(&0xfee0_0000) && INTERRUPT_WINDOW.contains(&0xfeef_ffff));
    assert!(!INTERRUPT_WINDOW.contains(&0xfedf_ffff) && !INTERRUPT_WINDOW.contains(&0xfef0_0000));
}

#[test]
fn root_entries_name_a_table_and_nothing_else() {
    assert_eq!(root(0x1_2345_6001, 0, &LIMITS), Ok(Some(0x1_2345_6000)));
    assert_eq!(root(0x1_2345_6ffe, 7, &LIMITS), Ok(None));
    assert_eq!(root(0x1003, 0, &LIMITS).unwrap_err().bits, 0x2);
    assert_eq!(root(0x1801, 0, &LIMITS).unwrap_err().bits, 0x800);
    assert_eq!(
        root(0x80_0000_1001, 0, &LIMITS).unwrap_err().bits,
        0x80_0000_0000
    );
    assert_eq!(root(0x1001, 1 << 63, &LIMITS).unwrap_err().bits, 1 << 63);
    let why = root(0x1003, 0, &LIMITS).unwrap_err().to_string();
    assert!(
        why.contains("bits 11:1") && why.contains("found 0x2 in 0x1003"),
        "{why}"
    );
}

#[test]
fn context_entries_name_tables_width_and_domain() {
    let context_of = |low, high| context(low, high, &LIMITS);
    let mut expected = Context {
        fault_processing_disabled: false,
        kind: ContextKind::Tables,
        table: 0x1_2345_6000,
        levels: 4,
        domain: 0x12,
    };
    assert_eq!(
        context_of(0x1_2345_6001, 0x1202),
        Ok(Some(expected.clone()))
    );
    // Bits 70:67 are ignored.
    assert_eq!(
        context_of(0x1_2345_6001, 0x127a),
        Ok(Some(expected.clone()))
    );
    (expected.fault_processing_disabled, expected.levels) = (true, 3);
    assert_eq!(context_of(0x1_2345_6003, 0x1201), Ok(Some(expected)));
    assert_eq!(context_of(0x1_2345_6ffe, u64::MAX), Ok(None));
}

#[test]
fn context_entries_that_contradict_the_unit_are_refused() {
    let refused = |low, high| context(low, high, &LIMITS).unwrap_err();
    for (low, high, bits) in [
        (0x1011, 2, 0x10),
        (0x1801, 2, 0x800),
        (0x1001, 0x82, 0x80),
        (0x1001, 0x100_0002, 0x100_0000),
    ] {
        assert!(matches!(refused(low, high), BadContext::Reserved(found) if found.bits == bits));
    }
    for (low, found) in [(0x1005, 1), (0x1009, 2), (0x100d, 3)] {
        assert_eq!(refused(low, 2), BadContext::TranslationType(found));
    }
    for width in [0, 3, 4, 5, 6, 7] {
        assert_eq!(refused(0x1001, width), BadContext::Width(width as u8));
    }
    assert_eq!(refused(0x1001, 0x1_0002), BadContext::DomainId(0x100));
    assert_eq!(
        refused(0x80_0000_1001, 2),
        BadContext::TableAboveHostWidth(0x80_0000_1000)
    );
    assert!(refused(0x1001, 0x1_0002).to_string().contains("found 256"));
    assert!(context(0x1001, 2, &LIMITS).is_ok());
    let caching = Limits {
        caching_mode: true,
        ..LIMITS
    };
    assert_eq!(
        context(0x1001, 2, &caching),
        Err(BadContext::DomainIdZeroUnderCachingMode)
    );
    assert!(context(0x1001, 0x102, &caching).is_ok());
}

#[test]
fn extensions_allow_their_context_entries() {
    let extended = Limits {
        pass_through: true,
        device_tlb: true,
        ..LIMITS
    };
    let found = context(0x1005, 0x101, &extended).unwrap().unwrap();
    assert_eq!((found.kind, found.levels), (ContextKind::Tables, 3));
    let found = context(0x9, 0x102, &extended).unwrap().unwrap();
    assert_eq!((found.kind, found.levels), (ContextKind::PassThrough, 4));
    assert_eq!(context(0x9, 0x101, &extended), Err(BadContext::Width(1)));
    assert_eq!(
        context(0xd, 0x102, &extended),
        Err(BadContext::TranslationType(3))
    );
    let deep = Limits {
        sagaw: 0b01000,
        ..LIMITS
    };
    assert_eq!(context(0x1001, 3, &deep).unwrap().unwrap().levels, 5);
}

#[test]
fn second_stage_entries_are_absent_tables_or_leaves() {
    let entry = |word, level| second_stage(word, level, &LIMITS);
    let table = |at, read, write| Ok(SecondStage::Table { at, read, write });
    let leaf = |at, read, write| {
        Ok(SecondStage::Leaf {
            at,
            read,
            write,
            snoops: false,
        })
    };
    assert_eq!(entry(!0b11, 1), Ok(SecondStage::Absent));
    assert_eq!(entry(!0b11, 5), Ok(SecondStage::Absent));
    for level in 2..=5 {
        assert_eq!(
            entry(0x1_2345_6003, level),
            table(0x1_2345_6000, true, true)
        );
    }
    assert_eq!(entry(0x1_2345_6001, 1), leaf(0x1_2345_6000, true, false));
    assert_eq!(entry(0x1_2345_6002, 1), leaf(0x1_2345_6000, false, true));
    // PS says nothing at level 1.
    assert_eq!(entry(0x1_2345_6083, 1), leaf(0x1_2345_6000, true, true));
    assert_eq!(entry(0x1_2340_0083, 2), leaf(0x1_2340_0000, true, true));
    // Bits 10, 61:52 and 63 are software's.
    assert_eq!(
        entry(0xbff0_0001_2345_6403, 1),
        leaf(0x1_2345_6000, true, true)
    );
    assert_eq!(
        entry(0xbff0_0001_2345_6403, 3),
        table(0x1_2345_6000, true, true)
    );
}

#[test]
fn reserved_bits_of_second_stage_entries_are_refused() {
    let refused = |word, level| second_stage(word, level, &LIMITS).unwrap_err().bits;
    for (word, level, bits) in [
        // PS where no pages are: 1 GiB, and above.
        (0x83, 3, 0x80),
        (0x83, 4, 0x80),
        (0x83, 5, 0x80),
        // Inside a 2 MiB page: the lowest and the highest bit.
        (0x1083, 2, 0x1000),
        (0x10_0083, 2, 0x10_0000),
        // SNP and TM.
        (0x803, 1, 0x800),
        (0x883, 2, 0x800),
        (0x803, 2, 0x800),
        (1 << 62 | 3, 1, 1 << 62),
        (1 << 62 | 3, 4, 1 << 62),
        // Accessed and dirty, memory type.
        (0x103, 1, 0x100),
        (0x203, 3, 0x200),
        (0x9, 1, 0x8),
        (0x41, 1, 0x40),
        // The lowest and the highest address bit that the host does not have.
        (0x80_0000_0003, 1, 0x80_0000_0000),
        (0x8_0000_0000_0003, 2, 0x8_0000_0000_0000),
    ] {
        assert_eq!(refused(word, level), bits, "{word:#x} at level {level}");
    }
}

#[test]
fn extensions_allow_their_second_stage_entries() {
    let extended = Limits {
        device_tlb: true,
        snoop_control: true,
        superpages: 0b11,
        ..LIMITS
    };
    let leaf = |at| {
        Ok(SecondStage::Leaf {
            at,
            read: true,
            write: true,
            snoops: true,
        })
    };
    assert_eq!(
        second_stage(0x4000_0001_2345_6803, 1, &extended),
        leaf(0x1_2345_6000)
    );
    assert_eq!(
        second_stage(0x4000_0001_4000_0883, 3, &extended),
        leaf(0x1_4000_0000)
    );
    for (word, level) in [
        (0x803, 2),
        (0x4000_0000_0000_0003, 3),
        (0x2000_0083, 3),
        (0x1083, 3),
        (0x83, 4),
    ] {
        assert!(
            second_stage(word, level, &extended).is_err(),
            "{word:#x} at level {level}"
        );
    }
    let gib_only = Limits {
        superpages: 0b10,
        ..LIMITS
    };
    assert!(second_stage(0x83, 2, &gib_only).is_err());
}
