//! The table format, of either stage: what an entry means, and its bits.
//!
//! One type serves both, with the stage as a value. What the engine tests on its way down (its constants) is the same in
//! both stages; what differs is in leaves: one bit of the permission, which is inverted, and attributes, which are a value
//! in any case. A type each would have made two backends of the crate, and whoever embeds it would have to choose one
//! before it knows the machine, or carry everything twice; and a machine with units of both kinds could not be had.

#![expect(
    unsafe_code,
    reason = "promises the table engine that its words mean what it is told"
)]

use hv_core::fault::Fault;
use hv_core::{Perms, PhysAddr};
use hv_iommu::{Entry, Format, LeafNeeds, Level, LevelSet, RootPointer, RootTables, Snoop};

use crate::root::RootFields;
use crate::spec::context::Half;
use crate::spec::first_stage::{
    DEVICE_INDEX, INVERTED, NEVER_EXECUTED, NOT_GLOBAL, UNPRIVILEGED, WRITE_BACK_INDEX, attribute,
};
use crate::spec::granule::Granule;
use crate::spec::second_stage::{
    ACCESSED, DEVICE, DIRTY_MODIFIER, EXECUTE_NEVER, F, FORCED_WRITE_BACK, IN_PLACE_BITS,
    INNER_SHAREABLE, K, OUTER_SHAREABLE, READ, TABLE_OR_PAGE, VALID, WB, WRITE, WRITE_BACK,
    WRITTEN, address, address_bits, fold, has_long, unfold,
};

/// What leaves say about the memory behind them: the same in all leaves of a domain, since the stream table entries of
/// its devices set S2FWB, or do not ([`Binding::leaves`](hv_iommu::Binding)). Units cache that with translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// The device's own choice stands.
    AsSent,
    /// All accesses are write-back, whatever the device asks for: nobody gets past the caches.
    ForcedWriteBack,
}

/// Which of its stages a unit translates a domain's addresses with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The first, by context descriptors: where there is no second one. For the hypervisor's own domains.
    First,
    /// The second: wherever there is one.
    Second,
}

/// Tables with pages of 2^`PAGE_SHIFT` bytes and 2^`INDEX_BITS` entries per table.
///
/// Hardware has 9, 11 and 13 index bits for pages of 4, 16 and 64 KiB. Models run the same code with fewer.
///
/// Words tell addresses of 48 bits, as they are; with pages of 64 KiB addresses of 52, whose upper four bits stand lower
/// ([`second_stage::has_long`](crate::spec::second_stage::has_long)). Addresses of 52 bits with smaller pages take descriptors
/// of another layout (FEAT_LPA2), which are not used: memory above 2^48 is out of reach for these tables, and refused.
///
/// An unmapped leaf keeps its address and [`K`], which all leaves have, a detached table its address and the bit that makes a valid
/// descriptor a table, an unlinked empty one [`F`] as well; none of them is valid. Leaves have AF set, since nobody
/// would set it for them, and forbid execution, which no mapping of ours grants: a device that says of a read that it
/// fetches an instruction is refused. Those of a first stage serve one ASID, and privileged requests and others
/// alike; there are none for writing alone ([`UnitCaps::write_only`](hv_iommu::UnitCaps::write_only)).
///
/// Hardware notes a write by setting S2AP\[1\] of a leaf that has DBM, which is no bit beside the permission but the
/// permission. So where writes are [noted](Self::second_that_notes), a leaf for writing has DBM from the start and is clean
/// without S2AP\[1\]; elsewhere it has S2AP\[1\] and no DBM. What software knows of writes stands in a bit of its own,
/// which a leaf that was made read-only can have, and a pending word.
///
/// Leaves never have the contiguous hint (16 of 4 KiB or 2 MiB, 128 of 16 KiB, 32 of 64 KiB). All leaves of a group have
/// to be one run with the same attributes as long as any of them has it, so whoever unmaps or protects one of them takes
/// the hint off all of the group first, and flushes that: units of BBML 1 and 2 follow such a change without a gap (IHI
/// 0070, 3.21.1.2 and 3.21.1.3), others take all of it out. But a range is cut at any page without a look at the table, and
/// from then on the group's words have two owners, each of which writes its own alone (rule 3), with plain stores and no
/// flush in between; and of a group that is noted as written all leaves would have to be clean or written at once. It
/// could be had for ranges that say at their map that they are never cut, protected or noted. No caller says so today, and
/// where a run is long and aligned enough, the next size of pages does more: so it is left out.
///
/// # Invariants
/// `leaves` have [`K`], each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmsa<const PAGE_SHIFT: u32 = 12, const INDEX_BITS: u32 = 9> {
    stage: Stage,
    /// What a leaf has beside address and kind, for reading, for writing and for both: one value to read, where each bit of
    /// it that was put together for a leaf would cost a step.
    leaves: [u64; 3],
    /// Which bits of the permission are there the other way round.
    inverted: u64,
    /// What lets devices write.
    write: u64,
    /// What of that hardware sets at the first write.
    notes: u64,
}

/// Tables of the 16 KiB granule.
pub type Vmsa16K = Vmsa<14, 11>;
/// Tables of the 64 KiB granule.
pub type Vmsa64K = Vmsa<16, 13>;

impl<const PAGE_SHIFT: u32, const INDEX_BITS: u32> Vmsa<PAGE_SHIFT, INDEX_BITS> {
    const ADDRESS: u64 = address(PAGE_SHIFT);

    /// Second-stage tables for a unit whose accesses are of this type, and snoop the CPU's caches or do not.
    pub const fn second(memory: MemoryType, coherent: bool) -> Self {
        let kind = match memory {
            MemoryType::AsSent => WRITE_BACK,
            MemoryType::ForcedWriteBack => FORCED_WRITE_BACK,
        };
        Self::with(
            Stage::Second,
            kind | shared(coherent) | ACCESSED | EXECUTE_NEVER | K,
            (0, WRITE, 0),
        )
    }

    /// The same for a unit that snoops, which it has to, and notes in leaves what devices write: for tables with
    /// [`dirty`](hv_iommu::table::Geometry::dirty).
    pub const fn second_that_notes(memory: MemoryType) -> Self {
        let [attributes, ..] = Self::second(memory, true).leaves;
        Self::with(
            Stage::Second,
            attributes & !READ,
            (0, DIRTY_MODIFIER, WRITE),
        )
    }

    /// First-stage tables for a unit that snoops the CPU's caches or does not. What a device sends is write-back in any
    /// case: a first stage's leaves say so in place of the device.
    pub const fn first(coherent: bool) -> Self {
        let kind = attribute(WRITE_BACK_INDEX) | UNPRIVILEGED | NOT_GLOBAL;
        Self::with(
            Stage::First,
            kind | shared(coherent) | ACCESSED | NEVER_EXECUTED | K,
            (INVERTED, WRITE, 0),
        )
    }

    const fn with(
        stage: Stage,
        attributes: u64,
        (inverted, write, notes): (u64, u64, u64),
    ) -> Self {
        let format = Self {
            stage,
            leaves: [0; 3],
            inverted,
            write,
            notes,
        };
        Self {
            leaves: [
                attributes | format.permission_bits(Perms::Read),
                attributes | format.permission_bits(Perms::Write),
                attributes | format.permission_bits(Perms::ReadWrite),
            ],
            ..format
        }
    }

    /// Of which stage its tables are.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    const fn permission_bits(&self, perms: Perms) -> u64 {
        let allowed = match perms {
            Perms::Read => READ,
            Perms::Write => self.write,
            Perms::ReadWrite => READ | self.write,
        };
        allowed ^ self.inverted
    }

    /// What a leaf grants; `None` for one that nobody of ours wrote.
    const fn permissions(&self, word: u64) -> Option<Perms> {
        let granted = word ^ self.inverted;
        // Clean or written: what hardware makes of the one by itself is for writing.
        let writable = granted & (self.write | WRITE) != 0;
        // Most leaves can be read: one test, and the stage does not matter.
        match (granted & READ != 0, writable, self.stage) {
            (true, true, _) => Some(Perms::ReadWrite),
            (true, false, _) => Some(Perms::Read),
            (false, true, Stage::Second) => Some(Perms::Write),
            (false, _, _) => None,
        }
    }

    /// Attributes that a deliberate fault leaves out of leaves.
    #[inline]
    fn left_out(&self) -> u64 {
        let first = |bits| match self.stage {
            Stage::First => bits,
            Stage::Second => 0,
        };
        if Fault::ClearAccessFlag.is_on() {
            return ACCESSED;
        }
        if Fault::LeafForEveryAsid.is_on() {
            return first(NOT_GLOBAL);
        }
        if Fault::LeafForPrivileged.is_on() {
            return first(UNPRIVILEGED);
        }
        0
    }

    #[inline(always)]
    const fn told(word: u64) -> PhysAddr {
        PhysAddr::new(unfold(PAGE_SHIFT, word))
    }

    /// What words say of an address.
    #[inline(always)]
    const fn telling(to: PhysAddr) -> u64 {
        fold(PAGE_SHIFT, to.as_u64())
    }

    /// The same for a leaf: here deliberate faults are made.
    #[inline(always)]
    fn telling_page(to: PhysAddr) -> u64 {
        let upper = to.as_u64() >> IN_PLACE_BITS << IN_PLACE_BITS;
        let lower = PhysAddr::new(to.as_u64() - upper);
        if Fault::DropHighAddress.is_on() {
            return Self::telling(lower);
        }
        if Fault::HighAddressInPlace.is_on() {
            return Self::telling(lower) | upper;
        }
        Self::telling(to)
    }

    /// What a valid descriptor means.
    const fn decode_valid(&self, word: u64, level: Level) -> Entry {
        let last = level.number() == Level::LEAF.number();
        let to = Self::told(word);
        match (word & TABLE_OR_PAGE != 0, last) {
            (true, true) | (false, false) => match self.permissions(word) {
                Some(perms) => Entry::Leaf { to, perms },
                None => Entry::Unknown(word),
            },
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
// the page's, so that the words of neighbouring pages differ by the span as long as nothing is carried beyond. A page of the last level looks like
// a link elsewhere, and `LINK` is asked for above that level only; the two differ in AF, which links never have.
unsafe impl<const PAGE_SHIFT: u32, const INDEX_BITS: u32> Format for Vmsa<PAGE_SHIFT, INDEX_BITS> {
    const PAGE_SHIFT: u32 = PAGE_SHIFT;
    const INDEX_BITS: u32 = INDEX_BITS;
    const MOST_ROOT_TABLES: RootTables = RootTables::MAX;
    const ADDRESS: u64 = Self::ADDRESS;
    const OUTPUT_BITS: u32 = address_bits(PAGE_SHIFT);
    const CARRY_BITS: u32 = match has_long(PAGE_SHIFT) {
        true => IN_PLACE_BITS,
        false => u64::BITS,
    };
    const LINK_MASK: u64 = VALID | TABLE_OR_PAGE | F;
    const LINK: u64 = VALID | TABLE_OR_PAGE;
    const PRESENT: u64 = VALID;
    const FROZEN: u64 = F;
    const WRITTEN_BACK: u64 = WB;
    const ACCESSED: u64 = 0;
    const DIRTY: u64 = WRITE | WRITTEN;
    const NOTED: u64 = WRITTEN;

    #[inline(always)]
    fn address(word: u64) -> PhysAddr {
        Self::told(word)
    }

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Entry {
        if word & VALID != 0 {
            return self.decode_valid(word, level);
        }
        let page = Self::told(word);
        match word & !Self::ADDRESS {
            0 if word == 0 => Entry::Empty,
            mark if mark & !WRITTEN == K => Entry::Pending { to: page },
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
        let [read, write, both] = self.leaves;
        let word = match perms {
            Perms::Read => read,
            Perms::Write => write,
            Perms::ReadWrite => both,
        };
        Self::telling_page(to) | word & !self.left_out() | kind
    }

    fn doorbell(&self, to: PhysAddr, perms: Perms) -> u64 {
        // Shareability says nothing of device memory; outer shareable is what it is taken for.
        let attributes = match self.stage {
            Stage::First => attribute(DEVICE_INDEX) | UNPRIVILEGED | NOT_GLOBAL | NEVER_EXECUTED,
            Stage::Second => DEVICE | EXECUTE_NEVER,
        };
        let kind = VALID | TABLE_OR_PAGE | OUTER_SHAREABLE | ACCESSED | K;
        Self::telling(to) | self.permission_bits(perms) | attributes | kind
    }

    fn notes_writes(&self) -> bool {
        self.notes != 0
    }

    #[inline]
    fn table(&self, page: PhysAddr) -> u64 {
        Self::telling(page) | VALID | TABLE_OR_PAGE
    }

    #[inline]
    fn noted(&self, word: u64) -> u64 {
        match word & (self.notes | WRITTEN) {
            0 => 0,
            _ => WRITTEN,
        }
    }

    #[inline]
    fn pending(&self, word: u64) -> u64 {
        // K is there already: putting it in would be a step of each unmap.
        let kept = word & (Self::ADDRESS | WRITTEN | K);
        match Fault::PendingWithoutKind.is_on() {
            true => kept & !K,
            false => kept,
        }
    }

    #[inline]
    fn tombstone(&self, page: PhysAddr) -> u64 {
        Self::telling(page) | TABLE_OR_PAGE | F
    }
}

/// Which accesses a leaf's memory is shared with.
const fn shared(coherent: bool) -> u64 {
    match coherent {
        true => INNER_SHAREABLE,
        false => OUTER_SHAREABLE,
    }
}

/// A table format that entries and descriptors can name: one of the granules.
pub trait Tables: Format {
    /// The size of its tables and smallest pages.
    const GRANULE: Granule;

    /// The format for a unit that translates by this stage, and snoops the CPU's caches or does not. What leaves are to do
    /// beside that, a second stage's do alone: no unit with a first stage only says that it can.
    fn for_unit(stage: Stage, coherent: bool, leaves: LeafNeeds) -> Self;

    /// The levels at which tables of a unit may start that translates so many input bits by this stage.
    fn starts(stage: Stage, input_bits: u8) -> LevelSet;

    /// What a stream table entry says about a second stage's root on a unit that translates so many input bits, see
    /// [`Vmsa::root_fields`].
    fn fields(root: RootPointer, input_bits: u8) -> Option<RootFields>;

    /// What a context descriptor says about a first stage's root, see [`Vmsa::lower_half`].
    fn half(root: RootPointer, input_bits: u8) -> Option<Half>;
}

macro_rules! granules {
    ($($format:ty = $granule:expr,)*) => {$(
        impl Tables for $format {
            const GRANULE: Granule = $granule;

            fn for_unit(stage: Stage, coherent: bool, leaves: LeafNeeds) -> Self {
                let memory = match leaves.snoop {
                    Snoop::Forced if !Fault::LeavesNotForced.is_on() => MemoryType::ForcedWriteBack,
                    Snoop::Forced | Snoop::AsAsked => MemoryType::AsSent,
                };
                match stage {
                    Stage::First => Self::first(coherent),
                    Stage::Second if leaves.dirty => Self::second_that_notes(memory),
                    Stage::Second => Self::second(memory, coherent),
                }
            }

            fn starts(stage: Stage, input_bits: u8) -> LevelSet {
                match stage {
                    Stage::First => Self::first_levels(input_bits),
                    Stage::Second => Self::levels(input_bits),
                }
            }

            fn fields(root: RootPointer, input_bits: u8) -> Option<RootFields> {
                Self::root_fields(root, input_bits)
            }

            fn half(root: RootPointer, input_bits: u8) -> Option<Half> {
                Self::lower_half(root, input_bits)
            }
        }
    )*};
}

granules! {
    Vmsa = Granule::Size4K,
    Vmsa16K = Granule::Size16K,
    Vmsa64K = Granule::Size64K,
}

#[cfg(test)]
mod tests;
