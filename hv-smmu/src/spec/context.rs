//! Context descriptors: the first-stage tables of a stream, or of a substream of it.
//!
//! As with stream table entries, the words are private. How tables of them lie: IHI 0070, 5.2 (STE.S1Fmt) and 5.3. Source
//! of the rest: Linux `arm-smmu-v3.h` (`CTXDESC_*`) and
//! `arm-smmu-v3.c` (`arm_smmu_get_cd_used`), QEMU `smmuv3-internal.h`.

use bitfield_struct::bitfield;
use hv_core::PhysAddr;
use static_assertions::const_assert_eq;

use super::granule::{Granule, OutputSize};
use super::id_registers::{OnFault, WritesDirty};
use super::walk::Walk;
use crate::Asid;

/// Bytes of a context descriptor; they are aligned to it.
pub const CONTEXT_BYTES: u64 = 64;
/// 64-bit words of a context descriptor.
pub const WORDS: usize = 8;
const_assert_eq!((WORDS * size_of::<u64>()) as u64, CONTEXT_BYTES);
/// Context descriptors of one leaf of a two-level table: 64 KiB.
pub const LEAF_CONTEXTS: u32 = 1024;
/// Log2 of the context descriptors of one leaf of a two-level table whose leaves are pages of 4 KiB.
pub const PAGE_CONTEXTS_LOG2: u8 = 6;
/// That many.
pub const PAGE_CONTEXTS: u32 = 1 << PAGE_CONTEXTS_LOG2;
const_assert_eq!(PAGE_CONTEXTS as u64 * CONTEXT_BYTES, 4096);
/// Bytes of a descriptor of the first level. The level is aligned to its size, and to 64 bytes at least.
pub const LEVEL_1_BYTES: u64 = 8;
/// Low bits of a leaf's address that its descriptor leaves out.
const LEAF_SHIFT: u32 = 12;

/// A descriptor of the first level: where 1024 context descriptors are, or 64. One 64-bit store replaces it.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Level1Context {
    /// There are some (bit 0).
    pub v: bool,
    #[bits(11)]
    __: u16,
    /// Their page number (bits 51:12).
    #[bits(40)]
    pub page: u64,
    #[bits(12)]
    __: u16,
}

impl Level1Context {
    /// To the leaf at `address`, a multiple of its size below 2^52.
    pub const fn to(address: u64) -> Self {
        Self::new()
            .with_v(true)
            .with_page(address >> LEAF_SHIFT & (u64::MAX >> (2 * LEAF_SHIFT)))
    }

    /// Where the leaf is; 0 for nowhere.
    pub const fn address(self) -> u64 {
        match self.v() {
            true => self.page() << LEAF_SHIFT,
            false => 0,
        }
    }
}

#[bitfield(u64)]
struct Word0 {
    /// Lower half: 64 less the bits of an address (bits 5:0).
    #[bits(6)]
    t0sz: u8,
    /// Granule (bits 7:6).
    #[bits(2)]
    tg0: u8,
    /// Walks, inner cacheability (bits 9:8).
    #[bits(2)]
    ir0: u8,
    /// Outer (bits 11:10).
    #[bits(2)]
    or0: u8,
    /// Shareability (bits 13:12).
    #[bits(2)]
    sh0: u8,
    /// The lower half is not walked (bit 14).
    epd0: bool,
    /// Big-endian tables (bit 15).
    endi: bool,
    /// Upper half: 64 less the bits of an address (bits 21:16).
    #[bits(6)]
    t1sz: u8,
    /// Granule (bits 23:22), in another code.
    #[bits(2)]
    tg1: u8,
    /// Walks, inner cacheability (bits 25:24).
    #[bits(2)]
    ir1: u8,
    /// Outer (bits 27:26).
    #[bits(2)]
    or1: u8,
    /// Shareability (bits 29:28).
    #[bits(2)]
    sh1: u8,
    /// The upper half is not walked (bit 30).
    epd1: bool,
    /// The descriptor is valid (bit 31).
    v: bool,
    /// Output size (bits 34:32).
    #[bits(3)]
    ips: u8,
    /// The access flag causes no faults (bit 35).
    affd: bool,
    /// Writable pages are not executable (bit 36, recalled).
    wxn: bool,
    /// Unprivileged (bit 37, recalled).
    uwxn: bool,
    /// Top bytes of addresses are ignored (bits 39:38).
    #[bits(2)]
    tbi: u8,
    /// Privileged access never (bit 40, recalled).
    pan: bool,
    /// Tables of AArch64 (bit 41).
    aa64: bool,
    /// The unit notes writes (bit 42).
    hd: bool,
    /// The unit notes accesses (bit 43).
    ha: bool,
    /// Faults stall (bit 44).
    s: bool,
    /// Faults are recorded (bit 45).
    r: bool,
    /// Faults abort (bit 46).
    a: bool,
    /// Invalidations that CPUs broadcast do not apply (bit 47).
    aset: bool,
    /// Under which id translations are cached (bits 63:48).
    asid: u16,
}

/// Address bits of a root (words 1 and 2, 51:4).
const TTB: u64 = 0x000f_ffff_ffff_fff0;

/// One half of an address space.
///
/// # Invariants
/// At least 25 address bits, and no more than the granule's descriptors tell, 52 or 48; below so many, `root`, aligned to 64
/// bytes: with 52 it has to be (IHI 0070, 5.4 TTB0), and with fewer our tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    granule: Granule,
    address_bits: u8,
    root: u64,
}

impl Half {
    /// Tables of `granule` at `root` for addresses of `address_bits` bits; `None` where no descriptor can say that.
    pub const fn new(granule: Granule, address_bits: u8, root: PhysAddr) -> Option<Self> {
        let root = root.as_u64();
        let most = granule.address_bits();
        let misplaced = root >> most != 0 || !root.is_multiple_of(CONTEXT_BYTES);
        // INVARIANT: checked here.
        if misplaced || address_bits < ADDRESS_BITS_LEAST || address_bits > most {
            return None;
        }
        Some(Self {
            granule,
            address_bits,
            root,
        })
    }
}

/// T0SZ and T1SZ are at most 39.
const ADDRESS_BITS_LEAST: u8 = 25;

/// First-stage tables: AArch64, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstStageTables {
    /// Under which id translations are cached.
    pub asid: Asid,
    /// Addresses whose top bits are zero.
    pub lower: Option<Half>,
    /// Addresses whose top bits are ones.
    pub upper: Option<Half>,
    /// Output addresses.
    pub output: OutputSize,
    /// Memory attributes by index, as in MAIR_EL1.
    pub attributes: u64,
    /// How the tables are read.
    pub walk: Walk,
    /// What a fault does to its transaction.
    pub on_fault: OnFault,
    /// The unit notes accesses and writes in leaves.
    pub dirty: Option<WritesDirty>,
}

/// A context descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextDescriptor([u64; WORDS]);

impl ContextDescriptor {
    /// Not valid: transactions are aborted, and recorded as C_BAD_CD.
    pub const INVALID: Self = Self([0; WORDS]);

    /// Transactions go through `tables`. Their faults abort them and are recorded. CPUs do not invalidate what is
    /// cached of it.
    pub const fn new(tables: &FirstStageTables) -> Self {
        let dirty = tables.dirty.is_some();
        let word0 = Word0::new()
            .with_v(true)
            .with_ips(tables.output.code())
            .with_aa64(true)
            .with_hd(dirty)
            .with_ha(dirty)
            .with_s(tables.on_fault.stalls())
            .with_r(true)
            .with_a(true)
            .with_aset(true)
            .with_asid(tables.asid.get());
        let (cacheability, shareability) = (tables.walk.cacheability(), tables.walk.shareability());
        let (word0, lower) = match tables.lower {
            Some(half) => {
                let word0 = word0
                    .with_t0sz(64 - half.address_bits)
                    .with_tg0(half.granule.tg0())
                    .with_ir0(cacheability)
                    .with_or0(cacheability)
                    .with_sh0(shareability.into_bits());
                (word0, half.root)
            }
            None => (word0.with_epd0(true), 0),
        };
        let (word0, upper) = match tables.upper {
            Some(half) => {
                let word0 = word0
                    .with_t1sz(64 - half.address_bits)
                    .with_tg1(half.granule.tg1())
                    .with_ir1(cacheability)
                    .with_or1(cacheability)
                    .with_sh1(shareability.into_bits());
                (word0, half.root)
            }
            None => (word0.with_epd1(true), 0),
        };
        Self([
            word0.into_bits(),
            lower,
            upper,
            tables.attributes,
            0,
            0,
            0,
            0,
        ])
    }

    /// The words, lowest address first. Word 0 makes the descriptor valid.
    pub const fn words(&self) -> [u64; WORDS] {
        self.0
    }

    /// The bits that the unit looks at in this descriptor, see [`used_bits`].
    pub const fn used(&self) -> [u64; WORDS] {
        used_bits(&self.0)
    }
}

/// Under which id what a descriptor of these words leads to is cached.
pub const fn asid_of(words: &[u64; WORDS]) -> Asid {
    let [word0, ..] = words;
    Asid::new(Word0::from_bits(*word0).asid())
}

/// Whether a descriptor of these words is valid.
pub const fn is_valid(words: &[u64; WORDS]) -> bool {
    let [word0, ..] = words;
    Word0::from_bits(*word0).v()
}

/// The bits that the unit looks at in a descriptor of these words, as with
/// [stream table entries](super::stream_entry::used_bits).
pub const fn used_bits(words: &[u64; WORDS]) -> [u64; WORDS] {
    let [word0, ..] = *words;
    let word0 = Word0::from_bits(word0);
    if !word0.v() {
        return [VALID, 0, 0, 0, 0, 0, 0, 0];
    }
    let mut used = [u64::MAX; WORDS];
    let [used0, used1, used2, ..] = &mut used;
    if word0.epd0() {
        *used0 &= !LOWER;
        *used1 &= !TTB;
    }
    if word0.epd1() {
        *used0 &= !UPPER;
        *used2 &= !TTB;
    }
    used
}

/// Word 0: V.
const VALID: u64 = Word0::new().with_v(true).into_bits();
/// Word 0: what is not looked at with EPD0.
const LOWER: u64 = Word0::new()
    .with_t0sz(0x3f)
    .with_tg0(3)
    .with_ir0(3)
    .with_or0(3)
    .with_sh0(3)
    .into_bits();
/// Word 0: what is not looked at with EPD1.
const UPPER: u64 = Word0::new()
    .with_t1sz(0x3f)
    .with_tg1(3)
    .with_ir1(3)
    .with_or1(3)
    .with_sh1(3)
    .into_bits();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::id_registers::{Idr0, StallModel};

    fn tables() -> FirstStageTables {
        FirstStageTables {
            asid: Asid::new(0x1234),
            lower: Half::new(Granule::Size4K, 48, PhysAddr::new(0x4000_1000)),
            upper: None,
            output: OutputSize::Bits44,
            attributes: 0xff44_04ff,
            walk: Walk::Coherent,
            on_fault: StallModel::Never.terminate().unwrap(),
            dirty: None,
        }
    }

    #[test]
    fn words_match_an_independent_table() {
        let word0 = 16
            | 1 << 8
            | 1 << 10
            | 3 << 12
            | 1 << 30
            | 1 << 31
            | 4 << 32
            | 1 << 41
            | 1 << 45
            | 1 << 46
            | 1 << 47
            | 0x1234 << 48;
        let words = [word0, 0x4000_1000, 0, 0xff44_04ff, 0, 0, 0, 0];
        assert_eq!(ContextDescriptor::new(&tables()).words(), words);
        let upper = Half::new(Granule::Size16K, 39, PhysAddr::new(0x4000_8000));
        let both = ContextDescriptor::new(&FirstStageTables { upper, ..tables() }).words();
        let upper = 25 << 16 | 1 << 22 | 1 << 24 | 1 << 26 | 3 << 28;
        assert_eq!(both[0], word0 & !(1 << 30) | upper);
        assert_eq!(both[2], 0x4000_8000);
        let neither = FirstStageTables {
            lower: None,
            walk: Walk::NonCoherent,
            ..tables()
        };
        assert_eq!(
            ContextDescriptor::new(&neither).words()[0] & 0xffff_ffff,
            0xc000_4000
        );
    }

    #[test]
    fn options_are_the_bits_of_an_independent_table() {
        let plain = ContextDescriptor::new(&tables()).words()[0];
        let on_fault = StallModel::Forced.stall().unwrap();
        let stall = ContextDescriptor::new(&FirstStageTables {
            on_fault,
            ..tables()
        });
        assert_eq!(stall.words()[0] ^ plain, 1 << 44);
        let dirty = Idr0::new().with_httu(2).writes_dirty();
        let dirty = ContextDescriptor::new(&FirstStageTables { dirty, ..tables() });
        assert_eq!(dirty.words()[0] ^ plain, 3 << 42);
        assert_eq!(Idr0::new().with_httu(1).writes_dirty(), None);
    }

    #[test]
    fn a_descriptor_says_whether_it_is_valid_and_for_which_asid() {
        let words = ContextDescriptor::new(&tables()).words();
        assert_ne!(words[0] & (1 << 45), 0, "faults are recorded");
        assert!(is_valid(&words) && !is_valid(&ContextDescriptor::INVALID.words()));
        assert!(is_valid(&[1 << 31; 8]) && !is_valid(&[!(1 << 31); 8]));
        assert_eq!(asid_of(&words), Asid::new(0x1234));
    }

    #[test]
    fn used_bits_match_an_independent_table() {
        assert_eq!(
            ContextDescriptor::INVALID.used(),
            [1 << 31, 0, 0, 0, 0, 0, 0, 0]
        );
        let used = ContextDescriptor::new(&tables()).used();
        assert_eq!(used[0], !0x3fff_0000);
        assert_eq!(used[1], u64::MAX);
        assert_eq!(used[2], 0xfff0_0000_0000_000f);
        assert_eq!(used[3..], [u64::MAX; 5]);
        let neither = FirstStageTables {
            lower: None,
            ..tables()
        };
        assert_eq!(ContextDescriptor::new(&neither).used()[0], !0x3fff_3fff);
    }

    #[test]
    fn halves_that_no_descriptor_can_say_are_not_made() {
        for (granule, most) in [
            (Granule::Size4K, 48),
            (Granule::Size16K, 48),
            (Granule::Size64K, 52),
        ] {
            let half = |bits, root| Half::new(granule, bits, PhysAddr::new(root)).is_some();
            assert!(half(25, 0x40) && half(most, 0) && half(39, 1 << (most - 1)));
            assert!(!half(24, 0x40) && !half(most + 1, 0x40));
            assert!(!half(39, 0x20) && !half(39, 1 << most));
        }
    }

    #[test]
    fn first_level_bits_match_an_independent_table() {
        let level1 = Level1Context::new().with_v(true).with_page(0x4_0001);
        assert_eq!(level1.into_bits(), 0x4000_1001);
        assert_eq!(
            Level1Context::new().with_page(u64::MAX >> 24).into_bits(),
            0x000f_ffff_ffff_f000
        );
        assert_eq!(u64::from(LEAF_CONTEXTS) * CONTEXT_BYTES, 0x1_0000);
        assert_eq!(Level1Context::to(0x4000_1000), level1);
        assert_eq!(level1.address(), 0x4000_1000);
        assert_eq!(level1.with_v(false).address(), 0);
    }
}
