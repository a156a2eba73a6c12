//! Second-stage tables (VMSAv8-64): where a walk starts, and what descriptors say.
//!
//! After Linux `io-pgtable-arm.c`, which cites the Arm Architecture Reference Manual (DDI 0487).

use crate::bits::{bits, field};

/// Bytes of the smallest page, as a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granule(pub(crate) u8);

impl Granule {
    /// Bits of an address that one table resolves: descriptors have 8 bytes.
    pub(crate) const fn index_bits(self) -> u8 {
        self.0 - 3
    }

    /// Log2 of what an entry of an architectural level spans.
    pub(crate) const fn span(self, level: u8) -> u8 {
        self.0 + self.index_bits() * (3 - level)
    }

    /// Whether leaves may be at a level: 1 GiB and 2 MiB, 32 MiB, 512 MiB, and 4 TiB with 52 bits of address.
    pub(super) const fn has_block(self, level: u8, long: bool) -> bool {
        match (self.0, level) {
            (12, 1 | 2) | (14 | 16, 2) => true,
            (16, 1) => long,
            _ => level == 3,
        }
    }

    /// Bits of the longest address that descriptors of such tables can hold, without an extension (IDR5.DS) for the
    /// smaller ones.
    pub(super) const fn address_bits(self) -> u8 {
        if self.0 == 16 { 52 } else { 48 }
    }

    /// The output address in a descriptor that spans 2^`span` bytes: bits 47 and down. Of 64 KiB tables on a unit whose
    /// output has 52 bits, 51:48 are in 15:12; elsewhere those are reserved there.
    pub(super) fn output(self, word: u64, span: u32, long: bool) -> Result<u64, String> {
        let lower = word & bits(47, span);
        let low = word & bits(15, 12);
        match (self.0, long) {
            (16, true) => Ok(lower | low << 36),
            (16, false) if low != 0 => Err(format!(
                "{word:#x}: bits 15:12 are reserved where addresses have 48 bits"
            )),
            _ => Ok(lower),
        }
    }
}

/// S2AP\[1\] of a leaf: it is for writing, or with DBM it was written.
pub(crate) const WRITTEN: u64 = 1 << 7;

/// How wide a table's input is and where its walk starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) granule: Granule,
    /// Significant bits of the input.
    pub(crate) input_bits: u8,
    /// The architectural level of the root: 0 is the highest, 3 has only pages.
    pub(crate) start: u8,
    /// Significant bits of the output.
    pub(crate) output_bits: u8,
}

impl Shape {
    /// Whether descriptors hold addresses of 52 bits.
    pub(crate) const fn is_long(self) -> bool {
        self.granule.0 == 16 && self.output_bits == 52
    }

    /// What a context descriptor says of a first stage: the size tells the level. `wide`: the unit takes input of 52 bits.
    pub(crate) fn first(
        granule: Granule,
        size: u8,
        output_bits: u8,
        wide: bool,
    ) -> Result<Self, String> {
        // Of 40 and more with an extension (IDR3.STT), of less than 16 with another (IDR5.VAX).
        let least = if wide {
            64 - granule.address_bits()
        } else {
            16
        };
        if !(least..=39).contains(&size) {
            return Err(format!("expected TSZ of {least} to 39, found {size}"));
        }
        let input_bits = 64 - size;
        let resolved = input_bits - granule.0;
        Ok(Self {
            granule,
            input_bits,
            start: 3 - (resolved - 1) / granule.index_bits(),
            output_bits: output_bits.min(granule.address_bits()),
        })
    }

    /// Reads the fields of a stream's entry, on a unit whose addresses have `address_bits` bits.
    pub(crate) fn decode(
        granule: Granule,
        size: u8,
        start: u8,
        output_bits: u8,
        address_bits: u8,
    ) -> Result<Self, String> {
        // T0SZ of 40 and more takes an extension (IDR3.STT), of less than 16 the largest granule (IHI 0070, 5.2).
        let address_bits = address_bits.min(granule.address_bits());
        let least = 64 - granule.address_bits();
        if !(least..=39).contains(&size) {
            return Err(format!("expected S2T0SZ of {least} to 39, found {size}"));
        }
        let input_bits = 64 - size;
        if input_bits > address_bits {
            return Err(format!(
                "S2T0SZ {size} says {input_bits} bits of input, and the unit has {address_bits} (IDR5.OAS)"
            ));
        }
        let level = match (granule.0, start) {
            (12, 0) => 2,
            (12, 1) => 1,
            // With fewer address bits, tables of level 1 side by side are to be used (DDI 0487).
            (12, 2) if address_bits > 42 => 0,
            (14 | 16, 0) => 3,
            (14 | 16, 1) => 2,
            (14, 2) if address_bits > 40 => 1,
            (16, 2) if address_bits > 42 => 1,
            _ => {
                return Err(format!(
                    "S2SL0 {start} with pages of 2^{} bytes and {address_bits} address bits",
                    granule.0
                ));
            }
        };
        let span = granule.span(level);
        // One entry at least, and no more than sixteen tables side by side.
        let resolved = i16::from(input_bits) - i16::from(span);
        let most = i16::from(granule.index_bits()) + if level == 0 { 0 } else { 4 };
        if resolved < 1 || resolved > most {
            return Err(format!(
                "S2T0SZ {size} leaves {resolved} bits to a root of level {level}, expected 1 to {most}"
            ));
        }
        Ok(Self {
            granule,
            input_bits,
            start: level,
            output_bits: output_bits.min(address_bits),
        })
    }

    /// Bytes of the root, all its tables together.
    pub(crate) const fn root_bytes(self) -> u64 {
        let entries = self.input_bits - self.granule.span(self.start);
        let log2 = entries + 3;
        // Where there are few entries the table is as small as they are.
        if log2 < 6 { 1 << 6 } else { 1 << log2 }
    }

    /// Where the descriptor of an address lies in a table of this level.
    pub(crate) const fn word_at(self, table: u64, level: u8, address: u64) -> u64 {
        let index = address >> self.granule.span(level);
        // The root has all bits that are left, however many tables that takes.
        let index = if level == self.start {
            index
        } else {
            index & ((1 << self.granule.index_bits()) - 1)
        };
        table + index * 8
    }
}

/// What else decides about descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DescriptorLimits {
    /// Dirty bits are managed by the unit (S2HD).
    pub(crate) dirty: bool,
    /// The stream's entry has S2FWB.
    pub(crate) forced: bool,
    /// XN has two bits (IDR3.XNX).
    pub(crate) two_xn: bool,
    /// nT is known (IDR3.BBML of 1 or more).
    pub(crate) no_table: bool,
    /// Addresses have 52 bits ([`Shape::is_long`]).
    pub(crate) long: bool,
}

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    Absent,
    Table { at: u64 },
    Leaf(Leaf),
}

/// A block or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) to: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// It is for writing, and the unit has to set S2AP\[1\] before the first write (IHI 0070, 3.13.3.1).
    pub(crate) clean: bool,
    pub(crate) accessed: bool,
    /// One of a group that may be cached as one.
    pub(crate) contiguous: bool,
    /// Kept for every ASID.
    pub(crate) global: bool,
    pub(crate) memory: Memory,
}

/// What a leaf says about what is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Normal,
    /// Registers.
    Device,
    /// What the context descriptor says of this kind.
    Indexed(u8),
}

/// Decodes a descriptor of an architectural level. What is reserved is an error, whatever hardware makes of it.
pub(crate) fn decode(
    word: u64,
    level: u8,
    granule: Granule,
    limits: &DescriptorLimits,
) -> Result<Descriptor, String> {
    if word & 1 == 0 {
        return Ok(Descriptor::Absent);
    }
    let reserved = |mask: u64, what: &str| {
        if word & mask == 0 {
            Ok(())
        } else {
            Err(format!("{word:#x}: {what}"))
        }
    };
    let is_table = word & 2 != 0 && level < 3;
    if is_table {
        reserved(
            bits(63, 59),
            "bits 63:59 of a table are reserved in stage 2",
        )?;
        reserved(bits(50, 48), "bits 50:48 are reserved")?;
        if granule.0 == 14 {
            reserved(
                bits(13, 12),
                "the table is not where its granule has tables",
            )?;
        }
        let at = granule.output(word, granule.0.into(), limits.long)?;
        return Ok(Descriptor::Table { at });
    }
    if level == 3 && word & 2 == 0 {
        return Err(format!("{word:#x}: a block of level 3, which is reserved"));
    }
    if !granule.has_block(level, limits.long) {
        return Err(format!(
            "{word:#x}: a block of level {level} of pages of 2^{} bytes",
            granule.0
        ));
    }
    let span = u32::from(granule.span(level));
    let no_table = if limits.no_table && level < 3 {
        1 << 16
    } else {
        0
    };
    let to = granule.output(word, span, limits.long)?;
    let upper = if granule.0 == 16 { bits(15, 12) } else { 0 };
    if span > 12 {
        let below = bits(span - 1, 12) & !no_table & !upper;
        reserved(below, "address bits below its size are reserved")?;
    }
    reserved(bits(50, 48), "bits 50:48 are reserved")?;
    reserved(1 << 11, "bit 11 is reserved in stage 2")?;
    reserved(bits(62, 59), "bits 62:59 are not the driver's")?;
    if !limits.dirty {
        reserved(1 << 51, "DBM without dirty bits")?;
    }
    if !limits.two_xn {
        reserved(1 << 53, "XN[0] without IDR3.XNX")?;
    }
    let share = field(word, 9, 8);
    if share == 1 {
        return Err(format!("{word:#x}: SH 1 is reserved"));
    }
    let attributes = field(word, 5, 2);
    // Device memory; or write-back by force where the stream's entry has S2FWB, where nothing else makes what is sent
    // coherent, and write-back in both halves where it has not. A driver that has all its tables of one kind and the
    // entry of the other says something else by each of its leaves.
    let meant = if limits.forced {
        matches!(attributes, 0..=3 | 6)
    } else {
        attributes >> 2 == 0 || attributes == 0xf
    };
    if !meant {
        return Err(format!(
            "{word:#x}: MemAttr {attributes:#x} {} S2FWB is no memory that a driver asks for",
            if limits.forced { "with" } else { "without" }
        ));
    }
    let access = field(word, 7, 6);
    let (modifier, written) = (word & 1 << 51 != 0, access & 2 != 0);
    if limits.dirty && written && !modifier {
        return Err(format!(
            "{word:#x}: a leaf for writing without DBM, whose writes nobody notes, under S2HD"
        ));
    }
    Ok(Descriptor::Leaf(Leaf {
        to,
        read: access & 1 != 0,
        write: written || modifier,
        clean: modifier && !written,
        accessed: word & 1 << 10 != 0,
        contiguous: word & 1 << 52 != 0,
        global: false,
        // With S2FWB bit 2 of the attributes tells, without the upper two.
        memory: match limits.forced {
            true if attributes & 4 == 0 => Memory::Device,
            false if attributes >> 2 == 0 => Memory::Device,
            _ => Memory::Normal,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Granule = Granule(12);
    const PLAIN: DescriptorLimits = DescriptorLimits {
        dirty: false,
        forced: false,
        two_xn: false,
        no_table: false,
        long: false,
    };

    #[test]
    fn walks_start_where_size_and_level_agree() {
        let at = |size, start, bits| {
            let shape = Shape::decode(SMALL, size, start, 48, bits);
            shape.ok().map(|shape| (shape.start, shape.root_bytes()))
        };
        assert_eq!(at(25, 1, 48), Some((1, 0x1000)), "39 bits");
        assert_eq!(at(24, 1, 48), Some((1, 0x2000)), "two tables side by side");
        assert_eq!(at(21, 1, 48), Some((1, 0x1_0000)), "sixteen");
        assert_eq!(at(20, 1, 48), None, "too many");
        assert_eq!(at(20, 2, 48), Some((0, 0x100)), "five bits of level 0");
        assert_eq!(at(24, 2, 48), Some((0, 0x40)));
        assert_eq!(at(25, 2, 48), None, "nothing for level 0");
        assert_eq!(at(24, 2, 40), None, "40 bits have tables side by side");
        assert_eq!(at(24, 1, 40), Some((1, 0x2000)));
        assert_eq!(at(23, 1, 40), None, "wider than the unit");
        assert_eq!(at(30, 0, 40), Some((2, 0x1_0000)), "34 bits from level 2");
        assert_eq!(at(15, 2, 48), None);
        let large = Shape::decode(Granule(16), 22, 1, 48, 48).unwrap();
        assert_eq!((large.start, large.root_bytes()), (2, 0x1_0000));
        let middle = Shape::decode(Granule(14), 24, 1, 40, 40).unwrap();
        assert_eq!((middle.start, middle.root_bytes()), (2, 0x4_0000));
    }

    #[test]
    fn a_first_stage_starts_where_its_size_says() {
        let start = |granule, size| {
            let shape = Shape::first(Granule(granule), size, 48, false);
            shape.ok().map(|shape| (shape.start, shape.root_bytes()))
        };
        assert_eq!(start(12, 16), Some((0, 0x1000)));
        assert_eq!(start(12, 24), Some((0, 0x40)), "two entries");
        assert_eq!(start(12, 25), Some((1, 0x1000)));
        assert_eq!(start(12, 34), Some((2, 0x1000)));
        assert_eq!((start(12, 39), start(12, 40)), (Some((2, 0x80)), None));
        assert_eq!(start(14, 16), Some((0, 0x40)));
        assert_eq!(start(14, 17), Some((1, 0x4000)));
        assert_eq!(start(16, 22), Some((2, 0x1_0000)));
        assert_eq!(start(16, 16), Some((1, 0x200)));
    }

    #[test]
    fn long_addresses_are_those_of_the_largest_granule() {
        let second = |granule, size, start, unit| {
            let shape = Shape::decode(Granule(granule), size, start, 52, unit);
            shape
                .ok()
                .map(|shape| (shape.start, shape.output_bits, shape.is_long()))
        };
        assert_eq!(second(16, 12, 2, 52), Some((1, 52, true)));
        assert_eq!(second(16, 30, 1, 52), Some((2, 52, true)));
        assert_eq!(second(16, 12, 2, 48), None, "wider than the unit");
        assert_eq!(second(16, 16, 2, 48), Some((1, 48, false)));
        assert_eq!(second(12, 15, 2, 52), None);
        assert_eq!(second(12, 16, 2, 52), Some((0, 48, false)));
        assert_eq!(second(14, 17, 2, 52), Some((1, 48, false)));
        let first = |granule, size, wide| Shape::first(Granule(granule), size, 52, wide).ok();
        assert_eq!(first(16, 12, true).map(|shape| shape.start), Some(1));
        assert_eq!((first(16, 12, false), first(12, 12, true)), (None, None));
        assert_eq!(
            first(16, 16, true).map(|shape| shape.root_bytes()),
            Some(0x200)
        );
        let rest = 0xf << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10;
        let ask = |word, level, long| {
            let limits = DescriptorLimits { long, ..PLAIN };
            match decode(word, level, Granule(16), &limits) {
                Ok(Descriptor::Leaf(leaf)) => Some(leaf.to),
                Ok(Descriptor::Table { at }) => Some(at),
                _ => None,
            }
        };
        let page = 0x1234_5678_a000 | rest | 3;
        assert_eq!(ask(page, 3, true), Some(0xa_1234_5678_0000));
        assert_eq!(ask(page, 3, false), None, "reserved there");
        assert_eq!(ask(page & !0xf000, 3, false), Some(0x1234_5678_0000));
        assert_eq!(ask(0x1234_5678_a003, 2, true), Some(0xa_1234_5678_0000));
        assert_eq!(ask(0x1234_5678_a003, 2, false), None);
        let block = 0x1234_6000_b000 | rest | 1;
        assert_eq!(ask(block, 2, true), Some(0xb_1234_6000_0000));
        assert_eq!(ask(block | 1 << 20, 2, true), None, "below its size");
        let huge = 0x1400_0000_1000 | rest | 1;
        assert_eq!(ask(huge, 1, true), Some(0x1_1400_0000_0000));
        assert_eq!(ask(huge & !0xf000, 1, false), None, "no such block");
        assert_eq!(
            ask(page | 1 << 48, 3, true),
            None,
            "where others would have it"
        );
    }

    #[test]
    fn descriptors_say_what_is_reserved() {
        let leaf = 0x1_2345_6000 | 0xf << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10 | 0b11;
        let ask = |word, level| decode(word, level, SMALL, &PLAIN);
        let Ok(Descriptor::Leaf(found)) = ask(leaf, 3) else {
            panic!("a page");
        };
        assert!(found.read && found.write && found.accessed && !found.contiguous);
        assert_eq!(found.to, 0x1_2345_6000);
        assert_eq!(
            ask(0x1_2345_6003, 2),
            Ok(Descriptor::Table { at: 0x1_2345_6000 })
        );
        assert_eq!(ask(leaf & !1, 3), Ok(Descriptor::Absent));
        assert!(ask(leaf & !2, 3).is_err(), "a block of level 3");
        assert!(ask(leaf & !2, 2).is_err(), "bits below 2 MiB");
        assert!(ask(0x1_2340_0000 | leaf & 0xffd, 2).is_ok());
        assert!(
            ask(0x1_4000_0000 | leaf & 0xffd, 0).is_err(),
            "no block of level 0"
        );
        assert!(ask(leaf | 1 << 53, 3).is_err() && ask(leaf | 1 << 51, 3).is_err());
        assert!(ask(leaf ^ 0b1 << 9, 3).is_err(), "SH 1");
        assert!(ask(leaf & !(0b11 << 2), 3).is_err(), "half a cacheability");
        assert!(ask(0x1_2345_6003 | 1 << 59, 2).is_err());
        let forced = DescriptorLimits {
            forced: true,
            ..PLAIN
        };
        assert!(decode(leaf, 3, SMALL, &forced).is_err(), "as without S2FWB");
        assert!(decode(leaf ^ 0b1001 << 2, 3, SMALL, &forced).is_ok());
        assert!(ask(leaf ^ 0b1001 << 2, 3).is_err(), "as with S2FWB");
    }

    #[test]
    fn a_leaf_for_writing_is_clean_until_it_was_written() {
        let page = 0x1_2345_6000 | 0xf << 2 | 0b01 << 6 | 0b11 << 8 | 1 << 10 | 0b11;
        let noting = DescriptorLimits {
            dirty: true,
            ..PLAIN
        };
        let leaf = |word, limits| match decode(word, 3, SMALL, limits) {
            Ok(Descriptor::Leaf(leaf)) => Some((leaf.write, leaf.clean)),
            _ => None,
        };
        assert_eq!(leaf(page, &noting), Some((false, false)));
        assert_eq!(leaf(page | 1 << 51, &noting), Some((true, true)));
        assert_eq!(leaf(page | 1 << 51 | 1 << 7, &noting), Some((true, false)));
        assert_eq!(leaf(page | 1 << 7, &noting), None, "nobody would note it");
        assert_eq!(leaf(page | 1 << 51, &PLAIN), None, "nobody would set it");
    }
}
