//! Draws a unit that a driver for legacy mode with queued invalidation must be able to drive.

use super::super::registers::FIXED_END;
use super::{Cap, Ecap, widest};

/// Table depths, the common ones more often (VT-d manual, CAP.SAGAW).
const DEPTHS: [u8; 16] = [
    0b00110, 0b00110, 0b00110, 0b00110, 0b00110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00010,
    0b00010, 0b01110, 0b01110, 0b01100, 0b01010, 0b01000,
];
/// ND, small ones more often: with few ids they run out, and are used again soon.
const DOMAINS: [u8; 12] = [0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6];
/// SSLPS, each set of page sizes that hardware may have.
const PAGE_SIZES: [u8; 3] = [0b00, 0b01, 0b11];

/// The first 16 bytes that are free for what has no fixed place.
const FIRST_SLOT: u64 = FIXED_END as u64 / 16;
/// All records end below 0x4000 bytes, the farthest that FRO and IRO reach.
const SLOTS: u64 = 0x400;
/// Most units have all registers in their first page or little more.
const NEAR_SLOTS: u64 = 0x60;

/// Draws a unit for a host with addresses of `haw` bits. `pick(n)` gives a number below `n`; if it gives 0
/// always, the fault records lie last, with room behind them.
pub(crate) fn draw(pick: &mut impl FnMut(u64) -> u64, haw: u8) -> (Cap, Ecap) {
    let sagaw = one_of(&DEPTHS, pick);
    let width = widest(sagaw);
    // Addresses as wide as the host's, if tables reach so far, and up to all that they reach.
    let least = haw.clamp(31, width);
    let mgaw = least + pick(u64::from(width - least) + 1) as u8;
    let nfr = match pick(4) {
        0 => 1,
        1 => 1 + pick(16),
        _ => 1 + pick(4),
    };
    let (fro, iro) = places(nfr, pick);
    let mamv = match pick(4) {
        // Too small for large pages.
        0 => pick(9),
        1 => 9 + pick(9),
        2 => 18 + pick(10),
        _ => pick(28),
    };
    let nd = one_of(&DOMAINS, pick);
    let sslps = one_of(&PAGE_SIZES, pick);
    let mut chance = |of: u64| pick(of) == 0;
    let cap = Cap {
        nd,
        afl: false,
        rwbf: chance(3),
        plmr: chance(2),
        phmr: chance(2),
        cm: chance(3),
        sagaw,
        mgaw,
        zlr: chance(2),
        fro,
        sslps,
        psi: chance(2),
        nfr: nfr as u16,
        mamv: mamv as u8,
        dwd: true,
        drd: true,
        fs1gp: chance(2),
        pi: false,
        fs5lp: chance(2),
        esirtps: chance(2),
        esrtps: chance(3),
    };
    let ecap = Ecap {
        c: chance(2),
        qi: true,
        dt: false,
        ir: false,
        eim: false,
        pt: chance(2),
        sc: chance(2),
        iro,
        mhmv: 0,
    };
    (cap, ecap)
}

fn one_of(values: &[u8], pick: &mut impl FnMut(u64) -> u64) -> u8 {
    let index = pick(values.len() as u64) as usize;
    values.get(index).copied().unwrap_or(0)
}

/// Byte offsets of the fault records and of the IOTLB registers.
fn places(nfr: u64, pick: &mut impl FnMut(u64) -> u64) -> (u16, u16) {
    let slots = if pick(4) == 3 { SLOTS } else { NEAR_SLOTS };
    let iotlb = FIRST_SLOT + pick(slots - FIRST_SLOT);
    let mut records = FIRST_SLOT + pick(slots - FIRST_SLOT - nfr + 1);
    if (records..records + nfr).contains(&iotlb) {
        let behind = iotlb + 1;
        let fits = behind + nfr <= slots;
        records = if fits { behind } else { iotlb - nfr };
    }
    (records as u16 * 16, iotlb as u16 * 16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::check;
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn every_drawn_unit_is_possible_and_they_differ() {
        let mut rng = Rng::new(1);
        let (mut depths, mut domains, mut records) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut before, mut behind, mut narrow) = (0, 0, 0);
        for draw_number in 0..10_000 {
            let haw = 33 + rng.below(20) as u8;
            let (cap, ecap) = draw(&mut |end| rng.below(end), haw);
            assert_eq!(
                check(&cap, &ecap),
                Ok(()),
                "draw {draw_number}: {cap:?} {ecap:?}"
            );
            assert!(ecap.qi && cap.dwd && cap.drd && !ecap.dt && !ecap.ir && !cap.afl);
            assert!(u32::from(cap.fro) + u32::from(cap.nfr) * 16 <= 0x4000);
            depths.insert(cap.sagaw);
            domains.insert(cap.nd);
            records.insert(cap.nfr);
            before += u32::from(cap.fro < ecap.iro);
            behind += u32::from(cap.fro > 0x1000);
            narrow += u32::from(cap.mgaw < widest(cap.sagaw));
        }
        assert_eq!((depths.len(), domains.len(), records.len()), (7, 7, 16));
        assert!(before > 3000 && before < 7000 && behind > 500 && narrow > 1000);
    }

    #[test]
    fn the_first_choice_has_room_for_more_records() {
        let (cap, ecap) = draw(&mut |_| 0, 39);
        assert_eq!(
            (cap.sagaw, cap.mgaw, cap.fro, ecap.iro),
            (0b00110, 39, 0x100, 0xf0)
        );
        assert_eq!(check(&Cap { nfr: 256, ..cap }, &ecap), Ok(()));
    }

    #[test]
    fn the_last_choice_ends_where_the_registers_do() {
        let (cap, ecap) = draw(&mut |end| end - 1, 52);
        assert_eq!(check(&cap, &ecap), Ok(()));
        assert!(
            cap.fro == 0x3fb0 && ecap.iro == 0x3ff0 && cap.nfr == 4,
            "{cap:?} {ecap:?}"
        );
    }
}
