//! A walker of VT-d second-stage tables that shares no line and no constant with the engine.
//!
//! Written from what the hardware does with a word: bit 0 allows reads, bit 1 writes, neither means not
//! present and the rest is ignored; above the last level, bit 7 makes a leaf of 2 MiB or 1 GiB; bits
//! 51:12 are the address, of which those from the host address width on are reserved, as are a large
//! leaf's low address bits, bit 7 above level 3, bit 11 and bit 62. Software owns 10, 61:52 and 63.
//! Permissions of all levels are combined. Where accesses are noted, hardware sets bit 8 in each word that it
//! walks through and bit 9 in a leaf that it writes through; else nobody may have set them. Sources: Linux `generic_pt` `vtdss.h`, Xen `vtd/iommu.h`,
//! QEMU `intel_iommu.c`.

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The physical address of the byte.
    pub to: u64,
    /// Whether reads pass.
    pub readable: bool,
    /// Whether writes pass.
    pub writable: bool,
    /// The level of the leaf: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    pub level: u32,
}

/// A word that hardware refuses, or that hardware has a use for which nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWord {
    /// The word.
    pub word: u64,
    /// The level of its table.
    pub level: u32,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What is linked at a word: nothing, a page, a table.
enum Word {
    Absent,
    Leaf(u64),
    Table(u64),
}

/// A root table and how to read.
pub struct Walker<R> {
    /// Reads the word with this index of the table at this address.
    pub read: R,
    /// The address of the root table.
    pub root: u64,
    /// The root's level: 3 for 39 bits, 4 for 48.
    pub levels: u32,
    /// How many address bits the machine has.
    pub host_width: u32,
    /// Whether the hardware was told to note accesses (bit 8) and, in leaves, writes (bit 9).
    pub notes_accesses: bool,
}

impl<R: Fn(u64, usize) -> u64> Walker<R> {
    /// Walks the tables for `at`. `None` is a fault for lack of a mapping.
    ///
    /// # Errors
    /// [`BadWord`] at the first one on the way.
    pub fn walk(&self, at: u64) -> Result<Option<Found>, BadWord> {
        if at >> (12 + 9 * self.levels) != 0 {
            return Ok(None);
        }
        let (mut level, mut table) = (self.levels, self.root);
        let (mut readable, mut writable) = (true, true);
        loop {
            let shift = 12 + 9 * (level - 1);
            let word = (self.read)(table, (at >> shift) as usize & 511);
            readable &= word & 1 != 0;
            writable &= word & 2 != 0;
            match self.word(word, level)? {
                Word::Absent => return Ok(None),
                Word::Leaf(page) => {
                    return Ok(Some(Found {
                        to: page + (at & ((1 << shift) - 1)),
                        readable,
                        writable,
                        level,
                    }));
                }
                Word::Table(below) => {
                    table = below;
                    level -= 1;
                }
            }
        }
    }

    /// The words that a walk for `at` reads, root first, each as its table and its index; none when the
    /// walk ends in a fault.
    ///
    /// # Errors
    /// [`BadWord`] at the first one on the way.
    pub fn path(&self, at: u64) -> Result<Vec<(u64, usize)>, BadWord> {
        if at >> (12 + 9 * self.levels) != 0 {
            return Ok(vec![]);
        }
        let (mut table, mut path) = (self.root, vec![]);
        for level in (1..=self.levels).rev() {
            let index = (at >> (12 + 9 * (level - 1))) as usize & 511;
            path.push((table, index));
            match self.word((self.read)(table, index), level)? {
                Word::Absent => return Ok(vec![]),
                Word::Leaf(_) => break,
                Word::Table(below) => table = below,
            }
        }
        Ok(path)
    }

    /// Shows every table: its level, and the addresses that it translates divided by its span.
    ///
    /// # Errors
    /// [`BadWord`] at the first one in any table.
    pub fn tables(&self, mut show: impl FnMut(u32, u64)) -> Result<(), BadWord> {
        let mut left = vec![(self.levels, self.root, 0)];
        while let Some((level, table, prefix)) = left.pop() {
            show(level, prefix);
            for index in 0..512 {
                if let Word::Table(below) = self.word((self.read)(table, index), level)? {
                    left.push((level - 1, below, prefix << 9 | index as u64));
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
        if word & 3 == 0 {
            return Ok(Word::Absent);
        }
        let address = word & 0x000f_ffff_ffff_f000;
        let large = word & 0x80 != 0;
        let noted = match self.notes_accesses {
            true if level == 1 || large => 0x300,
            true => 0x100,
            false => 0,
        };
        if word & 0x4000_0000_0000_0b7c & !noted != 0 {
            return Err(bad("a bit that is reserved or means something else"));
        }
        if address >> self.host_width != 0 {
            return Err(bad("an address beyond the host's width"));
        }
        if level == 1 || large {
            if level > 3 {
                return Err(bad("a page larger than 1 GiB"));
            }
            if address & ((1 << (12 + 9 * (level - 1))) - 1) != 0 {
                return Err(bad("a large page that is not aligned to its size"));
            }
            return Ok(Word::Leaf(address));
        }
        if word & 3 != 3 {
            return Err(bad("a link that takes rights away"));
        }
        Ok(Word::Table(address))
    }
}
