//! First-stage descriptors (VMSAv8-64): what they say where second stages' say something else.
//!
//! After the Arm Architecture Reference Manual (DDI 0487, VMSAv8-64 stage 1 descriptor formats) and Linux
//! `io-pgtable-arm.c`. Devices send as unprivileged ones, and tables that restrict those below them are not played.

use super::stage_two::{Descriptor, Granule, Leaf, Memory};
use crate::bits::{bits, field};

/// What else decides about descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstLimits {
    /// nT is known (IDR3.BBML of 1 or more).
    pub(crate) no_table: bool,
    /// Addresses have 52 bits, see [`Shape::is_long`](super::stage_two::Shape::is_long).
    pub(crate) long: bool,
}

/// Decodes a descriptor of an architectural level. What is reserved is an error, whatever hardware makes of it.
pub(crate) fn decode(
    word: u64,
    level: u8,
    granule: Granule,
    limits: &FirstLimits,
) -> Result<Descriptor, String> {
    if word & 1 == 0 {
        return Ok(Descriptor::Absent);
    }
    let reserved = |mask: u64, what: &str| match word & mask {
        0 => Ok(()),
        _ => Err(format!("{word:#x}: {what}")),
    };
    if word & 2 != 0 && level < 3 {
        reserved(
            bits(63, 59),
            "bits 63:59 of a table restrict what is below, which nobody asked for",
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
    reserved(bits(62, 59), "bits 62:59 are not the driver's")?;
    if field(word, 9, 8) == 1 {
        return Err(format!("{word:#x}: SH 1 is reserved"));
    }
    // AP[1]: unprivileged requests may; AP[2]: nobody may write.
    let unprivileged = word & 1 << 6 != 0;
    Ok(Descriptor::Leaf(Leaf {
        // Nothing of a first stage is noted.
        clean: false,
        to,
        read: unprivileged,
        write: unprivileged && word & 1 << 7 == 0,
        accessed: word & 1 << 10 != 0,
        contiguous: word & 1 << 52 != 0,
        global: word & 1 << 11 == 0,
        memory: Memory::Indexed(field(word, 4, 2) as u8),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: FirstLimits = FirstLimits {
        no_table: false,
        long: false,
    };

    #[test]
    fn descriptors_say_who_may_do_what_and_for_whom_it_is_kept() {
        let page = 0x1_2345_6000 | 1 << 2 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11 | 0b11;
        let ask = |word, level| decode(word, level, Granule(12), &PLAIN);
        let leaf = |word| match ask(word, 3) {
            Ok(Descriptor::Leaf(leaf)) => leaf,
            other => panic!("{other:?}"),
        };
        let found = leaf(page);
        assert!(found.read && found.write && found.accessed && !found.global);
        assert_eq!(
            (found.to, found.memory),
            (0x1_2345_6000, Memory::Indexed(1))
        );
        let less = leaf(page | 1 << 7);
        assert!(less.read && !less.write);
        let privileged = leaf(page & !(1 << 6));
        assert!(!privileged.read && !privileged.write);
        assert!(leaf(page & !(1 << 11)).global && !leaf(page & !(1 << 10)).accessed);
        assert_eq!(
            ask(0x1_2345_6003, 2),
            Ok(Descriptor::Table { at: 0x1_2345_6000 })
        );
        assert_eq!(ask(page & !1, 3), Ok(Descriptor::Absent));
        assert!(ask(page & !2, 3).is_err() && ask(page & !2, 2).is_err());
        assert!(ask(page ^ 0b1 << 9, 3).is_err(), "SH 1");
        assert!(ask(0x1_2345_6003 | 1 << 61, 2).is_err(), "APTable");
    }
}
