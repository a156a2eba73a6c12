//! What a user may be shown as an SMMU of its own: a first stage alone, with what every unit that it may stand for has.
//!
//! Source: IHI 0070, 6.3.1 to 6.3.6, and for what a context descriptor may say by them 5.4 (`CdIllegal`). Linux gives a VMM
//! the registers of one unit and leaves this to it (`iommu_hw_info_arm_smmuv3`).

use super::granule::OutputSize;
use super::id_registers::{
    Aidr, Idr0, Idr1, Idr3, Idr5, STALL_FORCED, STALL_NEVER, TTENDIAN_LITTLE, TTF_AARCH64,
};

/// The id registers of such an SMMU, with all that no user may have left out: second stages, device TLBs and requests for
/// pages, notes in leaves, broadcasts, messages, address translation by registers. What an embedder plays itself is zero, and
/// its own to say: the sizes of StreamIDs and queues (IDR1), two-level stream tables (IDR0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserUnit {
    /// Stages, formats, ids; whether the user's tables are read through the CPU's caches (COHACC).
    pub idr0: Idr0,
    /// Bits of a substream id.
    pub idr1: Idr1,
    /// Ranges in commands, what may change in a live entry, hierarchical attributes.
    pub idr3: Idr3,
    /// Granules, and the bits of addresses that the user gives (VAX) and of those that it takes for physical (OAS), which are
    /// its parent's: that may map fewer.
    pub idr5: Idr5,
    /// The version of the architecture.
    pub aidr: Aidr,
}

impl UserUnit {
    /// Of one unit with these registers, which snoops or not by firmware's word, and whose second stage takes addresses of so
    /// many bits.
    pub const fn of_unit(
        (idr0, idr1, idr3, idr5): (Idr0, Idr1, Idr3, Idr5),
        aidr: Aidr,
        coherent: bool,
        output: OutputSize,
    ) -> Self {
        // No fault of a user's stands still: contexts must not ask for it where they have the choice, and must where the unit
        // gives them none.
        let stall = match idr0.stall() {
            STALL_FORCED => STALL_FORCED,
            _ => STALL_NEVER,
        };
        let vax = if idr5.gran64k() && idr5.vax() != 0 && idr5.vax() < 3 {
            1
        } else {
            0
        };
        Self {
            idr0: Idr0::new()
                .with_s1p(true)
                .with_ttf(TTF_AARCH64)
                .with_cohacc(coherent)
                .with_asid16(idr0.asid16())
                .with_cd2l(idr0.cd2l())
                .with_ttendian(TTENDIAN_LITTLE)
                .with_stall(stall)
                .with_term_model(idr0.term_model()),
            idr1: Idr1::new().with_ssidsize(idr1.ssidsize()),
            idr3: Idr3::new()
                .with_had(idr3.had())
                .with_ril(idr3.ril())
                .with_bbml(if idr3.bbml() < 3 { idr3.bbml() } else { 0 }),
            idr5: Idr5::new()
                .with_oas(output.code())
                .with_gran4k(idr5.gran4k())
                .with_gran16k(idr5.gran16k())
                .with_gran64k(idr5.gran64k())
                .with_vax(vax)
                .with_stall_max(if stall == STALL_FORCED {
                    idr5.stall_max()
                } else {
                    0
                }),
            aidr: Aidr::new().with_minor(aidr.minor()),
        }
    }

    /// Whether its requests may stand still.
    pub const fn stalls(&self) -> bool {
        self.idr0.stall() != STALL_NEVER
    }

    /// One that stands for both: with what either has. `None` where one has to have contexts that stall, and the other
    /// must not.
    pub const fn and(self, other: Self) -> Option<Self> {
        let (a, b) = (self, other);
        if a.idr0.stall() != b.idr0.stall() {
            return None;
        }
        // Shown, TERM_MODEL takes something from a user.
        let terminates = a.idr0.term_model() || b.idr0.term_model();
        let both0 = Idr0::from_bits(a.idr0.into_bits() & b.idr0.into_bits());
        let both3 = Idr3::from_bits(a.idr3.into_bits() & b.idr3.into_bits());
        let both5 = Idr5::from_bits(a.idr5.into_bits() & b.idr5.into_bits());
        Some(Self {
            idr0: both0.with_term_model(terminates),
            idr1: Idr1::new().with_ssidsize(least(a.idr1.ssidsize(), b.idr1.ssidsize())),
            idr3: both3.with_bbml(least(a.idr3.bbml(), b.idr3.bbml())),
            idr5: both5
                .with_oas(least(a.idr5.oas(), b.idr5.oas()))
                .with_vax(if both5.gran64k() {
                    least(a.idr5.vax(), b.idr5.vax())
                } else {
                    0
                })
                .with_stall_max(if a.idr5.stall_max() < b.idr5.stall_max() {
                    a.idr5.stall_max()
                } else {
                    b.idr5.stall_max()
                }),
            aidr: Aidr::new().with_minor(least(a.aidr.minor(), b.aidr.minor())),
        })
    }
}

const fn least(one: u8, other: u8) -> u8 {
    if one < other { one } else { other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::granule::Granule;

    fn of(idr0: Idr0, idr1: Idr1, idr3: Idr3, idr5: Idr5) -> UserUnit {
        let output = idr5.output_size();
        UserUnit::of_unit(
            (idr0, idr1, idr3, idr5),
            Aidr::from_bits(0x13),
            true,
            output,
        )
    }

    /// A unit that has everything that a register can say.
    fn everything() -> UserUnit {
        let idr0 = Idr0::from_bits(u32::MAX).with_stall(0);
        let (idr1, idr3) = (Idr1::from_bits(u32::MAX), Idr3::from_bits(u32::MAX));
        of(
            idr0,
            idr1,
            idr3.with_bbml(2),
            Idr5::from_bits(u32::MAX).with_oas(6).with_vax(2),
        )
    }

    #[test]
    fn of_a_unit_that_has_everything_a_user_sees_a_first_stage() {
        let shown = everything();
        // S1P, TTF 2, COHACC, ASID16, CD2L, TTENDIAN 2, STALL_MODEL 1, TERM_MODEL.
        let idr0 = 1 << 1 | 2 << 2 | 1 << 4 | 1 << 12 | 1 << 19 | 2 << 21 | 1 << 24 | 1 << 26;
        assert_eq!(shown.idr0.into_bits(), idr0);
        assert_eq!(shown.idr1.into_bits(), 0x1f << 6);
        // HAD, RIL, BBML 2.
        assert_eq!(shown.idr3.into_bits(), 1 << 2 | 1 << 10 | 2 << 11);
        // OAS 6, all granules, VAX 1.
        assert_eq!(shown.idr5.into_bits(), 6 | 7 << 4 | 1 << 10);
        assert_eq!(shown.aidr.into_bits(), 3);
        // And of one that has next to nothing.
        let none = of(
            Idr0::new(),
            Idr1::new(),
            Idr3::new(),
            Idr5::new().with_vax(1),
        );
        assert_eq!(
            none.idr0.into_bits(),
            1 << 1 | 2 << 2 | 1 << 4 | 2 << 21 | 1 << 24
        );
        assert_eq!((none.idr1.into_bits(), none.idr3.into_bits()), (0, 0));
        assert_eq!(
            (
                none.idr5.into_bits(),
                none.idr5.input_bits(Granule::Size64K)
            ),
            (0, 48)
        );
    }

    #[test]
    fn one_that_stands_for_several_has_what_each_of_them_has() {
        let one = everything();
        assert_eq!(one.and(one), Some(one));
        let idr1 = Idr1::new().with_ssidsize(8);
        let idr5 = Idr5::new().with_oas(4).with_gran4k(true).with_gran64k(true);
        let idr0 = Idr0::new().with_asid16(true);
        let other = of(idr0, idr1, Idr3::new().with_ril(true).with_bbml(1), idr5);
        let both = one.and(other).unwrap();
        assert_eq!(other.and(one), Some(both));
        assert!(both.idr0.asid16() && !both.idr0.cd2l());
        // What either takes from a user, both do.
        assert!(both.idr0.term_model() && !other.idr0.term_model());
        assert_eq!((both.idr1.ssidsize(), both.idr5.oas()), (8, 4));
        assert!(both.idr3.ril() && !both.idr3.had());
        // 1 of 2: no bit of theirs is the same.
        assert_eq!(both.idr3.bbml(), 1);
        let granules = [Granule::Size4K, Granule::Size16K, Granule::Size64K];
        assert_eq!(
            granules.map(|granule| both.idr5.has_granule(granule)),
            [true, false, true]
        );
        assert_eq!(both.idr5.vax(), 0);
        assert_eq!(both.aidr.minor(), 3);
    }

    /// A context stalls where it has to, and where one has to and another must not there is nothing to show.
    #[test]
    fn contexts_stall_where_they_have_to() {
        let with = |stall| {
            let idr0 = Idr0::new().with_stall(stall);
            of(
                idr0,
                Idr1::new(),
                Idr3::new(),
                Idr5::new().with_stall_max(16),
            )
        };
        for (model, shown, most) in [(0, 1, 0), (1, 1, 0), (2, 2, 16)] {
            let unit = with(model);
            assert_eq!((unit.idr0.stall(), unit.idr5.stall_max()), (shown, most));
            assert_eq!(unit.stalls(), model == 2);
        }
        assert_eq!(with(0).and(with(1)), Some(with(1)));
        assert_eq!(with(2).and(with(1)), None);
    }
}
