//! Entries as words: against an independent table, and against what an emulator accepted.

use super::*;
use crate::spec::id_registers::{Idr0, Idr3, StallModel};

const PLAIN: StreamOptions = StreamOptions {
    on_fault: match StallModel::Never.terminate() {
        Some(answer) => answer,
        None => panic!(),
    },
    translation_requests: None,
    merge_events: false,
};

fn stall_options(model: StallModel) -> StreamOptions {
    StreamOptions {
        on_fault: model.stall().unwrap(),
        ..PLAIN
    }
}

fn tables() -> SecondStageTables {
    let shape = SecondStageShape::new(Granule::Size4K, 1, 39, OutputSize::Bits40).unwrap();
    SecondStageTables::new(
        Vmid::new(7),
        PhysAddr::new(0x4030_0000),
        shape,
        Walk::Coherent,
    )
    .unwrap()
}

fn contexts(without: WithoutSubstream) -> FirstStageContexts {
    let linear = ContextTableFormat::Linear;
    FirstStageContexts::new(0x4040_0040, linear, 4, without, Walk::Coherent).unwrap()
}

#[test]
fn an_entry_that_an_emulator_accepted_is_what_we_say() {
    // QEMU 10, stage 2: V, Config 0b110, SHCFG 1, VMID 7, 39 bits from level 1, coherent walks, 40-bit output, S2AA64,
    // S2PTW, S2R.
    let word2 = 7
        | 25 << 32
        | 1 << 38
        | 1 << 40
        | 1 << 42
        | 3 << 44
        | 2 << 48
        | 1 << 51
        | 1 << 54
        | 1 << 58;
    let seen = [0xd, 1 << 44, word2, 0x4030_0000, 0, 0, 0, 0];
    let entry = StreamTableEntry::second_stage(&tables(), &PLAIN);
    assert_eq!(entry.words(), seen);
    assert_eq!(Config::of(&seen), Some(Config::Second));
}

#[test]
fn entries_without_tables_are_one_word() {
    assert_eq!(StreamTableEntry::ABORT.words(), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(StreamTableEntry::INVALID.words(), [0; WORDS]);
    assert_eq!(
        StreamTableEntry::bypass(false).words(),
        [9, 1 << 44, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(StreamTableEntry::bypass(true).words()[1], 1 << 44 | 1 << 19);
    assert_eq!(StreamTableEntry::ABORT.config(), Some(Config::Abort));
    assert_eq!(StreamTableEntry::INVALID.config(), None);
    // Config 0b0xx is an abort whatever the other bits say.
    for config in 0..4 {
        let words = [1 | config << 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Config::of(&words), Some(Config::Abort));
    }
}

#[test]
fn a_first_stage_matches_an_independent_table() {
    let options = StreamOptions {
        merge_events: true,
        ..PLAIN
    };
    let entry = StreamTableEntry::first_stage(
        &contexts(WithoutSubstream::UseZero),
        Regime::El2,
        Vmid::new(3),
        &options,
    );
    let word0 = 1 | 0b101 << 1 | 0x4040_0040 | 4 << 59;
    let word1 = 2 | 1 << 2 | 1 << 4 | 3 << 6 | 1 << 19 | 2 << 30;
    assert_eq!(entry.words(), [word0, word1, 3, 0, 0, 0, 0, 0]);
    let two = FirstStageContexts::new(
        0x4041_0000,
        ContextTableFormat::TwoLevel,
        20,
        WithoutSubstream::Terminate,
        Walk::NonCoherent,
    );
    let entry = StreamTableEntry::first_stage(&two.unwrap(), Regime::El1, Vmid::new(0), &PLAIN);
    let word0 = 1 | 0b101 << 1 | 2 << 4 | 0x4041_0000 | 20 << 59;
    assert_eq!(entry.words(), [word0, 2 << 6, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn both_stages_are_both() {
    let contexts = contexts(WithoutSubstream::Terminate);
    let entry = StreamTableEntry::nested(&contexts, &tables(), &PLAIN);
    let first = StreamTableEntry::first_stage(&contexts, Regime::El1, Vmid::new(7), &PLAIN);
    let second = StreamTableEntry::second_stage(&tables(), &PLAIN);
    for word in 0..WORDS {
        let both = first.words()[word] | second.words()[word];
        assert_eq!(entry.words()[word], both, "word {word}");
    }
    assert_eq!(entry.config(), Some(Config::Nested));
}

#[test]
fn what_only_some_units_can_needs_their_word() {
    let idr0 = Idr0::new().with_ats(true).with_httu(2);
    let options = StreamOptions {
        translation_requests: idr0.translation_requests(),
        ..PLAIN
    };
    let plain = StreamTableEntry::second_stage(&tables(), &PLAIN).words();
    let ats = StreamTableEntry::second_stage(&tables(), &options).words();
    assert_eq!(ats[1] ^ plain[1], 1 << 28);
    let write_back = Idr3::new().with_fwb(true).forced_write_back().unwrap();
    let forced = StreamTableEntry::second_stage(&tables().force_write_back(write_back), &PLAIN);
    assert_eq!(forced.words()[1] ^ plain[1], 1 << 25);
    let dirty = tables().note_writes(idr0.writes_dirty().unwrap());
    let dirty = StreamTableEntry::second_stage(&dirty, &PLAIN).words();
    assert_eq!(dirty[2] ^ plain[2], 3 << 55);
    let stall = StreamTableEntry::second_stage(&tables(), &stall_options(StallModel::Optional));
    assert_eq!(stall.words()[2] ^ plain[2], 1 << 57);
    assert_eq!(StallModel::Never.stall(), None);
    assert_eq!(Idr0::new().translation_requests(), None);
}

#[test]
fn first_stages_are_kept_from_stalling_only_where_they_could() {
    let contexts = contexts(WithoutSubstream::Terminate);
    let forbidden = |options: &StreamOptions| {
        let entry = StreamTableEntry::first_stage(&contexts, Regime::El1, Vmid::new(0), options);
        entry.words()[1] & 1 << 27 != 0
    };
    let on_fault = StallModel::Optional.terminate().unwrap();
    assert!(forbidden(&StreamOptions { on_fault, ..PLAIN }));
    assert!(!forbidden(&PLAIN));
    assert!(!forbidden(&stall_options(StallModel::Optional)));
    assert!(!forbidden(&stall_options(StallModel::Forced)));
}

#[test]
fn shapes_that_an_entry_cannot_say_are_not_made() {
    use Granule::{Size4K, Size16K, Size64K};
    // Granule, start level, the narrowest and the widest address (with tables side by side).
    let table = [
        (Size4K, 0, 40, 48),
        (Size4K, 1, 31, 43),
        (Size4K, 2, 25, 34),
        (Size16K, 1, 37, 48),
        (Size16K, 2, 26, 40),
        (Size16K, 3, 25, 29),
        (Size64K, 1, 43, 48),
        (Size64K, 2, 30, 46),
        (Size64K, 3, 25, 33),
    ];
    for (granule, level, least, most) in table {
        let made = |bits| SecondStageShape::new(granule, level, bits, OutputSize::Bits48).is_some();
        for bits in 0..=u8::MAX {
            let expected = (least..=most).contains(&bits);
            assert_eq!(
                made(bits),
                expected,
                "{granule:?} level {level} {bits} bits"
            );
        }
    }
    for (granule, level) in [
        (Size4K, 3),
        (Size16K, 0),
        (Size64K, 0),
        (Size4K, 4),
        (Size64K, 255),
    ] {
        assert_eq!(
            SecondStageShape::new(granule, level, 30, OutputSize::Bits48),
            None
        );
    }
    assert!(SecondStageShape::new(Size64K, 1, 52, OutputSize::Bits52).is_some());
}

#[test]
fn start_levels_have_the_code_of_their_granule() {
    let start = |granule, level, bits| {
        let shape = SecondStageShape::new(granule, level, bits, OutputSize::Bits48).unwrap();
        let root = PhysAddr::new(1 << 30);
        let tables = SecondStageTables::new(Vmid::new(0), root, shape, Walk::NonCoherent).unwrap();
        let word2 = StreamTableEntry::second_stage(&tables, &PLAIN).words()[2];
        // Non-coherent: not cached, outer shareable.
        assert_eq!((word2 >> 40) & 0x3f, 0x20);
        ((word2 >> 38) & 3, (word2 >> 46) & 3, (word2 >> 32) & 0x3f)
    };
    assert_eq!(start(Granule::Size4K, 0, 48), (2, 0, 16));
    assert_eq!(start(Granule::Size4K, 1, 39), (1, 0, 25));
    assert_eq!(start(Granule::Size4K, 2, 30), (0, 0, 34));
    assert_eq!(start(Granule::Size16K, 1, 47), (2, 2, 17));
    assert_eq!(start(Granule::Size16K, 2, 36), (1, 2, 28));
    assert_eq!(start(Granule::Size16K, 3, 25), (0, 2, 39));
    assert_eq!(start(Granule::Size64K, 1, 48), (2, 1, 16));
    assert_eq!(start(Granule::Size64K, 2, 42), (1, 1, 22));
    assert_eq!(start(Granule::Size64K, 3, 29), (0, 1, 35));
}

#[test]
fn a_formats_codes_make_the_same_shapes() {
    let output = OutputSize::Bits48;
    let shapes = |granule| {
        (0..=4).flat_map(move |level| {
            (25..=48).filter_map(move |bits| SecondStageShape::new(granule, level, bits, output))
        })
    };
    let granules = [Granule::Size4K, Granule::Size16K, Granule::Size64K];
    for shape in granules.into_iter().flat_map(shapes) {
        let code = shape.start_code().unwrap();
        let (tg, t0sz) = (shape.granule().tg0(), 64 - shape.ipa_bits());
        assert_eq!(
            SecondStageShape::from_codes(tg, code, t0sz, output),
            Some(shape)
        );
    }
    for (tg, sl0, t0sz) in [(3, 1, 25), (0, 3, 25), (1, 4, 25), (0, 1, 65), (0, 1, 15)] {
        assert_eq!(SecondStageShape::from_codes(tg, sl0, t0sz, output), None);
    }
}

#[test]
fn roots_are_where_their_tables_can_be() {
    let shape = |bits| SecondStageShape::new(Granule::Size4K, 1, bits, OutputSize::Bits40).unwrap();
    assert_eq!(shape(39).root_bytes(), 0x1000);
    assert_eq!(shape(31).root_bytes(), 0x1000);
    assert_eq!(shape(40).root_bytes(), 0x2000);
    assert_eq!(shape(43).root_bytes(), 0x1_0000);
    let made = |bits, root| {
        SecondStageTables::new(
            Vmid::new(0),
            PhysAddr::new(root),
            shape(bits),
            Walk::Coherent,
        )
        .is_some()
    };
    assert!(made(39, 0x1000) && !made(40, 0x1000) && made(40, 0x2000));
    assert!(!made(39, 0x800));
    // Beyond 40 bits of output.
    assert!(made(39, 0xff_ffff_f000) && !made(39, 0x100_0000_0000));
    let linear = ContextTableFormat::Linear;
    let contexts = |table, log2| {
        FirstStageContexts::new(
            table,
            linear,
            log2,
            WithoutSubstream::UseZero,
            Walk::Coherent,
        )
        .is_some()
    };
    assert!(contexts(0x40, 0) && contexts(0, 20) && !contexts(0, 21));
    assert!(!contexts(0x20, 0) && !contexts(1 << 52, 0));
}

#[test]
fn used_bits_match_an_independent_table() {
    let used = |entry: StreamTableEntry| entry.used();
    assert_eq!(used(StreamTableEntry::INVALID), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(used(StreamTableEntry::ABORT), [0xf, 0, 0, 0, 0, 0, 0, 0]);
    let attributes = 0x000f_f1ff_0007_0000u64;
    let merge = 1 << 19;
    assert_eq!(used(StreamTableEntry::bypass(false))[1], attributes | merge);
    let second = used(StreamTableEntry::second_stage(&tables(), &PLAIN));
    let eats = 3 << 28;
    assert_eq!(second[0], 0xf);
    assert_eq!(second[1], attributes | merge | eats | 1 << 25);
    assert_eq!(second[2], 0x07ff_ffff_0000_ffff);
    assert_eq!(second[3], 0x000f_ffff_ffff_fff0);
    let first = |without| {
        let contexts = contexts(without);
        used(StreamTableEntry::first_stage(
            &contexts,
            Regime::El1,
            Vmid::new(0),
            &PLAIN,
        ))
    };
    let terminate = first(WithoutSubstream::Terminate);
    assert_eq!(terminate[0], 0xf80f_ffff_ffff_ffff);
    let stage1 = 0xff | 7 << 16 | 1 << 27 | 3 << 30 | 0xf << 48;
    assert_eq!(terminate[1], stage1 | merge | eats);
    assert_eq!(terminate[2..4], [0xffff, 0]);
    assert_eq!(
        first(WithoutSubstream::Bypass)[1],
        terminate[1] | attributes
    );
    let nested =
        StreamTableEntry::nested(&contexts(WithoutSubstream::Terminate), &tables(), &PLAIN);
    for word in 0..WORDS {
        assert_eq!(nested.used()[word], terminate[word] | second[word]);
    }
}

#[test]
fn no_entry_sets_a_bit_that_its_own_configuration_does_not_use() {
    let on_fault = StallModel::Optional.terminate().unwrap();
    let ats = Idr0::new().with_ats(true).translation_requests();
    let options = StreamOptions {
        on_fault,
        translation_requests: ats,
        merge_events: true,
    };
    let mut entries = vec![
        StreamTableEntry::ABORT,
        StreamTableEntry::bypass(true),
        StreamTableEntry::second_stage(&tables(), &options),
    ];
    for without in [
        WithoutSubstream::Terminate,
        WithoutSubstream::Bypass,
        WithoutSubstream::UseZero,
    ] {
        let (contexts, vmid) = (contexts(without), Vmid::new(0xffff));
        entries.push(StreamTableEntry::first_stage(
            &contexts,
            Regime::El2,
            vmid,
            &options,
        ));
        entries.push(StreamTableEntry::nested(&contexts, &tables(), &options));
    }
    for entry in entries {
        for (word, used) in entry.words().into_iter().zip(entry.used()) {
            assert_eq!(word & !used, 0, "{entry:x?}");
        }
    }
}

#[test]
fn an_entry_lets_its_device_ask_by_one_word_and_nothing_else() {
    let token = Idr0::new().with_ats(true).translation_requests();
    let entry = StreamTableEntry::bypass(true).words();
    assert!(!is_asking(&entry));
    let open = asking(&entry, token);
    assert!(is_asking(&open));
    let changed: Vec<u64> = entry.iter().zip(open).map(|(old, new)| old ^ new).collect();
    assert_eq!(changed, [0, 1 << 28, 0, 0, 0, 0, 0, 0]);
    assert_eq!(asking(&open, None), entry);
}
