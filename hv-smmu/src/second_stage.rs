//! The stage-2 table format: what an entry means, and its bits.

#![expect(
    unsafe_code,
    reason = "promises the table engine that its words mean what it is told"
)]

use hv_core::fault::Fault;
use hv_core::{Perms, PhysAddr};
use hv_iommu::{Entry, Format, Level, LevelSet, RootPointer, RootTables};

use crate::root::RootFields;
use crate::spec::granule::Granule;
use crate::spec::second_stage::{
    ACCESSED, DEVICE, EXECUTE_NEVER, F, FORCED_WRITE_BACK, INNER_SHAREABLE, K, OUTER_SHAREABLE,
    READ, TABLE_OR_PAGE, VALID, WB, WRITE, WRITE_BACK, address,
};

/// What leaves say about the memory behind them. One for a unit: the stream table entries of a unit that forces
/// write-back set S2FWB, those of others do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// The device's own choice stands.
    AsSent,
    /// All accesses are write-back, whatever the device asks for: nobody gets past the caches.
    ForcedWriteBack,
}

/// Stage-2 tables with pages of 2^`PAGE_SHIFT` bytes and 2^`INDEX_BITS` entries per table.
///
/// Hardware has 9, 11 and 13 index bits for pages of 4, 16 and 64 KiB. Models run the same code with fewer.
///
/// An unmapped leaf keeps its address with [`K`] set, a detached table its address and the bit that makes a valid
/// descriptor a table, an unlinked empty one [`F`] as well; none of them is valid. Leaves have AF set, since nobody
/// would set it for them, and forbid execution, which no mapping of ours grants: stream table entries say that
/// fetches of instructions are reads of data.
///
/// Writes are not tracked in this version: [`Format::DIRTY`] is nothing and no leaf has DBM. Hardware notes a write by
/// setting S2AP\[1\], which is no bit beside the permission but the permission: it is set from the start where writes are
/// not tracked, and a leaf that is made read-only could not keep the note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStage<const PAGE_SHIFT: u32 = 12, const INDEX_BITS: u32 = 9> {
    memory: MemoryType,
    /// What leaves have beside address, permissions and kind.
    attributes: u64,
}

/// Tables of the 16 KiB granule.
pub type SecondStage16K = SecondStage<14, 11>;
/// Tables of the 64 KiB granule.
pub type SecondStage64K = SecondStage<16, 13>;

impl<const PAGE_SHIFT: u32, const INDEX_BITS: u32> SecondStage<PAGE_SHIFT, INDEX_BITS> {
    const ADDRESS: u64 = address(PAGE_SHIFT);

    /// The format for a unit whose accesses are of this type, and snoop the CPU's caches or do not.
    pub const fn new(memory: MemoryType, coherent: bool) -> Self {
        let kind = match memory {
            MemoryType::AsSent => WRITE_BACK,
            MemoryType::ForcedWriteBack => FORCED_WRITE_BACK,
        };
        let shared = match coherent {
            true => INNER_SHAREABLE,
            false => OUTER_SHAREABLE,
        };
        Self {
            memory,
            attributes: kind | shared | ACCESSED | EXECUTE_NEVER,
        }
    }

    /// What its leaves say about memory: stream table entries have to agree.
    pub const fn memory(&self) -> MemoryType {
        self.memory
    }

    const fn permission_bits(perms: Perms) -> u64 {
        match perms {
            Perms::Read => READ,
            Perms::Write => WRITE,
            Perms::ReadWrite => READ | WRITE,
        }
    }

    const fn address(word: u64) -> PhysAddr {
        PhysAddr::new(word & Self::ADDRESS)
    }

    /// What a valid descriptor means.
    const fn decode_valid(word: u64, level: Level) -> Entry {
        let last = level.number() == Level::LEAF.number();
        let to = Self::address(word);
        match (word & TABLE_OR_PAGE != 0, last) {
            (true, true) | (false, false) => {
                match Perms::from_rights(word & READ != 0, word & WRITE != 0) {
                    Some(perms) => Entry::Leaf { to, perms },
                    None => Entry::Unknown(word),
                }
            }
            (true, false) => Entry::Table {
                page: to,
                written_back: word & WB != 0,
                frozen: word & F != 0,
            },
            (false, true) => Entry::Unknown(word),
        }
    }
}

// SAFETY: the tests below pin every clause: encoders and `decode` are inverse, a word is present exactly
// if it is a leaf or a link, the constants agree with `decode`, and addresses stand plainly in bits 47 down to
// the page's, so that the words of neighbouring pages differ by the span. A page of the last level looks like
// a link elsewhere, and `LINK` is asked for above that level only; the two differ in AF, which links never have.
unsafe impl<const PAGE_SHIFT: u32, const INDEX_BITS: u32> Format
    for SecondStage<PAGE_SHIFT, INDEX_BITS>
{
    const PAGE_SHIFT: u32 = PAGE_SHIFT;
    const INDEX_BITS: u32 = INDEX_BITS;
    const MOST_ROOT_TABLES: RootTables = RootTables::MAX;
    const ADDRESS: u64 = Self::ADDRESS;
    const LINK_MASK: u64 = VALID | TABLE_OR_PAGE | F;
    const LINK: u64 = VALID | TABLE_OR_PAGE;
    const PRESENT: u64 = VALID;
    const FROZEN: u64 = F;
    const WRITTEN_BACK: u64 = WB;
    const ACCESSED: u64 = 0;
    const DIRTY: u64 = 0;

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Entry {
        if word & VALID != 0 {
            return Self::decode_valid(word, level);
        }
        let page = Self::address(word);
        match word & !Self::ADDRESS {
            0 if word == 0 => Entry::Empty,
            K => Entry::Pending { to: page },
            _ if level == Level::LEAF => Entry::Unknown(word),
            mark if mark == TABLE_OR_PAGE | F => Entry::Tombstone { page },
            mark if mark & !WB == TABLE_OR_PAGE => Entry::PendingTable { page },
            _ => Entry::Unknown(word),
        }
    }

    #[inline]
    fn leaf(&self, level: Level, to: PhysAddr, perms: Perms) -> u64 {
        let kind = match level == Level::LEAF {
            true => VALID | TABLE_OR_PAGE,
            false => VALID,
        };
        let flag = if Fault::ClearAccessFlag.is_on() {
            ACCESSED
        } else {
            0
        };
        let attributes = self.attributes & !flag;
        to.as_u64() & Self::ADDRESS | Self::permission_bits(perms) | attributes | kind
    }

    fn doorbell(&self, to: PhysAddr, perms: Perms) -> u64 {
        // Shareability says nothing of device memory; outer shareable is what it is taken for.
        let attributes = DEVICE | OUTER_SHAREABLE | ACCESSED | EXECUTE_NEVER;
        let kind = VALID | TABLE_OR_PAGE;
        to.as_u64() & Self::ADDRESS | Self::permission_bits(perms) | attributes | kind
    }

    #[inline]
    fn table(&self, page: PhysAddr) -> u64 {
        page.as_u64() & Self::ADDRESS | VALID | TABLE_OR_PAGE
    }

    #[inline]
    fn pending(&self, word: u64) -> u64 {
        let kept = word & Self::ADDRESS;
        if Fault::PendingWithoutKind.is_on() {
            return kept;
        }
        kept | K
    }

    #[inline]
    fn tombstone(&self, page: PhysAddr) -> u64 {
        page.as_u64() & Self::ADDRESS | TABLE_OR_PAGE | F
    }
}

/// A table format that stream table entries can name: one of the granules.
pub trait StageTwo: Format {
    /// The size of its tables and smallest pages.
    const GRANULE: Granule;

    /// The format for a unit that snoops the CPU's caches, or does not. What devices send decides on memory types.
    fn for_unit(coherent: bool) -> Self;

    /// The levels at which tables of a unit with so many output bits may start.
    fn starts(output_bits: u8) -> LevelSet;

    /// What an entry says about a root on a unit that translates so many input bits, see
    /// [`SecondStage::root_fields`].
    fn fields(root: RootPointer, input_bits: u8) -> Option<RootFields>;
}

macro_rules! granules {
    ($($format:ty = $granule:expr,)*) => {$(
        impl StageTwo for $format {
            const GRANULE: Granule = $granule;

            fn for_unit(coherent: bool) -> Self {
                Self::new(MemoryType::AsSent, coherent)
            }

            fn starts(output_bits: u8) -> LevelSet {
                Self::levels(output_bits)
            }

            fn fields(root: RootPointer, input_bits: u8) -> Option<RootFields> {
                Self::root_fields(root, input_bits)
            }
        }
    )*};
}

granules! {
    SecondStage = Granule::Size4K,
    SecondStage16K = Granule::Size16K,
    SecondStage64K = Granule::Size64K,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERMS: [Perms; 3] = [Perms::Read, Perms::Write, Perms::ReadWrite];

    /// Runs a check on every granule, memory type and coherency: `(format, granule's shift, index bits)`.
    macro_rules! each_format {
        ($check:ident) => {
            for memory in [MemoryType::AsSent, MemoryType::ForcedWriteBack] {
                for coherent in [false, true] {
                    $check(SecondStage::<12, 9>::new(memory, coherent), 12, 9);
                    $check(SecondStage16K::new(memory, coherent), 14, 11);
                    $check(SecondStage64K::new(memory, coherent), 16, 13);
                }
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

    fn pages(span: u64) -> [PhysAddr; 5] {
        [0, span, 0x4000_0000, 0x5a5a_5a5a_5000, 0xffff_ffff_f000]
            .map(|page| PhysAddr::new(page & !(span - 1)))
    }

    fn is_link<F: Format>(_: F, word: u64) -> bool {
        word & F::LINK_MASK == F::LINK
    }

    #[test]
    fn leaves_are_what_was_encoded() {
        fn check<T: Format>(format: T, shift: u32, bits: u32) {
            for (level, span) in levels(shift, bits) {
                for (to, perms) in pages(span)
                    .into_iter()
                    .flat_map(|to| PERMS.map(|perms| (to, perms)))
                {
                    for mark in [0, WB, F, WB | F] {
                        let word = format.leaf(level, to, perms) | mark;
                        assert_eq!(format.decode(word, level), Entry::Leaf { to, perms });
                        assert_eq!(word & T::PRESENT, T::PRESENT);
                        assert!(level == Level::LEAF || !is_link(format, word));
                        assert_ne!(word & !mark, format.table(to), "no page is a link");
                        let pending = format.pending(word);
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
    fn a_doorbell_is_the_leaf_of_its_page_but_device_memory() {
        fn check<T: Format>(format: T, shift: u32, _bits: u32) {
            for (to, perms) in pages(1 << shift)
                .into_iter()
                .flat_map(|to| PERMS.map(|perms| (to, perms)))
            {
                let word = format.doorbell(to, perms);
                assert_eq!(format.decode(word, Level::LEAF), Entry::Leaf { to, perms });
                let leaf = format.leaf(Level::LEAF, to, perms);
                assert_eq!(format.pending(word), format.pending(leaf));
                // MemAttr and SH are all that is apart.
                assert_eq!((word ^ leaf) & !0x33c, 0);
                assert_eq!(word & 0x33c, 0x204, "Device-nGnRE, outer shareable");
            }
        }
        each_format!(check);
    }

    #[test]
    fn links_and_what_becomes_of_them_name_their_table() {
        fn check<T: Format>(format: T, shift: u32, bits: u32) {
            for (level, _) in levels(shift, bits).filter(|(level, _)| *level != Level::LEAF) {
                for page in pages(1 << shift) {
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
                        assert_eq!(word & T::ADDRESS, page.as_u64());
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
        let format = SecondStage::<12, 9>::new(MemoryType::AsSent, true);
        let (two, at) = (Level::new(2).unwrap(), PhysAddr::new(0x4080_0000));
        // QEMU walked `PA | 0x7ff` and `PA | 0x7fd`; XN is ours.
        let xn = 1 << 54;
        assert_eq!(
            format.leaf(Level::LEAF, at, Perms::ReadWrite),
            xn | 0x4080_07ff
        );
        assert_eq!(format.leaf(two, at, Perms::ReadWrite), xn | 0x4080_07fd);
        assert_eq!(format.leaf(two, at, Perms::Read), xn | 0x4080_077d);
        assert_eq!(format.leaf(two, at, Perms::Write), xn | 0x4080_07bd);
        assert_eq!(format.table(at), 0x4080_0003);
        assert_eq!(format.pending(xn | 0x4080_07ff), 0x0100_0000_4080_0000);
        assert_eq!(format.tombstone(at), 0x0400_0000_4080_0002);
        let forced = SecondStage::<12, 9>::new(MemoryType::ForcedWriteBack, false);
        assert_eq!(
            forced.leaf(Level::LEAF, at, Perms::ReadWrite),
            xn | 0x4080_06db
        );
    }

    #[test]
    fn present_for_hardware_is_leaf_or_table_for_us() {
        // Every combination of the bits that decide, at every level of each granule, with an address or without.
        fn check<T: Format>(format: T, shift: u32, bits: u32) {
            let deciding = [1, 2, READ, WRITE, K, WB, F, ACCESSED, 1 << 47];
            for (level, _) in levels(shift, bits) {
                for choice in 0u32..1 << deciding.len() {
                    let chosen = (0..deciding.len()).filter(|bit| choice >> bit & 1 != 0);
                    let word: u64 = chosen.map(|bit| deciding[bit]).sum();
                    let last = level == Level::LEAF;
                    let (reserved, leaf) = (last && word & 3 == 1, last || word & 3 == 1);
                    // Hardware takes it for valid; nobody of ours writes a leaf without rights.
                    let valid = word & 1 != 0 && !reserved;
                    let foreign = leaf && word & (READ | WRITE) == 0;
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
        let format = SecondStage::<12, 9>::new(MemoryType::AsSent, true);
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
}
