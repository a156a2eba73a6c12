//! Which units this version does not drive, by what their registers say: each refusal names the register and what it was.

use thiserror::Error;

use crate::caps;
use crate::spec::granule::Granule;
use crate::spec::id_registers::{Idr0, Idr1, Idr5};
use crate::spec::registers::Gerror;
use crate::vmsa::Stage;

/// Why this version does not drive a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnitRefusal {
    /// There is no unit at that address.
    #[error("expected id registers, found all ones: no unit is there")]
    Absent,
    /// Tables or queues are where the hardware wants them.
    #[error(
        "expected tables and queues where software puts them, found preset ones (IDR1 {idr1:#x}): an embedded unit"
    )]
    Preset {
        /// IDR1.
        idr1: u32,
    },
    /// No tables of AArch64 in little-endian order.
    #[error(
        "expected little-endian AArch64 tables, found TTF and TTENDIAN without them (IDR0 {idr0:#x})"
    )]
    Tables {
        /// IDR0.
        idr0: u32,
    },
    /// No stage at all.
    #[error("expected stages that translate (IDR0.S1P, IDR0.S2P), found neither (IDR0 {idr0:#x})")]
    NoStage {
        /// IDR0.
        idr0: u32,
    },
    /// Tables cannot have the granule that was chosen.
    #[error("expected tables of {}-byte pages, found IDR5 {idr5:#x}", granule.bytes())]
    Granule {
        /// The granule.
        granule: Granule,
        /// IDR5.
        idr5: u32,
    },
    /// The unit has failed for good.
    #[error("expected a unit that works, found one in service failure mode (GERROR {errors:#x})")]
    Failed {
        /// The errors that are not acknowledged.
        errors: u32,
    },
    /// What faults do to their transaction is not known.
    #[error("expected a stall model of 0 to 2, found IDR0 {idr0:#x}")]
    StallModel {
        /// IDR0.
        idr0: u32,
    },
}

/// Which stage translates domains of tables with this granule, on a unit that this version drives.
///
/// # Errors
/// [`UnitRefusal`]: why it does not. Never [`UnitRefusal::Failed`], which its errors say: [`check_errors`].
pub(super) fn check(
    (idr0, idr1, idr5): (Idr0, Idr1, Idr5),
    granule: Granule,
) -> Result<Stage, UnitRefusal> {
    let (idr0_bits, idr1_bits) = (idr0.into_bits(), idr1.into_bits());
    if idr0_bits == u32::MAX && idr1_bits == u32::MAX {
        return Err(UnitRefusal::Absent);
    }
    if idr1.is_preset() {
        return Err(UnitRefusal::Preset { idr1: idr1_bits });
    }
    if !idr0.has_aarch64() || !idr0.has_little_endian() {
        return Err(UnitRefusal::Tables { idr0: idr0_bits });
    }
    let Some(stage) = caps::stage(idr0) else {
        return Err(UnitRefusal::NoStage { idr0: idr0_bits });
    };
    if !idr5.has_granule(granule) {
        let idr5 = idr5.into_bits();
        return Err(UnitRefusal::Granule { granule, idr5 });
    }
    if idr0.stall_model().is_none() {
        return Err(UnitRefusal::StallModel { idr0: idr0_bits });
    }
    Ok(stage)
}

/// Refuses a unit whose errors, those that are not acknowledged, say that it has failed for good. Others are of before.
///
/// # Errors
/// [`UnitRefusal::Failed`].
pub(super) fn check_errors(errors: Gerror) -> Result<(), UnitRefusal> {
    match errors.sfm_err() {
        true => Err(UnitRefusal::Failed {
            errors: errors.into_bits(),
        }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU 10, virt with both stages: IDR0, IDR1 and IDR5, with granules of 4, 16 and 64 KiB.
    const DRIVEN: (u32, u32, u32) = (0x0d44_101b, 0x0273_0010, 0x74);
    const SMALL: Granule = Granule::Size4K;

    fn checked(
        (idr0, idr1, idr5): (u32, u32, u32),
        granule: Granule,
    ) -> Result<Stage, UnitRefusal> {
        let registers = (
            Idr0::from_bits(idr0),
            Idr1::from_bits(idr1),
            Idr5::from_bits(idr5),
        );
        check(registers, granule)
    }

    #[test]
    fn units_that_this_version_drives_are_not_refused() {
        let (idr0, idr1, idr5) = DRIVEN;
        let rows = [
            (idr0, Stage::Second),
            // One stage alone.
            (idr0 & !2, Stage::Second),
            (idr0 & !1, Stage::First),
            // Tables of AArch32 beside those of AArch64; both orders of bytes.
            (idr0 | 0xc, Stage::Second),
            (idr0 & !0x60_0000, Stage::Second),
            // Each stall model that there is.
            (idr0 & !0x300_0000, Stage::Second),
            (idr0 & !0x300_0000 | 0x200_0000, Stage::Second),
        ];
        for (idr0, stage) in rows {
            for granule in [SMALL, Granule::Size16K, Granule::Size64K] {
                let found = checked((idr0, idr1, idr5), granule);
                assert_eq!(found, Ok(stage), "IDR0 {idr0:#x}, {granule:?}");
            }
        }
        // All ones in one of the two is a unit, which says something else that is wrong.
        let rows = [(u32::MAX, idr1), (idr0, u32::MAX)];
        for (idr0, idr1) in rows {
            assert_ne!(checked((idr0, idr1, idr5), SMALL), Err(UnitRefusal::Absent));
        }
    }

    /// The words that a refusal is told with name the fields, so that who has such a unit knows which register to look at.
    #[test]
    fn units_that_this_version_cannot_drive_are_refused_by_name() {
        let (zero, one, five) = DRIVEN;
        let preset = |idr1| UnitRefusal::Preset { idr1 };
        let tables = |idr0| UnitRefusal::Tables { idr0 };
        let granule = |granule, idr5| UnitRefusal::Granule { granule, idr5 };
        let (middle, large) = (Granule::Size16K, Granule::Size64K);
        let no_stage = UnitRefusal::NoStage { idr0: zero & !3 };
        let model = UnitRefusal::StallModel {
            idr0: zero | 0x300_0000,
        };
        #[rustfmt::skip]
        let rows = [
            // No unit, whatever else reads as ones.
            ((u32::MAX, u32::MAX, u32::MAX), SMALL, UnitRefusal::Absent, "no unit is there"),
            ((u32::MAX, u32::MAX, five), SMALL, UnitRefusal::Absent, "no unit is there"),
            // REL, QUEUES_PRESET, TABLES_PRESET.
            ((zero, one | 1 << 28, five), SMALL, preset(one | 1 << 28), "IDR1 0x12730010"),
            ((zero, one | 1 << 29, five), SMALL, preset(one | 1 << 29), "IDR1 0x22730010"),
            ((zero, one | 1 << 30, five), SMALL, preset(one | 1 << 30), "IDR1 0x42730010"),
            // TTF: reserved, AArch32 alone.
            ((zero & !0xc, one, five), SMALL, tables(zero & !0xc), "TTF"),
            ((zero & !0xc | 4, one, five), SMALL, tables(zero & !0xc | 4), "TTF"),
            // TTENDIAN: reserved, big-endian alone.
            ((zero & !0x60_0000 | 0x20_0000, one, five), SMALL, tables(zero & !0x60_0000 | 0x20_0000), "TTENDIAN"),
            ((zero | 0x60_0000, one, five), SMALL, tables(zero | 0x60_0000), "TTENDIAN"),
            // S1P, S2P: neither.
            ((zero & !3, one, five), SMALL, no_stage, "found neither"),
            // Each granule by itself.
            ((zero, one, five & !0x10), SMALL, granule(SMALL, five & !0x10), "tables of 4096-byte pages"),
            ((zero, one, five & !0x20), middle, granule(middle, five & !0x20), "tables of 16384-byte pages"),
            ((zero, one, five & !0x40), large, granule(large, five & !0x40), "tables of 65536-byte pages"),
            // STALL_MODEL: reserved.
            ((zero | 0x300_0000, one, five), SMALL, model, "a stall model of 0 to 2"),
        ];
        for (registers, granule, why, words) in rows {
            let found = checked(registers, granule);
            assert_eq!(found, Err(why), "{registers:x?} with {granule:?}");
            let told = why.to_string();
            assert!(told.contains(words), "{told}");
        }
    }

    #[test]
    fn a_unit_is_refused_that_says_it_has_failed_and_for_no_error_else() {
        for bit in 0..32 {
            let errors = 1 << bit;
            let expected = match bit {
                // SFM_ERR.
                8 => Err(UnitRefusal::Failed { errors }),
                _ => Ok(()),
            };
            let found = check_errors(Gerror::from_bits(errors));
            assert_eq!(found, expected, "bit {bit}");
        }
        let all = Gerror::from_bits(u32::MAX);
        let told = check_errors(all).unwrap_err().to_string();
        assert!(told.contains("service failure mode"), "{told}");
    }
}
