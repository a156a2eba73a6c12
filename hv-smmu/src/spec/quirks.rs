//! Units that are not as they say, and what is done about it: data, applied and logged at discovery.
//!
//! Source: Linux `arm-smmu-v3.c` (`arm_smmu_device_iidr_probe`, `acpi_smmu_get_options`, `arm_smmu_options`), the
//! device-tree binding `arm,smmu-v3`, ACPICA `actbl2.h` (models).
//!
//! | quirk | where it is honoured, or why it holds |
//! |---|---|
//! | [`NoEventSync`](Quirk::NoEventSync) | `unit::Telling`: syncs of such a unit ask for no event, and nobody waits for one |
//! | [`NoNesting`](Quirk::NoNesting) | [`UnitInfo::nests`](crate::UnitInfo::nests), which is what makes parents, and `caps`: no entry names both stages |
//! | [`NoBroadcast`](Quirk::NoBroadcast) | holds for every unit: they are told to take no part (CR2.PTM), and descriptors are marked as shared with no CPU (ASET) |
//! | [`SyncEveryBatch`](Quirk::SyncEveryBatch) | `command_queue`: a queue whose batches have a sync each, and a batch for each kind of command in a row |
//! | [`NoPrefetch`](Quirk::NoPrefetch) | holds for every unit: none is given by any code, and what users may ask for has none that is passed on ([`UserCommand`](super::command::UserCommand)) |
//! | [`WideSyncMessage`](Quirk::WideSyncMessage) | holds for every unit: completion is seen by the index, and no sync asks for a message |
//! | [`OnePage`](Quirk::OnePage) | `unit::Regs`, and how much of the registers is mapped |
//! | [`OneInterrupt`](Quirk::OneInterrupt) | firmware gives all wires one number, and each look at a unit looks at everything: whatever the wire was raised for is found |

use core::fmt;

use super::id_registers::{IMPLEMENTER_ARM, Iidr};

/// What is done differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Quirk {
    /// Completions are not told by events to waiting CPUs.
    NoEventSync,
    /// No stream goes through both stages.
    NoNesting,
    /// CPUs' broadcast invalidations are not relied on.
    NoBroadcast,
    /// Every batch of commands ends with a CMD_SYNC of its own, and has one between commands of different kinds: certain
    /// sequences must not come without one in between (Linux, commit 309a15cb16bb, which relies on batches of one kind).
    /// Which those are is not public.
    SyncEveryBatch,
    /// PREFETCH commands are not given.
    NoPrefetch,
    /// The message of a CMD_SYNC is written as eight bytes: four more than it says.
    WideSyncMessage,
    /// The registers of page 1 are in page 0, and there is no page 1.
    OnePage,
    /// All interrupts of the unit are one wire.
    OneInterrupt,
}

impl Quirk {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NoEventSync,
        Self::NoNesting,
        Self::NoBroadcast,
        Self::SyncEveryBatch,
        Self::NoPrefetch,
        Self::WideSyncMessage,
        Self::OnePage,
        Self::OneInterrupt,
    ];
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEventSync => "no completion by event",
            Self::NoNesting => "no nested stages",
            Self::NoBroadcast => "no broadcast invalidation",
            Self::SyncEveryBatch => "a sync ends every batch",
            Self::NoPrefetch => "no prefetch",
            Self::WideSyncMessage => "sync messages of 8 bytes",
            Self::OnePage => "registers in one page",
            Self::OneInterrupt => "one interrupt",
        })
    }
}

/// A set of quirks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Quirks(u8);

impl Quirks {
    /// None.
    pub const NONE: Self = Self(0);

    /// These.
    pub const fn of(quirks: &[Quirk]) -> Self {
        let mut set = Self::NONE;
        let mut rest = quirks;
        while let [first, others @ ..] = rest {
            set = set.with(*first);
            rest = others;
        }
        set
    }

    /// This set and one more.
    #[must_use]
    pub const fn with(self, quirk: Quirk) -> Self {
        Self(self.0 | 1 << quirk as u8)
    }

    /// Those of both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set has it.
    pub const fn has(self, quirk: Quirk) -> bool {
        self.0 & 1 << quirk as u8 != 0
    }

    /// Its members.
    pub fn iter(self) -> impl Iterator<Item = Quirk> {
        Quirk::ALL.into_iter().filter(move |&quirk| self.has(quirk))
    }
}

/// Units of one product, up to a revision, and their quirks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erratum {
    /// What the product is called.
    pub part: &'static str,
    /// Under which number its maker describes it.
    pub number: &'static str,
    /// IIDR.Implementer.
    pub implementer: u16,
    /// IIDR.ProductID.
    pub product: u16,
    /// Variant and revision of the last ones that have it.
    pub last: (u8, u8),
    /// What is done.
    pub quirks: Quirks,
}

impl Erratum {
    /// Whether a unit has it.
    pub const fn applies_to(&self, iidr: Iidr) -> bool {
        let (variant, revision) = self.last;
        iidr.implementer() == self.implementer
            && iidr.product() == self.product
            && (iidr.variant() < variant
                || iidr.variant() == variant && iidr.revision() <= revision)
    }
}

/// IIDR.ProductID: MMU-600.
const MMU_600: u16 = 0x483;
/// IIDR.ProductID: MMU-700.
const MMU_700: u16 = 0x487;
/// Variant and revision: all there are.
const EVERY: (u8, u8) = (0xf, 0xf);

/// What is told by IIDR.
pub const BY_IIDR: [Erratum; 4] = [
    Erratum {
        part: "MMU-600",
        number: "1076982",
        implementer: IMPLEMENTER_ARM,
        product: MMU_600,
        last: (0, 2),
        quirks: Quirks::of(&[Quirk::NoEventSync]),
    },
    Erratum {
        part: "MMU-600",
        number: "1209401",
        implementer: IMPLEMENTER_ARM,
        product: MMU_600,
        last: (1, 0xf),
        quirks: Quirks::of(&[Quirk::NoNesting]),
    },
    Erratum {
        part: "MMU-700",
        number: "2812531",
        implementer: IMPLEMENTER_ARM,
        product: MMU_700,
        last: EVERY,
        quirks: Quirks::of(&[Quirk::NoBroadcast, Quirk::SyncEveryBatch]),
    },
    // Linux has it so; pKVM has nesting again from r1p1 on.
    Erratum {
        part: "MMU-700",
        number: "2268618, 2812531",
        implementer: IMPLEMENTER_ARM,
        product: MMU_700,
        last: EVERY,
        quirks: Quirks::of(&[Quirk::NoNesting]),
    },
];

/// The errata that a unit has by its IIDR.
pub fn errata(iidr: Iidr) -> impl Iterator<Item = &'static Erratum> {
    BY_IIDR
        .iter()
        .filter(move |erratum| erratum.applies_to(iidr))
}

/// All quirks that IIDR tells.
pub fn by_iidr(iidr: Iidr) -> Quirks {
    errata(iidr).fold(Quirks::NONE, |set, erratum| set.and(erratum.quirks))
}

/// HiSilicon Hi161x.
const HI161X: Quirks = Quirks::of(&[Quirk::NoPrefetch, Quirk::WideSyncMessage]);
/// Cavium CN99xx.
const CN99XX: Quirks = Quirks::of(&[Quirk::OnePage, Quirk::OneInterrupt]);

/// What the model in an IORT node tells; `None` for a model that is not known.
pub const fn by_model(model: u32) -> Option<Quirks> {
    Some(match model {
        super::iort::MODEL_GENERIC => Quirks::NONE,
        super::iort::MODEL_HISILICON_HI161X => HI161X,
        super::iort::MODEL_CAVIUM_CN99XX => CN99XX,
        _ => return None,
    })
}

/// What a property of a device-tree node tells. The tree lists interrupts by their names, so that they are one is seen
/// there.
pub const BY_PROPERTY: [(&str, Quirks); 2] = [
    ("hisilicon,broken-prefetch-cmd", HI161X),
    (
        "cavium,cn9900-broken-page1-regspace",
        Quirks::of(&[Quirk::OnePage]),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn quirks(product: u16, variant: u8, revision: u8) -> Vec<Quirk> {
        let iidr = Iidr::new()
            .with_implementer(0x43b)
            .with_product(product)
            .with_variant(variant)
            .with_revision(revision);
        by_iidr(iidr).iter().collect()
    }

    #[test]
    fn revisions_have_their_errata() {
        use Quirk::*;
        assert_eq!(quirks(0x483, 0, 0), [NoEventSync, NoNesting]);
        assert_eq!(quirks(0x483, 0, 2), [NoEventSync, NoNesting]);
        assert_eq!(quirks(0x483, 0, 3), [NoNesting]);
        assert_eq!(quirks(0x483, 1, 0xf), [NoNesting]);
        assert_eq!(quirks(0x483, 2, 0), []);
        assert_eq!(
            quirks(0x487, 0, 0),
            [NoNesting, NoBroadcast, SyncEveryBatch]
        );
        assert_eq!(
            quirks(0x487, 0xf, 0xf),
            [NoNesting, NoBroadcast, SyncEveryBatch]
        );
        assert_eq!(quirks(0x488, 0, 0), []);
        let other = Iidr::new().with_implementer(0x43c).with_product(0x483);
        assert_eq!(by_iidr(other), Quirks::NONE);
        // QEMU.
        assert_eq!(by_iidr(Iidr::from_bits(0)), Quirks::NONE);
    }

    #[test]
    fn models_and_properties_have_theirs() {
        use Quirk::*;
        let model = |model| by_model(model).map(|quirks| quirks.iter().collect::<Vec<_>>());
        assert_eq!(model(0), Some(vec![]));
        assert_eq!(model(1), Some(vec![NoPrefetch, WideSyncMessage]));
        assert_eq!(model(2), Some(vec![OnePage, OneInterrupt]));
        assert_eq!(model(3), None);
        assert_eq!(BY_PROPERTY[0].1, HI161X);
        assert!(BY_PROPERTY[1].1.has(OnePage) && !BY_PROPERTY[1].1.has(OneInterrupt));
        assert_eq!(Quirks::of(&Quirk::ALL).iter().count(), 8);
    }
}
