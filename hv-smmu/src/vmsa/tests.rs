//! Both stages of each granule: words are what was encoded, what hardware follows is what we say, and nothing else is.

use super::*;

/// What leaves of a stage can say.
fn grants(stage: Stage) -> &'static [Perms] {
    match stage {
        Stage::First => &[Perms::Read, Perms::ReadWrite],
        Stage::Second => &[Perms::Read, Perms::Write, Perms::ReadWrite],
    }
}

/// Whether hardware lets a device that has no privilege do anything by a leaf.
fn is_usable(stage: Stage, leaf: u64) -> bool {
    match stage {
        Stage::First => leaf & 0x40 != 0,
        Stage::Second => leaf & 0xc0 != 0,
    }
}

/// Runs a check on every granule, stage, memory type and coherency: `(format, stage, granule's shift, index bits)`.
macro_rules! each_format {
    ($check:ident) => {
        let second = Stage::Second;
        for memory in [MemoryType::AsSent, MemoryType::ForcedWriteBack] {
            $check(Vmsa::<12, 9>::second_that_notes(memory), second, 12, 9);
            $check(Vmsa16K::second_that_notes(memory), second, 14, 11);
            $check(Vmsa64K::second_that_notes(memory), second, 16, 13);
        }
        for coherent in [false, true] {
            for memory in [MemoryType::AsSent, MemoryType::ForcedWriteBack] {
                $check(Vmsa::<12, 9>::second(memory, coherent), second, 12, 9);
                $check(Vmsa16K::second(memory, coherent), second, 14, 11);
                $check(Vmsa64K::second(memory, coherent), second, 16, 13);
            }
            $check(Vmsa::<12, 9>::first(coherent), Stage::First, 12, 9);
            $check(Vmsa16K::first(coherent), Stage::First, 14, 11);
            $check(Vmsa64K::first(coherent), Stage::First, 16, 13);
        }
    };
}

fn levels(shift: u32, bits: u32) -> impl Iterator<Item = (Level, u64)> {
    let spans = move |number: u8| {
        let level = Level::new(number)?;
        let span = 1_u64 << (shift + bits * u32::from(number - 1));
        (span < 1 << 48).then_some((level, span))
    };
    (1..=4).filter_map(spans)
}

/// Pages of so many bytes, with addresses as long as those of the granule are.
fn pages(shift: u32, span: u64) -> [PhysAddr; 7] {
    let long = match shift {
        16 => [0x000a_5a5a_5a5a_5000, 0x000f_ffff_ffff_f000],
        _ => [0x8000_0000_0000, 0x7fff_ffff_f000],
    };
    let short = [0, span, 0x4000_0000, 0x5a5a_5a5a_5000, 0xffff_ffff_f000];
    let all = [
        short[0], short[1], short[2], short[3], short[4], long[0], long[1],
    ];
    all.map(|page| PhysAddr::new(page & !(span - 1)))
}

fn is_link<F: Format>(_: F, word: u64) -> bool {
    word & F::LINK_MASK == F::LINK
}

#[test]
fn leaves_are_what_was_encoded() {
    fn check<T: Format>(format: T, stage: Stage, shift: u32, bits: u32) {
        for (level, span) in levels(shift, bits) {
            for (to, perms) in pages(shift, span)
                .into_iter()
                .flat_map(|to| grants(stage).iter().map(move |perms| (to, *perms)))
            {
                for mark in [0, WB, F, WB | F] {
                    let word = format.leaf(level, to, perms) | mark;
                    assert_eq!(format.decode(word, level), Entry::Leaf { to, perms });
                    assert_eq!(word & T::PRESENT, T::PRESENT);
                    assert!(level == Level::LEAF || !is_link(format, word));
                    assert_ne!(word & !mark, format.table(to), "no page is a link");
                    assert_eq!(T::address(word), to);
                    let pending = format.pending(word);
                    assert_eq!(T::address(pending), to);
                    assert_eq!(format.decode(pending, level), Entry::Pending { to });
                    assert_eq!(pending & T::PRESENT, 0);
                    assert_eq!(pending, format.pending(format.leaf(level, to, Perms::Read)));
                }
            }
            let leaf = |page| format.leaf(level, PhysAddr::new(page), Perms::Read);
            for n in [1, 2, (1 << 47) / span]
                .into_iter()
                .filter(|n| n * span < 1 << 48)
            {
                assert_eq!(leaf(n * span) - leaf(0), n * span);
                assert_eq!(
                    format.pending(leaf(n * span)) - format.pending(leaf(0)),
                    n * span
                );
            }
            assert_eq!(format.decode(0, level), Entry::Empty);
        }
    }
    each_format!(check);
}

#[test]
fn links_and_what_becomes_of_them_name_their_table() {
    fn check<T: Format>(format: T, _: Stage, shift: u32, bits: u32) {
        for (level, _) in levels(shift, bits).filter(|(level, _)| *level != Level::LEAF) {
            for page in pages(shift, 1 << shift) {
                let (written, frozen) = (T::WRITTEN_BACK, T::FROZEN);
                for mark in [0, written, frozen, written | frozen] {
                    let word = format.table(page) | mark;
                    assert_eq!(
                        mark & !0x0780_0000_0000_0000,
                        0,
                        "hardware ignores bits 58:55"
                    );
                    let (written_back, frozen) = (mark & written != 0, mark & frozen != 0);
                    let expected = Entry::Table {
                        page,
                        written_back,
                        frozen,
                    };
                    assert_eq!(format.decode(word, level), expected);
                    assert_eq!(is_link(format, word), !frozen);
                    assert_eq!(T::address(word), page);
                    assert_eq!(page.as_u64() >> T::OUTPUT_BITS, 0);
                    let detached = word & !(T::PRESENT | T::FROZEN | T::ACCESSED);
                    assert_eq!(format.decode(detached, level), Entry::PendingTable { page });
                }
                let tombstone = format.tombstone(page);
                assert_eq!(format.decode(tombstone, level), Entry::Tombstone { page });
                assert_eq!(tombstone & T::PRESENT, 0);
                let detached = tombstone & !T::FROZEN;
                assert_eq!(format.decode(detached, level), Entry::PendingTable { page });
            }
        }
    }
    each_format!(check);
}

#[test]
fn words_are_what_hardware_was_seen_to_walk() {
    let format = Vmsa::<12, 9>::second(MemoryType::AsSent, true);
    let (two, at) = (Level::new(2).unwrap(), PhysAddr::new(0x4080_0000));
    // QEMU walked `PA | 0x7ff` and `PA | 0x7fd`; XN is ours, and a bit that hardware ignores.
    let ours = 1 << 54 | 1 << 56;
    assert_eq!(
        format.leaf(Level::LEAF, at, Perms::ReadWrite),
        ours | 0x4080_07ff
    );
    assert_eq!(format.leaf(two, at, Perms::ReadWrite), ours | 0x4080_07fd);
    assert_eq!(format.leaf(two, at, Perms::Read), ours | 0x4080_077d);
    assert_eq!(format.leaf(two, at, Perms::Write), ours | 0x4080_07bd);
    assert_eq!(format.table(at), 0x4080_0003);
    assert_eq!(format.pending(ours | 0x4080_07ff), 0x0100_0000_4080_0000);
    assert_eq!(format.tombstone(at), 0x0400_0000_4080_0002);
    let forced = Vmsa::<12, 9>::second(MemoryType::ForcedWriteBack, false);
    assert_eq!(
        forced.leaf(Level::LEAF, at, Perms::ReadWrite),
        ours | 0x4080_06db
    );
}

/// Bits 51:48 of an address stand in bits 15:12 of the words of 64 KiB pages, of either stage. Sums carry up to there.
#[test]
fn words_of_long_addresses_match_an_independent_table() {
    let (to, page) = (PhysAddr::new(0x000a_1234_5678_0000), 0x1234_5678_a000);
    let second = Vmsa64K::second(MemoryType::AsSent, true);
    let leaf = |format: Vmsa64K, level, to| format.leaf(level, to, Perms::ReadWrite);
    assert_eq!(leaf(second, Level::LEAF, to), 5 << 54 | 0x7ff | page);
    assert_eq!(
        leaf(Vmsa64K::first(true), Level::LEAF, to),
        1 << 56 | 3 << 53 | 0xf43 | page
    );
    assert_eq!(second.table(to), page | 3);
    assert_eq!(second.tombstone(to), page | 1 << 58 | 2);
    let pending = second.pending(leaf(second, Level::LEAF, to));
    assert_eq!(pending, page | 1 << 56);
    let doorbell = second.doorbell(to, Perms::Write);
    assert_eq!(doorbell & Vmsa64K::ADDRESS, page);
    // A block of 512 MiB, and one of 4 TiB.
    for (number, at) in [(2, 0x000b_1234_6000_0000), (3, 0x000c_1400_0000_0000)] {
        let level = Level::new(number).unwrap();
        let (upper, lower) = (at >> 48, at & 0xffff_ffff_ffff);
        let word = leaf(second, level, PhysAddr::new(at));
        assert_eq!(word, 5 << 54 | 0x7fd | lower | upper << 12);
    }
    let carry = 1 << <Vmsa64K as Format>::CARRY_BITS;
    let last = leaf(second, Level::LEAF, PhysAddr::new(carry - 0x1_0000));
    let next = leaf(second, Level::LEAF, PhysAddr::new(carry));
    assert_ne!(last + 0x1_0000, next);
    assert_eq!(carry, 1 << 48);
    // Others end there.
    assert_eq!((Vmsa::<12, 9>::OUTPUT_BITS, Vmsa16K::OUTPUT_BITS), (48, 48));
    assert_eq!(<Vmsa16K as Format>::CARRY_BITS, 64);
}

#[test]
fn present_for_hardware_is_leaf_or_table_for_us() {
    // Every combination of the bits that decide, at every level of each granule, with an address or without.
    fn check<T: Format>(format: T, stage: Stage, shift: u32, bits: u32) {
        let deciding = [1, 2, READ, WRITE, K, WB, F, ACCESSED, 1 << 47];
        for (level, _) in levels(shift, bits) {
            for choice in 0u32..1 << deciding.len() {
                let chosen = (0..deciding.len()).filter(|bit| choice >> bit & 1 != 0);
                let word: u64 = chosen.map(|bit| deciding[bit]).sum();
                let last = level == Level::LEAF;
                let (reserved, leaf) = (last && word & 3 == 1, last || word & 3 == 1);
                // Hardware takes it for valid; nobody of ours writes a leaf without rights.
                let valid = word & 1 != 0 && !reserved;
                let foreign = leaf && !is_usable(stage, word);
                let decoded = format.decode(word, level);
                let ours = matches!(decoded, Entry::Leaf { .. } | Entry::Table { .. });
                assert_eq!(ours, valid && !foreign, "{word:#x} at {level}: {decoded:?}");
                if valid && foreign || reserved {
                    assert_eq!(decoded, Entry::Unknown(word));
                }
                assert_eq!(word & T::PRESENT != 0, valid || reserved);
                let table = matches!(decoded, Entry::Table { frozen: false, .. });
                assert!(last || table == is_link(format, word), "{word:#x}");
                // Marks change their own property and nothing else.
                if ours {
                    for mark in [T::FROZEN, T::WRITTEN_BACK] {
                        let strip = |entry| match entry {
                            Entry::Table { page, .. } => Entry::Table {
                                page,
                                written_back: false,
                                frozen: false,
                            },
                            other => other,
                        };
                        let marked = format.decode(word ^ mark, level);
                        assert_eq!(strip(marked), strip(decoded));
                    }
                }
            }
        }
    }
    each_format!(check);
}

#[test]
fn foreign_words_are_unknown() {
    let format = Vmsa::<12, 9>::second(MemoryType::AsSent, true);
    let two = Level::new(2).unwrap();
    for (word, level, why) in [
        (0x1000, two, "an address without our mark"),
        (
            F | 2 | 0x1000,
            Level::LEAF,
            "a tombstone where no table is linked",
        ),
        (
            2 | 0x1000,
            Level::LEAF,
            "a detached table where none is linked",
        ),
        (F | 0x1000, two, "half a tombstone"),
        (K | F | 0x1000, two, "a pending tombstone"),
        (READ | 0x1000, two, "an attribute without a leaf"),
        (0x4080_07fd, Level::LEAF, "a block where pages are"),
        (0x4080_053d, two, "a block that nobody may use"),
    ] {
        assert_eq!(format.decode(word, level), Entry::Unknown(word), "{why}");
    }
}

#[test]
fn words_of_a_first_stage_match_an_independent_table() {
    let format = Vmsa::<12, 9>::first(true);
    let (two, at) = (Level::new(2).unwrap(), PhysAddr::new(0x4080_0000));
    // AttrIndx 0, AP, inner shareable, AF, nG; PXN and UXN, and a bit of ours.
    let never = 0x0160_0000_0000_0000;
    let page = |perms| format.leaf(Level::LEAF, at, perms);
    assert_eq!(page(Perms::ReadWrite), never | 0x4080_0f43);
    assert_eq!(page(Perms::Read), never | 0x4080_0fc3);
    assert_eq!(format.leaf(two, at, Perms::Read), never | 0x4080_0fc1);
    assert_eq!(format.table(at), 0x4080_0003);
    assert_eq!(
        format.pending(page(Perms::Read)),
        format.pending(page(Perms::ReadWrite))
    );
    let outer = Vmsa::<12, 9>::first(false);
    let leaf = outer.leaf(Level::LEAF, at, Perms::ReadWrite);
    assert_eq!(leaf, never | 0x4080_0e43);
}

#[test]
fn permissions_of_a_first_stage_are_those_of_the_architectures_table() {
    // AP[2:1]: 0b00 privileged alone, 0b01 both, 0b10 privileged alone and read-only, 0b11 both and read-only.
    let table = [None, Some(Perms::ReadWrite), None, Some(Perms::Read)];
    for (ap, expected) in (0_u64..).zip(table) {
        let word = 0x8000_0000_0403 | ap << 6;
        let found = match Vmsa::<12, 9>::first(true).decode(word, Level::LEAF) {
            Entry::Leaf { perms, .. } => Some(perms),
            Entry::Unknown(_) => None,
            other => panic!("AP {ap:#b}: {other:?}"),
        };
        assert_eq!(found, expected, "AP {ap:#b}");
    }
}

/// No word of a first stage is for writing alone: what asks for that is asked for reads as well.
#[test]
fn a_first_stage_has_no_leaf_for_writing_alone() {
    fn check<T: Format>(format: T, stage: Stage, _: u32, _: u32) {
        if stage == Stage::Second {
            return;
        }
        let to = PhysAddr::new(0x4000_0000);
        let word = format.leaf(Level::LEAF, to, Perms::Write);
        let perms = Perms::ReadWrite;
        assert_eq!(format.decode(word, Level::LEAF), Entry::Leaf { to, perms });
        // One that unprivileged requests cannot use is nobody's of ours.
        for word in [word & !0x40, word & !0x40 | 0x80] {
            assert_eq!(format.decode(word, Level::LEAF), Entry::Unknown(word));
        }
    }
    each_format!(check);
}

/// The engine's constants are of one type, so they have to hold for both stages: bits of its own stand where neither
/// stage's leaves and links have anything, and leaves differ from stage to stage in what hardware looks at alone.
#[test]
fn stages_share_what_the_engine_tests() {
    let (first, second) = (
        Vmsa::<12, 9>::first(true),
        Vmsa::<12, 9>::second(MemoryType::AsSent, true),
    );
    let at = PhysAddr::new(0x4080_0000);
    let engine = Vmsa::<12, 9>::ADDRESS | K | WB | F | VALID | TABLE_OR_PAGE;
    for level in [1, 2, 3].map(|number| Level::new(number).unwrap()) {
        for perms in [Perms::Read, Perms::ReadWrite] {
            let words = [first.leaf(level, at, perms), second.leaf(level, at, perms)];
            assert_eq!(words[0] & engine, words[1] & engine);
            assert_ne!(words[0], words[1]);
            assert_eq!(first.pending(words[0]), second.pending(words[1]));
        }
    }
    assert_eq!(first.table(at), second.table(at));
    assert_eq!(first.tombstone(at), second.tombstone(at));
    assert_eq!(
        (first.stage(), second.stage()),
        (Stage::First, Stage::Second)
    );
}

#[test]
fn a_doorbell_is_the_leaf_of_its_page_but_device_memory() {
    fn check<T: Format>(format: T, stage: Stage, shift: u32, _bits: u32) {
        for (to, perms) in pages(shift, 1 << shift)
            .into_iter()
            .flat_map(|to| [Perms::ReadWrite, Perms::Write].map(|perms| (to, perms)))
            .filter(|(_, perms)| stage == Stage::Second || *perms == Perms::ReadWrite)
        {
            let word = format.doorbell(to, perms);
            assert_eq!(format.decode(word, Level::LEAF), Entry::Leaf { to, perms });
            let leaf = format.leaf(Level::LEAF, to, perms);
            assert_eq!(format.pending(word), format.pending(leaf));
            // Memory type and SH are all that is apart.
            assert_eq!((word ^ leaf) & !0x33c, 0);
            // MemAttr 1, Device-nGnRE; AttrIndx 1 names the byte of MAIR that says so. Outer shareable.
            assert_eq!(word & 0x33c, 0x204);
        }
    }
    each_format!(check);
}

/// Of a domain whose writes are noted, a leaf for writing is clean until hardware or software says otherwise, and one
/// for reading is never for writing, whatever is known of it.
#[test]
fn what_is_noted_of_writes_changes_nothing_else() {
    fn check<T: Format>(format: T, shift: u32, bits: u32) {
        const DBM: u64 = 1 << 51;
        for (level, span) in levels(shift, bits) {
            for (to, perms) in pages(shift, span)
                .into_iter()
                .flat_map(|to| grants(Stage::Second).iter().map(move |perms| (to, *perms)))
            {
                let leaf = format.leaf(level, to, perms);
                assert_eq!((leaf & DBM != 0, leaf & 0x80), (perms.writable(), 0));
                assert_eq!((leaf & T::DIRTY, format.noted(leaf)), (0, 0));
                let hardware = if perms.writable() { 0x80 } else { 0 };
                for written in [leaf | T::NOTED, leaf | hardware, leaf | T::NOTED | hardware] {
                    assert_eq!(format.decode(written, level), Entry::Leaf { to, perms });
                    if written == leaf {
                        continue;
                    }
                    assert_ne!(written & T::DIRTY, 0);
                    assert_eq!(written & !T::DIRTY, leaf, "clean again");
                    let noted = format.noted(written);
                    assert_eq!((noted & !T::NOTED, noted & T::DIRTY), (0, T::NOTED));
                    // Hardware ignores it, and gets no permission by it.
                    let reading = format.leaf(level, to, Perms::Read);
                    assert_eq!((reading | noted) & (DBM | 0x80), 0);
                    assert_eq!(noted & !0x0780_0000_0000_0000, 0);
                    let pending = format.pending(written) | noted;
                    assert_eq!(format.decode(pending, level), Entry::Pending { to });
                    assert_eq!(pending & !T::DIRTY, format.pending(leaf));
                    assert_eq!((pending & 1, pending & T::DIRTY), (0, T::NOTED));
                }
            }
        }
    }
    for memory in [MemoryType::AsSent, MemoryType::ForcedWriteBack] {
        check(Vmsa::<12, 9>::second_that_notes(memory), 12, 9);
        check(Vmsa16K::second_that_notes(memory), 14, 11);
        check(Vmsa64K::second_that_notes(memory), 16, 13);
    }
}

/// Elsewhere no leaf has DBM, and its permission to write says nothing of writes.
#[test]
fn nothing_is_noted_where_nobody_asked() {
    fn check<T: Format>(format: T, stage: Stage, shift: u32, bits: u32) {
        let notes = format.leaf(Level::LEAF, PhysAddr::new(0), Perms::ReadWrite) & 1 << 51 != 0;
        for (level, span) in levels(shift, bits).filter(|_| !notes) {
            for (to, perms) in pages(shift, span)
                .into_iter()
                .flat_map(|to| grants(stage).iter().map(move |perms| (to, *perms)))
            {
                let leaf = format.leaf(level, to, perms);
                assert_eq!((leaf & 1 << 51, format.noted(leaf)), (0, 0));
                assert_eq!(format.pending(leaf) & T::DIRTY, 0);
            }
        }
    }
    each_format!(check);
}

#[test]
fn words_in_which_writes_are_noted_match_an_independent_table() {
    let format = Vmsa::<12, 9>::second_that_notes(MemoryType::AsSent);
    let at = PhysAddr::new(0x4080_0000);
    let (beside, dbm) = (1 << 54 | 1 << 56, 1 << 51);
    let page = |perms| format.leaf(Level::LEAF, at, perms);
    assert_eq!(page(Perms::Read), beside | 0x4080_077f);
    assert_eq!(page(Perms::ReadWrite), beside | dbm | 0x4080_077f);
    assert_eq!(page(Perms::Write), beside | dbm | 0x4080_073f);
    let written = page(Perms::ReadWrite) | 0x80;
    assert_eq!(format.noted(written), 0x0080_0000_0000_0000);
    assert_eq!(
        format.pending(written) | format.noted(written),
        0x0180_0000_4080_0000
    );
    let forced = Vmsa::<12, 9>::second_that_notes(MemoryType::ForcedWriteBack);
    let leaf = forced.leaf(Level::LEAF, at, Perms::Read);
    assert_eq!(leaf, beside | 0x4080_075b);
}
