//! Which capabilities no hardware can have.

use thiserror::Error;

use super::super::fault::RECORD_BYTES;
use super::super::registers::{FIXED_END, IOTLB_BYTES};
use super::{Cap, Ecap, widest};

/// Capabilities that no hardware has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected {rule}, found {what} {found:#x}")]
pub(crate) struct Impossible {
    /// Which field.
    pub(crate) what: &'static str,
    /// The rule that it breaks, with its source.
    pub(crate) rule: &'static str,
    /// What it holds.
    pub(crate) found: u64,
}

/// Refuses capabilities that contradict the manual or each other.
pub(crate) fn check(cap: &Cap, ecap: &Ecap) -> Result<(), Impossible> {
    let rule = |kept: bool, what, found: u64, rule| match kept {
        true => Ok(()),
        false => Err(Impossible { what, rule, found }),
    };
    let (sagaw, mgaw) = (cap.sagaw, cap.mgaw);
    rule(
        cap.nd <= 6,
        "ND",
        cap.nd.into(),
        "0 to 6 (VT-d manual, CAP.ND: 7 is reserved)",
    )?;
    rule(
        sagaw & !0b01110 == 0,
        "SAGAW",
        sagaw.into(),
        "3 to 5 levels (VT-d manual, CAP.SAGAW: bits 0 and 4 are reserved)",
    )?;
    // Linux knows units without any depth; they have no second stage at all.
    rule(
        sagaw != 0,
        "SAGAW",
        0,
        "a depth of second-stage tables (VT-d manual, CAP.SAGAW)",
    )?;
    rule(
        mgaw <= widest(sagaw),
        "MGAW",
        mgaw.into(),
        "no more bits than the deepest tables translate (VT-d manual, CAP.MGAW)",
    )?;
    rule(
        mgaw > 30,
        "MGAW",
        mgaw.into(),
        "more bits than two levels of tables translate (VT-d manual, CAP.SAGAW)",
    )?;
    rule(
        cap.sslps & !0b11 == 0,
        "SSLPS",
        cap.sslps.into(),
        "2 MiB and 1 GiB only (VT-d manual, CAP.SSLPS: the rest is reserved)",
    )?;
    rule(
        cap.sslps != 0b10,
        "SSLPS",
        cap.sslps.into(),
        "the smaller sizes with each size (VT-d manual, CAP.SSLPS)",
    )?;
    rule(
        cap.mamv < 64,
        "MAMV",
        cap.mamv.into(),
        "6 bits (VT-d manual, CAP.MAMV)",
    )?;
    rule(
        (1..=256).contains(&cap.nfr),
        "NFR",
        cap.nfr.into(),
        "1 to 256 fault records (VT-d manual, CAP.NFR)",
    )?;
    rule(
        !ecap.dt || ecap.qi,
        "DT",
        1,
        "device-TLBs with a queue only (VT-d manual, ECAP.DT)",
    )?;
    rule(
        !ecap.ir || ecap.qi,
        "IR",
        1,
        "interrupt remapping with a queue only (VT-d manual, ECAP.IR)",
    )?;
    rule(
        !ecap.eim || ecap.ir,
        "EIM",
        1,
        "extended interrupts with interrupt remapping only (VT-d manual, ECAP.EIM)",
    )?;
    rule(
        !cap.pi || ecap.ir,
        "PI",
        1,
        "posted interrupts with interrupt remapping only: they are its entries (VT-d manual, CAP.PI)",
    )?;
    rule(
        ecap.mhmv < 16,
        "MHMV",
        ecap.mhmv.into(),
        "4 bits (VT-d manual, ECAP.MHMV)",
    )?;
    for (what, offset) in [("FRO", cap.fro), ("IRO", ecap.iro)] {
        rule(
            offset.is_multiple_of(16) && offset < 0x4000,
            what,
            offset.into(),
            "a multiple of 16 below 0x4000 (VT-d manual, CAP.FRO and ECAP.IRO: 10 bits, in 16 bytes)",
        )?;
        rule(
            u32::from(offset) >= FIXED_END,
            what,
            offset.into(),
            "a place behind the fixed registers (VT-d manual, register map)",
        )?;
    }
    let (records, iotlb) = (u32::from(cap.fro), u32::from(ecap.iro));
    let apart =
        records + u32::from(cap.nfr) * RECORD_BYTES <= iotlb || iotlb + IOTLB_BYTES <= records;
    rule(
        apart,
        "IRO",
        iotlb.into(),
        "IVA and IOTLB apart from the fault records (VT-d manual, register map)",
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::plain;
    use super::*;

    #[test]
    fn the_plain_unit_is_possible() {
        let (cap, ecap) = plain();
        assert_eq!(check(&cap, &ecap), Ok(()));
        // As QEMU has them: IVA at 0xf0, one record at 0x220.
        let (cap, ecap) = (
            Cap {
                fro: 0x220,
                nfr: 1,
                ..cap
            },
            Ecap { iro: 0xf0, ..ecap },
        );
        assert_eq!(check(&cap, &ecap), Ok(()));
        assert_eq!(
            check(
                &Cap {
                    sagaw: 0b01000,
                    mgaw: 57,
                    ..cap
                },
                &ecap
            ),
            Ok(())
        );
    }

    /// What is found fault with after a change of the plain unit.
    fn refused(change: impl FnOnce(&mut Cap, &mut Ecap)) -> (&'static str, u64) {
        let (mut cap, mut ecap) = plain();
        change(&mut cap, &mut ecap);
        let why = check(&cap, &ecap).unwrap_err();
        assert!(why.to_string().contains("VT-d manual"), "{why}");
        (why.what, why.found)
    }

    macro_rules! impossible {
        ($($name:ident: |$cap:ident, $ecap:ident| $change:expr => $what:literal, $found:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(refused(|$cap, $ecap| $change), ($what, $found));
            }
        )*};
    }

    impossible! {
        domain_ids_have_at_most_16_bits: |cap, _ecap| cap.nd = 7 => "ND", 7;
        reserved_table_depth_0: |cap, _ecap| cap.sagaw = 0b00111 => "SAGAW", 0b00111;
        reserved_table_depth_4: |cap, _ecap| cap.sagaw = 0b10110 => "SAGAW", 0b10110;
        no_table_depth: |cap, _ecap| cap.sagaw = 0 => "SAGAW", 0;
        wider_than_the_tables: |cap, _ecap| cap.mgaw = 49 => "MGAW", 49;
        narrower_than_any_table: |cap, _ecap| cap.mgaw = 30 => "MGAW", 30;
        reserved_page_sizes: |cap, _ecap| cap.sslps = 0b111 => "SSLPS", 0b111;
        the_largest_pages_without_the_large: |cap, _ecap| cap.sslps = 0b10 => "SSLPS", 0b10;
        address_masks_have_6_bits: |cap, _ecap| cap.mamv = 64 => "MAMV", 64;
        no_fault_record: |cap, _ecap| cap.nfr = 0 => "NFR", 0;
        too_many_fault_records: |cap, _ecap| cap.nfr = 257 => "NFR", 257;
        device_tlbs_without_a_queue: |_cap, ecap|
            (ecap.qi, ecap.ir, ecap.eim, ecap.dt) = (false, false, false, true) => "DT", 1;
        interrupt_remapping_without_a_queue: |_cap, ecap| ecap.qi = false => "IR", 1;
        extended_interrupts_without_remapping: |_cap, ecap| ecap.ir = false => "EIM", 1;
        posted_interrupts_without_remapping: |cap, ecap|
            (cap.pi, ecap.ir, ecap.eim) = (true, false, false) => "PI", 1;
        index_masks_have_4_bits: |_cap, ecap| ecap.mhmv = 16 => "MHMV", 16;
        fault_records_at_an_odd_place: |cap, _ecap| cap.fro = 0x208 => "FRO", 0x208;
        fault_records_too_far_up: |cap, _ecap| cap.fro = 0x4000 => "FRO", 0x4000;
        fault_records_on_fixed_registers: |cap, _ecap| cap.fro = 0xe0 => "FRO", 0xe0;
        iotlb_registers_on_fixed_registers: |_cap, ecap| ecap.iro = 0xb0 => "IRO", 0xb0;
        iotlb_registers_at_an_odd_place: |_cap, ecap| ecap.iro = 0x501 => "IRO", 0x501;
        iotlb_registers_on_fault_records: |_cap, ecap| ecap.iro = 0x270 => "IRO", 0x270;
    }
}
