//! A walker of tables of VMSAv8-64, of either stage, that shares no line and no constant with the engine.
//!
//! Written from what the hardware does with the fields of a stream table entry, or context descriptor, and with those of
//! a table. Of a second stage: the granule
//! (S2TG) gives the size of a page and the bits that a level resolves; S2SL0 says at which level walks start, S2T0SZ
//! how many input bits there are. What the start level resolves is all that is left of them: up to four bits more than
//! the others, so that its table is up to 16 times as large, and aligned to its size. Bit 0 clear means a fault and
//! the rest is ignored. At level 3 bit 1 makes a page and its absence is reserved; above it makes a table and
//! its absence a block, which there are at levels 1 and 2 with pages of 4 KiB, with pages of 64 KiB and 52 bits of output,
//! and at level 2 else. Bits 47 down to the granule are the address, of which a block's low ones are reserved, and those from
//! the output size on fault. With pages of 64 KiB bits 15:12 are the address's bits 51:48.
//! Without AF (bit 10) an access faults. S2AP (7:6) is the permission, of the leaf alone; where writes are noted, DBM (51)
//! says that it is for writing, and hardware sets bit 7 when it was. Software owns 58:55.
//!
//! Of a first stage: T0SZ alone says where walks start, at the level that resolves the highest input bit, with one table.
//! AP (7:6) is the permission: bit 6 lets requests without privilege in, bit 7 keeps everybody from writing. Bits 4:2 name
//! the memory's type, bit 5 is ignored, nG (bit 11) has to be set since the tables are one domain's, and PXN beside XN.
//! Sources: Linux `io-pgtable-arm.c`, Xen and QEMU `smmuv3`.

use crate::walker::{BadWord, Found};

/// Whose tables they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A context descriptor's.
    First,
    /// A stream table entry's.
    Second,
}

/// What the entry or descriptor says, and how to read.
pub struct Walker<R> {
    /// Reads the word with this index of the 4 KiB frame at this address.
    pub read: R,
    /// Of which stage they are.
    pub stage: Stage,
    /// S2TTB, TTB0.
    pub root: u64,
    /// S2TG, TG0: 0 is 4 KiB, 1 is 64 KiB, 2 is 16 KiB.
    pub granule: u8,
    /// S2SL0. A first stage has no such thing.
    pub start: u8,
    /// S2T0SZ, T0SZ.
    pub size: u8,
    /// How many bits of address there are behind the tables.
    pub output_bits: u32,
    /// What each leaf has to say about memory and for whom it is: bits 5:2, 9:8, and of a first stage 11.
    pub attributes: u64,
    /// Whether hardware was told to note writes (S2HD, with S2HA).
    pub notes_writes: bool,
}

/// A leaf in which hardware may set bit 7.
const DBM: u64 = 1 << 51;

/// A word that a walk reads: its table, its index and the level.
type Step = ((u64, u64), u32);

enum Word {
    Absent,
    Leaf(u64),
    Table(u64),
}

impl<R: Fn(u64, usize) -> u64> Walker<R> {
    /// Log2 of a page's bytes, and the bits of a level.
    fn granule(&self) -> (u32, u32) {
        let page = [12, 16, 14][usize::from(self.granule)];
        (page, page - 3)
    }

    /// The level at which walks start, as the architecture counts: 3 is that of pages.
    fn start_level(&self) -> u32 {
        match (self.stage, self.granule) {
            (Stage::First, _) => {
                let (page, stride) = self.granule();
                4 - (self.input_bits() - page).div_ceil(stride)
            }
            (Stage::Second, 0) => 2 - u32::from(self.start),
            (Stage::Second, _) => 3 - u32::from(self.start),
        }
    }

    /// The lowest input bit that a level resolves.
    fn shift(&self, level: u32) -> u32 {
        let (page, stride) = self.granule();
        page + stride * (3 - level)
    }

    fn input_bits(&self) -> u32 {
        64 - u32::from(self.size)
    }

    /// How many bits the start level resolves.
    ///
    /// # Panics
    /// If no unit would take such an entry.
    pub fn start_bits(&self) -> u32 {
        let bits = self.input_bits() - self.shift(self.start_level());
        let (_, stride) = self.granule();
        let beside = match self.stage {
            Stage::First => 0,
            Stage::Second => 4,
        };
        assert!(
            (1..=stride + beside).contains(&bits),
            "{bits} bits at the start"
        );
        let least = if self.granule == 1 { 12 } else { 16 };
        assert!((least..=39).contains(&self.size), "S2T0SZ of {}", self.size);
        assert_eq!(self.root & ((8 << bits) - 1), 0, "S2TTB {:#x}", self.root);
        bits
    }

    fn load(&self, table: u64, index: u64) -> u64 {
        let at = table + index * 8;
        (self.read)(at & !0xfff, (at & 0xfff) as usize / 8)
    }

    fn index(&self, at: u64, level: u32) -> u64 {
        let bits = match level == self.start_level() {
            true => self.start_bits(),
            false => self.granule().1,
        };
        at >> self.shift(level) & ((1 << bits) - 1)
    }

    /// Walks the tables for `at`. `None` is a fault for lack of a mapping.
    ///
    /// # Errors
    /// [`BadWord`] at the first one on the way.
    pub fn walk(&self, at: u64) -> Result<Option<Found>, BadWord> {
        let Some(((table, index), level)) = self.steps(at)?.pop() else {
            return Ok(None);
        };
        let word = self.load(table, index);
        Ok(match self.word(word, level)? {
            Word::Leaf(page) => Some(Found {
                to: page + (at & ((1 << self.shift(level)) - 1)),
                readable: word & 0x40 != 0,
                writable: match self.stage {
                    Stage::First => word & 0x80 == 0,
                    Stage::Second => word & 0x80 != 0 || self.notes_writes && word & DBM != 0,
                },
                level: 4 - level,
            }),
            _ => None,
        })
    }

    /// The words that a walk for `at` reads, root first, each as its table and its index; none when the
    /// walk ends in a fault.
    ///
    /// # Errors
    /// [`BadWord`] at the first one on the way.
    pub fn path(&self, at: u64) -> Result<Vec<(u64, usize)>, BadWord> {
        let frame = |((table, index), _): Step| {
            let at = table + index * 8;
            (at & !0xfff, (at & 0xfff) as usize / 8)
        };
        Ok(self.steps(at)?.into_iter().map(frame).collect())
    }

    /// Each word of a walk that ends at a leaf, with its level.
    fn steps(&self, at: u64) -> Result<Vec<Step>, BadWord> {
        let mut steps = vec![];
        if at >> self.input_bits() != 0 {
            return Ok(steps);
        }
        let mut table = self.root;
        for level in self.start_level()..=3 {
            let index = self.index(at, level);
            steps.push(((table, index), level));
            match self.word(self.load(table, index), level)? {
                Word::Absent => return Ok(vec![]),
                Word::Leaf(_) => break,
                Word::Table(below) => table = below,
            }
        }
        Ok(steps)
    }

    /// Shows every table: its level counted from the leaves, and the addresses that it translates divided by its span.
    /// Tables that stand side by side as the root are shown one by one.
    ///
    /// # Errors
    /// [`BadWord`] at the first one in any table.
    pub fn tables(&self, mut show: impl FnMut(u32, u64)) -> Result<(), BadWord> {
        let (_, stride) = self.granule();
        let start = self.start_level();
        let more = self.start_bits().saturating_sub(stride);
        let roots =
            (0..1_u64 << more).map(|number| (start, self.root + (number << (stride + 3)), number));
        let mut left: Vec<_> = roots.collect();
        while let Some((level, table, prefix)) = left.pop() {
            show(4 - level, prefix);
            for index in 0..1 << stride {
                if let Word::Table(below) = self.word(self.load(table, index), level)? {
                    left.push((level + 1, below, prefix << stride | index));
                }
            }
        }
        Ok(())
    }

    fn word(&self, word: u64, level: u32) -> Result<Word, BadWord> {
        let bad = |reason| BadWord {
            word,
            level,
            reason,
        };
        if word & 1 == 0 {
            return Ok(Word::Absent);
        }
        let (page, _) = self.granule();
        let low = word & 0xf000 & ((1 << page) - 1);
        let mut address = word & 0x0000_ffff_ffff_ffff & !((1 << page) - 1);
        match self.granule {
            1 => address += low << 36,
            _ if low != 0 => return Err(bad("an address that is not aligned")),
            _ => {}
        }
        if address >> self.output_bits != 0 {
            return Err(bad("an address beyond the output size"));
        }
        if word >> 59 != 0 || word >> 48 & 7 != 0 {
            return Err(bad("a bit that is reserved or means something else"));
        }
        match (level, word & 2 != 0) {
            (3, false) => return Err(bad("the reserved coding of the last level")),
            (3, true) => {}
            (_, true) => {
                // 11:2 and 54:51 are ignored, and none of ours.
                return match word & 0x0078_0000_0000_0000 == 0
                    && word & 0xffc & ((1 << page) - 1) == 0
                {
                    true => Ok(Word::Table(address)),
                    false => Err(bad("a link with more than an address")),
                };
            }
            (2, false) => {}
            (1, false) if self.granule == 0 => {}
            (1, false) if self.granule == 1 && self.output_bits == 52 => {}
            (_, false) => return Err(bad("a block where there are none")),
        }
        if address & ((1 << self.shift(level)) - 1) != 0 {
            return Err(bad("a block that is not aligned to its size"));
        }
        if word & 1 << 10 == 0 {
            return Err(bad("a page whose access faults"));
        }
        if word & 0xb3c != self.attributes {
            return Err(bad("a page of another kind of memory, or for others too"));
        }
        if word & DBM != 0 && !self.notes_writes {
            return Err(bad("a page that hardware is not to write about"));
        }
        if word & DBM == 0 && word & 0x80 != 0 && self.notes_writes {
            return Err(bad("a page that is written without a note"));
        }
        let (usable, never) = match self.stage {
            Stage::First => (word & 0x40 != 0, 3 << 53),
            Stage::Second => (word & (0xc0 | DBM) != 0, 1 << 54),
        };
        if !usable {
            return Err(bad("a page without permission"));
        }
        // Nothing may be executed, and no promise about neighbours.
        if word & 0x0070_0000_0000_0000 != never {
            return Err(bad(
                "a page that may be executed, or with a hint that nobody asked for",
            ));
        }
        Ok(Word::Leaf(address))
    }
}
